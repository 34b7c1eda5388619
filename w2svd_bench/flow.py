"""Flow matching, once: the path between data and noise, and the conversions between velocity, data and noise.

Noise level t (also called sigma) in [0, 1]: 0 is data, 1 is noise. ``x_t = (1 - t) x0 + t eps`` and the velocity
is ``v = eps - x0`` (rectified flow, Liu et al. 2022, arXiv 2209.03003; the convention of HunyuanVideo).
Shapes: B batch; x is any tensor that begins with B, t is (B,) or a float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def expand_level(t: Tensor | float, like: Tensor) -> Tensor | float:
    """Views noise levels (B,) so that they broadcast over ``like`` (B, ...)."""
    if isinstance(t, float | int):
        return t
    return t.view(-1, *([1] * (like.ndim - 1)))


def add_noise(x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """The point at noise level t on the straight path from data to noise: ``(1 - t) x0 + t eps``."""
    t = expand_level(t, x0)
    return (1 - t) * x0 + t * noise


def velocity_to_data(x_t: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """The denoised sample ``x0 = x_t - t v``."""
    return x_t - expand_level(t, x_t) * velocity


def shift_levels(t: Tensor, shift: float) -> Tensor:
    """Moves noise levels towards noise: ``shift t / (1 + (shift - 1) t)`` (SD3, Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def schedule(steps: int, shift: float) -> Tensor:
    """The noise levels of an Euler sampler: ``steps`` shifted levels from 1 down, then 0; shape (steps + 1,).

    Equal to what `diffusers.HunyuanVideoPipeline` feeds its scheduler, which shifts once: ``linspace(1, 0, steps+1)``.
    float32, like the scheduler's.
    """
    import torch

    # Rounded before it is shifted, as the scheduler does: the other order differs in the last bit at 28 steps.
    return shift_levels(torch.linspace(1, 0, steps + 1, dtype=torch.float64).to(torch.float32), shift)
