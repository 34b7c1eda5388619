"""What a finished cell leaves behind: one JSON file with its scores and all that is needed to believe them.

Leaderboards are pure functions of these files. Numbers in them are finite; paths are relative or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

from w2svd_bench import __version__
from w2svd_bench.errors import BenchError

SCHEMA = 1
Direction = Literal["up", "down"]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]

# The packages whose version can move a number.
_PACKAGES = (
    "diffusers", "numpy", "pandas", "peft", "pillow", "pydantic", "pytorch-fid", "safetensors", "scipy", "tokenizers",
    "torch", "torchvision", "transformers",
)  # fmt: skip


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cell(_Part):
    """One point of the evaluation grid. ``label`` is what tables call the method: a variant has a label of its own."""

    backbone: str
    method: str
    label: str
    checkpoint_sha256: str
    steps: Count
    seed: int
    eval_set: str

    @property
    def id(self) -> str:
        """A name for files: readable, and different for different cells, whatever their label looks like."""
        label = re.sub(r"[^A-Za-z0-9._]+", "-", self.label).strip("-.")[:80] or "cell"
        return f"{label}-steps{self.steps}-seed{self.seed}-{canonical_hash(self)[:10]}"


class Sampling(_Part):
    """How the clips were made; ``nfe`` are network evaluations a clip, ``levels`` the noise levels in [0, 1]."""

    sampler: str
    nfe: Count
    guidance: float
    shift: float
    levels: tuple[float, ...]
    noise_seed: int


class Score(_Part):
    """A metric's value with its standard error over ``n`` clips, and what exactly measured it.

    ``leave_out`` are the values without each of the jackknife's groups of prompts, of a metric of the whole set, and
    ``groups`` how many clips these groups have (empty in records older than the field: as many one as another);
    ``values`` those of each clip in the order of the eval set, of a metric that scores clips (None: it has none, and
    ``invalid`` counts why), and ``prompts`` number the prompts of these clips, as `uncertainty.numbered` does: equal
    numbers, one prompt. Two records of the same prompts are compared, paired, by either of them. ``se`` is None where
    all clips are of one prompt, which tells no error. ``flags`` are what has to be said wherever the value is shown,
    ``infinity`` is the value extrapolated to infinitely many clips, and ``reference`` what it was held against where
    that is not the eval set's own reference.
    """

    value: float
    se: Annotated[float, Field(ge=0)] | None
    n: int = Field(ge=1)
    direction: Direction
    version: int
    id: str
    weights_sha256: str | None = None
    leave_out: tuple[float, ...] = ()
    groups: tuple[Annotated[int, Field(ge=1)], ...] = ()
    values: tuple[float | None, ...] = ()
    prompts: tuple[Count, ...] = ()
    invalid: dict[str, Count] = Field(default_factory=dict)
    flags: tuple[str, ...] = ()
    infinity: float | None = None
    reference: str | None = None


class SkippedScore(_Part):
    """A score that could not be had, with the reason; ``again`` where another evaluation may find it gone."""

    skipped: str = Field(min_length=1)
    again: bool = False
    direction: Direction
    version: int


def _score_kind(value: Any) -> str:
    skipped = "skipped" in value if isinstance(value, Mapping) else isinstance(value, SkippedScore)
    return "skipped" if skipped else "score"


AnyScore = Annotated[
    Annotated[Score, Tag("score")] | Annotated[SkippedScore, Tag("skipped")], Discriminator(_score_kind)
]


class EvalSet(_Part):
    """The prompts and the reference clips: two scores can be compared only when all of this is the same."""

    name: str
    num_clips: int = Field(ge=1)
    prompts_sha256: str
    reference: str
    reference_sha256: str
    frames: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    fps: float = Field(gt=0)
    resize: str


class TrainingCost(_Part):
    """What training took; ``network_evaluations`` are forward passes of one sample, those without gradient included.

    ``device`` is what it ran on: peaks compare on like devices only. ``data`` is what it was trained on, by name, and
    ``backbone_sha256`` of the teacher, codec and text encoders that it was trained with; ``code`` is the version and
    commit of this package that trained, and the code of the method. These are empty in records older than the field.
    ``health`` says how a run with a fake fared: see `train.health.Health`. It is empty for others.
    """

    iterations: Count = 0
    updates: dict[str, Count] = Field(default_factory=dict)
    network_evaluations: Count = 0
    seconds: Seconds = 0.0
    peak_memory_bytes: Count = 0
    device: str = ""
    data: str = ""
    backbone_sha256: str = ""
    code: dict[str, Any] = Field(default_factory=dict)
    health: dict[str, float | int | None] = Field(default_factory=dict)


class Timing(_Part):
    """Seconds that sampling and decoding took for one clip, and that the whole cell took."""

    sample_seconds_per_clip: Seconds
    decode_seconds_per_clip: Seconds
    wall_seconds: Seconds


class Record(_Part):
    """A finished cell. ``config`` is the resolved recipe, ``provenance`` what `provenance` returns."""

    schema_version: Literal[1] = 1
    cell: Cell
    sampling: Sampling
    metrics: dict[str, AnyScore]
    diagnostics: dict[str, float] = Field(default_factory=dict)
    eval_set: EvalSet
    training: TrainingCost
    timing: Timing
    config: dict[str, Any]
    provenance: dict[str, Any]

    @pydantic.model_validator(mode="after")
    def _one_eval_set(self) -> Record:
        if self.cell.eval_set != self.eval_set.name:
            raise ValueError(f"the cell's eval set {self.cell.eval_set!r} is not {self.eval_set.name!r}")
        return self

    @property
    def file_name(self) -> str:
        """The name of the file that `write_record` writes."""
        return f"{self.cell.id}.json"


def canonical_hash(obj: Any) -> str:
    """The sha256, in hex, of an object's JSON with sorted keys and no spaces: equal content, equal hash.

    Raises:
        TypeError, ValueError: it holds something that JSON does not, or a number that is not finite.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, pydantic.BaseModel):
            return value.model_dump(mode="json")
        raise TypeError(f"{type(value).__name__} can't be hashed as JSON")

    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


