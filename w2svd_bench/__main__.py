"""``python -m w2svd_bench`` is the console script."""

from w2svd_bench.cli.app import main

main()
