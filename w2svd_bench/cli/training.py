"""``w2svd-bench train``."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import metric_names, names
from w2svd_bench.cli.launch import inside, relaunch
from w2svd_bench.cli.progress import Reporter, console, errors, quiet
from w2svd_bench.config import Recipe, apply_overrides, load_recipe, validated
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS
from w2svd_bench.train.cadence import CHECKPOINT_MINUTES
from w2svd_bench.types import TrainingData
from w2svd_bench.world import World

if TYPE_CHECKING:
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.train.validation import Validation


def train(
    method: Annotated[str, typer.Option("--method", help="The method; see `w2svd-bench methods`.")],
    backbone: options.Backbone = "mini",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe file instead of the method's own.")] = None,
    variant: options.Variant = "",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="settings.alpha_weak=0.5 and the like.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="A name for this variant in tables and folders.")] = None,
    data: options.Data = None,
    out: options.Out = options.RUNS,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    nproc: options.Processes = 1,
    validate_every: Annotated[
        int, typer.Option("--validate-every", min=0, help="Iterations between points of curves.jsonl; 0 makes none.")
    ] = 0,
    validate_clips: Annotated[int, typer.Option("--validate-clips", min=8, help="Clips of such a point.")] = 64,
    validate_metrics: Annotated[
        list[str] | None, typer.Option("--validate-metrics", help="Scores of such a point; by itself FID and FVD.")
    ] = None,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            "--checkpoint-minutes",
            min=0,
            help="Also save when this many have passed since; 0: never.",
        ),
    ] = CHECKPOINT_MINUTES,
    dry_run: options.DryRun = False,
) -> None:
    """Train a method on a backbone; the same command goes on where it was interrupted.

    With --validate-every N what is learned is sampled on the way, at 1 and 4 steps, from prompts of the validation
    split (of a cache: from those of its training clips), and curves.jsonl in the run's folder tells how good that is.
    Training is the same with and without it.

    Ctrl-C, a terminal that is closed, and SIGTERM and SIGUSR1, which schedulers send before they kill, make it save
    after the iteration under way, and stop; a second Ctrl-C ends it at once.

    Examples:
      w2svd-bench train --method w2svd
      w2svd-bench train --method w2svd --set settings.alpha_weak=0 settings.gt.kind=none --label lora-dmd
      w2svd-bench train --method w2svd --backbone hunyuan --data caches/portraits --nproc 8
      w2svd-bench train --method w2svd --backbone hunyuan --variant 544p --data caches/portraits-544p --nproc 8
    """
    if variant and recipe is not None:
        raise options.recipe_or_variant()
    options.load_plugin(plugin)
    method_class = METHODS.get(method)
    own = options.with_variant(options.recipe_name(backbone), variant)
    resolved = resolve_recipe(method_class, own, recipe, overrides or [])
    if label is None and (overrides or recipe or variant):
        label = f"{method}-{variant}" if variant and not overrides else method
        if not dry_run and not quiet() and not inside():
            console.print(f"note: this variant will be called {label!r} in tables; --label NAME gives it its own name")
    label = method if label is None else label
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", label) or label.startswith("results"):
        raise BenchError(
            f"label {label!r} can't name a run",
            "it names a folder beside the results: letters, digits, - _ and . only, and not results...",
            "use another name",
        )
    if dry_run:
        console.print(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False).rstrip(), highlight=False)
        return
    relaunch(nproc)
    looks = Looks(validate_every, validate_clips, metric_names(names(validate_metrics or [])))
    job = Job(method_class, backbone, data, seed, resolved, label, out, plugin, looks, checkpoint_minutes)
    world = World.start(options.resolve_device(device))
    _train(job, world)
    world.stop()  # not after an error: leaving waits for processes that sit in a collective


def resolve_recipe(method_class: Any, backbone: str, recipe: Path | None, overrides: list[str]) -> Recipe:
    """A recipe from the method or a file, with overrides, checked; its settings are completed with their defaults."""
    source = load_recipe(recipe) if recipe else method_class.recipe(backbone)
    resolved = validated(Recipe, apply_overrides(source, overrides), f"the recipe of {method_class.name}")
    if resolved.method != method_class.name:
        raise BenchError(
            f"the recipe is for method {resolved.method!r}, not {method_class.name!r}",
            f"its key `method` says so ({recipe or 'the one shipped with the method'})",
            f"use --method {resolved.method}, or another recipe",
        )
    settings = validated(method_class.Config, resolved.settings, f"the settings section of {method_class.name}")
    return resolved.model_copy(update={"settings": json.loads(settings.model_dump_json())})


@dataclass(frozen=True)
class Looks:
    """What is validated on the way: every so many iterations (0: never), on how many clips, by which metrics.

    The metrics are entry-point names; none stands for what suits the clips.
    """

    every: int
    clips: int
    metrics: list[str]


@dataclass(frozen=True)
class Job:
    """What `train` was asked to do, resolved."""

    method_class: Any
    source: str
    data: str | None
    seed: int
    recipe: Recipe
    label: str
    out: Path
    plugin: Path | None
    looks: Looks
    checkpoint_minutes: float


def _train(job: Job, world: World) -> None:
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.plan.foresee import decided, foresee
    from w2svd_bench.plan.table import summary
    from w2svd_bench.record import code
    from w2svd_bench.train.health import told
    from w2svd_bench.train.loop import train as train_run
    from w2svd_bench.train.run import Run, run_folder

    options.use_one_thread(world.device)
    recipe = job.recipe
    backbone = Backbone.for_recipe(job.source, world.device, recipe)
    method = job.method_class(validated(job.method_class.Config, recipe.settings, "settings"), backbone.side.shift)
    folder = run_folder(job.out, backbone.name, job.label, job.seed)
    was_finished = _is_finished(folder)
    with Reporter(silent=not world.lead) as report:
        clips = open_data(job.data, backbone, recipe, world, report) if method.roles() else None
        run = Run(
            method=method.name,
            backbone=backbone.name,
            label=job.label,
            seed=job.seed,
            config=recipe.model_dump(mode="json"),
            backbone_sha256=backbone.sha256,
            plugin=str(job.plugin) if job.plugin else None,
            code=code() | {"method": METHODS.code(method.name)},
            data=clips.name if clips is not None else "",
        )
        name = f"training {job.label} seed {job.seed}"
        foreseen = decided(backbone, job.method_class, recipe, world) if clips is not None else recipe

        def advice() -> str:
            return summary(foresee(backbone, job.method_class, foreseen, world))

        alarms: list[str] = []

        def say(line: str) -> None:
            alarms.append(line)
            if not quiet():
                errors.print(f"{name}: {line}", highlight=False, soft_wrap=True, markup=False)

        def tell(done: int, total: int, entry: dict[str, float]) -> None:
            loss = f"loss {entry.get('generator/loss', float('nan')):.4f}"
            report(name, done, total, ", ".join([loss, *(line.partition(":")[0] for line in alarms)]))

        validation = None
        if job.looks.every and clips is not None and not was_finished:
            validation = open_validation(job, backbone, world, report)
            run.validation = dict(validation.about)
        finished = train_run(
            method,
            backbone,
            clips,
            foreseen,
            run,
            folder,
            tell,
            world,
            advice,
            say,
            validation,
            job.checkpoint_minutes,
        )
    if quiet() or not world.lead:
        return
    if not method.roles():
        console.print(f"{method.name} needs no training; {folder} is ready for `w2svd-bench eval`", highlight=False)
    else:
        updates = ", ".join(f"{count} updates of {role}" for role, count in finished.updates.items()) or "no updates"
        held_out = "" if job.data in (None, "portraits") else f" --data {shlex.quote(str(job.data))}"
        console.print(
            f"{folder}: {'finished already, ' if was_finished else ''}{updates}; {finished.seconds:.0f} s; "
            f"next: w2svd-bench eval{held_out}",
            highlight=False,
            soft_wrap=True,
        )
        lines = told(finished.health)
        if was_finished and job.looks.every:
            lines.append("--validate-every did nothing: a finished run is left alone. Train it anew with --label NAME")
        learns = [role for role, spec in method.roles().items() if spec.optimizer is not None]
        idle = [role for role in learns if not finished.updates.get(role)]
        if idle:
            lines.append(
                f"warning: no update ever named {', '.join(idle)}, which should learn: see {method.name}.updates"
            )
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _is_finished(folder: Path) -> bool:
    """Whether there is a run that only has to be left alone."""
    from w2svd_bench.train.run import FILE, Run

    return (folder / FILE).is_file() and Run.load(folder).finished


def open_validation(job: Job, backbone: Backbone, world: World, report: Reporter) -> Validation:
    """What the average is held against on the way: prompts, and reference clips as metrics read them.

    The prompts are of the validation split of the procedural portraits, or of the training clips of a cache, whose
    other split is for the test alone.

    Raises:
        BenchError: a metric scores no sets of clips, or can't read clips of this size.
    """
    import numpy as np

    from w2svd_bench.data.cache import LatentCache
    from w2svd_bench.evaluate.cacheset import CacheSet
    from w2svd_bench.evaluate.evalset import ClipSet, PortraitSet
    from w2svd_bench.evaluate.grid import default_metrics
    from w2svd_bench.evaluate.references import readers, real_reference
    from w2svd_bench.evaluate.sampling import batch_size
    from w2svd_bench.metrics.base import CorpusMetric, Features
    from w2svd_bench.registry import METRICS
    from w2svd_bench.train.validation import Validation
    from w2svd_bench.types import Cond

    looks, data = job.looks, job.data or backbone.side.data
    if data in (None, "portraits"):
        skipped = backbone.side.num_frames - backbone.decoded_frames
        prompts: ClipSet = PortraitSet(backbone.side, looks.clips, "validation", skipped)
        asked = prompts.name
    else:
        cache = LatentCache.open(Path(data), backbone, "train")
        prompts, asked = CacheSet(cache, min(looks.clips, len(cache))), cache.name
    size = prompts.describe()
    chosen = looks.metrics or default_metrics(size)
    metrics = world.together(lambda: [METRICS.get(name)(world.device) for name in chosen])  # type: ignore[call-arg]
    sets = [metric for metric in metrics if isinstance(metric, CorpusMetric)]
    nets, refused = readers(prompts, sets, None)
    if len(sets) < len(metrics) or refused:
        others = [metric.name for metric in metrics if not isinstance(metric, CorpusMetric)]
        raise BenchError(
            "these metrics can't be validated with",
            "; ".join([*(f"{name} scores single clips" for name in others), *refused.values()]),
            "name others with --validate-metrics, such as fid fvd",
        )
    batch = batch_size(backbone.latent_shape)
    reference = real_reference(
        prompts, sets, None, lambda done, total: report("reference clips", done, total), world, batch
    )
    count = len(prompts.prompts)
    batches = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    cond = Cond.collate([prompts.conditioning(backbone, indices) for indices in batches])
    if backbone.device.startswith("cuda"):
        cond = cond.to("cpu")
        backbone.release_encoders()

    def read(clips_BFHWC: np.ndarray) -> dict[str, np.ndarray]:
        return {net_id: net(clips_BFHWC) for net_id, net in nets.items()}

    def compare(features: Any) -> dict[str, float]:
        made = {net_id: Features(values, prompts.keys) for net_id, values in features.items()}
        return {
            metric.name: metric.compare(made[metric.net.id], reference.features[metric.net.id]).value for metric in sets
        }

    about = {
        "clips": count,
        "prompts": asked,
        "prompts_sha256": size.prompts_sha256,
        "reference": size.reference,
        "metrics": {metric.name: metric.id for metric in sets},
    }
    return Validation(looks.every, cond, read, compare, batch, about)


def open_data(data: str | None, backbone: Any, recipe: Recipe, world: World, report: Reporter) -> TrainingData:
    """The training clips: a prepared cache, or the procedural portraits; `BenchError` where neither was named."""
    from w2svd_bench.data.cache import LatentCache
    from w2svd_bench.data.latents import portrait_pool

    data = data or backbone.side.data
    if data is None:
        raise BenchError(
            f"there is nothing to train {backbone.name} on",
            "no training clips were named, and this backbone has none of its own",
            "prepare some (w2svd-bench data prepare) and give the folder with --data, or try --data portraits",
        )
    if data != "portraits":
        return LatentCache.open(Path(data), backbone)
    count = recipe.training.pool_clips

    def encode() -> None:
        portrait_pool(backbone, "train", count, lambda done, n: report("encoding training clips", done, n))

    world.agree(encode)  # by one process; the others find them in the cache
    return portrait_pool(backbone, "train", count)
