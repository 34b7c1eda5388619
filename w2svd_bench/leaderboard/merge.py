"""Records of several machines in one folder: what two of them measured alike is there once, what differs is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.rows import REFERENCE_METHODS
from w2svd_bench.record import Record, read_records, write_record

_SHOWN = 5  # fields and cells that a message names


@dataclass(frozen=True)
class Merged:
    """What `merge` found: all records, how many each folder brought, and how many of these were there already."""

    records: tuple[Record, ...]
    brought: Mapping[Path, int]
    repeated: int


def merge(folders: Sequence[Path], into: Path) -> Merged:
    """Writes the records of all folders, and those that ``into`` has, into ``into/records``; everything or nothing.

    Of rows of real clips and of the teacher, which every evaluation measures for itself, each score is that of the
    first folder that has it.

    Raises:
        BenchError: ``into`` has records in folders of its own, or lies in one of the folders, where the joined ones
            would be there twice; a folder is missing, empty or damaged; a cell is there twice with records that
            differ, which the error names with the fields; or all together can't stand in one table.
    """
    inner = sorted({path.parent for path in into.glob("**/records/*.json")} - {into / "records"})
    if inner:
        why = f"it has records in {inner[0]} already, which would be there twice"
        raise BenchError(f"records can't be joined in {into}", why, "name a folder of its own after --into")
    outer = [one for one in folders if one.resolve() in into.resolve().parents]
    if outer:
        why = f"it lies in {outer[0]}, which would hold its own records twice"
        raise BenchError(f"records can't be joined in {into}", why, "name a folder outside of it after --into")
    found: dict[str, tuple[Path, Record]] = {}
    brought: dict[Path, int] = {}
    conflicts: list[str] = []
    repeated = 0
    sources = ([into] if into.is_dir() else []) + [one for one in folders if one.resolve() != into.resolve()]
    for folder in sources:
        records = read_records(folder)
        if not records and folder != into:
            raise BenchError(f"{folder} holds no records", "there is nothing to merge", "check the path")
        brought[folder] = len(records)
        for one in records:
            first, known = found.setdefault(one.cell.id, (folder, one))
            if known is one:
                continue
            repeated += 1
            if one.cell.method in REFERENCE_METHODS:  # every machine measures real clips and the teacher for itself
                found[one.cell.id] = first, filled(known, one)
                continue
            fields = differing(known, one)
            if fields:
                more = f" and {len(fields) - _SHOWN} more" if len(fields) > _SHOWN else ""
                conflicts.append(f"{one.file_name} of {first} and {folder}: {', '.join(fields[:_SHOWN])}{more}")
    if conflicts:
        more = f"; and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
        raise BenchError(
            f"{len(conflicts)} cell(s) have two records that differ",
            "; ".join(conflicts[:_SHOWN]) + more,
            "keep one of the two files: a cell measured twice is not two measurements of a method",
        )
    together = tuple(one for _, one in found.values())
    Leaderboard.from_records(together)  # refuses what a table would refuse, before anything is written
    for one in together:
        write_record(one, into / "records")
    return Merged(together, brought, repeated)


def filled(floor: Record, other: Record) -> Record:
    """A reference row with the scores that it lacks and another machine's record of the same clips has."""
    more = {name: score for name, score in other.metrics.items() if name not in floor.metrics}
    if not more or floor.eval_set != other.eval_set or floor.sampling != other.sampling:
        return floor
    earlier = [*floor.provenance.get("earlier", []), other.provenance]
    update = {"metrics": floor.metrics | more, "provenance": floor.provenance | {"earlier": earlier}}
    return floor.model_copy(update=update)


def differing(one: Record, other: Record) -> list[str]:
    """The fields in which two records differ, as "metrics.fid.value (3.1 and 3.2)": those of the numbers first."""
    a, b = (_flat(record.model_dump(mode="json")) for record in (one, other))
    paths = [path for path in a.keys() | b.keys() if path not in a or path not in b or a[path] != b[path]]
    paths.sort(key=lambda path: (not path.startswith("metrics"), path))
    return [f"{path} ({_told(a, path)} and {_told(b, path)})" for path in paths]


def _told(fields: Mapping[str, Any], path: str) -> str:
    if path not in fields:
        return "nothing"
    text = repr(fields[path])
    return text if len(text) <= 40 else f"{text[:37]}..."


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {
        name: leaf
        for key, part in value.items()
        for name, leaf in _flat(part, f"{path}.{key}" if path else key).items()
    }
