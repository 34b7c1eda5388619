"""The rows of a leaderboard: which records may be compared, and their means over seeds."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.defaults import completed
from w2svd_bench.record import Record, Score, SkippedScore, TrainingCost

# What no generator can be expected to beat, in the order in which it is shown on top; never best. Real clips against
# the reference clips are the noise floor of that reference, the teacher's against its own those of the teacher's.
REFERENCE_METHODS = ("real", "teacher")


@dataclass(frozen=True)
class Mean:
    """A number over seeds: with two seeds or more the interval is their SD, with one the score's standard error.

    Attributes:
        interval: None where there is one seed, and its number has no standard error (a diagnostic, or of one prompt).
        num_clips: clips of a seed; more than one entry where the seeds differ.
        flags: of all seeds, in order.
        invalid: over all seeds, how many clips have no value, by reason.
    """

    value: float
    interval: float | None
    num_seeds: int
    num_clips: tuple[int, ...]
    flags: tuple[str, ...] = ()
    invalid: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One (backbone, label, steps): means over its seeds. A score that could not be had is the reason, as text.

    ``peak_memory_bytes`` is the highest of all seeds' trainings; None where one trained and did not measure it.
    """

    backbone: str
    method: str
    label: str
    steps: int
    nfe: int
    num_clips: int
    seeds: tuple[int, ...]
    scores: Mapping[str, Mean | str]
    diagnostics: Mapping[str, Mean]
    sample_seconds_per_clip: float
    training_iterations: float
    generator_updates: float
    network_evaluations: float
    training_seconds: float
    peak_memory_bytes: int | None

    @property
    def is_reference(self) -> bool:
        return self.method in REFERENCE_METHODS


def ordered(records: Sequence[Record]) -> list[Record]:
    """Records by backbone; within one, the noise floors first, then labels by what their training cost, then steps."""
    # A label's cost is that of its dearest record, so that its rows stay together.
    costs: dict[tuple[str, str], int] = {}
    for one in records:
        key = (one.cell.backbone, one.cell.label)
        costs[key] = max(costs.get(key, 0), one.training.network_evaluations)

    def place(one: Record) -> tuple[Any, ...]:
        cell = one.cell
        cost = costs[cell.backbone, cell.label]
        reference = cell.method in REFERENCE_METHODS
        rank = REFERENCE_METHODS.index(cell.method) if reference else len(REFERENCE_METHODS)
        return cell.backbone, rank, cost, cell.label, cell.steps, cell.seed, cell.id

    return sorted(records, key=place)


def refuse_duplicates(records: Sequence[Record]) -> None:
    """Raises BenchError where two records are of the same backbone, label, steps and seed, naming their files."""
    found: dict[tuple[str, str, int, int], Record] = {}
    for one in records:
        cell = one.cell
        other = found.setdefault((cell.backbone, cell.label, cell.steps, cell.seed), one)
        if other is not one:
            raise BenchError(
                f"there are two records of {cell.label!r} on {cell.backbone!r} at steps {cell.steps}, seed {cell.seed}",
                f"{other.file_name} and {one.file_name}",
                "keep one of them, or give one of the runs another label",
            )


_MEASURE_ALIKE = "evaluate them again in the same way, or keep them in separate folders"
_ONE_TEACHER = "keep what was trained and evaluated with other weights of the backbone in a folder of its own"
_ONE_GENERATOR = "evaluate the run again at all of its steps, or remove the records of the generator that is no more"
_TRAIN_ALIKE = "train a label's seeds by one recipe, give one of them another label, or keep them in separate folders"


def refuse_mixtures(records: Sequence[Record]) -> None:
    """Raises BenchError where records of one backbone can't be compared, or those of one row not be averaged.

    All must have the same eval set and, metric by metric, the same version, direction, identity, weights and reference;
    flags may differ, since they are shown. All must be of one teacher. Those of one label must have the same method,
    its code, config and data, and at the same steps the same sampling; the seed of the noise may differ. Those of one
    label and seed must be of one generator. What older records don't say is not compared, and a setting that they lack
    had its default.
    """
    seen: dict[tuple[Any, ...], tuple[Record, dict[str, Any]]] = {}

    def agree(key: tuple[Any, ...], one: Record, fields: dict[str, Any], cure: str = _MEASURE_ALIKE) -> None:
        first, known = seen.setdefault(key, (one, fields))
        differing = _differing(known, fields)
        if differing and key[1:2] == ("label",) and known.keys() != fields.keys():
            known, fields = _recipe(first, completed(first.config)), _recipe(one, completed(one.config))
            differing = _differing(known, fields)
        if differing:
            why = "; ".join(f"{path} is {_told(known, path)} and {_told(fields, path)}" for path in differing)
            raise BenchError(
                f"records of backbone {one.cell.backbone!r} can't stand in one table",
                f"{first.file_name} and {one.file_name} differ: {why}",
                cure,
            )

    for one in records:
        cell = one.cell
        agree((cell.backbone,), one, _flat(one.eval_set.model_dump(), "eval_set"))
        for name, score in one.metrics.items():
            path = f"metrics.{name}"
            shared = score.model_dump(include={"version", "direction"})
            agree((cell.backbone, "metric", name), one, _flat(shared, path))
            if isinstance(score, Score):  # what was skipped was measured by nothing
                measured_by = score.model_dump(include={"id", "weights_sha256", "reference"})
                agree((cell.backbone, "measured by", name), one, _flat(measured_by, path))
        agree((cell.backbone, "label", cell.label), one, _recipe(one, one.config), _TRAIN_ALIKE)
        if one.training.backbone_sha256:
            weights = {"training.backbone_sha256": one.training.backbone_sha256}
            agree((cell.backbone, "weights"), one, weights, _ONE_TEACHER)
        if one.training.data:
            agree((cell.backbone, "data", cell.label), one, {"training.data": one.training.data}, _TRAIN_ALIKE)
        trained_by, sampled_by = one.training.code.get("method"), one.provenance.get("method")
        if trained_by and sampled_by:
            code = {"training.code.method": trained_by, "provenance.method": sampled_by}
            agree((cell.backbone, "code", cell.label), one, code, _TRAIN_ALIKE)
        cost = one.training.model_dump(include={"iterations", "updates", "network_evaluations", "seconds"})
        generator = {"cell.checkpoint_sha256": cell.checkpoint_sha256, **_flat(cost, "training")}
        agree((cell.backbone, "generator", cell.label, cell.seed), one, generator, _ONE_GENERATOR)
        sampling = one.sampling.model_dump(exclude={"noise_seed"})
        agree((cell.backbone, "sampling", cell.label, cell.steps), one, _flat(sampling, "sampling"))


