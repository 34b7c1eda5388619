"""``fvd[mini]``: the Fréchet distance over whole clips, in the features of the miniature's clip net.

It sees what frames look like and how they follow one another: speech, sway, blinks. It is not FVD: that name belongs to
I3D features (Unterthiner et al. 2018, arXiv 1812.01717).
"""

from __future__ import annotations

import numpy as np

from w2svd_bench.metrics import mini_nets
from w2svd_bench.metrics.base import check_clips, other_size
from w2svd_bench.metrics.frechet import FrechetMetric


class MiniFvd(FrechetMetric):
    """One vector of 64 features a clip of 17 frames."""

    name = "fvd[mini]"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device
        self._net, self._sha256 = mini_nets.load_net("clip", device)

    @property
    def id(self) -> str:
        return (
            f"{self.name} v{self.version}; all 17 frames, 48x48, no resize, x/127.5-1; net clip "
            f"{self._sha256}, 64-d SiLU features x{self._net.feature_scale:g}, float32, one clip a batch; "
            f"Frechet distance, float64, ddof 1, eigh; se: jackknife over {self.groups} groups of prompts"
        )

    @property
    def weights_sha256(self) -> str:
        return self._sha256

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        return other_size(frames, height, width, mini_nets.SIZE)

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """uint8 clips (B, 17, 48, 48, 3) to float32 (B, 1, 64)."""
        check_clips(clips_BFHWC, mini_nets.FRAMES, mini_nets.HEIGHT, mini_nets.WIDTH)
        return mini_nets.clip_by_clip(self._net, clips_BFHWC, self._device).reshape(-1, 1, mini_nets.NUM_FEATURES)
