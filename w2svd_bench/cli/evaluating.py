"""``w2svd-bench eval``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import metric_names, names, positive_integers
from w2svd_bench.cli.boards import show
from w2svd_bench.cli.launch import relaunch
from w2svd_bench.cli.progress import Reporter, errors, quiet
from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.world import World

if TYPE_CHECKING:
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.evaluate.evalset import ClipSet

PORTRAITS = "portraits"
AGAINST = ("real", "teacher")


@dataclass(frozen=True)
class Asked:
    """The eval set that was asked for, as the options say it."""

    data: str | None
    videos: Path | None
    split: str
    clips: int
    references: int | None = None

    def __post_init__(self) -> None:
        if self.split not in ("test", "validation"):
            raise BenchError(
                f"split {self.split!r} is not for evaluation",
                "prompts come from test or validation",
                "use --split test",
            )
        if self.cache is not None and self.split != "test":
            why = "a cache has one split beside that for training: the held-out clips, test"
            raise BenchError(f"split {self.split!r} can't be had of a cache", why, "leave --split out")
        if self.cache is not None and self.references is not None:
            why = "a cache's reference is made of the prompts' own clips"
            raise BenchError("--reference-clips goes with the procedural portraits", why, "leave it out")
        if self.cache is None and self.videos is not None:
            why = "the procedural portraits are drawn, not read"
            raise BenchError("--videos goes with the cache that was prepared from them", why, "add --data CACHE")

    @property
    def cache(self) -> Path | None:
        """The folder of the latent cache; None for the procedural portraits."""
        return None if self.data in (None, PORTRAITS) else Path(self.data)

    def open(self, source: str, device: str, run: Path) -> tuple[Backbone, ClipSet]:
        """The eval set, and the backbone at the size of its clips: a cache's own, or that of the run's recipe."""
        from w2svd_bench.backbones.base import Backbone
        from w2svd_bench.evaluate.cacheset import CacheSet
        from w2svd_bench.evaluate.evalset import PortraitSet
        from w2svd_bench.evaluate.sampling import recipe_of
        from w2svd_bench.train.run import Run

        if self.cache is not None:
            held_out = CacheSet.open(self.cache, source, device, self.videos, self.clips)
            return held_out.cache.backbone, held_out
        backbone = Backbone.load(source, device, video=recipe_of(Run.load(run), run).video)  # the teacher as it is
        skipped = backbone.side.num_frames - backbone.decoded_frames
        return backbone, PortraitSet(backbone.side, self.clips, self.split, skipped, self.references)


@dataclass(frozen=True)
class Measures:
    """What to score by (entry-point names; None: what suits the clips), and against what."""

    metrics: list[str] | None
    against: list[str]

    @classmethod
    def of(cls, metrics: list[str] | None, against: list[str] | None) -> Measures:
        """Reads the options; raises `BenchError` for a name that is none."""
        compared = list(dict.fromkeys(names(against or [])) or AGAINST)
        for name in compared:
            if name not in AGAINST:
                raise unknown_name("reference", name, AGAINST)
        if "real" not in compared:
            raise BenchError(
                "sets can't be compared with the teacher alone",
                "the rows of real clips and the diagnostics stand on the real reference",
                "use --against real teacher",
            )
        return cls(metric_names(names(metrics)) if metrics else None, compared)


def evaluate(
    steps: options.Steps = None,
    methods: Annotated[list[str] | None, typer.Option("--methods", help="Only these labels.")] = None,
    backbone: options.Backbone = "mini",
    data: options.Data = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="The folder that the cache of --data was prepared from.")
    ] = None,
    clips: options.Clips = options.DEFAULT_CLIPS,
    split: options.Split = "test",
    metrics: options.Metrics = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="What clips are compared with: real, teacher, or (by itself) both."),
    ] = None,
    reference_clips: Annotated[
        int | None,
        typer.Option(
            "--reference-clips", min=8, help="Reference portraits, 2048 by itself; fewer are quicker to read."
        ),
    ] = None,
    weights_dir: options.WeightsFolder = None,
    vbench_python: options.VBenchPython = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Clips at a time; by itself as many as suit their size.")
    ] = None,
    out: options.Out = options.RUNS,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    nproc: options.Processes = 1,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Evaluate every run found at each number of steps, and end with the table; cells that are done are skipped.

    Sets of clips are compared with real clips and with clips that the teacher makes of the same prompts in 28 steps
    from other noise; rows of real clips and of the teacher against itself show what a perfect generator would get.
    Scores that a cell has already are kept, and what was read of its clips is not read again; a metric over another net
    has the clips made once more, so ask for all of them at once where clips are dear.

    With --data CACHE the prompts are the cache's held-out clips (at most --clips), and the reference their real frames
    where --videos says where they are, else the same clips decoded from their latents.

    Examples:
      w2svd-bench eval --steps 1 4 28
      w2svd-bench eval --steps 4 --methods lcm w2svd --split validation --clips 256
      w2svd-bench eval --steps 1 4 28 --metrics fid fvd vbench
      w2svd-bench eval --backbone hunyuan --data caches/portraits --videos /data/videos --nproc 8
    """
    options.load_plugin(plugin)
    numbers = positive_integers(steps or [str(n) for n in options.DEFAULT_STEPS], "--steps")
    asked = Asked(data, videos, split, clips, reference_clips)
    measures = Measures.of(metrics, against)
    options.set_metrics_environment(weights_dir, vbench_python)
    device = options.resolve_device(device)
    name = options.backbone_name(backbone)
    folders, unfinished = _runs(out, name, names(methods or []))
    if dry_run:
        _note(unfinished)
        for folder in folders:
            print(f"{folder} at {', '.join(map(str, numbers))} steps")
        return
    if not folders:
        why = f"none of these is finished: {', '.join(map(str, unfinished))}"
        raise BenchError("there is nothing to evaluate", why, "repeat the `w2svd-bench train` command to go on")
    relaunch(nproc)
    world = World.start(device)
    if world.lead:
        _note(unfinished)
    results = _evaluate(backbone, asked, measures, folders, numbers, out / name, world, batch)
    world.stop()  # not after an error: leaving waits for processes that sit in a collective
    if world.lead and not quiet():
        show(results, as_json)


