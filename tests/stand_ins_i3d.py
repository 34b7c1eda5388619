"""Random weights in the formats of the three networks for clips, made on demand and always the same.

A metric over them measures nothing that means anything, but all of its code runs, and runs as with the real files.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

# VideoMAE's class, narrowed: the real one has 1.0 G parameters.
NARROW: dict[str, Any] = dict(patch_size=14, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2, qkv_bias=True)


class ScriptedI3D(nn.Module):
    """A small network with the signature and the habits of StyleGAN-V's archive."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 16, (3, 8, 8), stride=(2, 8, 8), padding=(1, 0, 0))
        self.second = nn.Conv3d(16, 32, (3, 4, 4), stride=(1, 4, 4))
        self.logits = nn.Linear(32, 400)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        """Clips (B, 3, F, H, W), in 0..255 with ``rescale`` and in [-1, 1] without, to logits or to probabilities."""
        x = x.float()
        if resize:
            x = interpolate(x, size=(x.shape[2], 224, 224), mode="trilinear", align_corners=False)
        if rescale:
            x = 2 * x / 255 - 1
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = self.logits(x.mean(dim=(2, 3, 4)))
        if not return_features:
            x = torch.softmax(x, dim=1)
        return x.squeeze()  # which takes the batch axis too where there is one clip


def i3d_torchscript() -> bytes:
    """For ``i3d_torchscript.pt``: an archive with code, as `torch.jit.save` writes it."""
    with _seeded(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")
        script = torch.jit.script(_lively(ScriptedI3D()).eval())
        buffer = io.BytesIO()
        torch.jit.save(script, buffer)
    return buffer.getvalue()


def i3d_kinetics400() -> bytes:
    """For ``i3d_pretrained_400.pt``: the state dict of the real network, 12.7 M parameters. Needs cd-fvd's class."""
    from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d

    with _seeded():
        return _saved(_lively(InceptionI3d(400, in_channels=3)).state_dict())


def narrow_videomae() -> Callable[..., nn.Module]:
    """What stands in for the package's ``vit_giant_patch14_224``, to be patched in where `videomae` is to be loaded."""
    from cdfvd.third_party.VideoMAEv2.videomaev2_finetune import VisionTransformer

    return lambda pretrained=False, **settings: VisionTransformer(
        **NARROW, norm_layer=partial(nn.LayerNorm, eps=1e-6), **settings
    )


def videomae() -> bytes:
    """For ``vit_g_hybrid_pt_1200e_ssv2_ft.pth``, of the narrowed class: half precision, under a key."""
    with _seeded():
        net = narrow_videomae()(img_size=224, num_classes=174, all_frames=16, tubelet_size=2, use_mean_pooling=True)
        return _saved({"module": _lively(net).half().state_dict()})


def _lively(net: nn.Module) -> nn.Module:
    """He's initialisation: with torch's own, deep networks give all clips nearly the same features."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return net


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _saved(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
