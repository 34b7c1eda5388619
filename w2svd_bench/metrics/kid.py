"""KID, the kernel distance in Inception features (Binkowski et al. 2018, arXiv 1801.01401), in two forms.

Unlike FID it is unbiased for few clips, and near zero it may be negative. The value is the plain MMD^2, as
torch-fidelity and clean-fid return it; papers often print a thousand times that. It is taken over all pairs of clips,
where these tools average random subsets of 1000: the same on average, with less noise. (`kernel.subset_mmd` is theirs.)
"""

from __future__ import annotations

from w2svd_bench.metrics.inception import InceptionFeatures
from w2svd_bench.metrics.kernel import KernelMetric


class Kid(KernelMetric):
    """KID with pytorch-fid's resize."""

    name = "kid"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(InceptionFeatures(device, "pytorch-fid"))


class CleanKid(KernelMetric):
    """KID with clean-fid's resize."""

    name = "kid[clean]"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(InceptionFeatures(device, "clean"))
