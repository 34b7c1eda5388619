"""The order in which training clips are drawn: every clip once an epoch, known without any state."""

from __future__ import annotations

import torch

from w2svd_bench.rng import ORDER, generator


def rows_of(count: int, size: int, draw: int, seed: int) -> list[int]:
    """The clips of a batch: positions ``draw * size`` to ``(draw + 1) * size`` of an endless list of shuffled epochs.

    Each epoch is a permutation of all clips, keyed by (seed, epoch). A resumed run needs to know nothing but how many
    batches it has drawn; neither processes nor micro batches change what a batch holds.

    Args:
        count: clips of the data set.
        size: clips of a batch, over all processes; it may be larger than the data set.
        draw: how many batches were drawn before.
        seed: of the run.
    """
    if count < 1:
        raise ValueError("a data set without clips has no batches")
    rows: list[int] = []
    position, end = draw * size, (draw + 1) * size
    while position < end:
        epoch, first = divmod(position, count)
        last = min(count, first + end - position)
        order = torch.randperm(count, generator=generator([seed, epoch, ORDER]))
        rows += order[first:last].tolist()
        position += last - first
    return rows
