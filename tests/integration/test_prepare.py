"""From real video files to a cache and back: interrupted, resumed, extended, shared out over processes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.config import Video
from w2svd_bench.data.cache import Index, LatentCache
from w2svd_bench.data.inspect import inspect, verify
from w2svd_bench.data.portraits import captions as portrait_captions
from w2svd_bench.data.portraits import clips
from w2svd_bench.data.prepare import Prepared, Source, _Prompts, prepare
from w2svd_bench.data.shards import ShardWriter
from w2svd_bench.data.video import read_clip
from w2svd_bench.errors import BenchError
from w2svd_bench.types import Cond

# Ten clips: (height, width, frames a second, frames); they need 17 frames at 12 a second, 1.4 s.
GOOD = [
    (48, 48, 12, 20),
    (64, 64, 24, 40),
    (72, 48, 25, 42),
    (48, 80, 30, 50),
    (96, 96, 24, 36),
    (96, 128, 12, 17),
    (64, 48, 48, 70),
    (80, 80, 60, 90),
    (120, 96, 24, 35),
    (56, 100, 15, 30),
]
NAMES = [f"clip{number}" for number in range(len(GOOD))]
ONE_CLIP_A_SHARD = 1


def write_video(path: Path, number: int, height: int, width: int, fps: int, frames: int) -> None:
    """A portrait as H.264."""
    shown = clips("train", [number], frames, height, width)[0].numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "8", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def write_audio(path: Path) -> None:
    """Two seconds of silence in a file that is called a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        for number in range(31):
            frame.pts = 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load("mini")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Ten good videos; a damaged, a short and a silent one; a caption file that also names one that is not there."""
    folder = tmp_path_factory.mktemp("videos")
    for number, (name, size) in enumerate(zip(NAMES, GOOD, strict=True)):
        write_video(folder / f"{name}.mp4", number, *size)
    (folder / "damaged.mp4").write_bytes((folder / "clip0.mp4").read_bytes()[:700])
    write_video(folder / "short.mp4", 10, 48, 48, 12, 9)
    write_audio(folder / "audio.mp4")
    said = portrait_captions("train", range(len(NAMES)))
    said[7] = said[3]
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "caption"])
        rows.writerows((f"{name}.mp4", text) for name, text in zip(NAMES, said, strict=True))
        rows.writerows((f"{name}.mp4", said[0]) for name in ("damaged", "short", "audio", "missing"))
    return Source(folder, folder / "captions.csv", test=3)


@pytest.fixture
def source(originals: Source, tmp_path: Path) -> Source:
    """A copy that a test may change."""
    folder = tmp_path / "videos"
    shutil.copytree(originals.videos, folder)
    return Source(folder, folder / "captions.csv", test=3)


@dataclass(frozen=True)
class Made:
    folder: Path
    source: Source
    prepared: Prepared
    reported: list[tuple[int, int]]
    prompts: list[str]


@pytest.fixture(scope="module")
def made(originals: Source, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The cache of all that, made in one go; tests don't change it."""
    folder = tmp_path_factory.mktemp("made") / "portraits"
    reported: list[tuple[int, int]] = []
    prompts: list[str] = []
    encode_prompts = backbone.encode_prompts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "encode_prompts", lambda p, i=None: prompts.extend(p) or encode_prompts(p, i))
        prepared = prepare(folder, backbone, originals, report=lambda *done: reported.append(done))
    return Made(folder, originals, prepared, reported, prompts)


def contents(folder: Path, backbone: Backbone) -> dict[str, tuple[str, str, torch.Tensor, torch.Tensor]]:
    """Everything that training gets from a cache, by clip."""
    found = {}
    for split in ("train", "test"):
        cache = LatentCache.open(folder, backbone, split)
        for row, clip in enumerate(cache.entries):
            batch = cache.batch([row])
            found[clip.id] = (split, clip.caption, batch.x0_BCTHW, batch.cond.tokens_BLD)
    return found


def assert_same(first: Path, second: Path, backbone: Backbone) -> None:
    """Two caches give the same clips, in the same order, bit for bit."""
    a, b = contents(first, backbone), contents(second, backbone)
    assert list(a) == list(b)
    for name in a:
        assert a[name][:2] == b[name][:2]
        assert torch.equal(a[name][2], b[name][2]) and torch.equal(a[name][3], b[name][3]), name
    one, other = Index.load(first), Index.load(second)
    assert [clip.id for clip in one.clips] == [clip.id for clip in other.clips]