def _note(unfinished: list[Path]) -> None:
    for folder in unfinished if not quiet() else ():
        left_out = f"note: {folder} is not finished and is left out; repeat its `w2svd-bench train` command to go on"
        errors.print(escape(left_out), highlight=False, soft_wrap=True)


def _evaluate(
    source: str,
    asked: Asked,
    measures: Measures,
    folders: list[Path],
    numbers: list[int],
    out: Path,
    world: World,
    batch: int | None,
) -> Path:
    """Makes the grid and returns the folder of its results."""
    from w2svd_bench.evaluate.grid import Grid

    options.use_one_thread(world.device)
    opened, eval_set = world.together(lambda: asked.open(source, world.device, folders[0]))
    results = (
        results_folder(out.parent, out.name, asked.split, asked.clips, asked.references)
        if asked.cache is None
        else out / f"results-{eval_set.name}"
    )
    with Reporter(silent=not world.lead) as report:
        grid = Grid(
            source, opened, eval_set, results, report, world, batch, measures.metrics, "teacher" in measures.against
        )
        world.together(lambda: grid.check(folders))
        with grid:
            grid.floor()
            for folder in folders:
                grid.run(folder, numbers)
    return results


def results_folder(
    out: Path,
    backbone: str,
    split: str = "test",
    clips: int = options.DEFAULT_CLIPS,
    references: int | None = None,
) -> Path:
    """Where the records and tables of a backbone's runs are; each eval set has its own, for tables never mix them."""
    default = (split, clips) == ("test", options.DEFAULT_CLIPS)
    name = "results" if default else f"results-{split}-{clips}"
    return out / backbone / (name if references is None else f"{name}-of-{references}")


def _runs(out: Path, backbone: str, labels: list[str]) -> tuple[list[Path], list[Path]]:
    """The finished and the unfinished runs of a backbone; raises `BenchError` if a label, or any run, is missing."""
    from w2svd_bench.train.run import Run, find_runs

    found = {folder: Run.load(folder) for folder in find_runs(out, backbone)}
    chosen = {folder: run for folder, run in found.items() if not labels or run.label in labels}
    missing = set(labels) - {run.label for run in chosen.values()}
    if missing or not chosen:
        what = f"no run called {', '.join(sorted(missing))}" if missing else "there is nothing to evaluate"
        have = sorted({run.label for run in found.values()})
        wanted = sorted(missing or {"w2svd"})[0]
        near = difflib.get_close_matches(wanted, have, n=1) if missing else []
        raise BenchError(
            what,
            f"runs under {out / backbone}: {', '.join(have) or 'none'}",
            (f"did you mean {near[0]!r}? or " if near else "") + f"train one: w2svd-bench train --method {wanted}",
        )
    finished = [folder for folder, run in chosen.items() if run.finished]
    return finished, [folder for folder in chosen if folder not in finished]
