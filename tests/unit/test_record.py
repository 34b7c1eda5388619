"""Records: complete or refused, written in one piece, read back the same."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pydantic
import pytest

from w2svd_bench import record as record_module
from w2svd_bench.errors import BenchError
from w2svd_bench.record import Cell, Record, SkippedScore, canonical_hash, provenance, read_records, write_record

DATA: dict[str, Any] = {
    "schema_version": 1,
    "cell": {
        "backbone": "mini",
        "method": "w2svd",
        "label": "w2svd",
        "checkpoint_sha256": "ab" * 32,
        "steps": 4,
        "seed": 0,
        "eval_set": "portraits-test-512",
    },
    "sampling": {
        "sampler": "sde",
        "nfe": 4,
        "guidance": 1.0,
        "shift": 3.0,
        "levels": [1, 0.9, 0.75, 0.5],
        "noise_seed": 0,
    },
    "metrics": {
        "fid[mini]": {
            "value": 12.3,
            "se": 0.4,
            "n": 512,
            "direction": "down",
            "version": 1,
            "id": "frechet of mini features",
            "weights_sha256": "cd" * 32,
            "leave_out": [12.1, 12.5],
            "groups": [],
            "values": [],
            "prompts": [],
            "invalid": {},
            "flags": ["n<2048"],
            "infinity": 11.9,
            "reference": None,
        },
        "fvd[mini]": {
            "skipped": "euler has no 1-step sampler",
            "again": False,
            "direction": "down",
            "version": 1,
        },
    },
    "diagnostics": {"mouth": 0.5, "sway": 0.1},
    "eval_set": {
        "name": "portraits-test-512",
        "num_clips": 512,
        "prompts_sha256": "ef" * 32,
        "reference": "portraits-reference-2048",
        "reference_sha256": "01" * 32,
        "frames": 17,
        "height": 48,
        "width": 48,
        "fps": 12,
        "resize": "none",
    },
    "training": {
        "iterations": 400,
        "updates": {"generator": 400, "fake": 900},
        "network_evaluations": 123456,
        "seconds": 144.0,
        "peak_memory_bytes": 0,
        "device": "",
        "data": "",
        "backbone_sha256": "",
        "code": {},
        "health": {},
    },
    "timing": {"sample_seconds_per_clip": 0.01, "decode_seconds_per_clip": 0.002, "wall_seconds": 9.5},
    "config": {"method": "w2svd", "settings": {"alpha_weak": 0.5}},
    "provenance": {"device": "cpu"},
}


def make(**cell: Any) -> Record:
    data = copy.deepcopy(DATA)
    data["cell"] |= cell
    return Record.model_validate(data)


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(DATA)
    part = data
    *sections, key = path.split("/")
    for section in sections:
        part = part[section]
    part[key] = value
    return data


def test_round_trip(tmp_path: Path) -> None:
    record = make()
    path = write_record(record, tmp_path / "mini" / "records")
    assert path.name == record.file_name == f"{record.cell.id}.json"
    assert read_records(tmp_path) == read_records(path.parent) == [record]
    assert json.loads(path.read_text()) == DATA, "what is written is the record's JSON as documented"


def test_file_is_canonical(tmp_path: Path) -> None:
    """The order in which keys were given does not show, and writing again changes nothing."""
    path = write_record(make(), tmp_path)
    first = path.read_bytes()
    backwards = Record.model_validate({key: DATA[key] for key in reversed(DATA)})
    assert write_record(backwards, tmp_path) == path and path.read_bytes() == first
    assert first.endswith(b"}\n") and b"\r" not in first
    assert list(json.loads(first)) == sorted(DATA)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_record(make(), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(record_module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_record(Record.model_validate(changed("config", {"other": 1})), tmp_path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name], "no draft is left"


def test_cell_id() -> None:
    ids = [make(**one).cell.id for one in ({}, {"steps": 1}, {"seed": 1}, {"checkpoint_sha256": ""}, {"backbone": "b"})]
    assert len(set(ids)) == 5 and make().cell.id == ids[0]
    assert ids[0].startswith("w2svd-steps4-seed0-")


@pytest.mark.parametrize("label", ["../../up", "a/b", "real (noise floor)", "ü α", "", ".hidden", "a" * 400])
def test_cell_id_is_a_safe_file_name(label: str) -> None:
    name = make(label=label).cell.id
    assert (
        "/" not in name and " " not in name and name.isascii() and not name.startswith((".", "-")) and len(name) < 200
    )


def test_labels_that_read_alike_have_different_ids() -> None:
    assert make(label="a/b").cell.id != make(label="a b").cell.id


def test_skipped_scores_are_told_apart() -> None:
    metrics = make().metrics
    assert isinstance(metrics["fvd[mini]"], SkippedScore) and metrics["fid[mini]"].value == 12.3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("metrics/fid[mini]/value", float("nan"), "finite"),
        ("metrics/fid[mini]/value", None, "valid number"),
        ("metrics/fid[mini]/se", -0.1, "greater than or equal"),
        ("metrics/fid[mini]/n", 0, "greater than or equal"),
        ("metrics/fid[mini]/direction", "left", "'up' or 'down'"),
        ("metrics/fvd[mini]/value", 3.0, "Extra inputs"),
        ("metrics/fvd[mini]/skipped", "", "at least 1"),
        ("diagnostics/mouth", float("inf"), "finite"),
        ("cell/steps", -1, "greater than or equal"),
        ("cell/extra", 1, "Extra inputs"),
        ("eval_set/name", "another", "the cell's eval set"),
        ("training/seconds", -1.0, "greater than or equal"),
    ],
)
def test_what_is_no_record(tmp_path: Path, path: str, value: Any, message: str) -> None:
    data = changed(path, value)
    with pytest.raises(pydantic.ValidationError, match=message):
        Record.model_validate(data)
    file = tmp_path / "one.json"
    file.write_text(json.dumps(data))
    with pytest.raises(BenchError, match=r"one\.json is not a record") as caught:
        read_records(tmp_path)
    assert message in caught.value.why


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "no schema_version"),
        (b'{"score": 1}', "no schema_version"),
        (b'{"schema_version": 2}', "schema 2"),
        (b'{"schema_version": 1}', "cell: Field required"),
        (b'{"schema_version": 1, "provenance": {"load": NaN}}', "it holds NaN, which is no finite number"),
    ],
)
def test_damaged_and_foreign_files(tmp_path: Path, content: bytes, why: str) -> None:
    folder = tmp_path / "mini" / "records"
    write_record(make(), folder)
    (folder / "zz.json").write_bytes(content)
    with pytest.raises(BenchError) as caught:
        read_records(tmp_path)
    assert "zz.json" in caught.value.what and why in caught.value.why


def test_where_records_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no such folder"):
        read_records(tmp_path / "nothing")
    assert read_records(tmp_path) == []
    write_record(make(seed=1), tmp_path / "a" / "records")
    write_record(make(seed=0), tmp_path / "b" / "c" / "records")
    (tmp_path / "a" / "run.json").write_text("{}")  # a run's own file, beside its records
    (tmp_path / "other.json").write_text("{}")
    assert [one.cell.seed for one in read_records(tmp_path)] == [1, 0], "ordered by path"


def test_one_cell_in_two_folders(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_record(make(), tmp_path / folder / "records")
    with pytest.raises(BenchError, match="has two records") as caught:
        read_records(tmp_path)
    assert str(Path("one", "records")) in caught.value.why and str(Path("two", "records")) in caught.value.why


def test_a_record_that_goes_while_the_folder_is_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations of one folder: the other one sets a record aside between listing and reading."""
    gone, kept = (write_record(make(seed=seed), tmp_path / "records") for seed in (1, 2))
    listed = record_module.record_paths(tmp_path)
    gone.unlink()
    monkeypatch.setattr("w2svd_bench.record.record_paths", lambda folder: listed)
    assert [one.file_name for one in read_records(tmp_path)] == [kept.name]


