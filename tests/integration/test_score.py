"""``w2svd-bench score``: two folders in, numbers out; see `test_score_bad_inputs.py` for what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from w2svd_bench.data.files import read_media
from w2svd_bench.data.portraits import clips
from w2svd_bench.data.stock import take_stock
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate import side
from w2svd_bench.evaluate.folders import score_folders
from w2svd_bench.evaluate.pictures import write_video
from w2svd_bench.evaluate.side import Rules
from w2svd_bench.evaluate.store import FeatureStore
from w2svd_bench.metrics.base import Features, Score
from w2svd_bench.metrics.mini import MiniFid, MiniFvd

import score_kit as kit
import stand_ins_inception

Command = Callable[..., Any]
known_metrics, score = kit.known_metrics, kit.score  # fixtures


def test_real_portraits_score_better_than_frozen_ones(tmp_path: Path, score: Command) -> None:
    """The numbers are those of the metrics themselves, on the same frames; fvd sees that nothing moves any more."""
    whole = clips("test", range(12)).numpy()
    real = clips("reference", range(16)).numpy()
    frozen = np.repeat(whole[:, 8:9], 17, axis=1)
    for name, frames in (("real", real), ("generated", whole), ("frozen", frozen)):
        (tmp_path / name).mkdir()
        for index, clip in enumerate(frames):
            np.save(tmp_path / name / f"{index:02}.npy", clip)
    asked = ("--reference", tmp_path / "real", "--metrics", "fid[mini]", "fvd_mini")
    good, _ = score("--generated", tmp_path / "generated", *asked)
    bad, _ = score("--generated", tmp_path / "frozen", *asked)
    for metric in (MiniFid("cpu"), MiniFvd("cpu")):
        row = kit.by_name(good)[metric.name]
        expected = metric.compare(Features(metric.features(whole)), Features(metric.features(real)))
        assert (row["value"], row["se"]) == (expected.value, expected.se) and row["se"] > 0
        assert (row["n"], row["n_reference"], row["n_invalid"], row["reason"]) == (12, 16, 0, None)
        assert (row["frames"], row["size"], row["fps"], row["decoder"]) == (17, "48x48", None, "npy")
        assert row["id"] == metric.id and row["weights_sha256"] == metric.weights_sha256
        assert {"n<2048", "N<D"} <= set(row["flags"]) if metric.name == "fvd[mini]" else "n<2048" in row["flags"]
    assert kit.by_name(bad)["fvd[mini]"]["value"] > 1.2 * kit.by_name(good)["fvd[mini]"]["value"]
    assert good["provenance"]["packages"]["torch"]


def test_videos_are_read_and_a_table_is_shown(tmp_path: Path, cli: Command) -> None:
    ours, theirs = kit.videos(tmp_path / "ours", 9), kit.videos(tmp_path / "theirs", 8, first=100)
    outcome = cli("score", "--generated", ours, "--reference", theirs, "--metrics", "hue,stir", "--device", "cpu")
    assert outcome.status == 0, outcome
    for part in ("hue", "stir.light", "stir.motion", "made for tests", "n<2048", "9 clips"):
        assert part in outcome.text
    paths = {clip.path for clip in kit.Stir.seen[0]}
    assert paths == {path.resolve() for path in ours.iterdir()}  # the files themselves, no copies
    assert all(clip.fps == 8 and clip.prompt is None for clip in kit.Stir.seen[0])


def test_names_of_metrics_that_are_none(tmp_path: Path, refused: Command) -> None:
    asked = ("score", "--generated", kit.pictures(tmp_path / "ours", 9), "--metrics")
    assert "did you mean 'fid_mini'" in refused(*asked, "fid[minni]").text
    assert "there is no metric to score by" in refused(*asked, ",").text


def test_a_second_run_reads_no_file_and_runs_no_net(
    tmp_path: Path, score: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = kit.arrays(tmp_path / "ours", 9), kit.arrays(tmp_path / "theirs", 9, first=50)
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue", "tint_each", "stir", "--fps", "8")
    score(*asked[:4], "--metrics", "hue")
    assert sum(shape[0] for shape in kit.HueNet.shapes) == 18
    first, _ = score(*asked)  # now only the new metrics look at the files
    assert sum(shape[0] for shape in kit.HueNet.shapes) == 2 * 18 and len(kit.Stir.seen) == 1
    kit.HueNet.shapes.clear()
    kit.Stir.seen.clear()
    monkeypatch.setattr("w2svd_bench.evaluate.side._decoded", None)
    second, _ = score(*asked)
    assert second["results"] == first["results"] and not kit.HueNet.shapes and not kit.Stir.seen


def test_a_raised_version_reads_the_files_anew(
    tmp_path: Path, score: Command, refused: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mended metric is not given what the old one read, in the cache or in a file of statistics."""
    ours, theirs = kit.arrays(tmp_path / "ours", 9), kit.arrays(tmp_path / "theirs", 9, first=50)
    asked = ("--generated", ours, "--metrics", "hue", "stir", "--fps", "8", "--reference")
    score(*asked, theirs, "--export-stats", tmp_path / "old.npz")
    old, features = kit.Stir.dimensions, kit.HueNet.features
    dimensions = [replace(one, version=2) for one in old.__get__(kit.Stir("cpu"))]  # an id that forgot its version
    monkeypatch.setattr(kit.Stir, "dimensions", dimensions)
    monkeypatch.setattr(kit.Hue, "version", 2)
    monkeypatch.setattr(kit.HueNet, "features", lambda net, clips: features(net, clips) * 2)
    kit.HueNet.shapes.clear()
    kit.Stir.seen.clear()
    row = kit.by_name(score(*asked, theirs)[0])["hue"]
    mended = kit.Hue("cpu")
    read = [Features(mended.features(np.stack([np.load(p) for p in sorted(f.iterdir())]))) for f in (ours, theirs)]
    assert row["value"] == mended.compare(*read).value and row["version"] == 2
    assert len(kit.Stir.seen) == 1
    assert "come from another feature net" in refused("score", *asked, tmp_path / "old.npz").text


