"""From what was read of a cell's clips to its scores.

Axes: N clips of a set, K vectors a clip, D numbers a vector, F frames, P readings a frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from w2svd_bench.data.palette import PALETTES
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.evalset import BATCH, ClipSet, Progress
from w2svd_bench.evaluate.extraction import Extraction, Made, Part
from w2svd_bench.evaluate.references import Reference, readers
from w2svd_bench.evaluate.store import ClipLog, FeatureStore
from w2svd_bench.evaluate.videos import Videos, enlarged
from w2svd_bench.metrics import diagnostics
from w2svd_bench.metrics.base import ClipMetric, CorpusMetric, Dimension, Features
from w2svd_bench.record import AnyScore, Score, SkippedScore, provenance
from w2svd_bench.types import Skipped
from w2svd_bench.uncertainty import cluster_bootstrap, numbered
from w2svd_bench.world import World, device_name

VERSUS_TEACHER = " vs teacher"


@dataclass(frozen=True)
class Bench:
    """What every cell of a grid shares.

    Attributes:
        eval_set, reference, metrics: what is asked, and what the answers are held against.
        reader: the frame net's, for its diagnostics; None where it can't read these clips.
        world: the processes that share the clips out.
        batch: how many clips are made at a time.
        teacher: the teacher's clips, for scores against them; None: there are none.
        clip_metrics: metrics that score clips one by one, from files.
        store: where features are kept; None: nowhere.
    """

    eval_set: ClipSet
    reference: Reference
    metrics: Sequence[CorpusMetric]
    reader: diagnostics.Reader | None
    world: World = field(default_factory=World)
    batch: int = BATCH
    teacher: Reference | None = None
    clip_metrics: Sequence[ClipMetric] = ()
    store: FeatureStore | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Which code ran where and when, and on how many processes."""
        work = {"processes": self.world.size, "clips_at_a_time": self.batch}
        return provenance(device_name(self.world.device)) | work

    def wanted(self) -> dict[str, str]:
        """The id of every score that a record gets, by its name."""
        compared = {name: _against(metric.id, reference.name) for name, metric, reference in self.comparisons()}
        return compared | {one.name: one.id for metric in self.clip_metrics for one in metric.dimensions}

    def versions(self) -> dict[str, int]:
        """The version of what measures each score that a record gets, by its name."""
        compared = {name: metric.version for name, metric, _ in self.comparisons()}
        return compared | {one.name: one.version for metric in self.clip_metrics for one in metric.dimensions}

    def clips(self, made: Made, progress: Progress, log: ClipLog, given: bool) -> Clips:
        """All clips of a cell, made (where that was not done before) and read.

        Args:
            given: whether clips begin with a given frame, which metrics may ask for.
        """
        nets, _ = readers(self.eval_set, self.metrics, self.reader)
        frames = self.eval_set.given if given else None
        videos = Videos(log, self.eval_set, self.clip_metrics, progress, frames, self.world.device)
        extraction = Extraction(nets, self.world, self.batch, self.store)
        count = len(self.eval_set.prompts)
        with log.alone(self.world):
            return Clips(self, extraction.parts(count, made, progress, log, videos if self.clip_metrics else None))

    def skipped(self, reason: str) -> dict[str, AnyScore]:
        """A cell without scores, and why."""
        out: dict[str, AnyScore] = {}
        for name, metric, _ in self.comparisons():
            out[name] = SkippedScore(skipped=reason, direction=metric.direction, version=metric.version)
        for one in (one for metric in self.clip_metrics for one in metric.dimensions):
            out[one.name] = SkippedScore(skipped=reason, direction=one.direction, version=one.version)
        return out

    def comparisons(self) -> list[tuple[str, CorpusMetric, Reference]]:
        """What sets are compared by, and with what: the name of the score, the metric, and the reference."""
        found = [(metric.name, metric, self.reference) for metric in self.metrics]
        if self.teacher is not None:
            found += [(metric.name + VERSUS_TEACHER, metric, self.teacher) for metric in self.metrics]
        return found


