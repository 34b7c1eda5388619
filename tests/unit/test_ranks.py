"""An evaluation on several processes: the same numbers to the last bit, and no process waits for one that failed."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.portraits import clips
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.cell import evaluate, evaluate_floor
from w2svd_bench.evaluate.evalset import PortraitSet, shares
from w2svd_bench.evaluate.references import Reference, real_reference
from w2svd_bench.evaluate.sampling import Subject
from w2svd_bench.evaluate.scoring import Bench
from w2svd_bench.metrics.base import CorpusMetric, Features
from w2svd_bench.metrics.diagnostics import Reader
from w2svd_bench.metrics.mini import MiniFid, MiniFvd
from w2svd_bench.record import Record
from w2svd_bench.world import World, retold, told

REAL = 40


def quiet(done: int, total: int) -> None:
    """A progress that nobody reads."""


@dataclass(frozen=True)
class Nets:
    """The metrics, the frame net's reader, and what they make of a few real clips."""

    metrics: tuple[CorpusMetric, ...]
    reader: Reader
    reference: Reference


@pytest.fixture(scope="module")
def nets() -> Nets:
    metrics, reader, real = (MiniFid(), MiniFvd()), Reader(), clips("reference", range(REAL)).numpy()
    return Nets(metrics, reader, Reference({m.net.id: Features(m.features(real)) for m in metrics}, reader(real)))


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    """The teacher, once for each of three ranks and opened whole: diffusers can't open two at once in threads."""
    opened = [Subject.untrained("euler", Backbone.load("mini")) for _ in range(3)]
    for subject in opened:
        assert subject.backbone.text is not None and subject.backbone.codec is not None
    return opened


@dataclass
class Meeting:
    """What the ranks of a test tell each other."""

    size: int

    def __post_init__(self) -> None:
        self.said: list[bytes] = [b""] * self.size
        self.barrier = threading.Barrier(self.size, timeout=60)


@dataclass(frozen=True)
class Rank(World):
    """A process of several, played by a thread; what is exchanged is pickled, as between processes."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, value: Any) -> list[Any]:
        self.meeting.said[self.rank] = pickle.dumps(value)
        self.meeting.barrier.wait()
        said = [pickle.loads(one) for one in self.meeting.said]
        self.meeting.barrier.wait()
        return said

    def agree(self, decide: Callable[[], Any]) -> Any:
        said: tuple[Any, tuple[str, ...] | None] = None, None
        if self.lead:
            try:
                said = decide(), None
            except Exception as error:
                said = None, told(error)
        answer, failure = self.gather(said)[0]
        if failure is not None:
            raise retold(failure)
        return answer


def on_ranks(size: int, act: Callable[[World], Any]) -> list[Any]:
    """What ``act`` gives, or raises, on each of ``size`` ranks."""
    meeting, results = Meeting(size), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = act(Rank(rank, size, rank, "cpu", meeting))
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def plain(record: Record) -> dict[str, Any]:
    """A record without times and places."""
    return record.model_dump(exclude={"timing", "provenance"})


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_finds_the_same_to_the_last_bit(subjects: list[Subject], nets: Nets, size: int) -> None:
    """Sixteen clips in batches of three: six batches, the last of one clip, of which each rank gets some."""

    def cell(world: World) -> tuple[list[Record], list[int]]:
        asked: list[int] = []
        subject = subjects[world.rank]
        portraits = PortraitSet(subject.backbone.side, 16)
        bench = Bench(portraits, nets.reference, nets.metrics, nets.reader, world, 3)
        sampled = evaluate(subject, 2, bench, lambda done, total: asked.append(done))
        return [sampled, evaluate_floor(subject.backbone, bench, "codec")], asked

    alone, asked = cell(World())
    assert asked == [3, 6, 9, 12, 15, 16]
    for records, _ in (ranks := on_ranks(size, cell)):
        assert [plain(one) for one in records] == [plain(one) for one in alone]
        assert all(one.provenance["processes"] == size and one.provenance["clips_at_a_time"] == 3 for one in records)
    assert len(ranks[0][1]) == 6 // size and ranks[0][1][-1] == 16  # the first rank speaks for all


def test_batches_are_the_same_for_any_number_of_processes() -> None:
    batches = shares(10, 4, World())
    assert [list(one) for one in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for size in (2, 3, 5):
        dealt = [shares(10, 4, World(rank, size)) for rank in range(size)]
        assert sorted((one for share in dealt for one in share), key=lambda one: one[0]) == batches


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_rank_is_an_error_on_all(
    subjects: list[Subject], nets: Nets, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise BenchError("the network broke", f"on rank {failing}", "none")

    monkeypatch.setattr(subjects[failing].network, "velocity", broken)

    def cell(world: World) -> Record:
        subject = subjects[world.rank]
        portraits = PortraitSet(subject.backbone.side, 16)
        bench = Bench(portraits, nets.reference, nets.metrics, nets.reader, world, 4)
        return evaluate(subject, 1, bench, quiet)

    for error in on_ranks(2, cell):
        assert isinstance(error, BenchError) and error.why == f"on rank {failing}"


def test_ranks_make_the_reference_together(
    subjects: list[Subject], nets: Nets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("w2svd_bench.evaluate.evalset.REFERENCE_CLIPS", 10)
    drawn: list[int] = []
    whole = PortraitSet.reference_clips

    def counting(self: PortraitSet, indices: Sequence[int]) -> np.ndarray:
        drawn.extend(indices)
        return whole(self, indices)

    monkeypatch.setattr(PortraitSet, "reference_clips", counting)
    portraits = PortraitSet(subjects[0].backbone.side, 2)
    made = on_ranks(2, lambda world: real_reference(portraits, nets.metrics, nets.reader, quiet, world, 3))
    assert sorted(drawn) == list(range(10))
    real = clips("reference", range(10)).numpy()
    kept = real_reference(portraits, nets.metrics, nets.reader, quiet, batch=3)
    for one in (*made, kept):
        for metric in nets.metrics:
            assert np.array_equal(one.features[metric.net.id].values_NKD, metric.features(real))
        assert np.array_equal(one.readings, nets.reader(real))
    assert len(drawn) == 10
