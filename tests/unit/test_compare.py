"""Paired comparisons from records: the right numbers, honest verdicts, and a clear no where nothing can be paired."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from w2svd_bench.cli import comparing
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.compare import Difference, compare
from w2svd_bench.record import Record, read_records, write_record
from w2svd_bench.uncertainty import cluster_bootstrap, paired_difference

ROOT = Path(__file__).resolve().parents[2]
CLIPS, GROUPS = 60, 20
PROMPTS = [i % 50 for i in range(CLIPS)]  # ten prompts have two clips
HARD = np.random.default_rng(0).normal(size=CLIPS)  # what both methods find hard


def of_set(value: float, noise: int | None = None, **other: Any) -> dict[str, Any]:
    """A score of a whole set: its leave-out values share what is hard; ``noise`` is the seed of what is their own."""
    own = 0.05 * np.random.default_rng(noise).normal(size=GROUPS) if noise is not None else np.zeros(GROUPS)
    base = {"se": 0.5, "n": CLIPS, "direction": "down", "version": 1, "id": "frechet", "weights_sha256": "cd" * 32}
    return base | {"value": value, "leave_out": (value + HARD[:GROUPS] + own).tolist()} | other


def of_clips(better: float, noise: int = 0, **other: Any) -> dict[str, Any]:
    """A score of each clip."""
    values = HARD + better + 0.1 * np.random.default_rng(noise).normal(size=CLIPS)
    base = {"se": 0.1, "n": CLIPS, "direction": "up", "version": 1, "id": "vbench x", "prompts": PROMPTS}
    return base | {"value": float(values.mean()), "values": values.tolist()} | other


def make(label: str, metrics: dict[str, Any], steps: int = 4, seed: int = 0, **other: Any) -> Record:
    """A record; ``other`` replaces some of a section's keys, as ``eval_set={...}``."""
    data: dict[str, Any] = {
        "cell": {
            "backbone": "mini", "method": label, "label": label, "checkpoint_sha256": "ab" * 32, "steps": steps,
            "seed": seed, "eval_set": "test-60",
        },
        "sampling": {
            "sampler": "ode", "nfe": steps, "guidance": 1.0, "shift": 3.0, "levels": [1.0, 0.5], "noise_seed": seed,
        },
        "metrics": metrics,
        "eval_set": {
            "name": "test-60", "num_clips": CLIPS, "prompts_sha256": "ef" * 32, "reference": "reference-2048",
            "reference_sha256": "01" * 32, "frames": 17, "height": 48, "width": 48, "fps": 12, "resize": "none",
        },
        "training": {},
        "timing": {"sample_seconds_per_clip": 0.01, "decode_seconds_per_clip": 0.002, "wall_seconds": 9.5},
        "config": {},
        "provenance": {},
    }  # fmt: skip
    for section, change in other.items():
        data[section] = data[section] | change
    return Record.model_validate(data)


def real(**other: Any) -> Record:
    return make("real (noise floor)", {"fid": of_set(1.0, 9)}, steps=0, cell={"method": "real", "steps": 0}, **other)


def one(*records: Record, a: str = "a", b: str = "b") -> Difference:
    (found,) = compare(records, a, b).differences
    return found


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_scores_of_sets_are_paired_by_their_leave_out_values() -> None:
    ours, theirs = of_set(10.0, 1), of_set(11.0, 2)
    found = one(make("a", {"fid": ours}), make("b", {"fid": theirs}))
    assert found.estimate == paired_difference(10.0, ours["leave_out"], 11.0, theirs["leave_out"])
    assert (found.metric, found.steps, found.seeds, found.n, found.a, found.b) == ("fid", 4, (0,), CLIPS, 10.0, 11.0)
    assert found.estimate.value == -1 and found.spread.sd is None
    assert found.verdict == "better"


def test_groups_of_unequal_size_are_paired_as_such() -> None:
    sizes = [4, 2, *[3] * (GROUPS - 2)]
    ours, theirs = of_set(10.0, 1, groups=sizes), of_set(11.0, 2, groups=sizes)
    found = one(make("a", {"fid": ours}), make("b", {"fid": theirs}))
    assert found.estimate == paired_difference(10.0, ours["leave_out"], 11.0, theirs["leave_out"], sizes=sizes)
    assert found.estimate != paired_difference(10.0, ours["leave_out"], 11.0, theirs["leave_out"])
    with pytest.raises(BenchError, match="not of the same clips"):
        compare([make("a", {"fid": ours}), make("b", {"fid": of_set(11.0, 2, groups=sizes[::-1])})], "a", "b")
    older = one(make("a", {"fid": ours}), make("b", {"fid": of_set(11.0, 2)}))  # which does not say its sizes
    assert older.estimate == found.estimate


