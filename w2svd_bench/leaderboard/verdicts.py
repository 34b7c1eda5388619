"""Claims judged over records: taken apart into atoms, each with its numbers and the files that they came from.

Scores are judged by the paired differences of `compare`. What no record holds is "not measured", never a guess, and
what only `w2svd-bench plan` says is called so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.atoms import (
    FAILS_BY_PLAN,
    HOLDS_BY_PLAN,
    UNDECIDED_BY_PLAN,
    Alpha,
    Atom,
    Health,
    Planner,
    Verdict,
    alpha_of,
    atoms_of,
    health_of,
)
from w2svd_bench.leaderboard.claims import Claim, Claims
from w2svd_bench.leaderboard.compare import LEVEL
from w2svd_bench.leaderboard.rows import ordered, refuse_duplicates, refuse_mixtures
from w2svd_bench.record import Record

RULE = (
    "A claim fails if one of its atoms fails, holds if all that were measured hold, and is undecided otherwise. Where "
    "nothing was measured, the plan's arithmetic answers in the same way, and the verdict says so."
)


@dataclass(frozen=True)
class Judged:
    """A claim on one backbone; ``counts`` say how many of its atoms have which verdict."""

    id: str
    method: str
    kind: str
    says: str
    source: str
    backbone: str
    verdict: Verdict
    counts: Mapping[str, int]
    atoms: tuple[Atom, ...]


@dataclass(frozen=True)
class Report:
    """All claims on all backbones.

    Attributes:
        differences: how many were judged.
        health: how the runs fared that tell it; alphas: what their strengths do.
    """

    judged: tuple[Judged, ...]
    differences: int
    health: tuple[Health, ...]
    alphas: tuple[Alpha, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        told = [f"{one.backbone}, {one}" for one in self.health] + [f"{one.backbone}, {one}" for one in self.alphas]
        return asdict(self) | {"rule": RULE, "level": LEVEL, "told": told}


def judge(records: Iterable[Record], files: Sequence[Claims], planner: Planner | None = None) -> Report:
    """Judges every claim on every backbone that there are records of.

    Args:
        planner: answers what the plan of a method says; None: the arithmetic stays unasked, and is "not measured".

    Raises:
        BenchError: there are no records; a cell is there twice, or records of one backbone can't be compared; or two
            records of one run disagree on its health.
    """
    found = ordered(list(records))
    if not found:
        raise BenchError("no claim can be judged", "no records were found", "run `w2svd-bench eval` first")
    refuse_duplicates(found)
    refuse_mixtures(found)
    judged, health, alphas = [], [], []
    for backbone in sorted({one.cell.backbone for one in found}):
        ours = [one for one in found if one.cell.backbone == backbone]
        labels = sorted({one.cell.label for one in ours})
        health += [health_of(ours, label)[0] for label in labels]
        alphas += [one for label in labels if (one := alpha_of(ours, label)) is not None]
        for file in files:
            for claim in file.claims:
                judged.append(_judged(file.method, claim, backbone, tuple(atoms_of(claim, ours, planner))))
    return _corrected(Report(tuple(judged), 0, tuple(one for one in health if one.collapsed_at), tuple(alphas)))


def compound(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim from those on its atoms: see `RULE`."""
    found = set(verdicts)
    measured = found & {"holds", "fails", "undecided"}
    if "fails" in measured:
        return "fails"
    if measured:
        return "holds" if measured == {"holds"} else "undecided"
    for verdict in (FAILS_BY_PLAN, UNDECIDED_BY_PLAN, HOLDS_BY_PLAN):
        if verdict in found:
            return verdict
    return "not measured"


def holm(values: Sequence[float]) -> list[float]:
    """P-values after Holm's correction (Holm 1979, "A simple sequentially rejective multiple test procedure")."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def _judged(method: str, claim: Claim, backbone: str, atoms: tuple[Atom, ...]) -> Judged:
    verdicts = [one.verdict for one in atoms]
    said = (claim.id, method, claim.kind, claim.says, claim.source)
    return Judged(*said, backbone, compound(verdicts), dict(Counter(verdicts)), atoms)


def _corrected(report: Report) -> Report:
    """The report with the corrected verdicts; a difference that two claims ask for is counted once."""
    p_values = {(one.backbone, atom.asks): atom.p for one in report.judged for atom in one.atoms if atom.p is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))

    def mend(backbone: str, atom: Atom) -> Atom:
        if atom.p is None:
            return atom
        p = adjusted[backbone, atom.asks]
        return replace(atom, p_holm=p, corrected=atom.verdict if p < 1 - LEVEL else "undecided")

    judged = (replace(one, atoms=tuple(mend(one.backbone, atom) for atom in one.atoms)) for one in report.judged)
    return replace(report, judged=tuple(judged), differences=len(p_values))
