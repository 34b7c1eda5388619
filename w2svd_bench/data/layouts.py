"""Where the portrait sets of the field keep their clips and what they say of them.

Each layout follows what the set's authors publish; sources stand with each, and docs/data.md lists what could not be
confirmed. In every layout a caption file of the usual formats (`captions.read_records`) may take the place of the set's
own annotations.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2svd_bench.data.captions import (
    Entry,
    Found,
    by_name,
    find_videos,
    read_captions,
    read_json,
    read_text,
    stem,
    with_captions,
)
from w2svd_bench.data.video import VIDEO_SUFFIXES, Rejected
from w2svd_bench.errors import BenchError, unknown_name

Read = tuple[list[Entry], list[tuple[str, str]]]

# The sets without captions of their own: what every clip of theirs shows.
HDTF_CAPTION = "A portrait video of a person talking to the camera."
VFHQ_CAPTION = "A portrait video of a person talking in an interview."

CELEBV_HQ_FILE = "celebvhq_info.json"
# Folders of CelebV-Text's six kinds of text by how their names begin, in the order in which a caption joins them.
CELEBV_TEXT_KINDS = ("face", "action", "emotion", "light_dir", "light_int", "light_col")
# Where the authors' scripts keep whole, uncropped downloads.
RAW_FOLDERS = ("raw", "_videos_raw")


@dataclass(frozen=True)
class Layout:
    """How a set is laid out: one line for listings, and the function that reads it."""

    summary: str
    read: Callable[[Path, Path | None], Read]


def read_entries(videos: Path, captions: Path | None, layout: str) -> Read:
    """The clips of a set with their captions.

    Args:
        videos: the folder with the videos.
        captions: the caption file, or the set's annotations; None for what the layout looks for by itself.
        layout: a key of `LAYOUTS`.

    Returns:
        Entries sorted by id, and (id, reason), sorted too, of clips without a caption and captions without a clip.

    Raises:
        BenchError: the layout is unknown, a folder or file is missing (it says what was expected where), or nothing
            is left.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if not videos.is_dir():
        why = "it is a file" if videos.exists() else "there is no such folder"
        raise BenchError(f"videos can't be read from {videos}", why, "give the folder that holds the videos")
    if captions is not None and not captions.exists():
        raise BenchError(f"captions can't be read from {captions}", "there is no such file", "check the path")
    return LAYOUTS[layout].read(videos, captions)


def _plain(videos: Path, captions: Path | None) -> Read:
    return read_captions(videos, captions)


def _hdtf(videos: Path, captions: Path | None) -> Read:
    """HDTF (Zhang et al., CVPR 2021): NAME_INDEX.mp4, cut and cropped to the face; no captions are published.

    Source: github.com/MRzzm/HDTF, README.md ("Name the splitted clip as video name_clip index.mp4", 512 x 512) and
    download.py there, which writes SUBSET_NAME_000.mp4 and keeps whole videos in ``_videos_raw``.
    """
    clips = find_videos(videos, RAW_FOLDERS)
    cut = [clip for clip in clips if re.search(r"_\d+$", stem(clip))]
    if captions is not None:
        return read_captions(videos, captions, cut)
    found = Found()
    whole = "not named NAME_INDEX.mp4: a whole video, not a clip cut and cropped as HDTF's README says"
    found.rejected += [(stem(clip), whole) for clip in sorted(set(clips) - set(cut))]
    for clip in cut:
        found.add(Entry(stem(clip), clip, HDTF_CAPTION))
    return found.result(videos, "HDTF's clips NAME_INDEX.mp4, such as Radio11_0.mp4 or RD_Radio11_000.mp4")


