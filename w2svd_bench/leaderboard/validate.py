"""Whether a folder of records can be believed: schema, names, hashes, sums, and whether they can stand in one table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.table import is_random
from w2svd_bench.record import SCHEMA, Record, Score, record_paths
from w2svd_bench.uncertainty import jackknife_se

_SHA256 = re.compile(r"[0-9a-f]{64}")
# What only a path of one machine looks like: /home/..., C:\..., ~/..., file:///...
_PATH = re.compile(r"(?:/|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\|file:)\S", re.DOTALL)
_EXACT = 1e-9  # relative: these numbers are computed from the very numbers that the record holds


@dataclass(frozen=True)
class Finding:
    """Something about a file, or about the folder as a whole (no file): a problem, or what should be known."""

    file: Path | None
    kind: Literal["problem", "remark"]
    text: str


@dataclass(frozen=True)
class Report:
    """What `validate` found in ``num_files`` files."""

    folder: Path
    num_files: int
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        return [one for one in self.findings if one.kind == "problem"]


def validate(folder: Path, publishable: bool = False) -> Report:
    """Looks at every record in or under a folder, where `read_records` looks.

    Args:
        folder: of records.
        publishable: whether what may stand in a trial but not in a paper is a problem as well: scores by random
            weights, and code with changes that no commit holds. They are remarks without it.

    Raises:
        BenchError: there is no such folder, or no record in it.
    """
    paths = record_paths(folder)
    if not paths:
        raise BenchError(f"{folder} holds no records", "no JSON file is in it", "check the path")
    findings: list[Finding] = []
    records: dict[Path, Record] = {}
    first: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(folder)
        read = _read(path)
        if isinstance(read, list):
            findings += [Finding(name, "problem", text) for text in read]
            continue
        other = first.setdefault(read.cell.id, name)
        if other is name:
            records[name] = read
        else:
            findings.append(Finding(name, "problem", f"the same cell as {other}"))
        if path.name != read.file_name:
            findings.append(Finding(name, "problem", f"its cell's file is called {read.file_name}"))
        findings += [Finding(name, "problem", text) for text in _problems(read)]
        kind: Literal["problem", "remark"] = "problem" if publishable else "remark"
        findings += [Finding(name, kind, text) for text in _drafts(read)]
    if records:
        try:
            Leaderboard.from_records(records.values())
        except BenchError as error:
            findings.append(Finding(None, "problem", f"{error.what}: {error.why}"))
    return Report(folder, len(paths), tuple(findings))


def _read(path: Path) -> Record | list[str]:
    """The record, or all that is wrong with the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON and of UTF-8 alike
        return [f"not valid JSON: {error}"]
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA:
        return [f"schema_version is {version!r}, and should be {SCHEMA}"]
    try:
        return Record.model_validate(data)
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, one['loc'])) or 'record'}: {one['msg']}" for one in error.errors()]


def _problems(one: Record) -> Iterator[str]:
    """What makes a record's numbers unbelievable, or not comparable, or its file not fit to be shared."""
    hashes = {f"eval_set.{name}": getattr(one.eval_set, name) for name in ("prompts_sha256", "reference_sha256")}
    if one.cell.method != "real":  # real clips come from no checkpoint
        hashes["cell.checkpoint_sha256"] = one.cell.checkpoint_sha256
    for name, score in one.metrics.items():
        # A number of each clip may need no network; a distance between sets always does.
        if isinstance(score, Score) and not (score.weights_sha256 is None and score.values):
            hashes[f"metrics.{name}.weights_sha256"] = score.weights_sha256
    for path, value in hashes.items():
        if value is None or not _SHA256.fullmatch(value):
            yield f"{path} is {value!r}, no sha256"
    if not one.metrics:
        yield "it has no metrics"
    for name, score in one.metrics.items():
        if isinstance(score, Score):
            yield from (f"metrics.{name}: {text}" for text in _sums(score, one.eval_set.num_clips))
    if "w2svd_bench" not in one.provenance:
        yield "provenance names no version of w2svd_bench"
    for path, text in _texts({"config": one.config, "provenance": one.provenance}):
        if _PATH.match(text):
            yield f"{path} is a path of one machine: {text!r}"


def _sums(score: Score, num_clips: int) -> Iterator[str]:
    """Where a score does not follow from the numbers that it brings along."""
    if score.n > num_clips:
        yield f"n is {score.n}, more than the {num_clips} clips of the eval set"
    if score.leave_out:
        se = jackknife_se(score.leave_out) if len(score.leave_out) > 1 else None
        if se is None or score.se is None or not math.isclose(se, score.se, rel_tol=_EXACT, abs_tol=1e-12):
            yield f"se is {score.se}, and {se} by its leave-out values"
    if score.values:
        valid = [value for value in score.values if value is not None]
        if len(valid) != score.n:
            yield f"n is {score.n}, and {len(valid)} clips have a value"
        elif not math.isclose(float(np.mean(valid)), score.value, rel_tol=_EXACT, abs_tol=1e-12):
            yield f"its value is {score.value}, and the mean of its clips {float(np.mean(valid))}"
        if score.prompts and len(score.prompts) != len(score.values):
            yield f"it has {len(score.values)} values of {len(score.prompts)} clips' prompts"


def _drafts(one: Record) -> Iterator[str]:
    """What may stand in a trial only."""
    random = [name for name, score in one.metrics.items() if is_random(name, getattr(score, "flags", ()))]
    if random:
        yield f"scores by random weights, which mean nothing: {', '.join(sorted(random))}"
    git = one.provenance.get("git")
    if isinstance(git, dict) and git.get("dirty"):
        yield "the code had changes that no commit holds"


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested data, with the path to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(part, f"{path}.{key}" if path else str(key))
