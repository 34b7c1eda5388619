"""``w2svd-bench export``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.progress import console
from w2svd_bench.errors import BenchError


def export(
    method: Annotated[str, typer.Option("--method", help="Label of a trained run.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the generator; must not exist yet.")],
    run_seed: Annotated[int, typer.Option("--run-seed", min=0, help="Which run of the method.")] = 0,
    backbone: options.Backbone = "mini",
    merge: Annotated[bool, typer.Option("--merge", help="Write a LoRA generator as a whole transformer.")] = False,
    out: options.Out = options.RUNS,
    device: options.Device = "auto",
) -> None:
    """Copy a trained generator, checked, with its model card: diffusers loads it as it is.

    Examples:
      w2svd-bench export --method w2svd --to w2svd-generator
      w2svd-bench export --method w2svd --backbone hunyuan --merge --to w2svd-transformer
    """
    if to.exists():
        raise BenchError(f"{to} exists", "nothing is overwritten", "give a folder that does not exist yet")
    from w2svd_bench.backbones.export import write_merged
    from w2svd_bench.evaluate.sampling import Subject
    from w2svd_bench.train.run import GENERATOR_FOLDER, run_folder

    device = options.resolve_device(device)
    options.use_one_thread(device)
    name = options.backbone_name(backbone)
    folder = run_folder(out, name, method, run_seed)
    subject = Subject.open(folder, backbone, device)
    if not subject.method.roles():
        raise BenchError(
            f"{method} has no generator to export", "it trains nothing: it is the teacher itself", "use the backbone"
        )
    if merge:
        write_merged(subject.network, subject.backbone, folder / GENERATOR_FOLDER, to)
    else:
        shutil.copytree(folder / GENERATOR_FOLDER, to)
    for path in sorted(to.rglob("*")):
        if path.is_file():
            console.print(str(path), highlight=False, soft_wrap=True)
