"""Decodes clips of a fixed size and rate out of real videos, and says what it refuses and why.

Frames are chosen by their presentation times, never by counting: a clip of 24 frames a second shows at k/24 s the frame
that the video shows nearest to it. A video of variable frame rate is therefore handled exactly, and refused where it
has no frame near enough. No frame is ever shown twice.

Axes: F frames, H, W pixels; N frames of the source. Times are seconds since the first frame of the video.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorTrc, Interpolation
from av.video.stream import VideoStream
from PIL import Image

from w2svd_bench.errors import BenchError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
RESIZE_FILTER = "bicubic, antialiased (PIL)"

# Rates that differ by no more are the same: 23.976 counts as 24, and every frame is taken, one for one.
SAME_RATE = 0.01
# By how much a picture may be enlarged unless `Frames.allow_upscale`: 5 % is invisible.
UPSCALE = 1.05
# Chroma at full resolution and exact rounding, so that the pixels do not depend on the processor's vector unit.
_TO_RGB = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
# A file that ends earlier than it announces, by more than this many seconds, was cut.
_MISSING_END = 0.1


class Rejected(Exception):
    """A clip that can't be used; ``reason`` is one line for the report."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Frames:
    """The clips to cut: ``num_frames`` of ``height`` x ``width`` pixels at ``fps`` frames a second.

    The picture is scaled until it covers the size and cropped around its centre.

    Args:
        num_frames: 4k + 1, which is what the codec encodes.
        start: cut from the beginning of the video or of its window, or from the middle.
        allow_upscale: enlarge pictures that are too small instead of refusing them.

    Raises:
        BenchError: a number is out of range.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    start: Literal["begin", "middle"] = "middle"
    allow_upscale: bool = False

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.num_frames % 4 != 1:
            below = max(1, (self.num_frames - 1) // 4 * 4 + 1)
            why = "the codec makes one latent frame of the first frame and one of every four that follow: 4k + 1"
            raise BenchError(f"clips can't have {self.num_frames} frames", why, f"use {below} or {below + 4}")
        if self.height < 1 or self.width < 1 or not 0 < self.fps < float("inf"):
            what = f"clips can't be {self.height} x {self.width} at {self.fps:g} frames a second"
            raise BenchError(what, "every number must be positive", "give another size or rate")
        if self.start not in ("begin", "middle"):
            raise BenchError(f"clips can't start at {self.start!r}", "it is begin or middle", "use one of these")


@dataclass(frozen=True)
class Probe:
    """What a video holds. ``height`` and ``width`` are stored pixels, turned as the video is shown.

    ``fps`` is the mean rate (0 for a single frame), ``variable`` says that frames are not equally far apart, and
    ``pixel_aspect`` is the width of a pixel over its height.
    """

    frames: int | None
    seconds: float
    fps: float
    height: int
    width: int
    variable: bool
    codec: str
    pixel_aspect: float = 1.0
    rotation: int = 0


def probe(path: Path, fps: float | None = None) -> Probe:
    """Describes a video file, or a folder of images at ``fps``; all of a file is read, one frame is decoded.

    Raises:
        Rejected: it can't be read.
    """
    if path.is_dir():
        images, times = _numbered_images(path, fps)
        height, width = _read_image(images[0]).shape[:2]
        return Probe(len(times), len(times) / (fps or 1), fps or 0, height, width, False, "images")
    timeline = read_timeline(path)
    frame = next(decode(path, timeline.pts_N[:1]))
    turn, gaps = _rotation(frame), np.diff(timeline.times_N)
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    height, width = (frame.width, frame.height) if turn % 180 else (frame.height, frame.width)
    return Probe(
        frames=len(timeline.pts_N),
        seconds=float(timeline.times_N[-1]) + usual,
        fps=len(gaps) / float(timeline.times_N[-1]) if len(gaps) else 0.0,
        height=height,
        width=width,
        variable=bool((np.abs(gaps - usual) > 0.1 * usual + timeline.tick).any()),
        codec=timeline.codec,
        pixel_aspect=_turned(timeline.pixel_aspect, turn),
        rotation=turn,
    )


def read_clip(
    path: Path, frames: Frames, window: tuple[float, float] | None = None, fps: float | None = None
) -> np.ndarray:
    """Cuts a clip out of a video file, or out of a folder of numbered images.

    Args:
        window: (start, end) in seconds: the part of the video to cut from.
        fps: frames a second of a folder of images, which can't say so itself; a video file has its own.

    Returns:
        uint8 (F, H, W, 3), RGB.

    Raises:
        Rejected: the video is damaged, too short, too slow, too small, or of a kind that can't be read faithfully.
    """
    if path.is_dir():
        images, times = _numbered_images(path, fps)
        pictures = ((_read_image(images[i]), 1.0) for i in _choose_within(times, frames, window))
        return _stacked(pictures, frames)
    timeline = read_timeline(path)
    chosen = _choose_within(timeline.times_N, frames, window)
    decoded = decode(path, timeline.pts_N[chosen])
    return _stacked(((upright(f), _turned(timeline.pixel_aspect, _rotation(f))) for f in decoded), frames)


def choose(times_N: np.ndarray, frames: Frames) -> list[int]:
    """The frames to show, as indices into their presentation times, one for each frame of the clip.

    The clip's time step is 1/fps, or the source's mean interval where the two rates are the same within 1 %. The frame
    nearest to each time is taken; of two that are as near, the earlier one.

    Args:
        times_N: seconds, strictly increasing.

    Raises:
        Rejected: the source is too short or too slow, or so irregular that a frame would be shown twice or that one is
            missing for more than half a time step.
    """
    count = len(times_N)
    interval = float(times_N[-1] - times_N[0]) / (count - 1) if count > 1 else 1 / frames.fps
    rate = 1 / interval
    if rate < frames.fps * (1 - SAME_RATE):
        raise Rejected(f"{rate:.4g} frames a second, but the clip needs {frames.fps:.4g}: some would be shown twice")
    step = interval if rate <= frames.fps * (1 + SAME_RATE) else 1 / frames.fps
    span = (frames.num_frames - 1) * step
    spare = float(times_N[-1] - times_N[0]) - span
    if spare < -0.1 * interval:  # a container that counts in milliseconds rounds the last time by up to half of one
        raise Rejected(
            f"too short: {count} frames at {rate:.4g} a second are {count / rate:.2f} s, but "
            f"{frames.num_frames} frames at {frames.fps:.4g} a second need {frames.num_frames / frames.fps:.2f} s"
        )
    begin = times_N[0] + (max(spare, 0.0) / 2 if frames.start == "middle" else 0.0)
    first = int(np.searchsorted(times_N, begin + 0.01 * interval, side="right")) - 1
    wanted_F = times_N[first] + step * np.arange(frames.num_frames)
    after = np.searchsorted(times_N, wanted_F).clip(1, max(count - 1, 1))
    before = after - 1
    # The margin keeps timestamps rounded to milliseconds from tossing a coin where two frames are as near.
    later = wanted_F - times_N[before] > times_N[after.clip(max=count - 1)] - wanted_F + 0.07 * interval
    index_F = np.where(later, after, before)
    off_F = np.abs(times_N[index_F] - wanted_F)
    if (np.diff(index_F) < 1).any() or off_F.max() > 0.51 * step:
        worst = int(off_F.argmax())
        raise Rejected(
            f"its frame rate varies: the clip needs a frame at {wanted_F[worst]:.3f} s, the nearest is "
            f"{1000 * off_F[worst]:.0f} ms away (a clip of {frames.fps:.4g} a second allows {500 * step:.0f} ms)"
        )
    return [int(i) for i in index_F]


def fit(picture_HWC: np.ndarray, frames: Frames, pixel_aspect: float = 1.0) -> np.ndarray:
    """Scales a picture until it covers the clip's size and crops it around its centre: uint8 (H, W, 3).

    One resampling does both: the part of the picture that has the clip's shape is scaled to its size, by PIL's bicubic
    filter, which is antialiased.

    Args:
        pixel_aspect: width of a pixel over its height.

    Raises:
        Rejected: the picture would be enlarged by more than 5 %, unless ``frames.allow_upscale``.
    """
    height, width = picture_HWC.shape[:2]
    scale = max(frames.height / height, frames.width / (width * pixel_aspect))
    across, down = frames.width / (scale * pixel_aspect), frames.height / scale  # the part to keep, in stored pixels
    enlarged = max(frames.width / across, frames.height / down)
    if enlarged > UPSCALE and not frames.allow_upscale:
        raise Rejected(
            f"too small: {width} x {height} pixels must be enlarged {enlarged:.2f} times "
            f"to cover {frames.width} x {frames.height}"
        )
    left, top = max((width - across) / 2, 0.0), max((height - down) / 2, 0.0)
    box = (left, top, min(left + across, width), min(top + down, height))
    image = Image.fromarray(np.ascontiguousarray(picture_HWC))
    return np.asarray(image.resize((frames.width, frames.height), Image.Resampling.BICUBIC, box=box))


def _stacked(pictures: Iterator[tuple[np.ndarray, float]], frames: Frames) -> np.ndarray:
    clip, size = [], None
    for picture, aspect in pictures:
        if size not in (None, picture.shape):
            raise Rejected("its picture changes size on the way")
        size = picture.shape
        clip.append(fit(picture, frames, aspect))
    return np.stack(clip)


def _choose_within(times_N: np.ndarray, frames: Frames, window: tuple[float, float] | None) -> list[int]:
    """`choose` from the frames inside a window, as indices into all of them."""
    if window is None:
        return choose(times_N, frames)
    start, end = window
    # Half a millisecond: windows are written with few digits.
    inside = np.flatnonzero((times_N >= start - 0.0005) & (times_N < end - 0.0005))
    if not len(inside):
        raise Rejected(f"no frames between {start:g} and {end:g} s: the video ends after {times_N[-1]:.2f} s")
    try:
        return [int(inside[i]) for i in choose(times_N[inside], frames)]
    except Rejected as error:
        raise Rejected(f"between {start:g} and {end:g} s: {error.reason}") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and its first video stream, with everything that goes wrong inside turned into `Rejected`."""
    try:
        with av.open(str(path)) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                held = "only audio" if container.streams.audio else "no moving pictures"
                raise Rejected(f"no video stream: the file holds {held}")
            # No decoder; the stubs do not know that.
            if streams[0].codec_context is None:
                raise Rejected("no decoder for its video codec")
            yield container, streams[0]
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Rejected(f"unreadable: {reason} (damaged, truncated or no video at all)") from error


