"""What the numerical tests share: closed-form Gaussian velocities, untrained miniatures and random latents.

The miniature's transformer is taken untrained, from a fixed seed, so nothing here changes when its weights do.
Axes: B batch, D dimensions; a vector (B, D) is shown to the code as latents (B, D, 1, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.mini import TEXT_DIM, new_transformer
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.types import Cond

LATENT_SHAPE = (16, 5, 6, 6)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """How a sum is split over threads decides its last bits, and some of these tests compare bits."""
    torch.set_num_threads(1)


class Gaussian:
    """Data that is N(mean, cov), for which the ideal velocity, the score and the ODE's map are known.

    On the path ``x_t = (1 - t) x0 + t eps`` the marginal is ``N((1 - t) mean, V)`` with ``V = (1 - t)^2 cov + t^2``.
    """

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        self.mean, self.cov = mean, cov

    def _centred(self, x_BD: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``x - (1 - t) mean`` (B, D) and V (B, D, D)."""
        keep, eye = 1 - t, torch.eye(len(self.mean), dtype=self.cov.dtype)
        spread = keep.view(-1, 1, 1) ** 2 * self.cov + t.view(-1, 1, 1) ** 2 * eye
        return x_BD - keep.view(-1, 1) * self.mean, spread

    def data(self, x_BD: Tensor, t: Tensor) -> Tensor:
        """The best guess of the data, E[x0 | x_t]."""
        centred, spread = self._centred(x_BD, t)
        solved = torch.linalg.solve(spread, centred.unsqueeze(-1)).squeeze(-1)
        return self.mean + (1 - t).view(-1, 1) * solved @ self.cov

    def score(self, x_BD: Tensor, t: Tensor) -> Tensor:
        """The gradient of the log density of x_t, by autograd from the density alone."""
        x_BD = x_BD.detach().requires_grad_()
        centred, spread = self._centred(x_BD, t)
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(centred), spread)
        return torch.autograd.grad(normal.log_prob(centred).sum(), x_BD)[0]

    def ode_map(self, noise_BD: Tensor) -> Tensor:
        """Where the flow carries noise at t = 1: ``mean + cov^(1/2) z``."""
        values, vectors = torch.linalg.eigh(self.cov)
        return self.mean + noise_BD @ (vectors * values.sqrt()) @ vectors.T

    def sample(self, count: int, seed: int) -> Tensor:
        """Data as latents (count, D, 1, 1, 1)."""
        z = torch.randn(count, len(self.mean), generator=torch.Generator().manual_seed(seed), dtype=self.mean.dtype)
        return self.ode_map(z)[..., None, None, None]

    def __call__(self, x_BCTHW: Tensor, t_B: Tensor, cond: Cond | None) -> Tensor:
        """The ideal velocity E[eps - x0 | x_t] = (x_t - E[x0 | x_t]) / t."""
        t = t_B.to(x_BCTHW.dtype)
        x = x_BCTHW.flatten(1)
        return ((x - self.data(x, t)) / t.view(-1, 1)).view_as(x_BCTHW)


@pytest.fixture
def gaussian() -> type[Gaussian]:
    return Gaussian


@pytest.fixture
def no_cond() -> Callable[[int], Cond]:
    """Conditioning for velocities that read none."""
    return lambda size: Cond(torch.zeros(size, 1, 1), torch.ones(size, 1), torch.zeros(size, 1))


@pytest.fixture
def untrained_backbone() -> Callable[..., Backbone]:
    """Makes the miniature with an untrained transformer, the same for the same seed."""

    def make(seed: int = 0) -> Backbone:
        backbone = Backbone.load("mini")
        backbone.transformer = new_transformer(seed).eval()
        return backbone

    return make


@pytest.fixture
def random_pool() -> Callable[..., LatentPool]:
    """Makes a pool of random latents in the miniature's shape with random conditioning, the same for the same seed."""

    def make(count: int, seed: int = 0, tokens: int = 8) -> LatentPool:
        generator = torch.Generator().manual_seed(seed)
        cond = Cond(
            torch.randn(count, tokens, TEXT_DIM, generator=generator),
            torch.ones(count, tokens),
            torch.randn(count, TEXT_DIM, generator=generator),
        )
        return LatentPool(torch.randn(count, *LATENT_SHAPE, generator=generator), cond, "random")

    return make
