"""``w2svd-bench sample``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from w2svd_bench.cli import options
from w2svd_bench.cli.progress import errors
from w2svd_bench.config import Recipe, validated
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS

if TYPE_CHECKING:
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.evaluate.sampling import Conditioning, Subject

CLIPS = 4  # where no prompts are given
COLUMNS = 9  # of the contact sheet


def sample(
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A caption; repeat the flag for more.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A first frame for all prompts, or one for each.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="Label of a trained run, or euler.")] = "euler",
    steps: Annotated[int, typer.Option("--steps", min=1)] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the noise.")] = 0,
    run_seed: Annotated[int, typer.Option("--run-seed", min=0, help="Which run of the method.")] = 0,
    backbone: options.Backbone = "mini",
    data: options.Data = None,
    out: options.Out = options.RUNS,
    to: Annotated[Path, typer.Option("--to", help="Folder for the clips.")] = Path("samples"),
    gif: Annotated[bool, typer.Option("--gif", help="Write GIF instead of mp4.")] = False,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
) -> None:
    """Sample clips for prompts: one video each, and a contact sheet.

    Without --prompt the prompts are the first four of the portraits, or with --data CACHE of its held-out clips.

    Examples:
      w2svd-bench sample --method w2svd --steps 4 --prompt "pale skin, red hair, teal backdrop, blue shirt, narrow face,
      big eyes, fast speech, swaying head"
      w2svd-bench sample --backbone hunyuan-i2v --method w2svd --image face.png --prompt "A woman speaks to the camera"
    """
    options.load_plugin(plugin)
    from w2svd_bench.evaluate import sampling
    from w2svd_bench.evaluate.pictures import contact_sheet, write_video

    cache = None if data in (None, "portraits") else Path(data)
    _refuse_both(cache, prompt, image)
    device = options.resolve_device(device)
    options.use_one_thread(device)
    subject = _subject(method, run_seed, backbone, cache, out, device)
    if cache is not None:
        prompts, conditioning = _held_out(cache, subject.backbone)
    else:
        prompts, conditioning = _prompted(subject.backbone, prompt or [], image or [])
    size = sampling.batch_size(subject.backbone.latent_shape)
    batches = [range(first, min(first + size, len(prompts))) for first in range(0, len(prompts), size)]
    made = list(sampling.sample(subject, subject.method.sampler(steps), conditioning, batches, seed))
    frames = [clip for part in made for clip in part.frames.numpy()]
    broken = [
        index for part in made for index, whole in zip(part.indices, part.whole.tolist(), strict=True) if not whole
    ]
    if broken:
        names = ", ".join(map(str, broken))
        told = f"clip {names}: numbers that are not finite; its pictures are black, or what the codec makes of them"
        errors.print(told, markup=False, highlight=False, soft_wrap=True)
    stem = f"{method}-steps{steps}-seed{seed}"
    ending = "gif" if gif else "mp4"
    fps = subject.backbone.side.fps
    written = [write_video(clip, to / f"{stem}-{index}.{ending}", fps) for index, clip in enumerate(frames)]
    every = -(-len(frames[0]) // COLUMNS)
    written.append(contact_sheet(list(zip(prompts, frames, strict=True)), to / f"{stem}.png", every))
    for path in written:
        print(path)  # one a line, whole, for whoever reads this in a script


def _refuse_both(cache: Path | None, prompts: list[str] | None, images: list[Path] | None) -> None:
    if cache is not None and (prompts or images):
        raise BenchError(
            f"--data {cache} and {'--prompt' if prompts else '--image'} don't go together",
            "a cache brings the prompts (and first frames) of its held-out clips, encoded",
            "leave one of them out",
        )


def _subject(method: str, run_seed: int, source: str, cache: Path | None, out: Path, device: str) -> Subject:
    """The run that was asked for; without one, euler on the backbone itself, at the size of the cache's clips."""
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.evaluate.cacheset import video_of
    from w2svd_bench.evaluate.sampling import Subject
    from w2svd_bench.train.run import run_folder

    folder = run_folder(out, options.backbone_name(source), method, run_seed)
    if folder.exists() or method != "euler":
        return Subject.open(folder, source, device)
    recipe = validated(Recipe, METHODS.get(method).recipe(options.recipe_name(source)), f"the recipe of {method}")
    if cache is not None:
        recipe = recipe.model_copy(update={"video": video_of(cache)})
    return Subject.untrained(method, Backbone.for_recipe(source, device, recipe))


def _held_out(cache: Path, backbone: Backbone) -> tuple[Sequence[str], Conditioning]:
    """The first held-out prompts of a cache, with their conditioning."""
    from w2svd_bench.data.cache import LatentCache

    opened = LatentCache.open(cache, backbone, "test")
    return [clip.caption for clip in opened.entries[:CLIPS]], opened.cond


def _prompted(backbone: Backbone, texts: list[str], images: list[Path]) -> tuple[Sequence[str], Conditioning]:
    """Prompts with their first frames, if the backbone takes any; portraits where none are given."""
    from w2svd_bench.data.attributes import parse_caption
    from w2svd_bench.evaluate.evalset import PortraitSet
    from w2svd_bench.evaluate.pictures import read_picture

    side = backbone.side
    if images and side.task == "t2v":
        raise BenchError(
            f"{backbone.name} takes no --image", "it makes videos from text alone", "use an image-to-video backbone"
        )
    if not texts and not images:
        portraits = PortraitSet(side, CLIPS)
        return portraits.prompts, partial(portraits.conditioning, backbone)
    if (images and len(images) not in (1, len(texts))) or not texts:
        why = f"there are {len(images)} images and {len(texts)} prompts"
        raise BenchError("first frames and prompts don't match", why, "give one image for all prompts, or one for each")
    if side.data == "portraits":
        for text in texts:
            # A phrase that the miniature never learned would be drawn as noise.
            parse_caption(text, side.prompt_attributes)
    pictures = [read_picture(path, side.height, side.width) for path in images]
    given = np.stack(pictures * (len(texts) // len(pictures))) if pictures else None
    return texts, lambda indices: backbone.encode_prompts(
        [texts[i] for i in indices], None if given is None else given[list(indices)]
    )
