"""A leaderboard as CSV, Markdown, LaTeX and in the terminal; the same leaderboard gives the same bytes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.latex import latex_text
from w2svd_bench.leaderboard.reported import Reported
from w2svd_bench.leaderboard.table import TIE, Column, Entry, Table
from w2svd_bench.record import Record, write_atomically

if TYPE_CHECKING:
    import rich.table

_TEXT_CELLS = 12  # the least width of a column of texts on a terminal
_ARROWS = {"up": " ↑", "down": " ↓", "": ""}
# A table that is wider than the line is shrunk to it, which takes graphicx; without that it sticks out.
_LATEX_FIT = (
    r"\leavevmode\ifdim\wd2>\linewidth\ifdefined\resizebox\resizebox{\linewidth}{!}{\box2}\else\box2\fi\else\box2\fi"
)
_NOTE = "generated from records by `w2svd-bench leaderboard`: change those, not this file"


def write_leaderboard(
    records: Iterable[Record], folder: Path, reported: Iterable[Reported] = ()
) -> tuple[Path, Path, Path, Path]:
    """Writes the files of `write_board` from records.

    Raises:
        BenchError: see `Leaderboard.from_records`.
    """
    board = Leaderboard.from_records(records, reported)
    return write_board(board, board.tables(), folder)


def write_board(board: Leaderboard, tables: Sequence[Table], folder: Path) -> tuple[Path, Path, Path, Path]:
    """Writes leaderboard.csv, leaderboard-tidy.csv, .md and .tex, each as a whole or not at all; returns their paths.

    All are rendered before the first is written, so that what can't be rendered leaves the old files.
    """
    texts = {
        "leaderboard.csv": to_csv(board),
        "leaderboard-tidy.csv": to_tidy_csv(board),
        "leaderboard.md": to_markdown_page(tables),
        "leaderboard.tex": to_latex_file(tables),
    }
    wide, tidy, markdown, latex = (write_atomically(folder / name, text) for name, text in texts.items())
    return wide, tidy, markdown, latex


def to_csv(board: Leaderboard) -> str:
    """The wide table, one line a record, numbers in full."""
    return board.wide().to_csv(index=False, lineterminator="\n")


def to_tidy_csv(board: Leaderboard) -> str:
    """One line a number, in full."""
    return board.tidy().to_csv(index=False, lineterminator="\n")


def to_markdown_page(tables: Iterable[Table]) -> str:
    """All tables in one file, which says where it comes from."""
    return f"<!-- {_NOTE} -->\n\n" + "\n".join(to_markdown(table) for table in tables)


def to_latex_file(tables: Iterable[Table]) -> str:
    """All tables in one file, which says where it comes from and what it needs."""
    return (
        f"% {_NOTE}\n% needs \\usepackage{{booktabs}}; with graphicx, tables that are too wide are shrunk\n"
        + "\n".join(to_latex(table) for table in tables)
    )


def to_markdown(table: Table) -> str:
    """The table, its footnotes and its caption, in GitHub's dialect."""

    def shown(entry: Entry) -> str:
        text = markdown_text(entry.text)
        text = {"best": f"**{text}**", "second": f"<ins>{text}</ins>", "": text}[entry.mark]
        text += TIE if entry.tie else ""
        text += f" ± {entry.interval}" if entry.interval else ""
        return text + (f"<sup>{entry.note}</sup>" if entry.note else "")

    def heading(column: Column) -> str:
        return markdown_text(column.title) + _ARROWS[column.direction] + (f" at {column.group}" if column.group else "")

    lines = [
        _pipes(map(heading, table.columns)),
        _pipes(":---" if column.is_text else "---:" for column in table.columns),
        *(_pipes(map(shown, row)) for row in table.rows),
    ]
    notes = [f"<sup>{i}</sup> {markdown_text(note)}" for i, note in enumerate(table.notes, start=1)]
    return "\n".join(lines) + "\n\n" + "\n\n".join([*notes, markdown_text(table.caption)]) + "\n"


def markdown_text(text: str) -> str:
    """Text that GitHub's Markdown shows as it stands, on one line: in a table, or inside of a paragraph."""
    # A bracket is only taken for a link's where another one follows at once: fid[mini] is left as it reads.
    return re.sub(r"([\\`*_<&|~]|\](?=[(\[]))", r"\\\1", " ".join(text.split()))


