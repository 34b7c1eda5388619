"""Error bars against known truths: exact formulas, and coverage of means (of distances: `test_coverage.py`)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from w2svd_bench import uncertainty
from w2svd_bench.errors import BenchError
from w2svd_bench.uncertainty import (
    assign_groups,
    cluster_bootstrap,
    jackknife,
    jackknife_interval,
    jackknife_se,
    numbered,
    over_seeds,
    paired_bootstrap,
    paired_difference,
    student_t,
)


def test_groups_keep_a_prompt_together_and_are_even() -> None:
    keys = [f"prompt {i}" for i in range(100)] * 3
    group = assign_groups(keys, 20)
    assert (group[:100] == group[100:200]).all()
    assert set(np.bincount(group)) == {15}
    assert assign_groups(["a", "b", "a"], 20).tolist() == [0, 1, 0]
    assert assign_groups(["a", "b", "a", "c"], 2).tolist() == [0, 1, 0, 0]
    assert numbered(iter(["a", "b", "a", "c"])) == [0, 1, 0, 2]
    with pytest.raises(BenchError, match="distinct prompt"):
        assign_groups(["a", "a"])


def test_jackknife_of_a_mean_is_the_textbook_error() -> None:
    x = np.random.default_rng(0).normal(size=50)
    group = np.arange(50)  # groups of one: exactly s / sqrt(n)
    estimate = jackknife(lambda use: float(x[use].mean()), group)
    assert estimate.se == pytest.approx(x.std(ddof=1) / np.sqrt(50), rel=1e-12)
    assert estimate.high - estimate.value == pytest.approx(stats.t.ppf(0.975, 49) * estimate.se, rel=1e-4)


@pytest.mark.parametrize("degrees", [1, 2, 5, 19, 99])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_student_t(degrees: int, level: float) -> None:
    assert student_t(degrees, level) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-9)


def test_jackknife_of_unequal_groups_of_a_mean() -> None:
    """In closed form: the pseudo-value of a group is its own mean, and its variance goes with n / m - 1."""
    rng = np.random.default_rng(4)
    sizes = np.array([1, 2, 2, 3, 4, 5])
    group = np.repeat(np.arange(6), sizes)
    x, n = rng.normal(size=17), 17
    left = [x[group != g].mean() for g in range(6)]
    means = np.array([x[group == g].mean() for g in range(6)])
    # theta_J = G mean - sum (1 - m/n) mean_(g) is the mean of all here, since m mean_g sum to n times it.
    expected = np.sqrt(np.mean((means - x.mean()) ** 2 / (n / sizes - 1)))
    assert jackknife_se(left, float(x.mean()), sizes) == pytest.approx(expected, rel=1e-12)
    estimate = jackknife(lambda use: float(x[use].mean()), group)
    assert estimate.se == jackknife_se(left, estimate.value, sizes)


def test_jackknife_of_equal_groups_needs_no_value() -> None:
    """Where all groups are alike the general form is the plain one, and to the last bit what it was."""
    left = np.random.default_rng(5).normal(size=20)
    assert jackknife_se(left, 123.0, [7] * 20) == jackknife_se(left)
    nearly = jackknife_se(left, float(left.mean()), [10**6] * 19 + [10**6 + 1])
    assert nearly == pytest.approx(jackknife_se(left), rel=1e-4)


def test_sizes_are_of_the_groups() -> None:
    for sizes in ([1, 2], [1, 2, 0]):
        with pytest.raises(BenchError, match="groups"):
            jackknife_se([1.0, 2.0, 3.0], 2.0, sizes)


def test_jackknife_interval_covers_the_truth() -> None:
    # The standard deviation, a statistic of the whole set like a Fréchet distance. Two clips a prompt, correlated.
    rng = np.random.default_rng(1)
    group = assign_groups(np.repeat(np.arange(100), 2).tolist())
    hits = 0
    for _ in range(400):
        x = np.repeat(rng.normal(size=100), 2) + rng.normal(size=200)
        estimate = jackknife(lambda use, x=x: float(x[use].std()), group)
        hits += estimate.low <= np.sqrt(2) <= estimate.high
    assert 0.91 <= hits / 400 <= 0.985


def test_errors_that_ignore_prompts_are_too_small() -> None:
    rng = np.random.default_rng(2)
    together, apart = [], []
    keys = np.repeat(np.arange(40), 10)
    for _ in range(40):
        x = np.repeat(rng.normal(size=40), 10) + 0.1 * rng.normal(size=400)
        together.append(cluster_bootstrap(x, keys.tolist(), draws=300).se)
        apart.append(cluster_bootstrap(x, range(400), draws=300).se)
    assert np.mean(together) == pytest.approx(1 / np.sqrt(40), rel=0.1)
    assert np.mean(apart) < 0.5 * np.mean(together)


def test_cluster_bootstrap_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    keys = np.repeat(np.arange(60), 3).tolist()
    hits = 0
    for i in range(300):
        x = 2.0 + np.repeat(rng.exponential(size=60) - 1, 3) + rng.normal(size=180)
        estimate = cluster_bootstrap(x, keys, draws=400, seed=i)
        hits += estimate.low <= 2.0 <= estimate.high
    assert 0.9 <= hits / 300 <= 0.985
    same = [cluster_bootstrap(x, keys, draws=50, seed=7) for _ in range(2)]
    assert same[0] == same[1]


def test_the_bootstrap_of_a_mean_is_the_textbook_error() -> None:
    x = np.random.default_rng(5).normal(size=6)
    estimate = cluster_bootstrap(x, range(6), draws=100_000)
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.se == pytest.approx(x.std(ddof=1) / np.sqrt(6), rel=0.01)
    assert estimate.high - estimate.value == pytest.approx(stats.t.ppf(0.975, 5) * estimate.se)
    assert estimate.value - estimate.low == pytest.approx(estimate.high - estimate.value)


def test_uneven_clusters_weigh_by_their_clips() -> None:
    """The mean is over clips; its error is that of a ratio of sums over clusters."""
    rng = np.random.default_rng(6)
    keys = np.repeat(np.arange(40), rng.integers(1, 9, size=40))
    x = rng.normal(size=40)[keys] + 0.1 * rng.normal(size=len(keys))
    estimate = cluster_bootstrap(x, keys.tolist(), draws=20_000)
    left = [float(x[keys == k].sum() - x.mean() * (keys == k).sum()) for k in range(40)]
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.se == pytest.approx(np.sqrt(40 / 39 * np.square(left).sum()) / len(x), rel=0.03)


def test_a_bootstrap_is_drawn_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys = np.random.default_rng(7).normal(size=90), np.repeat(np.arange(30), 3).tolist()
    whole = cluster_bootstrap(x, keys, draws=101)
    seen: list[int] = []

    class Watched:
        def __init__(self, seed: int) -> None:
            self.rng = np.random.Generator(np.random.PCG64(seed))

        def multinomial(self, *arguments: object, size: int) -> np.ndarray:
            seen.append(size)
            return self.rng.multinomial(*arguments, size=size)  # type: ignore[call-overload]

    monkeypatch.setattr(uncertainty, "_DRAWN_AT_ONCE", 300)
    monkeypatch.setattr(np.random, "default_rng", Watched)
    parts = cluster_bootstrap(x, keys, draws=101)
    assert seen == [10] * 10 + [1]
    assert parts.se == pytest.approx(whole.se, rel=1e-12), "the same draws, in parts"


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.7]])
def test_one_prompt_has_no_error(scores: list[float]) -> None:
    with pytest.raises(BenchError, match="1 cluster"):
        cluster_bootstrap(scores, ["a"] * len(scores))
    with pytest.raises(BenchError, match="at least 2"):
        jackknife_interval(0.5, scores[:1])


def test_bootstraps_refuse_what_is_no_number_and_other_counts() -> None:
    with pytest.raises(BenchError, match="1 not finite"):
        cluster_bootstrap([1.0, float("nan")], "ab")
    with pytest.raises(BenchError, match=r"by 3 key"):
        cluster_bootstrap([1.0, 2.0], "abc")
    with pytest.raises(BenchError, match="2 and 3 scores can't be paired"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0, 3.0], "abc")


def test_paired_difference_covers_the_truth_and_is_tighter() -> None:
    rng = np.random.default_rng(4)
    hits, paired, unpaired = 0, [], []
    for _ in range(400):
        hard = rng.normal(size=200)  # a prompt that is hard for one method is hard for the other
        a, b = hard + 0.3 * rng.normal(size=200) + 0.1, hard + 0.3 * rng.normal(size=200)
        group = assign_groups(range(200))
        leave = [[float(x[group != g].mean()) for g in range(20)] for x in (a, b)]
        estimate = paired_difference(float(a.mean()), leave[0], float(b.mean()), leave[1])
        hits += estimate.low <= 0.1 <= estimate.high
        paired.append(estimate.se)
        unpaired.append(np.hypot(jackknife_se(leave[0]), jackknife_se(leave[1])))
    assert 0.91 <= hits / 400 <= 0.985
    assert np.mean(paired) == pytest.approx(0.3 * np.sqrt(2 / 200), rel=0.1)
    assert np.mean(paired) < 0.5 * np.mean(unpaired)
    with pytest.raises(BenchError, match="paired"):
        paired_difference(1.0, [1.0, 2.0], 1.0, [1.0, 2.0, 3.0])


def test_over_seeds() -> None:
    spread = over_seeds([1.0, 2.0, 3.0])
    assert (spread.mean, spread.sd, spread.n) == (2.0, 1.0, 3)
    assert over_seeds([5.0]).sd is None and over_seeds([5.0]).interval() is None
    exact = stats.t.interval(0.95, 2, loc=2.0, scale=1 / np.sqrt(3))
    assert spread.interval() == pytest.approx(exact)
    with pytest.raises(BenchError, match="not finite"):
        over_seeds([1.0, float("nan")])
