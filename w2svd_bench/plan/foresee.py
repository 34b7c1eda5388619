"""The plan of a training that is about to begin, on the machine where it begins."""

from __future__ import annotations

from typing import Any

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.skeleton import Skeleton
from w2svd_bench.config import Recipe
from w2svd_bench.plan.machine import Machine
from w2svd_bench.plan.memory import Plan, Setup, choose_sharding
from w2svd_bench.world import World


def foresee(backbone: Backbone, method_class: Any, recipe: Recipe, world: World) -> Plan:
    """The plan of a method on the GPUs of a world; on a CPU, whose memory is not planned, as on GPUs without end."""
    machine = Machine.here(world.size, world.device)
    return Plan(Setup.of(method_class, recipe, Skeleton.of(backbone), machine, backbone.side.video))


def decided(backbone: Backbone, method_class: Any, recipe: Recipe, world: World) -> Recipe:
    """The recipe with ``engine.sharding: auto`` decided: replicas where they fit, for they are faster, else FSDP."""
    if recipe.engine.sharding != "auto" or world.size == 1:
        return recipe
    # Decided once for all: GPUs that differ by a little would part ways at the edge.
    choice = world.agree(lambda: choose_sharding(foresee(backbone, method_class, recipe, world)))
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"sharding": choice})})
