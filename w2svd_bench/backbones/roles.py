"""Roles: the models of a method as callables, built on one transformer where they can share it.

Axes: B batch, C channels, T latent frames, H, W latent pixels. A role is called as ``velocity(x, t, cond)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from w2svd_bench.backbones.adapters import Adapters, AdapterState, blend
from w2svd_bench.backbones.discriminator import Discriminator
from w2svd_bench.types import TEACHER, Cond, average_of


class Network:
    """One transformer in memory with its guidance; counts the clips that pass through it.

    Args:
        transformer: a `HunyuanVideoTransformer3DModel`.
        guidance: the embedded guidance scale; ignored by a transformer that embeds none.
    """

    def __init__(self, transformer: Any, guidance: float) -> None:
        self.transformer = transformer
        self.guidance = guidance
        self.adapters = Adapters(transformer)
        self.evaluations = 0

    def velocity(self, x_BCTHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        """The network at noise levels t in [0, 1] (it receives 1000 t, in float32)."""
        self.adapters.check_exact()
        self.evaluations += len(x_BCTHW)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((len(x_BCTHW),), self.guidance, device=x_BCTHW.device, dtype=x_BCTHW.dtype) * 1000.0
        return self.transformer(
            hidden_states=x_BCTHW,
            timestep=t_B * 1000.0,
            encoder_hidden_states=cond.tokens_BLD,
            encoder_attention_mask=cond.mask_BL,
            pooled_projections=cond.pooled_BP,
            guidance=guidance,
            return_dict=False,
        )[0]


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

    Args:
        network: the teacher's; every LoRA role and every view shares it.
        specs: the method's roles (`method.RoleSpec`).
        seed: of the LoRA's and the discriminator's first weights.
    """

    def __init__(self, network: Network, specs: Mapping[str, Any], seed: int = 0) -> None:
        self.base = network
        network.transformer.requires_grad_(False).eval()
        self._roles: dict[str, Any] = {TEACHER: Role(network, AdapterState())}
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        self._averages: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Full copies first: they must not take another role's adapters along.
            for name, spec in sorted(specs.items(), key=lambda item: item[1].weights != "full"):
                self._add(name, spec)
        for name, spec in specs.items():
            if spec.weights == "teacher":
                self._roles[name] = self._roles[TEACHER]
            if spec.weights == "view":
                if specs.get(spec.of) is None or specs[spec.of].weights != "lora":
                    raise ValueError(f"role {name!r} is a view of {spec.of!r}, which is not a LoRA role")
                self._roles[name] = Role(network, AdapterState(spec.of, spec.strength))

    def _add(self, name: str, spec: Any) -> None:
        if spec.weights == "full":
            for key in [name, *([average_of(name)] if spec.ema is not None else [])]:
                own = Network(copy.deepcopy(self.base.transformer), self.base.guidance)
                self._roles[key] = Role(own, AdapterState())
                self._parameters[key] = dict(own.transformer.named_parameters())
        elif spec.weights == "lora":
            for key in [name, *([average_of(name)] if spec.ema is not None else [])]:
                self.base.adapters.add(key, spec.rank)
                self._roles[key] = Role(self.base, AdapterState(key, spec.strength))
                self._parameters[key] = self.base.adapters.parameters(key)
        elif spec.weights == "head":
            self._roles[name] = head = Discriminator(self.base)
            self._parameters[name] = dict(head.named_parameters())
        if spec.ema is not None:
            self._averages[name] = spec.ema
            blend(self._parameters[average_of(name)], self._parameters[name], decay=0.0)

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
