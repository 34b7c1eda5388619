"""Networks over several processes: FSDP2 shards, copies that are never whole in one process, and whole tensors again.

FSDP2 keeps of every parameter the rows that belong to a process (a `DTensor`) and gathers a module's parameters for
as long as it runs. One module may mix frozen bfloat16 weights with float32 LoRA, as long as all that is *trainable* in
it is of one type when the network runs first; the versions before 2.15 also fix the type of its gradients then, from
what is trainable at that moment. So that nothing depends on who learns first, `settle` does this bookkeeping with
every adapter marked trainable. (torch 2.15 was read and run; of earlier ones, that piece of the source was read.)
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from w2svd_bench.backbones.network import Network


def shard(network: Network, mesh: DeviceMesh) -> None:
    """Shards a network's transformer over the mesh, block by block; call it when all adapters are there.

    Every part outside the blocks becomes a module of its own and the root keeps no weights: a root would either hold
    its weights whole after a pass without gradients, while an average moves on underneath, or miss them in the
    backward pass of a discriminator, which never uses the root's output.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=network.dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # noise levels are float32, whatever the weights are
    )
    # Some modules return views, and nothing here or in diffusers' HunyuanVideo writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    transformer = network.transformer
    blocks = network.blocks
    others = [child for child in transformer.children() if not isinstance(child, nn.ModuleList)]
    for module in [*blocks, *others, transformer]:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def settle(network: Network) -> None:
    """Does the bookkeeping of a sharded network's first forward pass, when its weights are in place; see above."""
    parameters = dict(network.transformer.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    adapters = {name for name in parameters if ".lora_" in name}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in adapters or not adapters)
    fully_shard.state(network.transformer)._lazy_init()  # type: ignore[attr-defined]
    for name, parameter in parameters.items():
        parameter.requires_grad_(flags[name])


def skeleton(network: Network, dtype: torch.dtype) -> Network:
    """The same network with weights of another type that take no memory yet; `fill` brings them to life."""
    transformer = network.transformer
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, dtype=dtype, device="meta"), requires_grad=False)
        for parameter in transformer.parameters()
    }
    return Network(copy.deepcopy(transformer, memo), network.guidance, network.dtype)


@torch.no_grad()
def fill(network: Network, base: Network, device: torch.device | str) -> None:
    """Gives a skeleton the base's weights, without its adapters: both whole, or both sharded over the same mesh.

    Rows lie alike in both, so each process copies its own and nothing is sent.
    """
    network.transformer.to_empty(device=device)
    sources = {name.replace(".base_layer.", "."): p for name, p in base.transformer.named_parameters()}
    for name, parameter in network.transformer.named_parameters():
        local(parameter).copy_(local(sources[name]))
    for own, buffer in zip(network.transformer.buffers(), base.transformer.buffers(), strict=True):
        own.copy_(buffer)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its rows if it is sharded, else all of it; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows(tensor: Tensor) -> tuple[int, int]:
    """The rows (first axis) of a sharded tensor that this process holds, [first, last): FSDP2 deals equal parts."""
    assert isinstance(tensor, DTensor)
    count, mesh = tensor.shape[0], tensor.device_mesh
    share = -(-count // mesh.size())
    first = min(count, mesh.get_local_rank() * share)
    last = min(count, first + share)
    held = tensor.to_local().shape[0]
    if held != last - first:
        raise RuntimeError(f"a shard holds {held} rows where FSDP2 deals {last - first}: torch has changed its layout")
    return first, last


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor | None:
    """The whole tensor on the CPU in the leading process, None in the others; all processes call it together.

    A tensor that is whole and on the CPU already is not copied.
    """
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    leads = not dist.is_initialized() or dist.get_rank() == 0
    return whole.detach().cpu() if leads else None


def gathered(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors by name on the CPU in the leading process, one after the other; empty in the others.

    All processes call it together.
    """
    whole = ((name, full_tensor(tensor)) for name, tensor in parameters.items())
    return {name: tensor for name, tensor in whole if tensor is not None}
