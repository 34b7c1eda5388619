"""The parts of a backbone's directory, opened: transformer, codec, text encoders. Missing weights are never made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import CLIPTextModel, LlamaModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from w2svd_bench.backbones.locate import Place, Side
from w2svd_bench.backbones.mini_codec import MiniCodec
from w2svd_bench.backbones.quiet import only_errors
from w2svd_bench.errors import BenchError

PIPELINE_CLASSES = {"t2v": HunyuanVideoPipeline, "i2v": HunyuanVideoImageToVideoPipeline}
TEXT_ENCODERS = {"t2v": LlamaModel, "i2v": LlavaForConditionalGeneration}
TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
# Above this many pixels a frame the VAE works in overlapping tiles, which changes values a little: it is in the
# codec's description, and so in the fingerprint of everything encoded.
TILED_ABOVE = 512 * 512


def read_transformer_config(place: Place) -> dict[str, Any]:
    """The transformer's config, without its weights."""
    config: dict[str, Any] = json.loads((place.folder / "transformer" / "config.json").read_text())
    return config


def read_codec_config(place: Place, side: Side) -> dict[str, Any]:
    """The codec's config, without its weights."""
    path = place.folder / (side.codec or "vae") / "config.json"
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("it holds no mapping")
    except (OSError, ValueError) as error:
        why = f"{path} can't be read: {error.strerror if isinstance(error, OSError) else error}"
        raise BenchError(
            f"backbone {side.backbone!r} has no codec", why, "give a complete pipeline directory"
        ) from None
    return config


def default_template(task: str) -> dict[str, Any]:
    """The template that the pipeline puts prompts in unless told otherwise; an update of diffusers could change it."""
    module = {"t2v": pipeline_hunyuan_video, "i2v": pipeline_hunyuan_video_image2video}[task]
    return dict(module.DEFAULT_PROMPT_TEMPLATE)


def weight_files(folder: Path, what: str) -> list[Path]:
    """The weight files of one part; raises `BenchError` where there are none, or not all that their index names."""
    found = sorted(folder.glob("*.safetensors"))
    named: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        named |= set(json.loads(index.read_text())["weight_map"].values())
    missing = sorted(named - {file.name for file in found})
    if missing or not found:
        why = f"{missing[0]} is missing" if missing else "there is no *.safetensors"
        raise BenchError(f"the {what} in {folder} is not complete", why, "copy or download that directory again")
    return found


def text_parts(side: Side) -> tuple[str, ...]:
    """The folders that decide the conditioning."""
    return (*TEXT_PARTS, "image_processor") if side.task == "i2v" else TEXT_PARTS


def open_transformer(folder: Path, dtype: torch.dtype) -> HunyuanVideoTransformer3DModel:
    """The transformer in ``folder``; raises `BenchError` if its weights are damaged or not exactly its own."""
    return _complete(HunyuanVideoTransformer3DModel, folder, dtype, "transformer")


def open_codec(place: Place, side: Side, dtype: torch.dtype) -> Any:
    """The codec: an `AutoencoderKLHunyuanVideo`, or what the side file names in its stead."""
    folder = place.part(side.codec or "vae")
    codec = _complete(MiniCodec if side.codec else AutoencoderKLHunyuanVideo, folder, dtype, "codec")
    if not side.codec and side.height * side.width > TILED_ABOVE:
        codec.enable_tiling()
    return codec.eval().requires_grad_(False)


def describe_codec(codec: Any) -> dict[str, Any]:
    """Every choice that latents depend on beside the weights."""
    tiling = {
        name: getattr(codec, name)
        for name in (
            "use_tiling",
            "use_framewise_encoding",
            "tile_sample_min_height",
            "tile_sample_min_width",
            "tile_sample_min_num_frames",
            "tile_sample_stride_height",
            "tile_sample_stride_width",
            "tile_sample_stride_num_frames",
        )
        if hasattr(codec, name)
    }
    dtype = str(next(iter(codec.state_dict().values())).dtype).removeprefix("torch.")
    scaling = codec.config.scaling_factor
    return {"class": type(codec).__name__, "scaling_factor": scaling, "taken": "mode", "dtype": dtype, **tiling}


def open_pipeline(place: Place, side: Side, dtype: torch.dtype, **given: Any) -> Any:
    """The pipeline for its text path, around parts that are given (None for a part that is not needed)."""
    folders = {part: place.part(part) for part in text_parts(side)}
    with only_errors(diffusers_logging), only_errors(transformers_logging):
        # They remark on a codec of another class and on parts that are left out; both are intended.
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        for part, model in (("text_encoder", TEXT_ENCODERS[side.task]), ("text_encoder_2", CLIPTextModel)):
            given[part] = _complete(model, folders[part], dtype, part, whole=False)
        try:
            _check_vocabulary(folders["tokenizer_2"])
            # By its tokenizer.json, not by the class that the hub's directories name: under transformers 5
            # LlamaTokenizerFast cuts Llama 3's byte-level text as SentencePiece would and loses every space
            # (huggingface/transformers issue 45488).
            given["tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folders["tokenizer"], local_files_only=True)
            pipeline = PIPELINE_CLASSES[side.task].from_pretrained(place.folder, dtype=dtype, **given)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise BenchError(
                f"the text encoders of {place.folder} can't be opened",
                _first_line(error),
                "copy or download that directory again",
            ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_vocabulary(folder: Path) -> None:
    """Without its files transformers makes a CLIP tokenizer of three words, and says nothing."""
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise FileNotFoundError(f"there is neither tokenizer.json nor vocab.json in {folder}")


def _complete(model: Any, folder: Path, dtype: torch.dtype, what: str, whole: bool = True) -> Any:
    """A model with all of its weights; with ``whole`` the files must hold nothing else either."""
    again = "copy or download that directory again"
    # transformers says which weights have another shape only if it is allowed to go on.
    more: dict[str, Any] = {} if whole else {"ignore_mismatched_sizes": True}
    with only_errors(diffusers_logging), only_errors(transformers_logging):
        diffusers_logging.disable_progress_bar()
        try:
            opened, info = model.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, use_safetensors=True, local_files_only=True, **more
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as error:
            raise BenchError(f"the {what} in {folder} can't be opened", _first_line(error), again) from error
    problems = [
        f"{len(info[key])} {words}, such as {sorted(map(str, info[key]))[0]}"
        for key, words in (
            ("missing_keys", "weights are missing"),
            ("unexpected_keys", "weights belong to another model"),
            ("mismatched_keys", "weights have another shape"),
            ("error_msgs", "could not be read"),
        )
        if info.get(key) and (whole or key != "unexpected_keys")
    ]
    if problems:
        raise BenchError(f"the {what} in {folder} is not complete", "; ".join(problems), again)
    return opened


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 400 else text[:400] + " ..."
