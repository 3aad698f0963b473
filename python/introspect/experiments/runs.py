"""What the folder of a run holds: the store, a note of what was asked for, and the results that are finished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._json import parse_json
from ..output_files import RESERVED, check_file_name, write_text
from .detections import mass
from .fields import DEFAULTS, SETTING
from .merging import difference as difference
from .results import SCHEMA, Result, finite

if TYPE_CHECKING:
    from ..model import Model

CELLS = "cells.sqlite"  # the store
NOTES = ("run.json", "sweep.json")  # by the command


def model_facts(model: Model) -> dict[str, Any]:
    """``Result.model`` of whatever this model runs."""
    cfg = model.cfg
    return {
        "name": Path(model.name).name.removesuffix(".gguf"),
        "hash": model.hash,
        "architecture": cfg.original_architecture,
        "n_layers": cfg.n_layers,
        "dtype": model.native.precision,
        "device": str(model.device),
    }


def protocol_facts(protocol: Any) -> dict[str, Any]:
    """``Result.protocol``."""
    facts = {name: getattr(protocol, name) for name in ("name", "hash", "read", "yes_token", "no_token")}
    if protocol.inject != "vector":
        facts["inject"] = protocol.inject
    if protocol.answers:
        facts["answers"] = list(protocol.answers)
    return {**facts, "definition": json.loads(protocol.to_json())}


def write_note(
    folder: Path,
    name: str,
    model: Mapping[str, Any],
    protocols: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Note what a command is about to run, so that its readings become results even if it does not end.

    Args:
        model, protocols: see ``model_facts`` and ``protocol_facts``.
        settings: ``Result.settings``, but for threads and versions, which are this process's.
    """
    import torch

    from .. import _C

    here = {
        "threads": torch.get_num_threads(),
        "versions": {"introspect": _C.__version__, "torch": _C.built_with_torch},
    }
    note = {
        "schema": SCHEMA,
        "model": model,
        "protocols": list(protocols),
        "settings": {**settings, **here},
        "finished": [],
    }
    write_text(folder / name, json.dumps(finite(note), indent=1, ensure_ascii=False))


def note_finished(folder: Path, name: str, protocol: str) -> None:
    note = _note(folder / name)
    note["finished"].append(protocol)
    write_text(folder / name, json.dumps(note, indent=1, ensure_ascii=False))


def load_results(folder: str | os.PathLike) -> list[Result]:
    """The results in a run's folder, by name, with what an interrupted run has finished so far.

    A result that is not complete says so in ``settings["incomplete"]``: {"done": rows, "of": rows}.

    Raises:
        FileNotFoundError: the folder is not there or holds no result and no reading.
        ValueError: a file is damaged.
        IoError: the store is.
    """
    folder = Path(folder)
    files = [path for path in sorted(folder.glob("*.json")) if path.stem not in RESERVED]
    found = {path.stem: Result.load(path) for path in files}
    for name in NOTES:
        if not (folder / name).is_file() or not (folder / CELLS).is_file():
            continue
        note = _note(folder / name)
        for protocol in note["protocols"]:
            if protocol["name"] in note["finished"]:
                continue
            part = unfinished(folder / CELLS, note["model"], protocol, note["settings"])
            if part is not None:
                before = found.get(protocol["name"])
                found[protocol["name"]] = before.merged(part) if before else part
    if not found and (folder / CELLS).is_file():
        raise FileNotFoundError(
            f"report: {folder} holds a run of which no reading under an injection is finished; run its command again"
        )
    if not found:
        raise FileNotFoundError(f"report: {folder} holds no results (<protocol>.json, written by introspect run)")
    return list(found.values())


def unfinished(
    store: Path, model: Mapping[str, Any], protocol: Mapping[str, Any], settings: Mapping[str, Any]
) -> Result | None:
    """What a store holds of a run; None where it has no reading under an injection yet."""
    from . import kept_doses
    from .store import NO_READINGS, Store

    cells = Store(store, read_only=True)
    made = {
        "model_hash": model["hash"],
        "dtype": model["dtype"],
        "protocol_hash": protocol["hash"],
        "seed": settings["seed"],
        "strength_unit": settings["strength_unit"],
    }

    def is_of_run(row: Mapping[str, Any]) -> bool:
        return all(row[name] == value for name, value in made.items())

    asked = [row for row in cells.asked() if is_of_run(row)]
    if not asked:  # of a store that does not note what was asked
        asked = [row for row in cells.rows() if is_of_run(row) and row["kind"] not in NO_READINGS]
    values = {row["key"]: cells.reading(row) for row in asked if row["value"]}
    for row in asked:
        if row["base_key"] and row["base_key"] not in values and (value := cells.get(row["base_key"])):
            values[row["base_key"]] = cells.reading({**row, "key": row["base_key"], "value": value})
    rows = []
    for row in asked:
        base, injected = values.get(row["base_key"]), values.get(row["key"])
        if row["kind"] == "base" or base is None or injected is None:
            continue
        setting = {name: row[name] for name in SETTING if name in row and row[name] != DEFAULTS.get(name)}
        if setting["paraphrase"] in (-1, ""):
            del setting["paraphrase"]
        rows.append({**setting, "base": base, "injected": injected})
    if not rows:
        return None
    # A protocol's own conversation may be the one that was chosen, which is then "own" (see Row::asked_in).
    controls = next((row["asked_in"] for row in rows if row["question_kind"] == "control"), settings.get("controls"))
    planned = sum(row["kind"] != "base" for row in asked)
    incomplete = {"incomplete": {"done": len(rows), "of": planned}} if len(rows) < planned else {}
    result = Result(
        {
            "schema": SCHEMA,
            "model": dict(model),
            "protocol": dict(protocol),
            "settings": {**settings, "controls": controls or "own", **incomplete},
            "rows": rows,
        }
    )
    for row in result.rows:  # what a store does not keep, because it follows from the rest
        row["leaves_format"] = result.leaves_format(row)
        for side in ("base", "injected"):
            row[side]["mass"] = mass(row[side])
    kept_doses.note_kept(vars(result), [row for row in cells.rows() if row["kind"] == "dose" and is_of_run(row)])
    return result


def _note(path: Path) -> dict[str, Any]:
    """Raises ValueError with the path for anything but a note of ours."""
    try:
        note = parse_json(path.read_text(encoding="utf-8"), "a run's note", ValueError)
        if note["schema"] != SCHEMA or not isinstance(note["finished"], list):
            raise ValueError(f"schema must be {SCHEMA}, got {note['schema']!r}")
        needed = {"model": ("name", "hash", "dtype"), "settings": ("seed", "strength_unit", "nulls")}
        for part, names in needed.items():
            for name in names:
                note[part][name]
        for protocol in note["protocols"]:
            check_file_name(protocol["name"], "a protocol's name")
            protocol["hash"], protocol["read"]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a note of introspect run: {error}") from None
    return note
