"""The model card of an exported generator: what it is and how it is sampled, with code that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TASKS = {"t2v": "text-to-video", "i2v": "image-to-video"}
_PIPELINES = {"t2v": "HunyuanVideoPipeline", "i2v": "HunyuanVideoImageToVideoPipeline"}


def model_card(facts: Mapping[str, Any]) -> str:
    """Markdown from what ``generator.json`` holds."""
    steps = ", ".join(facts["sampling"])
    video, training = facts["video"], facts["training"]
    size = f"{video['num_frames']} frames of {video['height']}x{video['width']}"
    kind = "a LoRA" if facts["weights"] == "lora" else "a whole transformer"
    rows = "\n".join(
        f"| {number} | {how['sampler']} | {', '.join(f'{level:.4g}' for level in how['levels'])} |"
        for number, how in facts["sampling"].items()
    )
    cost = "\n".join(f"* {name.replace('_', ' ')}: {_plain(value)}" for name, value in training.items() if value)
    return f"""---
library_name: diffusers
tags: [video-generation, distillation, HunyuanVideo, {facts["method"]}]
---

# {facts["label"]} on {facts["backbone"]}

A few-step generator for {_TASKS[facts["task"]]}, distilled by `{facts["method"]}` with w2svd-bench; {kind}, for {steps}
sampling steps.

| steps | sampler | noise levels |
| ---: | :--- | :--- |
{rows}

Shift {facts["shift"]:g}, embedded guidance {facts["guidance"]:g}, clips of {size} at {video["fps"]:g} frames a second.

`ode` is Euler's method, what the diffusers pipeline does. `sde` predicts the clip and noises it again to the next
level: for more than one step the pipeline's own scheduler is *not* this sampler, and `w2svd-bench sample` is. At one
step both are the same.

## Use

```python
{_code(facts)}
```

## How it was trained

{cost}

* sha256 of the weights: `{facts["weights_sha256"]}`
* sha256 of the teacher's: `{facts["teacher_sha256"]}`

`generator.json` says the same to machines.
"""


def _plain(value: Any) -> str:
    return ", ".join(f"{count} of {name}" for name, count in value.items()) if isinstance(value, dict) else str(value)


def _code(facts: Mapping[str, Any]) -> str:
    pipeline, video, base = _PIPELINES[facts["task"]], facts["video"], facts["backbone"]
    half = facts["dtype"] == "bfloat16"
    whole, i2v = facts["weights"] == "full", facts["task"] == "i2v"
    typed = ", dtype=torch.bfloat16" if half else ""
    lines = ["import torch"] if half else []
    lines += [f"from diffusers import {pipeline}{', HunyuanVideoTransformer3DModel' if whole else ''}"]
    lines += ["from diffusers.utils import load_image", ""] if i2v else [""]
    if whole:
        merged = half and facts.get("weights_dtype") == "float32"
        lines += ["# In float32: bfloat16 would round away much of what the LoRA added."] if merged else []
        lines += [
            f'transformer = HunyuanVideoTransformer3DModel.from_pretrained("<this folder>/transformer"'
            f"{'' if merged else typed})",
            f'pipe = {pipeline}.from_pretrained("<{base}>", transformer=transformer{typed})',
        ]
    else:
        lines += [f'pipe = {pipeline}.from_pretrained("<{base}>"{typed})', 'pipe.load_lora_weights("<this folder>")']
    lines += [f"pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift={facts['shift']:g})"]
    lines += ["pipe.vae.enable_tiling()", 'pipe.to("cuda")'] if half else []
    lines += ['image = load_image("<first frame>")'] if i2v else []
    steps = min(map(int, facts["sampling"]), default=1)
    size = f"height={video['height']}, width={video['width']}, num_frames={video['num_frames']}"
    given = ["image=image"] if i2v else []
    given += ['prompt="..."', f"num_inference_steps={steps}", f"guidance_scale={facts['guidance']:g}", size]
    given += ['output_type="latent"'] if facts["codec"] else []  # such a pipeline has no VAE of its own
    lines += ["result = pipe(", *(f"    {one}," for one in given), ")"]
    return "\n".join(lines)
