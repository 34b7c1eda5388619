"""A backbone of random weights: the real architecture without its checkpoint, to measure what things cost.

What it generates means nothing; how long a pass takes and how much memory it needs do not depend on that.
Axes: N clips, B batch; latents are (B, C, T, h, w).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.locate import GUIDANCE, Place, Side
from w2svd_bench.backbones.quiet import only_errors
from w2svd_bench.config import Engine, Video
from w2svd_bench.types import Batch, Cond

SIZE = 0.02  # standard deviation of every weight: small enough that 60 blocks leave the numbers finite
IMAGE_TOKENS = {"token_replace": 144, "latent_concat": 288}  # 576 image tokens, every 4th or 2nd of them


class Untrained(Backbone):
    """Random weights in the shape that a transformer config asks for; it has no codec and no text encoders.

    Args:
        config: of a `HunyuanVideoTransformer3DModel`.
        name: of the backbone; video: of its clips.
        text_tokens: of every prompt; HunyuanVideo keeps at most 256.
    """

    def __init__(
        self, config: dict[str, Any], name: str, video: Video, device: str, engine: Engine, text_tokens: int = 256
    ) -> None:
        self.config = {k: v for k, v in config.items() if not k.startswith("_")}
        condition = self.config.get("image_condition_type")
        side = Side(
            backbone=name,
            recipe="hunyuan",
            task="i2v" if condition else "t2v",
            image_condition=condition,
            shift=7.0,
            guidance=GUIDANCE if self.config.get("guidance_embeds", True) else 1.0,
            **video.model_dump(),
        )
        super().__init__(Place(Path(tempfile.gettempdir())), side, device, engine)
        self.text_tokens = text_tokens + IMAGE_TOKENS.get(condition or "", 0)
        self._check_size()

    @cached_property
    def transformer(self) -> Any:
        with torch.device("meta"):
            transformer = HunyuanVideoTransformer3DModel(**self.config)
        with only_errors(diffusers_logging):  # it warns of modules to keep in float32, and names none
            transformer = transformer.to(self.dtype).to_empty(device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():
                if parameter.ndim == 1 and name.endswith("weight"):
                    parameter.fill_(1.0)  # the scale of a norm
                else:
                    parameter.normal_(0.0, SIZE, generator=generator)
        return transformer.eval().requires_grad_(False)

    @cached_property
    def _compression(self) -> tuple[int, int]:
        return 8, 4  # AutoencoderKLHunyuanVideo's

    def _transformer_config(self) -> dict[str, Any]:
        return {"patch_size": 2, "out_channels": 16, **self.config}

    @cached_property
    def teacher_sha256(self) -> str:
        return "random weights"

    @property
    def latents_sha256(self) -> str:
        return "no encoders"

    def conditioning(self, count: int) -> Cond:
        """Random conditioning of ``count`` clips."""
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randn(count, self.text_tokens, self.config["text_embed_dim"], generator=generator)
        pooled = torch.randn(count, self.config["pooled_projection_dim"], generator=generator)
        image = None
        if self.side.task == "i2v":
            channels, _, height, width = self.latent_shape
            image = torch.randn(count, channels, 1, height, width, generator=generator)
        mask = torch.ones(count, self.text_tokens)
        cond = Cond(tokens.to(self.dtype), mask.to(self.dtype), pooled.to(self.dtype), image)
        return cond.to(self.device)


class RandomClips:
    """Training data of random latents: as many clips as are asked for, all alike in cost."""

    name = "random"

    def __init__(self, backbone: Untrained, count: int = 64) -> None:
        self._backbone, self._count = backbone, count

    def __len__(self) -> int:
        return self._count

    def batch(self, rows: Sequence[int]) -> Batch:
        shape = self._backbone.latent_shape
        clips: list[Tensor] = [torch.randn(shape, generator=torch.Generator().manual_seed(row)) for row in rows]
        return Batch(torch.stack(clips).to(self._backbone.device), self._backbone.conditioning(len(rows)))
