"""``--nproc``: the same command on several processes, with one voice and one exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from w2svd_bench.cli.launch import command_line, inside, relaunch, without_nproc
from w2svd_bench.train.signals import noted

# A stand-in for `python -m w2svd_bench`: what each process does follows from its rank.
PROGRAM = """
import os, sys, time
rank = int(os.environ["RANK"])
action = {actions!r}[rank]
if action == "as all do":
    sys.exit("error: the same in all")
print("out of", rank, sys.argv[1:], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], flush=True)
print("err of", rank, file=sys.stderr, flush=True)
open(f"{folder}/{{rank}}.tmp", "w").write(str(os.getpid()))
os.rename(f"{folder}/{{rank}}.tmp", f"{folder}/{{rank}}.pid")
if action == "wait":
    time.sleep(60)
    action = 0
if action == "killed":
    os.kill(os.getpid(), 9)
if action == "late":
    time.sleep(1.5)
    print("connection closed by peer", file=sys.stderr, flush=True)
    action = 1
sys.exit(action)
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


def started(actions: list[object], folder: Path) -> subprocess.Popen[str]:
    """Starts `relaunch` with a stand-in for the package, in a process of its own."""
    package = folder / "w2svd_bench_stand_in"
    package.mkdir()
    (package / "__main__.py").write_text(PROGRAM.format(actions=actions, folder=folder))
    code = (
        "import signal, subprocess, w2svd_bench.cli.launch as launch\n"
        # nohup, and a shell that starts something behind it, have signals ignored, and children inherit that.
        "for name in launch.FORWARDED: signal.signal(getattr(signal, name), signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "launch.GRACE_SECONDS = 3.0\n"
        "real = subprocess.Popen\n"
        "def start(command, **named):\n"
        "    return real([c.replace('w2svd_bench', 'w2svd_bench_stand_in') for c in command], **named)\n"
        "launch.subprocess.Popen = start\n"
        "launch.command_line.set(['train', '--nproc', '2', '--seed', '3'])\n"
        f"launch.relaunch({len(actions)})\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = str(folder)
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def launched(actions: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `started` to its end."""
    process = started(actions, folder)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether something comes true in a while."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def alive(pid: int) -> bool:
    try:
        # One that ended and was not waited for yet (by the system's init, say) is no longer alive.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def waiting(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A parent with two processes that have begun, and their ids; whatever is left of them is ended."""
    files = [folder / f"{rank}.pid" for rank in range(2)]
    parent = started(["wait", "wait"], folder)
    pids: list[int] = []
    try:
        assert until(lambda: all(file.is_file() for file in files))
        pids = [int(file.read_text()) for file in files]
        yield parent, pids
    finally:
        parent.kill()
        parent.communicate()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_parent_that_is_told_to_end_ends_its_processes(asked: signal.Signals, tmp_path: Path) -> None:
    with waiting(tmp_path) as (parent, pids):
        parent.send_signal(asked)
        parent.communicate(timeout=30)
        assert parent.returncode == 128 + asked  # as a shell says it
        assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells processes that their parent is gone")
def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with waiting(tmp_path) as (parent, pids):
        parent.kill()
        assert until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGHUP")
def test_what_is_ignored_stays_ignored_and_the_rest_is_put_back() -> None:
    """Under nohup the end of a terminal ends nothing."""
    before = signal.getsignal(signal.SIGTERM)
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noted(("SIGTERM", "SIGHUP")) as asked:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, earlier)


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


def test_the_leading_ones_failure_is_told_once(tmp_path: Path) -> None:
    done = launched([5, "late"], tmp_path)
    assert done.returncode == 5
    assert done.stderr.count("err of") == 1 and "of 2" not in done.stderr


def test_what_failed_first_is_told_where_the_leading_one_failed_for_it(tmp_path: Path) -> None:
    """The leading process sees only that another is gone: that is not what went wrong."""
    done = launched(["late", 4], tmp_path)
    assert done.returncode == 4
    assert "connection closed by peer" in done.stderr
    assert "process 1 of 2 failed first" in done.stderr and "err of 1" in done.stderr


def test_of_several_failures_the_first_is_told(tmp_path: Path) -> None:
    done = launched(["late", "late", 4], tmp_path)
    assert done.returncode == 4
    assert "process 2 of 3 failed first" in done.stderr and "err of 2" in done.stderr
    assert "err of 1" not in done.stderr


def test_a_process_that_was_killed_is_named_with_the_signal(tmp_path: Path) -> None:
    done = launched(["late", "killed"], tmp_path)
    assert done.returncode == 9
    assert "process 1 of 2 failed first" in done.stderr and "SIGKILL" in done.stderr


def test_what_all_say_is_told_once(tmp_path: Path) -> None:
    done = launched(["as all do"] * 3, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("the same in all") == 1


def test_the_command_line_is_what_run_was_given() -> None:
    from w2svd_bench.cli.app import run

    assert run(["methods"]) == 0
    assert list(command_line.get()) == ["methods"]
