"""Tables for papers: ties, reported numbers, the tidy form, every rendering, the command."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from w2svd_bench.cli import boards
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard import Leaderboard, to_csv, to_latex, to_markdown, to_rich, write_leaderboard
from w2svd_bench.leaderboard.filters import filtered, parse
from w2svd_bench.leaderboard.render import to_tidy_csv
from w2svd_bench.leaderboard.reported import Reported, read_reported, reported_of
from w2svd_bench.leaderboard.tidy import COLUMNS
from w2svd_bench.record import Record, write_record

from records import REASON, check_latex, column, grid, make, metrics_only, real, score, skipped

FID, TIE = "fid[mini]", "†"
ONE_SEED = " Where a row has one seed, this is said of these runs, not of their methods."
HARD = np.random.default_rng(0).normal(size=20)  # what every method finds hard


def paired(value: float, noise: int = 0, own: float = 0.05, **other: Any) -> dict[str, Any]:
    """A score with leave-out values: what is hard is shared, and ``noise`` is the seed of what is its own."""
    leave_out = value + HARD + own * np.random.default_rng(noise).normal(size=20)
    return score(value, leave_out=leave_out.tolist(), **other)


def ties(records: Sequence[Record], title: str = FID) -> dict[tuple[str, str], bool]:
    table = Leaderboard.from_records(records).table()
    labels, steps = column(table, "method"), column(table, "steps")
    entries = zip(labels, steps, column(table, title), strict=True)
    return {(label.text, number.text): entry.tie for label, number, entry in entries}


# --- ties -------------------------------------------------------------------------------------------------------------


def test_a_row_that_is_not_shown_to_be_worse_is_a_tie() -> None:
    """The two scores' own errors are 0.5: only the pairing tells 10.0 from 11.5, and does not tell it from 10.1."""
    records = [make("best", fid=paired(10.0, 1)), make("near", fid=paired(10.1, 2)), make("far", fid=paired(11.5, 3))]
    assert ties(records) == {("best", "4"): False, ("far", "4"): False, ("near", "4"): True}


@pytest.mark.parametrize(
    ("direction", "values", "own", "marks"),
    [
        ("down", (20.0, 20.04, 20.2), 1e-4, ["best", "second", ""]),
        ("up", (20.04, 20.0, 19.8), 1e-4, ["best", "second", ""]),
        ("down", (20.04, 20.0, 20.2), 1.0, ["best", "best", "second"]),
        ("down", (20.2, 20.24, 20.0), 1e-4, ["second", "second", "best"]),
    ],
)
def test_what_reads_the_same_shares_its_mark_unless_shown_to_be_worse(
    direction: str, values: Sequence[float], own: float, marks: list[str]
) -> None:
    """Digits follow the scores' own errors, here 7.4, and the pairing may tell apart what they hide."""
    records = [
        make(name, fid=paired(value, i, own, direction=direction, se=7.4))
        for i, (name, value) in enumerate(zip("abc", values, strict=True))
    ]
    entries = column(Leaderboard.from_records(records).table(), FID)
    assert [entry.text for entry in entries] == [f"{value:.1f}" for value in values]
    assert [entry.mark for entry in entries] == marks
    assert not any(entry.tie for entry in entries if entry.mark == "best"), "it is marked already"


def test_ties_are_told_in_every_rendering() -> None:
    board = Leaderboard.from_records([make("best", fid=paired(10.0, 1)), make("near", fid=paired(10.1, 2)), real()])
    table = board.table()
    told = " †: not shown to be worse than the best at the same number of steps (95 %, paired by prompt and seed)."
    assert table.caption.endswith(told + ONE_SEED)
    assert "| near | 4 | 4 | <ins>10.10</ins>† ± 0.50 |" in to_markdown(table)
    latex = to_latex(table)
    check_latex(latex, len(table.columns))
    assert r"near & 4 & 4 & \underline{10.10}\textsuperscript{\dag{}} {\scriptsize $\pm$ 0.50} &" in latex
    assert r" \dag{}: not shown to be worse" in latex
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(to_rich(table))
    assert "10.10† ± 0.50" in console.export_text()


