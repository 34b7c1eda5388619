"""The rows of one backbone as a table that is ready to be typeset: rounded, ranked, with footnotes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from w2svd_bench.leaderboard.reported import Reported
from w2svd_bench.leaderboard.rows import Mean, Row
from w2svd_bench.leaderboard.ties import Ties
from w2svd_bench.record import Direction, EvalSet

DASH = "—"
# The flag of a metric whose network has random weights, and what its name has behind it: as in metrics/base.py, which
# loads torch.
STAND_IN, STAND_IN_NAME = "stand-in weights", "[stand-in]"
# Marks what is not shown to be worse than the best.
TIE = "†"
Mark = Literal["best", "second", ""]


@dataclass(frozen=True)
class Column:
    """A column's title, which way its numbers are better ("" for neither), and whether it holds words.

    ``brief`` is the title on a terminal, where every column counts; "" leaves the column out there. ``key`` is what the
    CSV calls it. ``part`` says what its entries belong to: "row" tells rows apart, a "score" was measured, a "cell" is
    another number of these steps, and a "label" is the same at all steps. Columns of one ``group`` have it as a common
    heading.
    """

    title: str
    direction: Literal["up", "down", ""] = ""
    is_text: bool = False
    brief: str = ""
    key: str = ""
    part: Literal["row", "cell", "score", "label"] = "label"
    group: str = ""


@dataclass(frozen=True)
class Entry:
    """What stands in a row and column: a number or word, its interval, its mark and the footnote it points to.

    ``tie`` is for what is not marked as the best, and not shown to be worse than it.
    """

    text: str
    interval: str = ""
    mark: Mark = ""
    note: int | None = None  # counted from 1
    tie: bool = False


@dataclass(frozen=True)
class Table:
    """A leaderboard of one backbone; the first ``num_reference`` rows are the noise floors."""

    backbone: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    num_reference: int
    notes: tuple[str, ...]


_IDENTITY = (
    Column("method", is_text=True, brief="method", key="label", part="row"),
    Column("steps", brief="steps", key="steps", part="row"),
    Column("nfe", brief="nfe", key="nfe", part="cell"),
)
_COSTS = (
    Column("seconds a clip", brief="s/clip", key="sample_seconds_per_clip", part="cell"),
    Column("training iterations", key="training_iterations"),
    Column("generator updates", brief="updates", key="generator_updates"),
    Column("network evaluations", key="network_evaluations"),
    Column("training seconds", brief="train s", key="training_seconds"),
    Column("peak memory (GB)", brief="GB", key="peak_memory_bytes"),
)
# Of every table, whatever was measured.
COLUMNS = (*_IDENTITY, *_COSTS, Column("seeds", brief="seeds", key="seed"), Column("n", key="num_clips"))


def build(
    rows: Sequence[Row],
    directions: Mapping[str, Direction],
    eval_set: EvalSet,
    diagnostics: Sequence[str] = (),
    ties: Ties | None = None,
    reported: Sequence[Reported] = (),
) -> Table:
    """The table of the rows of one backbone.

    Args:
        rows: in the order in which they are shown, the noise floors first.
        directions: which way each metric is better; its keys are the metrics that are shown.
        eval_set: the one that all rows were measured on.
        diagnostics: those that are shown as well.
        ties: of these rows.
        reported: what public sources state; numbers of other rows are left out.
    """
    ties = ties or Ties()
    shared = {name: _shared_flags(rows, name) for name in directions}
    random = [name for name in directions if is_random_column(rows, name)]
    scores = {name: _scores(rows, name, directions[name], name not in random, ties) for name in directions}
    stated = {name: {(one.label, one.steps): one for one in reported if one.metric == name} for name in directions}
    stated = {name: found for name, found in stated.items() if any((row.label, row.steps) in found for row in rows)}
    notes: list[str] = []

    def with_note(entry: Entry, reason: str) -> Entry:
        if reason and reason not in notes:
            notes.append(reason)
        return replace(entry, note=notes.index(reason) + 1) if reason else entry

    lines = []
    for i, row in enumerate(rows):
        line = [Entry(row.label), *_unless(row.is_reference, str(row.steps), str(row.nfe))]
        for name in directions:
            line.append(with_note(scores[name][i], _remark(row, name, shared[name])))
            if name in stated:
                one = stated[name].get((row.label, row.steps))
                line.append(with_note(Entry(one.value), one.told) if one else Entry(DASH))
        line += [_diagnostic(row.diagnostics.get(name)) for name in diagnostics]
        costs = (row.training_iterations, row.generator_updates, row.network_evaluations, row.training_seconds)
        seconds = number(row.sample_seconds_per_clip) if row.sample_seconds_per_clip else DASH  # nothing was sampled
        peak = DASH if row.peak_memory_bytes is None else number(row.peak_memory_bytes / 1e9)
        line += _unless(row.is_reference, seconds, *map(number, costs), peak)
        line += [Entry(str(len(row.seeds))), Entry(str(row.num_clips))]
        lines.append(tuple(line))
    columns = [*_IDENTITY]
    for name, direction in directions.items():
        columns.append(Column(name, direction, brief=name, key=name, part="score"))
        if name in stated:
            columns.append(Column(f"{name} reported", brief="reported", key=name, part="score"))
    columns += [Column(name, brief=name, key=name, part="score") for name in diagnostics]
    columns += _COSTS
    seeds = Column("seeds", brief="seeds" if any(len(row.seeds) > 1 for row in rows) else "", key="seed")
    columns += [seeds, Column("n", key="num_clips")]
    num_reference = sum(row.is_reference for row in rows)
    caption = warning(random) + _caption(rows[0].backbone, eval_set) + _told_ties(ties, directions, rows)
    caption += _told_evaluations(rows)
    caption += (" Reported: what a public source states of its own measurement." if stated else "") + told_flags(shared)
    return Table(rows[0].backbone, caption, tuple(columns), tuple(lines), num_reference, tuple(notes))


def number(value: float) -> str:
    """A cost with three digits that count, or with all digits before the point: 0.0123, 4.50, 400, 123,456."""
    if abs(value) >= 99.95 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"


def decimals(intervals: Sequence[float], values: Sequence[float]) -> int:
    """Digits after the point for numbers that stand together, at most 6: the median interval shows two that count."""
    sizes = [size for size in intervals if size > 0]
    if not sizes:  # no interval to go by: three digits of the median value
        sizes = [abs(value) / 10 for value in values if value]
    if not sizes:
        return 0
    return min(6, max(0, 1 - math.floor(math.log10(statistics.median(sizes)))))


def warning(random: Sequence[str]) -> str:
    """What stands before all else where metrics have random weights; "" if none has."""
    return f"RANDOM WEIGHTS, the numbers mean nothing: {', '.join(random)}. " if random else ""


def told_flags(shared: Mapping[str, Sequence[str]]) -> str:
    """The flags of whole metrics, those with the same ones together: " Flags: fid, fvd (n<2048); kid (N<D)."."""
    metrics: dict[tuple[str, ...], list[str]] = {}
    for name, flags in shared.items():
        if flags:
            metrics.setdefault(tuple(flags), []).append(name)
    told = "; ".join(f"{', '.join(names)} ({', '.join(flags)})" for flags, names in metrics.items())
    return f" Flags: {told}." if told else ""


def is_random_column(rows: Sequence[Row], metric: str) -> bool:
    """Whether a number of this metric, or all that it would have, come from random weights."""
    return any(is_random(metric, flags) for flags in _flags(rows, metric) or [()])


def is_random(metric: str, flags: Sequence[str]) -> bool:
    """Whether a metric's network has random weights, by the metric's name or its flags."""
    return STAND_IN_NAME in metric or STAND_IN in flags


def told_invalid(counts: Mapping[str, int]) -> str:
    """How many clips have no value for which reason: "3 (too short), 1 (unreadable)"."""
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items()) if count)


def _scores(rows: Sequence[Row], name: str, direction: Direction, ranked: bool, ties: Ties) -> list[Entry]:
    """A metric's column; one that is not ranked has no marks."""
    means = [row.scores[name] for row in rows]
    found = [mean for mean in means if isinstance(mean, Mean)]
    digits = decimals([one.interval for one in found if one.interval is not None], [one.value for one in found])
    texts = [f"{mean.value:.{digits}f}" if isinstance(mean, Mean) else DASH for mean in means]
    marks = _marks(rows, name, direction, texts, ties) if ranked else {}
    entries = []
    for i, (row, mean, text) in enumerate(zip(rows, means, texts, strict=True)):
        interval = mean.interval if isinstance(mean, Mean) else None
        mark = marks.get(i, "")
        tie = (row.label, row.steps, name) in ties.tied and mark != "best"
        entries.append(Entry(text, "" if interval is None else f"{interval:.{digits}f}", mark, tie=tie))
    return entries


