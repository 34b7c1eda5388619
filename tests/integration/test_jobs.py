"""Jobs side by side: what they report reaches the parent, and what fails is named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from w2svd_bench.cli import reproducing
from w2svd_bench.cli.jobs import Job, run_jobs
from w2svd_bench.cli.plans import Plan
from w2svd_bench.errors import BenchError
from w2svd_bench.train.run import LOCK, Run

Command = Callable[..., Any]
TINY = ("training.iterations=2", "training.pool_clips=16", "training.batch_size=2", "training.log_every=1")
EULER = {"method": "euler", "label": "euler"}


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


LONG = """
import sys
from w2svd_bench.cli.jobs import Job, run_jobs

tiny = ["training.iterations=100000", "training.pool_clips=8", "training.batch_size=2", "training.log_every=1"]
run_jobs([Job("lcm", [["train", "--method", "lcm", "--set", *tiny, "--out", sys.argv[1], "--device", "cpu"]])], 1)
"""


def test_what_is_trained_is_saved_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "mini" / "lcm" / "seed0"
    parent = subprocess.Popen([sys.executable, "-c", LONG, str(tmp_path)])
    wait_for(lambda: (folder / "log.jsonl").is_file() and (folder / "log.jsonl").read_text().count("\n") > 1)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    with FileLock(folder / LOCK, timeout=120):  # held by who trains
        pass
    assert not Run.load(folder).finished and list(folder.rglob("*.safetensors"))


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


CHATTY = r"""
import os
import sys

from w2svd_bench.baselines.euler.method import Euler

for line in ("0.53", "null", "[1, 2]", '"task"', "{}", '{"task": 3}', '{"task": "x", "done": null}', "9" * 9999):
    print(line, flush=True)
os.write(1, b"\xff\xfe\n")
os.write(2, b"\xff\xfe\n")


class Chatty(Euler):
    name = "chatty"
"""


def test_what_a_plugin_prints_is_no_progress_and_no_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    talk = ["methods", "--plugin", str(tmp_path / "chatty.py")]
    out = ["--set", "training.iterations=1", "--set", "training.pool_clips=8", "--set", "training.batch_size=2"]
    train = ["train", "--method", "lcm", *out, "--out", str(tmp_path), "--device", "cpu"]
    run_jobs([Job("lcm seed 0", [talk, train])], 1)
    assert "training lcm seed 0: 1/1" in "".join(capfd.readouterr())


@pytest.mark.slow
def test_reproduce_ends_with_tables_claims_and_a_report(cli: Command, tmp_path: Path) -> None:
    """A whole benchmark of two tiny runs; the second time there is nothing left to train."""
    plans = [Plan.model_validate({"runs": [{"method": "lcm", "label": "lcm", "set": list(TINY)}, EULER]})]
    arguments = [
        "reproduce",
        "--steps",
        "1",
        "--clips",
        "16",
        "--seeds",
        "1",
        "--validate-every",
        "2",
        "--out",
        tmp_path,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproducing, "plans_of", lambda profile, backbone: plans)
        first = cli(*arguments)
        results = tmp_path / "mini" / "results-test-16"
        assert first.status == 0, first.text
        made = {path.name for path in results.iterdir()}
        page = (results / "report.html").read_text()
        run = tmp_path / "mini" / "lcm" / "seed0" / "run.json"
        before = run.stat().st_mtime_ns
        assert cli(*arguments).status == 0 and run.stat().st_mtime_ns == before
    assert {"leaderboard.md", "claims.json", "claims.md", "curves.json", "report.html", "clips", "plots"} <= made
    assert "memory" in {one["kind"] for one in json.loads((results / "claims.json").read_text())["judged"]}
    assert "euler" in page and "lcm-seed0-steps1" not in page  # clips are inside the page, not beside it
    assert {one["label"] for one in json.loads((results / "clips" / "index.json").read_text())["clips"]} == {
        "real", "euler", "lcm",
    }  # fmt: skip
