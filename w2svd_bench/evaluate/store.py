"""What was read of clips is kept, so that no clip goes through a network twice.

Features are kept by the content of a clip and the identity of the net: whoever asks for them says which, and gets them
in whatever order it asks, so nothing depends on who made them when. They lie in shards that are written once, as a
whole, and never changed: a process that is killed loses what it had not written yet, and several may write at a time.
A `ClipLog` remembers the contents of the clips of one origin (a run at a number of steps, a reference set), so that
their features are found without making the clips again.
Axes: K vectors a clip, D numbers a vector.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import numpy as np

from w2svd_bench.errors import BenchError
from w2svd_bench.folders import cache_folder
from w2svd_bench.record import write_atomically
from w2svd_bench.world import World

SHARD_CLIPS = 64  # a shard is written when so many clips wait for it


def content_sha256(frames_FHWC: np.ndarray) -> str:
    """The hash of a clip's pixels: uint8 (F, H, W, 3), its shape included."""
    return hashlib.sha256(repr(frames_FHWC.shape).encode() + np.ascontiguousarray(frames_FHWC).tobytes()).hexdigest()


def kept_on(id: str, device: str) -> str:
    """What is kept of an id's values that a device ("cpu", "cuda:1", ...) made: each kind has a place of its own.

    Another kind of device gives other last bits, which a score must not depend on by what was made first.
    """
    kind = device.partition(":")[0]
    return id if kind == "cpu" else f"{id}; on {kind}"


class FeatureStore:
    """Features (K, D) by net id and by the content hash of a clip; `kept_on` is the id for a kind of device.

    Args:
        folder: None: ``features`` in the cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder() / "features"
        self._known: dict[str, dict[str, np.ndarray]] = {}
        self._index: dict[str, dict[Path, frozenset[str]]] = {}  # the keys of each shard
        self._waiting: dict[str, dict[str, np.ndarray]] = {}

    def get(self, net_id: str, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The features of those of the clips that are known, (K, D) as they were put.

        Raises:
            BenchError: a shard is damaged.
        """
        known = self._known.setdefault(net_id, {})
        wanted = {key for key in keys if key not in known}
        if wanted:
            self._look(net_id, wanted)
        return {key: known[key] for key in keys if key in known}

    def put(self, net_id: str, values: Mapping[str, np.ndarray]) -> None:
        """Adds features of clips; they are on disk after `flush`, or once enough of them wait."""
        waiting = self._waiting.setdefault(net_id, {})
        known = self._known.setdefault(net_id, {})
        for key, value in values.items():
            if key not in known:
                waiting[key] = known[key] = np.asarray(value)
        if len(waiting) >= SHARD_CLIPS:
            self._write(net_id)

    def flush(self) -> None:
        """Writes what waits."""
        for net_id in list(self._waiting):
            self._write(net_id)

    def _place(self, net_id: str) -> Path:
        return self._folder / hashlib.sha256(net_id.encode()).hexdigest()[:24]

    def _look(self, net_id: str, wanted: set[str]) -> None:
        """Reads what is wanted: the keys of the shards that have come since the last time, and of shards the values."""
        index, known = self._index.setdefault(net_id, {}), self._known[net_id]
        for path in sorted(self._place(net_id).glob("*.npz")):
            if path not in index:
                index[path] = frozenset(_keys(path))
        for path, held in index.items():
            if not wanted.isdisjoint(held):
                known |= {key: value.copy() for key, value in _shard(path) if key in wanted and key not in known}

    def _write(self, net_id: str) -> None:
        by_shape: dict[tuple[object, ...], dict[str, np.ndarray]] = {}
        for key, value in self._waiting.pop(net_id, {}).items():
            by_shape.setdefault((value.shape, value.dtype), {})[key] = value
        place = self._place(net_id)
        for values in by_shape.values():
            place.mkdir(parents=True, exist_ok=True)
            about = place / "net.json"
            if not about.is_file():
                write_atomically(about, json.dumps({"id": net_id}) + "\n")
            name = uuid.uuid4().hex
            draft = place / f".{name}.tmp"
            with draft.open("wb") as file:
                np.savez(file, keys=np.array(list(values)), values=np.stack(list(values.values())))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(place / f"{name}.npz")
            self._index.setdefault(net_id, {})[place / f"{name}.npz"] = frozenset(values)


@dataclass(frozen=True)
class Logged:
    """What is remembered of a batch of clips.

    Attributes:
        sha256: the content of each clip.
        power: the mean square of each clip's latents; empty for clips that have none.
        broken: clips whose latents, or whose decoded pixels, are not finite.
        seconds: that sampling and decoding took.
    """

    sha256: list[str]
    power: list[float]
    broken: int
    seconds: tuple[float, float]


class ClipLog:
    """The batches of the clips of one origin, by the number of their first clip.

    Args:
        key: the hash of all that the clips follow from; clips of equal keys are equal.
        folder: None: ``clips`` in the cache folder.
    """

    def __init__(self, key: str, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder() / "clips") / key[:32]

    def get(self, indices: Sequence[int]) -> Logged | None:
        """What is known of a batch, if just this batch was made before."""
        path = self._path(indices)
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
            logged = Logged(found["sha256"], found["power"], found["broken"], tuple(found["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        return logged if len(logged.sha256) == len(indices) else None

    def put(self, indices: Sequence[int], batch: Logged) -> None:
        write_atomically(self._path(indices), json.dumps(asdict(batch), allow_nan=False) + "\n")

    def video(self, index: int) -> Path:
        """Where a clip lies as a video while metrics that read files need it."""
        return self.folder / "videos" / f"{index:06}.mp4"

    @contextlib.contextmanager
    def alone(self, world: World) -> Iterator[None]:
        """Waits until nobody else is making the same clips: all processes of ``world`` wait for its leading one."""
        lock = filelock.FileLock(self.folder / "lock")

        def take() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()

        world.agree(take)
        try:
            yield
        finally:
            lock.release()  # nothing where it was not taken

    def _path(self, indices: Sequence[int]) -> Path:
        return self.folder / f"{indices[0]:06}-{len(indices)}.json"


def _keys(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            keys: list[str] = arrays["keys"].tolist()
            return keys
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _shard(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield from zip(arrays["keys"].tolist(), arrays["values"], strict=True)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BenchError:
    return BenchError(
        f"{path} can't be read", f"it is damaged: {error}", "delete it: what it held is made again when it is needed"
    )
