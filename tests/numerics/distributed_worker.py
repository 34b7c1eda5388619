"""What one process does in `test_distributed`: trains small cases alone or with others, and writes down what came out.

``python distributed_worker.py FOLDER`` under torchrun's variables; the tests also import it, by its path, and call the
same functions for a process that runs alone. Everything is float32 on the untrained miniature, except where said.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from w2svd_bench import world as world_module
from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.export import export_generator
from w2svd_bench.backbones.mini import TEXT_DIM, TRANSFORMER
from w2svd_bench.backbones.sharding import gathered
from w2svd_bench.baselines.dmd.method import DMD
from w2svd_bench.baselines.lcm.method import LCM
from w2svd_bench.config import Engine, Recipe, Training, validated
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.errors import BenchError
from w2svd_bench.method import GENERATOR, Method, Update
from w2svd_bench.methods.w2svd.method import W2SVD
from w2svd_bench.train import checkpoint, loop
from w2svd_bench.train.loop import Trainer, train
from w2svd_bench.train.run import Run
from w2svd_bench.types import Cond, Loss
from w2svd_bench.world import World

SLOW, FAST = {"learning_rate": 1e-4}, {"learning_rate": 1e-3}
CASES: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "lcm": (LCM, {"generator": SLOW, "ema": 0.9, "grid": 8}),
    "dmd": (DMD, {"generator": SLOW, "fake": SLOW, "ema": 0.9}),
    "w2svd": (W2SVD, {"generator": SLOW, "fake": FAST, "fake_rank": 3, "ema": 0.9, "gt": {"kind": "regression"}}),
    # Everything on one transformer: two LoRAs and an average, a discriminator, a walk of a random number of steps.
    "w2svd-lora-gan": (
        W2SVD,
        {
            "generator": FAST,
            "fake": FAST,
            "fake_rank": 3,
            "generator_weights": "lora",
            "generator_rank": 5,  # an odd number of rows, so that the shards of lora_A differ
            "ema": 0.9,
            "input": "simulate",
            "gt": {"kind": "gan", "weight": 0.1},
        },
    ),
}
MODES = ("replicate", "fsdp")
RESUMED = {"replicate": ["dmd"], "fsdp": ["dmd", "w2svd-lora-gan"]}
BATCH, ITERATIONS, STOP = 4, 2, 1
SILENT = dict[str, float]


def report(done: int, total: int, entry: SILENT) -> None:
    """A report that nobody reads."""


def new_recipe(case: str, engine: Engine, **training: Any) -> Recipe:
    cls, settings = CASES[case]
    given = {"iterations": ITERATIONS, "batch_size": BATCH, "log_every": 1, "checkpoint_every": STOP, **training}
    return Recipe(method=cls.name, backbone="mini", training=Training(**given), engine=engine, settings=settings)


def new_trainer(case: str, world: World, engine: Engine, **training: Any) -> Trainer:
    cls, settings = CASES[case]
    method = cls(validated(cls.Config, settings, case), 3.0)
    return Trainer(method, new_backbone(engine), new_data(), new_recipe(case, engine, **training), 0, world)


def new_backbone(engine: Engine) -> Backbone:
    """The miniature's with a smaller transformer: what is computed hardly matters, and all that is sent takes time."""
    backbone = Backbone.load("mini", engine=engine)
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(**{**TRANSFORMER, "num_single_layers": 1})
    for parameter in transformer.parameters():
        parameter.data = parameter.data.to(backbone.dtype)
    backbone.transformer = transformer.eval()
    return backbone


def new_data() -> LatentPool:
    """Six random clips."""
    generator = torch.Generator().manual_seed(0)
    tokens, pooled = (torch.randn(6, *shape, generator=generator) for shape in ((4, TEXT_DIM), (TEXT_DIM,)))
    latents = torch.randn(6, 16, 3, 4, 4, generator=generator)
    return LatentPool(latents, Cond(tokens, torch.ones(6, 4), pooled), "random")


