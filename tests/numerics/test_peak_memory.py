"""The peak memory of a run that took several processes, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.config import Recipe, Training, validated
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.train import checkpoint, memory
from w2svd_bench.train import log as run_log
from w2svd_bench.train.loop import train
from w2svd_bench.train.run import Run

Process = Callable[..., Run]
SETTINGS = {"generator": {"learning_rate": 1e-4}, "grid": 8}


@pytest.fixture
def process(
    untrained_backbone: Callable[..., Backbone],
    random_pool: Callable[..., LatentPool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Process:
    """Starts a run of four iterations in the test's folder, or goes on with it, in a process of the given peak."""
    training = Training(iterations=4, batch_size=1, log_every=1, checkpoint_every=2)
    recipe = Recipe(method="lcm", backbone="mini", training=training, settings=SETTINGS)

    def go(peak: int, stop_at: int | None = None) -> Run:
        def stop(done: int, total: int, entry: dict[str, float]) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        monkeypatch.setattr("w2svd_bench.train.loop.peak_memory_bytes", lambda: peak)
        run = Run("lcm", "mini", "lcm", 0, recipe.model_dump(mode="json"), backbone_sha256="", data="random")
        method = LCM(validated(LCM.Config, SETTINGS, "lcm"), 3.0)
        return train(method, untrained_backbone(), random_pool(2), recipe, run, tmp_path, stop)

    return go


def unfinish(folder: Path) -> None:
    """Leaves the folder of a run that was killed while it exported: there is nothing left to train."""
    run = Run.load(folder)
    run.finished = False
    run.save(folder)


def forget(folder: Path) -> None:
    """Leaves the checkpoint as it was written before it told the peak."""
    path = folder / checkpoint.FOLDER / checkpoint.INDEX
    index = json.loads(path.read_text())
    index["counters"].pop("peak_memory_bytes", None)
    path.write_text(json.dumps(index))


def test_it_is_the_highest_of_all_processes(process: Process, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        process(peak=500, stop_at=3)
    assert process(peak=300).peak_memory_bytes == 500
    assert [entry["peak_memory_bytes"] for entry in run_log.read(tmp_path)] == [500] * 4
    unfinish(tmp_path)
    assert process(peak=900).peak_memory_bytes == 500  # a process that trained nothing


def test_what_an_older_checkpoint_does_not_say_is_unknown(process: Process, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        process(peak=500, stop_at=3)
    forget(tmp_path)
    assert process(peak=300).peak_memory_bytes == 300  # of what came after
    unfinish(tmp_path)
    forget(tmp_path)
    assert process(peak=100).peak_memory_bytes == 0  # nothing came after: tables show a dash


def test_on_a_cpu_it_is_of_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = memory.peak_memory_bytes()
    memory.forget_peak()
    assert memory.peak_memory_bytes() >= before > 50e6  # torch alone takes more
