"""``cd-fvd``: the content-debiased FVD of Ge et al. 2024 (arXiv 2404.12391), exactly as their package computes it.

FVD forgives broken motion where single frames look right, since I3D learned classes that one frame tells. CD-FVD takes
the features of VideoMAE v2 (Wang et al. 2023, arXiv 2303.16727), ViT-g fine-tuned on Something-Something v2, whose
classes are motions. The package shows it frames in [0, 1] without ImageNet's mean and deviation; that is kept, or the
numbers would be others. Covariances are divided by n.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from w2svd_bench.metrics import weights
from w2svd_bench.metrics.fvd import PopulationFrechet
from w2svd_bench.metrics.i3d import FRAMES, SIDE, SQUASH, Convention, VideoNet, from_cdfvd, load_into

CONVENTION = Convention(("x/255", SQUASH), FRAMES)
CLASSES = 174  # of Something-Something v2; the head is loaded, so that no tensor of the file is left over, and not used


class VideoMaeFeatures(VideoNet):
    """The normalised mean of the last layer's tokens, (B, 1, 1408): `forward_features` of the package's own class."""

    def __init__(self, device: str = "cpu") -> None:
        package = from_cdfvd("VideoMAEv2.videomaev2_finetune")
        found = weights.find("videomae-ssv2")
        super().__init__(found, CONVENTION, device)
        self._net = _videomae(package, str(found.path), found.sha256, device)

    @property
    def net(self) -> str:
        return "VideoMAE v2 ViT-g/14 fine-tuned on SSv2, normalised mean of tokens"

    @property
    def dimensions(self) -> int:
        return int(self._net.embed_dim)  # type: ignore[arg-type]

    def run(self, x_BCFHW: Tensor) -> Tensor:
        features: Tensor = self._net.forward_features(x_BCFHW)  # type: ignore[operator]
        return features


class ContentDebiasedFvd(PopulationFrechet):
    """The Fréchet distance over VideoMAE features.

    The network has 1.0 G parameters, published in half precision and run in float32: 4 GB, and 6 GB while it loads.
    """

    name = "cd-fvd"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(VideoMaeFeatures(device))


@cache
def _videomae(package: ModuleType, path: str, sha256: str, device: str) -> nn.Module:
    """The package's network, once a process and device. Its own loader is not used: it would fetch a missing file."""
    with torch.random.fork_rng(devices=[]):  # a new network draws from the global generator
        net: nn.Module = package.vit_giant_patch14_224(
            img_size=SIDE, num_classes=CLASSES, all_frames=FRAMES, tubelet_size=2, use_mean_pooling=True
        )
    load_into(net, path, wrappers=("model", "module"))
    return net.eval().requires_grad_(False).to(device)
