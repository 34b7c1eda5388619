"""What the integration tests share: one cache a session, and the command line run in this process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# A training of seconds: the same code as in earnest, on 32 clips.
TINY = ("training.iterations=2", "training.pool_clips=32", "training.batch_size=2", "training.log_every=1")


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(session_folder: Path) -> Iterator[Path]:
    """The cache of latents and features lies in the session's folder: made once, and nothing of the user's is read."""
    folder = session_folder / "w2svd-bench-cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("W2SVD_BENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def reference(cache: Path) -> None:
    """Features of the 2,048 reference clips are in the cache; of several workers, one makes them and others wait."""
    from w2svd_bench.backbones.base import Backbone
    from w2svd_bench.evaluate.evalset import PortraitSet
    from w2svd_bench.evaluate.references import real_reference
    from w2svd_bench.metrics.diagnostics import Reader
    from w2svd_bench.metrics.mini import MiniFid, MiniFvd

    with (cache / "reference.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        metrics = [MiniFid(), MiniFvd()]
        real_reference(PortraitSet(Backbone.load("mini").side), metrics, Reader("cpu"), lambda done, total: None)


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams, with the line breaks of the terminal taken out."""
        return " ".join((self.out + " " + self.err).split())


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``w2svd-bench`` with the given arguments in this process."""

    def call(*arguments: str | Path) -> Outcome:
        from w2svd_bench.cli.app import run

        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture
def refused(cli: Cli) -> Callable[..., Outcome]:
    """Runs a command that has to fail as an error that a user can mend: what, why, cure, and no traceback."""

    def call(*arguments: str | Path, status: int = 1) -> Outcome:
        outcome = cli(*arguments)
        assert outcome.status == status, outcome
        assert "Traceback" not in outcome.text
        for part in ("error:", "why:", "cure:"):
            assert part in outcome.err, outcome
        return outcome

    return call


@pytest.fixture(scope="session")
def tiny() -> Callable[..., list[str]]:
    """The arguments that make a training one of seconds, with more overrides if need be."""

    def arguments(*overrides: str) -> list[str]:
        return ["--device", "cpu", "--set", *TINY, *overrides]

    return arguments
