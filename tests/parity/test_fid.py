"""FID and KID against pytorch-fid, torch-fidelity and clean-fid, on the same files with the same weights.

The weights are random, in the real file's format; where the peers look for theirs, they find the same file. What is
measured is printed (``pytest -s``). The slow tests run pytorch-fid's command line from end to end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as peer_inception

from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.folders import score_folders
from w2svd_bench.evaluate.store import FeatureStore
from w2svd_bench.metrics import inception, weights
from w2svd_bench.metrics.base import FeatureNet, Features
from w2svd_bench.metrics.fid import CleanFid, Fid
from w2svd_bench.metrics.frechet import FrechetMetric, Reference, frechet_distance
from w2svd_bench.metrics.inception import DIMENSIONS, InceptionFeatures, clean_resize, frame_indices
from w2svd_bench.metrics.kernel import KernelMetric, subset_mmd
from w2svd_bench.metrics.kid import CleanKid, Kid
from w2svd_bench.metrics.statistics import read_statistics, write_statistics

import stand_ins_inception

SIZES = {"64x64": (64, 64, 3), "720p": (720, 1280, 3), "grey": (96, 80)}


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Stand-in weights where we look for them and where pytorch-fid does; the network is out of reach."""
    folder = tmp_path_factory.mktemp("weights")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(weights.FOLDER_VARIABLE, str(folder / "ours"))
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        content = stand_ins_inception.inception()
        weights.install_stand_in(inception.WEIGHTS, content)
        theirs = folder / "torch" / "hub" / "checkpoints" / peer_inception.FID_WEIGHTS_URL.rpartition("/")[2]
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(content)
        torch.set_num_threads(1)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def peer(home: Path) -> torch.nn.Module:
    """pytorch-fid's own network, as its command line makes it."""
    return peer_inception.InceptionV3([3]).eval()


