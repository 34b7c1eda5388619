"""The feature nets of the miniature benchmark: one that looks at a frame, one that looks at a clip.

The frame net is four strided convolutions and a linear layer to 64 features; it learned to read a portrait's colours,
shape, pose, mouth and eyes, and how blurred and noisy it is. The clip net is two temporal convolutions over the
features of the *frozen* frame net: a 3-D convolution trained from pixels learned the sway of the head and stayed blind
to the mouth. Neither has a normalisation layer, so features keep the contrast and brightness of a frame.
Axes: B clips, F frames of a clip, N frames, P numbers read off a frame, Q off a clip.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from w2svd_bench.errors import BenchError

FOLDER = Path(__file__).parent.parent / "assets" / "features"
SUMS = "SHA256SUMS.json"
SIZE = FRAMES, HEIGHT, WIDTH = 17, 48, 48
NUM_FEATURES = 64

# What the frame net reads off a frame, with the count of numbers. Colours are RGB in [0, 1]; mouth and eye_open are 0
# (shut) to 1; head_x and head_y are in half widths of the frame, tilt in radians, the sizes as in data/render.py; blur
# is the strength of a Gaussian of 1.2 pixels and noise that of white noise of 0.1, both 0 on a clean frame, 1 at most.
COLOURS = ("skin", "hair", "backdrop", "shirt")
STATICS = dict.fromkeys(COLOURS, 3) | {"face_width": 1, "eye_size": 1, "hair_length": 1, "blur": 1, "noise": 1}
MOTIONS = ("mouth", "head_x", "head_y", "tilt", "eye_open")
FRAME_TARGETS: dict[str, int] = STATICS | dict.fromkeys(MOTIONS, 1)

# What the clip net reads off a clip: the statics, each motion frame by frame, and statistics of the motions.
STATISTICS = ("mouth_mean", "mouth_std", "mouth_change", "sway", "tilting", "blink", "speech")
CLIP_TARGETS: dict[str, int] = STATICS | dict.fromkeys(MOTIONS, FRAMES) | dict.fromkeys(STATISTICS, 1)


def columns(targets: dict[str, int], name: str) -> slice:
    """Where a target's numbers stand among all of them."""
    start = 0
    for key, width in targets.items():
        if key == name:
            return slice(start, start + width)
        start += width
    raise KeyError(name)


def to_input(frames_NHWC: Tensor) -> Tensor:
    """uint8 frames (N, 48, 48, 3) to what the frame net sees: float32 (N, 3, 48, 48) in [-1, 1]."""
    return frames_NHWC.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


class _FeatureNet(nn.Module):
    """Features, and a linear reading of targets from them; the targets' mean and spread are part of the weights."""

    def __init__(self, targets: dict[str, int], feature_scale: float) -> None:
        super().__init__()
        self.targets, self.feature_scale = targets, feature_scale
        size = sum(targets.values())
        self.heads = nn.Linear(NUM_FEATURES, size)
        self.register_buffer("target_mean", torch.zeros(size))
        self.register_buffer("target_std", torch.ones(size))

    def embed(self, x: Tensor) -> Tensor:
        """The 64 features before scaling."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The features as metrics use them: scaled, so that distances read in the range people know of FID."""
        return self.embed(x) * self.feature_scale

    def read(self, x: Tensor) -> Tensor:
        """The targets in their own units."""
        return self.heads(self.embed(x)) * self.target_std + self.target_mean


class FrameNet(_FeatureNet):
    """Frames (N, 3, 48, 48) in [-1, 1] to features (N, 64) or to readings (N, P)."""

    def __init__(self, feature_scale: float = 1.0) -> None:
        super().__init__(FRAME_TARGETS, feature_scale)
        widths = (3, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 3, NUM_FEATURES), nn.SiLU())

    def embed(self, x: Tensor) -> Tensor:
        return self.trunk(x)


