"""What a metric is: numbers for each clip (`ClipMetric`), or one number for a set of clips (`CorpusMetric`).

A corpus metric stands on a `FeatureNet`, which turns each clip into a few vectors, clip by clip, so that the vectors
can be made anywhere, in any order, be kept, and be shared by all metrics over the same net; `compare` turns two sets of
them into one number with its uncertainty, and needs no network any more. Axes: N clips of a set, B clips of a batch,
K vectors a clip, D numbers a vector, F frames, H, W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from w2svd_bench.errors import BenchError
from w2svd_bench.types import Skipped

Direction = Literal["up", "down"]  # where better is
STAND_IN = "stand-in weights"  # the flag of a net whose weights are random, for tests and trials


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
                "pass what `FeatureNet.features` returned, batches joined along axis 0",
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
        flags: what a reader has to know before comparing the number with another one: "n<2048", "N<D", ...
        infinity: the value extrapolated to infinitely many clips, where that can be done well; else None.
        groups: how many clips each of the jackknife's groups has; empty: as many one as another.
    """

    value: float
    se: float
    n: int
    leave_out: tuple[float, ...]
    flags: tuple[str, ...] = ()
    infinity: float | None = None
    groups: tuple[int, ...] = ()


class FeatureNet(ABC):
    """A fixed network with all that stands between a clip's pixels and its features."""

    @property
    @abstractmethod
    def id(self) -> str:
        """Every choice that the features depend on, the weights' sha256 among them, in one line.

        Equal ids mean equal features of equal clips: features are kept under it.
        """

    @property
    @abstractmethod
    def weights_sha256(self) -> str:
        """The sha256 of the file of weights."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader has to know about the weights; `STAND_IN` where they are no real ones."""
        return ()

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        """Why the net can't read clips of this size; None if it can, as one that resizes does."""
        return None

    @abstractmethod
    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """The features of a batch of uint8 clips, float32 (B, K, D); on a CPU a clip's features don't depend on its
        batch, to the last bit.
        """


class _Raised(FeatureNet):
    """A net as a metric of a raised version uses it: under an id of its own, so that features which older code made, in
    the cache or in a file of statistics, are not taken for its.
    """

    def __init__(self, net: FeatureNet, metric: str) -> None:
        self._net, self._metric = net, metric

    @property
    def id(self) -> str:
        return f"{self._net.id}; for {self._metric}"

    @property
    def weights_sha256(self) -> str:
        return self._net.weights_sha256

    @property
    def flags(self) -> tuple[str, ...]:
        return self._net.flags

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        return self._net.refuses(frames, height, width)

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        return self._net.features(clips_BFHWC)


class Metric(ABC):
    """What all metrics share. A metric is made with the name of a device ("cpu", "cuda", ...) as its only argument,
    which loads its network.

    Attributes:
        name: what tables call it.
        version: raised whenever the same clips would get another number.
        direction: where better is.
    """

    name: str
    version: ClassVar[int]
    direction: ClassVar[Direction]


class CorpusMetric(Metric):
    """A distance between a set of generated clips and a set of reference clips.

    Args:
        net: whose features it compares. Where its weights are stand-ins the name says so: `fid[stand-in]`. From version
            2 on its id names the metric and the version, so that no features of an older one are used.

    Attributes:
        least_clips: how many clips, of prompts that differ, either set needs for a number that is worth writing down.
            Eight leave-one-out values tell a standard error to about a quarter of itself; fewer tell nothing.
    """

    least_clips: ClassVar[int] = 8

    def __init__(self, net: FeatureNet) -> None:
        # Its version says how the net was fed, too. Metrics that were never raised share what a net read.
        self.net = net if self.version == 1 else _Raised(net, f"{self.name} v{self.version}")
        if STAND_IN in net.flags:
            self.name = f"{self.name}[stand-in]"

    @property
    def id(self) -> str:
        """Every choice that the number depends on, in one line; scores with different ids are never compared."""
        return f"{self.name} v{self.version}; {self.net.id}; {self.distance}"

    @property
    @abstractmethod
    def distance(self) -> str:
        """The part of the id that says how features are compared, and how the standard error is had."""

    @property
    def weights_sha256(self) -> str:
        """The sha256 of the file of weights that the features come from."""
        return self.net.weights_sha256

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        """Why the metric can't read clips of this size; None if it can."""
        return self.net.refuses(frames, height, width)

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """The features of a batch of uint8 clips, float32 (B, K, D)."""
        return self.net.features(clips_BFHWC)

    @abstractmethod
    def compare(self, generated: Features, reference: Features) -> Score:
        """The distance of the generated set from the reference set; the counts may differ, K and D may not."""


@dataclass(frozen=True)
class ClipFile:
    """A clip on disk, for metrics that are computed by other programs.

    Attributes:
        path: a video file, absolute.
        key: what the clip belongs to when uncertainty is estimated; its prompt, as a rule.
        prompt: None where it is not known.
        frames, height, width, fps: as they are in the file.
        image: the given first frame of image-to-video, as an image file; None where there is none.
    """

    path: Path
    key: str
    prompt: str | None
    frames: int
    height: int
    width: int
    fps: float
    image: Path | None = None


@dataclass(frozen=True)
class Dimension:
    """One of the numbers that a `ClipMetric` gives for each clip: see `Metric` and `CorpusMetric` for the fields."""

    name: str
    direction: Direction
    version: int
    id: str
    weights_sha256: str | None = None
    flags: tuple[str, ...] = ()

    @property
    def kept_as(self) -> str:
        """What its values are kept under: the id, with the version even where the id's author forgot it."""
        return self.id if self.version == 1 else f"{self.id}; version {self.version}"


class ClipMetric(Metric):
    """Numbers for each clip by itself; a set's are summed up with `uncertainty.cluster_bootstrap`.

    Attributes:
        least_side: clips that are made here and whose shorter side is below this are enlarged by a whole factor, pixel
            by pixel, before they are shown to the metric; their scores are flagged so.
    """

    least_side: ClassVar[int] = 0

    @property
    @abstractmethod
    def dimensions(self) -> Sequence[Dimension]:
        """The numbers that it gives, in the order of tables; their names start with the metric's own and a point."""

    @abstractmethod
    def refuses(self, frames: int, height: int, width: int, fps: float) -> Mapping[str, str]:
        """By the name of a dimension, why it can't be had of clips of this size; empty if all can."""

    @abstractmethod
    def score(
        self, clips: Sequence[ClipFile], progress: Callable[[int, int], None]
    ) -> Mapping[str, Sequence[float | Skipped]]:
        """By the name of a dimension, the value of each clip in order, or why it has none.

        Raises:
            BenchError: the metric can't be had at all: its program or its weights are missing, or it broke down.
        """

    def close(self) -> None:
        """Ends what runs in the background, if anything does."""


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