def encoded(patch: pytest.MonkeyPatch, backbone: Backbone, act: Callable[[int], None] = lambda n: None) -> list[int]:
    """Counts the clips that are encoded from here on, in the list returned; ``act`` is told the number before each."""
    count = [0]
    encode = backbone.encode

    def counting(frames: torch.Tensor) -> torch.Tensor:
        act(count[0])
        count[0] += 1
        return encode(frames)

    patch.setattr(backbone, "encode", counting)
    return count


def test_good_clips_are_in_and_bad_ones_are_reported(made: Made) -> None:
    index = made.prepared.index
    assert [clip.id for clip in index.clips] == NAMES and made.prepared.encoded == 10
    assert [name for name, _ in made.prepared.rejected] == ["audio", "damaged", "missing.mp4", "short"]
    on_disk = json.loads((made.folder / "rejected.json").read_text())["rejected"]
    assert [(row["id"], row["reason"]) for row in on_disk] == made.prepared.rejected
    assert all(reason for _, reason in made.prepared.rejected)
    assert made.reported == [(done, 13) for done in range(1, 14)]
    assert verify(made.folder) == len(index.shards) == 1
    assert not list((made.folder / "shards").glob("*.tmp"))


def test_text_is_encoded_once_for_clips_of_one_caption(made: Made) -> None:
    accepted = {clip.caption for clip in made.prepared.index.clips}
    assert len(accepted) == 9 and sorted(made.prompts) == sorted(accepted)


def test_the_held_out_clips_are_chosen_by_their_ids_alone(made: Made) -> None:
    held_out = {clip.id for clip in made.prepared.index.clips if clip.split == "test"}
    assert held_out == set(sorted(NAMES, key=lambda name: sha256(name.encode()).hexdigest())[:3])


def test_nothing_in_a_cache_names_this_machine(made: Made) -> None:
    """A cache moves with its folder: paths are relative, with forward slashes, and neither videos nor user appear."""
    text = "".join((made.folder / name).read_text() for name in ("index.json", "rejected.json"))
    shards = b"".join(path.read_bytes() for path in (made.folder / "shards").iterdir())
    for folder in (made.folder, made.source.videos):
        assert str(folder) not in text and str(folder).encode() not in shards
    assert "\\" not in text


def test_stored_latents_are_exactly_those_of_the_frames(made: Made, backbone: Backbone) -> None:
    """Whole and scaled once: encoding the frames again gives the same numbers, and decoding shows the source."""
    frames = made.source.frames(backbone)
    sources, decoded = [], []
    for split in ("train", "test"):
        cache = LatentCache.open(made.folder, backbone, split)
        for row, clip in enumerate(cache.entries):
            source = torch.from_numpy(read_clip(made.source.videos / clip.video, frames))[None]
            batch = cache.batch([row])
            assert torch.equal(batch.x0_BCTHW, backbone.encode(source))
            cond = backbone.encode_prompts([clip.caption])
            assert torch.equal(batch.cond.tokens_BLD, cond.tokens_BLD)
            assert torch.equal(batch.cond.pooled_BP, cond.pooled_BP)
            sources.append(source[0].float())
            decoded.append(backbone.decode(batch.x0_BCTHW, batch.cond)[0].float())
    distances = (torch.stack(decoded)[:, None] - torch.stack(sources)).abs().mean((2, 3, 4, 5))
    own = distances.diagonal()
    others = distances[~torch.eye(10, dtype=torch.bool)]
    assert own.max() < 16 and others.min() > 25, "of 255 on average: the codec's loss, and another clip's distance"


def test_statistics_of_real_latents_raise_no_warning(made: Made) -> None:
    found = inspect(made.folder)
    assert found.complete and found.clips == {"train": 7, "test": 3} and found.warnings == []
    assert found.repeated_captions == 2 and sum(found.rejected.values()) == 4


