"""FVD against the tools whose conventions it states, on the same clips and with the same (random) weights.

cd-fvd is installed for the tests and called itself. The others are no packages: what they do with frames and features
is stated here in a few lines of our own, from their sources: common_metrics_on_video_quality (`fvd/styleganv/fvd.py`),
VideoGPT (`videogpt/data.py`, `videogpt/fvd/fvd.py`), FastVideo (`fastvideo/eval/metrics/common/fvd`).
Axes: N clips, F frames, C colours, H, W pixels, D features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import cd_fvd, fvd, i3d, weights
from w2svd_bench.metrics.base import Features
from w2svd_bench.metrics.frechet import FrechetMetric

import stand_ins_i3d

SIZES = [(48, 80), (80, 48), (50, 50), (225, 301), (224, 224)]
# torch rounds in other places when colours lie last in memory, or when frames stand where colours do; in [-1, 1], where
# a grey level is 8e-3
OTHER_LAYOUT = 5e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of weights with all three stand-ins."""
    path = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("W2SVD_BENCH_WEIGHTS", str(path))
        weights.install_stand_in("i3d-torchscript", stand_ins_i3d.i3d_torchscript())
        weights.install_stand_in("i3d-kinetics400", stand_ins_i3d.i3d_kinetics400())
        weights.install_stand_in("videomae-ssv2", stand_ins_i3d.videomae())
        yield path


def some_clips(count: int, height: int, width: int, seed: int, brightness: int = 255, frames: int = 16) -> np.ndarray:
    """Clips of coarse random blocks, each of its own mean colour, uint8 (N, F, H, W, 3)."""
    rng = np.random.default_rng(seed)
    blocks = rng.random((count, frames, 5, 5, 3)) * rng.random((count, 1, 1, 1, 3)) * brightness
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 5 // width
    return blocks.astype(np.uint8)[:, :, rows][:, :, :, columns]


def frechet(x_ND: np.ndarray, y_ND: np.ndarray, ddof: int = 1, ridge: float = 0.0) -> float:
    """The formula as it stands, by the eigenvalues of the product; a ``ridge`` on both covariances.

    In the space that the vectors span: each dimension that a set doesn't reach adds the root of a rounding error.
    """
    x, y = x_ND.astype(np.float64), y_ND.astype(np.float64)
    if ridge == 0 and len(x) + len(y) < x.shape[1]:
        span, _ = np.linalg.qr(np.concatenate([x, y]).T)
        x, y = x @ span, y @ span
    identity = ridge * np.eye(x.shape[1])
    s, t = np.cov(x, rowvar=False, ddof=ddof) + identity, np.cov(y, rowvar=False, ddof=ddof) + identity
    overlap = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s) + np.trace(t) - 2 * overlap)


def by_videogpt(clip_FHWC: np.ndarray) -> Tensor:
    """[0, 1]; shorter side to 224, the other rounded up; centre crop; [-1, 1]. (1, C, F, H, W)."""
    return cropped(torch.from_numpy(clip_FHWC).permute(0, 3, 1, 2).float() / 255.0).transpose(0, 1)[None]


def by_common_metrics(clip_FHWC: np.ndarray) -> Tensor:
    """The same; only that frames lie in memory colour by colour, and stand as channels of an image."""
    return cropped(colour_by_colour(clip_FHWC).transpose(0, 1))[None]


