"""What passes through a transformer cost in memory and arithmetic, measured on the meta device on blocks of real size.

Operators on the meta device make tensors with shapes and no memory, so a block of the 13B model with 67,000 tokens
runs forward and backward in a tenth of a second, and what it would have kept is counted by its storages. Attention is
replaced by a stand-in that keeps what a flash kernel keeps: on the meta device torch would choose the kernel that
writes all N x N scores, and a plan made of that says 450 GB for one block. Axes: B batch (always 1), N tokens, D width.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from unittest import mock

import torch
from diffusers.models.transformers import transformer_hunyuan_video
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from w2svd_bench.backbones.adapters import AdapterState
from w2svd_bench.backbones.discriminator import Discriminator
from w2svd_bench.backbones.network import Network
from w2svd_bench.backbones.skeleton import Kind, Skeleton

Part = Literal[Kind, "shell", "head"]
Reach = Literal["input", "weights"]
FRAMES = (4, 16)  # latent frames of the two measurements that a line is drawn through
FRAME = 64  # latent pixels a side: with a patch of 2 a frame has 1024 tokens
ATTENTION_BACKWARD = 2.5  # a flash backward makes five products of matrices, its forward two (arXiv 2205.14135)


@dataclass(frozen=True)
class Line:
    """A quantity that grows with the tokens: ``base + slope tokens``."""

    base: float
    slope: float

    def at(self, tokens: int) -> float:
        return max(0.0, self.base + self.slope * tokens)


class Meter(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, as long as they live, and the operations.

    Works on any device; on the meta device it is the only way to know. ``ignore`` takes tensors that don't count.
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.operations = 0
        self._alive: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in ignore}

    def reset(self) -> None:
        """Begins a new peak, from what is alive."""
        self.peak, self.operations = self.now, 0

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out


class _Flash(torch.autograd.Function):
    """Attention as a flash kernel uses memory: the inputs, the output and a float32 number a query row are kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, rows = ctx.saved_tensors
        _sums = torch.empty_like(query, dtype=torch.float32), torch.empty_like(rows)  # flash 2 adds dQ up in float32
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def flash_attention() -> Iterator[None]:
    """Replaces the attention of HunyuanVideo's blocks by the stand-in; its results mean nothing."""

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        if attn_mask is not None:
            raise ValueError("a flash kernel takes no mask")
        out: Tensor = _Flash.apply(query, key, value)
        return out

    with mock.patch.object(transformer_hunyuan_video, "dispatch_attention_fn", attend):
        yield


def attention_operations(skeleton: Skeleton, tokens: int) -> float:
    """Floating point operations of one block's attention on one clip, forward: two products of N x N x D."""
    return 4.0 * skeleton.width * tokens**2


@dataclass(frozen=True, eq=False)
class Cost:
    """What one part of the transformer costs on one clip, by the tokens that pass through it.

    A block takes image and text tokens together; what stands outside the blocks (``shell``) and the discriminator's
    ``head`` behind them are measured by image tokens. A line is measured when it is first asked for.

    Attributes:
        skeleton: whose part; dtype: of activations and frozen weights.
        reach: whether gradients go to the part's weights (its LoRA's where there is one) or only through it.
        rank: of a LoRA on it; 0 for none.
    """

    skeleton: Skeleton
    part: Part
    reach: Reach
    rank: int
    dtype: torch.dtype

    @property
    def quiet(self) -> Line:
        """Most bytes alive during a pass that keeps nothing, beside its inputs."""
        return self._quiet[0]

    @property
    def forward(self) -> Line:
        """Floating point operations of a pass, attention's left out."""
        return self._quiet[1]

    @property
    def again(self) -> Line:
        """Most bytes alive while a checkpointed part is computed again and its backward runs, beside its inputs."""
        return self._again[0]

    @property
    def backward(self) -> Line:
        """Floating point operations of backward, attention's left out."""
        again, forward = self._again[1], self.forward
        return Line(again.base - forward.base, again.slope - forward.slope)

    @property
    def saved(self) -> Line:
        """Bytes kept for backward without checkpointing, beside weights and inputs."""
        return self._kept[0]

    @property
    def beyond(self) -> Line:
        """Most bytes alive during backward without checkpointing, beside what was saved."""
        return self._kept[1]

    @cached_property
    def _quiet(self) -> tuple[Line, Line]:
        if self.reach != "input":  # a pass without gradients does not depend on where they would go
            return cost(self.skeleton, self.part, "input", self.rank, self.dtype)._quiet
        return self._lines(_quiet)

    @cached_property
    def _again(self) -> tuple[Line, Line]:
        return self._lines(_again)

    @cached_property
    def _kept(self) -> tuple[Line, Line]:
        return self._lines(_kept)

    def _lines(self, measure: Callable[[_Bench], tuple[float, float]]) -> tuple[Line, Line]:
        """Straight lines through two measurements."""
        few, many = (self._measured(measure, frames) for frames in FRAMES)
        slopes = [(high - low) / (many[0] - few[0]) for low, high in zip(few[1], many[1], strict=True)]
        first, second = (Line(low - slope * few[0], slope) for low, slope in zip(few[1], slopes, strict=True))
        return first, second

    def _measured(
        self, measure: Callable[[_Bench], tuple[float, float]], frames: int
    ) -> tuple[int, tuple[float, float]]:
        """The tokens of so many frames, and what was measured with them."""
        doubles, singles = {"double": (1, 0), "single": (0, 1)}.get(self.part, (0, 0))
        with torch.device("meta"):
            network = Network(self.skeleton.with_blocks(doubles, singles).build(self.dtype), 1.0)
            state = AdapterState()
            network.transformer.requires_grad_(self.reach == "weights" and not self.rank)
            if self.rank:
                network.adapters.add("lora", self.rank)
                state = AdapterState("lora")
                for parameter in network.adapters.parameters("lora").values():
                    parameter.requires_grad_(self.reach == "weights")
            make = {"head": _head, "shell": _shell}.get(self.part, _block)
            inputs, run = make(self.skeleton, network, self.reach, self.dtype, frames)
            known = [*network.transformer.parameters(), *inputs]
            for parameter in network.transformer.parameters():
                if parameter.requires_grad:  # roles keep gradients of their own, which are counted there
                    parameter.grad = torch.empty_like(parameter)
                    known.append(parameter.grad)
        image = _image_tokens(self.skeleton, frames)
        text = self.skeleton.text_tokens if self.part in ("double", "single") else 0
        with flash_attention(), network.adapters.using(state):
            return image + text, measure(_Bench(network, run, inputs, known))


