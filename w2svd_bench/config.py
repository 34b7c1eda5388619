"""Recipes: YAML in, frozen and checked settings out. A key that is not known is an error, never ignored."""

from __future__ import annotations

import copy
import inspect
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
import yaml
from pydantic import Field

from w2svd_bench.errors import BenchError, unknown_name


class Frozen(pydantic.BaseModel):
    """Settings that can't change once they are made; unknown keys and numbers that are not finite are refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


M = TypeVar("M", bound=pydantic.BaseModel)
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Frozen):
    """AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019) and its schedule for one role."""

    learning_rate: float = Field(gt=0)
    betas: tuple[Fraction, Fraction] = (0.0, 0.99)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(0, ge=0, description="iterations over which the rate rises linearly to learning_rate")
    decay_from: float = Field(1.0, ge=0, le=1, description="share of the run after which it falls linearly to 0")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient; longer ones are scaled down to it")

    def rate(self, update: int, total: int) -> float:
        """The learning rate of update ``update``, counted from 0, in a run of ``total``.

        The trainer counts in iterations, so that roles that update more than once in one share a time scale. The first
        update of a warm-up already learns, at ``learning_rate / warmup``, and so does the last one of a decay: the rate
        would be 0 at ``total``, which is not part of the run.

        Raises:
            ValueError: the update is not part of the run.
        """
        if not 0 <= update < total:
            raise ValueError(f"update {update} is not part of a run of {total} updates")
        rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        start = self.decay_from * total
        fall = min(1.0, (total - update) / (total - start)) if start < total else 1.0
        return self.learning_rate * rise * fall


class Video(Frozen):
    """The size of the clips, in pixels, frames and frames a second; see `Backbone` for what a backbone accepts."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    num_frames: int = Field(ge=1)
    fps: float = Field(gt=0)


class Engine(Frozen):
    """How a network runs: none of this changes what is computed, but for rounding."""

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the frozen weights and of all activations; auto is bfloat16 on a GPU, else float32"
    )
    trained_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of trained weights, their averages and moments; bfloat16 loses small updates"
    )
    attention: str = Field(
        "native", description="an attention backend of diffusers, such as native or flash; sage is for sampling only"
    )
    compile: bool = Field(False, description="torch.compile for the repeated blocks")
    gradient_checkpointing: bool = Field(False, description="keep the blocks' inputs only and compute the rest twice")
    sharding: Literal["auto", "replicate", "fsdp"] = Field(
        "auto", description="over several processes: replicas of everything, or FSDP2; auto takes what the plan says"
    )


class Training(Frozen):
    """How long and on what a method trains; ``iterations: 0`` is for methods that do not."""

    iterations: int = Field(ge=0)
    batch_size: int = Field(16, ge=1, description="clips of one optimiser step, over all processes")
    micro_batch: int | None = Field(
        None, ge=1, description="clips that one process takes at a time, gradients adding up; null: its whole share"
    )
    pool_clips: int = Field(4096, ge=1, description="procedural clips that are encoded once and drawn from")
    log_every: int = Field(10, ge=1, description="iterations between two lines of the log")
    checkpoint_every: int = Field(100, ge=1, description="iterations between two checkpoints")


class Recipe(Frozen):
    """A method's settings for one backbone, and the values it is expected to reach, as {"fid[mini]@4": 12.3}."""

    method: str
    backbone: str
    status: str = Field("", description="what the settings rest on, such as: not yet run on real weights")
    video: Video | None = Field(None, description="the clips' size; null: what the backbone says of itself")
    shift: float | None = Field(None, gt=0, description="of the noise schedule; null: the backbone's own")
    guidance: float | None = Field(None, ge=0, description="embedded scale, for all roles; null: the backbone's own")
    training: Training
    engine: Engine = Engine()
    settings: dict[str, Any] = Field(default_factory=dict, description="checked by the method's own Config")
    expected: dict[Annotated[str, Field(pattern=r"^.+@[1-9][0-9]*$")], float] = Field(default_factory=dict)


def load_recipe(source: Path | Mapping[str, Any]) -> dict[str, Any]:
    """Reads a recipe into a plain dict that may be overridden and is yet to be `validated`.

    A file may name another, ``base: other.yaml``, relative to its own folder: its sections are merged key by key under
    the file's own, which win; lists are replaced as a whole.

    Raises:
        BenchError: a file is missing, is not YAML, holds a key twice, is no mapping, or is its own base.
    """
    if isinstance(source, Mapping):
        if "base" in source:
            raise BenchError("a recipe that is no file can't have a base", "a base is relative to a file", "merge it")
        return copy.deepcopy(dict(source))
    return _load(source, above=())


