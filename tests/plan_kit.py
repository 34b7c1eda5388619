"""What tests of plans share: the sizes of the shipped recipes, their plans, and a gauge of real updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from w2svd_bench.backbones.costs import Meter
from w2svd_bench.backbones.roles import Roles
from w2svd_bench.backbones.skeleton import Skeleton
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.config import Video
from w2svd_bench.plan.machine import Machine
from w2svd_bench.plan.memory import Plan, Setup
from w2svd_bench.plan.verify import Peak
from w2svd_bench.registry import METHODS

SMALL = Video(height=320, width=512, num_frames=61, fps=24)
LARGE = Video(height=544, width=960, num_frames=129, fps=24)


def shipped(name: str, skeleton: Skeleton, machine: Machine, video: Video = SMALL, overrides: list[str] = []) -> Plan:  # noqa: B006
    recipe = resolve_recipe(METHODS.get(name), "hunyuan", None, overrides)
    return Plan(Setup.of(METHODS.get(name), recipe, skeleton, machine, video))


@contextmanager
def alive(roles: Roles, optimizers: dict[str, torch.optim.Optimizer]) -> Iterator[Peak]:
    """The most bytes of tensors that were alive during a real update."""
    there = [p for name in roles.trained() for p in roles.parameters(name).values()]
    there += list(roles.base.transformer.parameters())
    states = [state for optimizer in optimizers.values() for state in optimizer.state.values()]
    there += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    before = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in there}
    peak = Peak()
    with Meter(there) as meter:
        yield peak
    peak.bytes = sum(before.values()) + meter.peak
