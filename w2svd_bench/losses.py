"""The losses, as pure functions of tensors. ``t`` is a noise level in [0, 1] (0 is data), shape (B,).

Axes: B batch; x is (B, ...). Every loss is a mean, computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2svd_bench.types import Loss


def per_sample(values: Tensor) -> Tensor:
    """The mean of each sample, (B, ...) to (B,)."""
    return values.flatten(1).mean(1)


def flow_matching(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """``|| v - (eps - x0) ||^2`` a sample, (B,) (rectified flow, arXiv 2209.03003, eq. 1)."""
    return per_sample((velocity.float() - (noise.float() - x0.float())).square())


def pseudo_huber(prediction: Tensor, target: Tensor, c: float) -> Tensor:
    """``mean(sqrt(d^2 + c^2) - c)``: the consistency loss (improved consistency training, arXiv 2310.14189, eq. 7).

    ``target`` gets no gradient.
    """
    difference = prediction.float() - target.detach().float()
    return ((difference.square() + c * c).sqrt() - c).mean()


def distribution_matching(
    x: Tensor, x0_fake: Tensor, x0_real: Tensor, normalise: bool = True, scale: float = 1.0
) -> Loss:
    """The distribution matching loss of DMD (arXiv 2311.18828, eq. 7 and 8; DMD2, 2405.14867).

    ``g = (x0_fake - x0_real) / mean|x - x0_real|`` (the mean of each sample) and
    ``loss = 1/2 mean || x - sg(x - g) ||^2``, so that the gradient on ``x`` is ``g / x.numel()``: it moves a sample
    from where the fake score would denoise it towards where the real score would.

    Args:
        x: generated samples, with gradient.
        x0_fake, x0_real: the two scores' denoised samples of the noised ``x``; no gradient passes through them.
        normalise: divide by the per-sample mean; without it the raw difference is used.
        scale: a factor on ``g``.
    """
    with torch.no_grad():
        difference = x0_fake.float() - x0_real.float()
        distance = per_sample((x.float() - x0_real.float()).abs())
        gradient = difference
        if normalise:
            gradient = difference / distance.clamp_min(1e-6).view(-1, *([1] * (x.ndim - 1)))
        gradient = gradient * scale
        target = x.float() - gradient
    loss = 0.5 * (x.float() - target).square().mean()
    return Loss(
        loss,
        {
            "dm_raw": difference.square().mean().sqrt(),
            "dm_normalised": gradient.square().mean().sqrt(),
            "dm_distance": distance.mean(),
        },
    )


def regression(x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """``mean (1 - t) || x - x0 ||^2``: ground truth for a sample that was generated from ``x0`` noised to level t.

    The weight falls to 0 at t = 1, where the input holds nothing of ``x0`` and the best answer would be the mean of
    all clips. Our reading of W2SVD's ground-truth term (arXiv 2503.13319), see its method card.
    """
    return ((1 - t) * per_sample((x.float() - x0.float()).square())).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """``softplus(-D(real)) + softplus(D(fake))`` (the non-saturating GAN, Goodfellow et al. 2014; DMD2, eq. 4)."""
    return (torch.nn.functional.softplus(-real_logits) + torch.nn.functional.softplus(fake_logits)).mean()


def deceive_loss(fake_logits: Tensor) -> Tensor:
    """``softplus(-D(fake))``: the generator's side of `discriminator_loss`."""
    return torch.nn.functional.softplus(-fake_logits).mean()
