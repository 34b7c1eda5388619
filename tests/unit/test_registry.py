"""Plug-ins by name: listing imports nothing, and every broken plug-in says which one it is and what to do."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from abc import ABC, abstractmethod
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.registry import BACKBONES, METHODS, METRICS, Registry, changed

BASE_MODULE = "_registry_test_base"


class Base(ABC):
    name: str

    @abstractmethod
    def run(self) -> int: ...


class Good(Base):
    def run(self) -> int:
        return 1


class Other(Good):
    pass


class Unfinished(Base):
    pass


class Distribution(metadata.Distribution):
    """An installed package, as far as a registry looks at one."""

    def __init__(self, name: str, version: str) -> None:
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: object) -> Path:
        raise FileNotFoundError(path)


@pytest.fixture
def base_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An importable module with the base class, a good plug-in and some that are not."""
    module = ModuleType(BASE_MODULE)
    vars(module).update(Base=Base, Good=Good, Other=Other, Unfinished=Unfinished, number=3)
    monkeypatch.setitem(sys.modules, BASE_MODULE, module)
    return module


@pytest.fixture
def registry(base_module: ModuleType) -> Registry[Base]:
    return Registry("widget", f"{BASE_MODULE}:Base", "test.widgets")


def announce(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str, str]) -> None:
    """Makes the installed packages announce (name, value, distribution) in the group of the test."""
    points = []
    for name, value, distribution in entries:
        point = metadata.EntryPoint(name, value, "test.widgets")
        points.append(point._for(Distribution(distribution, "1.2")))  # type: ignore[attr-defined]
    monkeypatch.setattr(metadata, "entry_points", lambda group: [p for p in points if p.group == group])


def test_listing_imports_nothing(registry: Registry[Base], monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, ("zeta", "no_such_package.at_all:X", "broken"), ("alpha", f"{BASE_MODULE}:Good", "good"))
    registry.register("middle", Good)
    monkeypatch.delitem(sys.modules, BASE_MODULE)
    assert registry.names() == ["alpha", "middle", "zeta"]
    assert registry.origin("zeta") == "broken 1.2"
    assert BASE_MODULE not in sys.modules


def test_get_imports_only_what_was_asked_for(registry: Registry[Base], monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, ("broken", "no_such_package:X", "broken"), ("good", f"{BASE_MODULE}:Good", "good"))
    assert registry.get("good") is Good


def test_unknown_name_suggests_and_lists(registry: Registry[Base], monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, ("euler", f"{BASE_MODULE}:Good", "good"), ("lcm", f"{BASE_MODULE}:Good", "good"))
    for look_up in (registry.get, registry.origin):
        with pytest.raises(BenchError, match="unknown widget 'eular'") as caught:
            look_up("eular")
        assert "did you mean 'euler'?" in caught.value.cure
        assert "euler, lcm" in caught.value.why


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_package:X", "ModuleNotFoundError: No module named 'no_such_package'"),
        (f"{BASE_MODULE}:Missing", "AttributeError"),
        (f"{BASE_MODULE}:number", "does not extend Base"),
        ("pathlib:Path", "does not extend Base"),
        (f"{BASE_MODULE}:Unfinished", "does not define: run"),
    ],
)
def test_broken_plugin_names_itself(
    registry: Registry[Base], monkeypatch: pytest.MonkeyPatch, value: str, why: str
) -> None:
    announce(monkeypatch, ("bad", value, "third-party"))
    with pytest.raises(BenchError) as caught:
        registry.get("bad")
    assert "widget 'bad' of third-party 1.2" in caught.value.what
    assert why in caught.value.why


