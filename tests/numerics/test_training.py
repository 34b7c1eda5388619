"""Training on the untrained miniature: resuming, golden loss curves, export, and runs that must not go on.

``tests/numerics/golden/<case>.json`` holds the losses of a few iterations of each case. They start from an untrained
transformer and random latents of fixed seeds, so only a change of the arithmetic moves them. If one is meant, write
them anew: ``W2SVD_BENCH_WRITE_GOLDEN=1 python -m pytest tests/numerics/test_training.py -k golden``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.export import LORA_FILE, export_generator, generator_sha256, load_generator
from w2svd_bench.backbones.network import Network
from w2svd_bench.backbones.roles import Roles
from w2svd_bench.baselines.dmd.method import DMD
from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.config import Engine, Optimizer, Recipe, Training, validated
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.errors import BenchError
from w2svd_bench.method import GENERATOR, Method, RoleSpec, Update
from w2svd_bench.methods.w2svd.method import W2SVD
from w2svd_bench.train import checkpoint
from w2svd_bench.train import log as run_log
from w2svd_bench.train.loop import Report, Trainer, train
from w2svd_bench.train.run import GENERATOR_FOLDER, Run
from w2svd_bench.types import TEACHER, Batch, Loss, average_of

GOLDEN = Path(__file__).parent / "golden"
SHIFT = 3.0
CASES: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "lcm": (LCM, {"generator": {"learning_rate": 1e-4}, "ema": 0.9, "grid": 8}),
    "dmd": (
        DMD,
        {"generator": {"learning_rate": 1e-4}, "fake": {"learning_rate": 1e-4}, "fake_updates": 2, "ema": 0.9},
    ),
    "w2svd": (
        W2SVD,
        {
            "generator": {"learning_rate": 1e-4},
            "fake": {"learning_rate": 3e-3},
            "fake_warmup": 3,
            "fake_rank": 4,
            "alpha_weak": 0.25,
            "ema": 0.9,
            "gt": {"kind": "regression", "weight": 0.5},
        },
    ),
    # Everything on one transformer: LoRA generator, adversarial term, simulated inputs, rescaled gradient.
    "w2svd-lora-gan": (
        W2SVD,
        {
            "generator": {"learning_rate": 1e-3},
            "fake": {"learning_rate": 3e-3},
            "fake_warmup": 3,
            "fake_rank": 4,
            "generator_weights": "lora",
            "generator_rank": 4,
            "rescale": True,
            "input": "simulate",
            "gt": {"kind": "gan", "weight": 0.1},
        },
    ),
}
Backbones = Callable[..., Backbone]
Pools = Callable[..., LatentPool]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path / "cache"))


def make_method(case: str) -> Method:
    cls, settings = CASES[case]
    return cls(validated(cls.Config, settings, case), SHIFT)


def make_recipe(case: str, iterations: int, **training: Any) -> Recipe:
    given = {"iterations": iterations, "batch_size": 2, "log_every": 1, "checkpoint_every": 3, **training}
    engine = Engine(gradient_checkpointing=given.pop("gradient_checkpointing", False))
    name, settings = CASES[case][0].name, CASES[case][1]
    return Recipe(method=name, backbone="mini", training=Training(**given), engine=engine, settings=settings)


def make_trainer(case: str, backbone: Backbone, pool: LatentPool, iterations: int, **training: Any) -> Trainer:
    return Trainer(make_method(case), backbone, pool, make_recipe(case, iterations, **training), seed=0)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Every trained tensor, averages included."""
    return {
        f"{role}.{key}": p.detach().clone()
        for role in trainer.roles.trained()
        for key, p in trainer.roles.parameters(role).items()
    }


def log_of(folder: Path) -> list[dict[str, float]]:
    """The log without what a clock and the machine put there."""
    measured = ("seconds_per_iteration", "peak_memory_bytes")
    return [{k: v for k, v in entry.items() if k not in measured} for entry in run_log.read(folder)]


def ignore(done: int, total: int, entry: dict[str, float]) -> None:
    """A report that nobody reads."""


