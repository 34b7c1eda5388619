"""When a checkpoint is due, and when to stop: all processes of a run decide it together."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from w2svd_bench.errors import BenchError
from w2svd_bench.world import World

CHECKPOINT_MINUTES = 20.0
# A user's Ctrl-C, a terminal that is closed, and what schedulers send before they kill.
STOPPING = ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1")


class Cadence:
    """Checkpoints every so many iterations and every so many minutes, and one before a stop.

    How often is no part of what is computed: a run that goes on from any checkpoint is the one that never stopped.

    Args:
        every: iterations between two checkpoints, as the recipe says.
        minutes: after which one is due anyway, by the leading process's clock; 0 is never.
        asked: signals that this process got; from `signals.noted`.
    """

    def __init__(self, every: int, minutes: float, asked: Sequence[int], world: World) -> None:
        self._every, self._minutes, self._asked, self._world = every, minutes, asked, world
        self._last = time.monotonic()

    def due(self, done: int, total: int) -> tuple[bool, int]:
        """Whether a checkpoint is due after ``done`` iterations, and the signal that asks to stop then, or 0.

        All processes call it after every iteration, and get the same. A run that is done does not stop before its end.
        """
        late = 0 < self._minutes * 60 <= time.monotonic() - self._last
        everyones = self._world.gather((late, self._asked[0] if self._asked else 0))
        stopping = 0 if done == total else next((number for _, number in everyones if number), 0)
        due = done % self._every == 0 or done == total or everyones[0][0] or stopping != 0
        if due:
            self._last = time.monotonic()
        return due, stopping


def stopped(number: int, done: int, total: int, folder: Path) -> BaseException:
    """What a run ends with that was asked to stop."""
    if number == signal.SIGINT:
        return KeyboardInterrupt()
    return BenchError(
        f"training stopped, as {signal.Signals(number).name} asked",
        f"{done} of {total} iterations are done, and saved in {folder}",
        "repeat the command: it goes on from there",
    )
