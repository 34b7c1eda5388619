"""Filters of records, as the command line takes them: ``steps<=4``, ``label=w2svd,lcm``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.leaderboard.rows import REFERENCE_METHODS
from w2svd_bench.record import Record

_FIELDS: dict[str, Callable[[Record], Any]] = {
    "backbone": lambda one: one.cell.backbone,
    "method": lambda one: one.cell.method,
    "label": lambda one: one.cell.label,
    "eval_set": lambda one: one.cell.eval_set,
    "steps": lambda one: one.cell.steps,
    "seed": lambda one: one.cell.seed,
    "nfe": lambda one: one.sampling.nfe,
}
# Reference rows have none of these in a table: a filter by them leaves the noise floors where they are.
_NUMBERS = ("steps", "seed", "nfe")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*(\w+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """A field of records, how it is compared, and with what: one value of several is enough, of != none may be it."""

    field: str
    sign: str
    value: str

    def __str__(self) -> str:
        return f"{self.field}{self.sign}{self.value}"


def parse(text: str) -> Filter:
    """Reads a field (backbone, method, label, eval_set, steps, seed, nfe), one of = != < <= > >=, and a value.

    Raises:
        BenchError: it is not of that form, names no field, or compares words by size.
    """
    found = _FORM.fullmatch(text)
    if found is None or not found[3]:
        raise BenchError(
            f"{text!r} is no filter",
            "a filter is a field, one of = != < <= > >=, and a value",
            'for example, after the folder: --filter "steps<=4" --filter label=w2svd,lcm',
        )
    one = Filter(found[1], found[2].replace("==", "="), found[3])
    if one.field not in _FIELDS:
        raise unknown_name("field of a filter", one.field, _FIELDS)
    if one.field in _NUMBERS:
        if not re.fullmatch(r"\d+" if one.sign in _ORDER else r"\d+(\s*,\s*\d+)*", one.value, re.ASCII):
            why = f"{one.field} is a whole number, and {one.value!r} is none"
            raise BenchError(f"{text!r} is no filter", why, f'for example --filter "{one.field}<=4"')
    elif one.sign in _ORDER:
        why = f"{one.field} is a word, and {one.sign} compares numbers"
        raise BenchError(f"{text!r} is no filter", why, f"use {one.field}={one.value}")
    return one


def filtered(records: Sequence[Record], filters: Sequence[Filter]) -> list[Record]:
    """The records that pass all filters, in order. Noise floors pass those by steps, seed and nfe.

    Raises:
        BenchError: a filter names a word that no record has, or nothing is left.
    """
    tests = [_test(one, records) for one in filters]
    chosen = [one for one in records if all(test(one) for test in tests)]
    asked = any(each.field in ("label", "method") for each in filters)  # for noise floors alone, perhaps
    if not chosen or not (asked or any(not _is_reference(one) for one in chosen)):
        have = [one.cell for one in records if not _is_reference(one)]
        steps, seeds = sorted({cell.steps for cell in have}), sorted({cell.seed for cell in have})
        raise BenchError(
            f"no record passes {' and '.join(repr(str(one)) for one in filters) or 'where there is none'}",
            f"there are records of steps {_listed(steps)} and seeds {_listed(seeds)}, not all with each other",
            "leave out one of the filters",
        )
    return chosen


def _test(one: Filter, records: Sequence[Record]) -> Callable[[Record], bool]:
    field = _FIELDS[one.field]
    if one.sign in _ORDER:
        compare, limit = _ORDER[one.sign], int(one.value)
        return lambda record: _is_reference(record) or compare(field(record), limit)
    wanted = one.sign == "="
    if one.field in _NUMBERS:
        numbers = {int(part) for part in one.value.split(",")}
        return lambda record: _is_reference(record) or (field(record) in numbers) == wanted
    words = _words(one, {field(record) for record in records})
    return lambda record: (field(record) in words) == wanted


def _words(one: Filter, known: set[str]) -> set[str]:
    """The values of a filter, which may hold commas themselves: the longest that records have is taken first."""
    parts, found = one.value.split(","), set()
    while parts:
        sizes = [size for size in range(len(parts), 0, -1) if ",".join(parts[:size]).strip() in known]
        if not sizes:
            raise unknown_name(one.field.replace("_", " "), parts[0].strip(), known)
        found.add(",".join(parts[: sizes[0]]).strip())
        parts = parts[sizes[0] :]
    return found


def _is_reference(one: Record) -> bool:
    return one.cell.method in REFERENCE_METHODS


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "(none)"
