"""Miniature checkpoints in the layout of the real ones: HunyuanVideo's classes, files and templates, random weights.

What the hub's directories hold, these hold, only small: every part of the class that the 13B pipeline has, a byte-level
tokenizer under which diffusers' own prompt templates are as long as under Llama 3's (so that ``crop_start`` fits), 576
image tokens, a VAE of 8 x 8 x 4 compression and the scheduler's shift of 7. There is no side file. Each takes about a
second to write and holds about a megabyte; the same seed gives the same bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

ImageCondition = Literal["token_replace", "latent_concat"]

TEXT_DIM, POOLED_DIM, SHIFT = 32, 24, 7.0
TEMPLATES = [
    pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE,
    pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE,
]
# How Llama 3 cuts text before it merges bytes (the regular expression of its tokenizer.json).
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEGIN, END, PAD, IMAGE = "<|begin_of_text|>", "<|end_of_text|>", "<pad>", "<image>"
SPECIAL = [BEGIN, END, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", IMAGE, PAD]


def write_t2v(folder: Path, seed: int = 0) -> Path:
    """Writes a text-to-video pipeline (`HunyuanVideoPipeline`) and returns its folder."""
    torch.manual_seed(seed)
    tokenizer = new_llama_tokenizer()
    pipeline = HunyuanVideoPipeline(
        text_encoder=_rescaled(LlamaModel(_llama_config(tokenizer))),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=new_transformer(None),
        vae=new_vae(),
        **_clip(),
    )
    return _save(pipeline, folder)


def write_i2v(folder: Path, image_condition: ImageCondition, seed: int = 0) -> Path:
    """Writes an image-to-video pipeline (`HunyuanVideoImageToVideoPipeline`) and returns its folder.

    ``token_replace`` stands for hunyuanvideo-community/HunyuanVideo-I2V, ``latent_concat`` for HunyuanVideo-I2V-33ch.
    """
    torch.manual_seed(seed)
    tokenizer = new_llama_tokenizer()
    side = 24  # pixels; with patches of one pixel, 24 x 24 are the 576 image tokens that the template expects
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=1,
        projection_dim=16,
    )
    llava = LlavaConfig(
        vision_config=vision,
        text_config=_llama_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        pad_token_id=tokenizer.pad_token_id,
    )
    pipeline = HunyuanVideoImageToVideoPipeline(
        text_encoder=_rescaled(LlavaForConditionalGeneration(llava)),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=new_transformer(image_condition),
        vae=new_vae(),
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_center_crop=True
        ),
        **_clip(),
    )
    return _save(pipeline, folder)


def new_transformer(image_condition: ImageCondition | None) -> HunyuanVideoTransformer3DModel:
    """A transformer of 2 double and 2 single blocks; the channels and the guidance are those of its 13B namesake."""
    concat = image_condition == "latent_concat"
    config: dict[str, Any] = {
        "in_channels": 33 if concat else 16,
        "out_channels": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "guidance_embeds": not concat,
        "text_embed_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED_DIM,
        "rope_axes_dim": (4, 6, 6),
        "image_condition_type": image_condition,
    }
    return _rescaled(HunyuanVideoTransformer3DModel(**config))


def new_vae() -> AutoencoderKLHunyuanVideo:
    """A VAE of the real compression and scaling factor, of a few channels."""
    vae = AutoencoderKLHunyuanVideo(
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=16
    )
    with torch.no_grad():  # contrasts that fill the range of a video, so that a wrong decoding shows
        vae.decoder.conv_out.conv.weight.mul_(4.0)
        vae.encoder.conv_out.conv.weight.mul_(4.0)
    return vae.eval()


def new_llama_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Llama 3's special tokens and cuts; every word of the templates is one token.

    Other words fall apart into bytes. The templates are 95 and 103 tokens long up to the prompt, as under Llama 3's.
    """
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    for template in TEMPLATES:
        for text in re.split(r"<[^<>]*>|{}", str(template["template"])):
            words += [word for word, _ in cut.pre_tokenize_str(text)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, padding_side="right"
    )


def _llama_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _clip() -> dict[str, Any]:
    """CLIP's text side: a tokenizer of single bytes and the encoder whose pooled output the transformer takes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=POOLED_DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"text_encoder_2": _rescaled(CLIPTextModel(config)), "tokenizer_2": tokenizer}


def _rescaled(model: Any) -> Any:
    """Weights of the size that keeps a signal as large as it came, so that every input shows in the output."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                fan_in = 1 if "embed" in name and "embedder" not in name else parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5)
    return model.eval()


def _save(pipeline: Any, folder: Path) -> Path:
    """As on the hub, where transformers 4 wrote the Llama tokenizer under the name of its class there."""
    pipeline.save_pretrained(folder)
    for file, key, value in (
        ("model_index.json", "tokenizer", ["transformers", "LlamaTokenizerFast"]),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", "LlamaTokenizerFast"),
    ):
        content = json.loads((folder / file).read_text())
        content[key] = value
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    return folder
