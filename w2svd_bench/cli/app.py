"""The command line. Each command is a thin function that calls the harness; errors lose their traceback."""

from __future__ import annotations

import errno
import inspect
import os
import re
import sys
import traceback
from collections.abc import Sequence

import typer
from rich.markup import escape

from w2svd_bench import __version__
from w2svd_bench.cli import (
    boards,
    building,
    claims,
    comparing,
    costing,
    data,
    evaluating,
    exporting,
    planning,
    plugins,
    reporting,
    reproducing,
    sampling,
    scoring,
    training,
    weights,
)
from w2svd_bench.cli.arguments import spread
from w2svd_bench.cli.launch import command_line, inside
from w2svd_bench.cli.progress import errors
from w2svd_bench.errors import BenchError

INTERRUPTED = 130  # the exit status that typer makes of a KeyboardInterrupt

app = typer.Typer(
    name="w2svd-bench",
    help="A benchmark for few-step distillation of video diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

app.command("train")(training.train)
app.command("eval")(evaluating.evaluate)
app.command("leaderboard")(boards.leaderboard)
app.command("merge")(boards.merge)
app.command("validate")(boards.validate)
app.command("sample")(sampling.sample)
app.command("export")(exporting.export)
app.command("score")(scoring.score)
app.command("compare")(comparing.compare)
app.command("claims")(claims.claims)
app.command("report")(reporting.report)
app.add_typer(weights.app, name="weights")
app.add_typer(data.app, name="data")
app.command("plan")(planning.plan)
app.command("cost")(costing.cost)
app.command("methods")(plugins.methods)
app.command("new-method")(plugins.new_method)
app.command("reproduce")(reproducing.reproduce)
app.command("build-mini")(building.build_mini)


def _unwrap(group: typer.Typer) -> None:
    """Joins the lines of each docstring's paragraphs: typer keeps line ends, which a terminal then wraps once more."""
    for command in group.registered_commands:
        command.help = re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.getdoc(command.callback) or "")
    for each in group.registered_groups:
        if each.typer_instance is not None:
            _unwrap(each.typer_instance)


_unwrap(app)


def _version(asked: bool) -> None:
    if asked:
        print(f"w2svd-bench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors a user can mend."),
) -> None:
    if debug:
        os.environ["W2SVD_BENCH_DEBUG"] = "1"


def run(arguments: Sequence[str]) -> int:
    """Runs the command line on the given arguments and returns its exit status."""
    command_line.set(list(arguments))
    try:
        # typer brings its own copy of click, so nobody outside can name its errors: it shows them itself and exits.
        typer.main.get_command(app).main(spread(arguments), prog_name="w2svd-bench")
        return 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if status == INTERRUPTED:
            errors.print("interrupted; the same command goes on where it stopped", highlight=False)
        return status
    except Exception as error:
        told = error if isinstance(error, BenchError) else _of_the_disk(error)
        if told is None or os.environ.get("W2SVD_BENCH_DEBUG"):
            raise
        errors.print(f"[bold red]error:[/] {escape(told.what)}", highlight=False, soft_wrap=True)
        errors.print(f"  [dim]why:[/]  {escape(told.why)}", highlight=False, soft_wrap=True)
        errors.print(f"  [dim]cure:[/] {escape(told.cure)}", highlight=False, soft_wrap=True)
        return 1


def _of_the_disk(error: Exception) -> BenchError | None:
    """What a user can mend of the system's errors: a path that can't be used, a disk that is full. None for others."""
    # What the system says to safetensors arrives as text in an error of its own, which is not imported for this.
    wrapped = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    if wrapped is not None:
        error = OSError(int(wrapped[1]), os.strerror(int(wrapped[1])))
    if not isinstance(error, OSError):
        return None
    place = None if error.filename is None else str(error.filename)
    if place is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return None
    what = "the disk can't be written" if place is None else f"{place} can't be used"
    cure = "check the path, its permissions and the space on its disk (w2svd-bench --debug ... shows where it was)"
    return BenchError(what, error.strerror or str(error), cure)


def main() -> None:
    """The console script.

    One of several processes that has failed leaves at once: the communication with the others would be torn down first
    otherwise, which may wait for them, and they wait for this one.
    """
    try:
        status = run(sys.argv[1:])
    except Exception:
        if not inside():
            raise
        traceback.print_exc()
        status = 1
    if status and inside():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
