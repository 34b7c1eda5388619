"""The curves that training leaves: quality and health of a run at some of its iterations.

``curves.jsonl`` of a run folder holds one JSON object a line: ``iteration``, ``seconds`` and, as far as they were
measured, ``metrics`` ({"fid[mini]@4": value}: at 4 steps) and what `HEALTH` names. A folder of results keeps those of
all runs in ``curves.json``, so that its plots can be drawn again without the runs.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2svd_bench.errors import BenchError
from w2svd_bench.record import write_atomically

FILE, RUN_FILE, KEPT = "curves.jsonl", "run.json", "curves.json"
# What tells whether a run is healthy, by the key in a line, with the title of its axis.
HEALTH = {
    "diversity": "diversity",
    "saturation": "saturation",
    "generated_std": "generated latent SD",
    "fake_loss": "fake loss",
    "dm_raw": "raw DM norm",
}


@dataclass(frozen=True)
class Curve:
    """What one run measured while it was trained; ``points`` by iteration, each with finite numbers only."""

    backbone: str
    label: str
    seed: int
    points: tuple[Mapping[str, Any], ...]

    @property
    def metrics(self) -> list[str]:
        """The keys of all metrics that some point has, as "fid[mini]@4"."""
        return sorted({key for point in self.points for key in point.get("metrics", {})})

    def line(self, key: str, quantity: str) -> dict[int, tuple[float, float]]:
        """(x, y) by iteration: ``quantity`` is iteration or seconds, ``key`` a metric's or one of `HEALTH`."""
        found = {}
        for point in self.points:
            value = point.get(key) if key in HEALTH else point.get("metrics", {}).get(key)
            if value is not None and quantity in point:
                found[int(point["iteration"])] = (float(point[quantity]), float(value))
        return found


def collect_curves(runs: Path, wanted: Collection[tuple[str, str, int]] | None = None) -> list[Curve]:
    """The curves of all runs ``runs/<backbone>/<label>/seed<k>/`` that left some, sorted.

    Args:
        wanted: only of these (backbone, label, seed): the curves of others are not even read; None for all.

    Raises:
        BenchError: a file is damaged.
    """
    found = []
    for path in sorted(runs.glob(f"*/*/seed*/{FILE}")):
        run = _json(path.with_name(RUN_FILE), path.with_name(RUN_FILE).read_text("utf-8"))
        if wanted is None or (run.get("backbone"), run.get("label"), run.get("seed")) in wanted:
            found.append(_curve(path, run | {"points": _lines(path)}))
    return sorted(found, key=lambda curve: (curve.backbone, curve.label, curve.seed))


def write_curves(curves: Iterable[Curve], folder: Path) -> Path:
    """Writes ``folder/curves.json``."""
    data = [{"backbone": one.backbone, "label": one.label, "seed": one.seed, "points": one.points} for one in curves]
    return write_atomically(folder / KEPT, json.dumps(data, sort_keys=True, allow_nan=False, indent=1) + "\n")


def read_curves(folder: Path) -> list[Curve]:
    """What `write_curves` wrote; none where it wrote nothing.

    Raises:
        BenchError: the file is damaged.
    """
    path = folder / KEPT
    return [_curve(path, one) for one in _json(path, path.read_text("utf-8"))] if path.is_file() else []


def _curve(path: Path, data: Mapping[str, Any]) -> Curve:
    """Of an iteration that was measured twice, as after a restart, the later point counts."""
    try:
        by_iteration = {int(point["iteration"]): _finite(point) for point in data["points"]}
        points = tuple(by_iteration[iteration] for iteration in sorted(by_iteration))
        return Curve(str(data["backbone"]), str(data["label"]), int(data["seed"]), points)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _lines(path: Path) -> list[Any]:
    """All but a last line that was cut off: a run that is killed leaves one, and goes on without it (`train.log`)."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    points = [_json(path, line) for line in lines[:-1]]
    with contextlib.suppress(BenchError):
        points += [_json(path, line) for line in lines[-1:]]
    return points


def _finite(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point without what is no finite number: a broken generator has no distance to anything."""
    kept: dict[str, Any] = {}
    for key, value in point.items():
        if isinstance(value, Mapping):
            kept[key] = _finite(value)
        elif isinstance(value, int | float) and math.isfinite(value):
            kept[key] = value
    return kept


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"it is not valid JSON: {error}") from error


def _damaged(path: Path, why: str) -> BenchError:
    return BenchError(f"the curves {path} can't be read", why, "remove the file, or train the run again")
