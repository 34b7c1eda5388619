"""Whether a folder of records can be believed: schema, names, hashes, sums, and whether they can stand in one table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.table import is_random
from w2svd_bench.record import SCHEMA, Record, Score, record_paths
from w2svd_bench.uncertainty import cluster_bootstrap, jackknife_se

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_URL = re.compile(r"\b(?![a-z+]*file:)[a-z][a-z0-9+.-]*://\S*", re.IGNORECASE)  # holds slashes, and is no path
# What only a path of one machine looks like, anywhere in a text. A slash behind a word, a dot, a bracket or a glob goes
# on with something (and/or, x/127.5, ./a/b, <out>/a/b), and one before a single name may be a unit (/s).
_ROOTS = "home|root|tmp|data|mnt|media|opt|scratch|srv|usr|var|work|workspace|Users|Volumes"
_PATH = re.compile(
    rf"""
    (?: \A / (?: / | [^\s/]{{2}} )                      # a text that is a path
      | (?<! [\w./~)\]}}>%*…-] ) /
        (?: (?!\d+/) [\w.@+-]+ / [\w.@+-] | (?:{_ROOTS}) \b )  # /a/b, /home
      | (?<! [\w./~] ) ~ (?: [A-Za-z_] [\w.-]* )? [/\\] \S    # ~/a, ~alice/a
      | (?<! [A-Za-z0-9] ) [A-Za-z] : [/\\] (?!/) \S          # C:\a
      | (?<! [\w\\] ) \\\\ [\w.]                              # \\server\a
      | \b file:/ )
    [^\s'",;)]*
    """,
    re.VERBOSE,
)
_EXACT = 1e-9  # relative: these numbers are computed from the very numbers that the record holds
_DRAWN = 1e-6  # relative: a bootstrap repeated with the same draws, whose sums may be taken in another order
_REDRAWN = 0.1  # and with other draws: 2000 of them tell a standard error to 1.6 %


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
            weights, and code that no commit holds. They are remarks without it.

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
    findings += [Finding(name, "problem", text) for name, text in _copies(records)]
    if records:
        try:
            Leaderboard.from_records(records.values())
        except BenchError as error:
            findings.append(Finding(None, "problem", f"{error.what}: {error.why}"))
    return Report(folder, len(paths), tuple(findings))


def _read(path: Path) -> Record | list[str]:
    """The record, or all that is wrong with the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except ValueError as error:  # of JSON and of UTF-8 alike
        return [f"not valid JSON: {error}"]
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA:
        return [f"schema_version is {version!r}, and should be {SCHEMA}"]
    try:
        return Record.model_validate(data)
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, one['loc'])) or 'record'}: {one['msg']}" for one in error.errors()]


def _copies(records: Mapping[Path, Record]) -> Iterator[tuple[Path, str]]:
    """Seeds of one label that are one generator: an SD over them would be of one training."""
    seeds: dict[tuple[str, str, str], int] = {}
    for name, one in records.items():
        cell = one.cell
        if one.training.iterations:
            first = seeds.setdefault((cell.backbone, cell.label, cell.checkpoint_sha256), cell.seed)
            if first != cell.seed:
                yield name, f"seed {cell.seed} of {cell.label!r} is the very generator of seed {first}"


