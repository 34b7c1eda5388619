"""Random numbers and the order of clips: keyed, so the same however a batch is split and wherever a run is resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from w2svd_bench.data.order import rows_of
from w2svd_bench.rng import Rng

SPLITS: list[list[Sequence[int]]] = [
    [range(0, 4), range(4, 8)],
    [[0], [1, 2], range(3, 8)],
    [[7, 2, 5], [0, 1, 3, 4, 6]],
]


def test_random_numbers_depend_on_their_key_and_nothing_else() -> None:
    like = torch.zeros(3, 2)
    assert torch.equal(Rng(0, 5, 1).normal(like), Rng(0, 5, 1).normal(like))
    keys = [(0, 5, 1), (1, 5, 1), (0, 6, 1), (0, 5, 2), (0, 5, 1, 1), (0, 5)]
    drawn = torch.cat([Rng(*key).normal(like) for key in keys])  # every sample of every key is unlike all others
    assert (torch.cdist(drawn, drawn) + torch.eye(len(drawn)) > 0.01).all()


def draws(rng: Rng, count: int) -> list[Tensor]:
    """What a loss may ask for, in some order."""
    x = torch.zeros(count, 2, 3)
    found = [rng.normal(x), rng.choose([1.0, 2.0, 3.0], count, x), rng.normal(x[:, 0]), rng.uniform(count, x)]
    return [*found, rng.normal(x)]


@pytest.mark.parametrize("parts", SPLITS)
def test_any_split_of_a_batch_draws_the_same_numbers(parts: list[Sequence[int]]) -> None:
    whole = draws(Rng(3, 1, 4), 8)
    order = [row for rows in parts for row in rows]
    split = [draws(Rng(3, 1, 4, rows=rows), len(rows)) for rows in parts]
    for index, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[index] for part in split]), expected[order])
    assert not any(torch.equal(whole[0], one) for one in (whole[4], draws(Rng(3, 1, 5), 8)[0]))
    # Control decisions belong to no sample, and do not disturb the samples' numbers.
    rngs = [Rng(3, 1, 4), *(Rng(3, 1, 4, rows=rows) for rows in parts)]
    decisions = [[rng.choose_one(1000) for _ in range(4)] for rng in rngs]
    assert len(set(decisions[0])) > 1
    assert all(one == decisions[0] for one in decisions)
    assert torch.equal(rngs[0].normal(torch.zeros(8, 2, 3)), whole[0])


def test_numbers_for_another_count_than_the_samples_at_hand_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples"):
        Rng(0, rows=range(3)).uniform(2, torch.zeros(1))


def test_drawn_numbers_have_their_distributions() -> None:
    rng, like = Rng(0), torch.zeros(4000, 3)
    normal, uniform = rng.normal(like), rng.uniform(4000, like)
    assert (float(normal.mean()), float(normal.std())) == pytest.approx((0.0, 1.0), abs=0.03)
    assert abs(float((normal[:-1] * normal[1:]).mean())) < 0.03  # neighbours have nothing in common
    assert (float(uniform.min()), float(uniform.max())) == pytest.approx((0.0, 1.0), abs=0.005)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    shares = torch.bincount(rng.choose([1.0, 0.0, 3.0], 4000, like), minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.25, 0.0, 0.75], abs=0.03)


def test_the_simulated_step_does_not_depend_on_the_clip_or_its_noise() -> None:
    """The clips of a batch, the control decisions of its loss and its noise are drawn under neighbouring keys."""
    like, by_clip, by_noise = torch.zeros(1), Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for iteration in range(1600):
        rng = Rng(0, iteration, 2)
        step = rng.choose_one(4)
        by_clip[rows_of(4, 1, iteration, 0)[0], step] += 1
        by_noise[int(rng.choose([1.0] * 4, 1, like)), step] += 1
    expected = 100.0
    for pairs in (by_clip, by_noise):
        chi_square = sum((pairs[i, step] - expected) ** 2 / expected for i in range(4) for step in range(4))
        assert chi_square < 40  # 15 degrees of freedom: above 40 in one of two thousand


@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (3, 8), (5, 1)])
def test_every_clip_is_drawn_once_an_epoch_in_an_order_of_its_own(count: int, size: int) -> None:
    positions = [row for draw in range(3 * count) for row in rows_of(count, size, draw, seed=7)]
    assert len(positions) == 3 * count * size
    epochs = [positions[start : start + count] for start in range(0, len(positions) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    # Any batch can be had without those before it, and another seed has other ones.
    assert rows_of(count, size, 5, seed=7) == positions[5 * size : 6 * size]
    assert [rows_of(count, size, draw, seed=8) for draw in range(3 * count)] != [
        rows_of(count, size, draw, seed=7) for draw in range(3 * count)
    ]


def test_an_empty_data_set_has_no_batches() -> None:
    with pytest.raises(ValueError, match="without clips"):
        rows_of(0, 1, 0, 0)
