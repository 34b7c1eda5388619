"""Preparing a cache on several processes, for image-to-video, and from the command line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.cli.data import app
from w2svd_bench.config import Video
from w2svd_bench.data.cache import Index, LatentCache
from w2svd_bench.data.portraits import captions, clips
from w2svd_bench.data.prepare import Prepared, Source, prepare
from w2svd_bench.data.video import read_clip
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.pictures import contact_sheet, write_video
from w2svd_bench.world import World

CLIPS = 6


@pytest.fixture(scope="module")
def backbones() -> list[Backbone]:
    """One for each rank, as processes have: a tokenizer keeps its padding, so two threads can't share one.

    Opened here, since two threads can't load weights at the same time either.
    """
    loaded = [Backbone.load("mini") for _ in range(3)]
    for one in loaded:
        assert one.text is not None and one.codec is not None
    return loaded


@pytest.fixture(scope="module")
def backbone(backbones: list[Backbone]) -> Backbone:
    return backbones[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Six good videos and a damaged one, each with its caption beside it."""
    folder = tmp_path_factory.mktemp("videos")
    texts = captions("train", range(CLIPS))
    for number, text in enumerate(texts):
        write_video(clips("train", [number], 20)[0].numpy(), folder / f"clip{number}.mp4", fps=12)
        (folder / f"clip{number}.txt").write_text(text)
    (folder / "damaged.mp4").write_bytes(b"nothing")
    (folder / "damaged.txt").write_text(texts[0])
    return Source(folder, test=2)


@dataclass(frozen=True)
class Made:
    folder: Path
    source: Source
    prepared: Prepared


@pytest.fixture(scope="module")
def made(source: Source, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The cache of these by one process; tests don't change it."""
    folder = tmp_path_factory.mktemp("made") / "portraits"
    return Made(folder, source, prepare(folder, backbone, source))


def assert_same(first: Path, second: Path, backbone: Backbone) -> None:
    """Two caches give the same clips, in the same order, bit for bit."""
    for split in ("train", "test"):
        one, other = (LatentCache.open(folder, backbone, split) for folder in (first, second))
        assert [clip.entry for clip in one.entries] == [clip.entry for clip in other.entries]
        a, b = (cache.batch(range(len(cache))) for cache in (one, other))
        assert torch.equal(a.x0_BCTHW, b.x0_BCTHW)
        assert torch.equal(a.cond.tokens_BLD, b.cond.tokens_BLD) and torch.equal(a.cond.pooled_BP, b.cond.pooled_BP)


@dataclass
class Meeting:
    """Where threads that play processes exchange what they have to say."""

    size: int
    said: list[Any] = field(default_factory=list)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.said = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=60)


