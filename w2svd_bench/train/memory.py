"""Peak memory of this process."""

import resource
import sys

import torch


def peak_memory_bytes() -> int:
    """Peak bytes allocated on the GPU where one is in use, else the peak resident size of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
