"""What is changed of VBench in its environment: how it gets and keeps networks, and nothing that it computes.

Networks are kept between calls. Weights are read from the files that a request names and from nowhere else: no network,
no `wget`, no `git`. Pickles in them can't run code. DINO is built by timm, with DINO's own position encoding, instead
of by code cloned from GitHub. Runs beside `worker.py`, in VBench's environment; imported by nobody else.
"""

from __future__ import annotations

import importlib
import math
import os
import pickle
import socket
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# What each dimension's module calls to load its networks; the answers are kept.
LOADERS = {
    "aesthetic_quality": ("get_aesthetic_model",),
    "imaging_quality": ("MUSIQ",),
    "motion_smoothness": ("MotionSmoothness",),
    "dynamic_degree": ("DynamicDegree",),
    "human_action": ("create_model",),
    "temporal_style": ("SimpleTokenizer", "ViCLIP"),
    "overall_consistency": ("SimpleTokenizer", "ViCLIP"),
}
I2V = ("i2v_subject",)


class Breakdown(Exception):
    """Nothing can be scored, whatever the clip is: a network can't be loaded, or there is no memory."""


def no_network(folder: Path) -> None:
    """Makes every way out fail at once: sockets of this process, and the programs that VBench calls."""
    stubs = folder / "stubs"
    stubs.mkdir()
    for name in ("wget", "git", "curl", "unzip"):
        (stubs / name).write_text(f"#!/bin/sh\necho 'VBench called {name}: the worker has no network' >&2\nexit 1\n")
        (stubs / name).chmod(0o755)
    os.environ["PATH"] = f"{stubs}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            raise OSError(f"the worker has no network (asked for {address})")
        connect(self, address)

    socket.socket.connect = refuse  # type: ignore[method-assign,assignment]


_kept: dict[tuple[Any, str], Any] = {}


def kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same loader, asked once for each set of arguments; its errors are nobody's clip's fault."""

    def once(*args: Any, **kwargs: Any) -> Any:
        key = (make, repr((args, kwargs)))
        if key not in _kept:
            try:
                _kept[key] = make(*args, **kwargs)
            except Exception as error:
                name = getattr(make, "__name__", str(make))
                raise Breakdown(f"{name}: {type(error).__name__}: {error}") from error
        return _kept[key]

    return once


class _Inert(dict[Any, Any]):
    """Stands where a pickle names a class: takes whatever it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


class _TensorsOnly(pickle.Unpickler):
    """Rebuilds tensors and plain containers; everything else becomes `_Inert`, so that no file runs code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict") or (module, name) == ("torch", "Size"):
            return super().find_class(module, name)
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return super().find_class(module, name)
        if module == "torch" and name.endswith("Storage"):
            return super().find_class(module, name)
        return _Inert


def tensors_only(load: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.load` for files from elsewhere: tensors; what else a training script left beside them is dropped."""
    safe = types.SimpleNamespace(Unpickler=_TensorsOnly, load=pickle.load, __name__="tensors_only")

    def read(file: Any, map_location: Any = None, **_: Any) -> Any:
        try:
            return load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError:
            return load(file, map_location=map_location, weights_only=False, pickle_module=safe)

    return read


def dino_vitb16(repo_or_dir: str, model: str, *, path: str, **_: Any) -> Any:
    """In place of `torch.hub.load`: DINO's ViT-B/16 (Caron et al. 2021, arXiv 2104.14294) from its state dict.

    timm's vision transformer has the same layers and names; how DINO stretches its position encoding to a picture that
    is not 224x224 is the one thing that timm does differently, and so it stands here.
    """
    import torch
    from timm.models.vision_transformer import VisionTransformer

    if model != "dino_vitb16":
        raise ValueError(f"the worker can't build {model!r} of {repo_or_dir}")

    class Dino(VisionTransformer):
        def forward(self, x: Any) -> Any:
            self.square = x.shape[-2] == x.shape[-1]
            return super().forward(x)

        def _pos_embed(self, x: Any) -> Any:
            # x: (B, h, w, D) patches, h and w rounded down to whole ones
            batch, high, wide, width = x.shape
            own = math.isqrt(self.pos_embed.shape[1] - 1)
            first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
            if not (self.square and high == own):  # a grid of the right size is stretched, too, if pixels were cut off
                # The tenth of a patch is DINO's: it keeps rounding from losing a row, and moves the values a little.
                scale = ((high + 0.1) / own, (wide + 0.1) / own)
                grid = grid.reshape(1, own, own, width).permute(0, 3, 1, 2)
                grid = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
                grid = grid.permute(0, 2, 3, 1).reshape(1, high * wide, width)
            x = torch.cat((self.cls_token.expand(batch, -1, -1), x.reshape(batch, high * wide, width)), dim=1)
            return x + torch.cat((first, grid), dim=1)

    net = Dino(patch_size=16, num_classes=0, dynamic_img_size=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))
    net.patch_embed.img_size = None  # any size: what is left of whole patches is cut off, as by DINO's convolution
    for block in net.blocks:
        block.attn.fused_attn = False  # written out, as in DINO
    net.load_state_dict(torch.load(path, map_location="cpu"), strict=True)
    return net  # in training mode, as DINO's hub entry leaves it: it has no dropout, so that changes nothing


class Suite:
    """The networks and modules of VBench, loaded as they are asked for.

    Args:
        folder: where the cache folder that VBench reads its weights from is laid out, of links.
    """

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        # VBench clones DINO's code into this folder unless it is there; `dino_vitb16` needs none of it.
        (self.cache / "dino_model" / "facebookresearch_dino_main").mkdir(parents=True)
        os.environ["VBENCH_CACHE_DIR"] = str(self.cache)
        self._modules: dict[str, Any] = {}
        self.tick: Callable[[], None] = lambda: None

    def link_weights(self, weights: Mapping[str, str]) -> None:
        """Makes VBench's cache folder hold these files, by their names in it."""
        for name, source in weights.items():
            target = self.cache / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_symlink():
                if os.readlink(target) == source:
                    continue
                _kept.clear()  # they are kept by the name of the link
                target.unlink()
            target.symlink_to(source)

    def module(self, dimension: str) -> Any:
        """The module of a dimension, its loaders kept and its progress bar ours."""
        if not self._modules:
            self._import_vbench()
        if dimension not in self._modules:
            package = "vbench2_beta_i2v" if dimension in I2V else "vbench"
            module: Any = importlib.import_module(f"{package}.{dimension}")
            for name in LOADERS.get(dimension, ()):
                setattr(module, name, kept(getattr(module, name)))
            module.tqdm = self._counted
            self._modules[dimension] = module
        return self._modules[dimension]

    def _import_vbench(self) -> None:
        import clip
        import torch

        # The vocabulary of ViCLIP is CLIP's; VBench would fetch it while it is imported.
        self.link_weights({"ViCLIP/bpe_simple_vocab_16e6.txt.gz": clip.simple_tokenizer.default_bpe()})
        torch.load = tensors_only(torch.load)
        torch.hub.load = kept(dino_vitb16)
        clip.load = kept(clip.load)
        self._modules["vbench"] = importlib.import_module("vbench")

    def _counted(self, items: Iterable[Any], **_: Any) -> Iterator[Any]:
        for item in items:
            yield item
            self.tick()
