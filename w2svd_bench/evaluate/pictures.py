"""Pictures of clips: contact sheets, GIFs and mp4 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from w2svd_bench.data.video import Frames, fit
from w2svd_bench.errors import BenchError

MARGIN, LABEL = 4, 14
# Pixels of a frame's longer side on a sheet: up to the first it is drawn twice as large, above the second it is shrunk.
SMALL, LARGE = 128, 256


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], path: Path, every: int = 4) -> Path:
    """Writes a PNG with one row a clip: its label, then every ``every``-th frame.

    Frames of up to 128 pixels are drawn twice as large, pixel by pixel; those above 256 are shrunk to 256.

    Args:
        rows: (label, uint8 frames (F, H, W, 3)) in order; an empty label draws none.
    """
    frames, height, width, _ = rows[0][1].shape
    shown = range(0, frames, every)
    longer = max(height, width)
    scale = 2.0 if longer <= SMALL else min(1.0, LARGE / longer)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    cell_w, cell_h = size[0] + MARGIN, size[1] + MARGIN + LABEL
    sheet = Image.new("RGB", (cell_w * len(shown) + MARGIN, cell_h * len(rows) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, clip) in enumerate(rows):
        top = MARGIN + row * cell_h
        draw.text((MARGIN, top), label, fill="black")
        for column, frame in enumerate(shown):
            picture = Image.fromarray(clip[frame]).resize(size, resample)
            sheet.paste(picture, (MARGIN + column * cell_w, top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def write_video(frames_FHWC: np.ndarray, path: Path, fps: float, lossless: bool = False) -> Path:
    """Writes one clip as .mp4 (H.264, near lossless) or .gif, by the path's ending.

    ``lossless`` makes an .mp4 that keeps every bit, in RGB, which few players show and OpenCV and decord read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        quality: dict[str, Any] = {"codec": "libx264", "macro_block_size": 1, "output_params": ["-crf", "10"]}
        if lossless:
            quality |= {"codec": "libx264rgb", "pixelformat": "rgb24", "output_params": ["-crf", "0"]}
        iio.imwrite(path, frames_FHWC, plugin="FFMPEG", fps=fps, **quality)
    elif path.suffix == ".gif":
        pictures = [Image.fromarray(frame) for frame in frames_FHWC]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
    else:
        raise BenchError(f"can't write a video to {path}", f"its ending is {path.suffix!r}", "use .mp4 or .gif")
    return path


def read_picture(path: Path, height: int, width: int) -> np.ndarray:
    """An image file as a first frame, uint8 (H, W, 3): scaled and cropped as the clips of a cache are.

    Raises:
        BenchError: it can't be read.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return fit(np.asarray(upright), Frames(1, height, width, 1.0, allow_upscale=True))
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for damaged files
        raise BenchError(f"the image {path} can't be read", str(error), "give a PNG or JPEG file") from error
