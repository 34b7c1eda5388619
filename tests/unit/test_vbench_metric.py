"""The metrics `vbench` and `vbench_i2v` and the environment they ask for, on a fake worker in place of the real one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.base import STAND_IN, ClipFile
from w2svd_bench.metrics.vbench import dimensions, environment, scores
from w2svd_bench.metrics.vbench.metric import CUSTOM, VBench, VBenchI2V
from w2svd_bench.metrics.weights import install_stand_in
from w2svd_bench.types import Skipped

IDS = sorted({id for kind in dimensions.KINDS.values() for id in kind.weights})
SCRIPT_METADATA = environment.WORKER.read_text("utf-8").split('"""')[0]
# Answers 0.5 for every clip; what else it does is said by the name of the clip, or by the file "mode" beside it.
FAKE = """
import json, os, sys, time
from pathlib import Path
mode_file = Path(__file__).with_name("mode")
mode = mode_file.read_text() if mode_file.exists() else ""
versions = {"vbench": "0.1.5", "numpy": "1.0" if mode in ("odd", "changed") else "1.26.4"}
if mode == "other": versions["vbench"] = "0.1.4"
if mode == "lacking": versions["numpy"] = None
if mode == "mute": sys.exit("no torch here")
if sys.argv[1] == "--versions":
    print(json.dumps(versions))
    sys.exit()
hello = json.dumps({"hello": 2 if mode == "newer" else 1, "versions": versions})
print("what?" if mode == "stranger" else hello, flush=True)
for line in sys.stdin:
    request = json.loads(Path(line.strip()).read_text())
    with Path(__file__).with_name("seen").open("a") as seen:
        print(json.dumps({"pid": os.getpid(), **request}), file=seen)
    names = [Path(clip["path"]).stem for clip in request["clips"]]
    print(json.dumps({"progress": [0, 2]}), flush=True)
    if "crash" in names: sys.exit("Segmentation fault, or so")
    if "garbage" in names: print("Downloading 100%", flush=True)
    if "strange" in names: print('{"weather": "fine"}', flush=True)
    if "long" in names: time.sleep(600)
    if "fail" in names:
        print(json.dumps({"failed": "clip.load: bad weights"}), flush=True)
        continue
    result = {name: {"values": [None if names[r] == "bad" else 0.5 for r in rows],
                     "reasons": ["broken" if names[r] == "bad" else None for r in rows]}
              for name, rows in request["dimensions"].items()}
    Path(request["result"]).write_text(json.dumps({"dimensions": result}))
    print(json.dumps({"progress": [2, 2]}), flush=True)
    print(json.dumps({"done": True}), flush=True)
"""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder that holds none."""
    monkeypatch.setenv("W2SVD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def fake(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake worker, which every metric starts; all weights are there."""
    for id in IDS:
        install_stand_in(id, id.encode())
    script = tmp_path / "fake" / "worker.py"
    script.parent.mkdir()
    script.write_text(SCRIPT_METADATA + FAKE)
    monkeypatch.setattr(environment, "WORKER", script)
    monkeypatch.setattr(environment, "interpreter", lambda: Path(sys.executable))
    return script.parent


@pytest.fixture
def metric(fake: Path) -> Iterator[VBench]:
    made = VBench("cpu")
    yield made
    made.close()


def clip(name: str = "good", **changes: Any) -> ClipFile:
    fields: dict[str, Any] = {"path": Path("/clips") / f"{name}.mp4", "key": name, "prompt": "a face", "frames": 129}
    return ClipFile(**(fields | {"height": 720, "width": 1280, "fps": 24.0} | changes))


def seen(fake: Path) -> list[dict[str, Any]]:
    """The requests that the fake worker got, each with the worker's process id."""
    return [json.loads(line) for line in (fake / "seen").read_text().splitlines()]


def ignore(done: int, total: int) -> None:
    """A progress bar that nobody looks at."""


def test_values_are_put_on_one_scale_and_quality_is_made_of_them(metric: VBench) -> None:
    told: list[tuple[int, int]] = []
    values = metric.score([clip(), clip("other")], lambda done, total: told.append((done, total)))
    assert list(values) == [one.name for one in metric.dimensions]
    assert values["vbench.subject_consistency[stand-in]"] == [0.5, 0.5]
    assert values["vbench.imaging_quality[stand-in]"] == [0.005, 0.005]  # VBench gives percents for single clips
    want = scores.quality({name: 0.005 if name == "imaging_quality" else 0.5 for name in scores.QUALITY})
    assert values["vbench.quality[stand-in]"] == [want, want]
    assert told == [(0, 2), (2, 2)]


