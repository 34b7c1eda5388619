"""Where a backbone is and what it says of itself: a registered name, a diffusers directory, or a hub id.

Nothing here opens weights. From a hub, the small files come first and each part (transformer, vae, text encoders) when
it is asked for, so that planning a run downloads none. Training and evaluation need all of them, if only to know by
their sha256 what a run belongs to.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import pydantic
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from w2svd_bench.config import Video
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import BACKBONES
from w2svd_bench.types import Attribute

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SIDE_FILE = "w2svd_bench.json"
PIPELINES = {"HunyuanVideoPipeline": "t2v", "HunyuanVideoImageToVideoPipeline": "i2v"}
IMAGE_CONDITIONS = ("token_replace", "latent_concat")
TRANSFORMER = "HunyuanVideoTransformer3DModel"
TASKS = {"t2v": "text-to-video", "i2v": "image-to-video"}
# What a checkpoint does not say about itself. 6.0 is the diffusers pipeline's default for text-to-video and its
# example's for image-to-video; the size is that of its text-to-video example, at HunyuanVideo's 24 frames a second.
GUIDANCE = 6.0
VIDEO = Video(height=320, width=512, num_frames=61, fps=24)
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*/*.json", "*/*.txt", "*/*.model"]
# What the hub's HTTP library raises while the connection fails (httpx, httpx2 or requests, by the hub's version).
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class BackboneSource(ABC):
    """Where a named backbone is; the entry-point group ``w2svd_bench.backbones`` holds such classes.

    Attributes:
        name: what commands and records call it.
        task: ``t2v`` or ``i2v`` where the name promises one, else None: a checkpoint for another task is refused.
        recipe: whose recipes it is trained by; None: its own name's.
    """

    name: ClassVar[str]
    task: ClassVar[str | None] = None
    recipe: ClassVar[str | None] = None

    @abstractmethod
    def location(self) -> str | Path:
        """A diffusers pipeline directory, or a hub id such as ``owner/name`` or ``owner/name@revision``."""


class Mini(BackboneSource):
    """The miniature that ships with the package."""

    name, task = "mini", "t2v"

    def location(self) -> Path:
        return ASSETS / "mini"


class MiniHard(BackboneSource):
    """The miniature whose prompts name skin, hair and backdrop only: a labelled setting, not the default."""

    name, task, recipe = "mini-hard", "t2v", "mini"

    def location(self) -> Path:
        return ASSETS / "mini-hard"


class Hunyuan(BackboneSource):
    """HunyuanVideo, 13B, text to video."""

    name, task = "hunyuan", "t2v"

    def location(self) -> str:
        return "hunyuanvideo-community/HunyuanVideo"


class HunyuanI2V(BackboneSource):
    """HunyuanVideo, 13B, image to video: the token_replace variant; the other is the hub's HunyuanVideo-I2V-33ch."""

    name, task, recipe = "hunyuan-i2v", "i2v", "hunyuan"

    def location(self) -> str:
        return "hunyuanvideo-community/HunyuanVideo-I2V"


def _in_order(named: tuple[Attribute, ...] | None) -> tuple[Attribute, ...] | None:
    """Each attribute once, in the order of the caption: the same set is the same tuple."""
    return None if named is None else tuple(name for name in get_args(Attribute) if name in named)


