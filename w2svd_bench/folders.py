"""Where this program keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$W2SVD_BENCH_CACHE``, or ``~/.cache/w2svd-bench``."""
    return Path(os.environ.get("W2SVD_BENCH_CACHE") or Path.home() / ".cache" / "w2svd-bench")
