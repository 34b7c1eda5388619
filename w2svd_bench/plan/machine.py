"""The machine that a run is planned for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from w2svd_bench.errors import BenchError

GB = 1e9  # bytes; a card that is sold as 80 GB holds 85e9 of them, so this errs on the safe side
USABLE = 0.95  # of a GPU's memory: the rest is lost between the blocks of torch's allocator
CONTEXT = 1.5e9  # bytes a GPU for the CUDA context and NCCL's buffers: not measured here


@dataclass(frozen=True)
class Machine:
    """A number of equal GPUs.

    Attributes:
        gpus: how many.
        gpu_memory: bytes of each.
    """

    gpus: int
    gpu_memory: float

    @classmethod
    def of(cls, gpus: int, gigabytes: float) -> Machine:
        """GPUs as they are sold; raises `BenchError` for numbers that are no machine."""
        if gpus < 1 or gigabytes <= 0:
            raise BenchError(
                f"{gpus} GPUs of {gigabytes:g} GB are no machine",
                "both numbers have to be positive",
                "for example --gpus 8 --gpu-memory 80",
            )
        return cls(gpus, gigabytes * GB)

    @classmethod
    def here(cls, processes: int, device: str) -> Machine:
        """As many GPUs as a run has processes, each like the one of this process; a CPU is taken to have no end."""
        import torch

        if not device.startswith("cuda"):
            return cls(processes, math.inf)
        return cls(processes, torch.cuda.get_device_properties(device).total_memory)

    @property
    def usable(self) -> float:
        """Bytes of one GPU that a run may plan with."""
        return USABLE * self.gpu_memory - CONTEXT

    def __str__(self) -> str:
        return f"{self.gpus} x {self.gpu_memory / GB:g} GB"
