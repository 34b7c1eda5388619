"""``vbench`` and ``vbench_i2v``: VBench's numbers for each clip (Huang et al. 2024, arXiv 2311.17982 and 2411.13503).

The numbers come from the classes of the `vbench` package, which run in an environment of their own (`worker.py`); here
they are asked for, put on one scale, and given their ids. VBench's own number of a set is not used: it is a mean over
frames in some dimensions and over clips in others, and in the same one it depends on the number of processes which it
is. Here a set's number is the mean over its clips in all dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.base import STAND_IN, ClipFile, ClipMetric, Dimension, Direction
from w2svd_bench.metrics.vbench import dimensions, environment, scores
from w2svd_bench.metrics.vbench.dimensions import Kind
from w2svd_bench.metrics.vbench.process import Worker
from w2svd_bench.metrics.weights import Found, find
from w2svd_bench.record import canonical_hash
from w2svd_bench.types import Skipped

CUSTOM = "custom prompts"  # the flag of all: the published numbers stand on VBench's own prompts
VBENCH_FOLDER = "vbench/"  # where weights of VBench lie in the weights folder, in the layout that VBench wants
_VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")


class _WorkerMetric(ClipMetric):
    """What both metrics share.

    Args:
        device: where VBench's networks run.
        only: some of the dimensions, by VBench's names.

    Raises:
        BenchError: a dimension is unknown or can't be had, weights are missing or wrong, or the Python that was named
            has no VBench. (Whether uv can build an environment shows at the first `score`.)
    """

    version: ClassVar[int] = 1
    direction: ClassVar[Direction] = "up"
    least_side: ClassVar[int] = 128  # the next round number above what its dimensions need
    kinds: ClassVar[Mapping[str, Kind]]
    default: ClassVar[tuple[str, ...]]

    def __init__(self, device: str, only: Sequence[str] | None = None) -> None:
        # VBench downscales for motion_smoothness by the memory of "cuda"; of "cuda:0" it does not.
        self._device = "cuda:0" if device == "cuda" else device
        self._asked = dimensions.chosen(self.kinds, self.default, None if only is None else tuple(only))
        self._weights = _found([id for name in self._asked for id in self.kinds[name].weights])
        self._deviations = environment.deviations()
        self._worker: Worker | None = None

    @property
    def versions(self) -> Mapping[str, str]:
        """The packages of VBench's environment that move numbers; empty before the first `score`."""
        return {} if self._worker is None else dict(self._worker.hello["versions"])

    @property
    def dimensions(self) -> Sequence[Dimension]:
        """The numbers that it gives, in the order of VBench."""
        return [self._dimension(name) for name in self._asked]

    def refuses(self, frames: int, height: int, width: int, fps: float) -> Mapping[str, str]:
        reasons = {name: self.kinds[name].refuses(frames, height, width, fps) for name in self._asked}
        return {self._named(name): reason for name, reason in reasons.items() if reason is not None}

    def score(
        self, clips: Sequence[ClipFile], progress: Callable[[int, int], None]
    ) -> Mapping[str, Sequence[float | Skipped]]:
        values = self._score(clips, progress)
        return {self._named(name): values[name] for name in self._asked}

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _score(
        self, clips: Sequence[ClipFile], progress: Callable[[int, int], None]
    ) -> dict[str, list[float | Skipped]]:
        """The values by VBench's names of the dimensions."""
        unfit = {name: [_unfit(clip, self.kinds[name]) for clip in clips] for name in self._asked}
        rows = {name: [row for row, reason in enumerate(column) if reason is None] for name, column in unfit.items()}
        rows = {name: fit for name, fit in rows.items() if fit}
        got = self._running().ask(self._request(clips, rows), progress)["dimensions"] if rows else {}
        values: dict[str, list[float | Skipped]] = {}
        for name, column in unfit.items():
            answers = zip(got[name]["values"], got[name]["reasons"], strict=True) if name in rows else iter(())
            values[name] = [
                self._value(name, *next(answers)) if reason is None else Skipped(reason) for reason in column
            ]
        return values

    def _value(self, name: str, value: float | None, reason: str | None) -> float | Skipped:
        if value is None:
            assert reason is not None
            return Skipped(reason)
        return value * self.kinds[name].scale

    def _request(self, clips: Sequence[ClipFile], rows: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        return {
            "device": self._device,
            "read_frame": False,
            "imaging_quality_preprocessing_mode": "longer",
            "weights": {
                found.weight.file.removeprefix(VBENCH_FOLDER): str(found.path.absolute())
                for found in self._weights.values()
            },
            "clips": [
                {
                    "path": str(clip.path.absolute()),
                    "frames": clip.frames,
                    "prompt": clip.prompt,
                    "image": None if clip.image is None else str(clip.image.absolute()),
                }
                for clip in clips
            ],
            "dimensions": rows,
        }

    def _running(self) -> Worker:
        """The worker, started if there is none."""
        if self._worker is not None and not self._worker.alive:
            self.close()
        if self._worker is None:
            python = environment.interpreter()
            worker = Worker([python, environment.WORKER])
            try:
                if environment.deviating(worker.hello["versions"], python) != self._deviations:
                    raise BenchError(
                        f"{python} has other packages than it had a moment ago",
                        "the ids of scores were made of those",
                        "run the same command again",
                    )
            except BenchError:
                worker.close()
                raise
            self._worker = worker
        return self._worker

    def _named(self, name: str) -> str:
        """The name in tables, which says where weights are none: `vbench.imaging_quality[stand-in]`."""
        return f"{self.name}.{name}{self._mark([name])}"

    def _mark(self, names: Sequence[str]) -> str:
        """What a name ends in that stands on any of these dimensions."""
        weights = (self._weights[id] for name in names for id in self.kinds[name].weights)
        return "[stand-in]" if any(STAND_IN in found.flags for found in weights) else ""

    def _dimension(self, name: str) -> Dimension:
        kind, pins = self.kinds[name], environment.pins()
        weights = [self._weights[id] for id in kind.weights]
        files = ", ".join(f"{found.weight.id} {found.sha256}" for found in weights) or "no weights"
        precision = "float16" if kind.half and self._device.startswith("cuda") else "float32"
        flags = dict.fromkeys([CUSTOM, *kind.flags, *(flag for found in weights for flag in found.flags)])
        other = ", ".join(f"{package} {version}" for package, version in self._deviations.items())
        if other:
            flags[f"VBench with {other}"] = None
        return Dimension(
            self._named(name),
            self.direction,
            self.version,
            f"{self.name}.{name} v{self.version}; vbench {pins['vbench']}, custom input; {kind.reader} "
            f"{pins[kind.reader]}; {kind.rule}; {precision}; {files}{other and f'; with {other}'}; mean over clips",
            weights[0].sha256 if len(weights) == 1 else None,
            tuple(flags),
        )


class VBench(_WorkerMetric):
    """VBench's seven quality dimensions and their Quality, or those named by ``only``.

    Three more, `human_action`, `temporal_style` and `overall_consistency`, need prompts and are there when asked for.
    Quality is there when all seven dimensions are; a clip that lacks one of them has none.
    """

    name = "vbench"
    kinds = dimensions.KINDS
    default = scores.QUALITY

    @property
    def dimensions(self) -> Sequence[Dimension]:
        """The numbers that it gives, Quality last."""
        found = [self._dimension(name) for name in self._asked]
        return [*found, self._quality(found)] if self._has_quality else found

    def refuses(self, frames: int, height: int, width: int, fps: float) -> Mapping[str, str]:
        reasons = dict(super().refuses(frames, height, width, fps))
        lacking = [name for name in scores.QUALITY if self._named(name) in reasons] if self._has_quality else []
        if lacking:
            reasons[self._quality_name] = f"it needs all seven dimensions, and {', '.join(lacking)} can't be had"
        return reasons

    def score(
        self, clips: Sequence[ClipFile], progress: Callable[[int, int], None]
    ) -> Mapping[str, Sequence[float | Skipped]]:
        values = self._score(clips, progress)
        named = {self._named(name): values[name] for name in self._asked}
        if self._has_quality:
            named[self._quality_name] = [
                quality_of({name: values[name][row] for name in scores.QUALITY}) for row in range(len(clips))
            ]
        return named

    @property
    def _has_quality(self) -> bool:
        return set(scores.QUALITY) <= set(self._asked)

    @property
    def _quality_name(self) -> str:
        return f"{self.name}.quality{self._mark(scores.QUALITY)}"

    def _quality(self, found: Sequence[Dimension]) -> Dimension:
        parts = {name: one for name, one in zip(self._asked, found, strict=True) if name in scores.QUALITY}
        return Dimension(
            self._quality_name,
            self.direction,
            self.version,
            f"{self.name}.quality v{self.version}; VBench's ranges and weights over its seven quality dimensions, "
            f"whose ids are {canonical_hash({name: one.id for name, one in parts.items()})}; mean over clips",
            None,
            tuple(dict.fromkeys(flag for one in parts.values() for flag in one.flags)),
        )


class VBenchI2V(_WorkerMetric):
    """VBench-I2V's `i2v_subject`: how well a clip keeps what its given first image shows.

    Of its two other dimensions the package on PyPI has no more than the outside: see `dimensions.UNAVAILABLE`.
    """

    name = "vbench_i2v"
    kinds = dimensions.I2V_KINDS
    default = tuple(dimensions.I2V_KINDS)


def quality_of(values: Mapping[str, float | Skipped]) -> float | Skipped:
    """VBench's Quality of one clip; none where one of the seven dimensions has no value."""
    there = {name: value for name, value in values.items() if not isinstance(value, Skipped)}
    if len(there) < len(values):
        return Skipped(f"it has no {', '.join(name for name in values if name not in there)}")
    try:
        return scores.quality(there)
    except BenchError as error:
        return Skipped(error.what)


def _unfit(clip: ClipFile, kind: Kind) -> str | None:
    """Why VBench can't be shown a clip; None if it can."""
    suffix = clip.path.suffix.lower()
    if suffix not in _VIDEOS or (suffix == ".gif" and not kind.gif):
        return f"VBench reads no {suffix or 'nameless'} files here"
    if kind.prompt and not clip.prompt:
        return "it needs a prompt"
    if kind.image and clip.image is None:
        return "it needs the image that the clip was made from"
    return kind.refuses(clip.frames, clip.height, clip.width, clip.fps)


def _found(ids: Sequence[str]) -> dict[str, Found]:
    """The weights of these ids, all of them looked for before any error is raised."""
    found: dict[str, Found] = {}
    errors: list[BenchError] = []
    for id in dict.fromkeys(ids):
        try:
            found[id] = find(id)
        except BenchError as error:
            errors.append(error)
    if len(errors) > 1:
        raise BenchError(
            f"VBench can't use {len(errors)} of its weights",
            "; ".join(f"{error.what}: {error.why}" for error in errors),
            "\n        ".join(error.cure for error in errors),
        )
    if errors:
        raise errors[0]
    return found
