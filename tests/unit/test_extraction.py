"""Every clip is made once and read once, whatever is asked of it later and however often work is interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate import references
from w2svd_bench.evaluate.ahead import ahead
from w2svd_bench.evaluate.cell import evaluate
from w2svd_bench.evaluate.evalset import PortraitSet
from w2svd_bench.evaluate.extraction import Extraction, Part
from w2svd_bench.evaluate.origin import real_key, run_key, teacher_key
from w2svd_bench.evaluate.references import Reference, readers, real_reference, teacher_reference, teacher_sampler
from w2svd_bench.evaluate.sampling import Sampled, Subject
from w2svd_bench.evaluate.scoring import Bench
from w2svd_bench.evaluate.store import ClipLog, FeatureStore
from w2svd_bench.evaluate.videos import Videos
from w2svd_bench.metrics.base import STAND_IN, ClipFile, ClipMetric, Dimension, FeatureNet, Features
from w2svd_bench.metrics.frechet import FrechetMetric
from w2svd_bench.metrics.gaussian import Reference as Factored
from w2svd_bench.record import Score, SkippedScore
from w2svd_bench.types import Skipped
from w2svd_bench.world import World

COUNT, BATCH = 20, 3


def quiet(done: int, total: int) -> None:
    """A progress that nobody reads."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path / "cache"))


class Means(FeatureNet):
    """The mean colour of each half of a clip; counts the clips that it is shown."""

    weights_sha256 = ""

    def __init__(self, name: str = "means", flags: tuple[str, ...] = ()) -> None:
        self.id, self._flags = name, flags  # type: ignore[misc]
        self.seen = 0

    @property
    def flags(self) -> tuple[str, ...]:
        return self._flags

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        self.seen += len(clips_BFHWC)
        middle = clips_BFHWC.shape[1] // 2
        halves = [clips_BFHWC[:, :middle], clips_BFHWC[:, middle:]]
        return np.stack([half.astype(np.float32).mean((1, 2, 3)) for half in halves], axis=1)

    id = ""


class Colour(FrechetMetric):
    name, version = "colour", 1


class Making:
    """Makes clips of noise by their numbers, and may be interrupted."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.made: list[int] = []
        self.stop_after = stop_after

    def __call__(self, batches: Sequence[range]) -> Iterator[Sampled]:
        for batch in batches:
            if self.stop_after is not None and len(self.made) >= self.stop_after:
                raise KeyboardInterrupt
            self.made += batch
            frames = [np.random.default_rng(k).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8) for k in batch]
            latents = torch.stack([torch.full((1, 2, 2), float(k)) for k in batch])
            yield Sampled(list(batch), latents, torch.from_numpy(np.stack(frames)), 0.5, 0.25)


def read(making: Making, net: FeatureNet, batch: int = BATCH) -> list[Part]:
    extraction = Extraction({net.id: net.features}, batch=batch, store=FeatureStore())
    return extraction.parts(COUNT, making, quiet, ClipLog("0" * 64))


def joined(parts: Sequence[Part], net: Means) -> np.ndarray:
    return np.concatenate([part.features[net.id] for part in parts])


def test_a_second_reading_makes_no_clip_and_runs_no_net() -> None:
    first, again, net = Making(), Making(), Means()
    parts = read(first, net)
    assert first.made == list(range(COUNT)) and net.seen == COUNT
    same = read(again, net)
    assert again.made == [] and net.seen == COUNT
    assert np.array_equal(joined(same, net), joined(parts, net))
    # What was measured while the clips were made is known, too.
    assert [part.logged for part in same] == [part.logged for part in parts]
    assert same[1].logged.power == [9.0, 16.0, 25.0] and same[1].logged.seconds == (0.5, 0.25)


def test_another_net_reads_clips_that_are_made_again() -> None:
    read(Making(), Means())
    making, other = Making(), Means("other")
    read(making, other)
    assert making.made == list(range(COUNT)) and other.seen == COUNT


def test_a_raised_version_reads_anew() -> None:
    """What the code of an older version read of a clip is not published as the newer one's; versions 1 share it."""

    class Other(FrechetMetric):
        name, version = "other", 1

    class Raised(Colour):
        version = 2

    class RaisedToo(Other):
        version = 2

    net, made = Means(), []
    for metric in (Colour(net), Other(net), Raised(net), Raised(net), RaisedToo(net), Colour(net)):
        read(making := Making(), metric.net)
        made.append(len(making.made))
    assert made == [COUNT, 0, COUNT, 0, COUNT, 0] and net.seen == 3 * COUNT
    assert Colour(net).net is net and Colour(net).id == f"colour v1; means; {Colour(net).distance}"
    raised = Raised(Means("stand-in", (STAND_IN,))).net
    assert (raised.flags, raised.weights_sha256, raised.refuses(4, 8, 8)) == ((STAND_IN,), "", None)


