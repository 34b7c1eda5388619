"""One cell of the grid: sample, score, and leave a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.errors import UnsupportedSteps
from w2svd_bench.evaluate.evalset import ClipSet, Progress
from w2svd_bench.evaluate.sampling import Sampled, Subject, now, sample
from w2svd_bench.evaluate.scoring import Bench, Clips, parts_of
from w2svd_bench.record import Cell, Record, Sampling, SkippedScore, Timing, TrainingCost
from w2svd_bench.samplers import Sampler
from w2svd_bench.types import Cond

Watch = Callable[[Sampled], None]


def cell_of(subject: Subject, steps: int, eval_set: ClipSet) -> Cell:
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


def evaluate(
    subject: Subject, steps: int, bench: Bench, progress: Progress, watch: Watch = lambda clips: None
) -> Record:
    """Samples every prompt of the set once and scores the clips; every process has to call it and gets the record.

    A method that can't be sampled at this number of steps, and a generator that leaves numbers which are not finite,
    get a record all the same: its scores say why there are none.

    Args:
        watch: called with every batch that this process made.
    """
    start = time.perf_counter()
    try:
        sampler = subject.method.sampler(steps)
    except UnsupportedSteps as error:
        nothing = Sampler("ode", tuple([1.0] * steps + [0.0]))
        return _record(
            subject, steps, nothing, bench, _skipped(bench, error.what + ": " + error.why), {}, (0.0, 0.0), start
        )

    def made(batches: Sequence[range]) -> Iterator[Sampled]:
        def conditioning(indices: Sequence[int]) -> Cond:
            return bench.eval_set.conditioning(subject.backbone, indices)

        for part in sample(subject, sampler, conditioning, batches, subject.run.seed):
            watch(part)
            yield part

    clips = Clips(bench, parts_of(bench, made, progress))
    if clips.broken:
        scores = _skipped(
            bench, f"{clips.broken} of {len(bench.eval_set.prompts)} clips hold numbers that are not finite"
        )
        return _record(subject, steps, sampler, bench, scores, {}, clips.seconds, start)
    return _record(subject, steps, sampler, bench, clips.scores(), clips.diagnostics(), clips.seconds, start)


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
        provenance=bench.provenance,
    )


def floor_cell(backbone: Backbone, eval_set: ClipSet, through_codec: bool) -> Cell:
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


def evaluate_floor(
    backbone: Backbone, bench: Bench, through_codec: bool, progress: Progress = lambda done, total: None
) -> Record:
    """The real clips of the eval set's own prompts: rows that no generator can be expected to beat."""
    start, eval_set = time.perf_counter(), bench.eval_set

    def real(batches: Sequence[range]) -> Iterator[Sampled]:
        for indices in batches:
            latents = eval_set.latents(backbone, indices)
            before = now(backbone.device)
            if through_codec:
                # The given first frame of image-to-video is a part of the clip.
                cond = eval_set.conditioning(backbone, indices) if backbone.given_frames else None
                frames = backbone.decode(latents, cond)
            else:
                frames = torch.from_numpy(eval_set.real(indices))
            seconds = now(backbone.device) - before if through_codec else 0.0
            yield Sampled(list(indices), latents, frames, 0.0, seconds)

    clips = Clips(bench, parts_of(bench, real, progress))
    return Record(
        cell=floor_cell(backbone, eval_set, through_codec),
        sampling=Sampling(sampler="none", nfe=0, guidance=0.0, shift=backbone.side.shift, levels=(), noise_seed=0),
        metrics=clips.scores(),
        diagnostics=clips.diagnostics(),
        eval_set=eval_set.describe(),
        training=TrainingCost(),
        timing=Timing(
            sample_seconds_per_clip=0.0,
            decode_seconds_per_clip=clips.seconds[1],
            wall_seconds=time.perf_counter() - start,
        ),
        config={},
        provenance=bench.provenance,
    )


def record_path(folder: Path, cell: Cell) -> Path:
    """Where the record of a cell is, or will be."""
    return folder / "records" / f"{cell.id}.json"
