"""One cell of the grid: sample, score, and leave a record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.palette import named_colours
from w2svd_bench.data.portraits import batches
from w2svd_bench.errors import UnsupportedSteps
from w2svd_bench.evaluate.evalset import PortraitSet, Progress, Reference
from w2svd_bench.evaluate.sampling import Sampled, Subject, sample
from w2svd_bench.metrics import diagnostics
from w2svd_bench.metrics.base import CorpusMetric, Features
from w2svd_bench.record import Cell, Record, Sampling, Score, SkippedScore, Timing, TrainingCost, provenance
from w2svd_bench.samplers import Sampler


@dataclass(frozen=True)
class Bench:
    """What every cell of a grid shares: the set, its reference, the metrics and the frame net's reader."""

    eval_set: PortraitSet
    reference: Reference
    metrics: Sequence[CorpusMetric]
    reader: diagnostics.Reader


def cell_of(subject: Subject, steps: int, eval_set: PortraitSet) -> Cell:
    """The cell that a run has at a number of steps."""
    run = subject.run
    return Cell(
        backbone=run.backbone,
        method=run.method,
        label=run.label,
        checkpoint_sha256=run.weights_sha256,
        steps=steps,
        seed=run.seed,
        eval_set=eval_set.name,
    )


def evaluate(subject: Subject, steps: int, bench: Bench, progress: Progress) -> Record:
    """Samples every prompt of the set once and scores the clips.

    A method that can't be sampled at this number of steps, and a generator that leaves numbers which are not finite,
    get a record all the same: its scores say why there are none.
    """
    start = time.perf_counter()
    try:
        sampler = subject.method.sampler(steps)
    except UnsupportedSteps as error:
        nothing = Sampler("ode", tuple([1.0] * steps + [0.0]))
        return _record(
            subject, steps, nothing, bench, _skipped(bench, error.what + ": " + error.why), {}, (0.0, 0.0), start
        )
    prompts, parts, seconds = bench.eval_set.prompts, _Parts(bench), np.zeros(2)
    for part in sample(subject, sampler, prompts, subject.run.seed):
        parts.add(part)
        seconds += (part.sample_seconds, part.decode_seconds)
        progress(part.indices[-1] + 1, len(prompts))
    a_clip = seconds / len(prompts)
    if parts.broken:
        scores = _skipped(bench, f"{parts.broken} of {len(prompts)} clips hold numbers that are not finite")
        return _record(subject, steps, sampler, bench, scores, {}, (a_clip[0], a_clip[1]), start)
    return _record(
        subject, steps, sampler, bench, parts.scores(prompts), parts.diagnostics(prompts), (a_clip[0], a_clip[1]), start
    )


