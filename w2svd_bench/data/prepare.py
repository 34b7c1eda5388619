"""Prepares a latent cache: reads clips out of a folder of videos, encodes them and their captions, writes shards.

The shards on disk are all the state there is: a run that is killed loses the shard it was filling, and the next one, on
any number of processes, encodes what no shard holds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from w2svd_bench.data.cache import INDEX, REJECTED, CachedClip, Index, differences, plain, requirements, shown
from w2svd_bench.data.captions import Entry
from w2svd_bench.data.layouts import read_entries
from w2svd_bench.data.shards import LATENTS, SHARDS, Shard, ShardWriter, stored_clips
from w2svd_bench.data.video import RESIZE_FILTER, Frames, Rejected, read_clip
from w2svd_bench.errors import BenchError
from w2svd_bench.record import canonical_hash, write_atomically
from w2svd_bench.world import World

if TYPE_CHECKING:
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.types import Cond

Rejection = tuple[str, str]  # (id of the clip, one line that says why)
SHARD_BYTES = 256 * 2**20
READERS = 2  # videos that are read ahead while one is encoded


@dataclass(frozen=True)
class Prepared:
    """What a preparation did.

    Attributes:
        index: of the finished cache.
        encoded: clips that this run encoded.
        rejected: what could not be used, sorted by id; also in ``rejected.json``.
        kept: clips of earlier runs that the videos folder or the caption file no longer names.
        moved: clips that were in the cache before and are now in the other split.
        removed: damaged shards that were deleted and encoded again.
    """

    index: Index
    encoded: int
    rejected: list[Rejection]
    kept: int
    moved: int
    removed: list[str]


@dataclass(frozen=True)
class Source:
    """Where the clips come from, and which part of them is held out.

    Args:
        videos: a folder of videos; nothing in the cache says where it is.
        captions: the caption file, if the layout has one.
        layout: how the folder is laid out; one of `w2svd_bench.data.layouts.LAYOUTS`.
        start: where in a video (or its window) a clip begins.
        allow_upscale: enlarge pictures that are too small instead of rejecting them.
        test: number of clips held out as evaluation prompts: those with the smallest sha256 of their id, so that the
            choice depends on nothing but which clips there are.
    """

    videos: Path
    captions: Path | None = None
    layout: str = "plain"
    start: Literal["begin", "middle"] = "middle"
    allow_upscale: bool = False
    test: int = 0

    def frames(self, backbone: Backbone) -> Frames:
        """The frames that the backbone's clips are made of."""
        side = backbone.side
        return Frames(side.num_frames, side.height, side.width, float(side.fps), self.start, self.allow_upscale)


def fingerprint(backbone: Backbone, source: Source) -> dict[str, Any]:
    """Every choice that the content of a cache depends on, beside the videos and captions themselves."""
    frames = asdict(source.frames(backbone))
    return {
        "backbone": backbone.name,
        **requirements(backbone),
        "codec": plain(backbone.codec_description),
        "latents": {"scaled": True, "posterior": "mode", "dtype": str(backbone.dtype).removeprefix("torch.")},
        "frames": {"start": frames["start"], "allow_upscale": frames["allow_upscale"], "resize": RESIZE_FILTER},
        "layout": source.layout,
        "test": source.test,
    }


def _encoding(fingerprint: dict[str, Any]) -> str:
    """The sha256 of what a fingerprint says of the encoding: shards carry it, so that no others are taken for them."""
    return canonical_hash({name: value for name, value in fingerprint.items() if name != "test"})


