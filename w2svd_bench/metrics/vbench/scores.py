"""VBench's aggregate scores: Quality, Semantic, I2V and Total, from the means of the dimensions.

The numbers are VBench's own (Huang et al. 2024, arXiv 2311.17982; Huang et al. 2024, arXiv 2411.13503 for image to
video), as they stand in ``scripts/constant.py`` of the repository Vchitect/VBench, and the arithmetic is that of
``scripts/cal_final_score.py`` and ``scripts/cal_i2v_final_score.py`` there: each dimension is mapped linearly so that
its lowest value becomes 0 and its highest 1, without clipping; a score is the weighted mean over its dimensions.

One thing is different. Those scripts count a dimension that was not computed as 0, and a raw 0 is far outside of most
ranges: nothing at all makes a Total of -0.57, and seven good quality dimensions make a Total that looks like a weak
model's. Here a score is refused unless all of its dimensions are there.

Every score is an affine function of its dimensions, so its mean over clips equals the score of the means. Values are
fractions, not percents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from w2svd_bench.errors import BenchError, unknown_name

QUALITY = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
SEMANTIC = (
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)
I2V = ("camera_motion", "i2v_subject", "i2v_background")
I2V_QUALITY = tuple(name for name in QUALITY if name != "temporal_flickering")

# What is mapped to 0 and to 1.
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(QUALITY + SEMANTIC + I2V, (0.0, 1.0)),
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
    "i2v_subject": (0.1462, 1.0),
    "i2v_background": (0.2615, 1.0),
}
WEIGHTS: Mapping[str, float] = {
    **dict.fromkeys(QUALITY + SEMANTIC + I2V, 1.0),
    "dynamic_degree": 0.5,
    "camera_motion": 0.1,
}
# The parts of a Total: Quality counts four times for text to video, and as much as I2V for image to video.
QUALITY_TO_SEMANTIC = 4.0
QUALITY_TO_I2V = 1.0

# No dimension gets near it: what is larger was left in percent.
_LARGEST = 2.0


def normalised(dimension: str, value: float) -> float:
    """A dimension's value, mapped so that its range in `RANGES` becomes 0..1; not clipped.

    Raises:
        BenchError: for an unknown dimension, a value that is not finite, or one that can only be a percentage.
    """
    if dimension not in RANGES:
        raise unknown_name("VBench dimension", dimension, RANGES)
    if not math.isfinite(value):
        raise BenchError(
            f"{dimension} is {value}", "a score of it would be no number", "score the clips of that dimension again"
        )
    if abs(value) > _LARGEST:
        raise BenchError(
            f"{dimension} is {value:g}",
            "VBench's ranges hold for fractions, and this looks like a percentage",
            "divide by 100 (imaging_quality of single clips is given in percent by VBench itself)",
        )
    low, high = RANGES[dimension]
    return (value - low) / (high - low)


def quality(values: Mapping[str, float]) -> float:
    """VBench's Quality of the seven dimensions of `QUALITY`; others in ``values`` are ignored, missing ones refused."""
    return _weighted_mean("Quality", QUALITY, values)


def semantic(values: Mapping[str, float]) -> float:
    """VBench's Semantic score of the nine dimensions of `SEMANTIC`."""
    return _weighted_mean("Semantic", SEMANTIC, values)


def total(values: Mapping[str, float]) -> float:
    """VBench's Total of all sixteen dimensions, (4 Quality + Semantic) / 5.

    Raises:
        BenchError: unless all sixteen are there; it names the missing ones.
    """
    _check_complete("Total", QUALITY + SEMANTIC, values)
    return (QUALITY_TO_SEMANTIC * quality(values) + semantic(values)) / (QUALITY_TO_SEMANTIC + 1)


def i2v(values: Mapping[str, float]) -> float:
    """VBench-I2V's score of the three dimensions of `I2V`: how well a clip keeps to its given image and camera."""
    return _weighted_mean("I2V", I2V, values)


def i2v_quality(values: Mapping[str, float]) -> float:
    """VBench-I2V's Quality: six dimensions, `QUALITY` without the flickering."""
    return _weighted_mean("I2V Quality", I2V_QUALITY, values)


def i2v_total(values: Mapping[str, float]) -> float:
    """VBench-I2V's Total of its nine dimensions, the mean of I2V Quality and I2V; refused unless all nine are there."""
    _check_complete("I2V Total", I2V_QUALITY + I2V, values)
    return (QUALITY_TO_I2V * i2v_quality(values) + i2v(values)) / (QUALITY_TO_I2V + 1)


def _weighted_mean(score: str, dimensions: Sequence[str], values: Mapping[str, float]) -> float:
    _check_complete(score, dimensions, values)
    weighted = (WEIGHTS[name] * normalised(name, values[name]) for name in dimensions)
    return sum(weighted) / sum(WEIGHTS[name] for name in dimensions)


def _check_complete(score: str, dimensions: Sequence[str], values: Mapping[str, float]) -> None:
    missing = [name for name in dimensions if name not in values]
    if missing:
        raise BenchError(
            f"VBench's {score} without {', '.join(missing)}",
            f"it is defined on {len(dimensions)} dimensions; a missing one counted as 0 gives a number that means "
            "nothing",
            "compute the missing dimensions, or report the ones there are by their own names",
        )