def test_the_best_is_the_best_of_its_steps_and_by_direction() -> None:
    up = {"direction": "up"}
    records = [make("a", 4, fid=paired(10.0, 1, **up)), make("b", 4, fid=paired(9.99, 2, **up))]
    records += [make("a", 1, fid=paired(5.0, 3, **up)), make("b", 1, fid=paired(3.0, 4, **up))]
    assert [key for key, tie in ties(records).items() if tie] == [("b", "4")]


def test_several_seeds_have_to_agree() -> None:
    """Prompts decide each pair of runs, but the trainings scatter: over seeds nothing is shown."""
    best = [make("a", seed=i, fid=paired(10.0, i)) for i in range(3)]
    scattered = [make("b", seed=i, fid=paired(value, 3 + i)) for i, value in enumerate((9.0, 12.0, 11.0))]
    steady = [make("c", seed=i, fid=paired(11.0, 6 + i)) for i in range(3)]
    found = ties([*best, *scattered, *steady])
    assert (found["b", "4"], found["c", "4"]) == (True, False)
    assert not ties([best[1], scattered[1]])["b", "4"], "this one pair is decided"


def test_verdicts_on_single_runs_are_told() -> None:
    """Of what was trained: floors have one seed always, and without training there is no other run."""
    seeds = [make(label, seed=i, fid=paired(10.0 + i, i)) for label in "ab" for i in range(2)]
    untrained = make("euler", fid=paired(12.0, 5), training={"iterations": 0})
    caption = Leaderboard.from_records([real(), *seeds, untrained]).table().caption
    assert TIE in caption and ONE_SEED not in caption
    assert ONE_SEED in Leaderboard.from_records([*seeds, make("c", fid=paired(12.0, 5))]).table().caption
    assert ONE_SEED not in Leaderboard.from_records([make("a"), make("b")]).table().caption, "nothing was judged"


def test_older_records_have_no_ties() -> None:
    table = Leaderboard.from_records([make("a", fid=10.0), make("b", fid=10.001)]).table()
    assert not any(entry.tie for entry in column(table, FID)) and TIE not in table.caption


def test_what_could_not_be_judged_is_told() -> None:
    """Else the lack of a mark would read as a verdict."""
    records = [make("a", fid=paired(10.0, 1)), make("b", fid=paired(10.05, 2)), make("old", fid=score(10.02))]
    table = Leaderboard.from_records(records).table()
    assert [entry.tie for entry in column(table, FID)] == [False, True, False]
    assert table.caption.endswith(f"{ONE_SEED} Not judged in every row, for want of paired values: fid[mini].")
    apart = [make("a", fid=paired(10.0, 1)), make("b", seed=1, fid=paired(10.05, 2))]
    assert TIE not in Leaderboard.from_records(apart).table().caption  # no seed in common


def test_floors_random_weights_and_gaps_are_no_rivals() -> None:
    floor = make("real (noise floor)", steps=4, fid=paired(1.0, 5), cell={"method": "real"})
    assert not any(ties([floor, make("a", fid=paired(1.01, 1)), make("b", fid=skipped())]).values())
    random = [metrics_only(name, {"fid[stand-in]": paired(3.0, i)}) for i, name in enumerate("ab")]
    assert not any(ties(random, "fid[stand-in]").values())


def test_a_filter_changes_who_is_the_best() -> None:
    records = [
        make(label, fid=paired(value, i)) for i, (label, value) in enumerate((("a", 5.0), ("b", 9), ("c", 9.01)))
    ]
    assert not ties(records)["c", "4"]
    assert ties(filtered(records, [parse("label=b,c")]))["c", "4"]


# --- reported ---------------------------------------------------------------------------------------------------------

