"""Downloads from a server on this machine: complete, checked, resumed, and every way in which an address can fail."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from w2svd_bench.errors import BenchError
from w2svd_bench.metrics import download as module
from w2svd_bench.metrics import weights
from w2svd_bench.metrics.download import download, fetch
from w2svd_bench.metrics.weights_table import Weight

CONTENT = bytes(range(256)) * 40 + b"the end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 95628359\n"
PAGE = b"\n<!DOCTYPE html><html><body>This link has expired.</body></html>"


@dataclass
class Server:
    """A web server; the name of what is asked for says how it behaves, and ``asked`` what it was asked."""

    address: str = ""
    content: bytes = CONTENT
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def url(self, behaviour: str) -> str:
        return f"{self.address}/{behaviour}/weights.pt"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            behaviour = self.path.split("/")[1]
            wanted = self.headers["Range"]
            state.asked.append((behaviour, wanted))
            if behaviour == "redirect":
                self.send_response(302)
                self.send_header("Location", state.url("ranges"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if behaviour == "gone":
                return self.answer(404, b"<html>not found</html>")
            body = {"pointer": POINTER, "page": PAGE, "empty": b"", "other": CONTENT[::-1]}.get(
                behaviour, state.content
            )
            if behaviour in ("plain", "other") or wanted is None:
                cut = len(body) // 2 if behaviour == "broken" else None
                return self.answer(200, body, cut=cut, known=behaviour != "unknown-length")
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match
            start = int(match[1])
            if start >= len(body):
                return self.answer(416, b"")
            if behaviour == "liar":
                start -= 1
            self.answer(206, body[start:], f"bytes {start}-{len(body) - 1}/{len(body)}")

        def answer(self, status: int, body: bytes, range: str = "", cut: int | None = None, known: bool = True) -> None:
            self.send_response(status)
            if range:
                self.send_header("Content-Range", range)
            if known:
                self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body[:cut])
            self.close_connection = True

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    state.address = f"http://127.0.0.1:{web.server_address[1]}"
    thread = Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def refused(urls: list[str], path: Path, size: int | None = len(CONTENT), sha256: str | None = SHA256) -> BenchError:
    """The error of a download that must fail, which leaves nothing under the file's name."""
    with pytest.raises(BenchError) as caught:
        download(urls, path, size, sha256, timeout=5)
    assert not path.exists()
    assert str(path) in caught.value.cure
    return caught.value


