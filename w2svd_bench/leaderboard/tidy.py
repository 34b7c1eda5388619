"""The tidy form of records: one row a number, so that a plot or a model needs no reshaping first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from w2svd_bench.record import Record, Score

if TYPE_CHECKING:
    import pandas as pd

TEXT, WHOLE, REAL = "str", "int64", "float64"
# Columns and their types. What a row does not have is missing, never a word for it.
COLUMNS = {
    "backbone": TEXT,
    "method": TEXT,
    "label": TEXT,
    "steps": WHOLE,
    "nfe": WHOLE,
    "seed": WHOLE,
    "eval_set": TEXT,
    "kind": TEXT,  # score, extrapolated (to infinitely many clips), diagnostic or cost
    "metric": TEXT,
    "value": REAL,
    "se": REAL,
    "n": WHOLE,  # clips that the number stands on: 0 for a cost of training, and for what could not be had
    "direction": TEXT,  # up or down: which way it is better
    "flags": TEXT,
    "skipped": TEXT,  # why a score could not be had; it has no value then
    "reference": TEXT,  # what a score was held against, where that is not the eval set's own reference
    "weights_sha256": TEXT,
    "checkpoint_sha256": TEXT,
}


def tidy(records: Iterable[Record]) -> pd.DataFrame:
    """One row a number of the records, in their order: scores, diagnostics, costs. Units are in the costs' names."""
    import pandas as pd

    rows = [row for one in records for row in _rows(one)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({name: kind for name, kind in COLUMNS.items() if kind != TEXT})


def _rows(one: Record) -> Iterator[dict[str, Any]]:
    cell = one.cell
    of_cell = {
        "backbone": cell.backbone,
        "method": cell.method,
        "label": cell.label,
        "steps": cell.steps,
        "nfe": one.sampling.nfe,
        "seed": cell.seed,
        "eval_set": cell.eval_set,
        "checkpoint_sha256": cell.checkpoint_sha256 or None,  # real clips come from no checkpoint
    }
    for name, score in sorted(one.metrics.items()):
        row = of_cell | {"kind": "score", "metric": name, "direction": score.direction}
        if not isinstance(score, Score):
            yield row | {"n": 0, "skipped": score.skipped}
            continue
        row |= {"n": score.n, "flags": "; ".join(score.flags) or None, "reference": score.reference}
        row |= {"weights_sha256": score.weights_sha256}
        yield row | {"value": score.value, "se": score.se}
        if score.infinity is not None:
            yield row | {"kind": "extrapolated", "value": score.infinity}
    for name, value in sorted(one.diagnostics.items()):
        yield of_cell | {"kind": "diagnostic", "metric": name, "value": value, "n": one.eval_set.num_clips}
    clips, training = one.eval_set.num_clips, one.training
    costs: tuple[tuple[str, float, int], ...] = (
        ("sample_seconds_per_clip", one.timing.sample_seconds_per_clip, clips),
        ("decode_seconds_per_clip", one.timing.decode_seconds_per_clip, clips),
        ("training_iterations", training.iterations, 0),
        *((f"{role}_updates", count, 0) for role, count in sorted(training.updates.items())),
        ("network_evaluations", training.network_evaluations, 0),
        ("training_seconds", training.seconds, 0),
        ("peak_memory_bytes", training.peak_memory_bytes, 0),
    )
    for name, value, n in costs:
        if n and not value:
            continue  # nothing was sampled, or decoded
        yield of_cell | {"kind": "cost", "metric": name, "value": value, "n": n, "direction": "down"}
