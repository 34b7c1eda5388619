"""A pool of training latents with their conditioning, encoded once and kept in the cache folder.

Axes: N clips of the pool, B batch; latents are (., C, T, h, w).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.portraits import RENDERER_VERSION, batches, captions
from w2svd_bench.folders import cache_folder
from w2svd_bench.record import canonical_hash
from w2svd_bench.types import Batch, Cond


@dataclass(frozen=True)
class LatentPool:
    """Training clips (`types.TrainingData`) in the host's memory: latents (N, C, T, h, w) with their conditioning.

    A batch goes to ``device`` when it is drawn.
    """

    latents: Tensor
    cond: Cond
    name: str
    device: str = "cpu"

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, rows: Sequence[int]) -> Batch:
        index = torch.tensor(rows)
        return Batch(self.latents[index].to(self.device), self.cond.rows(index).to(self.device))


def portrait_pool(
    backbone: Backbone, split: str, count: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> LatentPool:
    """The first ``count`` clips of a split of the procedural portraits, from the cache or made and put there.

    The cache entry is named by everything that decides its content: renderer version, split, count, geometry, codec
    and text encoders, the precision they run in, and which attributes captions name where these are not all. A damaged
    entry is made again.
    """
    side = backbone.side
    facts = {
        "renderer": RENDERER_VERSION,
        "split": split,
        "count": count,
        "geometry": [side.num_frames, side.height, side.width],
        "encoders": backbone.latents_sha256,
        "precision": [str(backbone.encoder_dtype), str(backbone.dtype)],
    }
    named = {} if side.prompt_attributes is None else {"named": list(side.prompt_attributes)}
    key = canonical_hash(facts | named)
    path = cache_folder() / "latents" / f"{key[:32]}.safetensors"
    state = _read(path)
    if state is None:
        state = _encode(backbone, split, count, progress)
        backbone.release_encoders()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(state, partial)
        partial.replace(path)
    cond = Cond(state["tokens"], state["mask"], state["pooled"], state.get("image"))
    name = f"portraits, split {split}, {count} clips"
    if side.prompt_attributes is not None:
        name += f", captions of {', '.join(side.prompt_attributes)}"
    return LatentPool(state["latents"], cond, name, backbone.device)


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path) if path.is_file() else None
    except (SafetensorError, OSError):
        return None


def _encode(backbone: Backbone, split: str, count: int, progress: Callable[[int, int], None]) -> dict[str, Tensor]:
    side = backbone.side
    latents: list[Tensor] = []
    conds: list[Cond] = []
    for indices, frames in batches(split, count, 64, 0, side.num_frames, side.height, side.width):
        first = None if side.task == "t2v" else frames[:, 0]
        conds.append(backbone.encode_prompts(captions(split, indices, side.prompt_attributes), first).to("cpu"))
        latents.append(backbone.to_sample(backbone.encode(frames)).cpu())
        progress(indices[-1] + 1, count)
    cond = Cond.collate(conds)
    state = {"tokens": cond.tokens_BLD, "mask": cond.mask_BL, "pooled": cond.pooled_BP, "image": cond.image_BCTHW}
    kept = {"latents": torch.cat(latents), **{name: value for name, value in state.items() if value is not None}}
    return {name: value.contiguous() for name, value in kept.items()}
