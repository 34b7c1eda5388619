"""FVD, the Fréchet distance in I3D's logits (Unterthiner et al. 2018, arXiv 1812.01717), its two named variants, and
KVD, the kernel distance (MMD) in the same features.

Which is which, on the first 16 frames of each clip:

- ``fvd``: StyleGAN-V's archive, which resizes and rescales by itself (squash to 224x224); covariances over n - 1.
- ``fvd[videogpt]``: VideoGPT's weights; shorter side to 224 and a centre crop; covariances over n - 1. (VideoGPT takes
  the root in float32; here it is float64.)
- ``fvd[cdfvd]``: the same weights as cd-fvd's ``compute_fvd`` uses them on arrays (TATS before it): squash to 224x224;
  covariances over n. (cd-fvd's loader of folders cuts the centre square out of each video first; that is left out.)
- ``kvd``: the features of ``fvd``, and the unbiased cubic-polynomial MMD of KID.

No two of them can be compared with one another.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.base import Features, Score
from w2svd_bench.metrics.frechet import FrechetMetric
from w2svd_bench.metrics.gaussian import Moments, Reference
from w2svd_bench.metrics.i3d import CD_FVD, STYLEGAN_V, VIDEOGPT, I3DFeatures, KineticsFeatures
from w2svd_bench.metrics.kernel import KernelMetric
from w2svd_bench.metrics.statistics import Statistics


class Fvd(FrechetMetric):
    """FVD by StyleGAN-V's protocol but for the covariances, which StyleGAN-V divides by n and most others by n - 1."""

    name = "fvd"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(I3DFeatures(STYLEGAN_V, device))


class VideoGptFvd(FrechetMetric):
    """FVD as VideoGPT computes it."""

    name = "fvd[videogpt]"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(KineticsFeatures(VIDEOGPT, device))


class Kvd(KernelMetric):
    """The kernel distance in I3D's logits: unlike FVD, unbiased for few clips."""

    name = "kvd"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(I3DFeatures(STYLEGAN_V, device))


class PopulationFrechet(FrechetMetric):
    """A Fréchet distance whose covariances are divided by n (ddof 0), as StyleGAN-V's and cd-fvd's ``FeatureStats`` do.

    The generated set is shrunk about its mean by sqrt((n-1)/n): then its covariance over n - 1 is what it had over n.
    The jackknife's leave-outs are taken from the shrunk set, which makes the standard error too small by about 1/2n of
    itself, far below what it is uncertain by.
    """

    @property
    def distance(self) -> str:
        return f"{super().distance}; each set shrunk about its mean by sqrt((n-1)/n), so that it is ddof 0 in effect"

    def compare(self, generated: Features, reference: Features | Moments | Statistics) -> Score:
        return super().compare(shrunk(generated), reference)

    def _prepared(self, reference: Features | Moments | Statistics) -> Reference:
        """The reference with its covariance over n, whatever it is given as; only its factor and trace hold it."""
        prepared = super()._prepared(reference)
        if prepared.n is None:
            raise BenchError(
                f"{self.name} can't use statistics that don't say how many vectors they are of",
                "its covariances are divided by n, and a file holds them divided by n - 1",
                "give the reference clips themselves, or statistics with an array n",
            )
        part = (prepared.n - 1) / prepared.n
        return replace(prepared, factor_DR=prepared.factor_DR * np.sqrt(part), trace=prepared.trace * part)


class CdFvdFvd(PopulationFrechet):
    """FVD as cd-fvd computes it with its I3D."""

    name = "fvd[cdfvd]"
    version = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(KineticsFeatures(CD_FVD, device))


def shrunk(features: Features) -> Features:
    """The features, all n vectors shrunk about their common mean by sqrt((n-1)/n), float64."""
    values = features.values_NKD.astype(np.float64)
    count = max(1, values.shape[0] * values.shape[1])
    mean = values.sum(axis=(0, 1)) / count
    return Features(mean + (values - mean) * np.sqrt((count - 1) / count), features.keys)
