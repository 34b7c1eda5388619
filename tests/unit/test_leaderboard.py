"""Leaderboards: the right means, nothing mixed that can't be compared, and the same bytes for the same records."""

from __future__ import annotations

import io
import random
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard import Leaderboard, to_csv, to_latex, to_markdown, to_rich, write_leaderboard
from w2svd_bench.leaderboard.table import number
from w2svd_bench.record import Record, read_records, write_record
from w2svd_bench.registry import METHODS

from records import REASON, check_latex, column, grid, make, score, skipped


def test_rows_and_their_order() -> None:
    """The noise floor, then by training cost, then by steps."""
    rows = Leaderboard.from_records(grid()).rows
    assert [(row.label, row.steps) for row in rows] == [
        ("real (noise floor)", 0), ("euler", 1), ("euler", 4), ("euler", 28), ("lcm", 1), ("lcm", 4), ("dmd_v2", 1),
        ("dmd_v2", 4),
    ]  # fmt: skip


def test_equal_costs_are_ordered_by_label() -> None:
    rows = Leaderboard.from_records([make("b"), make("a"), make("c", cost=1)]).rows
    assert [row.label for row in rows] == ["c", "a", "b"]


def test_mean_and_sd_over_seeds() -> None:
    values = [10.0, 11.0, 15.0]
    (row,) = Leaderboard.from_records([make(seed=i, fid=value) for i, value in enumerate(values)]).rows
    mean = row.scores["fid[mini]"]
    assert not isinstance(mean, str)
    assert (mean.value, mean.interval, mean.num_seeds) == (12.0, statistics.stdev(values), 3)
    assert row.seeds == (0, 1, 2) and mean.num_clips == (512,)


def test_one_seed_has_its_standard_error() -> None:
    (row,) = Leaderboard.from_records([make(fid=score(10.0, se=0.7))]).rows
    mean = row.scores["fid[mini]"]
    assert not isinstance(mean, str) and (mean.value, mean.interval, mean.num_seeds) == (10.0, 0.7, 1)


def test_costs_are_means_over_seeds() -> None:
    records = [make(seed=i, training={"seconds": s, "network_evaluations": 10}) for i, s in enumerate((100.0, 300.0))]
    (row,) = Leaderboard.from_records(records).rows
    assert (row.training_seconds, row.network_evaluations, row.generator_updates) == (200.0, 10.0, 400.0)
    assert row.training_iterations == 400.0


@pytest.mark.parametrize(
    ("iterations", "peaks", "text"),
    [(400, (2e9, 3e9), "3"), (400, (12.34e9, 0), "—"), (0, (0, 0), "0"), (0, (1.25e8, 0), "0.125")],
)
def test_peak_memory_is_the_highest_of_the_seeds(iterations: int, peaks: tuple[float, float], text: str) -> None:
    """A training that did not measure it makes it unknown; no training takes none."""
    trainings = [{"iterations": iterations, "peak_memory_bytes": int(peak)} for peak in peaks]
    board = Leaderboard.from_records([make(seed=i, training=one) for i, one in enumerate(trainings)])
    (entry,) = column(board.table(), "peak memory (GB)")
    assert entry.text == text


def test_marks_are_per_steps_and_not_for_reference_or_lone_rows() -> None:
    table = Leaderboard.from_records(grid()).table()
    entries = column(table, "fid[mini]")
    assert [entry.text for entry in entries] == ["1.00", "—", "30.00", "8.00", "21.50", "13.00", "25.00", "11.00"]
    assert [entry.mark for entry in entries] == ["", "", "", "", "best", "second", "second", "best"]
    assert table.num_reference == 1


def test_the_noise_floor_competes_with_nothing() -> None:
    """Even where it has the steps of a method."""
    floor = make("real", steps=4, fid=1.0, cell={"method": "real"})
    entries = column(Leaderboard.from_records([make("a", fid=3.0), floor, make("b", fid=5.0)]).table(), "fid[mini]")
    assert [(entry.text, entry.mark) for entry in entries] == [("1.00", ""), ("3.00", "best"), ("5.00", "second")]


