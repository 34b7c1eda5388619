"""The latent cache on disk and its reader, on made-up latents: no videos and no networks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from w2svd_bench.data.cache import CachedClip, Index, LatentCache, requirements
from w2svd_bench.data.captions import Entry
from w2svd_bench.data.inspect import inspect, verify
from w2svd_bench.data.shards import Shard, ShardWriter, stored_clips
from w2svd_bench.errors import BenchError

SHAPE = (16, 5, 6, 6)
ENCODING = "e" * 64


@dataclass(frozen=True)
class FakeSide:
    task: str = "t2v"
    image_condition: str | None = None
    height: int = 48
    width: int = 48
    num_frames: int = 17
    fps: float = 12


@dataclass(frozen=True)
class FakeBackbone:
    """What a cache asks of a backbone, without weights."""

    name: str = "fake"
    side: FakeSide = FakeSide()
    latents_sha256: str = "a" * 64
    text_description: dict[str, Any] = field(
        default_factory=lambda: {"template": {"template": "{}", "crop_start": 0}, "dtype": "float32"}
    )
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def to_sample(self, latents_BCTHW: Tensor) -> Tensor:
        return latents_BCTHW[:, :, self.side.image_condition == "token_replace" :]


def tensors(
    number: int, image: bool = False, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> dict[str, Tensor]:
    """The latents and text of clip ``number``: 3 + number text tokens, of which the mask hides the second."""
    drawn = torch.Generator().manual_seed(number)
    length = 3 + number
    made = {
        "latents": torch.randn(SHAPE, generator=drawn) * scale,
        "tokens": torch.randn((length, 8), generator=drawn),
        "mask": torch.tensor([1.0, 0.0] + [1.0] * (length - 2)),
        "pooled": torch.randn((4,), generator=drawn),
    }
    if image:
        made["image"] = torch.randn((SHAPE[0], 1, *SHAPE[2:]), generator=drawn)
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def write(folder: Path, backbone: FakeBackbone = FakeBackbone(), count: int = 6, **how: Any) -> Index:
    """A finished cache of clips c0, c1, ... in shards of two; the last one is held out."""
    (folder / "shards").mkdir(parents=True)
    entries = [Entry(f"c{number}", f"c{number}.mp4", f"caption {number // 2}") for number in range(count)]
    one = sum(tensor.nbytes for tensor in tensors(0, **how).values())
    with ShardWriter(folder / "shards", ENCODING, "rank0", 2 * one) as writer:
        for number, entry in enumerate(entries):
            writer.add(entry, tensors(number, **how))
    stored, damaged = stored_clips(folder, ENCODING)
    assert not damaged and len(stored) == count
    paths = sorted({one.path for one in stored.values()})
    index = Index(
        {"backbone": "fake", **requirements(backbone), "codec": {"scaling_factor": 0.476986}, "test": 1},  # type: ignore[arg-type]
        True,
        [Shard(path.stem, path.stat().st_size, 2) for path in paths],
        [
            CachedClip(e, "test" if n == count - 1 else "train", paths.index(stored[e].path), stored[e].text_length)
            for n, e in enumerate(entries)
        ],
    )
    index.save(folder)
    return index


def opened(folder: Path, backbone: FakeBackbone = FakeBackbone(), split: str = "train") -> LatentCache:
    return LatentCache.open(folder, backbone, split)  # type: ignore[arg-type]


def test_rows_are_the_clips_in_the_order_asked(tmp_path: Path) -> None:
    index = write(tmp_path / "set")
    cache = opened(tmp_path / "set")
    assert len(index.shards) == 3 and len(cache) == 5
    assert [one.id for one in cache.entries] == ["c0", "c1", "c2", "c3", "c4"]
    assert cache.name == f"set-train-5-{index.fingerprint_sha256[:8]}"
    rows = [4, 0, 0, 3]
    batch = cache.batch(rows)
    assert batch.x0_BCTHW.dtype == torch.float32
    for place, row in enumerate(rows):
        made = tensors(row)
        length = len(made["tokens"])
        assert torch.equal(batch.x0_BCTHW[place], made["latents"])
        assert torch.equal(batch.cond.tokens_BLD[place, :length], made["tokens"])
        assert torch.equal(batch.cond.mask_BL[place, :length], made["mask"])
        assert not batch.cond.mask_BL[place, length:].any()
        assert torch.equal(batch.cond.pooled_BP[place], made["pooled"])
    assert batch.cond.tokens_BLD.shape == (4, 7, 8) and batch.cond.image_BCTHW is None
    alone = cache.cond(rows)
    assert torch.equal(alone.tokens_BLD, batch.cond.tokens_BLD) and torch.equal(alone.mask_BL, batch.cond.mask_BL)


def test_the_held_out_clips_are_a_split_of_their_own(tmp_path: Path) -> None:
    write(tmp_path)
    cache = opened(tmp_path, split="test")
    assert [one.caption for one in cache.entries] == ["caption 2"]
    assert torch.equal(cache.batch([0]).x0_BCTHW[0], tensors(5)["latents"])
    assert cache.sha256 != opened(tmp_path).sha256


def test_types_are_those_of_the_backbone_not_of_the_file(tmp_path: Path) -> None:
    """Latents stored in bfloat16 come as float32, unrounded any further; text as the backbone's activations."""
    write(tmp_path, dtype=torch.bfloat16)
    batch = opened(tmp_path, FakeBackbone(dtype=torch.bfloat16)).batch([1])
    assert batch.x0_BCTHW.dtype == torch.float32 and batch.cond.tokens_BLD.dtype == torch.bfloat16
    assert torch.equal(batch.x0_BCTHW[0], tensors(1, dtype=torch.bfloat16)["latents"].float())
    assert opened(tmp_path).batch([1]).cond.pooled_BP.dtype == torch.float32


