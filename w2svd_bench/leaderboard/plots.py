"""Plots of a leaderboard, as SVG and PNG: quality against network evaluations, and quality while training went on.

The first come from records, the others from the curves that training leaves. The same numbers give the same bytes with
the same version of matplotlib. Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart;
markers differ as well, and lines are labelled where they end.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.curves import HEALTH, Curve
from w2svd_bench.leaderboard.rows import Mean, Row
from w2svd_bench.leaderboard.table import is_random
from w2svd_bench.record import Direction, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "plots"
# Without the yellow, which white paper swallows. Seven colours and eight markers: pairs are repeated after 56 methods,
# and lines are dashed after seven.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#5A5A5A"
WIDTH, HEIGHT, DPI = 6.4, 3.6, 160  # inches of one panel with its labels, and dots an inch of a PNG
LABEL_POINTS, GAP_POINTS = 8.5, 11.0  # size of the labels beside the lines, and how near they may come
LONGEST = 36  # characters of a label; the tables have it whole
# An axis whose largest number is so many times its smallest one is logarithmic.
LOG_FROM = 6.0
_ARROWS = {"up": " ↑", "down": " ↓"}


@dataclass(frozen=True)
class Plot:
    """A drawn plot; ``alt`` says in words what it shows, ``svg`` is a whole SVG document."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    dash: str


@dataclass(frozen=True)
class _End:
    """Where a line ends, in data units, and what is written beside it; without a style it is a reference."""

    x: float
    y: float
    text: str
    style: _Style | None


