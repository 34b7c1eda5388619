"""Files of feature statistics: pytorch-fid's in both directions, and all that is refused."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.base import FeatureNet
from w2svd_bench.metrics.statistics import Source, Statistics, read_statistics, write_statistics

SHA256 = "ab" * 32
DIMENSIONS = 6


class Net(FeatureNet):
    id, weights_sha256 = "a net", SHA256

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@pytest.fixture
def statistics() -> Statistics:
    x = np.random.default_rng(0).normal(size=(40, DIMENSIONS))
    return Statistics(x.mean(0), np.cov(x, rowvar=False), 40, 20, Net.id, SHA256)


@pytest.fixture
def write(statistics: Statistics, tmp_path: Path) -> Callable[..., Path]:
    """Writes a file with some arrays replaced, or left out where they are None."""

    def make(**changes: Any) -> Path:
        spec = json.dumps({"net": Net.id, "clips": 20})
        arrays = {"mu": statistics.mean_D, "sigma": statistics.covariance_DD, "n": 40, "spec_json": spec} | changes
        path = tmp_path / "made.npz"
        np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return make


def test_what_is_written_is_read_again(statistics: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "ours.npz"
    write_statistics(path, statistics)
    again = read_statistics(path, Net())
    np.testing.assert_array_equal(again.mean_D, statistics.mean_D)
    np.testing.assert_array_equal(again.covariance_DD, statistics.covariance_DD)
    assert (again.n, again.clips, again.net_id, again.weights_sha256) == (40, 20, "a net", SHA256)
    assert again.flags == () and again.source is None
    assert [file.name for file in path.parent.iterdir()] == ["ours.npz"]  # no draft is left beside it
    write_statistics(tmp_path / "twin.npz", statistics)
    assert (tmp_path / "twin.npz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("fps", [12.0, None])
def test_the_folder_that_they_are_of_is_described(statistics: Statistics, tmp_path: Path, fps: float | None) -> None:
    source = Source(frames=(4, 6), size=(16, 24), fps=fps, invalid=3, resized=1)
    write_statistics(tmp_path / "ours.npz", replace(statistics, source=source))
    assert read_statistics(tmp_path / "ours.npz", Net()).source == source


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_others_may_read_what_the_umask_lets_them(
    statistics: Statistics, tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        write_statistics(tmp_path / "ours.npz", statistics)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ours.npz").stat().st_mode) == mode


def test_pytorch_fid_reads_ours(statistics: Statistics, tmp_path: Path) -> None:
    peer = import_module("pytorch_fid.fid_score")
    path = tmp_path / "ours.npz"
    write_statistics(path, statistics)
    mean, covariance = peer.compute_statistics_of_path(str(path), None, 1, DIMENSIONS, "cpu")
    np.testing.assert_array_equal(mean, statistics.mean_D)
    np.testing.assert_array_equal(covariance, statistics.covariance_DD)


def test_a_file_that_states_nothing_is_read_and_flagged(write: Callable[..., Path], statistics: Statistics) -> None:
    found = read_statistics(write(n=None, spec_json=None), Net())  # the two arrays that pytorch-fid writes
    np.testing.assert_array_equal(found.covariance_DD, statistics.covariance_DD)
    assert (found.n, found.clips, found.net_id, found.weights_sha256) == (None, None, None, None)
    assert found.flags == ("reference of an unstated net",)


def test_nothing_is_overwritten(statistics: Statistics, write: Callable[..., Path]) -> None:
    path = write()
    before = path.read_bytes()
    with pytest.raises(BenchError, match="exists"):
        write_statistics(path, statistics)
    assert path.read_bytes() == before


NOT_FINITE = np.full(DIMENSIONS, 0.5)
NOT_FINITE[2] = np.nan
SOURCE = '{"net": "a net", "source": {"frames": %s, "size": [16, 16], "fps": %s, "invalid": 0, "resized": 0}}'
SKEW = np.eye(DIMENSIONS) + np.pad([[0.5]], ((0, DIMENSIONS - 1), (DIMENSIONS - 1, 0)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mu": None}, r"\['mu'\] is missing"),
        ({"sigma": None}, r"\['sigma'\] is missing"),
        ({"mu": np.zeros((1, DIMENSIONS))}, "shape"),
        ({"mu": np.zeros(DIMENSIONS + 1)}, "shape"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "shape"),
        ({"sigma": np.ones(DIMENSIONS)}, "shape"),
        ({"sigma": np.eye(DIMENSIONS)[:-1]}, "shape"),
        ({"mu": np.zeros(DIMENSIONS, dtype=int)}, "types int64"),
        ({"sigma": np.eye(DIMENSIONS) + 0j}, "complex128"),
        ({"mu": NOT_FINITE}, "NaN"),
        ({"sigma": np.diag(NOT_FINITE)}, "NaN"),
        ({"sigma": np.diag(NOT_FINITE * np.inf)}, "NaN"),
        ({"sigma": SKEW}, "not symmetric"),
        ({"sigma": -np.eye(DIMENSIONS)}, "negative variance"),
        ({"mu": np.array([None] * DIMENSIONS)}, "can't be read"),  # would have to be unpickled
        ({"n": 1}, "at least 2"),
        ({"n": 40.5}, "at least 2"),
        ({"n": np.array([40, 40])}, "at least 2"),
        ({"spec_json": "{"}, "no JSON"),
        ({"spec_json": "[]"}, "feature net"),
        ({"spec_json": '{"clips": 3}'}, "feature net"),
        ({"spec_json": '{"net": "a net", "clips": "x"}'}, "at least 2"),
        ({"spec_json": '{"net": "another net"}'}, "another net"),
        ({"spec_json": '{"net": "a net", "source": 3}'}, "describe"),
        ({"spec_json": '{"net": "a net", "source": {"frames": [4], "size": [16, 16], "fps": null}}'}, "describe"),
        ({"spec_json": SOURCE % ("[]", "8")}, "describe"),
        ({"spec_json": SOURCE % ('"4"', "8")}, "describe"),
        ({"spec_json": SOURCE % ("[4]", '"8"')}, "describe"),
        ({"spec_json": SOURCE % ("[4]", "NaN")}, "describe"),
        ({"weights_sha256": "cd" * 32}, "another weights"),
    ],
)
def test_wrong_content_is_refused(write: Callable[..., Path], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError, match=words):
        read_statistics(write(**changes), Net())


def test_float32_is_read(write: Callable[..., Path], statistics: Statistics) -> None:
    changes = {"mu": statistics.mean_D.astype(np.float32), "sigma": statistics.covariance_DD.astype(np.float32)}
    found = read_statistics(write(**changes), Net())
    assert found.covariance_DD.dtype == np.float64
    np.testing.assert_allclose(found.covariance_DD, statistics.covariance_DD, atol=1e-6)


def damage(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "cut off": content[:middle],
        "turned bits": content[:300] + bytes(byte ^ 0xFF for byte in content[300:316]) + content[316:],
        "empty": b"",
        "web page": b"<!DOCTYPE html><html></html>",
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x02mu\x94K\x01s.",
    }


@pytest.mark.parametrize("kind", ["cut off", "turned bits", "empty", "web page", "pickle"])
def test_damaged_files_are_refused(write: Callable[..., Path], kind: str) -> None:
    path = write()
    path.write_bytes(damage(path.read_bytes())[kind])
    with pytest.raises(BenchError, match="is no file of feature statistics"):
        read_statistics(path)


def test_a_single_array_and_no_file_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.eye(3))
    with pytest.raises(BenchError, match="single array"):
        read_statistics(tmp_path / "array.npy")
    with pytest.raises(BenchError, match="there is no file"):
        read_statistics(tmp_path / "none.npz")
