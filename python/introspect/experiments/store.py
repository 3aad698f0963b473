"""Finished readings on disk, as tables and files."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

from .. import _C
from .._json import parse_json
from ..tables import check_format, write_table
from .detections import NOT_RECORDED
from .fields import KEYS, NOTHING, OPTIONAL

if TYPE_CHECKING:
    import pandas

NUMBERS = ("log_odds", "p_yes", "p_no")
NO_READINGS = ("norms", "dose")
"""Kinds of cells that hold what else was measured."""
_SETTING = (*KEYS, "paraphrase", *(name for name in OPTIONAL if name != "paraphrase"))  # as its columns stand
_BOOKKEEPING = ("value", "key", "base_key", "written")


class Store(_C.Store):
    __doc__ = _C.Store.__doc__

    def __repr__(self) -> str:
        return f"<Store {self.path}: {len(self)} cells>"

    def to_pandas(self) -> pandas.DataFrame:
        """One row a reading: its setting, what was read with and without steering, what made it and when.

        Columns are those of Result.to_pandas, then the model, protocol, seed and versions. What a reading holds besides
        numbers and text (tokens, curves by layer) is JSON in a column of its own. Readings without steering are rows of
        the kind "base", and have nothing in the columns ending in _base. A reading that several protocols or settings
        share is a row of each of them.

        Raises:
            IoError: a cell that cannot be a reading; it names the cell.
        """
        import pandas

        rows = [row for row in self._every_row() if row["kind"] not in NO_READINGS]
        values = {row["key"]: self.reading(row) for row in rows}
        fields = list(dict.fromkeys([*NUMBERS, *(name for value in values.values() for name in value)]))
        return pandas.DataFrame(
            [_flat(row, values[row["key"]], values.get(row["base_key"], {}), fields) for row in rows]
        )

    def _every_row(self) -> list[dict[str, Any]]:
        """A row of each cell, and of each protocol and setting that has asked for one that something else made."""

        def identity(row: dict[str, Any]) -> tuple:
            return (row["protocol"], row["key"], *(row[name] for name in _SETTING))

        rows = self.rows()
        # Rows of stores that were written before say less of themselves: one is enough of each protocol's cell.
        before = {(row["protocol"], row["key"]) for row in rows if row["asked_in"] == NOT_RECORDED}
        found = {identity(row): row for row in rows}
        for row in self.asked():
            if row["value"] and (row["protocol"], row["key"]) not in before:
                found.setdefault(identity(row), row)
        return list(found.values())

    def reading(self, row: dict[str, Any]) -> dict[str, Any]:
        """The value of one of ``rows`` or ``asked``. Raises IoError that names the cell if it cannot be a reading."""
        try:
            if problem := _C.reading_problem(row["value"]):
                raise ValueError(problem)
            value = parse_json(row["value"], "a reading", ValueError)
        except ValueError as error:
            raise _C.IoError(
                f"Store: {self.path}: cell {row['key'][:12]}: {error}. Sound cells can be taken into a new store: "
                f"introspect store merge NEW {self.path}"
            ) from None
        return value

    def export(self, path: str | os.PathLike) -> None:
        """Write to_pandas() as .csv or, with pyarrow, .parquet; see ``tables.write_table``.

        Raises:
            ValueError: another suffix.
            ImportError: Parquet without pyarrow.
            IoError: a cell that cannot be a reading.
        """
        write_table(self.to_pandas(), check_format(path))

    def info(self) -> dict[str, Any]:
        """Size, soundness (of file and cells), and how many cells of which model, protocol, seed and versions."""
        # The write-ahead log is part of the store until a checkpoint moves it into the file.
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return {
            "path": str(self.path),
            "cells": len(self),
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "problems": self.problems() + [f"cell {one['key'][:12]}: {one['what']}" for one in self.damaged()],
            "runs": self.runs(),
        }


def _flat(row: dict, value: dict, base: dict, fields: list[str]) -> dict[str, Any]:
    flat = {name: row[name] for name in _SETTING}
    flat["concept"], flat["group"] = row["concept"] or NOTHING, row["group"] or NOTHING
    if not row["paraphrase"] or row["paraphrase"].isdigit():  # once it was a number
        own = "control" if row["question_kind"] == "control" else "own"
        flat["paraphrase"] = own if not row["paraphrase"] else row["question"]
    for name in fields:
        flat[f"{name}_base"], flat[name] = _cell(base, name), _cell(value, name)
    flat["mass_base"], flat["mass"] = flat["p_yes_base"] + flat["p_no_base"], flat["p_yes"] + flat["p_no"]
    flat["failed"] = not all(math.isfinite(flat[name]) for name in NUMBERS)
    for name, item in row.items():
        if name not in flat and name not in _BOOKKEEPING:
            flat[name] = item
    return {**flat, "written": row["written"], "key": row["key"]}


def _cell(reading: dict, name: str) -> Any:
    item = reading.get(name)
    if item is None:
        return math.nan if name in NUMBERS else None
    return json.dumps(item, ensure_ascii=False) if isinstance(item, list | dict) else item


def difference(conflict: _C.StoreConflict) -> float:
    """The largest difference between two readings' numbers; infinite where they differ in anything else."""
    return _difference(*(parse_json(value, f"cell {conflict.key}") for value in (conflict.kept, conflict.other)))


def _difference(a: Any, b: Any) -> float:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((_difference(a[name], b[name]) for name in a), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max(map(_difference, a, b), default=0.0)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b)
    return 0.0 if a == b else math.inf
