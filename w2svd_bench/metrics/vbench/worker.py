# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "vbench==0.1.5",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "numpy==1.26.4",
#     "opencv-python==4.11.0.86",
#     "decord==0.6.0",
#     "pillow==13.0.0",
#     "openai-clip==1.0.1",
#     "pyiqa==0.1.10",
#     "timm==1.0.12",
#     "einops==0.8.2",
#     "scipy==1.17.1",
#     "transformers==4.33.2",
#     "setuptools==80.10.2",
# ]
# [tool.uv]
# constraint-dependencies = [
#     "absl-py==2.5.1", "addict==2.4.0", "boto3==1.44.5", "cython==3.3.1", "easydict==1.14", "facexlib==0.3.0",
#     "fairscale==0.4.13", "filterpy==2.0.0", "ftfy==6.3.1", "future==1.0.0", "fvcore==0.1.5.post20221221",
#     "huggingface-hub==0.36.2", "imageio==2.38.1", "imgaug==0.4.0", "iopath==0.1.10", "llvmlite==0.50.0",
#     "lmdb==3.0.0", "lvis==0.5.3", "matplotlib==3.11.2", "numba==0.68.1", "omegaconf==2.4.0", "packaging==26.3",
#     "pandas==3.0.6", "protobuf==7.36.2", "pycocoevalcap==1.2", "pycocotools==2.0.11", "pyyaml==6.0.3",
#     "regex==2026.11.15", "requests==2.34.2", "safetensors==0.8.0", "scikit-image==0.26.0", "scikit-learn==1.9.1",
#     "shapely==2.2.0", "tensorboard==2.21.0", "tifffile==2026.3.3", "tokenizers==0.13.3", "tqdm==4.70.1",
#     "urllib3==2.8.0", "wheel==0.48.0", "yacs==0.1.8", "yapf==0.43.0",
# ]
# ///
"""Runs the real VBench classes for another process: a program for an environment of its own, imported by nobody.

    python worker.py FOLDER
    python worker.py --versions

It stays alive, and keeps the networks it has loaded. A line on its stdin names a request, a JSON file; it answers with
lines of JSON on its stdout: ``{"progress": [done, total]}`` as often as it likes, then ``{"done": true}`` when the
request's ``result`` file is written, or ``{"failed": "..."}`` when nothing can be scored. Its first line says hello,
with the versions of the packages that move numbers. All that VBench prints goes to stderr. FOLDER is for its files;
whoever started it removes it. The second form only prints the versions. What is changed of VBench stands in `tame.py`.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from tame import I2V, Breakdown, Suite, no_network

PROTOCOL = 1
PACKAGES = ("vbench", "torch", "torchvision", "numpy", "opencv-python", "decord", "pillow", "openai-clip", "pyiqa",
            "timm", "einops", "scipy", "transformers")  # fmt: skip
PROMPTED = ("temporal_style", "overall_consistency")


class Progress:
    """Counts the clips of a request, each once for each dimension, however often VBench looks at them."""

    def __init__(self, tell: Callable[[int, int], None], total: int) -> None:
        self._tell, self._total, self._before, self._now, self._most = tell, total, 0, 0, 0

    def begin(self, clips: int) -> None:
        """The next dimension has this many clips, and the one before is done."""
        self._before, self._now, self._most = self._before + self._most, 0, clips
        self._tell(self._before, self._total)

    def tick(self) -> None:
        """One clip is scored."""
        if self._now < self._most:
            self._now += 1
            self._tell(self._before + self._now, self._total)


def answer(request: Mapping[str, Any], suite: Suite, folder: Path, tell: Callable[[int, int], None]) -> dict[str, Any]:
    """The result of a request: by dimension the value of each of its clips in order, or the reason why it has none.

    ``aggregate`` is VBench's own mean over the clips that have a value; None where they had to be scored one by one.
    """
    import torch

    suite.link_weights(request["weights"])
    clips: Sequence[Mapping[str, Any]] = request["clips"]
    progress = Progress(tell, sum(len(rows) for rows in request["dimensions"].values()))
    suite.tick = progress.tick
    unreadable = {row: reason for row, clip in enumerate(clips) if (reason := why_unreadable(clip)) is not None}
    scored: dict[str, Any] = {}
    for dimension, rows in request["dimensions"].items():
        progress.begin(len(rows))
        start = time.monotonic()
        reasons = {row: unreadable[row] for row in rows if row in unreadable}
        readable = [row for row in rows if row not in reasons]
        with torch.no_grad():  # VBench forgets it in one dimension, which then keeps every activation
            values, aggregate = score(dimension, readable, reasons, request, suite, folder)
        scored[dimension] = {
            "values": [values.get(row) for row in rows],
            "reasons": [None if row in values else reasons[row] for row in rows],
            "aggregate": aggregate if values else None,
            "seconds": time.monotonic() - start,
        }
    progress.begin(0)
    return {"versions": versions(), "dimensions": scored}


def score(
    dimension: str,
    rows: Sequence[int],
    reasons: dict[int, str],
    request: Mapping[str, Any],
    suite: Suite,
    folder: Path,
) -> tuple[dict[int, float], float | None]:
    """The values of the clips of ``rows`` and VBench's own aggregate; clips without a value get a reason.

    VBench lets one bad clip spoil all others: then they are scored one by one.
    """
    try:
        suite.module(dimension)
    except Exception as error:
        raise Breakdown(f"VBench's {dimension} can't be loaded: {type(error).__name__}: {error}") from error
    names = staged_names(dimension, rows, reasons, request["clips"], suite)
    if not names:
        return {}, None
    try:
        raw, aggregate = evaluate(dimension, names, request, suite, folder)
    except Exception as error:
        check_alive(error)
        if len(names) == 1:
            raw, aggregate = {}, None
            reasons[next(iter(names))] = in_short(error)
        else:
            values: dict[int, float] = {}
            for row in names:
                values.update(score(dimension, [row], reasons, request, suite, folder)[0])
            return values, None
    for row in names:
        if row not in raw:
            reasons.setdefault(row, "VBench dropped the clip without saying why")
        elif not math.isfinite(raw[row]):
            reasons[row] = f"VBench gave no number ({raw[row]})"
    return {row: value for row, value in raw.items() if row not in reasons}, aggregate


def staged_names(
    dimension: str, rows: Iterable[int], reasons: dict[int, str], clips: Sequence[Mapping[str, Any]], suite: Suite
) -> dict[int, str]:
    """The file name under which VBench gets to see each clip: our own, because it reads meaning into names."""
    names = {}
    for row in rows:
        suffix = ".gif" if clips[row]["path"].lower().endswith(".gif") else ".mp4"  # it goes by them, decoders don't
        stem = "clip"
        if dimension == "human_action":
            # The action is read from the file name, up to a hyphen and behind "person is "; it can only be one of
            # the 400 of Kinetics, and those are safe as names.
            stem = clips[row]["prompt"].lower().split("-")[0].split("person is ")[-1].split("_")[0].strip(" .")
            if stem not in suite.module(dimension).build_dict().values():
                reasons[row] = "the prompt is not 'a person is ...' with one of the 400 actions of Kinetics"
                continue
        names[row] = f"{stem}-{row}{suffix}"
    return names


def evaluate(
    dimension: str, names: Mapping[int, str], request: Mapping[str, Any], suite: Suite, folder: Path
) -> tuple[dict[int, float], float]:
    """What the VBench class gives for one dimension of the named clips, by their rows, and its aggregate."""
    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    videos = stage / "videos"
    videos.mkdir(parents=True)
    for row, name in names.items():
        (videos / name).symlink_to(request["clips"][row]["path"])
    options: dict[str, Any] = {"dimension_list": [dimension], "local": True, "read_frame": request["read_frame"]}
    if dimension in I2V:
        # Images come by way of the list of standard prompts; the name of an image may be an absolute path.
        listed = [
            {
                "prompt_en": name.rpartition("-")[0],
                "dimension": [dimension],
                "image_name": request["clips"][row]["image"],
                "video_list": [str(videos / name)],
            }
            for row, name in names.items()
        ]
        runner = _listed(importlib.import_module("vbench2_beta_i2v").VBenchI2V, listed)
    else:
        runner = suite.module("vbench").VBench
        options["mode"] = "custom_input"
        options["imaging_quality_preprocessing_mode"] = request["imaging_quality_preprocessing_mode"]
        if dimension in PROMPTED:
            options["prompt_list"] = {name: request["clips"][row]["prompt"] for row, name in names.items()}
    runner(request["device"], "", str(stage)).evaluate(str(videos), "ours", **options)
    aggregate, results = json.loads((stage / "ours_eval_results.json").read_text("utf-8"))[dimension]
    by_name = {Path(one["video_path"]).name: float(one["video_results"]) for one in results}
    return {row: by_name[name] for row, name in names.items() if name in by_name}, float(aggregate)


def _listed(base: type, listed: list[dict[str, Any]]) -> type:
    """The VBench class with a ready list of clips: `VBenchI2V` of the wheel can't make one of custom images."""

    class Listed(base):
        def build_full_info_json(self, videos_path: str, name: str, *_: Any, **__: Any) -> str:
            path = Path(self.output_path) / f"{name}_full_info.json"
            path.write_text(json.dumps(listed), "utf-8")
            return str(path)

    return Listed


