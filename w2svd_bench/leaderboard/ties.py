"""Which rows are not shown to be worse than the best one: the paired differences of `compare`, for a whole table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.rows import Mean, Row
from w2svd_bench.record import Direction, Record


@dataclass(frozen=True)
class Ties:
    """What can be said of the rows of one backbone beside the best at the same number of steps.

    Attributes:
        tied: (label, steps, metric) of the rows that are not the best, and not shown to be worse.
        worse: those of the rows that are shown to be worse.
        judged: metrics in which some row could be paired with the best.
        unjudged: metrics in which some row could not: its record is older, or has none of the best one's seeds.
    """

    tied: frozenset[tuple[str, int, str]] = frozenset()
    worse: frozenset[tuple[str, int, str]] = frozenset()
    judged: frozenset[str] = frozenset()
    unjudged: frozenset[str] = frozenset()


def ties_of(records: Sequence[Record], rows: Sequence[Row], directions: Mapping[str, Direction]) -> Ties:
    """The ties of one backbone.

    Args:
        records: that may be compared, those of `rows`.
        rows: of this backbone.
        directions: of the metrics that are judged.
    """
    rivals: dict[tuple[str, str, int], list[str]] = {}  # metrics by rival, best and steps
    for steps in sorted({row.steps for row in rows}):
        for metric, direction in directions.items():
            means = {row.label: row.scores[metric] for row in rows if row.steps == steps and not row.is_reference}
            values = {label: mean.value for label, mean in means.items() if isinstance(mean, Mean)}
            if len(values) > 1:
                best = (min if direction == "down" else max)(values, key=values.__getitem__)
                for label in values.keys() - {best}:
                    rivals.setdefault((label, best, steps), []).append(metric)
    tied: set[tuple[str, int, str]] = set()
    worse: set[tuple[str, int, str]] = set()
    judged: set[str] = set()
    unjudged: set[str] = set()
    for (label, best, steps), metrics in rivals.items():
        verdicts = _verdicts(records, label, best, steps, metrics)
        judged |= verdicts.keys()
        unjudged |= set(metrics) - verdicts.keys()
        for metric, verdict in verdicts.items():
            (worse if verdict == "worse" else tied).add((label, steps, metric))
    return Ties(frozenset(tied), frozenset(worse), frozenset(judged), frozenset(unjudged))


def _verdicts(records: Sequence[Record], label: str, best: str, steps: int, metrics: Collection[str]) -> dict[str, str]:
    """By metric, of those that can be paired."""
    from w2svd_bench.leaderboard.compare import compare  # on demand: it loads numpy, which listing does not need

    pair = [
        one.model_copy(update={"metrics": {name: one.metrics[name] for name in metrics if name in one.metrics}})
        for one in records
        if one.cell.label in (label, best) and one.cell.steps == steps
    ]
    try:
        found = compare(pair, label, best, [steps])
    except BenchError:  # nothing can be paired, which the caption says: the records were checked for all else
        return {}
    return {one.metric: one.verdict for one in found.differences}
