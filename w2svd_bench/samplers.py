"""The two samplers: ``ode`` walks the flow, ``sde`` jumps to data and noises again.

``levels`` runs from 1 down to 0 and holds one more number than network evaluations. ``noise(i)`` gives the noise of
step i, (B, C, T, H, W); step 0 is the start. See `flow.schedule` for the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from w2svd_bench.errors import BenchError
from w2svd_bench.flow import add_noise, velocity_to_data
from w2svd_bench.types import Cond, Velocity

Noise = Callable[[int], Tensor]


def ode(velocity: Velocity, cond: Cond, levels: Sequence[float], noise: Noise) -> Tensor:
    """Euler's method: ``x_s' = x_s + (s' - s) v(x_s, s)``. The same arithmetic as diffusers' flow-match scheduler."""
    x = noise(0)
    level = torch.tensor(levels, dtype=torch.float32, device=x.device)
    for now, after in pairwise(level):
        x = x + (after - now) * velocity(x, now.expand(len(x)), cond)
    return x


def sde(velocity: Velocity, cond: Cond, levels: Sequence[float], noise: Noise) -> Tensor:
    """The few-step sampler of LCM and DMD: ``x0 = x_s - s v``, then ``x_s' = (1 - s') x0 + s' eps`` with new noise."""
    x0 = x = noise(0)
    for step, (now, after) in enumerate(pairwise(levels), start=1):
        t = torch.full((len(x),), now, dtype=torch.float32, device=x.device)
        x0 = velocity_to_data(x, velocity(x, t, cond), t)
        if after > 0:
            x = add_noise(x0, noise(step), after)
    return x0


_SAMPLERS = {"ode": ode, "sde": sde}


@dataclass(frozen=True)
class Sampler:
    """A sampler with its levels: what a record calls ``sampler``, ``levels`` and ``nfe``.

    Raises:
        BenchError: there is no sampler of this kind, or the levels don't run from 1 (noise) down to 0 (data).
    """

    kind: Literal["ode", "sde"]
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        """Anything else would leave noise in the clips, or start from noise of another level, without a word."""
        levels = self.levels
        down = all(now >= after for now, after in pairwise(levels))
        if self.kind not in _SAMPLERS or len(levels) < 2 or levels[0] != 1 or levels[-1] != 0 or not down:
            raise BenchError(
                "a method's sampler can't be used",
                f"it is {self.kind!r} with the levels {', '.join(f'{level:g}' for level in levels) or '(none)'}",
                "`Method.sampler` gives 'ode' or 'sde', and levels from 1 (noise) down to 0 (data)",
            )

    @property
    def nfe(self) -> int:
        """Network evaluations a clip."""
        return len(self.levels) - 1

    def __call__(self, velocity: Velocity, cond: Cond, noise: Noise) -> Tensor:
        """Latents (B, C, T, H, W) from the noise of each step."""
        return _SAMPLERS[self.kind](velocity, cond, self.levels, noise)
