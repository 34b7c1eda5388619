"""Records that travel: joined from several machines without mixing what differs, and checked before they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from w2svd_bench.cli import boards
from w2svd_bench.cli.claims import _together
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.merge import differing, filled, merge
from w2svd_bench.leaderboard.validate import validate
from w2svd_bench.metrics.frechet import frechet_distance, leave_out_distances
from w2svd_bench.metrics.gaussian import Reference
from w2svd_bench.record import Record, read_records, write_record
from w2svd_bench.uncertainty import assign_groups, cluster_bootstrap, jackknife_se

import records
from records import score, skipped

ROOT = Path(__file__).resolve().parents[2]


ORIGIN = {"w2svd_bench": "0.1.0", "git": {"commit": "ab" * 20, "dirty": False}, "device": "cpu"}
LEAVE_OUT = [9.0, 10.0, 11.0, 10.5]
LEVELS = [1 - i / 28 for i in range(29)]


def make(label: str = "lcm", steps: int = 4, **other: Any) -> Record:
    """A record that `validate` has nothing to say about."""
    sampling = {"levels": [1 - i / steps for i in range(steps + 1)] if steps else []}
    made: Record = records.make(label, steps, **({"provenance": ORIGIN, "sampling": sampling} | other))
    return made


def folder(path: Path, *records: Record) -> Path:
    for one in records:
        write_record(one, path / "records")
    return path


def names(path: Path) -> list[str]:
    return sorted(one.name for one in (path / "records").iterdir())


def run(command: Callable[..., None], *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


# --- merge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_floor_has_the_metrics_of_all_machines(order: tuple[int, int], tmp_path: Path) -> None:
    """One machine measured more than the other: floors have all of it, whichever folder is named first."""
    few, more = records.real(1.0), records.real(1.1)
    more = more.model_copy(update={"metrics": more.metrics | {"kid": next(iter(more.metrics.values()))}})
    folders = [folder(tmp_path / "few", few), folder(tmp_path / "more", more)]
    merged = merge([folders[i] for i in order], tmp_path / "into")
    (floor,) = merged.records
    assert set(floor.metrics) == {"fid[mini]", "kid"}
    assert floor.metrics["fid[mini]"].value == (1.0, 1.1)[order[0]]  # type: ignore[union-attr]
    assert _together([folders[i] for i in order]) == list(merged.records)
    other = more.model_copy(update={"eval_set": more.eval_set.model_copy(update={"num_clips": 16})})
    assert filled(few, other) == few, "of other clips"


def test_floors_that_every_machine_measures_are_no_conflict(tmp_path: Path) -> None:
    floors = [
        make("real (noise floor)", 0, cell={"method": "real"}, provenance=ORIGIN | {"time_utc": f"2026-01-0{day}"})
        for day in (1, 2)
    ]
    ours = folder(tmp_path / "a", make("lcm", 1), floors[0])
    theirs = folder(tmp_path / "b", make("dmd", 4), floors[1])
    merged = merge([ours, theirs], tmp_path / "out")
    assert merged.repeated == 1 and len(merged.records) == 3
    assert [one for one in read_records(tmp_path / "out") if one.cell.method == "real"] == [floors[0]]


def test_records_of_several_machines_are_joined(tmp_path: Path) -> None:
    ours = folder(tmp_path / "a", make("lcm", 1), make("lcm", 4))
    theirs = folder(tmp_path / "b", make("lcm", 4), make("dmd", 4))
    merged = merge([ours, theirs], tmp_path / "out")
    expected = sorted(one.file_name for one in (make("lcm", 1), make("lcm", 4), make("dmd", 4)))
    assert names(tmp_path / "out") == expected
    assert merged.brought == {ours: 2, theirs: 2} and merged.repeated == 1
    source = ours / "records" / make("lcm", 4).file_name
    assert (tmp_path / "out" / "records" / source.name).read_bytes() == source.read_bytes()
    assert names(ours) == sorted(one.file_name for one in (make("lcm", 1), make("lcm", 4))), "sources stay as they are"


def test_what_is_there_stays(tmp_path: Path) -> None:
    out, more = folder(tmp_path / "out", make("lcm", 1)), folder(tmp_path / "a", make("dmd", 1))
    merge([more], out)
    again = merge([out, more], out)  # once more, and naming it as a source as well: nothing changes
    assert again.repeated == 1 and again.brought == {out: 2, more: 1}
    assert {one.cell.label for one in read_records(out)} == {"lcm", "dmd"}


def test_two_records_of_a_cell_that_differ_are_refused(tmp_path: Path) -> None:
    ours = folder(tmp_path / "a", make(fid=10.0), make("dmd"))
    other = make(fid=10.5, timing={"wall_seconds": 11.0})
    theirs, out = folder(tmp_path / "b", other), folder(tmp_path / "out", make("euler"))
    for sources in ([ours, theirs], [theirs, ours]):
        with pytest.raises(BenchError, match=r"1 cell\(s\) have two records that differ") as caught:
            merge(sources, out)
        assert caught.value.why.startswith(f"{other.file_name} of {sources[0]} and {sources[1]}: ")
        assert "metrics.fid[mini].value (10." in caught.value.why and "timing.wall_seconds (" in caught.value.why
    assert names(out) == [make("euler").file_name], "nothing was written"
    with pytest.raises(BenchError, match="two records that differ"):
        merge([theirs], folder(tmp_path / "out2", make(fid=10.0)))  # what the folder has counts as well


def test_differing_fields_are_named_those_of_the_numbers_first() -> None:
    a = make(fid=score(10.0, leave_out=LEAVE_OUT), training={"updates": {"generator": 3}})
    b = make(fid=score(10.0), training={"updates": {}}, config={"alpha": None})
    assert differing(a, b) == [
        "metrics.fid[mini].leave_out ([9.0, 10.0, 11.0, 10.5] and [])",
        "config.alpha (nothing and None)",
        "training.updates (nothing and {})",
        "training.updates.generator (3 and nothing)",
    ]
    assert differing(a, a) == []


def test_what_no_table_may_hold_is_not_joined(tmp_path: Path) -> None:
    """Another eval set; or the same method trained twice with one seed, which gave other weights."""
    ours = folder(tmp_path / "a", make())
    for i, other in enumerate((make("dmd", eval_set={"fps": 24}), make(cell={"checkpoint_sha256": "99" * 32}))):
        with pytest.raises(BenchError, match=r"can't stand in one table|there are two records"):
            merge([ours, folder(tmp_path / f"b{i}", other)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_above_the_sources_is_no_place_for_them(tmp_path: Path) -> None:
    ours = folder(tmp_path / "a", make())
    with pytest.raises(BenchError, match="would be there twice"):
        merge([ours], tmp_path)
    assert not (tmp_path / "records").exists()


def test_a_folder_inside_a_source_is_no_place_for_it(tmp_path: Path) -> None:
    """The source would hold its own records twice, and a second time read what the first one wrote."""
    ours = folder(tmp_path / "a", make())
    for into in (ours / "sub", tmp_path / "a" / ".." / "a" / "records"):
        with pytest.raises(BenchError, match="can't be joined") as caught:
            merge([ours], into)
        assert f"it lies in {ours}" in caught.value.why and "outside" in caught.value.cure
    assert len(read_records(ours)) == 1 and not (ours / "sub").exists()


def test_an_empty_or_missing_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="holds no records"):
        merge([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(BenchError, match="no such folder"):
        merge([tmp_path / "nowhere"], tmp_path / "out")


def test_tables_never_lie_among_records(tmp_path: Path) -> None:
    records = folder(tmp_path, make(), make("b")) / "records"
    boards.show(records, as_json=False)
    assert len(list(records.iterdir())) == 2 and (tmp_path / "leaderboard.csv").is_file()


def test_the_command_renders_what_it_joined(tmp_path: Path) -> None:
    sources = [folder(tmp_path / name, make(name), make("both")) for name in "ab"]
    outcome = run(boards.merge, *sources, "--into", tmp_path / "out")
    assert outcome.exit_code == 0
    assert outcome.output.startswith("3 records: 2 of ") and "1 were there twice" in outcome.output
    assert "| both | 4 |" in (tmp_path / "out" / "leaderboard.md").read_text()
    again = json.loads(run(boards.merge, sources[0], "--into", tmp_path / "out", "--json").output)
    assert len(again) == 3


# --- validate ---------------------------------------------------------------------------------------------------------


def problems(path: Path, publishable: bool = False) -> list[str]:
    return [one.text for one in validate(path, publishable).problems]


SE = cluster_bootstrap([1.0, 2.0], [0, 2]).se  # of the clips that have a value


def per_clip(**other: Any) -> Record:
    """A record of three clips, of which one has no value."""
    base = {"value": 1.5, "se": SE, "n": 2, "values": [1.0, None, 2.0], "prompts": [0, 1, 2], "weights_sha256": None}
    one = score(**(base | {"invalid": {"VBench gave no number": 1}} | other))
    data = make("dmd", eval_set={"num_clips": 3}).model_dump(mode="json")
    return Record.model_validate(data | {"metrics": {"x": one}})


def of_set(value: float, leave_out: Sequence[float] = LEAVE_OUT, **other: Any) -> Any:
    return score(value, **({"se": jackknife_se(leave_out), "leave_out": list(leave_out)} | other))


def test_sound_records_have_no_problem(tmp_path: Path) -> None:
    sound = make(fid=of_set(10.0))
    floor = make("real", 0, cell={"method": "real", "checkpoint_sha256": ""})
    report = validate(folder(tmp_path, sound, floor), publishable=True)
    assert report.findings == () and report.num_files == 2
    sizes = [200, 104, 104, 104]
    unequal = make(fid=of_set(10.0, groups=sizes, se=jackknife_se(LEAVE_OUT, 10.0, sizes)))
    assert validate(folder(tmp_path / "unequal", unequal), publishable=True).findings == ()
    assert validate(folder(tmp_path / "clips", per_clip()), publishable=True).findings == ()


@pytest.mark.parametrize("results", ["mini", "mini-tuning"])
def test_the_results_of_the_repository_are_valid(results: str) -> None:
    assert problems(ROOT / "results" / results) == []


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (make(eval_set={"prompts_sha256": ""}), "eval_set.prompts_sha256 is '', no sha256"),
        (make(eval_set={"reference_sha256": "AB" * 32}), "eval_set.reference_sha256 is"),
        (make(cell={"checkpoint_sha256": ""}), "cell.checkpoint_sha256 is '', no sha256"),
        (make(fid=score(1.0, weights_sha256=None)), "metrics.fid[mini].weights_sha256 is None, no sha256"),
        (per_clip(weights_sha256="abc"), "metrics.x.weights_sha256 is 'abc', no sha256"),
        (
            make(fid=score(1.0, n=513)),
            "metrics.fid[mini]: n is 513 and invalid counts 0, and the eval set has 512 clips",
        ),
        (make(fid=of_set(10.0, n=10)), "metrics.fid[mini]: n is 10 and invalid counts 0, and the eval set has 512"),
        (make(fid=of_set(10.0, se=0.5)), "metrics.fid[mini]: se is 0.5, and 1.28"),
        (make(fid=of_set(10.0, groups=[128] * 3)), "its 4 leave-out values are of 3 groups of 384 clips, n is 512"),
        (make(fid=of_set(10.0, groups=[200, 104, 104, 104])), "metrics.fid[mini]: se is 1.28"),
        (make(fid=score(9.9, leave_out=[1.0])), "metrics.fid[mini]: se is 0.5, and None"),
        (per_clip(value=1.75), "metrics.x: its value is 1.75, and the mean of its clips 1.5"),
        (per_clip(n=3, invalid={}), "metrics.x: n is 3, and 2 clips have a value"),
        (per_clip(invalid={}), "metrics.x: n is 2 and invalid counts 0, and the eval set has 3 clips"),
        (per_clip(values=[1.0, 2.0]), "metrics.x: it has 2 values and 3 numbers of prompts for the 3 clips"),
        (per_clip(prompts=[0, 1]), "metrics.x: it has 3 values and 2 numbers of prompts for the 3 clips"),
        (per_clip(prompts=[]), "metrics.x: it has 3 values and 0 numbers of prompts for the 3 clips"),
        (per_clip(se=1e-6), "metrics.x: se is 1e-06, and 0."),
        (per_clip(se=None), "metrics.x: se is None, and 0."),
        (per_clip(prompts=[0, 1, 0]), "and None by its clips"),
        (make(steps=28, sampling={"nfe": 1, "levels": LEVELS}), "sampling.nfe is 1, and 29 levels take 28 network"),
        (make(provenance=ORIGIN | {"data": ["/home/someone/clips"]}), "provenance.data.0 holds a path of one machine"),
        (
            make(config={"data": {"folder": "C:\\clips"}}),
            "config.data.folder holds a path of one machine: 'C:\\\\clips'",
        ),
        (make(config={"data": "~/clips"}), "config.data holds a path of one machine: '~/clips'"),
        (
            make(metrics={"x": skipped("no weights: /opt/models/clip.pt is missing")}),
            "metrics.x.skipped holds a path of one machine: '/opt/models/clip.pt'",
        ),
        (per_clip(invalid={"/tmp/a.mp4 can't be read": 1}), "metrics.x.invalid holds a path of one machine: '/tmp/a"),
    ],
)
def test_problems_of_a_record(record: Record, text: str, tmp_path: Path) -> None:
    report = validate(folder(tmp_path, record))
    (found,) = report.problems
    assert text in found.text and found.file == Path("records") / record.file_name


# What a groups' jackknife leaves of honest distances: see `leaderboard.validate`.
TWENTY = [24.0 + 0.16 * (i % 5 - 2) for i in range(20)]  # se 0.99


@pytest.mark.parametrize("factor", [0.1, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_value_far_from_its_leave_out_values_is_found(factor: float, direction: str, tmp_path: Path) -> None:
    one = of_set(24.0, TWENTY, direction=direction)
    assert problems(folder(tmp_path, make(fid=one))) == []
    (found,) = problems(folder(tmp_path, make(fid=one | {"value": 24.0 * factor})))
    assert found.startswith(
        f"metrics.fid[mini]: its value is {24.0 * factor}, which is too far from its leave-out values"
    )


def test_a_floor_may_be_held_against_itself(tmp_path: Path) -> None:
    """Then its value is zero, and what is left of the clips is some way from all of them."""
    for value, cell, found in ((1e-9, {"method": "real"}, 0), (1e-9, {}, 1), (50.0, {"method": "real"}, 1)):
        made = make("lcm", 4, fid=of_set(value, TWENTY), cell=cell)
        assert len(problems(folder(tmp_path / f"{value} {found}", made))) == found


@pytest.mark.parametrize("shared", [0.0, 0.95], ids=["own prompts", "the reference's prompts"])
@pytest.mark.parametrize(
    ("count", "dimensions"), [(20, 256), (20, 1024), (64, 512), (256, 256), (512, 256), (512, 1024)]
)
def test_honest_distances_are_never_too_far(count: int, dimensions: int, shared: float, tmp_path: Path) -> None:
    """Of few clips in many dimensions every leave-out value is above the whole, by more than its error.

    ``shared`` is how much of what tells clips apart their prompt decides, where the reference is of the same prompts.
    """
    rng = np.random.default_rng(count + dimensions)

    def drawn(size: int, part: float = 1.0) -> np.ndarray:
        return rng.normal(size=(size, dimensions)) * part**0.5

    prompts = drawn(count, shared)
    clips = prompts + drawn(count, 1 - shared)
    reference = Reference.of(prompts + drawn(count, 1 - shared) if shared else drawn(600))
    left = leave_out_distances(clips[:, None], assign_groups(range(count)), reference)
    value = frechet_distance(clips, reference)
    assert left.min() > value
    assert problems(folder(tmp_path, make(fid=of_set(value, left.tolist())))) == []


def test_a_bootstrap_by_another_numpy_may_be_drawn_anew(tmp_path: Path) -> None:
    ours = ORIGIN | {"packages": {"numpy": np.__version__}}
    for version, factor, found in ((ours, 1 + 1e-9, 0), (ours, 1.02, 1), (ORIGIN, 1.02, 0), (ORIGIN, 1.2, 1)):
        data = per_clip(se=SE * factor).model_dump(mode="json") | {"provenance": version}
        assert len(problems(folder(tmp_path, Record.model_validate(data)))) == found


def test_more_evaluations_than_levels_may_be_of_guidance(tmp_path: Path) -> None:
    """A batch that is doubled, or a sampler of second order; and a cell that could not be sampled, and none."""
    honest = [make("a", 28, sampling={"nfe": nfe, "levels": LEVELS}) for nfe in (28, 56)]
    honest.append(make("b", 1, sampling={"sampler": "none", "nfe": 0, "levels": []}))
    for index, record in enumerate(honest):
        assert problems(folder(tmp_path / str(index), record)) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("read from /home/alice/x", "/home/alice/x"),
        ("weights (/mnt/models/fid.pt) are missing", "/mnt/models/fid.pt"),
        ("cache=/a/b", "/a/b"),
        ("in /tmp", "/tmp"),
        ("'/data/clips' and others", "/data/clips"),
        ("host:/srv/x/y", "/srv/x/y"),
        ("/scratch", "/scratch"),
        ("from ~/clips, twice", "~/clips"),
        ("of ~alice/clips", "~alice/clips"),
        (r"read from D:\clips\a.mp4 today", r"D:\clips\a.mp4"),
        ("in C:/Users/x", "C:/Users/x"),
        (r"on \\server\share\x", r"\\server\share\x"),
        ("see file:///home/alice/x", "file:///home/alice/x"),
        ("https://a.org/b and /home/alice", "/home/alice"),
    ],
)
def test_paths_are_found_inside_texts(text: str, path: str, tmp_path: Path) -> None:
    (found,) = problems(folder(tmp_path, make(config={"note": text})))
    assert found == f"config.note holds a path of one machine: {path!r}"


@pytest.mark.parametrize(
    "text",
    [
        "1/2", "1 / 2", "and/or", "N/A", "x/127.5-1", "(x.y/D+1)^3", "https://a.org/b/c", "s3://bucket/home/x", "/s",
        "GB /s", "clips /clip", "git+https://github.com/a/b.git", "git@github.com:a/b.git", "package.module:attribute",
        "tencent/HunyuanVideo", "./a/b", "../a/b", "a/b/c.json", "**/records/*.json", "<out>/mini/results",
        "{out}/mini/x", "~1/2 of them", "[/bold]", "at 3:/", "a\\b", "ratio 16:9/4:3", "Linux-6.18-x86_64-glibc2.36",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_path_is_none(text: str, tmp_path: Path) -> None:
    assert problems(folder(tmp_path, make(config={"note": text}))) == []


def test_a_record_without_metrics_or_origin(tmp_path: Path) -> None:
    data = make().model_dump(mode="json") | {"metrics": {}, "provenance": {}}
    found = problems(folder(tmp_path, Record.model_validate(data)))
    assert found == ["it has no metrics", "provenance names no version of w2svd_bench"]


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda data: data | {"schema_version": 2}, "schema_version is 2, and should be 1"),
        (lambda data: data | {"surprise": 1}, "surprise: Extra inputs"),
        (lambda data: data | {"cell": data["cell"] | {"eval_set": "other"}}, "the cell's eval set 'other' is not"),
        (lambda data: [data], "schema_version is None"),
        (
            lambda data: data | {"provenance": {"load": float("nan")}},
            "not valid JSON: it holds NaN, which is no finite",
        ),
        (lambda data: data | {"config": {"a": [-float("inf")]}}, "not valid JSON: it holds -Infinity"),
        (lambda data: data | {"diagnostics": {"a": float("inf")}}, "not valid JSON: it holds Infinity"),
    ],
)
def test_files_that_are_no_records(harm: Callable[[Any], Any], text: str, tmp_path: Path) -> None:
    path = folder(tmp_path, make("dmd")) / "records" / "x.json"
    path.write_text(json.dumps(harm(make().model_dump(mode="json"))))
    (found,) = problems(tmp_path)
    assert text in found


def test_a_number_too_large_for_a_float_is_not_finite(tmp_path: Path) -> None:
    record = make(config={"a": 12.5})
    path = folder(tmp_path, record) / "records" / record.file_name
    path.write_text(path.read_text().replace("12.5", "1e999"))
    assert problems(tmp_path) == ["not valid JSON: it holds 1e999, which is no finite number"]


def test_every_file_is_looked_at(tmp_path: Path) -> None:
    """A damaged one hides nothing of those behind it; a copy, a wrong name and a mixture are found."""
    path = folder(tmp_path, make(), make("dmd", eval_set={"fps": 24})) / "records"
    (path / "0.json").write_text("{")
    (path / "y.json").write_text((path / make().file_name).read_text())
    texts = {str(one.file): one.text for one in validate(tmp_path).findings}
    assert texts["records/0.json"].startswith("not valid JSON")
    assert texts["records/y.json"] == f"its cell's file is called {make().file_name}"
    assert "differ: eval_set.fps is 24.0 and 12.0" in texts["None"]
    found = [one.text for one in validate(tmp_path).findings if str(one.file) == "records/y.json"]
    assert f"the same cell as records/{make().file_name}" in found


def without_git() -> Record:
    data = make().model_dump(mode="json")
    return Record.model_validate(data | {"provenance": {"w2svd_bench": "0.1.0"}})


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (make(metrics={"fid[stand-in]": score(1.0)}), "random weights, which mean nothing: fid[stand-in]"),
        (make(fid=score(1.0, flags=["stand-in weights"])), "random weights, which mean nothing: fid[mini]"),
        (make(provenance=ORIGIN | {"git": {"commit": "ab" * 20, "dirty": True}}), "changes that no commit holds"),
        (
            make(provenance=ORIGIN | {"git": {"commit": "ab" * 20}}),
            "changes that no commit holds: provenance.git.dirty is",
        ),
        (make(provenance=ORIGIN | {"git": None}), "provenance.git names no commit that holds the code: None"),
        (make(training={"code": {"git": None}}), "training.code.git names no commit"),
        (make(training={"code": ORIGIN | {"git": {"commit": "ab" * 20, "dirty": True}}}), "training.code.git.dirty is"),
        (make(training={"code": ORIGIN | {"before": [ORIGIN, {"git": None}]}}), "training.code.before.1.git names no"),
        (
            make(training={"code": ORIGIN | {"method": "sha256 00"}}, provenance=ORIGIN | {"method": "sha256 11"}),
            "its method was trained as 'sha256 00' and sampled as 'sha256 11'",
        ),
        (make(provenance=ORIGIN | {"git": {"dirty": False}}), "provenance.git names no commit that holds the code"),
        (make(provenance=ORIGIN | {"git": {"commit": "", "dirty": False}}), "provenance.git names no commit"),
        (without_git(), "provenance.git names no commit that holds the code: None"),
    ],
)
def test_drafts_are_remarks_until_they_are_to_be_published(record: Record, text: str, tmp_path: Path) -> None:
    folder(tmp_path, record)
    (remark,) = validate(tmp_path).findings
    assert remark.kind == "remark" and text in remark.text and problems(tmp_path) == []
    (problem,) = problems(tmp_path, publishable=True)
    assert problem == remark.text
    outcome = run(boards.validate, tmp_path)
    assert outcome.exit_code == 0 and "remarks are problems with --publishable" in outcome.output
    assert run(boards.validate, tmp_path, "--publishable").exit_code == 1


def test_the_command_prints_a_table_and_exits_with_one(tmp_path: Path) -> None:
    bad = make(eval_set={"prompts_sha256": "[bold]x"})
    folder(tmp_path, bad)
    outcome = run(boards.validate, tmp_path)
    assert outcome.exit_code == 1 and "[bold]x" in outcome.output and bad.file_name in outcome.output
    assert "1 records" in outcome.output and "1 problem(s), 0 remark(s)" in outcome.output
    told = run(boards.validate, tmp_path, "--json")
    data = json.loads(told.output)
    assert told.exit_code == 1 and data["valid"] is False and data["files"] == 1
    assert data["findings"][0]["file"] == f"records/{bad.file_name}"


def test_a_generator_that_stands_for_two_seeds_is_found(tmp_path: Path) -> None:
    """Their SD would be of one training. Without training all seeds have the teacher's weights, as they should."""
    (found,) = problems(folder(tmp_path, make(seed=0), make(seed=1), make("b", seed=1)))
    assert found == "seed 1 of 'lcm' is the very generator of seed 0"
    untrained = [make("euler", seed=seed, training={"iterations": 0}) for seed in (0, 1)]
    assert problems(folder(tmp_path / "untrained", *untrained)) == []


def test_nothing_to_validate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no records"):
        validate(tmp_path)
    with pytest.raises(BenchError, match="no such folder"):
        validate(tmp_path / "nowhere")
