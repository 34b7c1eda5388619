"""What there is to score in a folder: its files' contents by hash, and that they go together.

Axes: F frames, H, W pixels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from w2svd_bench.data.files import (
    Shape,
    Unreadable,
    decoder,
    file_sha256,
    has_rate,
    is_video,
    left_aside,
    list_media,
    measure,
    read_media,
)
from w2svd_bench.data.video import RESIZE_FILTER, SAME_RATE, Frames, fit
from w2svd_bench.errors import BenchError
from w2svd_bench.record import canonical_hash

READERS = 2  # files that are read at a time
MOST_COPIES = 0.01  # share of a folder's files that may be copies of others


@dataclass(frozen=True)
class Item:
    """A file of a folder that can be read, as far as its headers tell.

    Attributes:
        sha256: of its bytes.
        shape: what it holds; ``fps`` may have been given for it.
        resize: (height, width) to scale and crop it to, around its centre; None: it stays as it is.
    """

    path: Path
    sha256: str
    shape: Shape
    resize: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its frames as `pixels` gives them."""
        return self.resize or (self.shape.height, self.shape.width)

    @cached_property
    def key(self) -> str:
        """A hash of all that its pixels follow from: its bytes, what decodes them, and how they are scaled."""
        scaled = None if self.resize is None else [*self.resize, f"{RESIZE_FILTER}, Pillow {PIL.__version__}"]
        return canonical_hash([self.sha256, decoder(self.path), scaled])

    @property
    def plain_video(self) -> bool:
        """Whether other programs can be given the file itself: a video, and no GIF, that is not to be scaled."""
        return is_video(self.path) and self.resize is None

    def pixels(self) -> np.ndarray:
        """Its frames, uint8 (F, H, W, 3); raises `Unreadable` as `read_media` does."""
        frames = read_media(self.path).frames_FHWC
        if self.resize is None:
            return frames
        size = Frames(1, *self.resize, 1.0, allow_upscale=True)
        return np.stack([fit(frame, size) for frame in frames])


@dataclass(frozen=True)
class Stock:
    """What there is to score in a folder.

    Attributes:
        items: the files that can be read, sorted by name; all of one size.
        unreadable: by the name of a file, why it can't be.
        warnings: what a reader has to know, a line each.
    """

    folder: Path
    items: tuple[Item, ...]
    unreadable: dict[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of all files."""
        return self.items[0].size

    @property
    def shown_size(self) -> str:
        """Width and height, as people write it."""
        return f"{self.size[1]}x{self.size[0]}"

    @property
    def decoders(self) -> str:
        """What reads the files."""
        return "; ".join(sorted({decoder(item.path) for item in self.items}))

    @property
    def resized(self) -> int:
        """How many files are scaled and cropped to the size."""
        return sum(item.resize is not None for item in self.items)

    @property
    def counts(self) -> list[int]:
        """The numbers of frames that there are, ascending."""
        return sorted({item.shape.frames for item in self.items})

    @property
    def fps(self) -> float | None:
        """The rate of all clips; None where it is not known."""
        return next((item.shape.fps for item in self.items if item.shape.fps), None)


def take_stock(
    folder: Path,
    fps: float | None = None,
    resize_mixed: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Stock:
    """Looks at every file of a folder: its bytes' hash, and what it holds.

    Args:
        fps: the rate of images and arrays, which have none of their own.
        resize_mixed: scale and crop files to the size that most have (of two, the larger one), if they differ.

    Raises:
        BenchError: there is nothing to read; sizes or rates differ; more than 1 % of the files are copies of others.
    """
    paths = list_media(folder)
    items, unreadable = [], {}
    with ThreadPoolExecutor(READERS) as readers:
        for done, found in enumerate(readers.map(_look, paths), start=1):
            path = paths[done - 1]
            if isinstance(found, Unreadable):
                unreadable[path.name] = found.reason
            else:
                rate = found.shape.fps or (None if has_rate(path) else fps)
                items.append(replace(found, shape=replace(found.shape, fps=rate)))
            progress(done, len(paths))
    if not items:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(unreadable.items())[:3])
        raise BenchError(f"none of the {len(paths)} files of {folder} can be read", first, "see whether they are whole")
    warnings = [*_aside(folder), *_copies(folder, items)]
    _refuse_mixed_rates(folder, items)
    if resize_mixed:
        items, told = _one_size(items)
        warnings += [f"{folder}: {one}" for one in told]
    _refuse_mixed_sizes(folder, items)
    return Stock(folder, tuple(items), unreadable, tuple(warnings))


def _look(path: Path) -> Item | Unreadable:
    try:
        return Item(path, file_sha256(path), measure(path))
    except Unreadable as error:
        return error
    except OSError as error:
        return Unreadable(f"unreadable: {error.strerror or type(error).__name__}")


def _aside(folder: Path) -> list[str]:
    aside = left_aside(folder)
    folders = [path.name for path in aside if path.is_dir()]
    others = [path.name for path in aside if not path.is_dir()]
    told = []
    if folders:
        told.append(f"{folder}: {len(folders)} folder(s) in it are not entered: {_some(folders)}")
    if others:
        told.append(f"{folder}: {len(others)} file(s) of other kinds are left aside: {_some(others)}")
    return told


def _copies(folder: Path, items: list[Item]) -> list[str]:
    """A warning where files are copies of others; raises `BenchError` where more than 1 % are."""
    names = defaultdict(list)
    for item in items:
        names[item.sha256].append(item.path.name)
    groups = [" = ".join(same) for same in names.values() if len(same) > 1]
    copies = len(items) - len(names)
    if not copies:
        return []
    what = f"{copies} of the {len(items)} files of {folder} are copies of others: {_some(groups)}"
    if copies > MOST_COPIES * len(items):
        why = "a set that repeats itself is smaller than it looks, and its scores and their errors are wrong"
        raise BenchError(what, why, "remove the copies; if a generator made them, its seeds may be the same")
    return [what]


def _refuse_mixed_rates(folder: Path, items: list[Item]) -> None:
    rates = Counter(round(i.shape.fps, 3) for i in items if i.shape.frames > 1 and i.shape.fps)
    if rates and max(rates) > min(rates) * (1 + SAME_RATE):
        raise BenchError(
            f"the clips of {folder} have different rates: {_counted(rates, '{:g} a second')}",
            "metrics take frames by their number, so the same motion would look slower in some of them",
            "score clips of one rate at a time, or resample them",
        )


def _refuse_mixed_sizes(folder: Path, items: list[Item]) -> None:
    sizes = Counter(_shown(item) for item in items)
    if len(sizes) > 1:
        raise BenchError(
            f"the files of {folder} have different sizes: {_counted(sizes, '{}')}",
            "pictures of another size have other features, whatever they show",
            "score files of one size at a time, or add --resize-mixed to scale and crop them to the commonest size",
        )


def _one_size(items: list[Item]) -> tuple[list[Item], list[str]]:
    """The items, scaled and cropped to the size that most of them have."""
    sizes = Counter(item.size for item in items)
    height, width = max(sizes, key=lambda size: (sizes[size], size[0] * size[1], size))
    others = sum(item.size != (height, width) for item in items)
    resized = [item if item.size == (height, width) else replace(item, resize=(height, width)) for item in items]
    told = f"{others} of {len(items)} files are scaled and cropped to {width}x{height} ({RESIZE_FILTER})"
    return resized, [told] if others else []


def _shown(item: Item) -> str:
    return f"{item.size[1]}x{item.size[0]}"


def _counted(values: Counter[Any], how: str) -> str:
    return ", ".join(f"{count} of {how.format(value)}" for value, count in values.most_common(8))


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
