"""The grid from trained runs to the table, by the command line: 16 clips, trainings of two iterations.

The grid is evaluated once, in ``grid``; tests that change anything work on a copy of what it left.
"""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from w2svd_bench.record import Record, Score, SkippedScore, read_records
from w2svd_bench.registry import METHODS
from w2svd_bench.train.run import Run

Command = Callable[..., Any]
Tiny = Callable[..., list[str]]

CLIPS = ["--clips", "16", "--device", "cpu"]
RESULTS = Path("mini") / "results-test-16"
TRAINED = ("dmd", "lcm", "w2svd")


@dataclass(frozen=True)
class Evaluated:
    """A folder of runs that were evaluated at 1, 4 and 28 steps, and the method of a file among them."""

    out: Path
    plugin: Path

    @property
    def records(self) -> dict[tuple[str, int], Record]:
        """The records of the table by label and steps."""
        return {(one.cell.label, one.cell.steps): one for one in read_records(self.out / RESULTS)}


@pytest.fixture(autouse=True)
def _forget_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of a file is registered for this process; the next test starts without it."""
    monkeypatch.setattr(METHODS, "_registered", dict(METHODS._registered))


@pytest.fixture(scope="module")
def grid(session_folder: Path, tiny: Tiny, reference: None) -> Evaluated:
    """Five methods, one of them from a file that ``new-method`` wrote, at 1, 4 and 28 steps.

    Of several workers one makes it and the others wait; no test changes what is in it.
    """
    out = session_folder / "grid"
    plugin, finished = out / "fresh.py", out / "finished"
    with (session_folder / "grid.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            _make_grid(out, plugin, tiny())
            finished.touch()
    return Evaluated(out, plugin)


def _make_grid(out: Path, plugin: Path, tiny: list[str]) -> None:
    from w2svd_bench.cli.app import run

    registered = dict(METHODS._registered)
    where = ["--out", str(out)]
    assert run(["new-method", "fresh", "--folder", str(out)]) == 0
    assert run(["train", "--method", "euler", "--device", "cpu", *where]) == 0
    for method in TRAINED:
        assert run(["train", "--method", method, *tiny, *where]) == 0
    assert run(["train", "--plugin", str(plugin), "--method", "fresh", *tiny, *where]) == 0
    METHODS._registered = dict(registered)  # eval has to find the file by itself, through the run
    assert run(["eval", "--steps", "1", "4", "28", *CLIPS, *where]) == 0
    METHODS._registered = registered


@pytest.fixture
def copied(grid: Evaluated, tmp_path: Path) -> Evaluated:
    """A copy to change."""
    shutil.copytree(grid.out, tmp_path / "runs", ignore=shutil.ignore_patterns("*.tmp"))
    return Evaluated(tmp_path / "runs", grid.plugin)


def stamps(folder: Path) -> dict[str, int]:
    """When each record and sheet was written, to the nanosecond."""
    paths = [*folder.glob("records/**/*.json"), *folder.glob("sheets/*.png")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def test_every_run_has_a_record_at_every_number_of_steps(grid: Evaluated) -> None:
    records = grid.records
    assert {label for label, _ in records} == {"euler", "fresh", *TRAINED} | {
        "real (noise floor)",
        "real, through the codec",
        "teacher, 28 steps (noise floor)",
    }
    assert len(records) == 5 * 3 + 3
    for (label, steps), record in records.items():
        assert record.eval_set.name == "portraits-test-16" and record.eval_set.num_clips == 16
        if record.cell.method in ("real", "teacher"):
            continue
        run = Run.load(grid.out / "mini" / label / "seed0")
        assert record.cell.checkpoint_sha256 == run.weights_sha256
        assert record.config == run.config and record.training.updates == run.updates
        assert record.sampling.nfe == steps == len(record.sampling.levels) - 1
        assert record.sampling.sampler == ("ode" if label == "euler" or (label, steps) == ("dmd", 28) else "sde") or (
            label == "w2svd" and steps == 28
        )
        scored = [isinstance(score, Score) and score.n == 16 for score in record.metrics.values()]
        assert scored == [not (label in ("dmd", "w2svd") and steps == 28)] * 4
    assert str(grid.out) not in "".join(path.read_text() for path in (grid.out / RESULTS).glob("records/*.json"))


def test_dmd_at_28_steps_is_a_dash_with_its_reason(grid: Evaluated) -> None:
    record = grid.records["dmd", 28]
    for score in record.metrics.values():
        assert isinstance(score, SkippedScore) and "dmd can't be sampled in 28 steps" in score.skipped
    markdown = (grid.out / RESULTS / "leaderboard.md").read_text()
    (line,) = [line for line in markdown.splitlines() if line.startswith("| dmd | 28 |")]
    assert "—" in line or "–" in line
    assert "dmd can't be sampled in 28 steps" in markdown


def test_the_three_files_of_the_table_agree(grid: Evaluated) -> None:
    folder = grid.out / RESULTS
    with (folder / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    markdown, latex = (folder / "leaderboard.md").read_text(), (folder / "leaderboard.tex").read_text()
    for label in ("euler", "fresh", *TRAINED):
        assert sum(row["label"] == label for row in rows) == 3
        assert sum(line.startswith(f"| {label} |") for line in markdown.splitlines()) == 3
        assert sum(line.startswith(f"{label} &") for line in latex.splitlines()) == 3


def test_every_run_has_a_contact_sheet(grid: Evaluated) -> None:
    """Four prompts: the real clip and one row for each number of steps that the method has."""
    sheets = {path.stem: Image.open(path).size for path in (grid.out / RESULTS / "sheets").glob("*.png")}
    assert set(sheets) == {f"{label}-seed0" for label in ("euler", "fresh", *TRAINED)}
    for stem, size in sheets.items():
        rows = 4 * (1 + (2 if stem in ("dmd-seed0", "w2svd-seed0") else 3))
        assert size == (5 * 100 + 4, rows * 114 + 4), stem


def test_a_second_evaluation_does_nothing_new_in_any_spelling(cli: Command, grid: Evaluated) -> None:
    before = stamps(grid.out / RESULTS)
    assert len(before) == 18 + 5
    for spelling in (["--steps", "1", "4", "28"], ["--steps", "1,4,28"], ["--steps", "1", "--steps", "4,28"]):
        outcome = cli("eval", *spelling, *CLIPS, "--out", grid.out)
        assert outcome.status == 0 and "clips" not in outcome.out.split("written:")[0].split("fid")[0]
        assert stamps(grid.out / RESULTS) == before


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_missing_is_evaluated_again_to_the_same_numbers(
    cli: Command, copied: Evaluated, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost record, and only that one, is made anew; scores are those of the first time.

    What was read of its clips is kept, so none is sampled; where it is lost too, they are sampled again.
    """
    if not kept:
        monkeypatch.setattr("w2svd_bench.evaluate.cell.run_key", lambda *given: uuid.uuid4().hex)
    old = copied.records["lcm", 4]
    folder = copied.out / RESULTS
    (folder / "records" / old.file_name).unlink()
    before = stamps(folder)
    outcome = cli("eval", "--steps", "4", "--methods", "lcm", *CLIPS, "--out", copied.out)
    assert outcome.status == 0 and ("lcm seed 0, 4 steps: 16/16" in outcome.err) == (not kept)
    new = copied.records["lcm", 4]
    assert new.metrics == old.metrics and new.diagnostics == old.diagnostics and new.cell == old.cell
    changed = {name for name, stamp in stamps(folder).items() if before.get(name) != stamp}
    assert changed == {f"records/{old.file_name}"} | (set() if kept else {"sheets/lcm-seed0.png"})


