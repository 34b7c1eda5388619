"""Error bars against known truths: exact formulas, and coverage in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from w2svd_bench.errors import BenchError
from w2svd_bench.uncertainty import (
    assign_groups,
    cluster_bootstrap,
    jackknife,
    jackknife_se,
    over_seeds,
    paired_difference,
    student_t,
)


def test_groups_keep_a_prompt_together_and_are_even() -> None:
    keys = [f"prompt {i}" for i in range(100)] * 3
    group = assign_groups(keys, 20)
    assert (group[:100] == group[100:200]).all()
    assert set(np.bincount(group)) == {15}
    assert assign_groups(["a", "b", "a"], 20).tolist() == [0, 1, 0]
    with pytest.raises(BenchError, match="distinct prompt"):
        assign_groups(["a", "a"])


def test_jackknife_of_a_mean_is_the_textbook_error() -> None:
    x = np.random.default_rng(0).normal(size=50)
    group = np.arange(50)  # groups of one: exactly s / sqrt(n)
    estimate = jackknife(lambda use: float(x[use].mean()), group)
    assert estimate.se == pytest.approx(x.std(ddof=1) / np.sqrt(50), rel=1e-12)
    assert estimate.high - estimate.value == pytest.approx(stats.t.ppf(0.975, 49) * estimate.se, rel=1e-4)


@pytest.mark.parametrize("degrees", [5, 9, 19, 99])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_student_t(degrees: int, level: float) -> None:
    exact = stats.t.ppf((1 + level) / 2, degrees)
    assert student_t(degrees, level) == pytest.approx(exact, rel=4e-3 if degrees == 5 else 1e-3)


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
    assert 0.88 <= hits / 300 <= 0.985
    same = [cluster_bootstrap(x, keys, draws=50, seed=7) for _ in range(2)]
    assert same[0] == same[1]


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
    assert over_seeds([5.0]).sd is None
    with pytest.raises(BenchError, match="not finite"):
        over_seeds([1.0, float("nan")])