@functools.cache
def cost(skeleton: Skeleton, part: Part, reach: Reach, rank: int = 0, dtype: torch.dtype = torch.bfloat16) -> Cost:
    """The `Cost` of a part of a skeleton; the same object for the same question."""
    return Cost(skeleton, part, reach, rank, dtype)


Run = Callable[..., tuple[Tensor, ...]]


@dataclass
class _Bench:
    """A part on the meta device, ready to run; ``known`` are the tensors that don't count."""

    network: Network
    run: Run
    inputs: list[Tensor]
    known: list[Tensor]


def _quiet(bench: _Bench) -> tuple[float, float]:
    """(bytes, operations) of a pass without gradients."""
    with Meter(bench.known) as meter, torch.no_grad():
        bench.run(*bench.inputs)
    return meter.peak, meter.operations


def _again(bench: _Bench) -> tuple[float, float]:
    """(bytes, operations) of the second pass and the backward of a checkpointed part."""
    with Meter(bench.known) as meter:
        end = _sum(bench.network.adapters.checkpoint(bench.run, *bench.inputs))  # type: ignore[arg-type]
        meter.reset()
        end.backward()
    return meter.peak, meter.operations


def _kept(bench: _Bench) -> tuple[float, float]:
    """Bytes kept for backward, and those that backward needs beyond them."""
    ours = {tensor.untyped_storage()._cdata for tensor in bench.known}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in ours:
            kept[storage._cdata] = (storage.nbytes(), tensor)  # the tensor too: its storage's number stays its own
        return tensor

    with Meter(bench.known) as meter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            end = _sum(bench.run(*bench.inputs))
        saved = sum(size for size, _ in kept.values())
        kept.clear()
        meter.reset()
        end.backward()
    return saved, max(0, meter.peak - saved)


def _image_tokens(skeleton: Skeleton, frames: int) -> int:
    return frames * (FRAME // int(skeleton.config["patch_size"])) ** 2


def _sum(outputs: tuple[Tensor, ...]) -> Tensor:
    """An end for backward to begin at. It brings a gradient without memory: in a row of blocks the true gradient of a
    block's outputs is there once the block behind it has let go of as much, its inputs.
    """
    return torch.stack([output.sum() for output in outputs if output.requires_grad]).sum()


def _block(
    skeleton: Skeleton, network: Network, reach: Reach, dtype: torch.dtype, frames: int
) -> tuple[list[Tensor], Run]:
    """One block: image and text tokens, and what every block is given beside them."""
    (block,) = network.blocks
    count, width = _image_tokens(skeleton, frames), skeleton.width
    image, text = (torch.empty(1, n, width, dtype=dtype, requires_grad=True) for n in (count, skeleton.text_tokens))
    level = torch.empty(1, width, dtype=dtype)
    positions = [torch.empty(count, skeleton.head_width) for _ in range(2)]

    def run(image: Tensor, text: Tensor, level: Tensor, *positions: Tensor) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = block(image, text, level, None, positions, level, count // frames)
        return out

    return [image, text, level, *positions], run


def _shell(
    skeleton: Skeleton, network: Network, reach: Reach, dtype: torch.dtype, frames: int
) -> tuple[list[Tensor], Run]:
    """The whole transformer without its blocks: embeddings before, norm and projection behind."""
    config = network.transformer.config
    latents = torch.empty(1, config.in_channels, frames, FRAME, FRAME, dtype=dtype, requires_grad=True)
    text = torch.empty(1, skeleton.text_tokens, config.text_embed_dim, dtype=dtype)
    pooled, one = torch.empty(1, config.pooled_projection_dim, dtype=dtype), torch.empty(1, dtype=dtype)

    def run(latents: Tensor, text: Tensor, pooled: Tensor, one: Tensor) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = network.transformer(
            hidden_states=latents,
            timestep=one.float(),
            encoder_hidden_states=text,
            encoder_attention_mask=text[:, :, 0],
            pooled_projections=pooled,
            guidance=one if config.guidance_embeds else None,
            return_dict=False,
        )
        return out

    return [latents, text, pooled, one], run


def _head(
    skeleton: Skeleton, network: Network, reach: Reach, dtype: torch.dtype, frames: int
) -> tuple[list[Tensor], Run]:
    """The discriminator's head on the image tokens."""
    head = Discriminator(network).head.requires_grad_(reach == "weights")
    count = _image_tokens(skeleton, frames)
    image = torch.empty(1, count, skeleton.width, dtype=dtype, requires_grad=reach == "input")
    return [image, *head.parameters()], lambda image, *_: (head(image.to(torch.float32)).mean(dim=(1, 2)),)
