"""A run: the folder that training leaves and evaluation reads.

``runs/<backbone>/<label>/seed<k>/`` holds ``run.json`` (what it is, how far it came, what it cost), ``config.yaml``
(the resolved recipe), ``log.jsonl``, ``curves.jsonl`` where it was validated on the way, ``checkpoint/`` and, when
done, ``generator/`` in diffusers format. ``lock`` is held by who trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
import yaml

from w2svd_bench.errors import BenchError
from w2svd_bench.world import World

FILE, GENERATOR_FOLDER, LOCK = "run.json", "generator", "lock"
BEFORE = "before"  # in `Run.code`


@dataclass
class Run:
    """What a run folder says about itself.

    Attributes:
        label: what tables call it; the method's name unless another was given.
        plugin: the file of a method that came with ``--plugin``, so that evaluation can load it again; else None.
        config: the resolved recipe.
        backbone_sha256: of the teacher, codec and text encoders that the run was trained with.
        code: the version and commit of this package that trained it, as `record.code` says them, and the method's own
            as `registry.Registry.code` does; where it was gone on with by other code, that of the last process, and
            under "before" what trained it until then, oldest first.
        data: what it was trained on, by name.
        iterations, updates, network_evaluations, seconds, peak_memory_bytes: what training cost.
        device: what it was trained on, as `device_name` calls it; over several processes of a GPU each, "8 x" in front.
        weights_sha256: of the exported generator (the teacher's own for a method without training).
        validation: what ``curves.jsonl`` was measured with; empty for a run that was not validated. It is no part of
            the recipe, for it changes nothing that is learned.
        health: how a run with a fake fared (`health.Health`); empty for others.
    """

    method: str
    backbone: str
    label: str
    seed: int
    config: dict[str, Any]
    backbone_sha256: str
    plugin: str | None = None
    code: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    finished: bool = False
    iterations: int = 0
    updates: dict[str, int] = field(default_factory=dict)
    network_evaluations: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    device: str = ""
    weights_sha256: str = ""
    validation: dict[str, Any] = field(default_factory=dict)
    health: dict[str, float | int | None] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes ``run.json`` (atomically) and ``config.yaml``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))
        partial = folder / (FILE + ".tmp")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        partial.replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Reads a run folder; raises `BenchError` if it is none, or one that a newer version of this package left."""
        try:
            data = json.loads((folder / FILE).read_text())
            newer = sorted(data.keys() - cls.__dataclass_fields__.keys()) if isinstance(data, dict) else []
            if newer:
                raise BenchError(
                    f"{folder} can't be read",
                    f"its {FILE} holds what this version of w2svd-bench doesn't know: {', '.join(newer)}",
                    "read it with the version that wrote it, or train it again in another folder (--out DIR)",
                )
            return cls(**data)
        except (OSError, ValueError, TypeError) as error:
            raise BenchError(
                f"{folder} is not a run", f"its {FILE} can't be read: {error}", "train it first: w2svd-bench train"
            ) from error


@contextmanager
def alone(folder: Path, world: World) -> Iterator[None]:
    """Keeps a run folder for the processes of ``world``: each of two trainings would remove the other's checkpoints.

    Raises:
        BenchError: somebody else trains there.
    """
    lock = filelock.FileLock(folder / LOCK)

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise BenchError(
                f"another process trains in {folder}",
                f"it holds {folder / LOCK}, and two would remove each other's checkpoints",
                "wait until it is done (or end it), or give this run another name with --label NAME",
            ) from None

    world.agree(take)
    try:
        yield
    finally:
        lock.release()  # nothing where it was not taken


def run_folder(root: Path, backbone: str, label: str, seed: int) -> Path:
    """Where a run lives below the runs folder."""
    return root / backbone / label / f"seed{seed}"


def find_runs(root: Path, backbone: str) -> Iterator[Path]:
    """The run folders of a backbone, sorted."""
    yield from sorted(path.parent for path in (root / backbone).glob(f"*/seed*/{FILE}"))