def test_scores_of_clips_are_paired_clip_by_clip_and_drawn_by_prompt() -> None:
    ours, theirs = of_clips(0.2, 1), of_clips(0.0, 2)
    found = one(make("a", {"x": ours}), make("b", {"x": theirs}))
    by_clip = np.array(ours["values"]) - np.array(theirs["values"])
    assert found.estimate == cluster_bootstrap(by_clip, PROMPTS)
    assert found.estimate != cluster_bootstrap(by_clip, range(CLIPS)), "the prompts made no difference"
    assert found.estimate.se < 0.05 < 0.5 * found.b + 0.5
    assert found.verdict == "better" and found.n == CLIPS


def test_a_clip_without_a_value_on_one_side_is_left_out_of_both() -> None:
    ours, theirs = of_clips(0.2, 1), of_clips(0.0, 2)
    ours["values"][0], theirs["values"][3] = None, None
    found = one(make("a", {"x": ours | {"n": 59}}), make("b", {"x": theirs | {"n": 59}}))
    kept = [i for i in range(CLIPS) if i not in (0, 3)]
    by_clip = [ours["values"][i] - theirs["values"][i] for i in kept]
    assert found.estimate == cluster_bootstrap(by_clip, [PROMPTS[i] for i in kept])
    assert found.n == 58
    assert found.a == pytest.approx(np.mean([ours["values"][i] for i in kept]))
    assert found.a - found.b == pytest.approx(found.estimate.value)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(("away", "verdict"), [(-1.0, "down"), (0.001, "undecided"), (1.0, "up")])
def test_verdicts_follow_the_direction(direction: str, away: float, verdict: str) -> None:
    ours, theirs = (of_set(10.0 + value, noise, direction=direction) for value, noise in ((away, 1), (0.0, 2)))
    expected = verdict if verdict == "undecided" else "better" if verdict == direction else "worse"
    assert one(make("a", {"fid": ours}), make("b", {"fid": theirs})).verdict == expected


def test_equal_scores_are_undecided() -> None:
    found = one(make("a", {"fid": of_set(3.0)}), make("b", {"fid": of_set(3.0)}))
    assert (found.estimate.low, found.estimate.high, found.verdict) == (0.0, 0.0, "undecided")


# --- seeds ------------------------------------------------------------------------------------------------------------


def seeds(ours: list[float], theirs: list[float]) -> list[Record]:
    records = [make("a", {"fid": of_set(value, i)}, seed=i) for i, value in enumerate(ours)]
    return records + [make("b", {"fid": of_set(value, 100 + i)}, seed=i) for i, value in enumerate(theirs)]


def test_differences_are_taken_seed_by_seed() -> None:
    found = one(*seeds([10.0, 12.0, 11.0], [11.0, 13.5, 11.5]))
    assert found.seeds == (0, 1, 2)
    assert (found.a, found.b) == (11.0, 12.0)
    assert found.estimate.value == pytest.approx(-1)
    assert (found.spread.mean, found.spread.sd, found.spread.n) == (pytest.approx(-1), pytest.approx(0.5), 3)


def test_clips_of_several_seeds() -> None:
    """The mean over seeds of each clip's difference is what is drawn by prompt."""
    sides = [[of_clips(better, noise + i) for i in (0, 1)] for better, noise in ((0.3, 1), (0.0, 5))]
    records = [make(label, {"x": side[i]}, seed=i) for label, side in zip("ab", sides, strict=True) for i in (0, 1)]
    values = np.array([[score["values"] for score in side] for side in sides])
    found = one(*records)
    expected = cluster_bootstrap((values[0] - values[1]).mean(axis=0), PROMPTS)
    assert found.estimate.value == pytest.approx(expected.value) and found.estimate.se == pytest.approx(expected.se)
    by_seed = (values[0] - values[1]).mean(axis=1)
    assert (found.spread.mean, found.spread.sd) == (pytest.approx(by_seed.mean()), pytest.approx(by_seed.std(ddof=1)))


