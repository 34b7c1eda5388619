"""The Fréchet distance between two sets of feature vectors, seen as Gaussians (Dowson and Landau 1982; FID: Heusel et
al. 2017, arXiv 1706.08500, eq. 6):

    d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr sqrt(S_1 S_2)

The last trace is had without a matrix square root. With any factor B of the reference covariance, S_2 = B B^T, the
matrices S_1 S_2 and B^T S_1 B share their non-zero eigenvalues, so tr sqrt(S_1 S_2) = sum sqrt(eig(B^T S_1 B)), and if
S_1 = X^T X / (n - 1) comes from fewer vectors than dimensions, that is the nuclear norm of X B / sqrt(n - 1), which
stays exact when covariances are singular. (`scipy.linalg.sqrtm` of the non-symmetric product, which older code calls,
is slower and returned wrong imaginary parts in some releases.)
Axes: N vectors (or clips), K vectors a clip, D dimensions, R columns of a factor, G groups of the jackknife.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.base import CorpusMetric, Features, Score
from w2svd_bench.uncertainty import assign_groups, jackknife_se


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter (sum of squared deviations from the mean) of vectors, float64; they add and subtract."""

    n: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    @staticmethod
    def of(rows_ND: np.ndarray) -> Moments:
        """The moments of (N, D) vectors, N >= 1; raises `BenchError` for a value that is not finite."""
        rows = _checked(rows_ND, at_least=1)
        mean = rows.mean(axis=0)
        centred = rows - mean
        return Moments(len(rows), mean, centred.T @ centred)

    @property
    def covariance_DD(self) -> np.ndarray:
        """The unbiased covariance, divided by n - 1 as in pytorch-fid."""
        if self.n < 2:
            raise _too_few(self.n)
        return self.scatter_DD / (self.n - 1)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together (Chan, Golub and LeVeque 1979, eq. 2.1)."""
        n = self.n + other.n
        step = other.mean_D - self.mean_D
        scatter = self.scatter_DD + other.scatter_DD + np.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean_D + step * (other.n / n), scatter)

    def without(self, part: Moments) -> Moments:
        """The moments of the set after a part of it is taken out: `merge` undone."""
        n = self.n - part.n
        if n < 1:
            raise BenchError(f"a set of {self.n} vectors can't lose {part.n}", "none would be left", "use more clips")
        mean = self.mean_D + (self.mean_D - part.mean_D) * (part.n / n)
        step = part.mean_D - mean
        scatter = self.scatter_DD - part.scatter_DD - np.outer(step, step) * (n * part.n / self.n)
        return Moments(n, mean, scatter)


@dataclass(frozen=True, eq=False)
class Reference:
    """What is needed of a reference set, computed once: n, mean (D,), factor B (D, R) with B B^T = S, and tr S."""

    n: int
    mean_D: np.ndarray
    factor_DR: np.ndarray
    trace: float

    @staticmethod
    def of(rows_ND: np.ndarray) -> Reference:
        """The reference made of (N, D) vectors, N >= 2."""
        rows = _checked(rows_ND, at_least=2)
        if len(rows) > rows.shape[1]:
            return Reference.from_moments(Moments.of(rows))
        # Fewer vectors than dimensions: factor the vectors themselves, since forming the covariance would put noise
        # of 1e-16 into its null space, of which the square root makes 1e-8.
        mean = rows.mean(axis=0)
        centred = (rows - mean) / np.sqrt(len(rows) - 1)
        _, sizes, directions = linalg.svd(centred, full_matrices=False)
        return Reference(len(rows), mean, directions.T * sizes, float(np.square(sizes).sum()))

    @staticmethod
    def from_moments(moments: Moments) -> Reference:
        """The reference known by its moments (as those of a pytorch-fid ``.npz`` file are)."""
        covariance = moments.covariance_DD
        values, vectors = linalg.eigh(covariance)
        return Reference(moments.n, moments.mean_D, vectors * np.sqrt(values.clip(min=0)), float(np.trace(covariance)))


def frechet_distance(rows_ND: np.ndarray, reference: Reference) -> float:
    """The squared Fréchet distance (what is called FID) of (N, D) vectors, N >= 2, from a reference.

    Near zero it may be negative by rounding, about 1e-12 of the traces; it is not clipped.

    Raises:
        BenchError: for fewer than two vectors, values that are not finite, or another D than the reference's.
    """
    rows = _checked(rows_ND, at_least=2, dimensions=len(reference.mean_D))
    if len(rows) > rows.shape[1]:
        return distance_of_moments(Moments.of(rows), reference)
    mean = rows.mean(axis=0)
    centred = (rows - mean) / np.sqrt(len(rows) - 1)
    overlap = linalg.svdvals(centred @ reference.factor_DR).sum()
    return _assemble(mean, float(np.square(centred).sum()), float(overlap), reference)


def distance_of_moments(moments: Moments, reference: Reference) -> float:
    """The same from moments, for sets with more vectors than dimensions."""
    covariance = moments.covariance_DD
    inner = reference.factor_DR.T @ covariance @ reference.factor_DR
    overlap = np.sqrt(linalg.eigvalsh((inner + inner.T) / 2).clip(min=0)).sum()
    return _assemble(moments.mean_D, float(np.trace(covariance)), float(overlap), reference)


def leave_out_distances(values_NKD: np.ndarray, group_N: np.ndarray, reference: Reference) -> np.ndarray:
    """The distance without each group of clips, float64 (G,), for groups numbered 0..G-1.

    The moments of every group are computed once and taken from those of the whole, so a group costs one
    eigendecomposition. (With too few vectors for that, the rest is factored anew.)
    """
    dimensions = values_NKD.shape[2]
    groups = range(int(group_N.max()) + 1)
    rows = [values_NKD[group_N == g].reshape(-1, dimensions) for g in groups]
    if len(group_N) * values_NKD.shape[1] - max(map(len, rows)) <= dimensions:
        return np.array([frechet_distance(np.concatenate(rows[:g] + rows[g + 1 :]), reference) for g in groups])
    parts = [Moments.of(group) for group in rows]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return np.array([distance_of_moments(whole.without(part), reference) for part in parts])


class FrechetMetric(CorpusMetric):
    """A corpus metric whose `compare` is the Fréchet distance, all vectors of all clips pooled."""

    direction = "down"
    groups = 20

    def __init__(self) -> None:
        self._last: tuple[Features, Reference] | None = None

    def compare(self, generated: Features, reference: Features) -> Score:
        """The Fréchet distance and its jackknife over groups of keys; needs two clips in each set."""
        if len(generated) < 2 or len(reference) < 2:
            raise _too_few(min(len(generated), len(reference)))
        if self._last is None or self._last[0] is not reference:  # one reference serves all cells of a grid
            self._last = (reference, Reference.of(_pool(reference)))
        prepared = self._last[1]
        group = assign_groups(generated.keys if generated.keys is not None else range(len(generated)), self.groups)
        value = frechet_distance(_pool(generated), prepared)
        leave_out = leave_out_distances(generated.values_NKD, group, prepared)
        return Score(value, jackknife_se(leave_out), len(generated), tuple(leave_out.tolist()))


def _pool(features: Features) -> np.ndarray:
    return features.values_NKD.reshape(-1, features.values_NKD.shape[2])


def _assemble(mean_D: np.ndarray, trace: float, overlap: float, reference: Reference) -> float:
    if mean_D.shape != reference.mean_D.shape:
        raise _other_size(len(mean_D), len(reference.mean_D))
    return float(np.square(mean_D - reference.mean_D).sum() + trace + reference.trace - 2 * overlap)


def _checked(rows_ND: np.ndarray, at_least: int, dimensions: int | None = None) -> np.ndarray:
    """The vectors in float64, after the checks that every entry point needs."""
    rows = np.asarray(rows_ND, dtype=np.float64)
    if rows.ndim != 2:
        raise BenchError(f"feature vectors of shape {rows.shape}", "they need axes (N, D)", "pass one row a vector")
    if len(rows) < at_least:
        raise _too_few(len(rows))
    if dimensions is not None and rows.shape[1] != dimensions:
        raise _other_size(rows.shape[1], dimensions)
    if not np.isfinite(rows).all():
        row = int((~np.isfinite(rows).all(axis=1)).argmax())
        raise BenchError(f"feature vector {row} is not finite", "it holds a NaN or an infinity", "look at its clip")
    return rows


def _too_few(count: int) -> BenchError:
    return BenchError(
        f"a Fréchet distance over {count} clip(s) or vector(s)", "a covariance needs at least two", "score more clips"
    )


def _other_size(ours: int, theirs: int) -> BenchError:
    return BenchError(
        f"features of {ours} and of {theirs} dimensions can't be compared",
        "they come from different networks",
        "compute both sets with the same metric",
    )
