"""The Fréchet distance between two sets of feature vectors, seen as Gaussians (Dowson and Landau 1982; FID: Heusel et
al. 2017, arXiv 1706.08500, eq. 6):

    d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr sqrt(S_1 S_2)

The last trace is had without a matrix square root. With any factor B of the reference covariance, S_2 = B B^T, the
matrices S_1 S_2 and B^T S_1 B share their non-zero eigenvalues, so tr sqrt(S_1 S_2) = sum sqrt(eig(B^T S_1 B)), and if
S_1 = X^T X / (n - 1) comes from fewer vectors than dimensions, that is the nuclear norm of X B / sqrt(n - 1), which
stays exact when covariances are singular. (`scipy.linalg.sqrtm` of the non-symmetric product, which older code calls,
is slower and returned wrong imaginary parts in some releases.)
Axes: N vectors, D dimensions, R columns of a factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter (sum of squared deviations from the mean) of vectors, float64; they add and subtract."""

    n: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    @staticmethod
    def of(rows_ND: np.ndarray) -> Moments:
        """The moments of (N, D) vectors, N >= 1; raises `BenchError` for a value that is not finite."""
        rows = checked(rows_ND, at_least=1)
        mean = rows.mean(axis=0)
        centred = rows - mean
        return Moments(len(rows), mean, centred.T @ centred)

    @property
    def covariance_DD(self) -> np.ndarray:
        """The unbiased covariance, divided by n - 1 as in pytorch-fid."""
        if self.n < 2:
            raise too_few(self.n)
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
    """What is needed of a reference set, computed once: its mean (D,), a factor B (D, R) with B B^T = S, and tr S.

    ``n`` counts its vectors and ``clips`` its clips; None where a file of statistics doesn't say.
    """

    n: int | None
    mean_D: np.ndarray
    factor_DR: np.ndarray
    trace: float
    clips: int | None = None
    flags: tuple[str, ...] = ()

    @staticmethod
    def of(rows_ND: np.ndarray, clips: int | None = None) -> Reference:
        """The reference made of (N, D) vectors, N >= 2."""
        rows = checked(rows_ND, at_least=2)
        if len(rows) > rows.shape[1]:
            return Reference.from_moments(Moments.of(rows), clips)
        # Fewer vectors than dimensions: factor the vectors themselves, since forming the covariance would put noise
        # of 1e-16 into its null space, of which the square root makes 1e-8. Centred vectors have a rank of N - 1.
        mean = rows.mean(axis=0)
        centred = (rows - mean) / np.sqrt(len(rows) - 1)
        _, sizes, directions = linalg.svd(centred, full_matrices=False)
        factor = (directions.T * sizes)[:, : len(rows) - 1]
        return Reference(len(rows), mean, factor, float(np.square(sizes).sum()), clips)

    @staticmethod
    def from_moments(moments: Moments, clips: int | None = None) -> Reference:
        """The reference known by its moments."""
        factor, trace = _factored(moments.covariance_DD)
        return Reference(moments.n, moments.mean_D, factor, trace, clips)

    @staticmethod
    def from_statistics(statistics: Statistics) -> Reference:
        """The reference known from a file such as those of pytorch-fid."""
        factor, trace = _factored(statistics.covariance_DD)
        return Reference(statistics.n, statistics.mean_D, factor, trace, statistics.clips, statistics.flags)


def frechet_distance(rows_ND: np.ndarray, reference: Reference) -> float:
    """The squared Fréchet distance (what is called FID) of (N, D) vectors, N >= 2, from a reference.

    Near zero it may be negative by rounding, about 1e-12 of the traces; it is not clipped.

    Raises:
        BenchError: for fewer than two vectors, values that are not finite, or another D than the reference's.
    """
    rows = checked(rows_ND, at_least=2)
    check_size(rows.shape[1], reference)
    if len(rows) > rows.shape[1]:
        return distance_of_moments(Moments.of(rows), reference)
    mean = rows.mean(axis=0)
    centred = (rows - mean) / np.sqrt(len(rows) - 1)
    overlap = linalg.svdvals(centred @ reference.factor_DR).sum()
    return assemble(mean, float(np.square(centred).sum()), float(overlap), reference)


def distance_of_moments(moments: Moments, reference: Reference) -> float:
    """The same from moments, for sets with more vectors than dimensions."""
    check_size(len(moments.mean_D), reference)
    covariance = moments.covariance_DD
    inner = reference.factor_DR.T @ covariance @ reference.factor_DR
    return assemble(moments.mean_D, float(np.trace(covariance)), root_trace(inner), reference)


def assemble(mean_D: np.ndarray, trace: float, overlap: float, reference: Reference) -> float:
    """The distance from its parts: the set's mean, the trace of its covariance, and the trace of the root."""
    return float(np.square(mean_D - reference.mean_D).sum() + trace + reference.trace - 2 * overlap)


def _factored(covariance_DD: np.ndarray) -> tuple[np.ndarray, float]:
    """A factor B with B B^T = S, and tr S."""
    values, vectors = linalg.eigh(covariance_DD)
    return vectors * np.sqrt(values.clip(min=0)), float(np.trace(covariance_DD))


def root_trace(inner_RR: np.ndarray, rank: int | None = None) -> float:
    """The sum of the square roots of the eigenvalues, of the ``rank`` largest ones where a rank is known."""
    values = linalg.eigvalsh((inner_RR + inner_RR.T) / 2).clip(min=0)
    return float(np.sqrt(values if rank is None else values[len(values) - rank :]).sum())


def check_size(dimensions: int, reference: Reference) -> None:
    """Raises `BenchError` for another D than the reference's."""
    theirs = len(reference.mean_D)
    if dimensions != theirs:
        raise BenchError(
            f"features of {dimensions} and of {theirs} dimensions can't be compared",
            "they come from different networks",
            "compute both sets with the same metric",
        )


def checked(rows_ND: np.ndarray, at_least: int) -> np.ndarray:
    """The vectors in float64, after the checks that every entry point needs."""
    rows = np.asarray(rows_ND, dtype=np.float64)
    if rows.ndim != 2:
        raise BenchError(f"feature vectors of shape {rows.shape}", "they need axes (N, D)", "pass one row a vector")
    if len(rows) < at_least:
        raise too_few(len(rows))
    if not np.isfinite(rows).all():
        row = int((~np.isfinite(rows).all(axis=1)).argmax())
        raise BenchError(f"feature vector {row} is not finite", "it holds a NaN or an infinity", "look at its clip")
    return rows


def too_few(count: int) -> BenchError:
    """The error for fewer than two clips or vectors."""
    return BenchError(
        f"a Fréchet distance over {count} clip(s) or vector(s)", "a covariance needs at least two", "score more clips"
    )
