"""The files of feature networks: how they are found, downloaded, verified and refused."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from attcl_cli.errors import AttclError
from attcl_cli.scoring import feature_weights
from attcl_cli.temporaries import temporary_file, temporary_prefix

pytestmark = pytest.mark.usefixtures("network_folders")

CONTENT = b"weights of a network, or what stands for them\n" * 50_000  # more than one chunk
RECORD = feature_weights.FeatureFile(
    name="net.pth",
    url="http://127.0.0.1:9/net.pth",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


class Server:
    """Serves a file: change `content`, `length` or `status`; `asked` counts the requests."""

    def __init__(self) -> None:
        self.content, self.status, self.asked = CONTENT, 200, 0
        self.length: int | None = None
        self.url = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked += 1
            self.send_response(state.status)
            length = len(state.content) if state.length is None else state.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that has read enough hangs up

    with Quiet(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}/net.pth"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


def everything(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_missing_file_is_downloaded_once_whole_and_into_the_named_folder(server, network_folders):
    reported: list[tuple[int, int]] = []
    record = replace(RECORD, url=server.url)
    path = feature_weights.locate(
        record, on_bytes=lambda done, total: reported.append((done, total))
    )
    assert path == network_folders.named / "net.pth"
    assert path.read_bytes() == CONTENT
    assert everything(network_folders.named.parent) == [path]
    assert len(reported) >= 2
    assert reported == sorted(reported)
    assert reported[-1] == (len(CONTENT), len(CONTENT))
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    assert feature_weights.locate(record) == path
    assert feature_weights.locate(record, offline=True) == path
    assert server.asked == 1


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_without_a_named_folder_torchs_cache_takes_the_download(
    server, network_folders, monkeypatch
):
    monkeypatch.delenv("ATTCL_WEIGHTS")
    network_folders.cache.rmdir()
    path = feature_weights.locate(replace(RECORD, url=server.url))
    assert path == network_folders.cache / "net.pth"
    assert path.read_bytes() == CONTENT


def test_the_named_folder_comes_before_torchs_cache(network_folders):
    (network_folders.cache / "net.pth").write_bytes(CONTENT)
    assert feature_weights.locate(RECORD, offline=True) == network_folders.cache / "net.pth"
    (network_folders.named / "net.pth").write_bytes(CONTENT)
    assert feature_weights.locate(RECORD, offline=True) == network_folders.named / "net.pth"


@pytest.mark.parametrize("change", ["short", "long", "other"])
def test_a_download_of_other_bytes_is_an_error_and_leaves_nothing(change, server, network_folders):
    server.content = {
        "short": CONTENT[:-1],
        "long": CONTENT + b"!" * 5_000_000,
        "other": b"?" + CONTENT[1:],
    }[change]
    with pytest.raises(AttclError) as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    found = {
        "short": f"sent {len(CONTENT) - 1} bytes",
        "long": f"sent more than {len(CONTENT)} bytes",
        "other": f"SHA-256 {hashlib.sha256(server.content).hexdigest()}",
    }[change]
    for part in ("net.pth", found, server.url, RECORD.sha256):
        assert part in caught.value.message
    assert str(network_folders.named) in caught.value.hint
    assert everything(network_folders.named.parent) == []


def test_a_connection_that_breaks_off_is_an_error_and_leaves_nothing(server, network_folders):
    server.content, server.length = CONTENT[: len(CONTENT) // 2], len(CONTENT)
    with pytest.raises(AttclError, match="not downloaded") as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    assert server.url in caught.value.message
    assert everything(network_folders.named.parent) == []


def test_an_interrupted_download_leaves_nothing(server, network_folders):
    def interrupt(_done: int, _total: int) -> None:
        assert any(network_folders.named.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_weights.locate(replace(RECORD, url=server.url), on_bytes=interrupt)
    assert everything(network_folders.named.parent) == []


def test_a_download_sweeps_what_a_killed_one_left_and_nothing_else(server, network_folders):
    path = network_folders.named / "net.pth"
    dead = network_folders.named / f"{temporary_prefix(path)}x.attcl-tmp"
    dead.write_bytes(b"part")
    with temporary_file(path) as (_, alive):
        feature_weights.locate(replace(RECORD, url=server.url))
        assert everything(network_folders.named) == [alive, path]


def test_a_page_that_is_not_there_is_an_error_that_says_so(server):
    server.status = 404
    with pytest.raises(AttclError, match="HTTP 404") as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    assert server.url in caught.value.hint


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(
    server, network_folders, monkeypatch
):
    (network_folders.named / "file").write_bytes(b"")
    monkeypatch.setenv("ATTCL_WEIGHTS", str(network_folders.named / "file"))
    with pytest.raises(AttclError, match="not written") as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    assert str(network_folders.named / "file" / "net.pth") in caught.value.message
    assert "ATTCL_WEIGHTS" in caught.value.hint


@pytest.mark.parametrize("how", ["argument", "environment", "no connection"])
@pytest.mark.parametrize("name", feature_weights.FILES)
def test_without_a_connection_the_error_says_at_once_what_to_put_where(
    name, how, network_folders, monkeypatch
):
    with socket.socket() as taken:  # bound and not listening: refuses
        taken.bind(("127.0.0.1", 0))
        if how == "no connection":
            record = replace(
                feature_weights.FILES[name], url=f"http://127.0.0.1:{taken.getsockname()[1]}/x"
            )
        else:
            record = feature_weights.FILES[name]
        if how == "environment":
            monkeypatch.setenv("ATTCL_OFFLINE", "1")
        start = time.monotonic()
        with pytest.raises(AttclError) as caught:
            feature_weights.locate(record, offline=how == "argument")
        assert time.monotonic() - start < 8  # at once: no time limit of the network was waited for
    message, hint = caught.value.message, caught.value.hint
    for part in (record.name, record.sha256, str(record.size_bytes)):
        assert part in message
    for folder in (network_folders.named, network_folders.cache):
        assert str(folder) in message
    assert record.url in hint
    assert str(network_folders.named) in hint
    assert ("--fid-network effnet-lite0" in hint) == (name == "inception")
    assert everything(network_folders.named.parent) == []


def test_attcl_offline_zero_is_not_offline(server, monkeypatch):
    monkeypatch.setenv("ATTCL_OFFLINE", "0")
    feature_weights.locate(replace(RECORD, url=server.url))
    assert server.asked == 1


@pytest.mark.parametrize("content", [b"?" + CONTENT[1:], CONTENT[1:]])
def test_a_file_of_other_bytes_is_refused_kept_and_not_replaced(content, server, network_folders):
    path = network_folders.named / "net.pth"
    path.write_bytes(content)
    (network_folders.cache / "net.pth").write_bytes(CONTENT)
    with pytest.raises(AttclError) as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    assert str(path) in caught.value.message
    assert RECORD.sha256 in caught.value.message
    found = (
        hashlib.sha256(content).hexdigest() if len(content) == len(CONTENT) else str(len(content))
    )
    assert found in caught.value.message
    assert "delete it" in caught.value.hint
    assert path.read_bytes() == content
    assert server.asked == 0


def test_a_file_is_hashed_once_a_process_and_again_when_it_changes(network_folders):
    path = network_folders.named / "net.pth"
    path.write_bytes(CONTENT)
    with mock.patch.object(feature_weights, "sha256", wraps=feature_weights.sha256) as hashing:
        feature_weights.locate(RECORD)
        feature_weights.locate(RECORD)
        assert hashing.call_count == 1
        path.write_bytes(b"?" + CONTENT[1:])
        os.utime(path, ns=(1, 1))
        with pytest.raises(AttclError, match="it was not loaded"):
            feature_weights.locate(RECORD)


def test_the_records_carry_the_hashes_that_their_names_begin():
    for record in feature_weights.FILES.values():
        assert record.name.endswith(f"-{record.sha256[:8]}.pth")
        assert record.url.endswith(f"/{record.name}")
        assert len(record.sha256) == 64