@dataclass(frozen=True)
class Timeline:
    """When a file shows its frames: ticks (N,), ascending, and the length of a tick in seconds."""

    pts_N: np.ndarray
    tick: float
    pixel_aspect: float
    codec: str

    @property
    def times_N(self) -> np.ndarray:
        """Seconds since the first frame."""
        return (self.pts_N - self.pts_N[0]) * self.tick


def read_timeline(path: Path) -> Timeline:
    """Reads all packets and decodes none, which also tells whether the file is whole."""
    with _opened(path) as (container, stream):
        shown, held, end = [], 0, 0.0
        for packet in container.demux():
            if packet.dts is None and not packet.size:
                continue  # the mark at the end of a stream
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            held += 1
            if packet.is_corrupt:
                raise Rejected(f"damaged or truncated: frame {held} is incomplete")
            if packet.is_discard:
                continue  # cut off by an edit list
            if packet.pts is None:
                raise Rejected("its frames carry no presentation times: rewrap it as mp4")
            shown.append(packet.pts)
        if held < stream.frames:
            raise Rejected(f"truncated: it announces {stream.frames} frames and holds {held}")
        announced = (container.duration or 0) / av.time_base
        if not stream.frames and end < announced - _MISSING_END:
            raise Rejected(f"truncated: it announces {announced:.2f} s and ends after {end:.2f} s")
        if not shown:
            raise Rejected("its video stream is empty")
        pts = np.array(sorted(shown), dtype=np.int64)
        if (np.diff(pts) < 1).any():
            raise Rejected("two of its frames have the same presentation time")
        return Timeline(
            pts, float(stream.time_base or 0), float(stream.sample_aspect_ratio or 1), stream.codec_context.name
        )