def prepare(
    folder: Path,
    backbone: Backbone,
    source: Source,
    world: World | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Makes a latent cache in ``folder``, goes on with one that was interrupted, or adds new clips to a finished one.

    Entries that no shard holds are shared out over the processes of ``world``; the leading one merges what they leave.
    A clip is known by its id, video, caption and window: a changed caption is encoded again, a video whose content
    changed under the same name is not noticed.

    Args:
        shard_bytes: size from which a shard is full.
        report: called in the leading process with (clips done, clips to do) of its own part.

    Raises:
        BenchError: the folder holds a cache with another fingerprint, or something else; nothing was accepted; nothing
            is left for training.
    """
    world = world or World()
    plan = world.agree(lambda: _begin(folder, backbone, source))
    first, end = (len(plan.missing) * rank // world.size for rank in (world.rank, world.rank + 1))
    shards = ShardWriter(folder / SHARDS, plan.encoding, f"rank{world.rank}", shard_bytes)
    tell = report if world.lead else (lambda done, total: None)
    rejected = world.together(lambda: _encode(backbone, source, plan.missing[first:end], shards, tell))
    everywhere = [one for part in world.gather(rejected) for one in part]
    return world.agree(lambda: _finish(folder, plan, everywhere))


@dataclass(frozen=True)
class _Plan:
    """What there is to do.

    Attributes:
        entries: all that the folder and the captions name; missing: those that no shard holds.
        problems: what the folder or the caption file lacks.
        encoding: of the shards, see `ShardWriter`.
        removed: damaged shards that are deleted now.
    """

    entries: list[Entry]
    missing: list[Entry]
    problems: list[Rejection]
    encoding: str
    removed: list[str]


def _begin(folder: Path, backbone: Backbone, source: Source) -> _Plan:
    """Finds out what there is to do, and marks the cache as unfinished."""
    entries, problems = read_entries(source.videos, source.captions, source.layout)
    wanted = fingerprint(backbone, source)
    known = (folder / INDEX).is_file() or (folder / SHARDS).is_dir() or not folder.exists()
    if not known and any(folder.iterdir()):
        why = f"it holds neither {INDEX} nor {SHARDS}, so it is no cache, but it is not empty"
        raise BenchError(f"a latent cache can't be made in {folder}", why, "use a new folder")
    index = Index.load(folder) if (folder / INDEX).is_file() else Index(wanted, False, [], [])
    # As long as no split was ever handed out, the number of held-out clips may change.
    differing = differences(index.fingerprint, wanted)
    if set(differing) - ({"test"} if not index.clips else set()):
        there, now = index.fingerprint_sha256[:8], Index(wanted, False, [], []).fingerprint_sha256[:8]
        raise BenchError(
            f"{folder} holds a latent cache made otherwise (fingerprint {there} there, {now} now)",
            shown(differing),
            "prepare this one in another folder, or repeat the command as it was",
        )
    together = len({entry.id for entry in entries} | {clip.id for clip in index.clips})
    if source.test and source.test >= together:
        raise _all_held_out(source.test, together)
    encoding = _encoding(wanted)
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    replace(index, fingerprint=wanted, complete=False).save(folder)
    stored, damaged = stored_clips(folder, encoding)
    for path in damaged:
        path.unlink()
    # Equal captions stand together, so that their text is encoded once.
    missing = sorted((e for e in entries if e not in stored), key=lambda entry: (entry.caption, entry.id))
    return _Plan(entries, missing, problems, encoding, [path.name for path in damaged])


def _finish(folder: Path, plan: _Plan, rejected: list[Rejection]) -> Prepared:
    """Merges what all processes left into the index, and writes what was rejected."""
    before = Index.load(folder)
    stored, _ = stored_clips(folder, plan.encoding)
    listed = {entry.id for entry in plan.entries}
    unlisted = [clip.entry for clip in before.clips if clip.id not in listed]
    gone = "its shard is gone, and the videos folder or the caption file no longer names it"
    problems = sorted({*plan.problems, *rejected, *((entry.id, gone) for entry in unlisted if entry not in stored)})
    rows = [{"id": one, "reason": reason} for one, reason in problems]
    write_atomically(folder / REJECTED, json.dumps({"rejected": rows}, indent=1, ensure_ascii=False) + "\n")
    chosen = sorted((e for e in [*plan.entries, *unlisted] if e in stored), key=lambda entry: entry.id)
    test = before.fingerprint["test"]
    if not chosen:
        reasons = Counter(reason for _, reason in problems).most_common(3)
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons) or "there are no videos"
        raise BenchError("no clip was accepted", why, f"see {folder / REJECTED}, mend these and repeat the command")
    if test >= len(chosen):
        raise _all_held_out(test, len(chosen))
    held_out = set(sorted((e.id for e in chosen), key=lambda one: hashlib.sha256(one.encode()).hexdigest())[:test])
    counts = Counter(stored[entry].path for entry in chosen)
    numbers = {path: number for number, path in enumerate(sorted(counts))}
    index = Index(
        before.fingerprint,
        True,
        [Shard(path.stem, path.stat().st_size, counts[path]) for path in numbers],
        [
            CachedClip(e, "test" if e.id in held_out else "train", numbers[stored[e].path], stored[e].text_length)
            for e in chosen
        ],
    )
    index.save(folder)
    for draft in (folder / SHARDS).glob("*.tmp"):  # of processes that were killed
        draft.unlink()
    splits = {clip.id: clip.split for clip in before.clips}
    return Prepared(
        index=index,
        encoded=sum(entry in stored for entry in plan.missing),
        rejected=problems,
        kept=sum(entry in stored for entry in unlisted),
        moved=sum(splits.get(clip.id, clip.split) != clip.split for clip in index.clips),
        removed=plan.removed,
    )


def _all_held_out(test: int, clips: int) -> BenchError:
    why = f"{test} are held out for test, and there are {clips} in all"
    return BenchError("no clip is left for training", why, "give a smaller --test, or add videos")


def _encode(
    backbone: Backbone,
    source: Source,
    entries: Sequence[Entry],
    shards: ShardWriter,
    report: Callable[[int, int], None],
) -> list[Rejection]:
    """Encodes entries into shards; returns those that were rejected, with the reason."""
    rejected = []
    prompts = _Prompts(backbone)
    frames = source.frames(backbone)
    with shards:
        for done, (entry, reading) in enumerate(_read_ahead(source.videos, entries, frames), start=1):
            try:
                clip_FHWC = reading.result()
                shards.add(entry, _tensors(backbone, prompts, entry.caption, clip_FHWC))
            except Rejected as refusal:
                rejected.append((entry.id, refusal.reason))
            except Exception as error:
                error.add_note(f"this happened with clip {entry.id!r} ({entry.video}); finished clips are kept")
                raise
            report(done, len(entries))
    return rejected


def _read_ahead(videos: Path, entries: Sequence[Entry], frames: Frames) -> Iterator[tuple[Entry, Future[np.ndarray]]]:
    """Each entry with its frames, in order; a few are read while the one before them is encoded."""
    with ThreadPoolExecutor(READERS) as readers:
        waiting: deque[tuple[Entry, Future[np.ndarray]]] = deque()
        for entry in entries:
            reading = readers.submit(read_clip, videos / entry.video, frames, entry.window, entry.fps)
            waiting.append((entry, reading))
            if len(waiting) > READERS:
                yield waiting.popleft()
        yield from waiting


class _Prompts:
    """Conditioning of a caption, and of its first frame for image-to-video; the last one is remembered."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._last: tuple[tuple[str, bytes], Cond] | None = None

    def __call__(self, caption: str, first_HWC: np.ndarray) -> Cond:
        image = first_HWC[None] if self.backbone.side.task == "i2v" else None
        key = (caption, b"" if image is None else image.tobytes())
        if self._last is None or self._last[0] != key:
            self._last = key, self.backbone.encode_prompts([caption], image).trimmed()
        return self._last[1]


def _tensors(backbone: Backbone, prompts: _Prompts, caption: str, clip_FHWC: np.ndarray) -> dict[str, Tensor]:
    """What is stored of a clip: see `read_shard`; raises `Rejected` for latents that are not finite."""
    latents_CTHW = backbone.encode(torch.from_numpy(clip_FHWC)[None])[0]
    if not latents_CTHW.isfinite().all():
        raise Rejected("its latents are not finite: the codec overflows on it")
    cond = prompts(caption, clip_FHWC[0])
    tensors = {"tokens": cond.tokens_BLD, "mask": cond.mask_BL, "pooled": cond.pooled_BP, "image": cond.image_BCTHW}
    kept = {name: tensor[0] for name, tensor in tensors.items() if tensor is not None}
    # Copies: clips of one caption would share memory, which safetensors refuses.
    return {
        name: tensor.to("cpu", backbone.dtype, copy=True).contiguous()
        for name, tensor in {LATENTS: latents_CTHW, **kept}.items()
    }
