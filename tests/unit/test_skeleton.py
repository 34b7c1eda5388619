"""The architecture without weights: what it counts, and what passes through it cost. Nothing here is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from w2svd_bench.backbones.adapters import Adapters
from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.costs import FRAMES, Meter, attention_operations, cost, flash_attention
from w2svd_bench.backbones.discriminator import Discriminator
from w2svd_bench.backbones.skeleton import Skeleton
from w2svd_bench.config import Video
from w2svd_bench.errors import BenchError

# Every layer of these names, the text refiner's included: what target_modules=["to_q", ...] means to peft.
ATTENTION = r".*\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
UNIT = 2 * 3072  # bytes of one token in bfloat16


@pytest.fixture(scope="module")
def hunyuan() -> Skeleton:
    return Skeleton.open("hunyuan")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("hunyuan", 12_821_012_544), ("hunyuan-i2v", 12_821_012_544), ("hunyuan-i2v-33ch", 12_810_991_680)],
)
def test_the_real_transformers_have_their_known_size(name: str, parameters: int) -> None:
    skeleton = Skeleton.open(name)
    assert skeleton.parameters == parameters
    kinds = skeleton.by_kind
    assert (kinds["double"], kinds["single"]) == (339_831_296, 141_591_808)
    assert 20 * kinds["double"] + 40 * kinds["single"] + kinds["rest"] == parameters


def test_a_lora_has_rank_times_inputs_and_outputs(hunyuan: Skeleton) -> None:
    """The counts that peft gave for the same targets on the same architecture, in millions."""
    assert (round(hunyuan.lora(64) / 1e6, 1), hunyuan.lora_layers) == (275.3, 440)
    assert hunyuan.lora(128) == 2 * hunyuan.lora(64)
    attention = Skeleton("attention", hunyuan.config, targets=ATTENTION)
    assert (round(attention.lora(64) / 1e6, 1), attention.lora_layers) == (113.2, 288)


def test_counts_are_those_of_the_miniature_in_memory() -> None:
    skeleton, backbone = Skeleton.open("mini"), Backbone.load("mini")
    network = backbone.network()
    assert skeleton.parameters == sum(p.numel() for p in network.transformer.parameters())
    assert skeleton.discriminator == sum(p.numel() for p in Discriminator(network).parameters())
    adapters: Adapters = network.adapters
    adapters.add("lora", 5)
    assert skeleton.lora(5) == sum(p.numel() for p in adapters.parameters("lora").values())
    blocks = [name.split(".lora_")[0].rsplit(".attn.")[0] for name in adapters.parameters("lora")]
    largest = max(
        sum(p.numel() for name, p in adapters.parameters("lora").items() if ".".join(name.split(".")[:2]) == block)
        for block in {".".join(name.split(".")[:2]) for name in blocks}
    )
    assert skeleton.lora_part(5) == largest


def test_tokens_and_latents(hunyuan: Skeleton) -> None:
    small = Video(height=320, width=512, num_frames=61, fps=24)
    assert hunyuan.latent_shape(small) == (16, 16, 40, 64)
    assert hunyuan.tokens(small) == (10_240, 256)
    assert hunyuan.tokens(Video(height=544, width=960, num_frames=129, fps=24)) == (67_320, 256)
    assert Skeleton.open("hunyuan-i2v").tokens(small) == (10_240, 256 + 144)
    assert Skeleton.open("hunyuan-i2v-33ch").tokens(small) == (10_240, 256 + 288)
    mini = Skeleton.open("mini")
    assert mini.latent_shape(mini.video) == Backbone.load("mini").latent_shape


@pytest.mark.parametrize(("height", "width", "frames"), [(328, 512, 61), (320, 510, 61), (320, 512, 60)])
def test_sizes_that_can_not_be_made_are_refused(hunyuan: Skeleton, height: int, width: int, frames: int) -> None:
    with pytest.raises(BenchError, match="can't make clips") as caught:
        hunyuan.latent_shape(Video(height=height, width=width, num_frames=frames, fps=24))
    assert "x512 and 61 frames" in caught.value.cure


def test_nothing_is_asked_of_a_hub(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="can't be planned") as caught:
        Skeleton.open("some-owner/some-model")
    assert "downloads nothing" in caught.value.why
    with pytest.raises(BenchError, match="can't be opened"):
        Skeleton.open(str(tmp_path))


def test_a_meter_sees_what_torchs_own_tracker_sees() -> None:
    """MemTracker counts parameters, gradients and activations of a module in which everything is trained."""
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 64))
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        model(torch.randn(128, 64)).square().mean().backward()
    expected = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    model.zero_grad()
    with Meter(model.parameters()) as meter:
        model(torch.randn(128, 64)).square().mean().backward()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    # The tracker rounds every storage up to the allocator's 512 bytes.
    assert meter.peak + parameters == pytest.approx(expected, rel=0.02)
    assert meter.operations == 2 * 128 * 64 * 256 * 2 + 2 * 128 * 64 * 256 * 3  # no gradient for the input


def test_a_meter_forgets_what_is_gone() -> None:
    with Meter() as meter:
        first = torch.zeros(1000)
        second = first + 1
        assert meter.now == 8000
        del first
        assert (meter.now, meter.peak) == (4000, 8000)
        meter.reset()
        view = second[:10]
        assert (meter.now, meter.peak) == (4000, 4000) and view.numel() == 10


@pytest.mark.parametrize(("kind", "other"), [("double", 28.2), ("single", 26.2)])
def test_what_a_trained_block_keeps(hunyuan: Skeleton, kind: Any, other: float) -> None:
    """Bytes kept for backward, in tokens: within 5 % of a measurement by other code."""
    assert cost(hunyuan, kind, "weights").saved.slope / UNIT == pytest.approx(other, rel=0.05)


def test_costs_are_lines_and_no_kernel_writes_all_scores(hunyuan: Skeleton, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third number of tokens lies on the line through the other two, and torch's own attention is never called."""

    def refuse(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("attention of torch was called")

    block = cost(Skeleton("own", hunyuan.config), "single", "weights", rank=64)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    few, many = block.again.at(4 * 1024 + 256), block.again.at(16 * 1024 + 256)
    assert FRAMES == (4, 16)
    monkeypatch.setattr("w2svd_bench.backbones.costs.FRAMES", (4, 9))
    other = cost(Skeleton("other", hunyuan.config), "single", "weights", rank=64).again
    assert other.at(4 * 1024 + 256) == pytest.approx(few, rel=1e-6)
    assert other.at(16 * 1024 + 256) == pytest.approx(many, rel=1e-3)
    assert 25 < block.again.slope / UNIT < 40


def test_the_stand_in_refuses_a_mask() -> None:
    from diffusers.models.transformers import transformer_hunyuan_video

    query = torch.empty(1, 4, 2, 8, device="meta")
    with flash_attention(), pytest.raises(ValueError, match="mask"):
        transformer_hunyuan_video.dispatch_attention_fn(query, query, query, attn_mask=torch.ones(1))


def test_operations_follow_from_the_weights(hunyuan: Skeleton) -> None:
    """Every token meets every matrix of a single block once, and half of those of a double block."""
    matrices = 3 * 3072 * 3072 + 3072 * 12288 + (3072 + 12288) * 3072
    single = cost(hunyuan, "single", "weights")
    assert single.forward.slope == pytest.approx(2 * matrices)
    assert single.backward.slope == pytest.approx(4 * matrices)
    assert cost(hunyuan, "single", "input").backward.slope == pytest.approx(2 * matrices)
    assert attention_operations(hunyuan, 1000) == 4 * 1000 * 1000 * 3072
