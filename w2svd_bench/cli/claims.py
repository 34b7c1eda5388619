"""``w2svd-bench claims``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.progress import console, errors
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.leaderboard.atoms import Need, Planner
from w2svd_bench.leaderboard.claims import Arithmetic, Claims, MemoryClaim, Planned, Size, find_claims, read_claims
from w2svd_bench.leaderboard.claims_render import details, remarks, summary, to_markdown
from w2svd_bench.leaderboard.merge import filled
from w2svd_bench.leaderboard.report_parts import CLAIMS_FILE
from w2svd_bench.leaderboard.rows import REFERENCE_METHODS
from w2svd_bench.leaderboard.verdicts import Report, judge
from w2svd_bench.record import Record, read_records, write_atomically


def claims(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of records, taken together. [default: runs/mini/results]", show_default=False),
    ] = None,
    file: Annotated[Path | None, typer.Option("--claims", help="A claims file instead of the methods' own.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Only the claims made for this method.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan/--no-plan", help="Ask `plan` where a claim is about memory (20 s, loads torch).")
    ] = True,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the verdicts to this file, too.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write claims.json and claims.md into the first folder, for its report.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Judge by records which claims made for a method hold, fail, are undecided or were not measured.

    Claims are data: claims.yaml beside a method's code, or any file of that kind. See docs/claims.md.

    Examples:
      w2svd-bench claims results/mini results/mini-stress
      w2svd-bench claims --claims mine.yaml --no-plan --json
    """
    folders = folders or [Path("runs/mini/results")]
    report = _judged(folders, _files(file, method), plan)
    if write:
        _write(report, folders[0])
    if markdown is not None:
        write_atomically(markdown, to_markdown(report))
    if as_json:
        print(json.dumps(report.as_data(), indent=2, allow_nan=False))
        return
    if not console.is_terminal:  # a log has no width to respect
        console.width = 160
    for one in report.judged:
        console.print(details(one))
    console.print(summary(report))
    told = [f"{one.backbone}, {one}" for one in report.health] + [f"{one.backbone}, {one}" for one in report.alphas]
    for line in [*remarks(report), *told]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if markdown is not None:
        console.print(f"written: {markdown}", markup=False, highlight=False, soft_wrap=True)


def write_claims(folder: Path, others: list[Path]) -> None:
    """Judges the claims of all methods by the records of a folder, and of others where they can stand beside them.

    Into the folder go claims.json and claims.md.
    """
    files = _files(None, None)
    try:
        report = _judged([folder, *others], files, plan=True)
    except BenchError as error:
        if not others:
            raise
        told = f"note: claims are judged without {', '.join(map(str, others))}: {error.what}: {error.why}"
        errors.print(told, highlight=False, soft_wrap=True, markup=False)
        report = _judged([folder], files, plan=True)
    _write(report, folder)


def _write(report: Report, folder: Path) -> None:
    data = json.dumps(report.as_data(), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / CLAIMS_FILE, data + "\n")
    write_atomically(folder / "claims.md", to_markdown(report))


def _judged(folders: list[Path], files: list[Claims], plan: bool) -> Report:
    records = _together(folders)
    asks = any(isinstance(one, MemoryClaim) and one.plan is not None for known in files for one in known.claims)
    if asks and plan and records:
        errors.print("planning memory ...", highlight=False)
    return judge(records, files, _planner() if asks and plan and records else None)


def _together(folders: list[Path]) -> list[Record]:
    """The records of all folders; what they share is taken from the first that has it, of reference rows each score.

    Raises:
        BenchError: two folders have different records of one cell.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for folder in folders:
        for one in read_records(folder):
            first, known = found.setdefault(one.cell.id, (folder, one))
            if one.cell.method in REFERENCE_METHODS:
                found[one.cell.id] = first, filled(known, one)
            elif known != one:
                why = f"{one.file_name} in {first} and in {folder}"
                raise BenchError("a cell has two records that differ", why, "name only one of these folders")
    return [record for _, record in found.values()]


def _files(file: Path | None, method: str | None) -> list[Claims]:
    if file is None:
        found = [read_claims(path) for path in find_claims(None if method is None else [method])]
    else:
        found = [read_claims(file)]
    chosen = [one for one in found if method in (None, one.method)]
    if file is not None and not chosen:
        raise unknown_name("method", str(method), [one.method for one in found])
    if not chosen:
        why = "no installed method has" if method is None else f"method {method!r} has no"
        why += " a claims.yaml beside its code" if method is None else " claims.yaml beside its code"
        raise BenchError("there are no claims to judge", why, "give a file with --claims FILE; see docs/claims.md")
    return chosen


def _planner() -> Planner:
    """Answers from `plan`, each backbone opened once."""
    from w2svd_bench.backbones.skeleton import Skeleton
    from w2svd_bench.plan.advice import check_size, gpus_needed
    from w2svd_bench.plan.machine import Machine
    from w2svd_bench.plan.memory import Plan, Setup
    from w2svd_bench.registry import METHODS

    skeletons: dict[str, Skeleton] = {}
    answers: dict[tuple[str, float, float, Planned, Size], Need] = {}

    def need(ask: Arithmetic, who: Planned, size: Size) -> Need:
        key = (ask.backbone, ask.gigabytes, ask.slack, who, size)
        if key not in answers:
            skeleton = skeletons.setdefault(ask.backbone, skeletons.get(ask.backbone) or Skeleton.open(ask.backbone))
            method = METHODS.get(who.method)
            recipe = resolve_recipe(method, skeleton.recipe, None, list(who.set))
            video = (recipe.video or skeleton.video).model_copy(update=size.model_dump())
            plans = []
            for share in (1 - ask.slack, 1.0, 1 + ask.slack):
                setup = Setup.of(method, recipe, skeleton, Machine.of(1, share * ask.gigabytes), video)
                check_size(setup)
                plans.append(Plan(setup))
            less, stated, more = (gpus_needed(one) for one in plans)
            answers[key] = Need((less, stated, more), plans[1].chosen.total)
        return answers[key]

    return need
