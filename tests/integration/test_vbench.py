"""The real VBench in its own environment, on stand-ins for its weights: `make test-vbench`.

Without ``W2SVD_BENCH_VBENCH_PYTHON`` uv builds the environment, which takes minutes the first time.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from w2svd_bench.metrics.base import ClipFile
from w2svd_bench.metrics.vbench import environment, scores
from w2svd_bench.metrics.vbench.metric import VBench, VBenchI2V
from w2svd_bench.metrics.weights import weights_folder
from w2svd_bench.types import Skipped

import vbench_stand_ins

pytestmark = pytest.mark.vbench

FRAMES, HEIGHT, WIDTH, FPS = 8, 128, 136, 8  # about the smallest that all dimensions take
PROMPTS = ("a face / with \\ slashes", "日本語の顔 " * 40)

# The classes as VBench's readme calls them, nothing of ours around them. DINO's code can't be had offline, so its
# network is written down once more, in plain torch: it must agree with the worker's, which timm builds.
HUBCONF = """
import torch
from torch.nn import functional as F

class Dino(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, x):
        def linear(x, name):
            return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

        def norm(x, name):
            return F.layer_norm(x, (768,), self.weights[name + ".weight"], self.weights[name + ".bias"], 1e-6)

        high, wide = x.shape[-2:]
        x = F.conv2d(x, self.weights["patch_embed.proj.weight"], self.weights["patch_embed.proj.bias"], stride=16)
        place = self.weights["pos_embed"]
        grid = place[:, 1:].reshape(1, 14, 14, 768).permute(0, 3, 1, 2)
        if (high, wide) != (224, 224):
            scale = ((high // 16 + 0.1) / 14, (wide // 16 + 0.1) / 14)
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        first = (self.weights["cls_token"] + place[:, :1]).expand(len(x), -1, -1)
        x = torch.cat((first, (x + grid).flatten(2).transpose(1, 2)), 1)
        for n in range(12):
            y = linear(norm(x, f"blocks.{n}.norm1"), f"blocks.{n}.attn.qkv")
            q, k, v = y.unflatten(-1, (3, 12, 64)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + linear(y, f"blocks.{n}.attn.proj")
            y = F.gelu(linear(norm(x, f"blocks.{n}.norm2"), f"blocks.{n}.mlp.fc1"))
            x = x + linear(y, f"blocks.{n}.mlp.fc2")
        return norm(x, "norm")[:, 0]

def dino_vitb16(path, **_):
    return Dino(torch.load(path))
"""
DIRECT = """
import json, os, sys
videos, image, dimensions, out = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
from vbench import VBench
VBench("cpu", "", out).evaluate(videos, "direct", dimension_list=dimensions, local=True, mode="custom_input")
results = json.load(open(out + "/direct_eval_results.json"))
from vbench2_beta_i2v.i2v_subject import compute_i2v_subject
listed = [{"prompt_en": "", "dimension": ["i2v_subject"], "image_name": image,
           "video_list": [os.path.join(videos, name) for name in sorted(os.listdir(videos))]}]
json.dump(listed, open(out + "/listed.json", "w"))
dino = os.environ["VBENCH_CACHE_DIR"] + "/dino_model"
how = {"repo_or_dir": dino + "/facebookresearch_dino_main", "path": dino + "/dino_vitbase16_pretrain.pth",
       "model": "dino_vitb16", "source": "local", "resolution": "1-1"}
results["i2v_subject"] = compute_i2v_subject(out + "/listed.json", "cpu", how)
json.dump(results, open(out + "/all.json", "w"))
"""


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A weights folder of this module's own; for the worker, one thread."""
    folder = tmp_path_factory.mktemp("vbench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("W2SVD_BENCH_WEIGHTS", str(folder / "weights"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="module")
def python() -> Path:
    return environment.interpreter()


@pytest.fixture(scope="module")
def stand_ins(own_folders: Path, python: Path) -> None:
    vbench_stand_ins.install(own_folders / "made", python)


@pytest.fixture(scope="module")
def videos(own_folders: Path) -> list[np.ndarray]:
    """Two clips (F, H, W, 3) in the folder "videos": a moving picture, and noise; stored without any loss."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8 + 9, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    moving = np.stack([picture[:, 7 * k : 7 * k + WIDTH] for k in range(FRAMES)])
    clips = [moving, rng.integers(0, 256, moving.shape, dtype=np.uint8)]
    (own_folders / "videos").mkdir()
    for k, clip in enumerate(clips):
        write(own_folders / "videos" / f"{k}.mp4", clip)
    return clips


@pytest.fixture(scope="module")
def vbench(stand_ins: None) -> Iterator[VBench]:
    metric = VBench("cpu")
    yield metric
    metric.close()


def write(path: Path, clip_FHWC: np.ndarray) -> None:
    """H.264 in RGB without loss, which OpenCV and decord read to the last bit."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=FPS, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = clip_FHWC.shape[1], clip_FHWC.shape[2], "rgb24"
        for frame in clip_FHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode())


def clip(path: Path, **changes: Any) -> ClipFile:
    fields: dict[str, Any] = {"path": path, "key": path.stem, "prompt": PROMPTS[0], "frames": FRAMES}
    return ClipFile(**(fields | {"height": HEIGHT, "width": WIDTH, "fps": float(FPS)} | changes))


def ignore(done: int, total: int) -> None:
    """A progress bar that nobody looks at."""


def flickering(clip_FHWC: np.ndarray) -> float:
    """1 - mean |difference of neighbouring frames| / 255, with VBench's float32 means of each pair and of them all."""
    floats = clip_FHWC.astype(np.float32)
    pairs = [np.mean(np.abs(after - before)) for before, after in pairwise(floats)]
    return (255.0 - float(np.mean(np.array(pairs)))) / 255.0


def test_flickering_is_what_its_formula_says(own_folders: Path, videos: list[np.ndarray], python: Path) -> None:
    """The real class, which needs no weights for it, in the environment as it is pinned."""
    metric = VBench("cpu", only=["temporal_flickering"])
    told: list[tuple[int, int]] = []
    clips = [clip(own_folders / "videos" / f"{k}.mp4", prompt=PROMPTS[k]) for k in range(2)]
    values = metric.score(clips, lambda done, total: told.append((done, total)))["vbench.temporal_flickering"]
    assert values == pytest.approx([flickering(frames) for frames in videos], rel=0, abs=1e-12)
    assert len({round(float(value), 2) for value in values if isinstance(value, float)}) == 2
    assert told[0] == (0, 2) and told[-1] == (2, 2)
    if environment.PYTHON_VARIABLE not in os.environ:
        pinned = environment.pins()
        assert metric.versions == {name: pinned[name] for name in metric.versions}
    metric.close()


def test_the_worker_says_what_the_classes_say(
    own_folders: Path, videos: list[np.ndarray], vbench: VBench, python: Path
) -> None:
    """All seven dimensions, their Quality and image to video, against the classes called in a process of their own."""
    from PIL import Image

    image = own_folders / "first.png"
    Image.fromarray(np.ascontiguousarray(videos[0][0])).save(image)
    code = weights_folder() / "vbench" / "dino_model" / "facebookresearch_dino_main"
    code.mkdir()
    (code / "hubconf.py").write_text(HUBCONF)
    out = own_folders / "direct"
    subprocess.run(
        [python, "-c", DIRECT, own_folders / "videos", image, json.dumps(scores.QUALITY), out],
        env={**os.environ, "VBENCH_CACHE_DIR": str(weights_folder() / "vbench")},
        check=True,
    )
    direct = {
        name: (aggregate, [one["video_results"] for one in sorted(results, key=lambda one: one["video_path"])])
        for name, (aggregate, results) in json.loads((out / "all.json").read_text()).items()
    }
    clips = [clip(own_folders / "videos" / f"{k}.mp4", prompt=PROMPTS[k], image=image) for k in range(2)]
    values = vbench.score(clips, ignore)
    i2v = VBenchI2V("cpu")
    values = {**values, **i2v.score(clips, ignore)}
    i2v.close()

    plain = {name.removesuffix("[stand-in]").rpartition(".")[2]: column for name, column in values.items()}
    assert set(plain) == {*scores.QUALITY, "quality", "i2v_subject"}
    for name, (aggregate, column) in direct.items():
        ours = np.array(plain[name], dtype=float)
        scale = 100 if name == "imaging_quality" else 1  # VBench divides its mean, not the values of single clips
        tolerance = 1e-6 if name in ("subject_consistency", "i2v_subject") else 0  # our network in plain torch
        assert ours == pytest.approx(np.array(column, dtype=float) / scale, rel=0, abs=tolerance or 1e-15), name
        assert ours.mean() == pytest.approx(aggregate, rel=0, abs=tolerance or 1e-12), name
        assert name == "dynamic_degree" or len(set(column)) == 2, f"{name} does not depend on the clip"
    for row, quality in enumerate(plain["quality"]):
        assert quality == scores.quality({name: plain[name][row] for name in scores.QUALITY})


def test_bad_files_have_a_reason_and_the_others_their_values(
    own_folders: Path, videos: list[np.ndarray], vbench: VBench
) -> None:
    good = own_folders / "videos" / "0.mp4"
    bad = {name: own_folders / f"{name}.mp4" for name in ("cut", "empty", "text", "gone")}
    bad["cut"].write_bytes(good.read_bytes()[:-4000])
    bad["empty"].write_bytes(b"")
    bad["text"].write_text("no video " * 1000)
    clips = [clip(good), *(clip(path) for path in bad.values()), clip(good, frames=40), clip(good)]
    values = vbench.score(clips, ignore)
    for name, column in values.items():
        assert isinstance(column[0], float) and column[0] == column[-1], name
        assert all(isinstance(one, Skipped) for one in column[1:-1]), name
    reasons = [str(one) for one in values["vbench.temporal_flickering"]]
    assert "can't be opened" in reasons[4] and "reads 8 of its 40 frames" in reasons[5]


def test_gifs_are_read_where_vbench_reads_them(own_folders: Path, videos: list[np.ndarray], vbench: VBench) -> None:
    from PIL import Image

    path = own_folders / "moving.gif"
    first, *others = [Image.fromarray(np.ascontiguousarray(frame)) for frame in videos[0]]
    first.save(path, save_all=True, append_images=others, duration=125)
    values = vbench.score([clip(path)], ignore)
    (without,) = values["vbench.motion_smoothness[stand-in]"]
    assert without == Skipped("VBench reads no .gif files here")
    assert isinstance(values["vbench.background_consistency[stand-in]"][0], float)