class Clips:
    """All clips of a cell, as far as scores need them."""

    def __init__(self, bench: Bench, parts: Sequence[Part]) -> None:
        self.bench, self.parts = bench, parts
        self.broken = sum(part.logged.broken for part in parts)

    @property
    def why_broken(self) -> str:
        """Why the cell has no scores; empty if it has."""
        if not self.broken:
            return ""
        return f"{self.broken} of {len(self.bench.eval_set.prompts)} clips hold numbers that are not finite"

    @property
    def seconds(self) -> tuple[float, float]:
        """Of sampling and decoding, a clip."""
        total = np.sum([part.logged.seconds for part in self.parts], axis=0) / len(self.bench.eval_set.prompts)
        return float(total[0]), float(total[1])

    def scores(self) -> dict[str, AnyScore]:
        out: dict[str, AnyScore] = {
            name: self._compared(metric, reference) for name, metric, reference in self.bench.comparisons()
        }
        for metric in self.bench.clip_metrics:
            out |= {one.name: self._summed(one) for one in metric.dimensions}
        return out

    def diagnostics(self) -> dict[str, float]:
        power = torch.tensor([value for part in self.parts for value in part.logged.power])
        out = {"latent_std": float(power.mean().sqrt())}
        reader, wanted, reference = self.bench.reader, self.bench.eval_set.colours, self.bench.reference.readings
        if reader is not None and wanted is not None and reference is not None:
            readings = np.concatenate([part.features[reader.id] for part in self.parts])
            out |= {
                "mouth": diagnostics.mouth(readings, reference),
                "sway": diagnostics.sway(readings, reference),
                "colour_error": diagnostics.colour_error(readings, wanted),
            }
            if all("shirt" not in named for named in wanted):  # else the prompt decides both
                out["shirt_mixing"] = diagnostics.class_mixing(readings, "shirt", PALETTES["shirt"])
                out["rarest_shirt"] = diagnostics.rarest_share(readings, "shirt", PALETTES["shirt"])
        return out

    def _compared(self, metric: CorpusMetric, reference: Reference) -> AnyScore:
        keys, net = self.bench.eval_set.keys, metric.net.id
        reason = reference.refused.get(metric.id)
        if reason is None:
            found = min(len(set(keys)), len(reference.features[net]))
            if found < metric.least_clips:
                reason = (
                    f"there are {found} clips of different prompts, and fewer than {metric.least_clips} tell nothing"
                )
        if reason is not None:
            return SkippedScore(skipped=reason, direction=metric.direction, version=metric.version)
        generated = Features(np.concatenate([part.features[net] for part in self.parts]), keys)
        score = metric.compare(generated, reference.features[net])
        return Score(
            value=score.value,
            se=score.se,
            n=score.n,
            direction=metric.direction,
            version=metric.version,
            id=metric.id,
            weights_sha256=metric.weights_sha256,
            leave_out=score.leave_out,
            groups=score.groups,
            flags=score.flags,
            infinity=score.infinity,
            reference=reference.name,
        )

    def _summed(self, dimension: Dimension) -> AnyScore:
        """The mean over clips. A clip without a value leaves the set without a score: a smaller n would flatter it."""
        values = [value for part in self.parts for value in part.values[dimension.name]]
        reasons = Counter(value.reason for value in values if isinstance(value, Skipped))
        if not reasons:
            try:
                numbers = [value for value in values if not isinstance(value, Skipped)]
                estimate = cluster_bootstrap(numbers, self.bench.eval_set.keys)
            except BenchError as error:
                reasons = Counter({error.why: len(values)})
        if reasons:
            told = "; ".join(
                reason if count == len(values) else f"{count} of {len(values)} clips: {reason}"
                for reason, count in reasons.items()
            )
            again = any(isinstance(value, Skipped) for value in values) and not self._refused(dimension.name)
            return SkippedScore(skipped=told, direction=dimension.direction, version=dimension.version, again=again)
        return Score(
            value=estimate.value,
            se=estimate.se,
            n=len(values),
            direction=dimension.direction,
            version=dimension.version,
            id=dimension.id,
            weights_sha256=dimension.weights_sha256,
            values=tuple(numbers),
            prompts=tuple(numbered(self.bench.eval_set.keys)),
            flags=dimension.flags + self._enlarged(),
        )

    def _refused(self, name: str) -> bool:
        """Whether a dimension can't be had of clips of this size at all."""
        size = self.bench.eval_set.describe()
        factor = enlarged(size.height, size.width, self.bench.clip_metrics)
        shown = size.frames, size.height * factor, size.width * factor, size.fps
        return any(name in metric.refuses(*shown) for metric in self.bench.clip_metrics)

    def _enlarged(self) -> tuple[str, ...]:
        size = self.bench.eval_set.describe()
        factor = enlarged(size.height, size.width, self.bench.clip_metrics)
        return (f"clips enlarged {factor}x",) if factor > 1 else ()


def ids(scores: Mapping[str, AnyScore]) -> dict[str, str]:
    """What measured each score of a record, and against what; nothing for those that could not be had."""
    return {name: _against(score.id, score.reference) for name, score in scores.items() if isinstance(score, Score)}


def _against(metric_id: str, reference: str | None) -> str:
    return metric_id if reference is None else f"{metric_id}; against {reference}"
