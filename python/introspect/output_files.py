"""Files that the library writes: names that stay in their folder, and contents that are complete or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESERVED = ("report", "overview", "run", "sweep")  # stems of other files of a run's folder
_LONGEST = 120  # bytes; file systems take 255, and suffixes such as "_strength_curves.json" are added


def check_file_name(name: str, what: str) -> str:
    """The name, if a file of a run's folder can be called so.

    Args:
        what: the beginning of the error's message, as in "report: the protocol's name".

    Raises:
        ValueError: a name that is empty, too long, reserved or hidden, or that could lead out of the folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what} becomes a file name and must be text, got {name!r}")
    if name.lower() in RESERVED:
        raise ValueError(f"{what} becomes a file name and must not be one of {', '.join(RESERVED)}, got {name!r}")
    if name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name):
        raise ValueError(
            f"{what} becomes a file name: it must not begin with a dot or hold slashes or control characters, "
            f"got {name!r}"
        )
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST:
        raise ValueError(f"{what} becomes a file name and must have at most {_LONGEST} bytes, got {name[:40]!r}...")
    return name


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A new file beside ``path`` to write to, which takes its name when the block ends, or is gone if it fails.

    Raises:
        OSError: with the name of ``path`` in it, as for a full disk.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
        yield part
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file that is complete or as it was; OSError as ``replacing``."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text; the file is complete or as it was; OSError as ``replacing``."""
    write_bytes(path, text.encode("utf-8"))
