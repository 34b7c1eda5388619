"""Random weights in the format of pytorch-fid's Inception file, made on demand and always the same.

A metric over them measures nothing that means anything, but all of its code runs, and runs as with the real file.
"""

from __future__ import annotations

import io
import math
from functools import cache

import torch
from torchvision.models import inception_v3

ENTRIES = 566  # in the published file, BatchNorm's counters and the classifier among them


@cache
def inception() -> bytes:
    """For ``pt_inception-2015-12-05-6726825d.pth``: a plain state dict of 23.9 M parameters.

    Convolutions are drawn by He's rule. torchvision's own initialisation, or none, makes the features of all images the
    same to eight digits, and a test over them would prove nothing.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    state = net.state_dict()
    for name, value in state.items():
        if value.dim() == 4:
            fan_in = math.prod(value.shape[1:])
            state[name] = torch.randn(value.shape, generator=generator) * math.sqrt(2 / fan_in)
        elif name.startswith("fc."):
            state[name] = torch.zeros_like(value)
    assert len(state) == ENTRIES, f"{len(state)} entries: torchvision's network has changed"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