def pictures(folder: Path, kind: str, count: int, seed: int, blur: int = 1) -> list[Path]:
    """PNG files: noise of a few pixels' grain on a slope, so that every resize filter gives something else."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, rng, files = SIZES[kind], np.random.default_rng(seed), []
    for i in range(count):
        grain = 4 * blur
        small = rng.integers(0, 256, (-(-shape[0] // grain), -(-shape[1] // grain), *shape[2:]))
        pixels = small.repeat(grain, axis=0).repeat(grain, axis=1)[: shape[0], : shape[1]] * 0.7
        pixels = pixels + np.linspace(0, 70, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2)) * rng.random()
        files.append(folder / f"{i:03}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(files[-1])
    return files


def as_clips(files: list[Path]) -> np.ndarray:
    """Images as clips of one frame, (N, 1, H, W, 3)."""
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])[:, None]


def say(what: str, ours: float, theirs: float) -> None:
    print(f"\n{what}: ours {ours:.12g}, theirs {theirs:.12g}, relative difference {abs(ours / theirs - 1):.2g}")


@pytest.mark.parametrize(("kind", "count"), [("64x64", 2), ("720p", 2), ("grey", 2)])
def test_features_equal_pytorch_fid(kind: str, count: int, peer: torch.nn.Module, tmp_path: Path) -> None:
    files = pictures(tmp_path, kind, count, 0)
    theirs = fid_score.get_activations(files, peer, batch_size=count, device="cpu", num_workers=0)
    ours = InceptionFeatures().features(as_clips(files))
    assert (ours.shape, ours.dtype) == ((count, 1, DIMENSIONS), np.float32)
    assert theirs.std(axis=0).mean() > 1e-4  # or all images have the same features, and this shows nothing
    print(f"\n{kind}: largest difference of features {np.abs(ours[:, 0] - theirs).max():.2g}")
    np.testing.assert_allclose(ours[:, 0], theirs, rtol=1e-5, atol=1e-6)


def test_a_clips_features_do_not_depend_on_its_batch(tmp_path: Path) -> None:
    clips = as_clips(pictures(tmp_path, "64x64", 4, 1)).reshape(2, 2, 64, 64, 3)
    net = InceptionFeatures()
    together = net.features(clips)
    np.testing.assert_array_equal(together[1:], net.features(clips[1:]))
    shuffled = net.features(clips[:1, ::-1])  # frames are looked at one by one
    np.testing.assert_allclose(shuffled[0, ::-1], together[0], rtol=1e-5, atol=1e-6)
    assert net.features(clips[:0]).shape == (0, 2, DIMENSIONS)


def test_chunks_of_several_clips_give_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "CHUNK", 2)
    frames = as_clips(pictures(tmp_path, "64x64", 3, 2))
    net = InceptionFeatures()
    with torch.no_grad():
        chunks = list(net._run_in_chunks(frames[:, 0]))
    assert [len(chunk) for chunk in chunks] == [2, 1]
    np.testing.assert_allclose(torch.cat(chunks), net.features(frames)[:, 0], rtol=1e-5, atol=1e-6)


def test_frames_are_the_middles_of_equal_parts() -> None:
    assert [frame_indices(n) for n in (1, 3, 8)] == [[0], [0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert frame_indices(17) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert frame_indices(129) == [8, 24, 40, 56, 72, 88, 104, 120]
    clip = np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1, 1) * np.ones((1, 1, 8, 8, 3), np.uint8)
    seen: list[np.ndarray] = []
    net = InceptionFeatures()
    net._run = lambda frames: seen.append(frames) or torch.zeros(len(frames), DIMENSIONS)  # type: ignore[method-assign]
    net.features(clip)
    assert seen[0][:, 0, 0, 0].tolist() == frame_indices(17)


@pytest.mark.parametrize("kind", ["64x64", "720p"])
def test_clean_resize_equals_clean_fid(kind: str, tmp_path: Path) -> None:
    build_resizer = import_module("cleanfid.resize").build_resizer
    frame = as_clips(pictures(tmp_path, kind, 1, 3))[0, 0]
    theirs = build_resizer("clean")(frame)
    np.testing.assert_array_equal(clean_resize(frame), theirs)
    assert np.abs(theirs - build_resizer("legacy_pytorch")(frame)).mean() > 1  # the filters do differ here


def test_clean_frames_reach_the_network_as_clean_fid_scales_them(tmp_path: Path, peer: torch.nn.Module) -> None:
    frames = as_clips(pictures(tmp_path, "64x64", 1, 4))
    x = (torch.from_numpy(clean_resize(frames[0, 0])).permute(2, 0, 1)[None].contiguous() - 128) / 128
    with torch.no_grad():
        for block in peer.blocks:  # without the package's own resize and scaling
            x = block(x)
    ours = InceptionFeatures(resize="clean").features(frames)
    np.testing.assert_array_equal(ours[0, 0], x.flatten())
    assert np.abs(ours - InceptionFeatures().features(frames)).max() > 1e-3


def test_one_network_serves_both_resizes_and_all_metrics() -> None:
    metrics = [kind() for kind in (Fid, CleanFid, Kid, CleanKid)]
    assert len({id(metric.net._net) for metric in metrics}) == 1  # type: ignore[attr-defined]
    names = [metric.name for metric in metrics]
    assert names == ["fid[stand-in]", "fid[clean][stand-in]", "kid[stand-in]", "kid[clean][stand-in]"]
    assert len({metric.id for metric in metrics}) == 4
    assert all(metric.weights_sha256 in metric.id and len(metric.weights_sha256) == 64 for metric in metrics)
    assert metrics[0].net.id == metrics[2].net.id != metrics[1].net.id == metrics[3].net.id  # features are shared
    assert all(metric.net.flags == ("stand-in weights",) for metric in metrics)


@pytest.mark.parametrize("content", [b"no zip", "other tensors"])
def test_weights_that_do_not_fit_are_refused(
    content: bytes | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(content, str):
        torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
        content = (tmp_path / "other.pth").read_bytes()
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "weights"))
    weights.install_stand_in(inception.WEIGHTS, content)
    download = peer_inception.load_state_dict_from_url
    with pytest.raises(BenchError, match="can't be loaded"):
        InceptionFeatures()
    assert peer_inception.load_state_dict_from_url is download  # the package is left as it was


def test_what_it_can_not_read_is_refused() -> None:
    with pytest.raises(BenchError, match="unknown resize"):
        InceptionFeatures(resize="lanczos")  # type: ignore[arg-type]
    for clips in (np.zeros((1, 1, 8, 8, 3)), np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 0, 8, 8, 3), np.uint8)):
        with pytest.raises(BenchError, match="uint8 clips"):
            InceptionFeatures().features(clips)


class Given(FeatureNet):
    id, weights_sha256 = "given", "0" * 64

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class PlainFrechet(FrechetMetric):
    name, version = "frechet", 1


class PlainKernel(KernelMetric):
    name, version = "kernel", 1


def given(seed: int, n: int, d: int = 48) -> np.ndarray:
    """Features (n, d) float64, as behind an activation."""
    mix = np.random.default_rng(9).normal(size=(d, d)) / np.sqrt(d)
    return np.maximum(np.random.default_rng(seed).normal(size=(n, d)) @ mix * (1 + 0.1 * (seed % 2)), 0)


def test_frechet_distance_equals_torch_fidelity() -> None:
    fidelity = import_module("torch_fidelity.metric_fid")
    x, y = given(0, 700), given(1, 600)
    stats = [fidelity.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)]
    theirs = fidelity.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    ours = PlainFrechet(Given()).compare(Features(x[:, None]), Features(y[:, None])).value
    say("torch-fidelity's FID", ours, theirs)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_subset_kernel_distance_equals_torch_fidelity() -> None:
    fidelity = import_module("torch_fidelity.metric_kid")
    x, y = given(0, 700), given(1, 600)
    options = dict(kid_subsets=20, kid_subset_size=300, verbose=False)
    theirs = fidelity.kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **options)
    mean, deviation = subset_mmd(x, y, subsets=20, size=300)
    say("torch-fidelity's KID", mean, theirs["kernel_inception_distance_mean"])
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-10)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-10)
    assert subset_mmd(x, y, subsets=20, size=300, seed=1)[0] != pytest.approx(mean, abs=1e-10)
    # Ours over all pairs is what the average over subsets tends to.
    whole = PlainKernel(Given()).compare(Features(x[:, None]), Features(y[:, None])).value
    assert abs(whole - mean) < 3 * deviation / np.sqrt(20)


def test_kernel_distance_over_all_pairs_equals_clean_fid() -> None:
    kernel_distance = import_module("cleanfid.fid").kernel_distance
    x, y = given(0, 400), given(1, 400)
    theirs = kernel_distance(y, x, num_subsets=1, max_subset_size=400)  # its one subset is everything
    ours = PlainKernel(Given()).compare(Features(x[:, None]), Features(y[:, None])).value
    say("clean-fid's KID over all pairs", ours, theirs)
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_names_of_files_do_not_move_the_kernel_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`score` of two folders is clean-fid's number over all pairs, also where files of both have the same names."""
    kernel_distance = import_module("cleanfid.fid").kernel_distance
    monkeypatch.setattr(Given, "features", lambda net, clips: clips.astype(np.float32).reshape(len(clips), 1, -1) / 64)
    pixels = {}
    for side, seed, first in (("ours", 0, 0), ("same", 1, 0), ("other", 1, 100)):
        (tmp_path / side).mkdir()
        pixels[side] = np.random.default_rng(seed).integers(0, 150 + seed, (60, 1, 4, 4, 3), dtype=np.uint8)
        for index, clip in enumerate(pixels[side], start=first):
            np.save(tmp_path / side / f"{index:03}.npy", clip)
    x, y = (pixels[side].reshape(60, -1) / 64 for side in ("ours", "same"))
    theirs = kernel_distance(y, x, num_subsets=1, max_subset_size=60)
    store = FeatureStore(tmp_path / "store")
    for side in ("other", "same"):
        (row,) = score_folders(tmp_path / "ours", tmp_path / side, [PlainKernel(Given())], store=store).results
        assert row.value is not None
        say(f"clean-fid's KID, {side} names", row.value, theirs)
        assert row.value == pytest.approx(theirs, rel=1e-9)