def engine_of(case: str, mode: str, **given: Any) -> Engine:
    return Engine(sharding=mode, gradient_checkpointing=case == "w2svd-lora-gan", **given)  # type: ignore[arg-type]


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Every trained tensor, whole, in the leading process."""
    roles = trainer.roles
    found = {f"{role}.{key}": t for role in roles.trained() for key, t in gathered(roles.parameters(role)).items()}
    return {key: tensor.clone() for key, tensor in found.items()}


def watch_first_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """A dictionary that will hold the gradients of each role's first optimiser step, whole."""
    seen: dict[str, Tensor] = {}

    def watched(role: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def look(*given: Any, **named: Any) -> Any:
            if trainer.counters.updates.get(role, 0) == 0:
                grads = {k: p.grad for k, p in trainer.roles.parameters(role).items() if p.grad is not None}
                seen.update({f"{role}.{key}": grad.clone() for key, grad in gathered(grads).items()})
            return step(*given, **named)

        return look

    for role, optimizer in trainer.optimizers.items():
        optimizer.step = watched(role, optimizer.step)  # type: ignore[method-assign]
    return seen


def keep_checkpoint(world: World, folder: Path) -> Callable[..., None]:
    """`checkpoint.save` that also copies the run folder as it is at iteration `STOP`, as if it had been killed."""

    def save(to: Path, roles: Any, optimizers: Any, counters: Any, among: World) -> None:
        checkpoint_save(to, roles, optimizers, counters, among)
        if counters.iteration == STOP:
            world.agree(lambda: shutil.copytree(to, folder) and None)

    return save


checkpoint_save = checkpoint.save


def whole_run(case: str, mode: str, world: World, root: Path, **training: Any) -> None:
    """Trains a case to the end: its log, its weights, its first gradients, its export and a copy at `STOP`."""
    name = f"{mode}-{case}" + "".join(f"-{key}{value}" for key, value in training.items())
    folder = root / name
    folder.mkdir(exist_ok=True)
    world.barrier()
    trainer = new_trainer(case, world, engine_of(case, mode), **training)
    sharded = [
        p for r in trainer.roles.trained() for p in trainer.roles.parameters(r).values() if isinstance(p, DTensor)
    ]
    assert bool(sharded) == trainer.roles.sharded == (mode == "fsdp" and world.size > 1)
    start = weights(trainer)
    gradients = watch_first_gradients(trainer)
    checkpoint.save = keep_checkpoint(world, root / f"stopped-{name}")
    try:
        trainer.fit(folder, report)
    finally:
        checkpoint.save = checkpoint_save
    leave(
        trainer,
        folder,
        {f"gradients.{k}": v for k, v in gradients.items()} | {f"start.{k}": v for k, v in start.items()},
    )
    spec = trainer.method.roles()[GENERATOR]
    export_generator(trainer.roles, spec, trainer.backbone, folder / "generator", lead=world.lead)


def leave(trainer: Trainer, folder: Path, more: dict[str, Tensor]) -> None:
    """Writes a run's weights, what it is given beside them, and its counters."""
    after = weights(trainer)
    if trainer.world.lead:
        tensors = {f"weights.{k}": v for k, v in after.items()} | more
        save_file(tensors, folder / "tensors.safetensors")
        counters = trainer.counters
        kept = {"evaluations": counters.evaluations, "updates": counters.updates, "iteration": counters.iteration}
        (folder / "counters.json").write_text(json.dumps(kept))


def resumed_run(case: str, mode: str, world: World, stopped: Path, folder: Path) -> None:
    """Goes on from a copy of a stopped run, and leaves what a whole one leaves."""
    world.agree(lambda: shutil.copytree(stopped, folder) and None)
    trainer = new_trainer(case, world, engine_of(case, mode))
    trainer.fit(folder, report)
    leave(trainer, folder, {})


def restored(case: str, mode: str, world: World, folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint as this world and mode read them."""
    trainer = new_trainer(case, world, engine_of(case, mode))
    checkpoint.restore(folder, trainer.roles, trainer.optimizers, world)
    return weights(trainer)


def diverging_run(mode: str, world: World) -> dict[str, Any]:
    """A loss that is not a number in the last process only."""
    trainer = new_trainer("lcm", world, engine_of("lcm", mode))
    (update,) = trainer.method.updates(0)

    def spoiled(batch: Any, rng: Any) -> Loss:
        loss = update.loss(batch, rng)
        return Loss(loss.total * float("nan")) if world.rank == world.size - 1 else loss

    before = weights(trainer)
    trainer.method.updates = lambda iteration: [Update(GENERATOR, spoiled)]  # type: ignore[method-assign]
    said = failure_of(lambda: trainer.step(0))
    same = all(torch.equal(before[key], value) for key, value in weights(trainer).items())
    return {"said": said, "same": same}


def damaged_run(world: World, stopped: Path, folder: Path) -> str:
    """The file of the last process is cut short: only that process can see it."""

    def damage() -> None:
        shutil.copytree(stopped, folder)
        path = folder / checkpoint.FOLDER / str(STOP) / f"rank{world.size - 1}.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    world.agree(damage)
    trainer = new_trainer("dmd", world, engine_of("dmd", "fsdp"))
    return failure_of(lambda: trainer.fit(folder, report))


def failure_of(act: Callable[[], Any]) -> str:
    try:
        act()
    except BenchError as error:
        return error.what
    return "no error"


def in_bfloat16(mode: str, world: World) -> dict[str, Any]:
    """One iteration with frozen weights and activations in bfloat16, trained ones in float32."""
    case, times = "w2svd", set()
    trainer = new_trainer(case, world, engine_of(case, mode, dtype="bfloat16"), iterations=1)
    trainer.roles.base.transformer.time_text_embed.register_forward_hook(
        lambda module, given, out: times.add(str(given[0].dtype))
    )
    gradients = watch_first_gradients(trainer)
    trainer.step(0)
    own = [p for role in trainer.roles.trained() for p in trainer.roles.parameters(role).values()]
    return {
        "trained": sorted({str(p.dtype) for p in own}),
        "frozen": str(trainer.roles.base.transformer.proj_out.weight.dtype),
        "gradients": sorted({str(g.dtype) for g in gradients.values()}),
        "times": sorted(times),
        "norms": {k: float(v.norm()) for k, v in gradients.items()},
    }


def collectives(world: World) -> dict[str, Any]:
    """What the world's own functions give in this process."""
    world_module.BUCKET_BYTES = 16  # so that a few numbers are already several buckets
    tensors = [
        torch.full((3,), float(world.rank)),
        torch.full((2, 2), 1.0 + world.rank),
        torch.tensor(world.rank + 0.5),
    ]
    tensors.append(torch.full((2,), 2.0 * world.rank, dtype=torch.bfloat16))
    world.mean_(tensors)

    def fails(where: int) -> Callable[[], None]:
        def act() -> None:
            if world.rank == where:
                raise BenchError(f"it failed in process {where}", "because", "mend it")

        return act

    return {
        "part": list(world.part(6)),
        "uneven": failure_of(lambda: world.part(3)),
        "means": [t.flatten().tolist() for t in tensors],
        "gathered": world.gather({"rank": world.rank}),
        "agreed": world.agree(lambda: f"process {world.rank}"),
        "agree fails": failure_of(lambda: world.agree(fails(0))),
        "together": world.together(lambda: world.rank),
        "together fails": failure_of(lambda: world.together(fails(1))),
    }


def trained(world: World, folder: Path) -> dict[str, Any]:
    """`train` from the run folder to the export, twice: the second time it is finished.

    The processes' peaks are 100, 101, ... bytes.
    """
    digests, peaks = [], []
    loop.peak_memory_bytes = lambda: 100 + world.rank
    for _ in range(2):
        engine = engine_of("lcm", "fsdp")
        recipe, (cls, settings) = new_recipe("lcm", engine, iterations=1), CASES["lcm"]
        run = Run("lcm", "mini", "lcm", 0, recipe.model_dump(mode="json"), backbone_sha256="", data="random")
        method = cls(validated(cls.Config, settings, "lcm"), 3.0)
        done = train(method, new_backbone(engine), new_data(), recipe, run, folder, report, world)
        digests.append(done.weights_sha256)
        peaks.append(done.peak_memory_bytes)
    return {"digests": digests, "peaks": peaks}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    world = World.start("cpu")
    out: dict[str, Any] = {"collectives": collectives(world)}
    for mode in MODES:
        for case in CASES:
            whole_run(case, mode, world, root)
        for case in RESUMED[mode]:
            resumed_run(case, mode, world, root / f"stopped-{mode}-{case}", root / f"resumed-{mode}-{case}")
        out[f"diverging {mode}"] = diverging_run(mode, world)
        out[f"bfloat16 {mode}"] = in_bfloat16(mode, world)
    whole_run("w2svd-lora-gan", "fsdp", world, root, micro_batch=1, iterations=1)
    out["damaged"] = damaged_run(world, root / "stopped-fsdp-dmd", root / "damaged")
    out["trained"] = trained(world, root / "trained")
    (root / f"rank{world.rank}.json").write_text(json.dumps(out))
    world.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
