"""The questions that a claim is made of, each answered from records (or a plan) with its numbers and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.claims import (
    FAMILIES,
    Arithmetic,
    BetterClaim,
    Claim,
    CollapseClaim,
    MemoryClaim,
    Planned,
    Rival,
    Size,
)
from w2svd_bench.leaderboard.compare import LEVEL, Difference, outcome
from w2svd_bench.leaderboard.rows import REFERENCE_METHODS
from w2svd_bench.leaderboard.table import is_random
from w2svd_bench.record import Record, Score, TrainingCost
from w2svd_bench.uncertainty import Spread

Verdict = Literal[
    "holds",
    "fails",
    "undecided",
    "not measured",
    "holds by arithmetic, not measured",
    "fails by arithmetic, not measured",
    "undecided by arithmetic, not measured",
]
HOLDS_BY_PLAN: Verdict = "holds by arithmetic, not measured"
FAILS_BY_PLAN: Verdict = "fails by arithmetic, not measured"
UNDECIDED_BY_PLAN: Verdict = "undecided by arithmetic, not measured"
# Before this many updates of the generator a run's health can't be told: as in train/health.py, which loads torch.
WAIT = 100
SCALAR = 0.97  # as in train/health.py: above it alpha is but a factor
ENOUGH = 3  # seeds that have all to collapse before a method is said to collapse whatever another one does
_GB = 1e9
_SILENT = "no fake learned, or their version is older"


@dataclass(frozen=True)
class Need:
    """What a method needs by the plan's arithmetic.

    Attributes:
        gpus: the fewest, on GPUs with slack less memory, the stated one, and slack more; None: no number will do.
        alone: bytes at the peak if one GPU had to hold it all.
    """

    gpus: tuple[int | None, int | None, int | None]
    alone: float


Planner = Callable[[Arithmetic, Planned, Size], Need]


@dataclass(frozen=True)
class Atom:
    """One question of a claim and its answer.

    Attributes:
        asks: the question, as a statement that holds or not.
        why: the numbers in words, or the reason for which there are none.
        metric: the one that it was judged by; None where no metric was asked or could.
        numbers: what ``why`` tells, in full, for JSON.
        files: of the records that it rests on.
        remarks: what has to be said wherever the verdict is.
        p: of a true zero, two-sided: over prompts or over seeds, whichever is larger; None if nothing was compared.
        p_holm: the same after Holm's correction for all differences of the report.
        corrected: the verdict at that p.
    """

    asks: str
    verdict: Verdict
    why: str
    metric: str | None = None
    numbers: Mapping[str, Any] | None = None
    files: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    p: float | None = None
    p_holm: float | None = None
    corrected: Verdict | None = None


@dataclass(frozen=True)
class Health:
    """How the runs of one label fared: by seed, the update of the generator at which it collapsed, or None."""

    backbone: str
    label: str
    collapsed_at: Mapping[int, int | None]

    @property
    def collapsed(self) -> int:
        return sum(update is not None for update in self.collapsed_at.values())

    def __str__(self) -> str:
        at = ", ".join(f"seed {seed} at {at}" for seed, at in self.collapsed_at.items() if at is not None)
        return f"{self.label}: {self.collapsed} of {len(self.collapsed_at)} seeds collapsed{f' ({at})' if at else ''}"


@dataclass(frozen=True)
class Alpha:
    """Whether a strength of the LoRA in the real score does more than scale the matching gradient, for one label.

    Attributes:
        alpha: the strength, above 0.
        cosines: by seed, between v(1) - v(alpha) and v(1) - v(0) on generated samples, at the end of training.
    """

    backbone: str
    label: str
    alpha: float
    cosines: Mapping[int, float]

    @property
    def is_scalar(self) -> bool:
        """Whether it acts as a factor in every run, so that rows of different strengths don't rank them."""
        return min(self.cosines.values()) > SCALAR

    def __str__(self) -> str:
        low, high = min(self.cosines.values()), max(self.cosines.values())
        span = f"{low:.4f}" if len(self.cosines) == 1 else f"{low:.4f} to {high:.4f} over {len(self.cosines)} seeds"
        says = "acts as a scalar here" if self.is_scalar else "turns the matching gradient, in one run at least"
        return f"{self.label}: alpha {self.alpha:g} {says} (cosine {span})"


