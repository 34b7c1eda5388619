"""Distribution matching, the part that all such methods share: who learns when, on which inputs, by which loss.

A method of this kind trains a generator so that its outputs follow the data distribution, and a fake score model on
the generator's outputs; the difference between the fake's and the real score is the generator's gradient (DMD, arXiv
2311.18828; DMD2, 2405.14867). A plug-in adds its `roles()` and settings.
Axes: B batch; latents are (B, C, T, H, W). ``t`` is a noise level in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from w2svd_bench import losses
from w2svd_bench.config import Frozen, Optimizer
from w2svd_bench.errors import UnsupportedSteps
from w2svd_bench.flow import add_noise, schedule, shift_levels, velocity_to_data
from w2svd_bench.ground_truth import STRATEGIES, GroundTruth, GroundTruthConfig
from w2svd_bench.method import GENERATOR, TEACHER, Method, Update
from w2svd_bench.rng import Rng
from w2svd_bench.samplers import Sampler, sde
from w2svd_bench.types import Batch, Loss

FAKE, REAL = "fake", "real"


class MatchingConfig(Frozen):
    """Settings that all distribution matching methods have.

    Attributes:
        generator, fake: the two optimisers.
        ema: decay of the generator's average, which is what gets sampled.
        fake_updates: updates of the fake for each one of the generator (DMD2's two time-scale rule).
        fake_warmup: updates of the fake alone before the generator's first.
        trained_steps: the generator learns at the levels of a sampler with this many steps. One generator then
            serves every number of steps whose levels are among them: 4 serves 1, 2 and 4.
        first_level_share: how often the first level (pure noise, all that one step ever sees) is drawn; with input
            ``simulate`` all levels are drawn alike.
        input: ``data`` noises real latents; ``simulate`` runs the generator's own sampler up to a random step, which
            trains on what sampling will see and needs no data, but costs forward passes (DMD2, section 4.5).
        score_shift, score_range: levels at which the scores are compared: uniform in the range, then shifted.
        matching_weight: of the distribution matching loss; 0 leaves the ground-truth term alone, without a fake that
            learns: a control, no method.
        normalise: divide the gradient by each sample's mean distance (DMD, eq. 8).
        gt: the ground-truth term.
    """

    generator: Optimizer
    fake: Optimizer
    ema: float = 0.95
    fake_updates: int = 1
    fake_warmup: int = 0
    trained_steps: int = 4
    first_level_share: float = 0.4
    input: Literal["data", "simulate"] = "data"
    score_shift: float = 4.0
    score_range: tuple[float, float] = (0.02, 0.98)
    matching_weight: float = Field(default=1.0, ge=0.0)
    normalise: bool = True
    gt: GroundTruthConfig = GroundTruthConfig()

    @model_validator(mode="after")
    def _something_to_learn(self) -> MatchingConfig:
        silent = STRATEGIES[self.gt.kind].generator_term is GroundTruth.generator_term or self.gt.weight == 0
        if self.matching_weight == 0 and silent:
            raise ValueError(f"with matching_weight 0 and gt {self.gt.kind!r} the generator has nothing to learn from")
        return self

    @model_validator(mode="after")
    def _regression_needs_data(self) -> MatchingConfig:
        if self.input == "simulate" and STRATEGIES[self.gt.kind].needs_paired_input:
            raise ValueError(
                f"gt {self.gt.kind!r} compares an output with the clip it came from: it needs input 'data'"
            )
        return self


class DistributionMatching(Method):
    """The base of DMD-like plug-ins; they define `roles()` with a generator, a fake and a real."""

    config: MatchingConfig

    def __init__(self, config: Any, shift: float) -> None:
        super().__init__(config, shift)
        self.levels = tuple(schedule(config.trained_steps, shift).tolist())
        self.truth = STRATEGIES[config.gt.kind](config.gt, lambda: self.models, self.score_level)

    def updates(self, iteration: int) -> Sequence[Update]:
        if self.config.matching_weight == 0:
            return [*self.truth.updates(self.generate), Update(GENERATOR, self.generator_loss)]
        warmup = self.config.fake_warmup if iteration == 0 else 0
        fakes = [Update(FAKE, self.fake_loss)] * (self.config.fake_updates + warmup)
        return [*fakes, *self.truth.updates(self.generate), Update(GENERATOR, self.generator_loss)]

    def sampler(self, steps: int) -> Sampler:
        levels = tuple(schedule(steps, self.shift).tolist())
        unseen = [s for s in levels[:-1] if not any(abs(s - known) < 1e-6 for known in self.levels[:-1])]
        if unseen:
            raise UnsupportedSteps(
                f"{self.name} can't be sampled in {steps} steps",
                f"its generator was trained at the {self.config.trained_steps} noise levels of a "
                f"{self.config.trained_steps}-step sampler only, and {len(unseen)} of these {steps} are not among them",
                f"use 1 step, {self.config.trained_steps} steps, or train with settings.trained_steps={steps}",
            )
        return Sampler("sde", levels)

    def score_level(self, rng: Rng, x: Tensor) -> Tensor:
        """Levels (B,) at which the scores are compared and the fake is trained."""
        low, high = self.config.score_range
        return shift_levels(low + (high - low) * rng.uniform(len(x), x), self.config.score_shift)

    def generate(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """Samples of the generator as one call makes them, and the levels (B,) of its inputs; keeps the graph."""
        x0 = batch.x0_BCTHW
        nodes = torch.tensor(self.levels[:-1], device=x0.device)
        if self.config.input == "simulate":
            step = rng.choose_one(len(nodes))
            fresh = [rng.normal(x0) for _ in range(step + 1)]
            x_t, t = fresh[0], nodes[step].expand(len(x0))
            if step > 0:
                with torch.no_grad():  # a walk of `step` calls, then noised to the next level as sampling does
                    walked = sde(self.models[GENERATOR], batch.cond, [*self.levels[:step], 0.0], lambda i: fresh[i])
                x_t = add_noise(walked, fresh[step], t)
        else:
            rest = (1 - self.config.first_level_share) / max(1, len(nodes) - 1)
            shares = [self.config.first_level_share if len(nodes) > 1 else 1.0] + [rest] * (len(nodes) - 1)
            t = nodes[rng.choose(shares, len(x0), x0)]
            x_t = add_noise(x0, rng.normal(x0), t)
        return velocity_to_data(x_t, self.models[GENERATOR](x_t, t, batch.cond), t), t

    def fake_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The fake learns the generator's distribution by flow matching on its samples."""
        with torch.no_grad():
            x, _ = self.generate(batch, rng)
        noise, t = rng.normal(x), self.score_level(rng, x)
        each = losses.flow_matching(self.models[FAKE](add_noise(x, noise, t), t, batch.cond), x, noise)
        loss = each.mean()
        logs = {"fake_loss": loss.detach(), **_by_level(each.detach(), t)}
        term = self.truth.fake_term(batch, rng)
        if term is not None:
            loss, logs["gt"] = loss + term, term.detach()
        return Loss(loss, logs)

    def generator_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The distribution matching loss, and the ground-truth term where there is one."""
        x, t_input = self.generate(batch, rng)
        loss, logs = x.new_zeros(()), dict[str, Tensor | float]()
        if self.config.matching_weight > 0:
            matching = self._matching(x, batch, rng)
            loss, logs = matching.total, {**matching.logs}
        logs["generated_std"] = x.detach().std()
        term = self.truth.generator_term(x, t_input, batch, rng)
        if term is not None:
            loss, logs["gt"] = loss + term, term.detach()
        return Loss(loss, logs)

    def _matching(self, x: Tensor, batch: Batch, rng: Rng) -> Loss:
        t = self.score_level(rng, x)
        with torch.no_grad():
            x_t = add_noise(x, rng.normal(x), t)
            x0_fake, x0_real = (
                velocity_to_data(x_t, self.models[role](x_t, t, batch.cond), t) for role in (FAKE, REAL)
            )
        scale = self.config.matching_weight * self.matching_scale()
        return losses.distribution_matching(x, x0_fake, x0_real, self.config.normalise, scale)

    def matching_scale(self) -> float:
        """What a method multiplies the distribution matching gradient by, beside its weight."""
        return 1.0

    def teacher_loss(self, batch: Batch, rng: Rng) -> Tensor:
        """The frozen teacher's loss on real latents at the levels that the fake is trained at: a scalar."""
        x0 = batch.x0_BCTHW
        noise, t = rng.normal(x0), self.score_level(rng, x0)
        return losses.flow_matching(self.models[TEACHER](add_noise(x0, noise, t), t, batch.cond), x0, noise).mean()

    def weak_strength(self) -> float | None:
        """The strength of the fake's LoRA in the real score; None where that is no view of a fake that learns."""
        if self.config.matching_weight == 0:
            return None
        real = self.roles()[REAL]
        return real.strength if real.weights == "view" and real.of == FAKE else None

    def alpha_cosine(self, batch: Batch, rng: Rng) -> Tensor:
        """The mean cosine between v(1) - v(alpha) and v(1) - v(0) on noised samples of the generator, a scalar.

        v(s) is the fake's LoRA at strength s. At 1 the weak strength changes how long the matching gradient is, and not
        where it points. In bfloat16 the rounding of the velocities lowers it. Where the fake is still the teacher it is
        0, for want of a direction.
        """
        x, _ = self.generate(batch, rng)
        t = self.score_level(rng, x)
        x_t = add_noise(x, rng.normal(x), t)
        strong, weak, none = (self.models[role](x_t, t, batch.cond).float() for role in (FAKE, REAL, TEACHER))
        return torch.nn.functional.cosine_similarity((strong - weak).flatten(1), (strong - none).flatten(1)).mean()


def _by_level(each_B: Tensor, t_B: Tensor) -> dict[str, Tensor]:
    """A loss split by noise level: low, middle and high thirds (a third without samples is left out)."""
    thirds = {"low": t_B < 1 / 3, "mid": (t_B >= 1 / 3) & (t_B < 2 / 3), "high": t_B >= 2 / 3}
    return {f"fake_loss_{name}": each_B[chosen].mean() for name, chosen in thirds.items() if bool(chosen.any())}
