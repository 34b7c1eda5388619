"""The miniature's codec, a real HunyuanVideo VAE in its place, and the assets that ship."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.locate import ASSETS, SIDE_FILE
from w2svd_bench.backbones.mini_codec import MiniCodec, from_patches, to_patches
from w2svd_bench.build_mini.codec import psnr
from w2svd_bench.data.portraits import captions, clips

MINI = ASSETS / "mini"


@pytest.fixture(scope="module")
def codec() -> MiniCodec:
    return MiniCodec.from_pretrained(MINI / "codec").eval()


@pytest.fixture
def video() -> torch.Tensor:
    """A clip in [-1, 1], (2, 3, 17, 48, 48)."""
    return clips("validation", [5, 6]).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()


def test_patches_are_put_back_exactly() -> None:
    video = torch.randn(2, 3, 17, 48, 40)
    first, rest = to_patches(video)
    assert first.shape == (2, 1, 6, 5, 192) and rest.shape == (2, 4, 6, 5, 768)
    assert torch.equal(from_patches(first, rest), video)


def test_a_patch_holds_the_pixels_of_its_place() -> None:
    video = torch.zeros(1, 3, 9, 48, 48)
    video[:, :, 5:9, 8:16, 32:40] = 1.0
    first, rest = to_patches(video)
    assert first.abs().sum() == 0
    assert torch.equal(rest[0, :, :, :, 0].nonzero(), torch.tensor([[1, 1, 4]]))
    assert rest[0, 1, 1, 4].min() == 1 and rest.sum() == 768


@torch.no_grad()
def test_the_codec_has_the_geometry_of_the_real_one(codec: MiniCodec, video: torch.Tensor) -> None:
    latents = codec.encode(video).latent_dist.mode()
    assert latents.shape == (2, 16, 5, 6, 6)
    assert codec.decode(latents).sample.shape == video.shape
    assert codec.encode(video[:, :, :1]).latent_dist.mode().shape == (2, 16, 1, 6, 6)
    assert (codec.spatial_compression_ratio, codec.temporal_compression_ratio) == (8, 4)
    # What the pipeline and the trainer rely on: latents of about unit size.
    many = codec.encode(clips("validation", range(64)).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1))
    assert 0.8 < float(many.latent_dist.mode().std()) < 1.25


@torch.no_grad()
def test_both_forms_of_the_calls_agree(codec: MiniCodec, video: torch.Tensor) -> None:
    latents = codec.encode(video).latent_dist.mode()
    assert torch.equal(codec.encode(video, return_dict=False)[0].sample(), latents)
    assert torch.equal(codec.decode(latents, return_dict=False)[0], codec.decode(latents).sample)


@torch.no_grad()
@pytest.mark.parametrize("changed", [1, 5, 16])
def test_the_codec_is_causal(codec: MiniCodec, video: torch.Tensor, changed: int) -> None:
    """A frame moves no latent before its own group, and a latent no frame before its own."""
    other = video.clone()
    other[:, :, changed] += 0.5
    group = (changed - 1) // 4 + 1
    before, after = codec.encode(video).latent_dist.mode(), codec.encode(other).latent_dist.mode()
    assert torch.equal(before[:, :, :group], after[:, :, :group])
    assert (before[:, :, group] - after[:, :, group]).abs().max() > 1e-3
    assert torch.equal(before[:, :, group + 1 :], after[:, :, group + 1 :])
    moved = before.clone()
    moved[:, :, group] += 1.0
    first = 4 * (group - 1) + 1  # of the group's four frames
    old, new = codec.decode(before).sample, codec.decode(moved).sample
    assert torch.equal(old[:, :, :first], new[:, :, :first])
    assert (old[:, :, first] - new[:, :, first]).abs().max() > 1e-2


def test_held_out_clips_come_back_at_29_dB(codec: MiniCodec) -> None:
    assert psnr(codec, 64) >= 29.0


def test_a_saved_codec_comes_back_with_its_options(tmp_path: Path, video: torch.Tensor) -> None:
    """With a decoder of another kind and another scaling factor, which `Backbone` applies exactly once."""
    torch.manual_seed(0)
    made = MiniCodec(hidden_channels=0, scaling_factor=0.5)
    for name, value in made.named_buffers():
        value.copy_(torch.randn_like(value) * 0.1 if "scale" not in name else torch.rand_like(value) + 0.5)
    made.save_pretrained(tmp_path)
    read = MiniCodec.from_pretrained(tmp_path)
    assert read.correction is None and read.config.scaling_factor == 0.5
    assert torch.equal(read.encode(video).latent_dist.mode(), made.encode(video).latent_dist.mode())


def test_the_assets_are_small() -> None:
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    assert len(sizes) > 10 and sum(sizes.values()) < 20 * 2**20


@torch.no_grad()
def test_the_backbone_applies_the_codec_and_its_scaling_factor_once(video: torch.Tensor) -> None:
    backbone = Backbone.load("mini")
    frames = clips("validation", [5, 6])
    raw = backbone.codec.encode(video).latent_dist.mode()
    assert backbone.latent_shape == (16, 5, 6, 6) == tuple(raw.shape[1:])
    backbone.codec.register_to_config(scaling_factor=0.25)
    latents = backbone.encode(frames)
    assert torch.allclose(latents, raw * 0.25, atol=1e-6)
    decoded = backbone.decode(latents)
    expected = ((backbone.codec.decode(raw).sample.clamp(-1, 1) + 1) * 127.5).round()
    assert decoded.dtype == torch.uint8 and decoded.shape == frames.shape
    assert (decoded.permute(0, 4, 1, 2, 3).float() - expected).abs().max() <= 1
    assert (decoded.float() - frames.float()).abs().mean() < 10


@pytest.mark.parametrize("name", ["mini", "mini-hard"])
def test_diffusers_opens_the_miniature_and_samples_a_clip(name: str) -> None:
    """As anybody would who has only diffusers and the codec's class."""
    folder = ASSETS / name
    pipeline = HunyuanVideoPipeline.from_pretrained(folder, vae=MiniCodec.from_pretrained(folder / "codec").eval())
    pipeline.set_progress_bar_config(disable=True)
    side = json.loads((folder / SIDE_FILE).read_text())
    frames = pipeline(
        prompt=captions("test", [0], side.get("prompt_attributes")),
        prompt_template=side["prompt_template"],
        max_sequence_length=side["max_sequence_length"],
        height=side["height"],
        width=side["width"],
        num_frames=side["num_frames"],
        num_inference_steps=2,
        guidance_scale=side["guidance"],
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    assert frames.shape == (1, 17, 48, 48, 3)
    assert frames.min() >= 0 and frames.max() <= 1 and frames.std() > 0.05


@pytest.fixture(scope="module")
def real_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's directory with a tiny `AutoencoderKLHunyuanVideo` of random weights as its VAE."""
    folder = tmp_path_factory.mktemp("real-vae") / "pipeline"
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("codec"))
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=16,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.476986,
    )
    vae.save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderKLHunyuanVideo"]
    (folder / "model_index.json").write_text(json.dumps(index))
    side = json.loads((folder / SIDE_FILE).read_text())
    del side["codec"]
    (folder / SIDE_FILE).write_text(json.dumps(side | {"backbone": "real-vae"}))
    return folder