def test_an_interrupted_reading_goes_on_where_it_stopped() -> None:
    net, whole = Means(), Means("undisturbed")
    expected = joined(read(Making(), whole), whole)
    with pytest.raises(KeyboardInterrupt):
        read(Making(stop_after=8), net)
    assert net.seen == 9
    rest = Making()
    parts = read(rest, net)
    assert rest.made == list(range(9, COUNT)) and net.seen == COUNT
    assert [part.first for part in parts] == list(range(0, COUNT, BATCH))
    assert np.array_equal(joined(parts, net), expected)


def test_clips_that_are_not_finite_are_made_again() -> None:
    class Broken(Making):
        def __call__(self, batches: Sequence[range]) -> Iterator[Sampled]:
            for clips in super().__call__(batches):
                assert clips.latents is not None
                clips.latents[0, 0, 0, 0] = float("nan")
                yield clips

    parts = read(Broken(), net := Means())
    assert [part.logged.broken for part in parts] == [1] * 7
    again = Broken()
    read(again, net)
    assert again.made == list(range(COUNT))


def test_metrics_over_one_net_share_its_features() -> None:
    class Other(Colour):
        name = "other"

    portraits, net = PortraitSet(Backbone.load("mini").side, 8), Means()
    nets, refused = readers(portraits, [Colour(net), Other(net)], None)
    assert list(nets) == ["means"] and not refused


def test_a_reference_is_shared_by_metrics_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2svd_bench.evaluate.evalset.REFERENCE_CLIPS", 10)
    portraits, net = PortraitSet(Backbone.load("mini").side, 8), Means()
    first = real_reference(portraits, [Colour(net)], None, quiet, batch=4)
    again = real_reference(portraits, [Colour(net)], None, quiet, batch=4)
    assert net.seen == 10
    assert np.array_equal(first.features["means"].values_NKD, again.features["means"].values_NKD)


def test_the_teacher_is_a_reference_with_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clips are of the same prompts, and none is one that the teacher's own row is made of."""
    monkeypatch.setattr("w2svd_bench.evaluate.references.TEACHER_STEPS", 2)
    subject = Subject.untrained("euler", Backbone.load("mini"))
    portraits, net = PortraitSet(subject.backbone.side, 8), Means()
    metric, store = Colour(net), FeatureStore()
    teacher = teacher_reference(portraits, subject.backbone, [metric], quiet, store=store)
    assert teacher.name is not None and "teacher" in teacher.name and "1000003" in teacher.name
    assert list(teacher.features["means"].keys or ()) == portraits.prompts
    bench = Bench(portraits, Reference(teacher.features), [metric], None, teacher=teacher, store=store)
    record = evaluate(subject, 2, bench, quiet)
    assert net.seen == 16
    versus = record.metrics["colour vs teacher"]
    assert isinstance(versus, Score) and versus.reference == teacher.name and versus.value > 0
    ours = record.metrics["colour"]
    assert isinstance(ours, Score) and ours.reference is None
    evaluate(subject, 2, bench, quiet)
    assert net.seen == 16  # the second evaluation of a run shows the net nothing


