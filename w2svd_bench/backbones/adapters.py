"""Exact switching between LoRA adapters that share one transformer.

Several roles look at one set of weights: the base alone, or the base with one adapter at some strength. peft's own
switches (`set_adapters`, `disable_adapters`) flip ``requires_grad`` each time and so lose gradients when they are
called between a forward pass and its backward; and with gradient checkpointing the recomputation would run under
whatever state is in force at backward time. Here a state is set without touching any flag, and the checkpoint
function carries the state of the forward pass into its recomputation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Attention and MLP of every block; not the text refiner, the modulation linears (their input has no token axis) or
# the model's final proj_out, which the anchors keep out.
LORA_TARGETS = (
    r"(transformer_blocks|single_transformer_blocks)\.\d+\."
    r"(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff\.net\.(0\.proj|2)|ff_context\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)


@dataclass(frozen=True)
class AdapterState:
    """Which adapter a forward pass sees, and how strongly; None is the base alone.

    ``strength`` is a number, or a tensor (B,) with a strength for each sample of the batch.
    """

    adapter: str | None = None
    strength: float | Tensor = 1.0


class Adapters:
    """The LoRA adapters of one transformer, and the state that its next forward pass will see."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.state = AdapterState()
        self.unmasked = False  # whether the attention mask of the pass under way hides nothing and is left out
        self._layers: list[BaseTunerLayer] = []

    def add(self, name: str, rank: int, dtype: torch.dtype = torch.float32) -> None:
        """Adds an adapter that starts as the identity (B = 0); alpha equals rank, so strength 1 is the plain product.

        No dropout: two roles may differ by their strength only. ``dtype`` is that of its weights; they are used in the
        type of the activations.
        """
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS, lora_dropout=0.0)
        with warnings.catch_warnings():  # peft warns of a second adapter, which is what we want
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            self.transformer.add_adapter(config, adapter_name=name)
        self._layers = [m for m in self.transformer.modules() if isinstance(m, BaseTunerLayer)]
        for layer in self._layers:
            layer.cast_input_dtype_enabled = False
            layer.lora_A[name] = _CastLinear.of(layer.lora_A[name], dtype)
            layer.lora_B[name] = _CastLinear.of(layer.lora_B[name], dtype)
        for parameter in self.transformer.parameters():
            parameter.requires_grad_(False)
        self._apply(self.state)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters by their full name, without the adapter's own name in it."""
        return {
            key.replace(f".{name}.weight", ".weight"): parameter
            for key, parameter in self.transformer.named_parameters()
            if f".lora_A.{name}.weight" in key or f".lora_B.{name}.weight" in key
        }

    def exist(self) -> bool:
        """Whether any adapter has been added."""
        return bool(self._layers)

    def _apply(self, state: AdapterState) -> None:
        self.state = state
        active = [] if state.adapter is None else [state.adapter]
        strength = state.strength
        if isinstance(strength, Tensor):
            strength = strength.view(-1, 1, 1)
        for layer in self._layers:
            layer._active_adapter = active
            if state.adapter is not None:
                layer.scaling[state.adapter] = strength

    @contextmanager
    def using(self, state: AdapterState) -> Iterator[None]:
        """Runs a forward pass under ``state`` and puts the state before it back, whatever happens."""
        before = self.state
        self._apply(state)
        try:
            yield
        finally:
            self._apply(before)

    @contextmanager
    def without_mask(self, unmasked: bool) -> Iterator[None]:
        """Runs a forward pass without the attention mask, or with it, and puts the choice before it back."""
        before = self.unmasked
        self.unmasked = unmasked
        try:
            yield
        finally:
            self.unmasked = before

    @contextmanager
    def _again(self, state: AdapterState, unmasked: bool) -> Iterator[None]:
        with self.using(state), self.without_mask(unmasked):
            yield

    def checkpoint(self, block: nn.Module, *args: Any) -> Any:
        """Gradient checkpointing whose recomputation sees what the forward pass saw."""
        state, unmasked = self.state, self.unmasked
        return checkpoint(
            block,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # blocks draw nothing: there is no dropout
            context_fn=lambda: (nullcontext(), self._again(state, unmasked)),
        )

    def enable_checkpointing(self) -> None:
        """Trades compute for memory in the transformer's blocks."""
        self.transformer.enable_gradient_checkpointing(self.checkpoint)

    def check_exact(self) -> None:
        """Raises `RuntimeError` if checkpointing was switched on with a function that forgets the state."""
        checkpointing = self._layers and getattr(self.transformer, "gradient_checkpointing", False)
        if checkpointing and self.transformer._gradient_checkpointing_func != self.checkpoint:
            raise RuntimeError(
                "gradient checkpointing was enabled without the adapters' state, which gives silently wrong "
                "gradients; use Adapters.enable_checkpointing()"
            )


class _CastLinear(nn.Linear):
    """A linear layer whose weight is used in the type of its input: float32 weights, bfloat16 activations.

    peft would cast the activations up instead, which keeps them in memory twice.
    """

    @classmethod
    def of(cls, linear: nn.Linear, dtype: torch.dtype) -> _CastLinear:
        cast = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        cast.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        return cast

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight.to(input.dtype))


@torch.no_grad()
def blend(average: dict[str, nn.Parameter], source: dict[str, nn.Parameter], decay: float) -> None:
    """``average <- decay average + (1 - decay) source``, parameter by parameter."""
    for name, parameter in source.items():
        average[name].lerp_(parameter.to(average[name].dtype), 1 - decay)