def test_a_file_is_decoded_once_for_all_metrics(
    tmp_path: Path, score: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    read = side._decoded

    def counting(item: Any, files: Any) -> Any:
        decoded.append(item.path)
        return read(item, files)

    monkeypatch.setattr(side, "_decoded", counting)
    ours, theirs = kit.arrays(tmp_path / "ours", 9), kit.arrays(tmp_path / "theirs", 9, first=50)
    score("--generated", ours, "--reference", theirs, "--metrics", "hue", "tint_each", "stir", "--fps", "8")
    assert sorted(decoded) == sorted([*ours.iterdir(), *theirs.iterdir()])


def test_what_was_read_before_a_kill_is_kept(tmp_path: Path, score: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that were read are not read again, and the numbers are the same to the last bit."""
    ours, theirs = kit.arrays(tmp_path / "ours", 12), kit.arrays(tmp_path / "theirs", 12, first=50)
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue", "--batch", "4")
    features = kit.HueNet.features

    def killed(net: kit.HueNet, clips_BFHWC: np.ndarray) -> np.ndarray:
        if len(kit.HueNet.shapes) == 4:
            raise KeyboardInterrupt
        return features(net, clips_BFHWC)

    with monkeypatch.context() as patch:
        patch.setattr(kit.HueNet, "features", killed)
        with pytest.raises((KeyboardInterrupt, AssertionError)):
            score(*asked)
    kit.HueNet.shapes.clear()
    resumed, _ = score(*asked)
    assert kit.HueNet.shapes == [(4, 4, 16, 16, 3)] * 2
    shutil.rmtree(tmp_path / "cache")
    fresh, _ = score(*asked)
    assert fresh["results"] == resumed["results"]


def test_batches_of_a_gpu_all_have_one_size(tmp_path: Path) -> None:
    """The last one is filled up, since the last bits of what a GPU gives depend on the size of a batch."""
    net, stock = kit.HueNet(each_frame=False), take_stock(kit.arrays(tmp_path / "ours", 10))
    reader = side.Side(stock, Rules(batch=4, device="another"), FeatureStore(tmp_path / "store"))
    reader.read("reading", {"net": net.features})
    assert [shape[0] for shape in kit.HueNet.shapes] == [4, 4, 4]
    together = net.features(np.stack([read_media(item.path).frames_FHWC for item in stock.items]))
    assert np.array_equal(reader.features("net").values_NKD, together)


def test_each_kind_of_device_reads_for_itself(tmp_path: Path) -> None:
    """What a GPU read is no feature of the CPU's: a score does not depend on which of them came first."""
    ours, theirs = kit.videos(tmp_path / "ours", 9), kit.videos(tmp_path / "theirs", 9, first=50)
    read = []
    for kind in ("cpu", "another", "another:1", "cpu"):
        rules, metrics = Rules(batch=3, device=kind), [kit.Hue("cpu"), kit.Stir("cpu")]
        score_folders(ours, theirs, metrics, rules, store=FeatureStore(tmp_path / "store"))
        read.append((sum(shape[0] for shape in kit.HueNet.shapes), len(kit.Stir.seen)))
    assert read == [(18, 1), (36, 2), (36, 2), (36, 2)]


def test_a_small_reference_is_said_to_have_an_error_of_its_own(tmp_path: Path, score: Command) -> None:
    """The ± is of the generated clips alone: four times as many real ones hardly add to it, fewer do."""
    flag, ours = "± without the reference's own error", kit.pictures(tmp_path / "ours", 9)
    theirs = kit.pictures(tmp_path / "theirs", 36, first=50)
    asked = ("--generated", ours, "--metrics", "hue", "--reference")
    large, _ = score(*asked, theirs, "--export-stats", tmp_path / "large.npz")
    (theirs / "0050.png").unlink()
    small, _ = score(*asked, theirs, "--export-stats", tmp_path / "small.npz")
    known = [large, small, *(score(*asked, tmp_path / f"{name}.npz")[0] for name in ("large", "small"))]
    assert [flag in kit.by_name(document)["hue"]["flags"] for document in known] == [False, True, False, True]
    with np.load(tmp_path / "small.npz") as arrays:  # as pytorch-fid writes it
        np.savez(tmp_path / "unstated.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    unstated, _ = score(*asked, tmp_path / "unstated.npz")
    assert flag not in kit.by_name(unstated)["hue"]["flags"]


def test_numbers_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    ours, theirs = kit.arrays(tmp_path / "ours", 10), kit.arrays(tmp_path / "theirs", 9, first=50)
    hue = kit.Hue("cpu")
    rows = [
        score_folders(ours, theirs, [hue], Rules(batch=size), store=FeatureStore(tmp_path / str(size))).results
        for size in (1, 3, 64)
    ]
    assert rows[0] == rows[1] == rows[2]


def test_prompts_group_clips_and_miss_none(tmp_path: Path, score: Command, refused: Command) -> None:
    """Clips of one prompt stay together; a prompt without its clip is a failed clip, not a smaller set."""
    ours, theirs = kit.videos(tmp_path / "ours", 16), kit.videos(tmp_path / "theirs", 12, first=50)
    prompts = {f"{index:04}.mp4": f"prompt {index // 2}" for index in range(16)}
    file = tmp_path / "prompts.json"
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue", "stir", "--prompts", file)
    file.write_text(json.dumps(prompts))
    alone = kit.by_name(score(*asked[:-2])[0])
    kit.Stir.seen.clear()
    rows = kit.by_name(score(*asked)[0])
    assert rows["hue"]["value"] == alone["hue"]["value"] and rows["hue"]["se"] != alone["hue"]["se"]
    assert rows["stir.light"]["se"] != alone["stir.light"]["se"]
    assert [(clip.prompt, clip.key) for clip in kit.Stir.seen[0]][:3] == [(f"prompt {i // 2}",) * 2 for i in range(3)]

    file.write_text(json.dumps(prompts | {"0016.mp4": "a prompt that failed"}))
    document, told = score(*asked, status=1)
    assert "invalid: 0016.mp4 (generated): there is no such file, but a prompt for it" in told
    assert all(row["n_invalid"] == 1 and row["n"] == 16 for row in document["results"])

    file.write_text(json.dumps({name: "one prompt" for name in prompts}))
    row = kit.by_name(score(*asked, status=1)[0])["hue"]
    assert row["value"] is None and "two clips of different prompts" in row["reason"]

    file.write_text(json.dumps(dict(list(prompts.items())[:-2])))
    assert "2 of the files" in (text := refused("score", *asked).text) and "0014.mp4, 0015.mp4" in text
    for content, reason in {
        '{"a.mp4": 3}': "not an object of file names",
        '["a.mp4"]': "not an object of file names",
        '{"a.mp4": "x", "a.mp4": "y"}': "'a.mp4' stands in it more than once",
        "{": "Expecting property name",
    }.items():
        file.write_text(content)
        assert reason in refused("score", *asked).text


def test_images_arrays_and_gifs_are_handed_on_as_videos(tmp_path: Path, score: Command, refused: Command) -> None:
    """Written without loss at the rate that is given, and gone afterwards; the score says so."""
    ours = kit.arrays(tmp_path / "ours", 8)
    assert "give it with --fps" in refused("score", "--generated", ours, "--metrics", "stir").text
    document, _ = score("--generated", ours, "--metrics", "stir", "--fps", "12")
    row = kit.by_name(document)["stir.light"]
    assert "8 file(s) rewritten as lossless H.264" in row["flags"] and row["fps"] == 12
    assert row["value"] == pytest.approx(np.mean([np.load(path).mean() for path in ours.iterdir()]), abs=2)
    assert all(clip.fps == 12 and clip.path.suffix == ".mp4" for clip in kit.Stir.seen[0])
    assert not any(clip.path.exists() for clip in kit.Stir.seen[0])
    gifs = tmp_path / "gifs"
    gifs.mkdir()
    for index in range(3):
        write_video(kit.noisy(index, 4), gifs / f"{index}.gif", 10)
    document, _ = score("--generated", gifs, "--metrics", "stir")
    assert "3 file(s) rewritten as lossless H.264" in kit.by_name(document)["stir.light"]["flags"]
    odd = kit.arrays(tmp_path / "odd", 8, size=(17, 21))
    document, _ = score("--generated", odd, "--metrics", "stir", "--fps", "8", status=1)
    assert "no frames of 21x17: even sizes only" in kit.by_name(document)["stir.light"]["reason"]
    plain = kit.videos(tmp_path / "plain", 8)
    assert (
        "--fps 8 applies to nothing" in refused("score", "--generated", plain, "--metrics", "stir", "--fps", "8").text
    )


def test_statistics_are_written_and_read(tmp_path: Path, score: Command, refused: Command) -> None:
    """Against them the number is that against the folder; a metric that is no Fréchet distance says why it has none."""
    ours, theirs = kit.arrays(tmp_path / "ours", 12), kit.arrays(tmp_path / "theirs", 14, first=50)
    file, other = tmp_path / "stats.npz", tmp_path / "other.npz"
    asked = ("--generated", ours, "--metrics", "tint_each", "hue", "--reference")
    whole = kit.by_name(score(*asked, theirs, "--export-stats", file)[0])["hue"]
    with np.load(file, allow_pickle=False) as stored:
        assert stored["mu"].shape == (6,) and stored["sigma"].shape == (6, 6)
    rows = kit.by_name(score(*asked, file, status=1)[0])
    assert rows["hue"]["value"] == pytest.approx(whole["value"], rel=1e-9) and rows["hue"]["n_reference"] == 14
    assert rows["tint[each]"]["value"] is None and "statistics are no reference" in rows["tint[each]"]["reason"]

    shutil.rmtree(tmp_path / "cache")
    kit.HueNet.shapes.clear()
    assert "never overwritten" in refused("score", *asked, theirs, "--export-stats", file).text
    assert "made of the reference folder" in refused("score", *asked, file, "--export-stats", other).text
    for metrics in ("tint_each", "hue,fid_mini"):
        asked = ("--generated", ours, "--reference", theirs, "--metrics", metrics, "--export-stats", other)
        assert "one Fréchet distance's net" in refused("score", *asked).text
    assert not kit.HueNet.shapes and not other.exists()


def test_statistics_say_what_their_folder_was_like(tmp_path: Path, score: Command) -> None:
    """Against them the flags are those against the folder: other frames, sizes and rates do not get lost."""
    ours = kit.videos(tmp_path / "ours", 9, fps=24)
    theirs = kit.videos(tmp_path / "theirs", 9, first=50, frames=6, fps=12)
    kit.video(theirs / "0070.mp4", kit.noisy(70, 6, (32, 32)), 12)
    asked = ("--generated", ours, "--metrics", "hue", "--resize-mixed", "--reference")
    whole = kit.by_name(score(*asked, theirs, "--export-stats", tmp_path / "stats.npz")[0])["hue"]
    assert {"frames 4 vs 6", "fps 24 vs 12", "1 file(s) resized"} <= set(whole["flags"])
    document, told = score(*asked, tmp_path / "stats.npz")
    assert kit.by_name(document)["hue"]["flags"] == whole["flags"] and "warning" not in told
    reference = document["reference"]
    assert [reference[name] for name in ("n", "frames", "size", "fps")] == [10, [6], "16x16", 12]


def test_statistics_of_a_folder_with_broken_files(tmp_path: Path, score: Command) -> None:
    """They are not written where the command refuses the folder; where it is let pass, scores against them say so."""
    ours, theirs = kit.arrays(tmp_path / "ours", 9), kit.arrays(tmp_path / "theirs", 9, first=50)
    for index in range(3):
        (theirs / f"broken-{index}.npy").write_bytes(b"no array")
    file = tmp_path / "stats.npz"
    asked = ("--generated", ours, "--metrics", "hue", "--reference")
    _, told = score(*asked, theirs, "--export-stats", file, status=1)
    assert not file.exists() and f"{file} is not written: 3 file(s) of {theirs}" in told
    whole = kit.by_name(score(*asked, theirs, "--export-stats", file, "--max-invalid", "3")[0])["hue"]
    document, told = score(*asked, file, status=1)
    assert kit.by_name(document)["hue"]["n_reference_invalid"] == whole["n_reference_invalid"] == 3
    assert f"warning: {file} was made without 3 file(s) of its folder" in told and "3 file(s) have no score" in told
    score(*asked, file, "--max-invalid", "3")


@pytest.mark.slow
def test_statistics_are_those_of_pytorch_fid(tmp_path: Path, score: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """From files to mean and covariance, with the same random weights in the real format."""
    from pytorch_fid import fid_score
    from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3

    from w2svd_bench.metrics.weights import install_stand_in

    content = stand_ins_inception.inception()
    monkeypatch.setenv("W2SVD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    install_stand_in("inception-pytorchfid", content)
    place = tmp_path / "torch" / "hub" / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    ours, theirs = (kit.pictures(tmp_path / name, 8, first, (72, 96)) for name, first in (("ours", 0), ("theirs", 50)))
    file = tmp_path / "stats.npz"
    score("--generated", ours, "--reference", theirs, "--metrics", "fid", "--export-stats", file)
    files = sorted(theirs.iterdir())
    mean, covariance = fid_score.calculate_activation_statistics(
        files, InceptionV3([3]).eval(), batch_size=4, num_workers=0
    )
    with np.load(file, allow_pickle=False) as stored:
        scale = np.abs(covariance).max()
        print(f"largest differences: {np.abs(stored['mu'] - mean).max():.2g} of a mean of {mean.mean():.2g}, ", end="")
        print(f"{np.abs(stored['sigma'] - covariance).max():.2g} of covariances up to {scale:.2g}")
        np.testing.assert_allclose(stored["mu"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stored["sigma"], covariance, rtol=0, atol=1e-5 * scale)


def test_a_distance_needs_a_reference_and_other_metrics_none(tmp_path: Path, score: Command, refused: Command) -> None:
    ours = kit.videos(tmp_path / "ours", 8)
    assert "nothing to compare with" in refused("score", "--generated", ours, "--metrics", "hue").text
    _, told = score("--generated", ours, "--reference", ours, "--metrics", "stir")
    assert "is not looked at" in told


def test_a_metric_that_gives_no_number_leaves_null_and_the_reason(
    tmp_path: Path, score: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has no NaN, and a reader that takes it for a number would be misled."""
    ours, theirs = kit.arrays(tmp_path / "ours", 9), kit.arrays(tmp_path / "theirs", 9, first=50)
    asked = ("--generated", ours, "--reference", theirs, "--metrics", "hue", "tint_each")
    monkeypatch.setattr(kit.Tint, "compare", lambda self, a, b: Score(float("nan"), 0.0, 9, ()))
    document, told = score(*asked, status=1)
    rows = kit.by_name(document)
    assert rows["tint[each]"]["value"] is None and "gives nan" in rows["tint[each]"]["reason"]
    assert rows["hue"]["value"] is not None and "1 of 2 scores could not be had" in told

    def fails(self: kit.Tint, generated: Features, reference: Features) -> Score:
        raise BenchError("no distance", "the sets are too strange", "use others")

    monkeypatch.setattr(kit.Tint, "compare", fails)
    assert kit.by_name(score(*asked, status=1)[0])["tint[each]"]["reason"] == "no distance: the sets are too strange"


def test_metrics_are_closed_also_after_an_error(
    tmp_path: Path, refused: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit.Stir, "closed", 0)
    refused("score", "--generated", tmp_path / "none", "--metrics", "stir")
    assert kit.Stir.closed == 1
