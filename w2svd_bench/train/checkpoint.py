"""Checkpoints: everything a run needs to go on, written by all processes and readable by any number of them.

Random numbers and the order of the clips need no state (they are keyed), so what is kept is the roles' weights, their
averages, the optimisers' moments and a few counters::

    checkpoint/index.json                   what the last whole checkpoint is: counters, and for every tensor its
                                            shape and pieces (file, first row, last row + 1)
    checkpoint/<iteration>/rank<k>.safetensors   what process k held: its rows of sharded tensors; process 0 also
                                            everything that is the same in all of them

Pieces are put together again by rows, so a run may go on with more or fewer processes, and sharded or not. The
processes need to share the folder. torch.distributed.checkpoint could do the same, but its ``.metadata`` file is a
pickle, and nothing that a user's folder holds is unpickled here.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from w2svd_bench.backbones.roles import Roles
from w2svd_bench.backbones.sharding import local, rows
from w2svd_bench.errors import BenchError
from w2svd_bench.record import write_atomically
from w2svd_bench.world import ALONE, World

FOLDER, INDEX = "checkpoint", "index.json"
FORMAT = 1


@dataclass
class Counters:
    """How far a run has come, and what it has cost so far, in all processes together.

    Attributes:
        iteration: finished iterations.
        seconds: wall time of training.
        evaluations: clips that passed through a network.
        updates: optimiser steps by role; their sum is also how many batches were drawn.
        vitals: what the health of the run is told from (`health.Vitals`); empty where none is watched.
        peak_memory_bytes: the highest peak of a process that trained, those before a restart included; 0 is unknown.
            Checkpoints older than this field don't say it, and a run that goes on from one knows only what came after.
    """

    iteration: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    updates: dict[str, int] = field(default_factory=dict)
    vitals: dict[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int = 0


def exists(folder: Path) -> bool:
    """Whether a run has a checkpoint to go on from."""
    return (folder / FOLDER / INDEX).is_file()


@torch.no_grad()
def save(
    folder: Path,
    roles: Roles,
    optimizers: Mapping[str, torch.optim.Optimizer],
    counters: Counters,
    world: World = ALONE,
) -> None:
    """Writes the checkpoint, all processes together; a kill, or a loss of power, at any moment leaves a whole one."""
    root = folder / FOLDER
    name = world.agree(lambda: _prepare(root, counters.iteration))
    file = f"{name}/rank{world.rank}.safetensors"
    tensors, pieces = {}, {}
    for key, tensor in _state(roles, optimizers).items():
        first, last = _held(tensor)
        if first < last and (isinstance(tensor, DTensor) or world.lead):
            tensors[key] = local(tensor).cpu().contiguous()
            pieces[key] = {"shape": list(tensor.shape), "pieces": [[file, first, last]]}
    world.together(lambda: _write(tensors, root / file))
    every = world.gather(pieces)
    world.agree(lambda: _commit(root, name, counters, world, every))


def restore(
    folder: Path,
    roles: Roles,
    optimizers: Mapping[str, torch.optim.Optimizer],
    world: World = ALONE,
) -> Counters:
    """Puts the last checkpoint of the folder into roles and optimisers; fresh `Counters` where there is none.

    Raises:
        BenchError: in every process, if a piece is missing or damaged in one of them.
    """
    if not world.agree(lambda: exists(folder)):
        return Counters()
    return world.together(lambda: _restore(folder / FOLDER / INDEX, roles, optimizers))


def _state(roles: Roles, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name."""
    state: dict[str, Tensor] = {}
    for role in roles.trained():
        state |= {f"roles.{role}.{name}": parameter for name, parameter in roles.parameters(role).items()}
    for role, optimizer in optimizers.items():
        for name, parameter in roles.parameters(role).items():
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"optimizers.{role}.{name}.{key}"] = value
    return state


def _held(tensor: Tensor) -> tuple[int, int]:
    """The rows [first, last) of a tensor that this process holds; a number counts as one row."""
    if isinstance(tensor, DTensor):
        return rows(tensor)
    return 0, tensor.shape[0] if tensor.ndim else 1


