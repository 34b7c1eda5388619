"""The held-out clips of a latent cache as an eval set: their captions are the prompts, their frames the reference.

Prompts come with the conditioning that the cache holds, so no text encoder is opened. The frames are read once more
from the videos; where these are not at hand, clips are decoded from the cached latents, and the record says so.
Axes: B clips of a batch, F frames, H, W pixels; latents are (B, C, T, h, w).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.config import Video, validated
from w2svd_bench.data.cache import Index, LatentCache
from w2svd_bench.data.video import RESIZE_FILTER, Frames, Rejected, read_clip
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.evalset import ClipSet, RealFloor
from w2svd_bench.record import EvalSet, canonical_hash
from w2svd_bench.types import Cond

# How far latents of a clip that was read again may be from those in the cache, relative to their size. Half precision
# and tiles make for a few hundredths; another clip is about sqrt(2) away.
SAME_CLIP = 0.25


@dataclass(frozen=True)
class CacheSet(ClipSet):
    """The first ``num_clips`` held-out clips of a cache, and the same clips' real frames as reference.

    Since the reference is made of the prompts' own clips, raw real clips would be held against themselves and get no
    row; without ``videos``, nor do those through the codec.

    Attributes:
        cache: its split ``test``; its backbone makes clips of its size.
        videos: the folder that the cache was prepared from.
    """

    cache: LatentCache
    num_clips: int
    videos: Path | None = None

    @classmethod
    def open(cls, folder: Path, source: str, device: str, videos: Path | None, at_most: int) -> CacheSet:
        """Opens a cache for the backbone ``source``, at the size of the cache's clips.

        Raises:
            BenchError: it is no cache, does not fit the backbone or has no held-out clips; a video is missing.
        """
        cache = LatentCache.open(folder, Backbone.load(source, device, video=video_of(folder)), "test")
        opened = cls(cache, min(at_most, len(cache)), videos)
        if videos is not None:
            missing = [one.video for one in cache.entries[: opened.num_clips] if not (videos / one.video).exists()]
            if missing:
                raise BenchError(
                    f"{videos} is not the folder that the cache {folder} was prepared from",
                    f"it lacks {len(missing)} of {opened.num_clips} held-out videos, such as {missing[0]}",
                    "give that folder, or leave --videos out to compare with clips through the codec",
                )
        return opened

    @property
    def _plain_name(self) -> str:
        folder = re.sub(r"[^\w.-]+", "-", self.cache.folder.resolve().name)
        return f"{folder}-test-{self.num_clips}-{self.cache.index.fingerprint_sha256[:8]}"

    @property
    def name(self) -> str:
        return self._plain_name if self.videos is not None else f"{self._plain_name}-codec"

    @cached_property
    def prompts(self) -> list[str]:
        return [clip.caption for clip in self.cache.entries[: self.num_clips]]

    @property
    def keys(self) -> Sequence[str]:
        """For image-to-video, where a clip is asked for by its frame as much as by its caption, each by itself."""
        return self._ids if self.cache.backbone.side.task == "i2v" else self.prompts

    @cached_property
    def _ids(self) -> list[str]:
        return [clip.id for clip in self.cache.entries[: self.num_clips]]

    @property
    def floors(self) -> Sequence[RealFloor]:
        return () if self.videos is None else ("codec",)

    def conditioning(self, backbone: Backbone, indices: Sequence[int]) -> Cond:
        return self.cache.cond(indices).to(backbone.device)

    def latents(self, backbone: Backbone, indices: Sequence[int]) -> Tensor:
        return self.cache.batch(indices).x0_BCTHW

    def real(self, indices: Sequence[int]) -> np.ndarray:
        if self.videos is not None:
            return self._shown(self._read(self.videos, indices))
        return self._decoded(indices)

    def given(self, indices: Sequence[int]) -> np.ndarray:
        if self.videos is not None:
            return self._read(self.videos, indices)[:, 0]
        return self._decoded(indices)[:, 0]

    def _decoded(self, indices: Sequence[int]) -> np.ndarray:
        batch = self.cache.batch(indices)
        frames, finite = self.cache.backbone.decode_checked(batch.x0_BCTHW, batch.cond)
        if not finite.all():
            row = list(indices)[int((~finite).nonzero()[0])]
            raise BenchError(
                f"the codec decodes clip {self.cache.entries[row].id!r} to numbers that are not finite",
                "its latents overflow in the codec's precision, and it can't be a reference",
                "give the videos themselves with --videos, or prepare the cache without this clip",
            )
        return frames.numpy()

    def describe(self) -> EvalSet:
        side, clips = self.cache.backbone.side, self.cache.entries[: self.num_clips]
        taken = "real frames" if self.videos is not None else "through the codec"
        sources = [[one.id, one.video, one.entry.window, one.entry.fps] for one in clips]
        return EvalSet(
            name=self.name,
            num_clips=self.num_clips,
            prompts_sha256=canonical_hash(self.prompts),
            reference=f"{self._plain_name}, {taken}",
            reference_sha256=canonical_hash([self.cache.index.fingerprint, sources, taken]),
            frames=self.cache.backbone.decoded_frames,
            height=side.height,
            width=side.width,
            fps=side.fps,
            resize=RESIZE_FILTER,
        )

    @property
    def reference_count(self) -> int:
        return self.num_clips

    @property
    def reference_keys(self) -> Sequence[str]:
        return self.keys

    def reference_clips(self, indices: Sequence[int]) -> np.ndarray:
        """The prompts' own clips.

        Raises:
            BenchError: a video can't be read, or does not show what the cache was made of.
        """
        if self.videos is None:
            return self.real(indices)
        whole = self._read(self.videos, indices)
        self._refuse_others(indices, whole)
        return self._shown(whole)

    def reference_key(self, extractor: str) -> str:
        """Depends on more than the record's hash: on the cached bytes, and on size and time of the video files."""
        paths = [] if self.videos is None else [self.videos / one.video for one in self.cache.entries[: self.num_clips]]
        files = [[status.st_size, status.st_mtime_ns] for status in (path.stat() for path in paths)]
        return canonical_hash([self.describe().reference_sha256, self.cache.sha256, files, extractor])

    def _read(self, videos: Path, indices: Sequence[int]) -> np.ndarray:
        """All frames of the clips, as they were read when the cache was prepared."""
        side, how = self.cache.backbone.side, self.cache.index.fingerprint["frames"]
        frames = Frames(
            side.num_frames, side.height, side.width, float(side.fps), how["start"], bool(how["allow_upscale"])
        )
        clips = []
        for entry in (self.cache.entries[i].entry for i in indices):
            try:
                clips.append(read_clip(videos / entry.video, frames, entry.window, entry.fps))
            except Rejected as refusal:
                raise BenchError(
                    f"the held-out clip {entry.id} can't be read again",
                    f"{entry.video}: {refusal.reason}",
                    "give the videos as they were, or leave --videos out to compare with clips through the codec",
                ) from refusal
        return np.stack(clips)

    def _shown(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """Without the first frames that decoding leaves out (see `Backbone.decode`)."""
        backbone = self.cache.backbone
        return clips_BFHWC[:, backbone.side.num_frames - backbone.decoded_frames :]

    def _refuse_others(self, indices: Sequence[int], clips_BFHWC: np.ndarray) -> None:
        """Frames of another clip under the same name would be scored against captions that are not theirs."""
        backbone = self.cache.backbone
        again = backbone.to_sample(backbone.encode(torch.from_numpy(clips_BFHWC)))
        cached = self.cache.batch(indices).x0_BCTHW
        away = ((again - cached).flatten(1).norm(dim=1) / cached.flatten(1).norm(dim=1)).tolist()
        for index, distance in zip(indices, away, strict=True):
            if not distance < SAME_CLIP:
                one = self.cache.entries[index]
                raise BenchError(
                    f"{one.video} is not the video that the clip {one.id} was made of",
                    f"its latents are {distance:.2f} of their size away from the cached ones",
                    "give the folder that the cache was prepared from, or leave --videos out",
                )


def video_of(cache: Path) -> Video:
    """The size of the clips in a cache; raises `BenchError` if it is none."""
    return validated(Video, Index.load(cache).fingerprint["video"], f"the fingerprint of the cache {cache}")
