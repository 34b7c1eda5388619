"""The grid: every run by every number of steps; cells that are done are skipped.

Several processes make one grid together: the leading one decides what is to be done and writes the files.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.errors import BenchError, UnsupportedSteps
from w2svd_bench.evaluate.cell import Floor, Identity, evaluate, evaluate_floor, floor_identity, identity, record_path
from w2svd_bench.evaluate.evalset import ClipSet
from w2svd_bench.evaluate.pictures import contact_sheet
from w2svd_bench.evaluate.references import real_reference, teacher_reference
from w2svd_bench.evaluate.sampling import Sampled, Subject, batch_size, check_code, recipe_of, sample
from w2svd_bench.evaluate.scoring import Bench, ids
from w2svd_bench.evaluate.store import FeatureStore
from w2svd_bench.metrics.base import ClipMetric, CorpusMetric, Metric
from w2svd_bench.metrics.diagnostics import Reader
from w2svd_bench.metrics.mini_nets import SIZE
from w2svd_bench.record import EvalSet, Record, Score, SkippedScore, read_record, read_records, write_record
from w2svd_bench.registry import METRICS
from w2svd_bench.train.run import Run
from w2svd_bench.types import Cond
from w2svd_bench.world import World

# (what is being done, done, total)
Report = Callable[[str, int, int], None]
SHEET_CLIPS, SHEET_COLUMNS = 4, 5

Frames = dict[tuple[int, int], np.ndarray]  # clips (F, H, W, 3) by (steps, number)


@dataclass
class Grid:
    """Evaluates runs on one eval set and leaves records, contact sheets and nothing else below ``out``.

    Attributes:
        source: the backbone of the runs, as `Backbone.load` takes it; each run is opened as its own recipe says.
        backbone: the same at the size of the eval set's clips, for real ones.
        eval_set: what to evaluate on.
        out: ``out/records/*.json`` and ``out/sheets/*.png``.
        report: told how far named work has come.
        metrics: entry-point names of what to score by; None: `default_metrics`.
        against_teacher: whether sets are compared with clips of the teacher, too.
        world: the processes that share the clips out, and the device.
        batch: how many clips are made at a time; None: what suits their size.
    """

    source: str
    backbone: Backbone
    eval_set: ClipSet
    out: Path
    report: Report
    world: World = field(default_factory=World)
    batch: int | None = None
    metrics: Sequence[str] | None = None
    against_teacher: bool = True

    @cached_property
    def bench(self) -> Bench:
        """The shared part, made when the first cell is looked at."""
        batch = self.batch or batch_size(self.backbone.latent_shape)
        metrics, reader = self.world.together(self._metrics)
        corpus = [metric for metric in metrics if isinstance(metric, CorpusMetric)]
        by_clip = [metric for metric in metrics if isinstance(metric, ClipMetric)]
        store = FeatureStore()
        shared = self.world, batch, store
        reference = real_reference(self.eval_set, corpus, reader, partial(self.report, "reference clips"), *shared)
        teacher = None
        if self.against_teacher and corpus:
            tell = partial(self.report, "the teacher's clips")
            teacher = teacher_reference(self.eval_set, self.backbone, corpus, tell, *shared)
        return Bench(self.eval_set, reference, corpus, reader, self.world, batch, teacher, by_clip, store)

    def _metrics(self) -> tuple[list[Metric], Reader | None]:
        size = self.eval_set.describe()
        names = default_metrics(size) if self.metrics is None else self.metrics
        metrics = [METRICS.get(name)(self.world.device) for name in names]  # type: ignore[call-arg]
        reader = Reader(self.world.device)
        readable = self.eval_set.colours is not None and not reader.refuses(size.frames, size.height, size.width)
        return metrics, reader if readable else None

    def check(self, folders: Sequence[Path]) -> None:
        """Raises `BenchError`, before any work, if one of the runs makes clips of another size than the eval set's, or
        was trained by a plug-in that has changed since.
        """
        for folder in folders:
            run = Run.load(folder)
            check_code(run, folder)
            recipe = recipe_of(run, folder)
            self._refuse_other_size(folder, Backbone.for_recipe(self.source, self.world.device, recipe))

    def __enter__(self) -> Grid:
        return self

    def __exit__(self, *error: object) -> None:
        if "bench" in self.__dict__:
            for metric in self.bench.clip_metrics:
                metric.close()

    def floor(self) -> None:
        """The rows of real clips, and of the teacher against itself."""
        kinds: list[Floor] = [*self.eval_set.floors]
        for kind in [*kinds, "teacher"] if self.bench.teacher is not None else kinds:
            about = floor_identity(self.backbone, self.eval_set, kind)
            if self._begin(about):
                self._write(evaluate_floor(self.backbone, self.bench, kind, partial(self.report, about.cell.label)))
        # Every run brings its own, and two of the 13B model may not fit a device.
        self.backbone.release_encoders()
        self.backbone.release_transformer()

    def run(self, folder: Path, steps: Sequence[int]) -> int:
        """Evaluates one run at each number of steps that has no record of these very clips; how many were new.

        Raises:
            BenchError: the run can't be opened, or makes clips of another size than the eval set's.
        """
        gc.collect()  # the network of the run before is in circles of references, and two may not fit a device
        subject = self.world.together(lambda: self._opened(folder))
        new, frames = 0, Frames()
        for number in steps:
            if not self._begin(identity(subject, number, self.eval_set)):
                continue

            def watch(clips: Sampled, number: int = number) -> None:
                made = zip(clips.indices, clips.frames.numpy(), strict=True)
                frames.update({(number, index): _few(clip) for index, clip in made if index < SHEET_CLIPS})

            name = f"{subject.run.label} seed {subject.run.seed}, {number} step{'s' if number > 1 else ''}"
            self._write(evaluate(subject, number, self.bench, partial(self.report, name), watch))
            new += 1
        for others in self.world.gather(frames):
            frames.update(others)
        self.world.agree(lambda: self._sheet(subject, steps, frames, bool(frames)))
        return new

    def _opened(self, folder: Path) -> Subject:
        subject = Subject.open(folder, self.source, self.world.device)
        self._refuse_other_size(folder, subject.backbone)
        return subject

    def _refuse_other_size(self, folder: Path, backbone: Backbone) -> None:
        side, size = backbone.side, self.eval_set.describe()
        made = (backbone.decoded_frames, side.height, side.width, side.fps)
        if made != (size.frames, size.height, size.width, size.fps):
            raise BenchError(
                f"the run {folder} can't be evaluated on {size.name}",
                f"it makes clips of {made[0]} frames of {side.width}x{side.height} at {side.fps:g} frames a second, "
                f"and the set has {size.frames} of {size.width}x{size.height} at {size.fps:g}",
                "evaluate it on a set of its size (--data CACHE), or runs of one size at a time (--methods LABEL ...)",
            )

    def _begin(self, about: Identity) -> bool:
        """Whether a cell is to be done; if so, what older weights or another sampler left of it is set aside."""
        wanted = self.bench.wanted()

        def decide() -> bool:
            old = self._old(about)
            if old is not None and self._has(old, wanted):
                return False
            if old is None or not self._fits(old, wanted):
                self._set_aside(about)
            return True

        return self.world.agree(decide)

    def _write(self, record: Record) -> None:
        """Writes a record. Scores by other metrics that an earlier record of the cell has are kept in it."""

        def merged() -> None:
            old = self._old(Identity(record.cell, record.sampling, record.config))
            kept = {} if old is None or not self._fits(old, self.bench.wanted()) else old.metrics
            others = {
                name: score
                for name, score in kept.items()
                if name not in record.metrics
                or (isinstance(score, Score) and isinstance(record.metrics[name], SkippedScore))
            }
            if old is None or not others:
                write_record(record, self.out / "records")
                return
            earlier = [*old.provenance.get("earlier", []), {k: v for k, v in old.provenance.items() if k != "earlier"}]
            update = {"metrics": record.metrics | others, "provenance": record.provenance | {"earlier": earlier}}
            write_record(record.model_copy(update=update), self.out / "records")

        self.world.agree(merged)

    def _old(self, about: Identity) -> Record | None:
        """The record of the same clips that is there already."""
        try:
            old = read_record(record_path(self.out, about.cell))
        except FileNotFoundError:
            return None
        return old if about.is_of(old) else None

    def _has(self, record: Record, wanted: dict[str, str]) -> bool:
        """Whether a record has all that is wanted, of the same set and by the same metrics."""
        there = {name for name, score in record.metrics.items() if not getattr(score, "again", False)}
        return self._fits(record, wanted) and wanted.keys() <= there

    def _fits(self, record: Record, wanted: dict[str, str]) -> bool:
        """Whether what a record has is of the same set, and what is wanted of it was measured in the same way."""
        same = all(wanted.get(name, measured) == measured for name, measured in ids(record.metrics).items())
        # What could not be scored has no id, and of another version it would not stand in one table with today's.
        versions = self.bench.versions()
        same &= all(versions.get(name, score.version) == score.version for name, score in record.metrics.items())
        return record.eval_set == self.eval_set.describe() and same

    def _set_aside(self, about: Identity) -> None:
        """Moves earlier records of this cell to ``records/superseded``, and at any number of steps those of a run that
        was trained again since: nothing is lost, and a table shows one generator a label and seed.
        """
        cell = about.cell
        folder = self.out / "records"
        for old in read_records(folder) if folder.is_dir() else []:
            there = old.cell
            if (there.backbone, there.label, there.seed) != (cell.backbone, cell.label, cell.seed):
                continue
            same_run = there.checkpoint_sha256 == cell.checkpoint_sha256 and old.config == about.config
            if there.steps == cell.steps or not same_run:
                with suppress(FileNotFoundError):  # another evaluation was faster
                    (folder / old.file_name).replace(_free(folder / "superseded" / old.file_name))

    def _sheet(self, subject: Subject, steps: Sequence[int], frames: Frames, renew: bool) -> None:
        """The first prompts of the set at every number of steps, each below the real clip of its prompt.

        Args:
            frames: the clips that are at hand; those of cells that were done before are sampled again.
            renew: draw it even if it is there.
        """
        path = self.out / "sheets" / f"{subject.run.label}-seed{subject.run.seed}.png"
        if path.is_file() and not renew:
            return
        shown = range(min(SHEET_CLIPS, len(self.eval_set.prompts)))
        for number in {number for number in steps if (number, 0) not in frames}:
            with suppress(UnsupportedSteps):
                frames |= self._again(subject, number, shown)
        rows = []
        for k, real in zip(shown, self.eval_set.real(shown), strict=True):
            rows.append((self.eval_set.prompts[k], _few(real)))
            rows += [
                (f"{subject.run.label}, {number} step{'s' if number > 1 else ''}", frames[number, k])
                for number in steps
                if (number, k) in frames
            ]
        contact_sheet(rows, path, every=1)

    def _again(self, subject: Subject, number: int, shown: Sequence[int]) -> Frames:
        sampler, batch = subject.method.sampler(number), self.bench.batch
        batches = [shown[first : first + batch] for first in range(0, len(shown), batch)]

        def conditioning(indices: Sequence[int]) -> Cond:
            return self.eval_set.conditioning(subject.backbone, indices)

        made = sample(subject, sampler, conditioning, batches, subject.run.seed)
        return {
            (number, index): _few(clip)
            for part in made
            for index, clip in zip(part.indices, part.frames.numpy(), strict=True)
        }


def default_metrics(size: EvalSet) -> list[str]:
    """The miniature's own metrics for clips of its size, and those of papers for all others."""
    return ["fid_mini", "fvd_mini"] if (size.frames, size.height, size.width) == SIZE else ["fid", "fvd"]


def _free(path: Path) -> Path:
    """The path, or where a file is there already the first of ``name-2.json``, ``name-3.json``, ... that is free."""
    path.parent.mkdir(exist_ok=True)
    names = itertools.chain([path], (path.with_name(f"{path.stem}-{k}{path.suffix}") for k in itertools.count(2)))
    return next(name for name in names if not name.exists())


def _few(clip_FHWC: np.ndarray) -> np.ndarray:
    """The frames that a sheet shows: a whole clip of the 13B model is 200 MB, and processes exchange these."""
    return clip_FHWC[:: -(-len(clip_FHWC) // SHEET_COLUMNS)].copy()
