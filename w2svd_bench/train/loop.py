"""The training loop: it owns optimisers, backward, clipping, finite checks, averages, logs and checkpoints.

What is learned when is the method's (`Method.updates`); here every update is one optimiser step of one role.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.export import export_generator
from w2svd_bench.backbones.roles import Roles
from w2svd_bench.config import Optimizer, Recipe
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.errors import BenchError
from w2svd_bench.method import GENERATOR, Method, Update
from w2svd_bench.rng import Rng
from w2svd_bench.train import checkpoint
from w2svd_bench.train.log import Log
from w2svd_bench.train.memory import peak_memory_bytes
from w2svd_bench.train.run import GENERATOR_FOLDER, Run

Report = Callable[[int, int, dict[str, float]], None]


class Trainer:
    """One method on one backbone: build it, then `step` or `fit`.

    Args:
        method: freshly made; its ``models`` are filled in here.
        backbone: serves this trainer alone, for roles add adapters to its transformer.
        pool: the training latents.
        recipe: iterations, batch size and intervals.
        seed: of every random number.
    """

    def __init__(self, method: Method, backbone: Backbone, pool: LatentPool, recipe: Recipe, seed: int) -> None:
        self.method, self.pool, self.recipe, self.seed = method, pool, recipe, seed
        self.backbone = backbone
        specs = method.roles()
        self.roles = Roles(backbone.network(), specs, seed)
        if recipe.training.gradient_checkpointing:
            self.roles.enable_checkpointing()
        method.models = self.roles
        self.settings: dict[str, Optimizer] = {n: s.optimizer for n, s in specs.items() if s.optimizer is not None}
        self.optimizers = {
            name: torch.optim.AdamW(
                self.roles.parameters(name).values(), lr=o.learning_rate, betas=o.betas, weight_decay=o.weight_decay
            )
            for name, o in self.settings.items()
        }
        self.counters = checkpoint.Counters()
        self._evaluations_before = 0  # those of the processes that this one goes on from

    def step(self, iteration: int, log: Log | None = None) -> None:
        """One iteration: the method's updates in order."""
        for index, update in enumerate(self.method.updates(iteration)):
            self._update(update, iteration, index, log)
        self.counters.iteration = iteration + 1
        self.counters.evaluations = self._evaluations_before + self.roles.evaluations

    def _update(self, update: Update, iteration: int, index: int, log: Log | None) -> None:
        role, settings, optimizer = update.role, self.settings[update.role], self.optimizers[update.role]
        self.roles.learn(role)
        batch = self.pool.batch(self.recipe.training.batch_size, self.seed, iteration, index)
        loss = update.loss(batch, Rng(self.seed, iteration, index, 1))
        loss.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.roles.parameters(role).values(), settings.clip)
        value = float(loss.total.detach())
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise BenchError(
                f"training diverged: the loss of role {role!r} is {value:g} (gradient norm {float(norm):g})",
                f"iteration {iteration} of {self.recipe.training.iterations}; the last checkpoint is untouched",
                f"lower the learning_rate of {role!r} in the settings; log.jsonl shows when it began",
            )
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(iteration, self.recipe.training.iterations)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = self.counters.updates.get(role, 0)
        self.roles.update_average(role, done)
        self.counters.updates[role] = done + 1
        if log is not None:
            log.add(role, {"loss": value, "gradient_norm": norm, **loss.logs})

    def fit(self, folder: Path, report: Report) -> None:
        """Trains to the end from the folder's last checkpoint, or from the start."""
        training = self.recipe.training
        self.counters = checkpoint.restore(folder, self.roles, self.optimizers)
        self._evaluations_before = self.counters.evaluations
        log = Log(folder, self.counters.iteration)
        before, start = self.counters.seconds, time.perf_counter()
        for iteration in range(self.counters.iteration, training.iterations):
            self.step(iteration, log)
            done = iteration + 1
            self.counters.seconds = before + time.perf_counter() - start
            if done % training.log_every == 0 or done == training.iterations:
                per_iteration = self.counters.seconds / done
                entry = log.write(done, seconds_per_iteration=per_iteration, peak_memory_bytes=peak_memory_bytes())
                report(done, training.iterations, entry)
            if done % training.checkpoint_every == 0 or done == training.iterations:
                checkpoint.save(folder, self.roles, self.optimizers, self.counters)


def train(
    method: Method, backbone: Backbone, pool: LatentPool | None, recipe: Recipe, run: Run, folder: Path, report: Report
) -> Run:
    """Trains a run to the end and exports its generator; a finished run is left as it is.

    ``pool`` may be None for a method without roles, which only leaves a run for evaluation to find.
    """
    if (folder / "run.json").is_file():
        earlier = Run.load(folder)
        _refuse_other(earlier, run, folder)
        if earlier.finished:
            return earlier
    run.save(folder)
    if not method.roles():
        run.weights_sha256 = backbone.teacher_sha256
    else:
        assert pool is not None
        trainer = Trainer(method, backbone, pool, recipe, run.seed)
        trainer.fit(folder, report)
        run.weights_sha256 = export_generator(
            trainer.roles, method.roles()[GENERATOR], backbone, folder / GENERATOR_FOLDER
        )
        counters = trainer.counters
        run.iterations, run.updates = counters.iteration, counters.updates
        run.network_evaluations, run.seconds = counters.evaluations, counters.seconds
        run.peak_memory_bytes = peak_memory_bytes()
    run.finished = True
    run.save(folder)
    return run


def _refuse_other(earlier: Run, run: Run, folder: Path) -> None:
    """Going on with another recipe would leave a run that no recipe describes."""
    old, new = _flat(earlier.config), _flat(run.config)
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    differing += [name for name in ("method", "seed") if getattr(earlier, name) != getattr(run, name)]
    if earlier.backbone_sha256 != run.backbone_sha256:
        raise BenchError(
            f"{folder} holds a run on another {run.backbone}",
            "the backbone's teacher, codec or text encoders have changed since",
            "give this run another name with --label NAME, or delete that folder",
        )
    if differing:
        old |= {"method": earlier.method, "seed": earlier.seed}
        new |= {"method": run.method, "seed": run.seed}
        shown = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} now)" for k in differing[:4])
        raise BenchError(
            f"{folder} holds a run with other settings",
            f"it differs in {shown}",
            "give this one another name with --label NAME, or delete that folder",
        )


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): list(tree) if isinstance(tree, tuple) else tree}
