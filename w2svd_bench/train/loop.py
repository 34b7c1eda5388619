"""The training loop: it owns optimisers, backward, clipping, finite checks, averages, logs and checkpoints.

What is learned when is the method's (`Method.updates`); here every update is one optimiser step of one role. With
several processes, each takes its part of every global batch and all of them take the same steps: random numbers belong
to the samples of the global batch (`Rng`), so neither processes nor micro batches change what is computed.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.export import Story, export_generator
from w2svd_bench.backbones.roles import Roles
from w2svd_bench.backbones.sharding import local
from w2svd_bench.config import Optimizer, Recipe
from w2svd_bench.data.order import rows_of
from w2svd_bench.errors import BenchError, UnsupportedSteps
from w2svd_bench.matching import FAKE, REAL
from w2svd_bench.method import GENERATOR, Method, Update
from w2svd_bench.registry import changed
from w2svd_bench.rng import Rng
from w2svd_bench.train import checkpoint
from w2svd_bench.train.cadence import CHECKPOINT_MINUTES, STOPPING, Cadence, stopped
from w2svd_bench.train.contract import check_loss, check_roles, check_update
from w2svd_bench.train.health import FAKE_LOSS, RAW, STD, TEACHER_CLIPS, WATCHED, Vitals, Watchable, alarm
from w2svd_bench.train.log import CURVES, Log
from w2svd_bench.train.memory import forget_peak, peak_memory_bytes
from w2svd_bench.train.run import BEFORE, GENERATOR_FOLDER, Run, alone
from w2svd_bench.train.signals import noted
from w2svd_bench.train.validation import Curves, Validation, Validator
from w2svd_bench.types import TEACHER, Batch, TrainingData, average_of
from w2svd_bench.world import ALONE, World, device_name

Report = Callable[[int, int, dict[str, float]], None]
Advice = Callable[[], str]
Say = Callable[[str], None]
# What may differ when a run goes on: how much memory it takes, and nothing that it computes but for rounding.
FREE_TO_CHANGE = frozenset(
    {f"engine.{name}" for name in ("attention", "compile", "gradient_checkpointing", "sharding")}
    | {"training.micro_batch"}
)
WATCH, ALPHA = 0x57415443, 0x414C5048  # key the numbers that health is measured with: no iteration has these
ALPHA_EVERY = 10  # lines of the log between two measurements of alpha
OFFERED_STEPS = (1, 2, 4, 8)  # what a generator's card says how to sample, as far as its method can


class Trainer:
    """One method on one backbone: build it, then `step` or `fit`.

    Args:
        method: freshly made; its ``models`` are filled in here.
        backbone: serves this trainer alone, for roles add adapters to its transformer.
        data: the training clips.
        recipe: iterations, batch size, intervals and engine.
        seed: of every random number.
        world: the processes that train together.
        advice: what to tell a user whose memory was not enough, such as the plan's summary.

    Raises:
        BenchError: the batch can't be shared evenly by the processes, or the attention gives no gradients.
    """

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        data: TrainingData,
        recipe: Recipe,
        seed: int,
        world: World = ALONE,
        advice: Advice | None = None,
    ) -> None:
        self.method, self.data, self.recipe, self.seed, self.world = method, data, recipe, seed, world
        self.backbone = backbone
        self._advice = advice
        self._part = world.part(recipe.training.batch_size)
        specs = method.roles()
        check_roles(method, specs)
        with _enough_memory(advice):
            network = backbone.network()
            network.check_trainable()
            self.roles = Roles(network, specs, seed, recipe.engine, world)
        method.models = self.roles
        self.settings: dict[str, Optimizer] = {n: s.optimizer for n, s in specs.items() if s.optimizer is not None}
        self.optimizers = {
            name: torch.optim.AdamW(
                self.roles.parameters(name).values(), lr=o.learning_rate, betas=o.betas, weight_decay=o.weight_decay
            )
            for name, o in self.settings.items()
        }
        self.counters = checkpoint.Counters()
        self._evaluations_before = 0  # those of the processes that these go on from
        self._evaluations_apart, self._seconds_apart = 0, 0.0  # spent on looking at the run, not on training it
        self._watched: Watchable | None = method if isinstance(method, Watchable) and FAKE in specs else None
        self._seen: dict[str, list[float]] = defaultdict(list)  # of this iteration's updates
        self.vitals: Vitals | None = None

    def step(self, iteration: int, log: Log | None = None) -> None:
        """One iteration: the method's updates in order."""
        self._seen.clear()
        with _enough_memory(self._advice):
            for index, update in enumerate(self.method.updates(iteration)):
                self._update(update, iteration, index, log)
        self.counters.iteration = iteration + 1
        own = self.roles.evaluations - self._evaluations_apart
        self.counters.evaluations = self._evaluations_before + own * self.world.size
        self.counters.peak_memory_bytes = max(self.counters.peak_memory_bytes, peak_memory_bytes())

    def _update(self, update: Update, iteration: int, index: int, log: Log | None) -> None:
        check_update(self.method, update, self.settings)
        role, settings, optimizer = update.role, self.settings[update.role], self.optimizers[update.role]
        self.roles.learn(role)
        loss, watched = self._accumulate(update, iteration, index, log)
        parameters = self.roles.parameters(role).values()
        gradients = [p.grad for p in parameters if p.grad is not None]
        # Sharded gradients arrive as means already; replicas, and heads, are averaged here.
        self.world.mean_([loss, *(g for g in gradients if not isinstance(g, DTensor)), *watched.values()])
        norm = global_norm(gradients, self.world)
        value = float(loss)
        if not math.isfinite(value) or not math.isfinite(norm):  # means, so every process sees the same
            raise BenchError(
                f"training diverged: the loss of role {role!r} is {value:g} (gradient norm {norm:g})",
                f"iteration {iteration} of {self.recipe.training.iterations}; the last checkpoint is untouched",
                f"lower the learning_rate of {role!r} in the settings; log.jsonl shows when it began",
            )
        if norm > settings.clip:
            for gradient in gradients:
                local(gradient).mul_(settings.clip / norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(iteration, self.recipe.training.iterations)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, one in watched.items():
            self._seen[name].append(float(one))
        done = self.counters.updates.get(role, 0)
        self.roles.update_average(role, done)
        self.counters.updates[role] = done + 1
        if log is not None:
            log.add(role, {"loss": value, "gradient_norm": norm})

    def _accumulate(
        self, update: Update, iteration: int, index: int, log: Log | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds up the gradients of this process's part of the global batch; returns the part's mean loss, and the means
        of what health is told from.
        """
        drawn = sum(self.counters.updates.values())
        clips = rows_of(len(self.data), self.recipe.training.batch_size, drawn, self.seed)
        total = torch.zeros((), device=self.world.device)
        watched: dict[str, Tensor] = {}
        names = WATCHED.get(update.role, ()) if self._watched is not None else ()
        for rows, weight in self._micro_batches():
            loss = update.loss(
                self.data.batch([clips[row] for row in rows]), Rng(self.seed, iteration, index, rows=rows)
            )
            check_loss(self.method, update.role, loss)
            (loss.total * weight).backward()
            total += loss.total.detach().to(total) * weight
            for name in (name for name in names if name in loss.logs):
                value = torch.as_tensor(loss.logs[name]).detach().to(total) * weight
                watched[name] = watched[name] + value if name in watched else value
            if log is not None:
                log.add(update.role, loss.logs, weight)
        return total, watched

    def _micro_batches(self) -> Iterator[tuple[range, float]]:
        """The rows of this process's part of a global batch, a few at a time, with their share of the part."""
        part = self._part
        size = self.recipe.training.micro_batch or len(part)
        for start in range(0, len(part), size):
            rows = part[start : start + size]
            yield rows, len(rows) / len(part)

    def fit(
        self,
        folder: Path,
        report: Report,
        say: Say | None = None,
        validation: Validation | None = None,
        checkpoint_minutes: float = CHECKPOINT_MINUTES,
    ) -> None:
        """Trains to the end from the folder's last checkpoint, or from the start; the leading process reports.

        Args:
            say: told, in the leading process, that the collapse alarm rings, when it does.
            validation: what to measure on the way, into ``curves.jsonl``.
            checkpoint_minutes: after which a checkpoint is due, beside those of the recipe; 0 is never.

        Raises:
            BenchError: a process was asked to end (`STOPPING`); what was learned is in the checkpoint.
            KeyboardInterrupt: likewise, by an interrupt.
        """
        training, world = self.recipe.training, self.world
        self.counters = checkpoint.restore(folder, self.roles, self.optimizers, world)
        self._evaluations_before = self.counters.evaluations
        log = Log(folder, self.counters.iteration, world)
        before, start = self.counters.seconds, time.perf_counter()
        self._seconds_apart = 0.0
        with _enough_memory(self._advice), self._apart():
            self._watch()
            curves = None if validation is None else self._curves(validation, folder)
        with noted(STOPPING) as asked:
            cadence = Cadence(training.checkpoint_every, checkpoint_minutes, asked, world)
            for iteration in range(self.counters.iteration, training.iterations):
                self.step(iteration, log)
                done = iteration + 1
                last = done == training.iterations
                self.counters.seconds = before + time.perf_counter() - start - self._seconds_apart
                self._follow(done, log, say if world.lead else None)
                if done % training.log_every == 0 or last:
                    peak, pace = self.counters.peak_memory_bytes, self.counters.seconds / done
                    entry = log.write(done, peak, seconds_per_iteration=pace)
                    if world.lead:
                        report(done, training.iterations, entry)
                if curves is not None and (done % curves.every == 0 or last):
                    with _enough_memory(self._advice), self._apart():
                        self._validate(curves, done)
                due, stopping = cadence.due(done, training.iterations)
                if due:
                    self.counters.vitals = {} if self.vitals is None else asdict(self.vitals)
                    self.counters.peak_memory_bytes = max(world.gather(self.counters.peak_memory_bytes))
                    checkpoint.save(folder, self.roles, self.optimizers, self.counters, world)
                if stopping:
                    raise stopped(stopping, done, training.iterations, folder)

    def _watch(self) -> None:
        """Goes on watching from the checkpoint, or begins with the teacher's own loss on real latents."""
        self.vitals = Vitals(**self.counters.vitals) if self.counters.vitals else None
        watched = self._watched
        if watched is None or self.vitals is not None:
            return

        def measure(batch: Batch, rng: Rng) -> list[Tensor]:
            return [watched.teacher_loss(batch, rng), batch.x0_BCTHW.float().std()]

        batches = -(-TEACHER_CLIPS // self.recipe.training.batch_size)
        found = [self._mean(measure, draw, WATCH) for draw in range(batches)]
        loss, std = (statistics.fmean(values) for values in zip(*found, strict=True))
        self.vitals = Vitals(loss, std, updates=self.counters.iteration)

    def _follow(self, done: int, log: Log, say: Say | None) -> None:
        """Takes an iteration into the vitals; measures alpha now and then, and at the end."""
        watched, vitals = self._watched, self.vitals
        if watched is None or vitals is None:
            return
        if vitals.add({name: statistics.fmean(values) for name, values in self._seen.items()}) and say is not None:
            say(alarm(vitals))
        logged = done % (self.recipe.training.log_every * ALPHA_EVERY) == 0
        if (logged or done == self.recipe.training.iterations) and watched.weak_strength():
            with _enough_memory(self._advice), self._apart():
                (vitals.alpha_cosine,) = self._mean(lambda batch, rng: [watched.alpha_cosine(batch, rng)], 0, ALPHA)
            if logged:
                log.add(REAL, {"alpha_cosine": vitals.alpha_cosine})

    @torch.no_grad()
    def _mean(self, measure: Callable[[Batch, Rng], list[Tensor]], draw: int, key: int) -> list[float]:
        """Means over a global batch that is the same in every run on these data: its clips and its noise are fixed."""
        clips = rows_of(len(self.data), self.recipe.training.batch_size, draw, seed=0)
        total: Tensor | float = 0.0
        for rows, weight in self._micro_batches():
            batch = self.data.batch([clips[row] for row in rows])
            total = total + torch.stack(measure(batch, Rng(key, draw, key, rows=rows))).float() * weight
        assert isinstance(total, Tensor)
        self.world.mean_([total])
        return [float(value) for value in total]

    def _curves(self, validation: Validation, folder: Path) -> Curves:
        validator = Validator(validation, self.method, self.backbone, self.roles[TEACHER], self.world)
        curves = Curves(validator, folder, self.counters.iteration)
        if self.counters.iteration == 0:
            self._validate(curves, 0)
        return curves

    def _validate(self, curves: Curves, iteration: int) -> None:
        """A point of the curves: what the average, which is what will be exported, samples now."""
        average = average_of(GENERATOR)
        velocity = self.roles[average if average in self.roles else GENERATOR]
        followed = {name: None if self.vitals is None else self.vitals.mean(name) for name in (RAW, FAKE_LOSS, STD)}
        curves.measure(iteration, velocity, {"seconds": self.counters.seconds, **followed})

    def health(self) -> dict[str, float | int | None]:
        """How the run fared so far, as `Health.plain` gives it; empty for a method without a fake."""
        if self._watched is None or self.vitals is None:
            return {}
        return self.vitals.health(self._watched.weak_strength()).plain()

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What is done in here is no training: neither its seconds nor its network evaluations are counted.

        Nor is a GPU's peak in here, or before the first time: `step` notes that of training.
        """
        evaluations, start = self.roles.evaluations, _now(self.world.device)
        try:
            yield
        finally:
            self._evaluations_apart += self.roles.evaluations - evaluations
            self._seconds_apart += _now(self.world.device) - start
            forget_peak()


@torch.no_grad()
def global_norm(gradients: Iterable[Tensor], world: World) -> float:
    """The norm of all of a role's gradients, whole ones and sharded ones, over all processes."""
    squares = {True: [torch.zeros((), device=world.device)], False: [torch.zeros((), device=world.device)]}
    for gradient in gradients:
        squares[isinstance(gradient, DTensor)].append(local(gradient).float().square().sum())
    sharded, whole = torch.stack(squares[True]).sum(), torch.stack(squares[False]).sum()
    world.mean_([sharded])
    return float((sharded * world.size + whole).sqrt())


def _now(device: str) -> float:
    """The time in seconds once the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _enough_memory(advice: Advice | None) -> Iterator[None]:
    """Turns a GPU that is full into an error that says what would help."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = ". ".join(str(error).split(". ")[:2])  # that it is full, and how much was asked for
        raise BenchError(
            "the GPU's memory is not enough for this training",
            said if advice is None else f"{said}\n{advice()}",
            "use engine.gradient_checkpointing=true, a training.micro_batch of 1, engine.sharding=fsdp on more GPUs, a "
            "LoRA generator, or smaller clips; `w2svd-bench plan` tells beforehand. Where it is short of little, the "
            "variable PYTORCH_ALLOC_CONF=expandable_segments:True loses less memory between tensors",
        ) from error


def train(
    method: Method,
    backbone: Backbone,
    data: TrainingData | None,
    recipe: Recipe,
    run: Run,
    folder: Path,
    report: Report,
    world: World = ALONE,
    advice: Advice | None = None,
    say: Say | None = None,
    validation: Validation | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> Run:
    """Trains a run to the end and exports its generator; a finished run is left as it is.

    All processes call it together, and the leading one writes. ``data`` may be None for a method without roles, which
    only leaves a run for evaluation to find.

    Raises:
        BenchError: the folder holds another run, another process trains in it, or this one was asked to stop.
    """
    with alone(folder, world):
        earlier = world.agree(lambda: _begin(run, folder, method))
        if earlier is not None:
            return earlier
        if not method.roles():
            run.weights_sha256 = backbone.teacher_sha256
        else:
            assert data is not None
            trainer = Trainer(method, backbone, data, recipe, run.seed, world, advice)
            trainer.fit(folder, report, say, validation, checkpoint_minutes)
            counters = trainer.counters
            run.iterations, run.updates = counters.iteration, counters.updates
            run.network_evaluations, run.seconds = counters.evaluations, counters.seconds
            run.peak_memory_bytes = counters.peak_memory_bytes
            name = device_name(world.device)
            run.device = name if world.size == 1 or name == "cpu" else f"{world.size} x {name}"
            run.health = trainer.health()
            written = export_generator(
                trainer.roles,
                method.roles()[GENERATOR],
                backbone,
                folder / GENERATOR_FOLDER,
                _story(method, run),
                world.lead,
            )
            run.weights_sha256 = world.agree(lambda: written)
        run.finished = True
        world.agree(lambda: run.save(folder))
        return run


def _begin(run: Run, folder: Path, method: Method) -> Run | None:
    """Starts or goes on with a run folder; the run that is there, if it is finished.

    A run that ended before its first checkpoint left nothing to go on with: it gives way to one with other settings.
    """
    if (folder / "run.json").is_file():
        earlier = Run.load(folder)
        try:
            _refuse_other(earlier, run, folder, method)
        except BenchError:
            if earlier.finished or checkpoint.exists(folder):
                raise
            (folder / CURVES).unlink(missing_ok=True)
        else:
            run.validation = run.validation or earlier.validation  # what the curves so far were measured with
            if earlier.finished:
                return earlier
            run.code = _with_earlier(run.code, earlier.code)
    run.save(folder)
    return None


def _with_earlier(code: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """The code of a run that is gone on with: that of the processes before it, oldest first, where it was another."""
    last = {key: value for key, value in earlier.items() if key != BEFORE}
    before = list(earlier.get(BEFORE, []))
    if last and last not in before and (before or last != code):
        before.append(last)
    return code | ({BEFORE: before} if before else {})


def _story(method: Method, run: Run) -> Story:
    """What a generator's card tells."""
    samplers = {}
    for steps in OFFERED_STEPS:
        try:
            samplers[steps] = method.sampler(steps)
        except UnsupportedSteps:
            continue
    cost = {
        "iterations": run.iterations,
        "updates": run.updates,
        "network_evaluations": run.network_evaluations,
        "seconds": round(run.seconds),
    }
    return Story(run.method, run.label, samplers, run.data, cost)


def _refuse_other(earlier: Run, run: Run, folder: Path, method: Method) -> None:
    """Going on with another recipe would leave a run that no recipe describes.

    A setting that came after the earlier run has the value that it had while there was no choice: its default.
    """
    if earlier.backbone_sha256 != run.backbone_sha256:
        raise BenchError(
            f"{folder} holds a run on another {run.backbone}",
            "the backbone's teacher, codec or text encoders have changed since",
            "give this run another name with --label NAME, or delete that folder",
        )
    old, new = (
        _flat(_completed(one.config, method)) | {"method": one.method, "seed": one.seed, "data": one.data}
        for one in (earlier, run)
    )
    if (folder / CURVES).is_file() and run.validation and earlier.validation:
        old, new = old | _flat({"validation": earlier.validation}), new | _flat({"validation": run.validation})
    codes = [one.code.get("method", "") for one in (earlier, run)]
    if changed(*codes):
        old, new = old | {"code": codes[0]}, new | {"code": codes[1]}
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and k not in FREE_TO_CHANGE)
    if differing:
        shown = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} now)" for k in differing[:4])
        raise BenchError(
            f"{folder} holds a run with other settings",
            f"it differs in {shown}",
            "give this one another name with --label NAME, or delete that folder",
        )


def _completed(config: dict[str, Any], method: Method) -> dict[str, Any]:
    """With the settings that it says nothing of; as it is, where this version can't read it."""
    try:
        return {**config, "settings": method.Config.model_validate(config["settings"]).model_dump(mode="json")}
    except (KeyError, ValueError):
        return config


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): list(tree) if isinstance(tree, tuple) else tree}
