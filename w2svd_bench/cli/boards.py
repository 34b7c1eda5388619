"""``w2svd-bench leaderboard``, and the table that other commands end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.progress import console
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.render import to_rich, write_leaderboard
from w2svd_bench.record import read_records, write_atomically

BEGIN, END = "<!-- leaderboard:begin -->", "<!-- leaderboard:end -->"


def leaderboard(
    folder: Annotated[Path, typer.Argument(help="A folder of records.")] = Path("runs/mini/results"),
    diagnostics: Annotated[bool, typer.Option("--diagnostics", help="Show why scores are what they are.")] = False,
    into: Annotated[
        Path | None, typer.Option("--into", help="A Markdown file whose marked block gets the table.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Render the records of a folder as leaderboard.csv, .md and .tex, and print the table. Starts without torch.

    With --into FILE the table also replaces what stands between the lines `<!-- leaderboard:begin -->` and
    `<!-- leaderboard:end -->` of that file.
    """
    show(folder, as_json, diagnostics)
    if into is not None:
        write_atomically(into, with_block(into.read_text(), (folder / "leaderboard.md").read_text()))


def with_block(page: str, table: str) -> str:
    """The page with the table between its two marks; raises `BenchError` where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError("the page has no place for a table", f"it lacks the lines {BEGIN} and {END}", "add them")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def show(folder: Path, as_json: bool = False, diagnostics: bool = False) -> None:
    """Writes the three files beside the records and prints the table (or the CSV's rows as JSON)."""
    records = read_records(folder)
    if not records:
        raise BenchError(
            f"{folder} holds no records", "nothing was evaluated there yet", "run: w2svd-bench eval --steps 1 4 28"
        )
    paths = write_leaderboard(records, folder)
    board = Leaderboard.from_records(records)
    if as_json:
        print(json.dumps(json.loads(board.wide().to_json(orient="records")), indent=2))
        return
    if not console.is_terminal:  # a log has no width to respect
        console.width = 140
    for table in board.tables(diagnostics):
        console.print(to_rich(table))
    console.print("written: " + ", ".join(str(path) for path in paths), highlight=False, soft_wrap=True)
