"""What a portrait clip shows: eight named attributes, their caption, and the jitter inside each of them.

A clip is a pure function of ``(split, index)``: the pair keys a counter-based generator (Philox), so any clip
of any split can be had at any time, in any order, on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2svd_bench.errors import BenchError, unknown_name

# One phrase an attribute, and one token a phrase in the miniature tokenizers (text tokens cost as much as image
# tokens). The order of the attributes is the order of the caption.
PHRASES: dict[str, tuple[str, ...]] = {
    "skin": ("pale skin", "tan skin", "brown skin", "dark skin"),
    "hair": ("black hair", "brown hair", "blond hair", "red hair"),
    "backdrop": ("teal backdrop", "beige backdrop", "navy backdrop", "green backdrop"),
    "shirt": ("red shirt", "white shirt", "blue shirt"),
    "face": ("narrow face", "broad face"),
    "eyes": ("small eyes", "big eyes"),
    "speech": ("slow speech", "fast speech"),
    "head": ("still head", "swaying head"),
}
SEPARATOR = ", "

# Each split has its own key space, so two splits never share a clip.
SPLITS: dict[str, int] = {"train": 0, "validation": 1, "test": 2, "features": 3, "reference": 4}
NUM_UNIFORMS = 40


@dataclass(frozen=True)
class Portrait:
    """The attributes of one clip: ``classes`` by name, and ``uniforms`` (40 numbers in [0, 1)) for the jitter."""

    classes: dict[str, int]
    uniforms: np.ndarray

    @property
    def caption(self) -> str:
        return self.naming(None)

    def naming(self, named: Sequence[str] | None) -> str:
        """The caption that names these attributes only, in the order of the whole one; None: all of them.

        Raises:
            BenchError: for an attribute that there is none of.
        """
        _check(named)
        return SEPARATOR.join(
            PHRASES[name][value] for name, value in self.classes.items() if named is None or name in named
        )


def portrait(split: str, index: int) -> Portrait:
    """Draws the attributes of clip ``index`` of ``split`` ("train", "validation", "test", "features", "reference")."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if index < 0:
        raise BenchError(f"clip index {index} is negative", "clips are counted from 0", "give an index of 0 or more")
    uniforms = np.random.Generator(np.random.Philox(key=[SPLITS[split], index])).random(NUM_UNIFORMS)
    classes = {name: int(u * len(phrases)) for (name, phrases), u in zip(PHRASES.items(), uniforms[:8], strict=True)}
    return Portrait(classes, uniforms[8:])


def parse_caption(caption: str, named: Sequence[str] | None = None) -> dict[str, int]:
    """Reads a caption back into attribute classes; ``named`` are the attributes that captions may name (None: all).

    Raises:
        BenchError: for a phrase that the miniature never learned, or an attribute that there is none of.
    """
    _check(named)
    classes: dict[str, int] = {}
    lookup = {
        phrase: (name, i)
        for name, phrases in PHRASES.items()
        if named is None or name in named
        for i, phrase in enumerate(phrases)
    }
    for phrase in (part.strip() for part in caption.split(",")):
        if phrase not in lookup:
            raise unknown_name("caption phrase", phrase, lookup)
        name, value = lookup[phrase]
        classes[name] = value
    return classes


def _check(named: Sequence[str] | None) -> None:
    for name in named or ():
        if name not in PHRASES:
            raise unknown_name("attribute", name, PHRASES)