def test_one_worker_serves_many_calls_and_is_gone_after_close(metric: VBench, fake: Path) -> None:
    assert metric.versions == {}
    metric.score([clip()], ignore)
    metric.score([clip()], ignore)
    first, second = seen(fake)
    assert first["pid"] == second["pid"]
    assert metric.versions["vbench"] == "0.1.5"
    metric.close()
    metric.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first["pid"], 0)
    assert not Path(first["result"]).parent.exists()


def test_the_request_says_all_that_the_worker_has_to_know(metric: VBench, fake: Path, weights: Path) -> None:
    metric.score([clip(prompt="a/b ü")], ignore)
    (request,) = seen(fake)
    assert request["clips"] == [{"path": "/clips/good.mp4", "frames": 129, "prompt": "a/b ü", "image": None}]
    assert request["weights"]["raft_model/models/raft-things.pth"] == str(
        weights / "vbench/raft_model/models/raft-things.pth"
    )
    assert request["dimensions"] == {name: [0] for name in scores.QUALITY}
    assert (request["device"], request["read_frame"]) == ("cpu", False)


def test_a_bad_file_has_a_reason_and_the_others_have_values(metric: VBench) -> None:
    values = metric.score([clip(), clip("bad"), clip("other")], ignore)
    assert values["vbench.temporal_flickering"] == [0.5, Skipped("broken"), 0.5]
    one, none, other = values["vbench.quality[stand-in]"]
    assert one == other and isinstance(one, float)
    assert isinstance(none, Skipped) and "subject_consistency" in none.reason


def test_a_crash_is_told_with_its_last_words_and_the_next_call_starts_anew(metric: VBench, fake: Path) -> None:
    with pytest.raises(BenchError, match="Segmentation fault, or so"):
        metric.score([clip("crash")], ignore)
    assert metric.score([clip()], ignore)["vbench.temporal_flickering"] == [0.5]
    first, second = seen(fake)
    assert first["pid"] != second["pid"]


@pytest.mark.parametrize(("name", "message"), [("garbage", "Downloading 100%"), ("strange", "weather")])
def test_nonsense_is_an_error_and_the_next_call_starts_anew(
    metric: VBench, fake: Path, name: str, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        metric.score([clip(name)], ignore)
    assert metric.score([clip()], ignore)["vbench.temporal_flickering"] == [0.5]
    assert len({request["pid"] for request in seen(fake)}) == 2


def test_what_breaks_down_for_all_clips_is_an_error_and_the_worker_lives_on(metric: VBench, fake: Path) -> None:
    with pytest.raises(BenchError, match=r"clip\.load: bad weights"):
        metric.score([clip("fail")], ignore)
    metric.score([clip()], ignore)
    assert len({request["pid"] for request in seen(fake)}) == 1


def test_an_interrupt_ends_the_worker(metric: VBench, fake: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        metric.score([clip("long")], interrupt)
    assert time.monotonic() - start < 8  # it is not waited for: it would work on
    with pytest.raises(ProcessLookupError):
        os.kill(seen(fake)[0]["pid"], 0)
    assert metric.score([clip()], ignore)["vbench.temporal_flickering"] == [0.5]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("mute", "no torch here"),
        ("stranger", "what?"),
        ("other", "0.1.4"),
        ("changed", "other packages"),
        ("newer", "hello"),
    ],
)
def test_a_worker_that_does_not_start_right_is_an_error(metric: VBench, fake: Path, mode: str, message: str) -> None:
    (fake / "mode").write_text(mode)
    with pytest.raises(BenchError, match=message):
        metric.score([clip()], ignore)
    with pytest.raises(BenchError, match=message):  # it is started anew, and looked at again
        metric.score([clip()], ignore)
    (fake / "mode").unlink()
    assert metric.score([clip()], ignore)["vbench.temporal_flickering"] == [0.5]


