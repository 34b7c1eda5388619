"""The interface of a method: this is the page to read before writing one.

A method says four things and does nothing else:
  * ``Config``: its settings, validated;
  * ``roles()``: which models it needs beside the frozen teacher, and how each shares or copies the teacher's weights;
  * ``updates(iteration)``: who learns when: a list of (role, loss), each one optimiser step of exactly one role;
  * ``sampler(steps)``: how the trained generator is sampled.
The trainer owns the rest: optimisers, backward, clipping, finite checks, averages, logs, checkpoints.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from w2svd_bench.config import Frozen, Optimizer, load_recipe
from w2svd_bench.errors import NoRecipe
from w2svd_bench.rng import Rng
from w2svd_bench.samplers import Sampler
from w2svd_bench.types import GENERATOR, TEACHER, Batch, Loss, Velocity, average_of

__all__ = ["GENERATOR", "TEACHER", "Method", "RoleSpec", "Update", "average_of"]


@dataclass(frozen=True)
class RoleSpec:
    """How a role's weights come from the teacher's; made by one of the class methods.

    Attributes:
        weights: ``full`` a trainable copy; ``lora`` a trainable low-rank branch on the shared teacher; ``view``
            another role's LoRA at another strength, ``teacher`` the frozen teacher itself: both have no weights of
            their own; ``head`` a small discriminator on the
            teacher's features.
        optimizer: for the trained kinds.
        ema: decay of an exponential moving average, kept as role ``<name>_ema``; None for none.
        rank: of the LoRA.
        of: for a view, the LoRA role that it looks at.
        strength: of the LoRA in this role's forward pass; 0 is the teacher itself.
    """

    weights: Literal["full", "lora", "view", "teacher", "head"]
    optimizer: Optimizer | None = None
    ema: float | None = None
    rank: int = 0
    of: str = ""
    strength: float = 1.0

    @classmethod
    def full(cls, optimizer: Optimizer, ema: float | None = None) -> RoleSpec:
        """A trainable copy of the whole teacher."""
        return cls("full", optimizer, ema)

    @classmethod
    def lora(cls, optimizer: Optimizer, rank: int, ema: float | None = None, strength: float = 1.0) -> RoleSpec:
        """A trainable LoRA on the shared, frozen teacher."""
        return cls("lora", optimizer, ema, rank=rank, strength=strength)

    @classmethod
    def view(cls, of: str, strength: float) -> RoleSpec:
        """Another role's LoRA at a strength of its own."""
        return cls("view", of=of, strength=strength)

    @classmethod
    def teacher(cls) -> RoleSpec:
        """The frozen teacher, under another name."""
        return cls("teacher")

    @classmethod
    def head(cls, optimizer: Optimizer) -> RoleSpec:
        """A discriminator on the frozen teacher's features: ``(x_t, t, cond)`` to logits (B,)."""
        return cls("head", optimizer)


@dataclass(frozen=True)
class Update:
    """One optimiser step of exactly one role. ``loss(batch, rng)`` may call any role; only ``role`` gets a gradient."""

    role: str
    loss: Callable[[Batch, Rng], Loss]


class Method(ABC):
    """A distillation method. One instance serves one run.

    Attributes:
        name: what the registry and the tables call it.
        Config: a frozen pydantic model of its settings; unknown keys are errors.
        recipes: recipes by backbone, for a method that lives in one file; others lay ``<backbone>.yaml`` beside it.
        models: the roles by name, as callables ``v(x_t, t, cond)``, with ``teacher`` and the averages; filled in by
            the trainer before the first update.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Frozen]] = Frozen
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, config: Any, shift: float) -> None:
        """Takes validated settings and the shift of the backbone's noise schedule."""
        self.config = config
        self.shift = shift
        self.models: Mapping[str, Velocity] = {}

    def roles(self) -> Mapping[str, RoleSpec]:
        """The roles beside the teacher; none for a method that needs no training."""
        return {}

    def updates(self, iteration: int) -> Sequence[Update]:
        """The optimiser steps of one iteration, in order; one iteration holds one update of the generator."""
        return ()

    @abstractmethod
    def sampler(self, steps: int) -> Sampler:
        """The sampler for a number of steps; raises `UnsupportedSteps` where the method has none."""

    @classmethod
    def recipe(cls, backbone: str) -> dict[str, Any]:
        """The method's recipe for a backbone, as a plain mapping; raises `NoRecipe` where there is none."""
        if backbone in cls.recipes:
            return load_recipe(cls.recipes[backbone])
        folder = Path(inspect.getfile(cls)).parent
        path = folder / f"{backbone}.yaml"
        if not path.is_file():
            raise NoRecipe(
                f"method {cls.name!r} has no recipe for backbone {backbone!r}",
                f"there is no file {path.name} beside its code, and its class attribute `recipes` has no such key",
                "give one with --recipe FILE",
            )
        return load_recipe(path)
