"""From clips to scores: what is kept of every batch, put together over all processes, and compared.

Axes: B clips of a batch, N of the set, F frames, K vectors a clip, D numbers a vector, P readings a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from w2svd_bench.evaluate.evalset import BATCH, ClipSet, Progress, Reference, shares
from w2svd_bench.evaluate.sampling import Sampled
from w2svd_bench.metrics import diagnostics
from w2svd_bench.metrics.base import CorpusMetric, Features
from w2svd_bench.record import Score, SkippedScore, provenance
from w2svd_bench.world import World


@dataclass(frozen=True)
class Bench:
    """What every cell of a grid shares.

    Attributes:
        eval_set, reference, metrics: what is asked, and what the answers are held against.
        reader: the frame net's, for its diagnostics; None where it can't read these clips.
        world: the processes that share the clips out.
        batch: how many clips are made at a time.
    """

    eval_set: ClipSet
    reference: Reference
    metrics: Sequence[CorpusMetric]
    reader: diagnostics.Reader | None
    world: World = field(default_factory=World)
    batch: int = BATCH

    @property
    def provenance(self) -> dict[str, Any]:
        """Which code ran where and when, and on how many processes."""
        work = {"processes": self.world.size, "clips_at_a_time": self.batch}
        return provenance(_device_name(self.world.device)) | work


@dataclass(frozen=True)
class Part:
    """What is kept of a batch of clips: plain data, for processes to exchange.

    Attributes:
        first: the number of its first clip.
        features: (B, K, D) by metric id; readings: (B, F, P).
        power: the mean square of each clip's latents, (B,).
        broken: clips whose latents are not finite.
        seconds: that sampling and decoding took.
    """

    first: int
    features: dict[str, np.ndarray]
    readings: np.ndarray | None
    power: np.ndarray
    broken: int
    seconds: tuple[float, float]

    @classmethod
    def of(cls, clips: Sampled, bench: Bench) -> Part:
        frames = clips.frames.numpy()
        known = bench.reference.features
        return cls(
            first=clips.indices[0],
            features={metric.id: metric.features(frames) for metric in bench.metrics if metric.id in known},
            readings=bench.reader(frames) if bench.reader is not None else None,
            power=clips.latents.float().flatten(1).square().mean(1).cpu().numpy(),
            broken=int((~torch.isfinite(clips.latents.flatten(1)).all(1)).sum()),
            seconds=(clips.sample_seconds, clips.decode_seconds),
        )


def parts_of(bench: Bench, made: Callable[[Sequence[range]], Iterable[Sampled]], progress: Progress) -> list[Part]:
    """This process makes its share of the clips; all shares together, in the order of clips, for every process."""
    count, world = len(bench.eval_set.prompts), bench.world

    def own() -> list[Part]:
        parts, done = [], 0
        for clips in made(shares(count, bench.batch, world)):
            parts.append(Part.of(clips, bench))
            done += len(clips.indices)
            progress(min(count, done * world.size), count)
        return parts

    every = world.gather(world.together(own))
    return sorted((part for share in every for part in share), key=lambda part: part.first)


class Clips:
    """All clips of a cell, as far as scores need them."""

    def __init__(self, bench: Bench, parts: Sequence[Part]) -> None:
        self.bench, self.parts = bench, parts
        self.broken = sum(part.broken for part in parts)

    @property
    def seconds(self) -> tuple[float, float]:
        """Of sampling and decoding, a clip."""
        total = np.sum([part.seconds for part in self.parts], axis=0) / len(self.bench.eval_set.prompts)
        return float(total[0]), float(total[1])

    def scores(self) -> dict[str, Score | SkippedScore]:
        return {metric.name: self._score(metric) for metric in self.bench.metrics}

    def _score(self, metric: CorpusMetric) -> Score | SkippedScore:
        reference, keys = self.bench.reference, self.bench.eval_set.keys
        reason = reference.refused.get(metric.id)
        if reason is None:
            found = min(len(set(keys)), len(reference.features[metric.id]))
            if found < metric.least_clips:
                reason = (
                    f"there are {found} clips of different prompts, and fewer than {metric.least_clips} tell nothing"
                )
        if reason is not None:
            return SkippedScore(skipped=reason, direction=metric.direction, version=metric.version)
        generated = Features(np.concatenate([part.features[metric.id] for part in self.parts]), keys)
        score = metric.compare(generated, reference.features[metric.id])
        return Score(
            value=score.value,
            se=score.se,
            n=score.n,
            direction=metric.direction,
            version=metric.version,
            id=metric.id,
            weights_sha256=metric.weights_sha256,
        )

    def diagnostics(self) -> dict[str, float]:
        power = torch.from_numpy(np.concatenate([part.power for part in self.parts]))
        out = {"latent_std": float(power.mean().sqrt())}
        found = [part.readings for part in self.parts if part.readings is not None]
        wanted, reference = self.bench.eval_set.colours, self.bench.reference.readings
        if found and wanted is not None and reference is not None:
            readings = np.concatenate(found)
            out |= {
                "mouth": diagnostics.mouth(readings, reference),
                "sway": diagnostics.sway(readings, reference),
                "colour_error": diagnostics.colour_error(readings, wanted),
            }
        return out


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