def test_a_prepared_python_is_looked_at_before_anything_is_scored(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = VBench("cpu").dimensions
    monkeypatch.setenv(environment.PYTHON_VARIABLE, sys.executable)
    assert VBench("cpu").dimensions == pinned
    for mode, message in {"mute": "no torch here", "other": "0.1.4", "lacking": "it lacks numpy"}.items():
        (fake / "mode").write_text(mode)
        with pytest.raises(BenchError, match=message):
            VBench("cpu")
    (fake / "mode").write_text("odd")
    metric = VBench("cpu")
    assert all("VBench with numpy 1.0" in one.flags for one in metric.dimensions)
    assert not {one.id for one in metric.dimensions} & {one.id for one in pinned}
    assert metric.score([clip()], ignore)["vbench.temporal_flickering"] == [0.5]
    metric.close()


def test_flags_and_ids_say_what_a_reader_has_to_know(metric: VBench) -> None:
    found = {one.name: one for one in metric.dimensions}
    flickering, raft = found["vbench.temporal_flickering"], found["vbench.dynamic_degree[stand-in]"]
    assert flickering.flags == (CUSTOM, "unfiltered")
    assert STAND_IN in raft.flags and STAND_IN in found["vbench.quality[stand-in]"].flags
    assert raft.weights_sha256 is not None and f"vbench-raft {raft.weights_sha256}" in raft.id
    assert "vbench 0.1.5" in flickering.id and "opencv-python 4." in flickering.id
    assert len({one.id for one in found.values()}) == len(found) == 8


def test_quality_stands_on_the_ids_of_its_dimensions(fake: Path) -> None:
    before = VBench("cpu").dimensions[-1].id
    install_stand_in("vbench-raft", b"other numbers")
    assert VBench("cpu").dimensions[-1].id != before


def test_ids_tell_half_precision_apart(fake: Path) -> None:
    """CLIP's loader leaves its networks in float16 on a GPU; the others run in float32 everywhere."""
    cpu, gpu = ({one.name: one.id for one in VBench(device).dimensions} for device in ("cpu", "cuda"))
    different = {name.removesuffix("[stand-in]").rpartition(".")[2] for name in cpu if cpu[name] != gpu[name]}
    assert different == {"background_consistency", "aesthetic_quality", "quality"}


def test_only_some_dimensions(fake: Path) -> None:
    metric = VBench("cpu", only=["temporal_flickering", "overall_consistency"])
    assert [one.name for one in metric.dimensions] == [
        "vbench.temporal_flickering",
        "vbench.overall_consistency[stand-in]",
    ]
    values = metric.score([clip(prompt=None), clip()], ignore)
    metric.close()
    assert values["vbench.overall_consistency[stand-in]"] == [Skipped("it needs a prompt"), 0.5]
    assert seen(fake)[0]["dimensions"] == {"temporal_flickering": [0, 1], "overall_consistency": [1]}
    assert set(seen(fake)[0]["weights"]) == {"ViCLIP/ViClip-InternVid-10M-FLT.pth"}


@pytest.mark.parametrize(
    ("metric_class", "only", "message"),
    [
        (VBench, ["temporal_flicker"], "did you mean 'temporal_flickering'"),
        (VBench, ["object_class"], "its own prompts only"),
        (VBench, [], "the list is empty"),
        (VBenchI2V, ["i2v_background"], "dreamsim"),
        (VBenchI2V, ["camera_motion"], "lacks vbench2_beta_i2v.third_party"),
    ],
)
def test_dimensions_that_can_not_be_had(
    weights: Path, metric_class: type[VBench], only: list[str], message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        metric_class("cpu", only=only)


def test_missing_weights_are_found_before_anything_starts(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> Path:
        raise AssertionError("it was started")

    monkeypatch.setattr(environment, "interpreter", never)
    with pytest.raises(BenchError) as error:
        VBench("cpu")
    for id in ("vbench-dino", "vbench-clip-l14", "vbench-aesthetic", "vbench-raft"):
        assert id in str(error.value)
    assert VBench("cpu", only=["temporal_flickering"]).dimensions[0].flags == (CUSTOM, "unfiltered")


@pytest.mark.parametrize(
    ("size", "refused"),
    [
        ((129, 720, 1280, 24.0), set()),
        ((24, 128, 128, 24.0), set()),
        ((21, 128, 128, 24.0), {"dynamic_degree", "quality"}),  # 7 frames at 8 fps
        ((8, 128, 128, 8.0), set()),
        ((12, 128, 128, 12.0), {"dynamic_degree", "quality"}),  # every second one, round(1.5), which leaves 6
        ((16, 128, 128, 20.0), set()),  # round(2.5) is 2 in Python, and so in VBench
        ((15, 120, 128, 8.0), {"dynamic_degree", "quality"}),
        ((15, 112, 128, 8.0), {"motion_smoothness", "dynamic_degree", "quality"}),
        # The widths that decord can not read.
        ((15, 128, 72, 8.0), {*scores.QUALITY, "quality"} - {"temporal_flickering"}),
        ((2, 128, 128, 8.0), {"motion_smoothness", "dynamic_degree", "quality"}),
        (
            (1, 128, 128, 8.0),
            {*scores.QUALITY, "quality"} - {"aesthetic_quality", "imaging_quality"},
        ),
    ],
)
def test_clips_that_are_too_short_or_too_small(
    metric: VBench, size: tuple[int, int, int, float], refused: set[str]
) -> None:
    reasons = metric.refuses(*size)
    plain = {name.removeprefix("vbench.").removesuffix("[stand-in]"): reason for name, reason in reasons.items()}
    assert set(plain) == refused
    if size[1] == 112:
        assert "113" in plain["motion_smoothness"] and "121" in plain["dynamic_degree"]
    if size[2] == 72:
        assert "72 pixels wide" in plain["imaging_quality"]


def test_refused_clips_are_never_sent(metric: VBench, fake: Path) -> None:
    values = metric.score([clip("small", height=48), clip("image", path=Path("/clips/one.png"))], ignore)
    assert "113 pixels" in str(values["vbench.motion_smoothness[stand-in]"][0])
    assert values["vbench.temporal_flickering"] == [0.5, Skipped("VBench reads no .png files here")]
    assert "motion_smoothness" not in seen(fake)[0]["dimensions"]


def test_nothing_starts_where_no_clip_can_be_scored(metric: VBench, fake: Path) -> None:
    assert metric.score([], ignore)["vbench.quality[stand-in]"] == []
    assert isinstance(metric.score([clip(path=Path("/x.npy"))], ignore)["vbench.temporal_flickering"][0], Skipped)
    assert not (fake / "seen").exists()


def test_image_to_video_needs_its_image(fake: Path) -> None:
    metric = VBenchI2V("cuda")
    values = metric.score([clip(), clip(image=Path("/images/one.png"))], ignore)
    metric.close()
    assert values == {
        "vbench_i2v.i2v_subject[stand-in]": [Skipped("it needs the image that the clip was made from"), 0.5]
    }
    assert seen(fake)[0]["clips"][1]["image"] == "/images/one.png"
    assert seen(fake)[0]["device"] == "cuda:0"


# The environment.


def test_the_real_worker_says_what_a_python_lacks(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own Python has no vbench, and the worker can say so in any."""
    monkeypatch.setenv(environment.PYTHON_VARIABLE, sys.executable)
    with pytest.raises(BenchError, match="it lacks vbench"):
        VBench("cpu", only=["temporal_flickering"])


def test_a_python_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.PYTHON_VARIABLE, str(tmp_path / "nowhere" / "python"))
    with pytest.raises(BenchError, match="there is no program of that name"):
        environment.interpreter()
    (tmp_path / "python").write_text("")
    monkeypatch.setenv(environment.PYTHON_VARIABLE, str(tmp_path / "python"))
    with pytest.raises(BenchError, match="can't be run"):
        environment.interpreter()


def test_uv_finds_or_builds_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline first; then once more, with what uv says shown; its failure is an error with its words."""
    uv, calls = tmp_path / "uv", tmp_path / "calls"
    monkeypatch.delenv(environment.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(environment, "find_uv", lambda: [str(uv)])
    script = '#!/bin/sh\necho "$@" >> {calls}\ncase "$*" in *find*) echo /venv/bin/python;; {case} esac\n'

    def answer(case: str) -> None:
        uv.write_text(script.format(calls=calls, case=case))
        uv.chmod(0o755)

    answer("")
    assert environment.interpreter() == Path("/venv/bin/python")
    asked = calls.read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["sync", "python"] and "--offline" in asked[0]
    answer("*offline*) exit 1;;")
    assert environment.interpreter() == Path("/venv/bin/python")
    assert "--offline" not in calls.read_text().splitlines()[-2]
    answer("*) echo 'error: dns failed' >&2; exit 2;;")
    with pytest.raises(BenchError, match="dns failed"):
        environment.interpreter()


def test_what_is_meant_for_our_python_is_kept_from_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("W2SVD_TEST", "kept")
    assert "PYTHONPATH" not in environment.worker_environment()
    assert environment.worker_environment()["W2SVD_TEST"] == "kept"


def test_no_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match="--vbench-python"):
        environment.find_uv()
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    assert environment.find_uv() == [str(tmp_path / "uv")]


def test_pins_are_exact() -> None:
    assert environment.pins()["vbench"] == "0.1.5"
    assert environment.pins()["numpy"].startswith("1.")
    named = environment.script_metadata()["tool"]["uv"]["constraint-dependencies"]
    assert all("==" in requirement for requirement in named)
