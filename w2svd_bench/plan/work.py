"""Which networks a method evaluates: its own losses are run on tiny tensors with roles that only count.

So a method that nobody has heard of is planned like those that ship: all that is asked of it is its interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from w2svd_bench.backbones.costs import Meter
from w2svd_bench.errors import BenchError
from w2svd_bench.method import TEACHER, Method, RoleSpec, Update, average_of
from w2svd_bench.rng import Rng
from w2svd_bench.types import Batch, Cond

# A control decision (`Rng.choose_one`) takes its options in turn, so over this many iterations any number of options up
# to 4, and 6 and 12, are taken equally often.
ITERATIONS = 12
CLIPS = 2


Reach = Literal["nothing", "input", "weights"]


@dataclass(frozen=True)
class Pass:
    """One evaluation of a role on the batch.

    Attributes:
        role: whose.
        reach: how far gradients go: ``nothing`` (no graph is kept), ``input`` (through frozen weights) or ``weights``.
        returned: whether a backward pass came back through it.
        head: whether it is a discriminator's, on the features of the frozen network.
    """

    role: str
    reach: Reach
    returned: bool = False
    head: bool = False

    @property
    def network(self) -> Reach:
        """How far gradients go in the network: not at all where only a head on its features learns."""
        return "nothing" if self.head and self.reach == "weights" else self.reach


@dataclass(frozen=True)
class Step:
    """One optimiser step: who learns, and what its loss takes.

    Attributes:
        role: who learns.
        passes: in the order in which they are made.
        latents: tensors of the size of the batch's latents, in float32, that are alive when backward begins.
    """

    role: str
    passes: tuple[Pass, ...]
    latents: int = 0


Iterations = tuple[tuple[Step, ...], ...]


@dataclass(frozen=True)
class Work:
    """What a method's iterations do.

    Attributes:
        first: the steps of the first iteration, which may hold a warm-up, once for each turn of its control decisions.
        usual: those of the following ones.
    """

    first: Iterations
    usual: Iterations

    @property
    def steps(self) -> frozenset[Step]:
        """Every kind of step that occurs."""
        return frozenset(step for iteration in (*self.first, *self.usual) for step in iteration)

    @property
    def opens(self) -> bool:
        """Whether the first iteration does other work than any usual one, however its decisions fall."""
        first, usual = (
            {tuple((step.role, step.passes) for step in iteration) for iteration in some}
            for some in (self.first, self.usual)
        )
        return first.isdisjoint(usual)

    def passes(self, of: Iterations | None = None) -> dict[Pass, float]:
        """How often each pass is made in an iteration, in the mean over ``of`` (the usual ones), by each clip of the
        batch.
        """
        iterations = self.usual if of is None else of
        counts = Counter(one for iteration in iterations for step in iteration for one in step.passes)
        return {one: count / len(iterations) for one, count in counts.items()}

    def evaluations(self, of: Iterations | None = None) -> dict[str, dict[str, float]]:
        """Network evaluations a clip and iteration, by role: ``with_gradient``, ``without`` and ``backward``."""
        found: dict[str, dict[str, float]] = {}
        for one, count in sorted(self.passes(of).items(), key=lambda item: item[0].role):
            row = found.setdefault(one.role, {"with_gradient": 0.0, "without": 0.0, "backward": 0.0})
            row["without" if one.network == "nothing" else "with_gradient"] += count
            row["backward"] += count * (one.returned and one.network != "nothing")
        return found

    def updates(self, of: Iterations | None = None) -> dict[str, float]:
        """Optimiser steps an iteration, by role."""
        iterations = self.usual if of is None else of
        counts = Counter(step.role for iteration in iterations for step in iteration)
        return {role: count / len(iterations) for role, count in counts.items()}


class _Tally(torch.autograd.Function):
    """The identity on a sample that marks when a gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, record: dict[str, Any]) -> Tensor:
        ctx.record = record
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.record["returned"] = True
        return gradients[0], None


