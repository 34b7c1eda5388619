"""The rows of one backbone as a table that is ready to be typeset: rounded, ranked, with footnotes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from w2svd_bench.leaderboard.rows import Mean, Row
from w2svd_bench.record import Direction, EvalSet

DASH = "—"
# The flag of a metric whose network has random weights, and what its name has behind it: as in metrics/base.py, which
# loads torch.
STAND_IN, STAND_IN_NAME = "stand-in weights", "[stand-in]"
# Costs by title, with the short one for a terminal; those without stand in the files only.
_COSTS = {
    "seconds a clip": "s/clip",
    "generator updates": "updates",
    "network evaluations": "",
    "training seconds": "train s",
}


@dataclass(frozen=True)
class Column:
    """A column's title, which way its numbers are better ("" for neither), and whether it holds words.

    ``brief`` is the title on a terminal, where every column counts; "" leaves the column out there.
    """

    title: str
    direction: Literal["up", "down", ""] = ""
    is_text: bool = False
    brief: str = ""


@dataclass(frozen=True)
class Entry:
    """What stands in a row and column: a number or word, its interval, its mark and the footnote it points to."""

    text: str
    interval: str = ""
    mark: Literal["best", "second", ""] = ""
    note: int | None = None  # counted from 1


@dataclass(frozen=True)
class Table:
    """A leaderboard of one backbone; the first ``num_reference`` rows are the noise floors."""

    backbone: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    num_reference: int
    notes: tuple[str, ...]


def build(rows: Sequence[Row], directions: Mapping[str, Direction], eval_set: EvalSet, diagnostics: bool) -> Table:
    """The table of the rows of one backbone.

    Args:
        rows: in the order in which they are shown, the noise floors first.
        directions: which way each metric is better; its keys are the metrics that are shown.
        eval_set: the one that all rows were measured on.
        diagnostics: whether to show the diagnostics as well.
    """
    shown = sorted({name for row in rows for name in row.diagnostics}) if diagnostics else []
    shared = {name: _shared_flags(rows, name) for name in directions}
    random = [name for name in directions if any(is_random(name, flags) for flags in _flags(rows, name) or [()])]
    scores = {name: _scores(rows, name, directions[name], ranked=name not in random) for name in directions}
    notes: list[str] = []
    lines = []
    for i, row in enumerate(rows):
        line = [Entry(row.label), *_unless(row.is_reference, str(row.steps), str(row.nfe))]
        for name in directions:
            entry, reason = scores[name][i], _remark(row, name, shared[name])
            if reason and reason not in notes:
                notes.append(reason)
            line.append(replace(entry, note=notes.index(reason) + 1) if reason else entry)
        line += [Entry(number(row.diagnostics[name]) if name in row.diagnostics else DASH) for name in shown]
        costs = (row.generator_updates, row.network_evaluations, row.training_seconds)
        seconds = number(row.sample_seconds_per_clip) if row.sample_seconds_per_clip else DASH  # nothing was sampled
        line += _unless(row.is_reference, seconds, *map(number, costs))
        line += [Entry(str(len(row.seeds))), Entry(str(row.num_clips))]
        lines.append(tuple(line))
    columns = [
        Column("method", is_text=True, brief="method"),
        Column("steps", brief="steps"),
        Column("nfe", brief="nfe"),
    ]
    columns += [Column(name, direction, brief=name) for name, direction in directions.items()]
    columns += [Column(name, brief=name) for name in shown]
    columns += [Column(title, brief=brief) for title, brief in _COSTS.items()]
    columns += [Column("seeds", brief="seeds" if any(len(row.seeds) > 1 for row in rows) else ""), Column("n")]
    num_reference = sum(row.is_reference for row in rows)
    caption = warning(random) + _caption(rows[0].backbone, eval_set) + told_flags(shared)
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


def is_random(metric: str, flags: Sequence[str]) -> bool:
    """Whether a metric's network has random weights, by the metric's name or its flags."""
    return STAND_IN_NAME in metric or STAND_IN in flags


def told_invalid(counts: Mapping[str, int]) -> str:
    """How many clips have no value for which reason: "3 (too short), 1 (unreadable)"."""
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items()) if count)


def _scores(rows: Sequence[Row], name: str, direction: Direction, ranked: bool) -> list[Entry]:
    """A metric's column. Ranks follow the digits that are shown: what reads the same is marked the same."""
    means = [row.scores[name] for row in rows]
    found = [mean for mean in means if isinstance(mean, Mean)]
    digits = decimals([one.interval for one in found if one.interval is not None], [one.value for one in found])
    texts = [f"{mean.value:.{digits}f}" if isinstance(mean, Mean) else DASH for mean in means]
    rivals: dict[int, list[float]] = {}
    for row, text in zip(rows, texts, strict=True):
        if text != DASH and not row.is_reference:
            rivals.setdefault(row.steps, []).append(float(text))
    entries = []
    for row, mean, text in zip(rows, means, texts, strict=True):
        mark: Literal["best", "second", ""] = ""
        numbers = [] if row.is_reference or not ranked else rivals.get(row.steps, [])
        # A number that nothing competes with is not the best of anything.
        if text != DASH and len(numbers) > 1:
            place = sorted(set(numbers), reverse=direction == "up").index(float(text))
            mark = "best" if place == 0 else "second" if place == 1 else ""
        interval = mean.interval if isinstance(mean, Mean) else None
        entries.append(Entry(text, "" if interval is None else f"{interval:.{digits}f}", mark))
    return entries


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


def _unless(is_reference: bool, *texts: str) -> list[Entry]:
    """Reference rows were neither trained for nor compete in speed: a dash where methods have numbers."""
    return [Entry(DASH if is_reference else text) for text in texts]


def _caption(backbone: str, ours: EvalSet) -> str:
    return (
        f"Backbone {backbone}, eval set {ours.name}: n = {ours.num_clips} clips of {ours.frames} frames of "
        f"{ours.width}×{ours.height} at {ours.fps:g} frames a second, against {ours.reference}. "
        "Behind ±: the SD over seeds, or the standard error where there is one seed. "
        "Bold and underlined: best and second at the same number of steps."
    )
