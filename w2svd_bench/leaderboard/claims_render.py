"""Verdicts on claims as Markdown and for a terminal; the same report gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from w2svd_bench.leaderboard.atoms import SCALAR, Atom
from w2svd_bench.leaderboard.compare import LEVEL
from w2svd_bench.leaderboard.render import markdown_text
from w2svd_bench.leaderboard.table import DASH
from w2svd_bench.leaderboard.verdicts import RULE, Judged, Report

if TYPE_CHECKING:
    import rich.table

_NOTE = "<!-- generated from records by `w2svd-bench claims`: change those, not this file -->"
ALPHA_RULE = (
    f"The cosine between v(1) - v(alpha) and v(1) - v(0), v(s) being the fake's LoRA at strength s, on generated "
    f"samples at the end of training. Above {SCALAR} alpha changes how long the matching gradient is and not where it "
    "points, which Adam takes out again: such rows differ by the balance of matching to ground truth, and don't rank "
    "strengths."
)
_STYLES = {"holds": "bold green", "fails": "bold red", "undecided": "yellow"}


def to_markdown(report: Report) -> str:
    """A page: the verdicts, the rules, and every claim with its atoms and the files that they came from."""
    lines = [_NOTE, "# Claims", "", "| claim | backbone | verdict | atoms |", "|---|---|---|---|"]
    for one in report.judged:
        link = f"[{one.id}](#{_anchor(one)})"
        lines.append(_row(link, markdown_text(one.backbone), f"**{one.verdict}**", told_counts(one.counts)))
    lines += [text for remark in remarks(report) for text in ("", remark)]
    for one in report.judged:
        title = markdown_text(f"{one.method}: {one.id}, on {one.backbone}")
        lines += ["", f'<a id="{_anchor(one)}"></a>', "", f"## {title}", ""]
        lines += [f"> {markdown_text(one.says)}", f"> ({_source(one.source)})", ""]
        lines += [f"**{one.verdict}** ({told_counts(one.counts)})", ""]
        columns = ("it is claimed that", "verdict", "numbers", "p", "p (Holm)", "after Holm")
        lines += [_row(*columns), _row(*["---"] * len(columns))]
        for atom in one.atoms:
            asks, told = markdown_text(atom.asks), markdown_text("; ".join([atom.why, *atom.remarks]))
            lines.append(_row(asks, atom.verdict, told, _p(atom.p), _p(atom.p_holm), atom.corrected or DASH))
        files = dict.fromkeys(file for atom in one.atoms for file in atom.files)
        if files:
            lines += ["", f"<details><summary>from {len(files)} records</summary>", ""]
            lines += [*(f"* `{file}`" for file in files), "", "</details>"]
    if report.health:
        lines += ["", "## Collapse", "", _row("backbone", "label", "seeds", "collapsed", "at update (seed)")]
        lines.append(_row("---", "---", "---:", "---:", "---"))
        for health in report.health:
            at = [f"{update} ({seed})" for seed, update in health.collapsed_at.items() if update is not None]
            seeds = len(health.collapsed_at)
            told = ", ".join(at) or DASH
            backbone, label = markdown_text(health.backbone), markdown_text(health.label)
            lines.append(_row(backbone, label, str(seeds), str(health.collapsed), told))
    if report.alphas:
        lines += ["", "## What alpha does", "", ALPHA_RULE, ""]
        lines += ["* " + markdown_text(f"{one.backbone}, {one}") for one in report.alphas]
    return "\n".join(lines) + "\n"


def remarks(report: Report) -> list[str]:
    """How the verdicts came about, a line each."""
    some = "1 difference was" if report.differences == 1 else f"{report.differences} differences were"
    return [
        RULE,
        f"A difference is A - B of paired scores. It decides an atom where its {LEVEL:.0%} interval over prompts and, "
        "of several seeds, the one over seeds leave out zero to the same side.",
        f"{some} judged; of true zeros {1 - LEVEL:.0%} seem decided by chance. 'After Holm' is the verdict with Holm's "
        "correction for all of them; the verdicts on claims are without it.",
    ]


def summary(report: Report) -> rich.table.Table:
    """The claims and their verdicts, for a terminal."""
    from rich.text import Text

    table = _table("claim", "says", "backbone", "verdict", "atoms")
    for one in report.judged:
        verdict = Text(one.verdict, style=_STYLES.get(one.verdict, ""))
        table.add_row(Text(one.id), Text(one.says), Text(one.backbone), verdict, Text(told_counts(one.counts)))
    return table


def details(judged: Judged) -> rich.table.Table:
    """The atoms of one claim, for a terminal."""
    from rich.text import Text

    table = _table(f"{judged.id}, on {judged.backbone}", "verdict", "numbers", "after Holm")
    for one in judged.atoms:
        verdict = Text(one.verdict, style=_STYLES.get(one.verdict, ""))
        told = "; ".join([one.why, *one.remarks])
        table.add_row(Text(one.asks), verdict, Text(told), Text(corrected(one)))
    return table


def corrected(atom: Atom) -> str:
    """The verdict after Holm's correction and its p; a dash where nothing was compared."""
    return DASH if atom.corrected is None else f"{atom.corrected} (p = {_p(atom.p_holm)})"


def told_counts(counts: Mapping[str, int]) -> str:
    """How many atoms have which verdict: "2 holds, 4 not measured"."""
    order = ["holds", "fails", "undecided"]
    known = [*order, *(name for name in counts if name not in order)]
    return ", ".join(f"{counts[name]} {name}" for name in known if counts.get(name))


def _table(*titles: str) -> rich.table.Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(Text(title))
    return table


def _anchor(one: Judged) -> str:
    return re.sub(r"[^\w./-]+", "-", f"{one.method}-{one.id}-{one.backbone}")


def _source(text: str) -> str:
    """Addresses are left as they are: GitHub makes links of them, backslashes included."""
    return " ".join(word if re.match("https?://", word) else markdown_text(word) for word in text.split())


def _row(*cells: str) -> str:
    """Of Markdown, as it is."""
    return "| " + " | ".join(cells) + " |"


def _p(value: float | None) -> str:
    return DASH if value is None else f"{value:.2g}"
