"""The grid: every run by every number of steps; cells that are done are skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.portraits import clips
from w2svd_bench.errors import UnsupportedSteps
from w2svd_bench.evaluate.cell import Bench, cell_of, evaluate, evaluate_floor, floor_cell, record_path
from w2svd_bench.evaluate.evalset import PortraitSet
from w2svd_bench.evaluate.pictures import contact_sheet
from w2svd_bench.evaluate.sampling import Subject, sample
from w2svd_bench.metrics.diagnostics import Reader
from w2svd_bench.record import Cell, Score, read_records, write_record
from w2svd_bench.registry import METRICS

# (what is being done, done, total)
Report = Callable[[str, int, int], None]
SHEET_PROMPTS = 4
MINI_METRICS = ("fid_mini", "fvd_mini")  # entry-point names: those of the records have brackets


@dataclass
class Grid:
    """Evaluates runs on one eval set and leaves records, contact sheets and nothing else below ``out``.

    Attributes:
        source: the backbone, as `Backbone.load` takes it.
        eval_set, device: where and on what.
        out: ``out/records/*.json`` and ``out/sheets/*.png``.
    """

    source: str
    eval_set: PortraitSet
    out: Path
    device: str
    report: Report
    _bench: Bench | None = field(default=None, init=False)

    @property
    def bench(self) -> Bench:
        """The shared part, made when the first cell needs it."""
        if self._bench is None:
            metrics = [METRICS.get(name)(self.device) for name in MINI_METRICS]  # type: ignore[call-arg]
            reader = Reader(self.device)
            reference = self.eval_set.reference(metrics, reader, partial(self.report, "reference clips"))
            self._bench = Bench(self.eval_set, reference, metrics, reader)
        return self._bench

    def floor(self) -> None:
        """The rows of real clips."""
        backbone = Backbone.load(self.source, self.device)
        for through_codec in (False, True):
            cell = floor_cell(backbone, self.eval_set, through_codec)
            if not self._done(cell):
                self._set_aside(cell)
                write_record(evaluate_floor(backbone, self.bench, through_codec), self.out / "records")

    def run(self, folder: Path, steps: Sequence[int]) -> int:
        """Evaluates one run at each number of steps that has no record yet; returns how many cells were new."""
        subject = Subject.open(folder, self.source, self.device)
        new = 0
        for number in steps:
            cell = cell_of(subject, number, self.eval_set)
            if self._done(cell):
                continue
            self._set_aside(cell)
            name = f"{subject.run.label} seed {subject.run.seed}, {number} step{'s' if number > 1 else ''}"
            record = evaluate(subject, number, self.bench, partial(self.report, name))
            write_record(record, self.out / "records")
            new += 1
        sheet = self.out / "sheets" / f"{subject.run.label}-seed{subject.run.seed}.png"
        if new or not sheet.is_file():
            self._sheet(subject, steps, sheet)
        return new

    def _done(self, cell: Cell) -> bool:
        """Whether a record of the cell is there, of the same set and by the same metrics."""
        folder = self.out / "records"
        if not record_path(self.out, cell).is_file():
            return False
        (record,) = (one for one in read_records(folder) if one.cell == cell)
        wanted = {metric.name: metric.id for metric in self.bench.metrics}
        measured = {name: score.id for name, score in record.metrics.items() if isinstance(score, Score)}
        return record.eval_set == self.eval_set.describe() and all(wanted.get(k) == v for k, v in measured.items())

    def _set_aside(self, cell: Cell) -> None:
        """Moves records of this very cell that older weights left to ``records/superseded``: nothing is lost, and the
        table has one number a cell.
        """
        same = {"backbone": cell.backbone, "label": cell.label, "steps": cell.steps, "seed": cell.seed}
        folder = self.out / "records"
        for old in read_records(folder) if folder.is_dir() else []:
            if all(getattr(old.cell, key) == value for key, value in same.items()):
                target = folder / "superseded" / old.file_name
                target.parent.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):  # another evaluation was faster
                    (folder / old.file_name).replace(target)

    def _sheet(self, subject: Subject, steps: Sequence[int], path: Path) -> None:
        """The first prompts of the set at every number of steps, each below the real clip of its prompt."""
        prompts = self.eval_set.prompts[:SHEET_PROMPTS]
        made = {}
        for number in steps:
            try:
                sampler = subject.method.sampler(number)
            except UnsupportedSteps:
                continue
            made[number] = next(iter(sample(subject, sampler, prompts, subject.run.seed))).frames.numpy()
        real = clips(self.eval_set.split, range(len(prompts))).numpy()
        rows = []
        for k, prompt in enumerate(prompts):
            rows.append((prompt, real[k]))
            rows += [
                (f"{subject.run.label}, {number} step{'s' if number > 1 else ''}", made[number][k]) for number in made
            ]
        contact_sheet(rows, path)
