"""Files of weights: known by their hash and not by their name, looked for in their places, shown as what they are."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from w2svd_bench.cli import weights as command
from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import weights as module
from w2svd_bench.metrics.base import STAND_IN
from w2svd_bench.metrics.weights import WEIGHTS, Found, find, install_stand_in, needed_by, weights_folder
from w2svd_bench.metrics.weights_table import Weight

CONTENT = b"PK\x03\x04 the real weights " * 30
SHA256 = hashlib.sha256(CONTENT).hexdigest()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 95628359\n"
URL = "https://weights.example/pinned.pt"


def weight(id: str, sha256: str | None, file: str | None = None, **more: Any) -> Weight:
    size = len(CONTENT) if sha256 else None
    return Weight(id, file or f"{id}.pt", (URL,), size, sha256, "their page", "MIT", ("metric_a", id), **more)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights, torch's cache beside it, and three small files in the registry."""
    monkeypatch.setenv("W2SVD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for known in (
        weight("pinned", SHA256, "deep/pinned.pt", in_torch_hub=True),
        weight("trusted", None),
        weight("other", SHA256),
    ):
        monkeypatch.setitem(WEIGHTS, known.id, known)
    return tmp_path / "weights"


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refused(id: str) -> BenchError:
    with pytest.raises(BenchError) as caught:
        find(id)
    return caught.value


# --- the registry -----------------------------------------------------------------------------------------------------

PUBLISHED = dict(WEIGHTS)


def test_every_entry_is_complete_and_no_two_share_a_place() -> None:
    assert len({weight.file for weight in PUBLISHED.values()}) == len(PUBLISHED)
    for id, entry in PUBLISHED.items():
        assert entry.id == id and entry.urls and entry.stated_by and entry.licence and entry.used_by
        assert all(url.startswith("https://") and " " not in url for url in entry.urls)
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert entry.sha256 is None or (entry.size or 0) > 0
        place = PurePosixPath(entry.file)
        assert not place.is_absolute() and ".." not in place.parts
        assert (place.parts[0] == "vbench") == id.startswith("vbench-")


def test_hashes_agree_with_what_names_and_addresses_say_of_them() -> None:
    for id in ("vbench-clip-b32", "vbench-clip-l14"):
        assert PUBLISHED[id].sha256 == PUBLISHED[id].urls[0].split("/")[-2]  # as openai/CLIP reads it from there
    for id in ("inception-pytorchfid", "vbench-musiq"):  # torch.hub's convention: the name ends in the hash's start
        start = re.search(r"-([0-9a-f]{8})\.pth$", PUBLISHED[id].file)
        assert start and (PUBLISHED[id].sha256 or "").startswith(start[1])


def test_vbench_finds_its_files_where_they_are_put() -> None:
    """The paths below its cache folder that vbench 0.1.5 reads (its utils.py and aesthetic_quality.py)."""
    read = {
        "dino_model/dino_vitbase16_pretrain.pth",
        "clip_model/ViT-B-32.pt",
        "clip_model/ViT-L-14.pt",
        "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
        "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
        "amt_model/amt-s.pth",
        "raft_model/models/raft-things.pth",
        "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
        "ViCLIP/ViClip-InternVid-10M-FLT.pth",
    }
    assert {f"vbench/{path}" for path in read} < {weight.file for weight in PUBLISHED.values()}


def test_metrics_know_their_files() -> None:
    assert [weight.id for weight in needed_by("fid")] == ["inception-pytorchfid"]
    assert {weight.id for weight in needed_by("fvd")} == {"i3d-torchscript"}
    vbench = {weight.id for weight in needed_by("vbench")}
    assert {"vbench-raft", "vbench-dino"} < vbench and "vbench-viclip" not in vbench
    assert [weight.id for weight in needed_by("vbench.dynamic_degree")] == ["vbench-raft"]
    with pytest.raises(BenchError, match="did you mean 'fvd'"):
        needed_by("fvdd")


def test_listing_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, w2svd_bench.metrics.download; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- where files are --------------------------------------------------------------------------------------------------


def test_the_folder_is_the_one_that_was_named_or_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SVD_BENCH_CACHE", "cache")
    monkeypatch.setenv("W2SVD_BENCH_WEIGHTS", "~/elsewhere")
    assert weights_folder() == Path.home() / "elsewhere"
    monkeypatch.setenv("W2SVD_BENCH_WEIGHTS", "")
    assert weights_folder() == Path("cache/weights")


