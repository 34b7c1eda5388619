"""``w2svd-bench build-mini``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import options


def build_mini(
    out: Annotated[Path, typer.Option("--out", help="Folder for the new assets and the work in between.")] = Path(
        "build-mini"
    ),
    device: options.Device = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="A few iterations of every stage: a rehearsal, not assets.")
    ] = False,
    hard: Annotated[
        bool,
        typer.Option("--hard", help="The hard setting, mini-hard: only a teacher is trained, about an hour on a core."),
    ] = False,
) -> None:
    """Rebuild the miniature HunyuanVideo from nothing: codec, text encoders, teacher and feature nets.

    With --hard the backbone mini-hard: a teacher whose captions name skin, hair and backdrop only, trained from
    scratch; every other part is the default miniature's.
    """
    from w2svd_bench.build_mini.build import build

    device = options.resolve_device(device)
    options.use_one_thread(device)
    build(out, device, quick, lambda line: print(line, flush=True), "hard" if hard else "default")
