"""Records that travel: joined from several machines without mixing what differs, and checked before they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from w2svd_bench.cli import boards
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.merge import differing, merge
from w2svd_bench.leaderboard.validate import validate
from w2svd_bench.record import Record, read_records, write_record
from w2svd_bench.uncertainty import jackknife_se

import records
from records import score

ROOT = Path(__file__).resolve().parents[2]


ORIGIN = {"w2svd_bench": "0.1.0", "git": {"commit": "ab" * 20, "dirty": False}, "device": "cpu"}
LEAVE_OUT = [9.0, 10.0, 11.0, 10.5]


def make(label: str = "lcm", steps: int = 4, **other: Any) -> Record:
    """A record that `validate` has nothing to say about."""
    made: Record = records.make(label, steps, **({"provenance": ORIGIN} | other))
    return made


def folder(path: Path, *records: Record) -> Path:
    for one in records:
        write_record(one, path / "records")
    return path


def names(path: Path) -> list[str]:
    return sorted(one.name for one in (path / "records").iterdir())


def run(command: Callable[..., None], *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


# --- merge ------------------------------------------------------------------------------------------------------------


def test_floors_that_every_machine_measures_are_no_conflict(tmp_path: Path) -> None:
    floors = [
        make("real (noise floor)", 0, cell={"method": "real"}, provenance=ORIGIN | {"time_utc": f"2026-01-0{day}"})
        for day in (1, 2)
    ]
    ours = folder(tmp_path / "a", make("lcm", 1), floors[0])
    theirs = folder(tmp_path / "b", make("dmd", 4), floors[1])
    merged = merge([ours, theirs], tmp_path / "out")
    assert merged.repeated == 1 and len(merged.records) == 3
    assert [one for one in read_records(tmp_path / "out") if one.cell.method == "real"] == [floors[0]]


def test_records_of_several_machines_are_joined(tmp_path: Path) -> None:
    ours = folder(tmp_path / "a", make("lcm", 1), make("lcm", 4))
    theirs = folder(tmp_path / "b", make("lcm", 4), make("dmd", 4))
    merged = merge([ours, theirs], tmp_path / "out")
    expected = sorted(one.file_name for one in (make("lcm", 1), make("lcm", 4), make("dmd", 4)))
    assert names(tmp_path / "out") == expected
    assert merged.brought == {ours: 2, theirs: 2} and merged.repeated == 1
    source = ours / "records" / make("lcm", 4).file_name
    assert (tmp_path / "out" / "records" / source.name).read_bytes() == source.read_bytes()
    assert names(ours) == sorted(one.file_name for one in (make("lcm", 1), make("lcm", 4))), "sources stay as they are"


def test_what_is_there_stays(tmp_path: Path) -> None:
    out, more = folder(tmp_path / "out", make("lcm", 1)), folder(tmp_path / "a", make("dmd", 1))
    merge([more], out)
    again = merge([out, more], out)  # once more, and naming it as a source as well: nothing changes
    assert again.repeated == 1 and again.brought == {out: 2, more: 1}
    assert {one.cell.label for one in read_records(out)} == {"lcm", "dmd"}


def test_two_records_of_a_cell_that_differ_are_refused(tmp_path: Path) -> None:
    ours = folder(tmp_path / "a", make(fid=10.0), make("dmd"))
    other = make(fid=10.5, timing={"wall_seconds": 11.0})
    theirs, out = folder(tmp_path / "b", other), folder(tmp_path / "out", make("euler"))
    for sources in ([ours, theirs], [theirs, ours]):
        with pytest.raises(BenchError, match=r"1 cell\(s\) have two records that differ") as caught:
            merge(sources, out)
        assert caught.value.why.startswith(f"{other.file_name} of {sources[0]} and {sources[1]}: ")
        assert "metrics.fid[mini].value (10." in caught.value.why and "timing.wall_seconds (" in caught.value.why
    assert names(out) == [make("euler").file_name], "nothing was written"
    with pytest.raises(BenchError, match="two records that differ"):
        merge([theirs], folder(tmp_path / "out2", make(fid=10.0)))  # what the folder has counts as well


def test_differing_fields_are_named_those_of_the_numbers_first() -> None:
    a = make(fid=score(10.0, leave_out=LEAVE_OUT), training={"updates": {"generator": 3}})
    b = make(fid=score(10.0), training={"updates": {}}, config={"alpha": None})
    assert differing(a, b) == [
        "metrics.fid[mini].leave_out ([9.0, 10.0, 11.0, 10.5] and [])",
        "config.alpha (nothing and None)",
        "training.updates (nothing and {})",
        "training.updates.generator (3 and nothing)",
    ]
    assert differing(a, a) == []


def test_what_no_table_may_hold_is_not_joined(tmp_path: Path) -> None:
    """Another eval set; or the same method trained twice with one seed, which gave other weights."""
    ours = folder(tmp_path / "a", make())
    for i, other in enumerate((make("dmd", eval_set={"fps": 24}), make(cell={"checkpoint_sha256": "99" * 32}))):
        with pytest.raises(BenchError, match=r"can't stand in one table|there are two records"):
            merge([ours, folder(tmp_path / f"b{i}", other)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_above_the_sources_is_no_place_for_them(tmp_path: Path) -> None:
    ours = folder(tmp_path / "a", make())
    with pytest.raises(BenchError, match="would be there twice"):
        merge([ours], tmp_path)
    assert not (tmp_path / "records").exists()


def test_an_empty_or_missing_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="holds no records"):
        merge([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(BenchError, match="no such folder"):
        merge([tmp_path / "nowhere"], tmp_path / "out")


def test_the_command_renders_what_it_joined(tmp_path: Path) -> None:
    sources = [folder(tmp_path / name, make(name), make("both")) for name in "ab"]
    outcome = run(boards.merge, *sources, "--into", tmp_path / "out")
    assert outcome.exit_code == 0
    assert outcome.output.startswith("3 records: 2 of ") and "1 were there twice" in outcome.output
    assert "| both | 4 |" in (tmp_path / "out" / "leaderboard.md").read_text()
    again = json.loads(run(boards.merge, sources[0], "--into", tmp_path / "out", "--json").output)
    assert len(again) == 3


# --- validate ---------------------------------------------------------------------------------------------------------


def problems(path: Path, publishable: bool = False) -> list[str]:
    return [one.text for one in validate(path, publishable).problems]


def per_clip(**other: Any) -> Any:
    base = {"values": [1.0, None, 2.0], "prompts": [0, 1, 2], "n": 2, "weights_sha256": None}
    return score(1.5, **(base | other))


def test_sound_records_have_no_problem(tmp_path: Path) -> None:
    sound = make(fid=score(10.0, se=jackknife_se(LEAVE_OUT), leave_out=LEAVE_OUT))
    clips = make("dmd", metrics={"x": per_clip()})
    floor = make("real", 0, cell={"method": "real", "checkpoint_sha256": ""})
    report = validate(folder(tmp_path, sound, clips, floor), publishable=True)
    assert report.findings == () and report.num_files == 3


@pytest.mark.parametrize("results", ["mini", "mini-tuning"])
def test_the_results_of_the_repository_are_valid(results: str) -> None:
    assert problems(ROOT / "results" / results) == []


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (make(eval_set={"prompts_sha256": ""}), "eval_set.prompts_sha256 is '', no sha256"),
        (make(eval_set={"reference_sha256": "AB" * 32}), "eval_set.reference_sha256 is"),
        (make(cell={"checkpoint_sha256": ""}), "cell.checkpoint_sha256 is '', no sha256"),
        (make(fid=score(1.0, weights_sha256=None)), "metrics.fid[mini].weights_sha256 is None, no sha256"),
        (make(metrics={"x": per_clip(weights_sha256="abc")}), "metrics.x.weights_sha256 is 'abc', no sha256"),
        (make(fid=score(1.0, n=513)), "metrics.fid[mini]: n is 513, more than the 512 clips"),
        (make(fid=score(9.9, leave_out=LEAVE_OUT)), "metrics.fid[mini]: se is 0.5, and 1.28"),
        (make(fid=score(9.9, leave_out=[1.0])), "metrics.fid[mini]: se is 0.5, and None"),
        (make(metrics={"x": per_clip(values=[1.0, None, 2.5])}), "metrics.x: its value is 1.5, and the mean of"),
        (make(metrics={"x": per_clip(n=3)}), "metrics.x: n is 3, and 2 clips have a value"),
        (make(metrics={"x": per_clip(prompts=[0, 1])}), "metrics.x: it has 3 values of 2 clips' prompts"),
        (make(provenance=ORIGIN | {"data": ["/home/someone/clips"]}), "provenance.data.0 is a path of one"),
        (make(config={"data": {"folder": "C:\\clips"}}), "config.data.folder is a path of one machine: 'C:\\\\clips'"),
        (make(config={"data": "~/clips"}), "config.data is a path of one machine"),
    ],
)
def test_problems_of_a_record(record: Record, text: str, tmp_path: Path) -> None:
    report = validate(folder(tmp_path, record))
    (found,) = report.problems
    assert text in found.text and found.file == Path("records") / record.file_name


def test_a_record_without_metrics_or_origin(tmp_path: Path) -> None:
    data = make().model_dump(mode="json") | {"metrics": {}, "provenance": {}}
    found = problems(folder(tmp_path, Record.model_validate(data)))
    assert found == ["it has no metrics", "provenance names no version of w2svd_bench"]


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda data: data | {"schema_version": 2}, "schema_version is 2, and should be 1"),
        (lambda data: data | {"surprise": 1}, "surprise: Extra inputs"),
        (lambda data: data | {"cell": data["cell"] | {"eval_set": "other"}}, "the cell's eval set 'other' is not"),
        (lambda data: [data], "schema_version is None"),
    ],
)
def test_files_that_are_no_records(harm: Callable[[Any], Any], text: str, tmp_path: Path) -> None:
    path = folder(tmp_path, make("dmd")) / "records" / "x.json"
    path.write_text(json.dumps(harm(make().model_dump(mode="json"))))
    (found,) = problems(tmp_path)
    assert text in found


def test_every_file_is_looked_at(tmp_path: Path) -> None:
    """A damaged one hides nothing of those behind it; a copy, a wrong name and a mixture are found."""
    path = folder(tmp_path, make(), make("dmd", eval_set={"fps": 24})) / "records"
    (path / "0.json").write_text("{")
    (path / "y.json").write_text((path / make().file_name).read_text())
    texts = {str(one.file): one.text for one in validate(tmp_path).findings}
    assert texts["records/0.json"].startswith("not valid JSON")
    assert texts["records/y.json"] == f"its cell's file is called {make().file_name}"
    assert "differ: eval_set.fps is 24.0 and 12.0" in texts["None"]
    found = [one.text for one in validate(tmp_path).findings if str(one.file) == "records/y.json"]
    assert f"the same cell as records/{make().file_name}" in found


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (make(metrics={"fid[stand-in]": score(1.0)}), "random weights, which mean nothing: fid[stand-in]"),
        (make(fid=score(1.0, flags=["stand-in weights"])), "random weights, which mean nothing: fid[mini]"),
        (make(provenance=ORIGIN | {"git": {"commit": "ab", "dirty": True}}), "changes that no commit holds"),
    ],
)
def test_drafts_are_remarks_until_they_are_to_be_published(record: Record, text: str, tmp_path: Path) -> None:
    folder(tmp_path, record)
    (remark,) = validate(tmp_path).findings
    assert remark.kind == "remark" and text in remark.text and problems(tmp_path) == []
    (problem,) = problems(tmp_path, publishable=True)
    assert problem == remark.text
    outcome = run(boards.validate, tmp_path)
    assert outcome.exit_code == 0 and "remarks are problems with --publishable" in outcome.output
    assert run(boards.validate, tmp_path, "--publishable").exit_code == 1


def test_the_command_prints_a_table_and_exits_with_one(tmp_path: Path) -> None:
    bad = make(eval_set={"prompts_sha256": "[bold]x"})
    folder(tmp_path, bad)
    outcome = run(boards.validate, tmp_path)
    assert outcome.exit_code == 1 and "[bold]x" in outcome.output and bad.file_name in outcome.output
    assert "1 records" in outcome.output and "1 problem(s), 0 remark(s)" in outcome.output
    told = run(boards.validate, tmp_path, "--json")
    data = json.loads(told.output)
    assert told.exit_code == 1 and data["valid"] is False and data["files"] == 1
    assert data["findings"][0]["file"] == f"records/{bad.file_name}"


def test_nothing_to_validate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no records"):
        validate(tmp_path)
    with pytest.raises(BenchError, match="no such folder"):
        validate(tmp_path / "nowhere")
