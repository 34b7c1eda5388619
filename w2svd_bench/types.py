"""The few nouns that everything else is made of.

Axes: B batch, C latent channels, T latent frames, H, W latent pixels, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


TEACHER, GENERATOR = "teacher", "generator"

# What the caption of a procedural portrait can name, in its order (`data.attributes` has the phrases).
Attribute = Literal["skin", "hair", "backdrop", "shirt", "face", "eyes", "speech", "head"]


def average_of(role: str) -> str:
    """The name under which the exponential moving average of a role is kept: a role of its own."""
    return f"{role}_ema"


@dataclass(frozen=True)
class Cond:
    """What a velocity is conditioned on: text tokens (B, L, D), their mask (B, L) and the pooled text (B, P).

    For image-to-video also the latents of the given first frame, (B, C, 1, H, W); None otherwise.
    """

    tokens_BLD: Tensor
    mask_BL: Tensor
    pooled_BP: Tensor
    image_BCTHW: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens_BLD.shape[0]

    def rows(self, index: Tensor | slice) -> Cond:
        """The conditioning of some of the batch."""
        image = None if self.image_BCTHW is None else self.image_BCTHW[index]
        return Cond(self.tokens_BLD[index], self.mask_BL[index], self.pooled_BP[index], image)

    def to(self, *args: Any) -> Cond:
        """Moved or cast as `Tensor.to` does."""
        image = None if self.image_BCTHW is None else self.image_BCTHW.to(*args)
        return Cond(self.tokens_BLD.to(*args), self.mask_BL.to(*args), self.pooled_BP.to(*args), image)

    def trimmed(self) -> Cond:
        """Without the padding that all of the batch shares: tokens behind the last one that any sample needs.

        What the network gives for the image tokens stays the same up to rounding, because padding is masked out.
        """
        used = self.mask_BL.bool().any(0).nonzero()
        length = int(used.max()) + 1 if len(used) else 1
        return replace(self, tokens_BLD=self.tokens_BLD[:, :length], mask_BL=self.mask_BL[:, :length])

    @classmethod
    def collate(cls, parts: Sequence[Cond]) -> Cond:
        """One batch of several; shorter texts are padded with zeros, which the mask hides."""
        import torch
        from torch.nn.functional import pad

        longest = max(part.mask_BL.shape[1] for part in parts)
        missing = [longest - part.mask_BL.shape[1] for part in parts]
        images = [part.image_BCTHW for part in parts if part.image_BCTHW is not None]
        return cls(
            torch.cat([pad(part.tokens_BLD, (0, 0, 0, n)) for part, n in zip(parts, missing, strict=True)]),
            torch.cat([pad(part.mask_BL, (0, n)) for part, n in zip(parts, missing, strict=True)]),
            torch.cat([part.pooled_BP for part in parts]),
            torch.cat(images) if images else None,
        )


@dataclass(frozen=True)
class Batch:
    """A training batch: data latents (B, C, T, H, W) of about unit variance and their conditioning."""

    x0_BCTHW: Tensor
    cond: Cond


class TrainingData(Protocol):
    """Training clips by number, ready for the network; ``name`` says which ones they are, in records."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> Batch:
        """The clips of the given numbers, in that order, on the device of the training."""
        ...


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
