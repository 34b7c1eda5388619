"""Training on two processes (gloo, CPU) is training on one: replicas and FSDP2 shards, micro batches, resuming.

Two processes are launched once for all tests here; what each does is in ``distributed_worker.py``, which the tests
also call for a process that runs alone. Differences are of rounding only: matrix products of two clips are not summed
up in the order of those of four.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from w2svd_bench import world as world_module
from w2svd_bench.backbones.export import LORA_FILE, generator_sha256
from w2svd_bench.errors import BenchError
from w2svd_bench.train import checkpoint
from w2svd_bench.train import log as run_log
from w2svd_bench.train.loop import Trainer
from w2svd_bench.world import World

WORKER = Path(__file__).with_name("distributed_worker.py")
CASES = ("lcm", "dmd", "w2svd", "w2svd-lora-gan")
MODES = ("replicate", "fsdp")
SECONDS = 600


def load_worker() -> ModuleType:
    spec = spec_from_file_location("distributed_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left; test processes of one session share it, and one of them launches."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two-processes"
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            launch(root)
    return root


def launch(root: Path) -> None:
    root.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        environment = shared | {"RANK": rank, "LOCAL_RANK": rank}
        said = (root / f"rank{rank}.log").open("w")
        command = [sys.executable, str(WORKER), str(root)]
        processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
    try:
        statuses = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join((root / f"rank{rank}.log").read_text()[-3000:] for rank in (0, 1))
    assert statuses == [0, 0], logs


@pytest.fixture(scope="module")
def said(two: Path) -> list[dict[str, Any]]:
    """What each of the two processes wrote down, by rank."""
    return [json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of the same run in one process, made when it is first asked for."""
    root, done = tmp_path_factory.mktemp("alone"), set[str]()

    def run(case: str, **training: Any) -> Path:
        name = f"replicate-{case}" + "".join(f"-{key}{value}" for key, value in training.items())
        if name not in done:
            worker.whole_run(case, "replicate", World(), root, **training)
            done.add(name)
        return root / name

    return run


