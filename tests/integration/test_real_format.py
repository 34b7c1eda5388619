"""From ten mp4 files to a table and an export, on small checkpoints in the real layout: text and image to video."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from w2svd_bench.record import read_records

SIZE = ("--height", "48", "--width", "64", "--frames", "9", "--fps", "12")
VIDEO = "video={height: 48, width: 64, num_frames: 9, fps: 12}"
# The shipped recipe of the 13B model, made small: fewer iterations, ranks and clips, no warm-up.
SMALL = (
    VIDEO,
    "training.iterations=2",
    "training.batch_size=2",
    "settings.fake_warmup=0",
    "settings.fake_updates=1",
    "settings.generator_rank=4",
    "settings.fake_rank=2",
)
KINDS = ("t2v_checkpoint", "i2v_token_replace", "i2v_latent_concat")


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten H.264 files of different sizes and rates, with captions."""
    from w2svd_bench.data.example import write_examples

    folder = tmp_path_factory.mktemp("examples") / "videos"
    write_examples(folder)
    return folder


def test_the_example_videos_are_what_they_say(videos: Path) -> None:
    from w2svd_bench.data.video import probe

    with (videos / "captions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    probes = [probe(videos / row["video"]) for row in rows]
    assert len(rows) == 10 and all(row["caption"].count(",") == 7 for row in rows)
    assert len({(p.height, p.width, p.fps) for p in probes}) >= 8
    assert {p.codec for p in probes} == {"h264"} and not any(p.variable for p in probes)


def test_examples_are_never_written_over(videos: Path, refused: Callable) -> None:
    outcome = refused("data", "example", "--out", videos)
    assert "nothing is overwritten" in outcome.text


@pytest.mark.parametrize("kind", KINDS)
def test_videos_become_a_generator_and_a_table(
    kind: str, videos: Path, cli: Callable, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every command of the README's chapter on GPUs, on a checkpoint of that kind."""
    backbone = request.getfixturevalue(kind)
    cache, runs = tmp_path / "cache", tmp_path / "runs"
    common = ("--backbone", backbone, "--device", "cpu")
    source = ("--videos", videos, "--captions", videos / "captions.csv")
    done = cli("data", "prepare", *source, *SIZE, "--test", 2, "--out", cache, *common)
    assert done.status == 0 and "10 clips (8 train, 2 test)" in done.text, done
    assert cli("data", "inspect", cache, *common, "--verify").status == 0
    assert (cache / "sheet.png").stat().st_size > 1000

    done = cli(
        "train", "--method", "w2svd", *common, "--data", cache, "--out", runs, "--label", "small", "--set", *SMALL
    )
    assert done.status == 0, done
    (run,) = (runs / backbone.name / "small").iterdir()
    facts = json.loads((run / "generator" / "generator.json").read_text())
    assert facts["lora"] == {"rank": 4, "alpha": 4.0} and facts["shift"] == 7.0
    assert facts["image_condition"] == {"t2v": None}.get(kind[:3], kind.removeprefix("i2v_"))
    assert facts["training"]["data"].startswith("cache-train-8-")
    card = (run / "generator" / "README.md").read_text()
    assert "load_lora_weights" in card and str(tmp_path) not in card

    metrics = ("--metrics", "fid[mini]", "fvd[mini]")
    done = cli("eval", *common, "--data", cache, "--videos", videos, "--steps", 1, 4, *metrics, "--out", runs)
    assert done.status == 0, done
    (results,) = (runs / backbone.name).glob("results-*")
    records = [one for one in read_records(results / "records") if one.cell.method == "w2svd"]
    assert sorted(one.cell.steps for one in records) == [1, 4]
    frames = 5 if kind == "i2v_latent_concat" else 9  # that pipeline leaves out the first group of four
    assert {(one.eval_set.height, one.eval_set.width, one.eval_set.frames) for one in records} == {(48, 64, frames)}
    for one in records:
        assert all("skipped" in score.model_dump() for score in one.metrics.values()), "the mini nets can't read these"
        assert one.timing.sample_seconds_per_clip > 0

    merged = tmp_path / "merged"
    done = cli("export", "--method", "small", *common, "--out", runs, "--to", merged, "--merge")
    assert done.status == 0 and (merged / "transformer" / "config.json").is_file(), done
    again = cli("export", "--method", "small", *common, "--out", runs, "--to", merged)
    assert again.status == 1 and "nothing is overwritten" in again.text


def test_a_merged_export_is_the_generator(videos: Path, cli: Callable, tmp_path: Path, t2v_checkpoint: Path) -> None:
    """The LoRA on its teacher and the whole transformer that it merges into give the same velocity."""
    from diffusers import HunyuanVideoTransformer3DModel

    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.backbones.card import model_card
    from w2svd_bench.backbones.export import load_generator
    from w2svd_bench.types import Cond

    runs, merged = tmp_path / "runs", tmp_path / "merged"
    common = ("--backbone", t2v_checkpoint, "--device", "cpu", "--out", runs)
    pool = ("training.pool_clips=4", "settings.generator.learning_rate=0.01")
    done = cli("train", "--method", "w2svd", *common, "--data", "portraits", "--label", "m", "--set", *SMALL, *pool)
    assert done.status == 0, done
    assert cli("export", "--method", "m", *common, "--to", merged, "--merge").status == 0
    facts = json.loads((merged / "generator.json").read_text())
    assert (facts["weights"], facts["weights_dtype"]) == ("full", "float32") and "lora" not in facts
    half = facts | {"dtype": "bfloat16"}  # as of a run in bfloat16
    assert '/transformer")' in model_card(half)
    assert '/transformer", dtype=torch.bfloat16)' in model_card(half | {"weights_dtype": "bfloat16"})
    run = runs / t2v_checkpoint.name / "m" / "seed0"
    backbone = Backbone.load(str(t2v_checkpoint))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 3, 6, 8, generator=generator)
    width = backbone.transformer.config.text_embed_dim
    cond = Cond(
        torch.randn(1, 5, width, generator=generator),
        torch.ones(1, 5),
        torch.randn(1, backbone.transformer.config.pooled_projection_dim, generator=generator),
    )
    t = torch.full((1,), 0.7)
    with torch.no_grad():
        teacher = backbone.network().velocity(x, t, cond)
        whole = backbone.network_of(HunyuanVideoTransformer3DModel.from_pretrained(merged / "transformer").eval())
        from_whole = whole.velocity(x, t, cond)
        from_lora = load_generator(Backbone.load(str(t2v_checkpoint)), run / "generator").velocity(x, t, cond)
    torch.testing.assert_close(from_lora, from_whole, atol=1e-5, rtol=1e-5)
    assert (from_lora - teacher).abs().max() > 1e-4, "the export carries what was learned"


def test_a_real_backbone_without_data_says_what_to_prepare(refused: Callable, t2v_checkpoint: Path) -> None:
    outcome = refused("train", "--method", "w2svd", "--backbone", t2v_checkpoint, "--device", "cpu", "--set", *SMALL)
    assert "data prepare" in outcome.text


def test_a_cache_of_another_codec_is_refused(
    videos: Path, cli: Callable, refused: Callable, tmp_path: Path, t2v_checkpoint: Path
) -> None:
    cache = tmp_path / "cache"
    done = cli("data", "prepare", "--videos", videos, "--captions", videos / "captions.csv", "--out", cache)
    assert done.status == 0, done
    arguments = ("--backbone", t2v_checkpoint, "--device", "cpu", "--data", cache, "--out", tmp_path / "runs")
    outcome = refused("train", "--method", "w2svd", *arguments, "--set", *SMALL)
    assert "fingerprint" in outcome.text or "does not fit" in outcome.text