def test_equal_origins_have_equal_keys_and_others_do_not() -> None:
    backbone = Backbone.load("mini")
    subject, sampler = Subject.untrained("euler", backbone), teacher_sampler(backbone)
    few, more = PortraitSet(backbone.side, 8), PortraitSet(backbone.side, 9)
    ours = run_key(subject, subject.method.sampler(28), few, 64)
    assert ours == teacher_key(backbone, sampler, few, 0, 64)  # a run of the bare teacher is the teacher
    others = [
        run_key(subject, subject.method.sampler(4), few, 64),
        run_key(subject, subject.method.sampler(28), more, 64),
        run_key(subject, subject.method.sampler(28), few, 32),
        teacher_key(backbone, sampler, few, 1, 64),
        real_key(backbone, few, True, 64),
        real_key(backbone, few, False, 64),
    ]
    subject.run.weights_sha256 = "0" * 64
    others.append(run_key(subject, subject.method.sampler(28), few, 64))
    assert len({ours, *others}) == 1 + len(others)


class Files(ClipMetric):
    """Reads files: their length in bytes, the number in their prompt's key, and one that small clips don't have."""

    name, version, direction = "files", 1, "up"

    def __init__(self, fails: Callable[[ClipFile], str | None] = lambda clip: None) -> None:
        self.asked: list[list[ClipFile]] = []
        self._fails = fails

    @property
    def dimensions(self) -> Sequence[Dimension]:
        return [Dimension(f"files.{name}", "up", 1, f"files {name} v1") for name in ("size", "large")]

    def refuses(self, frames: int, height: int, width: int, fps: float) -> Mapping[str, str]:
        return {"files.large": f"it needs 64 pixels, not {height}"} if height < 64 else {}

    def score(
        self, clips: Sequence[ClipFile], progress: Callable[[int, int], None]
    ) -> Mapping[str, Sequence[float | Skipped]]:
        self.asked.append(list(clips))
        values: list[float | Skipped] = []
        for clip in clips:
            reason = self._fails(clip)
            values.append(Skipped(reason) if reason else float(clip.path.stat().st_size))
        return {"files.size": values}


def by_file(metric: Files) -> tuple[Subject, Bench]:
    subject = Subject.untrained("euler", Backbone.load("mini"))
    bench = Bench(PortraitSet(subject.backbone.side, 9), Reference({}), [], None, clip_metrics=[metric])
    return subject, bench


def test_metrics_of_files_get_every_clip_as_a_video(tmp_path: Path) -> None:
    metric = Files()
    subject, bench = by_file(metric)
    record = evaluate(subject, 1, Bench(**vars(bench) | {"store": FeatureStore(), "batch": 4}), quiet)
    (asked,) = metric.asked
    assert [clip.prompt for clip in asked] == bench.eval_set.prompts
    assert all((clip.frames, clip.height, clip.width, clip.fps, clip.image) == (17, 48, 48, 12, None) for clip in asked)
    size = record.metrics["files.size"]
    assert isinstance(size, Score) and size.n == 9 and len(size.values) == 9 and size.se > 0
    assert size.value == pytest.approx(float(np.mean([value for value in size.values if value is not None])))
    large = record.metrics["files.large"]
    assert isinstance(large, SkippedScore) and large.skipped == "it needs 64 pixels, not 48"
    assert not list((tmp_path / "cache").rglob("*.mp4"))  # they are deleted once they are scored
    again = evaluate(subject, 1, Bench(**vars(bench) | {"store": FeatureStore(), "batch": 4}), quiet)
    assert len(metric.asked) == 1 and again.metrics == record.metrics


