"""What a user can do wrong with a backbone, and what they are told: what, why, and a cure that fits."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from w2svd_bench.backbones import locate as locating
from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.locate import BackboneSource
from w2svd_bench.config import Engine, Video
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import BACKBONES

VIDEO = Video(height=32, width=48, num_frames=9, fps=8)
# The hub's client builds on one HTTP library or another (httpx, httpx2), whose errors come through as they are.
http = importlib.import_module(hub_errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def own(t2v_checkpoint: Path, tmp_path: Path) -> Path:
    """A text-to-video directory that may be damaged."""
    return Path(shutil.copytree(t2v_checkpoint, tmp_path / "own"))


def refused(call: Callable[[], object], *words: str) -> BenchError:
    """The error that a call has to end in; it names ``words`` and tells what, why and the cure."""
    with pytest.raises(BenchError) as caught:
        call()
    error = caught.value
    assert all(part.strip() for part in (error.what, error.why, error.cure))
    text = " ".join(str(error).split())
    assert "Traceback" not in text
    assert len(text) < 1200
    for word in words:
        assert word in text, text
    return error


def edit(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None takes a key away."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# What is no HunyuanVideo directory.


def test_a_name_that_is_nothing() -> None:
    refused(lambda: Backbone.load("hunyuam"), "hunyuam", "mini", "model_index.json")


def test_an_empty_directory(tmp_path: Path) -> None:
    refused(lambda: Backbone.load(str(tmp_path)), "model_index.json", "save_pretrained")


@pytest.mark.parametrize("part", ["transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"])
def test_a_directory_that_lacks_a_part(own: Path, part: str) -> None:
    shutil.rmtree((own / part).parent)
    refused(lambda: Backbone.load(str(own), video=VIDEO), part)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
def test_a_part_without_its_files(own: Path, part: str) -> None:
    for file in (own / part).iterdir():
        if file.name != "config.json":
            file.unlink()
    refused(lambda: use(Backbone.load(str(own), video=VIDEO)), str(own))


def use(backbone: Backbone) -> None:
    """Opens every part and runs it once."""
    cond = backbone.encode_prompts(["a fox"])
    x = torch.zeros(1, *backbone.latent_shape)
    backbone.decode(backbone.network().velocity(x, torch.ones(1), cond), cond)


def test_an_undamaged_copy_is_fine(own: Path) -> None:
    use(Backbone.load(str(own), video=VIDEO))


@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json", "vae/config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_file_that_is_no_json_mapping(own: Path, file: str, content: str) -> None:
    (own / file).write_text(content)
    refused(lambda: Backbone.load(str(own), video=VIDEO), file)


@pytest.mark.parametrize(
    ("pipeline", "transformer"),
    [
        ("HunyuanVideo15Pipeline", "HunyuanVideo15Transformer3DModel"),
        ("WanPipeline", "WanTransformer3DModel"),
        ("HunyuanVideoFramepackPipeline", "HunyuanVideoFramepackTransformer3DModel"),
        ("HunyuanVideoPipeline", "HunyuanVideoFramepackTransformer3DModel"),
        ("HunyuanSkyreelsImageToVideoPipeline", "HunyuanVideoTransformer3DModel"),
        ("FluxPipeline", "HunyuanVideoTransformer3DModel"),
        (None, "HunyuanVideoTransformer3DModel"),
    ],
)
def test_another_model(own: Path, pipeline: str | None, transformer: str) -> None:
    edit(own / "model_index.json", _class_name=pipeline)
    edit(own / "transformer" / "config.json", _class_name=transformer)
    refused(
        lambda: Backbone.load(str(own)),
        repr(pipeline),
        repr(transformer),
        "HunyuanVideoPipeline",
        "HunyuanVideoImageToVideoPipeline",
    )


def test_a_transformer_that_contradicts_its_pipeline(own: Path, i2v_token_replace: Path) -> None:
    edit(own / "transformer" / "config.json", image_condition_type="token_replace")
    refused(lambda: Backbone.load(str(own)), "token_replace", "HunyuanVideoPipeline", "model_index.json")
    other = Path(shutil.copytree(i2v_token_replace, own.parent / "other"))
    edit(other / "transformer" / "config.json", image_condition_type=None)
    refused(lambda: Backbone.load(str(other)), "image_condition_type", "HunyuanVideoImageToVideoPipeline")


def test_a_way_to_take_the_first_frame_that_is_not_known(i2v_token_replace: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(i2v_token_replace, tmp_path / "own"))
    edit(own / "transformer" / "config.json", image_condition_type="cross_attention")
    refused(lambda: Backbone.load(str(own)), "cross_attention")


def test_a_scheduler_without_a_shift(own: Path) -> None:
    edit(own / "scheduler" / "scheduler_config.json", shift=None)
    refused(lambda: Backbone.load(str(own)), "shift", "scheduler_config.json")


@pytest.mark.parametrize(
    "change",
    [{"no_such_key": 1}, {"task": "v2v"}, {"shift": "seven"}, {"num_frames": "nine"}, {"image_condition": "x"}],
)
def test_a_side_file_that_is_wrong(own: Path, change: dict[str, Any]) -> None:
    (own / "w2svd_bench.json").write_text(json.dumps(change))
    refused(lambda: Backbone.load(str(own), video=VIDEO), "w2svd_bench.json", *map(str, change))


# Damaged weights are never made up.


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "file", "key"),
    [
        ("transformer", WEIGHTS, "transformer_blocks.1.attn.to_q.weight"),
        ("vae", WEIGHTS, "decoder.conv_in.conv.weight"),
        ("text_encoder", "model.safetensors", "layers.1.self_attn.q_proj.weight"),
        ("text_encoder_2", "model.safetensors", "layers.1.self_attn.q_proj.weight"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "another shape"])
def test_a_weight_that_is_missing_or_of_another_shape(own: Path, part: str, file: str, key: str, damage: str) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        [name] = [name for name in weights if f".{name}".endswith(f".{key}")]
        taken = weights.pop(name)
        if damage == "another shape":
            weights[name] = taken[:-1].contiguous()

    rewritten(own / part / file, change)
    refused(
        lambda: use(Backbone.load(str(own), video=VIDEO)), key, part.removesuffix("_2").replace("_", " ").split()[0]
    )


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_weight_of_another_model(own: Path, part: str) -> None:
    rewritten(own / part / WEIGHTS, lambda weights: weights.update({"stranger.weight": torch.zeros(2)}))
    refused(lambda: use(Backbone.load(str(own), video=VIDEO)), "stranger.weight", "another model")


@pytest.mark.parametrize(
    ("part", "file"), [("transformer", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model.safetensors")]
)
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_file_of_weights_that_was_cut_short(own: Path, part: str, file: str, kept: float) -> None:
    content = (own / part / file).read_bytes()
    (own / part / file).write_bytes(content[: int(kept * len(content))])
    refused(lambda: use(Backbone.load(str(own), video=VIDEO)), str(own), "again")


def test_pickled_weights_are_not_opened(own: Path) -> None:
    weights = load_file(own / "transformer" / WEIGHTS)
    (own / "transformer" / WEIGHTS).unlink()
    torch.save(weights, own / "transformer" / "diffusion_pytorch_model.bin")
    refused(lambda: use(Backbone.load(str(own), video=VIDEO)), str(own / "transformer"))


# The hub.


def answer(status: int) -> Any:
    return http.Response(status, request=http.Request("GET", "https://hub.invalid/api/models/owner/name"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("no route"), ["can't be reached", "connect", "its path"]),
        (http.ConnectError("no route"), ["can't be reached", "connect", "its path"]),
        (http.ProxyError("no way through"), ["can't be reached", "connect", "its path"]),
        (http.ReadTimeout("too slow"), ["can't be reached", "connect", "its path"]),
        (hub_errors.LocalEntryNotFoundError("not in the cache"), ["can't be reached", "its path"]),
        (hub_errors.OfflineModeIsEnabled("offline"), ["can't be reached", "its path"]),
        (hub_errors.HfHubHTTPError("busy", response=answer(503)), ["can't be reached", "repeat"]),
        (hub_errors.RepositoryNotFoundError("none", response=answer(404)), ["no such model", "check the name"]),
        (hub_errors.RevisionNotFoundError("none", response=answer(404)), ["revision", "check the name"]),
        (hub_errors.GatedRepoError("terms", response=answer(403)), ["access", "accept its terms", "hf auth login"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("source", ["owner/name", "owner/name@main", "registered"])
def test_a_hub_that_gives_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: list[str], source: str
) -> None:
    class Registered(BackboneSource):
        name, task = "registered", "t2v"

        def location(self) -> str:
            return "owner/name"

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(locating, "snapshot_download", fail)
    monkeypatch.setattr(BACKBONES, "_registered", {"registered": (Registered, "a test")})
    refused(lambda: Backbone.load(source), "owner/name", *words)


def test_a_part_that_the_hub_does_not_give_later(monkeypatch: pytest.MonkeyPatch, t2v_checkpoint: Path) -> None:
    asked: list[list[str]] = []

    def small_files_only(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        if any("transformer/*" in pattern for pattern in allow_patterns):
            raise ConnectionError("the line went dead")
        return str(t2v_checkpoint)

    monkeypatch.setattr(locating, "snapshot_download", small_files_only)
    backbone = Backbone.load("owner/name", video=VIDEO)
    assert backbone.name == "owner--name"
    assert len(asked) == 1
    assert not any(pattern.endswith(("*", ".safetensors", ".bin", ".pt")) for pattern in asked[0])
    refused(backbone.network, "owner/name", "ConnectionError", "its path")


# The wrong variant, size or setting.


@pytest.mark.parametrize(("task", "words"), [("i2v", ["image-to-video"]), ("t2v", ["text-to-video"])])
def test_a_name_for_one_task_given_a_checkpoint_for_another(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    task: str,
    words: list[str],
) -> None:
    fixture = {"i2v": "t2v_checkpoint", "t2v": "i2v_token_replace"}[task]
    folder = request.getfixturevalue(fixture)

    class Registered(BackboneSource):
        name = "registered"

        def location(self) -> Path:
            return Path(folder)

    Registered.task = task
    monkeypatch.setattr(BACKBONES, "_registered", {"registered": (Registered, "a test")})
    refused(lambda: Backbone.load("registered"), "registered", "wrong kind", *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 40}, ["40x48", "16"]),
        ({"width": 56}, ["32x56", "16"]),
        ({"height": 33, "width": 50}, ["height 33", "width 50"]),
        ({"num_frames": 8}, ["8 frames", "4k + 1"]),
        ({"num_frames": 10}, ["10 frames", "use 9 frames"]),
    ],
)
def test_a_size_that_the_model_can_not_make(t2v_checkpoint: Path, change: dict[str, int], words: list[str]) -> None:
    video = VIDEO.model_copy(update=change)
    error = refused(lambda: Backbone.load(str(t2v_checkpoint), video=video), *words)
    # The cure is one: what it advises is accepted.
    if "num_frames" in change:
        advised = video.model_copy(update={"num_frames": int(error.cure.split()[1])})
    else:
        height, width = map(int, error.cure.split()[1].split("x"))
        advised = video.model_copy(update={"height": height, "width": width})
    Backbone.load(str(t2v_checkpoint), video=advised)


def test_a_single_frame_is_a_clip_for_text_but_not_after_a_given_frame(
    t2v_checkpoint: Path, i2v_token_replace: Path, i2v_latent_concat: Path
) -> None:
    single = VIDEO.model_copy(update={"num_frames": 1})
    assert Backbone.load(str(t2v_checkpoint), video=single).latent_shape[1] == 1
    refused(lambda: Backbone.load(str(i2v_token_replace), video=single), "given", "use 5 frames")
    # The pipeline leaves out the first latent frame and the four frames that it stands for: nothing would be left.
    refused(lambda: Backbone.load(str(i2v_latent_concat), video=single), "use 5 frames")


@pytest.mark.parametrize(("backend", "words"), [("falsh", ["falsh", "'flash'"]), ("sage", ["sage"])])
def test_an_attention_that_is_not_known_or_not_installed(t2v_checkpoint: Path, backend: str, words: list[str]) -> None:
    backbone = Backbone.load(str(t2v_checkpoint), engine=Engine(attention=backend), video=VIDEO)
    refused(backbone.network, "attention", *words)


@pytest.mark.parametrize("folder", ["i2v_token_replace", "i2v_latent_concat"])
def test_prompts_without_first_frames(request: pytest.FixtureRequest, folder: str) -> None:
    backbone = Backbone.load(str(request.getfixturevalue(folder)), video=VIDEO)
    refused(lambda: backbone.encode_prompts(["a fox"]), "first frame", "image-to-video")


@pytest.mark.parametrize("folder", ["i2v_token_replace", "i2v_latent_concat"])
def test_conditioning_of_another_backbone(request: pytest.FixtureRequest, folder: str, t2v_checkpoint: Path) -> None:
    cond = Backbone.load(str(t2v_checkpoint), video=VIDEO).encode_prompts(["a fox"])
    backbone = Backbone.load(str(request.getfixturevalue(folder)), video=VIDEO)
    x = torch.zeros(1, *backbone.latent_shape)
    refused(lambda: backbone.network().velocity(x, torch.ones(1), cond), "first frame", "data prepare")


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_trained_weights_are_not_below_the_activations(dtype: str, t2v_checkpoint: Path) -> None:
    """On a CPU ``auto`` is float32."""
    engine = Engine(dtype=dtype, trained_dtype="bfloat16")
    with pytest.raises(BenchError, match="trained_dtype"):
        Backbone.load(str(t2v_checkpoint), engine=engine)
    Backbone.load(str(t2v_checkpoint), engine=Engine(dtype="bfloat16", trained_dtype="bfloat16"))


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_missing_weights_have_no_hash(part: str, t2v_checkpoint: Path, tmp_path: Path) -> None:
    """What is not there must not get an identity: a run would be filed under the sha256 of nothing."""
    folder = tmp_path / "copy"
    shutil.copytree(t2v_checkpoint, folder)
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(BenchError, match=part):
        _ = Backbone.load(str(folder)).sha256


def test_a_shard_that_the_index_names_is_missed(t2v_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(t2v_checkpoint, folder)
    index = {"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BenchError, match="00002-of-00002"):
        _ = Backbone.load(str(folder)).teacher_sha256


def test_a_downloaded_snapshot_is_pinned(monkeypatch: pytest.MonkeyPatch, t2v_checkpoint: Path, tmp_path: Path) -> None:
    """Parts that come later are of the commit that the configs came from, whatever happens on the hub in between."""
    snapshot = tmp_path / "0123abc"
    shutil.copytree(t2v_checkpoint, snapshot)
    asked: list[str | None] = []

    def download(repository: str, revision: str | None = None, **_: Any) -> str:
        asked.append(revision)
        return str(snapshot)

    monkeypatch.setattr(locating, "snapshot_download", download)
    backbone = Backbone.load("owner/model")
    _ = backbone.transformer
    assert asked[0] is None and set(asked[1:]) == {"0123abc"}