def test_records_of_older_weights_are_set_aside(cli: Command, tiny: Tiny, copied: Evaluated) -> None:
    """Retrained after its folder was deleted: the table has the new number, the old record is kept."""
    old = copied.records["lcm", 1]
    shutil.rmtree(copied.out / "mini" / "lcm")
    assert cli("train", "--method", "lcm", *tiny("training.iterations=3"), "--out", copied.out).status == 0
    assert cli("eval", "--steps", "1,4,28", "--methods", "lcm", *CLIPS, "--out", copied.out).status == 0
    new = copied.records["lcm", 1]
    assert new.cell.checkpoint_sha256 != old.cell.checkpoint_sha256
    assert new.training.updates == {"generator": 3}
    aside = copied.out / RESULTS / "records" / "superseded"
    assert len(list(aside.glob("*.json"))) == 3
    assert read_records(aside)[0].cell.label == "lcm" and (aside / old.file_name).is_file()
    assert len(copied.records) == 18


def test_records_of_older_weights_are_set_aside_at_all_steps(cli: Command, tiny: Tiny, copied: Evaluated) -> None:
    """Evaluated at one number of steps only: those of the others are of a generator that is no more."""
    shutil.rmtree(copied.out / "mini" / "lcm")
    assert cli("train", "--method", "lcm", *tiny("training.iterations=3"), "--out", copied.out).status == 0
    assert cli("eval", "--steps", "1", "--methods", "lcm", *CLIPS, "--out", copied.out).status == 0
    assert [steps for label, steps in copied.records if label == "lcm"] == [1]
    assert len(list((copied.out / RESULTS / "records" / "superseded").glob("*.json"))) == 3


