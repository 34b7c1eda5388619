"""Shards of a latent cache: safetensors files of several clips, named by the sha256 of their bytes.

A shard carries what its clips were made from, and it appears whole: it is written aside and renamed. So the shards that
are there are the state of a preparation, whatever was killed when.
Axes: C latent channels, T latent frames, h, w latent pixels, L text tokens, D and P text widths.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from w2svd_bench.data.captions import Entry
from w2svd_bench.errors import BenchError

SHARDS, ENDING = "shards", ".safetensors"
LATENTS, TEXT, IMAGE = "latents", ("tokens", "mask", "pooled"), "image"


@dataclass(frozen=True)
class Shard:
    """A file of clips: its sha256 (which names it), its size and how many clips of the cache lie in it."""

    sha256: str
    bytes: int
    clips: int

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):  # it becomes a path
            raise ValueError(f"{self.sha256!r} is no sha256")

    @property
    def file(self) -> str:
        return f"{SHARDS}/{self.sha256}{ENDING}"


def entry_from_json(data: Mapping[str, Any]) -> Entry:
    """An entry from its ``asdict`` as JSON gives it back; raises TypeError for anything else."""
    window = data.get("window")
    return Entry(**{**data, "window": None if window is None else (float(window[0]), float(window[1]))})


def read_shard(path: Path, ids: Iterable[str], names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Tensors of some clips of a shard, by id and name; a name that a clip has none of (``image``) is left out.

    They are ``latents`` (C, T, h, w), ``tokens`` (L, D), ``mask`` (L), ``pooled`` (P) and, for image-to-video,
    ``image`` (C, 1, h, w), the latents of the given first frame.

    Raises:
        BenchError: the shard can't be read.
    """
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
            for one in dict.fromkeys(ids):
                wanted = [name for name in names if name != IMAGE or f"{one}.{IMAGE}" in keys]
                found[one] = {name: file.get_tensor(f"{one}.{name}") for name in wanted}
    except (OSError, SafetensorError) as error:
        raise BenchError(
            f"shard {path.name} of the latent cache {path.parent.parent} can't be read",
            str(error),
            "delete that file and repeat the cache's `w2svd-bench data prepare` command: it is encoded again",
        ) from error
    return found


@dataclass(frozen=True)
class Stored:
    """Where a clip lies, and how many text tokens it has."""

    path: Path
    text_length: int


def stored_clips(folder: Path, encoding: str) -> tuple[dict[Entry, Stored], list[Path]]:
    """The clips that lie in shards, by what they were made from, and the shards that can't be read.

    Shards that were written with another ``encoding`` (see `ShardWriter`) are left alone and not used.
    """
    stored: dict[Entry, Stored] = {}
    damaged = []
    for path in sorted((folder / SHARDS).glob(f"*{ENDING}")):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError:
            damaged.append(path)
            continue
        if metadata.get("encoding") == encoding:
            for clip in json.loads(metadata["clips"]):
                stored.setdefault(entry_from_json(clip["entry"]), Stored(path, clip["text_length"]))
    return stored, damaged


class ShardWriter:
    """Collects clips in memory and writes them as shards; also what there is when the work breaks off.

    Args:
        folder: the shards' folder.
        encoding: says how the clips were encoded; equal for shards that go together.
        name: of this process among those that write to the same folder.
        shard_bytes: size from which a shard is full.
    """

    def __init__(self, folder: Path, encoding: str, name: str, shard_bytes: int) -> None:
        self.folder, self.encoding, self.name, self.shard_bytes = folder, encoding, name, shard_bytes
        self._tensors: dict[str, Tensor] = {}
        self._clips: list[dict[str, Any]] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def add(self, entry: Entry, tensors: dict[str, Tensor]) -> None:
        self._tensors |= {f"{entry.id}.{name}": tensor for name, tensor in tensors.items()}
        self._clips.append({"entry": asdict(entry), "text_length": len(tensors["tokens"])})
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes the shard under way, if there is one, aside and renames it."""
        if not self._clips:
            return
        clips = json.dumps(self._clips, ensure_ascii=False)
        data = save(self._tensors, {"encoding": self.encoding, "clips": clips})
        draft = self.folder / f"{self.name}-{os.getpid()}.tmp"
        try:
            draft.write_bytes(data)
            draft.replace(self.folder / (hashlib.sha256(data).hexdigest() + ENDING))
        except OSError as error:
            why = error.strerror or str(error)
            raise BenchError("a shard can't be written", why, "mend that and repeat the command") from error
        self._tensors, self._clips = {}, []
