"""The few nouns that everything else is made of.

Axes: B batch, C latent channels, T latent frames, H, W latent pixels, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


TEACHER, GENERATOR = "teacher", "generator"


def average_of(role: str) -> str:
    """The name under which the exponential moving average of a role is kept: a role of its own."""
    return f"{role}_ema"


@dataclass(frozen=True)
class Cond:
    """What a velocity is conditioned on: text tokens (B, L, D), their mask (B, L) and the pooled text (B, P)."""

    tokens_BLD: Tensor
    mask_BL: Tensor
    pooled_BP: Tensor

    def __len__(self) -> int:
        return self.tokens_BLD.shape[0]

    def rows(self, index: Tensor | slice) -> Cond:
        """The conditioning of some of the batch."""
        return Cond(self.tokens_BLD[index], self.mask_BL[index], self.pooled_BP[index])

    def to(self, device: torch.device | str) -> Cond:
        return Cond(self.tokens_BLD.to(device), self.mask_BL.to(device), self.pooled_BP.to(device))


@dataclass(frozen=True)
class Batch:
    """A training batch: data latents (B, C, T, H, W) of about unit variance and their conditioning."""

    x0_BCTHW: Tensor
    cond: Cond


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and detached scalars for the log."""

    total: Tensor
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)


class Velocity(Protocol):
    """A role as the losses and samplers see it: ``v(x_t, t, cond)``, about ``eps - x0``."""

    def __call__(self, x_BCTHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor: ...


@dataclass(frozen=True)
class Clip:
    """All that a metric ever sees: uint8 frames (frames, height, width, 3), frames a second, prompt and seed."""

    frames_THWC: np.ndarray
    fps: float
    prompt: str
    seed: int


@dataclass(frozen=True)
class Skipped:
    """A score that could not be had, with the reason; shown as a dash, never as a number."""

    reason: str