def why_unreadable(clip: Mapping[str, Any]) -> str | None:
    """Why a clip can't be scored at all: a file that is cut or broken would be scored by what is left of it."""
    import cv2

    try:
        with open(clip["path"], "rb"):
            pass
    except OSError as error:
        return f"the file can't be opened ({error.strerror})"
    video = cv2.VideoCapture(clip["path"])
    frames = 0
    while video.grab():
        frames += 1
    video.release()
    return None if frames == clip["frames"] else f"OpenCV reads {frames} of its {clip['frames']} frames"


def check_alive(error: Exception) -> None:
    """Raises `Breakdown` for an error that the next clip would meet, too."""
    import torch

    if isinstance(error, Breakdown):
        raise error
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise Breakdown(f"out of memory: {error}") from error
    if isinstance(error, NotImplementedError) and "UnImplemented dimension" in str(error):
        raise Breakdown(str(error)) from error


def in_short(error: Exception) -> str:
    """One line for an error that a clip met, the same for all clips that met it."""
    text = (str(error).strip().splitlines() or [""])[0]
    text = re.sub(r"(?<![\w/:.])(?:[A-Za-z]:[\\/]|~?/)(?:[^\s'\"<>|:]*[\\/])?", "", text)  # of one machine: names stay
    return f"{type(error).__name__}: {text}"[:300] if text else f"VBench could not read it ({type(error).__name__})"


def versions() -> dict[str, str | None]:
    """The installed version of each package that moves numbers; None for a missing one."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def main(folder: Path) -> None:
    """Serves requests until stdin ends."""
    voice: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what VBench and its libraries print, from Python or from C

    def say(**message: Any) -> None:
        voice.write(json.dumps(message, allow_nan=False) + "\n")
        voice.flush()

    no_network(folder)
    suite = Suite(folder)
    say(hello=PROTOCOL, python=sys.version.split()[0], versions=versions())
    for line in sys.stdin:
        try:
            request = json.loads(Path(line.rstrip("\n")).read_text("utf-8"))
            result = answer(request, suite, folder, lambda done, total: say(progress=[done, total]))
            Path(request["result"]).write_text(json.dumps(result, allow_nan=False), "utf-8")
        except Exception as error:
            traceback.print_exc()
            say(failed=str(error) if isinstance(error, Breakdown) else f"{type(error).__name__}: {error}")
        else:
            say(done=True)


if __name__ == "__main__":
    if sys.argv[1] == "--versions":
        print(json.dumps(versions()))
    else:
        main(Path(sys.argv[1]))
