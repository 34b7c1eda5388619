"""What a metric is: a number for one clip (`ClipMetric`), or a number for a set of clips (`CorpusMetric`).

A corpus metric works in two stages. `features` turns each clip into a few vectors, clip by clip, so the vectors can be
made anywhere, in any order, and be kept; `compare` turns two sets of them into one number with its uncertainty, and
needs no network any more. Axes: N clips of a set, B clips of a batch, K vectors a clip, D numbers a vector, F frames,
H, W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from w2svd_bench.errors import BenchError
from w2svd_bench.types import Clip, Skipped

Direction = Literal["up", "down"]  # where better is


@dataclass(frozen=True, eq=False)
class Features:
    """The features of N clips.

    Args:
        values_NKD: float32 (N, K, D).
        keys: what each clip belongs to, its prompt as a rule; clips of one key are never parted when uncertainty is
            estimated. None: every clip stands for itself. Two sets are paired when their keys are the same.

    Raises:
        BenchError: for a wrong shape, a wrong number of keys, or values that are not finite (it names the clip).
    """

    values_NKD: np.ndarray
    keys: Sequence[str] | None = None

    def __post_init__(self) -> None:
        shape = self.values_NKD.shape
        if len(shape) != 3:
            raise BenchError(
                f"features of shape {shape}",
                "features have three axes: clips, vectors a clip, numbers a vector",
                "pass what `CorpusMetric.features` returned, batches joined along axis 0",
            )
        if self.keys is not None and len(self.keys) != shape[0]:
            raise BenchError(
                f"{len(self.keys)} keys for {shape[0]} clips",
                "there is one key a clip",
                "pass one prompt for each clip, in the order of the features",
            )
        broken = ~np.isfinite(self.values_NKD).all(axis=(1, 2))
        if broken.any():
            raise BenchError(
                f"the features of clip {int(broken.argmax())} are not finite ({int(broken.sum())} of {shape[0]} clips)",
                "a NaN or an infinity would spoil the whole set",
                "look at that clip's frames; a failed clip is recorded as a failure, not scored",
            )

    def __len__(self) -> int:
        return len(self.values_NKD)


@dataclass(frozen=True)
class Score:
    """A corpus metric's answer.

    Args:
        value: the metric.
        se: its standard error over the generated clips, the reference set held fixed (delete-a-group jackknife).
        n: generated clips.
        leave_out: the metric without each of the jackknife's groups, in order. Two scores of clips with the same keys
            are compared with `uncertainty.paired_difference` from these alone.
    """

    value: float
    se: float
    n: int
    leave_out: tuple[float, ...]


class CorpusMetric(ABC):
    """A distance between a set of generated clips and a set of reference clips.

    Subclasses take ``device`` ("cpu", "cuda", ...) as their only argument; making one loads its network.

    Attributes:
        least_clips: how many clips, of prompts that differ, either set needs for a number that is worth writing down.
            Eight leave-one-out values tell a standard error to about a quarter of itself; fewer tell nothing.
    """

    name: ClassVar[str]
    version: ClassVar[int]  # raised whenever the same clips would get another number
    direction: ClassVar[Direction]
    least_clips: ClassVar[int] = 8

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        """Why the metric can't read clips of this size; None if it can, as one that resizes does."""
        return None

    @property
    @abstractmethod
    def id(self) -> str:
        """Every choice that the number depends on, in one line; scores with different ids are never compared."""

    @property
    @abstractmethod
    def weights_sha256(self) -> str:
        """The sha256 of the file of weights that the features come from."""

    @abstractmethod
    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """The features of a batch of uint8 clips, float32 (B, K, D); a clip's features don't depend on its batch."""

    @abstractmethod
    def compare(self, generated: Features, reference: Features) -> Score:
        """The distance of the generated set from the reference set; the counts may differ, K and D may not."""


class ClipMetric(ABC):
    """A number for each clip by itself; sets are summed up with `uncertainty.cluster_bootstrap`."""

    name: ClassVar[str]
    version: ClassVar[int]
    direction: ClassVar[Direction]

    @abstractmethod
    def score(self, clip: Clip) -> float | Skipped:
        """The score of one clip, or why it has none."""


def other_size(frames: int, height: int, width: int, learned: tuple[int, int, int]) -> str | None:
    """Why a net that ``learned`` one size (frames, height, width) can't read clips of this one; None if it can."""
    if (frames, height, width) == learned:
        return None
    return (
        f"it reads clips of {learned[0]} frames of {learned[2]}x{learned[1]} only, and these have {frames} of "
        f"{width}x{height}"
    )


def check_clips(clips_BFHWC: np.ndarray, frames: int, height: int, width: int) -> None:
    """Raises `BenchError` unless the clips are uint8 (B, frames, height, width, 3)."""
    want = (frames, height, width, 3)
    if clips_BFHWC.ndim != 5 or clips_BFHWC.shape[1:] != want or clips_BFHWC.dtype != np.uint8:
        raise BenchError(
            f"clips of shape {clips_BFHWC.shape} and type {clips_BFHWC.dtype}",
            f"this metric reads uint8 clips of shape (B, {frames}, {height}, {width}, 3), the only size it learned",
            "score clips of the miniature backbone with it, and use a full-size feature net for others",
        )