@pytest.mark.parametrize("hard", [False, True], ids=["stopped", "killed"])
def test_an_interrupted_preparation_goes_on(
    made: Made, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard: bool
) -> None:
    """Interrupted from the keyboard even the shard under way is written; killed, it is lost, and nothing else."""
    folder = tmp_path / "portraits"
    two_clips = 2 * 16 * 5 * 6 * 6 * 4

    def interrupt(number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        encoded(patch, backbone, interrupt)
        if hard:
            patch.setattr(ShardWriter, "__exit__", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, backbone, made.source, shard_bytes=two_clips)
    assert not Index.load(folder).complete
    with pytest.raises(BenchError, match="not finished"):
        LatentCache.open(folder, backbone)
    draft = folder / "shards" / "rank0-1.tmp"
    draft.write_bytes(b"half a shard")
    with monkeypatch.context() as patch:
        again = encoded(patch, backbone)
        prepared = prepare(folder, backbone, made.source, shard_bytes=two_clips)
    assert again == [6 if hard else 5] and prepared.encoded == again[0]
    assert not draft.exists()
    assert_same(folder, made.folder, backbone)
    assert prepared.rejected == made.prepared.rejected


def test_a_finished_cache_is_left_as_it_is(made: Made, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    count = encoded(monkeypatch, backbone)
    assert prepare(made.folder, backbone, made.source).encoded == 0
    assert count == [0]
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_new_videos_extend_a_cache_and_new_captions_replace(
    source: Source, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    table = (source.captions or Path()).read_text().splitlines()
    (source.videos / "captions.csv").write_text("\n".join(line for line in table if "clip9" not in line))
    assert prepare(folder, backbone, source).encoded == 9
    (source.videos / "captions.csv").write_text("\n".join(table).replace(table[1], "clip0.mp4,pale skin"))
    (source.videos / "clip1.mp4").unlink()  # its latents are there, and stay
    count = encoded(monkeypatch, backbone)
    prepared = prepare(folder, backbone, source)
    assert count == [2] and prepared.encoded == 2 and prepared.kept == 1
    assert [clip.id for clip in prepared.index.clips] == NAMES
    cache = {clip.id: clip for clip in prepared.index.clips}
    assert cache["clip0"].caption == "pale skin"
    assert contents(folder, backbone)["clip0"][3].shape[1] == 1
    assert verify(folder) == 2


def test_moved_clips_are_told(source: Source, backbone: Backbone, tmp_path: Path) -> None:
    """A new clip whose id has a small hash takes a place among the held-out ones, and another one leaves."""
    order = sorted(NAMES, key=lambda name: sha256(name.encode()).hexdigest())
    table = (source.captions or Path()).read_text().splitlines()
    few = [line for line in table if not line.startswith((f"{order[0]}.", "damaged", "audio"))]
    (source.videos / "captions.csv").write_text("\n".join(few))
    assert prepare(tmp_path / "cache", backbone, source).moved == 0
    (source.videos / "captions.csv").write_text("\n".join(table))
    assert prepare(tmp_path / "cache", backbone, source).moved == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "begin"}, "frames.start is 'middle' in the cache and 'begin' now"),
        ({"allow_upscale": True}, "frames.allow_upscale is False in the cache and True now"),
        ({"test": 2}, "test is 3 in the cache and 2 now"),
    ],
)
def test_going_on_with_other_choices_is_refused(
    made: Made, backbone: Backbone, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError, match=message) as refusal:
        prepare(made.folder, backbone, replace(made.source, **change))
    assert made.prepared.index.fingerprint_sha256[:8] in refusal.value.what
    assert Index.load(made.folder).complete, "a refused command leaves the cache as it is"


def test_another_size_is_refused_when_preparing_and_when_opening(made: Made) -> None:
    other = Backbone.load("mini", video=Video(height=48, width=48, num_frames=13, fps=12))
    for attempt in (lambda: prepare(made.folder, other, made.source), lambda: LatentCache.open(made.folder, other)):
        with pytest.raises(BenchError, match=r"video\.num_frames is 17 in the cache and 13 now"):
            attempt()