@dataclass(frozen=True)
class Side:
    """What is known of a backbone beside its weights.

    From the pipeline's own configs, and from ``w2svd_bench.json`` in its directory where there is one: its keys are the
    attributes here.

    Attributes:
        backbone: its name in records.
        recipe: whose recipes it is trained by: ``<recipe>.yaml`` beside each method.
        task: ``t2v`` or ``i2v``.
        image_condition: how a first frame enters the transformer: ``token_replace``, ``latent_concat``, or None.
        height, width, num_frames, fps: of its clips, unless a recipe says otherwise.
        shift: of the noise schedule; guidance: the embedded scale, the same for all roles.
        prompt_template, max_sequence_length: as the pipeline's `encode_prompt` takes them; None: its own template.
        codec: a folder in the directory that holds a `MiniCodec`; None for a pipeline with a VAE of its own.
        data: what it is trained and evaluated on unless told otherwise: ``portraits``, or nothing.
        prompt_attributes: what captions of the portraits name (a list in the file); None: all attributes.
    """

    backbone: str
    task: str
    height: int
    width: int
    num_frames: int
    fps: float
    shift: float
    guidance: float
    recipe: str = ""
    image_condition: str | None = None
    max_sequence_length: int = 256
    prompt_template: dict[str, Any] | None = field(default=None, hash=False)
    codec: str | None = None
    data: str | None = None
    prompt_attributes: Annotated[
        Annotated[tuple[Attribute, ...], pydantic.Field(min_length=1)] | None, pydantic.AfterValidator(_in_order)
    ] = None

    @property
    def video(self) -> Video:
        return Video(height=self.height, width=self.width, num_frames=self.num_frames, fps=self.fps)

    def changed(self, video: Video | None, shift: float | None, guidance: float | None) -> Side:
        """With what a recipe sets for itself."""
        changes: dict[str, Any] = {} if video is None else video.model_dump()
        changes |= {k: v for k, v in (("shift", shift), ("guidance", guidance)) if v is not None}
        return replace(self, **changes)


@dataclass(frozen=True)
class Place:
    """A pipeline directory, complete, or filled from a hub part by part."""

    folder: Path
    repository: str | None = None

    def part(self, name: str) -> Path:
        """The folder of one part, with its weights; raises `BenchError` if it is not there."""
        if self.repository is not None:
            _download(self.repository, [f"{name}/*"])
        if not (self.folder / name).is_dir():
            raise BenchError(
                f"the backbone has no {name}",
                f"there is no folder {name} in {self.folder}",
                "give a complete diffusers pipeline directory",
            )
        return self.folder / name


def locate(source: str) -> tuple[Place, Side]:
    """The place and side of a registered name, a directory, or a hub id; raises `BenchError` for anything else."""
    wanted: str | None = None
    where: str | Path = source
    if source in BACKBONES.names():
        named = BACKBONES.get(source)()
        where, wanted = named.location(), named.task
    if isinstance(where, str) and not Path(where).exists() and _HUB_ID.fullmatch(where):
        folder = _download(where, _SMALL_FILES)
        # A snapshot's folder is named by its commit: the parts that come later are of the same one.
        place = Place(folder, f"{where.partition('@')[0]}@{folder.name}")
    else:
        place = Place(Path(where))
    named_here = source if source in BACKBONES.names() else re.sub(r"[^\w.-]+", "--", _base_name(source))
    side = _side(place.folder, source, named_here)
    if wanted is not None and side.task != wanted:
        raise BenchError(
            f"backbone {source!r} is of the wrong kind",
            f"it has to be {TASKS[wanted]}, and {place.folder} holds a model for {TASKS[side.task]}",
            f"give that directory itself as --backbone, or use one for {TASKS[wanted]}",
        )
    return place, side