def _vfhq(videos: Path, captions: Path | None) -> Read:
    """VFHQ (Xie et al., CVPRW 2022): a folder of images a clip, or a video file; no captions are published.

    Both are called ``Clip+ID+P0+C0+F100-200``: YouTube id, person, clip, frames. The rate of a folder of images stands
    in ``meta_info/CLIP.txt``, in the line that begins with FPS; meta_info lies in ``videos`` or beside it.

    Source: liangbinxie.github.io/projects/vfhq publishes the clips and meta_info.zip; that page could not be read. The
    folders of images are as a user of the authors' download describes them (github.com/xg-chu/GAGAvatar/issues/19), the
    names and lines of meta_info as three public scripts read them (github.com/yunyu/vfhq-downloader and two others).
    """
    clips = _vfhq_clips(videos)
    if not clips:
        why = "there is no folder and no video file there whose name begins with Clip+"
        raise BenchError(f"{videos} does not hold VFHQ", why, "expected: Clip+ID+P0+C0+F100-200/, one folder a clip")
    folders = [clip for clip in clips if (videos / clip).is_dir()]
    meta = next((path for path in (videos / "meta_info", videos.parent / "meta_info") if path.is_dir()), None)
    if folders and meta is None:
        raise BenchError(
            f"the frame rates of VFHQ's clips in {videos} are unknown",
            f"folders of images have none of their own, and there is no {videos / 'meta_info'} nor one beside {videos}",
            "unpack VFHQ's meta_info.zip there",
        )
    found = Found()
    rates: dict[str, float] = {}
    for clip in folders:
        try:
            rates[clip] = _vfhq_rate((meta or videos) / f"{Path(clip).name}.txt")
        except Rejected as error:
            found.rejected.append((clip, error.reason))
    usable = [clip for clip in clips if clip in rates or (videos / clip).is_file()]
    if captions is None:
        entries = [Entry(stem(clip), clip, VFHQ_CAPTION) for clip in usable]
    else:
        entries, rejected = read_captions(videos, captions, usable)
        entries = [one for one in entries if one.video in rates or (videos / one.video).is_file()]
        found.rejected += rejected
    for one in entries:
        found.add(Entry(one.id, one.video, one.caption, one.window, rates.get(one.video)))
    return found.result(videos, "folders of images Clip+.../ with meta_info/Clip+....txt, or videos Clip+....mp4")


