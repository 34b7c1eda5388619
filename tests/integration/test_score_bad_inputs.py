"""``w2svd-bench score`` on inputs that are wrong: each is told, and none is scored as if it were right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from w2svd_bench.evaluate import folders
from w2svd_bench.registry import METRICS

import score_kit as kit

Command = Callable[..., Any]
known_metrics, score = kit.known_metrics, kit.score  # fixtures


def test_an_empty_folder(tmp_path: Path, refused: Command) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").touch()
    theirs = kit.pictures(tmp_path / "theirs", 8)
    outcome = refused("score", "--generated", tmp_path / "empty", "--reference", theirs, "--metrics", "hue")
    assert "1 x .md" in outcome.text and ".png" in outcome.text and str(tmp_path / "empty") in outcome.text
    outcome = refused("score", "--generated", theirs, "--reference", tmp_path / "none", "--metrics", "hue")
    assert "no such folder" in outcome.text


def test_one_clip_has_values_of_its_own_and_no_distance(tmp_path: Path, score: Command) -> None:
    ours, theirs = kit.videos(tmp_path / "ours", 1), kit.videos(tmp_path / "theirs", 8, first=50)
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue", "stir", "--allow-small")
    document, told = score(*asked, status=1)
    rows = kit.by_name(document)
    assert rows["hue"]["value"] is rows["hue"]["se"] is None and "needs two clips" in rows["hue"]["reason"]
    assert rows["stir.light"]["value"] > 0 and rows["stir.light"]["se"] is None and rows["stir.light"]["n"] == 1
    assert "1 of 3 scores could not be had" in told
    assert not kit.HueNet.shapes  # what can't be scored is not read


def test_small_sets_are_refused_unless_allowed_and_flagged(tmp_path: Path, score: Command) -> None:
    """And sets large enough to be allowed are flagged all the same: 12 clips of 6 numbers, then 5."""
    ours, theirs = kit.arrays(tmp_path / "ours", 5), kit.arrays(tmp_path / "theirs", 12, first=50)
    asked = ("--reference", theirs, "--metrics", "hue", "--generated")
    row = kit.by_name(score(*asked, ours, status=1)[0])["hue"]
    assert row["value"] is None and "5 clips of different prompts, and fewer than 8" in row["reason"]
    row = kit.by_name(score(*asked, ours, "--allow-small")[0])["hue"]
    assert row["value"] is not None and set(row["flags"]) == {"made for tests", "n<2048", "N<D", folders.FIXED}
    kit.arrays(ours, 7, first=5)
    row = kit.by_name(score(*asked, ours)[0])["hue"]
    assert row["n"] == 12 and set(row["flags"]) == {"made for tests", "n<2048", folders.FIXED}


def test_features_that_are_not_finite_name_the_clip(tmp_path: Path, score: Command) -> None:
    ours, theirs = kit.arrays(tmp_path / "ours", 10), kit.arrays(tmp_path / "theirs", 9, first=50)
    np.save(ours / "purple.npy", np.full((4, 16, 16, 3), kit.PURPLE, np.uint8))
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue")
    document, told = score(*asked, status=1)
    row = kit.by_name(document)["hue"]
    assert (row["n"], row["n_invalid"]) == (10, 1) and row["value"] is not None
    assert "invalid: purple.npy (generated): its features are not finite" in told
    assert "1 file(s) have no score" in told
    accepted, _ = score(*asked, "--max-invalid", "1")
    assert kit.by_name(accepted)["hue"] == row
    (ours / "purple.npy").unlink()
    without = kit.by_name(score(*asked)[0])["hue"]
    assert (without["value"], without["n_invalid"]) == (row["value"], 0)


def test_files_that_can_not_be_read_are_told_one_by_one_and_counted(tmp_path: Path, score: Command) -> None:
    """Cut, empty, of another kind than named, and kit.damaged where only a full decoding finds it."""
    ours, theirs = kit.videos(tmp_path / "ours", 12, frames=8), kit.videos(tmp_path / "theirs", 9, first=50, frames=8)
    whole, _ = score("--generated", ours, "--reference", theirs, "--metrics", "hue", "stir")
    kit.Stir.seen.clear()
    data = kit.damaged(ours / "middle.mp4").read_bytes()
    (ours / "cut.mp4").write_bytes(data[: len(data) // 2])
    (ours / "nothing.mp4").touch()
    Image.fromarray(kit.noisy(3)[0]).save(ours / "image.png")
    (ours / "image.png").rename(ours / "image.mp4")
    (theirs / "empty.mp4").touch()
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue", "stir")
    document, told = score(*asked, status=1)
    for name, reason in {
        "cut.mp4 (generated)": "damaged, truncated",
        "middle.mp4 (generated)": "damaged: frame",
        "nothing.mp4 (generated)": "an empty file (0 bytes)",
        "image.mp4 (generated)": "its name ends in .mp4, but it holds png",
        "empty.mp4 (reference)": "an empty file (0 bytes)",
    }.items():
        assert f"invalid: {name}: {reason}" in told
    assert told.count("invalid: ") == 5 and "4 file(s) have no score" in told
    for row in document["results"]:
        assert (row["n"], row["n_invalid"]) == (12, 4)
        assert row["value"] == kit.by_name(whole)[row["metric"]]["value"]
    assert kit.by_name(document)["hue"]["n_reference_invalid"] == 1
    assert set(document["invalid"]["generated"]) == {"cut.mp4", "middle.mp4", "nothing.mp4", "image.mp4"}
    assert not kit.Stir.seen  # a kit.damaged file is never handed on
    score(*asked, "--max-invalid", "3", status=1)
    score(*asked, "--max-invalid", "4")


def test_a_damaged_file_is_found_where_no_net_reads_it(tmp_path: Path, score: Command) -> None:
    """Other programs would patch its kit.pictures up, or leave them out."""
    ours = kit.videos(tmp_path / "ours", 9, frames=8)
    kit.damaged(ours / "middle.mp4")
    document, told = score("--generated", ours, "--metrics", "stir", status=1)
    assert "invalid: middle.mp4 (generated): damaged: frame" in told
    assert all((row["n"], row["n_invalid"]) == (9, 1) for row in document["results"])
    assert [clip.path.name for clip in kit.Stir.seen[0]] == [f"{index:04}.mp4" for index in range(9)]


def test_what_a_clip_metric_can_not_score_is_counted(tmp_path: Path, score: Command) -> None:
    ours = kit.videos(tmp_path / "ours", 9)
    kit.video(ours / "still.mp4", np.full((4, 16, 16, 3), 90, np.uint8))
    document, told = score("--generated", ours, "--metrics", "stir", status=1)
    rows = kit.by_name(document)
    assert (rows["stir.light"]["n"], rows["stir.light"]["n_invalid"]) == (10, 0)
    assert (rows["stir.motion"]["n"], rows["stir.motion"]["n_invalid"]) == (9, 1)
    assert "invalid: still.mp4 (generated): stir.motion: nothing moves" in told
    assert rows["stir.motion"]["n_reference"] is None and document["reference"] is None
    lonely = kit.videos(tmp_path / "lonely", 0)
    kit.video(lonely / "still.mp4", np.full((4, 16, 16, 3), 90, np.uint8))
    row = kit.by_name(score("--generated", lonely, "--metrics", "stir", status=1)[0])["stir.motion"]
    assert row["value"] is None and row["n"] == 0 and "nothing moves" in row["reason"]


def test_a_clip_of_one_frame(tmp_path: Path, score: Command) -> None:
    """A dimension that needs two has a reason; that of single kit.pictures has its value."""
    ours = kit.pictures(tmp_path / "ours", 8)
    document, _ = score("--generated", ours, "--metrics", "stir", "--fps", "8", status=1)
    rows = kit.by_name(document)
    assert rows["stir.motion"]["value"] is None and "at least 2 frames" in rows["stir.motion"]["reason"]
    assert rows["stir.light"]["value"] is not None and rows["stir.light"]["n"] == 8


def test_files_of_mixed_sizes(tmp_path: Path, score: Command, refused: Command) -> None:
    ours, theirs = kit.pictures(tmp_path / "ours", 9), kit.pictures(tmp_path / "theirs", 9, first=50)
    kit.pictures(ours, 1, first=9, size=(24, 32))
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue")
    assert "9 of 16x16, 1 of 32x24" in refused("score", *asked).text
    document, told = score(*asked, "--resize-mixed")
    row = kit.by_name(document)["hue"]
    assert "1 file(s) resized" in row["flags"] and row["size"] == "16x16" and "scaled and cropped to 16x16" in told
    assert all(shape[2:4] == (16, 16) for shape in kit.HueNet.shapes)


def test_pictures_that_are_too_small_for_a_net(tmp_path: Path, score: Command) -> None:
    ours, theirs = kit.pictures(tmp_path / "ours", 9, size=(16, 8)), kit.pictures(tmp_path / "theirs", 9, first=50)
    document, told = score("--generated", ours, "--reference", theirs, "--metrics", "hue", "tint_each", status=1)
    for row in document["results"]:
        assert row["value"] is None and row["reason"] == "it reads frames from 16x16 up, and these are 8x16"
    assert not kit.HueNet.shapes and "8x16" in told
    document, _ = score("--generated", theirs, "--reference", ours, "--metrics", "hue", status=1)
    assert kit.by_name(document)["hue"]["reason"].startswith("of the reference: it reads frames")


def test_clips_of_mixed_rates(tmp_path: Path, refused: Command) -> None:
    ours, theirs = kit.videos(tmp_path / "ours", 8, fps=8), kit.videos(tmp_path / "theirs", 8, first=50)
    kit.videos(ours, 2, first=8, fps=24)
    outcome = refused("score", "--generated", ours, "--reference", theirs, "--metrics", "hue")
    assert "8 of 8 a second, 2 of 24 a second" in outcome.text and not kit.HueNet.shapes


def test_clips_of_mixed_lengths(tmp_path: Path, score: Command, refused: Command) -> None:
    """Scored where the net makes as many vectors of each, and an error where it does not or clips count one by one."""
    ours, theirs = kit.arrays(tmp_path / "ours", 9, frames=4), kit.arrays(tmp_path / "theirs", 9, first=50)
    kit.arrays(ours, 3, first=9, frames=6)
    asked = ("--generated", ours, "--reference", theirs, "--metrics")
    row = kit.by_name(score(*asked, "hue")[0])["hue"]
    assert row["n"] == 12 and row["frames"] is None and "frames 4-6 vs 4" in row["flags"]
    assert {shape[1] for shape in kit.HueNet.shapes} == {4, 6}
    assert "give 4 and 6 vectors each" in refused("score", *asked, "tint_each").text
    told = refused("score", *asked, "stir", "--fps", "8").text
    assert "9 of 4, 3 of 6" in told and "scores clips one by one" in told
    told = refused("score", *asked, "fvd_mini").text
    assert "fvd[mini] can't do with that: it reads clips of 17 frames" in told


def test_the_same_clip_twice(tmp_path: Path, score: Command, refused: Command) -> None:
    ours, theirs = kit.pictures(tmp_path / "ours", 100), kit.pictures(tmp_path / "theirs", 9, first=500)
    shutil.copy(ours / "0003.png", ours / "again.png")
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue")
    document, told = score(*asked)
    assert "warning:" in told and "0003.png = again.png" in told and document["warnings"]
    assert kit.by_name(document)["hue"]["n"] == 101
    shutil.copy(ours / "0004.png", ours / "once more.png")
    outcome = refused("score", *asked)
    assert "2 of the 102 files" in outcome.text and "0004.png = once more.png" in outcome.text


def test_generated_files_that_are_reference_files(tmp_path: Path, score: Command) -> None:
    ours, theirs = kit.pictures(tmp_path / "ours", 9), kit.pictures(tmp_path / "theirs", 12, first=7)
    document, told = score("--generated", ours, "--reference", theirs, "--metrics", "hue")
    assert "2 of the 9 generated files are in the reference folder too: 0007.png, 0008.png" in told
    same, told = score("--generated", theirs, "--reference", theirs, "--metrics", "hue")
    assert "12 of the 12 generated files" in told and abs(kit.by_name(same)["hue"]["value"]) < 1e-9
    row = kit.by_name(document)["hue"]
    assert (row["n"], row["n_reference"]) == (9, 12)  # counts may differ


def test_weights_that_are_not_there(tmp_path: Path, refused: Command) -> None:
    """The error of the weights themselves, from the folder that --weights-dir names."""
    ours, theirs = kit.pictures(tmp_path / "ours", 9), kit.pictures(tmp_path / "theirs", 9, first=50)

    class Heavy(kit.Hue):
        def __init__(self, device: str) -> None:
            from w2svd_bench.metrics.weights import find

            find("i3d-torchscript")
            super().__init__(device)

    METRICS.register("heavy", Heavy)
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue", "heavy")
    text = refused("score", *asked, "--weights-dir", tmp_path / "weights").text
    assert "i3d_torchscript.pt" in text and str(tmp_path / "weights") in text and "weights fetch" in text


def test_folders_in_a_folder_are_not_entered_and_said_so(tmp_path: Path, score: Command) -> None:
    ours, theirs = kit.pictures(tmp_path / "ours", 9), kit.pictures(tmp_path / "theirs", 9, first=50)
    kit.pictures(ours / "deeper", 5, first=20)
    (ours / "log.txt").write_text("made on Monday")
    document, told = score("--generated", ours, "--reference", theirs, "--metrics", "hue")
    assert kit.by_name(document)["hue"]["n"] == 9
    assert "1 folder(s) in it are not entered: deeper" in told and "left aside: log.txt" in told


def test_folders_that_differ_from_each_other_are_flagged(tmp_path: Path, score: Command) -> None:
    ours = kit.videos(tmp_path / "ours", 9, frames=4, fps=8)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for index in range(8):
        kit.video(theirs / f"{index}.mp4", kit.noisy(100 + index, 6, (24, 32)), 24)
    row = kit.by_name(score("--generated", ours, "--reference", theirs, "--metrics", "hue")[0])["hue"]
    assert {"frames 4 vs 6", "size 16x16 vs 32x24", "fps 8 vs 24"} <= set(row["flags"])
    assert (row["frames"], row["size"], row["fps"], row["n_reference"]) == (4, "16x16", 8, 8)
