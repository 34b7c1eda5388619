"""Ten example videos with captions: portraits as H.264 files of different sizes and rates, to try things on."""

from __future__ import annotations

import csv
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from w2svd_bench.data.portraits import captions, clips
from w2svd_bench.errors import BenchError

DRAWN_FPS = 12  # frames a second that a portrait moves at
DRAWN = 29  # frames of each, so that a clip of 17 can be cut out
SPLIT = "features"  # clips that neither training nor evaluation of the miniature ever sees
# (height, width, frames a second): what cameras and sites give, small.
KINDS = ((96, 96, 24), (96, 128, 30), (120, 160, 25), (144, 176, 24), (96, 96, 60),
         (128, 96, 30), (160, 120, 24), (112, 112, 48), (180, 320, 24), (96, 160, 12))  # fmt: skip


def write_examples(folder: Path, report: Callable[[int, int], None] = lambda done, total: None) -> list[Path]:
    """Writes ``portrait0.mp4`` to ``portrait9.mp4`` and ``captions.csv``; returns what was written.

    Raises:
        BenchError: the folder exists already and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BenchError(f"{folder} is not empty", "nothing is overwritten", "name a folder that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    rows = [("video", "caption")]
    for number, (height, width, fps) in enumerate(KINDS):
        drawn = clips(SPLIT, [number], DRAWN, 96, 96)[0].numpy()
        path = folder / f"portrait{number}.mp4"
        encode(drawn, path, height, width, fps)
        rows.append((path.name, captions(SPLIT, [number])[0]))
        written.append(path)
        report(number + 1, len(KINDS))
    listing = folder / "captions.csv"
    with listing.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return [*written, listing]


def encode(frames_FHWC: np.ndarray, path: Path, height: int, width: int, fps: int) -> None:
    """Writes a clip drawn at 12 frames a second as H.264 at another size and rate, each frame shown at its time."""
    shown = [min(DRAWN - 1, round(k * DRAWN_FPS / fps)) for k in range(round(DRAWN * fps / DRAWN_FPS))]
    side = max(height, width)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in shown:
            square = Image.fromarray(frames_FHWC[number]).resize((side, side), Image.Resampling.BICUBIC)
            left, top = (side - width) // 2, (side - height) // 2
            picture = square.crop((left, top, left + width, top + height))
            for packet in stream.encode(av.VideoFrame.from_image(picture)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
