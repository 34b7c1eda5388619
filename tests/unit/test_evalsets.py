"""Eval sets beyond the miniature's own: other sizes, image-to-video, and the held-out clips of a latent cache."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.cache import LatentCache
from w2svd_bench.data.portraits import captions, clips
from w2svd_bench.data.prepare import Source, prepare
from w2svd_bench.data.video import Frames, read_clip
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.cacheset import CacheSet
from w2svd_bench.evaluate.cell import evaluate, evaluate_floor
from w2svd_bench.evaluate.evalset import ClipSet, PortraitSet
from w2svd_bench.evaluate.pictures import write_video
from w2svd_bench.evaluate.references import real_reference
from w2svd_bench.evaluate.sampling import Subject, sample
from w2svd_bench.evaluate.scoring import Bench
from w2svd_bench.metrics.base import CorpusMetric, FeatureNet
from w2svd_bench.metrics.diagnostics import Reader
from w2svd_bench.metrics.frechet import FrechetMetric
from w2svd_bench.metrics.mini import MiniFid, MiniFvd
from w2svd_bench.record import SkippedScore
from w2svd_bench.rng import clip_noise
from w2svd_bench.samplers import Noise

HELD_OUT = 9


def quiet(done: int, total: int) -> None:
    """A progress that nobody reads."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path / "w2svd-bench-cache"))


def small(checkpoint: Path, folder: Path, num_frames: int) -> Path:
    """A copy of a checkpoint that says of itself that it makes clips of 32x32, and whose recipe is the miniature's."""
    shutil.copytree(checkpoint, folder)
    side = {"backbone": "small", "recipe": "mini", "height": 32, "width": 32, "num_frames": num_frames, "fps": 8}
    (folder / "w2svd_bench.json").write_text(json.dumps(side))
    return folder


def bench_of(eval_set: ClipSet, metrics: list[CorpusMetric], reader: Reader | None = None) -> Bench:
    return Bench(eval_set, real_reference(eval_set, metrics, reader, quiet), metrics, reader)