def decode(path: Path, pts_F: np.ndarray) -> Iterator[VideoFrame]:
    """The frames of the given presentation times, which ascend: exactly these, or an error.

    Seeking is not exact in every container, and a decoder may lack what came before: where it does not lead to every
    frame, all is decoded from the start.
    """
    found, failure = 0, ""
    for seek in (True, False):
        try:
            with _opened(path) as (container, stream):
                # An error, not a patched-up picture. With several threads, errors in a part of a picture get lost.
                stream.codec_context.options = {"err_detect": "explode"}
                stream.codec_context.thread_count = 1
                if seek:
                    container.seek(int(pts_F[0]), stream=stream)
                for frame in container.decode(stream):
                    if frame.pts is None or frame.pts > pts_F[found]:
                        break  # it was passed over
                    if frame.pts < pts_F[found]:
                        continue
                    if frame.is_corrupt:
                        raise Rejected("it is marked as corrupt")
                    yield frame
                    found += 1
                    if found == len(pts_F):
                        return
        except Rejected as error:
            failure = error.reason
    if not failure:
        raise Rejected("its container does not give the times at which its frames are shown: rewrap it as mp4")
    raise Rejected(f"damaged: frame {found + 1} of the clip's {len(pts_F)} can't be decoded ({failure})")


