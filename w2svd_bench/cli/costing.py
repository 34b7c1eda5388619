"""``w2svd-bench cost``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import names, positive_integers
from w2svd_bench.cli.launch import command_line
from w2svd_bench.cli.progress import console, errors
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS

DEFAULT_METHODS = ["w2svd", "lcm", "dmd"]


def cost(
    methods: Annotated[list[str] | None, typer.Option("--methods", help="Whose training to measure.")] = None,
    steps: options.Steps = None,
    backbone: Annotated[
        str, typer.Option("--backbone", help="hunyuan, hunyuan-i2v, hunyuan-i2v-33ch, mini or a diffusers directory.")
    ] = "hunyuan",
    variant: options.Variant = "",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="engine.attention=flash and the like.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed iterations, after one that is not.")] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the table; results/<backbone> by default.")
    ] = None,
    device: options.Device = "auto",
    part: Annotated[str | None, typer.Option("--part", hidden=True)] = None,
) -> None:
    """Measure seconds and memory of training and sampling, on random weights: no checkpoint is needed.

    Each method is measured in a process of its own, so that one that runs out of memory leaves the others theirs. What
    was measured before is kept.

    Examples:
      w2svd-bench cost --backbone hunyuan --steps 1 4 28
      w2svd-bench cost --backbone hunyuan --variant 544p --methods w2svd
    """
    numbers = positive_integers(steps or [str(n) for n in options.DEFAULT_STEPS], "--steps")
    wanted = names(methods or DEFAULT_METHODS)
    folder = out or Path("results") / Path(backbone).name
    for name in wanted:
        METHODS.get(name)  # a name that is not known is told before anything is measured
    device = options.resolve_device(device)
    arguments = list(command_line.get())
    command = "w2svd-bench " + " ".join(arguments)
    if part is not None:
        _measure(part, wanted, numbers, backbone, variant, overrides or [], runs, folder, device, command)
        return
    if not device.startswith("cuda"):
        _refuse_more_than_there_is(backbone)
    failed, parts = [], [*(f"training {name}" for name in wanted), "sampling"]
    for one in parts:
        console.print(f"measuring {one}", highlight=False)
        status = subprocess.run(
            [sys.executable, "-m", "w2svd_bench", *arguments, "--part", one], check=False
        ).returncode
        if status:
            failed.append(one)
            errors.print(f"measuring {one} failed (status {status})", highlight=False)
    from w2svd_bench.plan import costs_table

    if len(failed) < len(parts):
        for path in costs_table.render(folder):
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
    if failed:
        raise BenchError(
            f"{', '.join(failed)} could not be measured",
            "its message stands above",
            "mend that and repeat the command: what was measured is kept",
        )


def _refuse_more_than_there_is(backbone: str) -> None:
    """A GPU that is full says so, which is a row of the table; a machine without memory has its processes killed."""
    from w2svd_bench.backbones.skeleton import Skeleton

    needed = 4 * Skeleton.open(backbone).parameters  # float32, as everything on a CPU
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise BenchError(
            f"the costs of {backbone} can't be measured on this CPU",
            f"its weights alone take {needed / 1e9:.0f} GB in float32, and this machine has {there / 1e9:.0f} GB",
            f"measure on a GPU, or let arithmetic answer: w2svd-bench plan --compare --backbone {backbone}",
        )


def _measure(
    part: str,
    methods: list[str],
    steps: list[int],
    backbone: str,
    variant: str,
    overrides: list[str],
    runs: int,
    folder: Path,
    device: str,
    command: str,
) -> None:
    """One part in this process: the training of a method, or sampling."""
    import torch

    from w2svd_bench.backbones.skeleton import Skeleton
    from w2svd_bench.backbones.untrained import RandomClips, Untrained
    from w2svd_bench.plan import costs_table, measure
    from w2svd_bench.record import provenance

    options.use_one_thread(device)
    skeleton = Skeleton.open(backbone)
    command = command.split(" --part")[0]
    cuda = device.startswith("cuda")
    about = provenance(torch.cuda.get_device_name(device) if cuda else "cpu")
    own = options.with_variant(skeleton.recipe, variant)
    kind, _, name = part.partition(" ")
    method_class = METHODS.get(name or methods[0])
    resolved = resolve_recipe(method_class, own, None, overrides)
    dtype = torch.bfloat16 if cuda and resolved.engine.dtype != "float32" else torch.float32
    peak = measure.matmul_peak(device, dtype)
    if kind == "training":
        row = measure.training(method_class, resolved, skeleton, device, runs, peak)
        costs_table.write(folder, row.as_data(), peak, command, about)
        return
    video = resolved.video or skeleton.video
    network_of = Untrained(dict(skeleton.config), skeleton.name, video, device, resolved.engine, skeleton.text_tokens)
    network, clip = network_of.network(), RandomClips(network_of).batch([0])
    if resolved.engine.compile:  # as a run's network is when it is evaluated
        network.compile_blocks()
    for number in steps:
        row = measure.sampling(skeleton, resolved, number, device, runs, peak, network, clip)
        costs_table.write(folder, row.as_data(), peak, command, about)
