"""The Python that has VBench: one that the user prepared, or one that uv builds from what `worker.py` asks for.

VBench 0.1.5 needs numpy<2, transformers 4.33.2 and setuptools<81, so that it can't live beside today's diffusers. Its
environment is uv's own for that script: built once (about 6 GB, most of it torch), kept in uv's cache, and found again
in a tenth of a second. uv's own settings hold, among them ``UV_FIND_LINKS`` (a folder of wheels) and ``UV_CACHE_DIR``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2svd_bench.errors import BenchError

PYTHON_VARIABLE = "W2SVD_BENCH_VBENCH_PYTHON"  # what --vbench-python sets
WORKER = Path(__file__).with_name("worker.py")
_TAIL = 6  # lines of another program's last words that an error shows


def script_metadata() -> Mapping[str, Any]:
    """What `worker.py` says it needs, its inline script metadata (PEP 723)."""
    block = re.search(r"(?m)^# /// script$\n(?P<lines>(^#(| .*)$\n)+)^# ///$", WORKER.read_text("utf-8"))
    assert block is not None
    return tomllib.loads("".join(line[2:] for line in block["lines"].splitlines(keepends=True)))


def pins() -> dict[str, str]:
    """The exact versions that `worker.py` asks for, by package."""
    return dict(requirement.split("==") for requirement in script_metadata()["dependencies"])


def interpreter() -> Path:
    """The Python to run `worker.py` with; builds its environment if there is none yet, which takes minutes.

    Raises:
        BenchError: the Python that was named is none, there is no uv, or the environment can't be built.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    if chosen:
        return _prepared(chosen)
    uv = find_uv()
    # Offline first: what is there already needs no network, and must not fail for want of one.
    if subprocess.run([*uv, "sync", "--quiet", "--offline", "--script", WORKER], capture_output=True).returncode != 0:
        _build(uv)
    found = subprocess.run([*uv, "python", "find", "--offline", "--script", WORKER], capture_output=True, text=True)
    if found.returncode != 0:
        raise _cant_build(found.stderr)
    return Path(found.stdout.strip())


def deviations() -> dict[str, str]:
    """What the Python that the user named has in other versions than pinned, by package; uv's has nothing.

    Raises:
        BenchError: it is none, it lacks a package, or its vbench is another one.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    if not chosen:
        return {}
    python = _prepared(chosen)
    asked = subprocess.run([python, WORKER, "--versions"], capture_output=True, text=True, env=worker_environment())
    if asked.returncode != 0:
        raise BenchError(
            f"{python} can't run VBench's worker",
            last_words(asked.stderr),
            f"it needs Python {_python_version()} with vbench {pins()['vbench']}",
        )
    return deviating(json.loads(asked.stdout), python)


def deviating(versions: Mapping[str, str | None], python: Path) -> dict[str, str]:
    """Those of an environment's ``versions`` that are not the pinned ones, by package.

    Raises:
        BenchError: a package is missing, or its vbench is another one.
    """
    pinned = pins()
    cure = f"pip install vbench=={pinned['vbench']} 'setuptools<81' there, or name no Python and let uv build one"
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        raise BenchError(f"{python} can't run VBench", f"it lacks {', '.join(missing)}", cure)
    if versions["vbench"] != pinned["vbench"]:
        why = f"numbers of another version are not comparable: it has {versions['vbench']}, not {pinned['vbench']}"
        raise BenchError(f"{python} has another VBench", why, cure)
    return {name: str(version) for name, version in versions.items() if version != pinned[name]}


def worker_environment() -> dict[str, str]:
    """The environment variables of the worker: ours, but for what is meant for our own Python."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONUTF8": "1"}


def find_uv() -> list[str]:
    """How to call uv: the one on PATH, beside our own interpreter, or the module.

    Raises:
        BenchError: there is none.
    """
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))
    found = shutil.which("uv") or beside
    if found:
        return [found]
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    raise BenchError(
        "VBench needs uv, and there is none",
        "VBench runs in an environment of its own, which uv builds; uv is not on PATH nor beside this Python",
        f"pip install uv, or give a Python that has vbench {pins()['vbench']}: --vbench-python PATH",
    )


def last_words(text: str) -> str:
    """The end of what a program said, as one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_TAIL:]) or "it said nothing"


def _prepared(chosen: str) -> Path:
    path = Path(chosen).expanduser().absolute()  # not resolved: a link to a Python is what an environment is made of
    if path.is_dir():
        path = path / "bin" / "python"
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise BenchError(
            f"{chosen} is no Python for VBench",
            "there is no program of that name" if not path.is_file() else "it can't be run",
            f"name the interpreter of an environment with vbench {pins()['vbench']} (--vbench-python or "
            f"{PYTHON_VARIABLE}), or name none and let uv build one",
        )
    return path


def _python_version() -> str:
    wanted: str = script_metadata()["requires-python"]
    return wanted.removeprefix("==").removesuffix(".*")


def _build(uv: list[str]) -> None:
    print("building VBench's environment with uv: about 6 GB, once", file=sys.stderr, flush=True)
    said: list[str] = []
    with subprocess.Popen([*uv, "sync", "--script", WORKER], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        raise _cant_build("".join(said))


def _cant_build(said: str) -> BenchError:
    return BenchError(
        "VBench's environment can't be built",
        f"uv says: {last_words(said)}",
        f"it needs Python {_python_version()} and the network once; without one, "
        f"set UV_FIND_LINKS to a folder with the wheels, or prepare an environment elsewhere (pip install "
        f"{' '.join(script_metadata()['dependencies'])}) and give its Python: --vbench-python PATH",
    )