def _base_name(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else source


def _side(folder: Path, source: str, name: str) -> Side:
    index = _read(folder / "model_index.json", source)
    transformer = _read(folder / "transformer" / "config.json", source)
    pipeline, kind = index.get("_class_name"), transformer.get("_class_name")
    if pipeline not in PIPELINES or kind != TRANSFORMER:
        raise BenchError(
            f"backbone {source!r} is no HunyuanVideo",
            f"its pipeline is {pipeline!r} with the transformer {kind!r}",
            f"use a checkpoint of {' or '.join(PIPELINES)} with a {TRANSFORMER}",
        )
    condition = transformer.get("image_condition_type")
    if condition not in (None, *IMAGE_CONDITIONS):
        raise BenchError(
            f"backbone {source!r} takes its first frame in an unknown way",
            f"its transformer's image_condition_type is {condition!r}",
            f"use a checkpoint with one of {', '.join(IMAGE_CONDITIONS)}",
        )
    if (condition is None) != (PIPELINES[pipeline] == "t2v"):
        raise BenchError(
            f"backbone {source!r} contradicts itself",
            f"its pipeline is {pipeline}, but its transformer's image_condition_type is {condition!r}",
            "mend model_index.json or transformer/config.json",
        )
    shift = _read(folder / "scheduler" / "scheduler_config.json", source).get("shift")
    if not isinstance(shift, int | float):
        raise BenchError(
            f"backbone {source!r} does not say its noise schedule",
            "its scheduler_config.json has no `shift`, and the scheduler's own default of 1.0 is not HunyuanVideo's",
            'add the shift that the model was made for, such as "shift": 7.0',
        )
    facts = {
        **VIDEO.model_dump(),
        "backbone": name,
        "recipe": "hunyuan",
        "task": PIPELINES[pipeline],
        "image_condition": condition,
        "shift": float(shift),
        "guidance": GUIDANCE if transformer.get("guidance_embeds", True) else 1.0,
    }
    if (folder / SIDE_FILE).is_file():
        stated = _read(folder / SIDE_FILE, source)
        wrong = [key for key in ("task", "image_condition") if key in stated and stated[key] != facts[key]]
        if wrong:
            raise BenchError(
                f"backbone {source!r} contradicts itself",
                f"{wrong[0]} is {stated[wrong[0]]!r} in its {SIDE_FILE} and {facts[wrong[0]]!r} by its configs",
                f"remove {wrong[0]} from {SIDE_FILE}",
            )
        facts |= {"recipe": stated.get("backbone", name), **stated}
    try:
        return pydantic.TypeAdapter(Side).validate_python(asdict(Side(**facts)))
    except (TypeError, pydantic.ValidationError) as error:
        reasons = (
            "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))
            if isinstance(error, pydantic.ValidationError)
            else str(error)
        )
        raise BenchError(
            f"backbone {source!r} can't be opened", f"its {SIDE_FILE}: {reasons}", "mend that file"
        ) from None


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise BenchError(
            f"backbone {source!r} can't be opened",
            f"it is neither one of {BACKBONES.names()} nor a hub id, and as a directory of a diffusers pipeline it "
            f"lacks {path.parent.name if path.parent.name in ('transformer', 'scheduler') else ''}/{path.name}",
            "give one of those names, owner/name on the hub, or the directory that `save_pretrained` wrote",
        ) from None
    except ValueError as error:
        raise BenchError(f"backbone {source!r} can't be opened", f"{path} is no JSON: {error}", "mend it") from None
    if not isinstance(data, dict):
        raise BenchError(f"backbone {source!r} can't be opened", f"{path} holds no mapping", "mend that file")
    return data


def _download(where: str, patterns: list[str]) -> Path:
    """Fetches files of a hub repository into the hub's own cache; what is there already is not fetched again."""
    repository, _, revision = where.partition("@")
    cure = (
        "connect and repeat the command: what has arrived is kept; or bring the directory here by other means and "
        "give its path as --backbone"
    )
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except GatedRepoError as error:
        why, cure = "its owner grants access on request", "accept its terms on the hub, then: hf auth login"
        raise BenchError(f"backbone {where!r} may not be downloaded", why, cure) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        why = f"the hub has no such model or revision ({type(error).__name__}), and there is no such directory"
        raise BenchError(
            f"backbone {where!r} can't be found", why, "check the name, or log in: hf auth login"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, _HTTP_ERROR, OSError) as error:
        why = f"the hub can't be reached, and its cache on this machine is not complete ({type(error).__name__})"
        raise BenchError(f"backbone {where!r} can't be downloaded", why, cure) from error