def atoms_of(claim: Claim, records: Sequence[Record], planner: Planner | None) -> Iterable[Atom]:
    """The atoms of a claim, judged over records of one backbone that can be compared; ``planner`` as in `judge`."""
    if isinstance(claim, BetterClaim):
        for steps in claim.steps:
            for rival in claim.against:
                for name in claim.metrics:
                    yield _better(claim, steps, rival, name, records)
    elif isinstance(claim, MemoryClaim):
        yield _peaks(claim, records)
        if claim.plan is not None:
            for who in claim.plan.who:
                for size in claim.plan.sizes:
                    yield _planned(claim.plan, who, size, planner)
    else:
        yield _collapse(claim, records)


# --- scores -----------------------------------------------------------------------------------------------------------


def _better(claim: BetterClaim, steps: int, rival: Rival, name: str, records: Sequence[Record]) -> Atom:
    other = rival.steps or steps
    word = {"better": "better than", "worse": "worse than"}[claim.direction]
    ours, theirs = _cells(records, claim.who, steps), _cells(records, rival.label, other)
    floor, their_floor = _floor(records, claim.who), _floor(records, rival.label, rival.steps)
    if floor is not None:  # beside every seed of the other one
        ours = dict.fromkeys(theirs, floor) if their_floor is None else {0: floor}
    if their_floor is not None:
        theirs = dict.fromkeys(ours, their_floor)
    who, against = (
        label if one is not None else f"{label} at steps {number}"
        for label, number, one in ((claim.who, steps, floor), (rival.label, other, their_floor))
    )
    asks = f"{who} is {word} {against} in {name}"
    lacking = [f"{label!r} at steps {number}" for label, number, by in (
        (claim.who, steps, floor or ours), (rival.label, other, their_floor or theirs)) if not by]  # fmt: skip
    pairs = {seed: (ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())}
    if not pairs:
        return Atom(asks, "not measured", f"no records of {' and '.join(lacking)}" if lacking else "no seed in common")
    files = tuple(dict.fromkeys(one.file_name for pair in pairs.values() for one in pair))
    reasons = []
    for metric in FAMILIES.get(name, (name,)):
        scores = [one.metrics.get(metric) for pair in pairs.values() for one in pair]
        if not any(scores):
            continue
        if any(isinstance(score, Score) and is_random(metric, score.flags) for score in scores):
            reasons.append(f"{metric} has random weights")
            continue
        found = outcome(metric, steps, pairs)
        if isinstance(found, Difference):
            left_out = sorted(ours.keys() ^ theirs.keys())
            cells = [cast(Score, score) for score in scores]
            return _compared(asks, claim.direction, found, cells, files, left_out)
        reasons.append(f"{metric}: {found.why}")
    why = "; ".join(reasons) or f"the records hold none of {', '.join(FAMILIES.get(name, (name,)))}"
    return Atom(asks, "not measured", why, files=files)


def _compared(
    asks: str, direction: str, found: Difference, scores: Sequence[Score], files: tuple[str, ...], left_out: list[int]
) -> Atom:
    verdict: Verdict = "undecided"
    if found.verdict != "undecided":
        verdict = "holds" if found.verdict == direction else "fails"
    seeds = found.spread.interval(LEVEL)
    told = f"{found.estimate.value:+.4g}, {found.estimate.low:.4g} to {found.estimate.high:.4g} over prompts"
    told += f", {seeds[0]:.4g} to {seeds[1]:.4g} over {found.spread.n} seeds" if seeds else ", 1 seed"
    remarks = [] if seeds else ["one training a side: said of these two runs, not of their methods"]
    remarks += [f"seed {', '.join(map(str, left_out))} left out: only one side has it"] if left_out else []
    return Atom(
        asks,
        verdict,
        f"{found.metric} {found.a:.4g} and {found.b:.4g}: {told}, n = {found.n}",
        found.metric,
        found.as_data(),
        files,
        (*remarks, *found.flags),
        p=max(_p(found.estimate.value, found.estimate.se, _degrees(scores)), _p_seeds(found.spread)),
    )


