"""Attention backends and training: one that gives no gradient is for sampling alone.

The backends are stand-ins that are registered with diffusers as ``sage``, which is called as it is there: its kernels
know nothing of autograd.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.config import Engine, Recipe, Training, validated
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.errors import BenchError
from w2svd_bench.train.loop import Trainer

SAGE = AttentionBackendName.SAGE
Backbones = Callable[..., Backbone]
Pools = Callable[..., LatentPool]
Train = Callable[..., Trainer]
Attend = Callable[..., Tensor]
Register = Callable[[Attend], None]


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def without_backward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return exact(query.detach(), key.detach(), value.detach())


def of_values_alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return exact(query.detach(), key.detach(), value)


def of_zero(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return exact(query, key * 0, value)  # constant weights: nothing comes back to the queries


def not_finite(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = exact(query, key, value)
    out.register_hook(lambda gradient: gradient * float("nan"))
    return out


def failing(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if query.requires_grad:
        raise NotImplementedError("this kernel is for inference")
    return exact(query, key, value)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Registers a function as diffusers' ``sage``, as if its package were installed."""

    def register(attend: Attend) -> None:
        monkeypatch.setitem(_AttentionBackendRegistry._backends, SAGE, attend)
        monkeypatch.setitem(_AttentionBackendRegistry._constraints, SAGE, [])
        known = set(inspect.signature(attend).parameters)
        monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, SAGE, known)
        monkeypatch.setattr(attention_dispatch, "_check_attention_backend_requirements", lambda backend: None)

    return register


@pytest.fixture
def train(untrained_backbone: Backbones, random_pool: Pools) -> Train:
    """Makes a trainer of an LCM with an attention backend."""

    def make(attention: str = "sage") -> Trainer:
        backbone = untrained_backbone()
        backbone.engine = Engine(attention=attention)
        settings = {"generator": {"learning_rate": 1e-4}, "rank": 4}
        recipe = Recipe(
            method="lcm",
            backbone="mini",
            training=Training(iterations=1, batch_size=2),
            engine=backbone.engine,
            settings=settings,
        )
        return Trainer(LCM(validated(LCM.Config, settings, "lcm"), 3.0), backbone, random_pool(4), recipe, seed=0)

    return make


@pytest.mark.parametrize("attend", [without_backward, of_values_alone, of_zero, not_finite, failing])
def test_a_backend_without_gradients_is_refused_before_training(
    attend: Attend, backend: Register, train: Train
) -> None:
    backend(attend)
    with pytest.raises(BenchError) as caught:
        train()
    error = caught.value
    assert "'sage'" in error.what and "backward" in error.why
    assert "engine.attention=native" in error.cure and "sampl" in error.cure


def test_a_backend_with_gradients_trains(backend: Register, train: Train) -> None:
    backend(exact)
    trainer = train()
    trainer.step(0)
    moved = trainer.roles.parameters("generator")
    assert all(p.abs().sum() > 0 for name, p in moved.items() if "to_q" in name and "lora_B" in name)


def test_native_attention_is_not_asked(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("native attention has a backward pass")

    monkeypatch.setattr("w2svd_bench.backbones.network.dispatch_attention_fn", asked, raising=False)
    train("native")


def test_the_choice_of_the_environment_is_asked(
    backend: Register, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DIFFUSERS_ATTN_BACKEND is the backend of a model that has none of its own."""
    backend(without_backward)
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", SAGE)
    with pytest.raises(BenchError, match="DIFFUSERS_ATTN_BACKEND"):
        train("native")


def test_a_backend_without_gradients_samples(
    backend: Register, untrained_backbone: Backbones, random_pool: Pools
) -> None:
    backend(without_backward)
    backbone, batch = untrained_backbone(), random_pool(2).batch([0, 1])
    backbone.engine = Engine(attention="sage")
    with torch.no_grad():
        velocity = backbone.network().velocity(batch.x0_BCTHW, torch.ones(2), batch.cond)
    assert bool(velocity.isfinite().all())


def test_texts_of_different_lengths_are_refused_by_a_backend_without_masks(
    backend: Register, untrained_backbone: Backbones, random_pool: Pools
) -> None:
    def of_flash(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is not None:
            raise ValueError("`attn_mask` is not yet supported for flash-attn 2.")
        return exact(query, key, value)

    def masked(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2)

    backbone, batch = untrained_backbone(), random_pool(2).batch([0, 1])
    native, mask = untrained_backbone().network(), batch.cond.mask_BL.clone()
    mask[0, -1] = 0
    padded = replace(batch.cond, mask_BL=mask)
    backend(of_flash)
    backbone.engine = Engine(attention="sage")
    network = backbone.network()
    with torch.no_grad():
        network.velocity(batch.x0_BCTHW, torch.ones(2), batch.cond)
        with pytest.raises(BenchError, match="different lengths") as caught:
            network.velocity(batch.x0_BCTHW, torch.ones(2), padded)
        assert "micro_batch of 1" in caught.value.cure and "engine.attention=native" in caught.value.cure
        backend(masked)
        network.use_attention("sage")
        found = network.velocity(batch.x0_BCTHW, torch.ones(2), padded)
        expected = native.velocity(batch.x0_BCTHW, torch.ones(2), padded)
        whole = native.velocity(batch.x0_BCTHW, torch.ones(2), batch.cond)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(whole[0], expected[0], atol=1e-4) and torch.allclose(whole[1], expected[1], atol=1e-5)


def test_the_choice_of_one_network_is_not_that_of_the_next(
    backend: Register, untrained_backbone: Backbones, random_pool: Pools
) -> None:
    """Runs with other backends are evaluated in one process, beside a teacher that has none of its own."""
    asked: list[int] = []

    def counted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        asked.append(1)
        return exact(query, key, value)

    backend(counted)
    native, chosen, batch = untrained_backbone(), untrained_backbone(), random_pool(2).batch([0, 1])
    chosen.engine = Engine(attention="sage")
    networks = [native.network(), chosen.network(), untrained_backbone().network()]
    counts = []
    for network in networks:
        asked.clear()
        with torch.no_grad():
            network.velocity(batch.x0_BCTHW, torch.ones(2), batch.cond)
        counts.append(len(asked))
    assert counts == [0, len(networks[1].blocks), 0]
