"""FVD, its variants, KVD and CD-FVD: what they read, what they refuse, what they react to, over random weights.

The networks are stand-ins, so no value here means anything; what is tested is all the code around them. Axes: N clips,
F frames, H, W pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from w2svd_bench.data.portraits import clips
from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import cd_fvd, fvd, i3d, weights
from w2svd_bench.metrics.base import CorpusMetric, Features
from w2svd_bench.metrics.gaussian import Moments
from w2svd_bench.metrics.mini import MiniFid
from w2svd_bench.metrics.precision import full_precision
from w2svd_bench.metrics.statistics import Statistics

import stand_ins_i3d


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of weights with all three stand-ins."""
    path = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("W2SVD_BENCH_WEIGHTS", str(path))
        weights.install_stand_in("i3d-torchscript", stand_ins_i3d.i3d_torchscript())
        weights.install_stand_in("i3d-kinetics400", stand_ins_i3d.i3d_kinetics400())
        weights.install_stand_in("videomae-ssv2", stand_ins_i3d.videomae())
        yield path


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The VideoMAE class at the stand-in's size."""
    module = i3d.from_cdfvd("VideoMAEv2.videomaev2_finetune")
    monkeypatch.setattr(module, "vit_giant_patch14_224", stand_ins_i3d.narrow_videomae())


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return clips("test", range(24)).numpy()


@pytest.fixture(scope="module")
def other() -> np.ndarray:
    return clips("reference", range(24)).numpy()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_names_and_ids_say_every_choice() -> None:
    found = {cls.name: cls() for cls in (fvd.Fvd, fvd.VideoGptFvd, fvd.CdFvdFvd, fvd.Kvd)}
    assert list(found) == ["fvd", "fvd[videogpt]", "fvd[cdfvd]", "kvd"]
    assert all(metric.name == f"{name}[stand-in]" for name, metric in found.items())
    for name, words in {
        "fvd": ("first 16 frames, rescale and resize inside the archive (squash to 224x224); StyleGAN-V", "ddof 1"),
        "fvd[videogpt]": (
            "first 16 frames, x/255, shorter side to 224, bilinear without antialias, centre crop",
            "2x-1",
        ),
        "fvd[cdfvd]": ("first 16 frames, squash to 224x224, bilinear without antialias, x/255, 2x-1; I3D", "ddof 0"),
        "kvd": ("first 16 frames, rescale and resize inside the archive (squash to 224x224); StyleGAN-V",),
    }.items():
        for word in (*words, "logits", "400-d, float32", found[name].weights_sha256):
            assert word in found[name].id, (name, word)
    assert len({metric.id for metric in found.values()}) == 4
    assert found["kvd"].net.id == found["fvd"].net.id  # kept features serve both
    assert found["fvd[cdfvd]"].net.id != found["fvd[videogpt]"].net.id
    assert found["fvd"].weights_sha256 == weights.find("i3d-torchscript").sha256
    assert found["fvd[videogpt]"].weights_sha256 == weights.find("i3d-kinetics400").sha256


@pytest.mark.parametrize("metric", [fvd.Fvd, fvd.VideoGptFvd, fvd.CdFvdFvd, fvd.Kvd])
def test_too_few_frames_are_refused(metric: type[CorpusMetric]) -> None:
    made = metric()
    assert made.refuses(16, 48, 48) is None and made.refuses(129, 720, 1280) is None
    reason = made.refuses(15, 48, 48)
    assert reason == "it reads the first 16 frames of a clip, and these have 15"
    with pytest.raises(BenchError, match="reads the first 16 frames of a clip, and these have 15"):
        made.features(noise(2, 15, 48, 48))


def test_i3d_itself_reads_ten_frames_and_no_fewer() -> None:
    with pytest.raises(BenchError, match="I3D can't read 9 frames"):
        i3d.Convention(None, frames=9)
    net = i3d.I3DFeatures(i3d.Convention(None, frames=10))
    assert net.refuses(9, 48, 48) and not net.refuses(10, 48, 48)
    assert net.features(noise(1, 10, 48, 48)).shape == (1, 1, 400)
    with pytest.raises(BenchError, match=r"unknown step '2x - 1'.*\n.*\n.*did you mean '2x-1'"):
        i3d.Convention(("2x - 1",))


@pytest.mark.parametrize(
    "clips_BFHWC",
    [noise(2, 16, 48, 48).astype(np.float32), noise(16, 48, 48), noise(2, 16, 48, 48)[..., :1], noise(2, 16, 0, 48)],
    ids=["floats", "no batch axis", "grey", "no pixels"],
)
def test_other_arrays_are_refused(clips_BFHWC: np.ndarray) -> None:
    with pytest.raises(BenchError, match="reads uint8 clips of shape"):
        fvd.Fvd().features(clips_BFHWC)