def tensors(folder: Path, kind: str) -> dict[str, Tensor]:
    every = load_file(folder / "tensors.safetensors")
    return {key.removeprefix(f"{kind}."): t for key, t in every.items() if key.startswith(f"{kind}.")}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The norm of all differences over that of ``second``."""
    assert first.keys() == second.keys() != set()
    a, b = (torch.cat([t.double().flatten() for _, t in sorted(side.items())]) for side in (first, second))
    return float((a - b).norm() / b.norm())


def moved(folder: Path) -> dict[str, Tensor]:
    """How far each weight went from where it began."""
    start = tensors(folder, "start")
    return {key: value - start[key] for key, value in tensors(folder, "weights").items()}


def of_role(values: dict[str, Tensor], role: str) -> dict[str, Tensor]:
    return {key: value for key, value in values.items() if key.split(".")[0] == role}


def assert_same_training(first: Path, second: Path) -> None:
    """Gradients, losses, weights, averages and counters of two runs agree up to rounding."""
    gradients = tensors(first, "gradients"), tensors(second, "gradients")
    for role in {key.split(".")[0] for key in gradients[0]}:
        # A generator's gradient is the difference of two networks that are still nearly one.
        assert distance(of_role(gradients[0], role), of_role(gradients[1], role)) < 1e-4, role
    assert distance(tensors(first, "start"), tensors(second, "start")) == 0
    ways = moved(first), moved(second)
    for role in {key.split(".")[0] for key in ways[0]}:
        # AdamW's first steps are of one size whatever the gradient's, so rounding shows in weights that hardly matter.
        assert distance(of_role(ways[0], role), of_role(ways[1], role)) < 2e-3, role
    logs = run_log.read(first), run_log.read(second)
    assert len(logs[0]) == len(logs[1]) > 0
    for ours, theirs in zip(*logs, strict=True):
        names = {name for name in ours if name.endswith(("/loss", "/gradient_norm"))}
        assert names == {name for name in theirs if name.endswith(("/loss", "/gradient_norm"))} != set()
        assert {n: ours[n] for n in names} == pytest.approx({n: theirs[n] for n in names}, rel=1e-4, abs=1e-7)
    counters = [json.loads((folder / "counters.json").read_text()) for folder in (first, second)]
    assert counters[0] == counters[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(case: str, mode: str, two: Path, alone: Callable[..., Path]) -> None:
    assert_same_training(two / f"{mode}-{case}", alone(case))


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_are_the_whole_batch(size: int, alone: Callable[..., Path]) -> None:
    """Of 4 clips: one at a time, and 3 and 1."""
    case = "w2svd-lora-gan" if size == 1 else "dmd"
    assert_same_training(alone(case, micro_batch=size), alone(case))


def test_micro_batches_of_two_sharded_processes_are_the_whole_batch(two: Path, alone: Callable[..., Path]) -> None:
    training = {"micro_batch": 1, "iterations": 1}
    split = two / "fsdp-w2svd-lora-gan-micro_batch1-iterations1"
    assert_same_training(split, alone("w2svd-lora-gan", iterations=1))
    assert_same_training(split, alone("w2svd-lora-gan", **training))


# --- Checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "case"), [("replicate", "dmd"), ("fsdp", "dmd"), ("fsdp", "w2svd-lora-gan")])
def test_a_resumed_run_of_two_processes_is_bitwise_the_one_that_never_stopped(mode: str, case: str, two: Path) -> None:
    whole, resumed = two / f"{mode}-{case}", two / f"resumed-{mode}-{case}"
    assert distance(tensors(resumed, "weights"), tensors(whole, "weights")) == 0
    last = [{k: v for k, v in run_log.read(folder)[-1].items() if "/" in k} for folder in (whole, resumed)]
    assert last[0] == last[1]
    assert (whole / "counters.json").read_text() == (resumed / "counters.json").read_text()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["dmd", "w2svd-lora-gan"])
def test_one_process_goes_on_from_a_checkpoint_of_two(
    case: str, mode: str, two: Path, alone: Callable[..., Path], tmp_path: Path
) -> None:
    stopped = two / f"stopped-{mode}-{case}"
    found = worker.restored(case, "replicate", World(), stopped)
    # Put together by hand from the files, the other way round than `restore` does it.
    index = json.loads((stopped / checkpoint.FOLDER / checkpoint.INDEX).read_text())
    files = {name: load_file(stopped / checkpoint.FOLDER / name) for name in files_of(index)}
    assert len(files) == (2 if mode == "fsdp" else 1)
    for key, value in found.items():
        pieces = sorted(index["tensors"][f"roles.{key}"]["pieces"], key=lambda piece: piece[1])
        assert torch.equal(torch.cat([files[file][f"roles.{key}"] for file, *_ in pieces]), value)
    assert distance(found, tensors(two / f"{mode}-{case}", "weights")) > 0  # the run went on from there
    worker.resumed_run(case, "replicate", World(), stopped, tmp_path / "resumed")
    start = tensors(alone(case), "start")
    ways = [
        {key: value - start[key] for key, value in tensors(folder, "weights").items()}
        for folder in (tmp_path / "resumed", alone(case))
    ]
    assert distance(ways[0], ways[1]) < 2e-3


def files_of(index: dict[str, Any]) -> set[str]:
    return {piece[0] for entry in index["tensors"].values() for piece in entry["pieces"]}


def test_a_checkpoint_holds_all_that_is_trained_once(two: Path) -> None:
    folder = two / "stopped-fsdp-w2svd-lora-gan" / checkpoint.FOLDER
    index = json.loads((folder / checkpoint.INDEX).read_text())
    assert index["processes"] == 2
    roles = {key.split(".")[1] for key in index["tensors"] if key.startswith("roles.")}
    assert roles == {"generator", "generator_ema", "fake", "discriminator"}
    assert {k.split(".")[1] for k in index["tensors"] if k.startswith("optimizers.")} == roles - {"generator_ema"}
    kinds = {key.rsplit(".", 1)[1] for key in index["tensors"] if key.startswith("optimizers.")}
    assert kinds == {"step", "exp_avg", "exp_avg_sq"}
    for key, entry in index["tensors"].items():
        spans = sorted(piece[1:] for piece in entry["pieces"])
        assert spans[0][0] == 0
        assert spans[-1][1] == (entry["shape"][0] if entry["shape"] else 1)
        assert all(before[1] == after[0] for before, after in pairwise(spans)), key
        if key.startswith("roles.discriminator"):
            assert len(spans) == 1
    split = [entry["pieces"] for entry in index["tensors"].values() if len(entry["pieces"]) == 2]
    assert [["1/rank0.safetensors", 0, 3], ["1/rank1.safetensors", 3, 5]] in split  # a LoRA of rank 5
    others = [path.name for path in folder.parent.parent.glob("fsdp-w2svd-lora-gan/checkpoint/*") if path.is_dir()]
    assert others == ["2"]  # of the run that went on: the first one is gone


def test_a_piece_that_one_process_misses_is_refused_by_all(said: list[dict[str, Any]]) -> None:
    for one in said:
        assert one["damaged"].startswith("the checkpoint ")


# --- What all processes do alike ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_no_number_in_one_process_stops_both(mode: str, said: list[dict[str, Any]]) -> None:
    for one in said:
        assert one[f"diverging {mode}"]["said"].startswith("training diverged: the loss of role 'generator' is nan")
        assert one[f"diverging {mode}"]["same"]


def test_a_run_is_written_and_exported_once(said: list[dict[str, Any]], two: Path) -> None:
    digests = {digest for one in said for digest in one["trained"]["digests"]}
    assert digests == {generator_sha256(two / "trained" / "generator")}
    assert json.loads((two / "trained" / "run.json").read_text())["finished"]


def test_the_peak_of_a_run_is_that_of_the_process_that_took_most(said: list[dict[str, Any]], two: Path) -> None:
    assert [one["trained"]["peaks"] for one in said] == [[101, 101]] * 2
    assert [entry["peak_memory_bytes"] for entry in run_log.read(two / "trained")] == [101]
    index = json.loads((two / "trained" / checkpoint.FOLDER / checkpoint.INDEX).read_text())
    assert index["counters"]["peak_memory_bytes"] == 101


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["dmd", "w2svd-lora-gan"])
def test_what_is_exported_is_the_average(case: str, mode: str, two: Path) -> None:
    folder = two / f"{mode}-{case}"
    average = of_role(tensors(folder, "weights"), "generator_ema")
    if case == "dmd":
        exported = load_file(folder / "generator" / "transformer" / "diffusion_pytorch_model.safetensors")
        exported = {f"generator_ema.{key}": value for key, value in exported.items()}
    else:
        exported = load_file(folder / "generator" / LORA_FILE)
        exported = {key.replace("transformer.", "generator_ema.", 1): value for key, value in exported.items()}
    assert distance(exported, average) == 0


def test_bfloat16_keeps_trained_weights_gradients_and_noise_levels_in_float32(said: list[dict[str, Any]]) -> None:
    """Frozen weights and activations are bfloat16; gradients are as large sharded as whole."""
    whole, sharded = (said[0][f"bfloat16 {mode}"] for mode in MODES)
    for one in (whole, sharded):
        assert one["trained"] == one["gradients"] == one["times"] == ["torch.float32"]
        assert one["frozen"] == "torch.bfloat16"
    assert whole["norms"].keys() == sharded["norms"].keys()
    for role in ("generator", "fake"):
        norms = [[v for k, v in one["norms"].items() if k.startswith(f"{role}.")] for one in (whole, sharded)]
        total, difference = torch.tensor(norms[0]).norm(), (torch.tensor(norms[0]) - torch.tensor(norms[1])).norm()
        assert 0 < float(difference) < 0.01 * float(total), role


def test_the_worlds_own_functions(said: list[dict[str, Any]]) -> None:
    found = [one["collectives"] for one in said]
    assert [one["part"] for one in found] == [[0, 1, 2], [3, 4, 5]]
    for one in found:
        assert one["uneven"] == "a batch of 3 can't be shared by 2 processes"
        assert one["means"] == [[0.5] * 3, [1.5] * 4, [1.0], [1.0] * 2]
        assert one["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert one["agreed"] == "process 0"
        assert one["agree fails"] == "it failed in process 0"
        assert one["together fails"] == "it failed in process 1"
    assert [one["together"] for one in found] == [0, 1]


# --- One process that should be several -----------------------------------------------------------------------------


def started(monkeypatch: pytest.MonkeyPatch, device: str = "cpu", **environment: str) -> World:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return World.start(device)


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(monkeypatch, "cuda") == World(device="cuda")
    assert started(monkeypatch, WORLD_SIZE="1", RANK="0") == World()
    world = World()
    assert (world.lead, list(world.part(3)), world.gather(5), world.agree(lambda: 7)) == (True, [0, 1, 2], [5], 7)
    value = torch.tensor([1.0, 2.0])
    world.mean_([value])
    assert value.tolist() == [1.0, 2.0]
    world.barrier()
    world.stop()


def test_a_start_that_torchrun_did_not_make_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set"):
        started(monkeypatch, WORLD_SIZE="2", RANK="0")
    with pytest.raises(BenchError, match="'two'"):
        started(monkeypatch, WORLD_SIZE="two")
    whole = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BenchError, match="no GPU for process 1"):
        started(monkeypatch, "cuda", LOCAL_RANK="1", **whole)


def test_a_batch_that_two_processes_cant_share_is_refused() -> None:
    with pytest.raises(BenchError, match="batch of 3"):
        worker.new_trainer("lcm", World(size=2), worker.engine_of("lcm", "replicate"), batch_size=3)


def test_buckets_keep_the_order_and_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "BUCKET_BYTES", 16)
    given = [torch.zeros(3), torch.zeros(2), torch.zeros(9), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(1)]
    buckets = list(world_module._buckets(given))
    assert [[len(t) for t in bucket] for bucket in buckets] == [[3], [2], [9], [1], [2]]
    assert all(len({t.dtype for t in bucket}) == 1 for bucket in buckets)


def test_too_little_memory_is_said_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Trainer = worker.new_trainer("lcm", World(), worker.engine_of("lcm", "replicate"))
    trainer._advice = lambda: "lcm needs 4 GPUs of 80 GB"

    def full(iteration: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. And much more.")

    monkeypatch.setattr(trainer.method, "updates", full)
    with pytest.raises(BenchError, match="memory is not enough") as caught:
        trainer.step(0)
    assert caught.value.why == "CUDA out of memory. Tried to allocate 20.00 GiB\nlcm needs 4 GPUs of 80 GB"
    assert "micro_batch" in caught.value.cure
