"""A backbone against diffusers' own pipelines, on miniature checkpoints in the layout of the real ones.

Three variants: text to video, and image to video with the first frame as tokens (token_replace) or as channels
(latent_concat). None has a side file: what is needed comes from the configs that the hub's directories hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.export import export_generator, load_generator, write_merged
from w2svd_bench.backbones.roles import Roles
from w2svd_bench.config import Engine, Optimizer, Video
from w2svd_bench.flow import schedule
from w2svd_bench.method import RoleSpec
from w2svd_bench.samplers import ode
from w2svd_bench.types import GENERATOR, Cond, average_of

VIDEO = Video(height=32, width=48, num_frames=9, fps=8)
LATENT_SHAPE = (16, 3, 4, 6)
PROMPTS = ["A red fox runs through the snow.", "the main content and theme"]
GUIDANCE = 6.0
VARIANTS = {"t2v": "t2v_checkpoint", "token_replace": "i2v_token_replace", "latent_concat": "i2v_latent_concat"}


@dataclass(frozen=True)
class Pair:
    """The same directory twice: opened by us, and by diffusers."""

    variant: str
    folder: Path
    backbone: Backbone
    pipeline: Any

    @property
    def images(self) -> np.ndarray | None:
        """First frames for the prompts, uint8 (B, H, W, 3); None for text to video."""
        shape = (len(PROMPTS), VIDEO.height, VIDEO.width, 3)
        drawn = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return None if self.variant == "t2v" else drawn

    @property
    def theirs(self) -> dict[str, Any]:
        """The first frames as the pipeline takes them."""
        return {} if self.images is None else {"image": [Image.fromarray(frame) for frame in self.images]}

    @property
    def cond(self) -> Cond:
        """Conditioning of all prompts, encoded one by one: a batch rounds its own way, images as well as text."""
        images = self.images
        return Cond.collate(
            [
                self.backbone.encode_prompts([prompt], None if images is None else images[row : row + 1])
                for row, prompt in enumerate(PROMPTS)
            ]
        )

    def run(self, steps: int, text: dict[str, Any], output_type: str = "latent", rows: slice = slice(None)) -> Any:
        """What the pipeline gives from `noise`."""
        return self.pipeline(
            **text,
            **{name: images[rows] for name, images in self.theirs.items()},
            height=VIDEO.height,
            width=VIDEO.width,
            num_frames=VIDEO.num_frames,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=noise()[rows],
            output_type=output_type,
        ).frames

    def ours(
        self, steps: int, cond: Cond, velocity: Callable[..., Tensor] | None = None, rows: slice = slice(None)
    ) -> Tensor:
        """What our Euler sampler gives from `noise`, as methods see it."""
        backbone = self.backbone
        start = backbone.start(backbone.to_sample(noise()[rows]), cond)
        levels = schedule(steps, backbone.side.shift).tolist()
        return ode(velocity or backbone.network().velocity, cond, levels, lambda step: start)

    def as_seen(self, latents: Tensor) -> Tensor:
        """Our latents as the pipeline hands them out: with the given first frame, or without the one that it drops."""
        if self.variant == "token_replace":
            image = self.cond.image_BCTHW
            assert image is not None
            return torch.cat([image, latents], dim=2)
        return latents[:, :, 1:] if self.variant == "latent_concat" else latents


def noise() -> Tensor:
    return torch.randn(len(PROMPTS), *LATENT_SHAPE, generator=torch.Generator().manual_seed(7))


def given(cond: Cond) -> dict[str, Any]:
    """Conditioning as the pipeline takes it in place of prompts."""
    return {
        "prompt_embeds": cond.tokens_BLD,
        "prompt_attention_mask": cond.mask_BL,
        "pooled_prompt_embeds": cond.pooled_BP,
    }


def opened_by_diffusers(variant: str, folder: Path) -> Any:
    """The pipeline, with the tokenizer that its tokenizer.json describes.

    The class that the hub's directories name, LlamaTokenizerFast, reads that file under transformers 5 as if it were a
    SentencePiece vocabulary and loses every space (huggingface/transformers issue 45488).
    """
    kind = HunyuanVideoPipeline if variant == "t2v" else HunyuanVideoImageToVideoPipeline
    pipeline = kind.from_pretrained(folder, tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest) -> Pair:
    folder = request.getfixturevalue(VARIANTS[request.param])
    backbone = Backbone.load(str(folder), video=VIDEO)
    return Pair(request.param, folder, backbone, opened_by_diffusers(request.param, folder))


def test_a_directory_without_a_side_file_says_what_is_needed(pair: Pair) -> None:
    side = Backbone.locate(str(pair.folder))[1]
    assert not (pair.folder / "w2svd_bench.json").exists()
    assert side.task == ("t2v" if pair.variant == "t2v" else "i2v")
    assert side.image_condition == (None if pair.variant == "t2v" else pair.variant)
    assert side.shift == 7.0
    # The checkpoint that takes the frame as channels embeds no guidance.
    assert side.guidance == (1.0 if pair.variant == "latent_concat" else 6.0)
    assert side.max_sequence_length == 256
    frames = 2 if pair.variant == "token_replace" else 3
    assert pair.backbone.latent_shape == (16, frames, 4, 6)


def test_a_recipe_may_set_shift_and_guidance(t2v_checkpoint: Path) -> None:
    side = Backbone.load(str(t2v_checkpoint), video=VIDEO, shift=17.0, guidance=1.0).side
    assert (side.shift, side.guidance) == (17.0, 1.0)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 4])
def test_euler_gives_the_pipelines_latents_bit_by_bit(pair: Pair, steps: int) -> None:
    cond = pair.cond
    ours = pair.as_seen(pair.ours(steps, cond))
    assert torch.equal(ours, pair.run(steps, given(cond)))
    assert ours.dtype == torch.float32


@torch.no_grad()
def test_from_prompt_to_latents_the_pipeline_agrees(pair: Pair) -> None:
    # Here the pipeline encodes the prompts itself, and pads them to full length.
    theirs = pair.run(4, {"prompt": PROMPTS})
    ours = pair.as_seen(pair.ours(4, pair.cond))
    assert torch.allclose(ours, theirs, atol=1e-4)
    other = pair.run(4, {"prompt": PROMPTS[::-1]})
    assert (other - theirs).abs().max() > 0.05  # so the prompts matter


@torch.no_grad()
def test_conditioning_is_the_pipelines_where_its_mask_lets_through(pair: Pair) -> None:
    interleave = {"token_replace": 4, "latent_concat": 2}.get(pair.variant)
    images = pair.theirs | ({"image_embed_interleave": interleave} if interleave else {})
    tokens, pooled, mask = pair.pipeline.encode_prompt(prompt=PROMPTS, **images)
    ours = pair.cond
    length = ours.mask_BL.shape[1]
    assert torch.equal(ours.mask_BL.bool(), mask[:, :length].bool())
    assert not mask[:, length:].any()
    assert mask[:, length - 1].any()  # nothing but shared padding was cut, and all of it
    used = ours.mask_BL.bool()
    assert torch.allclose(ours.tokens_BLD[used], tokens[:, :length][used], atol=1e-5)
    assert torch.allclose(ours.pooled_BP, pooled, atol=1e-6)
    if interleave:
        words = [int(count) - 576 // interleave for count in used.sum(1)]
        assert words == [int(count) - 576 // interleave for count in mask.sum(1)]
        assert words[0] > words[1] > 0


@torch.no_grad()
def test_words_reach_the_text_encoder_with_their_spaces(pair: Pair) -> None:
    images = None if pair.images is None else pair.images[:1]
    apart, together = (pair.backbone.encode_prompts([prompt], images) for prompt in ("the main", "themain"))
    assert apart.tokens_BLD.shape[1] < together.tokens_BLD.shape[1]  # two known words, or seven letters
    one, two = (pair.backbone.encode_prompts([prompt], images).tokens_BLD for prompt in ("o n", "on"))
    assert one.shape[1] > two.shape[1]


@torch.no_grad()
def test_a_prompt_beyond_the_limit_is_cut_as_by_the_pipeline(pair: Pair) -> None:
    prompt = "xyz " * 100  # 400 tokens of 256
    interleave = {"token_replace": 4, "latent_concat": 2}.get(pair.variant)
    images = {"image": pair.theirs["image"][:1], "image_embed_interleave": interleave} if interleave else {}
    tokens, _, mask = pair.pipeline.encode_prompt(prompt=[prompt], **images)
    ours = pair.backbone.encode_prompts([prompt], None if pair.images is None else pair.images[:1])
    used = mask.bool()
    assert torch.equal(ours.mask_BL.sum(), mask.sum())
    assert torch.allclose(ours.tokens_BLD[ours.mask_BL.bool()], tokens[used], atol=1e-5)


@torch.no_grad()
def test_first_frame_and_start_are_the_pipelines(pair: Pair) -> None:
    image = pair.cond.image_BCTHW
    if pair.variant == "t2v":
        assert image is None
        return
    assert image is not None
    assert image.shape == (2, 16, 1, 4, 6)
    pixels = pair.pipeline.video_processor.preprocess(pair.theirs["image"], VIDEO.height, VIDEO.width)
    start, theirs = pair.pipeline.prepare_latents(
        pixels, 2, 16, VIDEO.height, VIDEO.width, 9, torch.float32, "cpu", None, noise(), pair.variant
    )
    backbone = pair.backbone
    assert torch.equal(backbone.start(backbone.to_sample(noise()), pair.cond), backbone.to_sample(start))
    assert torch.equal(image, theirs[:, :, :1])
    assert image.std() > 0.05


@torch.no_grad()
def test_padding_changes_nothing_for_the_image_tokens(pair: Pair) -> None:
    cond, t = pair.cond, torch.tensor([0.9, 0.3])
    x = pair.backbone.to_sample(noise())
    velocity = pair.backbone.network().velocity
    added = torch.randn(2, 40, cond.tokens_BLD.shape[2], generator=torch.Generator().manual_seed(1))
    padded = replace(
        cond,
        tokens_BLD=torch.cat([cond.tokens_BLD, added], dim=1),
        mask_BL=torch.cat([cond.mask_BL, torch.zeros(2, 40)], dim=1),
    )
    assert torch.allclose(velocity(x, t, padded), velocity(x, t, cond), atol=1e-5)
    seen = replace(padded, mask_BL=torch.ones_like(padded.mask_BL))
    assert (velocity(x, t, seen) - velocity(x, t, cond)).abs().max() > 1e-3  # the mask is what hides it


@torch.no_grad()
def test_attention_without_a_mask_is_attention_with_one_that_hides_nothing(pair: Pair) -> None:
    cond = pair.cond.rows(slice(0, 1)).trimmed()
    assert cond.mask_BL.all()
    backbone = pair.backbone
    x, t = backbone.to_sample(noise())[:1], torch.tensor([0.7])
    masks: list[Tensor | None] = []
    kernel = HunyuanVideoAttnProcessor2_0.__call__

    def spy(self: Any, attn: Any, tokens: Tensor, text: Tensor, mask: Tensor | None, rotary: Any) -> Any:
        masks.append(mask)
        return kernel(self, attn, tokens, text, mask, rotary)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HunyuanVideoAttnProcessor2_0, "__call__", spy)
        without = backbone.network().velocity(x, t, cond)
    assert masks == [None] * 4
    with_mask = plain_velocity(pair, x, t, cond)
    assert torch.allclose(without, with_mask, atol=1e-5)


def plain_velocity(pair: Pair, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The velocity by diffusers' transformer alone, called as the pipelines call it."""
    transformer, image = pair.pipeline.transformer, cond.image_BCTHW
    fed = x
    if pair.variant == "token_replace":
        assert image is not None
        fed = torch.cat([image, x], dim=2)
    elif pair.variant == "latent_concat":
        assert image is not None
        later = torch.zeros(len(x), 16, x.shape[2] - 1, *x.shape[3:])
        mask = torch.cat([torch.ones_like(x[:, :1, :1]), torch.zeros_like(x[:, :1, 1:])], dim=2)
        fed = torch.cat([x, torch.cat([image, later], dim=2), mask], dim=1)
    velocity: Tensor = transformer(
        hidden_states=fed,
        timestep=t * 1000,
        encoder_hidden_states=cond.tokens_BLD,
        encoder_attention_mask=cond.mask_BL,
        pooled_projections=cond.pooled_BP,
        guidance=torch.full((len(x),), GUIDANCE * 1000) if transformer.config.guidance_embeds else None,
        return_dict=False,
    )[0]
    return velocity[:, :, 1:] if pair.variant == "token_replace" else velocity


