"""The processes of one run: who this one is, and the few things that they do together.

A run on several GPUs is one process a GPU, started by ``torchrun``, which tells each of them its place in the
environment. `World()` is a process that runs alone, for which everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from w2svd_bench.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

# The others may wait for what one process does alone, such as encoding a data set: a process that dies is noticed by
# torchrun, so a long patience costs nothing.
PATIENCE = timedelta(hours=6)
BUCKET_BYTES = 1 << 28  # what is reduced at once, so that a copy of all gradients is never held


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: its number; 0 leads and writes the files.
        size: how many there are.
        local_rank: its number on its own machine.
        device: where its tensors live, such as ``cpu`` or ``cuda:3``.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"

    @property
    def lead(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    @classmethod
    def start(cls, device: str) -> World:
        """Joins the processes that torchrun started; without torchrun, ``World(device=device)``.

        Collectives run over gloo for tensors on the CPU and over NCCL for those on GPUs.

        Args:
            device: ``cpu`` or ``cuda``; with several processes each takes the GPU of its local rank.

        Raises:
            BenchError: torchrun's variables are incomplete, there are fewer GPUs than processes, or the processes do
                not find each other.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            if device.startswith("cuda:"):
                import torch

                torch.cuda.set_device(device)  # so that memory is read, and kernels are started, on this GPU
            return cls(device=device)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in os.environ]
        wrong = [f"{n} is {os.environ[n]!r}" for n in names[:3] if n in os.environ and not os.environ[n].isdigit()]
        if missing or wrong:
            raise BenchError(
                "this process can't join the others of the run",
                "; ".join([*wrong, *([f"{', '.join(missing)} are not set"] if missing else [])]),
                "start it with torchrun --nproc-per-node=NUMBER, or unset WORLD_SIZE to run alone",
            )
        import torch
        import torch.distributed as dist

        rank, size, local = (int(os.environ[name]) for name in names[:3])
        kind = torch.device(device).type
        if kind == "cuda":
            if local >= torch.cuda.device_count():
                raise BenchError(
                    f"there is no GPU for process {local} of this machine",
                    f"torch sees {torch.cuda.device_count()} GPUs here, and each process needs one of its own",
                    f"start with --nproc-per-node={max(1, torch.cuda.device_count())}, or use --device cpu",
                )
            torch.cuda.set_device(local)
        try:
            dist.init_process_group(
                "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl", timeout=PATIENCE, rank=rank, world_size=size
            )
        except (RuntimeError, ValueError) as error:
            raise BenchError(
                f"process {rank} of {size} did not find the others", " ".join(str(error).split()), "check the network"
            ) from error
        return cls(rank, size, local, "cpu" if kind == "cpu" else f"{kind}:{local}")

    def stop(self) -> None:
        """Leaves the others; nothing here may be used afterwards."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def mesh(self) -> DeviceMesh:
        """All processes in a row, as FSDP2 shards over them."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.split(":")[0], (self.size,))

    def part(self, count: int) -> range:
        """This process's contiguous part of ``range(count)``.

        Raises:
            BenchError: ``count`` can't be divided evenly.
        """
        if count % self.size:
            raise BenchError(
                f"a batch of {count} can't be shared by {self.size} processes",
                "each takes the same number of clips",
                f"use a batch_size that {self.size} divides, such as {max(1, round(count / self.size)) * self.size}",
            )
        share = count // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def barrier(self) -> None:
        """Waits until every process is here."""
        self.gather(None)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes, which bring the same shapes in the same order."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)  # gloo has no mean
            flat /= self.size
            for tensor, mean in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value (plain data), in the order of ranks, for all of them."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, decide: Callable[[], T]) -> T:
        """What ``decide`` gives in the leading process (plain data), for all; what it raises there, all raise."""
        if self.size == 1:
            return decide()
        import torch.distributed as dist

        said: list[Any] = [None, None]
        failure: Exception | None = None
        if self.lead:
            try:
                said[0] = decide()
            except Exception as error:
                failure, said[1] = error, told(error)
        dist.broadcast_object_list(said, src=0)
        if failure is not None:
            raise failure
        if said[1] is not None:
            raise retold(said[1])
        return cast(T, said[0])

    def together(self, act: Callable[[], T]) -> T:
        """What ``act`` gives here, once it has succeeded in every process; what one of them raises, all raise.

        ``act`` must not itself wait for the others.
        """
        result: Any = None
        failure: Exception | None = None
        try:
            result = act()
        except Exception as error:
            failure = error
        failures = [said for said in self.gather(None if failure is None else told(failure)) if said is not None]
        if failure is not None:
            raise failure
        if failures:
            raise retold(failures[0])
        return cast(T, result)


ALONE = World()


def device_name(device: str) -> str:
    """What records call a device: a GPU's own name, or ``cpu``."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def told(error: Exception) -> tuple[str, ...]:
    """An error as plain data: the three parts of a `BenchError`, or one line for any other."""
    return (
        (error.what, error.why, error.cure) if isinstance(error, BenchError) else (f"{type(error).__name__}: {error}",)
    )


def retold(said: tuple[str, ...]) -> Exception:
    """The error that `told` was given, in another process."""
    return BenchError(*said) if len(said) == 3 else RuntimeError(f"in another process: {said[0]}")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors by type and place, in runs of at most `BUCKET_BYTES` (but for a single larger one)."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        bucket: list[Tensor] = []
        held = 0
        for tensor in same:
            size = tensor.numel() * tensor.element_size()
            if bucket and held + size > BUCKET_BYTES:
                yield bucket
                bucket, held = [], 0
            bucket.append(tensor)
            held += size
        if bucket:
            yield bucket
