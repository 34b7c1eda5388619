"""``w2svd-bench weights list``, ``weights check`` and ``weights fetch``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import names
from w2svd_bench.cli.progress import Reporter, console, errors
from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import weights as files
from w2svd_bench.metrics.download import Report
from w2svd_bench.metrics.download import fetch as fetch_one
from w2svd_bench.metrics.weights_table import WEIGHTS, Weight

MEGABYTE = 10**6

app = typer.Typer(
    help="The published weights that metrics stand on: what is needed, what is there, and fetching it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[
    Path | None,
    typer.Option("--weights-dir", help="The folder of weights; $W2SVD_BENCH_WEIGHTS or one in the cache if left out."),
]


@app.command("list")
def list_weights(weights_dir: Folder = None, as_json: options.Json = False) -> None:
    """Print every file with its size, what its hash stands on, its licence, and whether it is there.

    Nothing is read but the files' names: `weights check` tells whether they are the right ones.

    Examples:
      w2svd-bench weights list
      w2svd-bench weights list --weights-dir weights --json
    """
    _use(weights_dir)
    if as_json:
        rows = [asdict(w) | {"standing": _standing(w), "path": _where(w)} for w in WEIGHTS.values()]
        _print_json({"folder": str(files.weights_folder()), "weights": rows})
        return
    # Two facts in a cell and narrow columns: a terminal of 80 columns shows all of it.
    widths = {"size, hash": 10, "licence": 12, "used by": 15, "there": 7}
    table = Table(Column("weights, file", overflow="fold", min_width=max(map(len, WEIGHTS))))
    for name, width in widths.items():
        table.add_column(name, overflow="fold", max_width=width)
    for weight in WEIGHTS.values():
        there = "yes" if files.place(weight).is_file() else "torch's cache" if _where(weight) else "no"
        first = (f"{weight.id}\n{weight.file}", f"{_megabytes(weight.size)}\n{_standing(weight)}", weight.licence)
        table.add_row(*map(escape, first), "\n".join(map(escape, weight.used_by)), there)
    console.print(table)
    _say(f"folder: {files.weights_folder()}")


@app.command()
def check(
    need: Annotated[
        list[str] | None, typer.Option("--need", help="Metrics whose files must all be there: --need fid fvd.")
    ] = None,
    weights_dir: Folder = None,
    as_json: options.Json = False,
) -> None:
    """Read every file that is there and compare its sha256; exit with 1 if one is wrong, or is needed and missing.

    Examples:
      w2svd-bench weights check
      w2svd-bench weights check --need fid fvd vbench
    """
    _use(weights_dir)
    needed = {weight.id for metric in names(need or []) for weight in files.needed_by(metric)}
    rows, failures = [], []
    with Reporter() as report:
        for done, weight in enumerate(WEIGHTS.values(), start=1):
            row, failure = _checked(weight, needed=weight.id in needed)
            rows.append(row)
            failures += [failure] if failure else []
            report("checking weights", done, len(WEIGHTS))
    if as_json:
        _print_json({"folder": str(files.weights_folder()), "right": not failures, "weights": rows})
    else:
        table = Table(Column("weights", min_width=max(map(len, WEIGHTS))), "state", "sha256")
        for row in rows:
            table.add_row(escape(row["id"]), escape(row["state"]), (row["sha256"] or "")[:16])
        console.print(table)
        _say(f"folder: {files.weights_folder()}")
        _show(failures)
    if failures:
        raise typer.Exit(1)


@app.command()
def fetch(
    ids: Annotated[list[str] | None, typer.Argument(help="Which ones, as `weights list` calls them.")] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--for", help="All that these metrics need: --for fid fvd vbench.")
    ] = None,
    weights_dir: Folder = None,
    as_json: options.Json = False,
) -> None:
    """Download weights, checked; the same command goes on where it was interrupted, and leaves what is right.

    Examples:
      w2svd-bench weights fetch inception-pytorchfid i3d-torchscript
      w2svd-bench weights fetch --for fid fvd vbench
    """
    _use(weights_dir)
    wanted = [files.named(id) for id in names(ids or [])]
    wanted += [weight for metric in names(metrics or []) for weight in files.needed_by(metric)]
    if not wanted:
        what, why = "there is nothing to fetch", "neither files nor metrics were named"
        raise BenchError(what, why, "w2svd-bench weights fetch --for fid fvd; w2svd-bench weights list shows all")
    rows: list[dict[str, Any]] = []
    failures = []
    with Reporter() as report:
        for weight in dict.fromkeys(wanted):
            try:
                found = fetch_one(weight.id, _progress(report, weight))
            except BenchError as failure:  # the others are worth having: what is missing is told at the end
                failures.append(failure)
                rows.append({"id": weight.id, "path": None, "sha256": None, "state": "missing"} | _told(failure))
            else:
                state = found.standing
                rows.append({"id": weight.id, "path": str(found.path), "sha256": found.sha256, "state": state})
    if as_json:
        _print_json({"folder": str(files.weights_folder()), "weights": rows})
    else:
        for row in rows:
            if row["path"]:
                _say(f"{row['id']} ({row['state']}): {row['path']}")
        _show(failures)
    if failures:
        raise typer.Exit(1)


def _use(folder: Path | None) -> None:
    """Makes a folder the folder of weights, for this process and those that it starts."""
    if folder is not None:
        os.environ[files.FOLDER_VARIABLE] = str(folder.expanduser().absolute())


def _checked(weight: Weight, needed: bool) -> tuple[dict[str, Any], BenchError | None]:
    """A row of `check`, and the error if it is one."""
    row: dict[str, Any] = {"id": weight.id, "needed": needed, "path": _where(weight), "sha256": None}
    try:
        found = files.find(weight.id)
    except BenchError as error:
        if row["path"] is None and not needed:
            return row | {"state": "missing"}, None
        return row | {"state": "missing" if row["path"] is None else "wrong"} | _told(error), error
    return row | {"state": found.standing, "sha256": found.sha256}, None


def _progress(report: Reporter, weight: Weight) -> Report:
    """Shows bytes as megabytes; the last one only when the last byte is there."""

    def tell(done: int, total: int | None) -> None:
        whole = -(-total // MEGABYTE) if total else done // MEGABYTE + 1
        report(f"fetching {weight.id}", whole if done == total else done // MEGABYTE, whole, "MB")

    return tell


def _where(weight: Weight) -> str | None:
    path = files.locate(weight)
    return str(path) if path is not None else None


def _standing(weight: Weight) -> str:
    return "pinned" if weight.sha256 else "trusted on first use"


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / MEGABYTE:.1f} MB" if size >= MEGABYTE else f"{size} bytes"


def _told(error: BenchError) -> dict[str, str]:
    return {"what": error.what, "why": error.why, "cure": error.cure}


def _show(failures: Sequence[BenchError]) -> None:
    """Every error with its cure, as the command line shows the one that ends a command."""
    for failure in failures:
        errors.print(f"[bold red]error:[/] {escape(failure.what)}", highlight=False, soft_wrap=True)
        errors.print(f"  [dim]why:[/]  {escape(failure.why)}", highlight=False, soft_wrap=True)
        errors.print(f"  [dim]cure:[/] {escape(failure.cure)}", highlight=False, soft_wrap=True)


def _say(line: str) -> None:
    console.print(escape(line), highlight=False, soft_wrap=True)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))