@torch.no_grad()
def test_decoded_clips_are_the_pipelines(pair: Pair) -> None:
    cond = pair.cond
    latents = pair.ours(1, cond)
    frames = 5 if pair.variant == "latent_concat" else 9
    together = pair.backbone.decode(latents, cond)
    assert together.shape == (2, frames, 32, 48, 3)
    assert pair.backbone.decoded_frames == frames
    for row in (slice(0, 1), slice(1, 2)):
        theirs = pair.run(1, given(cond.rows(row)), "np", row)
        # The sampling of a batch rounds its own way, so that only the same latents may be asked for the same bytes.
        latents = pair.ours(1, cond.rows(row), rows=row)
        ours = pair.backbone.decode(latents, cond.rows(row))
        assert torch.equal(ours, torch.from_numpy((theirs * 255).round().astype(np.uint8)))
        assert (together[row].int() - ours.int()).abs().max() <= 1
        assert ours.float().std() > 20  # a picture, not grey


@torch.no_grad()
def test_long_clips_decode_in_the_same_tiles_as_the_pipelines(t2v_checkpoint: Path) -> None:
    # Above 16 frames the VAE works in overlapping runs of frames, which changes values.
    backbone = Backbone.load(str(t2v_checkpoint), video=VIDEO.model_copy(update={"num_frames": 21}))
    latents = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(3))
    pipeline = opened_by_diffusers("t2v", t2v_checkpoint)
    video = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    theirs = pipeline.video_processor.postprocess_video(video, output_type="np")
    ours = backbone.decode(latents)
    assert ours.shape == (1, 21, 32, 48, 3)
    assert torch.equal(ours, torch.from_numpy((theirs * 255).round().astype(np.uint8)))
    pipeline.vae.use_framewise_decoding = False
    whole = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert (whole - video).abs().max() > 0.01


