"""``w2svd-bench leaderboard``, ``merge`` and ``validate``, and the table that other commands end with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import arguments, options
from w2svd_bench.cli.progress import console
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard import merge as merging
from w2svd_bench.leaderboard import validate as validating
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.filters import Filter, filtered, parse
from w2svd_bench.leaderboard.render import to_markdown_page, to_rich_parts, write_board
from w2svd_bench.leaderboard.reported import reported_of
from w2svd_bench.record import read_records, write_atomically

BEGIN, END = "<!-- leaderboard:begin -->", "<!-- leaderboard:end -->"
# What the wide table has of a metric, behind its name.
_OF_A_METRIC = ("", " se", " inf", " flags", " invalid")
_IDENTITY = ("backbone", "method", "label", "steps", "seed")


@dataclass(frozen=True)
class View:
    """What of the records is shown, and how: see the options of `leaderboard`."""

    filters: Sequence[Filter] = ()
    columns: Sequence[str] = ()
    by: str = ""
    diagnostics: bool = False

    @property
    def is_part(self) -> bool:
        """Whether it is another table than that of all records."""
        return bool(self.filters or self.columns or self.by)


def leaderboard(
    folder: Annotated[Path, typer.Argument(help="A folder of records.")] = Path("runs/mini/results"),
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help='Only such records: --filter "steps<=4" label=w2svd,lcm.'),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--columns", help=r'Only such columns: --columns "fvd\[mini]" "seconds a clip".')
    ] = None,
    pivot: Annotated[
        str,
        typer.Option("--pivot", help="steps, or a metric: one row a method, a group of columns a number of steps."),
    ] = "",
    diagnostics: Annotated[bool, typer.Option("--diagnostics", help="Show why scores are what they are.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the files of a filtered table.")] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", help="A Markdown file whose marked block gets the table.", exists=True, dir_okay=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    r"""Render the records of a folder as leaderboard.csv, -tidy.csv, .md and .tex, and print the table. Without torch.

    The files beside the records always hold all of them: with --filter, --columns or --pivot the table is printed
    only, and written where --out says. With --into FILE it also replaces what stands between the lines
    `<!-- leaderboard:begin -->` and `<!-- leaderboard:end -->` of that file.

    Examples:
      w2svd-bench leaderboard results/mini --pivot steps --columns "fvd\[mini]" "training seconds"
      w2svd-bench leaderboard results/mini --filter "steps<=4" label=w2svd,lcm --out paper/
    """
    view = View([parse(text) for text in filters or []], arguments.names(columns or []), pivot, diagnostics)
    show(folder, as_json, view, out, into)


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of records, of several machines.")],
    into: Annotated[Path, typer.Option("--into", help="The folder that gets all of them; what it has stays.")],
    as_json: options.Json = False,
) -> None:
    """Join the records of several machines in one folder and render its leaderboard.

    A cell that two folders hold alike is there once; two records of a cell that differ are refused, by name.

    Example:
      w2svd-bench merge machine1/results machine2/results --into results/hunyuan
    """
    merged = merging.merge(folders, into)
    if not as_json:
        told = ", ".join(f"{count} of {folder}" for folder, count in merged.brought.items())
        repeated = f"; {merged.repeated} were there twice" if merged.repeated else ""
        console.print(f"{len(merged.records)} records: {told}{repeated}", highlight=False, soft_wrap=True, markup=False)
    show(into, as_json)


def validate(
    folder: Annotated[Path, typer.Argument(help="A folder of records.")],
    publishable: Annotated[
        bool, typer.Option("--publishable", help="Also refuse random weights and code that no commit holds.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check a folder of records: schema, file names, hashes, sums, paths, and whether one table may hold them.

    Exit status 1 where there is a problem.

    Example:
      w2svd-bench validate results/mini --publishable
    """
    from rich.table import Table
    from rich.text import Text

    report = validating.validate(folder, publishable)
    if as_json:
        findings = [{"file": one.file and str(one.file), "kind": one.kind, "text": one.text} for one in report.findings]
        data = {"folder": str(folder), "files": report.num_files, "valid": not report.problems, "findings": findings}
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        if not console.is_terminal:
            console.width = 140
        if report.findings:
            table = Table("file", "", "what", box=None, pad_edge=False, show_header=False)
            for one in report.findings:
                style = "bold red" if one.kind == "problem" else "yellow"
                table.add_row(Text(str(one.file or "all together")), Text(one.kind, style=style), Text(one.text))
            console.print(table)
        remarks = len(report.findings) - len(report.problems)
        told = f"{report.num_files} records in {folder}: {len(report.problems)} problem(s), {remarks} remark(s)"
        if remarks:
            told += "; remarks are problems with --publishable"
        console.print(told, highlight=False, soft_wrap=True, markup=False)
    if report.problems:
        raise typer.Exit(1)


def with_block(page: str, table: str) -> str:
    """The page with the table between its two marks; raises `BenchError` where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError("the page has no place for a table", f"it lacks the lines {BEGIN} and {END}", "add them")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def show(
    folder: Path, as_json: bool = False, view: View | None = None, out: Path | None = None, into: Path | None = None
) -> None:
    """Writes the files beside the records, or those of a view where ``out`` says, and prints the table.

    As JSON it prints lines of the wide table: the records that pass the view's filters, and its columns.
    """
    view = view or View()
    records = read_records(folder)
    if not records:
        raise BenchError(
            f"{folder} holds no records", "nothing was evaluated there yet", "run: w2svd-bench eval --steps 1 4 28"
        )
    if as_json and view.by:
        raise BenchError(
            "--pivot has no JSON", "JSON holds the numbers in full, a line a record", "pivot them where they are read"
        )
    # Before anything is chosen, so that what can't be compared is refused whatever is shown of it.
    reported = reported_of({one.cell.method for one in records})
    board = Leaderboard.from_records(records, reported)
    if view.filters:
        board = Leaderboard.from_records(filtered(records, view.filters), reported)
    tables = board.tables(columns=view.columns, by=view.by)
    page = to_markdown_page(tables)
    if into is not None:
        marked = with_block(into.read_text(encoding="utf-8"), page)
    beside = folder.parent if folder.resolve().name == "records" else folder
    target = out or (None if view.is_part else beside)
    paths = write_board(board, tables, target) if target else ()
    if into is not None:
        paths = (*paths, write_atomically(into, marked))
    if as_json:
        print(_json(board, view.columns))
        return
    if not console.is_terminal:  # a log has no width to respect
        console.width = 140
    for table in board.tables(view.diagnostics, view.columns, view.by) if view.diagnostics else tables:
        for part in to_rich_parts(table, console.width):
            console.print(part)
    told = "written: " + ", ".join(map(str, paths)) if paths else "nothing was written: --out FOLDER writes this table"
    console.print(told, highlight=False, soft_wrap=True, markup=False)


def _json(board: Leaderboard, columns: Sequence[str]) -> str:
    frame = board.wide()
    if columns:
        known = board.columns()
        wanted = [*_IDENTITY, *(f"{known[name]}{more}" for name in columns for more in _OF_A_METRIC)]
        frame = frame[[name for name in dict.fromkeys(wanted) if name in frame.columns]]
    # Not by to_json, which leaves out digits.
    lines = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    return json.dumps(lines, indent=2, allow_nan=False)