class _Parts:
    """What is kept of the clips, batch by batch: features, readings and two moments of the latents."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.features: dict[str, list[np.ndarray]] = {metric.id: [] for metric in bench.metrics}
        self.readings: list[np.ndarray] = []
        self.latent_stds: list[torch.Tensor] = []
        self.broken = 0

    def add(self, part: Sampled) -> None:
        self.broken += int((~torch.isfinite(part.latents.flatten(1)).all(1)).sum())
        self.latent_stds.append(part.latents.float().flatten(1).square().mean(1).cpu())
        clips = part.frames.numpy()
        for metric in self.bench.metrics:
            self.features[metric.id].append(metric.features(clips))
        self.readings.append(self.bench.reader(clips))

    def scores(self, prompts: Sequence[str]) -> dict[str, Score | SkippedScore]:
        out: dict[str, Score | SkippedScore] = {}
        for metric in self.bench.metrics:
            generated = Features(np.concatenate(self.features[metric.id]), prompts)
            score = metric.compare(generated, self.bench.reference.features[metric.id])
            out[metric.name] = Score(
                value=score.value,
                se=score.se,
                n=score.n,
                direction=metric.direction,
                version=metric.version,
                id=metric.id,
                weights_sha256=metric.weights_sha256,
            )
        return out

    def diagnostics(self, prompts: Sequence[str]) -> dict[str, float]:
        readings, reference = np.concatenate(self.readings), self.bench.reference.readings
        return {
            "mouth": diagnostics.mouth(readings, reference),
            "sway": diagnostics.sway(readings, reference),
            "latent_std": float(torch.cat(self.latent_stds).mean().sqrt()),
            "colour_error": diagnostics.colour_error(readings, [named_colours(p) for p in prompts]),
        }


def _skipped(bench: Bench, reason: str) -> dict[str, Any]:
    return {m.name: SkippedScore(skipped=reason, direction=m.direction, version=m.version) for m in bench.metrics}


def _record(
    subject: Subject,
    steps: int,
    sampler: Sampler,
    bench: Bench,
    scores: dict[str, Any],
    readings: dict[str, float],
    seconds: tuple[float, float],
    start: float,
) -> Record:
    run, side = subject.run, subject.backbone.side
    return Record(
        cell=cell_of(subject, steps, bench.eval_set),
        sampling=Sampling(
            sampler=sampler.kind,
            nfe=sampler.nfe,
            guidance=side.guidance,
            shift=side.shift,
            levels=sampler.levels,
            noise_seed=run.seed,
        ),
        metrics=scores,
        diagnostics=readings,
        eval_set=bench.eval_set.describe(),
        training=TrainingCost(
            iterations=run.iterations,
            updates=run.updates,
            network_evaluations=run.network_evaluations,
            seconds=run.seconds,
            peak_memory_bytes=run.peak_memory_bytes,
        ),
        timing=Timing(
            sample_seconds_per_clip=seconds[0],
            decode_seconds_per_clip=seconds[1],
            wall_seconds=time.perf_counter() - start,
        ),
        config=run.config,
        provenance=provenance(_device_name(subject.backbone.device)),
    )


def floor_cell(backbone: Backbone, eval_set: PortraitSet, through_codec: bool) -> Cell:
    """The cell of real clips: raw, or encoded and decoded."""
    return Cell(
        backbone=backbone.name,
        method="real",
        label="real, through the codec" if through_codec else "real (noise floor)",
        checkpoint_sha256=backbone.latents_sha256 if through_codec else "",
        steps=0,
        seed=0,
        eval_set=eval_set.name,
    )


def evaluate_floor(backbone: Backbone, bench: Bench, through_codec: bool) -> Record:
    """The real clips of the eval set's own prompts: rows that no generator can be expected to beat."""
    start, parts, seconds = time.perf_counter(), _Parts(bench), 0.0
    side, eval_set = backbone.side, bench.eval_set
    geometry = (side.num_frames, side.height, side.width)
    for indices, frames in batches(eval_set.split, eval_set.num_clips, 64, 0, *geometry):
        latents = backbone.encode(frames)
        before = time.perf_counter()
        decoded = backbone.decode(latents)
        seconds += time.perf_counter() - before
        parts.add(Sampled(indices, latents, decoded if through_codec else frames, 0.0, 0.0))
    return Record(
        cell=floor_cell(backbone, eval_set, through_codec),
        sampling=Sampling(sampler="none", nfe=0, guidance=0.0, shift=side.shift, levels=(), noise_seed=0),
        metrics=parts.scores(eval_set.prompts),
        diagnostics=parts.diagnostics(eval_set.prompts),
        eval_set=eval_set.describe(),
        training=TrainingCost(),
        timing=Timing(
            sample_seconds_per_clip=0.0,
            decode_seconds_per_clip=seconds / eval_set.num_clips if through_codec else 0.0,
            wall_seconds=time.perf_counter() - start,
        ),
        config={},
        provenance=provenance(_device_name(backbone.device)),
    )


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


def record_path(folder: Path, cell: Cell) -> Path:
    """Where the record of a cell is, or will be."""
    return folder / "records" / f"{cell.id}.json"
