"""Images, videos and arrays as they lie in a folder: which ones there are, what each is, and all of its frames.

A file is read whole, or refused with a reason; no frame is left out, and its ending has to say what it holds. Rules for
pixels, all uint8 RGB in the end:

- images are turned as their EXIF orientation says; palettes and grey become RGB; alpha is dropped, the stored colour
  under it kept, as `PIL.Image.convert("RGB")` does and with it pytorch-fid and clean-fid; 16 bit, CMYK and other kinds
  are refused, and so are files that hold several pictures, which a feature net would see the first one of;
- videos, GIF among them, by the rules of `data.video`: the file's own colour matrix, turned as it is to be shown, and
  an error instead of a picture that the decoder patched up; pixels that are not square are refused;
- arrays are uint8 (F, H, W, 3), read without unpickling.

Axes: F frames, H, W pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from w2svd_bench.data.video import Rejected, decode, probe, read_timeline, upright
from w2svd_bench.errors import BenchError

# By ending, what the content may be: PIL's name of an image format, FFmpeg's of a container.
IMAGES = {
    ".png": {"PNG"},
    ".jpg": {"JPEG", "MPO"},  # cameras put a second picture behind the first and call it MPO
    ".jpeg": {"JPEG", "MPO"},
    ".webp": {"WEBP"},
    ".bmp": {"BMP"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
}
VIDEOS = {".mp4": "mp4", ".webm": "webm", ".mov": "mov", ".mkv": "matroska", ".avi": "avi", ".gif": "gif"}
ARRAYS = (".npy",)
_MODES = ("RGB", "RGBA", "P", "PA", "L", "LA", "1")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112


class Unreadable(Exception):
    """A file that can't be read; ``reason`` is one line for the report."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(reason.split())
        super().__init__(self.reason)


@dataclass(frozen=True)
class Shape:
    """What a file holds: ``frames`` (1 for an image) of ``height`` x ``width`` pixels as they are shown.

    ``fps`` is the mean rate of a video; None for images and arrays, which have none of their own.
    """

    frames: int
    height: int
    width: int
    fps: float | None


@dataclass(frozen=True, eq=False)
class Media:
    """A file's frames, uint8 (F, H, W, 3); ``fps`` as in `Shape`; ``codec``: h264, png, npy, ..."""

    frames_FHWC: np.ndarray
    fps: float | None
    codec: str


def list_media(folder: Path) -> list[Path]:
    """The images, videos and arrays that lie right in a folder, sorted by name; hidden files are no part of it.

    Raises:
        BenchError: there is no such folder, or nothing to read in it; it names what was seen instead.
    """
    found = [path for path in _entries(folder) if path.is_file() and _known(path)]
    if found:
        return found
    endings = Counter((path.suffix or path.name) if path.is_file() else "folder" for path in _entries(folder))
    seen = ", ".join(f"{count} x {ending}" for ending, count in endings.most_common(8)) or "nothing at all"
    raise BenchError(
        f"there is nothing to read in {folder}",
        f"it holds {seen}; what is read has one of the endings {' '.join([*IMAGES, *VIDEOS, *ARRAYS])}",
        "give the folder that the files lie right in: folders inside it are not entered",
    )


def left_aside(folder: Path) -> list[Path]:
    """What else lies in a folder, sorted by name: folders, which are not entered, and files of other kinds."""
    return [path for path in _entries(folder) if not (path.is_file() and _known(path))]


def measure(path: Path) -> Shape:
    """What a file holds, from its headers, the packets of a video and the first of its frames.

    Raises:
        Unreadable: even that can't be had.
    """
    _refuse_empty(path)
    if _ending(path) in IMAGES:
        with _image(path) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            width, height = image.size[::-1] if turned else image.size
            return Shape(1, height, width, None)
    if _ending(path) in ARRAYS:
        frames, height, width = _array(path).shape[:3]
        return Shape(frames, height, width, None)
    with _video(path) as stated:
        seen = probe(path)
        if seen.pixel_aspect != 1:
            raise Unreadable(f"its pixels are {seen.pixel_aspect:.4g} times as wide as high: rescale it to square ones")
        return Shape(seen.frames or 0, seen.height, seen.width, round(seen.fps or stated, 6) or None)


