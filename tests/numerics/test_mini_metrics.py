"""fid[mini], fvd[mini] and the diagnostics, with the nets that ship: what they see and what they don't."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from w2svd_bench.data.palette import named_colours
from w2svd_bench.data.portraits import captions, clips
from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import diagnostics, mini_nets
from w2svd_bench.metrics.base import CorpusMetric, Features
from w2svd_bench.metrics.mini import MiniFid, MiniFvd
from w2svd_bench.metrics.mini_nets import FRAME_TARGETS, columns
from w2svd_bench.uncertainty import paired_difference

GENERATED, REFERENCE = 192, 768
FLOOR = {"fid": 5.0, "fvd": 18.0}  # for so few clips; 512 against 2048 score about 1.3 and 4.7
Scorer = Callable[[str, np.ndarray], float]


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return clips("test", range(GENERATED)).numpy()


@pytest.fixture(scope="module")
def metrics() -> dict[str, CorpusMetric]:
    return {"fid": MiniFid(), "fvd": MiniFvd()}


@pytest.fixture(scope="module")
def references(metrics: dict[str, CorpusMetric]) -> dict[str, Features]:
    frames = clips("reference", range(REFERENCE)).numpy()
    return {name: Features(metric.features(frames)) for name, metric in metrics.items()}


@pytest.fixture(scope="module")
def score(metrics: dict[str, CorpusMetric], references: dict[str, Features]) -> Scorer:
    return lambda name, frames: metrics[name].compare(Features(metrics[name].features(frames)), references[name]).value


@pytest.fixture(scope="module")
def floor(score: Scorer, real: np.ndarray) -> dict[str, float]:
    """The distance of real clips from other real clips: the least that anything can reach with so many clips."""
    return {name: score(name, real) for name in ("fid", "fvd")}


def blurred(frames: np.ndarray, amount: float) -> np.ndarray:
    """A part of a 3 x 3 binomial blur."""
    padded = np.pad(frames.astype(np.float32), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    soft = (rows[:, :, :, :-2] + 2 * rows[:, :, :, 1:-1] + rows[:, :, :, 2:]) / 4
    return np.rint(frames + amount * (soft - frames)).astype(np.uint8)


def noisy(frames: np.ndarray, grey_levels: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(frames.shape, dtype=np.float32)
    return np.rint(frames + grey_levels * noise).clip(0, 255).astype(np.uint8)


def tinted(frames: np.ndarray, grey_levels: float) -> np.ndarray:
    return np.rint(frames + grey_levels * np.array([1, 0, -1], dtype=np.float32)).clip(0, 255).astype(np.uint8)


def shuffled(frames: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([clip[rng.permutation(len(clip))] for clip in frames])


def frozen(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[:, 8:9], frames.shape[1], axis=1)


def test_floor(floor: dict[str, float]) -> None:
    assert 0 < floor["fid"] < FLOOR["fid"]
    assert 0 < floor["fvd"] < FLOOR["fvd"]


@pytest.mark.parametrize(("fault", "amounts"), [(blurred, (0.5, 1.0)), (noisy, (10.0, 20.0)), (tinted, (8.0, 24.0))])
def test_faults_of_frames_raise_both_scores(
    fault: Callable[[np.ndarray, float], np.ndarray],
    amounts: tuple[float, float],
    score: Scorer,
    real: np.ndarray,
    floor: dict[str, float],
) -> None:
    mild, strong = (fault(real, amount) for amount in amounts)
    for name in ("fid", "fvd"):
        values = [floor[name], score(name, mild), score(name, strong)]
        assert values == sorted(values)
        assert values[-1] > 1.5 * values[0]


def test_fvd_sees_the_order_of_frames_and_fid_does_not(
    score: Scorer, real: np.ndarray, floor: dict[str, float]
) -> None:
    assert score("fvd", shuffled(real)) > 3 * floor["fvd"]
    assert score("fvd", frozen(real)) > 8 * floor["fvd"]
    assert score("fid", shuffled(real)) < 1.5 * floor["fid"]


def test_a_paired_comparison_finds_a_faint_blur(
    metrics: dict[str, CorpusMetric], references: dict[str, Features], real: np.ndarray
) -> None:
    # A quarter of a 3 x 3 blur lies within the floor's own error bars; paired on the same clips it is clear.
    metric, blurry = metrics["fid"], blurred(real, 0.25)
    a, b = (metric.compare(Features(metric.features(frames)), references["fid"]) for frames in (blurry, real))
    difference = paired_difference(a.value, a.leave_out, b.value, b.leave_out)
    assert difference.low > 0
    assert difference.se < 0.7 * np.hypot(a.se, b.se)


@pytest.mark.parametrize("name", ["fid", "fvd"])
def test_a_clip_has_the_same_features_in_any_batch(
    name: str, metrics: dict[str, CorpusMetric], real: np.ndarray
) -> None:
    metric = metrics[name]
    whole = metric.features(real[:7])
    assert whole.dtype == np.float32
    assert whole.shape == ((7, 5, 64) if name == "fid" else (7, 1, 64))
    for order in ([0, 1, 2, 3, 4, 5, 6], [3], [6, 0, 2]):
        np.testing.assert_array_equal(metric.features(real[order]), whole[order])


def test_ids_name_the_weights(metrics: dict[str, CorpusMetric]) -> None:
    sums = json.loads((mini_nets.FOLDER / mini_nets.SUMS).read_text())
    for name, file in (("fid", "frame.safetensors"), ("fvd", "clip.safetensors")):
        assert metrics[name].weights_sha256 == sums[file]
        assert sums[file] in metrics[name].id


def test_what_the_nets_learned_is_on_record() -> None:
    for name in ("frame", "clip"):
        scores = json.loads((mini_nets.FOLDER / f"{name}.json").read_text())["held_out_r2"]
        assert scores["mouth"] > 0.8
        assert scores["head_x"] > 0.9


@pytest.mark.parametrize("file", ["frame.safetensors", "frame.json"])
def test_changed_weights_are_refused(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    shutil.copytree(mini_nets.FOLDER, folder)
    mini_nets.load_net("frame", folder=folder)
    content = bytearray((folder / file).read_bytes())
    content[-10] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(BenchError, match="sha256"):
        mini_nets.load_net("frame", folder=folder)
    (folder / file).unlink()
    with pytest.raises(BenchError, match="can't be read"):
        mini_nets.load_net("frame", folder=folder)


@pytest.mark.parametrize("shape", [(2, 17, 64, 64, 3), (2, 16, 48, 48, 3), (17, 48, 48, 3)])
def test_clips_of_another_size_are_refused(shape: tuple[int, ...], metrics: dict[str, CorpusMetric]) -> None:
    for metric in metrics.values():
        with pytest.raises(BenchError, match="uint8 clips of shape"):
            metric.features(np.zeros(shape, np.uint8))


def test_diagnostics(real: np.ndarray) -> None:
    reader = diagnostics.Reader()
    half = GENERATED // 2
    read, other = reader(real[:half]), reader(real[half:])
    assert diagnostics.mouth(read, other) == pytest.approx(1, abs=0.12)
    assert diagnostics.sway(read, other) == pytest.approx(1, abs=0.25)
    still = reader(frozen(real[:half]))
    assert diagnostics.mouth(still, other) == diagnostics.sway(still, other) == 0
    slow = reader(real[:half, np.arange(17) // 2])
    assert diagnostics.mouth(slow, other) < 0.85
    wanted = [named_colours(caption) for caption in captions("test", range(half))]
    right = diagnostics.colour_error(read, wanted)
    assert right < 0.004
    assert diagnostics.colour_error(read, wanted[1:] + wanted[:1]) > 5 * right
    assert diagnostics.colour_error(reader(tinted(real[:half], 20.0)), wanted) > 1.5 * right
    with pytest.raises(BenchError, match="prompts"):
        diagnostics.colour_error(read, wanted[1:])


def test_mixing_and_the_rarest_class_in_closed_form() -> None:
    """Readings that sit at known points of a palette: (mean squared) distance to the nearest, and the least share."""
    palette = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0))
    shown = np.array([[0.0, 0.0, 0.3], [0.9, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    readings = np.zeros((5, 17, sum(FRAME_TARGETS.values())), np.float32)
    readings[..., columns(FRAME_TARGETS, "shirt")] = shown[:, None]
    assert diagnostics.class_mixing(readings, "shirt", palette) == pytest.approx((0.09 / 3 + 0.01 / 3) / 5, rel=1e-5)
    assert diagnostics.rarest_share(readings, "shirt", palette) == 0.2
    readings[:1, :, columns(FRAME_TARGETS, "shirt")] = 1.0
    assert diagnostics.rarest_share(readings, "shirt", palette) == 0.0  # one kind of clips is missing altogether