def test_statistics_of_features_equal_pytorch_fid(peer: torch.nn.Module, tmp_path: Path) -> None:
    files = pictures(tmp_path, "64x64", 2, 5)
    theirs = fid_score.calculate_activation_statistics(files, peer, 2, device="cpu", num_workers=0)
    metric = Fid()
    statistics = metric.statistics(Features(metric.features(as_clips(files))))
    np.testing.assert_allclose(statistics.mean_D, theirs[0], atol=1e-6)
    np.testing.assert_allclose(statistics.covariance_DD, theirs[1], atol=1e-6)
    assert (statistics.n, statistics.clips, statistics.net_id) == (2, 2, metric.net.id)


def command_line(*arguments: object) -> str:
    """pytorch-fid's, in a process of its own that inherits this one's environment."""
    command = [sys.executable, "-W", "ignore", "-m", "pytorch_fid", "--device", "cpu", "--batch-size", "6"]
    command += ["--num-workers", "0", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if "'disp'" in done.stderr:
        pytest.skip("pytorch-fid does not run with this SciPy: its sqrtm has lost the argument `disp`")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def printed_fid(output: str) -> float:
    found = re.search(r"FID:\s+([-+.e\d]+)", output)
    assert found is not None, output
    return float(found[1])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("64x64", 12), ("720p", 4), ("grey", 12)])
