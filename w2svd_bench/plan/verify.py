"""A plan against the truth: some blocks of real size, real updates, and the peak that the allocator saw.

All blocks of a kind are alike, so a few of them show whether the bytes a token, a weight and a block are right; what
their number does is a multiplication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from w2svd_bench.backbones.roles import Roles
from w2svd_bench.backbones.untrained import RandomClips, Untrained
from w2svd_bench.errors import BenchError
from w2svd_bench.plan.machine import GB, Machine
from w2svd_bench.plan.memory import Plan, Setup, Sharding
from w2svd_bench.rng import Rng
from w2svd_bench.world import World

BLOCKS = (2, 4)  # double and single blocks: few enough for one GPU, enough for block inputs to weigh something
ROUNDS = 3  # iterations that are measured; control decisions differ between them

# Measures what runs inside of it: its value is told when it ends.
Gauge = Callable[[Roles, dict[str, torch.optim.Optimizer]], AbstractContextManager["Peak"]]


@dataclass
class Peak:
    """The most bytes that were alive."""

    bytes: float = 0.0


@dataclass(frozen=True)
class Verified:
    """Predicted and measured peaks, in bytes, by the role that learned."""

    method: str
    what: str
    predicted: dict[str, float]
    measured: dict[str, float]

    def errors(self) -> dict[str, float]:
        """``predicted / measured - 1`` by role: positive where the plan says too much."""
        return {role: self.predicted[role] / self.measured[role] - 1 for role in self.measured}

    def as_data(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "what": self.what,
            "predicted": self.predicted,
            "measured": self.measured,
            "error": self.errors(),
        }

    def __str__(self) -> str:
        rows = [
            f"  update of {role}: predicted {self.predicted[role] / GB:.3f} GB, measured "
            f"{self.measured[role] / GB:.3f} GB ({error:+.1%})"
            for role, error in self.errors().items()
        ]
        return "\n".join([f"{self.method}, {self.what}", *rows])


def verify_on_gpu(setup: Setup) -> Verified:
    """Runs a setup with a few of its blocks and random weights on this machine's GPU.

    Raises:
        BenchError: there is no CUDA GPU, or even that much does not fit on it.
    """
    if not torch.cuda.is_available():
        raise BenchError(
            "a plan can't be verified here",
            "torch sees no CUDA GPU on this machine, and a CPU's memory says nothing about one",
            "run plan --verify on the machine that is to train, or leave --verify out",
        )
    memory = torch.cuda.get_device_properties(0).total_memory
    try:
        return verify(reduced(setup, Machine(1, memory)), World(device="cuda"), cuda_peak)
    except torch.cuda.OutOfMemoryError as error:
        raise BenchError(
            f"{sum(BLOCKS)} blocks of {setup.skeleton.name} don't fit on this GPU",
            " ".join(str(error).split())[:300],
            "verify with fewer --frames or smaller clips",
        ) from error


@contextmanager
def cuda_peak(roles: Roles, optimizers: dict[str, torch.optim.Optimizer]) -> Iterator[Peak]:
    """What torch's allocator gave out at most."""
    peak = Peak()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    yield peak
    torch.cuda.synchronize()
    peak.bytes = float(torch.cuda.max_memory_allocated())


def reduced(setup: Setup, machine: Machine) -> Setup:
    """A setup with a few blocks for one GPU, with as many clips in hand as one GPU of the whole setup has."""
    doubles = min(BLOCKS[0], setup.skeleton.doubles)
    singles = min(BLOCKS[1], setup.skeleton.singles)
    clips = setup.clips
    skeleton = setup.skeleton.with_blocks(doubles, singles)
    return replace(setup, skeleton=skeleton, machine=machine, batch_size=clips, micro_batch=None)


@dataclass
class _Bench:
    """A setup in memory: roles, optimisers, clips."""

    setup: Setup
    world: World
    roles: Roles = field(init=False)
    optimizers: dict[str, torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        setup, skeleton = self.setup, self.setup.skeleton
        backbone = Untrained(
            dict(skeleton.config), skeleton.name, setup.video, self.world.device, setup.engine, skeleton.text_tokens
        )
        self.roles = Roles(backbone.network(), setup.specs, 0, setup.engine, self.world)
        self.clips = RandomClips(backbone, setup.clips)
        setup.method.models = self.roles
        self.optimizers = {
            name: torch.optim.AdamW(self.roles.parameters(name).values(), lr=1e-6)
            for name, spec in setup.specs.items()
            if spec.optimizer is not None
        }

    def updates(self, iteration: int) -> Iterator[tuple[str, Callable[[], None]]]:
        """An iteration's optimiser steps, one for each that differs: (role, what to run)."""
        seen: list[Any] = []
        for index, update in enumerate(self.setup.method.updates(iteration)):
            if update in seen:
                continue
            seen.append(update)

            def run(update: Any = update, index: int = index) -> None:
                self.roles.learn(update.role)
                batch = self.clips.batch(range(self.setup.clips))
                update.loss(batch, Rng(0, iteration, index, 1)).total.backward()
                optimizer = self.optimizers[update.role]
                torch.nn.utils.clip_grad_norm_(self.roles.parameters(update.role).values(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            yield update.role, run


def verify(setup: Setup, world: World, gauge: Gauge, sharding: Sharding = "replicate") -> Verified:
    """Runs the updates of a setup and compares peaks.

    Args:
        setup: for one GPU, use `reduced`; or for as many as ``world`` has processes.
        world: where it runs.
        gauge: a context manager that is given the roles and optimisers, and measures.
        sharding: how ``setup`` has its networks lie.
    """
    plan = Plan(setup)
    bench = _Bench(setup, world)
    for _, run in bench.updates(1):  # afterwards the moments are there
        run()
    measured: dict[str, float] = {}
    for iteration in range(2, 2 + ROUNDS):
        for role, run in bench.updates(iteration):
            with gauge(bench.roles, bench.optimizers) as peak:
                run()
            measured[role] = max(measured.get(role, 0.0), peak.bytes)
    predicted = {
        role: max(plan.at(step, sharding).allocated for step in setup.work.steps if step.role == role)
        for role in measured
    }
    skeleton, tokens = setup.skeleton, sum(setup.skeleton.tokens(setup.video))
    what = f"{skeleton.doubles} double and {skeleton.singles} single blocks of {skeleton.name}, {tokens:,} tokens"
    return Verified(setup.method.name, what, predicted, measured)