def test_marks_follow_the_direction_and_the_digits_shown() -> None:
    up = {"direction": "up"}
    records = [
        make(label, fid=score(value, 0.5, **up)) for label, value in zip("abc", (3.001, 3.002, 2.0), strict=True)
    ]
    entries = column(Leaderboard.from_records(records).table(), "fid[mini]")
    assert [(entry.text, entry.mark) for entry in entries] == [("3.00", "best"), ("3.00", "best"), ("2.00", "second")]


@pytest.mark.parametrize(
    ("value", "se", "texts"),
    [
        (12.3456, 0.4, ("12.35", "0.40")),
        (1234.5, 25.0, ("1234", "25")),
        (0.0012345, 0.0001, ("0.00123", "0.00010")),
        (5.4321, 0.0, ("5.43", "0.00")),
        (0.0, 0.0, ("0", "0")),
        (-0.5, 0.1, ("-0.50", "0.10")),
    ],
)
def test_digits_follow_the_interval(value: float, se: float, texts: tuple[str, str]) -> None:
    (entry,) = column(Leaderboard.from_records([make(fid=score(value, se))]).table(), "fid[mini]")
    assert (entry.text, entry.interval) == texts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (400, "400"),
        (123456.0, "123,456"),
        (0.0123, "0.0123"),
        (4.5, "4.50"),
        (99.96, "100"),
        (-2.345, "-2.35"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_skipped_cells_have_a_dash_and_a_footnote() -> None:
    table = Leaderboard.from_records(grid()).table()
    entry = column(table, "fid[mini]")[1]
    assert (entry.text, entry.interval, entry.mark, entry.note) == ("—", "", "", 1)
    assert table.notes == (REASON,)


def test_a_mean_needs_every_seed() -> None:
    records = [make(seed=0), make(seed=1, fid=skipped("clip 3 failed")), make("other", metrics={"kid": score(1.0)})]
    board = Leaderboard.from_records(records)
    assert [row.scores for row in board.rows if row.label == "lcm"] == [
        {"fid[mini]": "clip 3 failed (seed 1)", "kid": "not measured"}
    ]
    assert board.table().notes == ("clip 3 failed (seed 1)", "not measured")


def test_equal_reasons_share_a_footnote() -> None:
    records = [make("a", fid=skipped()), make("b", fid=skipped()), make("c", fid=skipped("other"))]
    table = Leaderboard.from_records(records).table()
    assert [entry.note for entry in column(table, "fid[mini]")] == [1, 1, 2]


def test_a_score_on_other_than_all_clips_says_so() -> None:
    table = Leaderboard.from_records([make(fid=score(3.0, n=500))]).table()
    assert table.notes == ("n = 500",) and column(table, "fid[mini]")[0].note == 1


def test_diagnostics_are_shown_when_asked_for() -> None:
    board = Leaderboard.from_records(grid())
    assert "mouth" not in [one.title for one in board.table().columns]
    assert {entry.text for entry in column(board.table(diagnostics=True), "mouth")} == {"0.250"}


def test_a_diagnostic_has_its_spread_over_seeds_beside_it() -> None:
    shares = (0.05, 0.07, 0.03)
    records = [make("a", seed=seed, diagnostics={"share": share}) for seed, share in enumerate(shares)]
    records += [make("b", diagnostics={"share": 0.3})]
    entries = column(Leaderboard.from_records(records).table(diagnostics=True), "share")
    assert [(one.text, one.interval) for one in entries] == [("0.0500", "0.0200"), ("0.300", "")]


def test_reference_rows_have_no_steps_and_costs() -> None:
    table = Leaderboard.from_records(grid()).table()
    for title in ("steps", "nfe", "seconds a clip", "training seconds", "network evaluations", "peak memory (GB)"):
        assert column(table, title)[0].text == "—"
    assert column(table, "n")[0].text == "512"


def test_a_row_with_other_evaluations_than_steps_is_told() -> None:
    """Rows are ranked at the same number of steps, whatever a method's sampler makes of it."""
    assert "Not one network evaluation a step" not in Leaderboard.from_records(grid()).table().caption
    caption = Leaderboard.from_records([*grid(), make("heun", 4, sampling={"nfe": 8})]).table().caption
    assert "Not one network evaluation a step: heun (8 at steps 4)." in caption


def by(code: str, **training: Any) -> dict[str, Any]:
    """Sections of a record that was trained and sampled by a method of this code."""
    return {"training": {"code": {"method": code}, **training}, "provenance": {"method": code}}


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (make("b", eval_set={"num_clips": 256}), "eval_set.num_clips is 512 and 256"),
        (make("b", eval_set={"prompts_sha256": "00"}), "eval_set.prompts_sha256"),
        (make("b", eval_set={"resize": "bicubic"}), "eval_set.resize is 'none' and 'bicubic'"),
        (make("b", fid=score(1.0, version=2)), "metrics.fid[mini].version is 1 and 2"),
        (make("b", fid=score(1.0, id="other")), "metrics.fid[mini].id"),
        (make("b", fid=score(1.0, weights_sha256="00")), "metrics.fid[mini].weights_sha256"),
        (make("b", fid=score(1.0, direction="up")), "metrics.fid[mini].direction"),
        (make("b", fid=skipped(version=2)), "metrics.fid[mini].version is 1 and 2"),
        (make("a", seed=1, sampling={"guidance": 6.0}), "sampling.guidance is 1.0 and 6.0"),
        (make("a", steps=1, config={"settings": {"alpha": 0.3}}), "config.settings.alpha is 0.3 and 0.5"),
        (make("a", seed=1, config={"settings": {"alpha": 0.5, "gt": 1}}), "config.settings.gt is absent and 1"),
        (make("a", seed=1, cell={"method": "b", "seed": 1}), "cell.method is 'a' and 'b'"),
        (make("a", seed=1, training={"data": "theirs"}), "training.data is 'ours' and 'theirs'"),
        (make("a", seed=1, **by("sha256 11")), "training.code.method is 'sha256 00' and 'sha256 11'"),
        (make("b", training={"backbone_sha256": "00"}), "training.backbone_sha256 is 'ff' and '00'"),
        (make("a", steps=1, cell={"checkpoint_sha256": "99", "steps": 1}), "cell.checkpoint_sha256"),
        (make("a", steps=1, training={"seconds": 3401.0}), "training.seconds is"),
    ],
)
def test_mixtures_are_refused(other: Record, field: str) -> None:
    first = make("a", **by("sha256 00", data="ours", backbone_sha256="ff"))
    for records in ([first, other], [other, first]):
        with pytest.raises(BenchError, match="can't stand in one table") as caught:
            Leaderboard.from_records(records)
        assert field in caught.value.why
        assert first.file_name in caught.value.why and other.file_name in caught.value.why
        assert ("by one recipe" in caught.value.cure) == field.startswith(
            ("config", "cell.method", "training.data", "training.code")
        )


