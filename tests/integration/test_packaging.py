"""The package as a user gets it: from a wheel, from an editable install, and with a third party's method beside it.

Wheels are built from a copy of the sources, so that nothing lands in the checkout and no stale ``build/`` leaks into
them, with the setuptools that is installed: no network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "w2svd_bench", "baselines", "methods")
PLUGIN_MODULES = ("w2svd_bench.baselines.euler.method", "w2svd_bench.methods.w2svd.method")


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """The standard output of a command that must succeed, in a folder and with ``path`` first on Python's path."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=180
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def pip(*arguments: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


def install(source: Path, target: Path, cwd: Path) -> None:
    """Installs a folder or wheel, without its dependencies, into a folder of its own."""
    pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (copy / name).parent.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, copy, cwd=folder)
    (built,) = folder.glob("w2svd_bench-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in, and beside it the example of a third party's method."""
    folder = tmp_path_factory.mktemp("installed")
    target, package = folder / "target", folder / "package"
    shutil.copytree(ROOT / "tests" / "plugin_package", package, ignore=shutil.ignore_patterns("__pycache__"))
    install(wheel, target, cwd=folder)
    install(package, target, cwd=folder)
    return target


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for folder, prefix in (("w2svd_bench", ""), ("baselines", "w2svd_bench/"), ("methods", "w2svd_bench/")):
        for path in (ROOT / folder).rglob("*"):
            inner = path.relative_to(ROOT)
            data = inner.parts[:2] == ("w2svd_bench", "assets") or path.suffix == ".yaml" or path.name == "README.md"
            if path.is_file() and (path.suffix == ".py" or path.name == "py.typed" or data):
                expected.add(f"{prefix}{inner.as_posix()}")
    plugins = [name for name in expected if name.startswith(("w2svd_bench/baselines/", "w2svd_bench/methods/"))]
    assert any(name.endswith("mini.yaml") for name in plugins)
    assert any(name.endswith("README.md") for name in plugins)
    assert any(name.startswith("w2svd_bench/assets/") for name in expected)
    assert expected - packed == set()
    assert not [name for name in packed if name.startswith(("tests/", "results/", "baselines/", "methods/"))]


IMPORT_PLUGINS = f"""
import importlib
for name in ("w2svd_bench", *{PLUGIN_MODULES!r}):
    print(importlib.import_module(name).__file__)
"""
FIND_EXAMPLE = """
import sys
from w2svd_bench.registry import METHODS
assert {"euler", "lcm", "dmd", "w2svd", "example"} <= set(METHODS.names()), METHODS.names()
assert "w2svd_bench_example" not in sys.modules and "torch" not in sys.modules
method = METHODS.get("example")
assert method.name == "example" and method.__module__ == "w2svd_bench_example", method
assert method.recipe("mini")["training"]["iterations"] == 50
print(METHODS.origin("example"))
"""


def test_an_installed_method_is_found_and_plugins_import_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """The example is listed without being imported, and resolved with its recipe and its own distribution's name.

    ``PYTHONPATH`` comes before what an editable install adds, so all of this is the wheel's code or none.
    """
    lines = run(sys.executable, "-c", FIND_EXAMPLE + IMPORT_PLUGINS, cwd=tmp_path, path=installed).splitlines()
    assert lines[0] == "w2svd-bench-example 0.1.0"
    assert Path(lines[1]) == installed / "w2svd_bench" / "__init__.py"
    modules = [installed.joinpath(*name.split(".")).with_suffix(".py") for name in PLUGIN_MODULES]
    assert [Path(line) for line in lines[2:]] == modules


def test_plugins_import_from_the_editable_install(tmp_path: Path) -> None:
    """From outside the repository, where nothing but the installation can find them."""
    origins = [json.loads(found.read_text("direct_url.json") or "{}") for found in distributions(name="w2svd-bench")]
    if not any(origin.get("dir_info", {}).get("editable") for origin in origins):
        pytest.skip("w2svd-bench is not installed in the editable way here")
    files = [Path(line) for line in run(sys.executable, "-c", IMPORT_PLUGINS, cwd=tmp_path).splitlines()]
    assert files[0] == ROOT / "w2svd_bench" / "__init__.py"
    assert files[1:] == [ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in PLUGIN_MODULES]


def test_an_installed_method_learns_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example through the interface alone, with a linear map as its generator: its loss falls."""
    import torch

    monkeypatch.syspath_prepend(ROOT / "tests" / "plugin_package")
    from w2svd_bench_example import Example

    from w2svd_bench.rng import Rng
    from w2svd_bench.types import Batch, Cond

    method = Example(Example.Config.model_validate(Example.recipe("mini")["settings"]), shift=3.0)
    scale = torch.nn.Parameter(torch.zeros(()))
    method.models = {"generator": lambda x, t, cond: scale * x}
    cond = Cond(torch.zeros(8, 1, 1), torch.ones(8, 1), torch.zeros(8, 1))
    batch = Batch(torch.full((8, 2, 1, 4, 4), 0.1), cond)
    (update,) = method.updates(0)
    assert update.role == "generator" and set(method.roles()) == {"generator"}
    optimizer = torch.optim.SGD([scale], lr=0.2)
    values = []
    for step in range(20):
        loss = update.loss(batch, Rng(0, step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-5:]) < 0.7 * sum(values[:5])  # predicting noise from a noisy sample beats predicting zero
    sampler = method.sampler(4)
    assert (sampler.kind, sampler.nfe, sampler.levels[0], sampler.levels[-1]) == ("ode", 4, 1.0, 0.0)
    assert sampler(method.models["generator"], cond, lambda step: torch.randn(8, 2, 1, 4, 4)).shape == (8, 2, 1, 4, 4)
