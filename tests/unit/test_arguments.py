"""Several values after one flag: what typer does not parse by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from w2svd_bench.cli.app import app
from w2svd_bench.cli.arguments import MULTIPLE, names, positive_integers, spread
from w2svd_bench.errors import BenchError


@pytest.mark.parametrize(
    "written",
    [
        ["--steps", "1", "4", "28"],
        ["--steps", "1,4,28"],
        ["--steps", "1", "--steps", "4,28"],
        ["--steps", "1", "--steps", "4", "--steps", "28"],
        ["--steps=1", "--steps=4,28"],
    ],
)
def test_all_spellings_of_a_list_agree(written: list[str]) -> None:
    """What `spread` leaves is read as a parser does: one value after each flag, or behind its ``=``."""
    left = spread(["eval", *written, "--clips", "16"])
    assert left[0] == "eval" and left[-2:] == ["--clips", "16"]
    values, rest = [], left[1:-2]
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        assert flag == "--steps"
        values.append(value if equals else rest.pop(0))
    assert positive_integers(values, "--steps") == [1, 4, 28]


def test_spread_leaves_every_other_argument_alone() -> None:
    plain = ["sample", "--prompt", "pale skin, red hair", "--seed", "3", "--gif", "-x", "a", "b"]
    assert spread(plain) == plain
    assert spread(["leaderboard", "folder", "--diagnostics"]) == ["leaderboard", "folder", "--diagnostics"]
    assert spread([]) == []


def test_spread_keeps_the_order_of_overrides_and_negative_values() -> None:
    written = ["train", "--set", "a.b=1", "c=-2", "--label", "x", "--set", "d=3"]
    assert spread(written) == ["train", "--set", "a.b=1", "--set", "c=-2", "--label", "x", "--set", "d=3"]
    # A negative number is a value that is then refused, not a flag that swallows what follows.
    assert spread(["eval", "--steps", "4", "-1"]) == ["eval", "--steps", "4", "--steps", "-1"]


def _options(command: Any) -> Iterator[Any]:
    for below in getattr(command, "commands", {}).values():
        yield from _options(below)
    yield from command.params


def test_every_option_that_takes_a_list_takes_it_after_one_flag() -> None:
    taken = {one.opts[-1] for one in _options(typer.main.get_command(app)) if getattr(one, "multiple", False)}
    # A prompt or a path may be anything: those are one a flag.
    assert taken - {"--prompt", "--image"} == set(MULTIPLE)


def test_numbers_keep_their_order_and_lose_repeats() -> None:
    assert positive_integers(["28", "4,1", "4", " 2 "], "--steps") == [28, 4, 1, 2]


@pytest.mark.parametrize("bad", ["0", "-1", "x", "1.5", "1e3", "", "4,,28", "²", "1 4"])
def test_a_bad_number_is_refused_with_its_text(bad: str) -> None:
    with pytest.raises(BenchError) as caught:
        positive_integers(["4", bad], "--steps")
    assert "--steps" in caught.value.what
    assert "whole numbers" in caught.value.why and "--steps 1 4 28" in caught.value.cure


def test_names_are_split_at_commas_and_trimmed() -> None:
    assert names(["lcm", "dmd, w2svd", ","]) == ["lcm", "dmd", "w2svd"]
    assert names([]) == []


@pytest.mark.parametrize("command", ["train", "eval", "reproduce", "weights fetch", "data prepare"])
def test_help_breaks_lines_where_the_terminal_ends_and_nowhere_else(command: str) -> None:
    """Examples keep their lines."""
    found: Any = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    for paragraph in found.help.split("\n\n"):
        assert all(line.startswith("  ") for line in paragraph.split("\n")[1:]), paragraph
    assert f"\n  w2svd-bench {command} " in found.help
