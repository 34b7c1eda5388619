"""The command line but for evaluation (`test_grid.py`): trainings of seconds, resumed ones, and every wrong input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.registry import METHODS
from w2svd_bench.train import log
from w2svd_bench.train.checkpoint import FOLDER as CHECKPOINT
from w2svd_bench.train.run import Run

# Fixtures of conftest.py: what a command left, as `Outcome`; and the arguments of a training of seconds.
Command = Callable[..., Any]
Tiny = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _forget_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of a file is registered for this process; the next test starts without it."""
    monkeypatch.setattr(METHODS, "_registered", dict(METHODS._registered))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the exported generator."""
    (file,) = (folder / "generator").rglob("*.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt_at(iteration: int, patch: pytest.MonkeyPatch) -> None:
    """From now on somebody presses Ctrl-C when a training reports this iteration."""
    from w2svd_bench.cli.progress import Reporter

    class Impatient(Reporter):
        def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
            if task.startswith("training") and done == iteration:
                raise KeyboardInterrupt

    patch.setattr("w2svd_bench.cli.training.Reporter", Impatient)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lcm", "dmd", "w2svd"])
def test_an_interrupted_training_ends_with_the_same_weights(
    method: str, cli: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", "--method", method, *tiny("training.iterations=4", "training.checkpoint_every=2")]
    if method == "w2svd":
        arguments += ["settings.fake_warmup=1", "settings.gt.kind=gan"]  # with a third learner: the head
    whole, parts = (tmp_path / name / "mini" / method / "seed0" for name in ("whole", "parts"))

    done = cli(*arguments, "--out", tmp_path / "whole")
    assert done.status == 0 and "next: w2svd-bench eval" in done.text
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        stopped = cli(*arguments, "--out", tmp_path / "parts")
    assert stopped.status == 130 and "interrupted; the same command goes on where it stopped" in stopped.text
    assert not Run.load(parts).finished and not (parts / "generator").exists()
    resumed = cli(*arguments, "--out", tmp_path / "parts")
    assert resumed.status == 0

    one, other = Run.load(whole), Run.load(parts)
    assert same(weights(whole), weights(parts)) and one.weights_sha256 == other.weights_sha256
    assert (one.iterations, one.updates, one.network_evaluations) == (4, other.updates, other.network_evaluations)
    assert one.updates["generator"] == 4 and one.network_evaluations > 0 and one.config == other.config
    logs = [log.read(folder) for folder in (whole, parts)]
    assert [[entry["iteration"] for entry in entries] for entries in logs] == [[1, 2, 3, 4]] * 2
    assert [e["generator/loss"] for e in logs[0]] == [e["generator/loss"] for e in logs[1]]

    # A finished run is left as it is, to the byte, by the very same command.
    before = snapshot(tmp_path / "parts")
    again = cli(*arguments, "--out", tmp_path / "parts", "--validate-every", "1")
    assert again.status == 0 and "finished already" in again.text and "--validate-every did nothing" in again.text
    assert snapshot(tmp_path / "parts") == before


def test_training_moves_the_weights_and_the_seed_matters(cli: Command, tiny: Tiny, tmp_path: Path) -> None:
    from w2svd_bench.backbones.locate import ASSETS

    for seed in (0, 1):
        assert cli("train", "--method", "lcm", "--seed", seed, *tiny(), "--out", tmp_path).status == 0
    teacher = load_file(ASSETS / "mini" / "transformer" / "diffusion_pytorch_model.safetensors")
    zero, one = (weights(tmp_path / "mini" / "lcm" / f"seed{seed}") for seed in (0, 1))
    assert zero.keys() == one.keys() == teacher.keys()
    assert not same(zero, teacher) and not same(zero, one)
    config = (tmp_path / "mini" / "lcm" / "seed1" / "config.yaml").read_text()
    assert "iterations: 2" in config and "grid: 28" in config


def test_other_settings_in_the_same_folder_are_refused(
    cli: Command, refused: Command, tiny: Tiny, tmp_path: Path
) -> None:
    assert cli("train", "--method", "lcm", *tiny(), "--out", tmp_path).status == 0
    before = snapshot(tmp_path)
    outcome = refused("train", "--method", "lcm", *tiny("settings.ema=0.5"), "--out", tmp_path)
    assert "settings.ema (0.95 there, 0.5 now)" in outcome.text and "--label" in outcome.text
    outcome = refused("train", "--method", "dmd", "--label", "lcm", *tiny(), "--out", tmp_path)
    assert "differs in method" in outcome.text
    assert snapshot(tmp_path) == before
    variant = cli("train", "--method", "lcm", *tiny("settings.ema=0.5"), "--label", "lcm-fast", "--out", tmp_path)
    assert variant.status == 0 and Run.load(tmp_path / "mini" / "lcm-fast" / "seed0").method == "lcm"
    assert {name: content for name, content in snapshot(tmp_path).items() if "lcm-fast" not in name} == before


def test_a_diverged_training_says_so_and_keeps_its_checkpoint(refused: Command, tiny: Tiny, tmp_path: Path) -> None:
    wild = ["settings.generator.learning_rate=1e30", "training.iterations=6", "training.checkpoint_every=1"]
    outcome = refused("train", "--method", "lcm", *tiny(*wild), "--out", tmp_path)
    assert "training diverged: the loss of role 'generator'" in outcome.text and "learning_rate" in outcome.text
    folder = tmp_path / "mini" / "lcm" / "seed0"
    assert not Run.load(folder).finished and (folder / CHECKPOINT / "index.json").is_file()


def test_a_dry_run_prints_the_resolved_recipe_and_leaves_nothing(cli: Command, tmp_path: Path) -> None:
    outcome = cli("train", "--method", "w2svd", "--set", "settings.alpha_weak=0.5", "--dry-run", "--out", tmp_path)
    assert outcome.status == 0 and list(tmp_path.iterdir()) == []
    assert "alpha_weak: 0.5" in outcome.out and "method: w2svd" in outcome.out
    assert "rescale:" in outcome.out  # a default that no file names


def test_euler_needs_no_training(cli: Command, tmp_path: Path) -> None:
    outcome = cli("train", "--method", "euler", "--device", "cpu", "--out", tmp_path)
    assert outcome.status == 0 and "euler needs no training" in outcome.text
    run = Run.load(tmp_path / "mini" / "euler" / "seed0")
    assert run.finished and run.iterations == 0 and len(run.weights_sha256) == 64
    plan = cli("eval", "--steps", "1", "4", "28", "--dry-run", "--device", "cpu", "--out", tmp_path)
    assert plan.status == 0 and "euler/seed0 at 1, 4, 28 steps" in plan.text


def test_a_recipe_file_is_used(cli: Command, refused: Command, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "method: lcm\nbackbone: mini\ntraining: {iterations: 3}\nsettings: {generator: {learning_rate: 0.1}}\n"
    )
    outcome = cli("train", "--method", "lcm", "--recipe", path, "--dry-run")
    assert outcome.status == 0 and "iterations: 3" in outcome.out and "learning_rate: 0.1" in outcome.out
    outcome = refused("train", "--method", "dmd", "--recipe", path, "--dry-run")
    assert "the recipe is for method 'lcm', not 'dmd'" in outcome.text
    outcome = refused("train", "--method", "lcm", "--recipe", path, "--variant", "544p", "--dry-run")
    assert "--recipe and --variant exclude each other" in outcome.text


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_sample_writes_videos_and_a_contact_sheet(
    cli: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the teacher without any run, and from a trained run; the same noise gives the same clip."""
    caption = "pale skin, red hair, teal backdrop, blue shirt, narrow face, big eyes, fast speech, swaying head"
    runs, to = tmp_path / "runs", tmp_path / "clips"
    common = ["sample", "--steps", "2", "--out", runs, "--to", to, "--device", "cpu"]
    assert cli(*common, "--prompt", caption).status == 0
    assert iio.imread(to / "euler-steps2-seed0-0.mp4").shape == (17, 48, 48, 3)
    sheet = (to / "euler-steps2-seed0.png").read_bytes()
    assert Image.open(to / "euler-steps2-seed0.png").size == (9 * 100 + 4, 114 + 4)

    assert cli("train", "--method", "lcm", *tiny(), "--out", runs).status == 0
    outcome = cli(*common, "--method", "lcm", "--gif", "--seed", "7", "--prompt", caption, "--prompt", caption)
    assert outcome.status == 0
    files = [to / f"lcm-steps2-seed7{ending}" for ending in ("-0.gif", "-1.gif", ".png")]
    assert outcome.out.split() == [str(file) for file in files]  # one path a line, whole
    clips = [iio.imread(to / f"lcm-steps2-seed7-{index}.gif") for index in (0, 1)]
    assert clips[0].shape[:3] == (17, 48, 48) and (clips[0] != clips[1]).any()
    assert cli(*common, "--prompt", caption).status == 0
    assert (to / "euler-steps2-seed0.png").read_bytes() == sheet
    assert "not finite" not in outcome.text

    with monkeypatch.context() as patch:  # as a codec of half precision may do with what a collapsed generator makes
        patch.setattr(Backbone, "decode_checked", lambda backbone, latents, cond: _second_is_nan(len(latents)))
        told = cli(*common, "--prompt", caption, "--prompt", caption)
    assert told.status == 0 and "clip 1: numbers that are not finite" in told.err


