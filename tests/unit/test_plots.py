"""Plots of made-up records and curves: the right points, the same bytes each time, nothing that would be misread."""

from __future__ import annotations

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.curves import Curve, collect_curves, read_curves, write_curves
from w2svd_bench.leaderboard.plots import MARKERS, PALETTE, Plot, draw, pareto_front, spread, write_plots
from w2svd_bench.record import Record
from w2svd_bench.train.log import CURVES, read

from records import grid, make, metrics_only, real, score

HOSTILE = 'a <b>&amp; "x" $_1 $\\frac'


def board(*records: Record) -> Leaderboard:
    return Leaderboard.from_records(records or grid())


def point(iteration: int, value: float, **other: Any) -> dict[str, Any]:
    metrics = {"fid[mini]@1": value, "fid[mini]@4": value / 2}
    return {"iteration": iteration, "seconds": iteration * 0.5, "metrics": metrics, **other}


def curve(label: str = "lcm", seed: int = 0, values: tuple[float, ...] = (90.0, 40.0, 20.0)) -> Curve:
    points = tuple(point(100 * i, value, fake_loss=1.0 + i) for i, value in enumerate(values))
    return Curve("mini", label, seed, points)


def texts(plot: Plot) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(plot.svg).iter() if one.tag.endswith("}text")]


@pytest.fixture(scope="module")
def drawn() -> list[Plot]:
    return draw(board(), [curve(), curve(seed=1, values=(80.0, 50.0)), curve("dmd_v2")])


def test_every_metric_and_curve_gets_its_plot(drawn: list[Plot]) -> None:
    assert [plot.name for plot in drawn] == [
        "fid-mini-against-nfe",
        "fid-mini-against-iteration",
        "fid-mini-against-time",
        "health-against-iteration",
    ]


def test_what_a_plot_says(drawn: list[Plot]) -> None:
    found = texts(drawn[0])
    assert {"euler", "lcm", "dmd_v2", "real (noise floor)", "Pareto front", "fid[mini] ↓"} <= set(found)
    assert {"1", "4", "28"} <= set(found)  # network evaluations
    for part in ("lower is better", "Pareto front (wide grey line): 21.5 at nfe 1; 11 at nfe 4; 8 at nfe 28"):
        assert part in drawn[0].alt
    panels = {"validation fid[mini], 1 step ↓", "validation fid[mini], 4 steps ↓", "training iteration"}
    assert panels <= set(texts(drawn[1])) and "fewer than the tables'" in drawn[1].title
    assert "seconds of training" in texts(drawn[2])
    assert "fake loss" in texts(drawn[3])


def test_a_picture_is_a_picture(drawn: list[Plot]) -> None:
    picture = Image.open(io.BytesIO(drawn[0].png))
    assert min(picture.size) > 400
    assert picture.mode == "P", "256 colours: a third of the bytes"
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50


def test_the_same_numbers_give_the_same_bytes(drawn: list[Plot]) -> None:
    again = draw(board(*reversed(grid())), [curve(), curve(seed=1, values=(80.0, 50.0)), curve("dmd_v2")])
    assert again == drawn
    assert "<dc:date>" not in drawn[0].svg


def test_ids_of_plots_in_one_page_differ(drawn: list[Plot]) -> None:
    ids = [found for plot in drawn for found in re.findall(r'\bid="([^"]+)"', plot.svg)]
    assert len(ids) == len(set(ids)) > 100
    for plot in drawn:
        used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", plot.svg))
        assert used and used <= set(re.findall(r'\bid="([^"]+)"', plot.svg))


def test_a_label_is_text_whatever_it_looks_like() -> None:
    (plot,) = draw(board(real(), make(HOSTILE, 4, fid=10.0)))
    assert HOSTILE in texts(plot)


def test_one_method_at_one_number_of_steps_can_be_drawn() -> None:
    (plot,) = draw(board(make("lcm", 4)))
    assert "Pareto front" not in texts(plot)
    assert "Reference rows (dashed): none" in plot.alt


def test_a_metric_that_no_method_has_is_not_drawn() -> None:
    skipped = {"skipped": "no", "direction": "down", "version": 1}
    assert draw(board(real(), metrics_only("lcm", {"fid[mini]": skipped}))) == []


def test_random_weights_are_called_so() -> None:
    plots = draw(board(metrics_only("lcm", {"fid": score(3.0, flags=("stand-in weights",))})))
    assert plots[0].title.startswith("RANDOM WEIGHTS")


def test_the_front() -> None:
    points = [(4, 11.0), (1, 25.0), (1, 20.0), (28, 12.0), (28, 8.0), (50, 8.0)]
    assert pareto_front(points, "down") == [(1, 20.0), (4, 11.0), (28, 8.0)]
    assert pareto_front(points, "up") == [(1, 25.0)]


def test_labels_keep_apart_and_in_order() -> None:
    wanted = [5.0, 5.0, 5.5, 90.0, 99.0, 99.0]
    places = spread(wanted, 10, 0, 100)
    assert sorted(range(6), key=lambda i: places[i]) == sorted(range(6), key=lambda i: wanted[i])
    ordered = sorted(places)
    assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0 and ordered[-1] <= 100
    assert spread([20.0, 60.0], 10, 0, 100) == [20.0, 60.0]
    assert len(set(spread([1.0] * 30, 10, 0, 100))) == 30  # more than there is room for


