"""Mean and covariance of a set's features as a file, in the layout of pytorch-fid (``pytorch-fid --save-stats``).

The file is a compressed ``.npz`` with two float64 arrays, ``mu`` (D,) and ``sigma`` (D, D), the covariance divided by
n - 1. pytorch-fid, clean-fid and EDM read these two and look at nothing else, so three more may stand beside them:
``n``, how many vectors were counted; ``spec_json``, a JSON object with the id of the feature net ("net"), the number
of clips ("clips") and what their folder was like ("source"); and ``weights_sha256``. A file that has them is held to
them when it is read; a file that lacks them is used, and the scores against it say so.
"""

from __future__ import annotations

import json
import math
import uuid
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics.base import FeatureNet

UNSTATED = "reference of an unstated net"  # the flag of a file that doesn't say where its features come from
SYMMETRIC = 1e-6  # how far sigma may be from its transpose, of its largest entry: some writers work in float32


@dataclass(frozen=True)
class Source:
    """What the folder was like that statistics are of: as much as a score needs to warn of what differs from it.

    Attributes:
        frames: the numbers of frames of its clips, ascending.
        size: their height and width.
        fps: their rate; None where it is not known.
        invalid: files that had to be left out.
        resized: files that were scaled and cropped to the size.
    """

    frames: tuple[int, ...]
    size: tuple[int, int]
    fps: float | None
    invalid: int = 0
    resized: int = 0


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean (D,) and unbiased covariance (D, D) of feature vectors, float64, with what is known of their origin.

    Args:
        n: vectors counted.
        clips: clips that they belong to.
        net_id, weights_sha256: `FeatureNet.id` and the sha256 of its weights.
        source: None where it is not known, as in files that were written before it was kept.
    """

    mean_D: np.ndarray
    covariance_DD: np.ndarray
    n: int | None = None
    clips: int | None = None
    net_id: str | None = None
    weights_sha256: str | None = None
    source: Source | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader has to know before comparing scores against them."""
        return () if self.net_id is not None else (UNSTATED,)

    def check(self, net: FeatureNet) -> None:
        """Raises `BenchError` if they are stated to come from another net than this one, or from other weights."""
        for what, found, wanted in (
            ("feature net", self.net_id, net.id),
            ("weights", self.weights_sha256, net.weights_sha256),
        ):
            if found is not None and found != wanted:
                raise BenchError(
                    f"the reference statistics come from another {what}",
                    f"they were made with {found!r}, and this metric uses {wanted!r}",
                    "make the statistics again with this metric, or score with the one that they were made for",
                )


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Writes an ``.npz`` that pytorch-fid reads; the same statistics give the same bytes.

    Raises:
        BenchError: if the file exists, as in pytorch-fid.
    """
    if path.exists():
        raise BenchError(f"{path} exists", "statistics are never overwritten", "name another file, or remove this one")
    arrays = {
        "mu": np.asarray(statistics.mean_D, dtype=np.float64),
        "sigma": np.asarray(statistics.covariance_DD, dtype=np.float64),
    }
    spec: dict[str, Any] = {"net": statistics.net_id, "clips": statistics.clips}
    if statistics.source is not None:
        spec["source"] = asdict(statistics.source)
    extra = {
        "n": statistics.n,
        "spec_json": json.dumps(spec, sort_keys=True) if statistics.net_id is not None else None,
        "weights_sha256": statistics.weights_sha256,
    }
    arrays |= {key: np.asarray(value) for key, value in extra.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved there whole, so that a reader never meets half a file.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with part.open("xb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes the names for other arguments
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_statistics(path: Path, net: FeatureNet | None = None) -> Statistics:
    """Reads what pytorch-fid or `write_statistics` wrote.

    Args:
        net: what the statistics will be compared with, if it is known already.

    Raises:
        BenchError: for a file that is missing, damaged, or not such a file; for wrong shapes or types, values that are
            not finite, a sigma that can't be a covariance; and for features of another net than ``net``.
    """
    arrays = _arrays(path)
    missing = {"mu", "sigma"} - arrays.keys()
    if missing:
        raise _refused(path, f"it holds {sorted(arrays) or 'nothing'}, and {sorted(missing)} is missing")
    mean, covariance = arrays["mu"], arrays["sigma"]
    if mean.ndim != 1 or mean.size == 0 or covariance.shape != (mean.size, mean.size):
        raise _refused(path, f"mu has the shape {mean.shape} and sigma {covariance.shape}, not (D,) and (D, D)")
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise _refused(path, f"mu and sigma have the types {mean.dtype} and {covariance.dtype}, not float64")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise _refused(path, "it holds a NaN or an infinity")
    largest = np.abs(covariance).max()
    if (np.diagonal(covariance) < 0).any() or np.abs(covariance - covariance.T).max() > SYMMETRIC * largest:
        raise _refused(path, "sigma is not symmetric, or has a negative variance: it is no covariance")
    spec = _spec(path, arrays)
    statistics = Statistics(
        mean,
        covariance,
        n=_count(path, "n", arrays["n"]) if "n" in arrays else None,
        clips=_count(path, "clips", np.asarray(spec["clips"])) if spec.get("clips") is not None else None,
        net_id=spec.get("net"),
        weights_sha256=str(arrays["weights_sha256"]) if "weights_sha256" in arrays else None,
        source=_source(path, spec["source"]) if "source" in spec else None,
    )
    if net is not None:
        statistics.check(net)
    return statistics


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise _refused(path, "it is a single array")
        with content:
            return {key: content[key] for key in content.files}
    except FileNotFoundError as error:
        raise BenchError(f"there is no file {path}", "statistics are read from it", "check the path") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        # numpy raises ValueError for what would have to be unpickled, and for what is no array.
        raise _refused(path, f"it can't be read as arrays: {error}") from error


def _spec(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if "spec_json" not in arrays:
        return {}
    try:
        spec = json.loads(str(arrays["spec_json"]))
    except json.JSONDecodeError as error:
        raise _refused(path, f"its spec_json is no JSON: {error}") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("net"), str):
        raise _refused(path, "its spec_json doesn't name a feature net")
    return spec


def _source(path: Path, found: Any) -> Source:
    try:
        frames, (height, width), fps = tuple(found["frames"]), found["size"], found["fps"]
        source = Source(frames, (height, width), fps, found["invalid"], found["resized"])
    except (TypeError, ValueError, KeyError) as error:
        raise _refused(path, f"its spec_json doesn't describe the folder that it is of: {found!r}") from error
    whole = [*frames, height, width, source.invalid, source.resized]
    rate = fps is None or (type(fps) in (int, float) and 0 < fps < math.inf)
    if not frames or not rate or any(type(number) is not int or number < 0 for number in whole):
        raise _refused(path, f"its spec_json doesn't describe the folder that it is of: {found!r}")
    return source


def _count(path: Path, name: str, value: np.ndarray) -> int:
    if value.shape != () or value.dtype.kind not in "iu" or value < 2:
        raise _refused(path, f"{name} is {value!r}, and a covariance needs a whole number of at least 2")
    return int(value)


def _refused(path: Path, why: str) -> BenchError:
    return BenchError(
        f"{path} is no file of feature statistics",
        why,
        "an .npz with mu (D,) and sigma (D, D) in float64 is read, as `pytorch-fid --save-stats` writes it",
    )
