"""What has to be said beside a number stands beside it in every rendering: flags, gaps, random weights, references."""

from __future__ import annotations

import io
import re
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard import Leaderboard, to_csv, to_latex, to_markdown, to_rich
from w2svd_bench.record import Record

from records import check_latex, column, grid, make, metrics_only, real, score, skipped, teacher


def flagged(flags: dict[str, list[str]], name: str = "fid[mini]", **other: Any) -> list[Record]:
    """A record a label, whose score has these flags; the later the label, the better."""
    scores = enumerate(flags.items())
    return [make(label, metrics={name: score(20.0 - i, flags=told, **other)}) for i, (label, told) in scores]


def every_rendering(board: Leaderboard) -> dict[str, str]:
    console = Console(width=250, file=io.StringIO(), record=True)
    console.print(to_rich(board.table()))
    table = board.table()
    plain = re.sub(r"\\([][&<|_*~`])", r"\1", to_markdown(table))
    latex = to_latex(table).replace(r"\textless{}", "<").replace(r"\_", "_")
    return {"terminal": console.export_text(), "markdown": plain, "latex": latex, "csv": to_csv(board)}


def test_flags_stand_in_every_rendering() -> None:
    """One that all rows share in the caption, others as a footnote of the cell, all of them in the CSV."""
    board = Leaderboard.from_records(flagged({"a": ["n<2048", "N<D"], "b": ["n<2048"], "c": ["n<2048"]}))
    table = board.table()
    assert table.caption.endswith(" Flags: fid[mini] (n<2048).")
    assert table.notes == ("N<D",)
    assert [entry.note for entry in column(table, "fid[mini]")] == [1, None, None]
    for name, text in every_rendering(board).items():
        assert "n<2048" in text and "N<D" in text, name
    assert [line["fid[mini] flags"] for line in board.wide().to_dict("records")] == ["n<2048; N<D", "n<2048", "n<2048"]


def test_metrics_with_the_same_flags_are_told_together() -> None:
    metrics = {"fid": score(1.0, flags=["n<2048"]), "kid": score(1.0), "fvd": score(1.0, flags=["n<2048", "N<D"])}
    metrics["cd-fvd"] = metrics["fid"]
    table = Leaderboard.from_records([metrics_only("a", metrics), metrics_only("b", metrics)]).table()
    assert table.caption.endswith(" Flags: cd-fvd, fid (n<2048); fvd (n<2048, N<D).")
    assert not table.notes


def test_flags_of_seeds_are_joined_and_reference_rows_count() -> None:
    seeds = [make("a", seed=i, fid=score(3.0, flags=flags)) for i, flags in enumerate((["x"], ["y", "x"]))]
    assert Leaderboard.from_records(seeds).table().caption.endswith(" Flags: fid[mini] (x, y).")
    table = Leaderboard.from_records([*seeds, real()]).table()
    assert table.notes == ("x; y",) and "Flags" not in table.caption
    gap = make("b", fid=skipped())  # what could not be had has no flags to share
    assert Leaderboard.from_records([*seeds, gap]).table().caption.endswith(" Flags: fid[mini] (x, y).")


def test_without_flags_nothing_is_said() -> None:
    table = Leaderboard.from_records(grid()).table()
    assert (
        table.caption.endswith("what reads the same shares the mark, unless it is shown to be worse.")
        and "RANDOM" not in table.caption
    )
    assert [name for name in Leaderboard.from_records(grid()).wide().columns if name.startswith("fid")] == [
        "fid[mini]", "fid[mini] se",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["fid[stand-in]", "fid[clean][stand-in]", "fid[stand-in] vs teacher", "vbench.x"])
def test_numbers_of_random_weights_are_unmistakable(name: str) -> None:
    flags = ["stand-in weights"] if name == "vbench.x" else []
    board = Leaderboard.from_records([metrics_only(label, {name: score(v, flags=flags), "kid": score(v)})
                                      for label, v in (("a", 1.0), ("b", 2.0))])  # fmt: skip
    table = board.table()
    assert [entry.mark for entry in column(table, name)] == ["", ""]
    assert [entry.mark for entry in column(table, "kid")] == ["best", "second"]
    assert table.caption.startswith(f"RANDOM WEIGHTS, the numbers mean nothing: {name}. Backbone mini")
    renderings = every_rendering(board)
    assert all("RANDOM WEIGHTS" in renderings[kind] for kind in ("terminal", "markdown", "latex"))
    assert all("stand-in" in text for text in renderings.values())


