"""What `reproduce` trains: profiles, made of the methods and of the files that they bring, or a plan file of one's own.

A method may have ``ablations.yaml`` and ``stress.yaml`` beside its module: plans as below, found as its claims are.

    seeds: 5                                # unless the command says otherwise
    runs:
      - {method: w2svd, label: lora-dmd, set: [settings.alpha_weak=0, settings.gt.kind=none]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from w2svd_bench.cli import options
from w2svd_bench.config import Frozen, Recipe, load_recipe, validated
from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.registry import METHODS


class Variant(Frozen):
    """A run: a method, what tables call it, and what differs from its recipe."""

    method: str
    label: str
    overrides: list[str] = Field(default_factory=list, alias="set")


class Plan(Frozen):
    """Runs, each of them by so many seeds."""

    runs: list[Variant]
    seeds: int | None = Field(None, ge=1)


@dataclass(frozen=True)
class Profile:
    """What a name of `--profile` stands for.

    Attributes:
        about: for the help.
        seeds: of every run, unless a file says otherwise.
        methods: whether every method with a recipe is in it.
        file: what else is in it: the plans of this name beside the methods.
        backbone: the one that it is for; None: whichever is asked for.
        apart: whether its runs live in a folder of their own below ``--out``.
    """

    about: str
    seeds: int
    methods: bool = True
    file: str | None = None
    backbone: str | None = None
    apart: bool = False


PROFILES = {
    "quick": Profile("every method, one seed", 1),
    "main": Profile("every method, three seeds", 3),
    "full": Profile("every method and its ablations, three seeds", 3, file="ablations.yaml"),
    "hard": Profile("every method on the miniature's hard setting, three seeds", 3, backbone="mini-hard"),
    "stress": Profile("recipes meant to break training, five seeds", 5, methods=False, file="stress.yaml", apart=True),
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
    plans: list[Plan] = []
    if profile.methods:
        recipe = options.recipe_name(backbone)
        names = sorted(METHODS.names(), key=lambda name: -_weight(name, recipe))  # none is left alone at the end
        plans.append(Plan(runs=[Variant(method=name, label=name) for name in names]))
    if profile.file is not None:
        plans += [read_plan(path) for path in METHODS.files_beside(profile.file)]
    if not plans:
        why = f"no installed method brings a {profile.file}"
        raise BenchError("there is nothing to train", why, "choose another --profile")
    _refuse_twins([run for plan in plans for run in plan.runs], profile.file or "the methods")
    return [plan if plan.seeds else plan.model_copy(update={"seeds": profile.seeds}) for plan in plans]


def read_plan(path: Path) -> Plan:
    """A plan file; raises `BenchError` where it is none, or has two runs of one label."""
    plan = validated(Plan, load_recipe(path), f"the plan {path}")
    _refuse_twins(plan.runs, str(path))
    return plan


def _refuse_twins(runs: Sequence[Variant], where: str) -> None:
    labels = [run.label for run in runs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise BenchError(
            f"two runs are called {', '.join(twice)}",
            f"a label names a run's folder and its row in tables ({where})",
            "give each its own label",
        )


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
