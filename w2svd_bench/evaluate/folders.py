"""Scores a folder of generated clips or images, against a folder of real ones where a metric needs them.

What is scored together:

- A folder holds files of one size. Where it does not, `Rules.resize_mixed` scales and crops the others to the size that
  most have.
- It holds clips of one rate: a net that takes 16 frames takes two seconds at 8 a second and less than one at 24, and no
  metric's choice of frames makes up for that. Numbers of frames may differ where all metrics are `CorpusMetric`s whose
  nets read each of these numbers and make as many vectors of each: their own choice of frames made them equal.
- Between the two folders counts, sizes, rates and numbers of frames may differ; a score's flags say so.
- A file that can't be read, or has no value of a metric, is counted and named; a score that can't be had at all has a
  reason in place of a value. What would spoil every score alike is an error before any network runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from w2svd_bench.data.files import has_rate
from w2svd_bench.data.stock import Stock, take_stock
from w2svd_bench.data.video import SAME_RATE
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.side import ClipValues, Rules, Side
from w2svd_bench.evaluate.store import FeatureStore
from w2svd_bench.metrics.base import ClipMetric, CorpusMetric, Dimension, Metric
from w2svd_bench.metrics.frechet import FrechetMetric
from w2svd_bench.metrics.statistics import Source, Statistics, read_statistics, write_statistics
from w2svd_bench.record import provenance
from w2svd_bench.uncertainty import cluster_bootstrap
from w2svd_bench.world import device_name

# An interval of 95 % then holds the truth in 92 %, and in 87 % with as many real clips as generated ones.
LARGE_REFERENCE = 4  # times as many clips as are generated: its own error hardly counts beside theirs
FIXED = "± without the reference's own error"  # the flag of a score against a smaller one


@dataclass(frozen=True)
class Row:
    """One number, or why there is none, and what a reader has to know to believe it.

    Attributes:
        metric: what tables call it.
        se: its standard error over the generated clips, the reference held fixed; None where one file, or one prompt,
            tells none.
        n, n_reference: clips that it was made of; n_reference is None for metrics without a reference, and where a file
            of statistics does not say.
        n_invalid, n_reference_invalid: files that had to be left out of it, or of the statistics that it is against.
        flags, infinity: as in `metrics.base.Score`.
        reason: why ``value`` is None.
        frames, size, fps, decoder: of the generated clips; frames is None where clips differ in it, and fps where it is
            not known.
    """

    metric: str
    value: float | None
    se: float | None
    n: int
    n_reference: int | None
    n_invalid: int
    n_reference_invalid: int
    flags: tuple[str, ...]
    infinity: float | None
    reason: str | None
    direction: str
    version: int
    id: str
    weights_sha256: str | None
    frames: int | None
    size: str
    fps: float | None
    decoder: str


@dataclass(frozen=True)
class Outcome:
    """All rows, in the order of the metrics asked for.

    Attributes:
        generated, reference: what was scored; reference is None where no metric needs one.
        invalid: by "generated" or "reference" and the name of a file, what is wrong with it.
        warnings: what a reader has to know, a line each.
        provenance: which code ran where and when.
    """

    results: tuple[Row, ...]
    generated: dict[str, Any]
    reference: dict[str, Any] | None
    invalid: dict[str, dict[str, str]]
    warnings: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def worst(self) -> int:
        """The most files that any score had to leave out of either folder."""
        return max(max(row.n_invalid, row.n_reference_invalid) for row in self.results)

    def document(self) -> dict[str, Any]:
        """For JSON; every number in it is finite."""
        return asdict(self)


def score_folders(
    generated: Path,
    reference: Path | None,
    metrics: Sequence[Metric],
    rules: Rules | None = None,
    prompts: Mapping[str, str] | None = None,
    store: FeatureStore | None = None,
    export: Path | None = None,
) -> Outcome:
    """Scores the files of one folder, against those of another.

    Args:
        generated: the folder to score.
        reference: a folder of real clips, or an npz file of statistics as pytorch-fid writes them, which only Fréchet
            distances can do with. None if no metric is a `CorpusMetric`.
        prompts: by file name; files of one prompt are never parted when uncertainty is estimated, and a prompt without
            its file is an invalid clip. None: every file stands for itself.
        store: where features and values of clips are kept; None: in the cache folder.
        export: an npz file to write the reference's statistics to, for a single Fréchet distance; not written where
            more of the reference's files have to be left out than `Rules.max_invalid`.

    Raises:
        BenchError: a folder holds nothing that can be read, mixed sizes or rates, or more than 1 % copies; clips differ
            in their number of frames and a metric can't do with that; a reference, a rate or a prompt is missing; a
            metric broke down.
    """
    rules, store = rules or Rules(), store if store is not None else FeatureStore()
    corpus = [metric for metric in metrics if isinstance(metric, CorpusMetric)]
    if corpus and reference is None:
        why = f"{', '.join(metric.name for metric in corpus)} compare two sets of clips"
        raise BenchError("there is nothing to compare with", why, "give a folder of real clips with --reference")
    _check_export(export, corpus, reference)
    ours, theirs, statistics = Side(_stock(generated, rules), rules, store, prompts), None, None
    if corpus and reference is not None:
        if reference.is_file():
            statistics = read_statistics(reference)
        else:
            theirs = Side(_stock(reference, rules), rules, store)
    sides = [ours] if theirs is None else [ours, theirs]
    _check_rate(rules, sides, metrics)
    _check_frames(ours.stock, metrics)
    if theirs is not None:
        _check_frames(theirs.stock, corpus)

    rows = _Scorer(ours, theirs, statistics).rows(metrics)
    unwritten = []
    if export is not None and theirs is not None:
        (metric,) = _frechet(corpus)
        reason = next(row.reason for row in rows if row.metric == metric.name)
        invalid = theirs.left_out(metric.net.id)
        if reason is not None:
            unwritten = [f"{export} is not written, since there is no {metric.name}: {reason}"]
        elif invalid > rules.max_invalid:
            told = f"{invalid} file(s) of {reference} have no features, and {rules.max_invalid} may be left out"
            unwritten = [f"{export} is not written: {told}"]
        else:
            found = metric.statistics(theirs.features(metric.net.id))
            write_statistics(export, replace(found, source=_source(theirs.stock, invalid)))
    return Outcome(
        results=tuple(rows),
        generated=ours.about(),
        reference=theirs.about() if theirs is not None else _about(reference, statistics),
        invalid={"generated": ours.invalid, "reference": {} if theirs is None else theirs.invalid},
        warnings=(
            *(line for side in sides for line in side.stock.warnings),
            *_shared(ours, theirs),
            *_incomplete(reference, statistics),
            *unwritten,
            *([f"{reference} is not looked at: no metric asked for needs it"] if reference and not corpus else []),
        ),
        provenance=provenance(device_name(rules.device)) | {"clips_at_a_time": rules.batch},
    )


@dataclass(frozen=True)
class _Scorer:
    """What rows are made from; ``theirs`` or ``statistics`` is the reference, if there is one."""

    ours: Side
    theirs: Side | None
    statistics: Statistics | None

    @property
    def sides(self) -> list[Side]:
        return [self.ours] if self.theirs is None else [self.ours, self.theirs]

    def rows(self, metrics: Sequence[Metric]) -> list[Row]:
        """Reads the files and scores them by each metric."""
        refused = {id(metric): self._refusal(metric) for metric in metrics if isinstance(metric, CorpusMetric)}
        nets = {
            metric.net.id: metric.features
            for metric in metrics
            if isinstance(metric, CorpusMetric) and refused[id(metric)] is None
        }
        values = {id(metric): ClipValues(metric, self.ours) for metric in metrics if isinstance(metric, ClipMetric)}
        with TemporaryDirectory(prefix="w2svd-bench-") as folder:
            wanted = {item.key: item for one in values.values() for item in one.missing}
            files = {key: Path(folder) / f"{key}.mp4" for key, item in wanted.items() if not item.plain_video}
            if self.theirs is not None:
                self.theirs.read("reading reference files", nets)
            # Files that are handed on as they are get decoded too: another program might patch up what is damaged.
            self.ours.read("reading generated files", nets, {key: files.get(key) for key in wanted})
            for one in values.values():
                one.score(files)
        rows: list[Row] = []
        for metric in metrics:
            if isinstance(metric, CorpusMetric):
                rows.append(self._compared(metric, refused[id(metric)]))
            elif isinstance(metric, ClipMetric):
                rows += [self._averaged(values[id(metric)], dimension) for dimension in metric.dimensions]
        return rows

    def _refusal(self, metric: CorpusMetric) -> str | None:
        """Why the metric can't be had, as far as that is known before any file is decoded."""
        for side in self.sides:
            for frames in side.stock.counts:
                reason = metric.refuses(frames, *side.stock.size)
                if reason is not None:
                    return reason if side is self.ours else f"of the reference: {reason}"
        if self.statistics is not None and not isinstance(metric, FrechetMetric):
            return "statistics are no reference for it: give a folder of real clips"
        return self._too_few(metric, [len({side.belongs_to(item) for item in side.items}) for side in self.sides])

    def _too_few(self, metric: CorpusMetric, counts: Sequence[int]) -> str | None:
        if min(counts) < 2:
            return f"a distance between sets needs two clips of different prompts in each, and there is {min(counts)}"
        if min(counts) < metric.least_clips and not self.ours.rules.allow_small:
            return (
                f"there are {min(counts)} clips of different prompts, and fewer than {metric.least_clips} tell "
                "nothing; --allow-small compares them all the same"
            )
        return None

    def _compared(self, metric: CorpusMetric, reason: str | None) -> Row:
        """The row of a metric that compares the folders."""
        net, flags = metric.net.id, metric.net.flags
        what = Dimension(metric.name, metric.direction, metric.version, metric.id, metric.weights_sha256)
        read = [side.items if reason is not None else side.read_by(net) for side in self.sides]
        counts = [len(items) for items in read]
        n_reference = counts[1] if self.statistics is None else self.statistics.clips
        if reason is None:  # files may have turned out unreadable
            distinct = [len(set(map(side.belongs_to, items))) for side, items in zip(self.sides, read, strict=True)]
            reason = self._too_few(metric, distinct)
        if reason is None:
            reference = self.statistics if self.theirs is None else self.theirs.features(net)
            try:
                # Only a Fréchet distance, which takes them, gets here with statistics.
                score = metric.compare(self.ours.features(net), reference)  # type: ignore[arg-type]
            except BenchError as error:
                reason = f"{error.what}: {error.why}"
            else:
                if math.isfinite(score.value) and math.isfinite(score.se):
                    flags = (*flags, *score.flags, *self._error_of_reference(*counts), *self._differences())
                    return self._row(what, net, counts[0], n_reference, flags, score.value, score.se, score.infinity)
                reason = f"the metric gives {score.value} +- {score.se}"
        return self._row(what, net, counts[0], n_reference, flags, reason=reason)

    def _error_of_reference(self, n: int, n_reference: int | None = None) -> list[str]:
        """The flag of a standard error that says less than it seems to: the grid's methods share their reference, and
        what it errs by cancels between them, while a folder is as often held against another one by itself.
        """
        if self.statistics is not None:  # where only vectors are counted, clips are at most as many
            n_reference = self.statistics.clips or self.statistics.n
        return [FIXED] if n_reference is not None and n_reference < LARGE_REFERENCE * n else []

    def _averaged(self, values: ClipValues, what: Dimension) -> Row:
        """The row of a number of each file: the mean over files, with a bootstrap over prompts where there are two."""
        if what.name in values.refused:
            return self._row(what, what.name, len(self.ours.items), None, what.flags, reason=values.refused[what.name])
        known = values.known(what.name)
        if not known:
            reasons = Counter(
                self.ours.spoilt[what.name].values() if self.ours.items else self.ours.unreadable.values()
            )
            told = "; ".join(f"{count} file(s): {reason}" for reason, count in reasons.most_common(3))
            return self._row(what, what.name, 0, None, what.flags, reason=told)
        numbers = [value for _, value in known]
        keys = [self.ours.belongs_to(item) for item, _ in known]
        se = cluster_bootstrap(numbers, keys).se if len(set(keys)) > 1 else None
        rewritten = sum(not item.plain_video for item, _ in known)
        flags = (*what.flags, *([f"{rewritten} file(s) rewritten as lossless H.264"] if rewritten else []))
        return self._row(what, what.name, len(known), None, flags, math.fsum(numbers) / len(numbers), se)

    def _row(
        self,
        what: Dimension,
        left_out_of: str,
        n: int,
        n_reference: int | None,
        flags: Sequence[str],
        value: float | None = None,
        se: float | None = None,
        infinity: float | None = None,
        reason: str | None = None,
    ) -> Row:
        stock = self.ours.stock
        sources = [side.stock.resized for side in self.sides]
        n_reference_invalid = 0 if self.theirs is None else self.theirs.left_out(left_out_of)
        if self.statistics is not None and self.statistics.source is not None:
            sources.append(self.statistics.source.resized)
            n_reference_invalid = self.statistics.source.invalid
        resized = [f"{count} file(s) resized" for count in sources if count]
        return Row(
            metric=what.name,
            value=value,
            se=se,
            n=n,
            n_reference=n_reference,
            n_invalid=self.ours.left_out(left_out_of),
            n_reference_invalid=0 if n_reference is None else n_reference_invalid,
            flags=tuple(dict.fromkeys([*flags, *resized])),
            infinity=infinity,
            reason=reason,
            direction=what.direction,
            version=what.version,
            id=what.id,
            weights_sha256=what.weights_sha256,
            frames=stock.counts[0] if len(stock.counts) == 1 else None,
            size=stock.shown_size,
            fps=stock.fps,
            decoder=stock.decoders,
        )

    def _differences(self) -> list[str]:
        """Flags for what differs between the generated clips and the reference, as far as that is known."""
        ours = _source(self.ours.stock)
        theirs = self.statistics.source if self.statistics is not None else None
        if self.theirs is not None:
            theirs = _source(self.theirs.stock)
        if theirs is None:
            return []
        told = []
        if ours.frames != theirs.frames:
            told.append(f"frames {_span(ours.frames)} vs {_span(theirs.frames)}")
        if ours.size != theirs.size:
            told.append(f"size {_shown(ours.size)} vs {_shown(theirs.size)}")
        if ours.fps and theirs.fps and max(ours.fps, theirs.fps) > min(ours.fps, theirs.fps) * (1 + SAME_RATE):
            told.append(f"fps {ours.fps:g} vs {theirs.fps:g}")
        return told


