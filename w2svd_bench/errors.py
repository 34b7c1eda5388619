"""One exception for everything a user can mend: it says what went wrong, why, and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Raised for a mistake a user can mend; the command line prints it without a traceback.

    Args:
        what: what went wrong, as one clause.
        why: the cause.
        cure: what to do about it; an exact command where there is one.
    """

    def __init__(self, what: str, why: str, cure: str) -> None:
        self.what, self.why, self.cure = what, why, cure
        super().__init__(f"{what}\n  why:  {why}\n  cure: {cure}")


class UnsupportedSteps(BenchError):
    """Raised by `Method.sampler` for a number of steps at which the method can't be sampled: a dash in the tables."""


class NoRecipe(BenchError):
    """Raised by `Method.recipe` where a method has none for a backbone."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> BenchError:
    """The error for a name that is not among ``known``, with the nearest known one as the cure."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]!r}? " if near else ""
    return BenchError(
        f"unknown {kind} {name!r}", f"it is none of: {', '.join(names) or '(none)'}", f"{cure}use one of these"
    )
