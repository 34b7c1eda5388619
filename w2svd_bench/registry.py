"""Plug-ins by name: the packages that are installed announce theirs, a single file can be added with `--plugin`.

Listing names imports nothing, so a broken or slow plug-in costs nothing until it is asked for. A plug-in of a third
party arrives the same way as ours do, through an entry point in its own pyproject.toml:

    [project.entry-points."w2svd_bench.methods"]
    mymethod = "mypackage.mymethod:MyMethod"
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from w2svd_bench.errors import BenchError, unknown_name

if TYPE_CHECKING:
    from w2svd_bench.backbones.locate import BackboneSource
    from w2svd_bench.method import Method
    from w2svd_bench.metrics.base import Metric

P = TypeVar("P")
OURS = "w2svd-bench"  # the distribution whose commit stands in every record
DIGEST = "sha256 "  # what a digest of source files begins with in `Registry.code`


class Registry(Generic[P]):
    """The plug-ins of one kind.

    Args:
        kind: what one is called in messages: "method".
        base: the class that every plug-in extends, as "module:Class". It is imported when a plug-in is first asked
            for, so that listing stays free of torch.
        group: the entry-point group that packages announce theirs in.
    """

    def __init__(self, kind: str, base: str, group: str) -> None:
        self.kind, self.base, self.group = kind, base, group
        self._registered: dict[str, tuple[type[P], str]] = {}

    def names(self) -> list[str]:
        """All names, sorted. Imports no plug-in."""
        return sorted({*self._entry_points(), *self._registered})

    def get(self, name: str) -> type[P]:
        """Imports one plug-in and no other.

        Raises:
            BenchError: the name is unknown; the plug-in can't be imported, is offered by two packages, does not extend
                the base class, or is abstract.
        """
        origin = self.origin(name)
        if name in self._registered:
            return self._checked(name, self._registered[name][0], origin)
        entry = self._entry_points()[name]
        try:
            loaded = entry.load()
        except Exception as error:
            # A plug-in that misses an optional package knows best how to get it: its cure is kept.
            cure = error.cure if isinstance(error, BenchError) else f"mend {entry.value}, or uninstall {origin}"
            why = error.why if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
            raise BenchError(f"{self.kind} {name!r} of {origin} can't be imported", why, cure) from error
        return self._checked(name, loaded, origin)

    def register(self, name: str, cls: type[P], origin: str = "registered in code") -> None:
        """Adds a plug-in under a name.

        Raises:
            BenchError: the name is taken by another class. The same class twice is no error.
        """
        if name in self._registered:
            taken = self._registered[name][0] is not cls
        elif name in self._entry_points():
            taken = self._entry_points()[name].value != f"{cls.__module__}:{cls.__qualname__}"
        else:
            taken = False
            self._registered[name] = (cls, origin)
        if taken:
            raise BenchError(
                f"{self.kind} {name!r} ({origin}) can't be registered",
                f"the name is taken: {self.origin(name)}",
                "give the class another `name`",
            )

    def origin(self, name: str) -> str:
        """Where a plug-in comes from: a distribution and its version, or a file. Imports no plug-in."""
        if name in self._registered:
            return self._registered[name][1]
        entries = self._entry_points()
        if name not in entries:
            raise unknown_name(self.kind, name, self.names())
        return _distribution(entries[name])

    def code(self, name: str) -> str:
        """What the code of a plug-in is known by: the sha256 of its file; or a distribution and its version, with, for
        those of others, the sha256 of its module and of the modules in and below that one's package.

        Imports no plug-in, but the packages that hold it.
        """
        if name in self._registered:
            file = getattr(sys.modules[self._registered[name][0].__module__], "__file__", None)
            return DIGEST + hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else self.origin(name)
        origin, entry = self.origin(name), self._entry_points()[name]
        sources = [] if entry.dist is not None and entry.dist.name == OURS else _sources(entry.module)
        digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sources))
        return f"{origin}, {DIGEST}{digest.hexdigest()}" if sources else origin

    def files_beside(self, file: str, names: Sequence[str] | None = None) -> list[Path]:
        """The files of a name that lie beside the modules of installed plug-ins, sorted. Imports no plug-in.

        A plug-in may have none. What packages hold it are imported, as Python finds modules so.

        Args:
            names: only of these; None for all.

        Raises:
            BenchError: a name is unknown, or the package of a plug-in can't be imported.
        """
        entries, found = self._entry_points(), set[Path]()
        for name in entries if names is None else names:
            if name not in entries:
                raise unknown_name(self.kind, name, entries)
            module = entries[name].module
            try:
                spec = importlib.util.find_spec(module)
            except Exception as error:  # the packages that hold it may do anything
                why = f"{module}: {type(error).__name__}: {error}"
                cure = f"mend or uninstall {_distribution(entries[name])}"
                raise BenchError(f"{self.kind} {name!r} can't be found", why, cure) from error
            if spec is not None and spec.origin is not None:
                found.add(Path(spec.origin).with_name(file))
        return sorted(path for path in found if path.is_file())

    def load_file(self, path: Path) -> list[str]:
        """Imports a Python file and registers the plug-ins of this kind that it defines.

        Those are the classes written in that file that extend the base class and are not abstract; each stands under
        its attribute `name`. A file is run once, however often and by however many registries it is loaded.

        Returns:
            Their names, sorted.

        Raises:
            BenchError: the file is missing, fails to import or defines none, or a class has no usable `name`.
        """
        module, base = _import_file(path), self._base()
        found: set[str] = set()
        unfinished: list[str] = []
        for cls in vars(module).values():
            if not (inspect.isclass(cls) and cls.__module__ == module.__name__ and issubclass(cls, base)):
                continue
            if inspect.isabstract(cls):
                unfinished.append(_unfinished(cls))
                continue
            name = getattr(cls, "name", None)
            if not isinstance(name, str) or not name:
                raise BenchError(
                    f"class {cls.__name__} of {path} can't be registered as a {self.kind}",
                    f"its `name` is {name!r}",
                    f'give it a class attribute such as name = "{cls.__name__.lower()}"',
                )
            self.register(name, cast("type[P]", cls), origin=str(path))
            found.add(name)
        if not found:
            why = "; ".join(unfinished) or f"no class in it extends {self.base.replace(':', '.')}"
            raise BenchError(
                f"plug-in file {path} defines no {self.kind}",
                why,
                f"define a class that extends {base.__name__} and all of its abstract methods",
            )
        return sorted(found)

    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        """What the installed packages announce.

        Raises:
            BenchError: two packages announce different classes under one name.
        """
        found: dict[str, metadata.EntryPoint] = {}
        for entry in metadata.entry_points(group=self.group):
            other = found.setdefault(entry.name, entry)
            if other.value != entry.value:
                raise BenchError(
                    f"two packages offer a {self.kind} named {entry.name!r}",
                    " and ".join(sorted(f"{_distribution(one)} ({one.value})" for one in (other, entry))),
                    "uninstall one of them",
                )
        return found

    def _base(self) -> Any:
        module, _, name = self.base.partition(":")
        return getattr(importlib.import_module(module), name)

    def _checked(self, name: str, loaded: object, origin: str) -> type[P]:
        what = f"{self.kind} {name!r} of {origin} can't be used"
        base = self._base()
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise BenchError(what, f"{loaded!r} does not extend {base.__name__}", f"extend {self.base}")
        cls: Any = loaded
        if inspect.isabstract(cls):
            raise BenchError(what, _unfinished(cls), "define what is missing")
        return cast("type[P]", cls)


def _unfinished(cls: Any) -> str:
    return f"{cls.__name__} does not define: {', '.join(sorted(cls.__abstractmethods__))}"


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _sources(module: str) -> list[Path]:
    """The Python files of a module: of one in a package all in that package, sorted; none if it has no files."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # the packages that hold it may do anything
        return []  # whoever imports it tells why
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return []
    file = Path(spec.origin)
    in_package = spec.submodule_search_locations is not None or "." in module
    return sorted(file.parent.rglob("*.py"), key=lambda path: path.as_posix()) if in_package else [file]