def _source(stock: Stock, invalid: int = 0) -> Source:
    return Source(tuple(stock.counts), stock.size, stock.fps, invalid, stock.resized)


def _about(file: Path | None, statistics: Statistics | None) -> dict[str, Any] | None:
    """What a file of statistics says of its clips, named as in `Side.about`."""
    if statistics is None:
        return None
    about: dict[str, Any] = {"statistics": str(file), "n": statistics.clips}
    source = statistics.source
    if source is not None:
        told = {"n_invalid": source.invalid, "frames": source.frames, "size": _shown(source.size), "fps": source.fps}
        about |= told
    return about


def _incomplete(file: Path | None, statistics: Statistics | None) -> list[str]:
    """A warning where statistics are of fewer clips than their folder had files."""
    if statistics is None or statistics.source is None or not statistics.source.invalid:
        return []
    return [f"{file} was made without {statistics.source.invalid} file(s) of its folder, which could not be read"]


def _stock(folder: Path, rules: Rules) -> Stock:
    return take_stock(folder, rules.fps, rules.resize_mixed, partial(rules.report, f"looking through {folder.name}"))


def _frechet(metrics: Sequence[Metric]) -> list[FrechetMetric]:
    return [metric for metric in metrics if isinstance(metric, FrechetMetric)]


