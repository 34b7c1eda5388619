"""What training and sampling cost on the machine at hand, measured on the real architecture with random weights.

Time and memory of a pass do not depend on what the weights are, so no checkpoint is needed. Each measurement stands
beside what `plan` foretells: bytes against bytes, and operations against the fastest matrix product of this very GPU.
Seconds are wall time; bytes are what torch allocated at the peak, without the CUDA context.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from w2svd_bench.backbones.network import Network
from w2svd_bench.backbones.skeleton import Skeleton
from w2svd_bench.backbones.untrained import RandomClips, Untrained
from w2svd_bench.config import Recipe, validated
from w2svd_bench.errors import BenchError
from w2svd_bench.flow import schedule
from w2svd_bench.plan.machine import Machine
from w2svd_bench.plan.memory import Plan, Setup
from w2svd_bench.samplers import ode
from w2svd_bench.train.loop import Trainer
from w2svd_bench.world import World

PEAK_SIZE = {"cuda": 8192, "cpu": 1024}  # rows of the square matrices whose product is the peak


@dataclass(frozen=True)
class Measurement:
    """One row of the table of costs.

    Attributes:
        what: ``training`` (an iteration) or ``sampling`` (a clip).
        method: whose training; for sampling the network's, which is the same for all methods.
        video: height x width x frames.
        steps: of sampling; 0 for training.
        clips: of the batch.
        outcome: ``measured``, or why there are no seconds.
        seconds, spread: median and largest minus smallest over ``runs``.
        peak_bytes, planned_bytes: of the GPU's memory, measured and planned; 0 where it was not measured.
        operations: floating point operations, planned.
        share: operations a second as a share of the fastest matrix product's.
    """

    what: str
    method: str
    video: str
    steps: int
    clips: int
    outcome: str
    seconds: float = 0.0
    spread: float = 0.0
    runs: int = 0
    peak_bytes: int = 0
    planned_bytes: float = 0.0
    operations: float = 0.0
    share: float = 0.0

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Floating point operations a second of the fastest of several products of two large square matrices."""
    size = PEAK_SIZE[torch.device(device).type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = [_timed(lambda: left @ right, device) for _ in range(8)]
    return 2 * size**3 / min(seconds[2:])


def training(method_class: Any, recipe: Recipe, skeleton: Skeleton, device: str, runs: int, peak: float) -> Measurement:
    """Measures an iteration of training at one clip: the method's own updates, without a first iteration's warm-up.

    Memory that is not enough is a result, not an error: the row says so and what was planned.
    """
    recipe = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"batch_size": 1, "micro_batch": 1, "iterations": 10**6})}
    )
    video = recipe.video or skeleton.video
    planned = Plan(Setup.of(method_class, recipe, skeleton, Machine.here(1, device), video))
    row: dict[str, Any] = {
        "what": "training",
        "method": method_class.name,
        "video": f"{video.height}x{video.width}x{video.num_frames}",
        "steps": 0,
        "clips": 1,
        "planned_bytes": planned.chosen.allocated,
        "operations": planned.operations,
    }
    backbone = Untrained(dict(skeleton.config), skeleton.name, video, device, recipe.engine, skeleton.text_tokens)
    config = validated(method_class.Config, recipe.settings, f"the settings section of {method_class.name}")
    try:
        method, world = method_class(config, backbone.side.shift), World(device=device)
        trainer = Trainer(method, backbone, RandomClips(backbone), recipe, seed=0, world=world)
        trainer.step(1)  # compiles kernels and makes the optimisers' moments; iteration 0 may hold a warm-up
        _reset_peak(device)
        seconds = [_timed(lambda n=n: trainer.step(n), device) for n in range(2, 2 + runs)]  # type: ignore[misc]
    except BenchError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        return Measurement(**row, outcome="out of memory", peak_bytes=_peak(device))
    except torch.OutOfMemoryError:
        return Measurement(**row, outcome="out of memory", peak_bytes=_peak(device))
    return _measured(row, seconds, device, planned.operations, peak)


def sampling(
    skeleton: Skeleton, recipe: Recipe, steps: int, device: str, runs: int, peak: float, network: Network, clip: Any
) -> Measurement:
    """Measures sampling one clip in a number of steps, without decoding; ``clip`` is a batch of one."""
    video = recipe.video or skeleton.video
    levels = schedule(steps, recipe.shift or skeleton.shift).tolist()

    @torch.no_grad()
    def run() -> None:
        ode(network.velocity, clip.cond, levels, lambda _: clip.x0_BCTHW)

    with torch.no_grad():
        network.velocity(clip.x0_BCTHW, torch.ones(1, device=device), clip.cond)
    _reset_peak(device)
    seconds = [_timed(run, device) for _ in range(runs)]
    row = {
        "what": "sampling",
        "method": "any",
        "video": f"{video.height}x{video.width}x{video.num_frames}",
        "steps": steps,
        "clips": 1,
    }
    return _measured(row, seconds, device, steps * operations_of_a_pass(skeleton, recipe, device), peak)


def operations_of_a_pass(skeleton: Skeleton, recipe: Recipe, device: str) -> float:
    """Floating point operations of one network evaluation on one clip."""
    from w2svd_bench.registry import METHODS

    return Plan(
        Setup.of(METHODS.get(recipe.method), recipe, skeleton, Machine.here(1, device), recipe.video)
    ).generator_forward


def _measured(row: dict[str, Any], seconds: list[float], device: str, operations: float, peak: float) -> Measurement:
    median = statistics.median(seconds)
    return Measurement(
        **{**row, "operations": operations},
        outcome="measured",
        seconds=median,
        spread=max(seconds) - min(seconds),
        runs=len(seconds),
        peak_bytes=_peak(device),
        share=operations / median / peak,
    )


def _timed(run: Callable[[], Any], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
