"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.errors import BenchError
from w2svd_bench.registry import BACKBONES, METHODS

Backbone = Annotated[
    str, typer.Option("--backbone", help="mini, mini-hard, hunyuan, hunyuan-i2v, a diffusers directory or a hub id.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder of runs and results.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Plugin = Annotated[Path | None, typer.Option("--plugin", help="A Python file with a method of your own.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and do nothing.")]
Steps = Annotated[list[str] | None, typer.Option("--steps", help="Numbers of sampling steps: --steps 1 4 28.")]
Split = Annotated[str, typer.Option("--split", help="Prompts from test, or from validation for tuning.")]
Clips = Annotated[int, typer.Option("--clips", min=2, help="Prompts of the evaluation set.")]
Data = Annotated[
    str | None, typer.Option("--data", help="A folder that `data prepare` made, or portraits (the miniature's own).")
]
Processes = Annotated[int, typer.Option("--nproc", min=1, help="Processes on this machine, one a GPU.")]
Variant = Annotated[str, typer.Option("--variant", help="A variant of the recipe: 544p stands for hunyuan-544p.yaml.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metrics", help="What to score by: --metrics fid fvd vbench. See docs/metrics.md for all."),
]
WeightsFolder = Annotated[
    Path | None, typer.Option("--weights-dir", help="Folder of the feature nets' weights (see `weights list`).")
]
VBenchPython = Annotated[
    Path | None,
    typer.Option("--vbench-python", help="A Python that has vbench; without it uv builds an environment for it."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

RUNS = Path("runs")
WEIGHTS_VARIABLE, VBENCH_VARIABLE = "W2SVD_BENCH_WEIGHTS", "W2SVD_BENCH_VBENCH_PYTHON"
DEFAULT_STEPS = [1, 4, 28]
DEFAULT_CLIPS = 512


def resolve_device(device: str) -> str:
    """``auto`` is the GPU where there is one; anything else has to exist."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise BenchError(f"unknown device {device!r}", "it is none of auto, cpu, cuda, cuda:N", "use --device auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BenchError(
            f"device {device!r} is not there", "torch sees no CUDA GPU on this machine", "use --device cpu"
        )
    number = device.partition(":")[2]
    count = torch.cuda.device_count()
    if number and not (number.isdecimal() and int(number) < count):
        why = f"torch sees {count} GPUs, counted from 0"
        raise BenchError(f"device {device!r} is not there", why, "use --device auto")
    return device


def backbone_name(source: str) -> str:
    """What a backbone calls itself: recipes and folders go by that name, also where a path was given."""
    if source in BACKBONES.names():
        return source
    from w2svd_bench.backbones.base import Backbone as Opened

    return Opened.locate(source)[1].backbone


def recipe_name(source: str) -> str:
    """Whose recipes a backbone is trained by; a registered name is not looked up on the hub for that."""
    if source in BACKBONES.names():
        return BACKBONES.get(source).recipe or source
    from w2svd_bench.backbones.base import Backbone as Opened

    return Opened.locate(source)[1].recipe


def with_variant(recipe: str, variant: str) -> str:
    """The name of a recipe's variant, as its file is called."""
    return f"{recipe}-{variant}" if variant else recipe


def recipe_or_variant() -> BenchError:
    """For whoever names both."""
    return BenchError(
        "--recipe and --variant exclude each other", "a variant is one of the recipes that ship", "leave one out"
    )


def load_plugin(path: Path | None) -> list[str]:
    """Registers the methods of ``--plugin``; returns their names."""
    return METHODS.load_file(path) if path is not None else []


def set_metrics_environment(weights: Path | None, vbench_python: Path | None) -> None:
    """Where metrics look for weights and for VBench's Python, for this process and those that it starts."""
    import os

    for variable, path in ((WEIGHTS_VARIABLE, weights), (VBENCH_VARIABLE, vbench_python)):
        if path is not None:
            os.environ[variable] = str(path.expanduser().absolute())


def use_one_thread(device: str) -> None:
    """One thread a process on a CPU, unless told otherwise: for these sizes a second one makes it slower."""
    import os

    import torch

    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
