"""Vanilla DMD (arXiv 2311.18828, 2405.14867): generator and fake are full copies of the teacher.

The losses and the order of updates are those of `w2svd_bench.matching`; what is DMD's own is where the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping

from w2svd_bench.matching import FAKE, REAL, DistributionMatching, MatchingConfig
from w2svd_bench.method import GENERATOR, RoleSpec


class DMDConfig(MatchingConfig):
    """The shared settings; see `MatchingConfig`."""


class DMD(DistributionMatching):
    """Generator and fake are full copies of the teacher; the real score is the teacher itself."""

    name = "dmd"
    Config = DMDConfig
    config: DMDConfig

    def roles(self) -> Mapping[str, RoleSpec]:
        return {
            GENERATOR: RoleSpec.full(self.config.generator, self.config.ema),
            FAKE: RoleSpec.full(self.config.fake),
            REAL: RoleSpec.teacher(),
            **self.truth.roles(),
        }
