"""The published weights that metrics stand on: what each file is, where it lies, and whether it is the right one.

A file is known by its sha256, never by its name: two different files of the same name, both meant for FID, are in
circulation. Where no public source states a hash none is made up: the file's own is written down when it is first
used, and from then on another file is refused. Nothing here needs torch or numpy, and nothing is downloaded
(`download.py` does that).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.folders import cache_folder
from w2svd_bench.metrics.weights_table import WEIGHTS, Weight
from w2svd_bench.record import write_atomically

FOLDER_VARIABLE = "W2SVD_BENCH_WEIGHTS"
FIRST_USE = "first-use.json"  # id -> {sha256, size, time_utc}: files that no public source states a hash of
WITHOUT_FILES = ("fid_mini", "fvd_mini", "vbench.temporal_flickering")  # metrics that need none
STAND_INS = "stand-ins.json"  # id -> [sha256, ...]: files that tests and trials put in the place of real weights

Standing = Literal["pinned", "trusted on first use", "stand-in"]


@dataclass(frozen=True)
class Found:
    """A file that is there and is the right one."""

    weight: Weight
    path: Path
    sha256: str
    standing: Standing

    @property
    def flags(self) -> tuple[str, ...]:
        """What has to be said wherever a score that stands on the file is shown."""
        if self.standing == "stand-in":
            from w2svd_bench.metrics.base import STAND_IN  # here, since it brings numpy: listing files does without

            return (STAND_IN,)
        return () if self.standing == "pinned" else (f"weights {self.standing}",)


def weights_folder() -> Path:
    """``$W2SVD_BENCH_WEIGHTS``, or ``weights`` in the cache folder."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else cache_folder() / "weights"


def place(weight: Weight) -> Path:
    """Where the file belongs, whether it is there or not."""
    return weights_folder() / weight.file


def named(id: str) -> Weight:
    """The weight of that id; an unknown one raises `BenchError` with the nearest known."""
    if id not in WEIGHTS:
        raise unknown_name("weights file", id, WEIGHTS)
    return WEIGHTS[id]


def needed_by(metric: str) -> list[Weight]:
    """All weights of a metric ("fid") or of one of its dimensions ("vbench.dynamic_degree").

    Raises:
        BenchError: no metric that has files of weights is called that.
    """
    name = re.sub(r"[^a-z0-9.]+", "_", metric.lower()).strip("_")  # ``fid[clean]`` is ``fid_clean``
    found = [weight for weight in WEIGHTS.values() if name in weight.used_by]
    if not found and name not in WITHOUT_FILES:
        raise unknown_name("metric with weights", metric, {name for w in WEIGHTS.values() for name in w.used_by})
    return found


def locate(weight: Weight) -> Path | None:
    """Where the file is, in the weights folder or in torch's cache; None if it is in neither. Nothing is checked."""
    return next((path for path in _places(weight) if path.is_file()), None)


def find(id: str) -> Found:
    """The file of that id, checked.

    A file without a public hash is recorded in `FIRST_USE` the first time. A file is read once a process.

    Raises:
        BenchError: it is missing, empty, a Git LFS pointer, a web page, of another size or another hash, or it is not
            the one that was first used.
    """
    weight = named(id)
    path = locate(weight)
    if path is None:
        raise _missing(weight)
    try:
        return _examined(weight, path)
    except OSError as error:
        raise BenchError(f"{path} can't be read", str(error), "check its permissions, and the disk") from error


def expected_sha256(weight: Weight) -> str | None:
    """The hash that the file must have: the published one, else that of its first use, else None."""
    if weight.sha256 is not None:
        return weight.sha256
    first: str | None = _ledger(FIRST_USE).get(weight.id, {}).get("sha256")
    return first


def install_stand_in(id: str, source: Path | bytes) -> Found:
    """Puts a file in the place of real weights, for tests and trials; what uses it is flagged as a stand-in's score.

    Args:
        id: the weights whose place it takes.
        source: a file, which is copied, or its content.

    Raises:
        BenchError: the id is unknown, or real weights lie in that place, which are not overwritten.
    """
    weight = named(id)
    content = source if isinstance(source, bytes) else source.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    noted = _ledger(STAND_INS).get(id, [])
    path = place(weight)
    if path.is_file() and _digest(path) not in noted:
        raise BenchError(
            f"a stand-in can't take the place of {path}",
            "there is a file that is not a stand-in itself",
            f"use another weights folder: set {FOLDER_VARIABLE}, or give --weights-dir",
        )
    # Noted first: there is no moment at which the file is there and not known for what it is.
    if sha256 not in noted:
        _amend(STAND_INS, lambda known: known | {id: [*known.get(id, []), sha256]})
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return find(id)


