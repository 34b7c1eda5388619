"""The other end of `worker.py`: starts it, asks it, and says what went wrong when it does not answer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.vbench.environment import PYTHON_VARIABLE, last_words, worker_environment

PROTOCOL = 1  # of worker.py
_GRACE_SECONDS = 10.0


class Worker:
    """A running worker; it answers one request after the other.

    Args:
        command: what starts it; the folder for its files is added as the last argument.

    Attributes:
        hello: its first words, with ``versions``, the packages of its environment.

    Raises:
        BenchError: it did not start.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._folder = TemporaryDirectory(prefix="w2svd-bench-vbench-")
        folder = Path(self._folder.name)
        self._log = (folder / "log.txt").open("w+b")
        work = folder / "work"
        work.mkdir()
        try:
            self._process = subprocess.Popen(
                [*command, work],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                encoding="utf-8",
                env=worker_environment(),
            )
        except OSError as error:
            self._discard()
            raise BenchError(
                f"VBench's worker can't be started: {command[0]}",
                str(error),
                f"check the Python that {PYTHON_VARIABLE} names, or unset it and let uv build one",
            ) from error
        try:
            self.hello = self._hear()
            if self.hello.get("hello") != PROTOCOL:
                raise self._garbled(json.dumps(self.hello))
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
        """The result of a request (`worker.answer` says what both hold); the ``result`` file is our affair.

        Raises:
            BenchError: the worker can't score anything, ended, or talks nonsense. After the last two it is closed.
        """
        folder = Path(self._folder.name)
        question, answer = folder / "request.json", folder / "result.json"
        question.write_text(json.dumps({**request, "result": str(answer)}, allow_nan=False), "utf-8")
        try:
            self._say(str(question))
            while "done" not in (message := self._hear()):
                if "failed" in message:
                    break
                if "progress" not in message:
                    raise self._garbled(json.dumps(message))
                progress(*message["progress"])
        except BaseException:  # an interrupt, too: nobody would hear the rest of the answer
            self.close()
            raise
        if "failed" in message:
            raise BenchError(
                "VBench can't score these clips",
                str(message["failed"]),
                "if weights can't be loaded, check them: w2svd-bench weights check; if memory is short, score fewer "
                "frames or smaller ones",
            )
        result: dict[str, Any] = json.loads(answer.read_text("utf-8"))
        return result

    def close(self) -> None:
        """Ends it and removes its files; more than once is fine."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._discard()

    def _discard(self) -> None:
        self._log.close()
        self._folder.cleanup()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        try:
            message = json.loads(line)
        except ValueError as error:
            raise self._garbled(line) from error
        if not isinstance(message, dict):
            raise self._garbled(line)
        return message

    def _ended(self) -> BenchError:
        try:
            status = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            what = "VBench's worker has stopped talking"
        else:
            what = (
                f"VBench's worker was killed by signal {-status}" if status < 0 else f"VBench's worker ended ({status})"
            )
        self._log.flush()
        said = Path(self._log.name).read_text("utf-8", errors="replace")
        return BenchError(
            what,
            f"its last words: {last_words(said)}",
            "run the same command again, it goes on where it was; signal 9 means as a rule that memory ran out",
        )

    def _garbled(self, line: str) -> BenchError:
        return BenchError(
            "VBench's worker said what nobody understands",
            f"it said {line.strip()[:200]!r}",
            "reinstall w2svd-bench: worker and program are of two versions, or a library writes where it must not",
        )