def test_a_file_is_told_from_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not records")
    for name, why in (("README.md", "it is a file"), ("nowhere", "there is no such folder")):
        with pytest.raises(BenchError) as caught:
            read_records(tmp_path / name)
        assert why in caught.value.why


def test_canonical_hash() -> None:
    known = "43258cff783fe7036d8a43033f830adfc60ec037382473548ac742b888292777"
    assert canonical_hash({"b": 2, "a": 1}) == canonical_hash({"a": 1, "b": 2}) == known  # sha256 of {"a":1,"b":2}
    assert canonical_hash((1, "é")) == canonical_hash([1, "é"]) != canonical_hash(["é", 1])
    assert canonical_hash(make().cell) == canonical_hash(DATA["cell"])
    assert canonical_hash([Cell.model_validate(DATA["cell"])]) == canonical_hash([DATA["cell"]])
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_hash(float("nan"))
    with pytest.raises(TypeError, match="hashed as JSON"):
        canonical_hash({"a": Path("b")})


def test_provenance() -> None:
    found = provenance("cpu")
    assert found["device"] == "cpu" and found["packages"]["pydantic"] == pydantic.VERSION
    assert found["time_utc"].endswith("+00:00")
    assert found["git"] is None or set(found["git"]) == {"commit", "dirty"}
    assert json.loads(json.dumps(found)) == found
    assert str(Path.home()) not in json.dumps(found), "no path of this machine"


def test_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None for a copy that some other repository contains; its commit, and dirty for code but not for results."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "w2svd_bench"
    package.mkdir()
    code = package / "record.py"
    code.write_text("a = 1\n")
    monkeypatch.setattr(record_module, "__file__", str(code))

    def state() -> Any:
        return provenance("cpu")["git"]

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "empty")
    assert state() is None
    git("add", ".")
    git("commit", "--quiet", "-m", "code")
    clean = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert state() == clean
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "one.json").write_text("{}")
    assert state() == clean
    (tmp_path / "method.py").write_text("new\n")
    assert state() == clean | {"dirty": True}