def test_what_was_sampled_otherwise_is_evaluated_again(cli: Command, copied: Evaluated) -> None:
    """The teacher's weights are the same at any shift, the clips are not."""
    for shift in (7.0, 5.0):
        shutil.rmtree(copied.out / "mini" / "euler")
        arguments = ["--set", f"shift={shift}", "--device", "cpu", "--out", copied.out]
        assert cli("train", "--method", "euler", *arguments).status == 0
        old = copied.records["euler", 4]
        assert cli("eval", "--steps", "4", "--methods", "euler", *CLIPS, "--out", copied.out).status == 0
        new = copied.records["euler", 4]
        assert new.sampling.shift == shift and new.config["shift"] == shift and new.metrics != old.metrics
    before = stamps(copied.out / RESULTS)
    assert cli("eval", "--steps", "4", "--methods", "euler", *CLIPS, "--out", copied.out).status == 0
    assert stamps(copied.out / RESULTS) == before
    aside = [json.loads(path.read_text()) for path in (copied.out / RESULTS / "records" / "superseded").glob("*.json")]
    assert sorted(one["sampling"]["shift"] for one in aside) == [3.0, 3.0, 3.0, 7.0], "at 1, 4 and 28 steps, and at 4"


def test_a_cell_without_scores_goes_with_the_metrics_of_today(cli: Command, copied: Evaluated) -> None:
    """Of an older version it would be refused in a table beside cells of this one, and stay so."""
    label, steps = next(
        cell for cell, one in copied.records.items() if all(isinstance(s, SkippedScore) for s in one.metrics.values())
    )
    now = copied.records[label, steps]
    path = copied.out / RESULTS / "records" / now.file_name
    data = json.loads(path.read_text())
    for score in data["metrics"].values():
        score["version"] -= 1
    path.write_text(json.dumps(data))
    assert cli("eval", "--steps", steps, "--methods", label, *CLIPS, "--out", copied.out).status == 0
    assert copied.records[label, steps].metrics == now.metrics


def test_what_is_set_aside_twice_is_kept_twice(cli: Command, copied: Evaluated) -> None:
    """The same cell, by older metrics each time: its file has one name."""
    path = copied.out / RESULTS / "records" / copied.records["euler", 4].file_name
    for value in (-1.0, -2.0):
        data = json.loads(path.read_text())
        data["metrics"]["fid[mini]"] |= {"id": "another metric", "value": value}
        path.write_text(json.dumps(data))
        assert cli("eval", "--steps", "4", "--methods", "euler", *CLIPS, "--out", copied.out).status == 0
    aside = [json.loads(one.read_text()) for one in (path.parent / "superseded").glob("*.json")]
    assert sorted(one["metrics"]["fid[mini]"]["value"] for one in aside) == [-2.0, -1.0]


def test_a_record_says_what_its_run_was_trained_on(grid: Evaluated) -> None:
    for (label, steps), one in grid.records.items():
        if label in (*TRAINED, "euler"):
            run = Run.load(grid.out / "mini" / label / "seed0")
            assert one.training.backbone_sha256 == run.backbone_sha256 != "", (label, steps)
            assert one.training.data == run.data and bool(run.data) == (label != "euler")
            assert one.training.code == run.code and run.code["w2svd_bench"]


