"""Backbones: a HunyuanVideo pipeline directory, opened, with the three things a benchmark needs from it.

Those are the transformer (as a `Network`), the text encoders (prompts to `Cond`) and the codec (clips to latents and
back). Axes: B batch, F frames, H, W pixels; latents are (B, C, T, h, w).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from w2svd_bench.backbones.mini_codec import MiniCodec
from w2svd_bench.backbones.roles import Network
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import BACKBONES
from w2svd_bench.types import Cond

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SIDE_FILE = "w2svd_bench.json"
DECODED_AT_ONCE = 4  # what stays in a core's cache: half the time a clip of a batch of 64 (measured)


class BackboneSource(ABC):
    """Where a named backbone's directory is; the entry-point group ``w2svd_bench.backbones`` holds such classes."""

    name: ClassVar[str]

    @abstractmethod
    def folder(self) -> Path:
        """A HunyuanVideo pipeline directory with a side file."""


class Mini(BackboneSource):
    """The miniature that ships with the package."""

    name = "mini"

    def folder(self) -> Path:
        return ASSETS / "mini"


@dataclass(frozen=True)
class Side:
    """What a pipeline directory does not say about itself, from its side file ``w2svd_bench.json``.

    Attributes:
        backbone: its name in records.
        task: ``t2v``.
        height, width, num_frames, fps: of its clips.
        shift: of the noise schedule; guidance: the embedded scale, the same for all roles.
        prompt_template, max_sequence_length: as `HunyuanVideoPipeline.encode_prompt` takes them.
        codec: a folder in the directory that holds a `MiniCodec`; None for a pipeline with a VAE of its own.
    """

    backbone: str
    task: str
    height: int
    width: int
    num_frames: int
    fps: float
    shift: float
    guidance: float
    max_sequence_length: int
    prompt_template: dict[str, Any]
    codec: str | None = None


class Backbone:
    """A loaded HunyuanVideo; open one with `Backbone.load`."""

    def __init__(self, folder: Path, side: Side, pipeline: Any, codec: Any, device: str) -> None:
        self.folder, self.side, self.device = folder, side, device
        self.pipeline = pipeline
        self.codec = codec.to(device).eval().requires_grad_(False)
        self.latent_channels: int = pipeline.transformer.config.in_channels

    @staticmethod
    def locate(source: str) -> tuple[Path, Side]:
        """The directory and side of a named backbone (``mini``) or of a path; raises `BenchError` for anything else."""
        named = source in BACKBONES.names()
        folder = BACKBONES.get(source)().folder() if named else Path(source)
        for needed in ("model_index.json", SIDE_FILE):
            if not (folder / needed).is_file():
                raise BenchError(
                    f"backbone {source!r} can't be opened",
                    f"it is neither one of {BACKBONES.names()} nor a diffusers pipeline directory with a {needed}",
                    "give one of those names or the path of such a directory",
                )
        try:
            side = Side(**json.loads((folder / SIDE_FILE).read_text()))
        except (ValueError, TypeError) as error:
            raise BenchError(
                f"backbone {source!r} can't be opened", f"its {SIDE_FILE} can't be read: {error}", "mend that file"
            ) from error
        return folder, side

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> Backbone:
        """Opens what `locate` finds."""
        folder, side = cls.locate(source)
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        vae: Any
        if side.codec:
            vae = MiniCodec.from_pretrained(folder / side.codec)
        else:
            vae = AutoencoderKLHunyuanVideo.from_pretrained(folder, subfolder="vae")
        with _only_errors():  # the pipeline remarks that our codec is not the class it expects; that is intended
            pipeline = HunyuanVideoPipeline.from_pretrained(folder, vae=vae)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
        return cls(folder, side, pipeline, vae, device)

    @property
    def name(self) -> str:
        return self.side.backbone

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one clip's latents."""
        codec, side = self.codec, self.side
        spatial, temporal = codec.spatial_compression_ratio, codec.temporal_compression_ratio
        return (
            self.latent_channels,
            (side.num_frames - 1) // temporal + 1,
            side.height // spatial,
            side.width // spatial,
        )

    @cached_property
    def teacher_sha256(self) -> str:
        """sha256 of the teacher's weight files."""
        return _sha256(sorted((self.folder / "transformer").glob("*.safetensors")))

    @property
    def sha256(self) -> str:
        """What a trained generator belongs to: this teacher with this codec and these text encoders."""
        return hashlib.sha256((self.teacher_sha256 + self.latents_sha256).encode()).hexdigest()

    @cached_property
    def latents_sha256(self) -> str:
        """sha256 of whatever decides latents and conditioning: the codec, the text encoders, the tokenizers."""
        parts = [self.side.codec or "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
        return _sha256(sorted(f for part in parts for f in (self.folder / part).iterdir() if f.is_file()))

    def network(self) -> Network:
        """The teacher's network; roles may add adapters to it, so one `Backbone` serves one set of roles."""
        return Network(self.pipeline.transformer.eval(), self.side.guidance)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        """Conditioning of the prompts, by the pipeline's own text path with the backbone's template."""
        tokens, pooled, mask = self.pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_template=self.side.prompt_template,
            max_sequence_length=self.side.max_sequence_length,
        )
        dtype = self.pipeline.transformer.dtype
        return Cond(tokens.to(dtype), mask.to(dtype), pooled.to(dtype))

    @torch.no_grad()
    def encode(self, frames_BFHWC: Tensor) -> Tensor:
        """uint8 clips to scaled latents (B, C, T, h, w): the posterior's mode times the scaling factor."""
        video = frames_BFHWC.to(self.device).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()
        latents: Tensor = self.codec.encode(video).latent_dist.mode()
        return latents * self.codec.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Scaled latents to uint8 clips (B, F, H, W, 3) on the CPU."""
        parts = []
        for latents in (latents_BCTHW / self.codec.config.scaling_factor).split(DECODED_AT_ONCE):
            video = self.codec.decode(latents, return_dict=False)[0]
            parts.append(((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu())
        return torch.cat(parts).contiguous()


@contextmanager
def _only_errors() -> Iterator[None]:
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