def _second_is_nan(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(count, 17, 48, 48, 3, dtype=torch.uint8), torch.arange(count) != 1


IDLE = """
from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.method import RoleSpec


class Idle(LCM):
    name = "idle"
    recipes = {
        "mini": {
            "method": "idle",
            "backbone": "mini",
            "training": {"iterations": 2, "batch_size": 2},
            "settings": {"generator": {"learning_rate": 3e-4}},
        }
    }

    def roles(self):
        return super().roles() | {"fake": RoleSpec.full(self.config.generator)}
"""


def test_a_role_that_no_update_names_is_told(cli: Command, tiny: Tiny, tmp_path: Path) -> None:
    """A misspelt role would be a wrong method with a row in the table."""
    (tmp_path / "idle.py").write_text(IDLE)
    done = cli("train", "--plugin", tmp_path / "idle.py", "--method", "idle", *tiny(), "--out", tmp_path / "runs")
    assert done.status == 0 and "warning: no update ever named fake, which should learn" in done.text


# --- plug-ins ---------------------------------------------------------------------------------------------------------


def test_methods_are_listed_with_their_origin(cli: Command) -> None:
    table = cli("methods")
    assert table.status == 0 and all(name in table.out for name in ("dmd", "euler", "lcm", "w2svd"))
    found = json.loads(cli("methods", "--json").out)
    assert {"dmd", "euler", "lcm", "w2svd"} <= set(found)
    assert found["w2svd"].startswith("w2svd-bench ")


def test_the_skeleton_of_a_method_trains_as_it_stands(
    cli: Command, refused: Command, tiny: Tiny, tmp_path: Path
) -> None:
    written = cli("new-method", "my_fine_method", "--folder", tmp_path)
    path = tmp_path / "my_fine_method.py"
    assert written.status == 0 and "train --plugin" in written.text and "--method my_fine_method" in written.text
    assert '= "my_package.my_fine_method:MyFineMethod"' in written.text
    assert "NAME" not in path.read_text() and "class MyFineMethod(Method)" in path.read_text()
    found = json.loads(cli("methods", "--plugin", path, "--json").out)
    assert found["my_fine_method"] == str(path)

    trained = cli("train", "--plugin", path, "--method", "my_fine_method", *tiny(), "--out", tmp_path / "runs")
    assert trained.status == 0 and "2 updates of generator" in trained.text
    run = Run.load(tmp_path / "runs" / "mini" / "my_fine_method" / "seed0")
    assert run.finished and run.plugin == str(path)

    before = path.read_bytes()
    assert run.code["method"] == f"sha256 {hashlib.sha256(before).hexdigest()}"
    path.write_bytes(before + b"\n# another method by the same name\n")
    again = ("train", "--plugin", path, "--method", "my_fine_method", *tiny(), "--out", tmp_path / "runs")
    assert "it differs in code (sha256" in refused(*again).text
    measure = ("eval", "--steps", "1", "--clips", "8", "--methods", "my_fine_method", "--out", tmp_path / "runs")
    assert "was trained by another" in refused(*measure).text
    assert not list((tmp_path / "runs").rglob("records/*")), "nothing was measured before that was told"
    path.write_bytes(before)
    assert cli(*again).status == 0

    assert "nothing is overwritten" in refused("new-method", "other", "--folder", _with(tmp_path, "other.py")).text
    assert path.read_bytes() == before


def _with(folder: Path, name: str) -> Path:
    (folder / name).write_text("")
    return folder


@pytest.mark.parametrize("name", ["My-Method", "1st", "Shout", "with space", ""])
def test_a_method_needs_a_python_name(refused: Command, tmp_path: Path, name: str) -> None:
    assert "mymethod" in refused("new-method", name, "--folder", tmp_path).text
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_method_is_taken(refused: Command, tmp_path: Path) -> None:
    outcome = refused("new-method", "dmd", "--folder", tmp_path)
    assert "there is a method 'dmd' already" in outcome.text and list(tmp_path.iterdir()) == []


# --- the whole --------------------------------------------------------------------------------------------------------


def test_reproduce_shows_its_plan(cli: Command, tmp_path: Path) -> None:
    outcome = cli("reproduce", "--quick", "--dry-run", "--steps", "1,4", "--clips", "16", "--out", tmp_path)
    lines = outcome.out.splitlines()
    assert outcome.status == 0 and list(tmp_path.iterdir()) == []
    trained = [line.split("--method ")[1].split()[0] for line in lines if line.startswith("w2svd-bench train")]
    assert {"dmd", "euler", "lcm", "w2svd"} <= {*trained} and trained[-1] == "euler"  # the dearest first
    evaluated = [line for line in lines if line.startswith("w2svd-bench eval")]
    assert len(evaluated) == len(trained) and all("--clips 16 --steps 1 4 --methods " in line for line in evaluated)
    three = cli("reproduce", "--profile", "main", "--dry-run", "--out", tmp_path).out.splitlines()
    assert len(three) == 3 * len(lines) and sum("--seed 2" in line for line in three) == len(trained)


def test_profiles_bring_what_methods_have_beside_them(cli: Command, tmp_path: Path) -> None:
    full = cli("reproduce", "--dry-run", "--out", tmp_path).out.splitlines()
    labels = {line.split("--label ")[1].split()[0] for line in full if line.startswith("w2svd-bench train")}
    assert {"lcm", "lora-dmd", "dmd-gt", "gt-alone", "w2svd-alpha0.5"} <= labels
    assert all("--validate-every 50" in line for line in full if line.startswith("w2svd-bench train"))
    (alone,) = {line.split("--set ", 1)[1] for line in full if "--label gt-alone" in line}
    assert alone == "settings.matching_weight=0"
    stress = cli("reproduce", "--profile", "stress", "--dry-run", "--out", tmp_path).out.splitlines()
    trained = [line for line in stress if line.startswith("w2svd-bench train")]
    assert sum("--label w2svd-stress --seed" in line for line in trained) == 5  # as their files say
    assert sum("--label dmd-stress --seed" in line for line in trained) == 5
    assert all(f"--out {tmp_path / 'stress'}" in line for line in stress)  # apart from the runs that tables show
    hard = cli("reproduce", "--profile", "hard", "--dry-run", "--out", tmp_path).out.splitlines()
    assert all("--backbone mini-hard" in line for line in hard) and sum("--method lcm" in line for line in hard) == 3
    few = cli("reproduce", "--profile", "stress", "--seeds", "2", "--dry-run").out.splitlines()
    assert len(few) == len(stress) * 2 / 5


def test_every_run_of_a_shipped_plan_has_settings_that_its_method_takes(cli: Command) -> None:
    for profile in ("full", "stress"):
        for line in cli("reproduce", "--profile", profile, "--seeds", "1", "--dry-run").out.splitlines():
            if line.startswith("w2svd-bench train"):
                outcome = cli(*line.split()[1:], "--dry-run")
                assert outcome.status == 0, outcome.text


TWICE = "runs: [{method: lcm, label: one}, {method: dmd, label: one}]"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--quick", "--profile", "full"], "it is not clear what to reproduce"),
        (["--profile", "stres"], "did you mean 'stress'"),
        (["--plan", "twice.yaml"], "two runs are called one"),
        (["--plan", "typo.yaml", "--dry-run"], "'one' of the plan can't be made why: unknown method 'lmc'"),
        (["--plan", "wrong.yaml", "--dry-run"], "'one' of the plan can't be made"),
        (["--profile", "hard", "--backbone", "hunyuan"], "goes with another profile"),
    ],
)
def test_reproduce_refuses(
    refused: Command, arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twice.yaml").write_text(TWICE)
    (tmp_path / "typo.yaml").write_text("runs: [{method: lmc, label: one}]")
    (tmp_path / "wrong.yaml").write_text("runs: [{method: lcm, label: one, set: [settings.grit=14]}]")
    monkeypatch.chdir(tmp_path)
    assert told in refused("reproduce", *arguments).text


STARTS_WITHOUT = """
import sys
from w2svd_bench.cli.app import run
status = run(sys.argv[1:])
print("torch" in sys.modules, "diffusers" in sys.modules, status)
"""


@pytest.mark.parametrize("arguments", [["leaderboard", "nowhere"], ["methods"], ["--help"], ["eval", "--help"]])
def test_light_commands_start_without_torch(arguments: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", STARTS_WITHOUT, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    status = "1" if arguments[0] == "leaderboard" else "0"
    assert result.stdout.splitlines()[-1] == f"False False {status}", result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "frobnicate"),
        (["eval", "--stepz", "4"], "--stepz"),
        (["eval", "--clips", "1"], "--clips"),
        (["eval", "--clips", "many"], "--clips"),
        (["train"], "--method"),
        (["train", "--method", "lcm", "--seed", "-1"], "--seed"),
        (["reproduce", "--jobs", "0"], "--jobs"),
        (["sample", "--steps", "0"], "--steps"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_command_line_that_can_not_be_parsed_is_told_so(cli: Command, arguments: list[str], said: str) -> None:
    outcome = cli(*arguments)
    assert outcome.status == 2 and said in outcome.err and "Traceback" not in outcome.text


def test_the_version_and_the_help_are_no_errors(cli: Command) -> None:
    assert cli("--version").out.startswith("w2svd-bench ")
    assert cli("--help").status == 0
    assert "train" in cli().text  # without a command: the help


# --- wrong input: what, why, cure -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--method", "w2svdd"], "did you mean 'w2svd'?"),
        (["train", "--method", "lcm", "--set", "training.iteratons=3"], "did you mean 'iterations'?"),
        (["train", "--method", "w2svd", "--set", "settings.alpha_week=0.1"], "did you mean 'alpha_weak'?"),
        (["train", "--method", "lcm", "--set", "training.iterations"], "section.key=value"),
        (["train", "--method", "lcm", "--set", "training.iterations=many"], "training.iterations"),
        (["train", "--method", "w2svd", "--set", "settings.alpha_weak=1"], "alpha_weak"),
        (["train", "--method", "lcm", "--recipe", "missing.yaml"], "missing.yaml"),
        (["train", "--method", "lcm", "--label", "../up"], "can't name a run"),
        (["train", "--method", "lcm", "--label", "a b"], "can't name a run"),
        (["train", "--method", "lcm", "--label", ".."], "can't name a run"),
        (["train", "--method", "lcm", "--device", "tpu"], "unknown device 'tpu'"),
        (["train", "--method", "lcm", "--backbone", "missing"], "'missing'"),
        (["train", "--method", "mine", "--plugin", "missing.py"], "there is no such file"),
        (["eval", "--steps", "0"], "whole numbers from 1 up"),
        (["eval", "--steps", "4", "-1"], "'-1'"),
        (["eval", "--steps", "x"], "--steps 'x'"),
        (["eval", "--split", "train"], "--split test"),
        (["eval", "--device", "tpu"], "unknown device 'tpu'"),
        (["eval", "--backbone", "missing"], "model_index.json"),
        (["eval"], "there is nothing to evaluate"),
        (["eval", "--methods", "w2svd"], "no run called w2svd"),
        (["sample", "--backbone", "missing"], "model_index.json"),
        (["sample", "--method", "w2svd"], "is not a run"),
        (["sample", "--prompt", "pale skin, pink hair"], "unknown caption phrase 'pink hair'"),
        (["leaderboard"], "there is no such folder"),
        (["reproduce", "--steps", "four"], "--steps 'four'"),
        (["train", "--method", "[/red]"], "unknown method '[/red]'"),  # which is no markup of ours
    ],
)
def test_wrong_input_is_told_what_why_and_cure(
    refused: Command, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*arguments).text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["train", "--method", "lcm"], ["eval"], ["sample"], ["build-mini"]])