def test_another_eval_set_has_a_folder_of_its_own(cli: Command, copied: Evaluated) -> None:
    arguments = ["--methods", "euler", "--clips", "8", "--split", "validation", "--device", "cpu"]
    before = stamps(copied.out / RESULTS)
    assert cli("eval", "--steps", "1", *arguments, "--out", copied.out).status == 0
    assert stamps(copied.out / RESULTS) == before
    records = read_records(copied.out / "mini" / "results-validation-8")
    assert {one.eval_set.name for one in records} == {"portraits-validation-8"} and len(records) == 4


def test_json_is_json(cli: Command, grid: Evaluated) -> None:
    """Of ``leaderboard``, and of ``eval`` with all that it may have to say besides."""
    table = json.loads(cli("leaderboard", grid.out / RESULTS, "--json").out)
    assert len(table) == 18 and {row["label"] for row in table} >= {"euler", *TRAINED}
    assert json.loads(cli("eval", "--steps", "1", *CLIPS, "--json", "--out", grid.out).out) == table


def test_json_is_json_while_work_is_done(cli: Command, copied: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress and notes go elsewhere."""
    monkeypatch.setattr("w2svd_bench.evaluate.cell.run_key", lambda *given: uuid.uuid4().hex)
    for path in (copied.out / RESULTS / "records").glob("euler-steps1-*.json"):
        path.unlink()
    run = copied.out / "mini" / "lcm" / "seed0" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"finished": False}))
    outcome = cli("eval", "--steps", "1", *CLIPS, "--json", "--out", copied.out)
    assert len(json.loads(outcome.out)) == 18
    assert "is not finished and is left out" in outcome.err and "euler seed 0, 1 step" in outcome.err


def test_leaderboard_renders_the_same_bytes_again(cli: Command, copied: Evaluated) -> None:
    folder = copied.out / RESULTS
    before = {path.name: path.read_bytes() for path in folder.glob("leaderboard.*")}
    assert set(before) == {"leaderboard.csv", "leaderboard.md", "leaderboard.tex"}
    for name in before:
        (folder / name).unlink()
    outcome = cli("leaderboard", folder, "--diagnostics")
    assert outcome.status == 0 and "colour" in outcome.out
    assert {path.name: path.read_bytes() for path in folder.glob("leaderboard.*")} == before


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_a_corrupt_record_is_named(refused: Command, copied: Evaluated, content: str) -> None:
    """By ``leaderboard``, by an ``eval`` that has nothing to do, and by one that looks through the records."""
    records = copied.out / RESULTS / "records"
    broken = next(records.glob("lcm-steps4-*.json"))
    broken.write_text(content)
    assert broken.name in refused("leaderboard", copied.out / RESULTS).text
    assert broken.name in refused("eval", "--steps", "4", *CLIPS, "--out", copied.out).text
    next(records.glob("euler-steps1-*.json")).unlink()
    where = ["--methods", "euler", *CLIPS, "--out", copied.out]
    assert broken.name in refused("eval", "--steps", "1", *where).text


def test_changed_weights_are_not_evaluated(refused: Command, copied: Evaluated) -> None:
    (file,) = (copied.out / "mini" / "dmd" / "seed0" / "generator").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    before = stamps(copied.out / RESULTS)
    outcome = refused("eval", "--steps", "1", "2", "--methods", "dmd", *CLIPS, "--out", copied.out)
    assert "are not those that its training left" in outcome.text and "dmd" in outcome.text
    assert stamps(copied.out / RESULTS) == before


def test_a_plugin_file_that_is_gone_is_named(refused: Command, copied: Evaluated) -> None:
    run = copied.out / "mini" / "fresh" / "seed0" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"plugin": "gone.py"}))
    outcome = refused("eval", "--steps", "1", "--methods", "fresh", *CLIPS, "--out", copied.out)
    assert "gone.py" in outcome.text and "there is no such file" in outcome.text
