"""Pages of features that circuit-tracer's sets come with: read on demand from their folder, one feature at a time.

Either ``features/index.json.gz`` names for each layer a file and the offsets of its features, each a length (uint32)
and compressed JSON; or ``features/<number>.json``, in a folder of the scan's name or not, is a file for each feature,
whose number pairs layer and index (Cantor). Nothing in them is trusted.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._json import parse_json
from .fields import Refused, is_number

INDEX = "index.json.gz"
MOST_BYTES = 32 << 20  # of a feature's JSON
MOST_INDEX = 512 << 20
MOST_LAYERS = 10_000
MOST_FEATURES = 1 << 40
MOST_GROUPS = 20
MOST_EXAMPLES = 50  # of a group
MOST_TOKENS = 1_024  # of an example
MOST_TEXT = 200  # characters of a token


def paired(layer: int, index: int) -> int:
    """The number that stands for both."""
    return (layer + index) * (layer + index + 1) // 2 + index


class FeatureFolder:
    """The folder ``features`` of a set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index: Mapping[str, Any] | None = None

    @staticmethod
    def is_one(path: Path) -> bool:
        if not path.is_dir():
            return False
        if (path / INDEX).is_file():
            return True
        inside = (path, *(one for one in path.iterdir() if one.is_dir()))
        return any(next(folder.glob("[0-9]*.json"), None) is not None for folder in inside)

    def card(self, layer: int, index: int, scan: str = "") -> dict[str, Any]:
        """The page of a feature, in the form of ``cards``. Raises Refused."""
        if layer > MOST_LAYERS or index > MOST_FEATURES:
            raise Refused(f"there is no feature {index} of layer {layer}"[:200], 404)
        found = self._packed(layer, index) if (self.path / INDEX).is_file() else self._single(layer, index, scan)
        return _page(found, index)

    def _single(self, layer: int, index: int, scan: str) -> Any:
        name = f"{paired(layer, index)}.json"
        folders = [one for one in self.path.iterdir() if one.is_dir() and one.name == scan]  # a name, never a path
        for folder in (*folders, self.path):
            file = folder / name
            if file.is_file():
                if file.stat().st_size > MOST_BYTES:
                    raise Refused(f"{file.name}: a feature's page may have {MOST_BYTES >> 20} MiB", 413)
                return parse_json(file.read_bytes(), file.name, Refused)
        raise Refused(f"the features beside the graph hold none {index} of layer {layer}", 404)

    def _packed(self, layer: int, index: int) -> Any:
        entry = self._layers().get(str(layer))
        if not isinstance(entry, Mapping):
            raise Refused(f"the features beside the graph hold none of layer {layer}", 404)
        name, offsets = entry.get("filename"), entry.get("offsets")
        if not isinstance(name, str) or not isinstance(offsets, list) or not all(isinstance(o, int) for o in offsets):
            raise Refused(f"{INDEX}: layer {layer} must have a filename and offsets")
        files = {one.name: one for one in self.path.iterdir() if one.is_file()}
        if name not in files:
            raise Refused(f"{INDEX}: layer {layer} names {name[:80]!r}, which is no file of the folder")
        if not 0 <= index < len(offsets) - 1:
            raise Refused(f"the features beside the graph hold none {index} of layer {layer}", 404)
        first, end = offsets[index], offsets[index + 1]
        if not 0 <= first <= end <= files[name].stat().st_size or not 4 <= end - first <= MOST_BYTES:
            raise Refused(f"{INDEX}: offsets of feature {index} in layer {layer} do not fit {name}")
        with files[name].open("rb") as file:
            file.seek(first)
            raw = file.read(end - first)
        length = int.from_bytes(raw[:4], "little")
        if length > len(raw) - 4:
            raise Refused(f"{name}: feature {index} must have {length} bytes, and {len(raw) - 4} follow")
        return parse_json(_inflated(raw[4 : 4 + length], name, MOST_BYTES), name, Refused)

    def _layers(self) -> Mapping[str, Any]:
        if self._index is None:
            packed = (self.path / INDEX).read_bytes()
            found = parse_json(_inflated(packed, INDEX, MOST_INDEX), INDEX, Refused)
            if not isinstance(found, Mapping):
                raise Refused(f"{INDEX}: must be an object of layers")
            self._index = found
        return self._index


def _inflated(packed: bytes, name: str, most: int) -> bytes:
    """Of gzip or zlib, which says itself what it is."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        found = unpacker.decompress(packed, most)
    except zlib.error as error:
        raise Refused(f"{name}: is damaged: {error}") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise Refused(f"{name}: is cut short, or larger than {most >> 20} MiB", 413)
    return found


def _page(data: Any, index: int) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise Refused(f"the page of feature {index} must be a JSON object, got {type(data).__name__}")
    groups = [group for one in _list(data, "examples_quantiles", MOST_GROUPS) if (group := _group(one))]
    largest = max((max(one["values"]) for group in groups for one in group["examples"]), default=None)
    return {
        "index": index,
        "label": "",
        "hook": "",
        "density": _number(data.get("activation_frequency")),
        "max": _number(data.get("act_max")) or largest,
        "histogram": None,
        "logits": {"raised": _tokens(data, "top_logits"), "lowered": _tokens(data, "bottom_logits")},
        "logit_histogram": None,
        "neighbours": {"decoder": [], "coactive": []},
        "groups": groups,
        "cached": True,
    }


def _list(data: Any, key: str, most: int) -> Sequence[Any]:
    value = data.get(key) if isinstance(data, Mapping) else None
    return value[:most] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _tokens(data: Mapping[str, Any], key: str) -> list[list[Any]]:
    """Tokens, with values where the file has them."""
    found = []
    for one in _list(data, key, MOST_GROUPS):
        token, value = (one[0], one[1]) if isinstance(one, list) and len(one) == 2 else (one, None)
        if isinstance(token, str):
            found.append([token[:MOST_TEXT], _number(value)])
    return found


def _group(given: Any) -> dict[str, Any] | None:
    examples = []
    for one in _list(given, "examples", MOST_EXAMPLES):
        tokens, values = _list(one, "tokens", MOST_TOKENS), _list(one, "tokens_acts_list", MOST_TOKENS)
        if not tokens or len(tokens) != len(values) or not all(map(is_number, values)):
            continue
        at = max(range(len(values)), key=lambda i: values[i])
        examples.append(
            {"tokens": [str(t)[:MOST_TEXT] for t in tokens], "values": [float(v) for v in values], "at": at}
        )
    title = given.get("quantile_name") if isinstance(given, Mapping) else None
    return {"title": str(title or "Examples")[:MOST_TEXT], "examples": examples} if examples else None
