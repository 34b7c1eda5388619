"""The squared maximum mean discrepancy with a cubic kernel (Gretton et al. 2012, eq. 3; KID: Binkowski et al. 2018,
arXiv 1801.01401, sec. 3.2), k(x, y) = (x.y / D + 1)^3, without bias at any number of clips.

With K vectors a clip, h(a, b) is the mean of k over the K x K pairs of two clips' vectors, and

    MMD^2 = mean of h(a, a') over pairs of different generated clips + the same of the reference - 2 mean of h(a, b)

Pairs within a clip are left out, since frames of one clip resemble each other whatever the clips' distribution is.
With K = 1 it is the usual estimator over all clips, of which the subsets that other tools average are a noisier form.
The sums over pairs of groups of clips give the estimate without any group too: the jackknife costs nothing more.
Axes: N clips or vectors, K vectors a clip, D dimensions, G groups of clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.base import CorpusMetric, FeatureNet, Features, Score
from w2svd_bench.metrics.gaussian import Moments
from w2svd_bench.metrics.statistics import Statistics
from w2svd_bench.uncertainty import GROUPS, assign_groups, jackknife_se

BLOCK = 2048  # vectors: a block of the Gram matrix takes 32 MB


def kernel(x_ND: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    """The cubic kernel of all pairs, (N, N'), in the vectors' own precision; leading axes are batches."""
    base = x_ND @ np.swapaxes(y_ND, -1, -2) / x_ND.shape[-1] + 1
    return base * base * base  # several times as fast as a power


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of the kernel over all pairs of vectors of two sets of clips, by the clips' groups: float64 (G, G')."""

    sums_GG: np.ndarray
    pairs_GG: np.ndarray  # how many pairs each is the sum of

    @staticmethod
    def between(x_NKD: np.ndarray, group_x: np.ndarray, y_NKD: np.ndarray, group_y: np.ndarray) -> Sums:
        """Of every clip of one set with every clip of another; group_x (N,), group_y (N',) number groups from 0."""
        (x, label_x), (y, label_y) = _flat(x_NKD, group_x), _flat(y_NKD, group_y)
        one_hot_x, one_hot_y = np.eye(label_x.max() + 1)[label_x], np.eye(label_y.max() + 1)[label_y]
        sums = np.zeros((one_hot_x.shape[1], one_hot_y.shape[1]))
        for rows in _blocks(len(x)):
            for columns in _blocks(len(y)):
                sums += one_hot_x[rows].T @ kernel(x[rows], y[columns]) @ one_hot_y[columns]
        return Sums(sums, np.outer(one_hot_x.sum(axis=0), one_hot_y.sum(axis=0)))

    @staticmethod
    def within(x_NKD: np.ndarray, group_N: np.ndarray) -> Sums:
        """Of every clip of a set with every other one of it."""
        x, label = _flat(x_NKD, group_N)
        one_hot = np.eye(label.max() + 1)[label]
        sums = np.zeros((one_hot.shape[1], one_hot.shape[1]))
        for rows in _blocks(len(x)):
            for columns in _blocks(len(x)):
                if columns.start > rows.start:  # the other half is its mirror
                    part = one_hot[rows].T @ kernel(x[rows], x[columns]) @ one_hot[columns]
                    sums += part + part.T
                elif columns.start == rows.start:
                    sums += one_hot[rows].T @ kernel(x[rows], x[columns]) @ one_hot[columns]
        count, vectors, dimensions = x_NKD.shape
        own = np.zeros(count)
        for clips in _blocks(count):
            block = x.reshape(count, vectors, dimensions)[clips]
            own[clips] = kernel(block, block).sum(axis=(1, 2))
        clips_per_group = np.bincount(group_N)
        sums -= np.diag(np.bincount(group_N, weights=own))
        pairs = (np.outer(clips_per_group, clips_per_group) - np.diag(clips_per_group)) * vectors**2
        return Sums(sums, pairs.astype(np.float64))

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.sums_GG - other.sums_GG, self.pairs_GG - other.pairs_GG)

    @staticmethod
    def of_one_key(
        x_NKD: np.ndarray, group_x: np.ndarray, keys_x: Sequence[str], y_NKD: np.ndarray, keys_y: Sequence[str]
    ) -> Sums:
        """Of every clip of one set with those of the other that have its key, all of these in one group."""
        found: dict[str, list[int]] = {}
        for index, key in enumerate(keys_y):
            found.setdefault(key, []).append(index)
        sums, pairs = np.zeros((int(group_x.max()) + 1, 1)), np.zeros((int(group_x.max()) + 1, 1))
        for clip, group, key in zip(x_NKD.astype(np.float64), group_x, keys_x, strict=True):
            for index in found.get(key, ()):
                sums[group] += kernel(clip, y_NKD[index].astype(np.float64)).sum()
                pairs[group] += clip.shape[0] * y_NKD.shape[1]
        return Sums(sums, pairs)

    def mean(self, without_row: int | None = None, without_column: int | None = None) -> float:
        """The mean over pairs, without a group's clips in either set; raises `BenchError` if no pair is left."""
        rows = np.arange(self.sums_GG.shape[0]) != without_row
        columns = np.arange(self.sums_GG.shape[1]) != without_column
        kept = np.ix_(rows, columns)
        pairs = float(self.pairs_GG[kept].sum())
        if pairs == 0:
            raise BenchError(
                "no two clips are left to compare",
                "the kernel looks at pairs of clips, also when the clips of one group of prompts are left out",
                "score at least three clips of different prompts",
            )
        return float(self.sums_GG[kept].sum()) / pairs