ENTRY = {"metric": FID, "backbone": "mini", "steps": 4, "value": "9.10", "source": "https://example.org/paper"}


def reported(tmp_path: Path, *entries: dict[str, Any]) -> list[Reported]:
    path = tmp_path / "reported.yaml"
    path.write_text(json.dumps(entries))  # JSON is YAML
    return read_reported(path, "lcm")


def test_a_reported_number_stands_beside_ours(tmp_path: Path) -> None:
    stated = reported(tmp_path, ENTRY | {"note": "table 2 & 3, 50_000 clips"}, ENTRY | {"steps": 8})
    table = Leaderboard.from_records(grid(), stated).table()
    titles = [one.title for one in table.columns]
    assert titles[3:5] == [FID, "fid[mini] reported"]
    entries = column(table, "fid[mini] reported")
    labels, steps = column(table, "method"), column(table, "steps")
    found = [(a.text, b.text) for a, b, entry in zip(labels, steps, entries, strict=True) if entry.text != "—"]
    assert found == [("lcm", "4")]
    (entry,) = [one for one in entries if one.note]
    assert entry.text == "9.10" and entry.mark == ""
    assert table.notes[(entry.note or 0) - 1] == ("reported by https://example.org/paper: table 2 & 3, 50_000 clips")
    assert "Reported: what a public source states" in table.caption
    check_latex(to_latex(table), len(table.columns))


def test_without_a_reported_number_there_is_no_column(tmp_path: Path) -> None:
    """Of another backbone, steps, metric or label."""
    others = ({"backbone": "hunyuan"}, {"steps": 2}, {"metric": "fvd"}, {"label": "lcm, twice as long"})
    stated = reported(tmp_path, *(ENTRY | one for one in others))
    plain = Leaderboard.from_records(grid()).table()
    assert Leaderboard.from_records(grid(), stated).table() == plain
    assert all("reported" not in one.title for one in plain.columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "somewhere"}, "source"),
        ({"value": "about 9"}, "value"),
        ({"value": True}, "value"),
        ({"steps": 0}, "steps"),
        ({"vaule": 9}, "vaule"),
        ({"metric": ""}, "metric"),
    ],
)
def test_wrong_entries_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=rf"entry 2: .*{message}"):
        reported(tmp_path, ENTRY | {"steps": 1}, ENTRY | change)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="entry 2 states"):
        reported(tmp_path, ENTRY, ENTRY | {"value": "3.0"})
    for text in ("a: [", "a: 1", "- 3"):
        (tmp_path / "reported.yaml").write_text(text)
        with pytest.raises(BenchError, match=r"reported\.yaml can't be used"):
            read_reported(tmp_path / "reported.yaml", "lcm")


