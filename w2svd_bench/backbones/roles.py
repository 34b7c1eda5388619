"""Roles: the models of a method as callables, built on one transformer where they can share it.

Axes: B batch, C channels, T latent frames, H, W latent pixels. A role is called as ``velocity(x, t, cond)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from w2svd_bench.backbones.adapters import AdapterState, blend
from w2svd_bench.backbones.discriminator import Discriminator
from w2svd_bench.backbones.network import Network
from w2svd_bench.backbones.sharding import fill, settle, shard, skeleton
from w2svd_bench.config import Engine
from w2svd_bench.types import TEACHER, Cond, average_of
from w2svd_bench.world import ALONE, World

PLAIN = Engine()


@dataclass
class Role:
    """A view of a network under one adapter state; exact under any order of forward and backward passes."""

    network: Network
    state: AdapterState

    def __call__(self, x_BCTHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        with self.network.adapters.using(self.state):
            return self.network.velocity(x_BCTHW, t_B, cond)


class Roles(Mapping[str, Any]):
    """All roles of a run by name: the teacher, those that the method asks for, and their averages.

    With several processes each holds a replica of everything, or with ``engine.sharding: fsdp`` its shards of every
    network (`sharding.shard`); the head of a discriminator is small and always whole.

    Args:
        network: the teacher's; every LoRA role and every view shares it.
        specs: the method's roles (`method.RoleSpec`).
        seed: of the LoRA's and the discriminator's first weights, the same in every process.
        engine: precision, sharding, checkpointing and compiling. ``sharding: auto`` means replicas here: whoever
            knows what fits decides before.
        world: the processes.
    """

    def __init__(
        self,
        network: Network,
        specs: Mapping[str, Any],
        seed: int = 0,
        engine: Engine = PLAIN,
        world: World = ALONE,
    ) -> None:
        self.base, self.world = network, world
        self.sharded = engine.sharding == "fsdp" and world.size > 1
        self._roles: dict[str, Any] = {TEACHER: Role(network, AdapterState())}
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        self._averages = {name: spec.ema for name, spec in specs.items() if spec.ema is not None}
        network.transformer.requires_grad_(False).eval()
        dtype: torch.dtype = getattr(torch, engine.trained_dtype)
        # Full copies are outlined before the teacher has adapters, and filled when it is sharded.
        copies = {key: skeleton(network, dtype) for key in _keys(specs, "full")}
        heads = self._add_to_base(specs, dtype, seed)
        self._place(copies)
        for key, own in copies.items():
            self._roles[key] = Role(own, AdapterState())
            self._parameters[key] = dict(own.transformer.named_parameters())
        for key, spec in _keys(specs, "lora").items():
            self._roles[key] = Role(network, AdapterState(key, spec.strength))
            self._parameters[key] = network.adapters.parameters(key)
        for name, head in heads.items():
            self._roles[name] = head
            self._parameters[name] = dict(head.named_parameters())
        self._add_views(specs)
        for name in self._averages:
            blend(self._parameters[average_of(name)], self._parameters[name], decay=0.0)
        if engine.gradient_checkpointing:
            self.enable_checkpointing()
        if engine.compile:
            for each in self._networks():
                each.compile_blocks()

    def _add_to_base(self, specs: Mapping[str, Any], dtype: torch.dtype, seed: int) -> dict[str, Discriminator]:
        """Adds the adapters to the teacher's network, and makes the heads that read it."""
        loras, heads = _keys(specs, "lora"), {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, spec in specs.items():
                if spec.weights == "head":
                    heads[name] = Discriminator(self.base)
                for key in (key for key in (name, average_of(name)) if key in loras):
                    self.base.adapters.add(key, spec.rank, dtype)
        return heads

    def _place(self, copies: Mapping[str, Network]) -> None:
        """Shards the teacher's network and the copies, if they are to be, and gives the copies their weights."""
        device = next(self.base.transformer.parameters()).device
        mesh = self.world.mesh() if self.sharded else None
        if mesh is not None:
            shard(self.base, mesh)
            settle(self.base)
        for copied in copies.values():
            if mesh is not None:
                shard(copied, mesh)
            fill(copied, self.base, device)
            if mesh is not None:
                settle(copied)

    def _add_views(self, specs: Mapping[str, Any]) -> None:
        for name, spec in specs.items():
            if spec.weights == "teacher":
                self._roles[name] = self._roles[TEACHER]
            if spec.weights == "view":
                if specs.get(spec.of) is None or specs[spec.of].weights != "lora":
                    raise ValueError(f"role {name!r} is a view of {spec.of!r}, which is not a LoRA role")
                self._roles[name] = Role(self.base, AdapterState(spec.of, spec.strength))

    def __getitem__(self, name: str) -> Any:
        return self._roles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roles)

    def __len__(self) -> int:
        return len(self._roles)

    @property
    def evaluations(self) -> int:
        """Network evaluations so far: clips that passed through any transformer."""
        return sum(network.evaluations for network in self._networks())

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """A role's own weights by name; empty for a view and for the teacher."""
        return self._parameters.get(name, {})

    def trained(self) -> list[str]:
        """The roles that have weights of their own, averages included."""
        return list(self._parameters)

    def learn(self, name: str) -> None:
        """Lets exactly one role receive gradients."""
        for other, parameters in self._parameters.items():
            for parameter in parameters.values():
                parameter.requires_grad_(other == name)

    def update_average(self, name: str, update: int) -> None:
        """Moves a role's average, if it has one; its decay is warmed up as min(decay, (1 + u) / (10 + u))."""
        if name in self._averages:
            decay = min(self._averages[name], (1 + update) / (10 + update))
            blend(self._parameters[average_of(name)], self._parameters[name], decay)

    def enable_checkpointing(self) -> None:
        """Gradient checkpointing in every transformer."""
        for network in self._networks():
            network.adapters.enable_checkpointing()

    def _networks(self) -> list[Network]:
        found = {id(self.base): self.base}
        found |= {id(r.network): r.network for r in self._roles.values() if isinstance(r, Role)}
        return list(found.values())


def _keys(specs: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """The roles of one kind with their averages, each with its spec."""
    names = [(name, spec) for name, spec in specs.items() if spec.weights == weights]
    return {key: spec for name, spec in names for key in ([name] if spec.ema is None else [name, average_of(name)])}


def both(first: Role, second: Role, x_BCTHW: Tensor, t_B: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """Two roles at the same points. Where they share an adapter, one pass over a doubled batch with a strength for
    each sample: under sharding that halves the gathers, for twice the activations of a pass without gradients.
    """
    shared = first.network is second.network and first.state.adapter == second.state.adapter is not None
    if not shared:
        return first(x_BCTHW, t_B, cond), second(x_BCTHW, t_B, cond)
    strengths = [torch.full_like(t_B, float(role.state.strength)) for role in (first, second)]
    role = Role(first.network, AdapterState(first.state.adapter, torch.cat(strengths)))
    out = role(torch.cat([x_BCTHW, x_BCTHW]), torch.cat([t_B, t_B]), cond.rows(torch.arange(len(t_B)).repeat(2)))
    return out.chunk(2)  # type: ignore[return-value]