def test_seeds_are_never_pooled() -> None:
    """The same result with another seed is no second set of prompts: its interval is as wide."""
    alone = one(make("a", {"fid": of_set(10.0, 1)}), make("b", {"fid": of_set(11.0, 2)}))
    twice = [make(label, {"fid": of_set(value, noise)}, seed=i) for i in (0, 1) for label, value, noise in
             (("a", 10.0, 1), ("b", 11.0, 2))]  # fmt: skip
    assert one(*twice).estimate == alone.estimate and one(*twice).n == CLIPS
    clips = [make(label, {"x": of_clips(better, noise)}, seed=i) for i in (0, 1) for label, better, noise in
             (("a", 0.2, 1), ("b", 0.0, 2))]  # fmt: skip
    assert one(*clips).estimate.se == pytest.approx(one(*clips[:2]).estimate.se) and one(*clips).n == CLIPS


def test_a_verdict_on_several_seeds_needs_the_seeds_too() -> None:
    sure, unsure = one(*seeds([10.0, 10.1, 9.9], [11.0, 11.0, 11.0])), one(*seeds([8.0, 10.9, 11.1], [11.0] * 3))
    assert sure.verdict == "better"
    assert unsure.estimate.high < 0, "over prompts it is decided"
    assert unsure.verdict == "undecided"
    assert one(*seeds([11.0, 11.1, 10.9], [10.0] * 3)).verdict == "worse"
    unsure = one(*seeds([11.0] * 3, [8.0, 10.9, 11.1]))
    assert unsure.estimate.low > 0 and unsure.verdict == "undecided"


def test_seeds_of_one_side_only_are_left_out_and_named() -> None:
    records = [*seeds([10.0, 12.0], [11.0]), make("a", {"fid": of_set(5.0)}, steps=1)]
    found = compare(records, "a", "b")
    assert [(one.steps, one.seeds, one.a) for one in found.differences] == [(4, (0,), 10.0)]
    assert found.left_out == ("a at steps 4, seed 1",)


# --- which records ----------------------------------------------------------------------------------------------------


def test_other_numbers_of_evaluations_at_the_same_steps_are_told() -> None:
    score = {"fid": of_set(10.0)}
    records = [make("a", score), make("b", score), make("a", score, 1), real()]
    records.append(make("b", score, 1, sampling={"nfe": 2}))
    assert compare(records, "a", "b").unequal == ("at steps 1, a takes 1 and b takes 2",)
    assert "network evaluations a clip differ at steps 1" in "\n".join(comparing.remarks(compare(records, "a", "b")))
    assert not compare(records, "a", "real (noise floor)").unequal


def test_steps_and_metrics_stand_in_order_and_can_be_chosen() -> None:
    records = [
        make(label, {"x": of_clips(0.0), "fid": of_set(value, noise)}, steps=steps)
        for label, value, noise in (("b", 3.0, 1), ("a", 2.0, 2))
        for steps in (28, 4)
    ]
    assert [(one.metric, one.steps) for one in compare(records, "a", "b").differences] == [
        ("fid", 4), ("fid", 28), ("x", 4), ("x", 28),
    ]  # fmt: skip
    assert {one.steps for one in compare(records, "a", "b", [28]).differences} == {28}
    other = [make("other", {"fid": of_set(1.0, id="another net")})]
    assert compare(records + other, "a", "b") == compare(records, "a", "b"), "other labels don't matter"


def test_a_reference_row_stands_beside_all_steps_and_seeds() -> None:
    records = [*seeds([10.0, 12.0], []), make("a", {"fid": of_set(5.0, 4)}, steps=1), real()]
    for a, b, sign in (("a", "real (noise floor)", 1), ("real (noise floor)", "a", -1)):
        found = compare(records, a, b)
        assert [(one.steps, one.seeds) for one in found.differences] == [(1, (0,)), (4, (0, 1))]
        assert [one.estimate.value for one in found.differences] == pytest.approx([4 * sign, 10 * sign])
        assert not found.left_out


def test_two_reference_rows() -> None:
    teacher = make("teacher, 28 steps", {"fid": of_set(3.0, 5)}, steps=28, cell={"method": "teacher"})
    found = one(real(), teacher, a="teacher, 28 steps", b="real (noise floor)")
    assert (found.steps, found.estimate.value, found.verdict) == (None, 2.0, "worse")


