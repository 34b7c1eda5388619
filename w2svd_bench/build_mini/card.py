"""The model card of the miniature, written from its own files and the log of its building."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

KEPT = ("codec", "teacher iteration", "teacher:", "frame net", "clip net")


def render(assets: Path, log: str, backbone: str = "mini") -> str:
    """The card of ``assets/<backbone>``, mini or mini-hard, as Markdown.

    It says what the parts are, their sizes, and the log, thinned to one line in eight per stage.
    """
    folder = assets / backbone
    side = json.loads((folder / "w2svd_bench.json").read_text())
    rows = []
    for name, what in (
        ("transformer", "`HunyuanVideoTransformer3DModel`, the teacher (average of its training)"),
        ("codec", "`MiniCodec`: linear causal encoder, small convolutional decoder"),
        ("text_encoder", "`LlamaModel`, random and frozen"),
        ("text_encoder_2", "`CLIPTextModel`, random and frozen"),
    ):
        files = sorted((folder / name).glob("*.safetensors"))
        rows.append(
            f"| {name} | {what} | {_parameters(files):,} | {sum(f.stat().st_size for f in files) / 2**20:.2f} |"
        )
    own = backbone == "mini"  # the hard setting uses the feature nets of the default
    for file in sorted((assets / "features").glob("*.safetensors")) if own else ():
        rows.append(
            f"| features/{file.name} | feature net | {_parameters([file]):,} | {file.stat().st_size / 2**20:.2f} |"
        )
    table = "\n".join(rows)
    lines = [line for line in log.splitlines() if line.startswith(KEPT)]
    template = TEMPLATE if own else HARD
    return template.format(table=table, side=json.dumps(side, indent=2), log="\n".join(_thin(lines)))


def _parameters(files: list[Path]) -> int:
    total = 0
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                count = 1
                for size in file.get_slice(key).get_shape():
                    count *= size
                total += count
    return total


def _thin(lines: list[str]) -> list[str]:
    """Every line that is not one of a series, and of each series every eighth and the last."""
    kept = []
    for index, line in enumerate(lines):
        stage = line.split(" loss ")[0].rstrip("0123456789/ ")
        following = lines[index + 1] if index + 1 < len(lines) else ""
        last = not following.startswith(stage)
        if " loss " not in line or last or index % 8 == 0:
            kept.append(line)
    return kept


TEMPLATE = """# The miniature HunyuanVideo

A whole HunyuanVideo pipeline in a few megabytes, for talking portraits of 48 x 48 pixels and 17 frames, so that the
benchmark runs on any CPU in minutes. Every part is of the class that the 13B pipeline has, and is laid out as
`save_pretrained` writes it:

```python
from diffusers import HunyuanVideoPipeline
from w2svd_bench.backbones.mini_codec import MiniCodec

pipeline = HunyuanVideoPipeline.from_pretrained(folder, vae=MiniCodec.from_pretrained(folder / "codec"))
```

| part | what it is | parameters | MiB |
|---|---|---|---|
{table}

**Data.** Procedural portraits (`w2svd_bench/data/`): eight named attributes make the caption, and continuous jitter
inside each of them makes the clips differ. Splits never share a clip: the codec and the teacher saw only `train`, the
feature nets only `features`; prompts of an evaluation come from `test` (or `validation` for tuning), and its real
clips from `reference`.

**The codec is not a trained VAE.** Its encoder is a principal component analysis of 8 x 8 patches (frame 0) and
4 x 8 x 8 patches (the rest): the compression, channels and causality of the real VAE, 8 x 8 x 4 to 16 channels, without
its nonlinearity. Its decoder adds a learned correction that sees neighbouring latents, which removes the seams between
patches. A real `AutoencoderKLHunyuanVideo` goes through the same interface and is tested there.

**Text.** One token a caption phrase, eight a caption; the encoders are random and frozen, which is enough to tell
phrases apart. A phrase that is not in the vocabulary means nothing to it. The 13B model's prompt template and its crop
of 95 tokens do not belong here; these do:

```json
{side}
```

**What it can't tell you.** It is a small and easy problem: smooth, low-dimensional data, one teacher, short clips.
Orderings of methods here need not hold for HunyuanVideo. `fid[mini]` and `fvd[mini]` compare with each other only.

## Building it again

`w2svd-bench build-mini --out build-mini`, then copy `build-mini/assets` over `w2svd_bench/assets`. Every stage is
seeded; that two builds on one machine leave the same weights is tested on a rehearsal of a few iterations a stage
(`make test-slow`).
The log of the build, thinned:

```
{log}
```
"""

HARD = """# The hard setting of the miniature HunyuanVideo

**A second, labelled setting, not the default.** It is the [miniature](../mini/README.md) with another teacher, one
whose prompts name three of a portrait's eight attributes: skin, hair and backdrop. Shirt, face, eyes, speech and head
are then the generator's to choose, so a prompt asks for a whole distribution of clips. A method that averages over it
blurs, and one that picks from it leaves kinds of clips out; the default setting, whose prompts name nearly everything,
can hardly show either.

```
w2svd-bench train --backbone mini-hard --method lcm
w2svd-bench eval --backbone mini-hard --steps 1 4 28
```

| part | what it is | parameters | MiB |
|---|---|---|---|
{table}

**What is the same.** Clips, splits, codec, text encoders, tokenizers and feature nets are the default setting's, and so
is the architecture of the transformer. Reference clips are the same ones, of all attributes; prompts are the same
clips' captions without five of their phrases, so there are 64 different ones. Recipes are the miniature's, tuned there
and not here.

**What is not.** The teacher starts from the same random weights and sees the same clips in the same order for as many
iterations, with the shorter captions; nothing of the default's teacher is in it. Phrases of the other five attributes
mean nothing to it, and `w2svd-bench sample` refuses them.

```json
{side}
```

**What it can't tell you.** The clips are as smooth and short as the default's: what is harder is to cover what the
prompt leaves open, not to draw a single clip. Its scores compare with each other and with none of the default setting:
the eval sets `portraits-3of8-...` and `portraits-...` stand in no table together. Orderings of methods here need not
hold for HunyuanVideo.

## Building it again

`w2svd-bench build-mini --hard --out build-mini`, then copy `build-mini/assets` over `w2svd_bench/assets`. Every stage
is seeded. The seconds are of a machine that may have had other work. The log of the build, thinned:

```
{log}
```
"""
