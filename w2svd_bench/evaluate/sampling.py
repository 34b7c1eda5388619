"""Samples clips from a run: its generator, its method's sampler, and noise that depends on (seed, clip, step) only.

Axes: B batch; latents are (B, C, T, h, w), clips uint8 (B, F, H, W, 3).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.export import generator_sha256, load_generator
from w2svd_bench.backbones.network import Network
from w2svd_bench.config import Recipe, validated
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.evalset import BATCH
from w2svd_bench.method import Method
from w2svd_bench.registry import DIGEST, METHODS, changed
from w2svd_bench.rng import clip_noise
from w2svd_bench.samplers import Sampler
from w2svd_bench.train.run import GENERATOR_FOLDER, Run
from w2svd_bench.types import Cond

# Latent positions of 64 clips of the miniature, which is as many as are sampled at a time. One clip of the 13B model
# has four times as many, and keeps a GPU busy by itself.
POSITIONS = BATCH * 5 * 6 * 6

Conditioning = Callable[[Sequence[int]], Cond]


@dataclass(frozen=True)
class Subject:
    """A finished run, opened for sampling."""

    run: Run
    method: Method
    backbone: Backbone
    network: Network

    @classmethod
    def open(cls, folder: Path, source: str, device: str) -> Subject:
        """Opens a run folder on a backbone, at the size and precision of the run's recipe.

        Raises:
            BenchError: the run is unfinished, belongs to another backbone, its plug-in's source has changed, or
                its weights have.
        """
        run = Run.load(folder)
        if not run.finished:
            raise BenchError(
                f"the run {folder} is not finished",
                f"its training stopped before iteration {run.config['training']['iterations']}",
                f"repeat the command that began it, w2svd-bench train --method {run.method} --label {run.label} "
                f"--seed {run.seed} with its other options: it goes on from its last checkpoint",
            )
        check_code(run, folder)
        recipe = recipe_of(run, folder)
        backbone = Backbone.for_recipe(source, device, recipe)
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
        network = load_generator(backbone, generator) if trained else backbone.network()
        if recipe.engine.compile:
            network.compile_blocks()
        return cls(run, method, backbone, network)

    @classmethod
    def untrained(cls, name: str, backbone: Backbone) -> Subject:
        """A method that needs no training, without a run folder."""
        method_class = METHODS.get(name)
        recipe = method_class.recipe(backbone.side.recipe)
        method = method_class(validated(method_class.Config, recipe.get("settings", {}), name), backbone.side.shift)
        run = Run(name, backbone.name, name, 0, recipe, backbone.sha256, finished=True)
        run.weights_sha256 = backbone.teacher_sha256
        return cls(run, method, backbone, backbone.network())


def check_code(run: Run, folder: Path) -> None:
    """Loads the run's plug-in; raises `BenchError` if its source is not what the run was trained by."""
    if run.plugin and run.method not in METHODS.names():
        METHODS.load_file(Path(run.plugin))
    trained_by, code = run.code.get("method", ""), METHODS.code(run.method)
    if changed(trained_by, code):
        (version, _, then), (_, _, now) = (one.partition(DIGEST) for one in (trained_by, code))
        of_package = f"; if it samples as before, raise the version of {version.rstrip(', ')}" if version else ""
        raise BenchError(
            f"the run {folder} was trained by another {run.plugin or run.method}",
            f"its source has changed since: {DIGEST}{then[:12]}... then, {now[:12] or code}... now",
            f"give it back as it was, or train with this one under another --label{of_package}",
        )


@dataclass
class Sampled:
    """A batch of clips, the latents they were decoded from (None: from none), and the seconds that both took.

    ``finite`` says which clips a codec decoded to finite numbers, bool (B,); None where there was none to decode.
    """

    indices: list[int]
    latents: Tensor | None
    frames: Tensor
    sample_seconds: float
    decode_seconds: float
    finite: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """Which clips hold numbers that can be shown, in latents and pixels alike, bool (B,); others may be black."""
        whole = torch.ones(len(self.indices), dtype=torch.bool) if self.finite is None else self.finite
        return whole if self.latents is None else whole & self.latents.float().flatten(1).isfinite().all(1).cpu()


def recipe_of(run: Run, folder: Path) -> Recipe:
    """The recipe that a run was trained by; raises `BenchError` if this version can't read it."""
    return validated(Recipe, run.config, f"the config of the run {folder}")


def batch_size(latent_shape: Sequence[int]) -> int:
    """How many clips of latents (C, T, h, w) are sampled at a time: 64 of the miniature's, one of the 13B model's."""
    return max(1, min(BATCH, POSITIONS // math.prod(latent_shape[1:])))


def sample(
    subject: Subject, sampler: Sampler, conditioning: Conditioning, batches: Iterable[Sequence[int]], seed: int
) -> Iterator[Sampled]:
    """Samples the clips of the given numbers from a run: see `sample_network`."""
    return sample_network(subject.backbone, subject.network, sampler, conditioning, batches, seed)


@torch.no_grad()
def sample_network(
    backbone: Backbone,
    network: Network,
    sampler: Sampler,
    conditioning: Conditioning,
    batches: Iterable[Sequence[int]],
    seed: int,
) -> Iterator[Sampled]:
    """Samples the clips of the given numbers; clip k is the same in any batch (up to rounding in batched sums).

    Args:
        conditioning: of clips by their numbers.
        batches: the numbers of the clips to sample together.
        seed: of the noise.
    """
    device = backbone.device
    for indices in batches:
        cond = conditioning(indices)
        drawn = range(1 if sampler.kind == "ode" else sampler.nfe)  # Euler's method starts from noise and adds none
        fresh = [clip_noise(backbone.latent_shape, seed, indices, step).to(device) for step in drawn]
        fresh[0] = backbone.start(fresh[0], cond)
        start = now(device)
        latents = sampler(network.velocity, cond, fresh.__getitem__)
        middle = now(device)
        frames, finite = backbone.decode_checked(latents, cond)
        yield Sampled(list(indices), latents, frames, middle - start, now(device) - middle, finite)


def now(device: str) -> float:
    """The time in seconds once the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
