"""Views of a table: filters, columns and pivots."""

from __future__ import annotations

import re

import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard import Leaderboard
from w2svd_bench.leaderboard.filters import filtered, parse

from records import REASON, column, grid, make, real, score, skipped, teacher

FID = "fid[mini]"


# --- filters ----------------------------------------------------------------------------------------------------------


def kept(*expressions: str) -> set[tuple[str, int]]:
    records = [*grid(), teacher(), make("real, through the codec", 0, cell={"method": "real", "steps": 0})]
    return {(one.cell.label, one.cell.steps) for one in filtered(records, [parse(text) for text in expressions])}


FLOORS = {("real (noise floor)", 0), ("real, through the codec", 0), ("teacher, 28 steps (noise floor)", 28)}


@pytest.mark.parametrize(
    ("expressions", "expected"),
    [
        (["steps<=4", "label=lcm, dmd_v2", "steps!=1"], {("lcm", 4), ("dmd_v2", 4)}),
        (["method==euler", "steps>4"], {("euler", 28)}),
        (["steps=1,28", "method!=lcm,dmd_v2"], FLOORS | {("euler", 1), ("euler", 28)}),
        (["seed=1"], FLOORS | {("lcm", 1), ("lcm", 4)}),
        (["nfe >= 28"], FLOORS | {("euler", 28)}),
        (["steps<4", "label!=euler"], FLOORS | {("lcm", 1), ("dmd_v2", 1)}),
        (["label=real, through the codec,euler", "steps=4"], {("real, through the codec", 0), ("euler", 4)}),
        (["method=real"], {("real (noise floor)", 0), ("real, through the codec", 0)}),
    ],
)
def test_filters(expressions: list[str], expected: set[tuple[str, int]]) -> None:
    assert kept(*expressions) == expected


def test_labels_may_hold_commas() -> None:
    records = [make("a"), make("a, twice"), make("b")]
    for text, expected in (("a, twice", {"a, twice"}), ("b,a", {"a", "b"}), ("a,a, twice", {"a", "a, twice"})):
        assert {one.cell.label for one in filtered(records, [parse(f"label={text}")])} == expected


def test_filters_that_leave_nothing_together() -> None:
    with pytest.raises(BenchError, match="no record passes 'label=lcm' and 'steps=28'") as caught:
        kept("label=lcm", "steps=28")
    assert "steps 1, 4, 28 and seeds 0, 1" in caught.value.why


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("stepz<=4", "did you mean 'steps'"),
        ("label=lcmm", "did you mean 'lcm'"),
        ("label=lcm,", "unknown label ''"),
        ("metod=lcm", "did you mean 'method'"),
        ("steps<=four", "whole number"),
        ("steps<=1,4", "whole number"),
        ("steps=1,,4", "whole number"),
        ("label<lcm", "compares numbers"),
        ("results/mini", "is no filter"),
        ("steps<=", "is no filter"),
        ("__import__('os')=1", "is no filter"),
        ("steps=5", "no record passes 'steps=5'"),
    ],
)
def test_wrong_filters_say_why(expression: str, message: str) -> None:
    with pytest.raises(BenchError, match=re.escape(message)):
        kept(expression)


# --- columns and pivots -----------------------------------------------------------------------------------------------


def test_columns_are_chosen_by_title_or_name_in_the_csv() -> None:
    table = Leaderboard.from_records(grid()).table(columns=["training_iterations", "mouth", "n"])
    assert [one.title for one in table.columns] == ["method", "steps", "training iterations", "mouth", "n"]
    assert all(one.brief for one in table.columns), "what was asked for shows on a terminal"
    assert table.notes == () and column(table, "mouth")[1].text == "0.250"  # the footnote was of a score
    with pytest.raises(BenchError, match="did you mean 'seconds a clip'"):
        Leaderboard.from_records(grid()).table(columns=["secnds a clip"])


def test_footnotes_count_from_one_again() -> None:
    records = [make("a", metrics={"fid[mini]": skipped("first"), "kid": skipped("second")})]
    table = Leaderboard.from_records(records).table(columns=["kid", "fid[mini]"])
    assert table.notes == ("second", "first")
    assert [column(table, name)[0].note for name in ("kid", "fid[mini]")] == [1, 2]


def test_pivot_has_a_row_a_method_and_a_group_a_number_of_steps() -> None:
    board = Leaderboard.from_records(grid())
    table = board.table(by="steps")
    assert [row[0].text for row in table.rows] == ["real (noise floor)", "euler", "lcm", "dmd_v2"]
    groups = [(one.title, one.group) for one in table.columns]
    assert groups[:4] == [("method", ""), (FID, "1 step"), (FID, "4 steps"), (FID, "28 steps")]
    assert ("training seconds", "") in groups and "nfe" not in [title for title, _ in groups]
    floor, euler, lcm, dmd = ([(entry.text, entry.mark) for entry in row[1:4]] for row in table.rows)
    assert floor == [("1.00", "")] * 3
    assert euler == [("—", ""), ("30.00", ""), ("8.00", "")]
    assert lcm == [("21.50", "best"), ("13.00", "second"), ("—", "")]
    assert dmd == [("25.00", "second"), ("11.00", "best"), ("—", "")]
    assert table.notes == (REASON, "not evaluated")
    assert [row[3].note for row in table.rows] == [None, None, 2, 2]
    assert column(table, "seeds")[2].text == "2" and table.num_reference == 1
    long = board.table()
    assert {e.text for e in column(long, FID)} == {e.text for row in table.rows for e in row[1:4]}


def test_pivot_by_a_metric_and_of_chosen_columns() -> None:
    records = [make("a", steps, metrics={FID: score(3.0), "kid": score(1.0)}, seed=seed)
               for steps, seed in ((1, 0), (4, 0), (4, 1))]  # fmt: skip
    board = Leaderboard.from_records(records)
    table = board.table(by="kid", columns=["kid", "nfe", "seeds"])
    assert [(one.title, one.group) for one in table.columns] == [
        ("method", ""), ("kid", "1 step"), ("nfe", "1 step"), ("kid", "4 steps"), ("nfe", "4 steps"), ("seeds", ""),
    ]  # fmt: skip
    assert FID not in [one.title for one in board.table(by="kid").columns]
    assert table.rows[0][-1].text == "1 / 2", "what differs between steps is not hidden"
    with pytest.raises(BenchError, match="did you mean 'kid'"):
        board.table(by="kidd")
    with pytest.raises(BenchError, match="nothing to pivot"):
        Leaderboard.from_records([real()]).table(by="steps")


def test_a_pivot_by_one_metric_says_nothing_of_others() -> None:
    metrics = {FID: score(3.0, flags=["n<2048"]), "kid": score(1.0, flags=["N<D"])}
    board = Leaderboard.from_records([make("a", steps, metrics=metrics) for steps in (1, 4)])
    assert "Flags: fid[mini] (n<2048); kid (N<D)." in board.table(by="steps").caption
    assert "Flags: kid (N<D)." in board.table(by="kid").caption
