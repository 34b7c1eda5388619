"""What clips follow from, as a hash: two cells of equal keys would make the same clips.

It holds all that `sampling.sample_network` is given, and the code and packages that turn it into clips; what only names
a cell, such as its label, is left out, so that a run and the teacher's own row can share clips.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

import w2svd_bench
from w2svd_bench.backbones.base import Backbone
from w2svd_bench.evaluate.evalset import ClipSet
from w2svd_bench.evaluate.sampling import Subject
from w2svd_bench.record import canonical_hash
from w2svd_bench.samplers import Sampler
from w2svd_bench.world import device_name

# What of this package is run between noise and pixels; a change in it must not find older clips.
CODE = ("backbones", "data", "evaluate/sampling.py", "flow.py", "method.py", "rng.py", "samplers.py", "types.py")
PACKAGES = ("av", "diffusers", "numpy", "peft", "pillow", "torch", "transformers")


def run_key(subject: Subject, sampler: Sampler, eval_set: ClipSet, batch: int) -> str:
    """The key of the clips of a run, sampled by its method's sampler."""
    run = subject.run
    return _key(subject.backbone, run.weights_sha256, sampler, eval_set, run.seed, batch)


def teacher_key(backbone: Backbone, sampler: Sampler, eval_set: ClipSet, seed: int, batch: int) -> str:
    """The key of the teacher's own clips."""
    return _key(backbone, backbone.teacher_sha256, sampler, eval_set, seed, batch)


def real_key(backbone: Backbone, eval_set: ClipSet, through_codec: bool, batch: int) -> str:
    """The key of the prompts' own real clips, raw or through the codec."""
    return _key(backbone, "codec" if through_codec else "raw", None, eval_set, 0, batch)


def reference_key(eval_set: ClipSet, device: str) -> str:
    """The key of the set's reference clips, some of which are decoded on the device."""
    return canonical_hash({"reference": eval_set.reference_key("clips"), **_work(device)})


def _key(
    backbone: Backbone,
    weights_sha256: str,
    sampler: Sampler | None,
    eval_set: ClipSet,
    seed: int,
    batch: int,
) -> str:
    side = backbone.side
    return canonical_hash(
        {
            "backbone": backbone.sha256,
            "weights": weights_sha256,
            "sampler": None if sampler is None else [sampler.kind, sampler.levels],
            "seed": seed,
            "set": [eval_set.name, eval_set.describe().prompts_sha256, eval_set.reference_key("clips")],
            "side": {name: value for name, value in asdict(side).items() if name not in ("backbone", "recipe", "data")},
            "engine": backbone.engine.model_dump(include={"dtype", "attention", "compile"}),
            # Batched sums round differently, and so do devices.
            "batch": batch,
            **_work(backbone.device),
        }
    )


def _work(device: str) -> dict[str, object]:
    """What turns given data into clips: a kind of device, by which GPU (its seconds are kept, too), code, packages."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"device": device_name(device), "code": _code(), "packages": versions}


@cache
def _code() -> str:
    root = Path(inspect.getfile(w2svd_bench)).parent
    digest = hashlib.sha256()
    for name in CODE:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
