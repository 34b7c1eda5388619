"""What `reproduce` makes of profiles and plan files."""

from __future__ import annotations

from pathlib import Path

import pytest

from w2svd_bench.cli import plans
from w2svd_bench.cli.plans import PROFILES, Plan, Profile, commands, plans_of, profile_named, read_plan
from w2svd_bench.errors import BenchError

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
