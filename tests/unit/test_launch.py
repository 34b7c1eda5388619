"""``--nproc``: the same command on several processes, with one voice and one exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from w2svd_bench.cli.launch import command_line, inside, relaunch, without_nproc

# A stand-in for `python -m w2svd_bench`: what each process does follows from its rank.
PROGRAM = """
import os, sys, time
rank = int(os.environ["RANK"])
print("out of", rank, sys.argv[1:], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], flush=True)
print("err of", rank, file=sys.stderr, flush=True)
action = {actions!r}[rank]
if action == "wait":
    time.sleep(60)
sys.exit(0 if action == "wait" else action)
"""


@pytest.mark.parametrize(
    "arguments",
    [["train", "--nproc", "2", "--seed", "1"], ["train", "--nproc=2", "--seed", "1"], ["train", "--seed", "1"]],
)
def test_the_flag_is_taken_out(arguments: list[str]) -> None:
    assert without_nproc(arguments) == ["train", "--seed", "1"]


def test_one_process_and_the_started_ones_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert relaunch(1) is None and not inside()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert relaunch(2) is None and inside()


def launched(actions: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `relaunch` with a stand-in for the package, in a process of its own."""
    package = folder / "w2svd_bench_stand_in"
    package.mkdir()
    (package / "__main__.py").write_text(PROGRAM.format(actions=actions))
    code = (
        "import subprocess, w2svd_bench.cli.launch as launch\n"
        "launch.GRACE_SECONDS = 1.0\n"
        "real = subprocess.Popen\n"
        "def start(command, **named):\n"
        "    return real([c.replace('w2svd_bench', 'w2svd_bench_stand_in') for c in command], **named)\n"
        "launch.subprocess.Popen = start\n"
        "launch.command_line.set(['train', '--nproc', '2', '--seed', '3'])\n"
        "launch.relaunch(2)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = str(folder)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_processes_share_the_voice_of_the_first(tmp_path: Path) -> None:
    done = launched([0, 0], tmp_path)
    assert done.returncode == 0
    assert "out of 0 ['train', '--seed', '3'] 2 0" in done.stdout
    assert "of 1" not in done.stdout + done.stderr


def test_a_failure_elsewhere_is_told_with_its_process(tmp_path: Path) -> None:
    done = launched([0, 3], tmp_path)
    assert done.returncode == 3
    assert "process 1 of 2" in done.stderr and "err of 1" in done.stderr


def test_processes_that_wait_for_a_failed_one_are_ended(tmp_path: Path) -> None:
    done = launched(["wait", 4], tmp_path)
    assert done.returncode != 0
    assert "err of 1" in done.stderr


def test_the_first_ones_failure_is_told_once(tmp_path: Path) -> None:
    done = launched([5, 5], tmp_path)
    assert done.returncode == 5 and done.stderr.count("err of") == 1


def test_the_command_line_is_what_run_was_given() -> None:
    from w2svd_bench.cli.app import run

    assert run(["methods"]) == 0
    assert list(command_line.get()) == ["methods"]
