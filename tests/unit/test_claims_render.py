"""claims.md shows labels, reasons and sentences as they stand, whatever Markdown would make of them."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from w2svd_bench.cli import claims as cli
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.claims import Claims
from w2svd_bench.leaderboard.claims_render import to_markdown
from w2svd_bench.leaderboard.verdicts import judge
from w2svd_bench.record import write_record

from records import make, score

LABELS = ["my*fast*net", "a<b>c", "a`b`c", "a|b", "[a](b)", "a_b_c and _d_", "x&lt;y", "a\\b", "alpha=0.5 [x]"]


@pytest.mark.parametrize("label", LABELS)
def test_every_text_is_shown_as_it_stands(label: str) -> None:
    """By a parser of its own: in the table, the health of runs, what alpha does, the sentence and its source."""
    health = {"collapsed_at": 150, "alpha": 0.5, "alpha_cosine": 0.99}
    training = {"updates": {"generator": 400}, "health": health}
    records = [make(label, fid=score(9.0, leave_out=[9.0, 9.1]), training=training), make("rival", fid=score(9.5))]
    claim: dict[str, Any] = {
        "id": "c", "kind": "better", "says": f"It beats {label}.", "source": f"https://x.org/a_b, {label}",
        "who": label, "against": [{"label": "rival"}], "steps": [4], "metrics": ["fid"],
    }  # fmt: skip
    page = to_markdown(judge(records, [Claims.model_validate({"method": label, "claims": [claim]})]))
    shown = MarkdownIt("commonmark").enable(["table"]).render(page)
    plain = html.unescape(re.sub("<[^>]+>", "", shown))
    cells = [html.unescape(re.sub("<[^>]+>", "", one)) for one in re.findall(r"<td>(.*?)</td>", shown)]
    assert f"{label} at steps 4 is better than rival at steps 4 in fid" in cells
    assert label in cells, "in the table of collapses"
    for part in (
        f"It beats {label}.",
        f"(https://x.org/a_b, {label})",
        f"{label}: c, on mini",
        f"mini, {label}: alpha 0.5 acts as",
    ):
        assert part in plain, part
    assert "> (https://x.org/a_b, " in page, "an address is no text"
    assert "<strong>not measured</strong>" in shown and '<a href="#' in shown, "our own marks are marks"


def test_a_method_without_claims_is_told_so(tmp_path: Path) -> None:
    write_record(make(), tmp_path / "records")
    app = typer.Typer()
    app.command()(cli.claims)
    refused = CliRunner().invoke(app, [str(tmp_path), "--method", "lcm"])
    assert isinstance(refused.exception, BenchError)
    assert refused.exception.why == "method 'lcm' has no claims.yaml beside its code"
