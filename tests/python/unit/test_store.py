"""A store as tables and files, and stores of several machines as one."""

import json
import sqlite3
import sys

import pandas
import pytest
import torch
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.store import difference


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"), dtype=torch.float64)


@pytest.fixture(scope="module")
def vector():
    rng = torch.Generator().manual_seed(5)
    return introspect.ControlVector("qwen2", {layer: torch.randn(32, generator=rng) for layer in (1, 2)})


PROTOCOL = json.dumps(
    {
        "name": "mine",
        "turns": [
            {"role": "user", "content": "A thought."},
            {"role": "assistant", "content": "{ }"},
            {"role": "user", "content": "Noticed it?"},
            {"role": "assistant", "content": "The answer is"},
        ],
        "injected": [0, 1],
        "read": "content",
        "controls": {
            "turns": [
                {"role": "user", "content": "A thought."},
                {"role": "assistant", "content": "{ }"},
                {"role": "user", "content": "$QUESTION"},
                {"role": "assistant", "content": "The answer is"},
            ],
            "injected": [0, 1],
            "questions": ["Is ice hot?"],
        },
    }
)


def run(model, vector, store, **options):
    options = {"strengths": [2.0], "layers": [(1, 2), (1, 1)], "nulls": 2, **options}
    return introspect.run_experiment(
        model, introspect.Protocol.parse(PROTOCOL), vectors={"cat": vector}, store=store, **options
    )


def test_the_table_of_a_store_is_the_table_of_the_result_with_what_made_it(model, vector, tmp_path):
    store = introspect.Store(tmp_path / "cells.sqlite")
    result = run(model, vector, store, seed=7)
    table = store.to_pandas()
    expected = result.to_pandas()
    on = ["concept", "strength", "first_layer", "last_layer", "question", "kind", "question_kind", "null_index"]
    numbers = ["log_odds_base", "log_odds", "p_yes_base", "p_yes", "p_no_base", "p_no"]
    injected = table[table.kind != "base"]
    assert len(injected) == len(expected)
    both = injected.merge(expected, on=on, suffixes=("", "_expected"), validate="one_to_one")
    assert len(both) == len(expected)
    for name in numbers:
        assert list(both[name]) == list(both[f"{name}_expected"])
    base = table[table.kind == "base"].set_index("question").log_odds
    assert dict(base) == dict(zip(expected.question, expected.log_odds_base, strict=True))
    assert json.loads(injected[injected.kind == "introspection"].tokens.iloc[0])[0]["token"] == "cat"

    made = {name: set(table[name]) for name in ("model", "model_hash", "protocol", "protocol_hash", "seed", "dtype")}
    assert made == {
        "model": {result.model["name"]},
        "model_hash": {result.model["hash"]},
        "protocol": {"mine"},
        "protocol_hash": {result.protocol["hash"]},
        "seed": {7},
        "dtype": {"float64"},
    }
    assert set(table.device) == {"cpu"} and set(table.strength_unit) == {"absolute"}
    assert set(table.introspect_version) == {introspect.__version__}
    assert set(table.torch_version) == {result.settings["versions"]["torch"]}
    written = pandas.to_datetime(table.written)
    assert (pandas.Timestamp.now("UTC") - written).dt.total_seconds().between(-1, 600).all()


def test_norms_are_kept_but_are_no_reading(model, vector, tmp_path):
    store = introspect.Store(tmp_path / "cells.sqlite")
    run(model, vector, store, strength_unit="residual", strengths=[0.1])
    assert len(store) == len(store.to_pandas()) + 1


def test_a_store_of_before_is_read_and_goes_on(model, vector, tmp_path):
    """It says "null", numbers paraphrases, and neither shares rows nor says where controls were asked."""
    path = tmp_path / "cells.sqlite"
    result = run(model, vector, path)
    with sqlite3.connect(path) as database:
        database.executescript(
            "UPDATE cells SET kind = 'null' WHERE kind = 'random'; UPDATE cells SET paraphrase = 3;"
            "DROP TABLE shared; ALTER TABLE cells DROP COLUMN asked_in"
        )
    table = introspect.Store(path).to_pandas()
    assert set(table.kind) == {"base", "introspection", "control", "random"}
    assert set(table.asked_in) == {"not recorded"}
    assert list(table.paraphrase) == list(table.question)  # a text, no number
    asked = []
    again = run(model, vector, path, progress=lambda *step: asked.append(step))
    assert [row["injected"] for row in again.rows] == [row["injected"] for row in result.rows]
    assert len(asked) < 3  # nothing ran
    assert len(introspect.Store(path).to_pandas()) == len(table)  # and no row stands there twice


