"""report.html: whole, closed to the network, every text escaped, every number with its proof; and it works."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from w2svd_bench.cli import app as main
from w2svd_bench.cli import reporting
from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.curves import read_curves
from w2svd_bench.leaderboard.render import to_latex, to_markdown
from w2svd_bench.leaderboard.report import render, write_report
from w2svd_bench.leaderboard.report_parts import proofs, read_claims, read_clips
from w2svd_bench.record import Record, canonical_hash, write_record

from records import grid, make, real

HOSTILE = '<script>alert("1")</script>&\'x'
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "W2SVD_BENCH_BROWSER"
VOID = {"meta", "link", "br", "img", "input"}


PROVENANCE = {
    "git": {"commit": "c0ffee" * 6 + "c0ff", "dirty": True},
    "packages": {"torch": "2.15.0"},
    "time_utc": "2026-11-23T02:40:36+00:00",
    "device": "cpu",
}
ATOM = {"asks": f"w2svd beats {HOSTILE}", "verdict": "holds", "why": "-1.5 (-2 to -1)", "remarks": ["few clips"]}
CLAIMS = {
    "rule": "A claim holds if all atoms do.",
    "judged": [
        {
            "id": "four-steps",
            "says": f"better than {HOSTILE}",
            "source": "abstract",
            "backbone": "mini",
            "verdict": "holds by the plan",
            "atoms": [ATOM | {"p_holm": 0.012, "files": ["a.json", "b.json"]}],
        },
        {"id": "memory", "says": "less memory", "verdict": "not measured", "atoms": []},
    ],
}


class Page(HTMLParser):
    """A page that is well-formed: raises for a tag that closes what is not open, or never closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[tuple[str, str]] = []  # (the tag that they stand in, the text)
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} twice"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def records() -> list[Record]:
    found = [one.model_copy(update={"provenance": PROVENANCE}) for one in grid()]
    return [*found, make(HOSTILE, 4, fid=9.5, cost=10_000)]


