"""What to change so that a run fits: each proposal is planned again before it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from w2svd_bench.errors import BenchError
from w2svd_bench.method import RoleSpec
from w2svd_bench.plan.machine import Machine
from w2svd_bench.plan.memory import Plan, Setup

LORA_RANK = 128
MOST_GPUS = 1024


@dataclass(frozen=True)
class Change:
    """One thing to do differently.

    Attributes:
        words: what, and how it is asked for.
        apply: gives the changed setup, or None where there is nothing to change.
    """

    words: str
    apply: Callable[[Setup], Setup | None]


@dataclass(frozen=True)
class Advice:
    """Changes, in order, that together make a plan fit; ``plan`` is the plan with them."""

    changes: tuple[str, ...]
    plan: Plan


def advise(plan: Plan) -> Advice | None:
    """The cheapest change that makes a plan fit, or else the cheapest changes together; None if nothing does.

    What computes the same comes before what trains otherwise, and that before what makes other clips. Where no change
    does it alone, they are added up in that order, and those that turn out not to be needed are left out again.
    """
    for change in _changes(plan.setup):
        changed = change.apply(plan.setup)
        if changed is not None and Plan(changed).fits:
            return Advice((change.words,), Plan(changed))
    taken: list[Change] = []
    for change in _changes(plan.setup):
        taken.append(change)
        if _together(plan.setup, taken).fits:
            needed = _needed(plan.setup, taken)
            return Advice(tuple(change.words for change in needed), _together(plan.setup, needed))
    return None


def gpus_needed(plan: Plan) -> int | None:
    """The fewest GPUs of the plan's kind that it fits on with FSDP, nothing else changed; None if no number helps.

    The number divides the batch, for every GPU takes the same number of clips.
    """
    setup = plan.setup
    sharded = replace(setup, engine=setup.engine.model_copy(update={"sharding": "fsdp"}))
    for gpus in range(1, min(MOST_GPUS, setup.batch_size) + 1):
        if setup.batch_size % gpus == 0 and Plan(_on(sharded, gpus)).fits:
            return gpus
    return None


def _on(setup: Setup, gpus: int) -> Setup:
    return replace(setup, machine=Machine(gpus, setup.machine.gpu_memory))


def _together(setup: Setup, changes: list[Change]) -> Plan:
    for change in changes:
        setup = change.apply(setup) or setup
    return Plan(setup)


def _needed(setup: Setup, changes: list[Change]) -> list[Change]:
    """The changes without those that do nothing or that it also fits without, the dearest first."""
    needed = [change for change in changes if change.apply(setup) is not None]
    for change in reversed(changes[:-1]):
        fewer = [one for one in needed if one is not change]
        if change in needed and _together(setup, fewer).fits:
            needed = fewer
    return needed


def _changes(setup: Setup) -> Iterator[Change]:
    """Proposals from cheap to dear."""
    yield Change("gradient checkpointing (engine.gradient_checkpointing=true)", _checkpointing)
    yield Change("one clip at a time (training.micro_batch=1)", _one_clip)
    yield Change("FSDP (engine.sharding=fsdp)", _fsdp)
    yield Change(f"LoRA of rank {LORA_RANK} in place of trained copies, where the method's settings allow", _lora)
    yield Change("no averages (EMA) of trained weights, where the method's settings allow", _no_averages)
    yield Change("trained weights in bfloat16, which loses small updates (engine.trained_dtype=bfloat16)", _bfloat16)
    yield from _fewer_frames(setup)
    yield from _smaller(setup)


def _engine(setup: Setup, key: str, value: object) -> Setup | None:
    if getattr(setup.engine, key) == value:
        return None
    return replace(setup, engine=setup.engine.model_copy(update={key: value}))


def _checkpointing(setup: Setup) -> Setup | None:
    return _engine(setup, "gradient_checkpointing", True)


def _bfloat16(setup: Setup) -> Setup | None:
    return _engine(setup, "trained_dtype", "bfloat16")


def _one_clip(setup: Setup) -> Setup | None:
    return None if setup.clips == 1 else replace(setup, micro_batch=1)


def _fsdp(setup: Setup) -> Setup | None:
    # `auto` has taken it already where it helps.
    return None if setup.machine.gpus == 1 or setup.engine.sharding == "auto" else _engine(setup, "sharding", "fsdp")


def _lora(setup: Setup) -> Setup | None:
    def low_rank(spec: RoleSpec) -> RoleSpec:
        return replace(spec, weights="lora", rank=LORA_RANK) if spec.weights == "full" else spec

    changed = {name: low_rank(spec) for name, spec in setup.specs.items()}
    return None if changed == dict(setup.specs) else replace(setup, specs=changed)


def _no_averages(setup: Setup) -> Setup | None:
    changed = {name: replace(spec, ema=None) for name, spec in setup.specs.items()}
    return None if changed == dict(setup.specs) else replace(setup, specs=changed)


def _fewer_frames(setup: Setup) -> Iterator[Change]:
    """Fewer latent frames, one by one, down to half of them."""
    temporal = setup.skeleton.compression[1]
    latent = (setup.video.num_frames - 1) // temporal
    for fewer in range(latent - 1, max(1, latent // 2) - 1, -1):
        frames = temporal * fewer + 1
        yield Change(f"{frames} frames in place of {setup.video.num_frames}", _with_video(num_frames=frames))


def _smaller(setup: Setup) -> Iterator[Change]:
    """Smaller clips with about the same aspect ratio, down to half the size."""
    video = setup.video
    step = setup.skeleton.compression[0] * int(setup.skeleton.config["patch_size"])
    for down in count(1):
        height = video.height - down * step
        width = round(height * video.width / video.height / step) * step
        if height < video.height / 2 or min(height, width) < step:
            return
        words = f"{height}x{width} pixels in place of {video.height}x{video.width}"
        yield Change(words, _with_video(height=height, width=width))


def _with_video(**changes: int) -> Callable[[Setup], Setup | None]:
    return lambda setup: replace(setup, video=setup.video.model_copy(update=changes))


def check_size(setup: Setup) -> None:
    """Raises `BenchError` if the backbone can't make the clips, or the batch can't be dealt out to the GPUs."""
    setup.skeleton.latent_shape(setup.video)
    if setup.batch_size % setup.machine.gpus:
        raise BenchError(
            f"a batch of {setup.batch_size} can't be shared by {setup.machine.gpus} GPUs",
            "each takes the same number of clips",
            f"use --set training.batch_size={setup.machine.gpus * -(-setup.batch_size // setup.machine.gpus)}",
        )
