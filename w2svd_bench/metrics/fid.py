"""FID, the Fréchet distance in Inception features (Heusel et al. 2017, arXiv 1706.08500), in two forms.

``fid`` equals what pytorch-fid gives for the same frames as images; ``fid[clean]`` resizes frames as clean-fid does
(Parmar et al. 2022, arXiv 2104.11222). They can't be compared with one another. Frames of one clip resemble each
other, so 256 clips of 8 frames are no 2048 images; the standard error leaves out whole clips.
"""

from __future__ import annotations

from w2svd_bench.metrics.frechet import FrechetMetric
from w2svd_bench.metrics.inception import InceptionFeatures


class Fid(FrechetMetric):
    """FID with pytorch-fid's resize."""

    name = "fid"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(InceptionFeatures(device, "pytorch-fid"))


class CleanFid(FrechetMetric):
    """FID with clean-fid's resize."""

    name = "fid[clean]"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(InceptionFeatures(device, "clean"))
