"""``w2svd-bench compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.arguments import positive_integers
from w2svd_bench.cli.progress import console
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.compare import Comparison
from w2svd_bench.leaderboard.compare import compare as compared
from w2svd_bench.leaderboard.table import DASH, decimals, is_random, told_flags, warning
from w2svd_bench.record import read_records

if TYPE_CHECKING:
    import rich.table


def compare(
    a: Annotated[str, typer.Argument(help="A method, by the label that the table shows.")],
    b: Annotated[str, typer.Argument(help="The one that it is held against.")],
    folder: Annotated[Path, typer.Option("--folder", help="A folder of records.")] = Path("runs/mini/results"),
    steps: options.Steps = None,
    as_json: options.Json = False,
) -> None:
    """Tell by how much two methods differ on the same prompts, and whether that is more than chance.

    Differences are A - B, paired by prompt and seed, with intervals of 95 %. Starts without torch.

    Examples:
      w2svd-bench compare w2svd dmd
      w2svd-bench compare lcm "real (noise floor)" --steps 4 --json
    """
    numbers = positive_integers(steps, "--steps") if steps else None
    if not folder.is_dir():
        beside = sorted(str(path) for path in folder.parent.glob("results*") if path.is_dir())
        cure = f"give one with --folder: {', '.join(beside)}" if beside else "evaluate first, or name it with --folder"
        raise BenchError(f"records can't be read from {folder}", "there is no such folder", cure)
    comparison = compared(read_records(folder), a, b, numbers)
    if as_json:
        print(json.dumps(comparison.as_data(), indent=2, allow_nan=False))
        return
    if not console.is_terminal:  # a log has no width to respect
        console.width = 140
    console.print(to_rich(comparison, console.width))
    for line in remarks(comparison):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def to_rich(comparison: Comparison, width: int) -> rich.table.Table:
    """The differences as a table for a terminal: nothing is cut, and words are whole where the width allows it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = comparison.differences
    several = any(one.spread.n > 1 for one in found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("metric", overflow="fold")
    titles = ["steps", comparison.a, comparison.b, "A - B", "95 % over prompts"]
    for title in titles + (["SD over seeds", "95 % over seeds"] if several else []):
        table.add_column(Text(title), justify="right", overflow="fold")
    table.add_column(Text(f"{comparison.a} is"), overflow="fold")
    for one in found:
        same = [other for other in found if other.metric == one.metric]
        digits = decimals([other.estimate.se for other in same], [other.a for other in same])

        def shown(value: float, digits: int = digits) -> str:
            return f"{value:.{digits}f}"

        texts = [DASH if one.steps is None else str(one.steps), shown(one.a), shown(one.b)]
        texts += [f"{one.estimate.value:+.{digits}f}", f"{shown(one.estimate.low)} to {shown(one.estimate.high)}"]
        if several:
            seeds = one.spread.interval()
            texts.append(DASH if one.spread.sd is None else f"{shown(one.spread.sd)} ({one.spread.n})")
            texts.append(DASH if seeds is None else f"{shown(seeds[0])} to {shown(seeds[1])}")
        arrow = {"up": " ↑", "down": " ↓"}[one.direction]
        table.add_row(Text(one.metric + arrow), *texts, Text(one.verdict))
    # rich would cut words where it is narrow, verdicts among them: first room for the words, then for whole cells.
    cells = [[str(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    widths = [max(len(word) for cell in column for word in cell.split()) for column in cells]
    spare = width - sum(widths) - 2 * (len(widths) - 1)
    for column, least, texts in zip(table.columns, widths, cells, strict=True) if spare >= 0 else ():
        more = min(spare, max(map(len, texts)) - least)
        column.width, spare = least + more, spare - more
    return table


def remarks(comparison: Comparison) -> list[str]:
    """What has to be known of the differences, a line each."""
    found, seeds = comparison.differences, max(one.spread.n for one in comparison.differences)
    flags: dict[str, dict[str, None]] = {}
    for one in found:
        flags.setdefault(one.metric, {}).update(dict.fromkeys(one.flags))
    random = [name for name, told in flags.items() if is_random(name, list(told))]
    counts = " or ".join(map(str, sorted({one.n for one in found})))
    lines = [
        f"{warning(random)}A is {comparison.a}, B is {comparison.b}; backbone {comparison.backbone}, eval set "
        f"{comparison.eval_set}, paired by prompt (n = {counts} clips{' a seed' if seeds > 1 else ''})."
        f"{told_flags({name: list(told) for name, told in flags.items()})}",
        "Over prompts: where the mean difference of these very runs would be with others of such prompts, as many.",
    ]
    if seeds > 1:
        lines[-1] += " Over seeds: where it would be with many trainings; a verdict needs both."
    else:
        lines[-1] += " One training a side: the verdict is on these two runs, not on their methods."
    if len(found) > 1:
        lines.append(f"{len(found)} differences are shown, and of true zeros one in twenty seems decided by chance.")
    lines += [f"left out, since only one side has it: {one}" for one in comparison.left_out]
    lines += [f"network evaluations a clip differ {one}" for one in comparison.unequal]
    gaps: dict[tuple[str, str], list[str]] = {}
    for gap in comparison.missing:
        where = "" if gap.steps is None else f" at steps {gap.steps}"
        gaps.setdefault((where, gap.why), []).append(gap.metric)
    return lines + [f"no difference in {', '.join(names)}{where}: {why}" for (where, why), names in gaps.items()]