def changed(then: str, now: str) -> bool:
    """Whether a plug-in's source is another one than it was, by two values of `Registry.code`.

    A file is known by its content alone. A package may raise its version, by which its author says that it goes on
    with what older ones left; under one version its content must be the same.
    """
    version, _, digest = then.partition(DIGEST)
    return bool(digest) and then != now and version in ("", now.partition(DIGEST)[0])


def _import_file(path: Path) -> ModuleType:
    """Runs a Python file as a module whose name follows from its path, once a process."""
    resolved = path.resolve()
    what = f"plug-in file {path} can't be loaded"
    if not resolved.is_file():
        raise BenchError(what, "there is no such file", "check the path")
    digest = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
    name = f"_plugin_{re.sub(r'[^0-9A-Za-z]', '_', resolved.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise BenchError(what, "it is not a Python source file", "give a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, because dataclasses and pydantic look the module up while they build a class.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, BenchError):
            raise BenchError(what, f"{error.what}: {error.why}", error.cure) from error
        raise BenchError(what, f"{type(error).__name__}: {error}", "mend the file") from error
    return module


METHODS: Registry[Method] = Registry("method", "w2svd_bench.method:Method", "w2svd_bench.methods")
BACKBONES: Registry[BackboneSource] = Registry(
    "backbone", "w2svd_bench.backbones.locate:BackboneSource", "w2svd_bench.backbones"
)
METRICS: Registry[Metric] = Registry("metric", "w2svd_bench.metrics.base:Metric", "w2svd_bench.metrics")