def test_fid_equals_pytorch_fid_from_end_to_end(kind: str, count: int, tmp_path: Path) -> None:
    made = pictures(tmp_path / "made", kind, count, 6)
    real = pictures(tmp_path / "real", kind, count, 7, blur=2)
    theirs = printed_fid(command_line(tmp_path / "made", tmp_path / "real"))
    metric = Fid()
    made_features, real_features = (Features(metric.features(as_clips(files))) for files in (made, real))
    score = metric.compare(made_features, real_features)
    say(f"pytorch-fid on {count}+{count} images, {kind}", score.value, theirs)
    assert score.value == pytest.approx(theirs, rel=1e-5)
    assert score.flags == ("stand-in weights", "n<2048", "N<D")


@pytest.mark.slow
def test_files_of_statistics_in_both_directions(tmp_path: Path) -> None:
    made = pictures(tmp_path / "made", "64x64", 12, 6)
    real = pictures(tmp_path / "real", "64x64", 12, 7, blur=2)
    command_line("--save-stats", tmp_path / "real", tmp_path / "theirs.npz")
    metric = Fid()
    made_features, real_features = (Features(metric.features(as_clips(files))) for files in (made, real))
    write_statistics(tmp_path / "ours.npz", metric.statistics(real_features))
    theirs, ours = read_statistics(tmp_path / "theirs.npz", metric.net), read_statistics(tmp_path / "ours.npz")
    print(f"\nlargest difference of mu {np.abs(ours.mean_D - theirs.mean_D).max():.2g}", end=", ")
    print(f"of sigma {np.abs(ours.covariance_DD - theirs.covariance_DD).max():.2g}")
    np.testing.assert_allclose(ours.mean_D, theirs.mean_D, atol=1e-9)
    np.testing.assert_allclose(ours.covariance_DD, theirs.covariance_DD, atol=1e-9)
    # With 12 images sigma is singular, and what is left of it in a file has a root that is right to 1e-8 only.
    whole = metric.compare(made_features, real_features).value
    assert metric.compare(made_features, theirs).value == pytest.approx(whole, rel=1e-5)
    read_by_them = printed_fid(command_line(tmp_path / "made", tmp_path / "ours.npz"))
    say("pytorch-fid reading our statistics", whole, read_by_them)
    assert read_by_them == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("frechet", "kernel"), [(Fid, Kid), (CleanFid, CleanKid)])
def test_more_noise_is_a_larger_distance(frechet: type[Fid], kernel: type[Kid], tmp_path: Path) -> None:
    metrics = frechet(), kernel()
    clips = as_clips(pictures(tmp_path, "64x64", 12, 8))
    noise = np.random.default_rng(0).normal(size=clips[6:].shape)
    noisy = [(clips[6:] + strength * noise).clip(0, 255).astype(np.uint8) for strength in (0, 30, 90)]
    made = [Features(metrics[0].features(frames)) for frames in noisy]
    reference = Features(metrics[0].features(clips[:6]))
    for metric in metrics:
        values = [metric.compare(features, reference).value for features in made]
        assert values == sorted(values), (metric.name, values)


@pytest.mark.slow
def test_the_full_size_distance_equals_pytorch_fid() -> None:
    """At 2048 dimensions with more vectors than that, where nothing is singular."""
    x, y = given(0, 2304, DIMENSIONS), given(1, 2304, DIMENSIONS)
    stats = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in (x, y)]
    try:
        theirs = fid_score.calculate_frechet_distance(*stats[0], *stats[1])
    except TypeError as error:
        pytest.skip(f"pytorch-fid does not run with this SciPy: {error}")
    ours = frechet_distance(x, Reference.of(y))
    say("pytorch-fid's distance of 2304 vectors of 2048 dimensions", ours, theirs)
    assert ours == pytest.approx(theirs, rel=1e-8)
