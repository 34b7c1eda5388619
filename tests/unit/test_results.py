"""What the repository shows is what its records say: tables are rendered again and compared byte for byte."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from typer.testing import CliRunner

from w2svd_bench.cli.app import app
from w2svd_bench.cli.boards import BEGIN, END, with_block
from w2svd_bench.cli.plans import PROFILES, Plan, plans_of, read_plan
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.claims import find_claims, read_claims
from w2svd_bench.leaderboard.filters import filtered, parse
from w2svd_bench.leaderboard.render import to_markdown_page, write_leaderboard
from w2svd_bench.leaderboard.report import write_report
from w2svd_bench.leaderboard.reported import reported_of
from w2svd_bench.leaderboard.validate import validate
from w2svd_bench.leaderboard.verdicts import judge
from w2svd_bench.record import Record, canonical_hash, read_records
from w2svd_bench.registry import METHODS

ROOT = Path(__file__).resolve().parents[2]
OURS = ("dmd", "euler", "lcm", "w2svd")
RESULTS = sorted(path.parent for path in (ROOT / "results").rglob("records"))


def test_there_are_results() -> None:
    assert RESULTS


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_tables_are_rendered_from_the_records(folder: Path, tmp_path: Path) -> None:
    records = read_records(folder)
    written = write_leaderboard(records, tmp_path, reported_of({one.cell.method for one in records}))
    assert {path.name for path in written} == {
        "leaderboard.csv", "leaderboard-tidy.csv", "leaderboard.md", "leaderboard.tex",
    }  # fmt: skip
    for path in written:
        assert path.read_bytes() == (folder / path.name).read_bytes(), f"w2svd-bench leaderboard {folder}"


def test_the_readme_shows_the_methods_of_the_miniature() -> None:
    """The block is the table that `make results` writes there: of the methods, without their ablations."""
    make = dict(re.findall(r"^(FLOORS|METHODS) +:= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = filtered(_records("mini"), [parse(f"label={make['FLOORS']},{make['METHODS']}")])
    board = Leaderboard.from_records(shown, reported_of({one.cell.method for one in shown}))
    page = (ROOT / "README.md").read_text()
    assert with_block(page, to_markdown_page(board.tables())) == page, "make results"


def _plans(name: str) -> list[Plan]:
    """Those of a profile, or the plan file that docs/ has of that name."""
    return plans_of(PROFILES[name], "mini") if name in PROFILES else [read_plan(ROOT / "docs" / f"{name}.yaml")]


@pytest.mark.parametrize(
    ("folder", "plan", "fewest"),
    [("mini", "full", 3), ("mini-hard", "hard", 3), ("mini-stress", "stress", 5),
     ("mini-second-round", "second-round", 3)],
)  # fmt: skip
def test_results_are_of_the_runs_and_recipes_that_ship(folder: str, plan: str, fewest: int) -> None:
    """All runs of a plan are there, each with as many seeds as the others; of ours there is nothing else."""
    planned = {run.label: run for one in _plans(plan) for run in one.runs}
    seeds: dict[str, set[int]] = {label: set() for label in planned}
    for record in _records(folder):
        if record.cell.method not in ("real", "teacher"):
            if record.cell.label not in planned and record.cell.method not in OURS:
                continue  # a method of others, whose recipes are not here
            run = planned[record.cell.label]
            recipe = resolve_recipe(METHODS.get(run.method), "mini", None, run.overrides)
            assert record.config == recipe.model_dump(mode="json"), record.cell.label
            seeds[record.cell.label].add(record.cell.seed)
    assert len({frozenset(found) for found in seeds.values()}) == 1, seeds
    assert min(map(len, seeds.values())) >= fewest


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_records_can_be_published(folder: Path) -> None:
    assert not validate(folder, publishable=folder.name != "mini-tuning").problems


def test_the_claims_are_judged_by_the_records() -> None:
    """But for what `plan` answers, which takes torch and 20 s (below, slow), claims.json is a function of records."""
    records = [
        *_records("mini"),
        *(one for one in _records("mini-stress") if one.cell.method not in ("real", "teacher")),
    ]
    report = judge(records, [read_claims(path) for path in find_claims()]).as_data()
    again = json.loads(json.dumps(report))
    shipped = json.loads((ROOT / "results" / "mini" / "claims.json").read_text())
    assert again["told"] == shipped["told"] and again["differences"] == shipped["differences"]
    parts = ({one["id"]: one for one in data["judged"] if one["kind"] != "memory"} for data in (again, shipped))
    ours, theirs = parts
    assert ours == theirs and {"few-step", "beats-28-steps", "collapse"} <= ours.keys(), "make results"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini", "mini-hard", "mini-stress"])
def test_the_report_is_rendered_from_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(ROOT / "results" / name, folder)
    records = read_records(folder)
    page, plots = write_report(records, folder, reported_of({one.cell.method for one in records}))
    for path in (page, *plots):
        assert path.read_bytes() == (ROOT / "results" / name / path.relative_to(folder)).read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("names", [("mini", "mini-stress"), ("mini-hard",), ("mini-second-round",)], ids="+".join)
def test_the_verdicts_are_written_from_their_folders(names: Sequence[str], tmp_path: Path) -> None:
    """All of them, memory included: what `plan` answers is arithmetic, and the same on every machine."""
    for name in names:
        shutil.copytree(ROOT / "results" / name, tmp_path / name)
    done = CliRunner().invoke(app, ["claims", *(str(tmp_path / name) for name in names), "--write"])
    assert done.exit_code == 0, done.output
    for file in ("claims.json", "claims.md"):
        shipped = ROOT / "results" / names[0] / file
        assert (tmp_path / names[0] / file).read_bytes() == shipped.read_bytes(), "make results"


def _whole(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a record with those that came later: their defaults are what was done when there was no choice."""
    whole: dict[str, Any] = METHODS.get(method).Config.model_validate(settings).model_dump(mode="json")
    return whole


