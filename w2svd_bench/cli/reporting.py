"""``w2svd-bench report``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from w2svd_bench.cli import options
from w2svd_bench.cli.evaluating import Asked
from w2svd_bench.cli.progress import Reporter, console, errors
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.curves import collect_curves, write_curves
from w2svd_bench.leaderboard.report import LARGE_BYTES, write_report
from w2svd_bench.leaderboard.reported import reported_of
from w2svd_bench.record import Record, read_records


def report(
    folder: Annotated[Path, typer.Argument(help="A folder of records.")] = Path("runs/mini/results"),
    runs: Annotated[
        Path | None, typer.Option("--runs", help="The folder of runs: their training curves are plotted.")
    ] = None,
    clips: Annotated[bool, typer.Option("--clips", help="Sample a few clips of every method, to be shown.")] = False,
    backbone: options.Backbone = "mini",
    data: options.Data = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="The folder that the cache of --data was prepared from.")
    ] = None,
    split: options.Split = "test",
    plugin: options.Plugin = None,
    device: options.Device = "auto",
) -> None:
    """Make report.html of a folder of records: tables, claims, plots, clips and provenance in one file, and plots/.

    Curves and clips are kept in the folder, so that the report can be made again without the runs; without --clips this
    starts without torch. Clips are those of the first four prompts at the steps that were evaluated, of each method's
    first seed.

    Examples:
      w2svd-bench report results/mini
      w2svd-bench report runs/mini/results --runs runs --clips
    """
    records = read_records(folder)
    if not records:
        raise BenchError(
            f"{folder} holds no records", "nothing was evaluated there yet", "run: w2svd-bench eval --steps 1 4 28"
        )
    if clips and runs is None:
        why = "clips are sampled from runs, and it is not known where they are"
        raise BenchError("--clips needs --runs", why, "add --runs DIR, for example --runs runs")
    if runs is not None:
        _keep_curves(runs, folder, records)
        if clips:
            options.load_plugin(plugin)
            _sample(runs, folder, records, backbone, Asked(data, videos, split, 4), options.resolve_device(device))
    _write(folder, records)


def make_report(folder: Path, runs: Path, backbone: str, device: str) -> None:
    """`report` with curves and clips of procedural portraits, as `reproduce` ends with it."""
    report(folder, runs, clips=True, backbone=backbone, device=device)


def _write(folder: Path, records: list[Record]) -> None:
    page, plots = write_report(records, folder, reported_of({one.cell.method for one in records}))
    size = page.stat().st_size
    written = f"written: {page} ({size / 1e6:.1f} MB) and {len(plots)} plots"
    console.print(escape(written), highlight=False, soft_wrap=True)
    if size > LARGE_BYTES:
        large = f"note: {page} is larger than {LARGE_BYTES / 1e6:.0f} MB, which many programs refuse; show fewer runs"
        errors.print(escape(large), highlight=False, soft_wrap=True)


def _keep_curves(runs: Path, folder: Path, records: list[Record]) -> None:
    """Keeps the curves of the runs that the records are of; raises `BenchError` where there are no runs at all."""
    if not runs.is_dir():
        raise BenchError(f"runs can't be read from {runs}", "there is no such folder", "check the path")
    known = {(one.cell.backbone, one.cell.label, one.cell.seed) for one in records}
    found = collect_curves(runs, known)
    if found:
        write_curves(found, folder)
    else:
        errors.print(escape(f"note: no run below {runs} that was evaluated left curves"), highlight=False)


def _sample(runs: Path, folder: Path, records: list[Record], source: str, asked: Asked, device: str) -> None:
    """Clips of each label's first evaluated run whose weights are still those that were scored."""
    from w2svd_bench.evaluate.sampling import Subject
    from w2svd_bench.evaluate.showcase import Showcase
    from w2svd_bench.train.run import Run, find_runs

    options.use_one_thread(device)
    name = options.backbone_name(source)
    chosen: list[tuple[Path, list[int]]] = []
    shown: set[str] = set()
    for path in find_runs(runs, name):
        run = Run.load(path)
        same = (run.backbone, run.label, run.seed, run.weights_sha256)
        steps = sorted(
            one.cell.steps
            for one in records
            if (one.cell.backbone, one.cell.label, one.cell.seed, one.cell.checkpoint_sha256) == same
        )
        if steps and run.label not in shown:
            chosen.append((path, steps))
            shown.add(run.label)
        elif not steps:
            told = f"note: {path} is left out, for no record is of its weights"
            errors.print(escape(told), highlight=False, soft_wrap=True)
    if not chosen:
        raise BenchError(
            "there are no clips to show",
            f"no run below {runs / name} has the weights of a record in {folder}",
            "give the folder of runs that these records were made of",
        )

    _, eval_set = asked.open(source, device, chosen[0][0])
    found = [(partial(Subject.open, path, source, device), steps) for path, steps in chosen]
    with Reporter() as progress:
        Showcase(eval_set, folder, progress).write(found)
