"""Training and sampling on a GPU that isn't there: everything lies on one device, and types go together.

On a CPU a tensor that was left behind there is not missed. See `fake_tensors` for what this can see: all but values,
and the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fake_tensors import DEVICE, Untaught, fake_gpu
from w2svd_bench.backbones.mini_codec import MiniCodec
from w2svd_bench.backbones.skeleton import Skeleton
from w2svd_bench.backbones.untrained import RandomClips
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.config import validated
from w2svd_bench.evaluate.sampling import sample_network
from w2svd_bench.registry import METHODS
from w2svd_bench.samplers import Sampler
from w2svd_bench.train.loop import Trainer
from w2svd_bench.train.validation import Validation, Validator
from w2svd_bench.world import ALONE, World

Make = Callable[..., Trainer]


@pytest.fixture
def trainers() -> list[Trainer]:
    return []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, trainers: list[Trainer]) -> Any:
    """A context in which there is a GPU; what it trains is in ``trainers``."""
    return fake_gpu(
        monkeypatch,
        lambda: (p for one in trainers for role in one.roles.trained() for p in one.roles.parameters(role).values()),
    )


@pytest.fixture
def make(trainers: list[Trainer]) -> Make:
    def make(name: str, *changes: str, backbone: str = "mini", world: World | None = None) -> Trainer:
        method_class, skeleton = METHODS.get(name), Skeleton.open(backbone)
        few = [
            "training.batch_size=2",
            *([] if name == "lcm" else ["settings.fake_updates=1", "settings.fake_warmup=0"]),
        ]
        recipe = resolve_recipe(method_class, "mini", None, [*few, *changes])
        config, video = {**skeleton.config, **SMALL}, Skeleton.open("mini").video
        untaught = Untaught(config, skeleton.name, video, DEVICE, recipe.engine, skeleton.text_tokens)
        method = method_class(validated(method_class.Config, recipe.settings, name), untaught.side.shift)
        clips = RandomClips(untaught)
        trainers.append(Trainer(method, untaught, clips, recipe, seed=0, world=world or World(device=DEVICE)))
        return trainers[-1]

    return make


SMALL = {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lcm", ()),
        ("dmd", ()),
        ("w2svd", ()),
        ("w2svd", ("settings.gt.kind=gan",)),
        ("w2svd", ("engine.dtype=float32",)),
        ("dmd", ("engine.trained_dtype=bfloat16",)),
        ("lcm", ("training.micro_batch=1", "engine.gradient_checkpointing=true")),
    ],
)
def test_an_iteration_stays_on_the_gpu(name: str, changes: tuple[str, ...], gpu: Any, make: Make) -> None:
    with gpu:
        trainer = make(name, *changes)
        for iteration in range(2):  # the second one finds the optimisers' moments
            trainer.step(iteration)
        own = [p for role in trainer.roles.trained() for p in trainer.roles.parameters(role).values()]
        assert own and {str(parameter.device) for parameter in own} == {DEVICE}
    assert trainer.counters.iteration == 2 and trainer.counters.updates["generator"] == 2


@pytest.mark.parametrize("backbone", ["hunyuan-i2v", "hunyuan-i2v-33ch"])
def test_image_to_video_stays_on_the_gpu(backbone: str, gpu: Any, make: Make) -> None:
    with gpu:
        make("w2svd", backbone=backbone).step(0)


def test_what_is_left_on_the_cpu_is_seen(gpu: Any, make: Make) -> None:
    """A trainer that takes its world for a CPU adds up gradients of two devices."""
    with gpu, pytest.raises(AssertionError, match=r"stack of tensors on .*cpu"):
        make("w2svd", world=ALONE).step(0)


@pytest.mark.parametrize("sampler", [Sampler("ode", (1.0, 0.5, 0.0)), Sampler("sde", (1.0, 0.5, 0.0))])
def test_sampling_and_validation_end_on_the_cpu(
    sampler: Sampler, gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu:
        trainer = make("w2svd")
        backbone = trainer.backbone
        with torch.device(DEVICE):
            vars(backbone)["codec"] = MiniCodec().to(backbone.encoder_dtype)
        network, clips = trainer.roles.base, backbone.conditioning  # type: ignore[attr-defined]
        made = list(sample_network(backbone, network, sampler, lambda few: clips(len(few)), [[0, 1], [2]], seed=0))
        assert [str(one.frames.device) for one in made] == ["cpu", "cpu"]
        assert all(one.whole.device.type == "cpu" for one in made)
        read: list[Any] = []
        validation = Validation(1, clips(8).to("cpu"), lambda frames: read.append(frames) or {}, lambda _: {}, 4, {})
        levels = SimpleNamespace(tolist=lambda: list(sampler.levels))  # made outside, for levels have values
        monkeypatch.setattr("w2svd_bench.train.validation._offered", lambda method: {2: sampler})
        monkeypatch.setattr("w2svd_bench.train.validation.schedule", lambda steps, shift: levels)
        validator = Validator(validation, trainer.method, backbone, trainer.roles["teacher"], World(device=DEVICE))
        point = validator.point(trainer.roles["generator"])
    assert {"metrics", "diversity", "saturation", "broken"} == point.keys() and len(read) == 2
