"""Evaluation beyond the portraits of the miniature, by the command line: caches, other sizes, first frames."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.portraits import captions, clips
from w2svd_bench.data.prepare import Source, prepare
from w2svd_bench.evaluate.pictures import write_video
from w2svd_bench.record import Record, SkippedScore, read_records

Command = Callable[..., Any]
HELD_OUT = 8
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine portraits as mp4 files with their captions beside them."""
    folder = tmp_path_factory.mktemp("videos")
    for number, (clip, caption) in enumerate(
        zip(clips("features", range(9)).numpy(), captions("features", range(9)), strict=True)
    ):
        write_video(clip, folder / f"v{number}.mp4", fps=12)
        (folder / f"v{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def prepared(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches") / "heads"
    prepare(folder, Backbone.load("mini"), Source(videos, test=HELD_OUT))
    return folder


@pytest.fixture
def euler(cli: Command, tmp_path: Path) -> Path:
    """A folder of runs with one that needs no training."""
    assert cli("train", "--method", "euler", *CPU, "--out", tmp_path / "runs").status == 0
    return tmp_path / "runs"


def records(folder: Path) -> dict[str, Record]:
    return {f"{one.cell.label}@{one.cell.steps}": one for one in read_records(folder)}


def test_runs_are_evaluated_on_the_held_out_clips_of_a_cache(
    cli: Command, euler: Path, prepared: Path, videos: Path
) -> None:
    arguments = ["eval", "--steps", "1", "--data", prepared, "--out", euler, *CPU]
    assert cli(*arguments, "--videos", videos).status == 0
    (results,) = (euler / "mini").glob("results-*")
    assert results.name.startswith(f"results-heads-test-{HELD_OUT}-")
    made = records(results)
    assert set(made) == {"real, through the codec@0", "teacher, 28 steps (noise floor)@28", "euler@1"}
    assert made["euler@1"].metrics["fid[mini]"].n == HELD_OUT  # type: ignore[union-attr]
    assert made["euler@1"].eval_set.reference.endswith("real frames")
    sheet = Image.open(results / "sheets" / "euler-seed0.png")
    assert sheet.size == (5 * 100 + 4, 4 * 2 * 114 + 4)
    again = cli(*arguments, "--videos", videos)
    assert again.status == 0 and "euler seed 0, 1 step" not in again.err and len(records(results)) == 3
    # Without the videos the reference is another one: a set, and a folder, of its own.
    assert cli(*arguments, "--batch", "3", "--against", "real").status == 0
    coded = records(euler / "mini" / f"{results.name}-codec")
    assert set(coded) == {"euler@1"} and "through the codec" in coded["euler@1"].eval_set.reference
    assert coded["euler@1"].provenance["clips_at_a_time"] == 3
    assert not (euler / "mini" / "results").exists()


def test_runs_of_two_sizes_can_not_share_an_eval_set(cli: Command, refused: Command, euler: Path) -> None:
    """Alone, the run of another size is evaluated on portraits of its size: the mini nets can't read them."""
    size = ["video.height=64", "video.width=48", "video.num_frames=9", "video.fps=6", "shift=5", "guidance=2"]
    arguments = ["--label", "other", "--set", *size, *CPU, "--out", euler]
    assert cli("train", "--method", "euler", *arguments).status == 0
    mixed = refused("eval", "--steps", "1", "--clips", "8", *CPU, "--out", euler)
    assert "9 frames of 48x64 at 6" in mixed.text and "17 of 48x48 at 12" in mixed.text
    assert not (euler / "mini" / "results-test-8").exists()  # before any work
    missing = refused("eval", "--steps", "1", "--clips", "8", "--methods", "other", *CPU, "--out", euler)
    assert "inception-pytorchfid" in missing.text  # at other sizes than the miniature's the default is fid and fvd
    metrics = ["--metrics", "fid[mini]", "fvd[mini]", "--against", "real"]
    outcome = cli("eval", "--steps", "1", "--clips", "8", "--methods", "other", *metrics, *CPU, "--out", euler)
    assert outcome.status == 0 and "17 frames of 48x48 only" in outcome.text
    (record,) = (one for one in read_records(euler / "mini" / "results-test-8") if one.cell.label == "other")
    assert all(isinstance(score, SkippedScore) for score in record.metrics.values())
    assert (record.eval_set.frames, record.eval_set.height, record.eval_set.width) == (9, 64, 48)
    assert (record.sampling.shift, record.sampling.guidance) == (5, 2)  # the run's recipe decides


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "is not a latent cache"),
        (["--data", "CACHE", "--split", "validation"], "leave --split out"),
        (["--videos", "VIDEOS"], "add --data CACHE"),
        (["--data", "CACHE", "--videos", "EMPTY"], f"it lacks {HELD_OUT} of {HELD_OUT} held-out videos"),
    ],
)
def test_an_eval_set_that_can_not_be_had_is_refused(
    refused: Command, euler: Path, prepared: Path, videos: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"CACHE": prepared, "VIDEOS": videos, "EMPTY": tmp_path / "empty"}
    given = [places.get(argument, argument) for argument in arguments]
    assert said in refused("eval", "--steps", "1", *given, *CPU, "--out", euler).text
    assert not list((euler / "mini").glob("results*"))