def to_latex(table: Table) -> str:
    r"""The table as a float that ``\input`` takes into any document with the package booktabs."""

    def shown(entry: Entry) -> str:
        text = latex_text(entry.text)
        text = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", "": text}[entry.mark]
        text += rf"\textsuperscript{{{latex_text(TIE)}}}" if entry.tie else ""
        text += rf" {{\scriptsize $\pm$ {entry.interval}}}" if entry.interval else ""
        return text + (rf"\textsuperscript{{{entry.note}}}" if entry.note else "")

    def line(row: Sequence[str]) -> str:
        return " & ".join(row) + r" \\"

    rows = [line([shown(entry) for entry in row]) for row in table.rows]
    if 0 < table.num_reference < len(rows):
        rows.insert(table.num_reference, r"\midrule")
    name = re.sub(r"[^a-z0-9]+", "-", table.backbone.lower()).strip("-")
    lines = [
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{latex_text(table.caption)}}}",
        rf"\label{{tab:leaderboard-{name}}}",
        rf"\setbox2\hbox{{\begin{{tabular}}{{{''.join('l' if column.is_text else 'r' for column in table.columns)}}}",
        r"\toprule",
        *_latex_groups(table.columns),
        line([latex_text(column.title + _ARROWS[column.direction]) for column in table.columns]),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        _LATEX_FIT,
        *(rf"\par\smallskip\textsuperscript{{{i}}} {latex_text(note)}" for i, note in enumerate(table.notes, start=1)),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_rich_parts(table: Table, width: int) -> list[rich.table.Table]:
    """The table for a terminal, in parts so that no column is cut off; each begins with the method."""
    brief = [i for i, column in enumerate(table.columns) if column.brief]
    head = [i for i in brief if table.columns[i].is_text or table.columns[i].brief == "steps"]

    def cells(i: int) -> int:
        column = table.columns[i]
        own = len(column.brief + _ARROWS[column.direction])
        least = _TEXT_CELLS if column.is_text else 0
        return max(own, len(column.group), least, *(len(_plain(row[i])) for row in table.rows)) + 2

    room = width - sum(map(cells, head)) - 2
    parts: list[list[int]] = [[]]
    for i in (i for i in brief if i not in head):
        if parts[-1] and sum(map(cells, parts[-1])) + cells(i) > room:
            parts.append([])
        parts[-1].append(i)
    return [to_rich(table, [*head, *part], last=part is parts[-1]) for part in parts]


def _plain(entry: Entry) -> str:
    """An entry as a terminal shows it, without its style."""
    interval = f" ± {entry.interval}" if entry.interval else ""
    return f"{entry.text}{TIE if entry.tie else ''}{interval}" + (f" ({entry.note})" if entry.note else "")


def to_rich(table: Table, brief: Sequence[int] | None = None, last: bool = True) -> rich.table.Table:
    """The table for a terminal: the columns with a brief title, or those named; under the last, notes and caption."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    def shown(entry: Entry) -> Text:
        text = Text(entry.text, style={"best": "bold", "second": "underline", "": ""}[entry.mark])
        text.append(TIE if entry.tie else "", style="not bold not underline")
        text.append(f" ± {entry.interval}" if entry.interval else "", style="not bold not underline dim")
        return text.append(f" ({entry.note})" if entry.note else "", style="not bold not underline")

    def heading(column: Column) -> Text:
        return Text((f"{column.group}\n" if column.group else "") + column.brief + _ARROWS[column.direction])

    notes = [f"({i}) {note}" for i, note in enumerate(table.notes, start=1)]
    result = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=Text("\n".join([*notes, table.caption])) if last else None,
        caption_justify="left",
    )
    brief = [i for i, column in enumerate(table.columns) if column.brief] if brief is None else brief
    for column in (table.columns[i] for i in brief):
        result.add_column(
            heading(column),
            justify="left" if column.is_text else "right",
            no_wrap=not column.is_text,
            min_width=_TEXT_CELLS if column.is_text else None,
        )
    for i, row in enumerate(table.rows, start=1):
        result.add_row(*(shown(row[column]) for column in brief), end_section=i == table.num_reference)
    return result


def _latex_groups(columns: Sequence[Column]) -> list[str]:
    """A line of headings over groups of columns, with rules under them; nothing where there are no groups."""
    if not any(column.group for column in columns):
        return []
    cells, rules, first = [], [], 1
    for group, found in itertools.groupby(columns, key=lambda column: column.group):
        span = len(list(found))
        if group:
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_text(group)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + span - 1}}}")
        else:
            cells += [""] * span
        first += span
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _pipes(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"