class _Role:
    """A role that gives ``weight x`` (or its mean, for a head) and writes down that it was asked."""

    def __init__(self, name: str, weight: Tensor, is_head: bool, records: list[dict[str, Any]]) -> None:
        self.name, self.weight, self.is_head, self.records = name, weight, is_head, records
        self.network = object()  # what `roles.both` looks at: no two of these share one

    def __call__(self, x_BCTHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        reach = "nothing"
        if torch.is_grad_enabled() and (self.weight.requires_grad or x_BCTHW.requires_grad):
            reach = "weights" if self.weight.requires_grad else "input"
        record = {"role": self.name, "reach": reach, "returned": False, "head": self.is_head}
        self.records.append(record)
        out: Tensor = _Tally.apply(self.weight * x_BCTHW, record)
        return out.flatten(1).mean(1) if self.is_head else out


class _Turns(Rng):
    """Random numbers whose control decisions take their options in turn."""

    def __init__(self, iteration: int, index: int, turn: int) -> None:
        super().__init__(0, iteration, index, 1)
        self._turn = turn

    def choose_one(self, options: int) -> int:
        return self._turn % options


def work_of(method: Method) -> Work:
    """Runs the updates of a method's first iterations on tiny latents.

    ``method.models`` is replaced: use an instance that serves nothing else.

    Raises:
        BenchError: a loss of the method can't be run so.
    """
    specs = method.roles()
    weights = {
        name: torch.full((), 0.5)
        for role, spec in specs.items()
        for name in ([role] if spec.ema is None else [role, average_of(role)])
    }
    weights[TEACHER] = torch.full((), 0.5)
    records: list[dict[str, Any]] = []
    # A view and the role that it looks at have the same weights.
    own = {name: weights[_source(specs, name)] for name in weights}
    method.models = {
        name: _Role(name, weight, name in specs and specs[name].weights == "head", records)
        for name, weight in own.items()
    }
    turns = range(1, ITERATIONS + 1)
    first = tuple(_iteration(method, own, records, 0, turn) for turn in turns)
    return Work(first, tuple(_iteration(method, own, records, turn, turn) for turn in turns))


def _source(specs: Mapping[str, RoleSpec], name: str) -> str:
    return specs[name].of if name in specs and specs[name].weights == "view" else name


def _iteration(
    method: Method, weights: Mapping[str, Tensor], records: list[dict[str, Any]], iteration: int, turn: int
) -> tuple[Step, ...]:
    steps: list[Step] = []
    done: list[Update] = []
    for index, update in enumerate(method.updates(iteration)):
        if update in done:  # a warm-up is the same update a hundred times over
            steps.append(steps[done.index(update)])
            done.append(update)
            continue
        for weight in weights.values():
            weight.requires_grad_(weight is weights[update.role])
            weight.grad = None
        records.clear()
        batch = _batch()
        try:
            with Meter() as meter:
                loss = update.loss(batch, _Turns(iteration, index, turn))
                alive = meter.now
                loss.total.backward()
        except Exception as error:
            raise BenchError(
                f"method {method.name!r} can't be planned",
                f"its loss for role {update.role!r} failed on small random latents: {type(error).__name__}: {error}",
                "a loss may only call `self.models`, on any size of latents",
            ) from error
        latents = 1 + round(alive / (batch.x0_BCTHW.numel() * batch.x0_BCTHW.element_size()))
        steps.append(Step(update.role, tuple(Pass(**record) for record in records), latents))
        done.append(update)
    return tuple(steps)


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    cond = Cond(torch.zeros(CLIPS, 2, 4), torch.ones(CLIPS, 2), torch.zeros(CLIPS, 4), torch.zeros(CLIPS, 4, 1, 8, 8))
    return Batch(torch.randn(CLIPS, 4, 4, 8, 8, generator=generator), cond)
