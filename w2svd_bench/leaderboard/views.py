"""A table in another form: some of its columns, or one row a method with a group of columns a number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.leaderboard.table import DASH, Column, Entry, Table

BY_STEPS = "steps"
_NOT_EVALUATED = "not evaluated"


def select(table: Table, names: Sequence[str]) -> Table:
    """Some columns in the order in which they are named, behind those that tell rows apart; each shows on a terminal.

    Args:
        table: to choose from.
        names: titles, or what the CSV calls the columns; those that this table lacks are passed over.
    """
    chosen = [i for i, column in enumerate(table.columns) if column.part == "row"]
    for name in names:
        for i, column in enumerate(table.columns):
            if name in (column.title, column.key) and i not in chosen:
                chosen.append(i)
    columns = tuple(replace(column, brief=column.brief or column.title) for column in table.columns)
    return _with(table, [columns[i] for i in chosen], [[row[i] for i in chosen] for row in table.rows])


def pivot(table: Table, what: str = BY_STEPS, cells: bool = False) -> Table:
    """One row a method: a group of columns for each number of steps, then what is the same at all steps.

    A noise floor has no steps, and is what the numbers of every group are held against: it stands in each.

    Args:
        table: with a row for each method and number of steps.
        what: "steps" for all scores in each group, or one metric.
        cells: whether other numbers of a cell, as nfe, stand in the groups as well.

    Raises:
        BenchError: the table has no such metric, or no row with steps.
    """
    metrics = [column.key for column in table.columns if column.part == "score"]
    if what != BY_STEPS and what not in metrics:
        raise unknown_name("pivot", what, [BY_STEPS, *metrics])
    keys = [column.key for column in table.columns]
    label, number = keys.index("label"), keys.index("steps")
    inner = [
        i
        for i, column in enumerate(table.columns)
        if (column.part == "score" and what in (BY_STEPS, column.key)) or (column.part == "cell" and cells)
    ]
    outer = [i for i, column in enumerate(table.columns) if column.part == "label"]
    floors, rows = table.rows[: table.num_reference], table.rows[table.num_reference :]
    groups = sorted({int(row[number].text) for row in rows})
    if not groups or not inner:
        raise BenchError("there is nothing to pivot", "the table has no scores at any steps", "evaluate a method first")
    by_label: dict[str, dict[int, tuple[Entry, ...]]] = {}
    for row in rows:
        by_label.setdefault(row[label].text, {})[int(row[number].text)] = row
    # A column that says nothing in a group, as what is reported of other steps only, is left out of it.
    said = {(int(row[number].text), i) for row in rows for i in inner if row[i].text != DASH or row[i].note is not None}
    places = [(steps, i) for steps in groups for i in inner if (steps, i) in said]
    notes = [*table.notes] if _NOT_EVALUATED in table.notes else [*table.notes, _NOT_EVALUATED]
    absent = Entry(DASH, note=notes.index(_NOT_EVALUATED) + 1)
    columns = [table.columns[label]]
    columns += [replace(table.columns[i], group=_steps(steps)) for steps, i in places]
    columns += [table.columns[i] for i in outer]
    lines = [[row[label], *(row[i] for _, i in places), *(row[i] for i in outer)] for row in floors]
    for name, found in by_label.items():
        line = [Entry(name), *(found[steps][i] if steps in found else absent for steps, i in places)]
        lines.append([*line, *(_joined([row[i] for row in found.values()]) for i in outer)])
    told = " Noise floors have no steps, and stand in every group." if floors else ""
    return _with(replace(table, notes=tuple(notes), caption=table.caption + told), columns, lines)


def _steps(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def _joined(entries: Sequence[Entry]) -> Entry:
    """What all steps share, or what differs between them with slashes: of other seeds, say."""
    return Entry(" / ".join(dict.fromkeys(entry.text for entry in entries)))


def _with(table: Table, columns: Sequence[Column], rows: Sequence[Sequence[Entry]]) -> Table:
    """The table with these columns and rows; footnotes that nothing points to go, and the others count from 1."""
    used: list[int] = []
    lines = []
    for row in rows:
        line = []
        for entry in row:
            if entry.note is not None and entry.note not in used:
                used.append(entry.note)
            line.append(entry if entry.note is None else replace(entry, note=used.index(entry.note) + 1))
        lines.append(tuple(line))
    notes = tuple(table.notes[note - 1] for note in used)
    return replace(table, columns=tuple(columns), rows=tuple(lines), notes=notes)
