"""The architecture of a backbone without its weights: what it counts, read off the meta device in a second.

The configs of HunyuanVideo's three transformers ship with the package, so nothing is downloaded. `costs` measures on
such a skeleton what passes through it cost.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from torch import nn

from w2svd_bench.backbones.adapters import LORA_TARGETS
from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.discriminator import Discriminator
from w2svd_bench.backbones.locate import ASSETS, VIDEO, locate
from w2svd_bench.backbones.network import Network
from w2svd_bench.backbones.quiet import only_errors
from w2svd_bench.backbones.untrained import IMAGE_TOKENS
from w2svd_bench.config import Engine, Video
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import BACKBONES

Kind = Literal["double", "single"]
# The converter of diffusers (scripts/convert_hunyuan_video_to_diffusers.py) builds these three.
CONFIGS = {"hunyuan": "t2v", "hunyuan-i2v": "i2v-token-replace", "hunyuan-i2v-33ch": "i2v-latent-concat"}
SHIFT = 7.0  # of the converter's scheduler
TEXT_TOKENS = 256  # the pipeline's longest prompt


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A `HunyuanVideoTransformer3DModel` as its config describes it.

    Attributes:
        name: of the backbone; recipe: whose recipes it is trained by.
        config: of the transformer.
        video: the clips that it makes unless a recipe says otherwise.
        shift: of its noise schedule.
        text_tokens: of the longest prompt; an image-to-video transformer also reads tokens of the image.
        compression: (spatial, temporal) of its codec.
        targets: the layers that a LoRA is put on, as a regular expression for their names.
    """

    name: str
    config: Mapping[str, Any]
    recipe: str = "hunyuan"
    video: Video = VIDEO
    shift: float = SHIFT
    text_tokens: int = TEXT_TOKENS
    compression: tuple[int, int] = (8, 4)
    targets: str = LORA_TARGETS

    @classmethod
    def open(cls, source: str) -> Skeleton:
        """The skeleton of ``hunyuan``, ``hunyuan-i2v``, ``hunyuan-i2v-33ch``, another name that lives on this machine
        (``mini``), or a diffusers directory. Never asks a hub.

        Raises:
            BenchError: it is none of these, or its configs can't be read.
        """
        if source in CONFIGS:
            return _shipped(source)
        registered = source in BACKBONES.names() and isinstance(BACKBONES.get(source)().location(), Path)
        if not registered and not Path(source).is_dir():
            raise BenchError(
                f"backbone {source!r} can't be planned",
                "it is not on this machine, and planning downloads nothing",
                f"use one of {', '.join(CONFIGS)}, mini, or the directory of a diffusers pipeline",
            )
        return cls.of(Backbone(*locate(source), "cpu", Engine()))

    @classmethod
    def of(cls, backbone: Backbone) -> Skeleton:
        """The skeleton of a backbone that was found already; none of its weights are opened."""
        side, compression = backbone.side, backbone._compression
        config = backbone._transformer_config()
        text = side.max_sequence_length
        return cls(side.backbone, config, side.recipe, side.video, side.shift, text, compression)

    def with_blocks(self, doubles: int, singles: int) -> Skeleton:
        """The same with another number of blocks, which stay as large as they are."""
        return replace(self, config={**self.config, "num_layers": doubles, "num_single_layers": singles})

    def build(self, dtype: torch.dtype = torch.bfloat16) -> HunyuanVideoTransformer3DModel:
        """The transformer on the meta device: shapes without memory."""
        with torch.device("meta"), only_errors(diffusers_logging):  # it warns of modules to keep in float32: none
            given = {key: value for key, value in self.config.items() if not key.startswith("_")}
            return HunyuanVideoTransformer3DModel(**given).to(dtype)

    @cached_property
    def _whole(self) -> HunyuanVideoTransformer3DModel:
        return self.build()

    @property
    def doubles(self) -> int:
        """Blocks with a stream each for image and text."""
        return len(self._whole.transformer_blocks)

    @property
    def singles(self) -> int:
        """Blocks with one stream for both."""
        return len(self._whole.single_transformer_blocks)

    @property
    def width(self) -> int:
        """Numbers a token (D)."""
        config = self._whole.config
        return int(config.num_attention_heads * config.attention_head_dim)

    @property
    def head_width(self) -> int:
        """Numbers a token in one attention head."""
        return int(self._whole.config.attention_head_dim)

    @cached_property
    def parameters(self) -> int:
        """All of the transformer's weights."""
        return _count(self._whole)

    @cached_property
    def by_kind(self) -> dict[str, int]:
        """Weights of one ``double`` block, of one ``single`` block, and of the ``rest`` outside all blocks."""
        blocks = {"double": self._whole.transformer_blocks, "single": self._whole.single_transformer_blocks}
        sizes = {kind: _count(of[0]) if len(of) else 0 for kind, of in blocks.items()}
        return {**sizes, "rest": self.parameters - sum(_count(of) for of in blocks.values())}

    @cached_property
    def largest_part(self) -> int:
        """Weights of the largest part that FSDP gathers at once: a block, or a module outside the blocks."""
        parts = [child for child in self._whole.children() if not isinstance(child, nn.ModuleList)]
        return max(self.by_kind["double"], self.by_kind["single"], *(_count(part) for part in parts))

    @cached_property
    def _lora_widths(self) -> Counter[str]:
        """Inputs and outputs of the targeted layers, summed: in double blocks, in single blocks, elsewhere; and how
        many ``layers`` there are.
        """
        blocks = {"transformer_blocks": "double", "single_transformer_blocks": "single"}
        widths: Counter[str] = Counter()
        for name, module in self._whole.named_modules():
            if isinstance(module, nn.Linear) and re.fullmatch(self.targets, name):
                widths[blocks.get(name.split(".")[0], "rest")] += module.in_features + module.out_features
                widths["layers"] += 1
        return widths

    @property
    def lora_layers(self) -> int:
        """Layers that a LoRA is put on."""
        return self._lora_widths["layers"]

    def lora(self, rank: int) -> int:
        """Weights of one LoRA: ``rank (inputs + outputs)`` for each layer."""
        return rank * sum(width for place, width in self._lora_widths.items() if place != "layers")

    def lora_part(self, rank: int) -> int:
        """Weights of one LoRA in the block that has the most of them."""
        blocks = {"double": self.doubles, "single": self.singles}
        return rank * max(self._lora_widths[kind] // max(1, count) for kind, count in blocks.items())

    @cached_property
    def discriminator(self) -> int:
        """Weights of a `Discriminator`'s head."""
        with torch.device("meta"):
            return _count(Discriminator(Network(self.build(), 1.0)))

    def latent_shape(self, video: Video) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one clip's latents, all latent frames.

        Raises:
            BenchError: the codec and the patches of the transformer can't make clips of that size.
        """
        spatial, temporal = self.compression
        step = spatial * int(self._whole.config.patch_size)
        if video.height % step or video.width % step or (video.num_frames - 1) % temporal:
            raise BenchError(
                f"{self.name} can't make clips of {video.height}x{video.width}x{video.num_frames}",
                f"height and width have to be multiples of {step}, and the frames one more than a multiple of "
                f"{temporal}",
                f"use for example {_nearest(video.height, step)}x{_nearest(video.width, step)} and "
                f"{_nearest(video.num_frames - 1, temporal) + 1} frames",
            )
        channels: int = self._whole.config.out_channels
        frames = (video.num_frames - 1) // temporal + 1
        return channels, frames, video.height // spatial, video.width // spatial

    def tokens(self, video: Video) -> tuple[int, int]:
        """Tokens of a clip: (of its latents, of its text with the longest prompt)."""
        _, frames, height, width = self.latent_shape(video)
        config = self._whole.config
        image = frames // config.patch_size_t * (height // config.patch_size) * (width // config.patch_size)
        return image, self.text_tokens + IMAGE_TOKENS.get(config.image_condition_type or "", 0)


@cache
def _shipped(name: str) -> Skeleton:
    """One of those whose configs ship: the same object each time, so that what is measured on it is measured once."""
    return Skeleton(name, json.loads((ASSETS / "hunyuan" / f"{CONFIGS[name]}.json").read_text(encoding="utf-8")))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _nearest(size: int, step: int) -> int:
    return max(1, round(size / step)) * step
