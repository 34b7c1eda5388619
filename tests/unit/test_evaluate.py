"""Sampling and scoring: a clip depends on nothing but itself, and what is broken is said, never left out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.data.portraits import clips
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.cell import evaluate, evaluate_floor, floor_identity, identity
from w2svd_bench.evaluate.evalset import PortraitSet, shares
from w2svd_bench.evaluate.grid import Grid
from w2svd_bench.evaluate.origin import run_key
from w2svd_bench.evaluate.pictures import contact_sheet, read_picture, write_video
from w2svd_bench.evaluate.references import Reference, real_reference
from w2svd_bench.evaluate.sampling import Sampled, Subject, batch_size, sample
from w2svd_bench.evaluate.scoring import Bench
from w2svd_bench.flow import schedule
from w2svd_bench.metrics.base import Features
from w2svd_bench.metrics.diagnostics import Reader
from w2svd_bench.metrics.mini import MiniFid, MiniFvd
from w2svd_bench.record import Record, SkippedScore, read_records, write_record
from w2svd_bench.rng import clip_noise
from w2svd_bench.samplers import Sampler
from w2svd_bench.types import Cond
from w2svd_bench.world import World

SHAPE = (16, 5, 6, 6)
FOUR = Sampler("sde", tuple(schedule(4, 3.0).tolist()))


def quiet(done: int, total: int) -> None:
    """A progress that nobody reads."""


@pytest.fixture
def subject() -> Subject:
    """The teacher, opened afresh: tests may spoil it."""
    return Subject.untrained("euler", Backbone.load("mini"))


@cache
def reference() -> tuple[tuple[MiniFid, MiniFvd], Reader, Reference]:
    """Eighty real clips: enough for a distance to be had, quick enough to be made here."""
    metrics, reader = (MiniFid(), MiniFvd()), Reader()
    real = clips("reference", range(80)).numpy()
    return metrics, reader, Reference({m.net.id: Features(m.features(real)) for m in metrics}, reader(real))


@pytest.fixture
def bench(subject: Subject) -> Bench:
    metrics, reader, real = reference()
    return Bench(PortraitSet(subject.backbone.side, 16), real, metrics, reader)


def sampled(subject: Subject, sampler: Sampler, prompts: list[str], seed: int, batch: int = 64) -> list[Sampled]:
    """A clip for each prompt."""

    def conditioning(indices: Sequence[int]) -> Cond:
        return subject.backbone.encode_prompts([prompts[i] for i in indices])

    return list(sample(subject, sampler, conditioning, shares(len(prompts), batch, World()), seed))


def test_noise_depends_on_seed_clip_and_step_only() -> None:
    whole = clip_noise(SHAPE, 0, range(6), 2)
    assert whole.shape == (6, *SHAPE)
    assert torch.equal(clip_noise(SHAPE, 0, [4, 1], 2), whole[[4, 1]])
    torch.manual_seed(1)  # the global generator is not asked
    torch.rand(3)
    assert torch.equal(clip_noise(SHAPE, 0, [5], 2), whole[5:])
    others = [clip_noise(SHAPE, *key) for key in ((1, [4], 2), (0, [3], 2), (0, [4], 1), (4, [2], 0), (2, [4], 0))]
    together = torch.cat([whole[4:5], *others]).flatten(1)
    correlation = torch.corrcoef(together) - torch.eye(len(together))
    assert correlation.abs().max() < 0.1  # 2,880 numbers each: five standard deviations are 0.093
    assert float(whole.std()) == pytest.approx(1.0, abs=0.03) and float(whole.mean()) == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_clips_are_the_same_for_any_batch_size(subject: Subject, kind: str) -> None:
    """Batched sums round differently in their last bits, so a pixel may differ by one step of 255."""
    sampler = Sampler(kind, FOUR.levels)  # type: ignore[arg-type]
    prompts = PortraitSet(subject.backbone.side, 7).prompts
    made = {}
    for size in (1, 3, 64):
        parts = sampled(subject, sampler, prompts, 5, size)
        assert [i for part in parts for i in part.indices] == list(range(7))
        made[size] = torch.cat([part.frames for part in parts])
        assert made[size].shape == (7, 17, 48, 48, 3) and made[size].dtype == torch.uint8
    for size in (1, 3):
        assert (made[size].int() - made[64].int()).abs().max() <= 1
    # Without this the test could not fail: clips of other places and seeds are others altogether.
    assert (made[64][0].int() - made[64][1].int()).abs().max() > 50
    (other,) = sampled(subject, sampler, prompts, 6)
    assert (other.frames.int() - made[64].int()).abs().flatten(1).amax(1).min() > 50


def test_the_prompt_decides_what_is_drawn(subject: Subject) -> None:
    """The same noise under two backdrops: the upper corners take the colour that the caption names."""
    rest = ", white shirt, narrow face, big eyes, slow speech, still head"
    sampler = Sampler("ode", tuple(schedule(12, 3.0).tolist()))
    corner = {}
    for backdrop in ("beige", "navy"):
        (part,) = sampled(subject, sampler, [f"tan skin, black hair, {backdrop} backdrop{rest}"] * 2, 0)
        corner[backdrop] = part.frames[:, :, :8, :6].float().mean((0, 1, 2, 3))
    assert (corner["beige"] - corner["navy"])[0] > 60  # red of 255: 204 against 43 in the palette
    assert corner["beige"][0] > corner["beige"][2] and corner["navy"][2] > corner["navy"][0]


def test_a_cell_is_scored_and_its_record_survives_the_disk(subject: Subject, bench: Bench, tmp_path: Path) -> None:
    steps: list[int] = []
    record = evaluate(subject, 2, bench, lambda done, total: steps.append(done))
    assert identity(subject, 2, bench.eval_set).is_of(record) and steps == [16]
    assert (record.sampling.sampler, record.sampling.nfe, len(record.sampling.levels)) == ("ode", 2, 3)
    assert set(record.metrics) == {"fid[mini]", "fvd[mini]"}
    for score in record.metrics.values():
        assert score.value > 0 and score.n == 16 and score.direction == "down"  # type: ignore[union-attr]
    assert set(record.diagnostics) == {"mouth", "sway", "latent_std", "colour_error"}
    assert record.timing.sample_seconds_per_clip > 0 and record.timing.decode_seconds_per_clip > 0
    assert record.training.iterations == 0 and record.cell.checkpoint_sha256 == subject.backbone.teacher_sha256
    write_record(record, tmp_path)
    assert read_records(tmp_path) == [record]
    again = evaluate(subject, 2, bench, quiet)
    assert again.metrics == record.metrics and again.diagnostics == record.diagnostics


def test_one_gpu_s_seconds_are_not_another_s(subject: Subject, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that were made on one kind of GPU are not found on another, with which their seconds would be published."""
    sampler = subject.method.sampler(2)
    keys = [run_key(subject, sampler, bench.eval_set, 16)]
    for name in ("NVIDIA A100", "NVIDIA H200"):
        monkeypatch.setattr("w2svd_bench.evaluate.origin.device_name", lambda device, name=name: name)
        keys.append(run_key(subject, sampler, bench.eval_set, 16))
    assert len(set(keys)) == 3


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_broken_generator_leaves_a_record_that_says_so(subject: Subject, bench: Bench, poison: float) -> None:
    """No score of the clips that happen to be whole: a smaller n would flatter it."""
    with torch.no_grad():
        subject.network.transformer.proj_out.bias[3] = poison
    record = evaluate(subject, 1, bench, quiet)
    assert set(record.metrics) == {"fid[mini]", "fvd[mini]"} and record.diagnostics == {}
    for score in record.metrics.values():
        assert isinstance(score, SkippedScore)
        assert "16 of 16 clips" in score.skipped and "not finite" in score.skipped
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_one_broken_clip_is_enough(subject: Subject, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of 16 prompts gives NaN, the others are fine: the cell has no score, and says one."""
    whole = subject.network.velocity

    def velocity(x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        out = whole(x, t, cond).clone()  # type: ignore[arg-type]
        out[-1, 0, 0, 0, 0] = float("nan")
        return out

    monkeypatch.setattr(subject.network, "velocity", velocity)
    scores = evaluate(subject, 1, bench, quiet).metrics.values()
    assert all(isinstance(score, SkippedScore) and score.skipped.startswith("1 of 16") for score in scores)


def test_a_clip_that_the_codec_decodes_to_nan_is_not_scored_as_a_black_one(
    subject: Subject, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents that are finite may overflow in the codec, in half precision above all."""
    whole = subject.backbone.codec.decode

    def decode(latents: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        video = whole(latents, return_dict=False)[0].clone()
        video[-1, 0, 0, 0, 0] = float("nan")
        return (video,)

    monkeypatch.setattr(subject.backbone.codec, "decode", decode)
    for record in (evaluate(subject, 1, bench, quiet), evaluate_floor(subject.backbone, bench, "codec")):
        assert record.diagnostics == {}
        for score in record.metrics.values():
            assert isinstance(score, SkippedScore) and "of 16 clips hold numbers that are not finite" in score.skipped


def test_real_clips_set_the_floor(subject: Subject, bench: Bench) -> None:
    """Raw clips score best; a teacher of one step scores worse than both rows, by far."""
    raw, coded = (evaluate_floor(subject.backbone, bench, kind) for kind in ("raw", "codec"))
    assert floor_identity(subject.backbone, bench.eval_set, "raw").is_of(raw) and raw.cell.method == "real"
    assert floor_identity(subject.backbone, bench.eval_set, "codec").is_of(coded) and coded.cell.label != raw.cell.label
    assert raw.cell.checkpoint_sha256 == "" and coded.cell.checkpoint_sha256 == subject.backbone.latents_sha256
    blurred = evaluate(subject, 1, bench, quiet)
    for name in ("fid[mini]", "fvd[mini]"):
        floor, through, one_step = (r.metrics[name].value for r in (raw, coded, blurred))  # type: ignore[union-attr]
        assert 0 < floor < one_step and through < one_step
    assert blurred.diagnostics["sway"] < raw.diagnostics["sway"] < 1.6
    assert raw.diagnostics["colour_error"] < 0.01 and raw.diagnostics["mouth"] == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(("shape", "clips_at_a_time"), [(SHAPE, 64), ((16, 2, 4, 4), 64), ((16, 16, 40, 64), 1)])
def test_large_clips_are_made_one_at_a_time(shape: tuple[int, ...], clips_at_a_time: int) -> None:
    """The miniature's, smaller ones, and 61 frames of 320x512 of the 13B model."""
    assert batch_size(shape) == clips_at_a_time


def test_too_few_clips_are_no_score(subject: Subject, bench: Bench) -> None:
    """Seven prompts; and eight clips of seven prompts, which the jackknife can't part any further."""
    for count, prompts in ((7, None), (8, [0, 0, 1, 2, 3, 4, 5, 6])):
        portraits = PortraitSet(subject.backbone.side, count)
        if prompts is not None:
            portraits.prompts[:] = [portraits.prompts[i] for i in prompts]
        few = Bench(portraits, bench.reference, bench.metrics, bench.reader)
        for score in evaluate(subject, 1, few, quiet).metrics.values():
            assert isinstance(score, SkippedScore) and "7 clips of different prompts" in score.skipped
    eight = Bench(PortraitSet(subject.backbone.side, 8), bench.reference, bench.metrics, bench.reader)
    assert all(score.n == 8 for score in evaluate(subject, 1, eight, quiet).metrics.values())  # type: ignore[union-attr]


def test_an_eval_set_names_all_that_it_depends_on(subject: Subject) -> None:
    side = subject.backbone.side
    test, tuning = PortraitSet(side, 16), PortraitSet(side, 16, "validation")
    assert test.name == "portraits-test-16" and tuning.name == "portraits-validation-16"
    one, other, larger = test.describe(), tuning.describe(), PortraitSet(side, 17).describe()
    assert one.reference_sha256 == other.reference_sha256 == larger.reference_sha256
    assert len({one.prompts_sha256, other.prompts_sha256, larger.prompts_sha256}) == 3
    assert (one.frames, one.height, one.width, one.fps) == (17, 48, 48, 12)


def test_the_reference_is_made_once(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve clips instead of 2,048: made, kept, read again without a picture being drawn."""
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("w2svd_bench.evaluate.evalset.REFERENCE_CLIPS", 12)
    metrics, reader, _ = reference()
    asked: list[int] = []
    portraits = PortraitSet(subject.backbone.side, 2)
    first = real_reference(portraits, metrics, reader, lambda done, total: asked.append(done))
    again = real_reference(portraits, metrics, reader, lambda done, total: asked.append(done))
    assert asked == [12]
    real = clips("reference", range(12)).numpy()
    for metric in metrics:
        assert np.array_equal(first.features[metric.net.id].values_NKD, metric.features(real))
        assert np.array_equal(first.features[metric.net.id].values_NKD, again.features[metric.net.id].values_NKD)
    assert first.readings is not None and again.readings is not None
    assert np.array_equal(first.readings, again.readings) and first.readings.shape[:2] == (12, 17)
    assert not list(tmp_path.rglob("*.tmp*"))


def test_the_teacher_is_not_kept_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clips are read once, before all runs, each of which opens a transformer of its own."""
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path))
    backbone = Backbone.load("mini")
    opened: list[int] = []
    network = backbone.network
    monkeypatch.setattr(backbone, "network", lambda: opened.append(1) or network())
    portraits = PortraitSet(backbone.side, 8, references=8)
    with Grid("mini", backbone, portraits, tmp_path, lambda task, done, total: None) as grid:
        grid.floor()
    assert opened and not {"transformer", "text", "codec"} & vars(backbone).keys()


def test_a_contact_sheet_has_a_row_a_clip(tmp_path: Path) -> None:
    real = clips("test", [0, 1]).numpy()
    path = contact_sheet([("first", real[0]), ("second", real[1])], tmp_path / "new" / "sheet.png", every=4)
    picture = np.asarray(Image.open(path))
    assert picture.shape == (2 * (96 + 4 + 14) + 4, 5 * (96 + 4) + 4, 3)
    corner = picture[4 + 14 : 4 + 14 + 96 : 2, 4 : 4 + 96 : 2]  # each pixel is drawn twice as large
    assert np.array_equal(corner, real[0, 0])
    below = picture[118 + 14 : 118 + 14 + 96 : 2, 404 : 404 + 96 : 2]
    assert np.array_equal(below, real[1, 16])


def test_a_picture_becomes_a_first_frame(tmp_path: Path) -> None:
    """Cropped around its centre and upright; a broken one is named."""
    stripes = np.zeros((40, 120, 3), np.uint8)
    stripes[:, 40:80] = 255  # the middle is what is kept of a frame three times as wide as high
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    assert np.array_equal(read_picture(tmp_path / "wide.png", 40, 40), np.full((40, 40, 3), 255))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown after a quarter turn
    half = np.zeros((64, 64, 3), np.uint8)
    half[:32] = 255
    Image.fromarray(half).save(tmp_path / "turned.png", exif=turned)
    upright = read_picture(tmp_path / "turned.png", 32, 32)
    assert (upright[:, 20:] > 250).all() and (upright[:, :12] < 5).all()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BenchError, match="broken"):
        read_picture(tmp_path / "broken.png", 32, 32)


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_a_video_comes_back_as_it_was(tmp_path: Path, ending: str) -> None:
    real = clips("test", [0]).numpy()[0]
    path = write_video(real, tmp_path / "new" / f"clip.{ending}", fps=12)
    read = iio.imread(path)[..., :3]
    assert read.shape == real.shape
    # H.264 thins the colours out and a GIF has 256 of them: close, not equal.
    assert np.abs(read.astype(int) - real.astype(int)).mean() < 6


def test_a_video_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"use \.mp4 or \.gif"):
        write_video(clips("test", [0]).numpy()[0], tmp_path / "clip.avi", fps=12)
