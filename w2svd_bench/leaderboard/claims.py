"""Claims that were made for a method, as data: ``claims.yaml`` beside the method's module, judged over records.

    method: mymethod
    claims:
      - id: beats-euler
        kind: better                  # or memory, or collapse
        says: At one step it is better than Euler, and even than 28 steps of it, in FID.
        source: https://example.org/paper, abstract
        who: mymethod                 # labels, as tables call the methods
        against: [{label: euler}, {label: euler, steps: 28}]    # without steps: as many as `who` takes
        steps: [1]
        metrics: [fid]                # a family (`FAMILIES`), or one metric by its name in tables

A claim is taken apart into atoms, each one question that records answer or do not; `verdicts` says how each is judged.
A file states what was claimed in words of one's own and where: it holds no number that was not measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import yaml
from pydantic import Field

from w2svd_bench.config import Frozen, validated
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS

FILE = "claims.yaml"
# What a paper calls a metric, and what may stand for it here, best first: the first that can be paired is the judge,
# and the verdict names it. The order is fixed, so that nobody picks a metric by its outcome.
FAMILIES = {
    "fid": ("fid", "fid[clean]", "fid[mini]"),
    "kid": ("kid", "kid[clean]"),
    "fvd": ("fvd", "fvd[videogpt]", "fvd[cdfvd]", "fvd[mini]"),
    "vbench": ("vbench.quality",),
}
Text = Annotated[str, Field(min_length=1)]
Number = Annotated[int, Field(ge=1)]


class Rival(Frozen):
    """Whom a claim is against; without ``steps`` it takes as many as the one that is claimed to be better."""

    label: Text
    steps: Number | None = None


class _Claim(Frozen):
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    says: Text
    source: Text
    who: Text


class BetterClaim(_Claim):
    """That a method's scores are better (or, against itself, worse) than others'."""

    kind: Literal["better"]
    against: Annotated[tuple[Rival, ...], Field(min_length=1)]
    steps: Annotated[tuple[Number, ...], Field(min_length=1)]
    metrics: Annotated[tuple[Text, ...], Field(min_length=1)]
    direction: Literal["better", "worse"] = "better"


class Planned(Frozen):
    """A method as `w2svd-bench plan` is asked about it; ``set`` are overrides of its recipe."""

    method: Text
    set: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} ({', '.join(self.set)})" if self.set else f"{self.method} (its recipe)"


class Size(Frozen):
    """Pixels and frames of the clips."""

    height: Number
    width: Number
    num_frames: Number

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}"


class Arithmetic(Frozen):
    """What to plan: how many GPUs of ``gigabytes`` (1e9 bytes) each of ``who`` needs, and ``against``.

    A plan is no measurement: an answer counts where it is the same with ``slack`` more and less memory a GPU.
    """

    backbone: Text
    gigabytes: Annotated[float, Field(gt=0)]
    slack: Annotated[float, Field(ge=0, lt=1)] = 0.1
    sizes: Annotated[tuple[Size, ...], Field(min_length=1)]
    who: Annotated[tuple[Planned, ...], Field(min_length=1)]
    against: Planned


class MemoryClaim(_Claim):
    """That a method trains where another runs out of memory: by measured peaks, and by the plan's arithmetic."""

    kind: Literal["memory"]
    against: Text
    plan: Arithmetic | None = None


class Stress(Frozen):
    """Labels of runs under a recipe that is meant to break them; ``name`` is what the recipe is called."""

    name: Text
    who: Text
    against: Text


class CollapseClaim(_Claim):
    """That a method does not collapse where another does; judged under stress where such runs were recorded."""

    kind: Literal["collapse"]
    against: Text
    stress: Stress | None = None


Claim = Annotated[BetterClaim | MemoryClaim | CollapseClaim, Field(discriminator="kind")]


class Claims(Frozen):
    """One file."""

    method: Text
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @pydantic.field_validator("claims")
    @classmethod
    def _named_apart(cls, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        ids = [one.id for one in claims]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"the id {', '.join(twice)} stands twice")
        return claims


def read_claims(path: Path) -> Claims:
    """One file; raises `BenchError` where it can't be read or is not as above, naming every key that is wrong."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BenchError(f"{path} can't be used", f"it is not readable as YAML: {error}", "check the path") from error
    if not isinstance(data, dict):
        raise BenchError(f"{path} can't be used", "it is not keys and values", "write it as docs/claims.md shows")
    return validated(Claims, data, str(path))


def find_claims(methods: Sequence[str] | None = None) -> list[Path]:
    """The files beside the installed methods, sorted. Imports no method's module; a method may have no file.

    Args:
        methods: only of these; None for all.

    Raises:
        BenchError: a name is unknown, or the package of a method can't be imported.
    """
    return METHODS.files_beside(FILE, methods)