def test_held_out_prompts_are_sampled(cli: Command, refused: Command, prepared: Path, tmp_path: Path) -> None:
    """The clip of an eval set and the one that `sample` makes are the same."""
    where = ["--data", prepared, "--to", tmp_path / "to", "--out", tmp_path / "runs", *CPU]
    outcome = cli("sample", "--steps", "1", *where)
    assert outcome.status == 0 and len(outcome.out.split()) == 5
    assert iio.imread(tmp_path / "to" / "euler-steps1-seed0-3.mp4").shape == (17, 48, 48, 3)
    assert "don't go together" in refused("sample", "--prompt", "pale skin", *where).text


def test_a_first_frame_is_a_file(
    cli: Command, refused: Command, i2v_token_replace: Path, t2v_checkpoint: Path, tmp_path: Path
) -> None:
    side = {"recipe": "mini", "height": 32, "width": 48, "num_frames": 9, "fps": 8}
    for name, checkpoint in (("i2v", i2v_token_replace), ("t2v", t2v_checkpoint)):
        shutil.copytree(checkpoint, tmp_path / name)
        (tmp_path / name / "w2svd_bench.json").write_text(json.dumps({"backbone": name, **side}))
    Image.fromarray(clips("test", [0], 1, 64, 96)[0, 0].numpy()).save(tmp_path / "face.png")
    where = ["--steps", "1", "--to", tmp_path / "to", "--out", tmp_path / "runs", *CPU]
    i2v, t2v = (["--backbone", tmp_path / name, *where] for name in ("i2v", "t2v"))
    face = ["--image", tmp_path / "face.png"]
    outcome = cli("sample", *i2v, *face, "--prompt", "A talk", "--prompt", "A song")
    assert outcome.status == 0, outcome.text
    first, second = (iio.imread(tmp_path / "to" / f"euler-steps1-seed0-{k}.mp4") for k in (0, 1))
    assert first.shape == (9, 32, 48, 3) and not np.array_equal(first, second)
    assert cli("sample", *i2v).status == 0  # portraits, with their own first frames
    assert "needs a first frame" in refused("sample", *i2v, "--prompt", "A talk").text
    assert "takes no --image" in refused("sample", *t2v, *face, "--prompt", "A talk").text
    assert "2 images and 1 prompts" in refused("sample", *i2v, *face, *face, "--prompt", "A talk").text
    assert "can't be read" in refused("sample", *i2v, "--image", tmp_path / "none.png", "--prompt", "A talk").text


@pytest.mark.slow
def test_two_real_processes_leave_the_records_of_one(
    cli: Command, euler: Path, prepared: Path, videos: Path, tmp_path: Path
) -> None:
    arguments = ["--steps", "1", "2", "--data", prepared, "--videos", videos, "--batch", "3", *CPU, "--out", euler]
    assert cli("eval", *arguments).status == 0
    (results,) = (euler / "mini").glob("results-*")
    alone = records(results)
    shutil.rmtree(results)
    environment = os.environ | {"W2SVD_BENCH_CACHE": str(tmp_path / "another cache")}
    command = [sys.executable, "-m", "w2svd_bench", "eval", *map(str, arguments), "--nproc", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    together = records(results)
    assert (
        set(together)
        == set(alone)
        == {"real, through the codec@0", "teacher, 28 steps (noise floor)@28", "euler@1", "euler@2"}
    )
    for name, one in together.items():
        assert one.model_dump(exclude={"timing", "provenance"}) == alone[name].model_dump(
            exclude={"timing", "provenance"}
        )
        assert (one.provenance["processes"], alone[name].provenance["processes"]) == (2, 1)
    assert (results / "sheets" / "euler-seed0.png").is_file() and done.stdout.count("written:") == 1