def test_files_are_found_beside_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without importing its module, which would raise."""
    package = tmp_path / "w2svd_bench_test_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text("raise RuntimeError('imported')\n")
    (package / "reported.yaml").write_text(json.dumps([ENTRY | {"value": 9.25}]))
    folder = tmp_path / "w2svd_bench_test_plugin-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: w2svd-bench-test-plugin\nVersion: 1\n")
    entry = "[w2svd_bench.methods]\ntheirs = w2svd_bench_test_plugin.method:Theirs\n"
    (folder / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = reported_of({"theirs", "lcm", "real", "unknown"})
    assert (found.label, found.value) == ("theirs", "9.25")
    (package / "__init__.py").write_text("import nothing_of_that_name\n")
    monkeypatch.delitem(__import__("sys").modules, package.name)
    with pytest.raises(BenchError, match="method 'theirs' can't be found"):
        reported_of({"theirs"})


# --- CSV --------------------------------------------------------------------------------------------------------------


def tidy_board() -> Leaderboard:
    flags = score(3.0, flags=["n<2048", "N<D"], infinity=1 / 3, reference="teacher, 28 steps")
    return Leaderboard.from_records(
        [*grid(), metrics_only('odd, "label"', {FID: score(9.0, se=None, infinity=0.0), "kid": flags})]
    )


def test_tidy_has_a_row_a_number() -> None:
    board = tidy_board()
    frame = board.tidy()
    assert list(frame.columns) == list(COLUMNS)
    numbers = frame[frame["kind"] != "cost"]
    scores = sum(len(one.metrics) for one in board.records)
    diagnostics = sum(len(one.diagnostics) for one in board.records)
    assert len(numbers) == scores + diagnostics + 2  # two have an extrapolated value as well
    assert len(frame) - len(numbers) == 8 * len(board.records)
    key = ["backbone", "label", "steps", "seed", "kind", "metric"]
    assert not frame.duplicated(key).any()
    lcm = frame[(frame["label"] == "lcm") & (frame["steps"] == 4) & (frame["metric"] == FID)]
    assert list(lcm["value"]) == [12.0, 14.0] and list(lcm["seed"]) == [0, 1] and set(lcm["n"]) == {512}
    (gap,) = frame[frame["skipped"].notna()].to_dict("records")
    assert (gap["label"], gap["steps"], gap["skipped"], gap["n"]) == ("euler", 1, REASON, 0)
    assert np.isnan(gap["value"])
    zero, more = frame[frame["kind"] == "extrapolated"].to_dict("records")
    assert (zero["metric"], zero["value"], more["metric"], more["value"]) == (FID, 0.0, "kid", 1 / 3)
    assert np.isnan(more["se"])
    (kid,) = frame[(frame["kind"] == "score") & (frame["metric"] == "kid")].to_dict("records")
    assert (kid["flags"], kid["reference"], kid["direction"]) == ("n<2048; N<D", "teacher, 28 steps", "down")
    costs = frame[(frame["kind"] == "cost") & (frame["label"] == "dmd_v2") & (frame["steps"] == 1)]
    found = dict(zip(costs["metric"], costs["value"], strict=True))
    assert (found["network_evaluations"], found["fake_updates"], found["peak_memory_bytes"]) == (9000, 900, 1.5e9)


def test_what_was_not_sampled_took_no_seconds_rather_than_none_at_all() -> None:
    """A mean over a label's steps must not count a cell without clips as one that was made in no time."""
    unsampled = make(fid=skipped(), timing={"sample_seconds_per_clip": 0.0, "decode_seconds_per_clip": 0.0})
    board = Leaderboard.from_records([unsampled, make(steps=1)])
    seconds = board.wide().set_index("steps")["sample_seconds_per_clip"]
    assert math.isnan(seconds[4]) and seconds[1] == 0.0123
    told = board.tidy().query("metric.str.endswith('seconds_per_clip')")
    assert set(told["steps"]) == {1} and len(told) == 2


def test_tidy_loads_in_pandas() -> None:
    """The same numbers to the last digit, whole ones whole, and what is missing is missing: no word stands for it."""
    board = tidy_board()
    text = to_tidy_csv(board)
    assert not re.search(r"(^|,)(nan|none|null|na|inf)(,|$)", text, re.IGNORECASE | re.MULTILINE)
    loaded = pd.read_csv(io.StringIO(text))
    for name, kind in COLUMNS.items():
        assert str(loaded[name].dtype) == kind, name
    pd.testing.assert_frame_equal(loaded, board.tidy(), check_exact=True, check_dtype=False)


def test_wide_loads_in_pandas() -> None:
    text = to_csv(tidy_board())
    assert not re.search(r"(^|,)(nan|none|null|na|inf)(,|$)", text, re.IGNORECASE | re.MULTILINE)
    loaded = pd.read_csv(io.StringIO(text))
    types = {name: str(loaded[name].dtype) for name in ("steps", "seed", FID, f"{FID} se", "peak_memory_bytes")}
    assert types == {"steps": "int64", "seed": "int64", FID: "float64", f"{FID} se": "float64"} | {
        "peak_memory_bytes": "int64"
    }


# --- pivots -----------------------------------------------------------------------------------------------------------