def test_a_missing_file_says_how_to_get_it_and_where_to_put_it(folder: Path, tmp_path: Path) -> None:
    error = refused("pinned")
    assert "pinned.pt" in error.what
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / "pinned.pt") in error.why and "metric_a" in error.why
    for part in ("w2svd-bench weights fetch pinned", URL, str(folder / "deep" / "pinned.pt"), SHA256):
        assert part in error.cure
    assert "no public source" in refused("trusted").cure


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(BenchError, match="did you mean 'i3d-torchscript'"):
        find("i3d-torchscrpt")


def test_torch_s_cache_serves_what_other_tools_left_there(folder: Path, tmp_path: Path) -> None:
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    left = put(hub / "pinned.pt")
    put(hub / "other.pt")
    assert find("pinned") == Found(WEIGHTS["pinned"], left, SHA256, "pinned")
    assert "missing" in refused("other").what  # not one that other tools leave there
    put(left, CONTENT[::-1])
    assert f"delete {left}, then" in refused("pinned").cure
    assert find_in(folder) == folder / "deep" / "pinned.pt"  # ours goes first


def find_in(folder: Path) -> Path:
    put(folder / "deep" / "pinned.pt")
    return find("pinned").path


# --- what files are ---------------------------------------------------------------------------------------------------


def test_the_right_file_has_no_flags(folder: Path) -> None:
    path = put(folder / "deep" / "pinned.pt")
    assert find("pinned") == Found(WEIGHTS["pinned"], path, SHA256, "pinned") and find("pinned").flags == ()
    assert [entry.name for entry in folder.iterdir()] == ["deep"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (POINTER, "Git LFS pointer"),
        (b"\r\n<!doctype HTML><p>Sign in</p>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>", "web page"),
        (CONTENT[:99], f"99 bytes instead of {len(CONTENT)}: it was cut off"),
        (CONTENT + b"!", "it is another file"),
        (CONTENT[::-1], f"instead of {SHA256} (their page)"),
    ],
)
def test_the_wrong_file_is_refused_with_what_it_is(content: bytes, problem: str, folder: Path) -> None:
    path = put(folder / "deep" / "pinned.pt", content)
    error = refused("pinned")
    assert str(path) in error.what and problem in error.why and error.cure.startswith("w2svd-bench weights fetch")


@pytest.mark.parametrize("content", [b"", POINTER, b"<html>"])
def test_nothing_but_a_file_of_weights_is_trusted(content: bytes, folder: Path) -> None:
    put(folder / "trusted.pt", content)
    refused("trusted")
    assert not (folder / "first-use.json").exists()


def test_a_file_without_a_public_hash_is_trusted_once_and_for_all(folder: Path) -> None:
    path = put(folder / "trusted.pt")
    found = find("trusted")
    assert found.standing == "trusted on first use" and found.flags == ("weights trusted on first use",)
    noted = json.loads((folder / "first-use.json").read_text())
    assert noted["trusted"]["sha256"] == SHA256 and noted["trusted"]["size"] == len(CONTENT)

    put(path, b"another file of the same name")
    error = refused("trusted")
    assert SHA256 in error.why and noted["trusted"]["time_utc"] in error.why and "first-use.json" in error.cure
    assert json.loads((folder / "first-use.json").read_text()) == noted
    put(path)
    assert find("trusted") == found


def test_a_stand_in_is_known_for_what_it_is(folder: Path, tmp_path: Path) -> None:
    for id, source in (("pinned", b"random"), ("trusted", put(tmp_path / "source.pt", b"also random"))):
        found = install_stand_in(id, source)
        assert found == find(id) and found.standing == "stand-in" and found.flags == (STAND_IN,)
    assert not (folder / "first-use.json").exists() and (folder / "trusted.pt").read_bytes() == b"also random"
    assert install_stand_in("pinned", b"a newer one").path.read_bytes() == b"a newer one"
    put(folder / "deep" / "pinned.pt", b"random")  # an older one, put back
    assert find("pinned").standing == "stand-in"

    put(folder / "deep" / "pinned.pt")
    assert find("pinned").standing == "pinned"
    with pytest.raises(BenchError, match="not a stand-in itself"):
        install_stand_in("pinned", b"random")
    assert find("pinned").standing == "pinned"


