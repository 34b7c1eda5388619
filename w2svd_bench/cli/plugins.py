"""``w2svd-bench methods`` and ``w2svd-bench new-method``."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from w2svd_bench.cli import options
from w2svd_bench.cli.progress import console
from w2svd_bench.errors import BenchError
from w2svd_bench.registry import METHODS


def methods(plugin: options.Plugin = None, as_json: options.Json = False) -> None:
    """List the methods that are installed and where each comes from; imports none of them."""
    options.load_plugin(plugin)
    found = {name: METHODS.origin(name) for name in METHODS.names()}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("method", "from")
    for name, origin in found.items():
        table.add_row(name, origin)
    console.print(table)


def new_method(
    name: Annotated[str, typer.Argument(help="A name in small letters, such as mymethod.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where to write NAME.py.")] = Path(),
) -> None:
    """Write a commented skeleton of a method that trains on the miniature as it stands."""
    if not name.isidentifier() or name != name.lower() or not name[0].isalpha():
        raise BenchError(
            f"{name!r} can't name a method", "it has to be a Python name in small letters", "try: mymethod"
        )
    if name in METHODS.names():
        raise BenchError(f"there is a method {name!r} already", f"from {METHODS.origin(name)}", "choose another name")
    path = folder / f"{name}.py"
    if path.exists():
        raise BenchError(f"{path} exists", "nothing is overwritten", "choose another name or folder")
    template = resources.files("w2svd_bench").joinpath("assets/new_method.py.txt").read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = name.title().replace("_", "")
    class_name = plain if plain.lower().endswith("method") else plain + "Method"  # Update or Loss would hide imports
    path.write_text(template.replace("NAME", name).replace("CLASS", class_name))
    console.print(f"wrote {path}; now:", highlight=False)
    console.print(f"  w2svd-bench train --plugin {path} --method {name}", highlight=False, soft_wrap=True)
    console.print("  w2svd-bench eval --steps 1 4 28", highlight=False)
    entry = f'[project.entry-points."w2svd_bench.methods"] {name} = "my_package.{name}:{class_name}"'
    console.print(f"in a package of your own: {entry}", highlight=False, soft_wrap=True, markup=False)
