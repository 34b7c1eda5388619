"""Whether verdicts that were kept are of the records at hand: claims.json names the files that every atom rests on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from w2svd_bench.leaderboard.compare import Difference, outcome
from w2svd_bench.record import Record

_FILE = re.compile(r"(.+)-steps\d+-seed-?\d+-[0-9a-f]+\.json")  # as `Cell.id` names a record


class Cites(Protocol):
    """An atom, as far as this goes."""

    @property
    def files(self) -> Sequence[str]: ...

    @property
    def numbers(self) -> Mapping[str, Any] | None: ...


def is_outdated(atom: Cites, records: Sequence[Record]) -> bool:
    """Whether an atom rests on records that are not among these any more, or say something else by now.

    Claims may be judged over several folders together, so an atom of which nothing is here, not even other records of
    its labels, is of another folder.
    """
    here = {one.file_name: one for one in records}
    labels = {_label(name) for name in here}
    cited = [here[name] for name in atom.files if name in here]
    if len(cited) < len(atom.files):
        return bool(cited) or any(_label(name) in labels for name in atom.files)
    try:
        return bool(cited) and atom.numbers is not None and not _agree(atom.numbers, cited)
    except (KeyError, TypeError):  # numbers as another version told them
        return True


def _label(file: str) -> str | None:
    found = _FILE.fullmatch(file)
    return None if found is None else found[1]


def _agree(numbers: Mapping[str, Any], cited: Sequence[Record]) -> bool:
    """Whether the numbers of a difference, of peaks or of collapses are what the records tell."""
    by_label: dict[str, list[Record]] = {}
    for one in cited:
        by_label.setdefault(one.cell.label, []).append(one)
    if "bytes" in numbers:
        peaks = {label: sorted(one.training.peak_memory_bytes for one in ours) for label, ours in by_label.items()}
        return peaks == {label: sorted(told) for label, told in numbers["bytes"].items()}
    if "fisher_p" in numbers:
        known = {
            label: {str(one.cell.seed): one.training.health.get("collapsed_at") for one in ours}
            for label, ours in by_label.items()
        }
        return known == {side["label"]: side["collapsed_at"] for side in (numbers["who"], numbers["against"])}
    if "estimate" in numbers:
        now = _difference(numbers, cited)
        return (
            now is not None
            and now.n == numbers["n"]
            and all(math.isclose(value, numbers[side], rel_tol=1e-9) for side, value in (("a", now.a), ("b", now.b)))
        )
    return True  # of arithmetic


def _difference(numbers: Mapping[str, Any], cited: Sequence[Record]) -> Difference | None:
    """The same again, from the records as they are; None where there is none any more."""
    sides: dict[tuple[str, int], dict[int, Record]] = {}
    for one in cited:
        sides.setdefault((one.cell.label, one.cell.steps), {})[one.cell.seed] = one
    if len(sides) != 2:
        return None
    ours, theirs = sides.values()
    seeds = numbers["seeds"]
    # A reference row is cited once, and stands beside every seed.
    pairs = {seed: tuple(side.get(seed) or next(iter(side.values())) for side in (ours, theirs)) for seed in seeds}
    found = outcome(numbers["metric"], numbers["steps"], {seed: (a, b) for seed, (a, b) in pairs.items()})
    return found if isinstance(found, Difference) else None
