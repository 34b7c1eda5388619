"""Recipes of records that an older version left: a setting that came later had the value of its default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w2svd_bench.config import Recipe
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS


def completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record's recipe with the settings that it says nothing of, by what is installed.

    This loads the method, and torch with it. A recipe that can't be read by this version, or whose method isn't
    installed, comes back as it is.
    """
    try:
        recipe = Recipe.model_validate(config)
        settings = METHODS.get(recipe.method).Config.model_validate(recipe.settings)
    except (BenchError, ValueError):
        return config
    return recipe.model_dump(mode="json") | {"settings": settings.model_dump(mode="json")}
