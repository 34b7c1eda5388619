"""The stages of the miniature in order; each leaves a file, and a stage whose file is there is not done again.

The default setting makes all parts. The hard setting trains a teacher of its own, whose captions name three attributes,
and takes every other part from the default. Everything is seeded, so one machine builds the same assets twice. The log
that the stages write becomes part of the model card.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.locate import ASSETS
from w2svd_bench.backbones.mini import new_transformer, save_pipeline
from w2svd_bench.backbones.mini_codec import MiniCodec
from w2svd_bench.backbones.network import Network
from w2svd_bench.build_mini import card
from w2svd_bench.build_mini.codec import fit_decoder, fit_linear, psnr
from w2svd_bench.build_mini.features import train_clip_net, train_frame_net
from w2svd_bench.build_mini.teacher import TeacherPlan, train_teacher
from w2svd_bench.data.attributes import PHRASES, SEPARATOR
from w2svd_bench.data.portraits import batches, captions
from w2svd_bench.errors import unknown_name
from w2svd_bench.metrics.mini_nets import save_net
from w2svd_bench.types import Cond

Log = Callable[[str], None]

SIDE: dict[str, Any] = {
    "backbone": "mini",
    "task": "t2v",
    "height": 48,
    "width": 48,
    "num_frames": 17,
    "fps": 12,
    "shift": 3.0,
    "guidance": 1.0,
    "max_sequence_length": 8,
    "prompt_template": {"template": "{}", "crop_start": 0},
    "codec": "codec",
    "data": "portraits",
}


@dataclass(frozen=True)
class Setting:
    """A setting of the miniature: the name of its backbone, and what its captions name (None: all attributes)."""

    backbone: str
    named: tuple[str, ...] | None = None

    @property
    def side(self) -> dict[str, Any]:
        """What its ``w2svd_bench.json`` says."""
        if self.named is None:
            return SIDE | {"backbone": self.backbone}
        return SIDE | {"backbone": self.backbone, "recipe": "mini", "prompt_attributes": list(self.named)}


SETTINGS = {"default": Setting("mini"), "hard": Setting("mini-hard", ("skin", "hair", "backdrop"))}


@dataclass(frozen=True)
class BuildPlan:
    """How large each stage is."""

    codec_clips: int = 4096
    decoder_clips: int = 8192
    decoder_steps: int = 2500
    pool_clips: int = 24_576
    teacher: TeacherPlan = field(default_factory=TeacherPlan)
    feature_steps: int = 3000
    feature_clips: int = 8192


REHEARSAL = BuildPlan(
    codec_clips=64,
    decoder_clips=64,
    decoder_steps=2,
    pool_clips=64,
    teacher=TeacherPlan(iterations=3),
    feature_steps=3,
    feature_clips=128,
)


def build(out: Path, device: str, quick: bool, log: Log, setting: str = "default") -> Path:
    """Builds ``out/assets``; interrupted, it goes on where it stopped. Copy the folder over ``w2svd_bench/assets``.

    Args:
        out: folder for the assets, the work in between and ``build.log``; of the hard setting, the last two lie in
            ``out/hard``.
        quick: a few iterations of each stage, to see that all of it runs.
        setting: ``default``, or ``hard``, which makes ``out/assets/mini-hard`` with the codec of ``out/assets/mini`` if
            that was built, else of the miniature that ships with the package.

    Raises:
        BenchError: there is no such setting.
    """
    if setting not in SETTINGS:
        raise unknown_name("setting", setting, SETTINGS)
    chosen, plan = SETTINGS[setting], REHEARSAL if quick else BuildPlan()
    assets, work = out / "assets", out if setting == "default" else out / setting
    work.mkdir(parents=True, exist_ok=True)

    def note(line: str) -> None:
        with (work / "build.log").open("a") as file:
            file.write(line + "\n")
        log(line)

    codec = _codec(out, plan, device, note) if setting == "default" else _default_codec(assets, work, note)
    _teacher(work, assets / chosen.backbone, chosen, plan, codec, device, note)
    if setting == "default":
        _features(out, plan, device, note)
    text = card.render(assets, (work / "build.log").read_text(), chosen.backbone)
    (assets / chosen.backbone / "README.md").write_text(text)
    log(f"done: {assets}; copy it over the package's assets folder")
    return assets


def _codec(out: Path, plan: BuildPlan, device: str, log: Log) -> MiniCodec:
    linear, whole = out / "codec-linear", out / "codec"
    if not (linear / "config.json").is_file():
        torch.manual_seed(0)
        codec = MiniCodec()
        fit_linear(codec, plan.codec_clips, log)
        log(f"codec, linear: held-out PSNR {psnr(codec, 256):.2f} dB")
        codec.save_pretrained(linear)
    if not (whole / "config.json").is_file():
        codec = MiniCodec.from_pretrained(linear)
        fit_decoder(codec, plan.decoder_clips, plan.decoder_steps, 16, 2e-3, device, log)
        log(f"codec, with the trained decoder: held-out PSNR {psnr(codec, 512):.2f} dB")
        codec.save_pretrained(whole)
    return MiniCodec.from_pretrained(whole)


def _default_codec(assets: Path, work: Path, log: Log) -> MiniCodec:
    """The codec of the default setting, copied at the first call: a default that is built later changes nothing."""
    whole = work / "codec"
    if not (whole / "config.json").is_file():
        built = (assets / "mini" / "model_index.json").is_file()
        MiniCodec.from_pretrained((assets if built else ASSETS) / "mini" / "codec").save_pretrained(whole)
        log(f"codec: that of the miniature {'built in the same folder' if built else 'that ships with the package'}")
    return MiniCodec.from_pretrained(whole)


@torch.no_grad()
def _pool(work: Path, setting: Setting, plan: BuildPlan, backbone: Backbone, log: Log) -> dict[str, torch.Tensor]:
    path = work / "pool.safetensors"
    if not path.is_file():
        latents, tokens, pooled = [], [], []
        for indices, frames in batches("train", plan.pool_clips):
            latents.append(backbone.encode(frames).half().cpu())
            cond = backbone.encode_prompts(captions("train", indices, setting.named))
            tokens.append(cond.tokens_BLD.cpu())
            pooled.append(cond.pooled_BP.cpu())
        save_file({"latents": torch.cat(latents), "tokens": torch.cat(tokens), "pooled": torch.cat(pooled)}, path)
        log(f"teacher: {plan.pool_clips} training clips encoded")
    return load_file(path)


def _teacher(
    work: Path, folder: Path, setting: Setting, plan: BuildPlan, codec: MiniCodec, device: str, log: Log
) -> None:
    """Leaves the whole pipeline directory in ``folder``."""
    if (folder / "model_index.json").is_file():
        return
    phrases = [phrase for group in PHRASES.values() for phrase in group]
    start = work / "untrained"
    save_pipeline(start, new_transformer(), phrases, SEPARATOR, setting.side)
    codec.save_pretrained(start / "codec")
    backbone = Backbone.load(str(start), device)
    pool = _pool(work, setting, plan, backbone, log)
    transformer = backbone.transformer.train().requires_grad_(True)
    network = Network(transformer, setting.side["guidance"])

    def cond_of(rows: torch.Tensor) -> Cond:
        tokens = pool["tokens"][rows]
        return Cond(tokens, torch.ones(tokens.shape[:2]), pool["pooled"][rows]).to(device)

    average = train_teacher(
        transformer, network.velocity, pool["latents"], cond_of, plan.teacher, work / "teacher", log, device
    )
    transformer.load_state_dict({name: value.cpu() for name, value in average.items()}, strict=True)
    draft = work / "mini-draft"  # renamed when whole: a folder that is there counts as done
    save_pipeline(draft, transformer.cpu(), phrases, SEPARATOR, setting.side)
    shutil.copytree(start / "codec", draft / "codec", dirs_exist_ok=True)
    _forget_paths(draft)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(folder)


def _forget_paths(folder: Path) -> None:
    """Diffusers notes where a model was loaded from; the assets shall not say on which machine they were made."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _features(out: Path, plan: BuildPlan, device: str, log: Log) -> None:
    folder = out / "assets" / "features"
    if (folder / "clip.safetensors").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Any] = {"steps": plan.feature_steps, "num_clips": plan.feature_clips, "device": device, "log": log}
    frame_net, scores = train_frame_net(**sizes)
    save_net(frame_net, "frame", {"held_out_r2": scores}, folder)
    clip_net, scores = train_clip_net(frame_net, **sizes)
    save_net(clip_net, "clip", {"held_out_r2": scores}, folder)
