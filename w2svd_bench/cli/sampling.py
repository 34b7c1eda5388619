"""``w2svd-bench sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from w2svd_bench.cli import options


def sample(
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A caption; repeat the flag for more.")] = None,
    method: Annotated[str, typer.Option("--method", help="Label of a trained run, or euler.")] = "euler",
    steps: Annotated[int, typer.Option("--steps", min=1)] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the noise.")] = 0,
    run_seed: Annotated[int, typer.Option("--run-seed", min=0, help="Which run of the method.")] = 0,
    backbone: options.Backbone = "mini",
    out: options.Out = options.RUNS,
    to: Annotated[Path, typer.Option("--to", help="Folder for the clips.")] = Path("samples"),
    gif: Annotated[bool, typer.Option("--gif", help="Write GIF instead of mp4.")] = False,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
) -> None:
    """Sample clips for prompts: one video each, and a contact sheet.

    Example:
      w2svd-bench sample --method w2svd --steps 4 --prompt "pale skin, red hair, teal backdrop, blue shirt, narrow face,
      big eyes, fast speech, swaying head"
    """
    options.load_plugin(plugin)
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.data.attributes import parse_caption
    from w2svd_bench.data.portraits import captions
    from w2svd_bench.evaluate import sampling
    from w2svd_bench.evaluate.pictures import contact_sheet, write_video
    from w2svd_bench.train.run import run_folder

    device = options.resolve_device(device)
    options.use_one_thread(device)
    prompts = prompt or captions("test", range(4))
    opened = Backbone.load(backbone, device)
    if opened.name == "mini":
        for text in prompts:
            parse_caption(text)  # a phrase that the miniature never learned would be drawn as noise
    folder = run_folder(out, opened.name, method, run_seed)
    subject = (
        sampling.Subject.untrained(method, opened)
        if not folder.exists() and method == "euler"
        else sampling.Subject.open(folder, backbone, device)
    )
    sampler = subject.method.sampler(steps)
    frames = [f for part in sampling.sample(subject, sampler, prompts, seed) for f in part.frames.numpy()]
    stem = f"{method}-steps{steps}-seed{seed}"
    ending = "gif" if gif else "mp4"
    fps = subject.backbone.side.fps
    written = [write_video(clip, to / f"{stem}-{index}.{ending}", fps) for index, clip in enumerate(frames)]
    written.append(contact_sheet(list(zip(prompts, frames, strict=True)), to / f"{stem}.png", every=2))
    for path in written:
        print(path)  # one a line, whole, for whoever reads this in a script