def subset_mmd(
    x_ND: np.ndarray, y_MD: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets, as torch-fidelity prints them, for comparison with it.

    The draws are made in its order from ``RandomState(seed)``, without replacement. The deviation is of subsets that
    overlap: it is no standard error of the mean.

    Raises:
        BenchError: for fewer vectors than a subset has.
    """
    if min(len(x_ND), len(y_MD)) < size or size < 2:
        raise BenchError(
            f"subsets of {size} of {len(x_ND)} and {len(y_MD)} vectors",
            "a subset is drawn without replacement, and takes two vectors at least",
            "ask for smaller subsets, or use the estimator over all pairs",
        )
    rng = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        x = x_ND[rng.choice(len(x_ND), size, replace=False)]
        y = y_MD[rng.choice(len(y_MD), size, replace=False)]
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        pairs = size * (size - 1)
        values[i] = (xx.sum() - np.trace(xx)) / pairs + (yy.sum() - np.trace(yy)) / pairs - 2 * xy.sum() / size**2
    return float(values.mean()), float(values.std())


class KernelMetric(CorpusMetric):
    """A corpus metric whose `compare` is MMD^2 over all pairs of clips; not scaled by 1000, and it may be negative.

    It has no flag for few clips: unlike a Fréchet distance it is not biased by their number, and its standard error
    says what they can tell.
    """

    direction = "down"
    groups = GROUPS

    def __init__(self, net: FeatureNet) -> None:
        super().__init__(net)
        self._known: list[tuple[Features, float]] = []  # real clips, and the teacher's

    @property
    def distance(self) -> str:
        return (
            "unbiased MMD^2 over all pairs of different clips, kernel (x.y/D+1)^3, float64; "
            f"se: jackknife over {self.groups} groups of prompts"
        )

    def compare(self, generated: Features, reference: Features | Moments | Statistics) -> Score:
        """MMD^2 and its jackknife over groups of keys; needs two clips in each set.

        Raises:
            BenchError: for fewer than two clips, sets of different dimensions, or a reference of which only mean and
                covariance are known: they don't tell the kernel's mean.
        """
        if not isinstance(reference, Features):
            raise BenchError(
                f"{self.name} can't be had from a mean and a covariance",
                "its kernel looks at pairs of clips, so that it needs the features of each reference clip",
                "score against a folder of reference clips; a file of statistics is enough for Fréchet distances",
            )
        x, y = generated.values_NKD, reference.values_NKD
        if min(len(x), len(y)) < 2:
            raise BenchError(
                f"{self.name} over {min(len(x), len(y))} clip(s)", "it looks at pairs of clips", "score more clips"
            )
        if x.shape[2] != y.shape[2]:
            raise BenchError(
                f"features of {x.shape[2]} and of {y.shape[2]} dimensions can't be compared",
                "they come from different networks",
                "compute both sets with the same metric",
            )
        reference_mean = next((mean for known, mean in self._known if known is reference), None)
        if reference_mean is None:  # two references serve all cells of a grid
            reference_mean = Sums.within(y, np.zeros(len(y), dtype=int)).mean()
            self._known = [*self._known[-1:], (reference, reference_mean)]
        group = assign_groups(generated.keys if generated.keys is not None else range(len(x)), self.groups)
        inside = Sums.within(x, group)
        across = Sums.between(x, group, y, np.zeros(len(y), dtype=int))
        if generated.keys is not None and reference.keys is not None:
            # Clips of one prompt resemble each other whatever made them, and there is no such pair within a set.
            across -= Sums.of_one_key(x, group, generated.keys, y, reference.keys)

        def without(g: int | None) -> float:
            return inside.mean(g, g) + reference_mean - 2 * across.mean(without_row=g)

        leave_out = tuple(without(g) for g in range(int(group.max()) + 1))
        value, sizes = without(None), tuple(np.bincount(group).tolist())
        return Score(value, jackknife_se(leave_out, value, sizes), len(x), leave_out, self.net.flags, groups=sizes)


def _flat(values_NKD: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All vectors in float64, and the group of each."""
    count, vectors, dimensions = values_NKD.shape
    rows = np.asarray(values_NKD, dtype=np.float64).reshape(count * vectors, dimensions)
    return rows, np.repeat(group_N, vectors)


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
