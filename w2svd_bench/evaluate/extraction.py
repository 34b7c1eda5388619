"""From clips to what metrics need of them: each clip is made once, read by every net, and remembered.

Axes: B clips of a batch, F frames, K vectors a clip, D numbers a vector; latents are (B, C, T, h, w).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from w2svd_bench.evaluate.evalset import BATCH, Progress, shares
from w2svd_bench.evaluate.sampling import Sampled
from w2svd_bench.evaluate.store import SHARD_CLIPS, ClipLog, FeatureStore, Logged, content_sha256, kept_on
from w2svd_bench.evaluate.videos import Videos
from w2svd_bench.types import Skipped
from w2svd_bench.world import World

Net = Callable[[np.ndarray], np.ndarray]
Made = Callable[[Sequence[range]], Iterable[Sampled]]
SECONDS = 60.0  # at most so much work is lost when a process is killed


@dataclass(frozen=True)
class Part:
    """What is kept of a batch of clips: plain data, for processes to exchange.

    Attributes:
        first: the number of its first clip.
        logged: the clips' contents, and what their latents were like.
        features: (B, K, D) by net id.
        values: by the name of a `Dimension`, a number for each clip, or why it has none.
    """

    first: int
    logged: Logged
    features: dict[str, np.ndarray]
    values: dict[str, list[float | Skipped]] = field(default_factory=dict)


@dataclass(frozen=True)
class Extraction:
    """How clips are read.

    Attributes:
        nets: features of a batch, by net id.
        world: the processes that share the clips out.
        batch: how many clips are made at a time.
        store: where features are kept; None: nowhere, and every clip is made and read again.
    """

    nets: Mapping[str, Net]
    world: World = field(default_factory=World)
    batch: int = BATCH
    store: FeatureStore | None = None

    def parts(
        self, count: int, made: Made, progress: Progress, log: ClipLog | None = None, videos: Videos | None = None
    ) -> list[Part]:
        """This process reads its share of ``count`` clips; all shares together, in order, for every process.

        Args:
            made: makes the clips of the batches of numbers that it is given.
            log: what is known of these clips; batches of which everything is known are not made again.
            videos: scores the clips by metrics that read files.
        """

        def own() -> list[Part]:
            parts, to_do = [], []
            for batch in shares(count, self.batch, self.world):
                part = self._known(batch, log, videos)
                parts.append(part) if part is not None else to_do.append(batch)
            done = sum(len(part.logged.sha256) for part in parts)
            if done and to_do:
                progress(min(count, done * self.world.size), count)
            with _Settling(self.store, log) as settling:
                for clips in made(to_do):
                    parts.append(self._read(clips, videos))
                    settling.add(clips.indices, parts[-1].logged)
                    done += len(clips.indices)
                    progress(min(count, done * self.world.size), count)
            if videos is None:
                return parts
            scored = videos.scores({part.first: part.logged.sha256 for part in parts}, self.store)
            return [replace(part, values=scored[part.first]) for part in parts]

        every = self.world.gather(self.world.together(own))
        return sorted((part for share in every for part in share), key=lambda part: part.first)

    def _kept_as(self, net_id: str) -> str:
        return kept_on(net_id, self.world.device)

    def _known(self, batch: range, log: ClipLog | None, videos: Videos | None) -> Part | None:
        """A batch that was read before; None if anything of it is missing."""
        logged = log.get(batch) if log is not None else None
        if logged is None or self.store is None:
            return None
        features = {}
        for net_id in self.nets:
            found = self.store.get(self._kept_as(net_id), logged.sha256)
            if len(found) < len(set(logged.sha256)):
                return None
            features[net_id] = np.stack([found[key] for key in logged.sha256])
        if videos is not None and not videos.at_hand(batch, logged.sha256, self.store):
            return None
        return Part(batch[0], logged, features)

    def _read(self, clips: Sampled, videos: Videos | None) -> Part:
        frames = clips.frames.numpy()
        logged = Logged([content_sha256(clip) for clip in frames], *_latents(clips))
        features = {net_id: net(frames) for net_id, net in self.nets.items()}
        if videos is not None:
            videos.write(clips)
        if self.store is not None:
            for net_id, values in features.items():
                if np.isfinite(values).all():
                    self.store.put(self._kept_as(net_id), dict(zip(logged.sha256, values, strict=True)))
        return Part(clips.indices[0], logged, features)


class _Settling:
    """Writes features, and then the log entries that promise them: now and then, and at the end, however it comes."""

    def __init__(self, store: FeatureStore | None, log: ClipLog | None) -> None:
        self._store, self._log = store, log
        self._waiting: list[tuple[list[int], Logged]] = []
        self._last = time.monotonic()

    def __enter__(self) -> _Settling:
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def add(self, indices: list[int], batch: Logged) -> None:
        if not batch.broken:
            self._waiting.append((indices, batch))
        clips = sum(len(waiting) for waiting, _ in self._waiting)
        if clips >= SHARD_CLIPS or time.monotonic() - self._last > SECONDS:
            self._write()

    def _write(self) -> None:
        if self._store is not None:
            self._store.flush()
            for indices, batch in self._waiting if self._log is not None else ():
                self._log.put(indices, batch)  # type: ignore[union-attr]
        self._waiting, self._last = [], time.monotonic()


def _latents(clips: Sampled) -> tuple[list[float], int, tuple[float, float]]:
    """The mean square of each clip's latents, how many clips are not finite, and the seconds that they took."""
    seconds = clips.sample_seconds, clips.decode_seconds
    if clips.latents is None:
        return [], 0, seconds
    flat = clips.latents.float().flatten(1)
    power = flat.square().mean(1)  # not finite either where numbers above 1.8e19 are
    return power.tolist(), int((~(clips.whole & power.isfinite().cpu())).sum()), seconds
