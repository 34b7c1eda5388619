"""``w2svd-bench reproduce`` and ``w2svd-bench build-mini``: everything from one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import positive_integers
from w2svd_bench.cli.evaluating import results_folder
from w2svd_bench.cli.jobs import Job, run_jobs
from w2svd_bench.cli.progress import console
from w2svd_bench.config import Frozen, Recipe, load_recipe, validated
from w2svd_bench.registry import METHODS


class Variant(Frozen):
    """One row of a plan: a method, what tables call it, and what differs from its recipe."""

    method: str
    label: str
    overrides: list[str] = Field(default_factory=list, alias="set")


class Plan(Frozen):
    """The runs that `reproduce` makes."""

    runs: list[Variant]


def reproduce(
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed instead of three: minutes, not half an hour.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes side by side, one thread each.")] = 2,
    plan: Annotated[Path | None, typer.Option("--plan", help="A YAML file of runs, such as docs/tuning.yaml.")] = None,
    steps: options.Steps = None,
    backbone: options.Backbone = "mini",
    clips: options.Clips = options.DEFAULT_CLIPS,
    split: options.Split = "test",
    out: options.Out = options.RUNS,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
) -> None:
    """Train every method, evaluate all of them, print and write the tables; interrupted, it goes on where it stopped.

    Examples:
      w2svd-bench reproduce --quick
      w2svd-bench reproduce --quick --plan docs/tuning.yaml --split validation --clips 256 --steps 1 4 --out runs/tuning
    """
    numbers = positive_integers(steps or [str(n) for n in options.DEFAULT_STEPS], "--steps")
    common = ["--backbone", backbone, "--out", str(out), "--device", device]
    evaluation = ["eval", *common, "--split", split, "--clips", str(clips), "--steps", *map(str, numbers)]
    work = []
    for seed in range(1 if quick else 3):
        for variant in _variants(plan, backbone):
            training = ["train", "--method", variant.method, "--label", variant.label, "--seed", str(seed), *common]
            training += [part for override in variant.overrides for part in ("--set", override)]
            work.append(Job(f"{variant.label} seed {seed}", [training, [*evaluation, "--methods", variant.label]]))
    if dry_run:
        for job in work:
            for command in job.commands:
                print("w2svd-bench " + " ".join(command))
        return
    start = time.perf_counter()
    run_jobs(work, jobs)
    from w2svd_bench.cli.boards import show

    results = results_folder(out, options.backbone_name(backbone), split, clips)
    show(results)
    console.print(f"contact sheets: {results / 'sheets'}; {time.perf_counter() - start:.0f} s in all", highlight=False)


def _variants(plan: Path | None, backbone: str) -> list[Variant]:
    """The runs of a plan; without one, every method that has a recipe, the longest training first.

    The longest go first so that none of them is left alone on one core at the end.
    """
    if plan is not None:
        return validated(Plan, load_recipe(plan), f"the plan {plan}").runs
    names = sorted(METHODS.names(), key=lambda name: -_weight(name, options.backbone_name(backbone)))
    return [Variant(method=name, label=name) for name in names]


def _weight(method: str, backbone: str) -> int:
    """Roles times iterations of the method's own recipe: a rough measure of how long its training takes."""
    method_class = METHODS.get(method)
    recipe = validated(Recipe, method_class.recipe(backbone), f"the recipe of {method}")
    config = validated(method_class.Config, recipe.settings, f"the settings section of {method}")
    return recipe.training.iterations * len(method_class(config, shift=1.0).roles())


def build_mini(
    out: Annotated[Path, typer.Option("--out", help="Folder for the new assets and the work in between.")] = Path(
        "build-mini"
    ),
    device: options.Device = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="A few iterations of every stage: a rehearsal, not assets.")
    ] = False,
) -> None:
    """Rebuild the miniature HunyuanVideo from nothing: codec, text encoders, teacher and feature nets."""
    from w2svd_bench.build_mini.build import build

    device = options.resolve_device(device)
    options.use_one_thread(device)
    build(out, device, quick, lambda line: print(line, flush=True))
