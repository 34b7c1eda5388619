"""I3D, the network that FVD stands on (Carreira and Zisserman 2017, arXiv 1705.07750), and how clips are shown to it.

Two files of weights are in use. StyleGAN-V's (Skorokhodov et al. 2022, arXiv 2112.14683) is a TorchScript archive, a
port of the network on TensorFlow Hub that FVD was defined with (Unterthiner et al. 2018, arXiv 1812.01717), and it can
rescale and resize by itself. VideoGPT's (Yan et al. 2021, arXiv 2104.10157), which TATS and cd-fvd use too, is a
state dict without code; the network for it is the class that the cd-fvd package ships. Either gives the 400 logits.

Tools differ in what they do to the frames before, and that moves FVD more than many a method does. So a `Convention`
is data, and all of it stands in the id of the features.
Axes: B clips, C colours, F frames, H, W pixels, K vectors a clip (here 1), D numbers a vector.
"""

from __future__ import annotations

import math
import pickle
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.metrics import weights
from w2svd_bench.metrics.base import FeatureNet
from w2svd_bench.metrics.precision import full_precision
from w2svd_bench.metrics.weights import Found

FRAMES = 16  # of a clip that papers give to I3D
LEAST_FRAMES = 10  # fewer leave nothing for the last pooling over time; other tools draw the line here too
SIDE = 224
LOGITS = 400

SQUASH = f"squash to {SIDE}x{SIDE}, bilinear without antialias"
CROP = f"shorter side to {SIDE}, bilinear without antialias, centre crop"