@pytest.mark.parametrize("behaviour", ["ranges", "plain", "unknown-length", "redirect"])
@pytest.mark.parametrize("known", [True, False])
def test_a_file_arrives_whole_and_is_counted(behaviour: str, known: bool, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "weights.pt"
    steps: list[tuple[int, int | None]] = []
    size, sha256 = (len(CONTENT), SHA256) if known else (None, None)
    assert download([server.url(behaviour)], path, size, sha256, lambda *step: steps.append(step)) == path
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["weights.pt"]
    total = len(CONTENT) if known or behaviour != "unknown-length" else None
    assert steps[-1] == (len(CONTENT), total) and [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_progress_is_told_chunk_by_chunk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4096)
    steps: list[int] = []
    download([server.url("ranges")], tmp_path / "w.pt", report=lambda done, total: steps.append(done))
    assert steps == [4096, 8192, len(CONTENT)]


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    half = len(CONTENT) // 2
    error = refused([server.url("broken")], path)
    assert f"after {half} of {len(CONTENT)} bytes" in error.why
    assert part_of(path).read_bytes() == CONTENT[:half]

    steps: list[int] = []
    download([server.url("ranges")], path, len(CONTENT), SHA256, lambda done, total: steps.append(done))
    assert server.asked == [("broken", None), ("ranges", f"bytes={half}-")]
    assert path.read_bytes() == CONTENT and not part_of(path).exists() and steps == [len(CONTENT)]


def test_the_next_address_goes_on_where_the_first_one_broke(server: Server, tmp_path: Path) -> None:
    download([server.url("broken"), server.url("redirect")], tmp_path / "w.pt", len(CONTENT), SHA256)
    half = f"bytes={len(CONTENT) // 2}-"
    assert server.asked == [("broken", None), ("redirect", half), ("ranges", half)]
    assert (tmp_path / "w.pt").read_bytes() == CONTENT


def test_without_a_hash_halves_are_never_joined(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    part_of(path).write_bytes(b"?" * 100)
    download([server.url("broken"), server.url("ranges")], path)
    assert path.read_bytes() == CONTENT and all(wanted is None for _, wanted in server.asked)


@pytest.mark.parametrize("behaviour", ["ranges", "plain"])
@pytest.mark.parametrize("length", [100, len(CONTENT), len(CONTENT) + 9])
def test_a_partial_file_that_is_wrong_is_fetched_anew(
    behaviour: str, length: int, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    part_of(path).write_bytes(b"?" * length)
    download([server.url(behaviour)], path, len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT and not part_of(path).exists()


def test_a_server_without_ranges_sends_all_of_it_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    part_of(path).write_bytes(CONTENT[:100])
    download([server.url("plain")], path, len(CONTENT), SHA256)
    assert server.asked == [("plain", "bytes=100-")] and path.read_bytes() == CONTENT


def test_a_complete_partial_file_only_lacked_its_name(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    part_of(path).write_bytes(CONTENT)
    download([server.url("ranges")], path, len(CONTENT), SHA256)
    assert server.asked == [] and path.read_bytes() == CONTENT


def test_a_server_that_sends_another_range_is_not_believed(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    part_of(path).write_bytes(CONTENT[:100])
    assert "asked for byte 100 on, it sent bytes 99-" in refused([server.url("liar")], path).why
    assert part_of(path).read_bytes() == CONTENT[:100]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("gone", "the server answers 404"),
        ("pointer", "Git LFS pointer"),
        ("page", "web page"),
        ("empty", "empty"),
        ("other", f"instead of {SHA256}"),
    ],
)
def test_what_is_not_the_file_is_refused_and_the_next_address_asked(
    behaviour: str, reason: str, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    assert reason in refused([server.url(behaviour)], path).why
    assert not part_of(path).exists()
    if behaviour != "other":  # the only one of them that nothing but a hash can tell
        assert reason in refused([server.url(behaviour)], path, None, None).why
    download([server.url(behaviour), server.url("ranges")], path, len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT


def test_another_size_is_refused_before_it_is_all_there(server: Server, tmp_path: Path) -> None:
    assert f"serves {len(CONTENT)} bytes instead of 5" in refused([server.url("ranges")], tmp_path / "w.pt", 5).why
    assert "has 10247 bytes instead of 5" in refused([server.url("unknown-length")], tmp_path / "w.pt", 5).why


def test_a_refused_file_leaves_the_one_that_is_there(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"as it was")
    with pytest.raises(BenchError):
        download([server.url("other")], path, len(CONTENT), SHA256)
    assert path.read_bytes() == b"as it was"
    download([server.url("ranges")], path, len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT


def test_without_a_network_every_address_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: whoever connects is turned away
        urls = [f"http://127.0.0.1:{taken.getsockname()[1]}/{name}" for name in "ab"]
        error = refused(urls, tmp_path / "weights.pt")
    assert error.why.count("no connection") == 2 and all(url in error.why for url in urls)


def test_a_silent_server_is_left_after_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BenchError) as caught:
        download([f"http://127.0.0.1:{silent.getsockname()[1]}/w"], tmp_path / "w.pt", timeout=0.2)
    assert "timed out" in caught.value.why


def test_a_folder_that_can_t_be_made_is_told_from_a_broken_connection(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BenchError, match="can't be written") as caught:
        download([server.url("ranges")], tmp_path / "file" / "weights.pt")
    assert "--weights-dir" in caught.value.cure and server.asked == []


# --- by id ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Weight, Weight]]:
    """Two files of that server in the registry, one with a public hash and one without."""
    monkeypatch.setenv("W2SVD_BENCH_WEIGHTS", str(tmp_path))
    pinned = Weight("pinned", "a/pinned.pt", (server.url("ranges"),), len(CONTENT), SHA256, "us", "MIT", ("m",))
    trusted = Weight("trusted", "trusted.pt", (server.url("plain"),), None, None, "nobody", "MIT", ("m",))
    for weight in (pinned, trusted):
        monkeypatch.setitem(weights.WEIGHTS, weight.id, weight)
    yield pinned, trusted


def test_fetching_twice_asks_once(listed: tuple[Weight, Weight], server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert fetch("pinned").standing == "pinned" and fetch("trusted").standing == "trusted on first use"
    assert server.asked == [("ranges", None), ("plain", None)]
    assert (tmp_path / "a" / "pinned.pt").read_bytes() == (tmp_path / "trusted.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"", POINTER, PAGE, CONTENT[:50], CONTENT[::-1]])
def test_fetching_replaces_what_is_not_right(listed: tuple[Weight, Weight], content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a" / "pinned.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    assert fetch("pinned").path == path and path.read_bytes() == CONTENT


def test_fetching_replaces_a_stand_in(listed: tuple[Weight, Weight]) -> None:
    for id in ("pinned", "trusted"):
        assert weights.install_stand_in(id, b"random weights").standing == "stand-in"
        found = fetch(id)
        assert found.standing != "stand-in" and found.path.read_bytes() == CONTENT


def test_what_was_trusted_once_is_not_replaced_by_something_else(
    listed: tuple[Weight, Weight], server: Server, tmp_path: Path
) -> None:
    fetch("trusted")
    (tmp_path / "trusted.pt").unlink()
    server.content = b"the publisher put another file there"
    with pytest.raises(BenchError, match=SHA256) as caught:
        fetch("trusted")
    assert not (tmp_path / "trusted.pt").exists() and "w2svd-bench weights fetch trusted" in caught.value.cure
    server.content = CONTENT
    assert fetch("trusted").sha256 == SHA256