def _differing(known: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    return sorted(path for path in known.keys() | fields.keys() if known.get(path) != fields.get(path))


def _recipe(one: Record, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a generator was trained by; the values that a recipe expects say nothing about it."""
    trained = {key: value for key, value in config.items() if key != "expected"}
    return {"cell.method": one.cell.method, **_flat(trained, "config")}


def _told(fields: Mapping[str, Any], path: str) -> str:
    """A field's value as an error shows it; records of different versions may lack one another's settings."""
    return repr(fields[path]) if path in fields else "absent"


def rows_of(records: Sequence[Record]) -> list[Row]:
    """One row for each (backbone, label, steps) of records that are ordered and comparable."""
    metrics: dict[str, set[str]] = {}
    for one in records:
        metrics.setdefault(one.cell.backbone, set()).update(one.metrics)
    groups = itertools.groupby(records, key=lambda one: (one.cell.backbone, one.cell.label, one.cell.steps))
    return [_row(list(group), sorted(metrics[backbone])) for (backbone, _, _), group in groups]


def _row(records: Sequence[Record], metrics: Sequence[str]) -> Row:
    first = records[0]
    diagnostics = sorted(set.intersection(*(set(one.diagnostics) for one in records)))
    return Row(
        backbone=first.cell.backbone,
        method=first.cell.method,
        label=first.cell.label,
        steps=first.cell.steps,
        nfe=first.sampling.nfe,
        num_clips=first.eval_set.num_clips,
        seeds=tuple(one.cell.seed for one in records),
        scores={name: _mean(name, records) for name in metrics},
        diagnostics={name: _reading(name, records) for name in diagnostics},
        sample_seconds_per_clip=statistics.fmean(one.timing.sample_seconds_per_clip for one in records),
        training_iterations=statistics.fmean(one.training.iterations for one in records),
        generator_updates=statistics.fmean(one.training.updates.get("generator", 0) for one in records),
        network_evaluations=statistics.fmean(one.training.network_evaluations for one in records),
        training_seconds=statistics.fmean(one.training.seconds for one in records),
        peak_memory_bytes=_peak([one.training for one in records]),
    )


def _peak(trainings: Sequence[TrainingCost]) -> int | None:
    unknown = any(one.iterations and not one.peak_memory_bytes for one in trainings)
    return None if unknown else max(one.peak_memory_bytes for one in trainings)


def _reading(name: str, records: Sequence[Record]) -> Mean:
    """A diagnostic's mean over seeds, all of which have it."""
    values = [one.diagnostics[name] for one in records]
    clips = tuple(sorted({one.eval_set.num_clips for one in records}))
    return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values), clips)


def _mean(name: str, records: Sequence[Record]) -> Mean | str:
    """A metric's mean over seeds; a reason where any seed lacks it: a mean over fewer would be another number."""
    scores: list[Score] = []
    reasons: dict[str, list[int]] = {}
    for one in records:
        score = one.metrics.get(name)
        if isinstance(score, Score):
            scores.append(score)
        else:
            reason = score.skipped if isinstance(score, SkippedScore) else "not measured"
            reasons.setdefault(reason, []).append(one.cell.seed)
    if reasons:
        parts = (
            reason if len(seeds) == len(records) else f"{reason} (seed {', '.join(map(str, seeds))})"
            for reason, seeds in reasons.items()
        )
        return "; ".join(parts)
    values = [score.value for score in scores]
    invalid: Counter[str] = Counter()
    for score in scores:
        invalid.update(score.invalid)
    return Mean(
        value=statistics.fmean(values),
        interval=statistics.stdev(values) if len(values) > 1 else scores[0].se,
        num_seeds=len(values),
        num_clips=tuple(sorted({score.n for score in scores})),
        flags=tuple(dict.fromkeys(flag for score in scores for flag in score.flags)),
        invalid=+invalid,  # without those that none has
    )


def _flat(value: Any, path: str) -> dict[str, Any]:
    """A nested mapping as {"config.settings.alpha": 0.5}, so that an error can name the one key that differs."""
    if not isinstance(value, Mapping):
        return {path: value}
    return {name: leaf for key, part in value.items() for name, leaf in _flat(part, f"{path}.{key}").items()}