def write_clips(folder: Path, cell: Record, sha256: str = "ab" * 32) -> None:
    """A strip of a run and one of the real clip, 3 frames of 8x8, as the index names them."""
    clips = folder / "clips"
    clips.mkdir()
    common = {"prompt": 0, "frames": 3, "height": 8, "width": 8}
    entries = [{"label": "real", "seed": None, "steps": 0, "checkpoint_sha256": None, "file": "real.webp"}]
    entries.append(
        {"label": cell.cell.label, "seed": 0, "steps": cell.cell.steps, "checkpoint_sha256": sha256, "file": "it.webp"}
    )
    for entry in entries:
        Image.new("RGB", (8, 24), "red").save(clips / str(entry["file"]))
        entry.update(common)
    (clips / "index.json").write_text(json.dumps({"fps": 12.0, "prompts": [HOSTILE], "clips": entries}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    (folder / "claims.json").write_text(json.dumps(CLAIMS))
    write_clips(folder, records()[-1])
    write_report(records(), folder)
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [one["href"] for one in page.of("a")]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    for name in ("data-measure", "data-copy", "aria-labelledby"):
        used = {attributes[name] for _, attributes in page.tags if name in attributes}
        assert used and used <= set(ids)


def test_nothing_comes_from_elsewhere(page: Page, text: str) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text)
    assert "@import" not in text
    assert all(used.startswith("#") for used in re.findall(r"url\(([^)]+)\)", text))
    (policy,) = [one["content"] for one in page.of("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "connect-src" not in policy and "http" not in policy


def test_every_text_is_escaped(page: Page, text: str) -> None:
    assert "<script>alert" not in text
    assert len(page.of("script")) == 1
    found = [words for tag, words in page.words if HOSTILE in words and tag != "script"]
    # Table, proof, plot, claim and its atom, prompt of the clips, Markdown and LaTeX
    assert len(found) >= 6
    assert html.escape(HOSTILE) in text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def test_every_record_is_proved(text: str) -> None:
    for record in records():
        assert canonical_hash(record) in text
        assert html.escape(record.file_name) in text
        assert record.eval_set.prompts_sha256 in text
    for part in ("c0ffee" * 6, "with changes that were not committed", "torch 2.15.0", "02:40:36", "frechet of mini"):
        assert part in text


def test_every_number_leads_to_its_records(page: Page) -> None:
    board = Leaderboard.from_records(records())
    links = [one for one in page.of("a") if one.get("class") == "number"]
    numbers = [entry for row in board.table().rows for entry in row[1:] if entry.text != "—"]
    assert len(links) == len(numbers)
    assert {link["href"] for link in links} == {f"#{proof.id}" for proof in proofs(board)}
    for link in links:
        assert "eval set test-512" in link["title"]
    (seeds,) = [proof for proof in proofs(board) if (proof.row.label, proof.row.steps) == ("lcm", 4)]
    assert [one.record.cell.seed for one in seeds.records] == [0, 1]
    hints = [link["title"] for link in links if link["href"] == f"#{seeds.id}" and "data-measure" in link]
    assert len(hints) == 1
    for part in ("fid[mini] of n = 512 clips", "seed 0, 1", "weights abababababab", "commit c0ffeec0ffee (changed)"):
        assert part in hints[0]


def test_tables_can_be_sorted_and_copied(page: Page, text: str) -> None:
    table = Leaderboard.from_records(records()).table()
    heads = [one for one in page.of("th") if one.get("scope") == "col" and "data-better" in one]
    assert [one["data-better"] for one in heads] == [column.direction for column in table.columns]
    sorts = [one["data-sort"] for one in page.of("td") if "data-sort" in one]
    assert {"9000", "30.00", ""} <= set(sorts)
    assert not any("," in value for value in sorts), "a number that a script can't read"
    for told in (to_markdown(table), to_latex(table)):
        assert told in "".join(words for tag, words in page.words if tag == "pre")


def test_tables_can_be_read_aloud(page: Page) -> None:
    assert len(page.of("table")) == sum(tag == "caption" for tag, _ in page.tags)
    assert all(one.get("scope") in ("col", "row", "rowgroup") for one in page.of("th"))
    assert all(one.get("alt") for one in page.of("img"))
    assert all(one.get("aria-label") for one in page.of("div") if one.get("role") in ("region", "img"))
    assert page.of("html") == [{"lang": "en"}]


def test_reference_rows_stand_apart(text: str) -> None:
    references = text.split('<tbody class="references">')[1].split("</tbody>")[0]
    assert references.count("<tr>") == 1
    assert "real (noise floor)" in references


def test_claims_are_shown(page: Page, text: str) -> None:
    assert [one["class"] for one in page.of("span") if one.get("class", "").startswith("verdict")] == [
        "verdict holds",
        "verdict other",
    ]
    for part in ("-1.5 (-2 to -1); few clips", "holds by the plan", "0.012", "a.json, b.json", "if all atoms do"):
        assert part in text


def test_clips_of_other_weights_are_left_out(tmp_path: Path, page: Page) -> None:
    assert [one["alt"] for one in page.of("img")] == [f"the real clip: {HOSTILE}", f"{HOSTILE}, 4 steps: {HOSTILE}"]
    write_clips(tmp_path, records()[-1], sha256="cd" * 32)
    stale = render(Leaderboard.from_records(records()), clips=read_clips(tmp_path))
    assert "Left out: 1 clips whose weights are not those of a record." in stale
    assert not Page(stale).of("img")


def test_the_same_folder_gives_the_same_bytes(folder: Path, text: str) -> None:
    board = Leaderboard.from_records(reversed(records()))
    claims, clips = read_claims(folder), read_clips(folder)
    assert render(board, claims=claims, clips=clips) == render(
        Leaderboard.from_records(records()), claims=claims, clips=clips
    )
    assert str(folder) not in text


def test_a_bare_folder_says_what_is_missing() -> None:
    text = render(Leaderboard.from_records(records()))
    Page(text)
    for part in ("No claims were judged", "No clips were sampled", "There is nothing to plot"):
        assert part in text


@pytest.mark.parametrize("name", ["claims.json", "clips/index.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"judged": [{}], "clips": [{}]}'])
def test_damaged_files_are_named(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(BenchError) as error:
        write_report(records(), tmp_path)
    assert str(path) in error.value.what
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("file", ["it.webp", "../clips/it.webp", "index.json"])
def test_a_clip_that_is_none_is_named(file: str, tmp_path: Path) -> None:
    write_clips(tmp_path, records()[-1])
    index = tmp_path / "clips" / "index.json"
    data = json.loads(index.read_text())
    data["clips"][1]["file"] = file
    index.write_text(json.dumps(data))
    (tmp_path / "clips" / "it.webp").unlink()
    with pytest.raises(BenchError, match="can't be shown"):
        read_clips(tmp_path)


def run_cli(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(reporting.report)
    return CliRunner().invoke(app, list(arguments))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for record in records():
        write_record(record, tmp_path / "results" / "records")
    for label in ("lcm", "not-evaluated"):
        run = tmp_path / "runs" / "mini" / label / "seed0"
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"backbone": "mini", "label": label, "seed": 0}))
        (run / "curves.jsonl").write_text('{"iteration": 0, "seconds": 0, "metrics": {"fid[mini]@4": 3.5}}\n')
    monkeypatch.setattr(reporting, "LARGE_BYTES", 10)
    result = run_cli(str(tmp_path / "results"), "--runs", str(tmp_path / "runs"))
    assert result.exit_code == 0, result.output
    assert re.search(r"report\.html \(0\.\d MB\) and 6 plots", result.output)
    assert "is larger than" in result.output
    assert [one.label for one in read_curves(tmp_path / "results")] == ["lcm"]


def test_the_command_refuses(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    assert "holds no records" in str(run_cli(str(tmp_path)).exception)
    write_record(records()[0], tmp_path / "records")
    assert "--clips needs --runs" in str(run_cli(str(tmp_path), "--clips").exception)
    assert "runs can't be read" in str(run_cli(str(tmp_path), "--runs", str(tmp_path / "none")).exception)


@pytest.mark.parametrize(("height", "width", "ending"), [(48, 48, "webp"), (90, 260, "mp4")])
def test_real_clips_are_kept(height: int, width: int, ending: str, tmp_path: Path) -> None:
    """Small ones as a strip of all frames, larger ones as a film that a browser can play."""
    import imageio.v3 as iio

    from w2svd_bench.evaluate.showcase import LARGE, Showcase

    ramp_F111 = np.linspace(40, 200, 5).astype(np.uint8)[:, None, None, None]
    frames_BFHWC = np.broadcast_to(ramp_F111, (2, 5, height, width, 3))
    size = SimpleNamespace(frames=5, height=height, width=width, fps=12.0)
    eval_set: Any = SimpleNamespace(describe=lambda: size, prompts=["a", "b"], real=lambda shown: frames_BFHWC)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "old.webp").write_bytes(b"old")
    Showcase(eval_set, tmp_path, lambda *told: None).write([])
    names = [f"real-0.{ending}", f"real-1.{ending}"]
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["index.json", *names]
    found = read_clips(tmp_path)
    assert found is not None and (found.fps, found.prompts, found.methods) == (12.0, ["a", "b"], {})
    clip = found.real(1)
    assert clip is not None and clip.file == names[1] and clip.frames == 5
    kept = iio.imread(tmp_path / "clips" / names[1])
    if ending == "webp":
        assert clip.uri.startswith("data:image/webp;base64,")
        kept = kept.reshape(5, height, width, 3)
    else:
        assert clip.uri.startswith("data:video/mp4;base64,")
        assert (clip.width, clip.height) == (LARGE, 88) == kept.shape[2:0:-1]
    assert np.abs(kept.mean(axis=(1, 2, 3)) - ramp_F111.ravel()).max() < 4


@pytest.mark.slow
def test_clips_of_runs(tmp_path: Path) -> None:
    """Of an untrained run at the steps that were evaluated; runs of other weights are left out, and said to be."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    assert main.run(["train", "--method", "euler", "--out", str(runs)]) == 0
    saved = json.loads((runs / "mini" / "euler" / "seed0" / "run.json").read_text())
    (runs / "mini" / "other" / "seed0").mkdir(parents=True)
    (runs / "mini" / "other" / "seed0" / "run.json").write_text(json.dumps(saved | {"label": "other"}))
    weights = {"checkpoint_sha256": saved["weights_sha256"]}
    write_record(make("euler", 1, fid=30.0, cell=weights), results / "records")
    result = run_cli(str(results), "--runs", str(runs), "--clips")
    assert result.exit_code == 0, result.exception
    assert re.search(r"other.seed0 is left out, for no record is of its weights", result.output)
    assert "no run below" in result.output  # left curves
    clips = read_clips(results)
    assert clips is not None and len(clips.prompts) == 4
    assert [(clip.label, clip.steps) for clip in clips.clips] == [("real", 0)] * 4 + [("euler", 1)] * 4
    assert len({clip.uri for clip in clips.clips}) == 8
    assert len(Page((results / "report.html").read_text("utf-8")).of("img")) == 8


def find_browser() -> str:
    named = os.environ.get(VARIABLE)
    if named:
        assert shutil.which(named), f"{VARIABLE} names {named}, which is no program"
        return named
    found = next((name for name in BROWSERS if shutil.which(name)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, and {VARIABLE} names none")
    return found


WATCH = """<script>const troubles = [];
addEventListener("error", (event) => troubles.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => troubles.push(event.blockedURI));
Object.defineProperty(navigator, "clipboard", {value: {writeText: async (text) => { window.copied = text; }}});
</script>"""
PLAY = """<script>addEventListener("load", async () => {
  const table = document.querySelector("table.sortable"), head = table.tHead.rows[0].cells;
  const column = [...head].findIndex((one) => one.textContent.startsWith("fid"));
  const order = () => [...table.tBodies[1].rows].map((row) => row.cells[column].dataset.sort);
  const seen = {orders: [order()], sorts: [], references: []};
  for (let i = 0; i < 3; i++) {
    head[column].querySelector("button").click();
    seen.orders.push(order());
    seen.sorts.push(head[column].getAttribute("aria-sort"));
    seen.references.push(table.tBodies[0].rows.length);
  }
  seen.copies = [];
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.click();
    await new Promise((done) => setTimeout(done, 20));
    seen.copies.push(window.copied);
  }
  document.querySelector("a.number[data-measure]").click();
  seen.dialog = document.getElementById("dialog").open;
  seen.told = document.getElementById("dialog").textContent;
  seen.width = [document.documentElement.scrollWidth, innerWidth];
  const films = () => document.getAnimations().filter((one) => one.animationName === "film");
  seen.films = [films().map((one) => one.playState)];
  document.getElementById("motion").click();
  seen.films.push(films().map((one) => one.playState));
  seen.requests = performance.getEntriesByType("resource").map((one) => one.name);
  seen.requests = seen.requests.filter((one) => !one.startsWith("data:"));
  seen.troubles = troubles;
  const outcome = document.createElement("pre");
  outcome.id = "outcome";
  outcome.textContent = JSON.stringify(seen);
  document.body.append(outcome);
});</script>"""


@pytest.mark.slow
def test_it_works_in_a_browser(text: str, tmp_path: Path) -> None:
    """Sorting, copying, proofs and clips, by a script in the page itself; no error, no request, nothing too wide."""
    browser = find_browser()
    path = tmp_path / "report.html"
    path.write_text(text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PLAY}</body>"), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=500,900", "--virtual-time-budget=4000"]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    first, ascending, descending, last = seen["orders"]
    numbers = sorted((value for value in first if value), key=float)
    assert first == last != ascending
    assert ascending == [*numbers, ""]
    assert [float(value) for value in descending[:-1]] == [float(value) for value in reversed(numbers)]
    assert descending[-1] == ""
    assert seen["sorts"] == ["ascending", "descending", None]
    assert seen["references"] == [1, 1, 1]
    table = Leaderboard.from_records(records()).table()
    assert seen["copies"] == [to_markdown(table), to_latex(table)]
    assert seen["dialog"] and canonical_hash(real().model_copy(update={"provenance": PROVENANCE})) in seen["told"]
    assert seen["width"][0] <= seen["width"][1]
    assert seen["films"] == [["running"] * 2, ["paused"] * 2]
    assert seen["requests"] == [] and seen["troubles"] == []
    printed = tmp_path / "report.pdf"
    subprocess.run([*command, f"--print-to-pdf={printed}", path.as_uri()], capture_output=True, timeout=120, check=True)
    assert printed.read_bytes().startswith(b"%PDF")
