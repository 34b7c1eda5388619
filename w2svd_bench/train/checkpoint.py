"""Checkpoints: everything a run needs to go on, as one safetensors file that replaces the last one atomically.

Random numbers need no state (they are keyed by seed and iteration), so what is kept is the roles' weights, their
averages, the optimisers' moments and a few counters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from w2svd_bench.backbones.roles import Roles
from w2svd_bench.errors import BenchError

FILE = "checkpoint.safetensors"


@dataclass
class Counters:
    """How far a run has come, and what it has cost so far."""

    iteration: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    updates: dict[str, int] = field(default_factory=dict)


def save(folder: Path, roles: Roles, optimizers: Mapping[str, torch.optim.Optimizer], counters: Counters) -> None:
    """Writes the checkpoint; a kill at any moment leaves the one before it whole."""
    state: dict[str, Tensor] = {}
    for role in roles.trained():
        state |= {f"roles.{role}.{name}": p.detach() for name, p in roles.parameters(role).items()}
    for role, optimizer in optimizers.items():
        for name, parameter in roles.parameters(role).items():
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"optimizers.{role}.{name}.{key}"] = value.detach()
    partial = folder / (FILE + ".tmp")
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, partial, {"counters": json.dumps(asdict(counters))})
    partial.replace(folder / FILE)


def restore(folder: Path, roles: Roles, optimizers: Mapping[str, torch.optim.Optimizer]) -> Counters:
    """Puts the last checkpoint of the folder into roles and optimisers; fresh `Counters` where there is none."""
    path = folder / FILE
    if not path.is_file():
        return Counters()
    try:
        with safe_open(path, "pt") as file:
            counters = Counters(**json.loads(file.metadata()["counters"]))
            names = set(file.keys())
            with torch.no_grad():
                for role in roles.trained():
                    for name, parameter in roles.parameters(role).items():
                        parameter.copy_(file.get_tensor(f"roles.{role}.{name}"))
            for role, optimizer in optimizers.items():
                for name, parameter in roles.parameters(role).items():
                    prefix = f"optimizers.{role}.{name}."
                    for key in (n for n in names if n.startswith(prefix)):
                        value = file.get_tensor(key)
                        kept = value if key.endswith(".step") else value.to(parameter.device)
                        optimizer.state[parameter][key.removeprefix(prefix)] = kept
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise BenchError(
            f"the checkpoint {path} can't be read", f"{type(error).__name__}: {error}", "delete that file to start over"
        ) from error
    return counters
