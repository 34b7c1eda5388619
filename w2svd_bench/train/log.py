"""The log of a run: one JSON object a line, and the means that go into it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FILE = "log.jsonl"


class Log:
    """Collects scalars update by update and writes their means; goes on after the iteration a run resumes at."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        self._path = folder / FILE
        self._values: dict[str, list[Any]] = defaultdict(list)
        kept = [entry for entry in read(folder) if entry["iteration"] <= resumed_at]
        self._path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def add(self, role: str, values: Mapping[str, torch.Tensor | float]) -> None:
        """Notes the scalars of one update, as ``role/name``."""
        for name, value in values.items():
            self._values[f"{role}/{name}"].append(value.detach() if isinstance(value, torch.Tensor) else value)

    def write(self, iteration: int, **extra: float) -> dict[str, float]:
        """Writes one line: the means since the last one, and ``extra``."""
        means = {name: float(sum(float(v) for v in values) / len(values)) for name, values in self._values.items()}
        entry = {"iteration": iteration, **means, **extra}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._values.clear()
        return entry


def read(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's log; a last line cut off by a kill is left out."""
    path = folder / FILE
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
