"""Evaluation sets: the prompts that are asked of every method, and the real clips that its answers are held against.

Prompts come from one split of the procedural portraits, reference clips from another, and the teacher was trained on
a third; no clip is in two of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from w2svd_bench.backbones.base import Side
from w2svd_bench.data.latents import cache_folder
from w2svd_bench.data.portraits import RENDERER_VERSION, batches, captions
from w2svd_bench.metrics.base import CorpusMetric, Features
from w2svd_bench.metrics.diagnostics import Reader
from w2svd_bench.record import EvalSet, canonical_hash

Progress = Callable[[int, int], None]
REFERENCE_SPLIT, REFERENCE_CLIPS = "reference", 2048


@dataclass(frozen=True)
class PortraitSet:
    """``num_clips`` prompts of a split (``test``, or ``validation`` for tuning) and 2,048 raw renders as reference."""

    side: Side
    num_clips: int = 512
    split: str = "test"

    @property
    def name(self) -> str:
        return f"portraits-{self.split}-{self.num_clips}"

    @cached_property
    def prompts(self) -> list[str]:
        return captions(self.split, range(self.num_clips))

    def describe(self) -> EvalSet:
        """What a record says about the set."""
        return EvalSet(
            name=self.name,
            num_clips=self.num_clips,
            prompts_sha256=canonical_hash(self.prompts),
            reference=f"portraits-{REFERENCE_SPLIT}-{REFERENCE_CLIPS}",
            reference_sha256=self._key("clips"),
            frames=self.side.num_frames,
            height=self.side.height,
            width=self.side.width,
            fps=self.side.fps,
            resize="none",
        )

    def _key(self, extractor: str) -> str:
        # The clips are a function of these, so their hash need not wait for rendering.
        return canonical_hash(
            {
                "renderer": RENDERER_VERSION,
                "split": REFERENCE_SPLIT,
                "count": REFERENCE_CLIPS,
                "geometry": [self.side.num_frames, self.side.height, self.side.width],
                "extractor": extractor,
            }
        )

    def reference(self, metrics: Sequence[CorpusMetric], reader: Reader, progress: Progress) -> Reference:
        """Features and readings of the reference clips, from the cache or made and put there."""
        extractors: dict[str, Callable[[np.ndarray], np.ndarray]] = {m.id: m.features for m in metrics}
        extractors[f"readings {reader.weights_sha256}"] = reader
        paths = {name: cache_folder() / "features" / f"{self._key(name)[:32]}.npy" for name in extractors}
        if not all(path.is_file() for path in paths.values()):
            parts: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
            side = self.side
            for indices, frames in batches(
                REFERENCE_SPLIT, REFERENCE_CLIPS, 64, 0, side.num_frames, side.height, side.width
            ):
                for name, extract in extractors.items():
                    parts[name].append(extract(frames.numpy()))
                progress(indices[-1] + 1, REFERENCE_CLIPS)
            for name, path in paths.items():
                _save(path, np.concatenate(parts[name]))
        arrays = {name: np.load(path, allow_pickle=False) for name, path in paths.items()}
        readings = arrays.pop(f"readings {reader.weights_sha256}")
        return Reference({name: Features(values) for name, values in arrays.items()}, readings)


@dataclass(frozen=True)
class Reference:
    """Features of the reference clips by metric id, and the frame net's readings (N, F, P)."""

    features: dict[str, Features]
    readings: np.ndarray


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp.npy")  # several evaluations may make the same at once
    np.save(partial, values, allow_pickle=False)
    partial.replace(path)
