"""The log and the curves of a run: one JSON object a line, and the means that go into the log."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from w2svd_bench.record import write_atomically
from w2svd_bench.world import ALONE, World

FILE, CURVES = "log.jsonl", "curves.jsonl"


class Log:
    """Collects scalars update by update and writes their means; goes on after the iteration a run resumes at.

    A scalar is a mean over the samples it was computed from, so what is written is the mean over the micro batches and
    processes that gave one. The leading process writes.
    """

    def __init__(self, folder: Path, resumed_at: int, world: World = ALONE) -> None:
        self._folder, self._world = folder, world
        self._values: dict[str, list[tuple[Any, float]]] = defaultdict(list)
        if world.lead:
            rewind(folder, resumed_at)

    def add(self, role: str, values: Mapping[str, torch.Tensor | float], weight: float = 1.0) -> None:
        """Notes the scalars of one update, as ``role/name``; ``weight`` is the share of the batch they come from."""
        for name, value in values.items():
            kept = value.detach() if isinstance(value, torch.Tensor) else value
            self._values[f"{role}/{name}"].append((kept, weight))

    def write(self, iteration: int, peak_memory_bytes: int, **extra: float) -> dict[str, float]:
        """Writes one line, all processes together: the means since the last one, the highest peak, and ``extra``."""
        sums = {
            name: (sum(float(value) * weight for value, weight in values), sum(weight for _, weight in values))
            for name, values in self._values.items()
        }
        self._values.clear()
        everyones = self._world.gather((sums, peak_memory_bytes))
        names = dict.fromkeys(name for theirs, _ in everyones for name in theirs)
        means = {}
        for name in names:
            found = [theirs[name] for theirs, _ in everyones if name in theirs]
            means[name] = sum(total for total, _ in found) / sum(weight for _, weight in found)
        entry = {"iteration": iteration, **means, **extra, "peak_memory_bytes": max(peak for _, peak in everyones)}
        if self._world.lead:
            append(self._folder, entry)
        return entry


def read(folder: Path, file: str = FILE) -> list[dict[str, Any]]:
    """The entries of a run's log (or curves); a last line cut off by a kill is left out."""
    path = folder / file
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def rewind(folder: Path, iteration: int, file: str = FILE) -> list[dict[str, Any]]:
    """Leaves out what was written after an iteration, for it will be done again; returns what is kept.

    A kill at any moment leaves the old lines or those that are kept.
    """
    kept = [entry for entry in read(folder, file) if entry["iteration"] <= iteration]
    write_atomically(folder / file, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept


def append(folder: Path, entry: Mapping[str, Any], file: str = FILE) -> None:
    """Adds one line."""
    with (folder / file).open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
