"""An example method: the generator goes on learning what the teacher learned, and is sampled with Euler steps.

It distils nothing, so in few steps it should stand where `euler` stands; it shows all that a method has to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from w2svd_bench import losses
from w2svd_bench.config import Frozen, Optimizer
from w2svd_bench.flow import add_noise, schedule, shift_levels
from w2svd_bench.method import GENERATOR, Method, RoleSpec, Update
from w2svd_bench.rng import Rng
from w2svd_bench.samplers import Sampler
from w2svd_bench.types import Batch, Loss


class ExampleConfig(Frozen):
    """``generator`` is the optimiser, ``rank`` the size of the LoRA that it trains on the frozen teacher."""

    generator: Optimizer
    rank: int = 8


class Example(Method):
    """Plain flow matching on data, with a LoRA."""

    name = "example"
    Config = ExampleConfig
    config: ExampleConfig
    recipes = {
        "mini": {
            "method": "example",
            "backbone": "mini",
            "training": {"iterations": 50},
            "settings": {"generator": {"learning_rate": 2e-4}},
        }
    }

    def roles(self) -> Mapping[str, RoleSpec]:
        return {GENERATOR: RoleSpec.lora(self.config.generator, self.config.rank)}

    def updates(self, iteration: int) -> Sequence[Update]:
        return [Update(GENERATOR, self.flow_matching_loss)]

    def sampler(self, steps: int) -> Sampler:
        return Sampler("ode", tuple(schedule(steps, self.shift).tolist()))

    def flow_matching_loss(self, batch: Batch, rng: Rng) -> Loss:
        """``|| v(x_t, t) - (eps - x0) ||^2`` at uniform levels that are shifted as the sampler's are."""
        x0 = batch.x0_BCTHW
        noise, t = rng.normal(x0), shift_levels(rng.uniform(len(x0), x0), self.shift)
        velocity = self.models[GENERATOR](add_noise(x0, noise, t), t, batch.cond)
        loss = losses.flow_matching(velocity, x0, noise).mean()
        return Loss(loss, {"flow_matching": loss.detach()})