@torch.no_grad()
def test_a_real_vae_goes_through_the_same_interface(real_vae: Path, video: torch.Tensor) -> None:
    """Clips to scaled latents and back to uint8 clips; the scaling factor is applied once each way."""
    backbone = Backbone.load(str(real_vae))
    assert type(backbone.codec) is AutoencoderKLHunyuanVideo and backbone.name == "real-vae"
    assert backbone.latent_shape == (16, 5, 6, 6)
    frames = clips("validation", [5, 6])
    latents = backbone.encode(frames)
    raw = backbone.codec.encode(video).latent_dist.mode()
    assert latents.shape == (2, 16, 5, 6, 6)
    assert torch.allclose(latents, raw * 0.476986, rtol=1e-5, atol=1e-7)
    decoded = backbone.decode(latents)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8 and decoded.device.type == "cpu"
    expected = ((backbone.codec.decode(raw).sample.clamp(-1, 1) + 1) * 127.5).round()
    assert (decoded.permute(0, 4, 1, 2, 3).float() - expected).abs().max() <= 1
    assert expected.std() > 0  # a decoder of random weights still draws something


def test_a_real_vae_has_its_own_hash(real_vae: Path) -> None:
    """Pools and records of two codecs never meet."""
    hashes = {Backbone.load(source).latents_sha256 for source in ("mini", str(real_vae))}
    assert len(hashes) == 2