def test_pivots_in_every_rendering(tmp_path: Path) -> None:
    stated = reported(tmp_path, ENTRY)
    table = Leaderboard.from_records(grid(), stated).table(by="steps", columns=[FID, "n"])
    latex = to_latex(table)
    check_latex(latex, len(table.columns))
    assert r" & \multicolumn{1}{c}{1 step} & \multicolumn{2}{c}{4 steps} & \multicolumn{1}{c}{28 steps} &  \\" in latex
    assert r"\cmidrule(lr){2-2} \cmidrule(lr){3-4} \cmidrule(lr){5-5}" in latex
    assert to_markdown(table).startswith(
        "| method | fid[mini] ↓ at 1 step | fid[mini] ↓ at 4 steps | fid[mini] reported at 4 steps |"
    )
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(to_rich(table))
    assert re.search(r"1 step +4 steps", console.export_text())


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for one in grid():
        write_record(one, tmp_path / "results" / "records")
    return tmp_path / "results"


def run(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(boards.leaderboard)
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_a_view_does_not_touch_the_files_of_all_records(folder: Path, tmp_path: Path) -> None:
    run(folder)
    before = {path.name: path.read_bytes() for path in folder.glob("leaderboard*")}
    assert len(before) == 4
    text = run(folder, "--filter", "steps<=4", "--pivot", "steps", "--columns", FID)
    assert "nothing was written" in " ".join(text.split()) and "28" not in text.split("eval set")[0]
    run(folder, "--filter", "label=lcm", "--filter", "steps=4", "--out", tmp_path / "paper")
    assert {path.name: path.read_bytes() for path in folder.glob("leaderboard*")} == before
    assert set(pd.read_csv(tmp_path / "paper" / "leaderboard.csv")["label"]) == {"lcm"}
    assert set(pd.read_csv(tmp_path / "paper" / "leaderboard-tidy.csv")["steps"]) == {4}
    assert "euler" not in (tmp_path / "paper" / "leaderboard.tex").read_text()


def test_a_view_can_stand_in_a_page(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{boards.BEGIN}\n{boards.END}\nbelow\n")
    run(folder, "--pivot", FID, "--into", page)
    assert "fid[mini] ↓ at 4 steps" in page.read_text() and page.read_text().endswith("below\n")


def test_json_is_filtered_too(folder: Path) -> None:
    lines = json.loads(run(folder, "--json", "--filter", "label=lcm", "--columns", f"{FID},training seconds"))
    assert len(lines) == 4
    assert list(lines[0]) == ["backbone", "method", "label", "steps", "seed", FID, f"{FID} se", "training_seconds"]
    with pytest.raises(BenchError, match="--pivot has no JSON"):
        run(folder, "--json", "--pivot", "steps")


def test_json_has_the_numbers_in_full(tmp_path: Path) -> None:
    values = (1.23456789e-09, 1 / 3, 12345678.123456789)
    for seed, value in enumerate(values):
        write_record(make(seed=seed, fid=score(value, se=None)), tmp_path / "records")
    lines = json.loads(run(tmp_path, "--json"))
    assert tuple(line[FID] for line in lines) == values
    assert [(line["seed"], line[f"{FID} se"]) for line in lines] == [(0, None), (1, None), (2, None)]


def test_records_that_differ_are_refused_whatever_is_shown(folder: Path) -> None:
    write_record(make("other", eval_set={"fps": 24}), folder / "records")
    with pytest.raises(BenchError, match="can't stand in one table"):
        run(folder, "--filter", "label=lcm")


def test_rendering_is_the_same_twice(tmp_path: Path) -> None:
    records = [make("best", fid=paired(10.0, 1)), make("near", fid=paired(10.1, 2)), real()]
    first = [path.read_bytes() for path in write_leaderboard(records, tmp_path / "a")]
    assert [path.read_bytes() for path in write_leaderboard(records[::-1], tmp_path / "b")] == first