def test_a_given_first_frame_is_conditioning_and_not_sample(tmp_path: Path) -> None:
    backbone = FakeBackbone(side=FakeSide("i2v", "token_replace"))
    write(tmp_path, backbone, image=True)
    batch = opened(tmp_path, backbone).batch([2, 1])
    made = tensors(2, image=True)
    assert batch.x0_BCTHW.shape == (2, 16, 4, 6, 6)
    assert torch.equal(batch.x0_BCTHW[0], made["latents"][:, 1:])
    assert batch.cond.image_BCTHW is not None and torch.equal(batch.cond.image_BCTHW[0], made["image"])


OTHERS = {
    "other weights": (FakeBackbone(latents_sha256="b" * 64), "latents_sha256 is 'a{64}' in the cache and 'b{64}' now"),
    "another task": (FakeBackbone(side=FakeSide(task="i2v")), "task is 't2v' in the cache and 'i2v' now"),
    "another condition": (
        FakeBackbone(side=FakeSide(image_condition="latent_concat")),
        "image_condition is None in the cache and 'latent_concat' now",
    ),
    "another size": (FakeBackbone(side=FakeSide(width=64)), "video.width is 48 in the cache and 64 now"),
    "another rate": (FakeBackbone(side=FakeSide(fps=24)), r"video.fps is 12.0 in the cache and 24.0 now"),
    "another template": (
        FakeBackbone(text_description={"template": None, "dtype": "float32"}),
        "text.template.crop_start is 0 in the cache and None now",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_cache_of_something_else_is_refused_with_both_values(tmp_path: Path, name: str) -> None:
    index = write(tmp_path)
    backbone, message = OTHERS[name]
    with pytest.raises(BenchError, match=message) as refusal:
        opened(tmp_path, backbone)
    assert index.fingerprint_sha256[:8] in refusal.value.what


def test_what_text_was_computed_in_is_no_difference(tmp_path: Path) -> None:
    """A cache made in half precision on a GPU opens on a CPU, and for another backbone with the same parts."""
    write(tmp_path)
    text = {"template": {"template": "{}", "crop_start": 0}, "dtype": "float16"}
    assert len(opened(tmp_path, FakeBackbone(name="tuned", text_description=text))) == 5


def test_an_unfinished_cache_is_refused(tmp_path: Path) -> None:
    replace(write(tmp_path), complete=False).save(tmp_path)
    with pytest.raises(BenchError, match="not finished"):
        opened(tmp_path)


def test_splits_that_are_not_there_are_refused(tmp_path: Path) -> None:
    index = write(tmp_path)
    with pytest.raises(BenchError, match="did you mean 'train'"):
        opened(tmp_path, split="trian")
    replace(index, clips=[clip for clip in index.clips if clip.split == "train"]).save(tmp_path)
    with pytest.raises(BenchError, match="has no test clips"):
        opened(tmp_path, split="test")


def test_damaged_shards_are_found_on_opening(tmp_path: Path) -> None:
    index = write(tmp_path)
    first, second, third = (tmp_path / shard.file for shard in index.shards)
    whole = [path.read_bytes() for path in (first, second, third)]
    first.unlink()
    second.write_bytes(whole[1][:-1])
    third.write_bytes(b"\xff" * len(whole[2]))  # of the right size, but with a header of nonsense
    with pytest.raises(
        BenchError, match=f"{first.name}: it is missing; .*{second.name}: it has .* instead of"
    ) as damage:
        opened(tmp_path)
    assert third.name in damage.value.why
    for path, data in zip((first, second, third), whole, strict=True):
        path.write_bytes(data)
    assert len(opened(tmp_path)) == 5


def test_a_shard_without_its_clips_is_found_on_opening(tmp_path: Path) -> None:
    index = write(tmp_path)
    clips = [replace(clip, shard=0) for clip in index.clips]
    replace(index, clips=clips).save(tmp_path)
    with pytest.raises(BenchError, match="it lacks clip c"):
        opened(tmp_path)


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    index = write(tmp_path)
    assert verify(tmp_path) == 3
    path = tmp_path / index.shards[1].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    opened(tmp_path)  # of the right size and header: only its contents tell
    with pytest.raises(BenchError, match=f"1 of 3 shards(.|\n)*{path.name}: its bytes have the sha256"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "its format is 2, this version reads 1"),
        ({"fingerprint": {"test": 0}}, "does not have its own sha256"),
        ({"shards": []}, "names a shard that is not listed"),
        ({"shards": [{"sha256": "../../secret", "bytes": 1, "clips": 1}] * 3}, "is no sha256"),
        ({"entries": [{"id": "c0"}]}, "KeyError"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path)
    path = tmp_path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BenchError, match=message):
        opened(tmp_path)


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is not a latent cache"):
        opened(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(BenchError, match="damaged"):
        opened(tmp_path)


def test_an_index_comes_back_as_it_was(tmp_path: Path) -> None:
    index = write(tmp_path)
    entry = Entry("folder/ä@1-2.5", "folder/ä", "«caption»", (1.0, 2.5), 25.0)
    index = replace(index, clips=[CachedClip(entry, "train", 2, 7), *index.clips])
    index.save(tmp_path)
    assert Index.load(tmp_path) == index


def test_statistics(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "rejected.json").write_text(
        json.dumps({"rejected": [{"id": "x", "reason": "too short"}, {"id": "y", "reason": "too short"}]})
    )
    found = inspect(tmp_path)
    values = torch.stack([tensors(number)["latents"] for number in range(6)]).double()
    assert found.clips == {"train": 5, "test": 1} and found.shards == 3 and found.measured == 6
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "shards").iterdir())
    assert found.mean == pytest.approx(float(values.mean()), abs=1e-9)
    assert found.std == pytest.approx(float(values.std(correction=0)), abs=1e-9)
    assert found.channel_mean == pytest.approx(values.mean((0, 2, 3, 4)).tolist(), abs=1e-9)
    assert found.channel_std == pytest.approx(values.std((0, 2, 3, 4), correction=0).tolist(), abs=1e-9)
    assert found.text_length == (3, 5.5, 8) and found.repeated_captions == 6
    assert found.tensors["latents"] == SHAPE and found.dtype == "float32"
    assert found.rejected == {"too short": 2} and found.warnings == []
    few = inspect(tmp_path, clips=2)
    assert few.measured == 2
    assert few.mean == pytest.approx(float(values[[0, 3]].mean()), abs=1e-9)


@pytest.mark.parametrize("scale", [0.476986, 1 / 0.476986])
def test_latents_that_were_scaled_twice_or_never_are_warned_of(tmp_path: Path, scale: float) -> None:
    write(tmp_path, scale=scale)
    (warning,) = inspect(tmp_path).warnings
    assert f"standard deviation is {scale:.2f}"[:-1] in warning and "0.476986" in warning


def test_inspect_tells_of_an_unfinished_and_damaged_cache(tmp_path: Path) -> None:
    index = write(tmp_path)
    replace(index, complete=False).save(tmp_path)
    (tmp_path / index.shards[0].file).unlink()
    kept = [clip for clip in index.clips if clip.shard != 0]
    replace(index, complete=False, clips=kept).save(tmp_path)
    warnings = " ".join(inspect(tmp_path).warnings)
    assert "not finished" in warnings and f"{index.shards[0].file}: it is missing" in warnings


def test_shards_made_otherwise_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path)
    assert stored_clips(tmp_path, "f" * 64) == ({}, [])
    assert len(list((tmp_path / "shards").iterdir())) == 3
