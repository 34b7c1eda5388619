"""Command-line arguments that typer does not parse by itself: several values after one flag."""

from __future__ import annotations

import re
from collections.abc import Sequence

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.registry import METRICS

# Flags that take several values: ``--steps 1 4 28``, ``--steps 1,4,28`` and ``--steps 1 --steps 4`` all work.
MULTIPLE = (
    "--steps",
    "--methods",
    "--set",
    "--metrics",
    "--validate-metrics",
    "--against",
    "--need",
    "--for",
    "--filter",
    "--columns",
)


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeats a multiple flag before each of its values, which is what click understands."""
    out: list[str] = []
    flag: str | None = None
    for argument in arguments:
        if argument.startswith("-") and not _is_number(argument):
            flag = argument if argument in MULTIPLE else None
            first = True
        elif flag is not None:
            if not first:
                out.append(flag)
            first = False
        out.append(argument)
    return out


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def positive_integers(values: Sequence[str], flag: str) -> list[int]:
    """Reads ``["1", "4,28"]`` as [1, 4, 28], in order and without repeats; raises `BenchError` for anything else."""
    numbers: list[int] = []
    for part in (part.strip() for value in values for part in value.strip().removesuffix(",").split(",")):
        if not part.isdecimal() or int(part) < 1:
            raise BenchError(
                f"{flag} {part!r} is no number of steps",
                "steps are whole numbers from 1 up",
                f"for example {flag} 1 4 28",
            )
        if int(part) not in numbers:
            numbers.append(int(part))
    return numbers


def names(values: Sequence[str]) -> list[str]:
    """Reads ``["lcm", "dmd,w2svd"]`` as a list of names."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def metric_names(values: Sequence[str]) -> list[str]:
    """Entry-point names of metrics, which may be written as in tables: ``fid[clean]`` is ``fid_clean``.

    Raises:
        BenchError: for a name that no metric has.
    """
    known, found = METRICS.names(), []
    for value in values:
        name = re.sub(r"[^a-z0-9]+", "_", value.lower()).strip("_")
        if name not in known:
            raise unknown_name("metric", value, known)
        found.append(name)
    return list(dict.fromkeys(found))