def _finite(text: str) -> float:
    """The number; Python would read NaN, Infinity and 1e999, which JSON has not."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text}, which is no finite number")
    return number


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
            yield from (f"metrics.{name}: {text}" for text in _sums(score, one))
    # Guidance that doubles a batch, or a sampler of a higher order, takes more than one evaluation a level; none less.
    if one.sampling.nfe < len(one.sampling.levels) - 1:
        levels = len(one.sampling.levels)
        yield f"sampling.nfe is {one.sampling.nfe}, and {levels} levels take {levels - 1} network evaluations"
    if "w2svd_bench" not in one.provenance:
        yield "provenance names no version of w2svd_bench"
    for path, text in _texts(one.model_dump(mode="json")):
        found = _PATH.search(_URL.sub("URL", text))
        if found:
            yield f"{path} holds a path of one machine: {found[0]!r}"


def _sums(score: Score, one: Record) -> Iterator[str]:
    """Where a score does not follow from the numbers that it brings along, or these are not of all clips."""
    num_clips, invalid = one.eval_set.num_clips, sum(score.invalid.values())
    if score.n + invalid != num_clips:
        yield f"n is {score.n} and invalid counts {invalid}, and the eval set has {num_clips} clips"
    if score.leave_out:
        yield from _of_set(score, floor=one.cell.method == "real")
    if score.values:
        packages = one.provenance.get("packages")
        version = packages.get("numpy") if isinstance(packages, dict) else None
        # What numpy draws by a seed may change from one of its versions to the next.
        yield from _of_clips(score, num_clips, _DRAWN if version == np.__version__ else _REDRAWN)


def _of_set(score: Score, floor: bool) -> Iterator[str]:
    """Whether the value and its error belong to the leave-out values.

    The error follows from them. The value V does not, yet it can't be just anywhere: with M the mean of the G leave-out
    values and SE the error,

        M - V <= 8 |V| / (G - 1) + 2 SE  where M is worse than V,
        V - M <= 3 |V| / (G - 1) + 2 SE  where it is better.

    A bias that falls with the number of clips shows in M - V as bias / (G - 1). Of a distance, which is zero or more,
    the bias is at most the value, so that the first term would be V / (G - 1); the Fréchet distance came to 1.3 times
    that where vectors were as many as dimensions. Where clips are held against clips of the very same prompts, leaving
    prompts out takes a likeness away: if 95 % of what tells clips apart is the prompt, M - V is up to 10 times that, of
    which SE covers a part. (Tried with 20 to 512 vectors of 256 to 1024 dimensions.) Real clips may be held against
    themselves, which no bound describes: of floors, only the second line is asked.

    With 20 groups and an error below a tenth of the value, this finds a value that was halved or doubled. It can't see
    small changes, larger ones where the error or, with few groups, the bias may be as large as the value, what was
    changed along with its leave-out values, and the extrapolation to infinitely many clips.
    """
    groups = len(score.leave_out)
    if score.groups and (len(score.groups), sum(score.groups)) != (groups, score.n):
        told = f"{len(score.groups)} groups of {sum(score.groups)} clips"
        yield f"its {groups} leave-out values are of {told}, n is {score.n}"
        return
    se = jackknife_se(score.leave_out, score.value, score.groups or None) if groups > 1 else None
    if se is None or score.se is None or not math.isclose(se, score.se, rel_tol=_EXACT, abs_tol=1e-12):
        yield f"se is {score.se}, and {se} by its leave-out values"
        return
    mean = float(np.mean(score.leave_out))
    worse = (mean - score.value) * (1 if score.direction == "down" else -1)
    bias = abs(score.value) / (groups - 1)
    noise = 2 * se + 1e-6  # the latter for sets of equal clips, whose values differ by rounding
    if worse < -(3 * bias + noise) or (worse > 8 * bias + noise and not floor):
        yield f"its value is {score.value}, which is too far from its leave-out values: their mean is {mean}, se {se}"


def _of_clips(score: Score, num_clips: int, drawn: float) -> Iterator[str]:
    """Whether values and prompts are there of all clips, and the mean and its error follow from them."""
    if not len(score.values) == len(score.prompts) == num_clips:
        lengths = f"{len(score.values)} values and {len(score.prompts)} numbers of prompts"
        yield f"it has {lengths} for the {num_clips} clips of the eval set"
        return
    found = [(value, prompt) for value, prompt in zip(score.values, score.prompts, strict=True) if value is not None]
    if len(found) != score.n:
        yield f"n is {score.n}, and {len(found)} clips have a value"
        return
    values = np.array([value for value, _ in found])
    mean = float(values.mean())
    if not math.isclose(mean, score.value, rel_tol=_EXACT, abs_tol=1e-12):
        yield f"its value is {score.value}, and the mean of its clips {mean}"
    try:
        se = cluster_bootstrap(values, [prompt for _, prompt in found]).se
    except BenchError:  # clips of one prompt tell no error
        se = None
    rounding = 1e-12 * float(np.abs(values).max())
    if se is None or score.se is None:
        if se is not score.se:
            yield f"se is {score.se}, and {se} by its clips"
    elif not math.isclose(se, score.se, rel_tol=drawn, abs_tol=max(rounding, 1e-12)):
        yield f"se is {score.se}, and {se} by its clips"


def _drafts(one: Record) -> Iterator[str]:
    """What may stand in a trial only."""
    random = [name for name, score in one.metrics.items() if is_random(name, getattr(score, "flags", ()))]
    if random:
        yield f"scores by random weights, which mean nothing: {', '.join(sorted(random))}"
    codes = {"provenance": one.provenance}
    if one.training.code:  # older records don't say by which code they were trained
        codes["training.code"] = one.training.code
        before = one.training.code.get("before")  # what a run was gone on with, see `train.run.Run.code`
        told = before if isinstance(before, list) else [] if before is None else [before]
        codes |= {f"training.code.before.{i}": code if isinstance(code, dict) else {} for i, code in enumerate(told)}
    for path, code in codes.items():
        stated = code.get("git")
        git = stated if isinstance(stated, dict) else {}
        commit, dirty = git.get("commit"), git.get("dirty")
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            yield f"{path}.git names no commit that holds the code: {stated!r}"
        elif dirty is not False:
            yield f"the code had changes that no commit holds: {path}.git.dirty is {dirty!r}"
    trained_by, sampled_by = (code.get("method") for code in (one.training.code, one.provenance))
    if trained_by and trained_by != sampled_by:
        yield f"its method was trained as {trained_by!r} and sampled as {sampled_by!r}"


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested data, names among them, with the path to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str):
                yield path or key, key
            yield from _texts(part, f"{path}.{key}" if path else str(key))
