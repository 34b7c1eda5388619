"""Trains the miniature's teacher by flow matching on the train split of the procedural portraits.

Axes: B batch, C channels, T latent frames, H, W latent pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from w2svd_bench.flow import add_noise
from w2svd_bench.types import Cond, Velocity

Log = Callable[[str], None]


@dataclass(frozen=True)
class TeacherPlan:
    """How the teacher is trained: iterations, batch, learning rate, and the logit-normal law of noise levels."""

    iterations: int = 32_000
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup: int = 200
    ema: float = 0.9995
    level_mean: float = 0.3
    level_std: float = 1.2
    seed: int = 0

    def rate(self, iteration: int) -> float:
        """Warm-up, constant for half of the run, then a cosine down to 1 %."""
        if iteration < self.warmup:
            return self.learning_rate * (iteration + 1) / self.warmup
        progress = max(0.0, (iteration / self.iterations - 0.5) * 2)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_teacher(
    model: nn.Module,
    velocity: Velocity,
    latents_NCTHW: Tensor,
    cond_of: Callable[[Tensor], Cond],
    plan: TeacherPlan,
    folder: Path,
    log: Log,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Minimises ``|| v(x_t, t, c) - (eps - x0) ||^2``; goes on from the last checkpoint in ``folder``.

    Returns:
        the weights of the exponential moving average, by parameter name.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = _resume(model, optimizer, average, folder)
    if 0 < first < plan.iterations:
        log(f"teacher: goes on after iteration {first}, and the seconds start again")
    start, window = time.perf_counter(), []
    for iteration in range(first, plan.iterations):
        generator = torch.Generator().manual_seed(plan.seed * 10_000_019 + iteration)
        rows = torch.randint(len(latents_NCTHW), (plan.batch_size,), generator=generator)
        x0 = latents_NCTHW[rows].float().to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        t = torch.sigmoid(plan.level_mean + plan.level_std * torch.randn(plan.batch_size, generator=generator)).to(
            device
        )
        loss = (velocity(add_noise(x0, noise, t), t, cond_of(rows)) - (noise - x0)).square().mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the teacher's loss is {loss.item()} at iteration {iteration}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(iteration)
        optimizer.step()
        decay = min(plan.ema, (iteration + 1) / (iteration + 10))
        with torch.no_grad():
            for name, p in model.named_parameters():
                average[name].lerp_(p, 1 - decay)
        window.append(loss.item())
        if (iteration + 1) % 500 == 0:
            mean = sum(window) / len(window)
            seconds = time.perf_counter() - start
            log(f"teacher iteration {iteration + 1}/{plan.iterations} loss {mean:.4f} {seconds:.0f} s")
            window.clear()
        if (iteration + 1) % 2000 == 0 or iteration + 1 == plan.iterations:
            _save(model, optimizer, average, iteration + 1, folder)
    return average


def _save(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], iteration: int, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in model.named_parameters()]
    state = {"iteration": torch.tensor(iteration)}
    state |= {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    state |= {f"average.{k}": v.contiguous() for k, v in average.items()}
    for name, moments in zip(names, optimizer.state_dict()["state"].values(), strict=True):
        state |= {f"optimizer.{name}.{k}": v for k, v in moments.items()}
    save_file(state, folder / "teacher.tmp")
    (folder / "teacher.tmp").rename(folder / "teacher.safetensors")


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], folder: Path) -> int:
    path = folder / "teacher.safetensors"
    if not path.exists():
        return 0
    state = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    for name in average:
        average[name].copy_(state[f"average.{name}"])
    moments = optimizer.state_dict()
    for i, (name, _) in enumerate(model.named_parameters()):
        moments["state"][i] = {k: state[f"optimizer.{name}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
    optimizer.load_state_dict(moments)
    return int(state["iteration"])
