"""Validation on the way: what it measures, that training does not notice it, and what a restart leaves of it."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.mini import TEXT_DIM, new_transformer
from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.config import Recipe, Training, validated
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.errors import BenchError, UnsupportedSteps
from w2svd_bench.flow import schedule
from w2svd_bench.method import Method
from w2svd_bench.methods.w2svd.method import W2SVD
from w2svd_bench.samplers import Sampler
from w2svd_bench.train import memory
from w2svd_bench.train.log import CURVES, FILE, append, read, rewind
from w2svd_bench.train.loop import Trainer, train
from w2svd_bench.train.run import Run
from w2svd_bench.train.validation import SEEDS, Validation, Validator, diversity_of, saturation_of
from w2svd_bench.types import Cond
from w2svd_bench.world import World

SHAPE = (16, 5, 6, 6)
CASES: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "lcm": (LCM, {"generator": {"learning_rate": 1e-3}, "grid": 8}),
    "w2svd": (
        W2SVD,
        {"generator": {"learning_rate": 1e-3}, "fake": {"learning_rate": 3e-3}, "fake_rank": 4, "alpha_weak": 0.5},
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """How a sum is split over threads decides its last bits, and some of these tests compare bits."""
    torch.set_num_threads(1)


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """The miniature with an untrained transformer, a decoder that costs nothing, and a teacher of few steps."""
    monkeypatch.setattr("w2svd_bench.train.validation.TEACHER_STEPS", 2)
    opened = Backbone.load("mini")
    opened.transformer = new_transformer(0).eval()
    opened.decode_checked = decode_checked  # type: ignore[method-assign]
    return opened


def decode_checked(latents_BCTHW: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
    """A frame of a clip for each latent one; a clip that overflows is not finite."""
    frames = ((latents_BCTHW[:, :3].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    return frames, latents_BCTHW.abs().flatten(1).amax(1) < 6e4  # about where half precision ends


def cond_of(count: int, tokens: int = 3) -> Cond:
    generator = torch.Generator().manual_seed(7)
    drawn = (torch.randn(count, *shape, generator=generator) for shape in ((tokens, TEXT_DIM), (TEXT_DIM,)))
    words, pooled = drawn
    return Cond(words, torch.ones(count, tokens), pooled)


def pool(count: int = 2) -> LatentPool:
    latents = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return LatentPool(latents, cond_of(count), "random")


def read_means(clips_BFHWC: np.ndarray) -> dict[str, np.ndarray]:
    """A net whose one vector a clip is the mean colour."""
    return {"mean": clips_BFHWC.astype(np.float64).mean(axis=(1, 2, 3))[:, None]}


def compare(features: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {"mean": float(features["mean"].mean()), "count": float(len(features["mean"]))}


def validation(every: int = 2, count: int = 4, batch: int = 3, **other: Any) -> Validation:
    return Validation(every, cond_of(count), read_means, compare, batch, {"clips": count}, **other)


def recipe_of(case: str, iterations: int, **given: Any) -> Recipe:
    training = {"batch_size": 1, "log_every": 1, "checkpoint_every": 2, "iterations": iterations} | given
    cls, settings = CASES[case]
    return Recipe(method=cls.name, backbone="mini", training=Training(**training), settings=settings)


def method_of(case: str) -> Method:
    cls, settings = CASES[case]
    return cls(validated(cls.Config, settings, case), 3.0)


def trainer_of(case: str, backbone: Backbone, iterations: int, **given: Any) -> Trainer:
    return Trainer(method_of(case), backbone, pool(), recipe_of(case, iterations, **given), seed=0)


def ignore(done: int, total: int, entry: dict[str, float]) -> None:
    """A report that nobody reads."""


def again(backbone: Backbone) -> Backbone:
    """The same backbone for other roles."""
    backbone.transformer = new_transformer(0).eval()
    return backbone


# --- What is measured -------------------------------------------------------------------------------------------------


def test_diversity_is_the_distance_between_samples_of_one_prompt() -> None:
    latents = torch.zeros(2, 3, 1, 1, 1, 4)
    latents[0, 1], latents[0, 2] = 1.0, 3.0  # distances 1, 3, 2; the second prompt's samples are all the same
    assert diversity_of(latents) == pytest.approx((1 + 3 + 2 + 0 + 0 + 0) / 6)
    far = torch.stack([torch.zeros(SEEDS, 1, 1, 1, 4), torch.full((SEEDS, 1, 1, 1, 4), 100.0)])
    assert diversity_of(far) == 0.0  # prompts are not compared with one another


def test_saturation_is_the_share_of_values_at_the_ends() -> None:
    frames = torch.tensor([0, 1, 254, 255, 255, 128, 127, 2], dtype=torch.uint8)
    assert saturation_of(frames) == pytest.approx(3 / 8)


class Fixed(Method):
    """A method that samples in one step of `sde`, or in four."""

    name = "fixed"
    offered = (1, 4)

    def sampler(self, steps: int) -> Sampler:
        if steps not in self.offered:
            raise UnsupportedSteps("no", f"only {self.offered} steps are offered", "use them")
        return Sampler("sde", (1.0, 0.75, 0.5, 0.25, 0.0) if steps == 4 else (1.0, 0.0))


def test_a_point_says_what_the_samples_are_like(backbone: Backbone) -> None:
    asked: list[int] = []

    def constant(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Every sample is 0.5 of everything, which is no end of the scale."""
        asked.append(len(x))
        return (x - 0.5) / t.view(-1, 1, 1, 1, 1)

    def teacher(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Samples that are half of their noise: v = eps - x0 = x0."""
        return x / (1 + t).view(-1, 1, 1, 1, 1)

    validator = Validator(validation(), Fixed(None, 3.0), backbone, teacher, World())
    point = validator.point(constant)
    level = round(1.5 * 127.5)
    assert point["metrics"] == {"mean@1": level, "count@1": 4.0, "mean@4": level, "count@4": 4.0}
    assert point["diversity"] == pytest.approx(0.0, abs=1e-6)
    assert (point["saturation"], point["broken"]) == (0.0, 0)
    assert max(asked) == 3  # never more than a batch
    assert sum(asked) == 4 * (1 + 4) + 2 * SEEDS * 4
    # What samples like the teacher is as diverse as the teacher.
    validator.samplers = {2: Sampler("ode", tuple(schedule(2, backbone.side.shift).tolist()))}
    assert validator.point(teacher)["diversity"] == 1.0
    assert validator.point(lambda x, t, cond: 0 * x)["diversity"] > 1.2  # the noise itself
    saturated = validator.point(lambda x, t, cond: (x - 9.0) / t.clamp_min(1e-3).view(-1, 1, 1, 1, 1))
    assert saturated["saturation"] == 1.0


def test_the_same_clips_are_asked_for_every_time(backbone: Backbone) -> None:
    validator = Validator(validation(), Fixed(None, 3.0), backbone, lambda x, t, cond: x, World())
    noise: list[list[Tensor]] = []
    for _ in range(2):
        seen: list[Tensor] = []
        validator.point(lambda x, t, cond, seen=seen: seen.append(x) or 0.5 * x)
        noise.append(seen)
    assert len(noise[0]) == len(noise[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*noise, strict=True))
    assert not torch.equal(noise[0][0][0], noise[0][0][1])


def test_clips_that_are_not_finite_are_counted_and_not_scored(backbone: Backbone) -> None:
    validator = Validator(validation(), Fixed(None, 3.0), backbone, lambda x, t, cond: x, World())
    point = validator.point(lambda x, t, cond: x * float("nan"))
    assert point == {"metrics": {}, "diversity": None, "saturation": None, "broken": 8}
    json.dumps(point, allow_nan=False)


def test_clips_that_overflow_in_the_codec_are_not_finite_either(backbone: Backbone) -> None:
    """Their latents are, and black pictures would be scored."""
    validator = Validator(validation(), Fixed(None, 3.0), backbone, lambda x, t, cond: x, World())
    point = validator.point(lambda x, t, cond: x * 1e6)
    assert point["broken"] == 8 and point["metrics"] == {} and point["saturation"] is None


def test_what_cannot_be_validated_is_refused(backbone: Backbone) -> None:
    def teacher(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return x

    class Other(Fixed):
        offered = (4,)

    assert list(Validator(validation(), Other(None, 3.0), backbone, teacher, World()).samplers) == [4]

    class Neither(Fixed):
        offered = (8,)

    with pytest.raises(BenchError, match="can't be validated") as caught:
        Validator(validation(), Neither(None, 3.0), backbone, teacher, World())
    assert "only (8,) steps" in caught.value.why
    with pytest.raises(BenchError, match="4 validation clips can't be shared by 3") as caught:
        Validator(validation(), Fixed(None, 3.0), backbone, teacher, World(rank=0, size=3))
    assert caught.value.cure == "use --validate-clips 3"


# --- Beside training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(CASES))
def test_training_is_the_same_with_and_without_it(case: str, backbone: Backbone, tmp_path: Path) -> None:
    ends, counters = [], []
    for name, looks in (("without", None), ("with", validation(every=1))):
        (tmp_path / name).mkdir()
        trainer = trainer_of(case, again(backbone), 2)
        trainer.fit(tmp_path / name, ignore, validation=looks)
        parameters = {f"{r}.{k}": p for r in trainer.roles.trained() for k, p in trainer.roles.parameters(r).items()}
        ends.append({key: parameter.detach().clone() for key, parameter in parameters.items()})
        counters.append((trainer.counters.evaluations, trainer.counters.updates, trainer.vitals))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert counters[0] == counters[1]
    assert read(tmp_path / "without", CURVES) == []
    lines = read(tmp_path / "with", CURVES)
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    assert len({line["metrics"]["mean@4"] for line in lines}) == 3  # the average moves, and it is what is sampled
    watched = [(line["fake_loss"], line["generated_std"], line["dm_raw"]) for line in lines]
    assert watched[0] == (None, None, None)
    assert all((None in values) == (case == "lcm") for values in watched[1:])
    assert lines[0]["diversity"] > 0


def test_its_seconds_are_no_seconds_of_training(backbone: Backbone, tmp_path: Path) -> None:
    def slow(clips_BFHWC: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(0.3)
        return read_means(clips_BFHWC)

    trainer = trainer_of("lcm", backbone, 2)
    looks = Validation(1, cond_of(4), slow, compare, 4, {})
    start = time.perf_counter()
    trainer.fit(tmp_path, ignore, validation=looks)
    spent = time.perf_counter() - start
    assert trainer.counters.seconds < spent - 6 * 0.3  # three points at two numbers of steps
    seconds = [line["seconds"] for line in read(tmp_path, CURVES)]
    assert seconds[0] == 0 < seconds[1] < seconds[2] <= trainer.counters.seconds


class Allocator:
    """Stands in for a GPU's: what it holds, and held at most since it was told to forget that."""

    def __init__(self, holds: int, peak: int) -> None:
        self.holds, self.peak = holds, peak

    def is_available(self) -> bool:
        return True

    def max_memory_allocated(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.holds

    def take(self, more: int) -> None:
        """Allocates, and frees again."""
        self.peak = max(self.peak, self.holds + more)


def test_its_memory_is_no_memory_of_training(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Allocator(holds=100, peak=5000)  # encoding the clips took that much
    monkeypatch.setattr(memory, "torch", SimpleNamespace(cuda=gpu))
    trainer = trainer_of("lcm", backbone, 3)
    (optimizer,) = trainer.optimizers.values()
    step, amounts = optimizer.step, iter((30, 50, 40))

    def learn() -> None:
        gpu.take(next(amounts))
        step()

    def look(clips_BFHWC: np.ndarray) -> dict[str, np.ndarray]:
        gpu.take(900)
        return read_means(clips_BFHWC)

    monkeypatch.setattr(optimizer, "step", learn)
    trainer.fit(tmp_path, ignore, validation=Validation(1, cond_of(4), look, compare, 4, {}))
    assert [line["iteration"] for line in read(tmp_path, CURVES)] == [0, 1, 2, 3]
    assert [line["peak_memory_bytes"] for line in read(tmp_path)] == [130, 150, 150]
    assert trainer.counters.peak_memory_bytes == 150


@pytest.mark.parametrize("file", [FILE, CURVES])
def test_a_stop_while_lines_are_left_out_loses_none_before(file: str, tmp_path: Path) -> None:
    for iteration in range(20):
        append(tmp_path, {"iteration": iteration}, file)
    before = read(tmp_path, file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as if the disk were full after a few lines
    try:
        with pytest.raises(OSError, match="too large"):
            rewind(tmp_path, 15, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read(tmp_path, file) == before
    assert rewind(tmp_path, 15, file) == read(tmp_path, file) == before[:16]
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_run_that_goes_on_has_every_point_once(backbone: Backbone, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "run", recipe_of("lcm", 5)
    measured: list[int] = []

    def counted(features: Mapping[str, np.ndarray]) -> dict[str, float]:
        measured.append(1)
        return compare(features)

    def run() -> Run:
        about = {"clips": 4}
        config = recipe.model_dump(mode="json")
        return Run("lcm", "mini", "lcm", 0, config, backbone_sha256="", data="random", validation=about)

    def kill(done: int, total: int, entry: dict[str, float]) -> None:
        if done == 4:  # the checkpoint is of iteration 2, and the point of iteration 3 is written already
            raise KeyboardInterrupt

    looks = Validation(1, cond_of(4), read_means, counted, 4, {"clips": 4})
    with pytest.raises(KeyboardInterrupt):
        train(method_of("lcm"), again(backbone), pool(), recipe, run(), folder, kill, validation=looks)
    before = read(folder, CURVES)
    assert [line["iteration"] for line in before] == [0, 1, 2, 3]
    other = run()
    other.validation = {"clips": 8}
    with pytest.raises(BenchError, match="other settings") as caught:
        train(method_of("lcm"), again(backbone), pool(), recipe, other, folder, ignore, validation=looks)
    assert "validation.clips (4 there, 8 now)" in caught.value.why
    measured.clear()
    done = train(method_of("lcm"), again(backbone), pool(), recipe, run(), folder, ignore, validation=looks)
    after = read(folder, CURVES)
    assert [line["iteration"] for line in after] == [0, 1, 2, 3, 4, 5]
    assert len(measured) == 3 * 2  # of the points 3, 4 and 5
    assert after[:3] == before[:3]
    assert {k: v for k, v in after[3].items() if k != "seconds"} == {
        k: v for k, v in before[3].items() if k != "seconds"
    }
    assert done.validation == Run.load(folder).validation == {"clips": 4}


def test_a_run_may_go_on_without_it_and_still_says_what_its_curves_are(backbone: Backbone, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "run", recipe_of("lcm", 2, checkpoint_every=1)

    def run(about: dict[str, Any]) -> Run:
        return Run("lcm", "mini", "lcm", 0, recipe.model_dump(mode="json"), "", data="random", validation=about)

    def kill(done: int, total: int, entry: dict[str, float]) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        given = run({"clips": 4})
        train(method_of("lcm"), again(backbone), pool(), recipe, given, folder, kill, validation=validation(every=1))
    done = train(method_of("lcm"), again(backbone), pool(), recipe, run({}), folder, ignore)
    assert [line["iteration"] for line in read(folder, CURVES)] == [0, 1]
    assert done.validation == Run.load(folder).validation == {"clips": 4}