def test_metrics_that_can_not_read_a_size_are_skipped_with_the_reason(
    t2v_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mini nets know 48x48x17 alone: no reference is drawn for them, no number made up."""
    backbone = Backbone.load(str(small(t2v_checkpoint, tmp_path / "small", 5)))
    portraits = PortraitSet(backbone.side, 3)
    monkeypatch.setattr(PortraitSet, "reference_clips", lambda self, indices: pytest.fail("nothing can read them"))
    reader = Reader()
    assert reader.refuses(5, 32, 32) is not None and reader.refuses(17, 48, 48) is None
    bench = bench_of(portraits, [MiniFid(), MiniFvd()])
    for record in (
        evaluate(Subject.untrained("euler", backbone), 1, bench, quiet),
        evaluate_floor(backbone, bench, kind="raw"),
        evaluate_floor(backbone, bench, kind="codec"),
    ):
        assert set(record.metrics) == {"fid[mini]", "fvd[mini]"}
        for score in record.metrics.values():
            assert isinstance(score, SkippedScore)
            assert "17 frames of 48x48 only" in score.skipped and "5 of 32x32" in score.skipped
        assert set(record.diagnostics) == {"latent_std"} and record.diagnostics["latent_std"] > 0
        assert (record.eval_set.frames, record.eval_set.height, record.eval_set.fps) == (5, 32, 8)
    assert record.timing.decode_seconds_per_clip > 0


def test_a_metric_that_reads_any_size_is_scored_at_any_size(t2v_checkpoint: Path, tmp_path: Path) -> None:
    class Colours(FeatureNet):
        """The mean and spread of each frame's colours."""

        id, weights_sha256 = "colours", ""

        def features(self, clips_BFHWC: np.ndarray) -> np.ndarray:
            frames = clips_BFHWC.astype(np.float32)
            return np.concatenate([frames.mean((2, 3)), frames.std((2, 3))], axis=2)

    class Brightness(FrechetMetric):
        name, version = "brightness", 1

    backbone = Backbone.load(str(small(t2v_checkpoint, tmp_path / "small", 5)))
    portraits = PortraitSet(backbone.side, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("w2svd_bench.evaluate.evalset.REFERENCE_CLIPS", 20)
        bench = bench_of(portraits, [Brightness(Colours()), MiniFvd()])
        record = evaluate_floor(backbone, bench, kind="raw")
    assert record.metrics["brightness"].n == 8  # type: ignore[union-attr]
    assert isinstance(record.metrics["fvd[mini]"], SkippedScore)


@pytest.mark.parametrize("condition", ["token_replace", "latent_concat"])
def test_an_image_to_video_backbone_is_given_the_first_frame_of_each_clip(
    condition: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(f"i2v_{condition}")
    backbone = Backbone.load(str(small(checkpoint, tmp_path / "small", 9)))
    skipped = 9 - backbone.decoded_frames
    assert skipped == (4 if condition == "latent_concat" else 0)
    portraits = PortraitSet(backbone.side, 2, skipped=skipped)
    whole = clips("test", range(2), 9, 32, 32)
    cond = portraits.conditioning(backbone, range(2))
    assert cond.image_BCTHW is not None
    assert torch.allclose(cond.image_BCTHW, backbone.encode(whole[:, :1]), atol=1e-4)
    assert np.array_equal(portraits.real(range(2)), whole[:, skipped:].numpy())
    subject = Subject.untrained("euler", backbone)
    sampler = subject.method.sampler(1)

    def made(seed: int) -> torch.Tensor:
        (part,) = sample(subject, sampler, lambda indices: cond, [range(2)], seed)
        assert part.latents.shape[1:] == backbone.latent_shape
        return part.frames

    class Nothing:
        """A sampler that leaves the start as it is."""

        kind, nfe = "ode", 1

        def __call__(self, velocity: object, cond: object, noise: Noise) -> torch.Tensor:
            return noise(0)

    (start,) = sample(subject, Nothing(), lambda indices: cond, [range(2)], 0)  # type: ignore[arg-type]
    noise = clip_noise(backbone.latent_shape, 0, range(2), 0)
    assert torch.equal(start.latents, backbone.start(noise, cond)) and not torch.equal(start.latents, noise)
    first, second = made(0), made(1)
    assert first.shape == (2, 9 - skipped, 32, 32, 3) and not torch.equal(first, second)
    if condition == "token_replace":
        # The given frame begins the clip, whatever the noise; normalisation over all frames stains it a little.
        changed = (first.int() - second.int()).abs().float().mean((0, 2, 3, 4))
        assert changed[0] < 0.5 * changed[-1]
    bench = bench_of(portraits, [MiniFid()])
    coded = evaluate_floor(backbone, bench, kind="codec")
    record = evaluate(subject, 1, bench, quiet)
    assert record.eval_set == coded.eval_set and record.eval_set.frames == 9 - skipped
    assert record.diagnostics["latent_std"] > 0


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve portraits as mp4 files with their captions beside them."""
    folder = tmp_path_factory.mktemp("videos")
    for number, (clip, caption) in enumerate(
        zip(clips("features", range(12)).numpy(), captions("features", range(12)), strict=True)
    ):
        write_video(clip, folder / f"v{number:02}.mp4", fps=12)
        (folder / f"v{number:02}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def prepared(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches") / "my portraits"
    prepare(folder, Backbone.load("mini"), Source(videos, test=HELD_OUT))
    return folder


def test_held_out_clips_are_an_eval_set(
    prepared: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and conditioning come from the cache; the reference is what the very videos show."""
    whole = Backbone.load("mini")
    eval_set = CacheSet.open(prepared, "mini", "cpu", videos, at_most=512)
    entries = eval_set.cache.entries
    assert [one.split for one in entries] == ["test"] * HELD_OUT
    expected = whole.encode_prompts(eval_set.prompts)
    monkeypatch.setattr(Backbone, "text", property(lambda self: pytest.fail("no text encoder is needed")))
    cond = eval_set.conditioning(eval_set.cache.backbone, range(HELD_OUT))
    assert torch.equal(cond.tokens_BLD, expected.tokens_BLD) and torch.equal(cond.pooled_BP, expected.pooled_BP)
    assert eval_set.prompts == [(videos / one.video).with_suffix(".txt").read_text() for one in entries]
    frames = np.stack([read_clip(videos / one.video, Frames(17, 48, 48, 12)) for one in entries])
    assert np.array_equal(eval_set.real([4, 1]), frames[[4, 1]])
    fid = MiniFid()
    bench = bench_of(eval_set, [fid, MiniFvd()])
    assert np.array_equal(bench.reference.features[fid.net.id].values_NKD, fid.features(frames))

    subject = Subject.untrained("euler", Backbone.load("mini"))
    record = evaluate(subject, 1, bench, quiet)
    assert all(score.n == HELD_OUT and score.value > 0 for score in record.metrics.values())  # type: ignore[union-attr]
    assert set(record.diagnostics) == {"latent_std"}  # what the frame net reads is for the portraits it learned
    described = record.eval_set
    assert described.name.startswith(f"my-portraits-test-{HELD_OUT}-") and described.reference.endswith("real frames")
    assert (described.num_clips, described.frames, described.height, described.fps) == (HELD_OUT, 17, 48, 12)
    assert str(videos) not in record.model_dump_json() and str(prepared.parent) not in record.model_dump_json()

    assert eval_set.floors == ("codec",)  # raw clips would be held against themselves
    floor = evaluate_floor(eval_set.cache.backbone, bench, kind="codec")
    for name, score in floor.metrics.items():
        assert score.value < record.metrics[name].value  # type: ignore[union-attr]


def test_without_videos_the_reference_goes_through_the_codec(prepared: Path, videos: Path) -> None:
    coded = CacheSet.open(prepared, "mini", "cpu", None, at_most=512)
    raw = CacheSet.open(prepared, "mini", "cpu", videos, at_most=512)
    assert coded.floors == () and coded.name == f"{raw.name}-codec"
    one, other = coded.describe(), raw.describe()
    assert "through the codec" in one.reference and one.reference_sha256 != other.reference_sha256
    assert one.prompts_sha256 == other.prompts_sha256
    backbone = coded.cache.backbone
    decoded = backbone.decode(coded.cache.batch([2, 0]).x0_BCTHW).numpy()
    assert np.array_equal(coded.real([2, 0]), decoded) and not np.array_equal(raw.real([2, 0]), decoded)
    assert np.array_equal(coded.reference_clips([2, 0]), decoded)
    backbone.codec.decode = lambda latents, return_dict: (torch.full((len(latents), 3, 17, 48, 48), float("nan")),)
    with pytest.raises(BenchError, match=f"decodes clip '{coded.cache.entries[2].id}' to numbers that are not finite"):
        coded.real([2, 0])


def test_fewer_clips_are_the_first_and_another_set(prepared: Path) -> None:
    few, more = (CacheSet.open(prepared, "mini", "cpu", None, at_most=count) for count in (3, 4))
    assert few.prompts == more.prompts[:3] and few.name != more.name
    assert few.describe().reference_sha256 != more.describe().reference_sha256
    record = evaluate(Subject.untrained("euler", Backbone.load("mini")), 1, bench_of(few, [MiniFid()]), quiet)
    (score,) = record.metrics.values()
    assert isinstance(score, SkippedScore) and "3 clips" in score.skipped


def test_other_videos_under_the_same_names_are_refused(prepared: Path, videos: Path, tmp_path: Path) -> None:
    """A missing one at once, one that shows something else when it is read."""
    with pytest.raises(BenchError, match=f"lacks {HELD_OUT} of {HELD_OUT}"):
        CacheSet.open(prepared, "mini", "cpu", tmp_path, at_most=512)
    shuffled = tmp_path / "shuffled"
    shutil.copytree(videos, shuffled)
    eval_set = CacheSet.open(prepared, "mini", "cpu", shuffled, at_most=512)
    one, other = (shuffled / eval_set.cache.entries[row].video for row in (2, 7))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(BenchError, match=f"{one.name} is not the video"):
        real_reference(eval_set, [MiniFid()], None, quiet)
    one.write_bytes(content[:-2000])
    with pytest.raises(BenchError, match="can't be read again"):
        real_reference(eval_set, [MiniFid()], None, quiet)
    one.write_bytes(content)
    assert len(real_reference(eval_set, [MiniFid()], None, quiet).features) == 1


def test_features_of_replaced_videos_are_not_those_that_are_kept(prepared: Path, videos: Path, tmp_path: Path) -> None:
    """The same eval set, but a file of another time: it is read anew."""
    copied = tmp_path / "copied"
    shutil.copytree(videos, copied)
    eval_set = CacheSet.open(prepared, "mini", "cpu", copied, at_most=512)
    asked: list[int] = []
    for _ in range(2):
        real_reference(eval_set, [MiniFid()], None, lambda done, total: asked.append(done))
    assert asked == [HELD_OUT]
    (copied / eval_set.cache.entries[0].video).touch()
    real_reference(eval_set, [MiniFid()], None, lambda done, total: asked.append(done))
    assert asked == [HELD_OUT] * 2


def test_image_to_video_clips_stand_for_themselves(i2v_token_replace: Path, videos: Path, tmp_path: Path) -> None:
    """Many a talking-head set has one caption for all: the first frame is what a clip is asked for by."""
    same = tmp_path / "same"
    shutil.copytree(videos, same)
    for path in same.glob("*.txt"):
        path.write_text("A person talks.")
    for path in sorted(same.glob("v0[5-9]*")) + sorted(same.glob("v1*")):
        path.unlink()
    source = str(small(i2v_token_replace, tmp_path / "small", 9))
    backbone = Backbone.load(source, video=replace(Backbone.load(source).side, height=48, width=48, fps=12).video)
    prepare(tmp_path / "cache", backbone, Source(same, test=3))
    eval_set = CacheSet.open(tmp_path / "cache", source, "cpu", same, at_most=512)
    assert len(set(eval_set.prompts)) == 1 and len(set(eval_set.keys)) == 3
    ours = eval_set.cache.backbone
    assert (ours.side.height, ours.side.fps) == (48, 12)  # the cache's size, not the checkpoint's own
    cond = eval_set.conditioning(ours, range(3))
    first = torch.from_numpy(eval_set.real(range(3))[:, :1])
    assert cond.image_BCTHW is not None and torch.allclose(cond.image_BCTHW, ours.encode(first), atol=1e-4)
    latents = LatentCache.open(tmp_path / "cache", ours, "test").batch(range(3)).x0_BCTHW
    assert torch.equal(eval_set.latents(ours, range(3)), latents) and latents.shape[1:] == ours.latent_shape
    coded = evaluate_floor(ours, bench_of(eval_set, [MiniFid()]), kind="codec")
    assert coded.eval_set.frames == 9