def _marks(rows: Sequence[Row], name: str, direction: Direction, texts: Sequence[str], ties: Ties) -> dict[int, Mark]:
    """By row. Ranks go by all digits; what reads the same shares its mark, but for what is shown to be worse."""
    rivals: dict[int, list[tuple[float, int]]] = {}
    for i, row in enumerate(rows):
        mean = row.scores[name]
        if isinstance(mean, Mean) and not row.is_reference:
            rivals.setdefault(row.steps, []).append((mean.value, i))
    marks: dict[int, Mark] = {}
    for steps, found in rivals.items():
        if len(found) < 2:  # a number that nothing competes with is not the best of anything
            continue
        order = [i for _, i in sorted(found, key=lambda one: one[0], reverse=direction == "up")]
        worse = {i for i in order if (rows[i].label, steps, name) in ties.worse}
        best = [i for i in order if texts[i] == texts[order[0]] and i not in worse]
        rest = [i for i in order if i not in best]
        marks |= dict.fromkeys(best, "best")
        marks |= dict.fromkeys([i for i in rest if texts[i] == texts[rest[0]]], "second")
    return marks


def _diagnostic(found: Mean | None) -> Entry:
    """A diagnostic's mean, with its SD over seeds to the same digit; of one seed there is none."""
    if found is None:
        return Entry(DASH)
    text = number(found.value)
    digits = len(text.partition(".")[2])
    return Entry(text, "" if found.interval is None else f"{found.interval:.{digits}f}")


