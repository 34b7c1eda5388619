"""Tables on a terminal: nothing is cut, however narrow it is."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from w2svd_bench.leaderboard import Leaderboard
from w2svd_bench.leaderboard.render import to_rich_parts
from w2svd_bench.leaderboard.table import TIE
from w2svd_bench.record import Record

from records import metrics_only, score, skipped

NAMES = [f"m{k}" for k in range(6)]


def tied(label: str, seed: int, value: float) -> Record:
    """Six metrics in each of which two labels can't be told apart."""
    noise = np.random.default_rng(ord(label) + seed)
    found: dict[str, Any] = {
        name: score(value + k / 10, leave_out=(value + noise.normal(size=20)).tolist()) for k, name in enumerate(NAMES)
    }
    return metrics_only(label, found, seed=seed)


@pytest.mark.parametrize("width", [*range(60, 141), 200])
def test_no_terminal_cuts_a_number(width: int) -> None:
    """Ties, notes, groups and short labels included: rich would cut what does not fit without a sign."""
    found = [tied("a", seed, 10.0 + seed) for seed in (0, 1)] + [tied("b", seed, 10.9 - seed) for seed in (0, 1)]
    found.append(metrics_only("b", dict.fromkeys(NAMES, skipped()), steps=1))
    board = Leaderboard.from_records(found)
    for table in (board.table(), board.tables(by="steps")[0]):
        assert sum(entry.tie for row in table.rows for entry in row) >= 4
        out = io.StringIO()
        for part in to_rich_parts(table, width):
            Console(file=out, width=width).print(part)
        text = out.getvalue()
        for i, one in enumerate(table.columns):
            for row in table.rows if one.brief and not one.is_text else ():
                interval = f" ± {row[i].interval}" if row[i].interval else ""
                tie, note = TIE if row[i].tie else "", f" ({row[i].note})" if row[i].note else ""
                assert re.search(rf"(?<!\S){re.escape(row[i].text + tie + interval + note)}(?!\S)", text), row[i]
