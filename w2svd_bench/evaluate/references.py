"""What generated clips are held against: real clips, and clips that the teacher made from the same prompts.

The first distance asks how good a generator is, the second how much of its teacher it kept. The teacher is sampled with
noise of its own, so that even a perfect copy of it is some way off: as far as the teacher is from itself.
Axes: N clips of a set, F frames, P readings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.ahead import ahead
from w2svd_bench.evaluate.evalset import BATCH, ClipSet, Progress
from w2svd_bench.evaluate.extraction import Extraction, Net, Part
from w2svd_bench.evaluate.origin import reference_key, teacher_key
from w2svd_bench.evaluate.sampling import Sampled, sample_network
from w2svd_bench.evaluate.store import ClipLog, FeatureStore
from w2svd_bench.flow import schedule
from w2svd_bench.metrics.base import CorpusMetric, Features
from w2svd_bench.metrics.diagnostics import Reader
from w2svd_bench.samplers import Sampler
from w2svd_bench.world import World

TEACHER_STEPS = 28
TEACHER_SEED = 1_000_003  # of the reference's noise; runs have small seeds


@dataclass(frozen=True)
class Reference:
    """What generated clips are held against.

    Attributes:
        features: of the reference clips, by net id.
        readings: the frame net's, (N, F, P); None where it can't read these clips.
        refused: by metric id, why it can't read clips of this size.
        name: what a score that was held against it says; None for the eval set's own real clips.
    """

    features: Mapping[str, Features]
    readings: np.ndarray | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None


def teacher_sampler(backbone: Backbone) -> Sampler:
    """How the teacher itself is sampled: Euler's method at 28 levels with the backbone's shift."""
    return Sampler("ode", tuple(schedule(TEACHER_STEPS, backbone.side.shift).tolist()))


def readers(
    eval_set: ClipSet, metrics: Sequence[CorpusMetric], reader: Reader | None
) -> tuple[dict[str, Net], dict[str, str]]:
    """The nets that are needed, by id (metrics share them); and by metric id, why one can't read the set's clips."""
    size = eval_set.describe()
    nets: dict[str, Net] = {}
    refused: dict[str, str] = {}
    for metric in metrics:
        reason = metric.refuses(size.frames, size.height, size.width)
        if reason is None:
            nets[metric.net.id] = metric.net.features
        else:
            refused[metric.id] = reason
    if reader is not None:
        nets[reader.id] = reader
    return nets, refused


def real_reference(
    eval_set: ClipSet,
    metrics: Sequence[CorpusMetric],
    reader: Reader | None,
    progress: Progress,
    world: World | None = None,
    batch: int = BATCH,
    store: FeatureStore | None = None,
) -> Reference:
    """The set's reference clips: read by all processes together, and kept.

    A metric that can't read clips of this size is left out, with its reason.
    """
    nets, refused = readers(eval_set, metrics, reader)
    if not nets:
        return Reference({}, None, refused)

    def made(batches: Iterable[range]) -> Iterator[Sampled]:
        def clips(indices: range) -> Sampled:
            return Sampled(list(indices), None, torch.from_numpy(eval_set.reference_clips(indices)), 0.0, 0.0)

        return ahead(clips, batches)

    extraction = Extraction(nets, world or World(), batch, store or FeatureStore())
    log = ClipLog(reference_key(eval_set, extraction.world.device))
    with log.alone(extraction.world):
        parts = extraction.parts(eval_set.reference_count, made, progress, log)
    return _reference(parts, nets, refused, reader, eval_set.reference_keys, None)


def teacher_reference(
    eval_set: ClipSet,
    backbone: Backbone,
    metrics: Sequence[CorpusMetric],
    progress: Progress,
    world: World | None = None,
    batch: int = BATCH,
    store: FeatureStore | None = None,
) -> Reference:
    """Clips that the teacher makes of the set's prompts in 28 steps, with noise that no run is sampled with."""
    nets, refused = readers(eval_set, metrics, None)
    side = backbone.side
    name = (
        f"teacher {backbone.teacher_sha256[:12]}, {TEACHER_STEPS} steps, shift {side.shift:g}, "
        f"guidance {side.guidance:g}, noise seed {TEACHER_SEED}"
    )
    if not nets:
        return Reference({}, None, refused, name)

    def made(batches: Sequence[range]) -> Iterable[Sampled]:
        return teacher_clips(eval_set, backbone, batches, TEACHER_SEED) if batches else ()

    extraction = Extraction(nets, world or World(), batch, store or FeatureStore())
    log = ClipLog(teacher_key(backbone, teacher_sampler(backbone), eval_set, TEACHER_SEED, batch))
    with log.alone(extraction.world):
        parts = extraction.parts(len(eval_set.prompts), made, progress, log)
    broken = sum(part.logged.broken for part in parts)
    if broken:
        raise BenchError(
            f"{broken} of the teacher's {len(eval_set.prompts)} clips hold numbers that are not finite",
            "they can't be a reference: they would decode to black pictures",
            "use another precision (engine.dtype) or --against real",
        )
    return _reference(parts, nets, refused, None, eval_set.keys, name)


def teacher_clips(eval_set: ClipSet, backbone: Backbone, batches: Sequence[range], seed: int) -> Iterator[Sampled]:
    """The teacher's clips of the prompts of the given numbers."""
    network, sampler = backbone.network(), teacher_sampler(backbone)
    return sample_network(
        backbone, network, sampler, lambda indices: eval_set.conditioning(backbone, indices), batches, seed
    )


def _reference(
    parts: Sequence[Part],
    nets: Mapping[str, Net],
    refused: Mapping[str, str],
    reader: Reader | None,
    keys: Sequence[str] | None,
    name: str | None,
) -> Reference:
    arrays = {net_id: np.concatenate([part.features[net_id] for part in parts]) for net_id in nets}
    readings = None if reader is None else arrays.pop(reader.id)
    return Reference({net_id: Features(values, keys) for net_id, values in arrays.items()}, readings, refused, name)