class ClipNet(_FeatureNet):
    """Clips as frame features (B, 17, 64) to features (B, 64) or to readings (B, Q).

    The frame net is a part of it, so that one file, and one hash, fixes the whole way from pixels to features.
    """

    def __init__(self, feature_scale: float = 1.0) -> None:
        super().__init__(CLIP_TARGETS, feature_scale)
        self.frame_net = FrameNet()
        self.trunk = nn.Sequential(
            nn.Conv1d(NUM_FEATURES, 64, 5, padding=2),
            nn.SiLU(),
            nn.Conv1d(64, 64, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * 9, NUM_FEATURES),
            nn.SiLU(),
        )

    def embed(self, x: Tensor) -> Tensor:
        return self.trunk(x.transpose(1, 2))


NETS: dict[str, type[FrameNet] | type[ClipNet]] = {"frame": FrameNet, "clip": ClipNet}


@torch.no_grad()
def clip_by_clip(run: nn.Module, clips_BFHWC: np.ndarray, device: str, read: bool = False) -> np.ndarray:
    """Runs a net's features (or its readings) on each clip.

    One clip at a time: the batch that the arithmetic library sees never changes, so neither do the last bits of a
    clip's features, whatever clips stand beside it. TensorFloat-32 is off, so that other devices give the same numbers.

    Returns:
        float32, (B, F, ...) of a frame net and (B, ...) of a clip net.
    """
    out = []
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        for frames in clips_BFHWC:
            x = to_input(torch.from_numpy(np.array(frames)).to(device))
            if isinstance(run, ClipNet):
                x = run.frame_net.embed(x)[None]
            y = run.read(x) if read else run(x)  # type: ignore[operator]
            out.append((y[0] if isinstance(run, ClipNet) else y).float().cpu())
    return torch.stack(out).numpy() if out else np.zeros((0, 0), np.float32)


def save_net(net: FrameNet | ClipNet, name: str, about: dict[str, Any], folder: Path = FOLDER) -> None:
    """Writes ``<name>.safetensors`` and ``<name>.json`` and renews their lines in SHA256SUMS.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    (folder / f"{name}.safetensors").write_bytes(to_bytes(weights))
    config = {"net": name, "feature_scale": net.feature_scale, "targets": net.targets, **about}
    (folder / f"{name}.json").write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
    sums_file = folder / SUMS
    sums = json.loads(sums_file.read_text()) if sums_file.exists() else {}
    for file in (f"{name}.json", f"{name}.safetensors"):
        sums[file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    sums_file.write_text(json.dumps(sums, indent=2, sort_keys=True) + "\n")


def load_net(name: str, device: str = "cpu", folder: Path = FOLDER) -> tuple[Any, str]:
    """Loads "frame" or "clip" for evaluation.

    Returns:
        the net, frozen and on the device, and the sha256 of its weights.

    Raises:
        BenchError: for a file that is missing or is not the one that SHA256SUMS.json names.
    """
    content = {file: _verified(folder, file) for file in (f"{name}.json", f"{name}.safetensors")}
    config = json.loads(content[f"{name}.json"][0])
    net = NETS[name](feature_scale=config["feature_scale"])
    weights, sha256 = content[f"{name}.safetensors"]
    net.load_state_dict(from_bytes(weights))
    if list(config["targets"].items()) != list(net.targets.items()):  # their order is the order of the columns
        raise BenchError(
            f"feature net {name!r} was trained for other targets",
            f"{folder / name}.json and mini_nets.py differ",
            "train the feature nets again, or install a matching version of w2svd-bench",
        )
    return net.to(device).eval().requires_grad_(False), sha256


def _verified(folder: Path, file: str) -> tuple[bytes, str]:
    try:
        sums = json.loads((folder / SUMS).read_text())
        content = (folder / file).read_bytes()
    except OSError as error:
        raise BenchError(
            f"the feature net file {file} can't be read", f"{error}", "reinstall w2svd-bench: the file is a part of it"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sums.get(file) != sha256:
        raise BenchError(
            f"{folder / file} is not the file that scores are made with",
            f"its sha256 is {sha256}, and {SUMS} says {sums.get(file)}",
            "reinstall w2svd-bench; scores of another net are not comparable",
        )
    return content, sha256
