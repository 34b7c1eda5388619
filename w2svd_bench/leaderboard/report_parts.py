"""What the report's template is given: tables with links to their proofs, proofs, claims and clips."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from w2svd_bench.errors import BenchError
from w2svd_bench.leaderboard.board import Leaderboard
from w2svd_bench.leaderboard.cited import is_outdated
from w2svd_bench.leaderboard.render import to_latex, to_markdown
from w2svd_bench.leaderboard.rows import Mean, Row
from w2svd_bench.leaderboard.table import DASH, Column, Entry, Table
from w2svd_bench.record import Record, Score, canonical_hash

CLAIMS_FILE, CLIPS_FOLDER, CLIPS_INDEX = "claims.json", "clips", "index.json"
Parsed = TypeVar("Parsed", bound=pydantic.BaseModel)
_TYPES = {".webp": "image/webp", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class Number:
    """An entry of a table as the page shows it.

    Attributes:
        sort: what the column is ordered by: the number that is shown, or the word; "" where there is none.
        proof: the id of what says where the number comes from; "" for words and numbers of other sources.
        metric: the id of what says how it was measured; "" for what is no score.
        hint: the proof in one line.
    """

    entry: Entry
    sort: str
    proof: str = ""
    metric: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Measure:
    """How a metric was measured, which is the same for all records of a backbone."""

    id: str
    name: str
    direction: str
    version: int
    measured_by: str
    weights_sha256: str | None
    reference: str | None


@dataclass(frozen=True)
class BoardTable:
    """A leaderboard of one backbone; ``references`` are its noise floors, which stay on top however it is sorted."""

    table: Table
    columns: tuple[Column, ...]
    references: tuple[tuple[Number, ...], ...]
    rows: tuple[tuple[Number, ...], ...]
    measures: tuple[Measure, ...]
    markdown: str
    latex: str


@dataclass(frozen=True)
class RecordProof:
    """One record, its sha256 (of its canonical JSON), and what of its provenance stands in the page."""

    record: Record
    sha256: str
    commit: str
    dirty: bool
    packages: str
    config: str

    @property
    def about(self) -> dict[str, Any]:
        """Where and when it was made, without what stands elsewhere."""
        apart = ("git", "packages", "earlier")
        return {key: value for key, value in self.record.provenance.items() if key not in apart}


@dataclass(frozen=True)
class Proof:
    """What a row of a table is made of: the records of its seeds."""

    id: str
    row: Row
    records: tuple[RecordProof, ...]


class _Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")


class Atom(_Loose):
    """One question that a claim is made of, answered in words; ``p_holm`` is corrected for all of them."""

    asks: str
    verdict: str
    why: str
    remarks: list[str] = []
    files: list[str] = []
    numbers: dict[str, Any] | None = None
    p_holm: float | None = None


class Claim(_Loose):
    """A sentence of a public source, and whether the records bear it out."""

    id: str
    says: str
    source: str = ""
    backbone: str = ""
    verdict: str
    atoms: list[Atom] = []

    @property
    def kind(self) -> str:
        """For the style: holds, fails or other, whatever else the verdict says."""
        first = self.verdict.split()[0] if self.verdict.split() else ""
        return first if first in ("holds", "fails") else "other"


class Claims(_Loose):
    """What `w2svd-bench claims --json` prints, as far as the page shows it."""

    judged: list[Claim]
    rule: str = ""
    told: list[str] = []


class Clip(_Loose):
    """One clip of the index; a strip (all frames below one another) or a film, by its ending."""

    label: str
    seed: int | None
    steps: int
    prompt: int
    checkpoint_sha256: str | None
    file: str
    frames: int = pydantic.Field(ge=1)
    height: int = pydantic.Field(ge=1)
    width: int = pydantic.Field(ge=1)
    uri: str = ""

    @property
    def is_strip(self) -> bool:
        return self.file.endswith(".webp")


class Clips(_Loose):
    """The clips of a folder of results."""

    fps: float = pydantic.Field(gt=0)
    prompts: list[str]
    clips: list[Clip]

    def of_board(self, board: Leaderboard) -> Clips:
        """Those of weights that the board's records are of, in the order of its rows, and real clips."""
        order = list(dict.fromkeys(row.label for row in board.rows))
        known = {(one.cell.label, one.cell.seed, one.cell.steps, one.cell.checkpoint_sha256) for one in board.records}
        real = [clip for clip in self.clips if clip.seed is None]
        ours = [one for one in self.clips if (one.label, one.seed, one.steps, one.checkpoint_sha256) in known]
        ours.sort(key=lambda clip: (order.index(clip.label), clip.seed or 0))
        return self.model_copy(update={"clips": [*real, *ours]})

    @property
    def steps(self) -> list[int]:
        return sorted({clip.steps for clip in self.clips if clip.seed is not None})

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(label, seed) in the order of the index."""
        return list(dict.fromkeys((clip.label, clip.seed) for clip in self.clips if clip.seed is not None))

    @property
    def methods(self) -> dict[str, list[int]]:
        """The seeds of each label."""
        found: dict[str, list[int]] = {}
        for label, seed in self.runs:
            found.setdefault(label, []).append(seed)
        return found

    def real(self, prompt: int) -> Clip | None:
        return next((clip for clip in self.clips if clip.seed is None and clip.prompt == prompt), None)

    def of(self, label: str, seed: int, steps: int, prompt: int) -> Clip | None:
        wanted = (label, seed, steps, prompt)
        return next((one for one in self.clips if (one.label, one.seed, one.steps, one.prompt) == wanted), None)


def board_tables(board: Leaderboard) -> list[BoardTable]:
    """All tables, each entry with a link to what proves it."""
    by_row = {(proof.row.backbone, proof.row.label, proof.row.steps): proof for proof in proofs(board)}
    found = []
    for table in board.tables():
        rows = [row for row in board.rows if row.backbone == table.backbone]
        measures = _measures(table.backbone, board.records)
        ids = {measure.name: measure.id for measure in measures}
        lines = []
        for row, entries in zip(rows, table.rows, strict=True):
            proof = by_row[row.backbone, row.label, row.steps]
            cells = zip(table.columns, entries, strict=True)
            lines.append(tuple(_number(column, entry, proof, ids) for column, entry in cells))
        references, others = tuple(lines[: table.num_reference]), tuple(lines[table.num_reference :])
        texts = to_markdown(table), to_latex(table)
        found.append(BoardTable(table, table.columns, references, others, measures, *texts))
    return found


def proofs(board: Leaderboard) -> list[Proof]:
    """One for each row, in order."""
    found = []
    for i, row in enumerate(board.rows):
        wanted = (row.backbone, row.label, row.steps)
        ours = [one for one in board.records if (one.cell.backbone, one.cell.label, one.cell.steps) == wanted]
        found.append(Proof(f"proof-{i}", row, tuple(_proof(one) for one in ours)))
    return found


def read_claims(folder: Path) -> Claims | None:
    """``claims.json``; None where there is none. Raises `BenchError` if it is damaged."""
    path = folder / CLAIMS_FILE
    return _parsed(path, Claims, "w2svd-bench claims FOLDER --write") if path.is_file() else None


def outdated(claims: Claims, records: Sequence[Record]) -> list[Claim]:
    """The claims that were judged by records which are not among these any more, or say something else by now."""
    found = []
    for claim in claims.judged:
        ours = [one for one in records if claim.backbone in ("", one.cell.backbone)]
        if any(is_outdated(atom, ours) for atom in claim.atoms):
            found.append(claim)
    return found


def read_clips(folder: Path) -> Clips | None:
    """The clips that ``clips/index.json`` names, each with its data: URI; None where there are none.

    Raises:
        BenchError: the index is damaged, or a clip is missing or of another kind.
    """
    path = folder / CLIPS_FOLDER / CLIPS_INDEX
    if not path.is_file():
        return None
    index = _parsed(path, Clips, "w2svd-bench report --runs DIR --clips")
    return index.model_copy(update={"clips": [_with_data(path.parent, clip) for clip in index.clips]})


def _with_data(folder: Path, clip: Clip) -> Clip:
    path = folder / clip.file
    kind = _TYPES.get(path.suffix)
    if kind is None or Path(clip.file).name != clip.file or not path.is_file():
        raise BenchError(
            f"the clip {path} can't be shown",
            "the index names it, and it is no WebP or mp4 file beside the index",
            "sample them again: w2svd-bench report --runs DIR --clips",
        )
    return clip.model_copy(update={"uri": f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"})


def _parsed(path: Path, model: type[Parsed], command: str) -> Parsed:
    try:
        return model.model_validate(json.loads(path.read_text("utf-8")))
    except ValueError as error:  # of JSON, of UTF-8 and of pydantic alike
        raise BenchError(f"{path} can't be read", str(error), f"remove it, or make it again: {command}") from error


def _number(column: Column, entry: Entry, proof: Proof, measures: dict[str, str]) -> Number:
    if entry.text == DASH:
        return Number(entry, "")
    if column.is_text:
        return Number(entry, entry.text)
    sort = entry.text.replace(",", "")
    if column.part == "score" and column.title not in measures and column.title not in proof.row.diagnostics:
        return Number(entry, sort)  # of a public source, which its footnote names
    return Number(entry, sort, proof.id, measures.get(column.title, ""), _hint(column.title, proof))


def _hint(title: str, proof: Proof) -> str:
    """The proof of a number in one line, for those who only point at it."""
    row, records = proof.row, proof.records
    parts = [row.label if row.is_reference else f"{row.label}, {row.steps} steps"]
    score = row.scores.get(title)
    if isinstance(score, Mean):
        parts.append(f"{title} of n = {' and '.join(map(str, score.num_clips))} clips")
        parts += score.flags
    parts.append(f"seed {', '.join(map(str, row.seeds))}")
    parts.append(f"eval set {records[0].record.cell.eval_set}")
    shas = dict.fromkeys(one.record.cell.checkpoint_sha256[:12] for one in records if one.record.cell.checkpoint_sha256)
    commits = dict.fromkeys(one.commit[:12] + (" (changed)" if one.dirty else "") for one in records if one.commit)
    dates = sorted(
        {str(one.record.provenance["time_utc"])[:10] for one in records if "time_utc" in one.record.provenance}
    )
    for name, values in (("weights", shas), ("commit", commits), ("made", dates)):
        if values:
            parts.append(f"{name} {', '.join(values)}")
    return "; ".join(parts)


def _measures(backbone: str, records: Iterable[Record]) -> tuple[Measure, ...]:
    found: dict[str, Measure] = {}
    for one in records:
        for name, score in one.metrics.items() if one.cell.backbone == backbone else ():
            if isinstance(score, Score) and name not in found:
                about = (score.direction, score.version, score.id, score.weights_sha256, score.reference)
                found[name] = Measure(f"measure-{canonical_hash([backbone, name])[:10]}", name, *about)
    return tuple(found[name] for name in sorted(found))


def _proof(one: Record) -> RecordProof:
    git = one.provenance.get("git") or {}
    packages = one.provenance.get("packages") or {}
    return RecordProof(
        record=one,
        sha256=canonical_hash(one),
        commit=str(git.get("commit", "")),
        dirty=bool(git.get("dirty")),
        packages=", ".join(f"{name} {version}" for name, version in sorted(packages.items())),
        config=json.dumps(one.config, indent=1, sort_keys=True, ensure_ascii=False),
    )
