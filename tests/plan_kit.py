"""What tests of plans share: the sizes of the shipped recipes, their plans, and a gauge of real updates."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from w2svd_bench.backbones.costs import Meter
from w2svd_bench.backbones.roles import Roles
from w2svd_bench.backbones.sharding import local
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


class ShardMeter(Meter):
    """Counts of a sharded tensor the own part, and follows the storages that FSDP empties and fills again."""

    def __init__(self, ignore: Iterable[torch.Tensor] = ()) -> None:
        super().__init__(ignore)
        self._sizes: dict[int, int] = {}

    def _see(self, tensor: torch.Tensor) -> None:
        storage = local(tensor).untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= self._sizes.pop(key)

        self._alive[key] = weakref.ref(storage, gone)
        self._sizes[key] = 0
        self.resized(storage)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage has another size than before."""
        if storage._cdata in self._sizes:
            self.now += storage.nbytes() - self._sizes[storage._cdata]
            self._sizes[storage._cdata] = storage.nbytes()
            self.peak = max(self.peak, self.now)


@contextmanager
def alive(roles: Roles, optimizers: dict[str, torch.optim.Optimizer]) -> Iterator[Peak]:
    """The most bytes of tensors that were alive during a real update."""
    there = [p for name in roles.trained() for p in roles.parameters(name).values()]
    there += list(roles.base.transformer.parameters())
    states = [state for optimizer in optimizers.values() for state in optimizer.state.values()]
    there += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    there = [local(tensor) for tensor in there]
    before = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in there}
    peak = Peak()
    with pytest.MonkeyPatch.context() as patch, ShardMeter(there) as meter:
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            meter.resized(storage)

        patch.setattr(torch.UntypedStorage, "resize_", resized)
        yield peak
    peak.bytes = sum(before.values()) + meter.peak