def test_a_folder_of_something_else_is_refused(made: Made, backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(BenchError, match="it is no cache, but it is not empty"):
        prepare(tmp_path, backbone, made.source)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_damaged_and_missing_shards_are_made_again(
    made: Made, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the errors say: repeat the command."""
    folder = tmp_path / "cache"
    index = prepare(folder, backbone, made.source, shard_bytes=ONE_CLIP_A_SHARD).index
    assert len(index.shards) == 10
    damaged, missing, flipped = (folder / shard.file for shard in index.shards[:3])
    damaged.write_bytes(damaged.read_bytes()[:-8])
    missing.unlink()
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\x55")
    with pytest.raises(BenchError, match=f"{damaged.name}.*{missing.name}"):
        LatentCache.open(folder, backbone)
    with pytest.raises(BenchError, match=flipped.name):
        verify(folder)
    flipped.unlink()
    count = encoded(monkeypatch, backbone)
    prepared = prepare(folder, backbone, made.source, shard_bytes=ONE_CLIP_A_SHARD)
    assert count == [3] and prepared.removed == [damaged.name]
    assert verify(folder) == 10
    assert_same(folder, made.folder, backbone)


def test_a_lost_index_is_made_again_from_the_shards(
    made: Made, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.folder, tmp_path / "cache")
    (tmp_path / "cache" / "index.json").unlink()
    count = encoded(monkeypatch, backbone)
    assert prepare(tmp_path / "cache", backbone, made.source).index == made.prepared.index
    assert count == [0]


def test_latents_that_are_not_finite_are_rejected(
    made: Made, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = backbone.encode
    calls = iter(range(100))
    monkeypatch.setattr(backbone, "encode", lambda x: encode(x) * (float("nan") if next(calls) == 2 else 1.0))
    prepared = prepare(tmp_path / "cache", backbone, made.source)
    assert prepared.encoded == 9
    assert sum("not finite" in reason for _, reason in prepared.rejected) == 1


def test_an_error_of_our_own_names_the_clip_and_keeps_the_others(
    made: Made, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        if number == 4:
            raise RuntimeError("out of memory")

    encoded(monkeypatch, backbone, fail)
    with pytest.raises(RuntimeError, match="out of memory") as failure:
        prepare(tmp_path / "cache", backbone, made.source)
    assert any("this happened with clip 'clip" in note for note in failure.value.__notes__)
    monkeypatch.undo()
    assert prepare(tmp_path / "cache", backbone, made.source).encoded == 6


def test_a_folder_without_one_good_clip_is_an_error(source: Source, backbone: Backbone, tmp_path: Path) -> None:
    for name in NAMES:
        (source.videos / f"{name}.mp4").write_bytes(b"nothing")
    with pytest.raises(BenchError, match="no clip was accepted") as refusal:
        prepare(tmp_path / "cache", backbone, source)
    assert "11 x unreadable" in refusal.value.why
    assert len(json.loads((tmp_path / "cache" / "rejected.json").read_text())["rejected"]) == 14


def test_holding_out_everything_is_an_error_that_costs_nothing(
    source: Source, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is encoded if it is plain; if rejections bring it about, the clips are kept."""
    count = encoded(monkeypatch, backbone)
    with pytest.raises(BenchError, match="13 are held out for test, and there are 13"):
        prepare(tmp_path / "cache", backbone, Source(source.videos, source.captions, test=13))
    assert count == [0]
    with pytest.raises(BenchError, match="11 are held out for test, and there are 10"):
        prepare(tmp_path / "cache", backbone, Source(source.videos, source.captions, test=11))
    assert count == [10]
    assert prepare(tmp_path / "cache", backbone, source).encoded == 0
    assert count == [10]


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_text_is_known_by_its_caption_and_for_image_to_video_by_its_first_frame(task: str) -> None:
    asked: list[tuple[str, bool]] = []

    class Encoders:
        """Counts what it is asked."""

        side = SimpleNamespace(task=task)

        def encode_prompts(self, prompts: list[str], images: np.ndarray | None) -> Cond:
            assert images is None or images.shape == (1, 4, 4, 3)
            asked.append((prompts[0], images is not None))
            return Cond(torch.zeros(1, 2, 3), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 3))

    prompts = _Prompts(Encoders())  # type: ignore[arg-type]
    dark, light = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    given = [prompts(caption, frame) for caption, frame in (("a", dark), ("a", dark), ("a", light), ("b", light))]
    if task == "t2v":
        assert asked == [("a", False), ("b", False)]
    else:
        assert asked == [("a", True), ("a", True), ("b", True)]
    assert all(cond.tokens_BLD.shape == (1, 1, 3) for cond in given), "padding is not stored"
