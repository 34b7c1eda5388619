"""What `reproduce` makes of profiles and plan files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.cli import plans
from w2svd_bench.cli.app import run
from w2svd_bench.cli.plans import PROFILES, Plan, Profile, commands, plans_of, profile_named, read_plan
from w2svd_bench.errors import BenchError, NoRecipe

ONE = {"method": "lcm", "label": "one", "set": ["settings.grid=28"]}
TWO = {"method": "dmd", "label": "two"}


def test_seeds_go_by_the_plan_and_all_runs_of_one_come_before_the_next() -> None:
    both = [Plan.model_validate({"runs": [ONE], "seeds": 3}), Plan.model_validate({"runs": [TWO]})]
    work = commands(both, ["--out", "here"], ["--steps", "1"])
    assert list(work) == ["one seed 0", "two seed 0", "one seed 1", "one seed 2"]
    train, evaluation = work["one seed 2"]
    assert train == ["train", "--method", "lcm", "--label", "one", "--seed", "2", "--out", "here",
                     "--set", "settings.grid=28"]  # fmt: skip
    assert evaluation == ["eval", "--steps", "1", "--methods", "one"]


def test_a_file_of_a_method_may_say_its_own_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many.yaml").write_text("seeds: 7\nruns: [{method: lcm, label: one}]")
    (tmp_path / "plain.yaml").write_text("runs: [{method: dmd, label: two}]")
    found = [tmp_path / "many.yaml", tmp_path / "plain.yaml"]
    monkeypatch.setattr(plans.METHODS, "files_beside", lambda file, names=None: found)
    profile = Profile("a trial", 2, methods=False, file="any.yaml")
    assert [(plan.seeds, plan.runs[0].label) for plan in plans_of(profile, "mini")] == [(7, "one"), (2, "two")]
    (tmp_path / "plain.yaml").write_text("runs: [{method: dmd, label: one}]")
    with pytest.raises(BenchError, match="two runs are called one"):
        plans_of(profile, "mini")
    monkeypatch.setattr(plans.METHODS, "files_beside", lambda file, names=None: [])
    with pytest.raises(BenchError, match="nothing to train"):
        plans_of(profile, "mini")


def test_the_longest_training_of_the_methods_comes_first() -> None:
    labels = [run.label for run in plans_of(PROFILES["quick"], "mini")[0].runs]
    assert labels[-1] == "euler" and labels.index("dmd") < labels.index("lcm")


def test_what_is_no_plan_or_profile_is_told(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("runs: [{method: lcm, label: one, sett: []}]")
    with pytest.raises(BenchError, match="the plan"):
        read_plan(file)
    with pytest.raises(BenchError, match="unknown profile"):
        profile_named("fast")


def test_runs_of_another_recipes_numbers_and_methods_without_a_recipe_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that suits the miniature would wreck a run of the 13B model, and nobody's plug-in stops the others."""
    (tmp_path / "ablations.yaml").write_text("recipe: mini\nruns: [{method: lcm, label: one}]")
    monkeypatch.setattr(plans.METHODS, "files_beside", lambda file, names=None: [tmp_path / "ablations.yaml"])
    assert [run.label for plan in plans_of(PROFILES["full"], "mini") for run in plan.runs][-1] == "one"
    there = plans_of(PROFILES["full"], "hunyuan")
    assert {run.label for plan in there for run in plan.runs} >= {"dmd", "lcm", "w2svd"} and len(there) == 1
    with pytest.raises(BenchError, match="nothing to train"):
        plans_of(PROFILES["stress"], "hunyuan")

    class Bare(LCM):
        name = "bare"

        @classmethod
        def recipe(cls, backbone: str) -> dict[str, Any]:
            raise NoRecipe("method 'bare' has no recipe", "there is no file", "give one")

    monkeypatch.setattr(plans.METHODS, "_registered", {"bare": (Bare, "a test")})
    assert "bare" not in {run.label for plan in plans_of(PROFILES["quick"], "mini") for run in plan.runs}


def test_the_tuning_pages_commands_are_such_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "tuning.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("w2svd-bench reproduce")]
    for line, runs in zip(lines, (18, 12, 12), strict=True):
        arguments = [part.replace("docs/", f"{root}/docs/") for part in line.split()[1:]]
        assert run([*arguments, "--dry-run"]) == 0
        assert capsys.readouterr().out.count("w2svd-bench train") == runs