def test_what_one_side_lacks_is_named_with_its_reason() -> None:
    skipped = {"skipped": "clip 3 failed", "direction": "down", "version": 1}
    with pytest.raises(BenchError, match="clip 3 failed") as caught:  # nothing that deleting a good record would mend
        compare([make("a", {"fid": of_set(3.0, 1)}), make("b", {"fid": skipped})], "a", "b")
    assert "remove" not in caught.value.cure and "--steps" in caught.value.cure
    ours = make("a", {"fid": of_set(2.0, 1), "kid": of_set(1.0), "kvd": of_set(1.0)})
    theirs = make("b", {"fid": of_set(3.0, 2), "kid": skipped})
    found = compare([ours, theirs], "a", "b")
    assert [one.metric for one in found.differences] == ["fid"]
    assert [(one.metric, one.steps, one.why) for one in found.missing] == [
        ("kid", 4, "b: clip 3 failed"), ("kvd", 4, "b: not measured"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (of_set(1.0, leave_out=[]), of_set(1.0), "neither leave-out values"),
        (of_set(1.0), of_set(1.0, leave_out=[1.0] * 8), "not of the same clips"),
        (of_set(1.0), of_set(1.0, n=59), "not of the same clips"),
        (of_clips(1.0), of_clips(1.0, prompts=[]), "not known of which prompts"),
        (of_clips(1.0), of_clips(1.0, prompts=list(range(CLIPS))), "not of the same clips"),
        (of_clips(1.0, values=[1.0] * 9), of_clips(1.0, values=[1.0] * 9), "not of the same clips"),
        (of_clips(1.0), of_clips(1.0, values=[1.0] + [None] * 59), "1 prompt"),
    ],
)
def test_scores_that_cannot_be_paired_are_refused(ours: dict[str, Any], theirs: dict[str, Any], why: str) -> None:
    with pytest.raises(BenchError, match=why) as error:
        compare([make("a", {"fid": ours}), make("b", {"fid": theirs})], "a", "b")
    assert "no score of 'a' and 'b'" in error.value.what and "remove a-steps4-seed0-" in error.value.cure


def test_the_error_over_prompts_is_finite_where_a_seed_lacks_a_clip() -> None:
    records = [make(label, {"x": of_clips(0.0, i)}, seed=i) for label in "ab" for i in (0, 1)]
    broken = of_clips(0.0, 1)
    broken["values"][7] = None
    found = one(*records[:3], make("b", {"x": broken}, seed=1))
    assert found.n == 59 and np.isfinite(found.estimate.se)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"eval_set": {"prompts_sha256": "00" * 32}}, "eval_set.prompts_sha256"),
        ({"metrics": of_set(1.0, id="another resize")}, "metrics.fid.id"),
        ({"metrics": of_set(1.0, reference="teacher, 28 steps")}, "metrics.fid.reference"),
        ({"cell": {"backbone": "hunyuan"}}, "several backbones: hunyuan, mini"),
    ],
)
def test_records_of_another_kind_are_refused(change: dict[str, Any], why: str) -> None:
    change = dict(change)
    fid = change.pop("metrics", of_set(1.0))
    with pytest.raises(BenchError, match=why):
        compare([make("a", {"fid": of_set(1.0)}), make("b", {"fid": fid}, **change)], "a", "b")


def test_names_and_steps_that_are_not_there() -> None:
    records = seeds([1.0], [2.0])
    with pytest.raises(BenchError, match="unknown method 'aa'"):
        compare(records, "aa", "b")
    with pytest.raises(BenchError, match="with itself"):
        compare(records, "a", "a")
    with pytest.raises(BenchError, match=r"nothing to compare at steps 28(.|\n)*'a' at steps 4 \(seed 0\)"):
        compare(records, "a", "b", [4, 28])
    with pytest.raises(BenchError, match=r"'b' at steps 1 \(seed 0\)"):
        compare([make("a", {}), make("b", {}, steps=1)], "a", "b")
    with pytest.raises(BenchError, match="hold no scores"):
        compare([make("a", {}), make("b", {})], "a", "b")


def test_records_of_older_versions_are_refused() -> None:
    with pytest.raises(BenchError, match="older versions"):
        compare(_without_leave_out(read_records(ROOT / "results" / "mini")), "lcm", "dmd", [4])


def _without_leave_out(records: list[Record]) -> list[Record]:
    def old(record: Record) -> Record:
        data = record.model_dump()
        for score in data["metrics"].values():
            score.pop("leave_out", None)
        return Record.model_validate(data)

    return [old(record) for record in records]


# --- the command ------------------------------------------------------------------------------------------------------


def text_of(records: list[Record], a: str = "a", b: str = "b") -> str:
    console = Console(width=140, file=io.StringIO(), record=True)
    comparison = compare(records, a, b)
    console.print(comparing.to_rich(comparison, 140))
    return "\n".join([console.export_text(), *comparing.remarks(comparison)])