def _check_export(export: Path | None, corpus: Sequence[CorpusMetric], reference: Path | None) -> None:
    if export is None:
        return
    what = f"no statistics can be written to {export}"
    if len(_frechet(corpus)) != 1:
        names = ", ".join(metric.name for metric in _frechet(corpus)) or "none"
        why = f"they are those of one Fréchet distance's net, and of such distances are asked for: {names}"
        raise BenchError(what, why, "ask for one of fid, fid_clean, fvd, ... at a time")
    if reference is None or not reference.is_dir():
        raise BenchError(what, "they are made of the reference folder", "give a folder with --reference")
    if export.exists():
        raise BenchError(what, "the file exists, and statistics are never overwritten", "name another file")


def _check_rate(rules: Rules, sides: Sequence[Side], metrics: Sequence[Metric]) -> None:
    """A rate has to be known where clips are handed to other programs, and is given only where files have none."""
    if rules.fps is not None and all(has_rate(item.path) for side in sides for item in side.stock.items):
        why = "all files are videos, which have rates of their own"
        raise BenchError(f"--fps {rules.fps:g} applies to nothing", why, "leave it out")
    asked = [metric.name for metric in metrics if isinstance(metric, ClipMetric)]
    if asked and any(item.shape.fps is None for item in sides[0].stock.items):
        raise BenchError(
            f"{', '.join(asked)} can't score {sides[0].stock.folder}",
            "videos are scored, and the rate of images and arrays is not known",
            "give it with --fps",
        )


