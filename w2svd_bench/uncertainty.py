"""How sure a number is: the jackknife for metrics of a set, the bootstrap for means of clips, the spread over seeds.

Metrics of a set (Fréchet distances) get a delete-a-group jackknife (Tukey 1958; Kott 2001 for groups). A naive
bootstrap is wrong for them: drawing clips twice shrinks the rank of the covariance, which biases the distance upwards
and made its spread four times too wide when it was measured. Clips that share a prompt stay together everywhere.
Axes: N clips, G groups of the jackknife.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from w2svd_bench.errors import BenchError

GROUPS = 20


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error, and a confidence interval."""

    value: float
    se: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over n runs; one run has no standard deviation."""

    mean: float
    sd: float | None
    n: int


def assign_groups(keys: Iterable[Hashable], groups: int = GROUPS) -> np.ndarray:
    """Deals clips into groups 0..G-1 so that equal keys share a group; the j-th new key goes to group j mod G.

    Args:
        keys: one a clip (its prompt, say); the outcome depends on them and their order alone, so that two sets of clips
            with the same keys get the same groups, which makes their jackknives paired.
        groups: G; fewer distinct keys than that make one group each.

    Raises:
        BenchError: with fewer than two distinct keys.
    """
    first_seen: dict[Hashable, int] = {}
    order = [first_seen.setdefault(key, len(first_seen)) for key in keys]
    if len(first_seen) < 2 or groups < 2:
        raise BenchError(
            f"{len(first_seen)} distinct prompt(s) in {min(len(first_seen), groups)} group(s)",
            "an uncertainty needs at least two groups of clips",
            "score clips of more than one prompt",
        )
    return np.array(order) % groups


def jackknife_se(leave_out_G: Sequence[float] | np.ndarray) -> float:
    """The standard error from the values without each group: sqrt((G - 1) / G * sum (d_g - mean d)^2)."""
    values = _finite(leave_out_G, "leave-out values", at_least=2)
    return float(np.sqrt((len(values) - 1) * np.square(values - values.mean()).mean()))


def jackknife(statistic: Callable[[np.ndarray], float], group_N: np.ndarray, level: float = 0.95) -> Estimate:
    """The delete-a-group jackknife of any statistic of clips.

    Args:
        statistic: from a boolean mask (N,) of the clips to use, to a number.
        group_N: the group of each clip, 0..G-1.
        level: of the interval, value +- t(G - 1) * se.
    """
    groups = int(group_N.max()) + 1
    value = statistic(np.ones(len(group_N), dtype=bool))
    se = jackknife_se([statistic(group_N != g) for g in range(groups)])
    return _with_interval(value, se, groups, level)


def jackknife_interval(value: float, leave_out_G: Sequence[float] | np.ndarray, level: float = 0.95) -> Estimate:
    """The estimate for a value whose leave-out values are already known."""
    return _with_interval(value, jackknife_se(leave_out_G), len(leave_out_G), level)


def paired_difference(
    a: float, leave_out_a: Sequence[float], b: float, leave_out_b: Sequence[float], level: float = 0.95
) -> Estimate:
    """``a - b`` for two metrics of clips of the same prompts in the same groups.

    The same groups are left out on both sides, so that what is hard about a prompt cancels; this is why the error of a
    difference can be far smaller than the errors of its two sides.
    """
    if len(leave_out_a) != len(leave_out_b):
        raise BenchError(
            f"{len(leave_out_a)} and {len(leave_out_b)} leave-out values can't be paired",
            "the two sets were not dealt into the same groups",
            "score both on the same prompts, in the same order",
        )
    return jackknife_interval(a - b, np.asarray(leave_out_a) - np.asarray(leave_out_b), level)


def cluster_bootstrap(
    scores_N: Sequence[float] | np.ndarray,
    keys: Iterable[Hashable],
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean of per-clip scores, with a percentile bootstrap over clusters of equal keys (Davison and Hinkley 1997).

    Raises:
        BenchError: with fewer than two clusters, or a score that is not finite.
    """
    scores = _finite(scores_N, "scores", at_least=2)
    codes: dict[Hashable, int] = {}
    cluster = np.array([codes.setdefault(key, len(codes)) for key in keys])
    if len(cluster) != len(scores) or len(codes) < 2:
        raise BenchError(
            f"{len(scores)} scores in {len(codes)} cluster(s) by {len(cluster)} keys",
            "a bootstrap draws clusters: it needs one key a score and two clusters",
            "score clips of more than one prompt",
        )
    sums, counts = np.bincount(cluster, weights=scores), np.bincount(cluster).astype(float)
    rng = np.random.default_rng(seed)
    times_drawn = rng.multinomial(len(codes), np.full(len(codes), 1 / len(codes)), size=draws).astype(float)
    means = (times_drawn @ sums) / (times_drawn @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(scores.mean()), float(means.std(ddof=1)), float(low), float(high))


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over training seeds: a different thing than the error over clips, never mixed."""
    array = _finite(values, "values", at_least=1)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def student_t(degrees: int, level: float = 0.95) -> float:
    """The two-sided quantile of Student's t (Abramowitz and Stegun 26.7.5); within 0.1 % from 5 degrees on."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def _with_interval(value: float, se: float, groups: int, level: float) -> Estimate:
    half = student_t(groups - 1, level) * se
    return Estimate(value, se, value - half, value + half)


def _finite(values: Sequence[float] | np.ndarray, what: str, at_least: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < at_least or not np.isfinite(array).all():
        raise BenchError(
            f"{what} of shape {array.shape}, {int((~np.isfinite(array)).sum())} not finite",
            f"at least {at_least} finite number(s) are needed",
            "leave failed runs and clips out of the comparison, and say so",
        )
    return array