def _squash(x_FCHW: Tensor) -> Tensor:
    return interpolate(x_FCHW, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def _crop(x_FCHW: Tensor) -> Tensor:
    """The longer side is rounded up, and a crop that can't be centred lies half a pixel up or left, as in VideoGPT."""
    height, width = x_FCHW.shape[-2:]
    scale = SIDE / min(height, width)
    size = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
    x = interpolate(x_FCHW, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return x[..., top : top + SIDE, left : left + SIDE]


# What may happen to frames on their way, float32 (F, C, H, W) that start in 0..255. Ids are made of the names.
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "x/255": lambda x: x / 255,
    "2x-1": lambda x: 2 * x - 1,
    SQUASH: _squash,
    CROP: _crop,
}


@dataclass(frozen=True)
class Convention:
    """How a clip is shown to a network.

    Args:
        steps: names of `STEPS`, in order. The order matters: resizing before or after rescaling is the same but for
            rounding, which a deep network makes more of. None leaves all of it to the network's own file.
        frames: how many frames are shown: the first of the clip, of generated and of reference clips alike. (Some tools
            cut real clips at random; then the same clip has another score each time.)

    Raises:
        BenchError: for fewer frames than I3D can read, or an unknown step.
    """

    steps: tuple[str, ...] | None
    frames: int = FRAMES

    def __post_init__(self) -> None:
        if self.frames < LEAST_FRAMES:
            raise BenchError(
                f"I3D can't read {self.frames} frames",
                f"its strides over time leave nothing of fewer than {LEAST_FRAMES}",
                f"show it {FRAMES} frames, as papers do",
            )
        for step in self.steps or ():
            if step not in STEPS:
                raise unknown_name("step", step, STEPS)

    @property
    def id(self) -> str:
        """All of it in a few words."""
        inside = f"rescale and resize inside the archive (squash to {SIDE}x{SIDE})"
        return f"first {self.frames} frames, " + (inside if self.steps is None else ", ".join(self.steps))


# As the tools of these names have it; theirs are the numbers to compare with.
STYLEGAN_V = Convention(None)
COMMON_METRICS = VIDEOGPT = Convention(("x/255", CROP, "2x-1"))  # common_metrics_on_video_quality, its StyleGAN-V path
FASTVIDEO = Convention(("x/255", "2x-1", SQUASH))
CD_FVD = Convention((SQUASH, "x/255", "2x-1"))


class VideoNet(FeatureNet):
    """A network with one vector of features a clip.

    Args:
        found: the weights.
        convention: what it is shown.
        device: "cpu", "cuda", ...
    """

    def __init__(self, found: Found, convention: Convention, device: str) -> None:
        self._found, self.convention, self._device = found, convention, device

    @property
    @abstractmethod
    def net(self) -> str:
        """What network it is and what is taken from it, for the id."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """D."""

    @abstractmethod
    def run(self, x_BCFHW: Tensor) -> Tensor:
        """One clip, prepared, on the device, to its features, of D numbers in any shape.

        float32 as the convention leaves it; uint8 where the convention has no steps.
        """

    @property
    def id(self) -> str:
        return f"{self.convention.id}; {self.net} {self.weights_sha256}, {self.dimensions}-d, float32, one clip a batch"

    @property
    def weights_sha256(self) -> str:
        return self._found.sha256

    @property
    def flags(self) -> tuple[str, ...]:
        return self._found.flags

    def refuses(self, frames: int, height: int, width: int) -> str | None:
        if frames >= self.convention.frames:
            return None
        return f"it reads the first {self.convention.frames} frames of a clip, and these have {frames}"

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """uint8 clips (B, F, H, W, 3) of at least ``convention.frames`` frames and any size to float32 (B, 1, D).

        One clip at a time, so that no clip's last bits depend on those beside it.

        Raises:
            BenchError: for clips of another type or shape, or with too few frames.
        """
        shape = clips_BFHWC.shape
        if len(shape) != 5 or shape[-1] != 3 or 0 in shape[1:] or clips_BFHWC.dtype != np.uint8:
            raise BenchError(
                f"clips of shape {shape} and type {clips_BFHWC.dtype}",
                "this metric reads uint8 clips of shape (B, F, H, W, 3)",
                "pass frames as they were decoded: colours last, 0 to 255",
            )
        if reason := self.refuses(*shape[1:4]):
            raise BenchError("the clips are too short", reason, "score longer clips, or leave this metric out")
        with full_precision():
            shown = (prepare(self.convention, clip, self._device) for clip in clips_BFHWC)
            rows = [self.run(x).reshape(-1).float().cpu() for x in shown]
        return torch.stack(rows)[:, None].numpy() if rows else np.zeros((0, 1, self.dimensions), np.float32)


def prepare(convention: Convention, clip_FHWC: np.ndarray, device: str = "cpu") -> Tensor:
    """What a network is shown of one uint8 clip, (1, C, F, H, W): float32, but uint8 for a convention without steps."""
    frames = torch.from_numpy(np.array(clip_FHWC[: convention.frames])).to(device)
    x = frames.permute(0, 3, 1, 2)
    if convention.steps is not None:
        x = x.float().contiguous()
        for step in convention.steps:
            x = STEPS[step](x)
    return x.transpose(0, 1)[None].contiguous()


class I3DFeatures(VideoNet):
    """StyleGAN-V's TorchScript archive: its logits, (B, 1, 400)."""

    def __init__(self, convention: Convention = STYLEGAN_V, device: str = "cpu") -> None:
        found = weights.find("i3d-torchscript")
        super().__init__(found, convention, device)
        self._net = _archive(str(found.path), found.sha256, device)

    @property
    def net(self) -> str:
        return "StyleGAN-V I3D, logits"

    @property
    def dimensions(self) -> int:
        return LOGITS

    def run(self, x_BCFHW: Tensor) -> Tensor:
        # x by keyword: the archive's first parameter is found by name when it is wrapped. uint8 with both flags is what
        # StyleGAN-V itself passes. "Features" are the archive's word for logits before the softmax. A batch of one
        # comes back without its batch axis.
        inside = self.convention.steps is None
        return self._net(x=x_BCFHW, rescale=inside, resize=inside, return_features=True)


class KineticsFeatures(VideoNet):
    """VideoGPT's weights in the class that the cd-fvd package ships: logits, averaged over time, (B, 1, 400)."""

    def __init__(self, convention: Convention, device: str = "cpu") -> None:
        package = from_cdfvd("i3d.pytorch_i3d")
        found = weights.find("i3d-kinetics400")
        super().__init__(found, convention, device)
        self._net = _kinetics(package, str(found.path), found.sha256, device)

    @property
    def net(self) -> str:
        return "I3D of i3d_pretrained_400.pt, logits averaged over time"

    @property
    def dimensions(self) -> int:
        return LOGITS

    def run(self, x_BCFHW: Tensor) -> Tensor:
        return self._net(x_BCFHW)


def from_cdfvd(module: str) -> ModuleType:
    """A module of cd-fvd's networks, such as "i3d.pytorch_i3d"; the package is optional.

    Raises:
        BenchError: it is not installed.
    """
    try:
        return import_module(f"cdfvd.third_party.{module}")
    except ImportError as error:
        raise BenchError(
            "the network of this metric is not installed",
            f"it is a part of the package cd-fvd: {error}",
            "pip install 'w2svd-bench[cdfvd]'",
        ) from error


def load_into(net: nn.Module, path: str, wrappers: tuple[str, ...] = ()) -> None:
    """Loads a file of tensors into a network that has exactly these; nothing but tensors is unpickled.

    Args:
        net: the network.
        path: a file of `torch.save`, a state dict.
        wrappers: keys of which one may hold the state dict.

    Raises:
        BenchError: the file holds other objects or other tensors.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        state = next((content[key] for key in wrappers if key in content), content)
        net.load_state_dict(state)
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
        raise _unreadable(path, error) from error


@cache
def _archive(path: str, sha256: str, device: str) -> Any:
    """The archive, once a process and device; the hash is there so that another file under the same name is another."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # torch 2.15 calls all of it deprecated
        try:
            return torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise _unreadable(path, error) from error


@cache
def _kinetics(package: ModuleType, path: str, sha256: str, device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # a new network draws from the global generator
        net: nn.Module = package.InceptionI3d(LOGITS, in_channels=3)
    load_into(net, path)
    return net.eval().requires_grad_(False).to(device)


def _unreadable(path: str, error: Exception) -> BenchError:
    return BenchError(
        f"the weights in {path} can't be loaded",
        f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
        "`w2svd-bench weights check` tells whether it is the right file; fetch it again if it is not",
    )