def _vfhq_clips(videos: Path) -> list[str]:
    """Folders and video files called Clip+..., relative to ``videos``; the many images inside are not looked at."""
    clips = []
    for parent, folders, files in os.walk(videos, followlinks=True):
        inside = Path(parent).relative_to(videos)
        clips += [(inside / name).as_posix() for name in folders if name.startswith("Clip+")]
        videos_here = [name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        clips += [(inside / name).as_posix() for name in videos_here if name.startswith("Clip+")]
        folders[:] = [name for name in folders if not name.startswith(("Clip+", ".")) and name != "meta_info"]
    return sorted(clips)


def _vfhq_rate(path: Path) -> float:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rate = float(next(line for line in lines if line.startswith("FPS")).split()[-1])
    except OSError:
        raise Rejected(f"its frame rate is unknown: meta_info has no {path.name}") from None
    except (StopIteration, ValueError):
        raise Rejected(f"its frame rate is unknown: {path.name} in meta_info has no line FPS with a number") from None
    if not 0 < rate < math.inf:
        raise Rejected(f"its frame rate in meta_info is {rate:g}")
    return rate


def _celebv_hq(videos: Path, captions: Path | None) -> Read:
    """CelebV-HQ (Zhu et al., ECCV 2022): KEY.mp4, and the 83 attributes of every KEY in celebvhq_info.json.

    There are no sentences: a caption lists the attributes that the annotators saw, by the authors' names for them.

    Source: github.com/CelebV-HQ/CelebV-HQ, README.md for the file, download_and_process.py for the names (``processed``
    holds the clips, ``raw`` whole videos) and split_dataset.py, which sorts clips into folders by emotion.
    """
    info = captions
    if info is None:
        places = (videos / CELEBV_HQ_FILE, videos.parent / CELEBV_HQ_FILE)
        info = next((place for place in places if place.is_file()), None)
        if info is None:
            why = f"there is no {videos / CELEBV_HQ_FILE}, nor one beside {videos}"
            raise BenchError("CelebV-HQ's annotations were not found", why, "give them with --captions FILE")
    content = read_json(info) if info.suffix.lower() == ".json" else None
    if not isinstance(content, Mapping) or "clips" not in content:
        return read_captions(videos, info, find_videos(videos, RAW_FOLDERS))
    names = content.get("meta_info")
    if not isinstance(names, Mapping) or not isinstance(content["clips"], Mapping):
        why = "its meta_info and clips are not objects"
        raise BenchError(f"{info} is not CelebV-HQ's annotations", why, "take the file from CelebV-HQ's repository")
    found, texts = Found(), {}
    for key, clip in content["clips"].items():
        try:
            texts[str(key)] = _attributes(clip["attributes"], names)
        except (KeyError, TypeError, ValueError):
            found.rejected.append((str(key), f"its attributes in {info.name} are not complete"))
    bad = {name for name, _ in found.rejected}
    clips = {k: v for k, v in by_name(found, find_videos(videos, RAW_FOLDERS)).items() if k not in bad}
    with_captions(found, clips, texts, f"not in {info.name}")
    return found.result(videos, f"the clips KEY.mp4 that {info.name} names, cut and cropped (not those in raw/)")


def _attributes(attributes: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    """A caption of a clip's attributes: "A portrait video of a person. Appearance: young. Action: talk. ..."."""
    parts = ["A portrait video of a person."]
    for kind in ("appearance", "action"):
        labels = zip(names[f"{kind}_mapping"], attributes[kind], strict=True)
        seen = [str(label).lower().replace("_", " ") for label, present in labels if int(present)]
        parts += [f"{kind.capitalize()}: {', '.join(seen)}."] if seen else []
    emotion = attributes["emotion"]["labels"]
    felt = [emotion] if isinstance(emotion, str) else [one["emotion"] for one in emotion]
    parts += [f"Emotion: {', then '.join(felt)}."] if felt else []
    return " ".join(parts)


def _celebv_text(videos: Path, captions: Path | None) -> Read:
    """CelebV-Text (Yu et al., CVPR 2023): NAME.mp4, and NAME.txt in six folders of texts, one a kind.

    A text file holds several sentences, one a line; a caption joins the first of each kind. Texts lie in ``captions``,
    or in a folder ``texts`` in ``videos`` or beside it.

    Source: github.com/celebv-text/CelebV-Text, README.md for the six kinds and download_and_process.py for the names of
    the videos. The folders' names stand nowhere in it: they are recognised by their beginnings, as third parties list
    them (texts/action_dur, emotion, face40_details_new, light_color_temp, light_dir, light_intensity). Issue 5 there:
    the text of video NAME may be called NAME_2; it is taken where only one text fits.
    """
    if captions is not None and captions.is_file():
        return read_captions(videos, captions, find_videos(videos, RAW_FOLDERS))
    places = [captions] if captions is not None else [videos / "texts", videos.parent / "texts"]
    root = next((place for place in places if place.is_dir()), None)
    kinds = {kind: _folders(root, kind) for kind in CELEBV_TEXT_KINDS} if root is not None else {}
    if not any(kinds.values()):
        raise BenchError(
            "CelebV-Text's texts were not found",
            f"there are no folders face..., action..., emotion..., light_... in {' or '.join(map(str, places))}",
            "give the folder that holds the unpacked texts with --captions DIR",
        )
    twice = next((folders for folders in kinds.values() if len(folders) > 1), None)
    if twice:
        why = f"{' and '.join(folder.name for folder in twice)} are of the same kind"
        raise BenchError(f"CelebV-Text's texts in {root} are ambiguous", why, "leave one of them")
    found = Found()
    held = {kind: {path.stem for path in folders[0].glob("*.txt")} for kind, folders in kinds.items() if folders}
    clips = by_name(found, find_videos(videos, RAW_FOLDERS))
    names = set().union(*held.values())
    numbered: dict[str, list[str]] = {}
    for other in names - clips.keys():
        name, _, number = other.rpartition("_")
        if number.isdecimal():
            numbered.setdefault(name, []).append(other)
    texts = {}
    for name in clips:
        fitting = [name] if name in names else numbered.get(name, [])
        if len(fitting) == 1:
            have = [kinds[kind][0] / f"{fitting[0]}.txt" for kind in held if fitting[0] in held[kind]]
            texts[name] = " ".join(_first_line(path) for path in have)
            names.discard(fitting[0])
    found.rejected += [(name, "there is no such file among the videos") for name in names]
    with_captions(found, clips, texts, "no text of its name, or several")
    return found.result(videos, f"videos NAME.mp4 with NAME.txt in the folders of {root}")


def _folders(root: Path, begins: str) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name.startswith(begins))


def _first_line(path: Path) -> str:
    return next((line for line in read_text(path).splitlines() if line.strip()), "")


LAYOUTS: dict[str, Layout] = {
    "plain": Layout("videos with a caption file, or with NAME.txt beside NAME.mp4", _plain),
    "vfhq": Layout("VFHQ: folders of images Clip+.../, with meta_info/", _vfhq),
    "hdtf": Layout("HDTF: clips NAME_INDEX.mp4", _hdtf),
    "celebv-hq": Layout("CelebV-HQ: clips KEY.mp4, with celebvhq_info.json", _celebv_hq),
    "celebv-text": Layout("CelebV-Text: clips NAME.mp4, with folders of texts", _celebv_text),
}
