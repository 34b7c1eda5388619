"""Reads captions: which video says what, from one file in a usual format or from a text file beside each video.

The formats are those of the field's trainers: a table with a column for the video and one for its caption (Hugging
Face's ``metadata.csv`` and ``.jsonl``, FastVideo's ``videos2caption.json``), and two parallel text files
(finetrainers' ``prompts.txt`` beside ``videos.txt``).
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from w2svd_bench.data.video import VIDEO_SUFFIXES, Rejected
from w2svd_bench.errors import BenchError

# The first of these that a table has is taken.
VIDEO_COLUMNS = ("video", "file", "file_name", "path", "video_path")
CAPTION_COLUMNS = ("caption", "text", "prompt", "cap")
FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".txt")
# Names of the list of videos that goes with a plain list of captions, as in finetrainers.
LISTS_OF_VIDEOS = ("videos.txt", "video.txt")


@dataclass(frozen=True)
class Entry:
    """One clip to cut.

    Args:
        id: unique; the path of the video without its suffix, and the window if there is one.
        video: a file, or a folder of numbered images, relative to the folder of videos, with forward slashes.
        caption: one line, not empty.
        window: (start, end) in seconds, the part of the video that the caption speaks of; None for all of it.
        fps: frames a second of a folder of images; None for a video file, which has its own.
    """

    id: str
    video: str
    caption: str
    window: tuple[float, float] | None = None
    fps: float | None = None


@dataclass
class Found:
    """Gathers entries and what could not become one, each with its id and the reason."""

    entries: dict[str, Entry] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        if not entry.caption:
            self.rejected.append((entry.id, "its caption is empty"))
        elif entry.id in self.entries:
            self.rejected.append(
                (entry.id, f"named twice: {self.entries[entry.id].video} was taken, {entry.video} not")
            )
        else:
            self.entries[entry.id] = entry

    def result(self, videos: Path, expected: str) -> tuple[list[Entry], list[tuple[str, str]]]:
        """Entries and rejections, both sorted by id, so that the order does not depend on a file's format.

        Raises:
            BenchError: not one entry is left; ``expected`` says what should have been there.
        """
        if not self.entries:
            reasons = "".join(f"\n        {name}: {reason}" for name, reason in sorted(self.rejected)[:5])
            raise BenchError(
                f"no clip in {videos} has both a video and a caption",
                f"of {len(self.rejected)} names, none could be used{reasons}",
                f"expected: {expected}",
            )
        return [self.entries[name] for name in sorted(self.entries)], sorted(self.rejected)


def find_videos(folder: Path, skip: Sequence[str] = ()) -> list[str]:
    """All video files in a folder and below, relative to it, sorted.

    Hidden ones, and folders whose name is in ``skip``, are left out.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        inside = Path(parent).relative_to(folder)
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                found.append((inside / name).as_posix())
    return sorted(found)


def stem(video: str) -> str:
    """The path of a video without its suffix; a folder of images has none, whatever dots its name holds."""
    path = PurePosixPath(video)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else str(path)


def one_line(caption: str) -> str:
    """A caption without line breaks and runs of spaces."""
    return " ".join(caption.split())