def impostor(head: bytes) -> str | None:
    """What a file really is by its first bytes, where it is no weights at all; None where nothing is wrong with them.

    Cloning without Git LFS leaves a pointer of three lines, and an expired link a web page, both under the right name.
    """
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "it is a Git LFS pointer, a note of three lines where the file should be"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, an error message or a login as a rule"
    return None


def how_to_get(weight: Weight) -> str:
    """The cure for a file that is not there or not right."""
    known = expected_sha256(weight)
    proof = f"sha256 {known}" if known else "no public source states its sha256"
    return (
        f"w2svd-bench weights fetch {weight.id}; without a network, download {weight.urls[0]} elsewhere and "
        f"put it at {place(weight)} ({proof})"
    )


# A file is hashed once a process: 2 GB take seconds. The key holds what changes when the file does.
_digests: dict[tuple[str, int, int], str] = {}


def _digest(path: Path) -> str:
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def _examined(weight: Weight, path: Path) -> Found:
    """The cheap checks come first, but for stand-ins: they are right by having been noted as such."""
    noted = _ledger(STAND_INS).get(weight.id, [])
    if noted and _digest(path) in noted:
        return Found(weight, path, _digest(path), "stand-in")
    size = path.stat().st_size
    with path.open("rb") as file:
        problem = impostor(file.read(512))
    if problem is not None:
        raise _wrong(weight, path, problem)
    if weight.size is not None and size != weight.size:
        kind = "it was cut off" if size < weight.size else "it is another file"
        raise _wrong(weight, path, f"it has {size} bytes instead of {weight.size}: {kind}")
    sha256 = _digest(path)
    if weight.sha256 is None:
        return _trusted(weight, path, sha256)
    if sha256 != weight.sha256:
        raise _wrong(weight, path, f"its sha256 is {sha256} instead of {weight.sha256} ({weight.stated_by})")
    return Found(weight, path, sha256, "pinned")


def _trusted(weight: Weight, path: Path, sha256: str) -> Found:
    """A file that nobody states a hash of: right if it is the one that was used first, which may be now."""
    first = _ledger(FIRST_USE).get(weight.id)
    if first is None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"sha256": sha256, "size": path.stat().st_size, "time_utc": now}
        # Another process may have been first since: then its note stands.
        first = _amend(FIRST_USE, lambda known: {weight.id: entry} | known)[weight.id]
    if first["sha256"] != sha256:
        raise BenchError(
            f"the weights {weight.id} have changed since they were first used: {path}",
            f"their sha256 is {sha256}; it was {first['sha256']} on {first['time_utc']}",
            f"put the first file back, or take {weight.id} out of {weights_folder() / FIRST_USE} to trust this one "
            "(scores from before and after can't be compared)",
        )
    return Found(weight, path, sha256, "trusted on first use")


def _places(weight: Weight) -> list[Path]:
    places = [place(weight)]
    if weight.in_torch_hub:
        # As torch.hub.get_dir does it, without torch.
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        home = Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser()
        places.append(home / "hub" / "checkpoints" / Path(weight.file).name)
    return places


def _ledger(name: str) -> dict[str, Any]:
    path = weights_folder() / name
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        cure = "restore it from a backup; without one, delete it, and every file counts as new"
        raise BenchError(f"{path} is damaged", f"it is not valid JSON: {error}", cure) from error
    return found


def _amend(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Writes what ``change`` makes of a ledger's entries and returns it; one process at a time: no note is lost."""
    path = weights_folder() / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{name}.lock")):
            changed = change(_ledger(name))
            write_atomically(path, json.dumps(changed, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        why = f"{error}; it says which files are trusted, and which are stand-ins"
        raise BenchError(f"{path} can't be written", why, "make the folder writable, or use a copy of it") from error
    return changed


def _missing(weight: Weight) -> BenchError:
    looked = " and ".join(str(path) for path in _places(weight))
    why = f"there is no file at {looked}; {', '.join(weight.used_by)} can't do without it"
    return BenchError(f"the weights {weight.id} ({Path(weight.file).name}) are missing", why, how_to_get(weight))


def _wrong(weight: Weight, path: Path, problem: str) -> BenchError:
    cure = how_to_get(weight) if path == place(weight) else f"delete {path}, then {how_to_get(weight)}"
    return BenchError(f"{path} is not the weights {weight.id}", problem, cure)
