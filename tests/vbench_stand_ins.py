"""Stand-ins for the weights of VBench's seven quality dimensions: random numbers in the real formats, under the real
names, in the layout of ``$VBENCH_CACHE_DIR``.

They let the real `vbench` package run from the first line to the last where the real weights can't be had. They can't
judge a video, but what they say depends on it. (Networks as their classes initialise them won't do: they answer nearly
the same to every input, and a test on them could hardly fail.) Use clips of 128x128 or larger: below that, motion
smoothness and dynamic degree are NaN inside VBench, whatever the weights.

Networks whose size VBench fixes are full size; their files stay small because all blocks of a transformer share the
numbers of the first, which are stored once. CLIP's sizes are read from its file, so the two CLIPs are tiny.

The classes of these networks live in VBench's environment only. So this file has two sides: `make` and `install` run in
ours and start it as a script under VBench's Python, which writes the files (25 s, 123 MB).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

# By the id of the weights, the file below $VBENCH_CACHE_DIR.
FILES = {
    "vbench-dino": "dino_model/dino_vitbase16_pretrain.pth",
    "vbench-clip-b32": "clip_model/ViT-B-32.pt",
    "vbench-clip-l14": "clip_model/ViT-L-14.pt",
    "vbench-aesthetic": "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
    "vbench-musiq": "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    "vbench-amt": "amt_model/amt-s.pth",
    "vbench-raft": "raft_model/models/raft-things.pth",
}


def make(folder: Path, python: Path) -> None:
    """Writes all files into ``folder``, which must not exist yet; it appears when all are there.

    Args:
        folder: becomes a folder in the layout of ``$VBENCH_CACHE_DIR``; seeds are fixed, so the numbers in it
            are always the same.
        python: the interpreter of an environment with vbench==0.1.5.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        files = Path(draft, "files")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        made = subprocess.run([python, __file__, files], env=environment, capture_output=True, text=True, check=False)
        assert made.returncode == 0, f"{python} could not write VBench's stand-ins:\n{made.stderr}"
        files.rename(folder)


def install(folder: Path, python: Path) -> None:
    """Puts the stand-ins among the weights; they are made in ``folder`` once, and taken from there the next time."""
    from w2svd_bench.metrics.weights import install_stand_in

    if not folder.is_dir():
        make(folder, python)
    for weight, file in FILES.items():
        install_stand_in(weight, folder / file)


# The other side: what follows runs in VBench's environment.


def dino() -> dict[str, Any]:
    """The state dict of DINO's ViT-B/16; timm's network has the same names and sizes."""
    net = import_module("timm").create_model("vit_base_patch16_224", num_classes=0)
    _spread(net)
    return _shared(net.state_dict(), r"^blocks\.\d+", "blocks.0")


def clip(patch: int, embedding: int) -> Any:
    """A traced CLIP of two layers for images of 224 pixels, which `clip.load` reads; ``embedding`` numbers an image."""
    torch = import_module("torch")
    net = import_module("clip.model").CLIP(
        embed_dim=embedding,
        image_resolution=224,
        vision_layers=2,
        vision_width=128,
        vision_patch_size=patch,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )
    _spread(net.visual)
    with torch.no_grad():
        return torch.jit.trace(net.eval(), (torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)))


def aesthetic() -> dict[str, Any]:
    """LAION's linear head on CLIP ViT-L/14: scores around 5 of 10 for features of length one."""
    torch = import_module("torch")
    return {"weight": 3 * torch.randn(1, 768), "bias": torch.full((1,), 5.0)}


def musiq() -> dict[str, Any]:
    """The state dict of pyiqa's MUSIQ: scores around 50 of 100."""
    net = import_module("pyiqa.archs.musiq_arch").MUSIQ(pretrained=False)
    _spread(net)
    net.head.weight.data *= 10
    net.head.bias.data.fill_(50)
    return _shared(net.state_dict(), r"encoderblock_\d+", "encoderblock_0")


def amt() -> dict[str, Any]:
    """AMT-S, whose picture between two frames is about their mean: the last layers, which make flow and detail, are
    weak.
    """
    folder = Path(import_module("vbench").__path__[0], "third_party", "amt")
    config = import_module("omegaconf").OmegaConf.load(folder / "cfgs" / "AMT-S.yaml")
    net = import_module("vbench.third_party.amt.utils.build_utils").build_from_cfg(config.network)
    decoders = [net.decoder4, net.decoder3, net.decoder2, net.decoder1]
    updates = [net.update4, net.update3, net.update2]
    for last in [d.convblock[-1] for d in decoders] + [u.flow_head[-1] for u in updates] + [net.comb_block[-1]]:
        last.weight.data *= 0.1
        last.bias.data *= 0.1
    return {"state_dict": net.state_dict()}


def raft() -> dict[str, Any]:
    """RAFT, saved from `DataParallel` as the real one was. Without biases and context its flow comes from how the two
    frames correlate, and is about as large as the threshold of 128x128 clips: some move, some (blank ones) don't.
    """
    sizes = import_module("easydict").EasyDict(small=False, mixed_precision=False, alternate_corr=False)
    net = import_module("vbench.third_party.RAFT.core.raft").RAFT(sizes)
    for name, tensor in net.named_parameters():
        if name.endswith("bias") or name == "cnet.conv2.weight":
            tensor.data.zero_()
    net.update_block.flow_head.conv2.weight.data *= 0.3
    return {f"module.{name}": tensor for name, tensor in net.state_dict().items()}


MAKERS: dict[str, Callable[[], Any]] = {
    "vbench-dino": dino,
    "vbench-clip-b32": lambda: clip(patch=32, embedding=512),
    "vbench-clip-l14": lambda: clip(patch=14, embedding=768),
    "vbench-aesthetic": aesthetic,
    "vbench-musiq": musiq,
    "vbench-amt": amt,
    "vbench-raft": raft,
}


def _spread(net: Any) -> None:
    """Draws all weights anew so that signals keep their size from layer to layer: deviation 1/sqrt(inputs), no bias.

    Queries and keys get twice that, so that attention picks some patches instead of averaging all of them.
    """
    for name, tensor in net.named_parameters():
        if tensor.ndim in (2, 4):
            tensor.data.normal_(std=tensor[0].numel() ** -0.5)
        elif name.endswith("bias"):
            tensor.data.zero_()
        if name.endswith(("qkv.weight", "in_proj_weight")):
            tensor.data[: 2 * len(tensor) // 3] *= 2


def _shared(weights: dict[str, Any], block: str, first: str) -> dict[str, Any]:
    """The state dict with the tensors of the first block in every block's place, which `torch.save` stores once."""
    return {name: weights[re.sub(block, first, name)] for name in weights}


def _write(folder: Path) -> None:
    torch = import_module("torch")
    for seed, (weight, file) in enumerate(FILES.items()):
        torch.manual_seed(seed)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        value = MAKERS[weight]()
        (torch.jit.save if isinstance(value, torch.jit.ScriptModule) else torch.save)(value, path)


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
