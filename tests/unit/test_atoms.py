"""Questions that records answer in part: what is unknown is named, decides nothing; reference rows stand beside all."""

from __future__ import annotations

from typing import Any

import pytest

from w2svd_bench.leaderboard.atoms import Atom, atoms_of
from w2svd_bench.leaderboard.claims import Claims
from w2svd_bench.leaderboard.compare import compare
from w2svd_bench.record import Record

from records import make, real, score, teacher

NOISE = (0.5, -0.25, 0.75, -1.0, 0.25, -0.25)
FLOOR = "teacher, 28 steps (noise floor)"


def asked(kind: str, records: list[Record], **more: Any) -> list[Atom]:
    base: dict[str, Any] = {"id": "c", "kind": kind, "says": "Ours wins.", "source": "here", "who": "ours"}
    (claim,) = Claims.model_validate({"method": "ours", "claims": [base | {"against": "theirs"} | more]}).claims
    return list(atoms_of(claim, records, None))


# --- memory -----------------------------------------------------------------------------------------------------------


def trained(label: str, *peaks: int) -> list[Record]:
    """A run a seed on one GPU, with its peak in GB."""
    return [
        make(label, seed=seed, training={"peak_memory_bytes": peak * 10**9, "device": "NVIDIA H200"})
        for seed, peak in enumerate(peaks)
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "unknown"),
    [
        ((0,), (50,), "'ours'"),
        ((50,), (60, 0), "'theirs' (seed 1)"),
        ((0, 0, 1), (0,), "'ours' (seed 0, 1) and 'theirs'"),
    ],
)
def test_a_peak_that_was_not_measured_wins_nothing(ours: Any, theirs: Any, unknown: str) -> None:
    (found,) = asked("memory", trained("ours", *ours) + trained("theirs", *theirs))
    assert found.verdict == "not measured" and f"no peak was measured of {unknown}" in found.why


# --- collapse ---------------------------------------------------------------------------------------------------------


def run(label: str, seed: int, collapsed_at: int | None = None, updates: int = 400, **health: Any) -> Record:
    told = {"collapsed_at": collapsed_at, "alarm_at": collapsed_at, "teacher_loss": 0.17, **health}
    return make(label, seed=seed, training={"updates": {"generator": updates}, "health": told})


def silent(label: str, seed: int) -> Record:
    """A run whose record says nothing of its health, as those of older versions."""
    return make(label, seed=seed, training={"updates": {"generator": 400}})


def test_seeds_of_unknown_health_are_named_and_leave_the_verdict_open() -> None:
    """None of the four that tell collapsed, all of the rival's did: but the fifth may have."""
    theirs = [run("theirs", seed, 150) for seed in range(4)]
    whole = [run("ours", seed) for seed in range(4)]
    assert asked("collapse", whole + theirs)[0].verdict == "holds"
    (found,) = asked("collapse", [*whole, silent("ours", 4), *theirs])
    assert found.verdict == "not measured"
    assert "'ours' (seed 4): the records say nothing of their runs' health" in found.why
    assert "ours: 0 of 4 seeds collapsed; theirs: 4 of 4 seeds collapsed" in found.why, "what is known is told"


def test_each_reason_names_its_seeds() -> None:
    ours = [run("ours", 0), run("ours", 1, updates=99), silent("ours", 2), run("ours", 3, fake_loss=None)]
    (found,) = asked("collapse", [*ours, silent("theirs", 0)])
    assert "'ours' (seed 2, 3): the records say nothing of their runs' health: no fake learned, or their" in found.why
    assert "'ours' (seed 1): fewer than 100 updates" in found.why
    assert "'theirs': the records say nothing" in found.why, "all of its seeds, which need no numbers"
    assert "ours: 0 of 1 seeds collapsed" in found.why and "theirs: " not in found.why


def test_a_record_of_other_steps_may_tell_of_a_run() -> None:
    """One cell of a run evaluated by an older version leaves nothing unknown where another one tells."""
    older = silent("ours", 0)
    newer = run("ours", 0).model_copy(update={"cell": older.cell.model_copy(update={"steps": 1})})
    (found,) = asked("collapse", [older, newer, run("theirs", 0)])
    assert found.verdict == "undecided" and "no collapse seen in either" in found.remarks


def test_why_the_stress_recipe_was_not_judged() -> None:
    normal = [run("ours", 0), run("theirs", 0)]
    stress = {"name": "hot", "who": "ours-x", "against": "theirs-x"}
    (found,) = asked("collapse", [*normal, run("ours-x", 0), silent("theirs-x", 0)], stress=stress)
    assert found.asks.endswith("under the normal recipe")
    assert "the stress recipe was not judged" in found.remarks[0]
    assert "'theirs-x': the records say nothing of their runs' health" in found.remarks[0], "there are records of both"


# --- reference rows ---------------------------------------------------------------------------------------------------


def scored(label: str, value: float, steps: int, seed: int = 0, shift: float = 0.0, **other: Any) -> Record:
    leave_out = [value + hard * (1 + shift) for hard in NOISE]
    return make(label, steps, seed, fid=score(value, leave_out=leave_out), **other)


def with_floors() -> list[Record]:
    ours = [scored("ours", 10.0 + seed / 100 + steps, steps, seed, 0.01) for steps in (1, 4) for seed in (0, 1, 2)]
    floors = [
        scored(one.cell.label, 2.0, one.cell.steps, cell={"method": one.cell.method}) for one in (teacher(), real())
    ]
    return ours + floors


@pytest.mark.parametrize("label", [FLOOR, "real (noise floor)"])
def test_a_reference_row_stands_beside_every_number_of_steps_and_every_seed(label: str) -> None:
    records = with_floors()
    found = asked("better", records, against=[{"label": label}], steps=[1, 4], metrics=["fid"], direction="worse")
    told = compare(records, "ours", label)
    assert [one.verdict for one in found] == ["holds", "holds"]
    assert [one.numbers for one in found] == [one.as_data() for one in told.differences]
    assert found[0].asks == f"ours at steps 1 is worse than {label} in fid", "it has no steps to compare at"
    assert len(found[0].files) == 4, "three seeds and the one record beside them"
    assert not any("left out" in remark for remark in found[0].remarks)


def test_a_reference_row_may_be_claimed_of() -> None:
    (found,) = asked("better", with_floors(), who=FLOOR, against=[{"label": "ours"}], steps=[4], metrics=["fid"])
    assert found.verdict == "holds" and found.asks == f"{FLOOR} is better than ours at steps 4 in fid"
    (both,) = asked(
        "better", with_floors(), who=FLOOR, against=[{"label": "real (noise floor)"}], steps=[4], metrics=["fid"]
    )
    assert both.verdict == "undecided" and both.asks == f"{FLOOR} is better than real (noise floor) in fid"


def test_steps_that_a_reference_row_has_not_are_not_measured() -> None:
    floor = {"label": FLOOR, "steps": 28}
    assert asked("better", with_floors(), against=[floor], steps=[1], metrics=["fid"])[0].verdict == "fails"
    (found,) = asked("better", with_floors(), against=[floor | {"steps": 50}], steps=[1], metrics=["fid"])
    assert found.verdict == "not measured" and found.why == f"no records of {FLOOR!r} at steps 50"
    (alone,) = asked("better", with_floors(), who="nobody", against=[{"label": FLOOR}], steps=[1], metrics=["fid"])
    assert alone.verdict == "not measured" and alone.why == "no records of 'nobody' at steps 1"