def test_a_skipped_score_hides_no_mixture() -> None:
    """The first record measured nothing; the two after it still have to agree."""
    records = [make("a", fid=skipped()), make("b"), make("c", fid=score(1.0, id="other"))]
    with pytest.raises(BenchError, match=r"metrics\.fid"):
        Leaderboard.from_records(records)


def test_what_may_differ() -> None:
    records = [make("a"), make("a", seed=1, config={"expected": {"fid[mini]@4": 3.0}}), make("a", steps=1)]
    records.append(make("a", cell={"backbone": "big"}, eval_set={"num_clips": 16}))
    records.append(make("b", config={"settings": {"alpha": 0.1}}, sampling={"guidance": 6.0}))
    assert len(Leaderboard.from_records(records).rows) == 4
    told = make("a", training={"data": "ours", "backbone_sha256": "ff"})
    untold = make("a", seed=1, cell={"checkpoint_sha256": "99", "seed": 1}, training={"seconds": 3401.0})
    assert len(Leaderboard.from_records([told, untold, make("b", training={"data": "theirs"})]).rows) == 2


def test_a_setting_that_came_later_was_its_default() -> None:
    """A record that an older version left says nothing of it; another value than the default is another recipe."""
    recipe = resolve_recipe(METHODS.get("lcm"), "mini", None, []).model_dump(mode="json")
    assert recipe["settings"].pop("rank", 0) == 0 and recipe["engine"].pop("compile") is False

    def by_lcm(seed: int, **settings: int) -> Record:
        config = recipe | {"settings": recipe["settings"] | settings}
        return make("a", seed=seed, cell={"method": "lcm", "seed": seed}, config=config)

    old, new, other = by_lcm(0), by_lcm(1, rank=0), by_lcm(2, rank=7)
    new = new.model_copy(update={"config": new.config | {"engine": recipe["engine"] | {"compile": False}}})
    for records in ([old, new], [new, old]):
        assert len(Leaderboard.from_records(records).rows) == 1
    for records in ([old, new, other], [new, old, other]):
        with pytest.raises(BenchError, match="can't stand in one table") as caught:
            Leaderboard.from_records(records)
        assert "config.settings.rank is" in caught.value.why and "and 7" in caught.value.why
        assert "engine.compile" not in caught.value.why


