"""The cosine that tells whether alpha is more than a factor, and health in real training: resumed, and in processes.

Axes: B batch; a velocity here is a function of the noised latents, so that its cosines are known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.baselines.dmd.method import DMD
from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.config import Recipe, Training, validated
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.matching import FAKE, REAL
from w2svd_bench.method import GENERATOR, Method
from w2svd_bench.methods.w2svd.method import W2SVD
from w2svd_bench.rng import Rng
from w2svd_bench.train import checkpoint
from w2svd_bench.train import log as run_log
from w2svd_bench.train.health import WATCHED, Vitals
from w2svd_bench.train.loop import Trainer, train
from w2svd_bench.train.run import Run
from w2svd_bench.types import TEACHER, Batch, Cond

SHIFT, ALPHA = 3.0, 0.5
SLOW, FAST = {"learning_rate": 1e-4}, {"learning_rate": 3e-3}
METHODS: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "lcm": (LCM, {"generator": SLOW, "grid": 8}),
    "dmd": (DMD, {"generator": SLOW, "fake": SLOW}),
    "w2svd": (W2SVD, {"generator": SLOW, "fake": FAST, "fake_rank": 4, "alpha_weak": ALPHA}),
    "lora-dmd": (W2SVD, {"generator": SLOW, "fake": FAST, "fake_rank": 4, "alpha_weak": 0.0}),
}
Backbones = Callable[..., Backbone]
Pools = Callable[..., LatentPool]


def method_of(case: str) -> Any:
    cls, settings = METHODS[case]
    return cls(validated(cls.Config, settings, case), SHIFT)


def recipe_of(case: str, iterations: int, **given: Any) -> Recipe:
    training = {"batch_size": 2, "log_every": 1, "checkpoint_every": 1, "iterations": iterations} | given
    cls, settings = METHODS[case]
    return Recipe(method=cls.name, backbone="mini", training=Training(**training), settings=settings)


def trainer_of(case: str, backbone: Backbone, pool: LatentPool, iterations: int, **given: Any) -> Trainer:
    return Trainer(method_of(case), backbone, pool, recipe_of(case, iterations, **given), seed=0)


def ignore(done: int, total: int, entry: dict[str, float]) -> None:
    """A report that nobody reads."""


# --- The cosine ---------------------------------------------------------------------------------------------------


def cosine_of(change: Callable[[float, Tensor], Tensor]) -> float:
    """The cosine for a fake that adds ``change(strength, x)`` to the teacher."""
    method = method_of("w2svd")

    def view(strength: float) -> Callable[[Tensor, Tensor, Cond], Tensor]:
        return lambda x, t, cond: 0.3 * x + change(strength, x)

    method.models = {GENERATOR: view(0), FAKE: view(1), REAL: view(ALPHA), TEACHER: view(0)}
    x0 = torch.randn(4, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    cond = Cond(torch.zeros(4, 1, 1), torch.ones(4, 1), torch.zeros(4, 1))
    return float(method.alpha_cosine(Batch(x0, cond), Rng(1)))


def first(x: Tensor) -> Tensor:
    return torch.where(torch.arange(4) < 2, 1.0, 0.0).expand_as(x)


@pytest.mark.parametrize(
    ("bend", "expected"),
    [
        # v(s) = v(0) + s a + s^2 b: v(1) - v(1/2) = (a + 1.5 b) / 2 and v(1) - v(0) = a + b, |a| = |b| = 1, a b = 0
        (0.0, 1.0),
        (1.0, (1 + 1.5) / (2**0.5 * (1 + 1.5**2) ** 0.5)),
        (-2.0, (1 + 1.5 * 4) / (5**0.5 * 10**0.5)),
        (0.01, (1 + 1.5e-4) / ((1 + 1e-4) ** 0.5 * (1 + 2.25e-4) ** 0.5)),
    ],
)
def test_the_cosine_is_that_of_the_two_differences(bend: float, expected: float) -> None:
    found = cosine_of(lambda s, x: s * first(x) + s * s * bend * (1 - first(x)))
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_cosine_has_its_sign() -> None:
    """v(s) = v(0) + s a - 0.8 s^2 a: v(1) - v(1/2) = -0.1 a, but v(1) - v(0) = 0.2 a."""
    assert cosine_of(lambda s, x: (s - 0.8 * s * s) * first(x)) == pytest.approx(-1.0, abs=1e-5)


def test_it_is_taken_at_noised_samples_of_the_generator() -> None:
    method, seen = method_of("w2svd"), []

    def fake(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen.append((x, t))
        return x

    x0 = torch.zeros(4, 3, 2, 4, 4)
    # From v = (x_t - 5) / t the generator makes 5 of everything.
    method.models = {
        GENERATOR: lambda x, t, cond: (x - 5.0) / t.view(-1, 1, 1, 1, 1),
        FAKE: fake,
        REAL: fake,
        TEACHER: fake,
    }
    method.alpha_cosine(Batch(x0, Cond(torch.zeros(4, 1, 1), torch.ones(4, 1), torch.zeros(4, 1))), Rng(1))
    (x, t), *others = seen
    assert all(torch.equal(x, other) and torch.equal(t, level) for other, level in others)
    assert len(others) == 2
    assert torch.allclose(x.flatten(1).mean(1), 5 * (1 - t), atol=0.5)


@torch.no_grad()
def test_a_small_lora_is_a_scalar_and_a_large_one_is_not(untrained_backbone: Backbones, random_pool: Pools) -> None:
    trainer = trainer_of("w2svd", untrained_backbone(), random_pool(2), 1)
    found = []
    for size in (1e-3, 0.03, 1.0):
        generator = torch.Generator().manual_seed(0)
        for name, parameter in trainer.roles.parameters(FAKE).items():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (size if "lora_B" in name else 0.1))
        found.append(float(trainer.method.alpha_cosine(random_pool(2).batch([0, 1]), Rng(1))))  # type: ignore[attr-defined]
    assert found[0] > 0.999 > found[1] > found[2]
    assert found[2] < 0.97


# --- In training --------------------------------------------------------------------------------------------------


def test_alpha_is_measured_where_the_real_score_is_a_weak_view() -> None:
    strengths = {case: method_of(case).weak_strength() for case in ("dmd", "w2svd", "lora-dmd")}
    assert strengths == {"dmd": None, "w2svd": ALPHA, "lora-dmd": 0.0}


@pytest.mark.parametrize("case", list(METHODS))
def test_a_run_leaves_its_health(case: str, untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path) -> None:
    recipe = recipe_of(case, 10, batch_size=1, checkpoint_every=100)
    run = Run(recipe.method, "mini", case, 0, recipe.model_dump(mode="json"), backbone_sha256="", data="random")
    done = train(method_of(case), untrained_backbone(), random_pool(2), recipe, run, tmp_path, ignore)
    assert Run.load(tmp_path).health == done.health
    log = run_log.read(tmp_path)
    cosines = [entry["real/alpha_cosine"] for entry in log if "real/alpha_cosine" in entry]
    if case == "lcm":
        assert done.health == {}
        return
    health = done.health
    assert health["updates"] == 10
    losses = [entry["fake/fake_loss"] for entry in log]
    assert health["fake_loss"] == pytest.approx(sum(losses) / 10, rel=1e-9)
    assert health["generated_std"] == pytest.approx(sum(e["generator/generated_std"] for e in log) / 10, rel=1e-9)
    assert health["real_std"] == pytest.approx(1.0, abs=0.1)
    assert health["teacher_loss"] is not None and health["teacher_loss"] > 1.0  # an untrained network on random latents
    assert health["alpha"] == method_of(case).weak_strength()
    if case == "w2svd":
        assert [entry["iteration"] for entry in log if "real/alpha_cosine" in entry] == [10]
        assert cosines == [health["alpha_cosine"]]
        assert 0.9 < cosines[0] <= 1.0
    else:
        assert health["alpha_cosine"] is None
        assert cosines == []


def test_health_is_no_part_of_what_training_costs(
    untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path
) -> None:
    """Three network evaluations a sample for the fake's warm-up, and so on: what the method itself asks for."""
    trainer = trainer_of("w2svd", untrained_backbone(), random_pool(4), 2)
    trainer.fit(tmp_path, ignore)
    plain = trainer_of("w2svd", untrained_backbone(), random_pool(4), 2)
    for iteration in range(2):
        plain.step(iteration)
    assert trainer.counters.evaluations == plain.counters.evaluations == plain.roles.evaluations
    assert trainer.roles.evaluations > plain.roles.evaluations
    for role in plain.roles.trained():
        ours, theirs = trainer.roles.parameters(role), plain.roles.parameters(role)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_health_survives_a_kill_to_the_last_bit(
    untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint falls between two lines of the log, whose means are lost with the process."""
    made = {"batch_size": 1, "log_every": 2, "checkpoint_every": 3}
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    for folder in (through, stopped):
        folder.mkdir()
    whole = trainer_of("w2svd", untrained_backbone(), random_pool(6), 4, **made)
    whole.fit(through, ignore)

    def kill(done: int, total: int, entry: dict[str, float]) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of("w2svd", untrained_backbone(), random_pool(6), 4, **made).fit(stopped, kill)
    again = trainer_of("w2svd", untrained_backbone(), random_pool(6), 4, **made)
    monkeypatch.setattr(again.method, "teacher_loss", None)  # it is not measured again
    again.fit(stopped, ignore)
    assert again.vitals == whole.vitals
    assert isinstance(again.vitals, Vitals)
    assert set(again.vitals.recent) == {name for names in WATCHED.values() for name in names}
    assert all(len(values) == 4 for values in again.vitals.recent.values())
    index = json.loads((stopped / checkpoint.FOLDER / checkpoint.INDEX).read_text())
    assert Vitals(**index["counters"]["vitals"]) == whole.vitals


def test_the_alarm_is_said_once_and_at_once(untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path) -> None:
    trainer = trainer_of("dmd", untrained_backbone(), random_pool(2), 3, batch_size=1)
    lines, seen = [], []

    def report(done: int, total: int, entry: dict[str, float]) -> None:
        seen.append(len(lines))
        assert trainer.vitals is not None
        if done == 1:  # as if 120 bad updates lay behind it
            trainer.vitals.updates, trainer.vitals.recent["fake_loss"] = 120, [100.0] * 49

    trainer.fit(tmp_path, report, lines.append)
    assert seen == [0, 1, 1]
    assert lines[0].startswith("collapse alarm at update 121: ")
    assert trainer.health()["alarm_at"] == 121


def test_the_teachers_loss_is_the_fakes_own_on_real_latents(untrained_backbone: Backbones, random_pool: Pools) -> None:
    """A fake that is the teacher, on samples that are the data, has that loss: same levels, same noise, same target."""
    trainer = trainer_of("w2svd", untrained_backbone(), random_pool(2), 1)
    method: Any = trainer.method
    batch = random_pool(2).batch([0, 1])
    method.generate = lambda batch, rng: (batch.x0_BCTHW, torch.ones(len(batch.x0_BCTHW)))
    with torch.no_grad():
        assert torch.equal(method.teacher_loss(batch, Rng(3)), method.fake_loss(batch, Rng(3)).logs["fake_loss"])
