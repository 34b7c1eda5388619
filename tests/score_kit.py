"""What the tests of ``w2svd-bench score`` share: three metrics that say what they were given, and small folders.

``hue`` is a Fréchet distance of mean colours that reads clips of nearly any size; ``tint`` has a vector a frame; and
``stir`` scores clips one by one, from their files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from w2svd_bench.data.files import read_media
from w2svd_bench.metrics.base import ClipFile, ClipMetric, CorpusMetric, Dimension, FeatureNet, Features, Score
from w2svd_bench.metrics.frechet import FrechetMetric
from w2svd_bench.record import provenance
from w2svd_bench.registry import METRICS
from w2svd_bench.types import Skipped

Command = Callable[..., Any]
PURPLE = (255, 0, 255)  # what makes the test net give a NaN
once = cache(provenance)  # it asks git each time


class HueNet(FeatureNet):
    """Mean colour and its spread, 6 numbers: of the whole clip, or of each frame."""

    shapes: list[tuple[int, ...]] = []

    def __init__(self, each_frame: bool) -> None:
        self._each_frame = each_frame

    @property
    def id(self) -> str:
        return f"hue of {'each frame' if self._each_frame else 'the clip'}"

    @property
    def weights_sha256(self) -> str:
        return "0" * 64

    @property
    def flags(self) -> tuple[str, ...]:
        return ("made for tests",)

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        return f"it reads frames from 16x16 up, and these are {width}x{height}" if min(height, width) < 16 else None

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        self.shapes.append(clips_BFHWC.shape)
        x = clips_BFHWC.astype(np.float64) / 255
        axes = (2, 3) if self._each_frame else (1, 2, 3)
        out = np.concatenate([x.mean(axes), x.std(axes)], axis=-1)
        out = out if self._each_frame else out[:, None]
        out[(clips_BFHWC[:, 0] == PURPLE).all(axis=(1, 2, 3))] = np.nan
        return out.astype(np.float32)


class Hue(FrechetMetric):
    name, version = "hue", 1

    def __init__(self, device: str) -> None:
        super().__init__(HueNet(each_frame=False))


class Tint(CorpusMetric):
    name, version, direction, distance = "tint[each]", 1, "down", "squared distance of means"

    def __init__(self, device: str) -> None:
        super().__init__(HueNet(each_frame=True))

    def compare(self, generated: Features, reference: Features) -> Score:
        gap = generated.values_NKD.mean((0, 1)) - reference.values_NKD.mean((0, 1))
        return Score(float(gap @ gap), 0.0, len(generated), ())


class Stir(ClipMetric):
    name, version, direction = "stir", 1, "up"
    seen: list[list[ClipFile]] = []
    closed = 0

    def __init__(self, device: str) -> None: ...

    @property
    def dimensions(self) -> Sequence[Dimension]:
        return [Dimension(f"stir.{name}", "up", 1, f"stir.{name} v1") for name in ("light", "motion")]

    def refuses(self, frames: int, height: int, width: int, fps: float) -> Mapping[str, str]:
        return {"stir.motion": f"it needs at least 2 frames, and these have {frames}"} if frames < 2 else {}

    def score(
        self, clips: Sequence[ClipFile], progress: Callable[[int, int], None]
    ) -> Mapping[str, Sequence[float | Skipped]]:
        self.seen.append(list(clips))
        found: dict[str, list[float | Skipped]] = {"stir.light": [], "stir.motion": []}
        for clip in clips:
            frames = read_media(clip.path).frames_FHWC.astype(float)
            assert frames.shape == (clip.frames, clip.height, clip.width, 3)
            found["stir.light"].append(float(frames.mean()))
            still = np.abs(np.diff(frames, axis=0)).max(initial=0) < 2
            found["stir.motion"].append(Skipped("nothing moves") if still else float(np.abs(np.diff(frames)).mean()))
        progress(len(clips), len(clips))
        return found

    def close(self) -> None:
        Stir.closed += 1


@pytest.fixture(autouse=True)
def known_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The metrics of this file are known, what they saw is forgotten, and nothing was scored before."""
    monkeypatch.setattr(METRICS, "_registered", dict(METRICS._registered))
    for name, cls in {"hue": Hue, "tint_each": Tint, "stir": Stir}.items():
        METRICS.register(name, cls)
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("w2svd_bench.evaluate.folders.provenance", once)
    monkeypatch.setattr(HueNet, "shapes", [])
    monkeypatch.setattr(Stir, "seen", [])
    yield


def noisy(seed: int, frames: int = 1, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """A clip with a colour of its own."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 200, 3) + rng.integers(0, 40, (frames, *size, 3))).astype(np.uint8)


def pictures(folder: Path, count: int, first: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(first, first + count):
        Image.fromarray(noisy(index, size=size)[0]).save(folder / f"{index:04}.png")
    return folder


def arrays(folder: Path, count: int, first: int = 0, frames: int = 4, size: tuple[int, int] = (16, 16)) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(first, first + count):
        np.save(folder / f"{index:04}.npy", noisy(index, frames, size))
    return folder


def videos(folder: Path, count: int, first: int = 0, frames: int = 4, fps: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(first, first + count):
        video(folder / f"{index:04}.mp4", noisy(index, frames), fps)
    return folder


def video(path: Path, frames: np.ndarray, fps: int = 8) -> Path:
    """In this process, which is much quicker than the benchmark's own writer."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def damaged(path: Path) -> Path:
    """A video of 8 frames whose headers are whole, with zeros in the middle of its pictures."""
    video(path, np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + (data.find(b"moov") - data.find(b"mdat")) // 2
    data[start : start + 600] = bytes(600)
    path.write_bytes(data)
    return path


@pytest.fixture
def score(cli: Command) -> Command:
    """Runs the command with --json; returns its status, the parsed document and all that was said beside it."""

    def call(*arguments: str | Path, status: int = 0) -> tuple[dict[str, Any], str]:
        outcome = cli("score", *arguments, "--json", "--device", "cpu")
        assert outcome.status == status, outcome
        assert "Traceback" not in outcome.text
        return json.loads(outcome.out), " ".join(outcome.err.split())

    return call


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in document["results"]}