def test_the_table_says_what_is_known() -> None:
    text = text_of([make("a", {"fid": of_set(10.0, 1)}), make("b", {"fid": of_set(11.0, 2)})])
    assert "fid ↓" in text and "a is" in text and "better" in text and "-1.00" in text
    assert "n = 60 clips" in text and "One training a side" in text
    assert "over seeds" not in text and "Flags" not in text and "RANDOM" not in text


def test_the_table_of_several_seeds_flags_and_gaps() -> None:
    records = seeds([10.0, 12.0, 11.0], [11.0, 13.5])
    records += [make("a", {"fid": of_set(4.0, flags=["n<2048"])}, steps=1)]
    records += [make("b", {"fid": of_set(3.0, 3), "kid[stand-in]": of_set(1.0, flags=["N<D"])}, steps=1)]
    records += [make("a", {"kid[stand-in]": of_set(1.0)}, steps=8), make("b", {"kid[stand-in]": of_set(2.0)}, steps=8)]
    text = text_of(records)
    assert "SD over seeds" in text and "(2)" in text and "a verdict needs both" in text
    assert "left out, since only one side has it: a at steps 4, seed 2" in text
    assert "Flags: fid (n<2048)" in text
    assert "RANDOM WEIGHTS, the numbers mean nothing: kid[stand-in]." in text
    assert "no difference in kid[stand-in] at steps 1: a: not measured" in text
    assert text.count("kid[stand-in] ↓") == 1, "markup is shown as it is"


@pytest.mark.parametrize("width", [66, 76, 80, 100, 140])
def test_no_terminal_cuts_a_metric_or_a_verdict(width: int) -> None:
    """Three seeds of the miniature; from 76 columns on no word is broken."""
    comparison = compare(read_records(ROOT / "results" / "mini"), "w2svd", "lcm")
    out = io.StringIO()
    Console(file=out, width=width).print(comparing.to_rich(comparison, width))
    lines = out.getvalue().splitlines()
    assert "…" not in out.getvalue() and all(len(line) <= width for line in lines)
    words = [word for line in lines for word in line.split()]
    if width >= 76:
        assert words.count("undecided") == sum(one.verdict == "undecided" for one in comparison.differences) > 0
        assert {"fid[mini]", "fvd[mini]", "teacher", "109.29", "-19.85"} <= set(words)


def test_a_gap_of_several_metrics_is_told_once() -> None:
    skipped = {"skipped": "a can't be sampled so", "direction": "down", "version": 1}
    records = [make(label, {"fid": of_set(1.0, 1), "kid": of_set(2.0, 2)}) for label in "ab"]
    records += [make("a", {"fid": skipped, "kid": skipped}, steps=28), make("b", {"fid": of_set(1.0)}, steps=28)]
    comparison = compare(records, "a", "b")
    gaps = [line for line in comparing.remarks(comparison) if line.startswith("no difference")]
    assert gaps == ["no difference in fid, kid at steps 28: a can't be sampled so"]


def test_the_command(tmp_path: Path) -> None:
    for record in [*seeds([10.0, 12.0], [11.0, 13.5]), make("a", {"fid": of_set(4.0)}, steps=1), real()]:
        write_record(record, tmp_path / "records")
    app = typer.Typer()
    app.command()(comparing.compare)
    runner = CliRunner()
    shown = runner.invoke(app, ["a", "b", "--folder", str(tmp_path), "--steps", "4"])
    assert shown.exit_code == 0 and "undecided" in shown.output, shown.output
    chosen = runner.invoke(app, ["a", "real (noise floor)", "--folder", str(tmp_path), "--steps", "4", "--json"])
    assert [one["steps"] for one in json.loads(chosen.output)["differences"]] == [4]
    told = runner.invoke(app, ["a", "real (noise floor)", "--folder", str(tmp_path), "--json"])
    data = json.loads(told.output)
    assert (data["a"], data["b"], data["level"], data["backbone"]) == ("a", "real (noise floor)", 0.95, "mini")
    first, second = data["differences"]
    assert (first["steps"], first["verdict"], first["estimate"]["value"]) == (1, "worse", 3.0)
    assert first["spread"] == {"sd": None, "n": 1, "low": None, "high": None}
    assert second["seeds"] == [0, 1] and second["spread"]["low"] < second["spread"]["high"]
    refused = runner.invoke(app, ["a", "c", "--folder", str(tmp_path)])
    assert isinstance(refused.exception, BenchError)
