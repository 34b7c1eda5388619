"""What is known of VBench's dimensions: their weights, what they compute, and which clips they can't be had of.

All is read from the sources of vbench 0.1.5 (``vbench/<dimension>.py`` and ``vbench2_beta_i2v/i2v_subject.py``), where
limits are not stated but follow from what the code does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from w2svd_bench.errors import BenchError, unknown_name

# Pixels of the shorter side. AMT and RAFT halve their correlations until, on smaller frames, one row of pixels is left;
# its coordinates are then divided by zero and all they give is NaN, which VBench shows as about 0.5 and 0 (measured).
AMT_SIDE, RAFT_SIDE = 113, 121
# Widths of H.264 videos that decord 0.6.0 can't read: it takes the padding of a row for more channels.
DECORD = "decord"
UNREADABLE_WIDTHS = frozenset({8, 12, 16, 24, 48, 72})
# Frames that dynamic_degree has to sample. Of two it takes none to move, and a grey clip counts as dynamic.
MIN_SAMPLED = 8
SAMPLED_FPS = 8


@dataclass(frozen=True)
class Kind:
    """One of VBench's dimensions.

    Attributes:
        weights: the ids of the files that it needs.
        rule: what is computed of a clip, for its id.
        reader: the package that decodes the file.
        frames: the fewest that give a number.
        side: the fewest pixels of the shorter side.
        sampled: the fewest frames left when `SAMPLED_FPS` a second are taken.
        prompt, image: whether it needs them of a clip.
        gif: whether it reads GIFs.
        half: whether its network runs in float16 on a GPU, as CLIP's loader leaves it; on a CPU its numbers differ.
        scale: what turns VBench's number of a clip into the scale of its number of a set.
        flags: what has to be said wherever the number is shown.
    """

    weights: tuple[str, ...]
    rule: str
    reader: str = DECORD
    frames: int = 1
    side: int = 1
    sampled: int = 1
    prompt: bool = False
    image: bool = False
    gif: bool = True
    half: bool = False
    scale: float = 1.0
    flags: tuple[str, ...] = ()

    def refuses(self, frames: int, height: int, width: int, fps: float) -> str | None:
        """Why it can't be had of clips of this size; None if it can."""
        if frames < self.frames:
            return f"it needs at least {self.frames} frames, and there are {frames}"
        if min(height, width) < self.side:
            return f"it needs {self.side} pixels on the shorter side, and there are {min(height, width)}"
        if self.reader == DECORD and width in UNREADABLE_WIDTHS:
            return f"the decoder that it uses can't read videos that are {width} pixels wide"
        left = sampled_frames(frames, fps)
        if left < self.sampled:
            return (
                f"it looks at {SAMPLED_FPS} frames a second, which leaves {left} of these {frames} at {fps:g} fps; "
                f"fewer than {self.sampled} tell nothing"
            )
        return None


def sampled_frames(frames: int, fps: float) -> int:
    """How many frames dynamic_degree looks at: every k-th, k = max(1, round(fps / 8)), the first one among them."""
    return math.ceil(frames / max(1, round(fps / SAMPLED_FPS)))


_COSINES = "mean over frames of max(0, cosine) to the frame before and to the first one, averaged"
_VICLIP = "cosine of ViCLIP's features of 8 frames and of the prompt"

KINDS: Mapping[str, Kind] = {
    "subject_consistency": Kind(
        ("vbench-dino",), f"DINO ViT-B/16 (timm), shorter side 224, bilinear, no antialias; {_COSINES}", frames=2
    ),
    "background_consistency": Kind(
        ("vbench-clip-b32",),
        f"CLIP ViT-B/32, 224 px, bicubic, no antialias, centre crop; {_COSINES}",
        frames=2,
        half=True,
    ),
    "temporal_flickering": Kind(
        (),
        "1 - mean absolute difference of neighbouring frames / 255",
        "opencv-python",
        frames=2,
        flags=("unfiltered",),
    ),
    "motion_smoothness": Kind(
        ("vbench-amt",),
        "1 - mean absolute difference of odd frames from AMT-S's interpolation of even ones / 255, never downscaled",
        "opencv-python",
        frames=3,
        side=AMT_SIDE,
        gif=False,
    ),
    "dynamic_degree": Kind(
        ("vbench-raft",),
        f"0 or 1: RAFT, 20 iterations, {SAMPLED_FPS} fps; flow of the fastest 5 % above 6 px at 256 px",
        "opencv-python",
        frames=2,
        side=RAFT_SIDE,
        sampled=MIN_SAMPLED,
        gif=False,
    ),
    "aesthetic_quality": Kind(
        ("vbench-clip-l14", "vbench-aesthetic"),
        "CLIP ViT-L/14, 224 px, bicubic, no antialias, centre crop; LAION's linear head / 10, mean over frames",
        half=True,
    ),
    "imaging_quality": Kind(
        ("vbench-musiq",), "MUSIQ (SPAQ), longer side at most 512; mean over frames / 100", scale=0.01
    ),
    "human_action": Kind(
        ("vbench-umt",), "0 or 1: UMT-L/16 on 16 frames names the action with at least 0.85 in its top 5", prompt=True
    ),
    "temporal_style": Kind(("vbench-viclip",), _VICLIP, prompt=True),
    "overall_consistency": Kind(("vbench-viclip",), _VICLIP, prompt=True),
}
I2V_KINDS: Mapping[str, Kind] = {
    "i2v_subject": Kind(
        ("vbench-dino",),
        "DINO ViT-B/16 (timm), 256 px, bicubic, centre crop 224; 0.4 max cosine to the image + 0.3 mean and 0.3 min "
        "cosine of neighbouring frames",
        frames=2,
        image=True,
    ),
}
# Why the rest can't be had of clips of one's own, from the package as it is on PyPI.
_NOT_CUSTOM = "vbench 0.1.5 scores it on its own prompts only: what to look for stands in its list of them"
UNAVAILABLE: Mapping[str, str] = {
    **dict.fromkeys(
        ("object_class", "multiple_objects", "color", "spatial_relationship", "scene", "appearance_style"), _NOT_CUSTOM
    ),
    "i2v_background": "it needs the package dreamsim, which vbench 0.1.5 neither brings nor asks for; its call there "
    "is fixed to a CUDA device and downloads an archive of pickled networks into the current folder",
    "camera_motion": "the wheel of vbench 0.1.5 lacks vbench2_beta_i2v.third_party, which it imports, and its tracker "
    "is code fetched from GitHub",
}


def chosen(known: Mapping[str, Kind], default: tuple[str, ...], only: tuple[str, ...] | None) -> tuple[str, ...]:
    """The dimensions that were asked for, in the order of ``known``.

    Raises:
        BenchError: a name is unknown, or of a dimension that can't be had.
    """
    if only is None:
        return default
    for name in only:
        if name in UNAVAILABLE:
            raise BenchError(f"VBench's {name} can't be had here", UNAVAILABLE[name], f"use some of {', '.join(known)}")
        if name not in known:
            raise unknown_name("VBench dimension", name, known)
    if not only:
        raise BenchError("no VBench dimension was asked for", "the list is empty", f"name some of {', '.join(known)}")
    return tuple(name for name in known if name in only)
