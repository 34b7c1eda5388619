"""The latent cache: a folder of videos, encoded once for one backbone, on disk.

``index.json`` holds what the cache was made with (its fingerprint), its shards and its clips; ``shards/`` the clips,
several a file; ``rejected.json`` what could not be used, and why.
Latents are stored scaled (about unit variance), the posterior's mode, with all latent frames.
Axes: B batch, C latent channels, T latent frames, h, w latent pixels, L text tokens, D and P text widths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from w2svd_bench.data.captions import Entry
from w2svd_bench.data.shards import IMAGE, LATENTS, TEXT, Shard, entry_from_json, read_shard
from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.record import canonical_hash, write_atomically
from w2svd_bench.types import Batch, Cond

if TYPE_CHECKING:
    from w2svd_bench.backbones.base import Backbone

FORMAT = 1  # bump when older readers would misread a cache
INDEX, REJECTED = "index.json", "rejected.json"
SPLITS = ("train", "test")
# How conditioning was computed, not what it is: a cache made in half precision on a GPU serves a CPU in float32.
COMPUTED = ("dtype",)


@dataclass(frozen=True)
class CachedClip:
    """A clip of the cache: what it was encoded from, its split, the number of its shard and of its text tokens (L)."""

    entry: Entry
    split: str
    shard: int
    text_length: int

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def video(self) -> str:
        return self.entry.video

    @property
    def caption(self) -> str:
        return self.entry.caption

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.entry), "split": self.split, "shard": self.shard, "text_length": self.text_length}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CachedClip:
        """The inverse of `to_json`; raises TypeError or KeyError for anything else."""
        own = {name: data[name] for name in ("split", "shard", "text_length")}
        return cls(entry_from_json({name: value for name, value in data.items() if name not in own}), **own)


@dataclass(frozen=True)
class Index:
    """What ``index.json`` says; ``complete`` is false from the beginning of a preparation to its end."""

    fingerprint: dict[str, Any]
    complete: bool
    shards: list[Shard]
    clips: list[CachedClip]

    @property
    def fingerprint_sha256(self) -> str:
        return canonical_hash(self.fingerprint)

    def save(self, folder: Path) -> None:
        """Writes the index atomically."""
        data = {
            "format": FORMAT,
            "complete": self.complete,
            "fingerprint_sha256": self.fingerprint_sha256,
            "fingerprint": self.fingerprint,
            "shards": [asdict(shard) for shard in self.shards],
            "entries": [clip.to_json() for clip in self.clips],
        }
        write_atomically(folder / INDEX, json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Reads a cache's index.

        Raises:
            BenchError: there is none, it is damaged, or another version of this program wrote it.
        """
        try:
            data = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise BenchError(
                    f"the latent cache {folder} can't be read",
                    f"its format is {data['format']}, this version reads {FORMAT}",
                    "prepare it again in another folder, or use the version that made it",
                )
            index = cls(
                data["fingerprint"],
                data["complete"],
                [Shard(**shard) for shard in data["shards"]],
                [CachedClip.from_json(clip) for clip in data["entries"]],
            )
            if index.fingerprint_sha256 != data["fingerprint_sha256"]:
                raise ValueError("the fingerprint does not have its own sha256")
            if not all(0 <= clip.shard < len(index.shards) for clip in index.clips):
                raise ValueError("an entry names a shard that is not listed")
        except FileNotFoundError as error:
            raise BenchError(
                f"{folder} is not a latent cache",
                f"it holds no {INDEX}",
                f"prepare one: w2svd-bench data prepare --videos DIR --out {folder}",
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BenchError(
                f"the latent cache {folder} can't be read",
                f"its {INDEX} is damaged: {type(error).__name__}: {error}",
                f"delete {INDEX} and repeat `w2svd-bench data prepare`: clips that are encoded already are kept",
            ) from error
        return index

    def damaged(self, folder: Path) -> Iterator[tuple[Shard, str]]:
        """The shards that are missing, of another size or without a clip, with the reason; contents are not read."""
        by_shard: dict[int, list[str]] = {}
        for clip in self.clips:
            by_shard.setdefault(clip.shard, []).append(clip.id)
        for number, shard in enumerate(self.shards):
            path = folder / shard.file
            try:
                if path.stat().st_size != shard.bytes:
                    yield shard, f"it has {path.stat().st_size} bytes instead of {shard.bytes}"
                    continue
                with safe_open(path, "pt") as file:
                    keys = set(file.keys())
                lacking = [one for one in by_shard.get(number, []) if f"{one}.{LATENTS}" not in keys]
                if lacking:
                    yield shard, f"it lacks clip {lacking[0]}"
            except FileNotFoundError:
                yield shard, "it is missing"
            except (OSError, SafetensorError) as error:
                yield shard, str(error)


class LatentCache:
    """Training data from a latent cache: the clips of one split, ordered by id; open one with `LatentCache.open`.

    The order, and so what a row number means, is the same however many processes prepared the cache.
    """

    def __init__(self, folder: Path, index: Index, backbone: Backbone, split: str) -> None:
        self.folder, self.index, self.backbone, self.split = folder, index, backbone, split
        self.entries = [clip for clip in index.clips if clip.split == split]

    @classmethod
    def open(cls, folder: Path, backbone: Backbone, split: str = "train") -> LatentCache:
        """Opens one split of a cache for the backbone that it was made for.

        Contents are not hashed here, which takes hours for terabytes: `w2svd-bench data inspect --verify` does.

        Raises:
            BenchError: it is no cache or an unfinished one; it was made with another codec, other text encoders, for
                another task or geometry; a shard is missing or damaged; the split is empty.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        index = Index.load(folder)
        if not index.complete:
            raise BenchError(
                f"the latent cache {folder} is not finished",
                "its preparation was interrupted or is still under way",
                "repeat its `w2svd-bench data prepare` command: it goes on where it stopped",
            )
        needed = requirements(backbone)
        differing = differences({k: index.fingerprint.get(k) for k in needed}, needed, ignored=COMPUTED)
        if differing:
            raise BenchError(
                f"the latent cache {folder} (fingerprint {index.fingerprint_sha256[:8]}) does not fit {backbone.name}",
                shown(differing),
                "open the backbone that it was made for, or prepare a cache for this one",
            )
        damaged = [f"{shard.file}: {reason}" for shard, reason in index.damaged(folder)]
        if damaged:
            more = f"; and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            raise BenchError(
                f"the latent cache {folder} is damaged",
                "; ".join(damaged[:3]) + more,
                "repeat its `w2svd-bench data prepare` command: it encodes again what is missing",
            )
        cache = cls(folder, index, backbone, split)
        if not cache.entries:
            raise BenchError(
                f"the latent cache {folder} has no {split} clips",
                f"its fingerprint says: {index.fingerprint.get('test')} clips held out for test",
                "prepare it with --test N" if split == "test" else "add videos and prepare it again",
            )
        return cache

    @property
    def name(self) -> str:
        return f"{self.folder.resolve().name}-{self.split}-{len(self)}-{self.index.fingerprint_sha256[:8]}"

    @cached_property
    def sha256(self) -> str:
        """Of everything that a batch depends on: the fingerprint, the clips in order and their shards' sha256."""
        clips = [[clip.id, clip.caption, self.index.shards[clip.shard].sha256] for clip in self.entries]
        return canonical_hash([self.index.fingerprint, self.split, clips])

    def __len__(self) -> int:
        return len(self.entries)

    def cond(self, rows: Sequence[int]) -> Cond:
        """The conditioning of the given clips, in that order, on the backbone's device."""
        return self._collate(self._read(rows, latents=False))

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given clips, in that order, as methods see them (`Backbone.to_sample`), on the backbone's device.

        Types are those that `Backbone.encode` and `encode_prompts` give: latents are float32, however they are stored.
        """
        read = self._read(rows)
        latents_BCTHW = torch.stack([one[LATENTS] for one in read]).to(self.backbone.device, torch.float32)
        return Batch(self.backbone.to_sample(latents_BCTHW), self._collate(read))

    def _collate(self, read: Sequence[Mapping[str, Tensor]]) -> Cond:
        text = Cond.collate([Cond(*(one[name][None] for name in TEXT)) for one in read])
        images = [one[IMAGE] for one in read if IMAGE in one]
        image_BCTHW = torch.stack(images).to(self.backbone.device, torch.float32) if images else None
        return replace(text.to(self.backbone.device, self.backbone.dtype), image_BCTHW=image_BCTHW)

    def _read(self, rows: Sequence[int], latents: bool = True) -> list[dict[str, Tensor]]:
        """The tensors of the given clips by name, in that order; every shard is opened once."""
        clips = [self.entries[row] for row in rows]
        names = (LATENTS, *TEXT, IMAGE) if latents else (*TEXT, IMAGE)
        read: dict[str, dict[str, Tensor]] = {}
        for number in dict.fromkeys(clip.shard for clip in clips):
            ids = [clip.id for clip in clips if clip.shard == number]
            read |= read_shard(self.folder / self.index.shards[number].file, ids, names)
        return [read[clip.id] for clip in clips]


def requirements(backbone: Backbone) -> dict[str, Any]:
    """The part of a fingerprint that has to be a backbone's own for a cache to serve it.

    The codec is in ``latents_sha256``, config and weights; its description would open it, which training never needs.
    """
    side = backbone.side
    video = {"height": side.height, "width": side.width, "num_frames": side.num_frames, "fps": float(side.fps)}
    return {
        "latents_sha256": backbone.latents_sha256,
        "task": side.task,
        "image_condition": side.image_condition,
        "text": plain(backbone.text_description),
        "video": video,
    }


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The fields in which two fingerprints differ, as {dotted name: (old value, new value)}, sorted by name."""
    a, b = _flat(old), _flat(new)
    names = sorted(name for name in a.keys() | b.keys() if name.rpartition(".")[2] not in ignored)
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def shown(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences as text, with both values."""
    return "; ".join(f"{name} is {old!r} in the cache and {new!r} now" for name, (old, new) in differing.items())


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}
