"""What is evaluated belongs together: a run to its backbone, a record to the metrics that are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
CLIPS = ["--clips", "16", "--device", "cpu", "--steps", "1"]


@pytest.fixture
def euler(cli: Command, tmp_path: Path) -> Path:
    """A folder of runs with one that needs no training."""
    assert cli("train", "--method", "euler", "--device", "cpu", "--out", tmp_path).status == 0
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_run_of_another_backbone_is_not_evaluated_and_not_gone_on_with(euler: Path, refused: Command) -> None:
    run = euler / "mini" / "euler" / "seed0" / "run.json"
    edit(run, lambda data: data.update(backbone_sha256="0" * 64))
    assert "belongs to another mini" in refused("eval", *CLIPS, "--out", euler).text
    assert "on another mini" in refused("train", "--method", "euler", "--device", "cpu", "--out", euler).text
    assert json.loads(run.read_text())["finished"]


def test_a_record_by_another_metric_is_set_aside_and_measured_again(euler: Path, cli: Command, reference: None) -> None:
    records = euler / "mini" / "results-test-16" / "records"
    assert cli("eval", *CLIPS, "--out", euler).status == 0
    (path,) = records.glob("euler-*.json")
    before = path.read_text()
    edit(path, lambda data: data["metrics"]["fid[mini]"].update(id="another metric", value=-1.0))
    assert cli("eval", *CLIPS, "--out", euler).status == 0
    after, old = json.loads(path.read_text()), records / "superseded" / path.name
    assert after["metrics"] == json.loads(before)["metrics"]
    assert json.loads(old.read_text())["metrics"]["fid[mini]"]["value"] == -1.0


@pytest.mark.parametrize("label", ["results", "results-mine", "-x", "a/b", ""])
def test_a_label_can_not_take_the_place_of_the_results(label: str, tmp_path: Path, refused: Command) -> None:
    outcome = refused("train", "--method", "euler", f"--label={label}", "--out", tmp_path)
    assert "can't name a run" in outcome.text
    assert not any(tmp_path.iterdir())


def test_a_backbone_that_is_not_there_is_named(tmp_path: Path, refused: Command) -> None:
    assert "nowhere" in refused("train", "--method", "lcm", "--backbone", tmp_path / "nowhere").text