def read_media(path: Path) -> Media:
    """All frames of a file.

    Raises:
        Unreadable: it is empty, damaged, truncated, not what its ending says, or of a kind that can't be read
            faithfully; also if its decoder stumbles over any one frame.
    """
    shape = measure(path)
    if _ending(path) in IMAGES:
        with _image(path) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            return Media(pixels[None], None, str(image.format).lower())
    if _ending(path) in ARRAYS:
        return Media(np.array(_array(path)), None, "npy")
    with _video(path):
        timeline = read_timeline(path)
        frames = np.empty((len(timeline.pts_N), shape.height, shape.width, 3), np.uint8)
        for index, frame in enumerate(decode(path, timeline.pts_N)):
            picture = upright(frame)
            if picture.shape != frames.shape[1:]:
                raise Unreadable("its picture changes size on the way")
            frames[index] = picture
        return Media(frames, shape.fps, timeline.codec)


def is_video(path: Path) -> bool:
    """Whether other programs read the file as a video: GIF, which few of them do, is none."""
    return _ending(path) in VIDEOS and _ending(path) != ".gif"


def has_rate(path: Path) -> bool:
    """Whether files of this kind say how many frames they show a second."""
    return _ending(path) in VIDEOS


def decoder(path: Path) -> str:
    """What reads a file, with the version: other ones may give other pixels."""
    if _ending(path) in IMAGES:
        return f"Pillow {PIL.__version__}"
    if _ending(path) in ARRAYS:
        return "npy"
    return f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _known(path: Path) -> bool:
    return _ending(path) in IMAGES or _ending(path) in VIDEOS or _ending(path) in ARRAYS


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        why = "it is a file" if folder.exists() else "there is no such folder"
        raise BenchError(f"{folder} can't be read as a folder of clips", why, "check the path")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _refuse_empty(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise Unreadable(f"unreadable: {error.strerror}") from error
    if not size:
        raise Unreadable("an empty file (0 bytes)")
    if not _known(path):
        raise Unreadable(f"the ending {path.suffix!r} is not among those that are read")


def _otherwise(path: Path, content: str) -> Unreadable:
    return Unreadable(f"its name ends in {path.suffix}, but it holds {content}: rename it")


@contextmanager
def _image(path: Path) -> Iterator[Image.Image]:
    """An image file, opened and not yet decoded, with everything that goes wrong turned into `Unreadable`."""
    try:
        with Image.open(path) as image:
            if image.format not in IMAGES[_ending(path)]:
                raise _otherwise(path, str(image.format))
            count = getattr(image, "n_frames", 1)
            if count > 1 and image.format != "MPO":
                raise Unreadable(f"it holds {count} pictures: save each as a file, or all as a video")
            if image.mode not in _MODES:
                raise Unreadable(f"its pixels are of kind {image.mode}: convert it to 8-bit RGB")
            yield image
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("no image at all, or its first bytes are damaged") from error
    except Exception as error:  # damaged files make PIL raise nearly anything
        raise Unreadable(f"damaged, truncated or no image at all ({error})") from error


@contextmanager
def _video(path: Path) -> Iterator[float]:
    """Around reading a video: what is wrong with its container, and whatever `data.video` rejects, as `Unreadable`.

    Yields the rate that the file states, which is all there is to know of a single frame's; 0 if it states none.
    """
    try:
        with av.open(str(path)) as container:
            names = container.format.name.split(",")
            stated = float(next((s.average_rate or 0 for s in container.streams.video), 0))
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Unreadable(f"damaged, truncated or no video at all ({reason})") from error
    if VIDEOS[_ending(path)] not in names:
        raise _otherwise(path, names[0].removesuffix("_pipe"))
    # A GIF does not say how many frames it has, only where it ends: cut between two frames, it would seem whole.
    if _ending(path) == ".gif" and not path.read_bytes().rstrip(b"\0").endswith(b";"):
        raise Unreadable("truncated: the mark at its end is missing")
    try:
        yield stated
    except Rejected as error:
        raise Unreadable(error.reason) from error


def _array(path: Path) -> np.ndarray:
    """An array file, mapped into memory and checked."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Unreadable(f"damaged, truncated or no array at all ({error})") from error
    if not isinstance(array, np.ndarray):
        raise _otherwise(path, "an npz archive")
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise Unreadable(f"an array of shape {array.shape} and type {array.dtype}, not uint8 (F, H, W, 3)")
    return array
