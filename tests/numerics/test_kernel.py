"""The kernel distance against sums written out pair by pair, and against what statistics demands of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import kernel
from w2svd_bench.metrics.base import FeatureNet, Features
from w2svd_bench.metrics.frechet import Moments
from w2svd_bench.metrics.kernel import KernelMetric, subset_mmd
from w2svd_bench.metrics.statistics import Statistics
from w2svd_bench.uncertainty import assign_groups, jackknife_se


class Given(FeatureNet):
    """Stands for whatever made the features that are given."""

    id, weights_sha256, flags = "given", "0" * 64, ("of no net",)

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Plain(KernelMetric):
    """The distance of features that are given, without a network."""

    name, version = "plain", 1

    def __init__(self) -> None:
        super().__init__(Given())


def clips(seed: int, n: int, k: int = 1, d: int = 5, shift: float = 0.0) -> np.ndarray:
    """Features (n, k, d) float32; the vectors of a clip resemble each other."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 1, d)) + 0.3 * rng.normal(size=(n, k, d)) + shift).astype(np.float32)


def pair_by_pair(x_NKD: np.ndarray, y_NKD: np.ndarray) -> float:
    """The definition, with loops; leaves out pairs within a clip."""

    def h(a_KD: np.ndarray, b_KD: np.ndarray) -> float:
        pairs = itertools.product(a_KD.astype(float), b_KD.astype(float))
        return float(np.mean([(a @ b / len(a) + 1) ** 3 for a, b in pairs]))

    xx = np.mean([h(a, b) for a, b in itertools.permutations(x_NKD, 2)])
    yy = np.mean([h(a, b) for a, b in itertools.permutations(y_NKD, 2)])
    xy = np.mean([h(a, b) for a, b in itertools.product(x_NKD, y_NKD)])
    return float(xx + yy - 2 * xy)


@pytest.mark.parametrize(("n", "m", "k"), [(12, 9, 1), (9, 12, 3)])
@pytest.mark.parametrize("block", [4, 7, 2048])
def test_equals_the_definition(n: int, m: int, k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK", block)
    x, y = clips(0, n, k), clips(1, m, k, shift=0.2)
    keys = [f"prompt {i // 2}" for i in range(n)]
    score = Plain().compare(Features(x, keys), Features(y))
    assert score.value == pytest.approx(pair_by_pair(x, y), rel=1e-11)
    group = assign_groups(keys, Plain.groups)
    brute = [pair_by_pair(x[group != g], y) for g in range(group.max() + 1)]
    np.testing.assert_allclose(score.leave_out, brute, rtol=1e-10)
    assert score.se == jackknife_se(score.leave_out, score.value, score.groups)
    assert (score.n, score.flags, score.infinity) == (n, ("of no net",), None)


def test_the_kept_reference_is_not_mistaken_for_another() -> None:
    metric, x = Plain(), Features(clips(0, 20))
    first, second = Features(clips(1, 20)), Features(clips(2, 30, shift=1.0))
    scores = [metric.compare(x, reference).value for reference in (first, first, second)]
    assert scores[0] == scores[1] == Plain().compare(x, first).value
    assert scores[2] == Plain().compare(x, second).value


@pytest.mark.parametrize("k", [1, 4])
def test_has_no_bias_and_an_honest_error(k: int) -> None:
    reference = Features(clips(3, 3000, k))
    metric = Plain()
    scores = [metric.compare(Features(clips(100 + i, 60, k)), reference) for i in range(60)]
    values = [score.value for score in scores]
    spread = float(np.std(values, ddof=1))
    assert min(values) < 0  # as half of an unbiased estimator's values of a distance of zero must be
    assert abs(np.mean(values)) < 3 * spread / np.sqrt(60)
    # With 60 clips the jackknife of this degenerate statistic errs to the large side; it must not err to the small one.
    assert 0.8 < np.mean([score.se for score in scores]) / spread < 2


def test_has_no_bias_between_sets_of_the_same_prompts() -> None:
    """What clips of one prompt have in common stands between the sets and not within them: such pairs are left out."""
    rng, n = np.random.default_rng(0), 64
    prompts, values = [str(k) for k in range(n)], []
    for _ in range(40):
        shared = rng.normal(size=(n, 1, 16))
        x, y = (0.95 * shared + 0.3 * rng.normal(size=(n, 1, 16)) for _ in range(2))
        sets = (Features(one.astype(np.float32), prompts) for one in (x, y))
        values.append(Plain().compare(*sets).value)
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_grows_with_the_shift() -> None:
    reference = Features(clips(4, 200))
    values = [Plain().compare(Features(clips(5, 200, shift=shift)), reference).value for shift in (0.0, 0.3, 0.6, 1.2)]
    assert values == sorted(values)


def test_subsets_of_everything_are_the_whole() -> None:
    x, y = clips(6, 40), clips(7, 40, shift=0.3)
    mean, deviation = subset_mmd(x[:, 0].astype(float), y[:, 0].astype(float), subsets=3, size=40)
    assert mean == pytest.approx(Plain().compare(Features(x), Features(y)).value, rel=1e-10)
    assert deviation < 1e-12


def test_subsets_larger_than_the_set_are_refused() -> None:
    with pytest.raises(BenchError, match="without replacement"):
        subset_mmd(clips(6, 40)[:, 0], clips(7, 41)[:, 0], size=41)


@pytest.mark.parametrize("reference", [Moments.of(clips(0, 9)[:, 0]), Statistics(np.zeros(5), np.eye(5))])
def test_statistics_are_not_enough(reference: Moments | Statistics) -> None:
    with pytest.raises(BenchError, match="pairs of clips"):
        Plain().compare(Features(clips(0, 20)), reference)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (clips(0, 1), clips(1, 5), "over 1 clip"),
        (clips(0, 5), clips(1, 1), "over 1 clip"),
        (clips(0, 2), clips(1, 5), "no two clips are left"),
        (clips(0, 5), clips(1, 5, d=6), "dimensions"),
    ],
)
def test_sets_that_tell_nothing_are_refused(x: np.ndarray, y: np.ndarray, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        Plain().compare(Features(x), Features(y))
