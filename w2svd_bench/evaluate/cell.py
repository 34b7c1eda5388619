"""One cell of the grid: sample, score, and leave a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.locate import Side
from w2svd_bench.errors import UnsupportedSteps
from w2svd_bench.evaluate.evalset import ClipSet, Progress, RealFloor
from w2svd_bench.evaluate.origin import real_key, run_key, teacher_key
from w2svd_bench.evaluate.references import TEACHER_STEPS, teacher_clips, teacher_sampler
from w2svd_bench.evaluate.sampling import Sampled, Subject, now, sample
from w2svd_bench.evaluate.scoring import Bench
from w2svd_bench.evaluate.store import ClipLog
from w2svd_bench.record import Cell, Record, Sampling, Timing, TrainingCost
from w2svd_bench.registry import METHODS
from w2svd_bench.samplers import Sampler
from w2svd_bench.types import Cond

Watch = Callable[[Sampled], None]


@dataclass(frozen=True)
class Identity:
    """What a record says before anything is measured; one that says something else is of other clips."""

    cell: Cell
    sampling: Sampling
    config: dict[str, Any]

    def is_of(self, record: Record) -> bool:
        """Whether a record is of the clips that would be made now."""
        return (record.cell, record.sampling, record.config) == (self.cell, self.sampling, self.config)


def identity(subject: Subject, steps: int, eval_set: ClipSet) -> Identity:
    """That of a run at a number of steps; where its method refuses these, its sampling is a plain one."""
    run, side = subject.run, subject.backbone.side
    cell = Cell(
        backbone=run.backbone,
        method=run.method,
        label=run.label,
        checkpoint_sha256=run.weights_sha256,
        steps=steps,
        seed=run.seed,
        eval_set=eval_set.name,
    )
    try:
        sampler = subject.method.sampler(steps)
    except UnsupportedSteps:
        sampler = Sampler("ode", tuple([1.0] * steps + [0.0]))
    return Identity(cell, _sampling(sampler, side, run.seed), run.config)


def _sampling(sampler: Sampler, side: Side, seed: int) -> Sampling:
    return Sampling(
        sampler=sampler.kind,
        nfe=sampler.nfe,
        guidance=side.guidance,
        shift=side.shift,
        levels=sampler.levels,
        noise_seed=seed,
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
        scores = bench.skipped(error.what + ": " + error.why)
        return _record(subject, steps, bench, scores, {}, (0.0, 0.0), start)

    def made(batches: Sequence[range]) -> Iterator[Sampled]:
        def conditioning(indices: Sequence[int]) -> Cond:
            return bench.eval_set.conditioning(subject.backbone, indices)

        for part in sample(subject, sampler, conditioning, batches, subject.run.seed):
            watch(part)
            yield part

    log = ClipLog(run_key(subject, sampler, bench.eval_set, bench.batch))
    clips = bench.clips(made, progress, log, given=subject.backbone.side.task == "i2v")
    if clips.broken:
        scores = bench.skipped(
            f"{clips.broken} of {len(bench.eval_set.prompts)} clips hold numbers that are not finite"
        )
        return _record(subject, steps, bench, scores, {}, clips.seconds, start)
    return _record(subject, steps, bench, clips.scores(), clips.diagnostics(), clips.seconds, start)


def _record(
    subject: Subject,
    steps: int,
    bench: Bench,
    scores: dict[str, Any],
    readings: dict[str, float],
    seconds: tuple[float, float],
    start: float,
) -> Record:
    run, about = subject.run, identity(subject, steps, bench.eval_set)
    return Record(
        cell=about.cell,
        sampling=about.sampling,
        metrics=scores,
        diagnostics=readings,
        eval_set=bench.eval_set.describe(),
        training=TrainingCost(
            iterations=run.iterations,
            updates=run.updates,
            network_evaluations=run.network_evaluations,
            seconds=run.seconds,
            peak_memory_bytes=run.peak_memory_bytes,
            device=run.device,
            data=run.data,
            backbone_sha256=run.backbone_sha256,
            code=run.code,
            health=run.health,
        ),
        timing=Timing(
            sample_seconds_per_clip=seconds[0],
            decode_seconds_per_clip=seconds[1],
            wall_seconds=time.perf_counter() - start,
        ),
        config=about.config,
        provenance=bench.provenance | {"method": METHODS.code(run.method)},
    )


Floor = RealFloor | Literal["teacher"]
_LABELS: dict[Floor, str] = {
    "raw": "real (noise floor)",
    "codec": "real, through the codec",
    "teacher": f"teacher, {TEACHER_STEPS} steps (noise floor)",
}


def floor_identity(backbone: Backbone, eval_set: ClipSet, kind: Floor) -> Identity:
    """That of a row that no generator can be expected to beat.

    ``raw`` are the real clips of the set's own prompts, ``codec`` the same encoded and decoded, and ``teacher`` the
    teacher's clips with other noise than those that it is a reference with.
    """
    weights = {"raw": "", "codec": backbone.latents_sha256, "teacher": backbone.teacher_sha256}
    cell = Cell(
        backbone=backbone.name,
        method="teacher" if kind == "teacher" else "real",
        label=_LABELS[kind],
        checkpoint_sha256=weights[kind],
        steps=TEACHER_STEPS if kind == "teacher" else 0,
        seed=0,
        eval_set=eval_set.name,
    )
    side = backbone.side
    if kind == "teacher":
        return Identity(cell, _sampling(teacher_sampler(backbone), side, 0), {})
    none = Sampling(sampler="none", nfe=0, guidance=0.0, shift=side.shift, levels=(), noise_seed=0)
    return Identity(cell, none, {})


def evaluate_floor(
    backbone: Backbone, bench: Bench, kind: Floor, progress: Progress = lambda done, total: None
) -> Record:
    """The record of one of the rows of `floor_identity`."""
    start, eval_set, side = time.perf_counter(), bench.eval_set, backbone.side

    def real(indices: Sequence[int]) -> Sampled:
        latents = eval_set.latents(backbone, indices)
        before = now(backbone.device)
        if kind == "codec":
            # The given first frame of image-to-video is a part of the clip.
            cond = eval_set.conditioning(backbone, indices) if backbone.given_frames else None
            frames, finite = backbone.decode_checked(latents, cond)
        else:
            frames, finite = torch.from_numpy(eval_set.real(indices)), None
        seconds = now(backbone.device) - before if kind == "codec" else 0.0
        return Sampled(list(indices), latents, frames, 0.0, seconds, finite)

    def made(batches: Sequence[range]) -> Iterable[Sampled]:
        if kind == "teacher" and batches:
            return teacher_clips(eval_set, backbone, batches, seed=0)
        return map(real, batches)

    if kind == "teacher":
        key = teacher_key(backbone, teacher_sampler(backbone), eval_set, 0, bench.batch)
    else:
        key = real_key(backbone, eval_set, kind == "codec", bench.batch)
    clips = bench.clips(made, progress, ClipLog(key), given=side.task == "i2v")
    broken, about = clips.why_broken, floor_identity(backbone, eval_set, kind)
    return Record(
        cell=about.cell,
        sampling=about.sampling,
        metrics=bench.skipped(broken) if broken else clips.scores(),
        diagnostics={} if broken else clips.diagnostics(),
        eval_set=eval_set.describe(),
        training=TrainingCost(backbone_sha256=backbone.sha256),
        timing=Timing(
            sample_seconds_per_clip=clips.seconds[0],
            decode_seconds_per_clip=clips.seconds[1],
            wall_seconds=time.perf_counter() - start,
        ),
        config=about.config,
        provenance=bench.provenance,
    )


def record_path(folder: Path, cell: Cell) -> Path:
    """Where the record of a cell is, or will be."""
    return folder / "records" / f"{cell.id}.json"
