"""The Fréchet distance against closed forms, brute force and pytorch-fid; its flags and its extrapolation."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.base import FeatureNet, Features
from w2svd_bench.metrics.frechet import (
    FrechetMetric,
    Moments,
    Reference,
    distance_of_moments,
    extrapolated,
    frechet_distance,
    leave_out_distances,
)
from w2svd_bench.metrics.statistics import UNSTATED, Statistics
from w2svd_bench.uncertainty import assign_groups, jackknife_se


class Given(FeatureNet):
    """Stands for whatever made the features that are given."""

    id, weights_sha256, flags = "given", "0" * 64, ("of no net",)

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Plain(FrechetMetric):
    """The distance of features that are given, without a network."""

    name, version = "plain", 1

    def __init__(self) -> None:
        super().__init__(Given())


def cloud(seed: int, n: int, d: int, spread: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Correlated vectors (n, d)."""
    mix = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return (np.random.default_rng(seed).normal(size=(n, d)) @ mix) * spread + shift


def test_closed_form_for_diagonal_covariances() -> None:
    # Gaussians with commuting covariances: d^2 = |m1 - m2|^2 + sum (s1 - s2)^2.
    s1, s2 = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 2.0, 0.1, 1.0])
    m1, m2 = np.zeros(4), np.array([0.5, -1.0, 0.0, 2.0])
    ours = Moments(101, m1, np.diag(s1**2) * 100)
    reference = Reference.from_moments(Moments(51, m2, np.diag(s2**2) * 50))
    truth = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert distance_of_moments(ours, reference) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(500, 16), (20, 64), (64, 64), (65, 64)])
def test_a_set_has_no_distance_from_itself(n: int, d: int) -> None:
    x = cloud(0, n, d)
    assert abs(frechet_distance(x, Reference.of(x))) < 1e-9 * np.trace(np.cov(x, rowvar=False))


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 16), (30, 200, 64), (300, 30, 64), (20, 30, 64)])
def test_symmetric(n: int, m: int, d: int) -> None:
    x, y = cloud(0, n, d), cloud(1, m, d, spread=1.5, shift=0.2)
    assert frechet_distance(x, Reference.of(y)) == pytest.approx(frechet_distance(y, Reference.of(x)), rel=1e-9)


def test_grows_with_a_shift_by_exactly_its_square() -> None:
    x, y = cloud(0, 400, 8), cloud(1, 300, 8)
    base = frechet_distance(x, Reference.of(x))
    for shift in (0.1, 0.5, 2.0):
        assert frechet_distance(x + shift, Reference.of(x)) - base == pytest.approx(8 * shift**2, rel=1e-9)
    values = [frechet_distance(x + shift, Reference.of(y)) for shift in (1.0, 2.0, 4.0)]
    assert values == sorted(values)


@pytest.mark.parametrize(("n", "m", "d", "rel"), [(500, 300, 32, 1e-9), (40, 60, 48, 1e-5), (40, 300, 64, 1e-5)])
def test_equals_pytorch_fid(n: int, m: int, d: int, rel: float) -> None:
    # Its sqrtm loses digits where a covariance is singular, so those cases are held to less.
    peer = import_module("pytorch_fid.fid_score")
    x, y = cloud(2, n, d, spread=1.3), cloud(3, m, d, shift=0.1)
    stats = [(a.mean(0), np.cov(a, rowvar=False)) for a in (x, y)]
    try:
        theirs = peer.calculate_frechet_distance(*stats[0], *stats[1])
    except TypeError as error:  # SciPy 1.18 took away the argument `disp`, which pytorch-fid 0.3 passes
        pytest.skip(f"pytorch-fid does not run with this SciPy: {error}")
    assert frechet_distance(x, Reference.of(y)) == pytest.approx(theirs, rel=rel)


def test_too_few_vectors_for_the_dimensions_is_still_exact() -> None:
    # In a random rotation of a space padded with zeros, the distance is that of the small space.
    x, y = cloud(4, 30, 6), cloud(5, 40, 6, spread=2.0)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(80, 80)))[0]
    wide = [np.pad(a, ((0, 0), (0, 74))) @ rotation for a in (x, y)]
    small = frechet_distance(x, Reference.of(y))
    assert frechet_distance(wide[0], Reference.of(wide[1])) == pytest.approx(small, rel=1e-9)


