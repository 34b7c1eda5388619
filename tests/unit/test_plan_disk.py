"""What a plan says of the disk, against checkpoints and exports that are really written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from w2svd_bench.backbones.export import export_generator
from w2svd_bench.backbones.roles import Roles
from w2svd_bench.backbones.skeleton import Skeleton
from w2svd_bench.backbones.untrained import Untrained
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.config import Engine, Optimizer, Video
from w2svd_bench.method import GENERATOR, RoleSpec
from w2svd_bench.plan.machine import Machine
from w2svd_bench.plan.memory import Plan, Setup
from w2svd_bench.plan.table import page
from w2svd_bench.plan.work import Work
from w2svd_bench.registry import METHODS
from w2svd_bench.train import checkpoint

ADAM = Optimizer(learning_rate=1e-4)
VIDEO = Video(height=192, width=256, num_frames=17, fps=8)
NARROW = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 32,
    "pooled_projection_dim": 32,
    "rope_axes_dim": [8, 12, 12],
}
ROLES = {
    "whole copies": {GENERATOR: RoleSpec.full(ADAM, 0.9), "fake": RoleSpec.full(ADAM)},
    "adapters": {
        GENERATOR: RoleSpec.lora(ADAM, 8, 0.9),
        "fake": RoleSpec.lora(ADAM, 4),
        "real": RoleSpec.view("fake", 0.5),
        "judge": RoleSpec.head(ADAM),
    },
}


def tensor_bytes(folder: Path) -> int:
    """Of all tensors in the safetensors files of a folder, without the files' headers."""
    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    return total


@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ROLES)
def test_the_disk_holds_what_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, trained: Any
) -> None:
    engine, specs = Engine(dtype="bfloat16", trained_dtype=trained), ROLES[kind]
    skeleton = Skeleton("narrow", {**Skeleton.open("hunyuan").config, **NARROW}, text_tokens=32)
    backbone = Untrained(dict(skeleton.config), "narrow", VIDEO, "cpu", engine, 32)
    method: Any = None
    setup = Setup(method, specs, Work((), ()), skeleton, VIDEO, engine, 1, 1, 2, Machine.of(1, 80))
    disk = Plan(setup).disk

    roles = Roles(backbone.network(), specs, engine=engine)
    optimizers = {
        name: torch.optim.AdamW(roles.parameters(name).values()) for name, spec in specs.items() if spec.optimizer
    }
    for name, optimizer in optimizers.items():
        for parameter in roles.parameters(name).values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    highest = 0
    commit = checkpoint._commit

    def weighed(root: Path, *rest: Any) -> None:
        nonlocal highest
        highest = max(highest, tensor_bytes(root))
        commit(root, *rest)

    monkeypatch.setattr(checkpoint, "_commit", weighed)
    for iteration in (1, 2):
        checkpoint.save(tmp_path, roles, optimizers, checkpoint.Counters(iteration=iteration))
    # AdamW also counts its steps: a number for each tensor.
    assert tensor_bytes(tmp_path) == pytest.approx(disk["checkpoint"], rel=0.01)
    assert highest == pytest.approx(disk["checkpoints"], rel=0.01)

    export_generator(roles, specs[GENERATOR], backbone, tmp_path / "generator")
    assert tensor_bytes(tmp_path / "generator") == disk["generator"]


def verdict(method: str) -> str:
    """A page's words on the disk."""
    recipe = resolve_recipe(METHODS.get(method), "hunyuan", None, [])
    plan = Plan(Setup.of(METHODS.get(method), recipe, Skeleton.open("hunyuan"), Machine.of(8, 80)))
    console = Console(width=200)
    with console.capture() as printed:
        console.print(page(plan))
    return next(line.rstrip() for line in printed.get().splitlines() if line.startswith("disk:"))


def test_a_page_says_that_two_checkpoints_stand_while_one_is_written() -> None:
    assert verdict("dmd") == (
        "disk: generator 25.6 GB, a checkpoint 359.0 GB (the old one stays until the new one is whole: 718.0 GB), "
        "3.4 MB a training clip"
    )
    assert verdict("euler") == "disk: generator 0.0 GB, a checkpoint 0.0 GB, 3.4 MB a training clip"
