"""The data files that come with the library (cpp/share). SOURCES.md there says where each comes from."""

import json
import os
from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parents[1] / "cpp" / "share"


def share_folder() -> Path:
    """Where the data is: $INTROSPECT_SHARE, or cpp/share of a checkout, or the installed package.

    As io::share_folder in C++, but without the compiled library, which what needs no model does not load.

    Raises:
        IoError: INTROSPECT_SHARE names a folder that does not hold the data.
    """
    if named := os.environ.get("INTROSPECT_SHARE"):
        if not (Path(named) / "SOURCES.md").exists():
            import torch  # noqa: F401 - _C needs libtorch

            from ._C import IoError

            raise IoError(f"share_folder: INTROSPECT_SHARE names {named}, which does not hold the library's data")
        return Path(named)
    return _CHECKOUT if (_CHECKOUT / "SOURCES.md").exists() else _PACKAGE / "share" / "introspect"


def load_suffixes(path: str | Path | None = None) -> list[str]:
    """Beginnings of answers that concept pairs are completed with.

    Args:
        path: a JSON list of strings, or a text file with one suffix a line; the 582 shipped ones if not given.

    Raises:
        ValueError: the file holds something else, or nothing.
    """
    path = Path(path) if path is not None else share_folder() / "suffixes.json"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            suffixes = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"load_suffixes: {path} is not JSON: {error}") from None
    else:
        suffixes = text.splitlines()
    if not isinstance(suffixes, list) or not suffixes or not all(isinstance(s, str) for s in suffixes):
        raise ValueError(f"load_suffixes: {path} must hold a list of strings, and at least one")
    return suffixes


def load_words(name: str = "concepts") -> list[str]:
    """Words that ControlVector.train_words makes vectors of, and of which it takes the mean.

    Args:
        name: "concepts" (50), "baseline" (100, the mean over which is subtracted), "more_concepts" (450) or
            "concepts_lindsey" (50, with one other word).

    Raises:
        ValueError: no list of this name.
    """
    lists = json.loads((share_folder() / "words.json").read_text(encoding="utf-8"))
    if name not in lists:
        raise ValueError(f"load_words: name must be one of {', '.join(lists)}, got {name!r}")
    return lists[name]


def model_registry() -> dict[str, dict]:
    """Short name -> file name, size, SHA-256 and where the file can be had."""
    return json.loads((share_folder() / "models.json").read_text(encoding="utf-8"))


def other_models() -> list[dict]:
    """Models by short names and hub ids that this library does not run: what they are, and why not."""
    return json.loads((share_folder() / "other_models.json").read_text(encoding="utf-8"))


def sae_releases() -> dict:
    """SAELens's names of releases as rules: which repository and path a release and an id stand for."""
    return json.loads((share_folder() / "sae_releases.json").read_text(encoding="utf-8"))
