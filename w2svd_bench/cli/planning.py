"""``w2svd-bench plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.progress import console
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS

if TYPE_CHECKING:
    from w2svd_bench.backbones.skeleton import Skeleton
    from w2svd_bench.config import Video
    from w2svd_bench.plan.machine import Machine
    from w2svd_bench.plan.memory import Plan


def plan(
    method: Annotated[str | None, typer.Option("--method", help="The method; see `w2svd-bench methods`.")] = None,
    backbone: Annotated[
        str, typer.Option("--backbone", help="hunyuan, hunyuan-i2v, hunyuan-i2v-33ch, mini or a diffusers directory.")
    ] = "hunyuan",
    height: Annotated[int | None, typer.Option("--height", min=1, help="Pixels; the recipe's by default.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Pixels; the recipe's by default.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="The recipe's by default.")] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs that the run is spread over.")] = 8,
    gpu_memory: Annotated[float, typer.Option("--gpu-memory", help="GB (1e9 bytes) of each GPU.")] = 80.0,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe file instead of the method's own.")] = None,
    variant: options.Variant = "",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="training.micro_batch=1 and the like.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All methods side by side.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run a few blocks on this machine's GPU and compare.")
    ] = False,
    as_json: options.Json = False,
    plugin: options.Plugin = None,
) -> None:
    """Say what a method needs on a machine before it is rented: memory by role, evaluations, disk, and what to change.

    Nothing is downloaded and no GPU is needed, but for --verify.

    Examples:
      w2svd-bench plan --method w2svd --gpus 1
      w2svd-bench plan --compare --variant 544p --gpus 8 --gpu-memory 80
    """
    mine = options.load_plugin(plugin)
    if (method is None) != compare:
        raise BenchError(
            "no method is named" if method is None else "--method and --compare exclude each other",
            "a plan is one method's, or with --compare that of all",
            "use --method NAME or --compare",
        )
    if compare and recipe is not None:
        raise BenchError(
            "--recipe and --compare exclude each other", "a recipe is one method's", "change all with --set"
        )
    if variant and recipe is not None:
        raise options.recipe_or_variant()
    from w2svd_bench.backbones.skeleton import Skeleton
    from w2svd_bench.plan.machine import Machine
    from w2svd_bench.plan.table import as_data, comparison, page

    machine, skeleton = Machine.of(gpus, gpu_memory), Skeleton.open(backbone)
    own = options.with_variant(skeleton.recipe, variant)
    names = [method] if method is not None else _with_recipe(own, mine)
    size = {"height": height, "width": width, "num_frames": frames}
    plans = [_plan(METHODS.get(name), skeleton, own, machine, size, recipe, overrides or []) for name in names]
    if not console.is_terminal:  # a log has no width to respect
        console.width = 160
    if verify:
        _verify(plans, as_json)
    elif as_json:
        data: Any = [as_data(one) for one in plans]
        typer.echo(json.dumps(data if compare else data[0], indent=2))
    else:
        console.print(comparison(plans) if compare else page(plans[0]))


def _with_recipe(backbone: str, plugins: list[str]) -> list[str]:
    """The methods that have a recipe for a backbone; a plug-in given by hand is never left out.

    Raises:
        BenchError: there is none.
    """
    found = []
    for name in METHODS.names():
        try:
            METHODS.get(name).recipe(backbone)
        except BenchError:
            if name in plugins:
                raise
            continue
        found.append(name)
    if not found:
        raise BenchError(
            f"no method has a recipe for backbone {backbone!r}",
            f"there is no file {backbone}.yaml beside the code of any",
            "leave --variant out, or give one method's with --method NAME --recipe FILE",
        )
    return found


def _plan(
    method_class: Any,
    skeleton: Skeleton,
    own: str,
    machine: Machine,
    size: dict[str, int | None],
    recipe: Path | None,
    overrides: list[str],
) -> Plan:
    from w2svd_bench.plan.advice import check_size
    from w2svd_bench.plan.memory import Plan, Setup

    resolved = resolve_recipe(method_class, own, recipe, overrides)
    video: Video = resolved.video or skeleton.video
    video = video.model_copy(update={key: value for key, value in size.items() if value is not None})
    setup = Setup.of(method_class, resolved, skeleton, machine, video)
    check_size(setup)
    return Plan(setup)


def _verify(plans: list[Plan], as_json: bool) -> None:
    from w2svd_bench.plan.verify import verify_on_gpu

    results = [verify_on_gpu(one.setup) for one in plans]
    if as_json:
        typer.echo(json.dumps([one.as_data() for one in results], indent=2))
        return
    for one in results:
        console.print(str(one), highlight=False)
