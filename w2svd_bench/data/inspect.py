"""What a latent cache holds: counts, shapes, statistics of its latents, and whether its shards are whole."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2svd_bench.data.cache import REJECTED, SPLITS, CachedClip, Index
from w2svd_bench.data.shards import IMAGE, LATENTS, TEXT, read_shard
from w2svd_bench.errors import BenchError

Progress = Callable[[int, int], None]
MEASURED_CLIPS = 512
# Scaled latents have a standard deviation of about 1. HunyuanVideo's scaling factor is 0.476986: scaled twice they have
# 0.48, not scaled 2.1, and both lie outside.
USUAL_STD = (0.67, 1.5)


@dataclass(frozen=True)
class Report:
    """The statistics of a cache.

    Attributes:
        clips: by split; bytes: of all shards.
        dtype: of everything stored; tensors: shapes of one clip, latents (C, T, h, w) first.
        measured: clips that ``mean`` and ``std`` (over everything, and by channel) were taken over, spread evenly.
        text_length: (least, median, most) text tokens.
        repeated_captions: clips whose caption another one has too.
        rejected: number of clips by reason.
        warnings: what looks wrong.
    """

    folder: str
    fingerprint_sha256: str
    fingerprint: dict[str, Any]
    complete: bool
    clips: dict[str, int]
    shards: int
    bytes: int
    dtype: str
    tensors: dict[str, tuple[int, ...]]
    measured: int
    mean: float
    std: float
    channel_mean: list[float]
    channel_std: list[float]
    text_length: tuple[int, float, int]
    repeated_captions: int
    rejected: dict[str, int]
    warnings: list[str]


def inspect(folder: Path, clips: int = MEASURED_CLIPS, report: Progress = lambda done, total: None) -> Report:
    """Describes a cache; needs no backbone.

    Args:
        clips: how many are read for the statistics.

    Raises:
        BenchError: it is no cache, holds no clip yet, or a shard can't be read.
    """
    index = Index.load(folder)
    if not index.clips:
        raise BenchError(
            f"the latent cache {folder} has nothing to show", "its preparation never finished", "repeat its command"
        )
    count = min(clips, len(index.clips))
    measured = [index.clips[number * len(index.clips) // count] for number in range(count)]
    moments = _Moments()
    first: dict[str, Tensor] = {}
    for done, clip in enumerate(measured, start=1):
        first = first or _read(folder, index, clip, (LATENTS, *TEXT, IMAGE))
        moments.add(_read(folder, index, clip, (LATENTS,))[LATENTS])
        report(done, len(measured))
    lengths = [clip.text_length for clip in index.clips]
    captions = Counter(clip.caption for clip in index.clips)
    rejected = _rejected(folder)
    mean, std, channel_mean, channel_std = moments.result()
    return Report(
        folder=folder.as_posix(),
        fingerprint_sha256=index.fingerprint_sha256,
        fingerprint=index.fingerprint,
        complete=index.complete,
        clips={split: sum(clip.split == split for clip in index.clips) for split in SPLITS},
        shards=len(index.shards),
        bytes=sum(shard.bytes for shard in index.shards),
        dtype=str(first[LATENTS].dtype).removeprefix("torch."),
        tensors={name: tuple(tensor.shape) for name, tensor in first.items()},
        measured=len(measured),
        mean=mean,
        std=std,
        channel_mean=channel_mean,
        channel_std=channel_std,
        text_length=(min(lengths), statistics.median(lengths), max(lengths)),
        repeated_captions=sum(count for count in captions.values() if count > 1),
        rejected=dict(Counter(rejected.values()).most_common()),
        warnings=list(_warnings(folder, index, std, rejected)),
    )


def verify(folder: Path, report: Progress = lambda done, total: None) -> int:
    """Reads every shard and compares its sha256; returns how many there are.

    Raises:
        BenchError: some are missing or damaged; names all of them.
    """
    index = Index.load(folder)
    wrong = {shard.file: reason for shard, reason in index.damaged(folder)}
    for done, shard in enumerate(index.shards, start=1):
        if shard.file not in wrong:
            with (folder / shard.file).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != shard.sha256:
                wrong[shard.file] = f"its bytes have the sha256 {found}, not the one that names it"
        report(done, len(index.shards))
    if wrong:
        listed = "\n        ".join(f"{file}: {reason}" for file, reason in wrong.items())
        raise BenchError(
            f"{len(wrong)} of {len(index.shards)} shards of the latent cache {folder} are damaged or missing",
            listed,
            "delete these files and repeat the cache's `w2svd-bench data prepare` command: it encodes them again",
        )
    return len(index.shards)


class _Moments:
    """Sums for the mean and standard deviation of latents by channel, in float64."""

    def __init__(self) -> None:
        self.sums: Tensor = torch.zeros(3, 1, dtype=torch.float64)

    def add(self, latents_CTHW: Tensor) -> None:
        flat = latents_CTHW.double().flatten(1)
        count = torch.full((len(flat),), float(flat.shape[1]), dtype=torch.float64)
        self.sums = self.sums + torch.stack([count, flat.sum(1), flat.square().sum(1)])

    def result(self) -> tuple[float, float, list[float], list[float]]:
        """Mean and standard deviation over everything, then by channel."""
        count, total, squares = self.sums
        means = total / count
        stds = (squares / count - means.square()).clamp(min=0).sqrt()
        mean = float(total.sum() / count.sum())
        std = max(0.0, float(squares.sum() / count.sum()) - mean**2) ** 0.5
        return mean, std, means.tolist(), stds.tolist()


def _read(folder: Path, index: Index, clip: CachedClip, names: tuple[str, ...]) -> dict[str, Tensor]:
    return read_shard(folder / index.shards[clip.shard].file, [clip.id], names)[clip.id]


def _rejected(folder: Path) -> dict[str, str]:
    """Why clips were rejected, by id; nothing where the file is missing (an interrupted preparation)."""
    try:
        rows = json.loads((folder / REJECTED).read_text(encoding="utf-8"))["rejected"]
        return {row["id"]: row["reason"] for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise BenchError(f"{folder / REJECTED} can't be read", why, "repeat `w2svd-bench data prepare`") from error


def _warnings(folder: Path, index: Index, std: float, rejected: dict[str, str]) -> list[str]:
    found = []
    if not index.complete:
        found.append("the preparation is not finished: repeat its command; training refuses the cache until then")
    if not USUAL_STD[0] <= std <= USUAL_STD[1]:
        scaling = index.fingerprint.get("codec", {}).get("scaling_factor")
        found.append(
            f"the latents' standard deviation is {std:.3f} and should be about 1; the codec's scaling factor is "
            f"{scaling}: were they scaled twice, or not at all?"
        )
    found += [f"{shard.file}: {reason}" for shard, reason in index.damaged(folder)]
    if len(rejected) > len(index.clips):
        found.append(f"more clips were rejected ({len(rejected)}) than accepted; see {REJECTED}")
    return found
