"""Clips as video files, for metrics that read files: written while clips are made, scored when all are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from w2svd_bench.evaluate.evalset import ClipSet, Progress
from w2svd_bench.evaluate.pictures import write_video
from w2svd_bench.evaluate.sampling import Sampled
from w2svd_bench.evaluate.store import ClipLog, FeatureStore, kept_on
from w2svd_bench.metrics.base import ClipFile, ClipMetric, Dimension
from w2svd_bench.record import canonical_hash
from w2svd_bench.types import Skipped


@dataclass(frozen=True)
class Videos:
    """The clips of one origin as lossless H.264 files, which are deleted once they are scored.

    Attributes:
        log: where they lie.
        eval_set: their prompts, size and rate.
        metrics: what scores them.
        given: the given first frames of image-to-video, uint8 (B, H, W, 3); None where there are none.
        device: what the metrics run on.
        progress: told how many clips were scored.
    """

    log: ClipLog
    eval_set: ClipSet
    metrics: Sequence[ClipMetric]
    progress: Progress
    given: Callable[[Sequence[int]], np.ndarray] | None = None
    device: str = "cpu"

    @property
    def factor(self) -> int:
        """By how much the files are larger than the clips, so that every metric can read them: see `least_side`."""
        size = self.eval_set.describe()
        return enlarged(size.height, size.width, self.metrics)

    def refused(self, metric: ClipMetric) -> Mapping[str, str]:
        """By the name of a dimension, why it can't be had of clips of this size."""
        size = self.eval_set.describe()
        return metric.refuses(size.frames, size.height * self.factor, size.width * self.factor, size.fps)

    def write(self, clips: Sampled) -> None:
        if not any(self._asked(metric) for metric in self.metrics):
            return
        for index, frames in zip(clips.indices, clips.frames.numpy(), strict=True):
            # Renamed into place: a file that is there is whole.
            path = self.log.video(index)
            frames = frames.repeat(self.factor, axis=1).repeat(self.factor, axis=2)
            write_video(frames, path.with_name(f".{path.name}"), self.eval_set.describe().fps, lossless=True).replace(
                path
            )

    def at_hand(self, batch: Sequence[int], sha256: Sequence[str], store: FeatureStore) -> bool:
        """Whether every clip of a batch has its values, or at least its file."""
        keys = [self._key(index, content) for index, content in zip(batch, sha256, strict=True)]
        return all(
            key in known or self.log.video(index).is_file()
            for metric in self.metrics
            for dimension in self._asked(metric)
            for known in (store.get(self._kept_as(dimension), keys),)
            for index, key in zip(batch, keys, strict=True)
        )

    def scores(
        self, contents: Mapping[int, Sequence[str]], store: FeatureStore | None
    ) -> dict[int, dict[str, list[float | Skipped]]]:
        """Values by the first number of a batch and the name of a dimension; files that are done with are deleted.

        Args:
            contents: the content hashes of each batch's clips, by its first number.
        """
        sha256 = {
            first + k: self._key(first + k, content)
            for first, batch in contents.items()
            for k, content in enumerate(batch)
        }
        found: dict[str, dict[int, float | Skipped]] = {}
        for metric in self.metrics:
            reasons = self.refused(metric)
            for name, reason in reasons.items():
                found[name] = dict.fromkeys(sha256, Skipped(reason))
            found |= self._scored(metric, self._asked(metric), sha256, store)
        for index in sha256:
            for path in (self.log.video(index), self.log.video(index).with_suffix(".png")):
                path.unlink(missing_ok=True)
        return {
            first: {name: [values[first + k] for k in range(len(keys))] for name, values in found.items()}
            for first, keys in contents.items()
        }

    def _scored(
        self, metric: ClipMetric, asked: Sequence[Dimension], sha256: Mapping[int, str], store: FeatureStore | None
    ) -> dict[str, dict[int, float | Skipped]]:
        found: dict[str, dict[int, float | Skipped]] = {}
        for dimension in asked:
            known = store.get(self._kept_as(dimension), list(sha256.values())) if store is not None else {}
            found[dimension.name] = {i: float(known[key][0, 0]) for i, key in sha256.items() if key in known}
        missing = sorted({i for values in found.values() for i in sha256 if i not in values})
        if not missing:
            return found
        made = metric.score([self._file(index) for index in missing], self.progress)
        for dimension in asked:
            values = dict(zip(missing, made[dimension.name], strict=True))
            found[dimension.name] |= values
            if store is not None:
                # What could not be scored may have had a passing reason, so only numbers are kept.
                kept = {
                    sha256[i]: np.array([[v]])
                    for i, v in values.items()
                    if not isinstance(v, Skipped) and np.isfinite(v)
                }
                store.put(self._kept_as(dimension), kept)
        if store is not None:
            store.flush()
        return found

    def _kept_as(self, dimension: Dimension) -> str:
        return kept_on(dimension.kept_as, self.device)

    def _asked(self, metric: ClipMetric) -> list[Dimension]:
        refused = self.refused(metric)
        return [dimension for dimension in metric.dimensions if dimension.name not in refused]

    def _key(self, index: int, content: str) -> str:
        """What a clip's values depend on: some look at its prompt, too, and some at the frame that it was given."""
        given = None if self.given is None else [self.log.folder.name, index]
        return canonical_hash([content, self.eval_set.prompts[index], self.eval_set.describe().fps, self.factor, given])

    def _file(self, index: int) -> ClipFile:
        size, image = self.eval_set.describe(), None
        if self.given is not None:
            image = self.log.video(index).with_suffix(".png")
            given = self.given([index])[0].repeat(self.factor, axis=0).repeat(self.factor, axis=1)
            Image.fromarray(given).save(image)
        return ClipFile(
            path=self.log.video(index).resolve(),
            key=self.eval_set.keys[index],
            prompt=self.eval_set.prompts[index],
            frames=size.frames,
            height=size.height * self.factor,
            width=size.width * self.factor,
            fps=size.fps,
            image=image,
        )


def enlarged(height: int, width: int, metrics: Sequence[ClipMetric]) -> int:
    """The whole factor by which clips are enlarged so that their shorter side suffices for all metrics; 1 for most."""
    least = max((metric.least_side for metric in metrics), default=0)
    return max(1, -(-least // min(height, width)))
