"""What was read of clips is kept by content: found again in any order, by any process, after any interruption."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.store import SHARD_CLIPS, ClipLog, FeatureStore, Logged, content_sha256


def some(count: int, start: int = 0) -> dict[str, np.ndarray]:
    """Features (2, 3) of clips by made-up content hashes."""
    return {f"{k:064x}": np.full((2, 3), k, dtype=np.float32) for k in range(start, start + count)}


def test_features_come_back_in_the_order_in_which_they_are_asked_for(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    values = some(5)
    store.put("net a", values)
    store.flush()
    keys = list(reversed(values))
    for one in (store, FeatureStore(tmp_path)):
        found = one.get("net a", [*keys, "unknown"])
        assert list(found) == keys
        assert all(np.array_equal(found[key], values[key]) and found[key].dtype == np.float32 for key in keys)
    assert FeatureStore(tmp_path).get("net b", keys) == {}


def test_shards_are_added_and_never_changed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put("net", some(SHARD_CLIPS))  # enough to be written at once
    (first,) = tmp_path.rglob("*.npz")
    content = first.read_bytes()
    store.put("net", some(3, SHARD_CLIPS - 1))  # two of them are new
    assert list(tmp_path.rglob("*.npz")) == [first]  # they wait
    store.flush()
    shards = sorted(tmp_path.rglob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
    assert len(shards) == 2 and first.read_bytes() == content
    with np.load(next(path for path in shards if path != first)) as arrays:
        assert len(arrays["keys"]) == 2
    assert len(FeatureStore(tmp_path).get("net", list(some(SHARD_CLIPS + 2)))) == SHARD_CLIPS + 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_another_process_adds_is_seen(tmp_path: Path) -> None:
    ours, theirs = FeatureStore(tmp_path), FeatureStore(tmp_path)
    assert ours.get("net", list(some(2))) == {}
    theirs.put("net", some(2))
    theirs.flush()
    assert len(ours.get("net", list(some(2)))) == 2


def test_numbers_of_clips_keep_their_precision(tmp_path: Path) -> None:
    """Scores of single clips are kept in the same way, in float64."""
    value = np.array([[0.1 + 1e-12]])
    store = FeatureStore(tmp_path)
    store.put("vbench", {"a" * 64: value})
    store.flush()
    assert FeatureStore(tmp_path).get("vbench", ["a" * 64])["a" * 64][0, 0] == value[0, 0]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive at all"])
def test_a_damaged_shard_is_named(tmp_path: Path, content: bytes) -> None:
    store = FeatureStore(tmp_path)
    store.put("net", some(2))
    store.flush()
    (shard,) = tmp_path.rglob("*.npz")
    shard.write_bytes(content)
    with pytest.raises(BenchError, match=shard.name) as error:
        FeatureStore(tmp_path).get("net", list(some(1)))
    assert "delete it" in error.value.cure


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    children = []
    for process in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for k in range(50):
                    store = FeatureStore(tmp_path)
                    store.put("net", some(4, start=100 * process + k))
                    store.flush()
                    store.get("net", list(some(200)))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert len(FeatureStore(tmp_path).get("net", list(some(200)))) == 2 * 53


def test_a_log_knows_the_batches_that_were_made(tmp_path: Path) -> None:
    log, batch = ClipLog("f" * 64, tmp_path), Logged(["a", "b"], [1.0, 0.5], 0, (0.25, 0.125))
    assert log.get([4, 5]) is None
    log.put([4, 5], batch)
    assert ClipLog("f" * 64, tmp_path).get([4, 5]) == batch
    # Other batches, and other clips, are not mistaken for it: batched sums round differently.
    assert log.get([4]) is None and log.get([4, 5, 6]) is None and ClipLog("e" * 64, tmp_path).get([4, 5]) is None
    (path,) = log.folder.glob("*.json")
    path.write_text("{")
    with pytest.raises(BenchError, match=path.name):
        log.get([4, 5])


def test_contents_differ_by_pixels_and_by_shape() -> None:
    clip = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    other = clip.copy()
    other[1, 3, 3, 2] ^= 1
    strided = np.ascontiguousarray(clip[:, ::-1])[:, ::-1]
    assert content_sha256(clip) == content_sha256(strided)
    assert len({content_sha256(one) for one in (clip, other, clip.reshape(4, 2, 4, 3), clip[::-1])}) == 4
