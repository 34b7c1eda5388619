"""Generators in and out of the ecosystem's formats: a diffusers transformer, or a LoRA that pipelines load.

A full generator is written as ``transformer/`` (what `save_pretrained` writes); a LoRA generator as
``pytorch_lora_weights.safetensors`` with its alpha in the metadata (what `load_lora_weights` reads).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from peft.utils import get_peft_model_state_dict

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.roles import Network, Roles
from w2svd_bench.errors import BenchError
from w2svd_bench.types import GENERATOR, average_of

LORA_FILE = "pytorch_lora_weights.safetensors"


def export_generator(roles: Roles, spec: Any, backbone: Backbone, folder: Path) -> str:
    """Writes the generator's average (or the generator, where none is kept) and returns its file's sha256."""
    name = average_of(GENERATOR) if spec.ema is not None else GENERATOR
    if spec.weights == "full":
        transformer = roles[name].network.transformer
        transformer.save_pretrained(folder / "transformer")
    else:
        transformer = roles.base.transformer
        HunyuanVideoPipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name=name),
            # Pipelines load a LoRA at strength alpha / rank: the role's own strength belongs there.
            transformer_lora_adapter_metadata=transformer.peft_config[name].to_dict()
            | {"lora_alpha": spec.rank * spec.strength},
        )
    return generator_sha256(folder)


def generator_sha256(folder: Path) -> str:
    """sha256 of an exported generator's weight files."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def load_generator(backbone: Backbone, folder: Path) -> Network:
    """Opens an exported generator through diffusers, as anybody would."""
    if (folder / "transformer").is_dir():
        transformer = HunyuanVideoTransformer3DModel.from_pretrained(folder / "transformer")
        return Network(transformer.to(backbone.device).eval(), backbone.side.guidance)
    if (folder / LORA_FILE).is_file():
        backbone.pipeline.load_lora_weights(folder, weight_name=LORA_FILE, adapter_name=GENERATOR)
        backbone.pipeline.fuse_lora(components=["transformer"])
        backbone.pipeline.unload_lora_weights()
        return backbone.network()
    raise BenchError(
        f"{folder} holds no generator", f"there is neither transformer/ nor {LORA_FILE} in it", "train again"
    )
