"""The Fréchet distance as a metric of clips: with its standard error, and extrapolated to infinitely many clips.

Both need the distance of many subsets of the same clips. `gaussian.py` has the distance itself.
Axes: N clips or vectors, K vectors a clip, D dimensions, R columns of the reference's factor, G groups of clips.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from w2svd_bench.metrics.base import CorpusMetric, FeatureNet, Features, Score
from w2svd_bench.metrics.gaussian import (
    Moments,
    Reference,
    assemble,
    check_size,
    checked,
    distance_of_moments,
    frechet_distance,
    root_trace,
    too_few,
)
from w2svd_bench.metrics.statistics import Statistics
from w2svd_bench.uncertainty import GROUPS, assign_groups, jackknife_se

__all__ = [
    "FrechetMetric",
    "Moments",
    "Reference",
    "distance_of_moments",
    "extrapolated",
    "frechet_distance",
    "leave_out_distances",
]

SMALL = "n<2048"  # below, the value says more about the number of clips than about the clips
SINGULAR = "N<D"  # a set has no more vectors than dimensions: its covariance is singular
ENOUGH = 2048

SIZES = (1 / 2, 5 / 8, 3 / 4, 7 / 8)  # of the subsets that FID-infinity is fitted to, beside the whole
LEAST_GROUPS = 8  # and what the fit has to hold: see `extrapolated`
LEAST_VECTORS = 4  # times D, so that the smallest subset has twice as many
LEAST_R2 = 0.9
MOST_BENT = 0.2


def leave_out_distances(values_NKD: np.ndarray, group_N: np.ndarray, reference: Reference) -> np.ndarray:
    """The distance without each group of clips, float64 (G,), for groups numbered 0..G-1.

    Vectors are multiplied with the reference's factor once, so that a group costs one eigendecomposition and no more.
    """
    rows, label = _rows_and_labels(values_NKD, group_N, reference)
    if _enough_left(rows, label):
        return _leave_out(_sums_by_group(rows, label, reference), reference)
    return _leave_out_by_gram(rows, label, reference)


def extrapolated(values_NKD: np.ndarray, reference: Reference, keys: Sequence[Hashable] | None = None) -> float | None:
    """The distance of infinitely many generated clips from this reference: FID-infinity of Chong and Forsyth 2020
    (arXiv 1911.07023). To first order the distance of N clips is a + b / N, and ``a`` is wanted.

    The line is fitted by least squares to subsets of 1/2, 5/8, 3/4, 7/8 and all of the groups of clips, two a size (the
    first groups and the last ones), where the original draws 15 subsets at random. Near zero ``a`` may be negative.

    Args:
        keys: one a clip; clips of one key stay together.

    Returns:
        the intercept ``a``, or None where it would mislead:

        - with fewer than four times as many vectors as dimensions, or fewer than 8 distinct keys;
        - if the line falls with 1/N, or explains less than 90 % of the variance between the subsets;
        - if the points are bent: a parabola in 1/N through them ends elsewhere, by more than 20 % of what the line
          takes off, and by more than two standard errors of its own.

        (Tried on vectors of 256 dimensions with a known distance: with N = 2D the line takes off a quarter too much at
        an R^2 of 0.998; with 4D it is 5 to 8 % too much, with 8D 2 to 4 %. Frames of one clip count for less than
        vectors of their own: what that does to the line shows in its bend.)
    """
    group = assign_groups(keys if keys is not None else range(len(values_NKD)), GROUPS)
    rows, label = _rows_and_labels(values_NKD, group, reference)
    if not _can_extrapolate(rows, label):
        return None
    return _extrapolate(_sums_by_group(rows, label, reference), reference)


class FrechetMetric(CorpusMetric):
    """A corpus metric whose `compare` is the Fréchet distance, all vectors of all clips pooled."""

    direction = "down"
    groups = GROUPS

    def __init__(self, net: FeatureNet) -> None:
        super().__init__(net)
        self._known: list[tuple[object, Reference]] = []  # real clips, and the teacher's

    @property
    def distance(self) -> str:
        return f"Frechet distance, float64, ddof 1, eigh; se: jackknife over {self.groups} groups of prompts"

    def compare(self, generated: Features, reference: Features | Moments | Statistics) -> Score:
        """The Fréchet distance and its jackknife over groups of keys; needs two clips in each set.

        The flag "n<2048" is set when either set is known to have fewer clips than that (fewer images, for sets of
        images), "N<D" when either has no more vectors than dimensions; statistics add theirs.

        Raises:
            BenchError: for fewer than two clips, sets of different dimensions, or statistics of another net.
        """
        if len(generated) < 2 or (isinstance(reference, Features) and len(reference) < 2):
            raise too_few(min(len(generated), len(reference) if isinstance(reference, Features) else 2))
        prepared = self._prepared(reference)
        group = assign_groups(generated.keys if generated.keys is not None else range(len(generated)), self.groups)
        rows, label = _rows_and_labels(generated.values_NKD, group, prepared)
        value = frechet_distance(rows, prepared)
        infinity = None
        if _enough_left(rows, label):
            parts = _sums_by_group(rows, label, prepared)
            leave_out = _leave_out(parts, prepared)
            if _can_extrapolate(rows, label):
                infinity = _extrapolate(parts, prepared)
        else:
            leave_out = _leave_out_by_gram(rows, label, prepared)
        flags = self.net.flags + prepared.flags + _size_flags(len(generated), len(rows), prepared)
        sizes = tuple(np.bincount(group).tolist())
        se = jackknife_se(leave_out, value, sizes)
        return Score(value, se, len(generated), tuple(leave_out.tolist()), flags, infinity, sizes)

    def statistics(self, features: Features) -> Statistics:
        """What `statistics.write_statistics` writes of a set: its mean, covariance and origin."""
        moments = Moments.of(_pool(features))
        return Statistics(
            moments.mean_D,
            moments.covariance_DD,
            n=moments.n,
            clips=len(features),
            net_id=self.net.id,
            weights_sha256=self.net.weights_sha256,
        )

    def _prepared(self, reference: Features | Moments | Statistics) -> Reference:
        """The reference with its factor, which is computed once: one reference serves all cells of a grid."""
        for known, prepared in self._known:
            if known is reference:
                return prepared
        if isinstance(reference, Features):
            prepared = Reference.of(_pool(reference), clips=len(reference))
        elif isinstance(reference, Moments):
            prepared = Reference.from_moments(reference)
        else:
            reference.check(self.net)
            prepared = Reference.from_statistics(reference)
        self._known = [*self._known[-1:], (reference, prepared)]
        return prepared


@dataclass(frozen=True, eq=False)
class _Sums:
    """What a distance needs of a set, as plain sums over its vectors, so that sets add and subtract.

    Vectors are measured from one point near their mean, the same for all sets that are added, so that little is lost
    when the mean is taken out of the sums.
    """

    n: int
    vector_D: np.ndarray
    square: float  # of lengths
    inner_RR: np.ndarray  # of outer products of the vectors times the reference's factor

    @staticmethod
    def of(shifted_ND: np.ndarray, reference: Reference) -> _Sums:
        projected = shifted_ND @ reference.factor_DR
        square = float(np.square(shifted_ND).sum())
        return _Sums(len(shifted_ND), shifted_ND.sum(axis=0), square, projected.T @ projected)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.n + other.n,
            self.vector_D + other.vector_D,
            self.square + other.square,
            self.inner_RR + other.inner_RR,
        )

    def __sub__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.n - other.n,
            self.vector_D - other.vector_D,
            self.square - other.square,
            self.inner_RR - other.inner_RR,
        )

    def distance(self, origin_D: np.ndarray, reference: Reference) -> float:
        """The distance, ``origin_D`` being the point that the vectors are measured from."""
        mean = self.vector_D / self.n
        trace = (self.square - self.n * float(mean @ mean)) / (self.n - 1)
        along = mean @ reference.factor_DR
        inner = (self.inner_RR - self.n * np.outer(along, along)) / (self.n - 1)
        return assemble(origin_D + mean, trace, root_trace(inner), reference)


@dataclass(frozen=True, eq=False)
class _Parts:
    """The sums of each group of clips, and the point that they are measured from."""

    origin_D: np.ndarray
    sums: list[_Sums]


def _sums_by_group(rows_ND: np.ndarray, label_N: np.ndarray, reference: Reference) -> _Parts:
    origin = rows_ND.mean(axis=0)
    groups = range(int(label_N.max()) + 1)
    return _Parts(origin, [_Sums.of(rows_ND[label_N == g] - origin, reference) for g in groups])


def _leave_out(parts: _Parts, reference: Reference) -> np.ndarray:
    whole = reduce(add, parts.sums)
    return np.array([(whole - part).distance(parts.origin_D, reference) for part in parts.sums])


def _leave_out_by_gram(rows_ND: np.ndarray, label_N: np.ndarray, reference: Reference) -> np.ndarray:
    """For sets with fewer vectors than dimensions: X B and (X B)^T share their singular values, so that the small
    matrix X B (X B)^T does, of which a subset's is a part, centred anew.
    """
    origin = rows_ND.mean(axis=0)
    shifted = rows_ND - origin
    projected = shifted @ reference.factor_DR
    gram = projected @ projected.T
    distances = []
    for g in range(int(label_N.max()) + 1):
        kept = np.flatnonzero(label_N != g)
        if len(kept) < 2:
            raise too_few(len(kept))
        mean = shifted[kept].mean(axis=0)
        spread = float(np.square(shifted[kept] - mean).sum()) / (len(kept) - 1)
        inner = gram[np.ix_(kept, kept)]
        inner = inner - inner.mean(axis=0) - inner.mean(axis=1, keepdims=True) + inner.mean()
        # Centred vectors have a rank of n - 1: what is found beyond it is rounding, and its root would not be small.
        overlap = root_trace(inner / (len(kept) - 1), rank=min(len(kept) - 1, reference.factor_DR.shape[1]))
        distances.append(assemble(origin + mean, spread, overlap, reference))
    return np.array(distances)


def _extrapolate(parts: _Parts, reference: Reference) -> float | None:
    count = len(parts.sums)
    subsets = [parts.sums]
    for size in SIZES:
        kept = round(size * count)
        subsets += [parts.sums[:kept], parts.sums[-kept:]]
    sums = [reduce(add, subset) for subset in subsets]
    inverse = np.array([1 / subset.n for subset in sums])
    inverse /= inverse.min()  # a fit in 1/n itself would be badly scaled; only the intercept is wanted
    distances = np.array([subset.distance(parts.origin_D, reference) for subset in sums])
    slope, end = np.polyfit(inverse, distances, 1)
    left = np.square(distances - end - slope * inverse).sum()
    explained = 1 - left / np.square(distances - distances.mean()).sum()
    parabola, covariance = np.polyfit(inverse, distances, 2, cov=True)
    bend = abs(parabola[2] - end)
    bent = bend > MOST_BENT * abs(distances[0] - end) and bend > 2 * np.sqrt(covariance[2, 2])
    return float(end) if slope > 0 and explained >= LEAST_R2 and not bent else None


def _can_extrapolate(rows_ND: np.ndarray, label_N: np.ndarray) -> bool:
    return len(rows_ND) >= LEAST_VECTORS * rows_ND.shape[1] and int(label_N.max()) + 1 >= LEAST_GROUPS


def _enough_left(rows_ND: np.ndarray, label_N: np.ndarray) -> bool:
    """Whether more vectors than dimensions are left without any one of the groups."""
    return len(rows_ND) - int(np.bincount(label_N).max()) > rows_ND.shape[1]


def _rows_and_labels(
    values_NKD: np.ndarray, group_N: np.ndarray, reference: Reference
) -> tuple[np.ndarray, np.ndarray]:
    """All vectors in float64, checked, and the group of each."""
    count, vectors, dimensions = values_NKD.shape
    check_size(dimensions, reference)
    return checked(values_NKD.reshape(count * vectors, dimensions), at_least=2), np.repeat(group_N, vectors)


def _size_flags(clips: int, vectors: int, reference: Reference) -> tuple[str, ...]:
    dimensions = len(reference.mean_D)
    # Clips of a reference that only states its vectors are at most as many as these.
    theirs = reference.clips if reference.clips is not None else reference.n
    small = clips < ENOUGH or (theirs is not None and theirs < ENOUGH)
    singular = vectors <= dimensions or (reference.n is not None and reference.n <= dimensions)
    return (SMALL,) * small + (SINGULAR,) * singular


def _pool(features: Features) -> np.ndarray:
    return features.values_NKD.reshape(-1, features.values_NKD.shape[2])
