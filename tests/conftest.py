"""What all tests share: miniature checkpoints in the layout of the real ones, written once a session."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """The module ``tests/checkpoints.py``. It imports diffusers, so it is loaded on demand."""
    return import_module("checkpoints")


@pytest.fixture(scope="session")
def t2v_checkpoint(tmp_path_factory: pytest.TempPathFactory, checkpoints: ModuleType) -> Path:
    """A text-to-video directory as `HunyuanVideoPipeline.save_pretrained` writes it. Don't change it: copy it."""
    return _written_once(tmp_path_factory, "t2v", checkpoints.write_t2v)


@pytest.fixture(scope="session")
def i2v_token_replace(tmp_path_factory: pytest.TempPathFactory, checkpoints: ModuleType) -> Path:
    """An image-to-video directory whose transformer takes the first frame as tokens. Don't change it: copy it."""
    return _written_once(
        tmp_path_factory, "i2v-token-replace", partial(checkpoints.write_i2v, image_condition="token_replace")
    )


@pytest.fixture(scope="session")
def i2v_latent_concat(tmp_path_factory: pytest.TempPathFactory, checkpoints: ModuleType) -> Path:
    """An image-to-video directory whose transformer takes the first frame as channels. Don't change it: copy it."""
    return _written_once(
        tmp_path_factory, "i2v-latent-concat", partial(checkpoints.write_i2v, image_condition="latent_concat")
    )


def _written_once(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], Path]) -> Path:
    """A folder that all workers of this session share: one of them writes it, the others wait."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "checkpoints"
    shared.mkdir(exist_ok=True)
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / name).is_dir():
            write(shared / f"{name}.part").rename(shared / name)
    return shared / name
