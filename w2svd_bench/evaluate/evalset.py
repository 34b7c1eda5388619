"""Eval sets: the prompts that are asked of every method, and the real clips that its answers are held against.

Of the procedural portraits, prompts come from one split, reference clips from another, and the teacher was trained on a
third; no clip is in two of them. Held-out clips of a latent cache are in `cacheset`.
Axes: B clips of a batch, F frames, H, W pixels; latents are (B, C, T, h, w).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor

from w2svd_bench.backbones.base import Backbone, Side
from w2svd_bench.data.attributes import PHRASES
from w2svd_bench.data.palette import named_colours
from w2svd_bench.data.portraits import RENDERER_VERSION, captions, clips
from w2svd_bench.metrics.diagnostics import Colour
from w2svd_bench.record import EvalSet, canonical_hash
from w2svd_bench.types import Cond
from w2svd_bench.world import World

Progress = Callable[[int, int], None]
RealFloor = Literal["raw", "codec"]  # real clips as they are, or encoded and decoded
REFERENCE_SPLIT, REFERENCE_CLIPS = "reference", 2048
BATCH = 64  # clips at a time, where they are as small as the miniature's


class ClipSet(ABC):
    """An eval set: prompts in a fixed order, each with a real clip of its own, and reference clips."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What records and tables call it."""

    @property
    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """One for each clip to be made."""

    @property
    def keys(self) -> Sequence[str]:
        """What each clip belongs to when uncertainty is estimated: its prompt, as a rule (see `Features`)."""
        return self.prompts

    @property
    def colours(self) -> list[Mapping[str, Colour]] | None:
        """For each clip the colours that its prompt names; None for clips that are no procedural portraits."""
        return None

    @property
    @abstractmethod
    def floors(self) -> Sequence[RealFloor]:
        """Which rows of real clips say something."""

    @abstractmethod
    def conditioning(self, backbone: Backbone, indices: Sequence[int]) -> Cond:
        """What clips of the given numbers are sampled with, on the backbone's device."""

    @abstractmethod
    def latents(self, backbone: Backbone, indices: Sequence[int]) -> Tensor:
        """The prompts' own real clips as latents, as methods see them."""

    @abstractmethod
    def real(self, indices: Sequence[int]) -> np.ndarray:
        """The prompts' own real clips, uint8 (B, F, H, W, 3), of as many frames as a decoded clip has."""

    @abstractmethod
    def given(self, indices: Sequence[int]) -> np.ndarray:
        """The first frames that image-to-video is given, uint8 (B, H, W, 3)."""

    @abstractmethod
    def describe(self) -> EvalSet:
        """What a record says about the set."""

    @property
    @abstractmethod
    def reference_count(self) -> int:
        """How many reference clips there are."""

    @abstractmethod
    def reference_clips(self, indices: Sequence[int]) -> np.ndarray:
        """Reference clips as uint8 (B, F, H, W, 3)."""

    @property
    def reference_keys(self) -> Sequence[str] | None:
        """What each reference clip belongs to, as `keys`, where they are the prompts' own clips; None: others'."""
        return None

    @abstractmethod
    def reference_key(self, extractor: str) -> str:
        """A hash of all that what is made of the reference clips depends on: of the ``clips``, or of their features."""


def shares(count: int, batch: int, world: World) -> list[range]:
    """The batches of ``range(count)`` that fall to this process.

    Which clips stand together in a batch does not depend on how many processes there are, so the last bits of a clip
    don't either; the processes take the batches in turns.
    """
    batches = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    return batches[world.rank :: world.size]


@dataclass(frozen=True)
class PortraitSet(ClipSet):
    """``num_clips`` prompts of a split (``test``, or ``validation`` for tuning) and raw renders as reference.

    Attributes:
        side: the size of the clips, and which attributes their prompts name.
        skipped: first frames that the backbone's decoding leaves out, and so the set does (see `Backbone.decode`).
        references: how many reference clips; None: 2,048.
    """

    side: Side
    num_clips: int = 512
    split: str = "test"
    skipped: int = 0
    references: int | None = None

    @property
    def name(self) -> str:
        named = self.side.prompt_attributes
        kind = "portraits" if named is None else f"portraits-{len(named)}of{len(PHRASES)}"
        return f"{kind}-{self.split}-{self.num_clips}"

    @cached_property
    def prompts(self) -> list[str]:
        return captions(self.split, range(self.num_clips), self.side.prompt_attributes)

    @cached_property
    def colours(self) -> list[Mapping[str, Colour]]:
        return [named_colours(prompt) for prompt in self.prompts]

    @property
    def floors(self) -> Sequence[RealFloor]:
        return ("raw", "codec")

    def conditioning(self, backbone: Backbone, indices: Sequence[int]) -> Cond:
        """For image-to-video the given frame is the first one of the same clip."""
        first = self._rendered(self.split, indices)[:, 0] if backbone.side.task == "i2v" else None
        return backbone.encode_prompts([self.prompts[i] for i in indices], first)

    def latents(self, backbone: Backbone, indices: Sequence[int]) -> Tensor:
        return backbone.to_sample(backbone.encode(self._rendered(self.split, indices)))

    def real(self, indices: Sequence[int]) -> np.ndarray:
        return self._rendered(self.split, indices)[:, self.skipped :].numpy()

    def given(self, indices: Sequence[int]) -> np.ndarray:
        return self._rendered(self.split, indices)[:, 0].numpy()

    def describe(self) -> EvalSet:
        return EvalSet(
            name=self.name,
            num_clips=self.num_clips,
            prompts_sha256=canonical_hash(self.prompts),
            reference=f"portraits-{REFERENCE_SPLIT}-{self.reference_count}",
            reference_sha256=self.reference_key("clips"),
            frames=self.side.num_frames - self.skipped,
            height=self.side.height,
            width=self.side.width,
            fps=self.side.fps,
            resize="none",
        )

    @property
    def reference_count(self) -> int:
        return REFERENCE_CLIPS if self.references is None else self.references

    def reference_clips(self, indices: Sequence[int]) -> np.ndarray:
        return self._rendered(REFERENCE_SPLIT, indices)[:, self.skipped :].numpy()

    def reference_key(self, extractor: str) -> str:
        # The clips are a function of these, so their hash need not wait for rendering.
        facts = {
            "renderer": RENDERER_VERSION,
            "split": REFERENCE_SPLIT,
            "count": self.reference_count,
            "geometry": [self.side.num_frames, self.side.height, self.side.width],
            "extractor": extractor,
        }
        return canonical_hash(facts | ({"skipped": self.skipped} if self.skipped else {}))

    def _rendered(self, split: str, indices: Sequence[int]) -> Tensor:
        return clips(split, indices, self.side.num_frames, self.side.height, self.side.width)
