"""Claims over made-up records whose truth is known: every verdict, its numbers, its reasons and its rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from w2svd_bench.cli import claims as cli
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard import atoms
from w2svd_bench.leaderboard.atoms import Atom, Need, Verdict
from w2svd_bench.leaderboard.claims import Claims, find_claims, read_claims
from w2svd_bench.leaderboard.claims_render import to_markdown
from w2svd_bench.leaderboard.verdicts import Judged, compound, holm, judge
from w2svd_bench.record import Record, Score, write_record
from w2svd_bench.uncertainty import paired_difference

ROOT = Path(__file__).resolve().parents[2]
GROUPS, CLIPS = 20, 40
HARD = np.random.default_rng(0).normal(size=GROUPS)
SEEDS = (0, 1, 2)


def score(value: float, noise: int = 0, **other: Any) -> dict[str, Any]:
    """A distance: its leave-out values share what is hard; ``noise`` is the seed of what is their own."""
    own = 0.05 * np.random.default_rng(noise).normal(size=GROUPS)
    base = {"value": value, "se": 0.5, "n": CLIPS, "direction": "down", "version": 1, "id": "frechet"}
    return base | {"leave_out": (value + HARD + own).tolist()} | other


def of_clips(value: float) -> dict[str, Any]:
    values = value + np.random.default_rng(7).normal(size=CLIPS)
    base = {"value": value, "se": 0.1, "n": CLIPS, "direction": "up", "version": 1, "id": "vbench"}
    return base | {"values": values.tolist(), "prompts": [i % 10 for i in range(CLIPS)]}


def make(
    label: str,
    metrics: dict[str, Any],
    steps: int = 1,
    seed: int = 0,
    training: Any = None,
    config: Any = None,
    method: str = "",
) -> Record:
    return Record.model_validate({
        "cell": {
            "backbone": "mini", "method": method or label, "label": label, "checkpoint_sha256": "ab" * 32,
            "steps": steps, "seed": seed, "eval_set": "test",
        },
        "sampling": {
            "sampler": "ode", "nfe": steps, "guidance": 1.0, "shift": 3.0, "levels": [1.0], "noise_seed": seed,
        },
        "metrics": metrics,
        "eval_set": {
            "name": "test", "num_clips": CLIPS, "prompts_sha256": "ef" * 32, "reference": "reference",
            "reference_sha256": "01" * 32, "frames": 17, "height": 48, "width": 48, "fps": 12, "resize": "none",
        },
        "training": training or {},
        "timing": {"sample_seconds_per_clip": 0.01, "decode_seconds_per_clip": 0.0, "wall_seconds": 9.5},
        "config": config or {},
        "provenance": {},
    })  # fmt: skip


def scored(label: str, values: tuple[float, ...], steps: int = 1, name: str = "fid") -> list[Record]:
    """One record a seed."""
    return [make(label, {name: score(value, 10 * seed + len(label))}, steps, seed) for seed, value in enumerate(values)]


def claim(**change: Any) -> Claims:
    base = {
        "id": "c", "kind": "better", "says": "Ours is better.", "source": "here", "who": "ours",
        "against": [{"label": "theirs"}], "steps": [1], "metrics": ["fid"],
    }  # fmt: skip
    return Claims.model_validate({"method": "ours", "claims": [base | change]})


def other(kind: str, **more: Any) -> Claims:
    base = {"id": "c", "kind": kind, "says": "Ours lasts.", "source": "here", "who": "ours", "against": "theirs"}
    return Claims.model_validate({"method": "ours", "claims": [base | more]})


def one(records: list[Record], claims: Claims, planner: Any = None) -> Judged:
    (found,) = judge(records, [claims], planner).judged
    return found


def atom(records: list[Record], claims: Claims, planner: Any = None) -> Atom:
    (found,) = one(records, claims, planner).atoms
    return found


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "direction", "verdict"),
    [
        ((12.0, 12.1, 11.9), "better", "holds"),
        ((8.0, 8.1, 7.9), "better", "fails"),
        ((8.0, 8.1, 7.9), "worse", "holds"),
        ((12.0, 9.0, 11.0), "better", "undecided"),  # seeds disagree, though prompts do not
        ((10.0, 10.0, 10.0), "better", "undecided"),
    ],
)
def test_a_difference_beyond_chance_decides(theirs: tuple[float, ...], direction: str, verdict: str) -> None:
    records = scored("ours", (10.0, 10.05, 9.95)) + scored("theirs", theirs)
    assert one(records, claim(direction=direction)).verdict == verdict


def test_an_atom_tells_its_numbers_and_files() -> None:
    ours, theirs = scored("ours", (10.0,)), scored("theirs", (12.0,))
    found = atom(ours + theirs, claim())
    a, b = (side[0].metrics["fid"] for side in (ours, theirs))
    assert isinstance(a, Score) and isinstance(b, Score)
    expected = paired_difference(a.value, a.leave_out, b.value, b.leave_out)
    assert found.numbers is not None and found.numbers["estimate"]["value"] == pytest.approx(-2)
    assert found.numbers["estimate"]["low"] == pytest.approx(expected.low)
    assert (found.numbers["seeds"], found.numbers["n"]) == ((0,), CLIPS)
    assert found.files == (ours[0].file_name, theirs[0].file_name)
    assert found.metric == "fid" and "-2" in found.why
    assert found.remarks == ("one training a side: said of these two runs, not of their methods",)


def test_other_steps_are_compared_and_seeds_of_one_side_left_out() -> None:
    records = scored("ours", (10.0, 10.1, 9.9), 4) + scored("theirs", (12.0, 12.1), 28)
    records += scored("theirs", (1.0, 1.0, 1.0), 4)  # not asked for
    found = atom(records, claim(steps=[4], against=[{"label": "theirs", "steps": 28}]))
    assert found.verdict == "holds" and found.asks == "ours at steps 4 is better than theirs at steps 28 in fid"
    assert {file.split("-seed")[0] for file in found.files} == {"ours-steps4", "theirs-steps28"}
    assert found.remarks == ("seed 2 left out: only one side has it",)


def test_a_family_is_judged_by_its_first_metric_that_can_be_and_says_so() -> None:
    mini = scored("ours", (10.0,), name="fid[mini]") + scored("theirs", (12.0,), name="fid[mini]")
    assert (atom(mini, claim()).metric, atom(mini, claim()).verdict) == ("fid[mini]", "holds")
    both = [
        make("ours", {"fid[mini]": score(10), "fid": score(13), "fid vs teacher": score(1)}),
        make("theirs", {"fid[mini]": score(12), "fid": score(12, 1), "fid vs teacher": score(2)}),
    ]
    assert (atom(both, claim()).metric, atom(both, claim()).verdict) == ("fid", "fails")
    assert atom(both, claim(metrics=["fid vs teacher"])).metric == "fid vs teacher"


def test_clips_are_compared_by_prompt() -> None:
    records = [make("ours", {"vbench.quality": of_clips(0.9)}), make("theirs", {"vbench.quality": of_clips(0.5)})]
    found = atom(records, claim(metrics=["vbench"]))
    assert (found.metric, found.verdict) == ("vbench.quality", "holds")


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (scored("ours", (1.0,)), "no records of 'theirs' at steps 1"),
        (scored("ours", (1.0,)) + scored("theirs", (2.0,), 4), "no records of 'theirs' at steps 1"),
        (scored("ours", (1.0, 1.0))[1:] + scored("theirs", (2.0,)), "no seed in common"),
        (scored("ours", (1.0,), name="kid") + scored("theirs", (2.0,), name="kid"), "none of fid, fid[clean]"),
        ([make(label, {"fid": score(1, leave_out=[])}) for label in ("ours", "theirs")], "neither leave-out values"),
        ([make(label, {"fid": score(v, flags=["stand-in weights"])}) for label, v in (("ours", 1), ("theirs", 9))],
         "random weights"),
        ([make("ours", {"fid": {"skipped": "no 1-step sampler", "direction": "down", "version": 1}}),
          *scored("theirs", (1.0,))], "no 1-step sampler"),
    ],
)  # fmt: skip
def test_what_no_record_holds_is_not_measured(records: list[Record], reason: str) -> None:
    found = atom(records, claim())
    assert found.verdict == "not measured" and reason in found.why and found.p is None


def test_a_compound_claim_lists_every_atom() -> None:
    records = (
        scored("ours", (10.0, 10.1, 9.9)) + scored("theirs", (12.0, 12.1, 11.9)) + scored("worst", (9.0, 9.1, 8.9))
    )
    asked = claim(against=[{"label": "theirs"}, {"label": "worst"}], metrics=["fid", "fvd"])
    found = one(records, asked)
    assert [each.verdict for each in found.atoms] == ["holds", "not measured", "fails", "not measured"]
    assert found.verdict == "fails" and found.counts == {"holds": 1, "fails": 1, "not measured": 2}


def test_the_rule_for_compounds() -> None:
    by_plan: Verdict = "holds by arithmetic, not measured"
    assert compound(["holds", "not measured", by_plan]) == "holds"
    assert compound(["holds", "undecided"]) == "undecided"
    assert compound(["holds", "undecided", "fails"]) == "fails"
    assert compound([by_plan, "not measured"]) == by_plan
    assert compound([by_plan, "fails by arithmetic, not measured"]) == "fails by arithmetic, not measured"
    assert compound([by_plan, "undecided by arithmetic, not measured"]) == "undecided by arithmetic, not measured"
    assert compound(["not measured"]) == "not measured"


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_correction_counts_all_differences_once() -> None:
    names = ("a", "b", "c", "d")
    records = scored("ours", (10.0, 10.3, 9.7)) + [r for name in names for r in scored(name, (11.2, 11.0, 10.8))]
    few = claim(against=[{"label": "a"}])
    many = Claims.model_validate({"method": "ours", "claims": [
        few.claims[0].model_dump(), few.claims[0].model_dump() | {"id": "d", "against": [{"label": x} for x in names]},
    ]})  # fmt: skip
    alone, report = judge(records, [few]), judge(records, [many])
    (first,) = alone.judged[0].atoms
    assert first.p is not None and first.p == first.p_holm and first.corrected == "holds"
    assert report.differences == 4
    same = report.judged[0].atoms[0]
    assert same.verdict == "holds" and same.p_holm == pytest.approx(4 * first.p)
    assert same.corrected == "undecided"


def test_records_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(BenchError, match="can't stand in one table"):
        judge([make("ours", {"fid": score(1)}), make("theirs", {"fid": score(1, version=2)})], [claim()])
    with pytest.raises(BenchError, match="no claim can be judged"):
        judge([], [claim()])


# --- memory -----------------------------------------------------------------------------------------------------------

PLAN = {"backbone": "big", "gigabytes": 80, "sizes": [{"height": 8, "width": 8, "num_frames": 1}],
        "who": [{"method": "ours"}], "against": {"method": "theirs"}}  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((1, 1, 1), (8, 8, 8), "holds by arithmetic, not measured"),
        ((4, 4, 4), (None, None, None), "holds by arithmetic, not measured"),
        ((8, 8, 8), (8, 8, 8), "fails by arithmetic, not measured"),
        ((None, None, None), (None, None, None), "fails by arithmetic, not measured"),
        ((16, 8, 8), (16, 16, 16), "undecided by arithmetic, not measured"),
        ((1, 1, 1), (1, 1, 1), "undecided by arithmetic, not measured"),
    ],
)
def test_the_plan_answers_by_arithmetic(ours: Any, theirs: Any, verdict: str) -> None:
    def planner(ask: Any, who: Any, size: Any) -> Need:
        return Need(ours if who.method == "ours" else theirs, 50e9)

    found = one(scored("ours", (1.0,)), other("memory", plan=PLAN), planner)
    assert found.verdict == verdict
    assert found.atoms[0].verdict == "not measured", "no peak was measured"
    assert one(scored("ours", (1.0,)), other("memory", plan=PLAN)).verdict == "not measured"


def test_peaks_on_a_cpu_or_an_unknown_device_say_nothing() -> None:
    def records() -> list[Record]:
        cost = {"iterations": 9, "peak_memory_bytes": 10**9}
        return [make(label, {}, training=cost) for label in ("ours", "theirs")]

    found = atom(records(), other("memory"))
    assert found.verdict == "not measured" and "on what device" in found.why
    on_cpu = [on_device(each, "cpu") for each in records()]
    assert "says nothing of GPUs" in atom(on_cpu, other("memory")).why


def on_device(record: Record, device: str) -> Record:
    training = record.training.model_copy(update={"device": device})
    return record.model_copy(update={"training": training})


@pytest.mark.parametrize(
    ("peaks", "verdict"), [((3, 4, 5, 6), "holds"), ((5, 6, 3, 4), "fails"), ((3, 5, 4, 6), "undecided")]
)
def test_peaks_on_one_kind_of_gpu_are_compared(peaks: tuple[int, ...], verdict: str) -> None:
    cells = [("ours", 0), ("ours", 1), ("theirs", 0), ("theirs", 1)]
    records = [
        make(label, {}, seed=seed, training={"iterations": 9, "peak_memory_bytes": peak * 10**9})
        for (label, seed), peak in zip(cells, peaks, strict=True)
    ]
    same = [on_device(each, "NVIDIA H200") for each in records]
    assert atom(same, other("memory")).verdict == verdict
    mixed = [*same[:3], on_device(records[3], "NVIDIA A100")]
    assert "different devices" in atom(mixed, other("memory")).why
    way = {"training": {"micro_batch": 2}}
    unlike = [each.model_copy(update={"config": way if each.cell.label == "ours" else {}}) for each in same]
    assert "different ways" in atom(unlike, other("memory")).why


# --- collapse ---------------------------------------------------------------------------------------------------------


def runs(label: str, *collapsed_at: int | None, updates: int = 400) -> list[Record]:
    return [
        make(label, {}, seed=seed, training={
            "iterations": updates, "updates": {"generator": updates},
            "health": {"collapsed_at": at, "alarm_at": at, "teacher_loss": 0.17},
        })
        for seed, at in enumerate(collapsed_at)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((None,) * 4, (150,) * 4, "holds"),
        ((None,) * 3, (150,) * 3, "undecided"),  # Fisher's p is 0.1
        ((None,) * 4, (None,) * 4, "undecided"),
        ((150,) * 4, (None,) * 4, "fails"),
        ((150,) * 3, (150,) * 3, "fails"),  # it does not end what it has in every seed
        ((150,) * 2, (150,) * 2, "undecided"),
        ((150, *[None] * 9), (150,) * 10, "undecided"),  # rarer, not ended
    ],
)
def test_collapse_goes_by_the_share_of_seeds(ours: Any, theirs: Any, verdict: str) -> None:
    found = atom(runs("ours", *ours) + runs("theirs", *theirs), other("collapse"))
    assert found.verdict == verdict
    if not any(ours) and not any(theirs):
        assert "no collapse seen in either" in found.remarks


def test_the_stress_recipe_goes_first_and_its_absence_is_said() -> None:
    normal = runs("ours", *[None] * 4) + runs("theirs", *[None] * 4)
    stressed = runs("ours-x", *[None] * 4) + runs("theirs-x", 120, 130, 140, 150)
    asked = other("collapse", stress={"name": "hot", "who": "ours-x", "against": "theirs-x"})
    found = judge(normal + stressed, [asked])
    (best,) = found.judged[0].atoms
    assert best.verdict == "holds" and best.asks.endswith("under the recipe 'hot'")
    assert "theirs-x: 4 of 4 seeds collapsed (seed 0 at 120, seed 1 at 130" in best.why
    assert {each.label: each.collapsed for each in found.health} == {
        "ours": 0, "ours-x": 0, "theirs": 0, "theirs-x": 4,
    }  # fmt: skip
    without = atom(normal + stressed[:4], asked)
    assert without.verdict == "undecided" and without.asks.endswith("under the normal recipe")
    assert "stress recipe was not judged" in without.remarks[0]


def test_health_that_was_not_recorded_is_not_measured() -> None:
    old = [make("ours", {}, training={"iterations": 400, "updates": {"generator": 400}})]
    assert "their version is older" in atom(old + runs("theirs", None), other("collapse")).why
    short = atom(runs("ours", None, updates=99) + runs("theirs", None), other("collapse"))
    assert short.verdict == "not measured" and "fewer than 100 updates" in short.why
    health = {"collapsed_at": None, "alarm_at": None, "fake_loss": None}  # without a fake that learns no alarm can ring
    silent = make("ours", {}, training={"iterations": 400, "updates": {"generator": 400}, "health": health})
    assert "no fake learned" in atom([silent, *runs("theirs", None)], other("collapse")).why
    assert [one.label for one in judge([silent, *runs("theirs", None)], [other("collapse")]).health] == ["theirs"]


def strengths(label: str, alpha: float, *cosines: float | None) -> list[Record]:
    return [
        make(label, {}, seed=seed, training={
            "iterations": 400, "updates": {"generator": 400},
            "health": {"collapsed_at": None, "alpha": alpha, "alpha_cosine": cosine},
        })
        for seed, cosine in enumerate(cosines)
    ]  # fmt: skip


def test_alpha_is_told_to_be_a_scalar_where_it_is_one_in_every_run() -> None:
    records = [
        *strengths("inert", 0.25, 0.9991, 0.9712),
        *strengths("turning", 0.75, 0.9991, 0.9),
        *strengths("zero", 0.0, None),
    ]
    found = judge(records, [other("collapse")])
    inert, turning = found.alphas  # none of strength 0
    assert (inert.label, inert.is_scalar, dict(inert.cosines)) == ("inert", True, {0: 0.9991, 1: 0.9712})
    assert str(inert) == "inert: alpha 0.25 acts as a scalar here (cosine 0.9712 to 0.9991 over 2 seeds)"
    assert not turning.is_scalar and "turns the matching gradient" in str(turning)
    assert f"* mini, {inert}" in to_markdown(found) and f"mini, {inert}" in found.as_data()["told"]
    assert "What alpha does" not in to_markdown(judge(scored("ours", (10.0,)), [claim()]))


def test_thresholds_are_those_of_the_training_watch() -> None:
    from w2svd_bench.train import health

    assert (atoms.WAIT, atoms.SCALAR) == (health.WAIT, health.SCALAR)


def test_folders_are_judged_together(tmp_path: Path) -> None:
    """Stress runs live apart from those that tables show; rows of real clips, which both have, are no repetition."""
    floor = make("real (noise floor)", {}, method="real", steps=0)
    for folder, label in (("main", "ours"), ("stress", "theirs")):
        for record in [*scored(label, (10.0 if label == "ours" else 12.0,)), floor]:
            write_record(record, tmp_path / folder / "records")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(claim().model_dump(mode="json", exclude_none=True)))
    app, run = typer.Typer(), CliRunner()
    app.command()(cli.claims)
    both = run.invoke(app, [str(tmp_path / "main"), str(tmp_path / "stress"), "--claims", str(file), "--json"])
    assert both.exit_code == 0 and json.loads(both.stdout)["judged"][0]["verdict"] == "holds"
    alone = run.invoke(app, [str(tmp_path / "main"), "--claims", str(file), "--json"])
    assert json.loads(alone.stdout)["judged"][0]["verdict"] == "not measured"
    # A folder given twice says nothing new; another record of the same cell can't be told from it.
    write_record(scored("ours", (10.0,))[0], tmp_path / "again" / "records")
    again = run.invoke(app, [str(tmp_path / "main"), str(tmp_path / "again"), "--claims", str(file), "--json"])
    assert again.stdout == alone.stdout
    write_record(scored("ours", (9.0,))[0], tmp_path / "other" / "records")
    refused = run.invoke(app, [str(tmp_path / "main"), str(tmp_path / "other"), "--claims", str(file)])
    assert isinstance(refused.exception, BenchError) and refused.exception.why.endswith(
        f"in {tmp_path / 'main'} and in {tmp_path / 'other'}"
    )


def test_two_stories_of_one_run_are_an_error() -> None:
    again = make("ours", {}, steps=4, training=runs("ours", 120)[0].training.model_dump())
    with pytest.raises(BenchError, match="is not one run"):
        judge([*runs("ours", None), again, *runs("theirs", None)], [other("collapse")])


# --- files and the command --------------------------------------------------------------------------------------------


def test_the_shipped_claims_are_found_beside_the_method() -> None:
    (path,) = find_claims(["w2svd"])
    assert path == ROOT / "methods/w2svd/claims.yaml" and path in find_claims()
    assert find_claims(["euler"]) == []
    known = {each.id: each for each in read_claims(path).claims}
    assert list(known) == ["few-step", "beats-28-steps", "memory", "memory-all-lora", "collapse"]
    assert (
        len(one(scored("w2svd", (1.0,)), read_claims(path).model_copy(update={"claims": (known["few-step"],)})).atoms)
        == 18
    )
    with pytest.raises(BenchError, match="unknown method"):
        find_claims(["w2svt"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "best"}, "kind"),
        ({"metrics": []}, "metrics"),
        ({"step": [1]}, "step"),
        ({"id": "Not An Id"}, "id"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    data = claim().model_dump(mode="json", exclude_none=True)
    data["claims"][0] |= change
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(BenchError, match="is not valid") as caught:
        read_claims(path)
    assert told in caught.value.why
    path.write_text("- a list")
    with pytest.raises(BenchError, match="not keys and values"):
        read_claims(path)
    path.write_text(yaml.safe_dump({"method": "m", "claims": claim().model_dump(mode="json")["claims"] * 2}))
    with pytest.raises(BenchError) as caught:
        read_claims(path)
    assert "stands twice" in caught.value.why


def test_markdown_has_verdicts_numbers_sources_and_files() -> None:
    records = scored("ours", (10.0,)) + scored("theirs", (12.0,)) + runs("lost", 120)
    page = to_markdown(judge(records, [claim(says="Ours | wins.")]))
    assert "| [c](#ours-c-mini) | mini | **holds** | 1 holds |" in page
    gap = to_markdown(judge(records, [claim(against=[{"label": "a|b"}])]))
    assert r"better than a\|b at steps 1" in gap, "a bar ends a cell"
    assert "1 difference was judged" in page and f"* `{records[0].file_name}`" in page
    assert "| mini | lost | 1 | 1 | 120 (0) |" in page
    assert page == to_markdown(judge(reversed(records), [claim(says="Ours | wins.")]))


def test_the_command(tmp_path: Path) -> None:
    for record in scored("ours", (10.0,)) + scored("theirs", (12.0,)):
        write_record(record, tmp_path / "records")
    file, page = tmp_path / "mine.yaml", tmp_path / "claims.md"
    file.write_text(yaml.safe_dump(claim().model_dump(mode="json", exclude_none=True)))
    app, run = typer.Typer(), CliRunner()
    app.command()(cli.claims)
    found = run.invoke(app, [str(tmp_path), "--claims", str(file), "--json", "--markdown", str(page)])
    assert found.exit_code == 0, found.output
    data = json.loads(found.stdout)
    assert data["judged"][0]["verdict"] == "holds" and data["differences"] == 1 and "rule" in data
    assert "**holds**" in page.read_text()
    shown = run.invoke(app, [str(tmp_path), "--claims", str(file)])
    assert "ours at steps 1 is better than theirs" in shown.output and "holds" in shown.output
    lost = run.invoke(app, [str(tmp_path), "--claims", str(file), "--method", "theirs"])
    assert isinstance(lost.exception, BenchError) and "unknown method" in lost.exception.what
    none = run.invoke(app, [str(tmp_path), "--method", "euler"])
    assert isinstance(none.exception, BenchError) and "no claims" in none.exception.what


@pytest.mark.slow
def test_the_plan_is_asked_for_the_shipped_claims(tmp_path: Path) -> None:
    write_record(scored("ours", (10.0,))[0], tmp_path / "records")
    app = typer.Typer()
    app.command()(cli.claims)
    found = CliRunner().invoke(app, [str(tmp_path), "--method", "w2svd", "--json"])
    assert found.exit_code == 0, found.output
    judged = {each["id"]: each for each in json.loads(found.stdout)["judged"]}
    small = judged["memory-all-lora"]["atoms"][1]
    assert small["verdict"] == "holds by arithmetic, not measured" and small["numbers"]["who"]["gpus"] == [1, 1, 1]
    assert judged["memory"]["verdict"] == "fails by arithmetic, not measured"