def cropped(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    factor = 224 / min(height, width)
    if height < width:
        x = interpolate(x, size=(224, math.ceil(width * factor)), mode="bilinear", align_corners=False)
    else:
        x = interpolate(x, size=(math.ceil(height * factor), 224), mode="bilinear", align_corners=False)
    top, left = (x.shape[2] - 224) // 2, (x.shape[3] - 224) // 2
    return (x[:, :, top : top + 224, left : left + 224] - 0.5) * 2


def by_fastvideo(clip_FHWC: np.ndarray) -> Tensor:
    """[0, 1]; [-1, 1]; every frame to 224 x 224 where it isn't. (1, C, F, H, W)."""
    x = colour_by_colour(clip_FHWC) * 2.0 - 1.0
    if x.shape[2:] != (224, 224):
        x = interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
    return x.transpose(0, 1)[None].contiguous()


def colour_by_colour(clip_FHWC: np.ndarray) -> Tensor:
    """What these tools are given: frames (F, C, H, W) in [0, 1], contiguous."""
    return torch.from_numpy(clip_FHWC).permute(0, 3, 1, 2).contiguous().float() / 255.0


def logits(path: Path, prepare: Callable[[np.ndarray], Tensor], clips_NFHWC: np.ndarray, batch: int = 10) -> np.ndarray:
    """The archive over clips prepared outside of it, in batches as these tools do it. (N, 400)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # deprecated, like all of TorchScript
        archive = torch.jit.load(path).eval()
    prepared = torch.cat([prepare(clip) for clip in clips_NFHWC])
    with torch.no_grad():
        parts = [archive(x=x, rescale=False, resize=False, return_features=True) for x in prepared.split(batch)]
    return torch.cat([part.reshape(-1, 400) for part in parts]).numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_frames_are_prepared_as_by_the_others(size: tuple[int, int]) -> None:
    from cdfvd.third_party.i3d.utils import preprocess_i3d
    from cdfvd.third_party.VideoMAEv2.utils import preprocess_videomae

    clip = some_clips(1, *size, seed=0)
    clip[:, 1::2] ^= np.random.default_rng(1).integers(0, 256, clip[:, 1::2].shape, dtype=np.uint8)
    for convention, theirs, most in (
        (i3d.COMMON_METRICS, by_common_metrics(clip[0]), OTHER_LAYOUT),
        (i3d.VIDEOGPT, by_videogpt(clip[0]), OTHER_LAYOUT),
        (i3d.FASTVIDEO, by_fastvideo(clip[0]), 0),
        (i3d.CD_FVD, preprocess_i3d(clip), 0),
        (cd_fvd.CONVENTION, preprocess_videomae(clip), OTHER_LAYOUT),
    ):
        ours = i3d.prepare(convention, clip[0])
        assert ours.shape == theirs.shape == (1, 3, 16, 224, 224)
        assert float((ours - theirs).abs().max()) <= most, convention.id


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("convention", "prepare"),
    [(i3d.COMMON_METRICS, by_common_metrics), (i3d.FASTVIDEO, by_fastvideo)],
    ids=["common_metrics", "FastVideo"],
)
def test_the_archive_with_frames_prepared_outside(
    convention: i3d.Convention, prepare: Callable[[np.ndarray], Tensor]
) -> None:
    """Section by section: features, then the distance over them, with unequal counts."""

    class Outside(FrechetMetric):
        name, version = "fvd", 1

    path = weights.find("i3d-torchscript").path
    metric = Outside(i3d.I3DFeatures(convention))
    sets = [some_clips(12, 48, 80, seed=0, brightness=200), some_clips(10, 48, 80, seed=1)]
    ours = [metric.features(clips) for clips in sets]
    theirs = [logits(path, prepare, clips) for clips in sets]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine[:, 0], other, rtol=1e-5, atol=1e-6 * np.abs(other).max())
    value, expected = metric.compare(Features(ours[0]), Features(ours[1])).value, frechet(*theirs)
    report(f"fvd, {convention.id}", value, expected)
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("folder")
def test_what_the_conventions_are_worth() -> None:
    """On the same clips; all of it is nothing beside a real effect, except when two tables are compared."""
    sets = [some_clips(12, 48, 80, seed=0, brightness=200), some_clips(10, 48, 80, seed=1)]
    features = {
        name: [i3d.I3DFeatures(convention).features(clips)[:, 0] for clips in sets]
        for name, convention in {"inside": i3d.STYLEGAN_V, "squash": i3d.FASTVIDEO, "crop": i3d.COMMON_METRICS}.items()
    }
    inside, squash, crop = (frechet(*features[name]) for name in ("inside", "squash", "crop"))
    report("squash inside the stand-in's archive against outside", inside, squash)
    report("crop against squash", crop, squash)
    report("ddof 0 against 1", frechet(*features["inside"], ddof=0), inside)
    report("FastVideo's 1e-6 on both diagonals against none", frechet(*features["squash"], ridge=1e-6), squash)
    assert inside == pytest.approx(squash, rel=1e-4)
    assert crop != pytest.approx(squash, rel=1e-3)


@pytest.mark.parametrize(("dimensions", "generated", "real"), [(12, 60, 45), (40, 25, 70)])
@pytest.mark.usefixtures("folder")
def test_the_distance_of_cdfvd(dimensions: int, generated: int, real: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own class: moments by `FeatureStats`, over n, and the root by SciPy."""
    cdfvd = cdfvd_module(monkeypatch)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    rows = [(rng.normal(size=(count, dimensions)) @ mix + 0.3).astype(np.float32) for count in (generated, real)]
    stats = []
    for values in rows:
        stats.append(cdfvd.FeatureStats(capture_mean_cov=True))
        for start in range(0, len(values), 16):
            stats[-1].append(values[start : start + 16])
    expected = cdfvd.cdfvd.compute_fvd_from_stats(None, *stats)
    value = fvd.CdFvdFvd().compare(*(Features(values[:, None]) for values in rows)).value
    report(f"ddof 0, D={dimensions}, N={generated}", value, expected)
    # SciPy's root of a singular product is only good to about the root of the machine's precision
    assert value == pytest.approx(expected, rel=1e-9 if generated > dimensions else 1e-6)
    assert value != pytest.approx(fvd.VideoGptFvd().compare(*(Features(v[:, None]) for v in rows)).value, rel=1e-3)


@pytest.mark.usefixtures("folder")
def test_the_i3d_features_of_cdfvd() -> None:
    """The network at its real size, loaded by its own loader."""
    from cdfvd.third_party.i3d.utils import load_i3d_model, preprocess_i3d

    clip = some_clips(1, 48, 80, seed=0, frames=17)
    net = load_i3d_model(torch.device("cpu"), str(weights.find("i3d-kinetics400").path))
    with torch.no_grad():
        theirs = net(preprocess_i3d(clip[:, :16])).numpy()
    ours = fvd.CdFvdFvd().features(clip)[:, 0]
    report("I3D features of cd-fvd, largest difference over largest feature", *scaled(ours, theirs))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("folder")
def test_the_videomae_features_of_cdfvd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own loader and loop, with its class narrowed in both."""
    cdfvd = cdfvd_module(monkeypatch)
    from cdfvd.third_party.VideoMAEv2 import utils, videomaev2_finetune

    for module in (utils, videomaev2_finetune):
        monkeypatch.setattr(module, "vit_giant_patch14_224", stand_ins_i3d.narrow_videomae())
    peer = cdfvd.cdfvd(
        "videomae", ckpt_path=str(weights.find("videomae-ssv2").path), device="cpu", compute_feats=True, n_fake="full"
    )
    clips = some_clips(3, 48, 80, seed=0, frames=17)
    peer.add_fake_stats(clips[:, :16])
    metric = cd_fvd.ContentDebiasedFvd()
    ours, theirs = metric.features(clips)[:, 0], peer.fake_stats.get_all()
    report("VideoMAE features of cd-fvd, largest difference over largest feature", *scaled(ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())  # they run batches
    assert np.ptp(theirs, axis=0).max() > 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_the_whole_of_cdfvd(monkeypatch: pytest.MonkeyPatch) -> None:
    """From arrays to the number, at real size."""
    cdfvd = cdfvd_module(monkeypatch)
    generated, real = some_clips(5, 60, 90, seed=0, brightness=150), some_clips(4, 60, 90, seed=1)
    peer = cdfvd.cdfvd("i3d", ckpt_path=str(weights.find("i3d-kinetics400").path), device="cpu")
    expected = peer.compute_fvd(real, generated)
    metric = fvd.CdFvdFvd()
    value = metric.compare(Features(metric.features(generated)), Features(metric.features(real))).value
    report("fvd[cdfvd] from arrays", value, expected)
    assert value == pytest.approx(expected, rel=1e-5)


def test_the_real_archive_resizes_as_its_id_says() -> None:
    """With the real weights alone: that the archive squashes, bilinearly and without antialias, is not public."""
    try:
        found = weights.find("i3d-torchscript")
    except BenchError:
        pytest.skip("needs the real i3d_torchscript.pt")
    if found.standing != "pinned":
        pytest.skip("needs the real i3d_torchscript.pt, and there is a stand-in")
    clips = some_clips(2, 240, 320, seed=0)
    inside, outside = (i3d.I3DFeatures(convention).features(clips) for convention in (i3d.STYLEGAN_V, i3d.FASTVIDEO))
    report("real I3D, resized inside against outside", *scaled(inside, outside))
    np.testing.assert_allclose(inside, outside, rtol=0, atol=0.02 * np.abs(outside).max())


def cdfvd_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cdfvd.fvd`; it calls SciPy's root with an argument that SciPy 1.18 has no more."""
    from cdfvd import fvd as module

    root = scipy.linalg.sqrtm
    monkeypatch.setattr(scipy.linalg, "sqrtm", lambda matrix, disp=True: (root(matrix), 0.0))
    return module


def scaled(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """1 + the largest difference over the largest value, and 1."""
    return 1 + float(np.abs(ours - theirs).max() / np.abs(theirs).max()), 1.0


def report(what: str, ours: float, theirs: float) -> None:
    """Shown by ``pytest -rP``: the figures of docs/metrics.md."""
    print(f"{what}: {ours:.9g} and {theirs:.9g}, relative difference {abs(ours - theirs) / abs(theirs):.1e}")
