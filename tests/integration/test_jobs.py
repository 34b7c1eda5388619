"""Jobs side by side: what they report reaches the parent, and what fails is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from w2svd_bench.cli.jobs import Job, run_jobs
from w2svd_bench.errors import BenchError


def test_a_job_runs_its_commands_in_order_and_says_how_far_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path)
    tiny = ["--set", "training.iterations=2", "--set", "training.pool_clips=16", "--set", "training.batch_size=2"]
    train = ["train", "--method", "lcm", *tiny, "--out", out, "--device", "cpu"]
    run_jobs([Job("lcm seed 0", [["train", "--method", "euler", "--out", out, "--device", "cpu"], train])], 2)
    for label in ("euler", "lcm"):
        assert json.loads((tmp_path / "mini" / label / "seed0" / "run.json").read_text())["finished"]
    assert "training lcm seed 0: 2/2" in "".join(capfd.readouterr())


def test_a_failure_is_named_and_ends_its_own_job_only(tmp_path: Path) -> None:
    good = Job("euler", [["train", "--method", "euler", "--out", str(tmp_path), "--device", "cpu"]])
    bad = Job("nonsense", [["train", "--method", "nonsense"], good.commands[0]])
    with pytest.raises(BenchError, match="1 of 2 jobs failed") as caught:
        run_jobs([bad, good], 2)
    assert "nonsense" in caught.value.why and "unknown method" in caught.value.why
    assert (tmp_path / "mini" / "euler" / "seed0" / "run.json").is_file()
