"""Made-up records, and what tests ask of the tables that are made of them."""

from __future__ import annotations

import re
from typing import Any

from w2svd_bench.leaderboard.table import Entry, Table
from w2svd_bench.record import Record

REASON = "the sampler needs more than 1 step"


def score(value: float, se: float = 0.5, **other: Any) -> dict[str, Any]:
    base = {"n": 512, "direction": "down", "version": 1, "id": "frechet of mini features", "weights_sha256": "cd" * 32}
    return base | {"value": value, "se": se} | other


def skipped(reason: str = REASON, **other: Any) -> dict[str, Any]:
    return {"skipped": reason, "direction": "down", "version": 1} | other


def make(label: str = "lcm", steps: int = 4, seed: int = 0, fid: Any = 10.0, cost: int = 100, **other: Any) -> Record:
    """A record; ``other`` replaces whole sections or, as ``eval_set={...}``, some of a section's keys."""
    data: dict[str, Any] = {
        "cell": {
            "backbone": "mini",
            "method": label,
            "label": label,
            "checkpoint_sha256": "ab" * 32,
            "steps": steps,
            "seed": seed,
            "eval_set": "test-512",
        },
        "sampling": {
            "sampler": "ode", "nfe": steps, "guidance": 1.0, "shift": 3.0, "levels": [1.0, 0.5], "noise_seed": seed,
        },
        "metrics": {"fid[mini]": score(fid) if isinstance(fid, float) else fid},
        "diagnostics": {"mouth": 0.25},
        "eval_set": {
            "name": "test-512", "num_clips": 512, "prompts_sha256": "ef" * 32, "reference": "reference-2048",
            "reference_sha256": "01" * 32, "frames": 17, "height": 48, "width": 48, "fps": 12, "resize": "none",
        },
        "training": {
            "iterations": 400, "updates": {"generator": 400, "fake": 900}, "network_evaluations": cost,
            "seconds": 144.0, "peak_memory_bytes": 1_500_000_000,
        },
        "timing": {"sample_seconds_per_clip": 0.0123, "decode_seconds_per_clip": 0.002, "wall_seconds": 9.5},
        "config": {"settings": {"alpha": 0.5}, "expected": {}},
        "provenance": {},
    }  # fmt: skip
    for section, change in other.items():
        data[section] = data[section] | change
    return Record.model_validate(data)


def real(fid: float = 1.0) -> Record:
    return make("real (noise floor)", steps=0, fid=fid, cost=0, cell={"method": "real", "steps": 0})


def grid() -> list[Record]:
    """Three methods, three numbers of steps, two seeds of one of them, one cell that could not be sampled."""
    found = [real(), make("euler", 28, fid=8.0, cost=0), make("euler", 4, fid=30.0, cost=0)]
    found.append(make("euler", 1, fid=skipped(), cost=0))
    for seed, fids in enumerate([(12.0, 20.0), (14.0, 23.0)]):
        found += [make("lcm", 4, seed, fids[0], cost=500), make("lcm", 1, seed, fids[1], cost=500)]
    found += [make("dmd_v2", 4, fid=11.0, cost=9000), make("dmd_v2", 1, fid=25.0, cost=9000)]
    return found


def metrics_only(label: str, metrics: dict[str, Any], **other: Any) -> Record:
    """A record of these metrics and no other."""
    data = make(label, **other).model_dump()
    return Record.model_validate(data | {"metrics": metrics})


def teacher(fid: float = 2.0) -> Record:
    return make("teacher, 28 steps (noise floor)", steps=28, fid=fid, cost=0, cell={"method": "teacher"})


def column(table: Table, title: str) -> list[Entry]:
    index = [one.title for one in table.columns].index(title)
    return [row[index] for row in table.rows]


def check_latex(text: str, columns: int) -> None:
    """What a compiler would trip over: groups, environments, bare special characters, columns, other alphabets."""
    assert text.isascii()
    plain = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert re.findall(r"\\begin{(\w+)}", text) == ["table", "tabular"]
    assert re.findall(r"\\end{(\w+)}", text) == ["tabular", "table"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    spans = [re.findall(r"\\multicolumn{(\d+)}", row) for row in rows]  # each stands for so many cells
    cells = [len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows]
    assert {count + sum(int(n) - 1 for n in found) for count, found in zip(cells, spans, strict=True)} == {columns}
    (alignment,) = re.findall(r"\\begin{tabular}{([lr]+)}", text)
    assert len(alignment) == columns
    assert text.count(r"\ifdim") + text.count(r"\ifdefined") == len(re.findall(r"\\fi(?![a-z])", text)), (
        "open conditions"
    )
    assert all(not line.startswith(("[", "*")) for line in rows), "read as an argument of the break before it"
    for line in text.splitlines():
        assert not re.search(r"(?<!\\)[#%_~^]", line), line
        assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0, line
