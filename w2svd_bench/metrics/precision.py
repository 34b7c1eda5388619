"""How feature nets are run, so that a clip's features are the same on every run and nearly so on every device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Networks run in float32 as it is, without TensorFloat-32, without kernels chosen by stopwatch, without gradients.

    TorchScript runs as it is written: its optimiser would compile kernels on a GPU, for which it needs a matching CUDA
    toolkit, and only after a few calls, so that the first clips would not be computed as the later ones are.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.no_grad(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.jit.optimized_execution(False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
