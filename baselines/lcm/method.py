"""LCM: consistency distillation (arXiv 2303.01469; latent consistency models, 2310.04378) in flow matching form.

A point x_n of the teacher's path is moved one cell of a K-point grid towards data by one Euler step of the teacher;
the generator has to give the same data for both points. Axes: B batch; latents are (B, C, T, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from w2svd_bench import losses
from w2svd_bench.config import Frozen, Optimizer
from w2svd_bench.errors import UnsupportedSteps
from w2svd_bench.flow import add_noise, expand_level, schedule, velocity_to_data
from w2svd_bench.method import GENERATOR, TEACHER, Method, RoleSpec, Update, average_of
from w2svd_bench.rng import Rng
from w2svd_bench.samplers import Sampler
from w2svd_bench.types import Batch, Loss


class LCMConfig(Frozen):
    """Settings of consistency distillation.

    Attributes:
        generator: the optimiser.
        ema: decay of the average, which is both the target network and what gets sampled.
        grid: K, cells of the shifted grid between noise and data.
        huber_c: of the pseudo-Huber loss.
        rank: of the generator's LoRA; 0 trains a full copy of the teacher.
    """

    generator: Optimizer
    ema: float = 0.95
    grid: int = 28
    huber_c: float = 1e-3
    rank: int = 0


class LCM(Method):
    """Consistency distillation with an exact boundary: f(x, 0) = x, since f(x, s) = x - s v(x, s)."""

    name = "lcm"
    Config = LCMConfig
    config: LCMConfig

    def roles(self) -> Mapping[str, RoleSpec]:
        if self.config.rank:
            return {GENERATOR: RoleSpec.lora(self.config.generator, self.config.rank, self.config.ema)}
        return {GENERATOR: RoleSpec.full(self.config.generator, self.config.ema)}

    def updates(self, iteration: int) -> Sequence[Update]:
        return [Update(GENERATOR, self.consistency_loss)]

    def sampler(self, steps: int) -> Sampler:
        if steps > self.config.grid:
            raise UnsupportedSteps(
                f"lcm can't be sampled in {steps} steps",
                f"its generator was trained on a grid of {self.config.grid} cells",
                f"use {self.config.grid} steps or fewer, or train with settings.grid={steps}",
            )
        return Sampler("sde", tuple(schedule(steps, self.shift).tolist()))

    def consistency_loss(self, batch: Batch, rng: Rng) -> Loss:
        """``huber(f_theta(x_n, s_n), sg f_ema(x_{n+1}, s_{n+1}))``: 2310.04378, eq. 12, with a flow matching solver."""
        x0, cond = batch.x0_BCTHW, batch.cond
        grid = schedule(self.config.grid, self.shift).to(x0.device)
        n = rng.choose([1.0] * self.config.grid, len(x0), x0)
        now, after = grid[n], grid[n + 1]
        x_now = add_noise(x0, rng.normal(x0), now)
        with torch.no_grad():
            step = expand_level(after - now, x0)
            x_after = x_now + step * self.models[TEACHER](x_now, now, cond)
            target = velocity_to_data(x_after, self.models[average_of(GENERATOR)](x_after, after, cond), after)
        prediction = velocity_to_data(x_now, self.models[GENERATOR](x_now, now, cond), now)
        loss = losses.pseudo_huber(prediction, target, self.config.huber_c)
        return Loss(loss, {"consistency": loss.detach(), "generated_std": prediction.detach().std()})