def heard(backbone: Backbone, cond: Cond, t: Tensor, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the transformer is called with, and the velocity."""
    network, calls = backbone.network(), []
    handle = network.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        velocity = network.velocity(x, t, cond)
    handle.remove()
    assert len(calls) == 1
    return calls[0], velocity


@pytest.mark.parametrize(("dtype", "guidance"), [("float32", 6000.0), ("bfloat16", 6016.0)])
def test_the_transformer_hears_guidance_as_the_pipeline_says_it_and_exact_noise_levels(
    pair: Pair, dtype: Any, guidance: float
) -> None:
    backbone = Backbone.load(str(pair.folder), engine=Engine(dtype=dtype), video=VIDEO)
    t = torch.tensor([0.8754321, 0.1234567])
    x = backbone.to_sample(noise())
    said, velocity = heard(backbone, backbone.encode_prompts(PROMPTS, pair.images), t, x)
    assert said["timestep"].dtype == torch.float32
    assert torch.equal(said["timestep"], t * 1000)
    if pair.variant == "latent_concat":
        assert said["guidance"] is None
    else:
        assert said["guidance"].tolist() == [guidance, guidance]
    wanted = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        assert said[name].dtype == wanted
    assert velocity.dtype == torch.float32  # so that samplers step in full precision
    assert velocity.shape == x.shape


def test_bfloat16_rounds_the_pipelines_later_timesteps_but_not_ours(t2v_checkpoint: Path) -> None:
    # The pipeline hands over timesteps in the type of its latents, which is the network's from step 2 on.
    said: dict[str, list[float]] = {"theirs": [], "ours": []}
    pipeline = opened_by_diffusers("t2v", t2v_checkpoint)
    pipeline.transformer.to(torch.bfloat16)
    backbone = Backbone.load(str(t2v_checkpoint), engine=Engine(dtype="bfloat16"), video=VIDEO)
    network = backbone.network()
    for name, transformer in (("theirs", pipeline.transformer), ("ours", network.transformer)):
        transformer.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: said[name].append(float(kwargs["timestep"][0])), with_kwargs=True
        )
    pair = Pair("t2v", t2v_checkpoint, backbone, pipeline)
    with torch.no_grad():
        pair.run(4, {"prompt": PROMPTS})
        pair.ours(4, pair.cond, network.velocity)
    assert said["ours"] == pytest.approx([1000, 954.5454, 875, 700], abs=1e-3)
    assert said["theirs"] == [1000, 956, 876, 700]


@pytest.mark.parametrize("steps", [1, 2, 4, 28])
def test_levels_are_those_of_the_checkpoints_own_scheduler(pair: Pair, steps: int) -> None:
    scheduler = pair.pipeline.scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    assert torch.equal(schedule(steps, pair.backbone.side.shift), scheduler.sigmas)


OPTIMIZER = Optimizer(learning_rate=1e-4)
SPECS = {
    # At strength 0.5 a rank of 4 goes with an alpha of 2: whoever takes them for equal doubles the LoRA.
    "lora": RoleSpec.lora(OPTIMIZER, rank=4, strength=0.5),
    "lora average": RoleSpec.lora(OPTIMIZER, rank=4, ema=0.9),
    "full": RoleSpec.full(OPTIMIZER),
    "full average": RoleSpec.full(OPTIMIZER, ema=0.9),
}


@dataclass(frozen=True)
class Exported:
    """A generator of random weights: its folder, its backbone, its latents and how far they are from the teacher's."""

    folder: Path
    backbone: Backbone
    latents: Tensor
    moved: float


@pytest.fixture
def exported(pair: Pair, tmp_path: Path) -> Callable[[str], Exported]:
    """Writes the generator of one of SPECS, with weights of its own that no training has made."""

    def write(kind: str) -> Exported:
        spec = SPECS[kind]
        backbone = Backbone.load(str(pair.folder), video=VIDEO)
        roles = Roles(backbone.network(), {GENERATOR: spec})
        name = GENERATOR if spec.ema is None else average_of(GENERATOR)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in roles.parameters(name).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
            latents = pair.ours(2, pair.cond, roles[name])
            moved = float((latents - pair.ours(2, pair.cond)).abs().max())
        folder = tmp_path / "generator"
        assert len(export_generator(roles, spec, backbone, folder)) == 64
        return Exported(folder, backbone, latents, moved)

    return write


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_plain_diffusers_loads_a_generator_to_the_same_latents(
    pair: Pair, exported: Callable[[str], Exported], kind: str
) -> None:
    check_plain_diffusers(pair, exported(kind), kind)


@pytest.mark.parametrize("pair", ["t2v"], indirect=True)
@pytest.mark.parametrize("kind", ["lora average", "full average"])
def test_where_an_average_is_kept_it_is_what_plain_diffusers_loads(
    pair: Pair, exported: Callable[[str], Exported], kind: str
) -> None:
    check_plain_diffusers(pair, exported(kind), kind)


def check_plain_diffusers(pair: Pair, ours: Exported, kind: str) -> None:
    assert ours.moved > 0.05
    pipeline = opened_by_diffusers(pair.variant, pair.folder)
    if kind.startswith("lora"):
        assert [file.name for file in ours.folder.iterdir()] == ["pytorch_lora_weights.safetensors"]
        pipeline.load_lora_weights(ours.folder)
    else:
        pipeline.transformer = HunyuanVideoTransformer3DModel.from_pretrained(ours.folder / "transformer")
    theirs = Pair(pair.variant, pair.folder, ours.backbone, pipeline).run(2, given(pair.cond))
    assert torch.allclose(pair.as_seen(ours.latents), theirs, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_generator_comes_back_and_merges_into_a_whole_transformer(
    pair: Pair, exported: Callable[[str], Exported], tmp_path: Path, kind: str
) -> None:
    ours = exported(kind)
    backbone = Backbone.load(str(pair.folder), video=VIDEO)
    network = load_generator(backbone, ours.folder)
    assert torch.allclose(pair.ours(2, pair.cond, network.velocity), ours.latents, atol=1e-4)
    write_merged(network, backbone, ours.folder, tmp_path / "merged")
    pipeline = opened_by_diffusers(pair.variant, pair.folder)
    pipeline.transformer = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "merged" / "transformer")
    theirs = Pair(pair.variant, pair.folder, backbone, pipeline).run(2, given(pair.cond))
    assert torch.allclose(pair.as_seen(ours.latents), theirs, atol=1e-4)
    files = [file for folder in (ours.folder, tmp_path / "merged") for file in folder.rglob("*") if file.is_file()]
    assert len(files) == {"lora": 3, "full": 4}[kind]
    for file in files:  # nothing tells where on this machine it was made
        assert str(pair.folder).encode() not in file.read_bytes(), file.name
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
