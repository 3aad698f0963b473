"""What there is to explore: the model, dictionaries, graphs, runs and vectors that a path and options name.

Files get their names here, once. A request names one of them and never a path, so that none leads anywhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .feature_folders import INDEX, FeatureFolder

MOST_FILES = 2_000  # in one folder
LOOKED_AT = 1 << 20  # bytes of a JSON file that say what it is
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
DICTIONARY_FILES = ("sae_weights.safetensors", "sae.safetensors", "params.npz", "ae.pt", "dictionary.safetensors")
GRAPH = "introspect.attribution_graph"  # a key of a graph's notes
CELLS = "cells.sqlite"
FEATURES = "features"
FOLDER_SKIPPED = {FEATURES, "__pycache__", "node_modules"}
CROSS_LAYER = ("W_enc_*.safetensors", "params_layer_*.safetensors")


@dataclass
class Workspace:
    """Names to files. ``model`` is what ``load_model`` takes, or None."""

    model: str | None = None
    dictionaries: dict[str, Path] = field(default_factory=dict)
    graphs: dict[str, Path] = field(default_factory=dict)
    runs: dict[str, Path] = field(default_factory=dict)
    vectors: dict[str, Path] = field(default_factory=dict)
    cross_layer: dict[str, Path] = field(default_factory=dict)  # transcoders, for graphs
    features: dict[str, FeatureFolder] = field(default_factory=dict)  # of graphs: pages of features
    lens: Path | None = None
    texts: Path | None = None  # one text a line, for the contexts of features
    layers: dict[str, int] = field(default_factory=dict)  # of dictionaries that share a folder, one a layer
    skipped: list[str] = field(default_factory=list)  # what was too much to look at, in words

    @property
    def is_empty(self) -> bool:
        return not (self.model or self.dictionaries or self.cross_layer or self.graphs or self.runs or self.vectors)

    def add(self, kind: str, path: Path, name: str | None = None) -> None:
        """A file or folder of a kind ("graphs", ...), under a name that no other of its kind has."""
        found: dict[str, Path] = getattr(self, kind)
        if path in found.values():
            return
        if kind == "dictionaries" and is_cross_layer(path):
            self.add("cross_layer", path, name)
            return
        if kind == "dictionaries" and (layers := layer_files(path)):
            for layer in layers:
                found[f"{path.name}, layer {layer}"] = path
                self.layers[f"{path.name}, layer {layer}"] = layer
            return
        base = name or path.stem if kind in ("graphs", "vectors") else name or path.name
        unique, n = base or "unnamed", 2
        while unique in found:
            unique, n = f"{base} ({n})", n + 1
        found[unique] = path
        beside = path.parent / FEATURES
        if kind == "graphs" and FeatureFolder.is_one(beside):
            self.features[unique] = FeatureFolder(beside)


def find(
    path_or_model: str,
    *,
    model: str | None = None,
    dictionaries: Sequence[Path] = (),
    graphs: Sequence[Path] = (),
    runs: Sequence[Path] = (),
    vectors: Sequence[Path] = (),
    lens: Path | None = None,
    texts: Path | None = None,
    features: Path | None = None,
) -> Workspace:
    """A workspace of a path (a graph, a run, a dictionary, a model, or a folder of these) or of a model's name.

    Raises:
        FileNotFoundError: a folder that holds none of these.
    """
    space = Workspace(model=model, lens=lens, texts=texts)
    path = Path(path_or_model)
    if not path.exists():
        if model is not None:
            raise FileNotFoundError(f"explore: there is no {path}")
        space.model = path_or_model
    elif is_model(path):
        space.model = model or path_or_model
        if path.is_dir():
            _look_into(space, path, deeper=False)
    elif path.is_dir():
        _look_into(space, path, deeper=True)
    else:
        _look_at(space, path)
    for kind, given in (("dictionaries", dictionaries), ("graphs", graphs), ("runs", runs), ("vectors", vectors)):
        for one in given:
            space.add(kind, Path(one))
    if features is not None:
        if not FeatureFolder.is_one(features):
            raise FileNotFoundError(f"explore: {features} holds no pages of features ({INDEX} or <number>.json)")
        space.features = dict.fromkeys(space.graphs, FeatureFolder(features))
    if space.is_empty:
        raise FileNotFoundError(
            f"explore: {path} holds no model, dictionary, attribution graph (.json with nodes and links), run "
            "(introspect run) or control vector"
        )
    return space


def is_model(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".gguf" and not _is_vector(path)
    return (path / "config.json").is_file() and any(any(path.glob(kind)) for kind in WEIGHTS)


def is_dictionary(path: Path) -> bool:
    return path.is_dir() and (
        any((path / name).is_file() for name in DICTIONARY_FILES) or bool(layer_files(path)) or is_cross_layer(path)
    )


def is_cross_layer(path: Path) -> bool:
    return path.is_dir() and any(next(path.glob(pattern), None) is not None for pattern in CROSS_LAYER)


def layer_files(path: Path) -> list[int]:
    """The layers of a folder with a transcoder for each, as circuit-tracer has them: layer_0.safetensors, ..."""
    if not path.is_dir():
        return []
    numbers = (file.stem.removeprefix("layer_") for file in path.glob("layer_*.safetensors"))
    return sorted(int(number) for number in numbers if number.isascii() and number.isdecimal())


def is_run(path: Path) -> bool:
    return path.is_dir() and (
        (path / CELLS).is_file() or any(kind_of_json(file) == "result" for file in _files(path, "*.json"))
    )


def kind_of_json(path: Path) -> str:
    """ "graph", "result" or "": by the beginning of the file, which may be large."""
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_AT)
    except OSError:
        return ""
    if b'"qParams"' in head or (b'"nodes"' in head and b'"node_id"' in head) or b'"prompt_tokens"' in head:
        return "graph"
    if b'"protocol"' in head and b'"schema"' in head and b'"settings"' in head and path.stem not in ("report", "run"):
        return "result"
    return ""


def _is_vector(path: Path) -> bool:
    if path.suffix != ".gguf":
        return False
    try:
        with path.open("rb") as file:
            return b"controlvector" in file.read(1 << 12)
    except OSError:
        return False


def _files(folder: Path, pattern: str) -> Iterable[Path]:
    for n, file in enumerate(sorted(folder.glob(pattern))):
        if n >= MOST_FILES:
            return
        yield file


def _look_into(space: Workspace, folder: Path, *, deeper: bool) -> None:
    if is_dictionary(folder):
        space.add("dictionaries", folder)
    if is_run(folder):
        space.add("runs", folder)
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if len(entries) > MOST_FILES:
        space.skipped.append(f"{folder}: the first {MOST_FILES:,} of {len(entries):,} files were looked at")
    for entry in entries[:MOST_FILES]:
        path = Path(entry.path)
        if entry.name.startswith(".") or entry.name in FOLDER_SKIPPED:
            continue
        if entry.is_file():
            _look_at(space, path, alone=False)
        elif deeper and entry.is_dir():
            if is_model(path):
                space.model = space.model or str(path)
            else:
                _look_into(space, path, deeper=False)


def _look_at(space: Workspace, path: Path, *, alone: bool = True) -> None:
    if (path.suffix == ".json" and kind_of_json(path) == "graph") or (path.suffix == ".pt" and alone):
        space.add("graphs", path)
    elif (path.suffix == ".sqlite" and alone) or (path.suffix == ".json" and alone and kind_of_json(path) == "result"):
        space.add("runs", path)
    elif path.suffix == ".gguf" and _is_vector(path):
        space.add("vectors", path)
    elif path.suffix == ".safetensors":
        header = _header(path)
        if any(name.startswith("direction.") for name in header):
            space.add("vectors", path)
        elif isinstance(notes := header.get("__metadata__"), dict) and GRAPH in notes:
            space.add("graphs", path)


def _header(path: Path) -> dict:
    """Names of a safetensors file's tensors and its notes; {} of one that is damaged or whose header is large."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if 2 <= size <= LOOKED_AT else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
