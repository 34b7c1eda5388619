"""The miniature built from nothing in a rehearsal of a few iterations: whole, resumable, the same twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.locate import ASSETS
from w2svd_bench.build_mini import card
from w2svd_bench.build_mini.build import build
from w2svd_bench.build_mini.teacher import TeacherPlan, train_teacher
from w2svd_bench.data.portraits import captions, clips
from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.mini_nets import load_net
from w2svd_bench.types import Cond


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every weight file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.safetensors")
    }


class Small(torch.nn.Module):
    """A velocity that is a scaled copy of its input plus a bias: enough for a training loop to be held against."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
        self.bias = torch.nn.Parameter(torch.zeros(16, 1, 1, 1))

    def velocity(self, x: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        return x * self.scale * t.view(-1, 1, 1, 1, 1) + self.bias


def cond_of(rows: torch.Tensor) -> Cond:
    return Cond(torch.zeros(len(rows), 1, 1), torch.ones(len(rows), 1), torch.zeros(len(rows), 1))


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(32, 16, 2, 2, 2, generator=torch.Generator().manual_seed(0)) + 1


def test_the_teachers_training_lowers_its_loss_and_resumes(latents: torch.Tensor, tmp_path: Path) -> None:
    """Interrupted after its checkpoint, it ends with the weights and the average of one that was not.

    ``iterations`` decides the learning rate, so both halves are told the whole number of them.
    """
    plan = TeacherPlan(iterations=2200, batch_size=4, learning_rate=1e-2)
    lines: list[str] = []
    whole, half, again = Small(), Small(), Small()
    average = train_teacher(whole, whole.velocity, latents, cond_of, plan, tmp_path / "whole", lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    # eps - x0 has a mean square of 1 + 1 + 1 (both variances, and the mean of x0 that the bias alone takes away).
    assert len(losses) == 4 and losses[-1] < 2.0

    calls = 0

    def stops(x: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2100:  # the checkpoint is of iteration 2000
            raise KeyboardInterrupt
        return half.velocity(x, t, cond)

    with pytest.raises(KeyboardInterrupt):
        train_teacher(half, stops, latents, cond_of, plan, tmp_path / "half", lines.append)
    resumed = train_teacher(again, again.velocity, latents, cond_of, plan, tmp_path / "half", lines.append)
    assert lines.count("teacher: goes on after iteration 2000, and the seconds start again") == 1
    assert all(torch.equal(resumed[name], average[name]) for name in average)
    assert torch.equal(again.scale, whole.scale) and torch.equal(again.bias, whole.bias)


def test_a_teacher_that_diverges_stops(latents: torch.Tensor, tmp_path: Path) -> None:
    model = Small()
    with torch.no_grad():
        model.scale.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="iteration 0"):
        train_teacher(model, model.velocity, latents, cond_of, TeacherPlan(iterations=2), tmp_path, print)


def test_the_card_lists_every_part_with_its_parameters() -> None:
    text = card.render(ASSETS, "teacher iteration 500/1000 loss 0.5 1 s\nnoise\ncodec, linear: held-out PSNR 25 dB")
    rows = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines() if line[:2] == "| "}
    assert rows["transformer"] == "1,044,480"
    assert {
        "codec",
        "text_encoder",
        "text_encoder_2",
        "features/frame.safetensors",
        "features/clip.safetensors",
    } <= set(rows)
    assert all(int(count.replace(",", "")) > 0 for part, count in rows.items() if part != "part")
    net, _ = load_net("frame")
    assert rows["features/frame.safetensors"] == f"{sum(v.numel() for v in net.state_dict().values()):,}"
    assert "teacher iteration 500/1000" in text and "held-out PSNR 25 dB" in text and "noise\n" not in text


def test_the_card_thins_a_long_log_and_keeps_its_ends() -> None:
    log = "\n".join(f"teacher iteration {500 * i}/32000 loss 0.{i:02d} 1 s" for i in range(1, 65))
    text = card.render(ASSETS, log)
    kept = [line for line in text.splitlines() if line.startswith("teacher iteration")]
    assert kept[0].startswith("teacher iteration 500/") and kept[-1].startswith("teacher iteration 32000/")
    assert 8 <= len(kept) <= 10


@pytest.mark.slow
def test_a_rehearsal_builds_whole_assets_twice_the_same(
    tmp_path: Path, cli: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    first = build(tmp_path / "first", "cpu", True, lines.append)
    backbone = Backbone.load(str(first / "mini"))
    assert sum(p.numel() for p in backbone.transformer.parameters()) == 1_044_480
    assert backbone.decode(backbone.encode(clips("test", [0]))).shape == (1, 17, 48, 48, 3)
    assert len(backbone.encode_prompts(captions("test", [0, 1]))) == 2
    for name in ("frame", "clip"):
        assert len(load_net(name, folder=first / "features")[1]) == 64
    readme = (first / "mini" / "README.md").read_text()
    assert "1,044,480" in readme and "codec, linear: held-out PSNR" in readme
    assert {"codec", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer"} <= {
        path.name for path in (first / "mini").iterdir()
    }
    shipped = {str(p.relative_to(ASSETS / "mini")) for p in (ASSETS / "mini").rglob("*.json")}
    assert {str(p.relative_to(first / "mini")) for p in (first / "mini").rglob("*.json")} == shipped

    # Repeated, it does nothing again; without a part, it makes that part and no other.
    before, said = hashes(tmp_path / "first"), len(lines)
    build(tmp_path / "first", "cpu", True, lines.append)
    assert hashes(tmp_path / "first") == before and len(lines) == said + 1
    shutil.rmtree(first / "mini")
    build(tmp_path / "first", "cpu", True, lines.append)
    assert hashes(tmp_path / "first") == before
    assert not any(line.startswith(("codec", "frame net", "clip net")) for line in lines[said + 1 :])

    # Once more from nothing, in another folder, by the command.
    assert cli("build-mini", "--quick", "--out", tmp_path / "second", "--device", "cpu").status == 0  # type: ignore[attr-defined]
    second = tmp_path / "second" / "assets"
    assert hashes(second) == hashes(first)
    sides = [json.loads((folder / "mini" / "w2svd_bench.json").read_text()) for folder in (first, second, ASSETS)]
    assert sides[0] == sides[1] == sides[2]


def test_the_card_of_the_hard_setting_names_what_differs() -> None:
    text = card.render(ASSETS, "codec: that of\nteacher iteration 500/1000 loss 0.5 1 s\nnoise\n", "mini-hard")
    assert "not the default" in text and "three of a portrait's eight attributes" in text
    assert '"prompt_attributes"' in text and "teacher iteration 500/1000" in text and "noise\n" not in text
    assert "1,044,480" in text and "features/" not in text


def test_there_are_two_settings(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="did you mean 'hard'"):
        build(tmp_path, "cpu", True, print, "harder")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rehearsal_of_the_hard_setting_takes_the_codec_and_trains_a_teacher(
    tmp_path: Path, cli: Callable[..., object]
) -> None:
    """Without a default beside it: with the codec that ships. What is there already is not done again."""
    lines: list[str] = []
    assets = build(tmp_path, "cpu", True, lines.append, "hard")
    assert [path.name for path in assets.iterdir()] == ["mini-hard"]
    assert lines[0] == "codec: that of the miniature that ships with the package"
    made, shipped = hashes(assets / "mini-hard"), hashes(ASSETS / "mini-hard")
    teacher = "transformer/diffusion_pytorch_model.safetensors"
    assert made.keys() == shipped.keys()
    assert {name for name in made if made[name] != shipped[name]} == {teacher}
    for name in ("w2svd_bench.json", "model_index.json", "codec/config.json"):
        assert (assets / "mini-hard" / name).read_bytes() == (ASSETS / "mini-hard" / name).read_bytes()
    assert "three of a portrait's eight attributes" in (assets / "mini-hard" / "README.md").read_text()
    pool = load_file(tmp_path / "hard" / "pool.safetensors")
    expected = Backbone.load("mini").encode_prompts(captions("train", range(64), ("skin", "hair", "backdrop")))
    assert torch.equal(pool["tokens"], expected.tokens_BLD) and torch.equal(pool["pooled"], expected.pooled_BP)

    # The teacher is trained on those captions: another pool gives another one.
    shutil.rmtree(assets / "mini-hard")
    done = cli("build-mini", "--hard", "--quick", "--out", tmp_path, "--device", "cpu")
    assert done.status == 0  # type: ignore[attr-defined]
    assert hashes(assets / "mini-hard") == made
    shutil.rmtree(assets / "mini-hard")
    shutil.rmtree(tmp_path / "hard" / "teacher")
    save_file({**pool, "tokens": pool["tokens"].flip(0).contiguous()}, tmp_path / "hard" / "pool.safetensors")
    build(tmp_path, "cpu", True, lines.append, "hard")
    assert hashes(assets / "mini-hard")[teacher] != made[teacher]

    # With a default that was built in the same folder, its codec.
    shutil.rmtree(tmp_path / "hard")
    shutil.rmtree(assets / "mini-hard")
    shutil.copytree(ASSETS / "mini", assets / "mini")
    codec = "codec/diffusion_pytorch_model.safetensors"
    weights = load_file(assets / "mini" / codec)
    save_file(weights | {"first_mean": weights["first_mean"] + 0.01}, assets / "mini" / codec)
    build(tmp_path, "cpu", True, lines.append, "hard")
    assert "codec: that of the miniature built in the same folder" in lines
    other = load_file(assets / "mini-hard" / codec)["first_mean"]
    assert torch.equal(other, weights["first_mean"] + 0.01) and not (tmp_path / "build.log").exists()
    assert hashes(assets / "mini-hard")[teacher] != made[teacher]
