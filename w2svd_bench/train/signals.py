"""Signals that ask a process to end: noted, so that it ends where nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def noted(names: Sequence[str]) -> Iterator[list[int]]:
    """Collects the numbers of the signals that come, instead of what they would do; what is ignored stays so.

    Only the main thread may ask for signals, so in another one none are collected.
    """
    came: list[int] = []
    earlier: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup ignores SIGHUP
                earlier[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
