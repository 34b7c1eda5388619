"""Several commands in one process, one after the other: ``python -m w2svd_bench.cli.chain JSON``.

The JSON is a list of argument lists. Importing torch and diffusers takes seconds, and a job of `reproduce` trains and
evaluates: once is enough.
"""

from __future__ import annotations

import json
import sys

from w2svd_bench.cli.app import run


def main() -> None:
    """Runs the commands of the first argument until one fails."""
    for command in json.loads(sys.argv[1]):
        status = run(command)
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
