"""Why a score is bad: what the miniature's frame net reads off generated clips, in plain terms.

These are no metrics to rank by; each is one number with an obvious best value.
Axes: N or B clips, F frames, P readings a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import mini_nets
from w2svd_bench.metrics.base import check_clips, other_size
from w2svd_bench.metrics.mini_nets import COLOURS, FRAME_TARGETS, columns

Colour = tuple[float, float, float]


class Reader:
    """Reads colours, shape, pose, mouth and eyes off every frame."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._net, self.weights_sha256 = mini_nets.load_net("frame", device)

    @property
    def id(self) -> str:
        """What its readings depend on."""
        return f"readings {self.weights_sha256}"

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        """Why it can't read clips of this size; None if it can."""
        return other_size(frames, height, width, mini_nets.SIZE)

    def __call__(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """uint8 clips (B, 17, 48, 48, 3) to readings (B, 17, P), float32; `reading` picks one target of them."""
        check_clips(clips_BFHWC, mini_nets.FRAMES, mini_nets.HEIGHT, mini_nets.WIDTH)
        return mini_nets.clip_by_clip(self._net, clips_BFHWC, self._device, read=True)


def reading(readings_NFP: np.ndarray, target: str) -> np.ndarray:
    """One target of `mini_nets.FRAME_TARGETS`: (N, F), or (N, F, 3) for a colour."""
    values = readings_NFP[..., columns(FRAME_TARGETS, target)]
    return values if target in COLOURS else values[..., 0]


def mouth(generated_NFP: np.ndarray, reference_NFP: np.ndarray) -> float:
    """How much the mouth moves, relative to real clips: 1 is right, 0 is a mouth that stands still."""
    return _restlessness(generated_NFP, "mouth") / _restlessness(reference_NFP, "mouth")


def sway(generated_NFP: np.ndarray, reference_NFP: np.ndarray) -> float:
    """How much the head moves sideways, relative to real clips: 1 is right, 0 is a head that stands still."""
    return _restlessness(generated_NFP, "head_x") / _restlessness(reference_NFP, "head_x")


def colour_error(generated_NFP: np.ndarray, wanted: Sequence[Mapping[str, Colour]]) -> float:
    """How far the colours are from those that the prompts name: mean squared error in RGB of [0, 1].

    A clip's colour is the mean over its frames, and the wanted one is the middle of the palette's class; since real
    clips scatter around it by brightness and tint, they reach about 0.002, not 0.

    Args:
        wanted: for each clip, the named colours (`data.palette.named_colours` of its prompt), by a name of `COLOURS`.

    Raises:
        BenchError: if there is not one entry a clip, or no prompt names any colour.
    """
    if len(wanted) != len(generated_NFP) or not any(wanted):
        raise BenchError(
            f"{len(generated_NFP)} clips can't be held against the colours of {len(wanted)} prompts",
            "there is one prompt a clip, and some name the colour of skin, hair, backdrop or shirt",
            "pass the prompts that the clips were made from, in the same order",
        )
    read = {name: reading(generated_NFP, name).mean(axis=1, dtype=np.float64) for name in COLOURS}
    errors = [
        np.square(read[name][clip] - np.array(colour)).mean()
        for clip, colours in enumerate(wanted)
        for name, colour in colours.items()
    ]
    return float(np.mean(errors))


def class_mixing(generated_NFP: np.ndarray, target: str, palette: Sequence[Colour]) -> float:
    """How far a colour is from the nearest of a palette: mean squared error in RGB of [0, 1].

    A clip that shows the average of several classes, where the prompt leaves open which, is far from all of them. Real
    clips scatter around theirs by brightness and tint, and do not reach 0 either. The colour is the mean of the clip's
    frames: a soft outline is no mixing.
    """
    return float(_distances(generated_NFP, target, palette).min(axis=1).mean())


def rarest_share(generated_NFP: np.ndarray, target: str, palette: Sequence[Colour]) -> float:
    """The share of clips whose colour is nearest to the palette's least shown one: 1 / classes where all are alike.

    A generator that leaves a kind of clips out has a low one.
    """
    nearest = _distances(generated_NFP, target, palette).argmin(axis=1)
    return float(np.bincount(nearest, minlength=len(palette)).min() / len(nearest))


def _distances(readings_NFP: np.ndarray, target: str, palette: Sequence[Colour]) -> np.ndarray:
    """Mean squared errors (N, classes) of a clip's mean colour against each colour of a palette."""
    read = reading(readings_NFP, target).mean(axis=1, dtype=np.float64)
    return np.square(read[:, None] - np.array(palette)).mean(axis=2)


def _restlessness(readings_NFP: np.ndarray, target: str) -> float:
    """The standard deviation of a reading's change from frame to frame, over all clips."""
    return float(np.diff(reading(readings_NFP, target).astype(np.float64), axis=1).std())
