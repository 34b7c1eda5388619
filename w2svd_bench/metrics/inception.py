"""Features of pytorch-fid's Inception network, which FID and KID stand on (Heusel et al. 2017, arXiv 1706.08500).

The network and its forward pass are those of the ``pytorch_fid`` package; only the file of weights is ours to find, so
that it is checked by its hash, loaded without unpickling code, and never asked of a network. Frames reach it by one of
two ways, which give very different numbers for large frames (Parmar et al. 2022, arXiv 2104.11222):

- ``pytorch-fid``: x/255, and the package's own forward pass: bilinear to 299x299 without antialias, then 2x-1.
- ``clean``: clean-fid's: each colour is resized by PIL in float32, bicubic with antialias, clipped to 0..255, not
  rounded; then (x-128)/128. clean-fid itself runs NVIDIA's TorchScript copy of the network, so that its numbers and
  these are the same but for what the conversion of the weights to pytorch-fid's file changed.

Axes: B clips, F frames of a clip, K of them that are looked at, N frames of any clips, H, W pixels.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pytorch_fid import inception as package
from torch import Tensor, nn

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.metrics import weights
from w2svd_bench.metrics.base import FeatureNet
from w2svd_bench.metrics.precision import full_precision

Resize = Literal["pytorch-fid", "clean"]

WEIGHTS = "inception-pytorchfid"
SIDE = 299
DIMENSIONS = 2048
MOST_FRAMES = 8  # a clip's frames are so alike that more of them add cost and hardly any knowledge
CHUNK = 32  # frames a forward pass on a GPU

RESIZES = {
    "pytorch-fid": "x/255, bilinear to 299x299 without antialias, 2x-1, as pytorch-fid",
    "clean": "PIL bicubic to 299x299 with antialias, each colour in float32, clip to 0..255, (x-128)/128, as clean-fid "
    "but for its network, which is pytorch-fid's here",
}


class InceptionFeatures(FeatureNet):
    """2048 numbers a frame: the last pooling layer of Inception-v3, of at most 8 frames a clip; an image is one frame.

    Args:
        device: "cpu", "cuda", ... On a CPU the frames of one clip go through the network together and no others, so
            that a clip's features don't depend on its batch, to the last bit. On other devices chunks of 32 frames do,
            of several clips, the last one filled up with black frames, so that the same kernels run every time.
        resize: the way frames reach the network, see above.

    Raises:
        BenchError: for a resize of another name, and where the weights are missing or damaged.
    """

    def __init__(self, device: str = "cpu", resize: Resize = "pytorch-fid") -> None:
        if resize not in RESIZES:
            raise unknown_name("resize", resize, RESIZES)
        self._device, self._resize = device, resize
        self._found = weights.find(WEIGHTS)
        self._net = _network(str(self._found.path), self._found.sha256, device)

    @property
    def id(self) -> str:
        return (
            f"at most {MOST_FRAMES} frames a clip, evenly spaced: k=min({MOST_FRAMES},F), frame floor((i+0.5)*F/k); "
            f"{RESIZES[self._resize]}; net pytorch-fid Inception-v3 {self.weights_sha256}, pool3, "
            f"{DIMENSIONS}-d, float32"
        )

    @property
    def weights_sha256(self) -> str:
        return self._found.sha256

    @property
    def flags(self) -> tuple[str, ...]:
        return self._found.flags

    def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
        """uint8 clips (B, F, H, W, 3) of any size to float32 (B, min(8, F), 2048).

        Raises:
            BenchError: for clips of another type or shape.
        """
        shape = clips_BFHWC.shape
        if len(shape) != 5 or shape[-1] != 3 or 0 in shape[1:] or clips_BFHWC.dtype != np.uint8:
            raise BenchError(
                f"clips of shape {shape} and type {clips_BFHWC.dtype}",
                "this metric reads uint8 clips of shape (B, F, H, W, 3)",
                "pass frames as they were decoded: colours last, 0 to 255; an image is a clip of one frame",
            )
        picked_BKHWC = clips_BFHWC[:, frame_indices(shape[1])]
        count = picked_BKHWC.shape[1]
        if len(picked_BKHWC) == 0:
            return np.zeros((0, count, DIMENSIONS), np.float32)
        with full_precision(), torch.autocast(torch.device(self._device).type, enabled=False):
            if torch.device(self._device).type == "cpu":
                rows = [self._run(frames) for frames in picked_BKHWC]
            else:
                rows = list(self._run_in_chunks(picked_BKHWC.reshape(-1, *shape[2:])))
        return torch.cat(rows).numpy().reshape(len(picked_BKHWC), count, DIMENSIONS)

    def _run_in_chunks(self, frames_NHWC: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(frames_NHWC), CHUNK):
            chunk = frames_NHWC[start : start + CHUNK]
            full = np.zeros((CHUNK, *frames_NHWC.shape[1:]), np.uint8)
            full[: len(chunk)] = chunk
            yield self._run(full)[: len(chunk)]

    def _run(self, frames_NHWC: np.ndarray) -> Tensor:
        """One forward pass: (N, 2048) on the CPU."""
        if self._resize == "clean":
            # The network's forward pass can't spoil frames that have its size already: its resize copies them, and
            # 2 * (x / 256) - 1 is (x - 128) / 128 to the last bit, since a power of two scales without rounding.
            x = torch.from_numpy(np.stack([clean_resize(frame) for frame in frames_NHWC])) / 256
        else:
            x = torch.from_numpy(np.array(frames_NHWC)).float() / 255
        x = x.permute(0, 3, 1, 2).contiguous().to(self._device)
        return self._net(x)[0].reshape(-1, DIMENSIONS).cpu()


def frame_indices(frames: int) -> list[int]:
    """Which of a clip's frames are looked at: the middles of k = min(8, frames) equal parts."""
    count = min(MOST_FRAMES, frames)
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]


def clean_resize(frame_HWC: np.ndarray) -> np.ndarray:
    """clean-fid's resize of a uint8 frame (H, W, 3): float32 (299, 299, 3) in 0..255, with fractions."""
    colours = [Image.fromarray(frame_HWC[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(colour.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for colour in colours]
    return np.stack(resized, axis=-1).clip(0, 255)


@lru_cache(maxsize=4)
def _network(path: str, sha256: str, device: str) -> nn.Module:
    """The network, once a process and device; the hash makes another file under the same name another network."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net = _with_weights(state)
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, KeyError) as error:
        raise BenchError(
            f"the weights in {path} can't be loaded",
            (str(error).strip() or type(error).__name__).splitlines()[0],
            "`w2svd-bench weights check` tells whether it is the right file; fetch it again if it is not",
        ) from error
    return net.eval().to(device)


_PATCH = threading.Lock()


def _with_weights(state: dict[str, Tensor]) -> nn.Module:
    """pytorch-fid's network with these weights, where the package would download its own."""
    with _PATCH, torch.random.fork_rng(devices=[]):  # a new network draws from the global generator
        download = package.load_state_dict_from_url
        package.load_state_dict_from_url = lambda *_, **__: state
        try:
            net: nn.Module = package.InceptionV3([package.InceptionV3.BLOCK_INDEX_BY_DIM[DIMENSIONS]])
        finally:
            package.load_state_dict_from_url = download
    return net
