"""``w2svd-bench score``."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import metric_names, names
from w2svd_bench.cli.progress import Reporter, console, errors
from w2svd_bench.errors import BenchError

if TYPE_CHECKING:
    from w2svd_bench.evaluate.folders import Outcome, Row
    from w2svd_bench.metrics.base import Metric


def score(
    generated: Annotated[Path, typer.Option("--generated", help="Folder of images, videos or .npy clips to score.")],
    metrics: options.Metrics,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Folder of real ones, or a pytorch-fid .npz of statistics.")
    ] = None,
    as_json: options.Json = False,
    allow_small: Annotated[bool, typer.Option("--allow-small", help="Compare sets of very few clips.")] = False,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="JSON file: {file name: prompt}.")] = None,
    max_invalid: Annotated[int, typer.Option("--max-invalid", min=0, help="Files that may have no score.")] = 0,
    resize_mixed: Annotated[
        bool, typer.Option("--resize-mixed", help="Scale and crop files to the size that most in their folder have.")
    ] = False,
    fps: Annotated[
        float | None, typer.Option("--fps", min=0.01, help="Frames a second of images and .npy clips.")
    ] = None,
    export_stats: Annotated[
        Path | None, typer.Option("--export-stats", help="Write the reference's statistics as pytorch-fid's .npz.")
    ] = None,
    weights_dir: options.WeightsFolder = None,
    vbench_python: options.VBenchPython = None,
    device: options.Device = "auto",
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Clips at a time; by itself as many as suit their size.")
    ] = None,
) -> None:
    """Score a folder of images or clips, made by anything, against a folder of real ones.

    Files lie right in the folder: folders inside it are not entered. One file is one clip; images are clips of one
    frame. What was read of a file is kept, so that a second run is quick. The command fails if any file or metric has
    no score, after it has shown the others.

    Examples:
      w2svd-bench score --generated samples/ --reference real/ --metrics fid kid fvd
      w2svd-bench score --generated samples/ --metrics vbench --prompts prompts.json --json
      w2svd-bench score --generated samples/ --reference real/ --metrics fid --export-stats real-fid.npz
    """
    from w2svd_bench.evaluate.folders import score_folders
    from w2svd_bench.evaluate.side import Rules
    from w2svd_bench.registry import METRICS

    wanted = metric_names(names(metrics or []))
    if not wanted:
        raise BenchError("there is no metric to score by", "none was named", "for example --metrics fid fvd")
    texts = _prompts(prompts)
    options.set_metrics_environment(weights_dir, vbench_python)
    device = options.resolve_device(device)
    options.use_one_thread(device)
    # Bars would leave lines on the screen that are no part of the document.
    with Reporter(silent=as_json and errors.is_terminal) as report, contextlib.ExitStack() as stack:
        rules = Rules(allow_small, resize_mixed, fps, batch, device, report, max_invalid)
        made: list[Metric] = []
        for name in wanted:
            made.append(METRICS.get(name)(device))  # type: ignore[call-arg]
            stack.callback(getattr(made[-1], "close", lambda: None))
        outcome = score_folders(generated, reference, made, rules, texts, export=export_stats)
    _tell(outcome)
    if as_json:
        print(json.dumps(outcome.document(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        if not console.is_terminal:  # a log has no width to respect
            console.width = 140
        console.print(_table(outcome))
    _judge(outcome, max_invalid)


def _prompts(path: Path | None) -> dict[str, str] | None:
    """The prompts by file name; raises `BenchError` unless the file holds just that."""
    if path is None:
        return None
    what, cure = f"prompts can't be read from {path}", 'write {"clip-1.mp4": "a cat on a sofa", ...}'

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if repeated:
            raise BenchError(what, f"{repeated[0]!r} stands in it more than once", cure)
        return dict(pairs)

    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (OSError, ValueError) as error:
        raise BenchError(what, str(error), cure) from error
    if not isinstance(found, dict) or not all(isinstance(prompt, str) and prompt for prompt in found.values()):
        raise BenchError(what, "it is not an object of file names with their prompts", cure)
    return found


def _tell(outcome: Outcome) -> None:
    """One line for each file that has no score, and for each warning, beside the results."""
    for folder, files in outcome.invalid.items():
        for name, reason in files.items():
            errors.print(escape(f"invalid: {name} ({folder}): {reason}"), highlight=False, soft_wrap=True)
    for warning in outcome.warnings:
        errors.print(escape(f"warning: {warning}"), highlight=False, soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    table = Table(title=f"{outcome.generated['folder']}: {outcome.generated['n']} clips")
    for name in ("metric", "value", "± se", "n", "n ref", "invalid", "flags"):
        table.add_column(name, justify="left" if name in ("metric", "flags") else "right", overflow="fold")
    for row in outcome.results:
        told = "; ".join(row.flags) if row.reason is None else row.reason
        arrow = {"up": "↑", "down": "↓"}[row.direction]
        cells = (f"{row.metric} {arrow}", _number(row.value, 6), _number(row.se, 2), str(row.n))
        reference = "–" if row.n_reference is None else str(row.n_reference)
        table.add_row(*map(escape, (*cells, reference, _invalid(row), told)))
    return table


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _invalid(row: Row) -> str:
    return f"{row.n_invalid} + {row.n_reference_invalid}" if row.n_reference_invalid else str(row.n_invalid)


def _judge(outcome: Outcome, max_invalid: int) -> None:
    """Raises `BenchError` if files are left out that may not be, or if a score could not be had."""
    if outcome.worst > max_invalid:
        raise BenchError(
            f"{outcome.worst} file(s) have no score",
            "a smaller set flatters whatever failed on the others; they are named above",
            f"mend or make them again; --max-invalid {outcome.worst} accepts the scores of the others",
        )
    missing = [row for row in outcome.results if row.value is None]
    if missing:
        raise BenchError(
            f"{len(missing)} of {len(outcome.results)} scores could not be had",
            "; ".join(f"{row.metric}: {row.reason}" for row in missing),
            "leave these metrics out, or give them clips that they can read",
        )
