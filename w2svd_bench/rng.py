"""Random numbers that depend on a key and nothing else, so that a resumed or a sharded run draws the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# What sets a stream apart from the others that share its key. The last word of a key is never 0 for this reason: a
# `SeedSequence` reads missing words as zeros.
CONTROL, ROWS, ORDER = 0x434F4E54, 0x524F5753, 0x4F524452


def generator(key: Sequence[int]) -> torch.Generator:
    """A generator whose numbers depend on the key only."""
    return _seeded(_states(key, 1)[0])


def _states(key: Sequence[int], count: int) -> np.ndarray:
    """``count`` independent seeds of a key; asking for more of them changes none."""
    return np.random.SeedSequence(list(key)).generate_state(count, np.uint64)


def _seeded(state: np.uint64) -> torch.Generator:
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))  # torch takes 63 bits


class Rng:
    """The random numbers of one update, keyed by (seed, iteration, update): nothing to save, nothing to restore.

    Every sample of the global batch has a stream of its own, so any split of the batch into processes and micro
    batches draws the same numbers. ``choose_one`` (a control decision, such as a simulated step) is one for all.
    Everything is drawn on the CPU in float32 and then moved, so a CPU and a GPU see the same numbers.

    Args:
        key: what the numbers depend on.
        rows: the numbers in the global batch of the samples at hand; None for a batch that is not split.
    """

    def __init__(self, *key: int, rows: Sequence[int] | None = None) -> None:
        self._key = key
        self._rows = rows
        self._control: torch.Generator | None = None
        self._streams: dict[int, torch.Generator] = {}

    def _samples(self, count: int) -> list[torch.Generator]:
        """The streams of the samples at hand, made when they are first needed."""
        rows = range(count) if self._rows is None else self._rows
        if len(rows) != count:
            raise ValueError(f"numbers for {count} samples were asked for, but {len(rows)} are at hand")
        missing = [row for row in rows if row not in self._streams]
        if missing:
            states = _states([*self._key, ROWS], max(missing) + 1)
            self._streams |= {row: _seeded(states[row]) for row in missing}
        return [self._streams[row] for row in rows]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, type and place of ``like``, whose first axis is the samples."""
        drawn = [torch.randn(like.shape[1:], generator=stream) for stream in self._samples(len(like))]
        return torch.stack(drawn).to(like)

    def uniform(self, count: int, like: Tensor) -> Tensor:
        """A number in [0, 1) for each of ``count`` samples, in the place of ``like``."""
        return torch.cat([torch.rand(1, generator=stream) for stream in self._samples(count)]).to(like.device)

    def choose(self, weights: Sequence[float], count: int, like: Tensor) -> Tensor:
        """An index drawn with the given weights for each of ``count`` samples, in the place of ``like``."""
        shares = torch.tensor(weights)
        drawn = [torch.multinomial(shares, 1, generator=stream) for stream in self._samples(count)]
        return torch.cat(drawn).to(like.device)

    def choose_one(self, options: int) -> int:
        """One of ``range(options)``, the same in every process and micro batch."""
        if self._control is None:
            self._control = generator([*self._key, CONTROL])
        return int(torch.randint(options, (), generator=self._control))


def clip_noise(shape: Sequence[int], seed: int, clips: Sequence[int], step: int) -> Tensor:
    """The noise of clips at one sampling step, (len(clips), *shape): it depends on (seed, clip, step) only.

    So a clip is the same whatever the batch size and however clips are spread over machines.
    """
    return torch.stack([torch.randn(tuple(shape), generator=generator([seed, clip, step])) for clip in clips])
