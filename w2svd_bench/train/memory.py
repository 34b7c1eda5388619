"""Peak memory of this process."""

import resource
import sys

import torch


def peak_memory_bytes() -> int:
    """Peak bytes allocated on the GPU where one is in use, since `forget_peak`; else the process's peak resident size.

    On a CPU that is of the whole process since it began (on Linux it is never below that of the process that started
    it), with all that it loaded and validated: it can't be reset on every system, and what was freed may stay with the
    process, so that the rest would not be training's own either.
    """
    if _on_gpu():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """From here on a GPU's peak is counted anew, from what is allocated now; on a CPU nothing changes."""
    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()


def _on_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