def _rotation(frame: VideoFrame) -> int:
    """Degrees, a multiple of 90, by which the frame is to be turned counterclockwise to be shown."""
    side_data: Any = frame.side_data  # a mapping, which its stubs do not know
    data = side_data.get(SideData.DISPLAYMATRIX)
    matrix = None if data is None else np.frombuffer(bytes(data), np.int32)
    if matrix is not None and int(matrix[0]) * int(matrix[4]) - int(matrix[1]) * int(matrix[3]) < 0:
        raise Rejected("its display matrix mirrors the picture")
    if frame.rotation % 90:
        raise Rejected(f"its display matrix turns the picture by {frame.rotation} degrees")
    return frame.rotation % 360


def _turned(pixel_aspect: float, turn: int) -> float:
    return 1 / pixel_aspect if turn % 180 else pixel_aspect


def upright(frame: VideoFrame) -> np.ndarray:
    """A decoded frame as uint8 RGB (H, W, 3), turned as it is to be shown.

    The file's own colour matrix and range are used; BT.601 where it names none, as FFmpeg does.
    """
    if frame.interlaced_frame:
        raise Rejected("interlaced: deinterlace it first")
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        raise Rejected("high dynamic range: map its tones to BT.709 first")
    return np.rot90(frame.to_ndarray(format="rgb24", interpolation=_TO_RGB), _rotation(frame) // 90)


def _numbered_images(folder: Path, fps: float | None) -> tuple[list[Path], np.ndarray]:
    """The images of a folder in the order of the numbers that end their names, and their times at ``fps``."""
    if not fps:
        raise Rejected("a folder of images has no frame rate of its own, and none is given")
    numbered: dict[int, Path] = {}
    for path in folder.iterdir():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        number = re.search(r"\d+$", path.stem)
        if number is None:
            raise Rejected(f"a folder of images, but no number ends the name of {path.name}")
        if int(number[0]) in numbered:
            raise Rejected(f"a folder of images, but {path.name} and {numbered[int(number[0])].name} share a number")
        numbered[int(number[0])] = path
    if not numbered:
        raise Rejected("a folder without images")
    first, count = min(numbered), len(numbered)
    missing = next((n for n in range(first, first + count) if n not in numbered), None)
    if missing is not None:
        raise Rejected(f"a folder of images in which number {missing} is missing")
    return [numbered[n] for n in sorted(numbered)], np.arange(count) / fps


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "L", "P"):
                raise Rejected(f"image {path.name} has pixels of kind {image.mode}, not 8-bit RGB")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for damaged files
        raise Rejected(f"image {path.name} is damaged or truncated") from error
