"""Checkpoints by the clock, and the one before a stop: when they come changes nothing that is learned."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.config import Recipe, Training, validated
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.errors import BenchError
from w2svd_bench.train import checkpoint
from w2svd_bench.train.cadence import Cadence
from w2svd_bench.train.log import CURVES
from w2svd_bench.train.loop import Report, Trainer, train
from w2svd_bench.train.run import Run
from w2svd_bench.world import ALONE, World

Make = Callable[[], Trainer]
ITERATIONS = 4


@pytest.fixture
def trainer(untrained_backbone: Callable[..., Backbone], random_pool: Callable[..., LatentPool]) -> Make:
    """Makes an LCM's trainer, whose recipe has no checkpoint but the last."""

    def make() -> Trainer:
        settings = {"generator": {"learning_rate": 1e-3}, "rank": 4, "ema": 0.9}
        training = Training(iterations=ITERATIONS, batch_size=1, log_every=1, checkpoint_every=100)
        recipe = Recipe(method="lcm", backbone="mini", training=training, settings=settings)
        method = LCM(validated(LCM.Config, settings, "lcm"), 3.0)
        return Trainer(method, untrained_backbone(), random_pool(4), recipe, seed=0)

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    roles = trainer.roles
    return {f"{role}.{key}": p.detach() for role in roles.trained() for key, p in roles.parameters(role).items()}


def ignore(done: int, total: int, entry: dict[str, float]) -> None:
    """A report that nobody reads."""


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The iterations after which a checkpoint was written."""
    iterations: list[int] = []
    save = checkpoint.save

    def noting(folder: Path, roles: Any, optimizers: Any, counters: Any, world: World = ALONE) -> None:
        iterations.append(counters.iteration)
        save(folder, roles, optimizers, counters, world)

    monkeypatch.setattr(checkpoint, "save", noting)
    return iterations


def test_checkpoints_by_the_clock_change_no_bit(trainer: Make, saved: list[int], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("never", "always", "default")]
    found = []
    for folder, given in zip(folders, ({"checkpoint_minutes": 0.0}, {"checkpoint_minutes": 1e-9}, {}), strict=True):
        folder.mkdir()
        one = trainer()
        one.fit(folder, ignore, **given)
        found.append(weights(one))
    assert saved == [ITERATIONS, *range(1, ITERATIONS + 1), ITERATIONS]
    for other in found[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in found[0].items())


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("asked", [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_it_never_had(
    asked: signal.Signals, trainer: Make, saved: list[int], tmp_path: Path
) -> None:
    through, halted = tmp_path / "through", tmp_path / "halted"
    for folder in (through, halted):
        folder.mkdir()
    whole = trainer()
    whole.fit(through, ignore)
    saved.clear()
    before = signal.getsignal(asked)

    def ask(done: int, total: int, entry: dict[str, float]) -> None:
        if done == 2:
            signal.raise_signal(asked)

    with pytest.raises(BenchError) as caught:
        trainer().fit(halted, ask)
    assert asked.name in caught.value.what and f"2 of {ITERATIONS}" in caught.value.why
    assert str(halted) in caught.value.why and "repeat the command" in caught.value.cure
    assert saved == [2] and signal.getsignal(asked) is before
    rest = trainer()
    rest.fit(halted, ignore)
    assert saved == [2, ITERATIONS]
    then = weights(rest)
    assert all(torch.equal(then[name], tensor) for name, tensor in weights(whole).items())


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals do what they do by themselves: nohup, and a shell that starts something behind it, have them ignored."""
    others = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
    ours = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(others, signal.SIG_DFL)
    earlier = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
def test_an_interrupt_saves_and_a_second_one_does_not_wait(trainer: Make, saved: list[int], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def ask(done: int, total: int, entry: dict[str, float]) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer().fit(tmp_path, ask)
    assert saved == [2] and signal.getsignal(signal.SIGINT) is before

    def insist(done: int, total: int, entry: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer().fit(tmp_path, insist)
    assert saved == [2], "nothing more than was saved before"


@pytest.mark.usefixtures("heard")
def test_a_run_that_is_asked_in_its_last_iteration_is_done(trainer: Make, saved: list[int], tmp_path: Path) -> None:
    def ask(done: int, total: int, entry: dict[str, float]) -> None:
        if done == ITERATIONS:
            signal.raise_signal(signal.SIGTERM)

    trainer().fit(tmp_path, ask)
    assert saved == [ITERATIONS]


class Several(World):
    """The leading process of a world in which the others say what they are given."""

    others: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


@pytest.mark.parametrize(
    ("others", "decided"),
    [
        ([(False, 0)], (False, 0)),
        ([(True, 0)], (False, 0)),  # by the leading clock alone
        ([(False, 0), (False, signal.SIGUSR1)], (True, signal.SIGUSR1)),  # whoever is asked, all stop
    ],
)
def test_all_processes_decide_together(others: list[Any], decided: tuple[bool, int]) -> None:
    class These(Several):
        pass

    These.others = tuple(others)
    assert Cadence(100, 20.0, [], These()).due(3, 10) == decided


def test_a_run_that_ended_before_its_first_checkpoint_gives_way_to_another(
    untrained_backbone: Callable[..., Backbone], random_pool: Callable[..., LatentPool], tmp_path: Path
) -> None:
    """As happens while a method is being written: nothing was learned that another recipe would go on with."""

    def fail(done: int, total: int, entry: dict[str, float]) -> None:
        raise RuntimeError("a mistake in the method")

    def trained(iterations: int, report: Report) -> Run:
        settings = {"generator": {"learning_rate": 1e-3}, "rank": 4}
        training = Training(iterations=iterations, batch_size=1, log_every=1)
        recipe = Recipe(method="lcm", backbone="mini", training=training, settings=settings)
        run = Run("lcm", "mini", "lcm", 0, recipe.model_dump(mode="json"), backbone_sha256="", data="random")
        method = LCM(validated(LCM.Config, settings, "lcm"), 3.0)
        return train(method, untrained_backbone(), random_pool(2), recipe, run, tmp_path, report)

    with pytest.raises(RuntimeError, match="a mistake"):
        trained(3, fail)
    (tmp_path / CURVES).write_text('{"iteration": 0}\n')
    done = trained(1, lambda *_: None)
    assert done.finished and done.config["training"]["iterations"] == 1
    assert Run.load(tmp_path) == done and not (tmp_path / CURVES).exists()
    with pytest.raises(BenchError, match="other settings"):
        trained(2, lambda *_: None)