def test_each_kind_of_device_keeps_what_it_read() -> None:
    """Which one came first is nothing that a score may depend on; two GPUs are of one kind."""
    metric, net, log = Files(), Means(), ClipLog("0" * 64)
    portraits = PortraitSet(Backbone.load("mini").side, 9)
    read = []
    for device in ("cpu", "cuda:0", "cuda:1", "cpu"):
        world, store = World(device=device), FeatureStore()
        bench = Bench(portraits, Reference({}), [Colour(net)], None, world, clip_metrics=[metric], store=store)
        bench.clips(Making(), quiet, log, given=False)
        read.append((net.seen, len(metric.asked)))
    assert read == [(9, 1), (18, 2), (18, 2), (18, 2)]


def test_small_clips_are_enlarged_for_metrics_that_need_it() -> None:
    class Large(Files):
        least_side = 100
        seen: tuple[int, ...] = ()

        def score(
            self, clips: Sequence[ClipFile], progress: Callable[[int, int], None]
        ) -> Mapping[str, Sequence[float | Skipped]]:
            self.seen = iio.imread(clips[0].path).shape
            return dict(super().score(clips, progress)) | {"files.large": [1.0] * len(clips)}

    metric = Large()
    record = evaluate(*by_file(metric)[:1], 1, by_file(metric)[1], quiet)
    assert metric.seen == (17, 144, 144, 3)
    assert all((clip.height, clip.width) == (144, 144) for clip in metric.asked[0])
    for score in record.metrics.values():  # none is refused: what is read is large enough
        assert isinstance(score, Score) and score.flags == ("clips enlarged 3x",)


def test_a_clip_without_a_value_leaves_no_score() -> None:
    metric = Files(lambda clip: "it is blank" if clip.path.stem.endswith("4") else None)
    subject, bench = by_file(metric)
    score = evaluate(subject, 1, bench, quiet).metrics["files.size"]
    assert isinstance(score, SkippedScore) and score.skipped == "1 of 9 clips: it is blank"


