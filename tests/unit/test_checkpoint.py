"""A checkpoint is on the disk before the one before it goes: a machine that loses its power loses no run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from w2svd_bench.train import checkpoint
from w2svd_bench.train.checkpoint import FOLDER, INDEX, Counters


class OneRole:
    """Roles of one parameter."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))

    def trained(self) -> list[str]:
        return ["generator"]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}


def test_pieces_and_folders_are_on_the_disk_before_the_index_and_that_before_anything_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles: Any = OneRole()
    checkpoint.save(tmp_path, roles, {}, Counters(iteration=1))
    done: list[tuple[str, int | str]] = []  # what happened to which inode, or path
    sync, replace, rmtree = os.fsync, Path.replace, shutil.rmtree

    def synced(file: int) -> None:
        done.append(("sync", os.fstat(file).st_ino))
        sync(file)

    def renamed(self: Path, target: Path) -> Path:
        done.append(("rename", Path(target).name))
        return replace(self, target)

    def removed(path: Path) -> None:
        done.append(("remove", path.name))
        rmtree(path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    checkpoint.save(tmp_path, roles, {}, Counters(iteration=2))
    root = tmp_path / FOLDER
    places = {path: path.stat().st_ino for path in (root, root / "2", root / "2" / "rank0.safetensors", root / INDEX)}
    renaming, removing = done.index(("rename", INDEX)), done.index(("remove", "1"))
    for place, number in places.items():
        assert ("sync", number) in done[:renaming], f"{place} before the index has its name"
    assert ("sync", places[root]) in done[renaming:removing], "the index has its name for good before the last goes"
