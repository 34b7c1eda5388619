"""Damaged runs, and paths that can't be used: told with what, why and cure, and nothing finished is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from w2svd_bench.train.checkpoint import FOLDER as CHECKPOINT

# Fixtures of conftest.py: what a command left, as `Outcome`; and the arguments of a training of seconds.
Command = Callable[..., Any]
Tiny = Callable[..., list[str]]

RESULTS = Path(__file__).resolve().parents[2] / "results" / "mini-tuning-edges"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the exported generator."""
    (file,) = (folder / "generator").rglob("*.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def lcm_run(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, cache: Path) -> Path:
    """A folder of runs with one finished run of LCM; copy it before damaging it."""
    from w2svd_bench.cli.app import run

    out = tmp_path_factory.mktemp("lcm")
    assert run(["train", "--method", "lcm", *tiny(), "--out", str(out)]) == 0
    return out


@pytest.fixture
def damaged(lcm_run: Path, tmp_path: Path) -> Path:
    """A copy of that run's folder, below ``tmp_path / "runs"``, to be damaged."""
    shutil.copytree(lcm_run, tmp_path / "runs")
    return tmp_path / "runs" / "mini" / "lcm" / "seed0"


def test_weights_that_training_did_not_leave_are_refused(refused: Command, damaged: Path, tmp_path: Path) -> None:
    (file,) = (damaged / "generator").rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    where = ["--out", tmp_path / "runs", "--device", "cpu"]
    outcome = refused("sample", "--method", "lcm", "--to", tmp_path / "to", *where)
    assert "are not those that its training left" in outcome.text and "train the run again" in outcome.text
    assert not (tmp_path / "to").exists()


def test_a_truncated_checkpoint_is_refused(cli: Command, refused: Command, tiny: Tiny, damaged: Path) -> None:
    """With the cure that it names, training goes through again and ends where it ended before."""
    before = weights(damaged)
    state = json.loads((damaged / "run.json").read_text())
    (damaged / "run.json").write_text(json.dumps(state | {"finished": False}))
    (file,) = (damaged / CHECKPOINT).rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])
    arguments = ["train", "--method", "lcm", *tiny(), "--out", damaged.parents[2]]
    outcome = refused(*arguments)
    assert "can't be read" in outcome.text and "delete that folder to start over" in outcome.text
    shutil.rmtree(damaged / CHECKPOINT)
    assert cli(*arguments).status == 0 and same(weights(damaged), before)


@pytest.mark.parametrize("content", ["{", "[]", '{"method": "lcm"}'])
def test_a_damaged_run_file_is_refused(refused: Command, damaged: Path, content: str) -> None:
    (damaged / "run.json").write_text(content)
    outcome = refused("eval", "--out", damaged.parents[2], "--device", "cpu")
    assert "is not a run" in outcome.text and "lcm" in outcome.text


def test_a_run_of_a_newer_version_is_told_as_one(refused: Command, damaged: Path) -> None:
    state = json.loads((damaged / "run.json").read_text())
    (damaged / "run.json").write_text(json.dumps(state | {"colour": "blue"}))
    outcome = refused("eval", "--out", damaged.parents[2], "--device", "cpu")
    assert "doesn't know: colour" in outcome.text and "is not a run" not in outcome.text


def test_an_unfinished_run_is_left_out_with_a_note(cli: Command, refused: Command, damaged: Path) -> None:
    state = json.loads((damaged / "run.json").read_text())
    (damaged / "run.json").write_text(json.dumps(state | {"finished": False}))
    outcome = cli("eval", "--steps", "1", "--dry-run", "--out", damaged.parents[2], "--device", "cpu")
    assert outcome.status == 0 and "is not finished and is left out" in outcome.text
    assert "at 1 steps" not in outcome.text
    outcome = refused("sample", "--method", "lcm", "--out", damaged.parents[2], "--device", "cpu")
    assert "is not finished" in outcome.text and "train --method lcm --label lcm --seed 0" in outcome.text


def test_a_path_that_can_not_be_used_is_named(refused: Command, tmp_path: Path) -> None:
    """Whatever the system has against it, and wherever in the program that shows."""
    file = tmp_path / "file"
    file.write_text("mine")
    for arguments in (("leaderboard", RESULTS, "--filter", "steps=1", "--out"), ("merge", RESULTS, "--into")):
        outcome = refused(*arguments, file)
        assert str(file) in outcome.text and "can't be used" in outcome.text and "check the path" in outcome.text
        assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told(
    error: Exception, refused: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise error

    monkeypatch.setattr("w2svd_bench.cli.boards.write_board", full)
    outcome = refused("leaderboard", RESULTS, "--filter", "steps=1", "--out", tmp_path)
    assert "No space left" in outcome.text and "can't be written" in outcome.text
