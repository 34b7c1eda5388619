"""A leaderboard as CSV, Markdown, LaTeX and in the terminal; the same leaderboard gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.table import Column, Entry, Table
from w2svd_bench.record import Record, write_atomically

if TYPE_CHECKING:
    import rich.table

_ARROWS = {"up": " ↑", "down": " ↓", "": ""}
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "—": "---",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
}


def write_leaderboard(records: Iterable[Record], folder: Path) -> tuple[Path, Path, Path]:
    """Writes leaderboard.csv, .md and .tex, each as a whole or not at all, and returns their paths.

    All three are rendered before the first is written, so that records that can't be compared leave the old files.

    Raises:
        BenchError: see `Leaderboard.from_records`.
    """
    board = Leaderboard.from_records(records)
    tables = board.tables()
    csv = to_csv(board)
    note = "generated from records by `w2svd-bench leaderboard`: change those, not this file"
    markdown = f"<!-- {note} -->\n\n" + "\n".join(to_markdown(table) for table in tables)
    latex = f"% {note}\n% needs \\usepackage{{booktabs}}\n" + "\n".join(to_latex(table) for table in tables)
    return (
        write_atomically(folder / "leaderboard.csv", csv),
        write_atomically(folder / "leaderboard.md", markdown),
        write_atomically(folder / "leaderboard.tex", latex),
    )


def to_csv(board: Leaderboard) -> str:
    """The wide table, one line a record, numbers in full."""
    return board.wide().to_csv(index=False, lineterminator="\n")


def to_markdown(table: Table) -> str:
    """The table, its footnotes and its caption, in GitHub's dialect."""

    def shown(entry: Entry) -> str:
        text = _markdown(entry.text)
        text = {"best": f"**{text}**", "second": f"<ins>{text}</ins>", "": text}[entry.mark]
        text += f" ± {entry.interval}" if entry.interval else ""
        return text + (f"<sup>{entry.note}</sup>" if entry.note else "")

    lines = [
        _pipes(_markdown(column.title) + _ARROWS[column.direction] for column in table.columns),
        _pipes(":---" if column.is_text else "---:" for column in table.columns),
        *(_pipes(map(shown, row)) for row in table.rows),
    ]
    notes = [f"<sup>{i}</sup> {_markdown(note)}" for i, note in enumerate(table.notes, start=1)]
    return "\n".join(lines) + "\n\n" + "\n\n".join([*notes, _markdown(table.caption)]) + "\n"


def to_latex(table: Table) -> str:
    r"""The table as a float that ``\input`` takes into any document with the package booktabs."""

    def shown(entry: Entry) -> str:
        text = _latex(entry.text)
        text = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", "": text}[entry.mark]
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
        rf"\caption{{{_latex(table.caption)}}}",
        rf"\label{{tab:leaderboard-{name}}}",
        rf"\begin{{tabular}}{{{''.join('l' if column.is_text else 'r' for column in table.columns)}}}",
        r"\toprule",
        line([_latex(column.title + _ARROWS[column.direction]) for column in table.columns]),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip\textsuperscript{{{i}}} {_latex(note)}" for i, note in enumerate(table.notes, start=1)),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_rich(table: Table) -> rich.table.Table:
    """The table for a terminal: the columns that have a brief title, and footnotes and caption under them."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    def shown(entry: Entry) -> Text:
        text = Text(entry.text, style={"best": "bold", "second": "underline", "": ""}[entry.mark])
        text.append(f" ± {entry.interval}" if entry.interval else "", style="not bold not underline dim")
        return text.append(f" ({entry.note})" if entry.note else "", style="not bold not underline")

    def heading(column: Column) -> Text:
        return Text(column.brief + _ARROWS[column.direction])

    notes = [f"({i}) {note}" for i, note in enumerate(table.notes, start=1)]
    result = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=Text("\n".join([*notes, table.caption])),
        caption_justify="left",
    )
    brief = [i for i, column in enumerate(table.columns) if column.brief]
    for column in (table.columns[i] for i in brief):
        result.add_column(
            heading(column),
            justify="left" if column.is_text else "right",
            no_wrap=not column.is_text,
            min_width=12 if column.is_text else None,
        )
    for i, row in enumerate(table.rows, start=1):
        result.add_row(*(shown(row[column]) for column in brief), end_section=i == table.num_reference)
    return result


def _pipes(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it stands, on one line."""
    return re.sub(r"([\\`*_<|~])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    """Text that LaTeX shows as it stands, on one line."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    # At the start of a row these two would be read as arguments of the line break before it.
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped[:1] in ("[", "*") else escaped
