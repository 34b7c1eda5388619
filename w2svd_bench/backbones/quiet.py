"""Quiet libraries: their remarks where we know better."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def only_errors(logging: ModuleType) -> Iterator[None]:
    """Silences warnings of diffusers or transformers (their ``utils.logging``) for a while."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
