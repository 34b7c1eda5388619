"""The same command on several processes of this machine: ``--nproc N``.

Several machines need torchrun: ``torchrun --nnodes 2 --nproc-per-node 8 ... -m w2svd_bench train ...``. Both set the
same variables, and `World.start` reads them. Started here, the processes share one voice: the first one's; but for
the one that fails before the others, which is heard, too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import IO

from w2svd_bench.train.signals import noted

# What this process was asked to do; a command runs in the same process in tests, so sys.argv does not say it.
command_line: ContextVar[Sequence[str]] = ContextVar("command_line", default=())
GRACE_SECONDS = 20.0  # for the others to come to the same end when one has failed
# A scheduler, or a terminal that closes, tells this process alone, and those that it started would go on without it.
FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1")
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def inside() -> bool:
    """Whether torchrun, or `relaunch`, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def relaunch(nproc: int) -> None:
    """Runs this command line on ``nproc`` processes and exits with its status; returns for one process or inside."""
    if nproc == 1 or inside():
        return
    arguments = without_nproc(command_line.get())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes: list[subprocess.Popen[bytes]] = []
    voices: list[IO[bytes] | None] = []
    with noted(FORWARDED) as asked:
        try:
            for rank in range(nproc):
                voices.append(None if rank == 0 else tempfile.TemporaryFile())  # noqa: SIM115 - outlives this line
                process = subprocess.Popen(
                    [sys.executable, "-m", "w2svd_bench", *arguments],
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=voices[rank],
                    stderr=voices[rank],
                    preexec_fn=_end_with_parent(),
                )
                processes.append(process)
            first = _wait(processes, asked)
        except KeyboardInterrupt:  # the processes share our terminal and have been interrupted, too
            first = _wait(processes, asked)
            asked.append(signal.SIGINT)
        finally:
            _send(processes, signal.SIGKILL)
            for process in processes:
                process.wait()
    if first is None:
        raise SystemExit(0)
    statuses = [process.returncode for process in processes]
    # What all were asked to do the leading one has told of, if it could.
    if not asked or statuses[0] == 0:
        _tell(first, statuses, voices)
    if asked and asked[0] != signal.SIGINT:
        raise SystemExit(128 + asked[0])  # as a shell says it
    raise SystemExit(abs(statuses[first]))


def _tell(first: int, statuses: Sequence[int], voices: Sequence[IO[bytes] | None]) -> None:
    """Shows what the process said that failed before all others, for they may know only that it is gone.

    The leading process has been heard already; so has what all say alike.
    """
    said = []
    for voice in voices:
        if voice is not None:
            voice.seek(0)
            said.append(voice.read().decode(errors="replace").strip())
    alike = len(said) > 1 and len(set(said)) == 1 and statuses[0] > 0
    if first == 0 or alike:
        return
    status = statuses[first]
    how = f"with exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
    print(f"process {first} of {len(statuses)} failed first, {how}:", said[first - 1], sep="\n", file=sys.stderr)


def _end_with_parent() -> Callable[[], None] | None:
    """What a new process does first so that it does not outlive a parent that is killed; only Linux can."""
    if sys.platform != "linux":
        return None
    parent, libc = os.getpid(), ctypes.CDLL(None)  # looked up here: little is safe between fork and exec

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it is gone already
            os._exit(1)

    return ask


def _wait(processes: Sequence[subprocess.Popen[bytes]], asked: Sequence[int]) -> int | None:
    """Waits for all, tells them when this process is ``asked`` to end, and returns which failed first, if one did.

    Once one has failed the others get a while to notice, are then told to end, and are ended if that does not help.
    """
    deadline: float | None = None
    first: int | None = None
    told, harder = 0, [signal.SIGTERM, signal.SIGKILL]
    while any(process.poll() is None for process in processes):
        for number in asked[told:]:
            told += 1
            _send(processes, signal.SIGTERM if number == signal.SIGHUP else number)
        if first is None and (first := _failed(processes)) is not None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and harder and time.monotonic() > deadline:
            _send(processes, harder.pop(0))
            deadline = time.monotonic() + GRACE_SECONDS
        time.sleep(0.02)
    return _failed(processes) if first is None else first


def _failed(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """One that has failed; of several rather not the leading one, which is heard anyway."""
    failed = [rank for rank, process in enumerate(processes) if process.poll()]
    return next((rank for rank in failed if rank > 0), failed[0] if failed else None)


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """The command line without ``--nproc N`` or ``--nproc=N``."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--nproc":
            skip = True
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept
