"""Ground-truth terms for distribution matching methods: how real data enters the training, if at all.

Four strategies behind one small interface. ``none``: not at all. ``regression``: the generator's output is compared
with the clip whose noised latents it was given, weighted by 1 - t. ``gan``: a discriminator on the frozen teacher's
features (DMD2, arXiv 2405.14867). ``fake_fm``: the fake also learns real clips, which pulls its distribution towards
them and biases its score. W2SVD's abstract (arXiv 2503.13319) asks that the distance between the fake distribution
and the ground truth be minimised and does not say how; all but ``none`` are our readings of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from w2svd_bench import losses
from w2svd_bench.config import Frozen, Optimizer
from w2svd_bench.flow import add_noise
from w2svd_bench.method import RoleSpec, Update
from w2svd_bench.rng import Rng
from w2svd_bench.types import Batch, Loss

DISCRIMINATOR = "discriminator"


class GroundTruthConfig(Frozen):
    """``kind`` of the term and its ``weight`` beside the distribution matching loss (or the fake's, for fake_fm)."""

    kind: Literal["none", "regression", "gan", "fake_fm"] = "none"
    weight: float = 0.5
    discriminator: Optimizer = Optimizer(learning_rate=5e-4)


class GroundTruth:
    """The strategy without a term; the others change what they need."""

    needs_paired_input = False

    def __init__(
        self, config: GroundTruthConfig, models: Callable[[], Mapping[str, Any]], level: Callable[[Rng, Tensor], Tensor]
    ) -> None:
        """``models`` gives the roles, ``level(rng, x)`` draws the noise levels at which scores are compared."""
        self.config, self.models, self.level = config, models, level

    def roles(self) -> dict[str, RoleSpec]:
        return {}

    def updates(self, generate: Callable[[Batch, Rng], tuple[Tensor, Tensor]]) -> Sequence[Update]:
        return ()

    def generator_term(self, x: Tensor, t: Tensor, batch: Batch, rng: Rng) -> Tensor | None:
        """What is added to the generator's loss, for samples ``x`` made from inputs at level ``t``."""
        return None

    def fake_term(self, batch: Batch, rng: Rng) -> Tensor | None:
        """What is added to the fake's loss."""
        return None


class Regression(GroundTruth):
    """The generator's output against the clip that its input was noised from, weighted by 1 - t."""

    needs_paired_input = True

    def generator_term(self, x: Tensor, t: Tensor, batch: Batch, rng: Rng) -> Tensor:
        return self.config.weight * losses.regression(x, batch.x0_BCTHW, t)


class FakeFlowMatching(GroundTruth):
    """The fake learns real clips too, by flow matching."""

    def fake_term(self, batch: Batch, rng: Rng) -> Tensor:
        x0 = batch.x0_BCTHW
        noise, t = rng.normal(x0), self.level(rng, x0)
        velocity = self.models()["fake"](add_noise(x0, noise, t), t, batch.cond)
        return self.config.weight * losses.flow_matching(velocity, x0, noise).mean()


class Adversarial(GroundTruth):
    """A discriminator tells noised real clips from noised samples; the generator deceives it."""

    def roles(self) -> dict[str, RoleSpec]:
        return {DISCRIMINATOR: RoleSpec.head(self.config.discriminator)}

    def updates(self, generate: Callable[[Batch, Rng], tuple[Tensor, Tensor]]) -> Sequence[Update]:
        def tell_apart(batch: Batch, rng: Rng) -> Loss:
            x, _ = generate(batch, rng)
            t = self.level(rng, x)
            real, fake = (self._logits(sample.detach(), t, batch, rng) for sample in (batch.x0_BCTHW, x))
            return Loss(losses.discriminator_loss(real, fake), {"real_logit": real.mean(), "fake_logit": fake.mean()})

        return (Update(DISCRIMINATOR, tell_apart),)

    def generator_term(self, x: Tensor, t: Tensor, batch: Batch, rng: Rng) -> Tensor:
        return self.config.weight * losses.deceive_loss(self._logits(x, self.level(rng, x), batch, rng))

    def _logits(self, x: Tensor, t: Tensor, batch: Batch, rng: Rng) -> Tensor:
        logits: Tensor = self.models()[DISCRIMINATOR](add_noise(x, rng.normal(x), t), t, batch.cond)
        return logits


STRATEGIES: dict[str, type[GroundTruth]] = {
    "none": GroundTruth,
    "regression": Regression,
    "gan": Adversarial,
    "fake_fm": FakeFlowMatching,
}
