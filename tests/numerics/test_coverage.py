"""How often an interval of 95 % holds the truth, where the truth is known: nobody shall trust a wrong one.

Features are Gaussian, and the reference is their distribution itself, so that Fréchet distances are known in closed
form. Axes: N clips, D dimensions, G groups, P prompts, R repetitions of the whole experiment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from w2svd_bench.metrics.frechet import Reference, frechet_distance, leave_out_distances
from w2svd_bench.uncertainty import (
    assign_groups,
    cluster_bootstrap,
    jackknife_interval,
    jackknife_se,
    paired_bootstrap,
    paired_difference,
)

# Of 200 repetitions a right interval holds the truth in 92 to 98 %: that is two standard deviations of a proportion.
REPETITIONS = 200
BAND = (0.92, 0.98)


@dataclass(frozen=True)
class Shape:
    """A Gaussian N(shift, scale I) against N(0, I), both stretched along their axes: variance 1/d along axis d."""

    dimensions: int
    shift: float = 0.3
    scale: float = 1.3

    @property
    def sizes_D(self) -> np.ndarray:
        return 1 / np.arange(1, self.dimensions + 1)

    @property
    def reference(self) -> Reference:
        """The distribution itself: no sample of it."""
        return Reference(10**9, np.zeros(self.dimensions), np.diag(np.sqrt(self.sizes_D)), float(self.sizes_D.sum()))

    @property
    def distance(self) -> float:
        """Of infinitely many clips."""
        return float(self.sizes_D.sum() * (self.shift**2 + (1 - np.sqrt(self.scale)) ** 2))

    def clips(self, normal_ND: np.ndarray) -> np.ndarray:
        """Standard normal numbers as features of the generated side, (N, D)."""
        return (self.shift + normal_ND * np.sqrt(self.scale)) * np.sqrt(self.sizes_D)


@dataclass(frozen=True)
class Trials:
    """Of R repetitions: the value, its standard error, and the interval's two ends."""

    value_R: np.ndarray
    se_R: np.ndarray
    low_R: np.ndarray
    high_R: np.ndarray

    def holds(self, truth: float) -> float:
        """How often the interval does."""
        return float(np.mean((self.low_R <= truth) & (truth <= self.high_R)))

    @property
    def se_too_large_by(self) -> float:
        """The mean standard error over the true one."""
        return float(self.se_R.mean() / self.value_R.std(ddof=1))


def normal_clips(rng: np.random.Generator, prompts: int, per_prompt: int, dimensions: int, shared: float) -> np.ndarray:
    """Standard normal (N, D), of which each prompt's clips share a part: ``shared`` is their correlation."""
    own = rng.normal(size=(prompts * per_prompt, dimensions))
    prompt = np.repeat(rng.normal(size=(prompts, dimensions)), per_prompt, axis=0)
    return np.sqrt(shared) * prompt + np.sqrt(1 - shared) * own


@cache
def jackknives(shape: Shape, prompts: int, per_prompt: int = 1, shared: float = 0.0, by_prompt: bool = True) -> Trials:
    """R distances with their jackknives, in groups of prompts or (what is wrong) of clips that know no prompt."""
    rng = np.random.default_rng([shape.dimensions, prompts, per_prompt])
    keys = np.repeat(np.arange(prompts), per_prompt)
    group = assign_groups(keys.tolist() if by_prompt else rng.permutation(len(keys)).tolist())
    if not by_prompt:
        group = rng.permutation(group)
    reference, found = shape.reference, []
    for _ in range(REPETITIONS):
        clips = shape.clips(normal_clips(rng, prompts, per_prompt, shape.dimensions, shared))
        one = jackknife_interval(
            frechet_distance(clips, reference), leave_out_distances(clips[:, None], group, reference)
        )
        found.append((one.value, one.se, one.low, one.high))
    return Trials(*np.array(found).T)


@pytest.mark.parametrize(("dimensions", "clips"), [(16, 64), (32, 64), (64, 256)])
def test_a_jackknife_covers_the_mean_of_distances_at_its_own_number_of_clips(dimensions: int, clips: int) -> None:
    trials = jackknives(Shape(dimensions), clips)
    assert BAND[0] <= trials.holds(trials.value_R.mean()) <= BAND[1]
    assert trials.se_too_large_by == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("dimensions", "clips", "away"), [(32, 64, 3), (64, 256, 3)])
def test_it_does_not_cover_the_distance_of_infinitely_many(dimensions: int, clips: int, away: float) -> None:
    """The bias of a small sample is many standard errors, so that distances at different N are never compared."""
    shape = Shape(dimensions)
    trials = jackknives(shape, clips)
    assert trials.value_R.mean() - shape.distance > away * trials.se_R.mean()
    assert trials.holds(shape.distance) <= 0.03


def test_where_both_distributions_are_the_same_it_is_too_wide_and_not_too_narrow() -> None:
    """There the distance grows with the square of a deviation, and each deviation counts in every leave-out value."""
    trials = jackknives(Shape(16, shift=0.0, scale=1.0), 128)
    assert 1.2 <= trials.se_too_large_by <= 1.6
    assert trials.holds(trials.value_R.mean()) >= 0.97


