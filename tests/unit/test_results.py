"""What the repository shows is what its records say: tables are rendered again and compared byte for byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from w2svd_bench.cli.boards import BEGIN, END, with_block
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.render import write_leaderboard
from w2svd_bench.leaderboard.reported import reported_of
from w2svd_bench.record import Record, canonical_hash, read_records

ROOT = Path(__file__).resolve().parents[2]
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


def test_the_readme_shows_the_table_of_the_miniature() -> None:
    page, table = (ROOT / "README.md").read_text(), (ROOT / "results" / "mini" / "leaderboard.md").read_text()
    assert table in page
    assert with_block(page, table) == page


def test_the_miniature_was_measured_with_the_recipes_that_ship() -> None:
    from w2svd_bench.cli.training import resolve_recipe
    from w2svd_bench.registry import METHODS

    for record in read_records(ROOT / "results" / "mini"):
        if record.cell.method not in ("real", "teacher"):
            recipe = resolve_recipe(METHODS.get(record.cell.method), "mini", None, [])
            settings = _whole(record.cell.method, record.config["settings"])
            assert {**record.config, "settings": settings} == recipe.model_dump(mode="json"), record.cell.label


def _whole(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a record with those that came later: their defaults are what was done when there was no choice."""
    from w2svd_bench.registry import METHODS

    whole: dict[str, Any] = METHODS.get(method).Config.model_validate(settings).model_dump(mode="json")
    return whole


def test_the_tuning_page_says_what_its_records_say() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    scores: dict[str, dict[int, tuple[float, float]]] = {}
    for record in read_records(ROOT / "results" / "mini-tuning"):
        if record.cell.method not in ("real", "teacher"):
            fid, fvd = (record.metrics[name].value for name in ("fid[mini]", "fvd[mini]"))  # type: ignore[union-attr]
            scores.setdefault(record.cell.label, {})[record.cell.steps] = (fid, fvd)
    assert len(scores) == 18
    mean_log = {label: sum(math.log(v) for pair in s.values() for v in pair) / 4 for label, s in scores.items()}
    for method in ("lcm", "dmd", "w2svd"):
        labels = [label for label in scores if label.startswith(method)]
        assert len(labels) == 6  # the same budget for each
        winner = min(labels, key=mean_log.__getitem__)
        for label in labels:
            (fid1, fvd1), (fid4, fvd4) = scores[label][1], scores[label][4]
            name = f"**{label}**" if label == winner else label
            row = f"| {name} | {fid1:.1f} / {fvd1:.1f} | {fid4:.1f} / {fvd4:.1f} | {mean_log[label]:.3f} |"
            assert row in page
        shipped, tuned = (
            {canonical_hash(_whole(method, r.config["settings"])) for r in _records(folder) if r.cell.label == label}
            for folder, label in (("mini", method), ("mini-tuning", winner))
        )
        assert len(shipped) == 1
        assert shipped == tuned, f"{method}'s recipe is not its best run"


def _records(folder: str) -> list[Record]:
    return read_records(ROOT / "results" / folder)


def test_a_block_is_replaced_and_nothing_else() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_block(page, "new\n") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(BenchError, match="no place"):
        with_block("nothing here", "new\n")
