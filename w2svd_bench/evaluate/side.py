"""What is read of the files of one folder: their features by every net, and their values by metrics that read files.

Each file is decoded once for all nets, a few ahead of them, and not at all where the store holds all that is asked; so
a second run costs no forward pass, and one that was killed goes on where it was.
Axes: B clips of a batch, F frames, H, W pixels, K vectors a clip, D numbers a vector.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from w2svd_bench.data.files import Unreadable
from w2svd_bench.data.stock import READERS, Item, Stock
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.ahead import ahead
from w2svd_bench.evaluate.pictures import write_video
from w2svd_bench.evaluate.store import FeatureStore, kept_on
from w2svd_bench.metrics.base import ClipFile, ClipMetric, Dimension, Features
from w2svd_bench.record import canonical_hash
from w2svd_bench.types import Skipped

Net = Callable[[np.ndarray], np.ndarray]
Report = Callable[[str, int, int], None]  # (what is being done, done, total)
Batch = list[tuple[Item, np.ndarray]]
BATCH, BATCH_BYTES = 64, 2**28  # clips at a time, and how much memory their frames may take
CLIPS_A_CALL = 256  # that a `ClipMetric` scores before its values are kept
SECONDS = 60.0  # at most so much work is lost when the process is killed
MISSING = "there is no such file, but a prompt for it"


@dataclass(frozen=True)
class Rules:
    """How folders are scored.

    Attributes:
        allow_small: compare sets of fewer clips than a metric's `least_clips`, down to two.
        resize_mixed: scale and crop files of another size than most.
        fps: the rate of images and arrays, which have none of their own.
        batch: clips that a net is given at a time; None: as many as suit their size.
        device: "cpu", "cuda", ...
        report: told how far work has come.
        max_invalid: how many files a reference may lack for its statistics to be written.
    """

    allow_small: bool = False
    resize_mixed: bool = False
    fps: float | None = None
    batch: int | None = None
    device: str = "cpu"
    report: Report = lambda task, done, total: None
    max_invalid: int = 0


class Side:
    """One of the two folders.

    Attributes:
        unreadable: by file name, why a file is left out of every score.
        spoilt: by net id or the name of a dimension, and by file name, why it is left out of that score.

    Raises:
        BenchError: prompts are given, and a file has none.
    """

    def __init__(
        self, stock: Stock, rules: Rules, store: FeatureStore, prompts: Mapping[str, str] | None = None
    ) -> None:
        self.stock, self.rules, self.store, self._prompts = stock, rules, store, prompts
        self.unreadable = dict(stock.unreadable)
        self.spoilt: dict[str, dict[str, str]] = {}
        self._features: dict[str, dict[str, np.ndarray]] = {}  # (K, D) by net id and the key of an item
        if prompts is not None:
            present = {item.path.name for item in stock.items} | set(stock.unreadable)
            without = sorted(present - set(prompts))
            if without:
                raise BenchError(
                    f"{len(without)} of the files of {stock.folder} have no prompt: {', '.join(without[:5])}",
                    "where prompts are given, every file needs one",
                    "name each file, with its ending, in the file of --prompts",
                )
            self.unreadable |= dict.fromkeys(sorted(set(prompts) - present), MISSING)

    @property
    def items(self) -> list[Item]:
        """The files that can be read, as far as is known."""
        return [item for item in self.stock.items if item.path.name not in self.unreadable]

    @property
    def invalid(self) -> dict[str, str]:
        """All files that are left out of any score, with one reason each."""
        found = {name: reason for reasons in self.spoilt.values() for name, reason in reasons.items()}
        return dict(sorted((found | self.unreadable).items()))

    def left_out(self, score: str) -> int:
        """How many files are left out of a score, by its net's id or its own name."""
        return len(self.unreadable | self.spoilt.get(score, {}))

    def prompt(self, item: Item) -> str | None:
        """What the file was made from; None where no prompts are given."""
        return None if self._prompts is None else self._prompts[item.path.name]

    def belongs_to(self, item: Item) -> str:
        """What may not be parted when uncertainty is estimated: a prompt's files, or each file by itself."""
        return self.prompt(item) or item.path.name

    def kept_as(self, id: str) -> str:
        """What values by an id are kept under."""
        return kept_on(id, self.rules.device)

    def read_by(self, net_id: str) -> list[Item]:
        """The files that have features, in the order of names."""
        return [item for item in self.items if item.key in self._features[net_id]]

    def features(self, net_id: str) -> Features:
        """The features of these files, with their prompts as keys; without prompts every file stands for itself.

        A name is no key: an MMD leaves pairs of one key out, and files that happen to be called alike are no such pair.
        """
        items, found = self.read_by(net_id), self._features[net_id]
        keys = None if self._prompts is None else [self.belongs_to(item) for item in items]
        return Features(np.stack([found[item.key] for item in items]), keys)

    def about(self) -> dict[str, Any]:
        """What was scored, for JSON."""
        stock = self.stock
        return {
            "folder": str(stock.folder),
            "n": len(self.items),
            "n_unreadable": len(self.unreadable),
            "sha256": canonical_hash([[item.path.name, item.sha256] for item in stock.items]),
            "frames": stock.counts,
            "size": stock.shown_size,
            "fps": stock.fps,
            "decoder": stock.decoders,
        }

    def read(self, task: str, nets: Mapping[str, Net], files: Mapping[str, Path | None] | None = None) -> None:
        """Decodes each file of which anything is missing, for all nets at once.

        Args:
            task: what progress is reported as.
            nets: by net id.
            files: by the key of an item that is decoded in any case, where to write it as a video, if anywhere.

        Raises:
            BenchError: clips of different lengths give different numbers of vectors.
        """
        files = files or {}
        unique = {item.key: item for item in self.items}
        self._features = {net_id: self.store.get(self.kept_as(net_id), list(unique)) for net_id in nets}
        known = list(self._features.values())
        todo = [item for key, item in unique.items() if key in files or any(key not in found for found in known)]
        failed: dict[str, str] = {}
        spoilt: dict[str, dict[str, str]] = {net_id: {} for net_id in nets}
        saved, done = time.monotonic(), 0
        try:
            for batch, size, refused in self._batches(todo, files):
                failed |= refused
                for net_id, net in nets.items():
                    spoilt[net_id] |= self._run(net_id, net, batch, size)
                if time.monotonic() - saved > SECONDS:
                    self.store.flush()
                    saved = time.monotonic()
                done += len(batch) + len(refused)
                self.rules.report(task, done, len(todo))
        finally:
            self.store.flush()
        for item in self.items:
            if item.key in failed:
                self.unreadable[item.path.name] = failed[item.key]
        for net_id, reasons in spoilt.items():
            self.spoilt[net_id] = {i.path.name: reasons[i.key] for i in self.items if i.key in reasons}

    def _batches(
        self, todo: list[Item], files: Mapping[str, Path | None]
    ) -> Iterator[tuple[Batch, int, dict[str, str]]]:
        """Decoded files, in batches of clips of equal shape; how many a full one has; and what failed, by key."""
        if not todo:
            return
        todo = sorted(todo, key=lambda item: item.shape.frames)  # by name among equals
        most = max(math.prod((item.shape.frames, *item.size, 3)) for item in todo)
        size = self.rules.batch or max(1, min(BATCH, BATCH_BYTES // most))
        batch: Batch = []
        failed: dict[str, str] = {}
        decoded = ahead(partial(_decoded, files=files), todo, depth=size, workers=READERS)
        for item, frames in zip(todo, decoded, strict=True):
            if isinstance(frames, Unreadable):
                failed[item.key] = frames.reason
                continue
            if batch and (len(batch) == size or batch[0][1].shape != frames.shape):
                yield batch, size, failed
                batch, failed = [], {}
            batch.append((item, frames))
        yield batch, size, failed

    def _run(self, net_id: str, net: Net, batch: Batch, size: int) -> dict[str, str]:
        """Keeps a batch's features, unless all are known; returns why a clip has none, by key."""
        known = self._features[net_id]
        if all(item.key in known for item, _ in batch):
            return {}
        clips = [frames for _, frames in batch]
        if self.rules.device != "cpu":  # the last bits of what a GPU gives depend on the size of a batch
            clips += [clips[-1]] * (size - len(clips))
        spoilt = {}
        for (item, frames), value in zip(batch, net(np.stack(clips)), strict=False):
            other = next(iter(known.values()), value)
            if other.shape != value.shape:
                raise BenchError(
                    f"clips of {self.stock.folder} give {len(other)} and {len(value)} vectors each",
                    f"they have different numbers of frames ({', '.join(map(str, self.stock.counts))}), which the "
                    f"metric does not make equal; {item.path.name} has {len(frames)}",
                    "score clips of one length at a time",
                )
            if np.isfinite(value).all():
                known[item.key] = value
                self.store.put(self.kept_as(net_id), {item.key: value})
            else:
                spoilt[item.key] = "its features are not finite"
        return spoilt


class ClipValues:
    """The values that a metric gives each file of a folder, as far as they are known.

    Attributes:
        refused: by the name of a dimension, why it can't be had of files like these.
        asked: the other dimensions.
    """

    def __init__(self, metric: ClipMetric, side: Side) -> None:
        self.metric, self._side = metric, side
        (frames,), (height, width), fps = side.stock.counts, side.stock.size, side.stock.fps
        assert fps is not None  # `folders._check_rate` saw to it
        if (height % 2 or width % 2) and not all(item.plain_video for item in side.items):
            reason = f"the files would be written as H.264, which has no frames of {width}x{height}: even sizes only"
            self.refused: Mapping[str, str] = {one.name: reason for one in metric.dimensions}
        else:
            self.refused = metric.refuses(frames, height, width, fps)
        self.asked = [one for one in metric.dimensions if one.name not in self.refused]
        keys = [self._key(item) for item in side.items]
        self._values = {
            one.name: {key: float(value[0, 0]) for key, value in side.store.get(self._kept_as(one), keys).items()}
            for one in self.asked
        }

    @property
    def missing(self) -> list[Item]:
        """One item for each content and prompt that any dimension has no value of."""
        unique = {self._key(item): item for item in self._side.items}
        return [item for key, item in unique.items() if any(key not in found for found in self._values.values())]

    def known(self, dimension: str) -> list[tuple[Item, float]]:
        """The files that have a value, in the order of names."""
        found = self._values[dimension]
        return [(item, found[self._key(item)]) for item in self._side.items if self._key(item) in found]

    def score(self, files: Mapping[str, Path]) -> None:
        """Has those scored that miss a value: from ``files``, by the key of an item, or where they lie."""
        missing, report = self.missing, self._side.rules.report
        for first in range(0, len(missing), CLIPS_A_CALL):
            items = missing[first : first + CLIPS_A_CALL]

            def progress(done: int, total: int, first: int = first, count: int = len(items)) -> None:
                # A metric may count otherwise than in clips: by dimensions, say.
                report(f"scoring by {self.metric.name}", first + count * done // max(total, 1), len(missing))

            clips = [self._file(item, files.get(item.key, item.path)) for item in items]
            made = self.metric.score(clips, progress)
            for one in self.asked:
                self._keep(one, dict(zip(map(self._key, items), made[one.name], strict=True)))
            self._side.store.flush()

    def _keep(self, dimension: Dimension, values: Mapping[str, float | Skipped]) -> None:
        """Values by key; what has none may have had a passing reason, so only numbers are stored."""
        numbers = {key: v for key, v in values.items() if not isinstance(v, Skipped) and math.isfinite(v)}
        self._values[dimension.name] |= numbers
        self._side.store.put(self._kept_as(dimension), {key: np.array([[value]]) for key, value in numbers.items()})
        spoilt = self._side.spoilt.setdefault(dimension.name, {})
        for item in self._side.items:
            value = values.get(self._key(item))
            if isinstance(value, Skipped):
                spoilt[item.path.name] = f"{dimension.name}: {value.reason}"
            elif value is not None and not math.isfinite(value):
                spoilt[item.path.name] = f"{dimension.name}: its value is {value}"

    def _kept_as(self, dimension: Dimension) -> str:
        return self._side.kept_as(dimension.kept_as)

    def _key(self, item: Item) -> str:
        """Of all that a value follows from: other than features, it may depend on the prompt and the rate."""
        return canonical_hash([item.key, self._side.prompt(item), item.shape.fps])

    def _file(self, item: Item, path: Path) -> ClipFile:
        assert item.shape.fps is not None
        height, width = item.size
        side = self._side
        return ClipFile(
            path=path.resolve(),
            key=side.belongs_to(item),
            prompt=side.prompt(item),
            frames=item.shape.frames,
            height=height,
            width=width,
            fps=item.shape.fps,
        )


def _decoded(item: Item, files: Mapping[str, Path | None]) -> np.ndarray | Unreadable:
    """The frames of an item, which are also written where a file of them is wanted."""
    try:
        frames = item.pixels()
    except Unreadable as error:
        return error
    if frames.shape[:3] != (item.shape.frames, *item.size):
        return Unreadable(f"its frames are {frames.shape[:3]}, its headers say {(item.shape.frames, *item.size)}")
    target = files.get(item.key)
    if target is not None:
        assert item.shape.fps is not None
        write_video(frames, target, item.shape.fps, lossless=True)
    return frames
