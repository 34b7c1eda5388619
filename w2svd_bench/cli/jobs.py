"""Runs commands of this program side by side, one thread each, and shows how far they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from w2svd_bench.cli.progress import JSON_VARIABLE, Reporter
from w2svd_bench.errors import BenchError


@dataclass(frozen=True)
class Job:
    """Commands that follow one another; the first failure ends the job."""

    name: str
    commands: Sequence[Sequence[str]]


def run_jobs(jobs: Sequence[Job], side_by_side: int) -> None:
    """Runs all jobs; when one fails the others still finish what they are at, and then `BenchError` says which and why.

    An interrupt reaches the children too (they share our terminal). Where this process ends otherwise, they notice when
    they next say how far they are. What is being trained is saved in either case.
    """
    lock = threading.Lock()
    failures: list[tuple[str, str]] = []
    with Reporter() as report, ThreadPoolExecutor(side_by_side) as pool:

        def work(job: Job) -> None:
            problem = _run(job, report, lock)
            if problem is not None:
                failures.append((f"{job.name} ({'; '.join(' '.join(command) for command in job.commands)})", problem))

        for future in [pool.submit(work, job) for job in jobs]:
            future.result()
    if failures:
        raise BenchError(
            f"{len(failures)} of {len(jobs)} jobs failed",
            "; ".join(f"{name}: {problem}" for name, problem in failures),
            "mend the cause and repeat the command: what is finished is kept",
        )


def _run(job: Job, report: Reporter, lock: threading.Lock) -> str | None:
    """One job in a process of its own; returns None, or the last lines of what it complained about."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, JSON_VARIABLE: "json"}
    process = subprocess.Popen(
        [sys.executable, "-m", "w2svd_bench.cli.chain", json.dumps([list(command) for command in job.commands])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",  # a plug-in may print anything
        env=environment,
    )
    complaints: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    listener = threading.Thread(target=lambda stream: complaints.extend(stream), args=(process.stderr,))
    listener.start()
    for line in process.stdout:
        match _parsed(line):
            # A plug-in's own output may be JSON, too: of a number, say.
            case {"task": str(task), "done": int(done), "total": int(total), "note": str(note)}:
                name = task if job.name.split(" ")[0] in task else f"{job.name}: {task}"
                with lock:
                    report(name, done, total, note)
    listener.join()
    if process.wait() != 0:
        return " ".join(" ".join(complaints).split())[-600:] or f"exit status {process.returncode}"
    return None


def _parsed(line: str) -> Any:
    """What a line says in JSON; None for what is none."""
    try:
        return json.loads(line)
    except ValueError:
        return None