def test_the_tuning_page_says_what_its_records_say() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    for folder, plan, budget in (("mini-tuning", "tuning", 6), ("mini-tuning-edges", "tuning-edges", 4)):
        scores = _scores(folder)
        assert set(scores) == {run.label for run in read_plan(ROOT / "docs" / f"{plan}.yaml").runs}
        winners = _winners(scores)
        for method in winners:
            assert sum(label.startswith(method) for label in scores) == budget  # the same for each
        for label, by_steps in scores.items():
            name = f"**{label}**" if label in winners.values() else label
            (fid1, fvd1), (fid4, fvd4) = by_steps[1], by_steps[4]
            row = f"| {name} | {fid1:.1f} / {fvd1:.1f} | {fid4:.1f} / {fvd4:.1f} | {_mean_log(by_steps):.3f} |"
            assert row in page


def test_recipes_are_the_best_runs_of_the_first_round() -> None:
    for method, winner in _winners(_scores("mini-tuning")).items():
        shipped, tuned, control = (
            {canonical_hash(_whole(method, r.config["settings"])) for r in _records(folder) if r.cell.label == label}
            for folder, label in (
                ("mini", method), ("mini-tuning", winner), ("mini-tuning-edges", f"{method}-recipe")
            )
        )  # fmt: skip
        assert len(shipped) == 1
        assert shipped == tuned == control, f"{method}'s recipe is not its best run"


def test_the_second_round_is_of_its_winners_and_its_page_says_what_they_do() -> None:
    edges = {run.label: run for run in read_plan(ROOT / "docs" / "tuning-edges.yaml").runs}
    winners = _winners(_scores("mini-tuning-edges"))
    declared = {run.method: run.overrides for run in _plans("second-round")[0].runs if run.method in winners}
    assert declared == {method: edges[label].overrides for method, label in winners.items()}
    page = (ROOT / "docs" / "tuning.md").read_text()
    for method in winners:
        row = [method]
        for folder in ("mini", "mini-second-round"):
            for steps in (1, 4):
                found = [r for r in _records(folder) if (r.cell.label, r.cell.steps) == (method, steps)]
                fid, fvd = (
                    fmean(one.metrics[name].value for one in found)  # type: ignore[union-attr]
                    for name in ("fid[mini]", "fvd[mini]")
                )
                row.append(f"{fid:.1f} / {fvd:.1f}")
        assert f"| {' | '.join(row)} |" in page


Scores = dict[str, dict[int, tuple[float, float]]]  # fid[mini] and fvd[mini] by label and steps


def _scores(folder: str) -> Scores:
    scores: Scores = {}
    for record in _records(folder):
        if record.cell.method not in ("real", "teacher"):
            fid, fvd = (record.metrics[name].value for name in ("fid[mini]", "fvd[mini]"))  # type: ignore[union-attr]
            scores.setdefault(record.cell.label, {})[record.cell.steps] = (fid, fvd)
    return scores


def _mean_log(by_steps: Mapping[int, tuple[float, float]]) -> float:
    return sum(math.log(value) for pair in by_steps.values() for value in pair) / 4


def _winners(scores: Scores) -> dict[str, str]:
    """The best label of each method, by the rule that the plans state."""
    methods = ("lcm", "dmd", "w2svd")
    ours = {method: [label for label in scores if label.startswith(method)] for method in methods}
    return {method: min(labels, key=lambda label: _mean_log(scores[label])) for method, labels in ours.items()}


def _records(folder: str) -> list[Record]:
    return read_records(ROOT / "results" / folder)


def test_a_block_is_replaced_and_nothing_else() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_block(page, "new\n") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(BenchError, match="no place"):
        with_block("nothing here", "new\n")
