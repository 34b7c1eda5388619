"""The hard setting from end to end: trained, looked at on the way, evaluated and sampled by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w2svd_bench.data.portraits import captions
from w2svd_bench.record import Score, canonical_hash, read_records
from w2svd_bench.train.run import Run

Command = Callable[..., Any]
Tiny = Callable[..., list[str]]

NAMED = ("skin", "hair", "backdrop")
HARD = ["--backbone", "mini-hard"]


def test_the_hard_setting_is_trained_evaluated_and_sampled_by_its_name(
    cli: Command, refused: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2svd_bench.evaluate.evalset.REFERENCE_CLIPS", 16)
    where = ["--out", tmp_path / "runs"]
    looks = ["--validate-every", 3, "--validate-clips", 8]
    done = cli("train", *HARD, "--method", "lcm", *tiny("training.iterations=3"), *looks, *where)
    assert done.status == 0, done.text
    folder = tmp_path / "runs" / "mini-hard"
    run = Run.load(folder / "lcm" / "seed0")
    assert run.finished and (run.backbone, run.updates["generator"]) == ("mini-hard", 3)
    assert run.device == "cpu"
    assert run.data == "portraits, split train, 32 clips, captions of skin, hair, backdrop"
    assert run.validation["prompts"] == "portraits-3of8-validation-8"
    assert run.validation["prompts_sha256"] == canonical_hash(captions("validation", range(8), NAMED))

    done = cli("eval", *HARD, "--steps", 1, "--clips", 16, "--device", "cpu", "--json", *where)
    assert done.status == 0, done.text
    assert json.loads(done.out)
    (record,) = (one for one in read_records(folder / "results-test-16") if one.cell.label == "lcm")
    assert (record.cell.backbone, record.eval_set.name) == ("mini-hard", "portraits-3of8-test-16")
    assert record.eval_set.prompts_sha256 == canonical_hash(captions("test", range(16), NAMED))
    assert record.eval_set.reference == "portraits-reference-16"
    for name in ("fid[mini]", "fvd[mini] vs teacher"):
        score = record.metrics[name]
        assert isinstance(score, Score) and score.value > 0
    assert record.training.device == run.device and record.diagnostics["colour_error"] > 0
    # No prompt names a shirt: whether its kinds are mixed or left out stands beside the distances.
    assert record.diagnostics["shirt_mixing"] > 0 and 0 <= record.diagnostics["rarest_shirt"] <= 1 / 3
    table = (folder / "results-test-16" / "leaderboard.md").read_text().replace("\\", "")
    assert "| shirt_mixing | rarest_shirt |" in table and "colour_error" not in table

    sampling = ["sample", *HARD, "--steps", 1, "--device", "cpu", "--to", tmp_path / "samples", *where]
    assert cli(*sampling, "--prompt", "pale skin, red hair, teal backdrop").status == 0
    assert "'blue shirt'" in refused(*sampling, "--prompt", "pale skin, blue shirt").text
