"""What is kept of clips is found by all that it depends on, and by nothing less."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate import references
from w2svd_bench.evaluate.evalset import PortraitSet
from w2svd_bench.evaluate.extraction import Extraction
from w2svd_bench.evaluate.origin import teacher_key
from w2svd_bench.evaluate.store import ClipLog, FeatureStore
from w2svd_bench.evaluate.videos import Videos
from w2svd_bench.metrics.base import ClipMetric, Dimension, Features
from w2svd_bench.metrics.gaussian import Reference
from w2svd_bench.metrics.kernel import KernelMetric
from w2svd_bench.record import EvalSet


def _kit() -> ModuleType:
    """The clips, nets and metrics of ``test_extraction.py``; tests are no package."""
    spec = spec_from_file_location("w2svd_bench_test_extraction", Path(__file__).with_name("test_extraction.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


T = _kit()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path))


class K(KernelMetric):
    name, version = "k", 1


def test_mmd_of_sets_that_share_prompts_is_unbiased():
    rng = np.random.default_rng(0)
    n, values = 64, []
    keys = [str(i) for i in range(n)]
    for _ in range(40):
        prompt = rng.normal(size=(n, 1, 16))
        x, y = (
            Features((0.95 * prompt + 0.3 * rng.normal(size=(n, 1, 16))).astype(np.float32), keys) for _ in range(2)
        )
        values.append(K(T.Means()).compare(x, y).value)
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))


def test_two_references_are_prepared_once_each(monkeypatch):
    calls, of = [], Reference.of
    monkeypatch.setattr(Reference, "of", staticmethod(lambda *a, **k: (calls.append(1), of(*a, **k))[1]))
    rng = np.random.default_rng(0)

    def make(n: int) -> Features:
        return Features(rng.normal(size=(n, 1, 4)).astype(np.float32))

    metric, real, teacher = T.Colour(T.Means()), make(30), make(20)
    for _ in range(3):
        for reference in (real, teacher):
            metric.compare(make(20), reference)
    assert len(calls) == 2


class Rate(ClipMetric):
    name, version, direction = "rate", 1, "up"
    dimensions = (Dimension("rate.fps", "up", 1, "rate.fps v1"),)

    def refuses(self, *size):
        return {}

    def score(self, clips, progress):
        return {"rate.fps": [clip.fps * 1000 + clip.height for clip in clips]}


class Set:
    prompts = keys = ["a", "b", "c"]

    def __init__(self, fps):
        self.fps = fps

    def describe(self):
        return EvalSet(
            name="x",
            num_clips=3,
            prompts_sha256="",
            reference="",
            reference_sha256="",
            frames=4,
            height=8,
            width=8,
            fps=self.fps,
            resize="none",
        )


def test_values_of_clips_are_kept_by_rate_and_size():
    for fps, least, wanted in ((8.0, 0, 8008.0), (24.0, 0, 24008.0), (24.0, 32, 24032.0)):
        metric, log = Rate(), ClipLog(f"{fps}".ljust(40, "0"))
        metric.least_side = least
        parts = Extraction({}, batch=3, store=FeatureStore()).parts(
            3, T.Making(), T.quiet, log, Videos(log, Set(fps), [metric], T.quiet)
        )
        assert parts[0].values["rate.fps"] == [wanted] * 3


def test_latents_whose_square_is_not_finite_are_broken():
    class Huge(T.Making):
        def __call__(self, batches):
            for clips in super().__call__(batches):
                clips.latents += 3e19
                yield clips

    assert sum(part.logged.broken for part in T.read(Huge(), T.Means())) == T.COUNT


def test_the_key_of_clips_holds_the_prompt_template():
    a, b = Backbone.load("mini"), Backbone.load("mini")
    b.side = replace(b.side, prompt_template={"template": "Other: {}", "crop_start": 0})
    s = PortraitSet(a.side, 8)
    assert len({teacher_key(x, references.teacher_sampler(x), s, 1, 8) for x in (a, b)}) == 2


def test_a_store_reads_only_what_is_asked_for(tmp_path):
    store = FeatureStore(tmp_path / "s")
    for run in range(3):
        store.put("n", {f"{run}-{k}": np.zeros((1, 2), np.float32) for k in range(64)})
    fresh = FeatureStore(tmp_path / "s")
    assert len(fresh.get("n", ["1-5", "absent"])) == 1 and len(fresh._known["n"]) == 1


def test_a_teacher_that_breaks_is_no_reference(monkeypatch):
    original = references.teacher_clips

    def bad(*a):
        for clips in original(*a):
            clips.latents[0] = float("nan")
            yield clips

    monkeypatch.setattr(references, "teacher_clips", bad)
    backbone = Backbone.load("mini")
    with pytest.raises(BenchError, match="not finite"):
        references.teacher_reference(
            PortraitSet(backbone.side, 8, references=8), backbone, [T.Colour(T.Means())], T.quiet
        )
