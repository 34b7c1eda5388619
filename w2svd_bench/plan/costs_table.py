"""The table of measured costs: one JSON file a measurement, and from those ``cost.csv`` and ``cost.md``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2svd_bench.errors import BenchError
from w2svd_bench.plan.machine import GB
from w2svd_bench.record import write_atomically

FOLDER = "cost"
COLUMNS = (
    "device", "what", "method", "video", "steps", "clips", "outcome", "seconds", "spread", "runs",
    "peak_bytes", "planned_bytes", "operations", "share",
)  # fmt: skip


def write(folder: Path, row: Mapping[str, Any], peak: float, command: str, provenance: Mapping[str, Any]) -> Path:
    """Writes one measurement; the same one measured again replaces it."""
    name = "-".join(str(row[key]) for key in ("what", "method", "video", "steps"))
    record = {**row, "device": provenance["device"], "matmul_peak": peak, "command": command, "provenance": provenance}
    return write_atomically(folder / FOLDER / f"{name}.json", json.dumps(record, indent=2, sort_keys=True) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All measurements of a folder, in the order of the table; raises `BenchError` for a damaged file."""
    rows = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            missing = [name for name in (*COLUMNS, "command", "matmul_peak") if name not in row]
        except (ValueError, TypeError) as error:
            raise BenchError(
                f"{path} is no measurement", f"it is no JSON: {error}", "delete it, measure again"
            ) from None
        if missing:
            raise BenchError(f"{path} is no measurement", f"it lacks {', '.join(missing)}", "delete it, measure again")
        rows.append(row)
    return sorted(rows, key=lambda r: (r["device"], r["video"], r["what"] != "training", r["method"], r["steps"]))


def render(folder: Path) -> list[Path]:
    """Writes ``cost.csv`` and ``cost.md`` from the measurements of the folder."""
    rows = read(folder)
    if not rows:
        raise BenchError(f"{folder} holds no measurements", "nothing was measured there", "run: w2svd-bench cost")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return [
        write_atomically(folder / "cost.csv", text.getvalue()),
        write_atomically(folder / "cost.md", _markdown(rows)),
    ]


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "<!-- generated from the files in cost/ by `w2svd-bench cost`: change those, not this file -->",
        "",
        "Random weights: times and memory are real, what is generated means nothing. One clip a batch. Share: planned",
        "operations a second over the fastest matrix product measured on the same GPU.",
        "",
        "| device | what | method | clip | steps | seconds | peak GB | planned GB | PFLOP | share of peak |",
        "| :--- | :--- | :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [_line(row) for row in rows]
    commands = sorted({f"`{row['command']}` on {row['device']}" for row in rows})
    peaks = sorted({f"{row['device']}: {row['matmul_peak'] / 1e12:.3g} TFLOP/s" for row in rows})
    lines += ["", *(f"* {command}" for command in commands), f"* fastest matrix product: {'; '.join(peaks)}", ""]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    measured = row["outcome"] == "measured"
    cells = [
        row["device"],
        "an iteration" if row["what"] == "training" else "a clip",
        row["method"],
        row["video"],
        str(row["steps"] or "—"),
        f"{row['seconds']:.3g} ± {row['spread'] / 2:.1g}" if measured else row["outcome"],
        f"{row['peak_bytes'] / GB:.1f}" if measured and row["peak_bytes"] else "—",
        f"{row['planned_bytes'] / GB:.1f}" if row["planned_bytes"] else "—",
        f"{row['operations'] / 1e15:.3g}",
        f"{row['share']:.1%}" if measured else "—",
    ]
    return "| " + " | ".join(cells) + " |"