def provenance(device: str) -> dict[str, Any]:
    """Which code ran where and when; ``device`` is its name, for example "cpu" or "NVIDIA H200"."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an optional package that is not installed moved no number
    return {
        **code(),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "device": device,
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def code() -> dict[str, Any]:
    """The version of this package, and the commit that holds it (None outside of its repository)."""
    return {"w2svd_bench": __version__, "git": _git(Path(__file__).resolve().parent)}


def write_record(record: Record, folder: Path) -> Path:
    """Writes ``folder/<cell id>.json``; whoever looks sees the old file or the new one, never half of it."""
    text = json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomically(folder / record.file_name, text + "\n")


def write_atomically(path: Path, text: str) -> Path:
    """Writes UTF-8 text beside ``path`` and renames it into place; makes the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def read_records(folder: Path) -> list[Record]:
    """All records in or under a folder, ordered by path: see `record_paths`.

    Raises:
        BenchError: there is no such folder; a file is damaged, is no record or one of another schema; a cell is
            there twice.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for path in record_paths(folder):
        try:
            record = read_record(path)
        except FileNotFoundError:
            continue  # another process has set it aside since the folder was listed
        if record.cell.id in found:
            raise BenchError(
                f"cell {record.cell.id} has two records",
                f"{found[record.cell.id][0]} and {path}",
                "keep one of them, or point at a folder that holds only one",
            )
        found[record.cell.id] = (path, record)
    return [record for _, record in found.values()]


def record_paths(folder: Path) -> list[Path]:
    """The files of records in or under a folder, sorted.

    Where some folder at or below it is called ``records``, every JSON file in such folders is one; otherwise every JSON
    file right in it. Raises `BenchError` if there is no such folder.
    """
    if not folder.is_dir():
        why = "it is a file, not a folder" if folder.exists() else "there is no such folder"
        raise BenchError(f"records can't be read from {folder}", why, "check the path")
    return sorted(folder.glob("**/records/*.json")) or sorted(folder.glob("*.json"))


def read_record(path: Path) -> Record:
    """The record that a file holds.

    Raises:
        BenchError: it is damaged, no record, or one of another schema.
        FileNotFoundError: it is not there.
    """
    what, cure = f"{path} is not a record", "remove it, or evaluate its cell again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except ValueError as error:  # of JSON and of UTF-8 alike
        raise BenchError(what, f"it is not valid JSON: {error}", cure) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise BenchError(what, "it has no schema_version", cure)
    if data["schema_version"] != SCHEMA:
        why = f"it has schema {data['schema_version']!r}; this is w2svd-bench {__version__}, which reads {SCHEMA}"
        raise BenchError(what, why, "use the version of w2svd-bench that wrote it, or evaluate its cell again")
    try:
        return Record.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc'])) or 'record'}: {one['msg']}" for one in error.errors()]
        raise BenchError(what, "; ".join(problems[:5]), cure) from error


def _no_number(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no finite number")


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit that holds this code and whether it was changed since; None outside of its repository.

    Results do not count as a change: they are what a run writes.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        # An installed copy can lie inside some other repository, whose commit says nothing about it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--", ":(top)", ":(top,exclude)results")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}