@dataclass(frozen=True)
class Rank(World):
    """A process of several, played by a thread."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, value: Any) -> list[Any]:
        self.meeting.said[self.rank] = value
        self.meeting.barrier.wait()
        said = list(self.meeting.said)
        self.meeting.barrier.wait()
        return said

    def agree(self, decide: Callable[[], Any]) -> Any:
        return self.gather(self.together(lambda: decide() if self.lead else None))[0]


def on_ranks(size: int, act: Callable[[World], Any]) -> list[Any]:
    """What ``act`` gives, or raises, on each of ``size`` ranks."""
    meeting = Meeting(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = act(Rank(rank, size, rank, meeting=meeting))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_several_ranks_make_the_same_cache(made: Made, backbones: list[Backbone], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    one, two, three = on_ranks(3, lambda world: prepare(folder, backbones[world.rank], made.source, world))
    assert one == two == three and one.encoded == CLIPS and one.rejected == made.prepared.rejected
    assert len(one.index.shards) == 3, "each rank writes its own"
    assert_same(folder, made.folder, backbones[0])


def test_two_ranks_are_interrupted_and_one_goes_on(
    made: Made, backbones: list[Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails on one rank ends the others, too, with what they have finished on disk."""
    folder, backbone = tmp_path / "cache", backbones[0]
    calls = []

    def counting(encode: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
        calls.append(len(frames))
        if len(calls) == 4:
            raise RuntimeError("this GPU fell off its bus")
        return encode(frames)

    with monkeypatch.context() as patch:
        for one in backbones:
            patch.setattr(one, "encode", partial(counting, one.encode))
        results = on_ranks(2, lambda world: prepare(folder, backbones[world.rank], made.source, world))
        assert all(isinstance(result, RuntimeError) and "fell off its bus" in str(result) for result in results)
        assert not Index.load(folder).complete
        before = len(calls)
        prepared = prepare(folder, backbone, made.source)
    assert 0 < len(calls) - before == prepared.encoded <= CLIPS - 3
    assert_same(folder, made.folder, backbone)


def test_an_error_on_the_leading_rank_reaches_all(made: Made, backbones: list[Backbone], tmp_path: Path) -> None:
    source = replace(made.source, layout="plian")
    results = on_ranks(2, lambda world: prepare(tmp_path / "cache", backbones[world.rank], source, world))
    assert all(isinstance(result, BenchError) and "did you mean 'plain'" in str(result) for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["i2v_token_replace", "i2v_latent_concat"])
def test_image_to_video_keeps_the_first_frame(
    made: Made, tmp_path: Path, checkpoint: str, request: pytest.FixtureRequest
) -> None:
    """Through the real classes of diffusers: two clips of one caption differ in their first frame, and so in text."""
    video = Video(height=48, width=48, num_frames=9, fps=12)
    backbone = Backbone.load(str(request.getfixturevalue(checkpoint)), video=video)
    (tmp_path / "videos").mkdir()
    for name in ("clip3", "clip5"):
        shutil.copy(made.source.videos / f"{name}.mp4", tmp_path / "videos")
        (tmp_path / "videos" / f"{name}.txt").write_text("a portrait")
    source = Source(tmp_path / "videos")
    prepare(tmp_path / "cache", backbone, source)
    cache = LatentCache.open(tmp_path / "cache", backbone)
    batch = cache.batch([0, 1])
    shape = source.frames(backbone)
    frames = torch.stack([torch.from_numpy(read_clip(source.videos / c.video, shape)) for c in cache.entries])
    for row in range(2):
        assert torch.equal(batch.x0_BCTHW[row], backbone.to_sample(backbone.encode(frames[row : row + 1]))[0])
        cond = backbone.encode_prompts(["a portrait"], frames[row : row + 1, 0])
        assert batch.cond.image_BCTHW is not None and cond.image_BCTHW is not None
        assert torch.equal(batch.cond.tokens_BLD[row], cond.tokens_BLD[0])
        assert torch.equal(batch.cond.image_BCTHW[row], cond.image_BCTHW[0])
    assert tuple(batch.x0_BCTHW.shape[1:]) == backbone.latent_shape
    assert not torch.equal(batch.cond.tokens_BLD[0], batch.cond.tokens_BLD[1])
    assert backbone.decode(batch.x0_BCTHW, batch.cond).shape == (2, backbone.decoded_frames, 48, 48, 3)


def test_the_command_line(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    arguments = ["prepare", "--videos", str(made.source.videos), "--test", "2"]
    arguments += ["--out", str(folder), "--frames", "13", "--shard-mb", "1", "--device", "cpu"]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    told = " ".join(said.output.split())
    assert "6 clips (4 train, 2 test) in 1 shard," in told and "6 encoded now, 1 rejected" in told
    sheet = tmp_path / "sheet.png"
    look = ["inspect", str(folder), "--backbone", "mini", "--sheet", str(sheet), "--verify", "--device", "cpu"]
    said = CliRunner().invoke(app, look, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    assert "13 of 48 x 48 at 12 a second" in said.output and "every sha256 verified" in said.output
    with Image.open(sheet) as picture:
        assert picture.width > 8 * 96 and picture.height > 4 * 96
    said = CliRunner().invoke(app, ["inspect", str(folder), "--json"], catch_exceptions=False)
    found = json.loads(said.stdout)
    assert found["clips"] == {"train": 4, "test": 2} and found["sheet"] is None
    with pytest.raises(BenchError, match="a sheet needs a backbone"):
        CliRunner().invoke(app, ["inspect", str(folder), "--sheet", str(sheet)], catch_exceptions=False)


@pytest.mark.slow
def test_real_processes_make_the_same_cache(made: Made, backbone: Backbone, tmp_path: Path) -> None:
    """Two processes as torchrun starts them, over gloo."""
    folder = tmp_path / "cache"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["prepare", "--videos", made.source.videos, "--test", "2"]
    command = [sys.executable, "-c", "from w2svd_bench.cli.data import app; app()", *arguments, "--out", folder]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, "--device", "cpu"],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        (first, problems), (second, _) = (process.communicate(timeout=300) for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], problems
    assert "6 encoded now" in first and second == "", "only the leading process speaks"
    assert len(Index.load(folder).shards) == 2
    assert_same(folder, made.folder, backbone)


@pytest.mark.parametrize(("size", "drawn"), [((48, 64), (96, 128)), ((200, 160), (200, 160)), ((320, 512), (160, 256))])
def test_a_sheet_suits_the_size_of_its_frames(tmp_path: Path, size: tuple[int, int], drawn: tuple[int, int]) -> None:
    """Small frames are doubled, large ones shrunk; each has 4 pixels of margin, and 14 of label above it."""
    frames = np.full((3, *size, 3), 77, np.uint8)
    with Image.open(contact_sheet([("", frames)], tmp_path / "sheet.png", every=2)) as picture:
        assert picture.size == (2 * (drawn[1] + 4) + 4, drawn[0] + 4 + 14 + 4)
        assert picture.getpixel((4 + drawn[1] - 1, 4 + 14 + drawn[0] - 1)) == (77, 77, 77)
