"""What `reproduce` trains: profiles, made of the methods and of the files that they bring, or a plan file of one's own.

A method may have ``ablations.yaml`` and ``stress.yaml`` beside its module: plans as below, found as its claims are.

    seeds: 5                                # unless the command says otherwise
    recipe: mini                            # whose numbers these are; left out for backbones of another recipe
    runs:
      - {method: w2svd, label: lora-dmd, set: [settings.alpha_weak=0, settings.gt.kind=none]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from w2svd_bench.cli import options
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.config import Frozen, Recipe, load_recipe, validated
from w2svd_bench.errors import BenchError, NoRecipe, unknown_name
from w2svd_bench.registry import METHODS


class PlannedRun(Frozen):
    """A method, what tables call it, and what differs from its recipe."""

    method: str
    label: str
    overrides: list[str] = Field(default_factory=list, alias="set")


class Plan(Frozen):
    """Runs, each by so many seeds; ``recipe`` says for which recipe's numbers what they set is meant."""

    runs: list[PlannedRun]
    seeds: int | None = Field(None, ge=1)
    recipe: str = "mini"


@dataclass(frozen=True)
class Profile:
    """What a name of `--profile` stands for.

    Attributes:
        about: for the help.
        seeds: of every run, unless a file says otherwise.
        methods: whether every method with a recipe is in it.
        file: what else is in it: the plans of this name beside the methods.
        backbone: the one that it is for; None: whichever is asked for.
        folder: of its runs, below ``--out``; empty where they stand in it.
    """

    about: str
    seeds: int
    methods: bool = True
    file: str | None = None
    backbone: str | None = None
    folder: str = ""


PROFILES = {
    "quick": Profile("every method, one seed", 1),
    "main": Profile("every method, three seeds", 3),
    "full": Profile("every method and its ablations, three seeds", 3, file="ablations.yaml"),
    "hard": Profile("every method on the miniature's hard setting, three seeds", 3, backbone="mini-hard"),
    "stress": Profile(
        "recipes meant to break training, five seeds", 5, methods=False, file="stress.yaml", folder="stress"
    ),
}


def profile_named(name: str) -> Profile:
    """Raises `BenchError` where there is none of that name."""
    if name not in PROFILES:
        raise unknown_name("profile", name, PROFILES)
    return PROFILES[name]


def plans_of(profile: Profile, backbone: str) -> list[Plan]:
    """The runs of a profile, with their seeds: the methods, the longest training first, then what their files say.

    Raises:
        BenchError: a file can't be used; the profile has no runs, or two under one label.
    """
    plans, recipe = dict[str, Plan](), options.recipe_name(backbone)
    if profile.methods:
        weights: dict[str, int] = {}
        for name in METHODS.names():
            with suppress(NoRecipe):
                weights[name] = _weight(name, recipe)
        names = sorted(weights, key=lambda name: -weights[name])  # so that no long one is left alone at the end
        plans["the methods"] = Plan(runs=[PlannedRun(method=name, label=name) for name in names])
    if profile.file is not None:
        found = {str(path): read_plan(path) for path in METHODS.files_beside(profile.file)}
        plans |= {path: plan for path, plan in found.items() if plan.recipe == recipe}
    if not any(plan.runs for plan in plans.values()):
        why = f"no installed method has a recipe or a {profile.file or 'plan'} for {recipe}"
        raise BenchError("there is nothing to train", why, "choose another --profile, or give your own --plan")
    _refuse_twins(plans)
    return [plan if plan.seeds else plan.model_copy(update={"seeds": profile.seeds}) for plan in plans.values()]


def read_plan(path: Path) -> Plan:
    """A plan file; raises `BenchError` where it is none, or has two runs of one label."""
    plan = validated(Plan, load_recipe(path), f"the plan {path}")
    _refuse_twins({str(path): plan})
    return plan


def check(plan: Plan, recipe: str) -> None:
    """Raises `BenchError` for what would fail once it is a run's turn: an unknown method, no recipe, a wrong setting.

    Args:
        recipe: the name of the recipes that the runs start from.
    """
    for run in plan.runs:
        try:
            resolve_recipe(METHODS.get(run.method), recipe, None, run.overrides)
        except BenchError as error:
            why = f"{error.what}: {error.why}"
            raise BenchError(f"the run {run.label!r} of the plan can't be made", why, error.cure) from error


def _refuse_twins(plans: Mapping[str, Plan]) -> None:
    """A label names a run's folder and its row in tables."""
    places: dict[str, list[str]] = {}
    for where, plan in plans.items():
        for run in plan.runs:
            places.setdefault(run.label, []).append(where)
    twice = {label: found for label, found in places.items() if len(found) > 1}
    if twice:
        told = "; ".join(f"{label} of {' and '.join(found)}" for label, found in sorted(twice.items()))
        cure = "give each its own label, or uninstall one of the packages; --plan FILE takes a plan of your own"
        raise BenchError(f"two runs are called {', '.join(sorted(twice))}", told, cure)


def commands(plans: Sequence[Plan], training: Sequence[str], evaluation: Sequence[str]) -> dict[str, list[list[str]]]:
    """By the name of each run and seed its commands, all runs of a seed before the next seed's.

    Args:
        plans: with their seeds; without, one.
        training, evaluation: options that all runs share.
    """
    work = {}
    for seed in range(max(plan.seeds or 1 for plan in plans)):
        for run in [run for plan in plans if seed < (plan.seeds or 1) for run in plan.runs]:
            train = ["train", "--method", run.method, "--label", run.label, "--seed", str(seed), *training]
            train += [part for override in run.overrides for part in ("--set", override)]
            work[f"{run.label} seed {seed}"] = [train, ["eval", *evaluation, "--methods", run.label]]
    return work


def _weight(method: str, recipe: str) -> int:
    """Roles times iterations of the method's own recipe: a rough measure of how long its training takes."""
    method_class = METHODS.get(method)
    found = validated(Recipe, method_class.recipe(recipe), f"the recipe of {method}")
    config = validated(method_class.Config, found.settings, f"the settings section of {method}")
    return found.training.iterations * len(method_class(config, shift=1.0).roles())
