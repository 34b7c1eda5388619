"""Signals that ask a process to end: noted, so that it ends where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def noted(names: Sequence[str]) -> Iterator[list[int]]:
    """Collects the numbers of the signals that come, instead of what they would do; what is ignored stays so.

    A second SIGINT, of somebody who won't wait, is a `KeyboardInterrupt` as ever. Only the main thread may ask for
    signals, so in another one none are collected.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT:
            if number in came:
                raise KeyboardInterrupt
            # Not print: a handler may run in the middle of another one.
            with suppress(OSError):  # a terminal that was closed
                os.write(2, b"saving after the iteration under way; interrupt again to end at once\n")
        came.append(number)

    earlier: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup ignores SIGHUP
                earlier[number] = signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
