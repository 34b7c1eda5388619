"""A few clips of every run, small enough to stand in a page: the first prompts of the eval set at each number of steps.

They are the very clips that were scored: the same prompts, and the noise of clip k depends on (seed, k) only. Small
clips are kept as strips, all frames below one another in one picture, which a page moves through a window: so all of
them keep step, can be held, and are printed. Larger ones are shrunk and become H.264. ``clips/index.json`` names them.

Axes: F frames, H, W pixels.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as iio
import numpy as np
from PIL import Image

from w2svd_bench.errors import BenchError, UnsupportedSteps
from w2svd_bench.record import write_atomically

if TYPE_CHECKING:
    from w2svd_bench.evaluate.evalset import ClipSet
    from w2svd_bench.evaluate.sampling import Subject

CLIPS = 4  # prompts
FOLDER, INDEX = "clips", "index.json"
# Pixels: frames of up to the first make a strip, at most as tall as the second (WebP ends at 16,383); those of longer
# clips and larger frames are shrunk to the third.
SMALL, TALLEST, LARGE = 128, 16_383, 256
# About 10 kB for a strip of the miniature, and 50 to 100 kB for five seconds of film.
WEBP_QUALITY, H264_CRF = 90, 26

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Showcase:
    """Writes clips of runs and of the real reference below ``folder/clips``.

    Attributes:
        eval_set: its first `CLIPS` prompts are shown.
        folder: of the results.
        report: told how far the work has come.
    """

    eval_set: ClipSet
    folder: Path
    report: Report

    def write(self, runs: Sequence[tuple[Callable[[], Subject], Sequence[int]]]) -> Path:
        """Samples each run at its numbers of steps and writes all anew; returns the path of the index.

        A number of steps that a method can't be sampled at is left out.

        Args:
            runs: how to open each, one at a time, for two may not fit a device; and its numbers of steps.

        Raises:
            BenchError: a run makes clips of another size than the eval set's.
        """
        size, shown = self.eval_set.describe(), range(min(CLIPS, len(self.eval_set.prompts)))
        entries = []
        for k, frames in zip(shown, self.eval_set.real(shown), strict=True):
            about = {"label": "real", "seed": None, "steps": 0, "prompt": k, "checkpoint_sha256": None}
            entries.append(self._keep(f"real-{k}", frames, size.fps, about))
        for i, (opened, steps) in enumerate(runs):
            self.report("clips for the report", i, len(runs))
            entries += self._of_run(opened, steps, shown)
        self.report("clips for the report", len(runs), len(runs))
        index = {
            "fps": size.fps,
            "prompts": [self.eval_set.prompts[k] for k in shown],
            "clips": entries,
        }
        kept = {entry["file"] for entry in entries} | {INDEX}
        for old in (self.folder / FOLDER).iterdir():
            if old.name not in kept:
                old.unlink()
        return write_atomically(self.folder / FOLDER / INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")

    def _of_run(
        self, opened: Callable[[], Subject], steps: Sequence[int], shown: Sequence[int]
    ) -> list[dict[str, Any]]:
        gc.collect()  # the network of the run before is in circles of references
        subject = opened()
        return [entry for number in steps for entry in self._sampled(subject, number, shown)]

    def _sampled(self, subject: Subject, steps: int, shown: Sequence[int]) -> list[dict[str, Any]]:
        from w2svd_bench.evaluate.sampling import batch_size, sample  # here, since what is kept needs no torch

        run, backbone, entries = subject.run, subject.backbone, list[dict[str, Any]]()
        size = self.eval_set.describe()
        made = (backbone.decoded_frames, backbone.side.height, backbone.side.width)
        if made != (size.frames, size.height, size.width):
            raise BenchError(
                f"clips of {run.label} can't stand beside the others",
                f"it makes {made[0]} frames of {made[2]}x{made[1]}, and the eval set has {size.frames} of "
                f"{size.width}x{size.height}",
                "make a report of runs of one size",
            )
        with suppress(UnsupportedSteps):
            sampler = subject.method.sampler(steps)
            at_once = batch_size(backbone.latent_shape)
            batches = [shown[first : first + at_once] for first in range(0, len(shown), at_once)]

            def conditioning(indices: Sequence[int]) -> Any:
                return self.eval_set.conditioning(backbone, indices)

            for part in sample(subject, sampler, conditioning, batches, run.seed):
                for k, frames in zip(part.indices, part.frames.numpy(), strict=True):
                    about = {
                        "label": run.label,
                        "seed": run.seed,
                        "steps": steps,
                        "prompt": k,
                        "checkpoint_sha256": run.weights_sha256,
                    }
                    stem = f"{_slug(run.label)}-seed{run.seed}-steps{steps}-{k}"
                    entries.append(self._keep(stem, frames, backbone.side.fps, about))
        return entries

    def _keep(self, stem: str, frames_FHWC: np.ndarray, fps: float, about: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one clip and returns what the index says of it."""
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        count, height, width = frames_FHWC.shape[:3]
        is_strip = max(height, width) <= SMALL and count * height <= TALLEST
        path = self.folder / FOLDER / f"{stem}.{'webp' if is_strip else 'mp4'}"
        if is_strip:
            strip = Image.fromarray(frames_FHWC.reshape(count * height, width, 3))
            strip.save(path, quality=WEBP_QUALITY, method=6)
        else:
            shrunk = shrink(frames_FHWC, LARGE)
            height, width = shrunk.shape[1:3]
            options: Any = {"codec": "libx264", "macro_block_size": 1, "output_params": ["-crf", str(H264_CRF)]}
            iio.imwrite(path, shrunk, plugin="FFMPEG", fps=fps, **options)
        return {**about, "file": path.name, "frames": count, "height": height, "width": width}


def shrink(frames_FHWC: np.ndarray, longer: int) -> np.ndarray:
    """Frames with a longer side of at most ``longer`` pixels, and even sides, as H.264 wants them."""
    height, width = frames_FHWC.shape[1:3]
    scale = min(1.0, longer / max(height, width))
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))
    if size == (width, height):
        return frames_FHWC
    return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BOX)) for one in frames_FHWC])


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")[:60] or "method"
