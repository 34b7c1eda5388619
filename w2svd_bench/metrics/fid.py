"""``fid[mini]``: the Fréchet distance over single frames, in the features of the miniature's frame net.

It says whether frames look right, and nothing about motion. It is not FID: that name belongs to Inception features.
"""

from __future__ import annotations

import numpy as np

from w2svd_bench.metrics import mini_nets
from w2svd_bench.metrics.base import check_clips, other_size
from w2svd_bench.metrics.frechet import FrechetMetric

EVERY = 4  # frames 0, 4, 8, 12, 16: neighbours are too alike to be worth their cost


class MiniFid(FrechetMetric):
    """Five frames a clip, 64 features a frame."""

    name = "fid[mini]"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device
        self._net, self._sha256 = mini_nets.load_net("frame", device)

    @property
    def id(self) -> str:
        return (
            f"{self.name} v{self.version}; frames 0,4,8,12,16 of 17, 48x48, no resize, x/127.5-1; net frame "
            f"{self._sha256}, 64-d SiLU features x{self._net.feature_scale:g}, float32, one clip a batch; "
            f"Frechet distance, float64, ddof 1, eigh; se: jackknife over {self.groups} groups of prompts"
        )

    @property
    def weights_sha256(self) -> str:
        return self._sha256

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        return other_size(frames, height, width, mini_nets.SIZE)

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """uint8 clips (B, 17, 48, 48, 3) to float32 (B, 5, 64)."""
        check_clips(clips_BFHWC, mini_nets.FRAMES, mini_nets.HEIGHT, mini_nets.WIDTH)
        return mini_nets.clip_by_clip(self._net, clips_BFHWC[:, ::EVERY], self._device)
