"""``w2svd-bench data prepare`` and ``w2svd-bench data inspect``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from w2svd_bench.cli import launch, options
from w2svd_bench.cli.progress import Reporter, console, quiet
from w2svd_bench.config import Video, validated
from w2svd_bench.errors import BenchError

if TYPE_CHECKING:
    from w2svd_bench.data.cache import LatentCache
    from w2svd_bench.data.inspect import Report
    from w2svd_bench.data.prepare import Prepared

SHEET_CLIPS, SHEET_FRAMES = 8, 8

app = typer.Typer(
    help="Prepare videos for training, and look at what was prepared.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def prepare(
    videos: Annotated[Path, typer.Option("--videos", help="The folder of videos.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the cache.")],
    captions: Annotated[
        Path | None, typer.Option("--captions", help="The caption file; without it NAME.txt beside each NAME.mp4.")
    ] = None,
    layout: Annotated[
        str,
        typer.Option("--layout", help="plain, or a data set as it is unpacked: vfhq, hdtf, celebv-hq, celebv-text."),
    ] = "plain",
    backbone: options.Backbone = "mini",
    height: Annotated[
        int | None, typer.Option("--height", min=1, help="Pixels; the backbone's own if left out.")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Pixels; the backbone's own if left out.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Frames of a clip, 4k + 1.")] = None,
    fps: Annotated[float | None, typer.Option("--fps", min=0.001, help="Frames a second.")] = None,
    start: Annotated[
        Literal["begin", "middle"], typer.Option("--start", help="Where in a video a clip is cut: begin or middle.")
    ] = "middle",
    allow_upscale: Annotated[
        bool, typer.Option("--allow-upscale", help="Enlarge videos that are too small instead of rejecting them.")
    ] = False,
    test: Annotated[int, typer.Option("--test", min=0, help="Clips held out as evaluation prompts.")] = 0,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Size from which a shard is full.")] = 256,
    nproc: options.Processes = 1,
    device: options.Device = "auto",
) -> None:
    """Encode a folder of videos and captions once; the same command goes on, and adds videos that are new.

    Examples:
      w2svd-bench data prepare --videos clips --captions captions.csv --backbone hunyuan --out caches/clips --test 64
      w2svd-bench data prepare --videos VFHQ --layout vfhq --backbone hunyuan --frames 61 --out caches/vfhq --nproc 8
    """
    launch.relaunch(nproc)
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.data import prepare as preparing
    from w2svd_bench.world import World

    device = options.resolve_device(device)
    options.use_one_thread(device)
    world = World.start(device)
    size = {"height": height, "width": width, "num_frames": frames, "fps": fps}
    opened = Backbone.load(backbone, world.device, video=_video(backbone, size))
    source = preparing.Source(videos, captions, layout, start, allow_upscale, test)
    with Reporter() as report:
        task = "encoding clips" + (f", process 1 of {world.size}" if world.size > 1 else "")
        prepared = preparing.prepare(
            out, opened, source, world, shard_mb * 2**20, lambda done, total: report(task, done, total)
        )
    world.stop()  # not after an error: leaving waits for processes that sit in a collective
    if world.lead and not quiet():
        _show_prepared(out, prepared, backbone)


@app.command()
def example(
    out: Annotated[Path, typer.Option("--out", help="A folder that does not exist yet.")] = Path("example-videos"),
) -> None:
    """Write ten small H.264 videos of different sizes and rates with a caption file, to try the other commands on.

    Example:
      w2svd-bench data example --out example-videos
    """
    from w2svd_bench.data.example import write_examples

    with Reporter() as report:
        written = write_examples(out, lambda done, total: report("writing videos", done, total))
    for path in written:
        print(path)


@app.command()
def inspect(
    cache: Annotated[Path, typer.Argument(help="The folder of a cache.")],
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="The backbone it was made for: decodes some clips, too.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="The PNG of decoded clips; CACHE/sheet.png if left out.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and compare its sha256.")] = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Print what a latent cache holds; with a backbone also write a contact sheet of decoded clips.

    Examples:
      w2svd-bench data inspect caches/clips --verify
      w2svd-bench data inspect caches/clips --backbone hunyuan --sheet clips.png
    """
    if sheet is not None and backbone is None:
        why = "latents are decoded by the backbone that they were made for"
        raise BenchError("a sheet needs a backbone", why, "add --backbone NAME")
    from w2svd_bench.data import inspect as inspecting

    with Reporter() as report:
        found = inspecting.inspect(cache, report=lambda done, total: report("reading latents", done, total))
        if verify:
            inspecting.verify(cache, lambda done, total: report("verifying shards", done, total))
    written = None
    if backbone is not None:
        written = _sheet(cache, found, backbone, device, sheet or cache / "sheet.png")
    if as_json:
        more = {"verified": verify, "sheet": written and written.as_posix()}
        print(json.dumps(asdict(found) | more, indent=2, ensure_ascii=False))
    elif not quiet():
        _show_report(found, verify, written)


