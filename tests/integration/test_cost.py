"""``w2svd-bench cost`` and the out-of-memory message, on the miniature's architecture."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from w2svd_bench.plan import costs_table, measure

ABOUT = {"device": "a GPU"}
ROW: dict[str, Any] = measure.Measurement(
    "training", "w2svd", "320x512x61", 0, 1, "measured", 2.0, 0.1, 3, int(50e9), 52e9, 1e16, 0.5
).as_data()


@pytest.mark.slow  # three processes, each of which imports torch and diffusers
def test_costs_are_measured_and_written(cli: Callable, tmp_path: Path) -> None:
    done = cli("cost", "--backbone", "mini", "--methods", "lcm", "--steps", 1, 2, "--runs", 1, "--out", tmp_path,
               "--device", "cpu")  # fmt: skip
    assert done.status == 0, done
    with (tmp_path / "cost.csv").open(newline="") as file:
        rows = {(row["what"], row["method"], row["steps"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("training", "lcm", "0"), ("sampling", "any", "1"), ("sampling", "any", "2")}
    for row in rows.values():
        assert row["outcome"] == "measured" and float(row["seconds"]) > 0 and 0 < float(row["share"]) < 1
    # Two steps are two passes, and an iteration of LCM is more than three of them: teacher, average, generator.
    one, two = (float(rows["sampling", "any", n]["operations"]) for n in "12")
    assert two == 2 * one and float(rows["training", "lcm", "0"]["operations"]) > 3 * one
    page = (tmp_path / "cost.md").read_text()
    assert "w2svd-bench cost --backbone mini" in page and "--part" not in page


def test_out_of_memory_is_a_row_and_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from w2svd_bench.backbones.skeleton import Skeleton
    from w2svd_bench.cli.training import resolve_recipe
    from w2svd_bench.registry import METHODS
    from w2svd_bench.train.loop import Trainer

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 100 GiB.")

    monkeypatch.setattr(Trainer, "_accumulate", full)
    dmd = METHODS.get("dmd")
    recipe = resolve_recipe(dmd, "mini", None, [])
    row = measure.training(dmd, recipe, Skeleton.open("mini"), "cpu", 1, 1e9).as_data()
    assert row["outcome"] == "out of memory" and row["seconds"] == 0 and row["planned_bytes"] > 0
    costs_table.write(tmp_path, row, 1e9, "w2svd-bench cost", ABOUT)
    costs_table.render(tmp_path)
    assert "| out of memory | — |" in (tmp_path / "cost.md").read_text()


def test_training_is_measured_on_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # A trainer adds up what its gradients give where its world says: elsewhere than on a GPU's own, that fails.
    from w2svd_bench.backbones.skeleton import Skeleton
    from w2svd_bench.cli.training import resolve_recipe
    from w2svd_bench.registry import METHODS
    from w2svd_bench.world import ALONE, World

    worlds: list[World] = []

    def look(*given: Any, world: World = ALONE, **_: Any) -> None:
        worlds.append(world)
        raise torch.OutOfMemoryError("nothing is to be trained")

    monkeypatch.setattr(measure, "Trainer", look)
    lcm = METHODS.get("lcm")
    measure.training(lcm, resolve_recipe(lcm, "mini", None, []), Skeleton.open("mini"), "meta", 1, 1e9)
    assert [world.device for world in worlds] == ["meta"]


@pytest.mark.parametrize("compiled", [False, True])
def test_sampling_is_measured_compiled_where_runs_are(
    compiled: bool, cli: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from w2svd_bench.backbones.network import Network

    seen: list[Network] = []
    monkeypatch.setattr(Network, "compile_blocks", lambda self: seen.append(self))
    done = cli("cost", "--backbone", "mini", "--steps", 1, "--runs", 1, "--out", tmp_path, "--device", "cpu",
               "--set", f"engine.compile={str(compiled).lower()}", "--part", "sampling")  # fmt: skip
    assert done.status == 0, done
    assert len(seen) == compiled


def test_a_failure_of_another_kind_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from w2svd_bench.backbones.skeleton import Skeleton
    from w2svd_bench.cli.training import resolve_recipe
    from w2svd_bench.errors import BenchError
    from w2svd_bench.registry import METHODS
    from w2svd_bench.train.loop import Trainer

    def broken(*_: Any, **__: Any) -> None:
        raise BenchError("training diverged", "nan", "lower it")

    monkeypatch.setattr(Trainer, "_accumulate", broken)
    lcm = METHODS.get("lcm")
    with pytest.raises(BenchError, match="diverged"):
        measure.training(lcm, resolve_recipe(lcm, "mini", None, []), Skeleton.open("mini"), "cpu", 1, 1e9)


def test_a_cpu_that_cannot_hold_the_weights_is_refused_at_once(
    refused: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("w2svd_bench.cli.costing.os.sysconf", lambda name: 1_000)  # a megabyte
    told = refused("cost", "--backbone", "mini", "--device", "cpu", "--out", tmp_path / "results").text
    assert "its weights alone take" in told and "plan --compare --backbone mini" in told and "measuring" not in told
    assert not (tmp_path / "results").exists()


def test_the_same_measurement_again_replaces_the_first(tmp_path: Path) -> None:
    for seconds in (2.0, 3.0):
        costs_table.write(tmp_path, {**ROW, "seconds": seconds}, 1e15, "w2svd-bench cost", ABOUT)
    (row,) = costs_table.read(tmp_path)
    assert row["seconds"] == 3.0
    costs_table.render(tmp_path)
    assert "| 3 ± 0.05 | 50.0 | 52.0 | 10 | 50.0% |" in (tmp_path / "cost.md").read_text()


@pytest.mark.parametrize("content", ["{", '{"what": "training"}'])
def test_a_damaged_measurement_is_named(content: str, tmp_path: Path) -> None:
    from w2svd_bench.errors import BenchError

    (tmp_path / "cost").mkdir()
    (tmp_path / "cost" / "bad.json").write_text(content)
    with pytest.raises(BenchError, match=r"bad\.json"):
        costs_table.render(tmp_path)


def test_running_out_of_memory_quotes_the_plan(
    refused: Callable, tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user reads when a GPU is full: the planned peak by part, and what to change; the run can go on."""
    from w2svd_bench.train.loop import Trainer

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 100 GiB.")

    monkeypatch.setattr(Trainer, "_accumulate", full)
    outcome = refused("train", "--method", "dmd", *tiny(), "--out", tmp_path)
    for words in ("Tried to allocate", "dmd on mini at 48x48x17", "planned peak", "gradient_checkpointing"):
        assert words in outcome.text, words
    run = json.loads((tmp_path / "mini" / "dmd" / "seed0" / "run.json").read_text())
    assert run["finished"] is False