def _cells(records: Sequence[Record], label: str, steps: int) -> dict[int, Record]:
    return {one.cell.seed: one for one in records if one.cell.label == label and one.cell.steps == steps}


def _floor(records: Sequence[Record], label: str, steps: int | None = None) -> Record | None:
    """The record of a reference row, which is compared with every number of steps and every seed, as in `compare`.

    None where the label is none, or is asked for at steps that the row is not of.
    """
    found = [one for one in records if one.cell.label == label]
    if len(found) != 1 or found[0].cell.method not in REFERENCE_METHODS or steps not in (None, found[0].cell.steps):
        return None
    return found[0]


def _degrees(scores: Sequence[Score]) -> int:
    """Of freedom: groups of the jackknife - 1, or prompts - 1 of the clips that have a value in all records."""
    if scores[0].leave_out:
        return len(scores[0].leave_out) - 1
    values = zip(*(score.values for score in scores), strict=True)
    return len({prompt for prompt, row in zip(scores[0].prompts, values, strict=True) if None not in row}) - 1


def _p_seeds(spread: Spread) -> float:
    """0 for one seed, which says nothing: then the p over prompts is the larger one."""
    return 0.0 if spread.sd is None else _p(spread.mean, spread.sd / math.sqrt(spread.n), spread.n - 1)


def _p(value: float, se: float, degrees: int) -> float:
    """Of a true zero, two-sided, by Student's t."""
    from scipy.special import stdtr  # here, since importing it takes longer than rendering a table

    if se == 0:
        return 1.0 if value == 0 else 0.0
    return 2 * float(stdtr(degrees, -abs(value / se)))


# --- memory -----------------------------------------------------------------------------------------------------------


def _peaks(claim: MemoryClaim, records: Sequence[Record]) -> Atom:
    """Measured peaks: they say who needs less, and only of GPUs of one kind that trained the same clips in one way."""
    asks = f"{claim.who} trains with a lower measured peak than {claim.against}"
    runs = {label: _runs(records, label, _trained) for label in (claim.who, claim.against)}
    lacking = [repr(label) for label, found in runs.items() if not found]
    if lacking:
        return Atom(asks, "not measured", f"no records of trained {' and '.join(lacking)}")
    ours, theirs = runs.values()
    every = [*ours.values(), *theirs.values()]
    files = tuple(one.file_name for one in every)
    devices = sorted({one.training.device for one in every})
    if "" in devices:
        return Atom(asks, "not measured", "the records do not say on what device their runs were trained", files=files)
    if "cpu" in devices or len(devices) > 1:
        why = f"trained on {' and '.join(devices)}: the peak of a process on a CPU says nothing of GPUs"
        why = why if "cpu" in devices else f"trained on different devices: {' and '.join(devices)}"
        return Atom(asks, "not measured", why, files=files)
    ways = {str({key: _at(one.config, key) for key in _WAY}) for one in every}
    if len(ways) > 1:
        return Atom(asks, "not measured", f"trained in different ways: {' and '.join(sorted(ways))}", files=files)
    unknown = [
        _of_seeds(label, side, blind)
        for label, side in runs.items()
        if (blind := [seed for seed, one in side.items() if not one.training.peak_memory_bytes])
    ]
    if unknown:
        return Atom(asks, "not measured", f"no peak was measured of {' and '.join(unknown)}", files=files)
    peaks = [[one.training.peak_memory_bytes for one in side.values()] for side in (ours, theirs)]
    verdict: Verdict = "undecided"
    if max(peaks[0]) < min(peaks[1]):
        verdict = "holds"
    elif min(peaks[0]) >= max(peaks[1]):
        verdict = "fails"
    why = f"{max(peaks[0]) / _GB:.4g} and {max(peaks[1]) / _GB:.4g} GB at most on {devices[0]}"
    numbers = {"bytes": {claim.who: peaks[0], claim.against: peaks[1]}, "device": devices[0]}
    remarks = (f"{claim.against} was trained to its end: it did not run out of memory here",)
    return Atom(asks, verdict, why, numbers=numbers, files=files, remarks=remarks)