def test_the_words_for_random_weights_are_those_of_the_metrics() -> None:
    from w2svd_bench.leaderboard.table import STAND_IN as told
    from w2svd_bench.metrics.base import STAND_IN

    assert told == STAND_IN


def test_clips_without_a_value_are_told() -> None:
    invalid = {"too short": 3, "never": 0, "decoder: broken": 1}
    some = score(3.0, n=508, direction="up", invalid=invalid, values=[1.0] * 508 + [None] * 4)
    board = Leaderboard.from_records([metrics_only("a", {"vbench.x": some}), metrics_only("b", {"vbench.x": some})])
    assert board.table().notes == ("n = 508; clips without a value: 1 (decoder: broken), 3 (too short)",)
    assert set(board.wide()["vbench.x invalid"]) == {"1 (decoder: broken), 3 (too short)"}
    whole = metrics_only("a", {"vbench.x": score(3.0, invalid={"never": 0})})
    assert Leaderboard.from_records([whole]).table().notes == ()
    seeds = [metrics_only("a", {"vbench.x": some}, seed=i) for i in (0, 1)]
    assert "over 2 seeds: 2 (decoder: broken), 6 (too short)" in Leaderboard.from_records(seeds).table().notes[0]


def test_an_extrapolated_value_stands_in_the_wide_table_only() -> None:
    board = Leaderboard.from_records([make("a", fid=score(3.0, infinity=2.25)), make("b")])
    wide = board.wide()
    assert list(wide.columns).index("fid[mini] inf") == list(wide.columns).index("fid[mini] se") + 1
    assert wide["fid[mini] inf"][0] == 2.25 and pd.isna(wide["fid[mini] inf"][1])
    assert "2.25" not in to_markdown(board.table())


def test_a_score_without_an_error_shows_none() -> None:
    board = Leaderboard.from_records([make("a", fid=score(3.25, se=None)), make("b", fid=score(4.5, se=None))])
    entries = column(board.table(), "fid[mini]")
    assert [(entry.text, entry.interval) for entry in entries] == [("3.25", ""), ("4.50", "")]
    assert "±" not in to_markdown(board.table()).splitlines()[2]
    assert board.wide()["fid[mini] se"].isna().all() and "None" not in to_csv(board)


def test_the_teacher_is_a_reference_row_after_the_real_ones() -> None:
    board = Leaderboard.from_records([*grid(), make("cheap", 28, fid=1.5, cost=0), teacher()])
    table = board.table()
    assert [row.label for row in board.rows][:3] == ["real (noise floor)", "teacher, 28 steps (noise floor)", "cheap"]
    assert table.num_reference == 2
    assert [column(table, title)[1].text for title in ("steps", "seconds a clip", "training seconds")] == ["—"] * 3
    assert column(table, "fid[mini]")[1].mark == ""
    assert [entry.mark for entry in column(table, "fid[mini]")][2] == "best"
    lines = to_latex(table).splitlines()
    floor = next(i for i, line in enumerate(lines) if line.startswith("teacher, 28 steps"))
    assert lines[floor + 1] == r"\midrule" and lines[floor - 1].startswith("real")


def test_scores_against_the_teacher_have_columns_of_their_own() -> None:
    versus = "fid[mini] vs teacher"
    metrics = {"fid[mini]": score(4.0), versus: score(9.0, reference="teacher, 28 steps, noise seed 1_000")}
    board = Leaderboard.from_records([make("a", metrics=metrics), make("b", metrics=metrics), real()])
    table = board.table()
    assert [one.title for one in table.columns][3:5] == ["fid[mini]", versus]
    assert [entry.text for entry in column(table, versus)] == ["—", "9.00", "9.00"] and table.notes == ("not measured",)
    check_latex(to_latex(table), len(table.columns))
    assert "| fid[mini] vs teacher ↓ |" in to_markdown(table) and f"{versus},{versus} se" in to_csv(board)
    other = {versus: score(9.0, reference="teacher, 50 steps")}
    with pytest.raises(BenchError, match=r"metrics\.fid\[mini\] vs teacher\.reference is"):
        Leaderboard.from_records([make("a", metrics=metrics), make("b", metrics=other)])


@pytest.mark.parametrize("text", ["n<2048", "50% of a_b #1 & ~", "{x}^2 \\ $"])
def test_latex_escapes_flags(text: str) -> None:
    table = Leaderboard.from_records(flagged({"a": [text, "only a <_%"], "b": [text]}, invalid={text: 1})).table()
    check_latex(to_latex(table), len(table.columns))
    assert len(table.notes) == 2
