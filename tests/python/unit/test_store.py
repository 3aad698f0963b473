"""A store as tables and files, and stores of several machines as one."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys

import pandas
import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.experiments.store import difference


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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
    """It says "null", numbers paraphrases, and says neither what was asked nor where."""
    path = tmp_path / "cells.sqlite"
    result = run(model, vector, path)
    with sqlite3.connect(path) as database:
        database.executescript(
            "UPDATE cells SET kind = 'null' WHERE kind = 'random'; UPDATE cells SET paraphrase = 3;"
            "DROP TABLE asked; ALTER TABLE cells DROP COLUMN asked_in"
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


def test_parquet_without_pyarrow_names_what_to_install(model, vector, tmp_path, monkeypatch):
    store = introspect.Store(tmp_path / "cells.sqlite")
    run(model, vector, store)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        store.export(tmp_path / "store.parquet")
    result = invoke("store", "export", tmp_path / "cells.sqlite", "-o", tmp_path / "store.parquet")
    assert result.exit_code == 1 and "pip install pyarrow" in result.stderr
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


# What a cell is found by


def test_a_release_that_changes_no_number_leaves_stores_valid(model, vector, tmp_path):
    """A cell's key is of what was computed, and of the first release that computed such numbers: not of this one."""
    store = introspect.Store(tmp_path / "cells.sqlite")
    run(model, vector, store)
    protocol = introspect.Protocol.parse(PROTOCOL)
    tokens = introspect.conversation_tokens(model, protocol)
    encode = model.tokenizer.encode
    words = [encode(text, add_special_tokens=False)[0] for text in (" yes", " no", "cat", " cat")]
    content = {
        "version": "0.1.0",
        "model": model.hash,
        "dtype": "float64",
        "device": "cpu",
        "before": tokens.before,
        "injected": tokens.injected,
        "added": "nothing",
        "after": tokens.after,
        "keeps_steering": False,
        "read": [words[0], words[1], words[2:]],
    }
    key = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
    assert store.get(key) is not None  # as it was at 36eb526
    source = (ROOT / "cpp" / "src" / "experiments" / "cell_keys.cpp").read_text()
    assert "INTROSPECT_VERSION" not in source and "version.h" not in source
    with sqlite3.connect(tmp_path / "cells.sqlite") as database:
        database.execute("UPDATE runs SET introspect_version = '9.9.9'")
    asked = []
    run(model, vector, introspect.Store(tmp_path / "cells.sqlite"), progress=lambda *step: asked.append(step))
    assert asked[0][1] == asked[0][2]  # all of it was found


# Where nothing can be written


ROOTS_RIGHTS = "-dac_override,-dac_read_search"  # without them permissions bind root as anybody
BOUND = [] if os.getuid() else ["setpriv", f"--bounding-set={ROOTS_RIGHTS}", f"--inh-caps={ROOTS_RIGHTS}"]
READ_ONLY = """
import sys
import introspect
from typer.testing import CliRunner
from introspect.cli.app import app
path, other, table = sys.argv[1:]
store = introspect.Store(path)
print(len(store), len(introspect.Store(path, read_only=True)))
for arguments in (["store", "info", path], ["store", "export", path, "-o", table], ["store", "merge", other, path]):
    shown = CliRunner().invoke(app, arguments)
    print(shown.exit_code, shown.output.splitlines()[-1])
"""


