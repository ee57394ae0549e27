"""The files of the feature networks: found, downloaded once, verified.

Needs no torch, so that a run without a connection ends before anything slow begins; loading is left to
`feature_networks`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from attcl_cli.errors import AttclError, refusal
from attcl_cli.files import ordinary_mode, sha256
from attcl_cli.temporaries import sweep_beside, temporary_file

TIMEOUT_SECONDS = 10.0
_CHUNK = 1 << 20

OnBytes = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True)
class FeatureFile:
    """A file of weights that is downloaded once.

    Attributes:
        name: of the file, in every folder.
        url: where it comes from.
        size_bytes: its exact size.
        sha256: of its bytes, in hex.
        instead: what the user can do without it; empty if there is nothing.
    """

    name: str
    url: str
    size_bytes: int
    sha256: str
    instead: str = ""


FILES: dict[str, FeatureFile] = {
    "inception": FeatureFile(
        name="pt_inception-2015-12-05-6726825d.pth",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        size_bytes=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        instead="--fid-network effnet-lite0 needs no download",
    ),
    "alexnet": FeatureFile(
        name="alexnet-owt-7be5be79.pth",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        size_bytes=244_408_911,
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
}


def locate(file: FeatureFile, *, offline: bool = False, on_bytes: OnBytes | None = None) -> Path:
    """Find a file's verified copy; if there is none, download it, once.

    Looks in the folder that ATTCL_WEIGHTS names, then in torch's cache; the first of them takes the download.

    Args:
        file: one of `FILES`.
        offline: never download; ATTCL_OFFLINE=1 means the same.
        on_bytes: called with the bytes done and their number in all, at least once per megabyte.

    Returns:
        A file whose size and SHA-256 are those expected.

    Raises:
        AttclError: it is missing and may not or cannot be downloaded, or it holds other bytes.
    """
    folders = _folders()
    for folder in folders:
        path = folder / file.name
        if path.is_file():
            _verify(path, file)
            return path
    if offline or os.environ.get("ATTCL_OFFLINE", "") not in ("", "0"):
        raise _unavailable(file, "the run is offline")
    path = folders[0] / file.name
    _download(file, path, on_bytes or _count_nothing)
    _verified.add(_identity(path, file))
    return path


# (path, size, time of the last change, SHA-256) of what this process has verified: a run verifies a file once.
_verified: set[tuple[str, int, int, str]] = set()


def _count_nothing(_done: int, _total: int) -> None:
    pass


def _folders() -> list[Path]:
    named = os.environ.get("ATTCL_WEIGHTS")
    return [
        *([Path(named)] if named else []),
        _torch_cache(),
    ]


def _torch_cache() -> Path:
    """Return the folder in which `torch.hub` keeps downloaded weights."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("TORCH_HOME") or f"{cache}/torch")
    try:
        return home.expanduser() / "hub" / "checkpoints"
    except RuntimeError as error:  # a container's user that has no name
        raise AttclError(
            f"{home}: no home folder, expected one for feature networks",
            "set HOME, or name a folder for them in TORCH_HOME",
            code="no-home",
        ) from error


def _identity(path: Path, file: FeatureFile) -> tuple[str, int, int, str]:
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, file.sha256


def _verify(path: Path, file: FeatureFile) -> None:
    identity = _identity(path, file)
    if identity in _verified:
        return
    size = path.stat().st_size
    if size != file.size_bytes:
        raise AttclError(
            f"{path}: {size} bytes, expected {file.size_bytes} with SHA-256 {file.sha256}",
            f"delete it and run the command again, or put in its place what {file.url} holds",
            code="feature-weights-changed",
        )
    digest = sha256(path)
    if digest != file.sha256:
        raise AttclError(
            f"{path}: SHA-256 {digest}, expected {file.sha256}; it was not loaded",
            f"delete it and run the command again, or put in its place what {file.url} holds",
            code="feature-weights-changed",
        )
    _verified.add(identity)


def _unavailable(file: FeatureFile, reason: str) -> AttclError:
    folders = " or ".join(str(folder) for folder in _folders())
    return AttclError(
        f"{file.name}: not in {folders}, and not downloaded ({reason}), "
        f"expected {file.size_bytes} bytes with SHA-256 {file.sha256}",
        f"download {file.url} on a machine with a connection and put it into {_folders()[0]} "
        "(or a folder that ATTCL_WEIGHTS names); or leave this score out"
        + (f"; {file.instead}" if file.instead else ""),
        code="feature-weights-missing",
    )


def _download(file: FeatureFile, path: Path, on_bytes: OnBytes) -> None:
    """Stream a file to a temporary one beside `path`, renamed if size and hash are right, otherwise removed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_beside(path)
        chunks = _chunks(file)
        chunk = next(chunks, b"")  # without a connection no file is made
        done, hasher = 0, hashlib.sha256()
        with temporary_file(path) as (handle, temporary):
            with os.fdopen(handle, "wb", closefd=False) as stream, contextlib.closing(chunks):
                while chunk and done <= file.size_bytes:
                    stream.write(chunk)
                    hasher.update(chunk)
                    done += len(chunk)
                    on_bytes(min(done, file.size_bytes), file.size_bytes)
                    chunk = next(chunks, b"")
                stream.flush()
                os.fsync(handle)
            _require_expected(file, path, done, hasher.hexdigest())
            temporary.chmod(ordinary_mode(0o666))
            temporary.replace(path)
    except OSError as error:
        expected, hint = refusal(
            error,
            f"expected a writable folder with {file.size_bytes} bytes of free space",
            "free some space",
        )
        raise AttclError(
            f"{path}: not written ({error.strerror or error}), {expected}",
            f"{hint}, or name another folder in ATTCL_WEIGHTS",
            code="download-not-written",
        ) from error


def _require_expected(file: FeatureFile, path: Path, size: int, digest: str) -> None:
    """Raise an error unless a download to `path` has the expected size and SHA-256."""
    if size != file.size_bytes:
        count = f"more than {file.size_bytes}" if size > file.size_bytes else str(size)
        raise _unavailable(file, f"{file.url} sent {count} bytes")
    if digest != file.sha256:
        raise AttclError(
            f"{file.name}: SHA-256 {digest} from {file.url}, expected {file.sha256}; "
            "the download was removed",
            f"try again; if it happens again, put a verified copy into {path.parent}"
            + (f"; {file.instead}" if file.instead else ""),
            code="download-damaged",
        )


def _chunks(file: FeatureFile) -> Generator[bytes, None, None]:
    """Yield the bytes of a file's URL; raise an `AttclError` for what goes wrong on the way."""
    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as response:
            while chunk := response.read(_CHUNK):
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        raise _unavailable(file, f"{file.url}: HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _unavailable(file, f"{file.url}: {reason}") from error
