"""W2SVD, Weak-to-Strong Video Distillation (MagicDistillation, arXiv 2503.13319), as far as its abstract tells.

(a) The fake is a LoRA on the frozen teacher, so one transformer in memory serves teacher, real and fake.
(b) Weak-to-strong matching: the real score is the same LoRA at a weak strength, ``v_real = v(W + alpha_weak dW)``
    against ``v_fake = v(W + alpha_strong dW)`` with alpha_strong = 1: the real is shifted slightly towards the fake.
(c) A ground-truth term; see `w2svd_bench.ground_truth`.
The losses and the order of updates are those of `w2svd_bench.matching`. Which settings are ours is in the method card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from w2svd_bench.matching import FAKE, REAL, DistributionMatching, MatchingConfig
from w2svd_bench.method import GENERATOR, RoleSpec


class W2SVDConfig(MatchingConfig):
    """The shared settings (`MatchingConfig`), and W2SVD's own.

    Attributes:
        alpha_weak: strength of the fake's LoRA in the real score, in [0, 1). 0 with gt none is LoRA-DMD.
        rescale: multiply the matching gradient by 1 / (1 - alpha_weak). To first order in the LoRA, alpha_weak is
            only that factor, so comparing alphas at a fixed weight of the matching term needs it.
        fake_rank: rank of the fake's LoRA.
        generator_weights, generator_rank: a full copy of the teacher, or a LoRA of that rank.
    """

    alpha_weak: float = Field(default=0.25, ge=0.0, lt=1.0)
    rescale: bool = False
    fake_rank: int = 16
    generator_weights: Literal["full", "lora"] = "full"
    generator_rank: int = 32


class W2SVD(DistributionMatching):
    """Distribution matching between two strengths of one LoRA."""

    name = "w2svd"
    Config = W2SVDConfig
    config: W2SVDConfig

    def roles(self) -> Mapping[str, RoleSpec]:
        c = self.config
        generator = (
            RoleSpec.full(c.generator, c.ema)
            if c.generator_weights == "full"
            else RoleSpec.lora(c.generator, c.generator_rank, c.ema)
        )
        return {
            GENERATOR: generator,
            FAKE: RoleSpec.lora(c.fake, c.fake_rank),
            REAL: RoleSpec.view(FAKE, c.alpha_weak),
            **self.truth.roles(),
        }

    def matching_scale(self) -> float:
        return 1 / (1 - self.config.alpha_weak) if self.config.rescale else 1.0
