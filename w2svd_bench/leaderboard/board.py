"""From records to a leaderboard: the same records give the same one, in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.leaderboard.reported import Reported
from w2svd_bench.leaderboard.rows import Row, ordered, refuse_duplicates, refuse_mixtures, rows_of
from w2svd_bench.leaderboard.table import COLUMNS, Table, build, is_random_column, told_invalid
from w2svd_bench.leaderboard.tidy import tidy
from w2svd_bench.leaderboard.ties import Ties, ties_of
from w2svd_bench.leaderboard.views import pivot, select
from w2svd_bench.record import Direction, Record, Score

if TYPE_CHECKING:
    import pandas as pd

# Diagnostics that stand beside distances wherever they were taken: they tell apart what a distance adds up.
BESIDE = ("shirt_mixing", "rarest_shirt")
_CELL_COLUMNS = ("backbone", "method", "label", "steps", "nfe", "seed", "num_clips")
# What follows a metric's name in its columns: those that every metric has, and those that some record has to need.
_ALWAYS = ("", " se")
_SOMETIMES = (" inf", " flags", " invalid")
_COST_COLUMNS = (
    "sample_seconds_per_clip",
    "training_iterations",
    "generator_updates",
    "network_evaluations",
    "training_seconds",
    "peak_memory_bytes",
    "checkpoint_sha256",
)


@dataclass(frozen=True)
class Leaderboard:
    """Records that may be compared, and their means over seeds. Build it with `from_records`, which checks them.

    ``reported`` is what public sources state, shown beside our numbers of the same label, steps and metric.
    """

    records: tuple[Record, ...]
    rows: tuple[Row, ...]
    reported: tuple[Reported, ...] = ()

    @classmethod
    def from_records(cls, records: Iterable[Record], reported: Iterable[Reported] = ()) -> Leaderboard:
        """Groups records by (backbone, label, steps) and averages over seeds.

        Raises:
            BenchError: there are none; a cell is there twice; or records differ in something that makes their scores
                not comparable, which the error names together with two of the files.
        """
        known = ordered(list(records))
        if not known:
            raise BenchError("there is no leaderboard to show", "no records were found", "run `w2svd-bench eval` first")
        refuse_duplicates(known)
        refuse_mixtures(known)
        return cls(tuple(known), tuple(rows_of(known)), tuple(reported))

    @property
    def backbones(self) -> list[str]:
        return sorted({row.backbone for row in self.rows})

    @cached_property
    def ties(self) -> dict[str, Ties]:
        """By backbone: the rows that are not shown to be worse than the best. Random weights are not judged."""
        found = {}
        for backbone in self.backbones:
            records = [one for one in self.records if one.cell.backbone == backbone]
            rows = [row for row in self.rows if row.backbone == backbone]
            metrics = {name: way for name, way in _directions(records).items() if not is_random_column(rows, name)}
            found[backbone] = ties_of(records, rows, metrics)
        return found

    def tidy(self) -> pd.DataFrame:
        """One row a number, see `tidy.COLUMNS`."""
        return tidy(self.records)

    def wide(self) -> pd.DataFrame:
        """One line a record, with every number in full; a score that could not be had is missing (NaN).

        A metric has columns for its value and its standard error and, where some record needs them, for the value
        extrapolated to infinitely many clips ("fid inf", which has no standard error and so stands in no other table),
        its flags, and its clips without a value, by reason.
        """
        import pandas as pd

        metrics = sorted({name for one in self.records for name in one.metrics})
        diagnostics = sorted({name for one in self.records for name in one.diagnostics})
        needed = {column for one in self.records for column in _score_columns(one)}
        needed |= {f"{name}{more}" for name in metrics for more in _ALWAYS}
        scores = [f"{name}{more}" for name in metrics for more in _ALWAYS + _SOMETIMES if f"{name}{more}" in needed]
        columns = [*_CELL_COLUMNS, *scores, *diagnostics, *_COST_COLUMNS]
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            why = f"two of its columns would be called {' and '.join(map(repr, twice))}"
            raise BenchError("the wide table can't be made", why, "rename the metric or diagnostic")
        return pd.DataFrame([_line(one) for one in self.records], columns=columns)

    def columns(self) -> dict[str, str]:
        """What `table` can be asked for: titles and names in the CSV, each with its name in the CSV."""
        known = {name: one.key for one in COLUMNS for name in (one.title, one.key)}
        return known | {name: name for one in self.records for name in (*one.metrics, *one.diagnostics)}

    def table(
        self, backbone: str | None = None, diagnostics: bool = False, columns: Sequence[str] = (), by: str = ""
    ) -> Table:
        """The table of one backbone, which may be left out when there is only one.

        Args:
            backbone: whose table.
            diagnostics: whether diagnostics are shown.
            columns: only these, by title or by name in the CSV, behind the method and its steps; all if there are none.
            by: pivots the table, "steps" or a metric: one row a method, a group of columns for each number of steps.

        Raises:
            BenchError: there is no such backbone, or none was named and there are several; no table has such a column;
                there is nothing to pivot by.
        """
        if backbone is None and len(self.backbones) > 1:
            known = ", ".join(self.backbones)
            raise BenchError("one table holds one backbone", f"the records are of several: {known}", "name one of them")
        chosen = self.backbones[0] if backbone is None else backbone
        if chosen not in self.backbones:
            raise unknown_name("backbone", chosen, self.backbones)
        for name in columns:
            if name not in self.columns():
                raise unknown_name("column", name, self.columns())
        ours = [one for one in self.records if one.cell.backbone == chosen]
        rows = [row for row in self.rows if row.backbone == chosen]
        shown = {name: way for name, way in _directions(ours).items() if name in columns or not columns}
        have = {name for row in rows for name in row.diagnostics}
        more = [name for name in BESIDE if name in have]
        more += sorted(name for name in have - set(more) if name in columns or diagnostics)
        if by in shown or by in more:  # what is said of the others would be of columns that aren't there
            shown = {name: way for name, way in shown.items() if name == by}
        stated = [one for one in self.reported if one.backbone == chosen]
        table = build(rows, shown, ours[0].eval_set, more, self.ties[chosen], stated)
        if columns:
            table = select(table, [*columns, *(more if diagnostics else ())])
        return pivot(table, by, cells=bool(columns)) if by else table

    def tables(self, diagnostics: bool = False, columns: Sequence[str] = (), by: str = "") -> list[Table]:
        """One table for each backbone, see `table`."""
        return [self.table(backbone, diagnostics, columns, by) for backbone in self.backbones]


def _directions(records: Iterable[Record]) -> dict[str, Direction]:
    """Which way each metric of the records is better, by name."""
    return dict(sorted((name, score.direction) for one in records for name, score in one.metrics.items()))


def _score_columns(one: Record) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, score in one.metrics.items():
        if isinstance(score, Score):
            columns |= {name: score.value, f"{name} se": score.se}
            if score.infinity is not None:
                columns[f"{name} inf"] = score.infinity
            if score.flags:
                columns[f"{name} flags"] = "; ".join(score.flags)
            if any(score.invalid.values()):
                columns[f"{name} invalid"] = told_invalid(score.invalid)
    return columns


def _line(one: Record) -> dict[str, Any]:
    line: dict[str, Any] = {
        "backbone": one.cell.backbone,
        "method": one.cell.method,
        "label": one.cell.label,
        "steps": one.cell.steps,
        "nfe": one.sampling.nfe,
        "seed": one.cell.seed,
        "num_clips": one.eval_set.num_clips,
    }
    return line | {
        **_score_columns(one),
        **one.diagnostics,
        "sample_seconds_per_clip": one.timing.sample_seconds_per_clip or None,  # 0: nothing was sampled
        "training_iterations": one.training.iterations,
        "generator_updates": one.training.updates.get("generator", 0),
        "network_evaluations": one.training.network_evaluations,
        "training_seconds": one.training.seconds,
        "peak_memory_bytes": one.training.peak_memory_bytes,
        "checkpoint_sha256": one.cell.checkpoint_sha256,
    }
