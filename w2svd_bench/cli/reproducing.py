"""``w2svd-bench reproduce`` and ``w2svd-bench build-mini``: everything from one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import positive_integers
from w2svd_bench.cli.evaluating import results_folder
from w2svd_bench.cli.jobs import Job, run_jobs
from w2svd_bench.cli.progress import console
from w2svd_bench.registry import METHODS


def reproduce(
    quick: Annotated[bool, typer.Option("--quick", help="One seed instead of three: minutes instead of half an hour.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes side by side, one thread each.")] = 2,
    steps: options.Steps = None,
    backbone: options.Backbone = "mini",
    clips: options.Clips = 512,
    out: options.Out = options.RUNS,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
) -> None:
    """Train every method, evaluate all of them, print and write the tables; interrupted, it goes on where it stopped.

    Example:
      w2svd-bench reproduce --quick
    """
    numbers = positive_integers(steps or [str(n) for n in options.DEFAULT_STEPS], "--steps")
    common = ["--backbone", backbone, "--out", str(out), "--device", device]
    evaluation = ["eval", *common, "--clips", str(clips), "--steps", *map(str, numbers)]
    # The dearest first, so that no long job is left alone at the end.
    names = sorted(METHODS.names(), key=lambda name: -_weight(name, backbone))
    work = [
        Job(f"{name} seed {seed}", [["train", "--method", name, "--seed", str(seed), *common], [*evaluation, "--methods", name]])
        for seed in range(1 if quick else 3)
        for name in names
    ]
    if dry_run:
        for job in work:
            for command in job.commands:
                print("w2svd-bench " + " ".join(command))
        return
    start = time.perf_counter()
    run_jobs(work, jobs)
    run_jobs([Job("table", [evaluation])], 1)
    from w2svd_bench.cli.boards import show

    results = results_folder(out, _name(backbone))
    show(results)
    console.print(f"contact sheets: {results / 'sheets'}; {time.perf_counter() - start:.0f} s in all", highlight=False)


def _weight(method: str, backbone: str) -> int:
    """Iterations of the method's own recipe: a rough measure of how long its training takes."""
    return int(METHODS.get(method).recipe(backbone)["training"]["iterations"])


def _name(backbone: str) -> str:
    from w2svd_bench.backbones.base import Backbone

    return Backbone.load(backbone).name


def build_mini(
    out: Annotated[Path, typer.Option("--out", help="Folder for the new assets and the work in between.")] = Path("build-mini"),
    device: options.Device = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="A few iterations of every stage: a rehearsal, not assets.")] = False,
) -> None:
    """Rebuild the miniature HunyuanVideo from nothing: codec, text encoders, teacher and feature nets."""
    from w2svd_bench.build_mini.build import build

    device = options.resolve_device(device)
    options.use_one_thread(device)
    build(out, device, quick, lambda line: print(line, flush=True))