def _remark(row: Row, metric: str, shared: Sequence[str]) -> str:
    """The footnote that a score needs: why it is missing; else how many clips it stands on if not all, why others have
    no value, and the flags that not all rows share.
    """
    score = row.scores[metric]
    if isinstance(score, str):
        return score
    told = [] if score.num_clips == (row.num_clips,) else [f"n = {' and '.join(map(str, score.num_clips))}"]
    if score.invalid:
        seeds = f" over {score.num_seeds} seeds" if score.num_seeds > 1 else ""
        told.append(f"clips without a value{seeds}: {told_invalid(score.invalid)}")
    return "; ".join(told + [flag for flag in score.flags if flag not in shared])


def _shared_flags(rows: Sequence[Row], metric: str) -> list[str]:
    """The flags that all of a metric's numbers have, in order."""
    found = _flags(rows, metric)
    return [flag for flag in found[0] if all(flag in flags for flags in found)] if found else []


def _flags(rows: Sequence[Row], metric: str) -> list[tuple[str, ...]]:
    """Those of each number that a metric has."""
    return [score.flags for score in (row.scores[metric] for row in rows) if isinstance(score, Mean)]


def _told_ties(ties: Ties, metrics: Iterable[str], rows: Sequence[Row]) -> str:
    """What the mark of a tie means, and where it could not be given; "" where nothing could be judged."""
    shown = set(metrics)
    if not ties.judged & shown:
        return ""
    gaps = sorted(ties.unjudged & shown)
    told = f" {TIE}: not shown to be worse than the best at the same number of steps (95 %, paired by prompt and seed)."
    # Without training a method has no other runs.
    if any(len(row.seeds) == 1 and row.training_iterations and not row.is_reference for row in rows):
        told += " Where a row has one seed, this is said of these runs, not of their methods."
    return told + (f" Not judged in every row, for want of paired values: {', '.join(gaps)}." if gaps else "")


def _told_evaluations(rows: Sequence[Row]) -> str:
    """Which rows take more or fewer network evaluations than steps, though they are ranked by these; "" if none."""
    others = [f"{r.label} ({r.nfe} at steps {r.steps})" for r in rows if not r.is_reference and r.nfe != r.steps]
    return f" Not one network evaluation a step: {', '.join(others)}." if others else ""


def _unless(is_reference: bool, *texts: str) -> list[Entry]:
    """Reference rows were neither trained for nor compete in speed: a dash where methods have numbers."""
    return [Entry(DASH if is_reference else text) for text in texts]


def _caption(backbone: str, ours: EvalSet) -> str:
    return (
        f"Backbone {backbone}, eval set {ours.name}: n = {ours.num_clips} clips of {ours.frames} frames of "
        f"{ours.width}×{ours.height} at {ours.fps:g} frames a second, against {ours.reference}. "
        "Behind ±: the SD over seeds, or a score's standard error where there is one seed. "
        "Peak memory: of training. Bold and underlined: best and second at the same number of steps; "
        "what reads the same shares the mark, unless it is shown to be worse."
    )
