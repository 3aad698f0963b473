"""Files that the library writes: names that stay in their folder, and contents that are complete or not there."""

from __future__ import annotations

import os

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


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file that is complete or as it was; IoError names it, as for a full disk."""
    from ._C import write_atomically  # here, because it loads torch

    write_atomically(path, data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text; the file is complete or as it was; IoError as ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))
