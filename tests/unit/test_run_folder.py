"""A run folder is for one training at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import filelock
import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.train.loop import train
from w2svd_bench.train.run import LOCK, alone
from w2svd_bench.world import ALONE


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    folder.mkdir()
    with filelock.FileLock(folder / LOCK), pytest.raises(BenchError) as caught, alone(folder, ALONE):
        raise AssertionError("somebody else trains here")
    assert str(folder) in caught.value.what and "another process trains" in caught.value.what
    assert "--label" in caught.value.cure


def test_the_folder_is_held_while_training_and_free_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "lcm" / "seed0"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), alone(folder, ALONE):
            with pytest.raises(filelock.Timeout):
                filelock.FileLock(folder / LOCK).acquire(blocking=False)
            raise KeyboardInterrupt


def test_training_takes_the_folder_before_it_reads_or_writes_there(tmp_path: Path) -> None:
    nothing: Any = None
    with filelock.FileLock(tmp_path / LOCK), pytest.raises(BenchError, match="another process trains"):
        train(nothing, nothing, nothing, nothing, nothing, tmp_path, nothing)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
