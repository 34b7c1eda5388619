"""Progress of long work: bars on a terminal, a status line per interval elsewhere, JSON lines for a parent."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

JSON_VARIABLE = "W2SVD_BENCH_PROGRESS"
INTERVAL_SECONDS = 10.0

console = Console()
errors = Console(stderr=True)


class Reporter:
    """Shows how far named tasks have come; use as a context manager. ``silent`` is for all processes but the first."""

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._json = os.environ.get(JSON_VARIABLE) == "json"
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        if not silent and not self._json and errors.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bars = Progress(*columns, console=errors)

    def __enter__(self) -> Reporter:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Says that ``done`` of ``total`` parts of a task are finished.

        Where nobody can hear it any more (the reader of a pipe has ended, a terminal was closed) this process is sent
        SIGTERM: training saves and stops, and anything else ends as a command does whose reader has gone.
        """
        if self._silent:
            return
        try:
            self._say(task, done, total, note)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self._silent = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _say(self, task: str, done: int, total: int, note: str) -> None:
        if self._json:
            print(json.dumps({"task": task, "done": done, "total": total, "note": note}), flush=True)
        elif self._bars:
            self._show(self._bars, task, done, total, note)
        elif done >= total or time.monotonic() - self._last.get(task, 0.0) >= INTERVAL_SECONDS:
            self._last[task] = time.monotonic()
            print(f"{task}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    def _show(self, bars: Progress, task: str, done: int, total: int, note: str) -> None:
        """A bar for what is under way; what is finished becomes a line above the bars."""
        if task not in self._tasks:
            self._tasks[task] = bars.add_task(task, total=total, note=note)
            self._last[task] = time.monotonic()
        bars.update(self._tasks[task], completed=done, total=total, note=note)
        if done >= total:
            bars.remove_task(self._tasks.pop(task))
            seconds = time.monotonic() - self._last.pop(task)
            console.print(f"[green]done[/] {task}: {done}/{total} in {seconds:.0f} s {note}".rstrip(), highlight=False)


def quiet() -> bool:
    """Whether a parent process reads our output, so that tables and greetings are left out."""
    return os.environ.get(JSON_VARIABLE) == "json"
