"""The same command on several processes of this machine: ``--nproc N``.

Several machines need torchrun: ``torchrun --nnodes 2 --nproc-per-node 8 ... -m w2svd_bench train ...``. Both set the
same variables, and `World.start` reads them. Started here, the processes share one voice: the first one's.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import IO

# What this process was asked to do; a command runs in the same process in tests, so sys.argv does not say it.
command_line: ContextVar[Sequence[str]] = ContextVar("command_line", default=())
GRACE_SECONDS = 20.0  # for the others to come to the same end when one has failed


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
    shared = {"WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes: list[tuple[subprocess.Popen[bytes], IO[bytes] | None]] = []
    for rank in range(nproc):
        voice: IO[bytes] | None = None if rank == 0 else tempfile.TemporaryFile()  # noqa: SIM115 - outlives this line
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "w2svd_bench", *arguments]
        processes.append((subprocess.Popen(command, env=environment, stdout=voice, stderr=voice), voice))
    try:
        _wait([process for process, _ in processes])
    except KeyboardInterrupt:  # the processes share our terminal and have been interrupted, too
        _wait([process for process, _ in processes])
    statuses = [process.returncode for process, _ in processes]
    if statuses[0] in (0, -15) and any(statuses):  # the first one has nothing to say of what went wrong elsewhere
        for rank, (process, voice) in enumerate(processes):
            if process.returncode not in (0, -15) and voice is not None:
                voice.seek(0)
                print(f"process {rank} of {nproc}:", voice.read().decode(errors="replace"), file=sys.stderr)
    raise SystemExit(next((abs(status) for status in statuses if status), 0))


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits for all; once one has failed the others get a while to notice, and are then ended."""
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        if deadline is None and any(process.poll() for process in processes):
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            for process in processes:
                process.wait()
            return
        time.sleep(0.05)


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