def test_duplicates_are_refused() -> None:
    twin = make(cell={"checkpoint_sha256": "99" * 32})
    with pytest.raises(BenchError, match="two records of 'lcm' on 'mini' at steps 4, seed 0") as caught:
        Leaderboard.from_records([make(), twin])
    assert make().file_name in caught.value.why and twin.file_name in caught.value.why


def test_no_records() -> None:
    with pytest.raises(BenchError, match="no records were found"):
        Leaderboard.from_records([])


def test_backbones() -> None:
    board = Leaderboard.from_records([make(), make(cell={"backbone": "hunyuan"}, fid=99.0)])
    assert [table.backbone for table in board.tables()] == ["hunyuan", "mini"]
    assert column(board.table("hunyuan"), "fid[mini]")[0].text == "99.00"
    with pytest.raises(BenchError, match="one table holds one backbone"):
        board.table()
    with pytest.raises(BenchError, match="did you mean 'mini'"):
        board.table("minni")


def test_wide() -> None:
    wide = Leaderboard.from_records(grid()).wide()
    assert list(wide.columns) == [
        "backbone", "method", "label", "steps", "nfe", "seed", "num_clips", "fid[mini]", "fid[mini] se", "mouth",
        "sample_seconds_per_clip", "training_iterations", "generator_updates", "network_evaluations",
        "training_seconds", "peak_memory_bytes", "checkpoint_sha256",
    ]  # fmt: skip
    assert len(wide) == len(grid())
    assert wide["fid[mini]"].isna().sum() == 1
    lcm = wide[(wide["label"] == "lcm") & (wide["steps"] == 4)]
    assert list(lcm["fid[mini]"]) == [12.0, 14.0] and list(lcm["seed"]) == [0, 1]


def test_wide_refuses_two_columns_of_one_name() -> None:
    with pytest.raises(BenchError, match="'seed'"):
        Leaderboard.from_records([make(diagnostics={"seed": 1.0})]).wide()


def test_csv_loads_back() -> None:
    board = Leaderboard.from_records([*grid(), make('odd, "label"', fid=1 / 3, cost=10**12)])
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(to_csv(board))), board.wide(), check_exact=True)


