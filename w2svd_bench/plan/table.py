"""A plan in words: three lines for an error message, tables for people, plain data for scripts. GB are 1e9 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from w2svd_bench.plan.advice import Advice, advise, gpus_needed
from w2svd_bench.plan.machine import GB
from w2svd_bench.plan.memory import PerGpu, Plan, Setup

SHARDING = {"replicate": "replicas", "fsdp": "FSDP"}


def summary(plan: Plan) -> str:
    """Three lines: what is planned, what it needs, and what would make it fit (or that it fits)."""
    setup, chosen = plan.setup, plan.chosen
    lines = [
        f"{_what(setup)} on {setup.machine} ({_how(plan)})",
        f"planned peak {_gb(chosen.total)} GB a GPU, usable {_gb(setup.machine.usable + chosen.context)} GB: "
        f"{_parts(chosen)}",
        "it fits by this plan" if plan.fits else _cure(plan, advise(plan)),
    ]
    return "\n".join(lines)


def as_data(plan: Plan) -> dict[str, Any]:
    """Everything that a plan says, as plain data; bytes, operations and numbers of passes."""
    setup = plan.setup
    advice = None if plan.fits else advise(plan)
    return {
        "method": setup.method.name,
        "backbone": setup.skeleton.name,
        "parameters": setup.skeleton.parameters,
        "video": setup.video.model_dump(),
        "engine": setup.engine.model_dump(),
        "batch_size": setup.batch_size,
        "clips_per_gpu": setup.clips,
        "tokens": sum(setup.skeleton.tokens(setup.video)),
        "machine": {"gpus": setup.machine.gpus, "bytes": setup.machine.gpu_memory, "usable": setup.machine.usable},
        "roles": {name: asdict(role) for name, role in plan.roles.items()},
        "sharding": plan.sharding,
        "activations": plan.chosen.activations,
        "per_gpu": _gpu_data(plan.chosen),
        "replicate": _gpu_data(plan.per_gpu["replicate"]),
        "fsdp": _gpu_data(plan.per_gpu["fsdp"]),
        "fits": plan.fits,
        "advice": None if advice is None else list(advice.changes),
        "gpus_needed": gpus_needed(plan),
        "updates": setup.work.updates(),
        "evaluations": setup.work.evaluations(),
        "operations": plan.operations,
        "first_iteration": {
            "updates": setup.work.updates(setup.work.first),
            "evaluations": setup.work.evaluations(setup.work.first),
            "operations": plan.first_operations,
        },
        "iterations": setup.iterations,
        "all_operations": plan.all_operations,
        "disk": plan.disk,
    }


def first_iteration(plan: Plan) -> str | None:
    """What the first iteration takes where it does other work than the following ones; None where it does not."""
    work = plan.setup.work
    if not work.opens:
        return None
    first, usual = (sum(work.passes(of).values()) for of in (work.first, work.usual))
    return (
        f"the first iteration makes {first:g} network evaluations a clip, a usual one {usual:g}, and takes "
        f"{_peta(plan.first_operations)} PFLOP"
    )


def page(plan: Plan) -> RenderableType:
    """One method's plan for people."""
    return Group(
        Text(_what(plan.setup) + f" on {plan.setup.machine}", style="bold"),
        _roles(plan),
        _gpu(plan),
        _work(plan),
        *_verdict(plan),
    )


def comparison(plans: Sequence[Plan]) -> RenderableType:
    """Methods side by side: what a GPU and an iteration take, and what all roles do. Both fit 80 columns."""
    setup = plans[0].setup
    gpu = Table(title=f"{_where(setup)} on {setup.machine}: GB (1e9 bytes)", title_justify="left")
    gpu.add_column("method")
    for column in ("activations", "a GPU, peak", "sharding", "fits", "evaluations", "PFLOP"):
        gpu.add_column(column, justify="right")
    roles = Table(title="All roles, over all GPUs, in GB", title_justify="left")
    roles.add_column("method")
    for column in ("weights", "gradients", "optimizer", "EMA", "sum"):
        roles.add_column(column, justify="right")
    for plan in plans:
        columns = [
            sum(getattr(one, key) for one in plan.roles.values())
            for key in ("weights", "gradients", "optimizer", "ema")
        ]
        roles.add_row(plan.setup.method.name, *(_gb(value) for value in [*columns, sum(columns)]))
        gpu.add_row(
            plan.setup.method.name,
            _gb(plan.chosen.activations),
            _gb(plan.chosen.total),
            SHARDING[plan.sharding],
            "[green]yes[/]" if plan.fits else "[red]no[/]",
            f"{sum(plan.setup.work.passes().values()):g}",
            f"{plan.operations / 1e15:.1f}",
        )
    notes = [
        "all roles: each weight counted once; a peak holds one role's gradients at a time",
        "evaluations: network passes a clip and iteration; PFLOP: of an iteration of the whole batch",
        *(f"{plan.setup.method.name}: {first_iteration(plan)}" for plan in plans if plan.setup.work.opens),
        *(f"{plan.setup.method.name}: {_cure(plan, advise(plan))}" for plan in plans if not plan.fits),
    ]
    return Group(gpu, roles, *(Text(note, style="dim") for note in notes))


