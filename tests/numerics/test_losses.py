"""The losses against closed forms: signs, values, gradients and limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from w2svd_bench.backbones.adapters import blend
from w2svd_bench.flow import add_noise, velocity_to_data
from w2svd_bench.losses import (
    deceive_loss,
    discriminator_loss,
    distribution_matching,
    flow_matching,
    per_sample,
    pseudo_huber,
    regression,
)
from w2svd_bench.types import Cond

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient_on(x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


# --- flow matching -------------------------------------------------------------------------------------------------


def test_flow_matching_is_a_mean_for_each_sample_and_zero_for_the_true_velocity() -> None:
    x0, noise = randn(2, 3, 4, 2, 2, 2).unbind(0)
    assert torch.equal(flow_matching(noise - x0, x0, noise), torch.zeros(3))
    assert torch.allclose(flow_matching(noise - x0 + 0.5, x0, noise), torch.full((3,), 0.25))
    assert (flow_matching(x0 - noise, x0, noise) > 1).all()


def test_flow_matching_is_least_at_the_ideal_velocity(gaussian: Any, no_cond: Callable[[int], Cond]) -> None:
    data, count = gaussian(MEAN, COV), 4000
    x0 = data.sample(count, 0)
    noise = randn(count, 2, 1, 1, 1, seed=1, dtype=torch.float64)
    t = torch.rand(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ideal = data(add_noise(x0, noise, t), t, no_cond(count))
    best = flow_matching(ideal, x0, noise).mean()
    for other in (-ideal, 0.9 * ideal, 1.1 * ideal, ideal + 0.2):
        assert flow_matching(other, x0, noise).mean() > best
    # The best guess leaves an error that nothing of the point explains.
    assert abs(((noise - x0 - ideal) * ideal).mean()) < 0.05


def test_losses_subtract_in_float32() -> None:
    x0, noise, other = (randn(3, 4, 2, 2, 2, seed=s).to(torch.bfloat16) for s in range(3))
    wide = [x.float() for x in (x0, noise, other)]
    assert torch.equal(flow_matching(other, x0, noise), flow_matching(wide[2], wide[0], wide[1]))
    t = torch.full((3,), 0.5)
    assert torch.equal(regression(other, x0, t), regression(wide[2], wide[0], t))
    narrow, full = distribution_matching(other, x0, noise), distribution_matching(wide[2], wide[0], wide[1])
    assert torch.equal(narrow.total, full.total)
    assert narrow.logs["dm_distance"] == full.logs["dm_distance"]


# --- distribution matching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.05, 0.5, 0.95])
def test_the_difference_of_denoised_samples_is_that_of_scores(
    gaussian: Any, no_cond: Callable[[int], Cond], level: float
) -> None:
    """``x0_fake - x0_real = t^2 / (1 - t) (score_fake - score_real) = t (v_real - v_fake)`` (DMD, eq. 4)."""
    real = gaussian(MEAN, COV)
    fake = gaussian(MEAN + 0.7, 1.5 * COV + 0.2 * torch.eye(2, dtype=torch.float64))
    x_t, t = randn(6, 2, 1, 1, 1, dtype=torch.float64), torch.full((6,), level, dtype=torch.float64)
    v_fake, v_real = (p(x_t, t, no_cond(6)) for p in (fake, real))
    difference = velocity_to_data(x_t, v_fake, t) - velocity_to_data(x_t, v_real, t)
    scores = fake.score(x_t.flatten(1), t) - real.score(x_t.flatten(1), t)
    assert torch.allclose(difference.flatten(1), level**2 / (1 - level) * scores, rtol=1e-9, atol=1e-12)
    assert torch.allclose(difference, level * (v_real - v_fake), rtol=1e-9, atol=1e-12)
    assert difference.abs().max() > 1e-3


def test_equal_scores_give_exactly_no_gradient() -> None:
    x, x0 = randn(2, 3, 4, 2, 2, 2)
    loss = distribution_matching(x, x0, x0)
    assert loss.total == 0
    assert loss.logs["dm_raw"] == 0
    assert torch.equal(gradient_on(x, lambda leaf: distribution_matching(leaf, x0, x0).total), torch.zeros_like(x))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_gradient_on_x_is_the_normalised_difference_over_numel(normalise: bool) -> None:
    x, fake, real = randn(3, 3, 4, 2, 2, 2)
    gradient = gradient_on(x, lambda leaf: distribution_matching(leaf, fake, real, normalise).total)
    distance = (x - real).abs().flatten(1).mean(1).view(-1, 1, 1, 1, 1) if normalise else 1.0
    assert torch.allclose(gradient * x.numel(), (fake - real) / distance, atol=1e-5)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_a_fake_with_too_large_a_mean_pushes_samples_down(
    gaussian: Any, no_cond: Callable[[int], Cond], level: float
) -> None:
    """Two Gaussians of variance s^2, ``shift`` apart: x0_fake - x0_real = t^2 shift / ((1 - t)^2 s^2 + t^2)."""
    variance, shift = 0.5, 0.8
    real = gaussian(MEAN, variance * torch.eye(2, dtype=torch.float64))
    fake = gaussian(MEAN + shift, variance * torch.eye(2, dtype=torch.float64))
    x, t = fake.sample(64, 0), torch.full((64,), level, dtype=torch.float64)
    x_t = add_noise(x, randn(64, 2, 1, 1, 1, seed=1, dtype=torch.float64), t)
    x0_fake, x0_real = (velocity_to_data(x_t, p(x_t, t, no_cond(64)), t) for p in (fake, real))
    gradient = gradient_on(x, lambda leaf: distribution_matching(leaf, x0_fake, x0_real, normalise=False).total)
    expected = level**2 * shift / ((1 - level) ** 2 * variance + level**2)
    assert torch.allclose(gradient * x.numel(), torch.full_like(x, expected), rtol=1e-5)
    # Descending along it brings the samples nearer to the real mean.
    moved = x - 0.5 * gradient * x.numel()
    assert (moved.flatten(1).mean(0) - MEAN).norm() < (x.flatten(1).mean(0) - MEAN).norm()
    normalised = gradient_on(x, lambda leaf: distribution_matching(leaf, x0_fake, x0_real).total)
    assert (normalised > 0).all()


def test_a_sample_is_normalised_by_itself_alone() -> None:
    x, fake, real = randn(3, 3, 4, 2, 2, 2)
    before = gradient_on(x, lambda leaf: distribution_matching(leaf, fake, real).total)
    other = x.clone()
    other[1] *= 100
    after = gradient_on(other, lambda leaf: distribution_matching(leaf, fake, real).total)
    assert torch.allclose(after[0], before[0], rtol=1e-5, atol=1e-8)
    assert torch.allclose(after[2], before[2], rtol=1e-5, atol=1e-8)
    assert after[1].abs().max() < 0.1 * before[1].abs().max()


def test_normalised_gradients_do_not_depend_on_the_scale_of_the_latents() -> None:
    x, fake, real = randn(3, 3, 4, 2, 2, 2)
    one, ten = (
        gradient_on(c * x, lambda leaf, c=c: distribution_matching(leaf, c * fake, c * real).total)  # type: ignore[misc]
        for c in (1.0, 10.0)
    )
    assert torch.allclose(one, ten, rtol=1e-4)
    raw, raw_ten = (
        gradient_on(c * x, lambda leaf, c=c: distribution_matching(leaf, c * fake, c * real, False).total)  # type: ignore[misc]
        for c in (1.0, 10.0)
    )
    assert torch.allclose(10 * raw, raw_ten, rtol=1e-4)


def test_scale_is_a_factor_on_the_gradient() -> None:
    x, fake, real = randn(3, 3, 4, 2, 2, 2)
    one, four = (
        gradient_on(x, lambda leaf, s=s: distribution_matching(leaf, fake, real, scale=s).total)  # type: ignore[misc]
        for s in (1.0, 4.0)
    )
    assert torch.allclose(4 * one, four, rtol=1e-4, atol=1e-7)


def test_no_gradient_reaches_the_scores_and_a_perfect_sample_stays_finite() -> None:
    x, fake, real = (v.requires_grad_() for v in randn(3, 3, 4, 2, 2, 2).unbind(0))
    distribution_matching(x, fake, real).total.backward()
    assert x.grad is not None
    assert fake.grad is None
    assert real.grad is None
    same = distribution_matching(real, real, real).total
    assert torch.isfinite(same)


# --- consistency ---------------------------------------------------------------------------------------------------


def test_pseudo_huber_is_square_near_zero_and_linear_far_away() -> None:
    target, c = torch.zeros(8), 1e-3
    small, large = torch.full((8,), 1e-2), torch.full((8,), 3.0)
    assert pseudo_huber(small, target, c=0.5) == pytest.approx(1e-4, rel=1e-2)  # d^2 / 2 c
    assert pseudo_huber(large, target, c) == pytest.approx(3.0 - c, rel=1e-5)
    assert pseudo_huber(target, target, c) == 0
    assert pseudo_huber(-large, target, c) == pseudo_huber(large, target, c)
    near = gradient_on(small, lambda d: pseudo_huber(d, target, c=10.0))
    assert torch.allclose(near, torch.full((8,), 1e-2 / 10 / 8), rtol=1e-4)
    far = gradient_on(large, lambda d: pseudo_huber(d, target, c))
    assert torch.allclose(far, torch.full((8,), 1 / 8), rtol=1e-4)


def test_the_consistency_target_gets_no_gradient() -> None:
    prediction, target = (v.requires_grad_() for v in randn(2, 3, 4).unbind(0))
    pseudo_huber(prediction, target, 1e-3).backward()
    assert prediction.grad is not None
    assert (torch.sign(prediction.grad) == torch.sign(prediction - target)).all()
    assert target.grad is None


def test_the_average_moves_by_one_minus_decay() -> None:
    average, source = {"w": nn.Parameter(randn(4))}, {"w": nn.Parameter(randn(4, seed=1))}
    expected = 0.9 * average["w"].detach() + 0.1 * source["w"].detach()
    blend(average, source, 0.9)
    assert torch.allclose(average["w"], expected, atol=1e-7)
    assert torch.equal(source["w"], randn(4, seed=1))
    blend(average, source, 1.0)
    assert torch.allclose(average["w"], expected, atol=1e-7)
    blend(average, source, 0.0)
    assert torch.equal(average["w"], source["w"])


# --- ground truth --------------------------------------------------------------------------------------------------


def test_regression_weighs_by_one_minus_the_level_and_vanishes_at_pure_noise() -> None:
    x, x0 = randn(2, 3, 4, 2, 2, 2)
    t = torch.tensor([0.0, 0.25, 1.0])
    squares = per_sample((x - x0).square())
    assert regression(x, x0, t) == pytest.approx(float((squares[0] + 0.75 * squares[1]) / 3), rel=1e-5)
    gradient = gradient_on(x, lambda leaf: regression(leaf, x0, t))
    assert torch.equal(gradient[2], torch.zeros_like(gradient[2]))
    assert torch.allclose(gradient[1], 0.75 * 2 * (x - x0)[1] / x.numel(), rtol=1e-4)


def test_the_discriminator_raises_real_logits_and_lowers_fake_ones() -> None:
    zeros = torch.zeros(4)
    log2 = float(torch.log(torch.tensor(2.0)))
    assert discriminator_loss(zeros, zeros) == pytest.approx(2 * log2)
    assert discriminator_loss(zeros + 3, zeros - 3) < discriminator_loss(zeros, zeros)
    assert discriminator_loss(zeros - 3, zeros + 3) > discriminator_loss(zeros, zeros)
    assert torch.allclose(gradient_on(zeros, lambda real: discriminator_loss(real, zeros)), zeros - 0.5 / 4)
    assert torch.allclose(gradient_on(zeros, lambda fake: discriminator_loss(zeros, fake)), zeros + 0.5 / 4)


def test_the_generator_deceives_by_raising_the_logits_of_its_samples() -> None:
    zeros = torch.zeros(4)
    assert torch.allclose(gradient_on(zeros, deceive_loss), zeros - 0.5 / 4)
    assert deceive_loss(zeros + 5) < 0.01
