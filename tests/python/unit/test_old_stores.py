"""Stores of earlier releases (tests/data/stores): they open, say what they said, and runs find their readings there."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from looped import CONTROLS, protocol
from tiny_chat import random_vectors

import introspect
from introspect.experiments.fields import KEYS, SETTING

FOLDER = Path(__file__).resolve().parents[2] / "data" / "stores"
READINGS = json.loads((FOLDER / "readings.json").read_text())
N_CELLS = 20 + 12  # four questions: unsteered, and two concepts with a rotation each; and the same without rotations
OPTIONS = {"strengths": [2.0], "layers": [(1, 2)], "controls": "given", "progress": False}
RUNS = {
    "plain": {"nulls": 1},
    "read": {"nulls": 0, "lens": True, "attention": True, "divergence": True, "top_k": 2},
}


@pytest.fixture(params=["36eb526", "c11240c"])
def store(request, tmp_path):
    return Path(shutil.copy(FOLDER / f"{request.param}.sqlite", tmp_path / "cells.sqlite"))


def columns(path, table="cells"):
    with sqlite3.connect(path) as database:
        return {row[1] for row in database.execute(f"PRAGMA table_info({table})")}


def test_a_setting_has_the_same_fields_everywhere(store):
    introspect.Store(store)
    assert set(introspect._C.setting_fields) == set(SETTING)
    named = {"question_group" if name == "group" else name for name in SETTING}  # a word of SQL's own
    assert named <= columns(store) and named <= columns(store, "asked")
    assert set(SETTING) <= introspect.Store(store).rows()[0].keys()
    assert set(KEYS) < set(SETTING)


@pytest.mark.parametrize("read_only", [True, False])
def test_it_opens_and_says_what_it_said(store, read_only):
    bytes_before = store.read_bytes()
    opened = introspect.Store(store, read_only=read_only)
    assert opened.problems() == [] and opened.damaged() == []
    table = opened.to_pandas()
    assert set(table.kind) == {"base", "introspection", "control", "random"}
    assert set(table.group) == {"(none)"}
    injected = {row["log_odds"] for row in table[table.kind != "base"].to_dict("records")}
    assert injected == {row["injected"]["log_odds"] for rows in READINGS.values() for row in rows}
    if read_only:
        assert store.read_bytes() == bytes_before


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_finds_every_reading_and_runs_nothing(model, store, name):
    given = {"vectors": random_vectors(), **OPTIONS, **RUNS[name]}
    n_cells = len(introspect.Store(store))
    plan = introspect.run_experiment(model, protocol(controls=CONTROLS), **given, store=store, plan=True)
    assert plan.found == plan.readings > 0
    with pytest.warns(UserWarning, match="left the format"):
        result = introspect.run_experiment(model, protocol(controls=CONTROLS), **given, store=store)
    found = [{key: row[key] for key in READINGS[name][0]} for row in result.rows]
    assert found == READINGS[name]
    assert len(introspect.Store(store)) == n_cells


def test_bringing_it_up_to_date_is_done_wholly_or_not_at_all(tmp_path):
    """A second step that fails takes the first one back; the store can still be read."""
    path = Path(shutil.copy(FOLDER / "36eb526.sqlite", tmp_path / "cells.sqlite"))
    with sqlite3.connect(path) as database:
        (asked,) = (
            sqlite3.connect(FOLDER / "c11240c.sqlite")
            .execute("SELECT sql FROM sqlite_master WHERE name = 'asked'")
            .fetchone()
        )
        assert "asked_in TEXT" in asked
        database.execute(asked.replace("asked_in TEXT", "asked_in INTEGER"))
    with pytest.raises(introspect.IoError, match="asked_in"):
        introspect.Store(path)
    assert "asked_in" not in columns(path)
    assert len(introspect.Store(path, read_only=True).to_pandas()) == N_CELLS
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE asked")
    introspect.Store(path)
    for table in ("cells", "asked"):
        assert {"asked_in", "question_group"} <= columns(path, table)
