"""How fast the metrics are beside the field's own tools, on the same files, with the same (random) weights, in one run.

    PYTHONPATH=tests OMP_NUM_THREADS=1 python tests/parity/speed.py

prints a Markdown table. Each time is of whole processes, imports included, as a user waits for them; distances alone
are timed in this process. No test: it takes some minutes, and a busy machine slows both sides.
Axes: N vectors, D dimensions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance

from w2svd_bench.metrics import weights
from w2svd_bench.metrics.gaussian import Reference, frechet_distance

import stand_ins_i3d
import stand_ins_inception

IMAGES, CLIPS = 32, 6
SCORE = [sys.executable, "-m", "w2svd_bench", "score", "--allow-small", "--device", "cpu"]
# cd-fvd's class on arrays; SciPy 1.18 has no `disp`, which it passes.
CD_FVD = """
import sys, warnings
import numpy as np
warnings.filterwarnings("ignore")
from cdfvd import fvd
metric = fvd.cdfvd("i3d", ckpt_path=sys.argv[1], device="cpu")
print(metric.compute_fvd(*(np.stack([np.load(p) for p in sorted(__import__("pathlib").Path(f).glob("*.npy"))])
                           for f in sys.argv[2:])))
"""


def main() -> None:
    print("| what | peer | peer, s | ours, s | ours, again, s | ratio |\n|---|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"W2SVD_BENCH_WEIGHTS": str(root / "weights"), "W2SVD_BENCH_CACHE": str(root / "cache")}
        images(root)
        clips(root)
    for dimensions, count in ((400, 2048), (2048, 2304), (2048, 256)):
        distance(dimensions, count)


def images(root: Path) -> None:
    """FID of two folders of 256x256 PNGs."""
    found = weights.install_stand_in("inception-pytorchfid", stand_ins_inception.inception())
    hub = root / "hub" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / found.path.name).symlink_to(found.path)
    made, real = (pictures(root / name, seed) for seed, name in enumerate(("made", "real")))
    peer = [sys.executable, "-m", "pytorch_fid", made, real, "--device", "cpu", "--num-workers", "0"]
    ours = [*SCORE, "--generated", made, "--reference", real, "--metrics", "fid"]
    row(f"FID, {IMAGES} + {IMAGES} PNGs of 256x256", "pytorch-fid's command line", peer, ours, TORCH_HOME=root / "hub")


def clips(root: Path) -> None:
    """FVD of two folders of arrays of 16 frames of 256x256, by the I3D that cd-fvd ships."""
    found = weights.install_stand_in("i3d-kinetics400", stand_ins_i3d.i3d_kinetics400())
    made, real = (arrays(root / name, seed) for seed, name in enumerate(("clips", "real clips")))
    peer = [sys.executable, "-c", CD_FVD, found.path, made, real]
    ours = [*SCORE, "--generated", made, "--reference", real, "--metrics", "fvd_cdfvd"]
    row(f"FVD, {CLIPS} + {CLIPS} clips of 16x256x256", "cd-fvd, arrays", peer, ours)


def distance(dimensions: int, count: int) -> None:
    """The Fréchet step alone."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    x, y = (rng.normal(size=(count, dimensions)) @ mix + shift for shift in (0.0, 0.1))
    moments = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in (x, y)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer, theirs = timed(lambda: calculate_frechet_distance(*moments[0], *moments[1]))
    first, value = timed(lambda: frechet_distance(x, Reference.of(y)))
    reference = Reference.of(y)
    again, _ = timed(lambda: frechet_distance(x, reference))
    assert abs(value / theirs - 1) < 1e-5
    what = f"Fréchet distance, D = {dimensions}, N = {count}"
    print(f"| {what} | pytorch-fid (moments given) | {peer:.2f} | {first:.2f} | {again:.2f} | {peer / first:.1f} |")


def row(what: str, name: str, peer: Sequence[object], ours: Sequence[object], **variables: object) -> None:
    environment = os.environ | {key: str(value) for key, value in variables.items()}

    def run(command: Sequence[object]) -> None:
        subprocess.run([str(part) for part in command], env=environment, check=True, capture_output=True)

    theirs, first, again = (timed(lambda command=command: run(command))[0] for command in (peer, ours, ours))
    print(f"| {what} | {name} | {theirs:.1f} | {first:.1f} | {again:.1f} | {theirs / first:.1f} |", flush=True)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def pictures(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for k in range(IMAGES):
        blocks = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(blocks).save(folder / f"{k:03}.png")
    return folder


def arrays(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for k in range(CLIPS):
        blocks = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
        np.save(folder / f"{k:03}.npy", blocks)
    return folder


if __name__ == "__main__":
    main()
