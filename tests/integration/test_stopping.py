"""``train --nproc 2`` as a scheduler and a failure meet it: it stops whole, goes on, and says what went wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# The second process fails on its own, with nothing told to the first.
BROKEN = """
import os

from w2svd_bench.baselines.lcm.method import LCM


class Broken(LCM):
    name = "broken"
    recipes = {"mini": {**LCM.recipe("mini"), "method": "broken"}}

    def updates(self, iteration):
        if os.environ["RANK"] == "1":
            raise RuntimeError("the cable of process 1 was pulled")
        return super().updates(iteration)
"""


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "w2svd_bench", "train", "--nproc", "2", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_of_two_processes_that_is_told_to_end_saves_and_goes_on(tmp_path: Path) -> None:
    sizes = ["training.iterations=40", "training.pool_clips=32", "training.batch_size=2", "training.log_every=1"]
    given = [part for size in sizes for part in ("--set", size)]
    arguments = ["--method", "lcm", "--device", "cpu", "--out", str(tmp_path), *given]
    folder = tmp_path / "mini" / "lcm" / "seed0"
    arguments += ["--label", "lcm"]
    process = start(arguments)
    end = time.monotonic() + 300
    while not (folder / "log.jsonl").is_file() or not (folder / "log.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.count("training stopped, as SIGTERM asked") == 1
    index = json.loads((folder / "checkpoint" / "index.json").read_text())
    assert 0 < index["counters"]["iteration"] < 40
    again = start(arguments)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert json.loads((folder / "run.json").read_text())["iterations"] == 40


def test_what_broke_the_second_process_is_said(tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN)
    sizes = ["training.iterations=4", "training.pool_clips=32", "training.batch_size=2"]
    given = [part for size in sizes for part in ("--set", size)]
    arguments = ["--plugin", str(plugin), "--method", "broken", "--device", "cpu", "--out", str(tmp_path), *given]
    process = start(arguments)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "process 1 of 2 failed first" in err and "the cable of process 1 was pulled" in err
