"""Validation while a method trains: what its average samples now, so that a collapse is seen when it happens.

It draws its noise by keys of its own and learns nothing, so training is the same to the last bit with and without it;
its seconds and network evaluations are not counted as training, nor is what it takes of a GPU's memory.
Axes: N clips of the set, B clips of a batch, P prompts, S seeds of one prompt; latents are (B, C, T, h, w), clips uint8
(B, F, H, W, 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.errors import BenchError, UnsupportedSteps
from w2svd_bench.flow import schedule
from w2svd_bench.method import Method
from w2svd_bench.rng import clip_noise
from w2svd_bench.samplers import Sampler
from w2svd_bench.train.log import CURVES, append, rewind
from w2svd_bench.types import Cond, Velocity
from w2svd_bench.world import World

Features = Mapping[str, np.ndarray]  # of some clips, (B, K, D) by net
STEPS = (1, 4)
TEACHER_STEPS = 28
PROMPTS, SEEDS = 2, 4  # whose samples tell the diversity
NOISE_SEED = 2_000_003  # of the validation's noise: the same in every run, and no run's own


@dataclass(frozen=True)
class Validation:
    """What is asked of the average on the way.

    Attributes:
        every: iterations between two points of the curves.
        cond: of the N prompts.
        read: clips to features.
        compare: features of all N clips, in order, to the value of each metric by its name.
        batch: clips that are sampled at a time.
        about: what the curves were measured with, for ``run.json``.
    """

    every: int
    cond: Cond
    read: Callable[[np.ndarray], Features]
    compare: Callable[[Features], Mapping[str, float]]
    batch: int
    about: Mapping[str, Any]


class Validator:
    """Measures one point of the curves at a time; all processes call it together.

    Args:
        teacher: the frozen teacher's velocity, whose diversity the generator's is held against.

    Raises:
        BenchError: the clips can't be shared evenly by the processes (a sharded network needs as many passes in each),
            they are fewer than the diversity needs, or the method can be sampled in none of `STEPS`.
    """

    def __init__(
        self, validation: Validation, method: Method, backbone: Backbone, teacher: Velocity, world: World
    ) -> None:
        self.validation, self.backbone, self.teacher, self.world = validation, backbone, teacher, world
        self.samplers = _offered(method)
        self._teacher_diversity: float | None = None
        count = len(validation.cond)
        if count % world.size or count < PROMPTS:
            raise BenchError(
                f"{count} validation clips can't be shared by {world.size} processes",
                f"each takes the same number of them, and there are at least {PROMPTS}",
                f"use --validate-clips {max(1, round(count / world.size)) * world.size}",
            )

    def point(self, velocity: Velocity) -> dict[str, Any]:
        """What the curves get of one iteration: ``metrics`` by "name@steps", ``diversity`` and ``saturation``.

        Both of the latter are those of the largest number of steps. Diversity is the root mean square distance between
        the latents of two samples of one prompt, as a share of the teacher's; saturation the share of values at 0 or
        255. ``broken`` counts clips with latents that are not finite: where there are any, there is no number.
        """
        metrics: dict[str, float] = {}
        broken, saturation = 0, None
        for steps, sampler in self.samplers.items():
            features, lost, saturation = self._clips(velocity, sampler)
            broken += lost
            if not lost:
                metrics |= {f"{name}@{steps}": value for name, value in self.validation.compare(features).items()}
        diversity = diversity_of(self._samples(velocity, sampler))
        if self._teacher_diversity is None:
            levels = tuple(schedule(TEACHER_STEPS, self.backbone.side.shift).tolist())
            self._teacher_diversity = diversity_of(self._samples(self.teacher, Sampler("ode", levels)))
        ratio = diversity / self._teacher_diversity
        return {
            "metrics": metrics,
            "diversity": ratio if math.isfinite(ratio) else None,
            "saturation": None if broken else saturation,
            "broken": broken,
        }

    def _clips(self, velocity: Velocity, sampler: Sampler) -> tuple[Features, int, float]:
        """The features of all clips, how many are not finite, and how many of their values are at an end."""
        part, batch = self.world.part(len(self.validation.cond)), self.validation.batch
        read: list[Features] = []
        broken, ends = 0, 0.0
        for indices in (part[first : first + batch] for first in range(0, len(part), batch)):
            cond = self._cond(indices)
            latents = self._sample(velocity, sampler, cond, indices)
            frames, finite = self.backbone.decode_checked(latents.nan_to_num(), cond)
            broken += int((~(torch.isfinite(latents.flatten(1)).all(1).cpu() & finite)).sum())
            ends += saturation_of(frames) * len(indices) / len(part)
            read.append(self.validation.read(frames.numpy()))
        everyones = self.world.gather((read, broken, ends))
        parts = [features for theirs, _, _ in everyones for features in theirs]
        joined = {net: np.concatenate([one[net] for one in parts]) for net in parts[0]}
        return joined, sum(n for _, n, _ in everyones), sum(share for _, _, share in everyones) / self.world.size

    def _samples(self, velocity: Velocity, sampler: Sampler) -> Tensor:
        """Latents (P, S, C, T, h, w) of some prompts by several seeds; the same in every process."""
        count = len(self.validation.cond)
        made = []
        for prompt in range(PROMPTS):
            numbers = range(count + prompt * SEEDS, count + (prompt + 1) * SEEDS)  # other noise than the set's
            for first in range(0, SEEDS, self.validation.batch):
                few = numbers[first : first + self.validation.batch]
                made.append(self._sample(velocity, sampler, self._cond([prompt] * len(few)), few))
        return torch.cat(made).unflatten(0, (PROMPTS, SEEDS))

    def _cond(self, indices: Sequence[int]) -> Cond:
        rows = torch.tensor(indices, device=self.validation.cond.tokens_BLD.device)
        return self.validation.cond.rows(rows).to(self.backbone.device)

    @torch.no_grad()
    def _sample(self, velocity: Velocity, sampler: Sampler, cond: Cond, numbers: Sequence[int]) -> Tensor:
        drawn = range(1 if sampler.kind == "ode" else sampler.nfe)
        fresh = [
            clip_noise(self.backbone.latent_shape, NOISE_SEED, numbers, step).to(self.backbone.device) for step in drawn
        ]
        fresh[0] = self.backbone.start(fresh[0], cond)
        return sampler(velocity, cond, fresh.__getitem__)


class Curves:
    """Writes ``curves.jsonl`` of a run, whose lines after the iteration it resumes at are left out."""

    def __init__(self, validator: Validator, folder: Path, resumed_at: int) -> None:
        self.validator, self.folder, self.every = validator, folder, validator.validation.every
        kept = validator.world.agree(lambda: rewind(folder, resumed_at, CURVES))
        self._done = {entry["iteration"] for entry in kept}

    def measure(self, iteration: int, velocity: Velocity, more: Mapping[str, float | None]) -> None:
        """Adds the line of an iteration, unless it is there: the validator's point, and ``more``."""
        if iteration in self._done:
            return
        line = {"iteration": iteration, **more, **self.validator.point(velocity)}
        self.validator.world.agree(lambda: append(self.folder, line, CURVES))


def diversity_of(latents_PSCTHW: Tensor) -> float:
    """The root mean square distance between two samples of one prompt, averaged over pairs and prompts."""
    flat = latents_PSCTHW.float().flatten(2)
    first, second = torch.triu_indices(flat.shape[1], flat.shape[1], offset=1).to(flat.device)
    return float((flat[:, first] - flat[:, second]).square().mean(-1).sqrt().mean())


def saturation_of(frames: Tensor) -> float:
    """The share of uint8 values that are 0 or 255."""
    return float(((frames == 0) | (frames == 255)).float().mean())


def _offered(method: Method) -> dict[int, Sampler]:
    samplers: dict[int, Sampler] = {}
    refusal: UnsupportedSteps | None = None
    for steps in STEPS:
        try:
            samplers[steps] = method.sampler(steps)
        except UnsupportedSteps as error:
            refusal = error
    if not samplers:
        assert refusal is not None
        raise BenchError(
            f"{method.name} can't be validated while it trains",
            f"validation samples in {' and '.join(map(str, STEPS))} steps, and {refusal.why}",
            "leave --validate-every out, and evaluate the finished run",
        )
    return samplers