def test_a_note_about_one_file_says_nothing_of_another(folder: Path) -> None:
    install_stand_in("pinned", b"random")
    put(folder / "other.pt", b"random")
    assert "bytes instead of" in refused("other").why


def test_notes_of_several_processes_are_all_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"trusted{number}" for number in range(8)]
    for id in ids:
        known = weight(id, None)
        monkeypatch.setitem(WEIGHTS, id, known)
        put(folder / known.file, CONTENT + id.encode())
    read = module._ledger

    def slowly(name: str) -> dict[str, Any]:
        found = read(name)
        time.sleep(0.02)  # between reading and writing: the others come in here
        return found

    monkeypatch.setattr(module, "_ledger", slowly)
    with ThreadPoolExecutor(len(ids)) as pool:
        assert {found.standing for found in pool.map(find, ids)} == {"trusted on first use"}
        list(pool.map(lambda id: install_stand_in(id, CONTENT), ("pinned", "other")))
    assert sorted(read(module.FIRST_USE)) == ids
    assert sorted(read(module.STAND_INS)) == ["other", "pinned"]


def test_of_two_first_uses_one_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that look at one file while it is being replaced: the second must not overwrite the note."""
    path = put(folder / "trusted.pt")
    amend = module._amend

    def beaten(name: str, change: Any) -> dict[str, Any]:
        amend(name, lambda noted: {**noted, "trusted": {"sha256": "0" * 64, "size": 1, "time_utc": "earlier"}})
        return amend(name, change)

    monkeypatch.setattr(module, "_amend", beaten)
    assert "changed since" in refused("trusted").what
    assert json.loads((folder / module.FIRST_USE).read_text())["trusted"]["time_utc"] == "earlier"
    assert path.is_file()


def test_a_file_is_hashed_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    path = put(folder / "deep" / "pinned.pt")
    find("pinned")
    find("pinned")
    assert hashed == [str(path)]
    put(path, CONTENT[::-1])
    refused("pinned")
    assert len(hashed) == 2


def test_a_damaged_note_is_no_reason_to_trust(folder: Path) -> None:
    put(folder / "trusted.pt")
    put(folder / "first-use.json", b"{")
    assert "first-use.json is damaged" in refused("trusted").what


def test_what_can_t_be_noted_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> Path:
        raise OSError("no space left on device")

    put(folder / "trusted.pt")
    monkeypatch.setattr(module, "write_atomically", full)
    assert "no space left" in refused("trusted").why


def test_a_file_that_can_t_be_read_is_told_from_a_wrong_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise OSError("input/output error")

    put(folder / "deep" / "pinned.pt")
    monkeypatch.setattr(module, "_digest", broken)
    assert "can't be read" in refused("pinned").what


# --- the command line -------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows(result: Result) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in json.loads(result.stdout)["weights"]}


def test_list_names_all_files_and_reads_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_digest", None)
    path = put(folder / "trusted.pt")
    result = run("list", "--json")
    listed = rows(result)
    assert result.exit_code == 0 and listed.keys() == WEIGHTS.keys()
    assert (listed["trusted"]["standing"], listed["trusted"]["path"]) == ("trusted on first use", str(path))
    assert (listed["pinned"]["standing"], listed["pinned"]["path"]) == ("pinned", None)
    assert listed["pinned"] == listed["pinned"] | {
        "sha256": SHA256,
        "licence": "MIT",
        "used_by": ["metric_a", "pinned"],
    }


def test_the_list_is_a_table_with_the_folder_below(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(command.console, "width", 300, raising=False)
    put(folder / "trusted.pt")
    put(tmp_path / "torch" / "hub" / "checkpoints" / "pinned.pt")
    lines = run("list").stdout.splitlines()
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    there = {row[1]: row[-2] for row in cells if len(row) > 2 and row[1] in WEIGHTS}
    assert there.keys() == WEIGHTS.keys()
    assert there["trusted"] == "yes" and there["pinned"] == "torch's" and there["other"] == "no"
    inception = next(row for row in cells if len(row) > 2 and row[1] == "inception-pytorchfid")
    assert inception[2:5] == ["95.6 MB", "Apache-2.0", "fid"]
    assert cells[cells.index(inception) + 1][1:3] == ["pt_inception-2015-12-05-6726825d.pth", "pinned"]
    assert lines[-1] == f"folder: {folder}"
    monkeypatch.setattr(command.console, "width", 80)
    assert max(map(len, run("list").stdout.splitlines()[:-1])) <= 80 and "┃ there" in run("list").stdout


def test_weights_dir_is_used_for_this_command_and_what_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "mine" / "trusted.pt")
    assert rows(run("list", "--weights-dir", "mine", "--json"))["trusted"]["path"]
    assert weights_folder() == tmp_path / "mine"


def test_check_passes_what_is_right_and_lists_what_is_missing(folder: Path) -> None:
    put(folder / "deep" / "pinned.pt")
    install_stand_in("trusted", b"random")
    result = run("check", "--json")
    checked = rows(result)
    assert result.exit_code == 0 and json.loads(result.stdout)["right"]
    states = {id: row["state"] for id, row in checked.items()}
    assert states["pinned"] == "pinned" and states["trusted"] == "stand-in" and states["other"] == "missing"
    assert checked["pinned"]["sha256"] == SHA256 and not checked["other"]["needed"]


def test_check_fails_for_a_wrong_file_and_goes_on(folder: Path) -> None:
    put(folder / "deep" / "pinned.pt", POINTER)
    put(folder / "other.pt")
    result = run("check", "--json")
    assert result.exit_code == 1 and not json.loads(result.stdout)["right"]
    checked = rows(result)
    assert checked["pinned"]["state"] == "wrong" and "LFS" in checked["pinned"]["why"]
    assert checked["other"]["state"] == "pinned"
    result = run("check")
    assert result.exit_code == 1 and "Git LFS pointer" in result.stderr and "weights fetch pinned" in result.stderr


def test_check_fails_for_a_missing_file_that_is_needed(folder: Path) -> None:
    assert run("check", "--need", "pinned").exit_code == 1
    put(folder / "deep" / "pinned.pt")
    assert run("check", "--need", "pinned").exit_code == 0
    result = run("check", "--need", "pinned,trusted", "--need", "other", "--json")
    assert result.exit_code == 1
    states = {id: (row["state"], row["needed"]) for id, row in rows(result).items() if row["needed"]}
    assert states == {"pinned": ("pinned", True), "trusted": ("missing", True), "other": ("missing", True)}
    with pytest.raises(BenchError, match="unknown metric with weights"):
        run("check", "--need", "lpips")


def test_fetch_leaves_what_is_right_and_tells_all_that_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(urls: tuple[str, ...], path: Path, size: int, sha256: str, report: Any, timeout: float) -> Path:
        asked.append(path.name)
        raise BenchError(f"{path.name} could not be downloaded", f"{urls[0]}: no connection", "")

    monkeypatch.setattr("w2svd_bench.metrics.download.download", offline)
    path = put(folder / "deep" / "pinned.pt")
    result = run("fetch", "pinned", "other", "--for", "trusted", "--for", "metric_a")
    assert result.exit_code == 1 and asked == ["other.pt", "trusted.pt"]
    assert f"pinned (pinned): {path}" in result.stdout
    assert result.stderr.count("could not be downloaded") == 2 and str(folder / "trusted.pt") in result.stderr
    fetched = rows(run("fetch", "pinned", "other", "--json"))
    assert fetched["pinned"]["path"] == str(path) and fetched["pinned"]["state"] == "pinned"
    assert fetched["other"]["state"] == "missing" and SHA256 in fetched["other"]["cure"]
    assert run("fetch", "pinned").exit_code == 0


def test_fetch_shows_megabytes_and_ends_at_the_last_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(
        command.Reporter, "__call__", lambda self, task, done, total, note="": told.append((done, total))
    )

    def slow(urls: tuple[str, ...], path: Path, size: int, sha256: str, report: Any, timeout: float) -> Path:
        for done, total in ((1, 2_500_000), (2_499_999, 2_500_000), (2_500_000, 2_500_000), (7_000_000, None)):
            report(done, total)
        return put(path)

    monkeypatch.setattr("w2svd_bench.metrics.download.download", slow)
    assert run("fetch", "pinned").exit_code == 0
    assert told == [(0, 3), (2, 3), (3, 3), (7, 8)]


def test_fetching_nothing_says_how_to_fetch_something() -> None:
    with pytest.raises(BenchError, match="--for fid fvd"):
        run("fetch")
    with pytest.raises(BenchError, match="did you mean 'pinned'"):
        run("fetch", "pined")
