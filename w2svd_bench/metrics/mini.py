"""``fid[mini]`` and ``fvd[mini]``: Fréchet distances in the features of the miniature's own nets, of 64 numbers each.

The first looks at single frames: whether they look right, and nothing about motion. The second looks at whole clips:
what frames look like and how they follow one another, speech, sway, blinks. They are not FID and FVD: those names
belong to Inception features (Heusel et al. 2017, arXiv 1706.08500) and to I3D features (Unterthiner et al. 2018, arXiv
1812.01717).
"""

from __future__ import annotations

import numpy as np

from w2svd_bench.metrics import mini_nets
from w2svd_bench.metrics.base import FeatureNet, check_clips, other_size
from w2svd_bench.metrics.frechet import FrechetMetric

EVERY = 4  # frames 0, 4, 8, 12, 16: neighbours are too alike to be worth their cost


class _MiniNet(FeatureNet):
    """One of `mini_nets.NETS` with what it is shown."""

    def __init__(self, net: str, shown: str, device: str) -> None:
        self._device, self._net_name, self._shown = device, net, shown
        self._net, self._sha256 = mini_nets.load_net(net, device)

    @property
    def id(self) -> str:
        return (
            f"{self._shown}, 48x48, no resize, x/127.5-1; net {self._net_name} {self._sha256}, "
            f"64-d SiLU features x{self._net.feature_scale:g}, float32, one clip a batch"
        )

    @property
    def weights_sha256(self) -> str:
        return self._sha256

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        return other_size(frames, height, width, mini_nets.SIZE)


class FrameFeatures(_MiniNet):
    """Five frames a clip, 64 features a frame."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__("frame", "frames 0,4,8,12,16 of 17", device)

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """uint8 clips (B, 17, 48, 48, 3) to float32 (B, 5, 64)."""
        check_clips(clips_BFHWC, mini_nets.FRAMES, mini_nets.HEIGHT, mini_nets.WIDTH)
        return mini_nets.clip_by_clip(self._net, clips_BFHWC[:, ::EVERY], self._device)


class ClipFeatures(_MiniNet):
    """One vector of 64 features a clip of 17 frames."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__("clip", "all 17 frames", device)

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """uint8 clips (B, 17, 48, 48, 3) to float32 (B, 1, 64)."""
        check_clips(clips_BFHWC, mini_nets.FRAMES, mini_nets.HEIGHT, mini_nets.WIDTH)
        return mini_nets.clip_by_clip(self._net, clips_BFHWC, self._device).reshape(-1, 1, mini_nets.NUM_FEATURES)


class MiniFid(FrechetMetric):
    """The Fréchet distance over frames."""

    name = "fid[mini]"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(FrameFeatures(device))


class MiniFvd(FrechetMetric):
    """The Fréchet distance over clips."""

    name = "fvd[mini]"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(ClipFeatures(device))