def _check_frames(stock: Stock, metrics: Sequence[Metric]) -> None:
    """Raises `BenchError` where numbers of frames differ and a metric can't do with that."""
    if len(stock.counts) == 1:
        return
    for metric in metrics:
        why = "it scores clips one by one, and longer ones score otherwise" if isinstance(metric, ClipMetric) else None
        if isinstance(metric, CorpusMetric):
            why = next(filter(None, (metric.refuses(count, *stock.size) for count in stock.counts)), None)
        if why is not None:
            frames = Counter(item.shape.frames for item in stock.items)
            raise BenchError(
                f"the clips of {stock.folder} have different numbers of frames: "
                + ", ".join(f"{count} of {number}" for number, count in frames.most_common(8)),
                f"{metric.name} can't do with that: {why}",
                "score clips of one length at a time",
            )


def _shared(ours: Side, theirs: Side | None) -> list[str]:
    """A warning where files are on both sides."""
    reference = {item.sha256 for item in theirs.stock.items} if theirs is not None else set()
    same = [item.path.name for item in ours.stock.items if item.sha256 in reference]
    if not same:
        return []
    told = ", ".join(same[:5]) + (", ..." if len(same) > 5 else "")
    return [f"{len(same)} of the {len(ours.stock.items)} generated files are in the reference folder too: {told}"]


def _span(counts: Sequence[int]) -> str:
    return "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
