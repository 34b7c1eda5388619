"""Two methods on the same prompts: the paired differences of their scores, from records alone.

What is hard about a prompt is hard for both, so a difference is often far surer than the two scores are. Training seeds
are kept apart: a difference is taken seed by seed, the interval over prompts is that of the mean of these differences,
and their spread over seeds stands beside it. Axes: S seeds, N clips, G groups of the jackknife.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.leaderboard.rows import REFERENCE_METHODS, ordered, refuse_duplicates, refuse_mixtures
from w2svd_bench.record import Direction, Record, Score, SkippedScore
from w2svd_bench.uncertainty import Estimate, Spread, jackknife_interval, over_seeds, paired_bootstrap

LEVEL = 0.95
Verdict = Literal["better", "worse", "undecided"]
_Pairs = dict[int, tuple[Record, Record]]  # by seed


@dataclass(frozen=True)
class Difference:
    """A metric of A minus that of B at a number of steps.

    Attributes:
        steps: None where both are reference rows.
        n: clips that both have a value of.
        seeds: of training, that both have; a reference row stands beside every seed.
        a, b: the two scores, means over seeds.
        estimate: of the mean difference over seeds, with its interval over prompts.
        spread: of the differences over seeds.
        flags: what has to be said of either score.
    """

    metric: str
    direction: Direction
    steps: int | None
    n: int
    seeds: tuple[int, ...]
    a: float
    b: float
    estimate: Estimate
    spread: Spread
    flags: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """What can be said of A: decided where the interval over prompts leaves out zero and, of several seeds, the
        interval over seeds does as well, to the same side.
        """
        intervals = [(self.estimate.low, self.estimate.high)]
        seeds = self.spread.interval(LEVEL)
        if seeds is not None:
            intervals.append(seeds)
        if all(low > 0 for low, _ in intervals):
            return "better" if self.direction == "up" else "worse"
        if all(high < 0 for _, high in intervals):
            return "better" if self.direction == "down" else "worse"
        return "undecided"

    def as_data(self) -> dict[str, Any]:
        """For JSON: plain numbers, the interval over seeds and the verdict included."""
        seeds = self.spread.interval(LEVEL) or (None, None)
        spread = {"sd": self.spread.sd, "n": self.spread.n, "low": seeds[0], "high": seeds[1]}
        return asdict(self) | {"spread": spread, "verdict": self.verdict}


@dataclass(frozen=True)
class Missing:
    """A metric and steps at which there is no difference, and why."""

    metric: str
    steps: int | None
    why: str


@dataclass(frozen=True)
class Comparison:
    """A against B: differences by metric, then steps; ``left_out`` names the seeds that only one of them has, and
    ``unequal`` the steps at which they take other numbers of network evaluations.
    """

    a: str
    b: str
    backbone: str
    eval_set: str
    differences: tuple[Difference, ...]
    missing: tuple[Missing, ...]
    left_out: tuple[str, ...]
    unequal: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        return asdict(self) | {"level": LEVEL, "differences": [one.as_data() for one in self.differences]}


def compare(records: Iterable[Record], a: str, b: str, steps: Sequence[int] | None = None) -> Comparison:
    """The paired differences ``a - b`` of all metrics that both have.

    Args:
        records: of one backbone; those of other labels don't matter.
        a, b: labels, as tables call the methods. A reference row (real clips, the teacher) is compared with every
            number of steps of the other side.
        steps: only these.

    Raises:
        BenchError: a label is not there, or both are the same; records can't be compared (another eval set, metric,
            reference); nothing was evaluated at the same steps and seed; or no score can be paired, as those of
            records that an older version left.
    """
    found = list(records)
    labels = {one.cell.label for one in found}
    for label in (a, b):
        if label not in labels:
            raise unknown_name("method", label, labels)
    if a == b:
        raise BenchError(f"{a!r} can't be compared with itself", "both names are the same", "name two methods")
    chosen = ordered([one for one in found if one.cell.label in (a, b)])
    backbones = sorted({one.cell.backbone for one in chosen})
    if len(backbones) > 1:
        why = f"the records are of several backbones: {', '.join(backbones)}"
        raise BenchError(f"{a!r} and {b!r} can't be compared", why, "point at a folder with records of one backbone")
    refuse_duplicates(chosen)
    refuse_mixtures(chosen)
    ours, theirs = ([one for one in chosen if one.cell.label == label] for label in (a, b))
    cells, left_out = _paired(ours, theirs, steps)
    metrics = sorted({name for one in chosen for name in one.metrics})
    outcomes = [outcome(name, number, pairs) for name in metrics for number, pairs in cells.items()]
    differences = tuple(one for one in outcomes if isinstance(one, Difference))
    missing = tuple(one for one in outcomes if isinstance(one, Missing))
    if not differences:
        reasons: dict[str, dict[str, None]] = {}
        for one in missing:
            reasons.setdefault(one.why, {})[one.metric] = None
        both = [pair for pairs in cells.values() for pair in pairs.values() if all(map(_has_scores, pair))]
        files = sorted({record.file_name for pair in both for record in pair})
        anew = f"to have them measured anew, remove {', '.join(files)} and repeat the `w2svd-bench eval` command"
        raise BenchError(
            f"no score of {a!r} and {b!r} can be paired",
            "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items()) or "the records hold no scores",
            anew if files else "compare them at a number of steps at which both have scores (--steps)",
        )
    unequal = tuple(f"at steps {number}, {told}" for number, pairs in cells.items() if (told := _unequal(pairs)))
    return Comparison(a, b, backbones[0], chosen[0].cell.eval_set, differences, missing, left_out, unequal)


def _unequal(pairs: _Pairs) -> str:
    """How many network evaluations each side takes, where both are sampled and they differ; else ""."""
    one, other = next(iter(pairs.values()))
    if {one.cell.method, other.cell.method} & set(REFERENCE_METHODS) or one.sampling.nfe == other.sampling.nfe:
        return ""
    return " and ".join(f"{side.cell.label} takes {side.sampling.nfe}" for side in (one, other))


def _has_scores(record: Record) -> bool:
    return any(isinstance(one, Score) for one in record.metrics.values())


_Found = tuple[list[float], list[float], Estimate, int]  # of A and of B by seed, their mean difference, clips


def _paired(
    ours: Sequence[Record], theirs: Sequence[Record], steps: Sequence[int] | None
) -> tuple[dict[int | None, _Pairs], tuple[str, ...]]:
    """The two records of every seed, by steps; and the cells that are left out since only one side has their seed."""
    a, b = ({(one.cell.steps, one.cell.seed): one for one in side} for side in (ours, theirs))
    a_floor, b_floor = (len(side) == 1 and side[0].cell.method in REFERENCE_METHODS for side in (ours, theirs))
    if a_floor and b_floor:
        return {None: {0: (ours[0], theirs[0])}}, ()
    if a_floor:
        a = dict.fromkeys(b, ours[0])
    elif b_floor:
        b = dict.fromkeys(a, theirs[0])
    cells: dict[int | None, _Pairs] = {}
    for number, seed in sorted(a.keys() & b.keys()):
        if steps is None or number in steps:
            cells.setdefault(number, {})[seed] = (a[number, seed], b[number, seed])
    lacking = [number for number in steps or () if number not in cells]
    if lacking or not cells:
        have = " and ".join(f"{side[0].cell.label!r} at {_told(by)}" for side, by in ((ours, a), (theirs, b)))
        raise BenchError(
            f"there is nothing to compare{f' at steps {lacking[0]}' if lacking else ''}",
            f"both sides need records of the same steps and seed, and there are {have}",
            "evaluate both at the same steps: w2svd-bench eval --steps 1 4 28",
        )
    alone = [(one.cell.label, *key) for key, one in (a | b).items() if (key in a) != (key in b) and key[0] in cells]
    return cells, tuple(f"{label} at steps {number}, seed {seed}" for label, number, seed in sorted(alone))


def _told(cells: Iterable[tuple[int, int]]) -> str:
    by_steps: dict[int, list[int]] = {}
    for number, seed in sorted(cells):
        by_steps.setdefault(number, []).append(seed)
    return ", ".join(f"steps {number} (seed {', '.join(map(str, seeds))})" for number, seeds in by_steps.items())


def outcome(metric: str, steps: int | None, pairs: _Pairs) -> Difference | Missing:
    """The paired difference in one metric of records that belong together, or why there is none."""
    scores: list[tuple[Score, Score]] = []
    for one, other in pairs.values():
        a, b = one.metrics.get(metric), other.metrics.get(metric)
        if not isinstance(a, Score) or not isinstance(b, Score):
            lacking, score = (other, b) if isinstance(a, Score) else (one, a)
            reason, label = score.skipped if isinstance(score, SkippedScore) else "not measured", lacking.cell.label
            return Missing(metric, steps, reason if reason.startswith(f"{label} ") else f"{label}: {reason}")
        scores.append((a, b))
    both = [score for pair in scores for score in pair]
    if all(score.leave_out for score in both):
        found = _of_sets(scores)
    elif all(score.values for score in both):
        found = _of_clips(scores)
    else:
        found = "a record holds neither leave-out values nor those of each clip, as those of older versions"
    if isinstance(found, str):
        return Missing(metric, steps, found)
    a_S, b_S, estimate, n = found
    return Difference(
        metric=metric,
        direction=both[0].direction,
        steps=steps,
        n=n,
        seeds=tuple(pairs),
        a=fmean(a_S),
        b=fmean(b_S),
        estimate=estimate,
        spread=over_seeds([a - b for a, b in zip(a_S, b_S, strict=True)]),
        flags=tuple(dict.fromkeys(flag for score in both for flag in score.flags)),
    )


def _of_sets(scores: Sequence[tuple[Score, Score]]) -> _Found | str:
    """By the jackknife: the mean over seeds of a difference is a statistic like any other, so its leave-out values are
    the means of theirs.
    """
    both = [score for pair in scores for score in pair]
    told = {score.groups for score in both if score.groups}  # older records don't say how many clips a group has
    if len({(score.n, len(score.leave_out)) for score in both}) > 1 or len(told) > 1:
        return "the jackknives are not of the same clips"
    a_S, b_S = ([pair[side].value for pair in scores] for side in (0, 1))
    a_SG, b_SG = (np.array([pair[side].leave_out for pair in scores]) for side in (0, 1))
    sizes = next(iter(told), None)
    estimate = jackknife_interval(fmean(a_S) - fmean(b_S), (a_SG - b_SG).mean(axis=0), LEVEL, sizes)
    return a_S, b_S, estimate, scores[0][0].n


def _of_clips(scores: Sequence[tuple[Score, Score]]) -> _Found | str:
    """By the bootstrap over prompts, of the clips that have a value on both sides and for all seeds."""
    prompts = scores[0][0].prompts
    if any(score.prompts != prompts or len(score.values) != len(prompts) for pair in scores for score in pair):
        return "the values are not of the same clips, or it is not known of which prompts"
    values_2SN = np.array([[pair[side].values for pair in scores] for side in (0, 1)], dtype=np.float64)  # None: NaN
    valid_N = np.asarray(np.isfinite(values_2SN).all(axis=(0, 1)))
    kept = [prompt for prompt, valid in zip(prompts, valid_N, strict=True) if valid]
    if len(set(kept)) < 2:
        return f"both have values of clips of {len(set(kept))} prompt(s) only"
    a_SN, b_SN = values_2SN[..., valid_N]
    estimate = paired_bootstrap(a_SN.mean(axis=0), b_SN.mean(axis=0), kept, level=LEVEL)
    return a_SN.mean(axis=1).tolist(), b_SN.mean(axis=1).tolist(), estimate, len(kept)