def test_a_clips_features_do_not_depend_on_its_batch() -> None:
    metric, batch = fvd.Fvd(), noise(5, 17, 40, 56)
    whole = metric.features(batch)
    assert whole.shape == (5, 1, 400) and whole.dtype == np.float32
    alone = np.concatenate([metric.features(batch[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(whole, alone)
    np.testing.assert_array_equal(whole[1:4], metric.features(batch[1:4]))
    np.testing.assert_array_equal(whole[::-1], metric.features(batch[::-1]))
    assert metric.features(batch[:0]).shape == (0, 1, 400)
    assert len(np.unique(whole[:, 0, 0])) == 5


@pytest.mark.usefixtures("narrow")
def test_the_same_of_videomae() -> None:
    metric, batch = cd_fvd.ContentDebiasedFvd(), noise(2, 16, 48, 64)
    whole = metric.features(batch)
    assert whole.shape == (2, 1, 24) and not np.array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(whole[1:], metric.features(batch[1:]))
    assert metric.name == "cd-fvd[stand-in]" and metric.refuses(15, 224, 224)
    assert "first 16 frames, x/255, squash to 224x224" in metric.id and "2x-1" not in metric.id
    assert "VideoMAE v2 ViT-g/14" in metric.id and "ddof 0" in metric.id


def test_only_the_first_sixteen_frames_are_read() -> None:
    metric, batch = fvd.Fvd(), noise(1, 20, 48, 48)
    features, cut = metric.features(batch), batch.copy()
    cut[:, 16:] = 0
    np.testing.assert_array_equal(features, metric.features(cut))
    cut[:, 15] = 0
    assert not np.array_equal(features, metric.features(cut))


@pytest.mark.parametrize("size", [(48, 48), (1, 1), (16, 300), (224, 224), (360, 640)])
@pytest.mark.parametrize("convention", [i3d.STYLEGAN_V, i3d.COMMON_METRICS, i3d.FASTVIDEO], ids=["in", "crop", "out"])
def test_any_size_will_do(size: tuple[int, int], convention: i3d.Convention) -> None:
    net = i3d.I3DFeatures(convention)
    assert net.refuses(16, *size) is None
    assert np.isfinite(net.features(noise(1, 16, *size))).all()
    if convention.steps:
        x = i3d.prepare(convention, noise(16, *size))
        assert x.shape == (1, 3, 16, 224, 224) and x.dtype == torch.float32 and x.abs().max() <= 1


def test_the_orders_of_scaling_agree_but_for_rounding_and_crop_and_squash_do_not() -> None:
    clip = noise(16, 48, 80)
    before, after, crop = (
        i3d.prepare(convention, clip) for convention in (i3d.FASTVIDEO, i3d.CD_FVD, i3d.COMMON_METRICS)
    )
    assert torch.allclose(before, after, atol=1e-6, rtol=0)  # torch.testing takes seconds for so many numbers
    assert not torch.equal(before, after)
    assert (crop - after).abs().mean() > 0.1
    crop, squash = (i3d.prepare(c, noise(16, 56, 56)) for c in (i3d.COMMON_METRICS, i3d.FASTVIDEO))
    assert torch.allclose(crop, squash, atol=1e-6, rtol=0)  # squares are neither


def test_frames_in_another_order_move_fvd_and_not_frame_fid(real: np.ndarray, other: np.ndarray) -> None:
    """fid[mini] sees frames 0, 4, 8, 12, 16: these stay among themselves, and so do all others."""
    rng = np.random.default_rng(0)
    seen, order = np.arange(0, 17, 4), np.arange(17)
    unseen = np.setdiff1d(order, seen)
    order[seen], order[unseen] = rng.permutation(seen), rng.permutation(unseen)
    frame, video, kernel = MiniFid(), fvd.Fvd(), fvd.Kvd()
    reference = Features(frame.features(other))
    fid, of_shuffled = (frame.compare(Features(frame.features(x)), reference).value for x in (real, real[:, order]))
    assert of_shuffled == pytest.approx(fid, rel=1e-9)
    plain, shuffled = Features(video.features(real)), Features(video.features(real[:, order]))
    assert video.compare(shuffled, plain).value > 1e-3
    assert video.compare(plain, plain).value == pytest.approx(0, abs=1e-9)
    reference = Features(kernel.features(other))
    values = [kernel.compare(features, reference).value for features in (plain, shuffled)]
    assert values[0] != pytest.approx(values[1], rel=1e-3)


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_fvd_grows_with_noise_and_blur(real: np.ndarray, kind: str) -> None:
    metric, real = fvd.Fvd(), real[:8]
    reference = Features(metric.features(real))
    grain = np.random.default_rng(0).normal(size=real.shape)

    def spoilt(amount: int) -> np.ndarray:
        if kind == "noise":
            return np.clip(real + 10 * amount * grain, 0, 255).astype(np.uint8)
        soft = real.astype(np.float32)
        for _ in range(2 * amount):
            soft = (np.roll(soft, 1, 2) + soft + np.roll(soft, -1, 2)) / 3
            soft = (np.roll(soft, 1, 3) + soft + np.roll(soft, -1, 3)) / 3
        return np.rint(soft).astype(np.uint8)

    values = [metric.compare(Features(metric.features(spoilt(amount))), reference).value for amount in (0, 1, 3)]
    assert values[0] < 1e-9 and all(a < b / 1.1 for a, b in pairwise(values)), values


def test_covariances_over_n_are_those_of_the_shrunk_sets() -> None:
    rows = np.random.default_rng(0).normal(3, 1, (7, 1, 5))
    moments, small = Moments.of(rows[:, 0]), Moments.of(fvd.shrunk(Features(rows)).values_NKD[:, 0])
    np.testing.assert_allclose(small.mean_D, moments.mean_D, rtol=1e-14)
    np.testing.assert_allclose(small.covariance_DD, np.cov(rows[:, 0].T, ddof=0), rtol=1e-13)
    with pytest.raises(BenchError, match="at least two"):
        fvd.CdFvdFvd().compare(Features(rows[:1]), Features(rows))


def test_leave_outs_of_the_shrunk_set_give_the_standard_error_of_exact_ones() -> None:
    rng, metric, plain = np.random.default_rng(0), fvd.CdFvdFvd(), fvd.VideoGptFvd()
    reference, generated = Features(rng.normal(size=(90, 1, 6))), Features(rng.normal(0.2, 1.1, (60, 1, 6)))
    score = metric.compare(generated, reference)
    exact = [
        metric.compare(Features(np.delete(generated.values_NKD, range(g, 60, 20), axis=0)), reference).value
        for g in range(20)
    ]
    np.testing.assert_allclose(score.leave_out, exact, atol=score.se / 60)
    assert score.se == pytest.approx(np.std(exact) * np.sqrt(19), rel=1 / 60)
    assert score.value != pytest.approx(plain.compare(generated, reference).value, rel=1e-3)


def test_statistics_and_moments_serve_as_references_too() -> None:
    rng, metric = np.random.default_rng(0), fvd.CdFvdFvd()
    generated, reference = (Features(rng.normal(size=(count, 1, 6))) for count in (30, 20))
    score = metric.compare(generated, reference)
    whole = metric.statistics(reference)
    for known in (whole, Moments.of(reference.values_NKD[:, 0])):
        assert metric.compare(generated, known).value == pytest.approx(score.value, rel=1e-12)
    with pytest.raises(BenchError, match="how many vectors"):
        metric.compare(generated, Statistics(whole.mean_D, whole.covariance_DD))


def test_networks_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fvd.Fvd(), fvd.VideoGptFvd()
    for name in ("torch.jit.load", "torch.load"):
        monkeypatch.setattr(name, lambda *args, **kwargs: pytest.fail("loaded again"))
    fvd.Fvd(), fvd.Kvd(), fvd.CdFvdFvd()


def test_building_networks_leaves_the_random_numbers_alone() -> None:
    i3d._kinetics.cache_clear()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fvd.CdFvdFvd()
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_settings_are_put_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest" and not torch.is_grad_enabled()
            assert not torch._C._get_graph_executor_optimize()
        assert torch.get_float32_matmul_precision() == "high" and torch.is_grad_enabled()
        assert torch._C._get_graph_executor_optimize()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("metric", [fvd.VideoGptFvd, fvd.CdFvdFvd, cd_fvd.ContentDebiasedFvd])
def test_without_the_package_the_cure_is_said(metric: type[CorpusMetric], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cdfvd"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cdfvd", None)
    with pytest.raises(BenchError, match=r"package cd-fvd: .*\n.*pip install 'w2svd-bench\[cdfvd\]'"):
        metric()
    fvd.Fvd()  # needs no package


class Harmful:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    "content", [{"logits.conv3d.weight": torch.zeros(1)}, [1, 2], {"state": Harmful()}], ids=["other", "list", "object"]
)
def test_files_of_other_content_are_refused(content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SVD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    torch.save(content, tmp_path / "file")
    for name, metric in {"i3d-torchscript": fvd.Fvd, "i3d-kinetics400": fvd.CdFvdFvd}.items():
        weights.install_stand_in(name, tmp_path / "file")
        with pytest.raises(BenchError, match=r"can't be loaded\n.*\n.*weights check"):
            metric()
