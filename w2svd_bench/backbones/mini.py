"""Makes the parts of the miniature HunyuanVideo, untrained: the transformer, both text encoders, the directory.

Every part is of the same class as in the 13B pipeline, only small; what is saved is what `save_pretrained` writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

TEXT_DIM = 32
SIDE_FILE = "w2svd_bench.json"

TRANSFORMER: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 3,
    "attention_head_dim": 32,
    "num_layers": 1,
    "num_single_layers": 3,
    "num_refiner_layers": 1,
    "mlp_ratio": 4.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": TEXT_DIM,
    "pooled_projection_dim": TEXT_DIM,
    "rope_axes_dim": (8, 12, 12),
}


def new_transformer(seed: int = 0) -> HunyuanVideoTransformer3DModel:
    """A fresh transformer of 1,044,480 parameters."""
    torch.manual_seed(seed)
    return HunyuanVideoTransformer3DModel(**TRANSFORMER)


def new_tokenizer(phrases: Sequence[str], separator: str, ends: bool) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a caption phrase; with ``ends`` it adds the [BOS] and [EOS] that CLIP pools at."""
    special = ["[PAD]", "[UNK]", "[SPARE]", "[BOS]", "[EOS]"]  # 2 stays spare: CLIP reads an eos id of 2 as "legacy"
    vocabulary = {word: i for i, word in enumerate([*special, *phrases])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{separator.strip()}\s*"), behavior="removed")
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 3), ("[EOS]", 4)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        padding_side="right",
        model_max_length=77,
    )


def new_text_encoders(vocabulary_size: int, seed: int = 0) -> tuple[LlamaModel, CLIPTextModel]:
    """Frozen random text encoders with embeddings of unit size, so that every phrase is told apart from the start."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": TEXT_DIM, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": vocabulary_size}
    ids = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 4}
    llama = LlamaModel(
        LlamaConfig(num_hidden_layers=3, num_key_value_heads=2, max_position_embeddings=128, **sizes, **ids)
    )
    clip = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1, max_position_embeddings=77, **sizes, **ids))
    with torch.no_grad():
        for name, parameter in [*llama.named_parameters(), *clip.named_parameters()]:
            if parameter.ndim == 2:
                parameter.normal_(0.0, _initial_size(name, parameter.shape[1]))
    return llama.eval(), clip.eval()


def _initial_size(name: str, fan_in: int) -> float:
    if "token_embedding" in name or "embed_tokens" in name:
        return 1.0
    if "position" in name:
        return 0.1
    # CLIP pools one position: what attention brings there must not drown in that position's own embedding.
    carries_words = "self_attn.v_proj" in name or "self_attn.out_proj" in name
    return (2.0 if carries_words else 0.6) * fan_in**-0.5


def save_pipeline(
    folder: Path,
    transformer: HunyuanVideoTransformer3DModel,
    phrases: Sequence[str],
    separator: str,
    side: dict[str, Any],
) -> None:
    """Writes a pipeline directory without a VAE (the codec lies beside it), and the side file of the benchmark."""
    tokenizers = [new_tokenizer(phrases, separator, ends) for ends in (False, True)]
    llama, clip = new_text_encoders(len(tokenizers[0]))
    pipeline = HunyuanVideoPipeline(
        text_encoder=llama,
        tokenizer=tokenizers[0],
        text_encoder_2=clip,
        tokenizer_2=tokenizers[1],
        transformer=transformer,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=side["shift"]),
    )
    pipeline.save_pretrained(folder)
    (folder / SIDE_FILE).write_text(json.dumps(side, indent=2) + "\n")
