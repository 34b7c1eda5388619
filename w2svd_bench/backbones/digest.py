"""The sha256 of weight files. Hashing 25 GB takes a minute, so large files are hashed once and remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from w2svd_bench.folders import cache_folder
from w2svd_bench.record import write_atomically

REMEMBERED_ABOVE = 64 * 2**20


def digest_of(files: Sequence[Path]) -> str:
    """One sha256 over the names and the contents of files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        if file.stat().st_size > REMEMBERED_ABOVE:
            digest.update(_remembered(file).encode())
        else:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _remembered(file: Path) -> str:
    """The sha256 of one large file, from the cache while the file's place, size and time of change stay the same."""
    status = file.stat()
    facts = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    path = cache_folder() / "sha256" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.json"
    try:
        known: str = json.loads(path.read_text())["sha256"]
        return known
    except (OSError, ValueError, KeyError):
        pass
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    write_atomically(path, json.dumps({"file": file.name, "sha256": found}) + "\n")
    return found