def test_markdown() -> None:
    lines = to_markdown(Leaderboard.from_records(grid()).table()).splitlines()
    assert lines[0].startswith("| method | steps | nfe | fid[mini] ↓ | seconds a clip |")
    assert lines[1].startswith("| :--- | ---: |")
    assert lines[2].startswith("| real (noise floor) | — | — | 1.00 ± 0.50 |")
    assert lines[3].startswith("| euler | 1 | 1 | —<sup>1</sup> | 0.0123 |")
    assert "| lcm | 4 | 4 | <ins>13.00</ins> ± 1.41 | 0.0123 | 400 | 400 | 500 | 144 | 1.50 | 2 | 512 |" in lines
    assert "| dmd\\_v2 | 4 | 4 | **11.00** ± 0.50 | 0.0123 | 400 | 400 | 9,000 | 144 | 1.50 | 1 | 512 |" in lines
    assert f"<sup>1</sup> {REASON}" in lines


def test_latex() -> None:
    table = Leaderboard.from_records(grid()).table()
    text = to_latex(table)
    check_latex(text, len(table.columns))
    assert r"\begin{tabular}{lrrrrrrrrrrr}" in text and r"\label{tab:leaderboard-mini}" in text
    assert r"fid[mini] $\downarrow$" in text
    assert r"lcm & 4 & 4 & \underline{13.00} {\scriptsize $\pm$ 1.41} &" in text
    assert r"dmd\_v2 & 4 & 4 & \textbf{11.00} {\scriptsize $\pm$ 0.50} &" in text
    assert r"euler & 1 & 1 & ---\textsuperscript{1} &" in text
    lines = text.splitlines()
    floor = next(i for i, line in enumerate(lines) if line.startswith("real (noise floor)"))
    assert lines[floor - 1] == lines[floor + 1] == r"\midrule"


def test_rich() -> None:
    """The terminal shows labels in brackets as they are, and the footnotes."""
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(to_rich(Leaderboard.from_records([*grid(), make("[bold]x[/bold]")]).table()))
    text = console.export_text()
    assert "[bold]x[/bold]" in text and "fid[mini] ↓" in text
    assert "13.00 ± 1.41" in text and "— (1)" in text and f"(1) {REASON}" in text


def test_written_files_do_not_depend_on_the_order(tmp_path: Path) -> None:
    records = [make(fid=0.1 * seed + 0.3, seed=seed) for seed in range(2, 9)] + [
        one for one in grid() if one.cell.label != "lcm"
    ]
    first = [path.read_bytes() for path in write_leaderboard(records, tmp_path / "first")]
    shuffler = random.Random(0)
    for i in range(5):
        shuffler.shuffle(records)
        assert [path.read_bytes() for path in write_leaderboard(records, tmp_path / str(i))] == first
    for i, one in enumerate(records):  # other file names and another order of the files
        write_record(one, tmp_path / "records").rename(tmp_path / "records" / f"{i}.json")
    again = write_leaderboard(read_records(tmp_path / "records"), tmp_path / "again")
    assert [path.read_bytes() for path in again] == first
    assert [path.name for path in again] == [
        "leaderboard.csv", "leaderboard-tidy.csv", "leaderboard.md", "leaderboard.tex",
    ]  # fmt: skip
    assert all(content.endswith(b"\n") and b"\r" not in content for content in first)


def test_refused_records_leave_the_old_files(tmp_path: Path) -> None:
    paths = write_leaderboard(grid(), tmp_path)
    before = [path.read_bytes() for path in paths]
    with pytest.raises(BenchError):
        write_leaderboard([*grid(), make("x", eval_set={"fps": 24})], tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)


def test_several_backbones_in_one_file(tmp_path: Path) -> None:
    _, _, markdown, latex = write_leaderboard([make(), make(cell={"backbone": "big/one"})], tmp_path)
    assert markdown.read_text().count("| method |") == 2
    assert r"\label{tab:leaderboard-big-one}" in latex.read_text()
    assert r"\label{tab:leaderboard-mini}" in latex.read_text()