def test_a_plugins_own_cure_is_kept(registry: Registry[Base], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_extra.py").write_text(
        "from w2svd_bench.errors import BenchError\nraise BenchError('x', 'numba is missing', 'pip install numba')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    announce(monkeypatch, ("fast", "needs_extra:X", "third-party"))
    with pytest.raises(BenchError) as caught:
        registry.get("fast")
    assert (caught.value.why, caught.value.cure) == ("numba is missing", "pip install numba")


def test_two_packages_with_one_name(registry: Registry[Base], monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, ("same", f"{BASE_MODULE}:Good", "one"), ("same", f"{BASE_MODULE}:Other", "two"))
    with pytest.raises(BenchError, match="two packages offer a widget named 'same'") as caught:
        registry.get("same")
    assert "one 1.2" in caught.value.why and "two 1.2" in caught.value.why


def test_a_name_is_given_once(registry: Registry[Base], monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, ("installed", f"{Good.__module__}:Good", "good"))
    registry.register("mine", Good)
    registry.register("mine", Good, origin="again")
    assert registry.origin("mine") == "registered in code"
    with pytest.raises(BenchError, match="'mine'") as caught:
        registry.register("mine", Other)
    assert "registered in code" in caught.value.why
    registry.register("installed", Good)
    with pytest.raises(BenchError) as caught:
        registry.register("installed", Other)
    assert "good 1.2" in caught.value.why


def test_what_is_registered_is_checked_when_asked_for(registry: Registry[Base]) -> None:
    registry.register("wrong", Path)  # type: ignore[arg-type]
    with pytest.raises(BenchError, match="'wrong' of registered in code"):
        registry.get("wrong")


PLUGIN = f"""
from __future__ import annotations
from dataclasses import dataclass
from {BASE_MODULE} import Base, Good

class Half(Base):
    name = "half"

@dataclass
class Whole(Half):
    name = "whole"
    size: int = 3

    def run(self) -> int:
        return self.size

Alias = Whole
"""


def test_load_file(registry: Registry[Base], tmp_path: Path) -> None:
    """Only what the file itself defines and finishes is registered, and it keeps the file as its origin."""
    path = tmp_path / "my-plugin.py"
    path.write_text(PLUGIN)
    assert registry.load_file(path) == ["whole"]
    assert registry.get("whole")().run() == 3
    assert registry.origin("whole") == str(path)
    assert registry.code("whole") == f"sha256 {hashlib.sha256(PLUGIN.encode()).hexdigest()}"
    other: Registry[Base] = Registry("gadget", registry.base, "test.gadgets")
    assert registry.load_file(path) == other.load_file(path) == ["whole"]
    assert other.get("whole") is registry.get("whole"), "a file is run once"


def test_a_package_of_others_is_known_by_its_sources(
    registry: Registry[Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that lies in and below the module's package; of a module without one the file alone. Ours has its commit."""
    package = tmp_path / "lab_of_mine" / "phased"
    (package / "parts").mkdir(parents=True)
    sources = [package.parent / "__init__.py", package / "__init__.py", package / "method.py", tmp_path / "alone_.py"]
    for path in sources:
        path.write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    announce(
        monkeypatch,
        ("phased", "lab_of_mine.phased.method:X", "lab"),
        ("alone", "alone_:X", "lab"),
        ("ours", "w2svd_bench.baselines.lcm.method:LCM", "w2svd-bench"),
        ("gone", "no_such_package:X", "broken"),
    )
    assert (registry.code("ours"), registry.code("gone")) == ("w2svd-bench 1.2", "broken 1.2")
    phased, alone = registry.code("phased"), registry.code("alone")
    assert phased.startswith("lab 1.2, sha256 ") and alone.startswith("lab 1.2, sha256 ")
    (package.parent / "other.py").write_text("1")
    (tmp_path / "another.py").write_text("1")
    assert (registry.code("phased"), registry.code("alone")) == (phased, alone)
    (package / "parts" / "new.py").write_text("1")
    (tmp_path / "alone_.py").write_text("1")
    assert registry.code("phased") != phased and registry.code("alone") != alone


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ("sha256 00", "sha256 11", True),
        ("sha256 00", "sha256 00", False),
        ("sha256 00", "lab 1.2, sha256 00", True),  # a file has become a package
        ("lab 1.2, sha256 00", "lab 1.2, sha256 11", True),
        ("lab 1.2, sha256 00", "lab 1.2, sha256 00", False),
        ("lab 1.2, sha256 00", "lab 1.3, sha256 11", False),  # its author says that it goes on
        ("lab 1.2", "lab 1.2, sha256 11", False),  # older runs don't tell
        ("", "sha256 00", False),
        ("w2svd-bench 0.1.0", "w2svd-bench 0.1.0", False),
    ],
)
def test_a_source_has_changed(then: str, now: str, expected: bool) -> None:
    assert changed(then, now) is expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("1 / 0\n", "ZeroDivisionError"),
        (f"from {BASE_MODULE} import Good\nclass Mine(Good):\n    pass\n", "its `name` is None"),
    ],
)
def test_broken_file_names_itself(registry: Registry[Base], tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(BenchError) as caught:
        registry.load_file(path)
    assert "broken.py" in caught.value.what and why in caught.value.why
    # It can be mended and loaded again in the same process, unless it already ran to its end.
    if "name" not in why:
        path.write_text(PLUGIN)
        assert registry.load_file(path) == ["whole"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"from {BASE_MODULE} import Good\n", "no class in it extends"),  # imported, not defined there
        (f"from {BASE_MODULE} import Base\nclass Half(Base):\n    name = 'half'\n", "Half does not define: run"),
    ],
)
def test_a_file_that_adds_nothing(registry: Registry[Base], tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "empty.py"
    path.write_text(text)
    with pytest.raises(BenchError, match="defines no widget") as caught:
        registry.load_file(path)
    assert why in caught.value.why


def test_missing_file_and_wrong_suffix(registry: Registry[Base], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="there is no such file"):
        registry.load_file(tmp_path / "nothing.py")
    (tmp_path / "recipe.yaml").write_text("a: 1\n")
    with pytest.raises(BenchError, match="not a Python source file"):
        registry.load_file(tmp_path / "recipe.yaml")


def test_a_file_can_not_take_an_installed_name(
    registry: Registry[Base], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    announce(monkeypatch, ("whole", f"{BASE_MODULE}:Good", "good"))
    path = tmp_path / "taken.py"
    path.write_text(PLUGIN)
    with pytest.raises(BenchError, match="can't be registered") as caught:
        registry.load_file(path)
    assert "good 1.2" in caught.value.why and str(path) in caught.value.what
    assert registry.get("whole") is Good


def test_the_three_registries() -> None:
    assert [one.kind for one in (METHODS, BACKBONES, METRICS)] == ["method", "backbone", "metric"]
    assert len({one.group for one in (METHODS, BACKBONES, METRICS)}) == 3
    assert all(one.group.startswith("w2svd_bench.") and ":" in one.base for one in (METHODS, BACKBONES, METRICS))


def test_the_ground_floor_starts_without_torch_and_pandas() -> None:
    code = (
        "import sys, w2svd_bench.registry as r, w2svd_bench.config, w2svd_bench.record, w2svd_bench.leaderboard\n"
        "r.METHODS.names()\n"
        "print([name for name in ('torch', 'pandas', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
