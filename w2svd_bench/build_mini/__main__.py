"""``python -m w2svd_bench.build_mini`` is ``w2svd-bench build-mini``."""

import sys

from w2svd_bench.cli.app import run

sys.exit(run(["build-mini", *sys.argv[1:]]))
