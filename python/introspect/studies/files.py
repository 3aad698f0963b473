"""Studies and results in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .._json import parse_json
from ..experiments.results import Result

if TYPE_CHECKING:
    from .study import Study


def is_study(path: Path) -> bool:
    """Whether a file holds a study; False for anything else, a damaged file too."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"), str(path), ValueError)
    except (ValueError, OSError):
        return False
    return isinstance(data, dict) and isinstance(data.get("arms"), dict) and "protocol" in data


def is_replication(path: Path) -> bool:
    """Whether a file holds a replication; False for anything else, a damaged file too."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"), str(path), ValueError)
    except (ValueError, OSError):
        return False
    return isinstance(data, dict) and {"entry", "figures", "differs", "results"} <= data.keys()


def load_found(path: Path) -> Study | Result:
    """The study or result of a file.

    Raises:
        ValueError: the file is neither.
    """
    if is_study(path):
        from .study import Study

        return Study.load(path)
    return Result.load(path)
