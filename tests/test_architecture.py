"""The import directions of the project, read from its sources: nothing here imports what it checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "w2svd_bench"

# A module imports its own row and the rows above it, never a row below. A name stands for the module or for the whole
# package below w2svd_bench; every module must stand in the table.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"", "types", "errors", "flow", "folders", "record", "uncertainty", "rng", "world"}),
    frozenset({"losses", "samplers", "config", "registry", "backbones", "metrics"}),
    frozenset({"method", "matching", "ground_truth", "data"}),
    frozenset({"train", "evaluate", "leaderboard", "plan", "baselines", "methods"}),
    frozenset({"build_mini"}),
    frozenset({"cli", "__main__"}),
)
PLUGINS = frozenset({"baselines", "methods"})
TORCH_FREE = frozenset({"errors", "folders", "record", "uncertainty", "config", "registry", "leaderboard"})
ONLY_IN = {"diffusers": frozenset({"backbones"}), "vbench": frozenset[str]()}
# The registry names the base class of what it hands out, for type checkers; it resolves it when it is asked.
FOR_TYPES_ONLY = frozenset({("registry", "method")})
# Scripts that another environment runs: nothing here imports them, and they import nothing of ours.
ELSEWHERE = frozenset({f"{PACKAGE}.metrics.vbench.worker", f"{PACKAGE}.metrics.vbench.tame"})
MAX_LINES = 500


@dataclass(frozen=True)
class Import:
    """One import: the dotted target, its line, and when it happens."""

    target: str
    line: int
    at_import: bool  # at module level, so that importing the module runs it
    typing_only: bool  # under `if TYPE_CHECKING`, so that nothing runs it


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports(module: str, source: str, is_package: bool, known: frozenset[str]) -> Iterator[Import]:
    """Every import of a module, relative ones resolved; ``from a import b`` names ``a.b`` where that is a module."""

    def targets(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value

    def walk(node: ast.AST, at_import: bool, typing_only: bool) -> Iterator[Import]:
        for target in targets(node):
            yield Import(target, getattr(node, "lineno", 0), at_import and not typing_only, typing_only)
        if isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.body:
                yield from walk(child, at_import, True)
            for child in node.orelse:
                yield from walk(child, at_import, typing_only)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_import = False
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import, typing_only)

    return walk(ast.parse(source), True, False)


def unit(module: str) -> str:
    """The name of a first-party module in the table: ``w2svd_bench.data.render`` is ``data``."""
    return module.split(".")[1] if "." in module else ""


def plugin(module: str) -> str:
    """The plug-in that a module belongs to: ``baselines.lcm``."""
    return ".".join(module.split(".")[1:3])


def first_party(target: str) -> bool:
    return target == PACKAGE or target.startswith(PACKAGE + ".")


def ancestors(module: str) -> list[str]:
    """The packages that importing a module runs first."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def rank(module: str) -> int | None:
    return next((row for row, names in enumerate(LAYERS) if unit(module) in names), None)


def direction_violations(module: str, found: list[Import]) -> Iterator[str]:
    """What one module imports against the directions."""
    here, own_rank = unit(module), rank(module)
    if own_rank is None:
        yield f"{module} stands in no layer: add {here!r} to LAYERS"
        return
    for item in found:
        where = f"{module}:{item.line} imports {item.target}"
        top = item.target.split(".")[0]
        if top in ONLY_IN and here not in ONLY_IN[top]:
            yield f"{where}: only {', '.join(sorted(ONLY_IN[top])) or 'an environment of its own'} may"
        if top == "torch" and here in TORCH_FREE and not item.typing_only:
            yield f"{where}: {here} never imports torch"
        if not first_party(item.target):
            continue
        there, other_rank = unit(item.target), rank(item.target)
        if there in PLUGINS and here not in PLUGINS:
            yield f"{where}: the harness knows no plug-in"
        if here in PLUGINS and there in PLUGINS and plugin(module) != plugin(item.target):
            yield f"{where}: a plug-in never imports another"
        if here in PLUGINS and there in {"train", "evaluate", "leaderboard", "plan", "cli"}:
            yield f"{where}: a plug-in never imports {there}"
        if there == "build_mini" and here not in {"build_mini", "cli"}:
            yield f"{where}: only cli may"
        if here == "backbones" and there == "data":
            yield f"{where}: backbones never import data"
        if other_rank is None:
            yield f"{where}: {there!r} stands in no layer"
        elif other_rank > own_rank and not (item.typing_only and (here, there) in FOR_TYPES_ONLY):
            yield f"{where}: {there} stands in a later layer than {here or PACKAGE}"


