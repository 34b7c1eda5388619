"""Verdicts that were kept are held against the records beside them: those of other records are called so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.claims import Claims
from w2svd_bench.leaderboard.report import render
from w2svd_bench.leaderboard.report_parts import outdated, read_claims
from w2svd_bench.leaderboard.verdicts import judge
from w2svd_bench.record import Record

from records import make, score, teacher

NOISE = (0.5, -0.25, 0.75, -1.0, 0.25, -0.25)
FLOOR = teacher().cell.label
TOLD = "Judged by other records than those of the tables"


def run(label: str, seed: int, value: float, collapsed_at: int | None = None, **cell: Any) -> Record:
    leave_out = [value + hard * (1 + seed / 10) for hard in NOISE]
    training = {"device": "NVIDIA H200", "updates": {"generator": 400}, "health": {"collapsed_at": collapsed_at}}
    return make(label, 4, seed, fid=score(value, leave_out=leave_out), training=training, cell=cell)


def records() -> list[Record]:
    runs = [run("ours", seed, 10.0 + seed / 10) for seed in (0, 1)] + [
        run("theirs", seed, 12.0, 150) for seed in (0, 1)
    ]
    floor = make(FLOOR, 28, fid=score(2.0, leave_out=NOISE), training={"iterations": 0}, cell={"method": "teacher"})
    return [*runs, floor]


def kept(folder: Path, of: list[Record]) -> Any:
    """claims.json of these records, as the report reads it."""
    base = {"says": "Ours wins.", "source": "here", "who": "ours", "against": "theirs"}
    scored = {"kind": "better", "steps": [4], "metrics": ["fid"]}
    claims: list[dict[str, Any]] = [
        {"id": "rival", **scored, "against": [{"label": "theirs"}]},
        {"id": "floor", **scored, "against": [{"label": FLOOR}]},
        {"id": "memory", "kind": "memory"},
        {"id": "collapse", "kind": "collapse"},
        {"id": "nobody", **scored, "against": [{"label": "nobody"}]},
    ]
    asked = Claims.model_validate({"method": "ours", "claims": [base | one for one in claims]})
    (folder / "claims.json").write_text(json.dumps(judge(of, [asked]).as_data()))
    return read_claims(folder)


def test_verdicts_of_the_records_at_hand_are_shown_as_they_are(tmp_path: Path) -> None:
    claims = kept(tmp_path, records())
    assert [one.verdict for one in claims.judged][:2] == ["holds", "fails"]
    assert outdated(claims, records()) == []
    page = render(Leaderboard.from_records(records()), claims=claims)
    assert TOLD not in page and '<span class="verdict holds">holds</span>' in page


def changed(one: Record, **sections: Any) -> Record:
    data = one.model_dump()
    return Record.model_validate(data | {name: data[name] | change for name, change in sections.items()})


def rescored(one: Record) -> Record:
    assert one.cell.label == "ours"
    other = run("ours", one.cell.seed, 9.0)
    return one.model_copy(update={"metrics": other.metrics})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: changed(one, cell={"checkpoint_sha256": "cd" * 32}), {"rival", "floor", "memory", "collapse"}),
        (lambda one: None, {"rival", "floor", "memory", "collapse"}),
        (rescored, {"rival", "floor"}),
        (lambda one: one.model_copy(update={"metrics": {}}), {"rival", "floor"}),
        (lambda one: changed(one, training={"peak_memory_bytes": 7}), {"memory"}),
        (lambda one: changed(one, training={"health": {"collapsed_at": 200}}), {"collapse"}),
    ],
    ids=["retrained", "removed", "rescored", "without-scores", "another-peak", "another-health"],
)
def test_verdicts_of_other_records_are_called_so(
    change: Callable[[Record], Record | None], told: set[str], tmp_path: Path
) -> None:
    before = records()
    claims = kept(tmp_path, before)
    first = change(before[0])
    now = [*([] if first is None else [first]), *before[1:]]
    assert {one.id for one in outdated(claims, now)} == told
    page = render(Leaderboard.from_records(now), claims=claims)
    assert f"{TOLD}: {', '.join(one.id for one in claims.judged if one.id in told)}." in page
    assert "w2svd-bench claims FOLDER --write" in page
    assert ('<span class="verdict holds">' in page) == ("rival" not in told), "no green where it may hold no more"


def test_numbers_of_another_version_are_other_numbers(tmp_path: Path) -> None:
    claims = kept(tmp_path, records())
    rival = claims.judged[0]
    older = rival.atoms[0].model_copy(update={"numbers": {"estimate": -2.0}})
    claims.judged[0] = rival.model_copy(update={"atoms": [older]})
    assert [one.id for one in outdated(claims, records())] == ["rival"]


def test_a_label_that_is_gone_altogether_is_missed(tmp_path: Path) -> None:
    claims = kept(tmp_path, records())
    assert outdated(claims, [one for one in records() if one.cell.label != "theirs"])


def test_atoms_of_another_folder_are_not_missed(tmp_path: Path) -> None:
    """Claims are judged over several folders together, and the report is of one of them."""
    claims = kept(tmp_path, records())
    assert outdated(claims, [changed(one, cell={"label": f"another {one.cell.label}"}) for one in records()]) == []


def test_another_backbone_says_nothing_of_a_verdict(tmp_path: Path) -> None:
    claims = kept(tmp_path, records())
    big = [changed(one, cell={"backbone": "big"}) for one in records()]
    assert outdated(claims, [*records(), *big]) == outdated(claims, big) == []
