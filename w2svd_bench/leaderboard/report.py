"""``report.html``: tables, claims, plots, clips and the provenance of every number in one file that needs no network.

It is a pure function of a folder of results: its records and, where they are there, ``claims.json``, ``curves.json``
and ``clips/``. Claims that were judged by other records are marked, clips of other weights left out. The page's own
style and script stand in ``assets/report`` and are written into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2svd_bench import __version__
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.curves import read_curves
from w2svd_bench.leaderboard.plots import Plot, draw, write_plots
from w2svd_bench.leaderboard.report_parts import (
    BoardTable,
    Claims,
    Clips,
    Proof,
    board_tables,
    outdated,
    proofs,
    read_claims,
    read_clips,
)
from w2svd_bench.leaderboard.reported import Reported
from w2svd_bench.record import Record, Score, write_atomically

if TYPE_CHECKING:
    import jinja2

FILE = "report.html"
ASSETS = Path(__file__).resolve().parents[1] / "assets" / "report"
# Mail and chat programs turn larger files away, and phones are slow to open them.
LARGE_BYTES = 20_000_000


def write_report(records: Sequence[Record], folder: Path, reported: Sequence[Reported] = ()) -> tuple[Path, list[Path]]:
    """Writes ``folder/report.html`` and the plots; returns its path and theirs.

    Raises:
        BenchError: there are no records, they can't be compared, or a file that belongs to them is damaged.
    """
    board = Leaderboard.from_records(records, reported)
    plots = draw(board, read_curves(folder))
    page = render(board, plots, read_claims(folder), read_clips(folder))
    return write_atomically(folder / FILE, page), write_plots(plots, folder)


def render(
    board: Leaderboard, plots: Sequence[Plot] = (), claims: Claims | None = None, clips: Clips | None = None
) -> str:
    """The whole page as text; the same arguments give the same bytes."""
    tables: list[BoardTable] = board_tables(board)
    shown: list[Proof] = proofs(board)
    fitting = clips.of_board(board) if clips is not None else None
    facts: dict[str, Any] = {
        "version": __version__,
        "backbones": board.backbones,
        "eval_sets": sorted({one.cell.eval_set for one in board.records}),
        "records": len(board.records),
        "commits": sorted({one.commit for proof in shown for one in proof.records if one.commit}),
        "newest": max((str(one.provenance.get("time_utc", "")) for one in board.records), default=""),
        "tables": tables,
        "proofs": shown,
        "plots": [(plot, _inline(plot)) for plot in plots],
        "claims": claims,
        "outdated": outdated(claims, board.records) if claims is not None else [],
        "clips": fitting,
        "stale": len(clips.clips) - len(fitting.clips) if clips is not None and fitting is not None else 0,
        "css": (ASSETS / "report.css").read_text("utf-8"),
        "js": (ASSETS / "report.js").read_text("utf-8"),
        "is_score": lambda score: isinstance(score, Score),
    }
    return _environment().get_template("template.html").render(facts)


def _environment() -> jinja2.Environment:
    """Every text that goes into the page is escaped; a name that the template misspells is an error, not a gap."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _inline(plot: Plot) -> str:
    """The drawing without what only a file of its own needs; the page says in its own words what it shows."""
    svg = plot.svg[plot.svg.index("<svg") :]
    for namespace in ('xmlns:xlink="http://www.w3.org/1999/xlink"', 'xmlns="http://www.w3.org/2000/svg"'):
        svg = svg.replace(f" {namespace}", "", 1)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
