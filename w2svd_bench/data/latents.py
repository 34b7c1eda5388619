"""A pool of training latents with their conditioning, encoded once and kept in the cache folder.

Axes: N clips of the pool, B batch; latents are (., C, T, h, w).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.portraits import RENDERER_VERSION, batches, captions
from w2svd_bench.record import canonical_hash
from w2svd_bench.rng import Rng
from w2svd_bench.types import Batch, Cond


def cache_folder() -> Path:
    """Where things that can be made again are kept: ``$W2SVD_BENCH_CACHE``, or ``~/.cache/w2svd-bench``."""
    return Path(os.environ.get("W2SVD_BENCH_CACHE") or Path.home() / ".cache" / "w2svd-bench")


@dataclass(frozen=True)
class LatentPool:
    """Training clips as latents (N, C, T, h, w) with their conditioning."""

    latents: Tensor
    cond: Cond

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, size: int, *key: int) -> Batch:
        """The batch of a key, such as (seed, iteration, update): the same whenever and wherever it is asked for."""
        rows = Rng(*key).choose([1.0] * len(self), size, self.latents)
        return Batch(self.latents[rows], self.cond.rows(rows))

    def to(self, device: str) -> LatentPool:
        return LatentPool(self.latents.to(device), self.cond.to(device))


def portrait_pool(
    backbone: Backbone, split: str, count: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> LatentPool:
    """The first ``count`` clips of a split of the procedural portraits, from the cache or made and put there.

    The cache entry is named by everything that decides its content: renderer version, split, count, geometry, codec
    and text encoders. A damaged entry is made again.
    """
    side = backbone.side
    key = canonical_hash(
        {
            "renderer": RENDERER_VERSION,
            "split": split,
            "count": count,
            "geometry": [side.num_frames, side.height, side.width],
            "encoders": backbone.latents_sha256,
        }
    )
    path = cache_folder() / "latents" / f"{key[:32]}.safetensors"
    state = _read(path)
    if state is None:
        state = _encode(backbone, split, count, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(state, partial)
        partial.replace(path)
    return LatentPool(state["latents"], Cond(state["tokens"], state["mask"], state["pooled"])).to(backbone.device)


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path) if path.is_file() else None
    except (SafetensorError, OSError):
        return None


def _encode(backbone: Backbone, split: str, count: int, progress: Callable[[int, int], None]) -> dict[str, Tensor]:
    side, parts = backbone.side, []
    for indices, frames in batches(split, count, 64, 0, side.num_frames, side.height, side.width):
        cond = backbone.encode_prompts(captions(split, indices))
        parts.append((backbone.encode(frames), cond.tokens_BLD, cond.mask_BL, cond.pooled_BP))
        progress(indices[-1] + 1, count)
    names = ("latents", "tokens", "mask", "pooled")
    columns = zip(*parts, strict=True)
    return {name: torch.cat(column).cpu().contiguous() for name, column in zip(names, columns, strict=True)}