@pytest.mark.parametrize(("references", "low", "high"), [(64, 0.6, 0.8), (256, 0.78, 0.92), (1024, 0.88, 0.97)])
def test_it_knows_nothing_of_the_error_of_the_reference(references: int, low: float, high: float) -> None:
    """With as many real clips as generated ones the interval is too short, with four times as many it nearly holds."""
    shape, rng = Shape(16), np.random.default_rng(references)
    group, found = assign_groups(range(256)), []
    for _ in range(REPETITIONS):
        reference = Reference.of(rng.normal(size=(references, 16)) * np.sqrt(shape.sizes_D))
        clips = shape.clips(rng.normal(size=(256, 16)))
        left_out = leave_out_distances(clips[:, None], group, reference)
        one = jackknife_interval(frechet_distance(clips, reference), left_out)
        found.append((one.value, one.se, one.low, one.high))
    trials = Trials(*np.array(found).T)
    assert low <= trials.holds(trials.value_R.mean()) <= high


def test_fewer_clips_than_dimensions() -> None:
    trials = jackknives(Shape(32), 20)
    assert 1 <= trials.se_too_large_by <= 1.45
    assert trials.holds(trials.value_R.mean()) >= 0.94


@pytest.mark.parametrize("clips", [20, 30])
def test_groups_of_unequal_size_make_no_error_of_their_own(clips: int) -> None:
    """Ten groups of two clips and ten of one: a distance of 28 clips is biased less than one of 29, by its N alone."""
    rng, dimensions, found = np.random.default_rng(3), 128, []
    reference = Reference(10**9, np.zeros(dimensions), np.eye(dimensions), float(dimensions))
    group = assign_groups(range(clips))
    sizes = np.bincount(group)
    for _ in range(60):
        rows = 0.2 + rng.normal(size=(clips, dimensions)) * np.linspace(0.5, 1.5, dimensions)
        value, left = frechet_distance(rows, reference), leave_out_distances(rows[:, None], group, reference)
        found.append((value, jackknife_se(left, value, sizes), jackknife_se(left)))
    value_R, se_R, plain_R = np.array(found).T
    assert se_R.mean() / value_R.std(ddof=1) == pytest.approx(1.15, abs=0.25)
    assert plain_R.mean() > (1.6 if clips == 30 else 0.99) * se_R.mean(), "what knows no sizes"


def test_several_clips_a_prompt_are_no_more_prompts() -> None:
    """Four clips of each of 64 prompts that resemble one another: an error that knows no prompt is half as large."""
    shape = Shape(16)
    ours, ignoring = (jackknives(shape, 64, 4, 0.8, by_prompt) for by_prompt in (True, False))
    assert BAND[0] <= ours.holds(ours.value_R.mean()) <= BAND[1]
    assert ignoring.holds(ignoring.value_R.mean()) < 0.82
    assert ignoring.se_R.mean() < 0.65 * ours.se_R.mean()


def test_a_paired_difference_of_distances_covers_and_is_shorter() -> None:
    """Two methods whose clips of a prompt share most of their noise, 100 prompts."""
    rng, ours, theirs = np.random.default_rng(1), Shape(16, 0.35, 1.4), Shape(16, 0.30, 1.3)
    reference, group = ours.reference, assign_groups(range(100))
    found, unpaired = [], []
    for _ in range(REPETITIONS):
        noise = rng.normal(size=(100, 16))
        values, left = [], []
        for shape in (ours, theirs):
            clips = shape.clips(np.sqrt(0.9) * noise + np.sqrt(0.1) * rng.normal(size=noise.shape))
            values.append(frechet_distance(clips, reference))
            left.append(leave_out_distances(clips[:, None], group, reference))
        one = paired_difference(values[0], left[0].tolist(), values[1], left[1].tolist())
        found.append((one.value, one.se, one.low, one.high))
        unpaired.append(np.hypot(jackknife_se(left[0]), jackknife_se(left[1])))
    trials = Trials(*np.array(found).T)
    assert BAND[0] <= trials.holds(trials.value_R.mean()) <= BAND[1]
    assert trials.se_too_large_by == pytest.approx(1, abs=0.15)
    assert trials.se_R.mean() < 0.5 * np.mean(unpaired)