def test_a_gpu_that_is_not_there_is_refused(
    refused: Command, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--device cpu" in refused(*command, "--device", "cuda").text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import a_package_that_nobody_has\n", "a_package_that_nobody_has"),
        ("x = 1\n", "defines no method"),
        ("from w2svd_bench.method import Method\nclass Half(Method):\n    name = 'half'\n", "does not define: sampler"),
    ],
)
def test_a_broken_plugin_file_is_refused(refused: Command, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(content)
    outcome = refused("train", "--plugin", path, "--method", "half", "--out", tmp_path / "runs")
    assert said in outcome.text and "broken.py" in outcome.text and not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2svd_bench.errors import BenchError

    monkeypatch.setenv("W2SVD_BENCH_DEBUG", "")  # so that what the flag sets is taken back after this test
    with pytest.raises(BenchError, match="unknown method"):
        cli("--debug", "train", "--method", "nothing")


def test_a_missing_part_of_a_backbone_is_refused(refused: Command, tmp_path: Path) -> None:
    """A directory whose side file is damaged, and one whose side file no longer says where the codec is."""
    from w2svd_bench.backbones.locate import ASSETS, SIDE_FILE

    folder = tmp_path / "copy"
    shutil.copytree(ASSETS / "mini", folder)
    for content, missing in (("{", SIDE_FILE), ('{"backbone": "mini"}', "vae/config.json")):
        (folder / SIDE_FILE).write_text(content)
        outcome = refused("sample", "--backbone", folder, "--to", tmp_path / "clips", "--device", "cpu")
        assert missing in outcome.text
