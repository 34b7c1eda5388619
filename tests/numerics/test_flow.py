"""The path between data and noise, and the noise levels against diffusers' scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from w2svd_bench.flow import add_noise, expand_level, schedule, shift_levels, velocity_to_data


@pytest.fixture
def path() -> tuple[Tensor, Tensor, Tensor]:
    """Data, noise and a level for each sample, in double precision."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 3, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x0, noise, torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)


def test_the_path_runs_from_data_at_0_to_noise_at_1(path: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, t = path
    x_t = add_noise(x0, noise, t)
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[3], noise[3])
    assert torch.allclose(x_t[1], 0.8 * x0[1] + 0.2 * noise[1], atol=1e-15)


def test_a_level_may_be_a_number_or_one_for_each_sample(path: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, _ = path
    levels = torch.full((4,), 0.3, dtype=torch.float64)
    assert torch.equal(add_noise(x0, noise, 0.3), add_noise(x0, noise, levels))
    assert torch.equal(velocity_to_data(x0, noise, 0.3), velocity_to_data(x0, noise, levels))
    assert expand_level(1, x0) == 1
    assert expand_level(levels, x0).shape == (4, 1, 1, 1, 1)  # type: ignore[union-attr]


def test_the_velocity_of_the_path_gives_back_the_data(path: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, t = path
    assert torch.allclose(velocity_to_data(add_noise(x0, noise, t), noise - x0, t), x0, atol=1e-14)


def test_noise_minus_data_is_the_derivative_of_the_path(path: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, t = path
    forward, backward = add_noise(x0, noise, t + 0.125), add_noise(x0, noise, t - 0.125)
    assert torch.allclose((forward - backward) / 0.25, noise - x0, atol=1e-14)


@pytest.mark.parametrize("shift", [3.0, 7.0, 17.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 28])
def test_levels_are_the_schedulers_as_the_pipeline_calls_it(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    levels = schedule(steps, shift)
    assert levels.dtype == torch.float32
    assert torch.equal(levels, scheduler.sigmas)
    assert torch.equal(levels[:-1] * 1000.0, scheduler.timesteps)


@pytest.mark.parametrize(
    ("steps", "shift", "levels"),
    [
        (1, 7.0, [1, 0]),
        (2, 7.0, [1, 0.875, 0]),
        (4, 7.0, [1, 0.9545, 0.875, 0.7, 0]),
        (8, 7.0, [1, 0.98, 0.9545, 0.9211, 0.875, 0.8077, 0.7, 0.5, 0]),
        (6, 17.0, [1, 0.9884, 0.9714, 0.9444, 0.8947, 0.7727, 0]),
        (4, 3.0, [1, 0.9, 0.75, 0.5, 0]),
    ],
)
def test_levels_known_from_public_configurations(steps: int, shift: float, levels: list[float]) -> None:
    assert schedule(steps, shift).tolist() == pytest.approx(levels, abs=5e-5)


def test_levels_are_shifted_once() -> None:
    # Without `sigmas` the scheduler starts from levels that are shifted already and shifts them again.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(4)
    twice = scheduler.sigmas
    assert twice.tolist() == pytest.approx([1, 0.934, 0.7814, 0.0468, 0], abs=1e-3)
    assert (schedule(4, 7.0) - twice).abs().max() > 0.5


def test_shifting_keeps_the_ends_and_the_order_and_moves_towards_noise() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = shift_levels(t, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted.diff() > 0).all()
    assert (shifted[1:-1] > t[1:-1]).all()
    assert torch.equal(shift_levels(t, 1.0), t)
    assert torch.allclose(shift_levels(shifted, 5.0), shift_levels(t, 15.0), atol=1e-15)
