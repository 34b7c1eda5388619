"""The samplers against diffusers' pipeline, bit by bit, and against flows whose end is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.network import Network
from w2svd_bench.baselines.euler.method import Euler
from w2svd_bench.config import Frozen
from w2svd_bench.data.portraits import captions
from w2svd_bench.errors import BenchError
from w2svd_bench.flow import schedule
from w2svd_bench.rng import clip_noise
from w2svd_bench.samplers import Sampler, ode, sde
from w2svd_bench.types import Cond


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return Backbone.load("mini")


def levels(steps: int, shift: float = 3.0) -> list[float]:
    return schedule(steps, shift).tolist()


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (2, 1.0), (4, 6.0), (8, 1.0), (28, 1.0)])
@torch.no_grad()
def test_euler_gives_the_pipelines_latents_bit_by_bit(mini: Backbone, steps: int, guidance: float) -> None:
    prompts, side = captions("test", [0, 1]), mini.side
    noise = clip_noise(mini.latent_shape, 0, [0, 1], 0)
    theirs = mini.pipeline(
        prompt=prompts,
        prompt_template=side.prompt_template,
        max_sequence_length=side.max_sequence_length,
        height=side.height,
        width=side.width,
        num_frames=side.num_frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise,
        output_type="latent",
    ).frames
    network = Network(mini.transformer, guidance)
    sampler = Euler(Frozen(), side.shift).sampler(steps)
    ours = sampler(network.velocity, mini.encode_prompts(prompts), lambda step: noise)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, noise)


@torch.no_grad()
def test_guidance_reaches_the_network(mini: Backbone) -> None:
    # What makes the test above able to see a lost guidance.
    noise, cond = clip_noise(mini.latent_shape, 0, [0], 0), mini.encode_prompts(captions("test", [0]))
    weak, strong = (Network(mini.transformer, g).velocity(noise, torch.ones(1), cond) for g in (1.0, 6.0))
    assert not torch.equal(weak, strong)


@pytest.mark.parametrize("steps", [1, 2, 4, 28])
@pytest.mark.parametrize("sampler", [ode, sde])
def test_a_perfect_flow_to_one_point_ends_there(
    sampler: Callable[..., Tensor], steps: int, no_cond: Callable[[int], Cond]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(3, 2, 2, 2, 2, generator=generator, dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return (x - x0) / t.view(-1, 1, 1, 1, 1)  # eps - x0, wherever on the path x is

    noise = torch.randn(steps, *x0.shape, generator=generator, dtype=torch.float64)
    assert torch.allclose(sampler(velocity, no_cond(3), levels(steps), noise.__getitem__), x0, atol=1e-6)


def test_one_step_is_the_same_for_both(gaussian: Any, no_cond: Callable[[int], Cond]) -> None:
    data = gaussian(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
    noise = torch.randn(5, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    first, second = (s(data, no_cond(5), [1.0, 0.0], lambda step: noise) for s in (ode, sde))
    assert torch.equal(first, second)
    # One step from pure noise can only guess the mean.
    assert torch.allclose(first.flatten(1), data.mean.expand(5, 2), atol=1e-6)


def test_sde_jumps_to_data_and_noises_again_with_new_noise(no_cond: Callable[[int], Cond]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 2, 4, 1, 1, 1, generator=generator, dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = []

    def velocity(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen.append((x, t))
        return x.sin() + t.view(-1, 1, 1, 1, 1)

    out = sde(velocity, no_cond(2), [1.0, 0.75, 0.5, 0.0], noise.__getitem__)
    assert [t.tolist() for _, t in seen] == [[1.0, 1.0], [0.75, 0.75], [0.5, 0.5]]
    x = noise[0]
    for step, (now, after) in enumerate([(1.0, 0.75), (0.75, 0.5), (0.5, 0.0)]):
        assert torch.allclose(seen[step][0], x, atol=1e-14)
        guess = x - now * (x.sin() + now)
        x = (1 - after) * guess + (after * noise[step + 1] if after else 0)
    assert torch.allclose(out, x, atol=1e-14)


def test_euler_converges_to_the_flow_of_a_gaussian_at_first_order(
    gaussian: Any, no_cond: Callable[[int], Cond]
) -> None:
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    data = gaussian(torch.tensor([1.0, -2.0], dtype=torch.float64), cov)
    noise = torch.randn(64, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = [
        (ode(data, no_cond(64), levels(n), lambda step: noise).flatten(1) - data.ode_map(noise.flatten(1))).norm()
        for n in (32, 64, 128)
    ]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.15)
    assert errors[2] < 0.05 * noise.norm()


@pytest.mark.parametrize("kind", ["ode", "sde"])
@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(mini: Backbone, kind: Any) -> None:
    sampler = Sampler(kind, tuple(levels(2)))
    assert sampler.nfe == 2
    velocity, shape = mini.network().velocity, mini.latent_shape
    cond = mini.encode_prompts(captions("test", [4, 5]))
    together = sampler(velocity, cond, lambda step: clip_noise(shape, 7, [4, 5], step))
    alone = sampler(velocity, cond.rows(slice(1, 2)), lambda step: clip_noise(shape, 7, [5], step))
    assert torch.allclose(together[1:], alone, atol=1e-5)
    other = sampler(velocity, cond.rows(slice(1, 2)), lambda step: clip_noise(shape, 7, [6], step))
    assert (other - alone).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("ddim", (1.0, 0.5, 0.0)),
        ("ode", (0.0, 0.5, 1.0)),
        ("ode", (1.0, 0.5)),
        ("sde", (0.9, 0.5, 0.0)),
        ("sde", (1.0, 0.5, 0.6, 0.0)),
        ("sde", (1.0, float("nan"), 0.0)),
        ("ode", ()),
    ],
)
def test_levels_that_do_not_run_from_noise_to_data_are_refused(kind: Any, bad: tuple[float, ...]) -> None:
    with pytest.raises(BenchError, match=r"from 1 \(noise\) down to 0"):
        Sampler(kind, bad)
