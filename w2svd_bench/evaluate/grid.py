"""The grid: every run by every number of steps; cells that are done are skipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.portraits import clips
from w2svd_bench.errors import UnsupportedSteps
from w2svd_bench.evaluate.cell import Bench, cell_of, evaluate, floor_records, record_path
from w2svd_bench.evaluate.evalset import PortraitSet
from w2svd_bench.evaluate.pictures import contact_sheet
from w2svd_bench.evaluate.sampling import Subject, sample
from w2svd_bench.metrics.diagnostics import Reader
from w2svd_bench.metrics.fid import MiniFid
from w2svd_bench.metrics.fvd import MiniFvd
from w2svd_bench.record import write_record

# (what is being done, done, total)
Report = Callable[[str, int, int], None]
SHEET_PROMPTS = 4


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
            metrics, reader = (MiniFid(self.device), MiniFvd(self.device)), Reader(self.device)
            reference = self.eval_set.reference(metrics, reader, lambda d, n: self.report("reference clips", d, n))
            self._bench = Bench(self.eval_set, reference, metrics, reader)
        return self._bench

    def floor(self) -> None:
        """The rows of real clips."""
        wanted = self.eval_set.describe().model_dump(mode="json")
        existing = [json.loads(p.read_text()) for p in (self.out / "records").glob("real-*.json")]
        if sum(r["eval_set"] == wanted for r in existing) >= 2:
            return
        for record in floor_records(Backbone.load(self.source, self.device), self.bench):
            write_record(record, self.out / "records")

    def run(self, folder: Path, steps: Sequence[int]) -> int:
        """Evaluates one run at each number of steps that has no record yet; returns how many cells were new."""
        subject = Subject.open(folder, self.source, self.device)
        new = 0
        for number in steps:
            if record_path(self.out, cell_of(subject, number, self.eval_set)).is_file():
                continue
            name = f"{subject.run.label} seed {subject.run.seed}, {number} step{'s' if number > 1 else ''}"
            record = evaluate(subject, number, self.bench, lambda d, n, name=name: self.report(name, d, n))
            write_record(record, self.out / "records")
            new += 1
        sheet = self.out / "sheets" / f"{subject.run.label}-seed{subject.run.seed}.png"
        if new or not sheet.is_file():
            self._sheet(subject, steps, sheet)
        return new

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
            rows += [(f"{subject.run.label}, {number} step{'s' if number > 1 else ''}", made[number][k]) for number in made]
        contact_sheet(rows, path)
