"""``w2svd-bench eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import names, positive_integers
from w2svd_bench.cli.boards import show
from w2svd_bench.cli.progress import Reporter, errors, quiet
from w2svd_bench.errors import BenchError


def evaluate(
    steps: options.Steps = None,
    methods: Annotated[list[str] | None, typer.Option("--methods", help="Only these labels.")] = None,
    backbone: options.Backbone = "mini",
    clips: options.Clips = options.DEFAULT_CLIPS,
    split: options.Split = "test",
    out: options.Out = options.RUNS,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Evaluate every run found at each number of steps, and end with the table; cells that are done are skipped.

    Examples:
      w2svd-bench eval --steps 1 4 28
      w2svd-bench eval --steps 4 --methods lcm w2svd --split validation --clips 256
    """
    options.load_plugin(plugin)
    numbers = positive_integers(steps or [str(n) for n in options.DEFAULT_STEPS], "--steps")
    if split not in ("test", "validation"):
        raise BenchError(
            f"split {split!r} is not for evaluation", "prompts come from test or validation", "use --split test"
        )

    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.evaluate.evalset import PortraitSet
    from w2svd_bench.evaluate.grid import Grid

    device = options.resolve_device(device)
    options.use_one_thread(device)
    opened = Backbone.load(backbone, device)
    folders = _finished(out, opened.name, names(methods or []))
    if dry_run:
        for folder in folders:
            print(f"{folder} at {', '.join(map(str, numbers))} steps")
        return
    results = results_folder(out, opened.name, split, clips)
    with Reporter() as report:
        grid = Grid(backbone, PortraitSet(opened.side, clips, split), results, device, report)
        grid.floor()
        for folder in folders:
            grid.run(folder, numbers)
    if not quiet():
        show(results, as_json)


def results_folder(out: Path, backbone: str, split: str = "test", clips: int = options.DEFAULT_CLIPS) -> Path:
    """Where the records and tables of a backbone's runs are; each eval set has its own, for tables never mix them."""
    default = (split, clips) == ("test", options.DEFAULT_CLIPS)
    return out / backbone / ("results" if default else f"results-{split}-{clips}")


def _finished(out: Path, backbone: str, labels: list[str]) -> list[Path]:
    from w2svd_bench.train.run import Run, find_runs

    found = {folder: Run.load(folder) for folder in find_runs(out, backbone)}
    chosen = {folder: run for folder, run in found.items() if not labels or run.label in labels}
    missing = set(labels) - {run.label for run in chosen.values()}
    if missing or not chosen:
        what = f"no run called {', '.join(sorted(missing))}" if missing else "there is nothing to evaluate"
        have = ", ".join(sorted({run.label for run in found.values()})) or "none"
        raise BenchError(
            what,
            f"runs under {out / backbone}: {have}",
            f"train one: w2svd-bench train --method {sorted(missing or {'w2svd'})[0]}",
        )
    for folder, run in chosen.items():
        if not run.finished and not quiet():
            left_out = (
                f"note: {folder} is not finished and is left out; repeat its `w2svd-bench train` command to go on"
            )
            errors.print(escape(left_out), highlight=False, soft_wrap=True)
    return [folder for folder, run in chosen.items() if run.finished]