def _prepare(root: Path, iteration: int) -> str:
    """Makes the folder of the next checkpoint, removes all but the last whole one, and returns the new one's name."""
    root.mkdir(parents=True, exist_ok=True)
    last = _read(root / INDEX)["folder"] if (root / INDEX).is_file() else None
    _remove_others(root, last)
    name = str(iteration) if str(iteration) != last else f"{iteration}-again"
    (root / name).mkdir()
    return name


def _remove_others(root: Path, kept: str | None) -> None:
    for other in root.iterdir():
        if other.is_dir() and other.name != kept:
            shutil.rmtree(other)


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    if tensors:
        save_file(dict(tensors), path)
        _sync(path)
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Returns once a file's content, or the names in a folder, would survive a loss of power."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise  # some network file systems know no sync of folders
    finally:
        os.close(file)


def _commit(root: Path, name: str, counters: Counters, world: World, every: list[dict[str, Any]]) -> None:
    """Names the new checkpoint the last whole one, and removes the one before it."""
    tensors: dict[str, Any] = {}
    for pieces in every:
        for key, piece in pieces.items():
            tensors.setdefault(key, {**piece, "pieces": []})["pieces"] += piece["pieces"]
    index = {"format": FORMAT, "folder": name, "processes": world.size, "counters": asdict(counters)}
    _sync(root)  # the new folder's name is there before the index says it
    write_atomically(root / INDEX, json.dumps({**index, "tensors": tensors}) + "\n")
    _sync(root)  # and the index is, before what the old one names goes
    _remove_others(root, name)


def _read(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text())
        if index["format"] != FORMAT:
            raise ValueError(f"it is of format {index['format']}, and this version reads {FORMAT}")
        return dict(index)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BenchError:
    return BenchError(
        f"the checkpoint {path.parent} can't be read ({path.name})",
        f"{type(error).__name__}: {' '.join(str(error).split())}",
        "delete that folder to start over",
    )


@torch.no_grad()
def _restore(path: Path, roles: Roles, optimizers: Mapping[str, torch.optim.Optimizer]) -> Counters:
    index = _read(path)
    try:
        pieces = _Pieces(path.parent, index["tensors"])
        for role in roles.trained():
            for name, parameter in roles.parameters(role).items():
                pieces.read_into(f"roles.{role}.{name}", parameter)
        for role, optimizer in optimizers.items():
            for name, parameter in roles.parameters(role).items():
                prefix = f"optimizers.{role}.{name}."
                for key in (n for n in index["tensors"] if n.startswith(prefix)):
                    # AdamW counts its steps on the CPU; its moments lie as the parameter does.
                    counts = key.endswith(".step")
                    value = torch.zeros(()) if counts else torch.zeros_like(parameter)
                    pieces.read_into(key, value)
                    optimizer.state[parameter][key.removeprefix(prefix)] = value
        return Counters(**index["counters"])
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


class _Pieces:
    """The tensors of a checkpoint, put together from their pieces."""

    def __init__(self, root: Path, tensors: Mapping[str, Any]) -> None:
        self._root, self._tensors = root, tensors
        self._files: dict[str, Any] = {}

    def read_into(self, name: str, target: Tensor) -> None:
        """Fills what this process holds of a tensor."""
        entry = self._tensors[name]
        if entry["shape"] != list(target.shape):
            raise ValueError(f"{name} is of shape {entry['shape']} there and {list(target.shape)} here")
        first, last = _held(target)
        own, filled = local(target), 0
        for file, start, end in entry["pieces"]:
            low, high = max(first, start), min(last, end)
            if low >= high:
                continue
            if not target.ndim:
                own.copy_(self._open(file).get_tensor(name))
            else:
                part = self._open(file).get_slice(name)[low - start : high - start]
                own[low - first : high - first].copy_(part)
            filled += high - low
        if filled != last - first:
            raise ValueError(f"{name} has rows missing")

    def _open(self, file: str) -> Any:
        if file not in self._files:
            self._files[file] = safe_open(self._root / file, "pt")
        return self._files[file]
