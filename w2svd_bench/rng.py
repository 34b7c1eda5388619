"""Random numbers that depend on a key and nothing else, so that a resumed or a sharded run draws the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def _generator(key: Sequence[int]) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> 1))


class Rng:
    """The random numbers of one update, keyed by (seed, iteration, update): nothing to save, nothing to restore.

    Everything is drawn on the CPU in float32 and then moved, so a CPU and a GPU see the same numbers. Data noise
    differs between ranks; ``choose_one`` (a control decision, such as a simulated step) does not.
    """

    def __init__(self, *key: int, rank: int = 0) -> None:
        self._control = _generator([*key, 0])
        self._noise = _generator([*key, 1, rank])

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, type and place of ``like``."""
        return torch.randn(like.shape, generator=self._noise).to(like)

    def uniform(self, count: int, like: Tensor) -> Tensor:
        """``count`` numbers in [0, 1), in the place of ``like``."""
        return torch.rand(count, generator=self._noise).to(like.device)

    def choose(self, weights: Sequence[float], count: int, like: Tensor) -> Tensor:
        """``count`` indices drawn with the given weights, in the place of ``like``."""
        drawn = torch.multinomial(torch.tensor(weights), count, replacement=True, generator=self._noise)
        return drawn.to(like.device)

    def choose_one(self, options: int) -> int:
        """One of ``range(options)``, the same on every rank."""
        return int(torch.randint(options, (), generator=self._control))


def clip_noise(shape: Sequence[int], seed: int, clips: Sequence[int], step: int) -> Tensor:
    """The noise of clips at one sampling step, (len(clips), *shape): it depends on (seed, clip, step) only.

    So a clip is the same whatever the batch size and however clips are spread over machines.
    """
    return torch.stack([torch.randn(tuple(shape), generator=_generator([seed, clip, step])) for clip in clips])