def write_plots(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Writes ``folder/plots/<name>.svg`` and ``.png``, removes others that were drawn before, returns the paths."""
    target = folder / FOLDER
    paths = []
    for plot in plots:
        paths.append(write_atomically(target / f"{plot.name}.svg", plot.svg))
        picture = target / f"{plot.name}.png"
        picture.write_bytes(plot.png)
        paths.append(picture)
    for old in [*target.glob("*.svg"), *target.glob("*.png")]:
        if old not in paths:
            old.unlink()
    return paths


def draw(board: Leaderboard, curves: Sequence[Curve] = ()) -> list[Plot]:
    """All plots of a leaderboard, one backbone after the other: each metric against nfe, then the curves."""
    found: list[Plot] = []
    for backbone in board.backbones:
        ours = [one for one in board.records if one.cell.backbone == backbone]
        directions = {name: score.direction for one in ours for name, score in sorted(one.metrics.items())}
        rows = [row for row in board.rows if row.backbone == backbone]
        trained = [curve for curve in curves if curve.backbone == backbone]
        # Methods under their own names come first, so that they, and not their ablations, get colours of their own.
        shown = sorted((row for row in rows if not row.is_reference), key=lambda row: row.label != row.method)
        labels = [row.label for row in shown] + [curve.label for curve in trained]
        styles = _styles(labels)
        prefix = f"{backbone}-" if len(board.backbones) > 1 else ""
        for metric, direction in sorted(directions.items()):
            if any(isinstance(row.scores[metric], Mean) for row in rows if not row.is_reference):
                found.append(_against_nfe(prefix, backbone, rows, metric, direction, styles))
        found += _training(prefix, backbone, trained, directions, styles)
    return found


def pareto_front(points: Sequence[tuple[int, float]], direction: Direction) -> list[tuple[int, float]]:
    """The (nfe, value) that no other point beats with as few evaluations or fewer, by nfe."""
    sign = 1 if direction == "down" else -1
    front: list[tuple[int, float]] = []
    for nfe, value in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * value < sign * front[-1][1]:
            front.append((nfe, value))
    return front


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, in their order, at least ``gap`` apart and within bounds where there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    room = max(gap * (len(wanted) - 1), 0.0)
    places = [0.0] * len(wanted)
    least = low
    for rank, i in enumerate(order):
        # As far up as leaves room for those above it.
        most = max(high, low + room) - gap * (len(wanted) - 1 - rank)
        places[i] = max(least, min(wanted[i], most))
        least = places[i] + gap
    return places


def _styles(labels: Sequence[str]) -> dict[str, _Style]:
    distinct = list(dict.fromkeys(labels))
    return {
        label: _Style(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], "-" if i < len(PALETTE) else "--")
        for i, label in enumerate(distinct)
    }


def _against_nfe(
    prefix: str,
    backbone: str,
    rows: Sequence[Row],
    metric: str,
    direction: Direction,
    styles: Mapping[str, _Style],
) -> Plot:
    figure, axes = _panels(1)
    ax = axes[0]
    lines: dict[str, list[tuple[int, Mean]]] = {}
    references: list[tuple[str, float]] = []
    for row in rows:
        mean = row.scores[metric]
        if isinstance(mean, Mean):
            if row.is_reference:
                references.append((row.label, mean.value))
            else:
                lines.setdefault(row.label, []).append((row.nfe, mean))
    points = [(nfe, mean.value) for line in lines.values() for nfe, mean in line]
    front = pareto_front(points, direction)
    evaluations = sorted({nfe for nfe, _ in points})
    ends = [_End(evaluations[-1], value, label, None) for label, value in references]
    for _, value in references:
        ax.axhline(value, color=GREY, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    if len(front) > 1:
        x, y = [*(nfe for nfe, _ in front), evaluations[-1]], [*(value for _, value in front), front[-1][1]]
        ax.step(x, y, where="post", color="#BBBBBB", linewidth=5, alpha=0.6, solid_capstyle="butt", zorder=0)
        ends.append(_End(x[-1], y[-1], "Pareto front", None))
    for label, line in lines.items():
        style = styles[label]
        line.sort(key=lambda point: point[0])
        x, y = [nfe for nfe, _ in line], [mean.value for _, mean in line]
        error = [mean.interval or 0.0 for _, mean in line]
        look: Any = {"color": style.colour, "marker": style.marker, "linestyle": style.dash, **_LINE}
        ax.errorbar(x, y, yerr=error, capsize=2.5, **look)
        ends.append(_End(x[-1], y[-1], label, style))
    ax.set_xscale("log")
    ax.set_xticks(evaluations, [str(nfe) for nfe in evaluations])
    ax.set_xticks([], minor=True)
    ax.margins(x=0.06)
    ax.set_xlabel("network evaluations a clip (nfe)")
    _scale(ax, [value for _, value in points] + [value for _, value in references])
    ax.set_ylabel(metric + _ARROWS[direction], parse_math=False)
    _label(ax, ends)
    flags = [flag for row in rows for flag in _flags(row.scores[metric])]
    warned = "RANDOM WEIGHTS, the numbers mean nothing: " if is_random(metric, flags) else ""
    title = f"{warned}{metric} against network evaluations"
    best = "; ".join(f"{value:.4g} at nfe {nfe}" for nfe, value in front)
    alt = (
        f"{title}, backbone {backbone}, {'lower' if direction == 'down' else 'higher'} is better. Methods: "
        f"{', '.join(lines)}. Pareto front (wide grey line): {best}. Reference rows (dashed): "
        f"{', '.join(f'{label} {value:.4g}' for label, value in references) or 'none'}."
    )
    return _plot(f"{prefix}{_slug(metric)}-against-nfe", title, alt, figure)


def _flags(score: Mean | str) -> tuple[str, ...]:
    return score.flags if isinstance(score, Mean) else ()


def _training(
    prefix: str,
    backbone: str,
    curves: Sequence[Curve],
    directions: Mapping[str, Direction],
    styles: Mapping[str, _Style],
) -> list[Plot]:
    """Each metric against iteration and against wall time, a panel for each number of steps; then the run's health."""
    by_metric: dict[str, set[str]] = {}
    for curve in curves:
        for key in curve.metrics:
            by_metric.setdefault(key.rpartition("@")[0] or key, set()).add(key)
    plots = []
    for metric, keys in sorted(by_metric.items()):
        arrow = _ARROWS[directions[metric]] if metric in directions else ""
        panels = {key: f"validation {_panel_title(key)}{arrow}" for key in sorted(keys, key=_steps)}
        for quantity, unit in (("iteration", "training iteration"), ("seconds", "seconds of training")):
            name = f"{prefix}{_slug(metric)}-against-{'iteration' if quantity == 'iteration' else 'time'}"
            # Not the tables' metric: of other clips, and of fewer, which makes every distance larger.
            title = f"{metric} of validation clips (fewer than the tables') against {unit}"
            plots.append(_curves(name, title, backbone, curves, panels, quantity, unit, styles))
    health = {key: title for key, title in HEALTH.items() if any(key in point for c in curves for point in c.points)}
    if health:
        name, title = f"{prefix}health-against-iteration", "Health of training against iteration"
        plots.append(_curves(name, title, backbone, curves, health, "iteration", "training iteration", styles))
    return plots


def _curves(
    name: str,
    title: str,
    backbone: str,
    curves: Sequence[Curve],
    panels: Mapping[str, str],
    quantity: str,
    unit: str,
    styles: Mapping[str, _Style],
) -> Plot:
    """One panel below the other, a line a method: its mean over seeds, and where there are several, each seed thin.

    Where some seeds have no value, as those whose generator broke, the label and the text say so.
    """
    figure, axes = _panels(len(panels))
    shown: dict[str, None] = {}
    lacking: dict[str, None] = {}
    for ax, (key, panel) in zip(axes, panels.items(), strict=True):
        ends, values = [], []
        for label in dict.fromkeys(curve.label for curve in curves):
            ours = [curve.line(key, quantity) for curve in curves if curve.label == label]
            seeds = [line for line in ours if line]
            of_all = f"of {len(ours)} seed{'' if len(ours) == 1 else 's'} of {label}"
            if len(seeds) < len(ours) and (seeds or key not in HEALTH):  # many methods have no fake, whose loss it is
                lacking[f"{len(ours) - len(seeds)} {of_all}"] = None
            if not seeds:
                continue
            style = styles[label]
            for line in seeds if len(seeds) > 1 else []:
                ax.plot(*_xy(line), color=style.colour, linewidth=0.7, alpha=0.45)
            mean = _mean_line(seeds)
            if mean:
                x, y = _xy(mean)
                look: Any = {"color": style.colour, "marker": style.marker, "linestyle": style.dash, **_LINE}
                ax.plot(x, y, markevery=max(1, len(x) // 8), **look)
                text = label if len(seeds) == len(ours) else f"{len(seeds)} {of_all}"
                ends.append(_End(x[-1], y[-1], text, style))
                shown[label] = None
            values += [value for line in seeds for _, value in line.values()]
        _scale(ax, values)
        ax.set_ylabel(panel, parse_math=False)
        _label(ax, ends)
    axes[-1].set_xlabel(unit)
    alt = (
        f"{title}, backbone {backbone}, {len(panels)} panel{'s' if len(panels) > 1 else ''}: "
        f"{', '.join(panels.values())}. Methods: {', '.join(shown)}. Thick: mean over seeds; thin: each seed."
        + (f" Without a value, and not in the mean: {', '.join(lacking)}." if lacking else "")
    )
    return _plot(name, title, alt, figure)


Line = dict[int, tuple[float, float]]  # (x, y) by iteration


def _mean_line(seeds: Sequence[Line]) -> Line:
    """The mean over seeds at the iterations that all of them have."""
    common = sorted(set.intersection(*(set(line) for line in seeds)))
    return {i: (fmean(line[i][0] for line in seeds), fmean(line[i][1] for line in seeds)) for i in common}


def _xy(line: Line) -> tuple[list[float], list[float]]:
    return [x for x, _ in line.values()], [y for _, y in line.values()]


def _steps(key: str) -> tuple[int, str]:
    steps = key.rpartition("@")[2]
    return (int(steps) if steps.isdecimal() else 0), key


def _panel_title(key: str) -> str:
    metric, _, steps = key.rpartition("@")
    return f"{metric}, {steps} step{'' if steps == '1' else 's'}" if metric and steps.isdecimal() else key


_LINE: dict[str, Any] = {"linewidth": 1.5, "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6}


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels below each other that share the x axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT if count == 1 else 2.4 * count), facecolor="white")
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0].tolist()
    figure.subplots_adjust(left=0.12, right=0.7, top=0.97, bottom=0.14 / count, hspace=0.12)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#E4E4E4", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=LABEL_POINTS)
        ax.xaxis.label.set_size(9.5)
        ax.yaxis.label.set_size(9.5)
    return figure, axes


def _scale(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis with plain numbers where the values span much and are all positive."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if values and min(values) > 0 and max(values) / min(values) >= LOG_FROM:
        ax.set_yscale("log")
        wide = max(values) / min(values) > 1000
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _label(ax: Axes, ends: Sequence[_End]) -> None:
    """Writes beside the panel, at the height where each line ends, what it is; moved apart where they would touch.

    A dotted leader goes to lines that reach the right edge. To others it would cross the panel; markers tell them.
    """
    figure: Any = ax.get_figure()
    height = ax.get_position().height * figure.get_size_inches()[1] * 72  # points
    ax.autoscale_view()
    ax.set_ylim(ax.get_ylim())  # what comes now moves no axis
    ax.set_xlim(ax.get_xlim())
    to_axes: Callable[..., Any] = (ax.transData + ax.transAxes.inverted()).transform
    wanted = [float(to_axes((end.x, end.y))[1]) * height for end in ends]
    farthest = max((end.x for end in ends), default=0.0)
    for end, place in zip(ends, spread(wanted, GAP_POINTS, 0.0, height), strict=True):
        colour = GREY if end.style is None else end.style.colour
        at = place / height
        text = end.text if len(end.text) <= LONGEST else end.text[: LONGEST - 1] + "…"
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "linestyle": ":", "shrinkA": 0, "shrinkB": 4}
        if end.style is None or end.x == farthest:
            ax.annotate(
                "",
                xy=(end.x, end.y) if end.style is not None else (1.0, float(to_axes((end.x, end.y))[1])),
                xycoords="data" if end.style is not None else "axes fraction",
                xytext=(1.025, at),
                textcoords="axes fraction",
                arrowprops=leader,
                annotation_clip=False,
            )
        if end.style is not None:
            marker: Any = {"marker": end.style.marker, "color": colour, "markersize": 5.5}
            ax.plot([1.04], [at], transform=ax.transAxes, clip_on=False, linestyle="", **marker)
        shown: Any = {"fontsize": LABEL_POINTS, "color": "#222222" if end.style else GREY, "va": "center_baseline"}
        ax.text(1.06, at, text, transform=ax.transAxes, parse_math=False, **shown)


def _plot(name: str, title: str, alt: str, figure: Figure) -> Plot:
    """Saves a figure in both formats. Ids are made the plot's own, so that several may stand in one page."""
    import matplotlib

    vector, pixels = io.StringIO(), io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text: it can be searched and read aloud, and the file is smaller.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(vector, format="svg", bbox_inches="tight", metadata=nothing)
    figure.savefig(pixels, format="png", bbox_inches="tight", dpi=DPI, metadata={"Software": None})
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", vector.getvalue())
    return Plot(name, title, alt, svg, _with_palette(pixels))


def _with_palette(png: io.BytesIO) -> bytes:
    """The same picture in 256 colours, which is a third of the bytes: results are kept in a repository."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(png).convert("RGB").quantize(256).save(small, format="png", optimize=True, dpi=(DPI, DPI))
    return small.getvalue()


def _slug(metric: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", metric.lower()).strip("-")
