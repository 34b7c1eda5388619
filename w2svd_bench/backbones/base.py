"""Backbones: a HunyuanVideo pipeline directory, with the three things a benchmark needs from it.

Those are the transformer (as a `Network`), the text encoders (prompts to `Cond`) and the codec (clips to latents and
back). Each is opened when it is first used: training on a prepared cache never loads text encoders.
Axes: B batch, F frames, H, W pixels; latents are (B, C, T, h, w).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from w2svd_bench.backbones import loading
from w2svd_bench.backbones.digest import digest_of
from w2svd_bench.backbones.locate import BackboneSource, Mini, Place, Side, locate
from w2svd_bench.backbones.network import Network
from w2svd_bench.config import Engine, Recipe, Video
from w2svd_bench.errors import BenchError
from w2svd_bench.types import Cond

__all__ = ["Backbone", "BackboneSource", "Mini", "Side"]

# What stays in a core's cache: a quarter of 16 clips of the miniature takes half the time a clip of a batch of 64.
DECODED_PIXELS = 4 * 17 * 48 * 48
# 64 clips of the miniature, or one of the 13B model, whose VAE needs gigabytes for each.
ENCODED_PIXELS = 64 * 17 * 48 * 48
# The image-to-video pipeline starts its noise this close to 1 and mixes the rest with the given frame.
I2V_START = 0.999
INTERLEAVE = {"token_replace": 4, "latent_concat": 2}  # every n-th image token is kept (the pipeline's own choice)


class Backbone:
    """A HunyuanVideo; open one with `Backbone.load`."""

    def __init__(self, place: Place, side: Side, device: str, engine: Engine) -> None:
        self.place, self.side, self.device, self.engine = place, side, device, engine

    @staticmethod
    def locate(source: str) -> tuple[Place, Side]:
        """The place and side of a registered name, a directory, or a hub id; raises `BenchError` otherwise."""
        return locate(source)

    @classmethod
    def load(
        cls,
        source: str,
        device: str = "cpu",
        engine: Engine | None = None,
        video: Video | None = None,
        shift: float | None = None,
        guidance: float | None = None,
    ) -> Backbone:
        """Finds a backbone and checks the size of its clips; its parts are opened when they are first used.

        Args:
            source: as `locate` takes it.
            device: where everything goes.
            engine: precision, attention and the like.
            video, shift, guidance: instead of what the backbone says of itself.

        Raises:
            BenchError: there is no such backbone, or it can't make clips of that size.
        """
        place, side = locate(source)
        backbone = cls(place, side.changed(video, shift, guidance), device, engine or Engine())
        backbone._check_size()
        if backbone.dtype == torch.float32 and backbone.engine.trained_dtype == "bfloat16":
            raise BenchError(
                "trained weights can't be in bfloat16 beside activations in float32",
                f"on {device} engine.dtype={backbone.engine.dtype} means float32",
                "leave engine.trained_dtype at float32, or set engine.dtype=bfloat16, too",
            )
        return backbone

    @classmethod
    def for_recipe(cls, source: str, device: str, recipe: Recipe) -> Backbone:
        """The backbone as a recipe wants it."""
        return cls.load(source, device, recipe.engine, recipe.video, recipe.shift, recipe.guidance)

    @property
    def folder(self) -> Path:
        return self.place.folder

    @property
    def name(self) -> str:
        return self.side.backbone

    @property
    def dtype(self) -> torch.dtype:
        """The type of frozen weights and activations."""
        if self.engine.dtype == "auto":
            return torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.engine.dtype]

    @property
    def encoder_dtype(self) -> torch.dtype:
        """The type of codec and text encoders: as diffusers' examples run them on a GPU."""
        return torch.float16 if self.device.startswith("cuda") else torch.float32

    @cached_property
    def transformer(self) -> Any:
        """The teacher's transformer, frozen."""
        opened = loading.open_transformer(self.place.part("transformer"), self.dtype)
        return opened.to(self.device).eval().requires_grad_(False)

    @cached_property
    def codec(self) -> Any:
        """The VAE, or what stands in its place."""
        return loading.open_codec(self.place, self.side, self.encoder_dtype).to(self.device)

    @cached_property
    def text(self) -> Any:
        """A pipeline that holds the text encoders only."""
        nothing = {"transformer": None, "vae": None}
        return loading.open_pipeline(self.place, self.side, self.encoder_dtype, **nothing).to(self.device)

    @cached_property
    def pipeline(self) -> Any:
        """The whole diffusers pipeline around this backbone's transformer and codec."""
        parts = {"transformer": self.transformer, "vae": self.codec}
        return loading.open_pipeline(self.place, self.side, self.encoder_dtype, **parts).to(self.device)

    @property
    def given_frames(self) -> int:
        """Latent frames that are conditioning rather than sample, so that methods never see them."""
        return 1 if self.side.image_condition == "token_replace" else 0

    @cached_property
    def _compression(self) -> tuple[int, int]:
        """(spatial, temporal) of the codec, from its config where that says it."""
        config = loading.read_codec_config(self.place, self.side)
        return config.get("spatial_compression_ratio", 8), config.get("temporal_compression_ratio", 4)

    def _transformer_config(self) -> dict[str, Any]:
        return loading.read_transformer_config(self.place)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one clip's latents as methods see them."""
        spatial, temporal = self._compression
        frames = (self.side.num_frames - 1) // temporal + 1 - self.given_frames
        channels: int = self._transformer_config().get("out_channels", 16)
        return channels, frames, self.side.height // spatial, self.side.width // spatial

    @cached_property
    def teacher_sha256(self) -> str:
        """sha256 of the teacher's weight files."""
        return digest_of(loading.weight_files(self.place.part("transformer"), "transformer"))

    @property
    def sha256(self) -> str:
        """What a trained generator belongs to: this teacher with this codec and these text encoders."""
        return hashlib.sha256((self.teacher_sha256 + self.latents_sha256).encode()).hexdigest()

    @cached_property
    def latents_sha256(self) -> str:
        """sha256 of whatever decides latents and conditioning: the codec, the text encoders, the tokenizers."""
        parts = [self.side.codec or "vae", *loading.text_parts(self.side)]
        for part in (parts[0], "text_encoder", "text_encoder_2"):
            loading.weight_files(self.place.part(part), part)
        return digest_of(sorted(f for part in parts for f in self.place.part(part).iterdir() if f.is_file()))

    @property
    def codec_description(self) -> dict[str, Any]:
        """Every choice that latents depend on beside the weights."""
        return loading.describe_codec(self.codec)

    @property
    def text_description(self) -> dict[str, Any]:
        """Every choice that conditioning depends on beside the weights."""
        return {
            "template": self.side.prompt_template or loading.default_template(self.side.task),
            "max_sequence_length": self.side.max_sequence_length,
            "image_interleave": INTERLEAVE.get(self.side.image_condition or ""),
            "dtype": str(self.encoder_dtype).removeprefix("torch."),
        }

    def network(self) -> Network:
        """The teacher's network; roles may add adapters to it, so one `Backbone` serves one set of roles."""
        return self.network_of(self.transformer)

    def network_of(self, transformer: Any) -> Network:
        """Another transformer of this backbone's architecture, such as a trained generator, as a network."""
        network = Network(transformer, self.side.guidance, self.dtype)
        if self.engine.attention != "native":
            network.use_attention(self.engine.attention)
        return network

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], images: Tensor | np.ndarray | None = None) -> Cond:
        """Conditioning of the prompts by the pipeline's own text path, without the padding that all of them share.

        Not for several threads at once: tokenizers keep their padding between the pipeline's calls.

        Args:
            prompts: B captions.
            images: for image-to-video the first frames, uint8 (B, H, W, 3), of the backbone's size.

        Raises:
            BenchError: an image-to-video backbone got no images.
        """
        wanted: dict[str, Any] = {"max_sequence_length": self.side.max_sequence_length}
        if self.side.prompt_template is not None:
            wanted["prompt_template"] = self.side.prompt_template
        if self.side.task == "t2v":
            tokens, pooled, mask = self.text.encode_prompt(prompt=list(prompts), **wanted)
            return Cond(tokens, mask, pooled).to(self.dtype).trimmed()
        if images is None:
            raise BenchError(
                "an image-to-video backbone needs a first frame for each prompt",
                f"{len(prompts)} prompts came without images",
                "use clips from a prepared cache, or a text-to-video backbone",
            )
        frames = torch.as_tensor(np.asarray(images))
        parts = []
        for prompt, frame in zip(prompts, frames, strict=True):  # one by one: the pipeline miscounts long batches
            tokens, pooled, mask = self.text.encode_prompt(
                image=Image.fromarray(frame.cpu().numpy()),
                prompt=[prompt],
                image_embed_interleave=INTERLEAVE[self.side.image_condition or ""],
                **wanted,
            )
            parts.append(Cond(tokens, mask, pooled).to(self.dtype).trimmed())
        cond = Cond.collate(parts)
        # One by one, as the pipeline does: in a batch it rounds in its own way.
        image = torch.cat([self.encode(frame[None, None]) for frame in frames])
        return Cond(cond.tokens_BLD, cond.mask_BL, cond.pooled_BP, image)

    @torch.no_grad()
    def encode(self, frames_BFHWC: Tensor) -> Tensor:
        """uint8 clips to scaled latents (B, C, T, h, w), float32: the posterior's mode times the scaling factor."""
        parts = []
        for few in frames_BFHWC.split(max(1, ENCODED_PIXELS // frames_BFHWC[0, ..., 0].numel())):
            video = few.to(self.device).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()
            parts.append(self.codec.encode(video.to(self.encoder_dtype)).latent_dist.mode().float())
        return torch.cat(parts) * self.codec.config.scaling_factor

    def release_encoders(self) -> None:
        """Gives back the memory of codec and text encoders; they are opened again when they are needed."""
        for part in ("text", "codec"):
            self.__dict__.pop(part, None)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def release_transformer(self) -> None:
        """Lets go of the teacher's transformer, which networks of it may still hold; it is opened again when needed."""
        for part in ("transformer", "pipeline"):
            self.__dict__.pop(part, None)

    def to_sample(self, latents_BCTHW: Tensor) -> Tensor:
        """Whole latents as methods see them: without a given first frame."""
        return latents_BCTHW[:, :, self.given_frames :]

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor, cond: Cond | None = None) -> Tensor:
        """Latents as methods see them to uint8 clips (B, F, H, W, 3) on the CPU; see `decode_checked`."""
        return self.decode_checked(latents_BCTHW, cond)[0]

    @torch.no_grad()
    def decode_checked(self, latents_BCTHW: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        """Clips as `decode` makes them, and which of them are finite, bool (B,), on the CPU.

        Latents that are finite may overflow in a codec of half precision, and what is not finite decodes to black.
        A given first frame comes from ``cond``. For latent_concat the first 4 frames are left out, as the pipeline
        does.
        """
        latents = latents_BCTHW
        if self.given_frames:
            if cond is None or cond.image_BCTHW is None:
                raise ValueError("decoding needs the given first frames of the clips: pass their cond")
            latents = torch.cat([cond.image_BCTHW.to(latents), latents], dim=2)
        skipped = self._compression[1] if self.side.image_condition == "latent_concat" else 0
        pixels = self.side.height * self.side.width * self.side.num_frames
        parts, finite = [], []
        for few in (latents / self.codec.config.scaling_factor).split(max(1, DECODED_PIXELS // pixels)):
            video = self.codec.decode(few.to(self.encoder_dtype), return_dict=False)[0][:, :, skipped:].float()
            finite.append(video.isfinite().flatten(1).all(1).cpu())
            parts.append(((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu())
        return torch.cat(parts).contiguous(), torch.cat(finite)

    @property
    def decoded_frames(self) -> int:
        """Frames of a decoded clip."""
        skipped = self._compression[1] if self.side.image_condition == "latent_concat" else 0
        return self.side.num_frames - skipped

    def start(self, noise_BCTHW: Tensor, cond: Cond) -> Tensor:
        """Where sampling begins: the noise; for image-to-video with a trace of the given frame, as in the pipeline."""
        if cond.image_BCTHW is None:
            return noise_BCTHW
        level = torch.tensor(I2V_START, device=noise_BCTHW.device)
        return noise_BCTHW * level + cond.image_BCTHW.to(noise_BCTHW) * (1 - level)

    def _check_size(self) -> None:
        side = self.side
        spatial, temporal = self._compression
        patch = self._transformer_config().get("patch_size", 2)
        multiple = spatial * patch
        wrong = [f"{name} {size}" for name, size in (("height", side.height), ("width", side.width)) if size % multiple]
        if wrong:
            height, width = (max(multiple, round(s / multiple) * multiple) for s in (side.height, side.width))
            raise BenchError(
                f"{side.backbone} can't make clips of {side.height}x{side.width}",
                f"{' and '.join(wrong)} can't be divided by {multiple}: {spatial} of the codec, {patch} of a patch",
                f"use {height}x{width}",
            )
        given = side.image_condition is not None
        if side.num_frames % temporal != 1 or (given and side.num_frames <= temporal):
            least = temporal * max(1, round((side.num_frames - 1) / temporal)) + 1
            raise BenchError(
                f"{side.backbone} can't make clips of {side.num_frames} frames",
                f"the codec takes one frame and then groups of {temporal}: {temporal}k + 1 frames"
                + (", and the first is given" if given else ""),
                f"use {least} frames",
            )