def test_videos_that_wait_are_scored_without_being_made_again() -> None:
    """The scoring program broke down; when it is mended, no clip is sampled."""

    def broken(clip: ClipFile) -> str | None:
        raise RuntimeError("the program broke down")

    subject, bench = by_file(Files(broken))
    with pytest.raises(RuntimeError, match="broke down"):
        evaluate(subject, 1, Bench(**vars(bench) | {"store": FeatureStore()}), quiet)
    whole = Files()
    mended = Bench(**vars(bench) | {"store": FeatureStore(), "clip_metrics": [whole]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject.network, "velocity", lambda *given: pytest.fail("a clip was sampled again"))
        record = evaluate(subject, 1, mended, quiet)
    assert isinstance(record.metrics["files.size"], Score) and len(whole.asked[0]) == 9


def test_scores_by_stand_in_weights_say_so() -> None:
    subject = Subject.untrained("euler", Backbone.load("mini"))
    portraits, net = PortraitSet(subject.backbone.side, 8), Means(flags=(STAND_IN,))
    real = real_features(portraits, net)
    record = evaluate(subject, 1, Bench(portraits, real, [Colour(net)], None), quiet)
    (name,) = record.metrics
    assert name == "colour[stand-in]" and STAND_IN in record.metrics[name].flags  # type: ignore[union-attr]


def real_features(portraits: PortraitSet, net: Means) -> Reference:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("w2svd_bench.evaluate.evalset.REFERENCE_CLIPS", 10)
        return real_reference(portraits, [Colour(net)], None, quiet)


def test_work_ahead_is_in_order_bounded_and_passes_errors_on() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def slow(k: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002 * (k % 3))
        with lock:
            running[0] -= 1
        if k == 17:
            raise ValueError("seventeen")
        return k * k

    assert list(ahead(slow, range(12), depth=4, workers=3)) == [k * k for k in range(12)]
    assert 1 < most[0] <= 3
    results = ahead(slow, range(20), depth=4, workers=3)
    with pytest.raises(ValueError, match="seventeen"):
        for expected, found in enumerate(results):
            assert found == expected**2
    started: list[int] = []
    lazy = ahead(lambda k: started.append(k), range(100), depth=2)
    next(lazy)
    assert len(started) <= 4


def test_two_references_are_prepared_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, of = [], Factored.of
    monkeypatch.setattr(Factored, "of", staticmethod(lambda *a, **k: (calls.append(1), of(*a, **k))[1]))
    rng = np.random.default_rng(0)

    def make(n: int) -> Features:
        return Features(rng.normal(size=(n, 1, 4)).astype(np.float32))

    metric, real, teacher = Colour(Means()), make(30), make(20)
    for _ in range(3):
        for reference in (real, teacher):
            metric.compare(make(20), reference)
    assert len(calls) == 2


class Rate(ClipMetric):
    """The frame rate, and the height in pixels, that it is shown."""

    name, version, direction = "rate", 1, "up"
    dimensions = (Dimension("rate.fps", "up", 1, "rate.fps v1"),)

    def refuses(self, frames: int, height: int, width: int, fps: float) -> Mapping[str, str]:
        return {}

    def score(
        self, clips: Sequence[ClipFile], progress: Callable[[int, int], None]
    ) -> Mapping[str, Sequence[float | Skipped]]:
        return {"rate.fps": [clip.fps * 1000 + clip.height for clip in clips]}


def test_values_of_clips_are_kept_by_rate_and_size() -> None:
    """The same pixels at another rate, or enlarged, are another clip to a metric of files."""
    side = Backbone.load("mini").side
    for fps, least, wanted in ((8.0, 0, 8048.0), (24.0, 0, 24048.0), (24.0, 96, 24096.0)):
        metric, log = Rate(), ClipLog(f"{fps}".ljust(40, "0"))
        metric.least_side = least  # type: ignore[misc]
        videos = Videos(log, PortraitSet(replace(side, fps=fps), 3), [metric], quiet)
        (part,) = Extraction({}, batch=3, store=FeatureStore()).parts(3, Making(), quiet, log, videos)
        assert part.values["rate.fps"] == [wanted] * 3


def test_latents_whose_square_is_not_finite_are_broken() -> None:
    class Huge(Making):
        def __call__(self, batches: Sequence[range]) -> Iterator[Sampled]:
            for clips in super().__call__(batches):
                assert clips.latents is not None
                clips.latents += 3e19
                yield clips

    assert sum(part.logged.broken for part in read(Huge(), Means())) == COUNT


def test_the_key_of_clips_holds_the_prompt_template() -> None:
    a, b = Backbone.load("mini"), Backbone.load("mini")
    b.side = replace(b.side, prompt_template={"template": "Other: {}", "crop_start": 0})
    s = PortraitSet(a.side, 8)
    assert len({teacher_key(x, references.teacher_sampler(x), s, 1, 8) for x in (a, b)}) == 2


def test_a_store_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "s")
    for run in range(3):
        store.put("n", {f"{run}-{k}": np.zeros((1, 2), np.float32) for k in range(64)})
    fresh = FeatureStore(tmp_path / "s")
    assert len(fresh.get("n", ["1-5", "absent"])) == 1 and len(fresh._known["n"]) == 1


def test_a_teacher_that_breaks_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    original = references.teacher_clips

    def bad(*given: Any) -> Iterator[Sampled]:
        for clips in original(*given):
            assert clips.latents is not None
            clips.latents[0] = float("nan")
            yield clips

    monkeypatch.setattr(references, "teacher_clips", bad)
    backbone = Backbone.load("mini")
    with pytest.raises(BenchError, match="not finite"):
        references.teacher_reference(PortraitSet(backbone.side, 8, references=8), backbone, [Colour(Means())], quiet)