def test_methods_look_different() -> None:
    pairs = {(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i in range(56)}
    assert len(pairs) == 56


def test_the_mean_over_seeds_is_of_what_all_have(drawn: list[Plot]) -> None:
    """The second seed ends earlier: its thin line stands, and the mean ends where it does."""
    colour = PALETTE[1].lower()  # of lcm, the second row's label
    widths = re.findall(rf"stroke: {colour}; stroke-opacity: 0.45; stroke-width: 0.7", drawn[1].svg)
    assert len(widths) == 4  # two seeds, two panels


def test_seeds_without_a_metric_are_missed(drawn: list[Plot]) -> None:
    """All points of one seed are of a generator that broke: what is drawn says that it is of the other one."""
    broken = Curve("mini", "lcm", 1, ({"iteration": 0, "seconds": 0.0, "metrics": {}, "fake_loss": 2.0},))
    plots = {plot.name: plot for plot in draw(board(), [curve(), broken, curve("dmd_v2")])}
    plot = plots["fid-mini-against-iteration"]
    assert texts(plot).count("1 of 2 seeds of lcm") == 2 and "lcm" not in texts(plot)  # two panels
    assert "Without a value, and not in the mean: 1 of 2 seeds of lcm." in plot.alt
    lost = draw(board(), [broken, curve("dmd_v2")])
    assert "Without a value, and not in the mean: 1 of 1 seed of lcm." in lost[1].alt, "no line, but a word"
    assert not any("Without" in each.alt for each in [*drawn, plots["health-against-iteration"]])


def test_files_are_written_and_old_ones_go(drawn: list[Plot], tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.svg").write_text("old")
    paths = write_plots(drawn, tmp_path)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in paths)
    assert (tmp_path / "plots" / f"{drawn[0].name}.svg").read_text("utf-8") == drawn[0].svg
    assert (tmp_path / "plots" / f"{drawn[0].name}.png").read_bytes() == drawn[0].png


def write_run(runs: Path, lines: list[str], label: str = "lcm", seed: int = 0) -> Path:
    folder = runs / "mini" / label / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"backbone": "mini", "label": label, "seed": seed}))
    (folder / "curves.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "curves.jsonl"


def test_curves_are_collected_and_kept(tmp_path: Path) -> None:
    bad = '{"iteration": 100, "seconds": 2, "metrics": {"fid[mini]@1": NaN}, "diversity": null, "dm_raw": Infinity}'
    lines = [json.dumps(point(200, 8.0)), bad, json.dumps(point(0, 9.0)), json.dumps(point(200, 7.0))]
    write_run(tmp_path, lines)
    (found,) = collect_curves(tmp_path)
    assert (found.backbone, found.label, found.seed) == ("mini", "lcm", 0)
    # By iteration; the later of two counts; what is not finite is no point.
    assert found.line("fid[mini]@1", "iteration") == {0: (0.0, 9.0), 200: (200.0, 7.0)}
    assert found.line("fid[mini]@1", "seconds")[200] == (100.0, 7.0)
    assert found.line("dm_raw", "iteration") == {}
    write_curves([found], tmp_path)
    assert read_curves(tmp_path) == [found]


def test_a_folder_without_curves_has_none(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == []
    assert collect_curves(tmp_path) == []


@pytest.mark.parametrize("line", ["{", '{"seconds": 1}', "[1]", '{"iteration": "x"}'])
def test_damaged_curves_are_named(line: str, tmp_path: Path) -> None:
    path = write_run(tmp_path, [line, json.dumps(point(0, 9.0))])
    with pytest.raises(BenchError) as error:
        collect_curves(tmp_path)
    assert str(path) in error.value.what


@pytest.mark.parametrize("cut", ['{"iteration": 100, "sec', '{"iteration": 100, "sec\n', "{"])
def test_a_last_line_that_was_cut_off_is_left_out(cut: str, tmp_path: Path) -> None:
    """As that of a run that was killed, or writes while it is read: the one that goes on with the run does likewise."""
    path = write_run(tmp_path, [json.dumps(point(0, 9.0))])
    path.write_text(path.read_text() + cut)
    assert [point["iteration"] for point in read(path.parent, CURVES)] == [0]
    (found,) = collect_curves(tmp_path)
    assert found.line("fid[mini]@1", "iteration") == {0: (0.0, 9.0)}


def test_curves_that_nobody_asked_for_are_not_read(tmp_path: Path) -> None:
    write_run(tmp_path, [json.dumps(point(0, 9.0))])
    for label, seed in (("lcm", 1), ("abandoned", 0)):
        write_run(tmp_path, ["{", json.dumps(point(0, 9.0))], label, seed)
    (found,) = collect_curves(tmp_path, {("mini", "lcm", 0), ("mini", "none", 0)})
    assert (found.label, found.seed) == ("lcm", 0)