def _video(source: str, given: dict[str, float | int | None]) -> Video | None:
    """The size of the clips: what was given, and for the rest what the backbone says of itself."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return None
    from w2svd_bench.backbones.base import Backbone

    side = Backbone.locate(source)[1]
    return validated(Video, {name: getattr(side, name) for name in given} | chosen, "the size of the clips")


def _show_prepared(out: Path, prepared: Prepared, backbone: str) -> None:
    if prepared.rejected:
        console.print(_reasons(prepared.rejected))
    index = prepared.index
    splits = Counter(clip.split for clip in index.clips)
    size = sum(shard.bytes for shard in index.shards)
    shards = "1 shard" if len(index.shards) == 1 else f"{len(index.shards)} shards"
    lines = [
        f"{out}: {len(index.clips)} clips ({splits['train']} train, {splits['test']} test) in {shards}, {_bytes(size)}"
        f"; {prepared.encoded} encoded now, {len(prepared.rejected)} rejected"
    ]
    if prepared.kept:
        lines.append(
            f"note: {prepared.kept} clips stay in the cache though the folder or the captions name them no more"
        )
    if prepared.moved:
        lines.append(
            f"note: {prepared.moved} clips changed between train and test, which depends on all clips: don't compare "
            "runs from before with runs from now"
        )
    if prepared.removed:
        lines.append(f"note: {len(prepared.removed)} damaged shards were deleted and encoded again")
    if prepared.rejected:
        lines.append(f"what was rejected, and why: {out / 'rejected.json'}")
    lines.append(f"next: w2svd-bench data inspect {out} --backbone {backbone}, then train with --data {out}")
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def _reasons(rejected: Sequence[tuple[str, str]]) -> Table:
    """Rejected clips by reason, the most frequent first."""
    table = Table("rejected", "clips", "for example")
    for reason, count in Counter(reason for _, reason in rejected).most_common(20):
        example = next(name for name, why in rejected if why == reason)
        table.add_row(escape(reason), str(count), escape(example))
    return table


def _show_report(found: Report, verified: bool, sheet: Path | None) -> None:
    shown = {
        "cache": found.folder,
        "fingerprint": found.fingerprint_sha256[:16],
        "made for": f"{found.fingerprint['backbone']} ({found.fingerprint['task']})",
        "clips": ", ".join(f"{count} {split}" for split, count in found.clips.items()),
        "frames": "{num_frames} of {height} x {width} at {fps:g} a second".format(**found.fingerprint["video"]),
        "shards": f"{found.shards}, {_bytes(found.bytes)}" + (", every sha256 verified" if verified else ""),
        "stored": f"{found.dtype}; of one clip: "
        + ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found.tensors.items()),
        "latents": f"mean {found.mean:+.3f}, standard deviation {found.std:.3f} ({found.measured} clips)",
        "means by channel": " ".join(f"{value:+.2f}" for value in found.channel_mean),
        "deviations by channel": " ".join(f"{value:.2f}" for value in found.channel_std),
        "text tokens": f"{found.text_length[0]} to {found.text_length[2]}, median {found.text_length[1]:g}",
        "repeated captions": f"{found.repeated_captions} clips share theirs with another",
        "rejected": "; ".join(f"{count} x {reason}" for reason, count in found.rejected.items()) or "none",
    }
    table = Table(show_header=False)
    for name, value in shown.items():
        table.add_row(name, escape(value))
    console.print(table)
    for warning in found.warnings:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    if sheet is not None:
        print(sheet)  # whole, for whoever reads this in a script


def _sheet(folder: Path, found: Report, backbone: str, device: str, path: Path) -> Path:
    """Decodes the first clips, one at a time, and draws them."""
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.data.cache import LatentCache
    from w2svd_bench.evaluate.pictures import contact_sheet

    device = options.resolve_device(device)
    options.use_one_thread(device)
    opened = Backbone.load(backbone, device, video=validated(Video, found.fingerprint["video"], "the cache's video"))
    cache: LatentCache = LatentCache.open(folder, opened)
    rows = []
    for row in range(min(SHEET_CLIPS, len(cache))):
        batch = cache.batch([row])
        clip = opened.decode(batch.x0_BCTHW, batch.cond)[0].numpy()
        rows.append((f"{cache.entries[row].id}: {cache.entries[row].caption}", clip))
    return contact_sheet(rows, path, every=max(1, len(rows[0][1]) // SHEET_FRAMES))


def _bytes(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} TB"
