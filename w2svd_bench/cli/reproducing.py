"""``w2svd-bench reproduce``: everything from one command."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import positive_integers
from w2svd_bench.cli.evaluating import results_folder
from w2svd_bench.cli.jobs import Job, run_jobs
from w2svd_bench.cli.plans import PROFILES, check, commands, plans_of, profile_named, read_plan
from w2svd_bench.cli.progress import console
from w2svd_bench.errors import BenchError

_PROFILES = "; ".join(f"{name}: {profile.about}" for name, profile in PROFILES.items())


def reproduce(
    quick: Annotated[bool, typer.Option("--quick", help="Short for --profile quick.")] = False,
    profile: Annotated[str | None, typer.Option("--profile", help=f"What to train. {_PROFILES}.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="A YAML file of runs, such as docs/tuning.yaml.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds of every run.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes side by side, one thread each.")] = 2,
    steps: options.Steps = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="As of `train`; by itself the profile's, else mini.", show_default=False),
    ] = None,
    clips: options.Clips = options.DEFAULT_CLIPS,
    split: options.Split = "test",
    validate_every: Annotated[
        int | None,
        typer.Option("--validate-every", min=0, help="As of `train`; by itself 50, and 0 when quick or with --plan."),
    ] = None,
    out: options.Out = options.RUNS,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
) -> None:
    """Train every method, evaluate all of them, write tables, claims and report; interrupted, it goes on where it was.

    By itself it is --profile full. Ablations and stress recipes are files that methods bring: ablations.yaml and
    stress.yaml beside their code. Of a --plan, and of the validation split, there are tables alone. This is for
    backbones with clips of their own, the miniatures; others take `train` and `eval` with --data.

    Examples:
      w2svd-bench reproduce --quick
      w2svd-bench reproduce --profile stress
      w2svd-bench reproduce --profile hard
      w2svd-bench reproduce --plan docs/tuning.yaml --split validation --clips 256 --steps 1 4 --out runs/tuning
    """
    if (quick and profile not in (None, "quick")) or (plan is not None and (quick or profile is not None)):
        why = "--quick, --profile and --plan each say what is trained"
        raise BenchError("it is not clear what to reproduce", why, "give one of them")
    chosen = profile_named("quick" if quick else profile or "full")
    if backbone is not None and chosen.backbone not in (None, backbone):
        why = f"this profile is for the backbone {chosen.backbone}"
        raise BenchError(f"--backbone {backbone} goes with another profile", why, "leave --backbone out")
    backbone = backbone or chosen.backbone or "mini"
    asked = plans_of(chosen, backbone) if plan is None else [read_plan(plan)]
    asked = asked if seeds is None else [one.model_copy(update={"seeds": seeds}) for one in asked]
    for one in asked:
        check(one, options.recipe_name(backbone))
    brief = quick or profile == "quick" or plan is not None
    every = (0 if brief else 50) if validate_every is None else validate_every
    root, out = out, out if plan is not None else out / chosen.folder
    numbers = positive_integers(steps or [str(n) for n in options.DEFAULT_STEPS], "--steps")
    common = ["--backbone", backbone, "--out", str(out), "--device", device]
    evaluation = [*common, "--split", split, "--clips", str(clips), "--steps", *map(str, numbers)]
    training = [*common, *(["--validate-every", str(every)] if every else [])]
    work = commands(asked, training, evaluation)
    if dry_run:
        for lines in work.values():
            for line in lines:
                print(shlex.join(["w2svd-bench", *line]))
        return
    from w2svd_bench.cli.boards import show
    from w2svd_bench.cli.claims import write_claims
    from w2svd_bench.cli.reporting import make_report

    start = time.perf_counter()
    run_jobs([Job(name, lines) for name, lines in work.items()], jobs)
    results = results_folder(out, options.backbone_name(backbone), split, clips)
    show(results)
    if plan is None and split == "test":
        places = [root, *(root / one.folder for one in PROFILES.values() if one.folder)]
        others = [results_folder(place, results.parent.name, split, clips) for place in places]
        write_claims(results, [one for one in others if one.is_dir() and one != results])
        make_report(results, out, backbone, device)
    console.print(f"{results}: {time.perf_counter() - start:.0f} s in all", highlight=False)
