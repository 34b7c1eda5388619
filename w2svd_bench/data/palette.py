"""The colours that a caption names."""

from __future__ import annotations

from w2svd_bench.data import render
from w2svd_bench.data.attributes import parse_caption

PALETTES = {"skin": render.SKIN, "hair": render.HAIR, "backdrop": render.BACKDROP, "shirt": render.SHIRT}


def named_colours(caption: str) -> dict[str, tuple[float, float, float]]:
    """RGB in [0, 1] for each of skin, hair, backdrop and shirt that the caption names: the middle of its class.

    Raises:
        BenchError: for a phrase the miniature never learned.
    """
    classes = parse_caption(caption)
    return {name: palette[classes[name]] for name, palette in PALETTES.items() if name in classes}
