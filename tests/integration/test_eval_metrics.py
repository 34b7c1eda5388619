"""``eval --metrics``: the paper's metrics on the miniature's clips, with random weights that say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w2svd_bench.metrics.base import CorpusMetric
from w2svd_bench.metrics.weights import install_stand_in
from w2svd_bench.record import Record, Score, SkippedScore, read_records

import stand_ins_i3d
import stand_ins_inception
import vbench_stand_ins

Command = Callable[..., Any]
# Eight prompts and eight reference clips: the least that a distance is given for.
FEW = ["--clips", "8", "--reference-clips", "8", "--device", "cpu"]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder with a random I3D archive, and caches of this test's own."""
    monkeypatch.setenv("W2SVD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path / "cache"))
    install_stand_in("i3d-torchscript", stand_ins_i3d.i3d_torchscript())
    return tmp_path / "weights"


def records(out: Path) -> dict[str, Record]:
    return {one.cell.label: one for one in read_records(out / "mini" / "results-test-8-of-8")}


def test_metrics_are_added_one_after_the_other(cli: Command, weights: Path, tmp_path: Path) -> None:
    """The second evaluation keeps the first one's scores and says that the weights are random."""
    out = tmp_path / "runs"
    assert cli("train", "--method", "euler", "--device", "cpu", "--out", out).status == 0
    common = ["eval", "--steps", "1", "--out", out, *FEW]
    assert cli(*common).status == 0
    first = records(out)
    assert set(first["euler"].metrics) == {
        f"{name}{versus}" for name in ("fid[mini]", "fvd[mini]") for versus in ("", " vs teacher")
    }
    assert first["euler"].eval_set.reference == "portraits-reference-8"
    outcome = cli(*common, "--metrics", "fvd", "kvd", "--against", "real")
    assert outcome.status == 0, outcome
    second = records(out)
    assert (
        set(second)
        == set(first)
        == {
            "euler",
            "real (noise floor)",
            "real, through the codec",
            "teacher, 28 steps (noise floor)",
        }
    )
    for label in ("euler", "real (noise floor)"):
        old, new = first[label], second[label]
        assert set(new.metrics) == set(old.metrics) | {"fvd[stand-in]", "kvd[stand-in]"}
        assert all(new.metrics[name] == score for name, score in old.metrics.items())
        assert new.provenance["earlier"] == [old.provenance]
        fvd = new.metrics["fvd[stand-in]"]
        assert isinstance(fvd, Score) and {"stand-in weights", "n<2048", "N<D"} <= set(fvd.flags)
    markdown = (out / "mini" / "results-test-8-of-8" / "leaderboard.md").read_text()
    assert "RANDOM WEIGHTS" in markdown and "fvd[stand-in]" in markdown


def test_missing_weights_are_named_before_anything_is_sampled(cli: Command, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert cli("train", "--method", "euler", "--device", "cpu", "--out", out).status == 0
    outcome = cli("eval", "--steps", "1", "--metrics", "fid", "--out", out, *FEW)
    assert outcome.status == 1 and "Traceback" not in outcome.text
    for part in ("pt_inception-2015-12-05-6726825d.pth", "6726825d0af5", str(weights), "weights fetch"):
        assert part in outcome.text
    assert not (tmp_path / "cache" / "clips").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metrics", "fid", "fvdd"], "did you mean"),
        (["--against", "reality"], "did you mean 'real'"),
        (["--against", "teacher"], "use --against real teacher"),
    ],
)
def test_what_is_unknown_is_refused(cli: Command, tmp_path: Path, options: list[str], words: str) -> None:
    outcome = cli("eval", "--steps", "1", "--out", tmp_path, *options)
    assert outcome.status == 1 and words in outcome.text


@pytest.mark.vbench
def test_the_whole_grid_by_fid_fvd_and_vbench(
    cli: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run at 1, 4 and 28 steps by the real packages with random weights; then once more, without any work.

    Of three clips, for DINO and MUSIQ take a second a frame: distances are told that three are enough.
    """
    monkeypatch.setattr(CorpusMetric, "least_clips", 3)
    out = tmp_path / "runs"
    from w2svd_bench.metrics.vbench.environment import interpreter

    install_stand_in("inception-pytorchfid", stand_ins_inception.inception())
    vbench_stand_ins.install(tmp_path / "made", Path(interpreter()))
    assert cli("train", "--method", "euler", "--device", "cpu", "--out", out).status == 0
    few = [*FEW, "--clips", "3"]
    common = ["eval", "--steps", "1", "4", "28", "--metrics", "fid", "fvd", "vbench", "--out", out, *few]
    outcome = cli(*common)
    assert outcome.status == 0, outcome
    folder = out / "mini" / "results-test-3-of-8"
    found = {(one.cell.label, one.cell.steps): one for one in read_records(folder)}
    assert {steps for label, steps in found if label == "euler"} == {1, 4, 28}
    for record in found.values():
        vbench = {name: score for name, score in record.metrics.items() if name.startswith("vbench.")}
        assert len(vbench) == 8 and any(name.startswith("vbench.quality") for name in vbench)
        for name, score in vbench.items():
            assert isinstance(score, Score), (name, score)
            assert len(score.values) == 3 and "clips enlarged 3x" in score.flags and "custom prompts" in score.flags
        assert {"fid[stand-in]", "fvd[stand-in]", "fid[stand-in] vs teacher"} <= set(record.metrics)
        assert not any(isinstance(score, SkippedScore) for score in record.metrics.values())
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    for path in (folder / "records").glob("*.json"):
        path.unlink()
    again = cli(*common)
    assert again.status == 0, again
    for path, content in before.items():
        old, new = json.loads(content), json.loads(path.read_text())
        assert old["metrics"] == new["metrics"]
