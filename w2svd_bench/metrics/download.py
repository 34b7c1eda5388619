"""Fetching published weights: in one piece, checked, and going on where it was broken off.

A file appears under its name only when it is complete and its hash is right. Until then it is ``NAME.part`` beside its
place, which a later attempt goes on with by asking for the rest (HTTP range requests, RFC 9110 section 14). Only the
standard library is used: no library that is installed does this for any address (the hub's does, for the hub's).
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from itertools import chain
from pathlib import Path

from w2svd_bench import __version__
from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import weights
from w2svd_bench.metrics.weights import Found

Report = Callable[[int, int | None], None]  # bytes that are there, of how many; None where the server does not say

CHUNK = 2**20
TIMEOUT_SECONDS = 30.0  # without a byte


class _Failed(Exception):
    """This address did not serve the file; the message says why."""


def fetch(id: str, report: Report | None = None, timeout: float = TIMEOUT_SECONDS) -> Found:
    """The weights of that id: the file that is there if it is right, else a fresh one in its place.

    Raises:
        BenchError: the id is unknown; no address served the right file; it can't be written.
    """
    weight = weights.named(id)
    try:
        found = weights.find(id)
        if found.standing != "stand-in":
            return found
    except BenchError:
        pass  # missing or not the right one: what follows mends both, and `find` below has the last word
    sha256 = weights.expected_sha256(weight)
    try:
        download(weight.urls, weights.place(weight), weight.size, sha256, report, timeout)
    except BenchError as error:
        raise BenchError(error.what, error.why, weights.how_to_get(weight)) from error
    return weights.find(id)


def download(
    urls: Sequence[str],
    path: Path,
    size: int | None = None,
    sha256: str | None = None,
    report: Report | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Path:
    """Downloads a file, replacing the one that is there.

    Args:
        urls: addresses of the same bytes; the next one is asked when one fails.
        path: where it belongs; the folder is made.
        size: bytes, if known.
        sha256: if known. Without it nothing could tell whether two halves belong together, so a broken-off download
            starts anew.
        report: told about progress.
        timeout: seconds without a byte after which an address has failed.

    Raises:
        BenchError: every address failed (it says how), or the file can't be written.
    """
    part = path.with_name(f"{path.name}.part")
    reasons = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in urls:
            if sha256 is None:
                part.unlink(missing_ok=True)
            try:
                _transfer(url, part, size, sha256, report, timeout)
                part.replace(path)
                return path
            except _Failed as failure:
                reasons.append(f"{url}: {failure}")
    except OSError as error:
        cure = "free some space, make the folder writable, or choose another one with --weights-dir"
        raise BenchError(f"{path} can't be written", str(error), cure) from error
    raise BenchError(
        f"{path.name} could not be downloaded", "; ".join(reasons), f"download it elsewhere and put it at {path}"
    )


def _transfer(
    url: str, part: Path, size: int | None, sha256: str | None, report: Report | None, timeout: float
) -> None:
    """Completes the partial file from one address, and checks it; a file that turns out wrong is deleted."""
    start = part.stat().st_size if part.is_file() else 0
    if start and start == size:
        if _digest(part) == sha256:  # only the renaming was missing
            return
        start = 0
    start = _receive(url, part, start, size, report, timeout)
    try:
        _check(part, size, sha256)
    except _Failed:
        part.unlink()
        if not start:
            raise
        # The half that was there before may have been what was wrong.
        _transfer(url, part, size, sha256, report, timeout)


def _receive(url: str, part: Path, start: int, size: int | None, report: Report | None, timeout: float) -> int:
    """Writes what the address serves into the partial file, from byte ``start`` on; returns where it did begin."""
    with _open(url, start, timeout) as response:
        if response.status == 206 and not (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            raise _Failed(f"asked for byte {start} on, it sent {response.headers['Content-Range']}")
        if response.status != 206:
            start = 0  # the whole file, whatever was asked for: not every server knows ranges
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        chunks = _chunks(response)
        first = next(chunks, b"")
        if start == 0 and (problem := weights.impostor(first)):
            raise _Failed(problem)
        if size is not None and total not in (None, size):
            raise _Failed(f"it serves {total} bytes instead of {size}")
        done = start
        # Not opened for appending: if two processes fetch the same file, both write the same bytes to the same places.
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in chain((first,), chunks):
                file.write(chunk)
                done += len(chunk)
                if report is not None:
                    report(done, total if total is not None else size)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise _Failed(f"the connection ended after {done} of {total} bytes")
    return start


def _open(url: str, start: int, timeout: float) -> HTTPResponse:
    # "identity": a range of a compressed transfer would be a range of something else.
    headers = {"User-Agent": f"w2svd-bench/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == 416:  # there is nothing from there on: what we have is another file's
            return _open(url, 0, timeout)
        raise _Failed(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _Failed(f"no connection: {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _Failed(f"no connection: {error or type(error).__name__}") from error
    return response


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, HTTPException) as error:
            raise _Failed(f"the connection broke: {error or type(error).__name__}") from error
        if not chunk:
            return
        yield chunk


def _check(part: Path, size: int | None, sha256: str | None) -> None:
    found = part.stat().st_size
    if size is not None and found != size:
        raise _Failed(f"what came has {found} bytes instead of {size}")
    if not found:
        raise _Failed("what came is empty")
    if sha256 is not None and (digest := _digest(part)) != sha256:
        raise _Failed(f"what came has sha256 {digest} instead of {sha256}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