def test_moments_do_not_depend_on_batches_or_their_order() -> None:
    x = cloud(6, 333, 12, shift=50.0)
    whole = Moments.of(x)
    parts = [Moments.of(part) for part in np.split(x, [10, 11, 200])]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        merged = parts[order[0]]
        for i in order[1:]:
            merged = merged.merge(parts[i])
        assert merged.n == 333
        np.testing.assert_allclose(merged.mean_D, whole.mean_D, rtol=1e-13)
        np.testing.assert_allclose(merged.covariance_DD, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)
        rest = Moments.of(np.concatenate([np.split(x, [10, 11, 200])[i] for i in order[:-1]]))
        np.testing.assert_allclose(merged.without(parts[order[-1]]).scatter_DD, rest.scatter_DD, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("n", "k", "d"), [(60, 3, 8), (30, 1, 40), (22, 2, 40)])
def test_leave_out_equals_brute_force(n: int, k: int, d: int) -> None:
    values = cloud(7, n * k, d).reshape(n, k, d).astype(np.float32)
    reference = Reference.of(cloud(8, 200, d))
    group = assign_groups([f"prompt {i // 2}" for i in range(n)], 10)
    brute = [frechet_distance(values[group != g].reshape(-1, d), reference) for g in range(10)]
    np.testing.assert_allclose(leave_out_distances(values, group, reference), brute, rtol=1e-9)


def test_compare_reports_value_error_and_leave_outs() -> None:
    x = cloud(9, 200, 6).reshape(100, 2, 6).astype(np.float32)
    y = Features(cloud(10, 400, 6).reshape(200, 2, 6).astype(np.float32))
    metric = Plain()
    score = metric.compare(Features(x), y)
    assert score.value == frechet_distance(x.reshape(-1, 6), Reference.of(y.values_NKD.reshape(-1, 6)))
    assert (score.n, len(score.leave_out)) == (100, 20)
    assert score.se == jackknife_se(score.leave_out, score.value, score.groups)
    again = metric.compare(Features(x[::-1]), y)  # the kept reference, and the clips the other way round
    assert again.value == pytest.approx(score.value, rel=1e-10)
    other = metric.compare(Features(x), Features(x))  # another reference is not mistaken for the kept one
    assert abs(other.value) < 1e-9