def _roles(plan: Plan) -> Table:
    table = Table(title="Bytes by role, over all GPUs, in GB (1e9 bytes)", title_justify="left")
    table.add_column("role")
    for column in ("parameters", "weights", "gradients", "optimizer", "EMA", "sum"):
        table.add_column(column, justify="right")
    for name, role in plan.roles.items():
        shares = "" if role.parameters else " (shares weights)"
        numbers = (role.weights, role.gradients, role.optimizer, role.ema, role.total)
        table.add_row(name + shares, f"{role.parameters / 1e6:,.1f} M", *(_gb(n) if n else "-" for n in numbers))
    return table


def _gpu(plan: Plan) -> Table:
    table = Table(title="One GPU at its peak, in GB", title_justify="left")
    table.add_column("")
    for name in ("replicate", "fsdp"):
        chosen = " (chosen)" if name == plan.sharding else ""
        table.add_column(SHARDING[name] + chosen, justify="right")
    rows = (
        ("weights, moments, averages", "kept"),
        ("gradients of the role that learns", "gradients"),
        ("activations", "activations"),
        ("gathered or cast weights", "buffers"),
        ("optimiser's step (after activations)", "step"),
        ("CUDA and NCCL (assumed)", "context"),
        ("peak", "total"),
    )
    for words, key in rows:
        table.add_row(words, *(_gb(getattr(plan.per_gpu[name], key)) for name in ("replicate", "fsdp")))
    table.add_row("while this role learns", *(plan.per_gpu[name].peak_role for name in ("replicate", "fsdp")))
    return table


def _work(plan: Plan) -> Table:
    table = Table(title="Network evaluations, a clip and iteration", title_justify="left")
    table.add_column("role")
    for column in ("with gradient", "without", "backward", "updates"):
        table.add_column(column, justify="right")
    updates = plan.setup.work.updates()
    rows = plan.setup.work.evaluations()
    for name in [*rows, *(role for role in updates if role not in rows)]:
        row = rows.get(name, {})
        numbers = (row.get("with_gradient", 0.0), row.get("without", 0.0), row.get("backward", 0.0))
        table.add_row(name, *(f"{number:g}" for number in (*numbers, updates.get(name, 0.0))))
    return table


def _verdict(plan: Plan) -> list[Text]:
    disk, setup = plan.disk, plan.setup
    opening = first_iteration(plan)
    twice = f" (the old one stays until the new one is whole: {_gb(disk['checkpoints'])} GB)"
    training = f", all {setup.iterations:,} iterations {_peta(plan.all_operations)}" if plan.all_operations else ""
    lines = [
        f"an iteration takes {_peta(plan.operations)} PFLOP over all GPUs{training}; sampling takes "
        f"{_peta(plan.generator_forward)} PFLOP a step and clip",
        *([] if opening is None else [opening]),
        f"disk: generator {_gb(disk['generator'])} GB, a checkpoint {_gb(disk['checkpoint'])} GB"
        f"{twice if disk['checkpoint'] else ''}, {disk['clip'] / 1e6:.1f} MB a training clip",
    ]
    usable, cures = setup.machine.usable + plan.chosen.context, []
    if plan.fits:
        verdict = Text(f"fits: {_gb(plan.chosen.total)} of {_gb(usable)} usable GB a GPU", style="bold green")
    else:
        verdict = Text(f"does not fit: {_gb(plan.chosen.total)} of {_gb(usable)} usable GB a GPU", style="bold red")
        cures.append(_cure(plan, advise(plan)))
    return [*(Text(line) for line in lines), verdict, *(Text(line) for line in cures)]


def _cure(plan: Plan, advice: Advice | None) -> str:
    """What would make it fit."""
    if advice is None:
        words = "no change tried makes it fit"
    else:
        words = f"fits with {', and '.join(advice.changes)}: {_gb(advice.plan.chosen.total)} GB a GPU"
    gpus = gpus_needed(plan)
    if gpus is None or gpus <= plan.setup.machine.gpus:
        return words
    return f"{words}; or unchanged on {gpus} such GPUs with FSDP"


def _gpu_data(one: PerGpu) -> dict[str, Any]:
    return {**asdict(one), "allocated": one.allocated, "total": one.total}


def _what(setup: Setup) -> str:
    return f"{setup.method.name} on {_where(setup)}, {setup.clips} clip{'s' if setup.clips > 1 else ''} a GPU at a time"


def _where(setup: Setup) -> str:
    video = setup.video
    tokens = sum(setup.skeleton.tokens(video))
    return f"{setup.skeleton.name} at {video.height}x{video.width}x{video.num_frames} ({tokens:,} tokens)"


def _how(plan: Plan) -> str:
    checkpointing = "with" if plan.setup.engine.gradient_checkpointing else "without"
    return f"{SHARDING[plan.sharding]}, {checkpointing} gradient checkpointing"


def _parts(one: PerGpu) -> str:
    return (
        f"kept {_gb(one.kept)}, gradients {_gb(one.gradients)}, activations {_gb(one.activations)}, "
        f"gathered or cast weights {_gb(one.buffers)}, CUDA and NCCL {_gb(one.context)}"
    )


def _peta(operations: float) -> str:
    """Operations in PFLOP: three figures, more for large numbers."""
    size = operations / 1e15
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def _gb(value: float) -> str:
    """Bytes in GB: one decimal, more for small numbers."""
    size = value / GB
    return f"{size:.1f}" if size >= 1 or size == 0 else f"{size:.2g}"
