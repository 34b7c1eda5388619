"""Samples clips from a run: its generator, its method's sampler, and noise that depends on (seed, clip, step) only.

Axes: B batch; latents are (B, C, T, h, w), clips uint8 (B, F, H, W, 3).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.export import generator_sha256, load_generator
from w2svd_bench.backbones.roles import Network
from w2svd_bench.config import validated
from w2svd_bench.errors import BenchError
from w2svd_bench.method import Method
from w2svd_bench.registry import METHODS
from w2svd_bench.rng import clip_noise
from w2svd_bench.samplers import Sampler
from w2svd_bench.train.run import GENERATOR_FOLDER, Run

BATCH = 64


@dataclass(frozen=True)
class Subject:
    """A finished run, opened for sampling."""

    run: Run
    method: Method
    backbone: Backbone
    network: Network

    @classmethod
    def open(cls, folder: Path, source: str, device: str) -> Subject:
        """Opens a run folder on a backbone; raises `BenchError` if it is unfinished or its weights were changed."""
        run = Run.load(folder)
        if not run.finished:
            raise BenchError(
                f"the run {folder} is not finished",
                f"its training stopped before iteration {run.config['training']['iterations']}",
                f"go on with: w2svd-bench train --method {run.method} --seed {run.seed}",
            )
        if run.plugin and run.method not in METHODS.names():
            METHODS.load_file(Path(run.plugin))
        backbone = Backbone.load(source, device)
        method_class = METHODS.get(run.method)
        method = method_class(validated(method_class.Config, run.config["settings"], f"{folder}"), backbone.side.shift)
        generator = folder / GENERATOR_FOLDER
        trained = bool(method.roles())
        if run.backbone_sha256 != backbone.sha256:
            raise BenchError(
                f"the run {folder} belongs to another {backbone.name}",
                "the backbone's teacher, codec or text encoders are not those that it was trained with",
                "train it again in a folder of its own (--label NAME or --out DIR), or give the backbone of that time",
            )
        found = generator_sha256(generator) if trained else backbone.teacher_sha256
        if found != run.weights_sha256:
            raise BenchError(
                f"the weights of {folder} are not those that its training left",
                f"sha256 {found[:12]}... instead of {run.weights_sha256[:12]}...",
                "train the run again, or give back its generator folder",
            )
        return cls(run, method, backbone, load_generator(backbone, generator) if trained else backbone.network())

    @classmethod
    def untrained(cls, name: str, backbone: Backbone) -> Subject:
        """A method that needs no training, without a run folder."""
        method_class = METHODS.get(name)
        recipe = method_class.recipe(backbone.name)
        method = method_class(validated(method_class.Config, recipe.get("settings", {}), name), backbone.side.shift)
        run = Run(name, backbone.name, name, 0, recipe, backbone.sha256, finished=True)
        run.weights_sha256 = backbone.teacher_sha256
        return cls(run, method, backbone, backbone.network())


@dataclass
class Sampled:
    """A batch of clips with the latents they were decoded from, and the seconds that both took."""

    indices: list[int]
    latents: Tensor
    frames: Tensor
    sample_seconds: float
    decode_seconds: float


@torch.no_grad()
def sample(
    subject: Subject, sampler: Sampler, prompts: Sequence[str], seed: int, batch_size: int = BATCH
) -> Iterator[Sampled]:
    """Samples one clip a prompt; clip k is the same for any batch size (up to rounding in batched sums)."""
    backbone, device = subject.backbone, subject.backbone.device
    for first in range(0, len(prompts), batch_size):
        indices = list(range(first, min(first + batch_size, len(prompts))))
        cond = backbone.encode_prompts([prompts[i] for i in indices])
        fresh = [clip_noise(backbone.latent_shape, seed, indices, step).to(device) for step in range(sampler.nfe)]
        start = _now(device)
        latents = sampler(subject.network.velocity, cond, fresh.__getitem__)
        middle = _now(device)
        frames = backbone.decode(latents)
        yield Sampled(indices, latents, frames, middle - start, _now(device) - middle)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