def test_jackknife_error_matches_the_spread_over_fresh_sets() -> None:
    reference = Features(cloud(11, 4000, 6)[:, None])
    scores = [Plain().compare(Features(cloud(100 + i, 200, 6, spread=1.2)[:, None]), reference) for i in range(60)]
    truth = np.std([score.value for score in scores], ddof=1)
    assert 0.8 < np.mean([score.se for score in scores]) / truth < 1.35


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((1, 1, 3)), "at least two"),
        (np.full((5, 1, 3), np.nan), "not finite"),
        (np.ones((5, 1, 4)), "dimensions"),
        (np.ones((5, 3)), "three axes"),
    ],
)
def test_bad_features_are_refused(x: np.ndarray, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        Plain().compare(Features(x), Features(cloud(0, 20, 3)[:, None]))


def test_a_broken_clip_is_named() -> None:
    values = np.zeros((6, 2, 3))
    values[4, 1, 0] = np.inf
    with pytest.raises(BenchError, match="clip 4"):
        Features(values)


@pytest.mark.parametrize(
    ("n", "k", "m", "d", "flags"),
    [
        (2048, 1, 2048, 4, ()),
        (2047, 1, 2048, 4, ("n<2048",)),
        (2048, 1, 2047, 4, ("n<2048",)),
        (40, 60, 2048, 4, ("n<2048",)),  # clips count, not frames
        (30, 1, 2048, 30, ("n<2048", "N<D")),
        (31, 1, 2048, 30, ("n<2048",)),
        (2048, 1, 30, 30, ("n<2048", "N<D")),
        (15, 2, 2048, 30, ("n<2048", "N<D")),
    ],
)
def test_small_sets_are_flagged(n: int, k: int, m: int, d: int, flags: tuple[str, ...]) -> None:
    x, y = cloud(0, n * k, d).reshape(n, k, d), cloud(1, m, d)[:, None]
    assert Plain().compare(Features(x), Features(y)).flags == ("of no net", *flags)


def test_a_reference_may_be_known_by_its_moments() -> None:
    x, y = Features(cloud(12, 300, 6)[:, None]), cloud(13, 2500, 6)
    moments = Moments.of(y)
    whole = Plain().compare(x, Features(y[:, None]))
    by_moments = Plain().compare(x, moments)
    assert by_moments == whole
    assert Plain().compare(x, Moments.of(y[:100])).flags[-1] == "n<2048"  # at most 100 clips have 100 vectors
    # Moments of 2500 frames may be those of few clips or of many: nothing is claimed.
    many = Features(cloud(12, 2048, 6)[:, None])
    assert Plain().compare(many, moments).flags == ("of no net",)
    assert Plain().compare(many, Statistics(moments.mean_D, moments.covariance_DD)).flags == ("of no net", UNSTATED)
    stated = Plain().statistics(Features(y.reshape(500, 5, 6)))
    assert (stated.n, stated.clips, stated.net_id) == (2500, 500, "given")
    score = Plain().compare(many, stated)
    assert score.value == pytest.approx(Plain().compare(many, Features(y[:, None])).value, rel=1e-9)
    assert score.flags == ("of no net", "n<2048")


def test_statistics_of_another_net_are_refused() -> None:
    y = cloud(13, 50, 6)
    for origin in ({"net_id": "another"}, {"net_id": "given", "weights_sha256": "1" * 64}):
        with pytest.raises(BenchError, match="another"):
            Plain().compare(Features(y[:, None]), Statistics(y.mean(0), np.cov(y, rowvar=False), **origin))


def relu_cloud(seed: int, n: int, d: int, spread: float = 1.0) -> np.ndarray:
    """Non-negative vectors, as those behind an activation are."""
    return np.maximum(cloud(seed, n, d, spread), 0)


def test_the_extrapolation_takes_the_bias_of_few_clips_away() -> None:
    d, n = 64, 64 * 8
    reference = Reference.of(relu_cloud(14, 100_000, d))
    truth = frechet_distance(relu_cloud(15, 100_000, d, 1.05), reference)
    naive, ends = [], []
    for seed in range(20):
        x = relu_cloud(200 + seed, n, d, 1.05)
        naive.append(frechet_distance(x, reference))
        ends.append(extrapolated(x[:, None], reference))
    found = np.array([end for end in ends if end is not None])
    bias = np.mean(naive) - truth
    assert len(found) >= 15
    assert bias > 5 * np.std(naive) / np.sqrt(20)  # there is something to take away
    assert abs(found.mean() - truth) < 0.1 * bias
    seed = next(i for i, end in enumerate(ends) if end is not None)
    x = relu_cloud(200 + seed, n, d, 1.05)
    score = Plain().compare(Features(x[:, None]), Features(relu_cloud(14, 100_000, d)[:, None]))
    assert score.infinity == pytest.approx(ends[seed], rel=1e-9)


def test_the_extrapolation_does_not_depend_on_chance() -> None:
    x, reference = relu_cloud(16, 400, 24)[:, None], Reference.of(relu_cloud(17, 3000, 24))
    keys = [f"prompt {i // 4}" for i in range(400)]
    assert extrapolated(x, reference, keys) is not None
    assert extrapolated(x, reference, keys) == extrapolated(x.copy(), reference, list(keys))


@pytest.mark.parametrize(
    ("n", "k", "d", "spread", "keys", "why"),
    [
        (255, 1, 64, 1.0, None, "fewer than four times as many vectors as dimensions"),
        (400, 1, 24, 1.0, 7, "fewer than 8 prompts"),
        (400, 1, 4, 3.0, None, "no line: the distance is large and has hardly a bias to take away"),
        (50, 8, 64, 1.0, None, "a bent line: the frames of a clip are all the same, and clips fewer than dimensions"),
    ],
)
def test_no_extrapolation_where_it_would_mislead(
    n: int, k: int, d: int, spread: float, keys: int | None, why: str
) -> None:
    x, reference = relu_cloud(18, n, d, spread)[:, None].repeat(k, axis=1), relu_cloud(19, 4000, d)
    named = None if keys is None else [str(i % keys) for i in range(n)]
    assert extrapolated(x, Reference.of(reference), named) is None, why
    assert Plain().compare(Features(x, named), Features(reference[:, None])).infinity is None
