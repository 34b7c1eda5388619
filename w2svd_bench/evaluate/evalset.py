"""Eval sets: the prompts that are asked of every method, and the real clips that its answers are held against.

Of the procedural portraits, prompts come from one split, reference clips from another, and the teacher was trained on a
third; no clip is in two of them. Held-out clips of a latent cache are in `cacheset`.
Axes: B clips of a batch, N of a set, F frames, H, W pixels, P readings; latents are (B, C, T, h, w).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from w2svd_bench.backbones.base import Backbone, Side
from w2svd_bench.data.palette import named_colours
from w2svd_bench.data.portraits import RENDERER_VERSION, captions, clips
from w2svd_bench.folders import cache_folder
from w2svd_bench.metrics.base import CorpusMetric, Features
from w2svd_bench.metrics.diagnostics import Colour, Reader
from w2svd_bench.record import EvalSet, canonical_hash
from w2svd_bench.types import Cond
from w2svd_bench.world import World

Progress = Callable[[int, int], None]
REFERENCE_SPLIT, REFERENCE_CLIPS = "reference", 2048
BATCH = 64  # clips at a time, where they are as small as the miniature's


@dataclass(frozen=True)
class Reference:
    """What generated clips are held against.

    Attributes:
        features: of the reference clips, by metric id.
        readings: the frame net's, (N, F, P); None where it can't read these clips.
        refused: by metric id, why a metric can't read clips of this size.
    """

    features: Mapping[str, Features]
    readings: np.ndarray | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


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
    def floors(self) -> Sequence[bool]:
        """Which rows of real clips say something: False for raw ones, True for those through the codec."""

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
    def describe(self) -> EvalSet:
        """What a record says about the set."""

    @property
    @abstractmethod
    def reference_count(self) -> int:
        """How many reference clips there are."""

    @abstractmethod
    def reference_clips(self, indices: Sequence[int]) -> np.ndarray:
        """Reference clips as uint8 (B, F, H, W, 3)."""

    @abstractmethod
    def reference_key(self, extractor: str) -> str:
        """A hash of all that the features of the reference clips depend on, for a way of extracting them."""

    def reference(
        self,
        metrics: Sequence[CorpusMetric],
        reader: Reader | None,
        progress: Progress,
        world: World | None = None,
        batch: int = BATCH,
    ) -> Reference:
        """Features and readings of the reference clips, from the cache folder or made (by all processes) and put there.

        A metric that can't read clips of this size is left out, with its reason.
        """
        world, size = world or World(), self.describe()
        found = {metric.id: metric.refuses(size.frames, size.height, size.width) for metric in metrics}
        refused = {name: reason for name, reason in found.items() if reason is not None}
        extractors: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            metric.id: metric.features for metric in metrics if metric.id not in refused
        }
        if reader is not None:
            extractors[f"readings {reader.weights_sha256}"] = reader
        arrays = world.agree(lambda: _kept(self._paths(extractors)))
        if arrays is None:
            own = world.together(lambda: self._extracted(extractors, progress, world, batch))
            parts = sorted((part for share in world.gather(own) for part in share), key=lambda part: part[0])
            arrays = {name: np.concatenate([part[name] for _, part in parts]) for name in extractors}
            world.agree(lambda: _keep(self._paths(extractors), arrays))
        readings = None if reader is None else arrays.pop(f"readings {reader.weights_sha256}")
        return Reference({name: Features(values) for name, values in arrays.items()}, readings, refused)

    def _paths(self, extractors: Mapping[str, object]) -> dict[str, Path]:
        return {name: cache_folder() / "features" / f"{self.reference_key(name)[:32]}.npy" for name in extractors}

    def _extracted(
        self,
        extractors: Mapping[str, Callable[[np.ndarray], np.ndarray]],
        progress: Progress,
        world: World,
        batch: int,
    ) -> list[tuple[int, dict[str, np.ndarray]]]:
        """This process's share: the number of each batch's first clip, and what was extracted."""
        parts, done = [], 0
        for indices in shares(self.reference_count, batch, world):
            frames = self.reference_clips(indices)
            parts.append((indices[0], {name: extract(frames) for name, extract in extractors.items()}))
            done += len(indices)
            progress(min(self.reference_count, done * world.size), self.reference_count)
        return parts


def shares(count: int, batch: int, world: World) -> list[range]:
    """The batches of ``range(count)`` that fall to this process.

    Which clips stand together in a batch does not depend on how many processes there are, so the last bits of a clip
    don't either; the processes take the batches in turns.
    """
    batches = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    return batches[world.rank :: world.size]


@dataclass(frozen=True)
class PortraitSet(ClipSet):
    """``num_clips`` prompts of a split (``test``, or ``validation`` for tuning) and 2,048 raw renders as reference.

    Attributes:
        side: the size of the clips.
        skipped: first frames that the backbone's decoding leaves out, and so the set does (see `Backbone.decode`).
    """

    side: Side
    num_clips: int = 512
    split: str = "test"
    skipped: int = 0

    @property
    def name(self) -> str:
        return f"portraits-{self.split}-{self.num_clips}"

    @cached_property
    def prompts(self) -> list[str]:
        return captions(self.split, range(self.num_clips))

    @cached_property
    def colours(self) -> list[Mapping[str, Colour]]:
        return [named_colours(prompt) for prompt in self.prompts]

    @property
    def floors(self) -> Sequence[bool]:
        return (False, True)

    def conditioning(self, backbone: Backbone, indices: Sequence[int]) -> Cond:
        """For image-to-video the given frame is the first one of the same clip."""
        first = self._rendered(self.split, indices)[:, 0] if backbone.side.task == "i2v" else None
        return backbone.encode_prompts([self.prompts[i] for i in indices], first)

    def latents(self, backbone: Backbone, indices: Sequence[int]) -> Tensor:
        return backbone.to_sample(backbone.encode(self._rendered(self.split, indices)))

    def real(self, indices: Sequence[int]) -> np.ndarray:
        return self._rendered(self.split, indices)[:, self.skipped :].numpy()

    def describe(self) -> EvalSet:
        return EvalSet(
            name=self.name,
            num_clips=self.num_clips,
            prompts_sha256=canonical_hash(self.prompts),
            reference=f"portraits-{REFERENCE_SPLIT}-{REFERENCE_CLIPS}",
            reference_sha256=self.reference_key("clips"),
            frames=self.side.num_frames - self.skipped,
            height=self.side.height,
            width=self.side.width,
            fps=self.side.fps,
            resize="none",
        )

    @property
    def reference_count(self) -> int:
        return REFERENCE_CLIPS

    def reference_clips(self, indices: Sequence[int]) -> np.ndarray:
        return self._rendered(REFERENCE_SPLIT, indices)[:, self.skipped :].numpy()

    def reference_key(self, extractor: str) -> str:
        # The clips are a function of these, so their hash need not wait for rendering.
        facts = {
            "renderer": RENDERER_VERSION,
            "split": REFERENCE_SPLIT,
            "count": REFERENCE_CLIPS,
            "geometry": [self.side.num_frames, self.side.height, self.side.width],
            "extractor": extractor,
        }
        return canonical_hash(facts | ({"skipped": self.skipped} if self.skipped else {}))

    def _rendered(self, split: str, indices: Sequence[int]) -> Tensor:
        return clips(split, indices, self.side.num_frames, self.side.height, self.side.width)


def _kept(paths: Mapping[str, Path]) -> dict[str, np.ndarray] | None:
    """What earlier evaluations left, if it is all there."""
    if not all(path.is_file() for path in paths.values()):
        return None
    return {name: np.load(path, allow_pickle=False) for name, path in paths.items()}


def _keep(paths: Mapping[str, Path], arrays: Mapping[str, np.ndarray]) -> None:
    for name, path in paths.items():
        _save(path, arrays[name])


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp.npy")  # several evaluations may make the same at once
    np.save(partial, values, allow_pickle=False)
    partial.replace(path)
