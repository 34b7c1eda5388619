"""Numbers that a public source states of a method: ``reported.yaml`` beside the method's module, shown beside ours.

A list, one entry a number:

    - metric: fvd[cdfvd]          # as our tables call it: the same network and the same convention
      backbone: hunyuan
      steps: 4
      value: "123.40"             # as it stands there, with its digits
      source: https://example.org/paper
      note: table 2; other prompts than ours
      label: mymethod             # may be left out: the method's own name

It is for numbers that can be held against ours, and for what a source states: an estimate from a figure is none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import Field

from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS

FILE = "reported.yaml"


class Reported(pydantic.BaseModel):
    """One number of a public source; ``value`` keeps its digits, ``label`` is the row beside which it stands."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(min_length=1)
    backbone: str = Field(min_length=1)
    steps: Annotated[int, Field(ge=1)]
    value: Annotated[str, Field(pattern=r"^-?\d+(\.\d+)?$")]
    source: Annotated[str, Field(pattern=r"^https?://[^\s/]+\.[^\s]+$")]
    note: str = ""
    label: str

    @pydantic.field_validator("value", mode="before")
    @classmethod
    def _with_its_digits(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value

    @property
    def told(self) -> str:
        """The footnote: where the number stands, and what to know of it."""
        return f"reported by {self.source}" + (f": {self.note}" if self.note else "")


def read_reported(path: Path, method: str) -> list[Reported]:
    """The numbers of one file.

    Args:
        path: of the file.
        method: its name, the label of entries that give none.

    Raises:
        BenchError: the file can't be read, an entry is not as above, or a number is there twice.
    """
    what, cure = f"{path} can't be used", "write entries as the module w2svd_bench.leaderboard.reported shows"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BenchError(what, f"it is not readable as YAML: {error}", cure) from error
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise BenchError(what, "it is not a list of entries", cure)
    found: dict[tuple[str, str, int, str], Reported] = {}
    for i, entry in enumerate(data, start=1):
        try:
            one = Reported.model_validate({"label": method} | entry)
        except pydantic.ValidationError as error:
            problems = [f"{'.'.join(map(str, each['loc'])) or 'entry'}: {each['msg']}" for each in error.errors()]
            raise BenchError(what, f"entry {i}: {'; '.join(problems)}", cure) from error
        key = (one.label, one.backbone, one.steps, one.metric)
        if key in found:
            raise BenchError(what, f"entry {i} states {one.metric} at steps {one.steps} a second time", "keep one")
        found[key] = one
    return list(found.values())


def reported_of(methods: Iterable[str]) -> list[Reported]:
    """What the files beside the installed methods state. Imports no method's module; a method may have no file.

    Args:
        methods: names; those that are not installed (another machine's, a reference row's) have nothing to add.

    Raises:
        BenchError: a method's package can't be imported, or its file is not as it should be.
    """
    modules = {entry.name: entry.module for entry in metadata.entry_points(group=METHODS.group)}
    found: list[Reported] = []
    for name in sorted(set(methods) & modules.keys()):
        try:
            spec = importlib.util.find_spec(modules[name])
        except Exception as error:  # the packages that hold it are imported, and those may do anything
            why = f"{modules[name]}: {type(error).__name__}: {error}"
            raise BenchError(f"method {name!r} can't be found", why, "mend or uninstall its package") from error
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).with_name(FILE)
            found += read_reported(path, name) if path.is_file() else []
    return found
