"""``engine.compile``: compiled blocks train as plain ones do, whatever adapters are switched on between passes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from w2svd_bench.backbones.mini import TRANSFORMER
from w2svd_bench.backbones.untrained import RandomClips, Untrained
from w2svd_bench.config import Engine, Recipe, Training, Video, validated
from w2svd_bench.methods.w2svd.method import W2SVD
from w2svd_bench.train.loop import Trainer

SETTINGS = {
    "generator": {"learning_rate": 1e-3},
    "fake": {"learning_rate": 1e-3},
    "generator_weights": "lora",
    "generator_rank": 4,
    "fake_rank": 2,
    "gt": {"kind": "gan"},
}


def trained(compiled: bool, checkpointing: bool) -> dict[str, Tensor]:
    """The generator's LoRA after two iterations of everything that shares one transformer."""
    engine = Engine(compile=compiled, gradient_checkpointing=checkpointing)
    video = Video(height=48, width=48, num_frames=9, fps=12)
    config = {**TRANSFORMER, "num_single_layers": 1, "image_condition_type": None}
    backbone = Untrained(config, "small", video, "cpu", engine, text_tokens=8)
    recipe = Recipe(method="w2svd", backbone="small", training=Training(iterations=2, batch_size=2), engine=engine)
    method = W2SVD(validated(W2SVD.Config, SETTINGS, "test"), 7.0)
    trainer = Trainer(method, backbone, RandomClips(backbone), recipe, seed=0)
    for iteration in range(2):
        trainer.step(iteration)
    return {name: weight.detach().clone() for name, weight in trainer.roles.parameters("generator").items()}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_train_alike(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The graphs and their guards are what could go wrong here; making fast code of them would take minutes.
    calls: list[nn.Module] = []
    compile_module = nn.Module.compile

    @functools.wraps(compile_module)
    def traced_only(self: nn.Module) -> None:
        calls.append(self)
        compile_module(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", traced_only)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = trained(False, checkpointing), trained(True, checkpointing)
    assert len(calls) == 2, "every block of the one transformer"
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 4 and not counters["graph_break"]
    moved = max(float(weight.abs().max()) for name, weight in plain.items() if "lora_B" in name)
    assert moved > 1e-4
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, atol=1e-6, rtol=1e-4, msg=name)
