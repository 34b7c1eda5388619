"""What VBench's worker does around VBench, without it: names, failures, weights; its real runs need its environment."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from w2svd_bench.metrics.vbench import environment


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The real worker's module; VBench is imported by none of what is tested here."""
    monkeypatch.syspath_prepend(str(environment.WORKER.parent))
    yield import_module("worker")
    for name in ("worker", "tame"):
        del sys.modules[name]


class FakeSuite:
    """A suite of one module, whose actions are two."""

    def module(self, dimension: str) -> SimpleNamespace:
        return SimpleNamespace(build_dict=lambda: {"0": "riding a bike", "1": "tai chi"})


def test_no_prompt_reaches_a_file_name(worker: ModuleType) -> None:
    prompts = ["../../etc/passwd", "日本語 " * 200, "A/a fantasy landscape", "clip-1"]
    clips = [{"path": f"/c/{row}.mp4", "prompt": prompt} for row, prompt in enumerate(prompts)]
    clips.append({"path": "/c/4.GIF", "prompt": None})
    names = worker.staged_names("overall_consistency", range(5), {}, clips, FakeSuite())
    assert list(names.values()) == ["clip-0.mp4", "clip-1.mp4", "clip-2.mp4", "clip-3.mp4", "clip-4.gif"]


def test_an_action_reaches_the_file_name_only_if_it_is_a_known_one(worker: ModuleType) -> None:
    prompts = ["A person is riding a bike.", "a person is tai chi-3", "a person is ../x", "a face"]
    clips = [{"path": f"/c/{row}.mp4", "prompt": prompt} for row, prompt in enumerate(prompts)]
    reasons: dict[int, str] = {}
    names = worker.staged_names("human_action", range(4), reasons, clips, FakeSuite())
    assert names == {0: "riding a bike-0.mp4", 1: "tai chi-1.mp4"}
    assert set(reasons) == {2, 3}


def test_a_clip_that_kills_a_dimension_is_found_and_the_others_are_scored(
    worker: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """VBench raises at clip 1, drops clip 2 without a word, and has no number for clip 3."""

    def evaluate(
        dimension: str, names: dict[int, str], request: Any, suite: Any, folder: Path
    ) -> tuple[dict[int, float], float]:
        if 1 in names:
            raise RuntimeError(f"can't decode {folder}/stage/videos/clip-1.mp4\nmore")
        kept = {row: math.nan if row == 3 else row / 10 for row in names if row != 2}
        return kept, 0.25

    monkeypatch.setattr(worker, "evaluate", evaluate)
    request = {"clips": [{"path": f"/c/{row}.mp4", "prompt": None} for row in range(5)]}
    reasons: dict[int, str] = {}
    values, aggregate = worker.score("imaging_quality", range(5), reasons, request, FakeSuite(), tmp_path)
    assert values == {0: 0.0, 4: 0.4} and aggregate is None
    assert reasons[1] == "RuntimeError: can't decode clip-1.mp4"
    assert "dropped" in reasons[2] and "no number" in reasons[3]
    reasons = {}
    values, aggregate = worker.score("imaging_quality", [0, 2, 4], reasons, request, FakeSuite(), tmp_path)
    assert values == {0: 0.0, 4: 0.4} and aggregate == 0.25 and set(reasons) == {2}


@pytest.mark.parametrize("error", [MemoryError("huge"), NotImplementedError("UnImplemented dimension x!, no cv2")])
def test_what_no_clip_is_to_blame_for_ends_the_request(
    worker: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def evaluate(*_: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "evaluate", evaluate)
    request = {"clips": [{"path": "/c/0.mp4", "prompt": None}]}
    with pytest.raises(worker.Breakdown, match=str(error)[-6:]):
        worker.score("imaging_quality", [0], {}, request, FakeSuite(), tmp_path)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("/tmp/stage/a/0.mp4: moov atom not found", "0.mp4: moov atom not found"),
        ("no file at '/home/alice/.cache/vbench/clip/ViT-B-32.pt'", "no file at 'ViT-B-32.pt'"),
        (r"C:\\clips\\0.mp4 is empty", "0.mp4 is empty"),
        ("see https://host.example/a/b and ratio 3/4", "see https://host.example/a/b and ratio 3/4"),
    ],
)
def test_reasons_name_files_and_no_folder_of_a_machine(worker: ModuleType, told: str, kept: str) -> None:
    assert worker.in_short(ValueError(told)) == f"ValueError: {kept}"


def test_progress_counts_every_clip_once_a_dimension(worker: ModuleType) -> None:
    told: list[tuple[int, int]] = []
    progress = worker.Progress(lambda done, total: told.append((done, total)), 3)
    progress.begin(2)
    for _ in range(5):  # as when the clips are scored again one by one
        progress.tick()
    progress.begin(1)
    progress.begin(0)
    assert told == [(0, 3), (1, 3), (2, 3), (2, 3), (3, 3)]


def test_there_is_no_way_to_the_network(tmp_path: Path) -> None:
    """In a process of its own, because it is for good."""
    code = (
        "import socket, subprocess, sys, urllib.request; from pathlib import Path; import tame\n"
        "tame.no_network(Path(sys.argv[1]))\n"
        "a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'\n"
        "try: urllib.request.urlopen('http://127.0.0.1:9')\n"
        "except OSError as error: print(error)\n"
        "print([subprocess.run([name, 'x']).returncode for name in ('wget', 'git', 'curl', 'unzip')])\n"
    )
    folder = environment.WORKER.parent
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the worker has no network" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1] == "[1, 1, 1, 1]"


class Harmful:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_weights_with_other_objects_in_them_are_read_and_run_no_code(worker: ModuleType, tmp_path: Path) -> None:
    import torch

    harm, file = tmp_path / "harm", tmp_path / "amt-s.pth"
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)}
    config = SimpleNamespace(lr=1.0)
    torch.save({"state_dict": tensors, "config": config, "harm": Harmful(harm), "path": Path("x")}, file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    read = import_module("tame").tensors_only(torch.load)(file, map_location="cpu")
    assert set(read["state_dict"]) == {"weight", "half"}
    assert all(torch.equal(read["state_dict"][name], tensor) for name, tensor in tensors.items())
    assert not harm.exists()


def test_loaders_are_asked_once_and_their_errors_are_breakdowns(worker: ModuleType) -> None:
    tame = import_module("tame")
    asked: list[str] = []

    def load(path: str, device: str = "cpu") -> object:
        asked.append(path)
        if path == "broken":
            raise RuntimeError("size mismatch")
        return object()

    once = tame.kept(load)
    assert once("a") is once("a")
    assert once("a") is not once("b")
    assert asked == ["a", "b"]
    with pytest.raises(tame.Breakdown, match="load: RuntimeError: size mismatch"):
        once("broken")