def test_a_paired_difference_knows_the_sizes_of_its_groups() -> None:
    """Of a method that drops modes and one that does not: their biases differ, and so do those by a group's size."""
    rng, dimensions, clips, found = np.random.default_rng(5), 64, 30, []
    reference = Reference(10**9, np.zeros(dimensions), np.eye(dimensions), float(dimensions))
    group = assign_groups(range(clips))  # ten groups of two clips and ten of one
    sizes = np.bincount(group).tolist()
    for _ in range(60):
        noise, values, left = rng.normal(size=(clips, dimensions)), [], []
        for spread in (1.0, 0.5):
            own = rng.normal(size=noise.shape)
            rows = spread * np.sqrt(0.5) * (noise + own)
            values.append(frechet_distance(rows, reference))
            left.append(leave_out_distances(rows[:, None], group, reference))
        sided = [part for side in zip(values, left, strict=True) for part in side]
        found.append([paired_difference(*sided, sizes=known).se for known in (sizes, None)] + [values[0] - values[1]])
    se_R, plain_R, value_R = np.array(found).T
    assert se_R.mean() / value_R.std(ddof=1) == pytest.approx(1.05, abs=0.2)
    assert plain_R.mean() > 1.3 * se_R.mean(), "what knows no sizes"


def test_a_naive_bootstrap_of_a_distance_is_wrong() -> None:
    """Clips that are drawn twice make a set of fewer: every draw is too far away, and no interval of them holds."""
    rng, shape, clips_N, draws, repetitions = np.random.default_rng(2), Shape(32), 64, 40, 20
    mean = jackknives(shape, clips_N).value_R.mean()
    too_far, held = [], 0
    for _ in range(repetitions):
        clips = shape.clips(rng.normal(size=(clips_N, 32)))
        found = [frechet_distance(clips[rng.integers(clips_N, size=clips_N)], shape.reference) for _ in range(draws)]
        too_far.append(np.mean(found) - frechet_distance(clips, shape.reference))
        held += np.quantile(found, 0.025) <= mean <= np.quantile(found, 0.975)
    assert np.mean(too_far) > 2 * jackknives(shape, clips_N).value_R.std()
    assert held / repetitions <= 0.3


Draw = Callable[[np.random.Generator, int], np.ndarray]


def _normal(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=count)


def _skewed(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.exponential(size=count) - 1


@pytest.mark.parametrize(
    ("prompts", "draw", "at_least"),
    [(3, _normal, 0.92), (5, _normal, 0.92), (20, _normal, 0.92), (8, _skewed, 0.87), (20, _skewed, 0.905)],
)
def test_a_cluster_bootstrap_covers_with_few_prompts(prompts: int, draw: Draw, at_least: float) -> None:
    """Four clips a prompt whose scores correlate by 0.7, of mean zero; with skewed scores it takes more prompts."""
    rng, keys = np.random.default_rng(prompts), np.repeat(np.arange(prompts), 4)
    held, percentiles_hold, repetitions = 0, 0, 600
    for i in range(repetitions):
        scores = np.sqrt(0.7) * draw(rng, prompts)[keys] + np.sqrt(0.3) * rng.normal(size=len(keys))
        one = cluster_bootstrap(scores, keys.tolist(), draws=400, seed=i)
        held += one.low <= 0 <= one.high
        drawn = scores.reshape(prompts, 4).mean(1)[rng.integers(prompts, size=(400, prompts))].mean(1)
        percentiles_hold += np.quantile(drawn, 0.025) <= 0 <= np.quantile(drawn, 0.975)
    assert at_least <= held / repetitions <= 0.98
    if prompts <= 8:  # why the interval is not made of percentiles
        assert percentiles_hold / repetitions < 0.89 and percentiles_hold < held


def test_a_bootstrap_that_knows_no_prompt_does_not_cover() -> None:
    rng, keys = np.random.default_rng(3), np.repeat(np.arange(20), 4)
    held, ignoring = 0, 0
    for i in range(REPETITIONS):
        scores = np.sqrt(0.8) * rng.normal(size=20)[keys] + np.sqrt(0.2) * rng.normal(size=len(keys))
        one, other = (cluster_bootstrap(scores, by, draws=300, seed=i) for by in (keys.tolist(), range(len(keys))))
        held += one.low <= 0 <= one.high
        ignoring += other.low <= 0 <= other.high
    assert BAND[0] <= held / REPETITIONS <= BAND[1]
    assert ignoring / REPETITIONS < 0.8


def test_a_paired_bootstrap_covers_and_is_shorter() -> None:
    """A prompt that is hard for one method is hard for the other; clips of one prompt resemble one another besides."""
    rng, keys = np.random.default_rng(4), np.repeat(np.arange(25), 4)
    held, paired, unpaired = 0, [], []
    for i in range(REPETITIONS):
        hard = rng.normal(size=25)[keys]
        a, b = (hard + 0.3 * rng.normal(size=25)[keys] + 0.2 * rng.normal(size=100) for _ in range(2))
        one = paired_bootstrap(a + 0.1, b, keys.tolist(), draws=400, seed=i)
        held += one.low <= 0.1 <= one.high
        paired.append(one.se)
        unpaired.append(np.hypot(*(cluster_bootstrap(x, keys.tolist(), draws=400, seed=i).se for x in (a, b))))
    assert BAND[0] <= held / REPETITIONS <= BAND[1]
    assert np.mean(paired) == pytest.approx(np.sqrt(2 * (0.3**2 + 0.2**2 / 4) / 25), rel=0.1)
    assert np.mean(paired) < 0.5 * np.mean(unpaired)