def test_csv_and_parquet_hold_the_table(model, vector, tmp_path):
    pytest.importorskip("pyarrow")
    store = introspect.Store(tmp_path / "cells.sqlite")
    result = run(model, vector, store)
    for source, name in ((store, "store"), (result, "result")):
        for suffix, read in (("csv", pandas.read_csv), ("parquet", pandas.read_parquet)):
            path = tmp_path / f"{name}.{suffix}"
            source.export(path)
            table = source.to_pandas()
            found = read(path)
            assert list(found.columns) == list(table.columns)
            assert list(found.log_odds) == list(table.log_odds)
            assert list(found.question) == list(table.question)
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        store.export(tmp_path / "store.xlsx")
    assert not list(tmp_path.glob("*.part"))


def test_parquet_without_pyarrow_names_the_extra(model, vector, tmp_path, monkeypatch):
    store = introspect.Store(tmp_path / "cells.sqlite")
    run(model, vector, store)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"introspect\[parquet\]"):
        store.export(tmp_path / "store.parquet")
    result = invoke("store", "export", tmp_path / "cells.sqlite", "-o", tmp_path / "store.parquet")
    assert result.exit_code == 1 and "introspect[parquet]" in result.stderr
    assert not (tmp_path / "store.parquet").exists()


def test_two_machines_halves_merge_into_the_whole_table(model, vector, tmp_path):
    whole, left, right = (tmp_path / f"{name}.sqlite" for name in ("whole", "left", "right"))
    expected = run(model, vector, whole)
    run(model, vector, left, layers=[(1, 2)])
    run(model, vector, right, layers=[(1, 1)])
    merged = json.loads(invoke("store", "merge", left, right, "--json").stdout)
    assert merged["cells"] == len(introspect.Store(whole))
    assert merged["merged"][0]["same"] == 2  # the two readings without steering
    asked = []
    result = run(model, vector, left, progress=lambda *step: asked.append(step))
    for one, other in zip(result.rows, expected.rows, strict=True):  # other batches: equal within float64's floor
        assert one["injected"]["log_odds"] == pytest.approx(other["injected"]["log_odds"], abs=1e-9)
    assert len(introspect.Store(left)) == merged["cells"]
    assert len(asked) < 3  # no layer ran: a run calls back between layers


def test_other_values_of_one_key_are_reported_and_not_taken(model, vector, tmp_path):
    ours, theirs = tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"
    for path in (ours, theirs):
        run(model, vector, path)
    (key, value), *_ = introspect.Store(ours).to_pandas()[["key", "log_odds"]].itertuples(index=False)
    with sqlite3.connect(theirs) as database:  # no Store of it is open
        database.execute(
            "UPDATE cells SET value = json_set(value, '$.log_odds', ?) WHERE key = ?", (float(value) + 0.25, key)
        )
    (conflict,) = introspect.Store(ours).merge(theirs).conflicts
    assert conflict.key == key
    assert difference(conflict) == pytest.approx(0.25)
    shown = invoke("store", "merge", ours, theirs)
    assert shown.exit_code == 0
    assert key[:12] in shown.stderr and "by 0.25 at most" in shown.stderr
    assert json.loads(introspect.Store(ours).get(key))["log_odds"] == value


def test_info_says_what_a_store_holds(model, vector, tmp_path):
    run(model, vector, tmp_path / "cells.sqlite", seed=3)
    facts = json.loads(invoke("store", "info", tmp_path, "--json").stdout)
    (made,) = facts["runs"]
    assert facts["problems"] == []
    assert (made["protocol"], made["seed"], made["cells"]) == ("mine", 3, facts["cells"])
    assert facts["bytes"] >= (tmp_path / "cells.sqlite").stat().st_size
    assert "sound" in invoke("store", "info", tmp_path).stdout
    assert invoke("store", "vacuum", tmp_path).exit_code == 0
    assert len(introspect.Store(tmp_path / "cells.sqlite")) == facts["cells"]


def test_a_missing_store_is_wrong_usage(tmp_path):
    assert invoke("store", "info", tmp_path / "nowhere.sqlite").exit_code == 2
    assert invoke("store", "info", tmp_path).exit_code == 2
    assert list(tmp_path.iterdir()) == []