_WAY = ("video", "engine", "training.batch_size", "training.micro_batch")


def _at(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _planned(ask: Arithmetic, who: Planned, size: Size, planner: Planner | None) -> Atom:
    """By arithmetic: where fewer GPUs are enough, there is a machine on which the one fits and the other does not."""
    where = f"{ask.backbone} at {size}, GPUs of {ask.gigabytes:g} GB"
    asks = f"{who} fits on fewer GPUs than {ask.against}: {where}"
    if planner is None:
        return Atom(asks, "not measured", "the plan was not asked")
    ours, theirs = planner(ask, who, size), planner(ask, ask.against, size)
    answers = {_fewer(a, b) for a, b in zip(ours.gpus, theirs.gpus, strict=True)}
    verdict = UNDECIDED_BY_PLAN
    if len(answers) == 1 and theirs.gpus[1] != 1:
        verdict = HOLDS_BY_PLAN if answers == {True} else FAILS_BY_PLAN
    told = [f"{one.alone / _GB:.0f} GB at the peak if one GPU held all, fits on {_told(one.gpus[1])}"
            for one in (ours, theirs)]  # fmt: skip
    why = f"{told[0]}; {ask.against.method}: {told[1]}"
    if theirs.gpus[1] == 1:
        why += "; where one GPU is enough there is nothing to end"
    elif verdict == UNDECIDED_BY_PLAN:
        why += f"; with {ask.slack:.0%} more or less memory a GPU the answer is another, and the plan is no surer"
    return Atom(asks, verdict, why, numbers={"who": asdict(ours), "against": asdict(theirs), "slack": ask.slack})


def _fewer(ours: int | None, theirs: int | None) -> bool:
    return ours is not None and (theirs is None or ours < theirs)


def _told(gpus: int | None) -> str:
    return "no number of GPUs" if gpus is None else f"{gpus} GPU{'s' if gpus > 1 else ''}"


# --- collapse ---------------------------------------------------------------------------------------------------------


def _collapse(claim: CollapseClaim, records: Sequence[Record]) -> Atom:
    """By the share of seeds that collapsed, under stress where both have such runs."""
    labels, where = (claim.who, claim.against), "the normal recipe"
    remarks: tuple[str, ...] = ()
    if claim.stress is not None:
        stressed = (claim.stress.who, claim.stress.against)
        found = [health_of(records, label) for label in stressed]
        if all(one.collapsed_at for one, _, _ in found):
            labels, where = stressed, f"the recipe {claim.stress.name!r}"
        else:
            why = f"no records of both {stressed[0]!r} and {stressed[1]!r}"
            if all(_runs(records, label, _trained) for label in stressed):
                why = "; ".join(reason for one, _, reason in found if not one.collapsed_at)
            remarks = (f"{why}: the stress recipe was not judged",)
    asks = f"{labels[0]} does not collapse where {labels[1]} does, under {where}"
    (ours, our_files, our_why), (theirs, their_files, their_why) = (health_of(records, label) for label in labels)
    files = (*our_files, *their_files)
    lacking = [why for why in (our_why, their_why) if why]
    if lacking:  # of some seeds, too: a share of the others would be another number
        known = [str(one) for one in (ours, theirs) if one.collapsed_at]
        return Atom(asks, "not measured", "; ".join([*lacking, *known]), files=files, remarks=remarks)
    counts = [(one.collapsed, len(one.collapsed_at) - one.collapsed) for one in (ours, theirs)]
    p = _fisher(*counts)
    verdict: Verdict = "undecided"
    if not ours.collapsed and not theirs.collapsed:
        remarks += ("no collapse seen in either",)
    elif p < 1 - LEVEL and not ours.collapsed:
        verdict = "holds"
    elif (ours.collapsed >= ENOUGH and not counts[0][1]) or (p < 1 - LEVEL and _share(ours) > _share(theirs)):
        verdict = "fails"
    numbers = {"who": asdict(ours), "against": asdict(theirs), "fisher_p": p}
    return Atom(asks, verdict, f"{ours}; {theirs}; Fisher's exact p = {p:.2g}", None, numbers, files, remarks)


def _share(one: Health) -> float:
    return one.collapsed / len(one.collapsed_at)


def _fisher(ours: tuple[int, int], theirs: tuple[int, int]) -> float:
    """Fisher's exact test, two-sided, of (collapsed, not collapsed) against the same."""
    from scipy.stats import fisher_exact  # here, since importing it takes a second

    return float(fisher_exact([ours, theirs]).pvalue)


def health_of(records: Sequence[Record], label: str) -> tuple[Health, tuple[str, ...], str]:
    """The runs of a label whose health can be told, their files, and why that of the others can't, or none are there.

    The reason names its seeds, unless it is that of all; it is empty where the health of all trained runs is known.
    """
    trained = _runs(records, label, _trained)
    told = _runs(records, label, _tells)
    long = {seed: one for seed, one in told.items() if one.training.updates.get("generator", 0) >= WAIT}
    every = trained | told
    unknown = (
        (every.keys() - told.keys(), f"the records say nothing of their runs' health: {_SILENT}"),
        (told.keys() - long.keys(), f"fewer than {WAIT} updates, before which health can't be told"),
    )
    why = "; ".join(f"{_of_seeds(label, every, seeds)}: {reason}" for seeds, reason in unknown if seeds)
    why = why if every else f"no records of trained {label!r}"
    at = {seed: one.training.health["collapsed_at"] for seed, one in long.items()}
    plain = {seed: None if update is None else int(update) for seed, update in at.items()}
    backbone = records[0].cell.backbone
    return Health(backbone, label, plain), tuple(one.file_name for one in long.values()), why


def _of_seeds(label: str, every: Collection[int], seeds: Collection[int]) -> str:
    """A label and which of its seeds are meant; these are left away where all are."""
    return repr(label) if len(seeds) == len(every) else f"{label!r} (seed {', '.join(map(str, sorted(seeds)))})"


def alpha_of(records: Sequence[Record], label: str) -> Alpha | None:
    """What the runs of a label say of their alpha; None where they have none above 0, or it was not measured."""
    told = _runs(records, label, lambda one: one.training.health.get("alpha_cosine") is not None)
    if not told:
        return None
    cosines = {seed: cast(float, one.training.health["alpha_cosine"]) for seed, one in told.items()}
    alpha = cast(float, next(iter(told.values())).training.health["alpha"])
    return Alpha(records[0].cell.backbone, label, alpha, cosines)


def _tells(one: Record) -> bool:
    """Whether a collapse could have been seen: the loss of a fake rings the alarm, and not every run has one."""
    health = one.training.health
    return "collapsed_at" in health and health.get("fake_loss", 0.0) is not None


def _trained(one: Record) -> bool:
    return one.training.iterations > 0


def _runs(records: Sequence[Record], label: str, fit: Callable[[Record], bool]) -> dict[int, Record]:
    """One record of every run, by seed, of those that fit: a run's records of other steps say the same of it."""
    found: dict[int, Record] = {}
    for one in records:
        if one.cell.label == label and fit(one):
            first = found.setdefault(one.cell.seed, one)
            if not _same(first.training, one.training):
                raise BenchError(
                    f"seed {one.cell.seed} of {label!r} is not one run",
                    f"{first.file_name} and {one.file_name} differ in what they say of its training",
                    "evaluate both again, from the same run",
                )
    return found


def _same(one: TrainingCost, other: TrainingCost) -> bool:
    """Whether two records can be of one run; one of an older version says nothing of its health."""
    known = bool(one.health and other.health)
    fields = set() if known else {"health"}
    return one.model_dump(exclude=fields) == other.model_dump(exclude=fields)