# --- Resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["dmd", "w2svd", "w2svd-lora-gan"])
def test_a_resumed_run_is_bitwise_the_one_that_never_stopped(
    case: str, untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path
) -> None:
    pool = random_pool(6)
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    for folder in (through, stopped):
        folder.mkdir()
    whole = make_trainer(case, untrained_backbone(), pool, iterations=6, batch_size=1)
    start = weights(whole)
    whole.fit(through, ignore)

    def kill(done: int, total: int, entry: dict[str, float]) -> None:
        if done == 4:  # an iteration after the checkpoint: it is lost and done again
            raise KeyboardInterrupt

    first = make_trainer(case, untrained_backbone(), pool, iterations=6, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        first.fit(stopped, kill)
    assert [entry["iteration"] for entry in run_log.read(stopped)] == [1, 2, 3, 4]
    second = make_trainer(case, untrained_backbone(), pool, iterations=6, batch_size=1)
    seen: list[int] = []
    second.fit(stopped, lambda done, total, entry: seen.append(done))

    assert seen == [4, 5, 6]
    ends = weights(whole), weights(second)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert all(not torch.equal(ends[0][k], start[k]) for k in ends[0])
    assert log_of(through) == log_of(stopped)
    assert whole.counters.updates == second.counters.updates
    assert whole.counters.evaluations == second.counters.evaluations > 0
    files = [load_file(folder / checkpoint.FOLDER / "6" / "rank0.safetensors") for folder in (through, stopped)]
    assert files[0].keys() == files[1].keys() > set()
    assert all(torch.equal(files[0][k], files[1][k]) for k in files[0])


def test_updates_are_counted_by_role(untrained_backbone: Backbones, random_pool: Pools) -> None:
    trainer = make_trainer("w2svd-lora-gan", untrained_backbone(), random_pool(2), iterations=2, batch_size=1)
    for iteration in range(2):
        trainer.step(iteration)
    assert trainer.counters.updates == {"fake": 5, "discriminator": 2, "generator": 2}


@pytest.fixture
def one_checkpoint(untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path) -> tuple[Path, Trainer]:
    """A folder with the checkpoint of one iteration, and the trainer that wrote it."""
    trainer = make_trainer("lcm", untrained_backbone(), random_pool(2), iterations=1, batch_size=1)
    trainer.fit(tmp_path, ignore)
    return tmp_path, trainer


def truncate(root: Path) -> None:
    path = root / "1" / "rank0.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def drop_rows(root: Path) -> None:
    index = json.loads((root / checkpoint.INDEX).read_text())
    entry = next(e for key, e in index["tensors"].items() if key.endswith("proj_out.weight"))
    entry["pieces"][0][2] -= 1
    (root / checkpoint.INDEX).write_text(json.dumps(index))


def reshape(root: Path) -> None:
    text = (root / checkpoint.INDEX).read_text()
    (root / checkpoint.INDEX).write_text(text.replace('"shape": [96]', '"shape": [95]', 1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / checkpoint.INDEX).write_text("not a checkpoint"), "JSONDecodeError"),
        (lambda root: (root / checkpoint.INDEX).write_text('{"format": 7}'), "format 7"),
        (lambda root: (root / "1" / "rank0.safetensors").unlink(), "rank0.safetensors"),
        (truncate, "SafetensorError"),
        (drop_rows, "rows missing"),
        (reshape, "of shape"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_its_name(
    damage: Callable[[Path], Any],
    said: str,
    one_checkpoint: tuple[Path, Trainer],
    untrained_backbone: Backbones,
    random_pool: Pools,
) -> None:
    folder, _ = one_checkpoint
    damage(folder / checkpoint.FOLDER)
    with pytest.raises(BenchError, match=checkpoint.FOLDER) as caught:
        make_trainer("lcm", untrained_backbone(), random_pool(2), iterations=1, batch_size=1).fit(folder, ignore)
    assert said in caught.value.why
    assert "delete" in caught.value.cure


@pytest.mark.parametrize("killed_in", ["_write", "_commit"])
def test_a_kill_while_saving_leaves_the_last_checkpoint_whole(
    killed_in: str,
    one_checkpoint: tuple[Path, Trainer],
    untrained_backbone: Backbones,
    random_pool: Pools,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, trainer = one_checkpoint
    kept = weights(trainer)
    trainer.step(0)
    trainer.counters.iteration = 2
    whole, real = [], getattr(checkpoint, killed_in)

    def kill(*given: Any) -> None:
        if killed_in == "_write":
            real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, killed_in, kill)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, trainer.roles, trainer.optimizers, trainer.counters)
    monkeypatch.undo()
    for iteration in (1, 3):
        fresh = make_trainer("lcm", untrained_backbone(), random_pool(2), iterations=1, batch_size=1)
        assert checkpoint.restore(folder, fresh.roles, fresh.optimizers).iteration == iteration
        whole.append(weights(fresh))
        trainer.counters.iteration = 3
        checkpoint.save(folder, trainer.roles, trainer.optimizers, trainer.counters)
        # What was begun and never finished is gone, and so is what has been replaced.
        assert len([path for path in (folder / checkpoint.FOLDER).iterdir() if path.is_dir()]) == 1
    assert all(torch.equal(whole[0][key], kept[key]) for key in kept)
    assert any(not torch.equal(whole[1][key], kept[key]) for key in kept)


def test_checkpointing_in_memory_changes_no_bit_of_the_training(
    untrained_backbone: Backbones, random_pool: Pools
) -> None:
    ends = []
    for recompute in (False, True):
        trainer = make_trainer(
            "w2svd-lora-gan", untrained_backbone(), random_pool(2), 1, batch_size=1, gradient_checkpointing=recompute
        )
        assert trainer.roles.base.transformer.is_gradient_checkpointing == recompute
        trainer.step(0)
        ends.append(weights(trainer))
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_gradients_are_clipped_and_rates_follow_the_recipe(
    untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"generator": {"learning_rate": 1e-4, "clip": 0.01, "warmup": 2, "decay_from": 0.5}, "grid": 8}
    recipe = make_recipe("lcm", 4, batch_size=1)
    trainer = Trainer(
        LCM(validated(LCM.Config, settings, "lcm"), SHIFT), untrained_backbone(), random_pool(2), recipe, 0
    )
    optimizer, parameters = trainer.optimizers[GENERATOR], trainer.roles.parameters(GENERATOR).values()
    step, norms, rates = optimizer.step, [], []

    def spy() -> None:
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()))
        rates.append(optimizer.param_groups[0]["lr"])
        step()

    monkeypatch.setattr(optimizer, "step", spy)
    trainer.fit(tmp_path, ignore)
    assert all(entry["generator/gradient_norm"] > 0.011 for entry in log_of(tmp_path))  # before they are clipped
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)
    assert rates == pytest.approx([5e-5, 1e-4, 1e-4, 5e-5])


