"""Doses in stores: what one vector's injections do, measured once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import _C
from .._json import finite, parse_json
from .dose import Dose, note

VERSION = 2
"""Rises when the numbers of doses may change: those of before are then not found."""


def kept(
    model: Any,
    experiment: Mapping[str, Any],
    unit: str,
    store: _C.Store | None,
    asked: Any,
    make: Callable[[list[tuple[str, Any]]], list[Dose]],
) -> list[Dose]:
    """The doses of every vector of an experiment, from the store where they are there; the others go there.

    Args:
        experiment: in the native module's form.
        unit: of the strengths.
        asked: what decides the doses besides model, protocol, vector, layers, part and seed: strengths, or a target.
        make: the doses of these (name, vector).
    """
    if store is None:
        return make(experiment["vectors"])
    keys = {name: _key(model, experiment, unit, asked, name, vector) for name, vector in experiment["vectors"]}
    found = {name: _doses(store, key) for name, key in keys.items()}
    missing = [(name, vector) for name, vector in experiment["vectors"] if found[name] is None]
    made = make(missing) if missing else []
    for name, _ in missing:
        found[name] = [one for one in made if one.concept == name]
        if store.can_write:
            listed = json.dumps(finite([one.to_dict() for one in found[name] or []]), ensure_ascii=False)
            store.put_dose(keys[name], listed, name, _origin(model, experiment["protocol"], unit), experiment["seed"])
    return [one for listed in found.values() for one in listed or []]


def note_kept(data: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write into a result's JSON the doses that ``rows`` of a store hold, see ``dose.note``."""
    definition = data["protocol"].get("definition", {})
    for row in rows:
        note(data, _parsed(row["value"], f"cell {row['key'][:12]}"), definition.get("relative_strength", 1.0))


def _key(model: Any, experiment: Mapping[str, Any], unit: str, asked: Any, name: str, vector: Any) -> str:
    content = hashlib.sha256()
    for layer, direction in sorted(vector.directions.items()):
        content.update(f"{layer}:".encode())
        content.update(direction.contiguous().numpy().tobytes())
    protocol = experiment["protocol"]
    decides = {
        "read": "dose",
        "version": VERSION,
        "model": model.hash,
        "dtype": "torch." + model.native.precision,
        "device": str(model.device),
        "protocol": protocol.hash,
        "tokens": [list(part) for part in _C.conversation_tokens(model.native, protocol)],
        "concept": name,
        "vector": content.hexdigest(),
        "asked": asked,
        "unit": unit,
        "layers": experiment["layers"],
        "part": experiment["parts"][0],
        "seed": experiment["seed"],
    }
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _doses(store: _C.Store, key: str) -> list[Dose] | None:
    value = store.get(key)
    return None if value is None else _parsed(value, f"Store: {store.path}: cell {key[:12]}")


def _parsed(value: str, who: str) -> list[Dose]:
    """Raises IoError for anything but doses."""
    listed = parse_json(value, who)
    try:
        filled: list[dict[str, Any]] = [
            {name: float("nan") if item is None else item for name, item in one.items()} for one in listed
        ]
        return [Dose(**fields) for fields in filled]
    except (TypeError, AttributeError):
        raise _C.IoError(f"{who}: it must be a list of doses, got {value[:60]!r}") from None


def _origin(model: Any, protocol: _C.Protocol, unit: str) -> dict[str, str]:
    return {
        "model": Path(model.name).name.removesuffix(".gguf"),
        "model_hash": model.hash,
        "dtype": model.native.precision,
        "device": str(model.device),
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "strength_unit": unit,
        "introspect_version": _C.__version__,
        "torch_version": _C.built_with_torch,
    }
