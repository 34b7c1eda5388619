"""Pictures of clips: contact sheets, GIFs and mp4 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw

from w2svd_bench.errors import BenchError

SCALE, MARGIN, LABEL = 2, 4, 14


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], path: Path, every: int = 4) -> Path:
    """Writes a PNG with one row a clip: its label, then every ``every``-th frame.

    Args:
        rows: (label, uint8 frames (F, H, W, 3)) in order; an empty label draws none.
    """
    frames, height, width, _ = rows[0][1].shape
    shown = range(0, frames, every)
    cell_w, cell_h = width * SCALE + MARGIN, height * SCALE + MARGIN + LABEL
    sheet = Image.new("RGB", (cell_w * len(shown) + MARGIN, cell_h * len(rows) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, clip) in enumerate(rows):
        top = MARGIN + row * cell_h
        draw.text((MARGIN, top), label, fill="black")
        for column, frame in enumerate(shown):
            picture = Image.fromarray(clip[frame]).resize((width * SCALE, height * SCALE), Image.Resampling.NEAREST)
            sheet.paste(picture, (MARGIN + column * cell_w, top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def write_video(frames_FHWC: np.ndarray, path: Path, fps: float) -> Path:
    """Writes one clip as .mp4 (H.264, near lossless) or .gif, by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        quality: dict[str, Any] = {"codec": "libx264", "macro_block_size": 1, "output_params": ["-crf", "10"]}
        iio.imwrite(path, frames_FHWC, plugin="FFMPEG", fps=fps, **quality)
    elif path.suffix == ".gif":
        pictures = [Image.fromarray(frame) for frame in frames_FHWC]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
    else:
        raise BenchError(f"can't write a video to {path}", f"its ending is {path.suffix!r}", "use .mp4 or .gif")
    return path