# --- Golden curves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(CASES))
def test_golden_losses(case: str, untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path) -> None:
    curves = []
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        folder.mkdir()
        make_trainer(case, untrained_backbone(), random_pool(6), iterations=4).fit(folder, ignore)
        curves.append([{k: v for k, v in e.items() if not k.endswith("gradient_norm")} for e in log_of(folder)])
    assert curves[0] == curves[1]  # two runs on one machine
    path = GOLDEN / f"{case}.json"
    if os.environ.get("W2SVD_BENCH_WRITE_GOLDEN"):
        path.write_text(json.dumps(curves[0], indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert len(golden) == len(curves[0]) == 4
    for ours, theirs in zip(curves[0], golden, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
        assert all(math.isfinite(value) for value in ours.values())


# --- Runs that must not go on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_weights_change(
    broken: str, untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("dmd", untrained_backbone(), random_pool(2), 4, batch_size=1, checkpoint_every=1)
    updates, before = trainer.method.updates, {}

    def spoiled(iteration: int) -> list[Update]:
        def loss(batch: Batch, rng: Any) -> Loss:
            before.update(weights(trainer))
            good = update.loss(batch, rng)
            if broken == "loss":
                return Loss(good.total * float("nan"))
            total = good.total + (good.total - good.total.detach()).sqrt()  # finite, with an infinite slope
            assert bool(total.isfinite())
            return Loss(total)

        *others, update = updates(iteration)
        return [*others, Update(update.role, loss)] if iteration == 1 else [*others, update]

    monkeypatch.setattr(trainer.method, "updates", spoiled)
    with pytest.raises(BenchError, match="training diverged") as caught:
        trainer.fit(tmp_path, ignore)
    assert "generator" in caught.value.what
    assert "iteration 1" in caught.value.why
    after = weights(trainer)
    assert all(torch.equal(before[k], after[k]) for k in after)
    resumed = make_trainer("dmd", untrained_backbone(), random_pool(2), 4, batch_size=1, checkpoint_every=1)
    assert checkpoint.restore(tmp_path, resumed.roles, resumed.optimizers).iteration == 1
    assert all(bool(value.isfinite().all()) for value in weights(resumed).values())


def run_of(recipe: Recipe) -> Run:
    config = recipe.model_dump(mode="json")
    return Run(recipe.method, "mini", recipe.method, 0, config, backbone_sha256="", data="random")


def test_a_finished_run_is_left_alone_and_another_recipe_is_refused(
    untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path
) -> None:
    pool, folder = random_pool(2), tmp_path / "run"
    recipe = make_recipe("lcm", 1, batch_size=1)
    done = train(make_method("lcm"), untrained_backbone(), pool, recipe, run_of(recipe), folder, ignore)
    assert done.finished
    assert done.iterations == 1
    assert done.updates == {"generator": 1}
    assert done.network_evaluations == 3  # teacher, average, generator
    assert done.weights_sha256 == generator_sha256(folder / GENERATOR_FOLDER)
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = train(make_method("lcm"), untrained_backbone(), pool, recipe, run_of(recipe), folder, ignore)
    assert again.weights_sha256 == done.weights_sha256
    other = make_recipe("lcm", 2, batch_size=1)
    with pytest.raises(BenchError, match="other settings") as caught:
        train(make_method("lcm"), untrained_backbone(), pool, other, run_of(other), folder, ignore)
    assert "training.iterations (1 there, 2 now)" in caught.value.why
    dmd = make_recipe("dmd", 1, batch_size=1)
    with pytest.raises(BenchError, match="other settings"):
        train(make_method("dmd"), untrained_backbone(), pool, dmd, run_of(dmd), folder, ignore)
    on_other_clips = replace(run_of(recipe), data="other clips")
    with pytest.raises(BenchError, match="other settings") as caught:
        train(make_method("lcm"), untrained_backbone(), pool, recipe, on_other_clips, folder, ignore)
    assert "data (random there, other clips now)" in caught.value.why
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_run_may_go_on_with_less_memory(untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path) -> None:
    """What only decides how much memory is taken may change, and training ends where it would have ended."""
    pool, ends = random_pool(4), []

    def kill(done: int, total: int, entry: dict[str, float]) -> None:
        raise KeyboardInterrupt

    for name, less in (("same", {}), ("less", {"micro_batch": 1, "gradient_checkpointing": True})):
        first, then = (make_recipe("lcm", 2, log_every=2, checkpoint_every=1, **given) for given in ({}, less))
        with pytest.raises(KeyboardInterrupt):
            train(make_method("lcm"), untrained_backbone(), pool, first, run_of(first), tmp_path / name, kill)
        done = train(make_method("lcm"), untrained_backbone(), pool, then, run_of(then), tmp_path / name, ignore)
        assert (done.iterations, done.updates) == (2, {"generator": 2})
        (file,) = (tmp_path / name / GENERATOR_FOLDER).rglob("*.safetensors")
        ends.append(load_file(file))
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-5) for key in ends[0])
    config = Run.load(tmp_path / "less").config
    assert config["training"]["micro_batch"] == 1  # what the folder says is how it ended


def test_a_run_names_all_the_code_that_trained_it(
    untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path
) -> None:
    pool, recipe = random_pool(4), make_recipe("lcm", 3, log_every=1, checkpoint_every=1)
    codes = [{"w2svd_bench": "0.1.0", "git": {"commit": commit * 40, "dirty": False}} for commit in "aab"]

    def kill(done: int, total: int, entry: dict[str, float]) -> None:
        raise KeyboardInterrupt

    def go_on(code: dict[str, Any], report: Report) -> Run:
        run = replace(run_of(recipe), code=code)
        return train(make_method("lcm"), untrained_backbone(), pool, recipe, run, tmp_path / "run", report)

    for code in codes[:2]:
        with pytest.raises(KeyboardInterrupt):
            go_on(code, kill)
    assert Run.load(tmp_path / "run").code == codes[0], "the same code twice is told once"
    with pytest.raises(KeyboardInterrupt):
        go_on(codes[2], kill)
    done = go_on(codes[0], ignore)
    assert done.code == {**codes[0], "before": [codes[0], codes[2]]} == Run.load(tmp_path / "run").code


# --- Export ---------------------------------------------------------------------------------------------------------


def moved_roles(backbone: Backbone, spec: RoleSpec) -> Roles:
    """Roles whose generator and average are both away from the teacher, and apart."""
    roles = Roles(backbone.network(), {GENERATOR: spec, "fake": RoleSpec.lora(spec.optimizer, rank=3)})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in roles.trained():
            for parameter in roles.parameters(name).values():
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return roles


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("kind", ["full", "lora"])
@torch.no_grad()
def test_an_exported_generator_comes_back_through_diffusers(
    kind: str, ema: float | None, untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path
) -> None:
    rate, batch = Optimizer(learning_rate=1e-3), random_pool(2).batch([1, 0])
    spec = RoleSpec.full(rate, ema) if kind == "full" else RoleSpec.lora(rate, rank=4, ema=ema)
    backbone = untrained_backbone()
    roles = moved_roles(backbone, spec)
    inputs = (batch.x0_BCTHW, torch.tensor([1.0, 0.5]), batch.cond)
    expected = roles[average_of(GENERATOR) if ema else GENERATOR](*inputs)
    digest = export_generator(roles, spec, backbone, tmp_path)
    assert digest == generator_sha256(tmp_path)
    loaded = load_generator(untrained_backbone(), tmp_path).velocity(*inputs)
    if kind == "full":
        assert torch.equal(loaded, expected)
    else:
        assert torch.allclose(loaded, expected, atol=1e-5)
    others = [TEACHER, "fake", *([GENERATOR] if ema else [])]
    assert all((roles[name](*inputs) - loaded).abs().max() > 1e-2 for name in others)


@torch.no_grad()
def test_an_exported_lora_loads_into_a_plain_pipeline(
    untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path
) -> None:
    spec, batch = RoleSpec.lora(Optimizer(learning_rate=1e-3), rank=4), random_pool(2).batch([1, 0])
    backbone = untrained_backbone()
    roles = moved_roles(backbone, spec)
    export_generator(roles, spec, backbone, tmp_path)
    assert all(k.startswith("transformer.") and ".lora_" in k for k in load_file(tmp_path / LORA_FILE))
    pipeline = untrained_backbone().pipeline
    pipeline.load_lora_weights(tmp_path)
    inputs = (batch.x0_BCTHW, torch.tensor([1.0, 0.5]), batch.cond)
    found = Network(pipeline.transformer, backbone.side.guidance).velocity(*inputs)
    assert torch.allclose(found, roles[GENERATOR](*inputs), atol=1e-5)


@torch.no_grad()
def test_an_exported_lora_keeps_its_strength(untrained_backbone: Backbones, random_pool: Pools, tmp_path: Path) -> None:
    spec, batch = RoleSpec.lora(Optimizer(learning_rate=1e-3), rank=4, strength=0.5), random_pool(2).batch([1, 0])
    backbone = untrained_backbone()
    roles = moved_roles(backbone, spec)
    inputs = (batch.x0_BCTHW, torch.tensor([1.0, 0.5]), batch.cond)
    expected = roles[GENERATOR](*inputs)
    export_generator(roles, spec, backbone, tmp_path)
    assert torch.allclose(load_generator(untrained_backbone(), tmp_path).velocity(*inputs), expected, atol=1e-5)


def test_a_folder_without_a_generator_is_refused(untrained_backbone: Backbones, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no generator"):
        load_generator(untrained_backbone(), tmp_path)