def apply_overrides(recipe: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe with ``--set a.b=value`` applied, in order; values are YAML and replace what was there.

    Sections that are not there yet are made: whether they are known is for validation to tell.

    Raises:
        BenchError: an override is not of the form ``a.b=value``, or leads through something that is no section.
    """
    result = copy.deepcopy(dict(recipe))
    for override in overrides:
        path, equals, text = (part.strip() for part in override.partition("="))
        keys = path.split(".")
        if not equals or not text or not all(keys):
            raise BenchError(
                f"override {override!r} can't be read",
                "it is not of the form section.key=value",
                "write for example training.iterations=100, or section.key=null for no value",
            )
        section: Any = result
        for depth, key in enumerate(keys[:-1], start=1):
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise BenchError(
                    f"override {override!r} can't be applied",
                    f"{'.'.join(keys[:depth])} is {reprlib.repr(section)}, not a section with keys",
                    f"set {'.'.join(keys[:depth])} itself",
                )
        section[keys[-1]] = _parse(text, where=f"override {override!r}")
    return result


def validated(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """Checks plain data against a model.

    Args:
        where: what the data is, for the message: "recipe baselines/lcm/mini.yaml".

    Raises:
        BenchError: names every key that is wrong, what was given for it, and the nearest known key.
    """
    try:
        return model.model_validate(dict(data))
    except pydantic.ValidationError as error:
        problems = [_problem(model, detail) for detail in error.errors(include_url=False)]
    why = "\n        ".join(reason for reason, _ in problems)
    cure = "; ".join(dict.fromkeys(cure for _, cure in problems))
    raise BenchError(f"{where} is not valid", why, cure) from None


def _problem(model: type[pydantic.BaseModel], detail: Any) -> tuple[str, str]:
    """One of pydantic's errors as (what is wrong with which key, cure)."""
    path = ".".join(map(str, detail["loc"])) or "(the whole)"
    if detail["type"] == "missing":
        return f"{path}: is required but missing", f"add {path}"
    given = reprlib.repr(detail["input"])
    known = _known_keys(model, detail["loc"][:-1])
    if detail["type"] == "extra_forbidden":
        if not known:
            return f"{path}: unknown key (given {given})", f"remove {path}"
        unknown = unknown_name("key", str(detail["loc"][-1]), known)
        return f"{path}: unknown key (given {given}); {unknown.why}", f"{path}: {unknown.cure}"
    return f"{path}: {detail['msg']} (given {given})", f"mend {path}"


def _known_keys(model: type[pydantic.BaseModel], path: Sequence[int | str]) -> list[str]:
    """The keys of the part of a model that a path leads to; none where no single part can be told."""
    for key in path:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key)
        parts = [part for part in _parts(field.annotation) if issubclass(part, pydantic.BaseModel)] if field else []
        if len(parts) != 1:
            return []
        model = parts[0]
    return list(model.model_fields)


def _parts(annotation: Any) -> Iterator[type]:
    """The classes that an annotation such as ``list[A] | None`` is made of."""
    for argument in get_args(annotation):
        yield from _parts(argument)
    if inspect.isclass(annotation) and not get_args(annotation):
        yield annotation


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe file with its bases merged; ``above`` are the files that lead here."""
    if path.resolve() in above:
        raise BenchError(f"recipe {path} can't be loaded", "it is, through `base`, its own base", "remove one `base`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BenchError(f"recipe {path} can't be read", str(reason), "check the path") from error
    recipe = _parse(text, where=f"recipe {path}")
    if not isinstance(recipe, dict):
        why = f"it holds {reprlib.repr(recipe)}, not keys and values"
        raise BenchError(f"recipe {path} can't be used", why, "write `key: value` lines")
    if "base" not in recipe:
        return recipe
    base = recipe.pop("base")
    if not isinstance(base, str):
        raise BenchError(f"recipe {path} can't be used", f"its base is {base!r}", "name one file: `base: other.yaml`")
    return _merged(_load(path.parent / base, above=(*above, path.resolve())), recipe)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain data only
    except yaml.YAMLError as error:
        # The first line would repeat the name of a stream; the problem and its place are what helps.
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise BenchError(f"{where} is not valid YAML", f"{reason}{place}", "mend it") from error


class _Loader(yaml.SafeLoader):
    """YAML as its users expect it: ``1e-4`` is a number (to YAML 1.1 it is text), and a key may not stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