@pytest.mark.parametrize("leftover", [False, True])
def test_a_store_can_be_read_where_nothing_can_be_written(model, vector, tmp_path, leftover):
    closed, locked = tmp_path / "closed", tmp_path / "locked"
    held = introspect.Store(closed / "cells.sqlite")
    run(model, vector, held)
    locked.mkdir()
    # A log that a killed process left: as it is while the store is open.
    for file in closed.iterdir():
        if leftover and not file.name.endswith("-shm"):
            (locked / file.name).write_bytes(file.read_bytes())
    n_cells = len(held)
    del held
    if not leftover:
        (locked / "cells.sqlite").write_bytes((closed / "cells.sqlite").read_bytes())
    assert (locked / "cells.sqlite-wal").exists() == leftover
    before = {file.name: file.read_bytes() for file in locked.iterdir()}
    free = tmp_path / "free"
    free.mkdir()
    for file in locked.iterdir():
        file.chmod(0o444)
    locked.chmod(0o555)
    try:
        done = subprocess.run(
            [
                *BOUND,
                sys.executable,
                "-c",
                READ_ONLY,
                locked / "cells.sqlite",
                free / "other.sqlite",
                free / "table.csv",
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=free,
        )
    finally:
        locked.chmod(0o755)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{n_cells} {n_cells}"
    assert [line[0] for line in lines[1:]] == ["0", "0", "0"]
    assert len(introspect.Store(free / "other.sqlite")) == n_cells
    assert len(pandas.read_csv(free / "table.csv")) == n_cells
    assert {file.name: file.read_bytes() for file in locked.iterdir()} == before


def test_a_run_into_a_store_that_cannot_be_written_is_refused_before_it_runs(model, vector, tmp_path):
    run(model, vector, tmp_path / "cells.sqlite")
    store = introspect.Store(tmp_path / "cells.sqlite", read_only=True)
    run(model, vector, store)  # all of it is there
    asked = []
    with pytest.raises(introspect.IoError, match="can only be read"):
        run(model, vector, store, nulls=3, progress=lambda *step: asked.append(step))
    assert {done for _, done, _ in asked} <= {len(store)}  # what was found, and nothing new
    with pytest.raises(introspect.IoError, match="there is no file"):
        introspect.Store(tmp_path / "nowhere.sqlite", read_only=True)


# What somebody else has written


def tamper(path, change):
    """Change the value of the first reading under an injection; its key."""
    with sqlite3.connect(path) as database:
        key, value = database.execute("SELECT key, value FROM cells WHERE kind = 'introspection'").fetchone()
        database.execute("UPDATE cells SET value = ? WHERE key = ?", (change(json.loads(value)), key))
    return key


CHANGES = {
    "p_yes": lambda value: json.dumps({**value, "p_yes": 7}),
    "p_no": lambda value: json.dumps({**value, "p_no": -0.5}),
    "NaN": lambda value: json.dumps({**value, "log_odds": float("nan")}),
    "rank": lambda value: json.dumps({**value, "tokens": [{**value["tokens"][0], "rank": 0}, *value["tokens"][1:]]}),
    "tokens": lambda value: json.dumps({name: item for name, item in value.items() if name != "tokens"}),
    "projections": lambda value: json.dumps({**value, "projections": {"a": {"x": 1}}}),
    "list": lambda value: "[1]",
    "nothing": lambda value: "",
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_cell_that_cannot_be_a_reading_is_named_and_left_behind(model, vector, tmp_path, name):
    path = tmp_path / "cells.sqlite"
    run(model, vector, path)
    key = tamper(path, CHANGES[name])
    with pytest.raises(introspect.IoError, match=f"cell {key[:12]}.*store merge NEW"):
        run(model, vector, path)
    if name == "tokens":  # which only a run that wants them can miss
        return
    store = introspect.Store(path)
    assert [one["key"] for one in store.damaged()] == [key]
    shown = invoke("store", "info", path)
    assert "DAMAGED" in shown.stdout and key[:12] in shown.stdout
    if name != "projections":
        with pytest.raises(introspect.IoError, match=f"cell {key[:12]}"):
            store.to_pandas()
        shown = invoke("store", "export", path, "-o", tmp_path / "table.csv")
        assert shown.exit_code == 1 and len(shown.stderr.splitlines()) == 1 and key[:12] in shown.stderr
    merged = json.loads(invoke("store", "merge", tmp_path / "new.sqlite", path, "--json").stdout)
    assert merged["merged"][0]["damaged"] == 1 and merged["cells"] == len(store) - 1
    run(model, vector, tmp_path / "new.sqlite")
    assert len(introspect.Store(tmp_path / "new.sqlite")) == len(store)


def test_norms_that_cannot_be_norms_are_named(model, vector, tmp_path):
    path = tmp_path / "cells.sqlite"
    for value in ("[1]", "[[0, -1.0]]", "{}", "[[0, 1.0]]"):
        path.unlink(missing_ok=True)
        run(model, vector, path, strength_unit="residual", strengths=[0.1])
        with sqlite3.connect(path) as database:
            database.execute("UPDATE cells SET value = ? WHERE kind = 'norms'", (value,))
        with pytest.raises(introspect.IoError, match="residual norms of a scene"):
            run(model, vector, path, strength_unit="residual", strengths=[0.1])


def test_a_store_that_never_ends_is_refused_at_once(model, vector, tmp_path):
    path = tmp_path / "cells.sqlite"
    run(model, vector, path)
    with sqlite3.connect(path) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(cells)")]
        database.execute("DROP TABLE cells")
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        named = ", ".join(f"i AS {column}" for column in columns)
        database.execute(f"CREATE VIEW cells AS {numbers} SELECT {named} FROM n")
    for arguments in (
        ("info", path),
        ("export", path, "-o", tmp_path / "x.csv"),
        ("merge", tmp_path / "y.sqlite", path),
    ):
        shown = invoke("store", *arguments)
        assert shown.exit_code == 1 and "view 'cells'" in shown.stderr
    with pytest.raises(introspect.IoError, match="view 'cells'"):
        introspect.Store(path)


def test_a_store_that_was_never_opened_is_no_crash():
    store = introspect._C.Store.__new__(introspect._C.Store)
    for use in (len, lambda one: one.path, lambda one: one.rows(), lambda one: one.get("k"), lambda one: one.vacuum()):
        with pytest.raises((RuntimeError, TypeError)):
            use(store)


# Tables for spreadsheets


def test_texts_of_a_csv_are_no_formulas_and_numbers_stay_numbers(model, vector, tmp_path):
    store = introspect.Store(tmp_path / "cells.sqlite")
    concepts = {"=1+1": vector, "+x": vector, "-x": vector, "@x": vector, "x=1": vector}
    introspect.run_experiment(
        model, introspect.Protocol.parse(PROTOCOL), vectors=concepts, strengths=[-2.0], layers=[(1, 2)], store=store
    )
    store.export(tmp_path / "table.csv")
    table, found = store.to_pandas(), pandas.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert set(found.concept) - {"(none)"} == {"'=1+1", "'+x", "'-x", "'@x", "x=1"} & set(found.concept)
    assert not any(cell.startswith(tuple("=+-@")) for cell in found.concept)
    assert list(found.log_odds.astype(float)) == list(table.log_odds) and min(found.strength) == -2.0
