"""``w2svd-bench train``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from w2svd_bench.cli import options
from w2svd_bench.cli.progress import Reporter, console, quiet
from w2svd_bench.config import Recipe, apply_overrides, load_recipe, validated
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS


def train(
    method: Annotated[str, typer.Option("--method", help="The method; see `w2svd-bench methods`.")],
    backbone: options.Backbone = "mini",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe file instead of the method's own.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="settings.alpha_weak=0.5 and the like.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="A name for this variant in tables and folders.")] = None,
    out: options.Out = options.RUNS,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
) -> None:
    """Train a method on a backbone; the same command goes on where it was interrupted.

    Examples:
      w2svd-bench train --method w2svd
      w2svd-bench train --method w2svd --set settings.alpha_weak=0 settings.gt.kind=none --label lora-dmd
    """
    options.load_plugin(plugin)
    method_class = METHODS.get(method)
    resolved = resolve_recipe(method_class, options.backbone_name(backbone), recipe, overrides or [])
    if label is None and (overrides or recipe):
        label = method
        if not dry_run and not quiet():
            console.print(f"note: this variant will be called {label!r} in tables; --label NAME gives it its own name")
    label = method if label is None else label
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", label) or label.startswith("results"):
        raise BenchError(
            f"label {label!r} can't name a run",
            "it names a folder beside the results: letters, digits, - _ and . only, and not results...",
            "use another name",
        )
    if dry_run:
        console.print(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False).rstrip(), highlight=False)
        return
    _train(method_class, backbone, seed, resolved, label, out, plugin, device)


def resolve_recipe(method_class: Any, backbone: str, recipe: Path | None, overrides: list[str]) -> Recipe:
    """A recipe from the method or a file, with overrides, checked; its settings are completed with their defaults."""
    source = load_recipe(recipe) if recipe else method_class.recipe(backbone)
    resolved = validated(Recipe, apply_overrides(source, overrides), f"the recipe of {method_class.name}")
    if resolved.method != method_class.name:
        raise BenchError(
            f"the recipe is for method {resolved.method!r}, not {method_class.name!r}",
            f"its key `method` says so ({recipe or 'the one shipped with the method'})",
            f"use --method {resolved.method}, or another recipe",
        )
    settings = validated(method_class.Config, resolved.settings, f"the settings section of {method_class.name}")
    return resolved.model_copy(update={"settings": json.loads(settings.model_dump_json())})


def _train(
    method_class: Any, source: str, seed: int, recipe: Recipe, label: str, out: Path, plugin: Path | None, device: str
) -> None:
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.data.latents import portrait_pool
    from w2svd_bench.train.loop import train as train_run
    from w2svd_bench.train.run import Run, run_folder

    device = options.resolve_device(device)
    options.use_one_thread(device)
    backbone = Backbone.load(source, device)
    method = method_class(validated(method_class.Config, recipe.settings, "settings"), backbone.side.shift)
    run = Run(
        method=method_class.name,
        backbone=backbone.name,
        label=label,
        seed=seed,
        config=recipe.model_dump(mode="json"),
        backbone_sha256=backbone.sha256,
        plugin=str(plugin) if plugin else None,
    )
    folder = run_folder(out, backbone.name, label, seed)
    with Reporter() as report:
        pool = None
        if method.roles():
            pool = portrait_pool(
                backbone, "train", recipe.training.pool_clips, lambda d, n: report("encoding training clips", d, n)
            )
        name = f"training {label} seed {seed}"

        def tell(done: int, total: int, entry: dict[str, float]) -> None:
            report(name, done, total, f"loss {entry.get('generator/loss', float('nan')):.4f}")

        finished = train_run(method, backbone, pool, recipe, run, folder, tell)
    if quiet():
        return
    if not method.roles():
        console.print(f"{method.name} needs no training; {folder} is ready for `w2svd-bench eval`", highlight=False)
    else:
        updates = ", ".join(f"{count} updates of {role}" for role, count in finished.updates.items())
        console.print(f"{folder}: {updates}; {finished.seconds:.0f} s; next: w2svd-bench eval", highlight=False)