def read_captions(
    videos: Path, captions: Path | None, clips: Sequence[str] | None = None
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The clips of a folder with their captions.

    Args:
        videos: the folder; its subfolders belong to it.
        captions: a caption file (see `read_records` for the formats), or None for a NAME.txt beside each NAME.mp4. Its
            names are relative to ``videos``, or to the caption file's own folder, with or without suffix.
        clips: what there is in ``videos``, relative to it; None for all video files.

    Returns:
        Entries sorted by id, and (id, reason) of everything else that the file names or the folder holds.

    Raises:
        BenchError: the caption file can't be read or has no column to use, or not one video has a caption.
    """
    clips = find_videos(videos) if clips is None else clips
    found = Found()
    if captions is None:
        for clip in clips:
            _add_sidecar(found, videos, clip)
        tables = [name for name in ("metadata.csv", "metadata.jsonl") if (videos / name).is_file()]
        hint = f", or --captions {videos / tables[0]}" if tables else ", or a caption file, --captions FILE"
        return found.result(videos, f"a text file NAME.txt beside each video NAME.mp4{hint}")
    named = set()
    names = _Names(videos, captions.parent, clips)
    for record in read_records(captions):
        name = str(record["video"])
        try:
            video = names.find(record["video"])
            named.add(video)
            name = stem(video)
            found.add(_entry(record, video, is_folder=(videos / video).is_dir()))
        except Rejected as error:
            found.rejected.append((name, error.reason))
    found.rejected += [(stem(clip), f"no caption in {captions.name}") for clip in clips if clip not in named]
    return found.result(videos, f"names in {captions.name} that are paths relative to {videos}")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a caption file as {"video", "caption"} and, where given, "start", "end" (seconds) and "fps".

    Formats, by suffix: ``.csv`` and ``.tsv`` with a header; ``.json``, a list of objects or a mapping of videos to
    captions; ``.jsonl``, an object a line; ``.txt``, lines of NAME|caption or NAME<TAB>caption, or captions alone with
    the names in a ``videos.txt`` beside. Of a list of captions the first is taken.

    Raises:
        BenchError: missing, of another suffix or format, or without a column for the video or the caption.
    """
    readers = {".csv": _read_table, ".tsv": _read_table, ".json": _read_json, ".jsonl": _read_jsonl, ".txt": _read_txt}
    if path.suffix.lower() not in readers:
        why = f"its name ends in {path.suffix or 'nothing'!s}; known are {', '.join(FORMATS)}"
        raise BenchError(f"caption file {path} can't be read", why, "convert it to one of these")
    records = readers[path.suffix.lower()](path)
    if not records:
        raise BenchError(f"caption file {path} is empty", "it holds no line with a video", "check the file")
    return [_normal(record, path) for record in records]


def read_text(path: Path) -> str:
    """A UTF-8 text file; raises `BenchError` where it is missing or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BenchError(f"{path} can't be read", error.strerror or "unreadable", "check the path") from error
    except UnicodeDecodeError as error:
        raise BenchError(f"{path} can't be read", "it is not UTF-8 text", "convert it to UTF-8") from error


def read_json(path: Path) -> Any:
    """A JSON file; raises `BenchError` where it is missing or no JSON."""
    return _parsed(read_text(path), str(path))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        why = f"{error.msg} (line {error.lineno}, column {error.colno})"
        raise BenchError(f"{where} is not valid JSON", why, "mend it") from error


def _read_table(path: Path) -> list[dict[str, Any]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    return list(csv.DictReader(read_text(path).splitlines(keepends=True), delimiter=delimiter))


def _read_json(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    if isinstance(content, Mapping):
        return [{"video": k, **v} if isinstance(v, Mapping) else {"video": k, "caption": v} for k, v in content.items()]
    return _objects(content, path)


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    return _objects([_parsed(line, f"line {number} of {path}") for number, line in lines], path)


def _read_txt(path: Path) -> list[dict[str, Any]]:
    lines = read_text(path).splitlines()
    listed = next((path.with_name(name) for name in LISTS_OF_VIDEOS if path.with_name(name).is_file()), None)
    if listed is not None and listed != path:
        names = [name for name in read_text(listed).splitlines() if name.strip()]
        lines = lines[: len(lines) - next((n for n, line in enumerate(reversed(lines)) if line.strip()), 0)]
        if len(names) != len(lines):
            why = f"{path.name} has {len(lines)} lines and {listed.name} beside it has {len(names)}"
            raise BenchError(f"caption file {path} can't be used", why, "give both a line for each video")
        return [{"video": name.strip(), "caption": line} for name, line in zip(names, lines, strict=True)]
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        separator = next((one for one in ("\t", "|") if one in line), None)
        if separator is None:
            why = f"line {number} has neither a tab nor a | between the name and the caption: {line[:60]!r}"
            cure = f"write NAME|caption, or the names alone into {path.with_name(LISTS_OF_VIDEOS[0])}"
            raise BenchError(f"caption file {path} can't be read", why, cure)
        name, _, caption = line.partition(separator)
        records.append({"video": name.strip(), "caption": caption})
    return records


def _objects(content: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(one, Mapping) for one in content):
        why = "it holds neither a list of objects nor a mapping of videos to captions"
        cure = 'write [{"video": "a.mp4", "caption": "..."}, ...]'
        raise BenchError(f"caption file {path} can't be used", why, cure)
    return [dict(one) for one in content]


def _normal(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A record with the keys ``video`` and ``caption``, whatever the file calls them."""
    known = {str(key).strip().lower(): value for key, value in record.items() if key is not None}
    normal = {key: known.get(key) for key in ("start", "end", "fps")}
    for key, columns in (("video", VIDEO_COLUMNS), ("caption", CAPTION_COLUMNS)):
        column = next((one for one in columns if one in known), None)
        if column is None:
            raise BenchError(
                f"caption file {path} has no column for the {key}",
                f"its columns are {', '.join(known) or '(none)'}; one of {', '.join(columns)} is needed",
                f"rename the column that holds the {key} to {columns[0]!r}",
            )
        normal[key] = known[column]
    return normal


class _Names:
    """Finds what a caption file means by a name."""

    def __init__(self, videos: Path, base: Path, clips: Sequence[str]) -> None:
        self.videos, self.base = Path(os.path.abspath(videos)), Path(os.path.abspath(base))
        self.clips = set(clips)
        self.by_stem: dict[str, list[str]] = {}
        for clip in clips:
            self.by_stem.setdefault(stem(clip), []).append(clip)

    def find(self, name: object) -> str:
        """The path relative to the videos; raises `Rejected` where there is none, or more than one."""
        if not isinstance(name, str) or not name.strip():
            raise Rejected("its name is no text")
        for folder in (self.videos, self.base):  # an absolute name stands for itself in both
            path = Path(os.path.abspath(folder / name.strip()))
            if not path.is_relative_to(self.videos) or path == self.videos:
                continue
            inside = path.relative_to(self.videos).as_posix()
            if inside in self.clips or path.is_dir():
                return inside
            same = self.by_stem.get(inside, [])
            if len(same) > 1:
                raise Rejected(f"it can be any of {', '.join(same)}: add the suffix")
            if same:
                return same[0]
        raise Rejected("there is no such file among the videos")


def _entry(record: Mapping[str, Any], video: str, is_folder: bool) -> Entry:
    caption = record["caption"]
    if isinstance(caption, list):
        caption = next((one for one in caption if isinstance(one, str) and one.strip()), "")
    if caption is not None and not isinstance(caption, str):
        raise Rejected(f"its caption is no text but {type(caption).__name__}")
    window, name = _window(record["start"], record["end"]), stem(video)
    if window is not None:
        name = f"{name}@{window[0]:g}-{window[1]:g}"
    fps = _number(record["fps"], "fps") if is_folder else None
    return Entry(name, video, one_line(caption or ""), window, fps)


def _window(start: Any, end: Any) -> tuple[float, float] | None:
    first, last = _number(start, "start"), _number(end, "end")
    if first is None and last is None:
        return None
    if first is None or last is None or not 0 <= first < last:
        raise Rejected(f"from {start} to {end} s is no window: both are needed, and in this order")
    return first, last


def _number(value: Any, name: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Rejected(f"its {name} is no number: {value!r}")
    return number


def _add_sidecar(found: Found, videos: Path, clip: str) -> None:
    path = videos / f"{stem(clip)}.txt"
    if not path.is_file():
        found.rejected.append((stem(clip), f"no caption beside it: {path.name} is missing"))
        return
    try:
        found.add(Entry(stem(clip), clip, one_line(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError):
        found.rejected.append((stem(clip), f"its caption {path.name} is not UTF-8 text"))


def with_captions(found: Found, clips: Mapping[str, str], texts: Mapping[str, str], missing: str) -> None:
    """Adds clips ({name: path}) with the text of the same name; both sides without the other are rejected."""
    for name, clip in clips.items():
        if name in texts:
            found.add(Entry(stem(clip), clip, one_line(texts[name])))
        else:
            found.rejected.append((stem(clip), missing))
    found.rejected += [(name, "there is no such file among the videos") for name in texts if name not in clips]


def by_name(found: Found, clips: Iterable[str]) -> dict[str, str]:
    """Clips by the last part of their stems, which must differ; the second of two is rejected."""
    named: dict[str, str] = {}
    for clip in clips:
        name = PurePosixPath(stem(clip)).name
        if name in named:
            found.rejected.append((stem(clip), f"named twice: {named[name]} was taken, {clip} not"))
        else:
            named[name] = clip
    return named
