"""Generators in and out of the ecosystem's formats: a diffusers transformer, or a LoRA that pipelines load.

A full generator is written as ``transformer/`` (what `save_pretrained` writes); a LoRA generator as
``pytorch_lora_weights.safetensors`` with its alpha in the metadata (what `load_lora_weights` reads). Beside either lie
``generator.json`` (how it is to be sampled) and ``README.md`` (the same for people: a model card).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from w2svd_bench.backbones import loading
from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.card import model_card
from w2svd_bench.backbones.network import Network
from w2svd_bench.backbones.roles import Roles
from w2svd_bench.backbones.sharding import gathered
from w2svd_bench.errors import BenchError
from w2svd_bench.record import write_atomically
from w2svd_bench.samplers import Sampler
from w2svd_bench.types import GENERATOR, average_of

LORA_FILE = "pytorch_lora_weights.safetensors"
SIDE_FILE = "generator.json"


@dataclass(frozen=True)
class Story:
    """What is told of a generator beside its weights.

    Attributes:
        method: its name; label: what tables call this variant; data: the name of what it was trained on.
        samplers: by number of steps, for every number that is offered.
        cost: of the training, as plain numbers.
    """

    method: str
    label: str
    samplers: Mapping[int, Sampler]
    data: str = ""
    cost: Mapping[str, Any] = field(default_factory=dict)


def export_generator(
    roles: Roles, spec: Any, backbone: Backbone, folder: Path, story: Story | None = None, lead: bool = True
) -> str:
    """Writes the generator's average (or the generator, where none is kept) and returns its files' sha256.

    Every process has to call it, because sharded weights are gathered; only the one with ``lead`` writes, and the
    others return an empty string.
    """
    name = average_of(GENERATOR) if spec.ema is not None else GENERATOR
    state = gathered(roles.parameters(name))
    if not lead:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    if spec.weights == "full":
        _write_full(roles, backbone, state, folder / "transformer")
    else:
        _write_lora(roles, name, spec, backbone, state, folder)
    digest = generator_sha256(folder)
    if story is not None:
        facts = _facts(spec, backbone, story, digest)
        write_atomically(folder / SIDE_FILE, json.dumps(facts, indent=2) + "\n")
        write_atomically(folder / "README.md", model_card(facts))
    return digest


def _write_full(roles: Roles, backbone: Backbone, state: Mapping[str, Tensor], folder: Path) -> None:
    config = {k: v for k, v in roles.base.transformer.config.items() if not k.startswith("_")}
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel(**config)
    transformer.load_state_dict({k: v.to(backbone.dtype) for k, v in state.items()}, strict=True, assign=True)
    transformer.save_pretrained(folder)


def _write_lora(
    roles: Roles, name: str, spec: Any, backbone: Backbone, state: Mapping[str, Tensor], folder: Path
) -> None:
    config = roles.base.transformer.peft_config[name].to_dict()
    loading.PIPELINE_CLASSES[backbone.side.task].save_lora_weights(
        folder,
        transformer_lora_layers=dict(state),
        # Pipelines load a LoRA at strength alpha / rank: the role's own strength belongs there.
        transformer_lora_adapter_metadata=config | {"lora_alpha": spec.rank * spec.strength},
    )


def _facts(spec: Any, backbone: Backbone, story: Story, digest: str) -> dict[str, Any]:
    side = backbone.side
    facts: dict[str, Any] = {
        "format": 1,
        "method": story.method,
        "label": story.label,
        "backbone": side.backbone,
        "task": side.task,
        "image_condition": side.image_condition,
        "weights": spec.weights,
        "weights_sha256": digest,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "codec": side.codec,
        "teacher_sha256": backbone.teacher_sha256,
        "video": side.video.model_dump(),
        "shift": side.shift,
        "guidance": side.guidance,
        "sampling": {
            str(steps): {"sampler": sampler.kind, "levels": list(sampler.levels)}
            for steps, sampler in sorted(story.samplers.items())
        },
        "training": {"data": story.data, **story.cost},
    }
    if spec.weights == "lora":
        facts["lora"] = {"rank": spec.rank, "alpha": spec.rank * spec.strength}
    return facts


def generator_sha256(folder: Path) -> str:
    """sha256 of an exported generator's weight files."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(2**22), b""):
                digest.update(block)
    return digest.hexdigest()


def load_generator(backbone: Backbone, folder: Path) -> Network:
    """Opens an exported generator through diffusers, as anybody would."""
    if (folder / "transformer").is_dir():
        transformer = loading.open_transformer(folder / "transformer", backbone.dtype).to(backbone.device).eval()
        return backbone.network_of(transformer)
    if not (folder / LORA_FILE).is_file():
        raise BenchError(
            f"{folder} holds no generator", f"there is neither transformer/ nor {LORA_FILE} in it", "train again"
        )
    pipeline = loading.PIPELINE_CLASSES[backbone.side.task]
    state, metadata = pipeline.lora_state_dict(folder, weight_name=LORA_FILE, return_lora_metadata=True)
    pipeline.load_lora_into_transformer(
        state, transformer=backbone.transformer, adapter_name=GENERATOR, metadata=metadata
    )
    if backbone.dtype == torch.float32:
        # Half the time a pass. In bfloat16 the sum would round away what the low-rank branch adds.
        backbone.transformer.fuse_lora(adapter_names=[GENERATOR])
        backbone.transformer.unload_lora()
    return backbone.network()


def write_merged(network: Network, backbone: Backbone, generator: Path, folder: Path) -> str:
    """Writes an opened generator as a whole transformer, its LoRA added in, in float32; returns the weights' sha256.

    Args:
        network: what `load_generator` gave.
        backbone: the one it was opened with.
        generator: the folder it came from, whose ``generator.json`` goes along.
        folder: where ``transformer/`` and the card are written.
    """
    transformer = network.transformer
    if getattr(transformer, "peft_config", None):
        transformer.to(torch.float32)  # in bfloat16 the sum would round away much of what the low-rank branch adds
        transformer.fuse_lora(adapter_names=[GENERATOR])
        transformer.unload_lora()
    transformer.register_to_config(_name_or_path="")
    transformer.save_pretrained(folder / "transformer")
    digest = generator_sha256(folder)
    if (generator / SIDE_FILE).is_file():
        facts = json.loads((generator / SIDE_FILE).read_text()) | {
            "weights": "full",
            "weights_sha256": digest,
            "weights_dtype": str(transformer.dtype).removeprefix("torch."),
        }
        facts.pop("lora", None)
        write_atomically(folder / SIDE_FILE, json.dumps(facts, indent=2) + "\n")
        write_atomically(folder / "README.md", model_card(facts))
    return digest
