"""A small discriminator on the frozen teacher's features, for the adversarial ground-truth term.

Axes: B batch, N image tokens, D width of the transformer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from w2svd_bench.backbones.adapters import AdapterState
from w2svd_bench.types import Cond

if TYPE_CHECKING:
    from w2svd_bench.backbones.network import Network


class Discriminator(nn.Module):
    """Reads the image tokens after the teacher's last block and gives one logit a clip.

    After DMD2 (arXiv 2405.14867, 4.3), which reads the fake's features; FastGen reads the frozen teacher's, as here.

    The features are the frozen base's, without any adapter, so the discriminator does not move when the fake does.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        object.__setattr__(self, "network", network)  # not a submodule: its weights are not the discriminator's
        config = network.transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.to(next(network.transformer.parameters()).device)

    def forward(self, x_BCTHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        """Logits (B,): positive for real. Gradients flow through the frozen features into ``x``."""
        kept: list[Tensor] = []
        block = self.network.transformer.single_transformer_blocks[-1]
        hook = block.register_forward_hook(lambda module, inputs, outputs: kept.append(outputs[0]))
        try:
            with self.network.adapters.using(AdapterState()):
                self.network.velocity(x_BCTHW, t_B, cond)
        finally:
            hook.remove()
        logits: Tensor = self.head(kept[0].to(torch.float32)).mean(dim=(1, 2))
        return logits
