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
    pipeline, video = _PIPELINES[facts["task"]], facts["video"]
    lines = [f"from diffusers import {pipeline}", ""]
    if facts["weights"] == "lora":
        lines += [
            f'pipe = {pipeline}.from_pretrained("<{facts["backbone"]}>")',
            'pipe.load_lora_weights("<this folder>")',
        ]
    else:
        lines[0] = f"from diffusers import {pipeline}, HunyuanVideoTransformer3DModel"
        lines += [
            'transformer = HunyuanVideoTransformer3DModel.from_pretrained("<this folder>/transformer")',
            f'pipe = {pipeline}.from_pretrained("<{facts["backbone"]}>", transformer=transformer)',
        ]
    first = min(map(int, facts["sampling"]), default=1)
    lines += [
        "scheduler = pipe.scheduler",
        f"pipe.scheduler = type(scheduler).from_config(scheduler.config, shift={facts['shift']:g})",
    ]
    image = "image=image, " if facts["task"] == "i2v" else ""
    lines += [
        f'video = pipe({image}prompt="...", num_inference_steps={first}, guidance_scale={facts["guidance"]:g},',
        f"             height={video['height']}, width={video['width']}, num_frames={video['num_frames']}).frames[0]",
    ]
    return "\n".join(lines)