def torch_violations(graph: Mapping[str, list[Import]]) -> Iterator[str]:
    """The chains of module-level imports by which a torch-free module would load torch all the same."""
    for start in (module for module in graph if unit(module) in TORCH_FREE):
        chains, seen = [[start]], {start}
        while chains:
            chain = chains.pop()
            for item in graph[chain[-1]]:
                if not item.at_import:
                    continue
                if item.target.split(".")[0] == "torch" and len(chain) > 1:
                    yield f"{start} loads torch: {' -> '.join([*chain, item.target])}"
                for module in [*ancestors(item.target), item.target]:
                    if module in graph and module not in seen:
                        seen.add(module)
                        chains.append([*chain, module])


def cycle_violations(graph: Mapping[str, list[Import]]) -> Iterator[str]:
    """Circles of imports that run, wherever in a module they stand; one is shown by its path."""
    edges = {
        module: sorted({item.target for item in found if not item.typing_only and item.target in graph})
        for module, found in graph.items()
    }
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> Iterator[str]:
        if module in path:
            yield "circular imports: " + " -> ".join([*path[path.index(module) :], module])
        elif module not in done:
            for target in edges[module]:
                yield from visit(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        yield from visit(module, [])


def violations(sources: Mapping[str, str], packages: frozenset[str]) -> list[str]:
    """Everything that is wrong with a set of modules, given by dotted name; ``packages`` are the ``__init__`` ones."""
    known = frozenset(sources)
    graph = {name: list(imports(name, text, name in packages, known)) for name, text in sources.items()}
    found = [line for module in sorted(graph) for line in direction_violations(module, graph[module])]
    return [*found, *torch_violations(graph), *cycle_violations(graph)]


def project_files() -> dict[str, Path]:
    """The project's modules by dotted name, with the plug-in folders under the name that they import as."""
    files = {}
    for folder, prefix in (
        (PACKAGE, PACKAGE),
        ("baselines", f"{PACKAGE}.baselines"),
        ("methods", f"{PACKAGE}.methods"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join([prefix, *(part for part in inner if part != "__init__")])] = path
    return files


def test_the_project_keeps_its_import_directions() -> None:
    files = {name: path for name, path in project_files().items() if name not in ELSEWHERE}
    assert len(files) > 10, "the sources were not found"
    packages = frozenset(name for name, path in files.items() if path.name == "__init__.py")
    assert violations({name: path.read_text("utf-8") for name, path in files.items()}, packages) == []


def test_scripts_of_another_environment_stand_apart() -> None:
    files = project_files()
    assert files.keys() >= ELSEWHERE
    known = frozenset(files)
    for name, path in files.items():
        for item in imports(name, path.read_text("utf-8"), path.name == "__init__.py", known):
            assert not (name in ELSEWHERE and first_party(item.target)), f"{name} imports {item.target}"
            assert item.target not in ELSEWHERE, f"{name} imports {item.target}"


# One made-up project a rule: (the modules, a piece of the message that must come).
BROKEN = {
    "harness imports a baseline": (
        {"train.loop": "from w2svd_bench.baselines.lcm.method import LCM"},
        "knows no plug-in",
    ),
    "by a dynamic import": (
        {"registry": "import importlib\nimportlib.import_module('w2svd_bench.methods.w2svd.method')"},
        "knows no plug-in",
    ),
    "plug-in imports the trainer": ({"methods.w2svd.method": "import w2svd_bench.train.loop"}, "never imports train"),
    "inside a function": (
        {"baselines.dmd.method": "def f():\n    from w2svd_bench.cli import app"},
        "never imports cli",
    ),
    "plug-in imports another": (
        {"methods.w2svd.method": "from w2svd_bench.baselines.dmd.method import DMD"},
        "never imports another",
    ),
    "by a relative import": ({"baselines.dmd.method": "from ..lcm import method"}, "never imports another"),
    "a lower layer imports a higher one": ({"losses": "from w2svd_bench import method", "method": ""}, "later layer"),
    "for its types only": (
        {"flow": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from w2svd_bench.data import cache"},
        "later layer",
    ),
    "the registry imports a base class": ({"registry": "from w2svd_bench import method", "method": ""}, "later layer"),
    "backbones import data": (
        {"backbones.hunyuan": "from w2svd_bench.data.portraits import clips"},
        "never import data",
    ),
    "torch in a torch-free module": ({"leaderboard.board": "def f():\n    import torch"}, "never imports torch"),
    "torch through another module": (
        {"leaderboard.board": "from w2svd_bench import flow", "flow": "import torch.nn"},
        "w2svd_bench.leaderboard.board -> w2svd_bench.flow -> torch.nn",
    ),
    "torch through a package": (
        {"config": "from w2svd_bench.metrics.base import CorpusMetric", "metrics": "import torch", "metrics.base": ""},
        "w2svd_bench.config -> w2svd_bench.metrics -> torch",
    ),
    "diffusers outside backbones": ({"data.cache": "from diffusers import DiffusionPipeline"}, "only backbones may"),
    "vbench in our process": ({"metrics.vbench": "def f():\n    import vbench.utils"}, "environment of its own"),
    "build_mini imported": ({"evaluate.grid": "from w2svd_bench.build_mini import teacher"}, "only cli may"),
    "a circle": (
        {"train.loop": "from w2svd_bench.train import log", "train.log": "def f():\n    from .loop import x"},
        "circular imports: w2svd_bench.train.log -> w2svd_bench.train.loop -> w2svd_bench.train.log",
    ),
    "a module in no layer": ({"helpers": ""}, "stands in no layer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_project_is_caught(name: str) -> None:
    modules, message = BROKEN[name]
    sources = {f"{PACKAGE}.{module}": text for module, text in modules.items()}
    packages = frozenset(module for module in sources if any(other.startswith(module + ".") for other in sources))
    found = violations(sources, packages)
    assert any(message in line for line in found), found


def test_a_sound_project_is_not() -> None:
    sources = {
        PACKAGE: "",
        f"{PACKAGE}.errors": "",
        f"{PACKAGE}.types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        f"{PACKAGE}.flow": "def f():\n    import torch",
        f"{PACKAGE}.config": "from w2svd_bench import types, flow",
        f"{PACKAGE}.registry": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .method import Method",
        f"{PACKAGE}.method": "from w2svd_bench.config import Frozen\nfrom w2svd_bench import registry",
        f"{PACKAGE}.backbones": "from .source import Source",
        f"{PACKAGE}.backbones.source": "import diffusers",
        f"{PACKAGE}.baselines.lcm": "",
        f"{PACKAGE}.baselines.lcm.method": "from w2svd_bench.method import Method\nfrom . import parts",
        f"{PACKAGE}.baselines.lcm.parts": "",
        f"{PACKAGE}.cli.app": "from w2svd_bench.build_mini import teacher\nfrom w2svd_bench.train import loop",
    }
    packages = frozenset({PACKAGE, f"{PACKAGE}.backbones", f"{PACKAGE}.baselines.lcm"})
    assert violations(sources, packages) == []


def test_torch_free_modules_load_no_torch() -> None:
    """What the sources promise, third parties included: a fresh interpreter imports them and has no torch."""
    modules = [name for name in project_files() if unit(name) in TORCH_FREE]
    assert modules
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_files_are_short() -> None:
    folders = (PACKAGE, "baselines", "methods", "tests")
    sizes = {
        path: len(path.read_text("utf-8").splitlines()) for name in folders for path in (ROOT / name).rglob("*.py")
    }
    assert sizes
    assert {str(path.relative_to(ROOT)): size for path, size in sizes.items() if size > MAX_LINES} == {}


def test_third_parties_are_declared() -> None:
    """What the package imports is what it says it needs, so that a fresh install lacks nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["cdfvd"]]
    needs = {re.split(r"[\[<>=!~; ]", name)[0].lower().replace("_", "-") for name in declared}
    homes = packages_distributions()
    undeclared = set()
    for module, path in project_files().items():
        if module in ELSEWHERE:
            continue
        for item in imports(module, path.read_text("utf-8"), path.name == "__init__.py", frozenset()):
            top = item.target.split(".")[0]
            if top in sys.stdlib_module_names or top in {PACKAGE, "vbench"}:
                continue
            if not needs & {home.lower().replace("_", "-") for home in homes.get(top, [top])}:
                undeclared.add(f"{module}:{item.line} imports {top}")
    assert undeclared == set()


def test_every_package_is_installed() -> None:
    """A package-dir mapping needs every package by name: a forgotten one would be missing from the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    on_disk = {name for name, path in project_files().items() if path.name == "__init__.py"}
    loose = {name for name, path in project_files().items() if not (path.parent / "__init__.py").is_file()}
    assert set(listed) == on_disk
    assert loose == set(), "modules in a folder without __init__.py"
