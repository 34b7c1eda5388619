"""Models of any size, and a GPU, that aren't there: tensors that say how large they are and where, and hold nothing.

PyTorch's fake tensors know shape, type and device of every result, and an operation on tensors of two devices, or of
types that don't go together, fails on them as it does on a GPU. What code asks of their values gets a made-up answer:
every number is 1 and every mask is whole. On the GPU a backward pass is not run, for it needs a driver: what learns
gets zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from w2svd_bench.backbones.untrained import Untrained

DEVICE = "cuda:0"
_GENERATOR = torch.Generator


class Untaught(Untrained):
    """A backbone without weights to draw: it is made where it lies."""

    @cached_property
    def transformer(self) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                return HunyuanVideoTransformer3DModel(**self.config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)


class _Answers(TorchFunctionMode):
    """What fake tensors can't tell."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item:
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        if func in _SCALARS:
            return _SCALARS[func]
        if func is Tensor.numpy:
            assert args[0].device.type == "cpu", "NumPy can't read a GPU's memory"
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        if func in (torch.stack, torch.cat):  # fake ones take numbers of the CPU among those of a GPU
            devices = {str(one.device) for one in args[0]}
            assert len(devices) == 1, f"{func.__name__} of tensors on {devices}"
        if func is Tensor.nonzero:
            return torch.arange(len(args[0]), device=args[0].device)[:, None]
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            assert args[1].device in (args[0].device, torch.device("cpu")), "a mask of another GPU"
            return args[0]
        return func(*args, **(kwargs or {}))


_SCALARS = {Tensor.__float__: 1.0, Tensor.__bool__: True, Tensor.__int__: 1}


@contextmanager
def fake_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, every new tensor is a fake one."""
    monkeypatch.setattr(nn.Module, "_apply", _apply)
    with FakeTensorMode(), _Answers():
        yield


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch, learning: Callable[[], Iterable[nn.Parameter]]) -> Iterator[None]:
    """Inside, ``cuda:0`` can be computed on; ``learning`` gives the parameters that a backward pass may reach."""

    def backward(loss: Tensor) -> None:
        reached = [parameter for parameter in learning() if parameter.requires_grad]
        assert reached and loss.requires_grad
        for parameter in reached:
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": _GENERATOR())
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # nothing asks a driver that isn't there
    silent: Mapping[str, Any] = {"synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None}
    for name, answer in {**silent, "max_memory_allocated": 0, "get_device_name": "a fake GPU"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    with fake_tensors(monkeypatch):
        yield


def _apply(self: nn.Module, move: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module.to` and its like with new parameters: torch would swap contents, and fake parameters have none."""
    for child in self.children() if recurse else ():
        _apply(child, move)
    with torch.no_grad():
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = nn.Parameter(move(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = move(buffer)
    return self
