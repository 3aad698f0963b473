"""Doses in stores: a run that was stopped goes on without measuring again, and what is read back has its doses."""

import json
import math

import pytest
import torch
from looped import protocol
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.experiments.runs import model_facts, protocol_facts, unfinished

OPTIONS = {"layers": (1, 2), "nulls": 1, "questions": [], "seed": 4, "strength_unit": "residual"}


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"), dtype=torch.float64)


@pytest.fixture
def unmeasured(monkeypatch):
    """From when it is called on, nothing may be measured or solved for."""

    def forbid():
        def fail(*args, **options):
            raise AssertionError("a dose was measured again")

        for name in ("measure_doses", "solve_doses", "coherent_windows"):
            monkeypatch.setattr(introspect._C, name, fail)

    return forbid


def run(model, store, **options):
    given = {"vectors": random_vectors(), **OPTIONS, "store": store, "progress": False, **options}
    return introspect.run_experiment(model, protocol(), **given)


def read_back(model, store, strength_unit="residual"):
    settings = {"seed": OPTIONS["seed"], "strength_unit": strength_unit, "nulls": 1}
    return unfinished(store, model_facts(model), protocol_facts(protocol()), settings)


@pytest.mark.parametrize("strengths", [["kl=0.05", "sd=2"], [0.1, 0.3]])
def test_a_second_run_and_the_store_have_the_doses_of_the_first(model, strengths, unmeasured, tmp_path):
    store = tmp_path / "cells.sqlite"
    first = run(model, store, strengths=strengths, dose=True)
    assert len(first.settings["dose"]) == 2 * 2
    fresh = run(model, None, strengths=strengths, dose=True)
    unmeasured()
    again = run(model, store, strengths=strengths, dose=True)
    back = read_back(model, store)

    def doses(result):
        return {
            (row["concept"], row["strength"], row["question"]): (row["dose_kl"], row["dose_sd"], row.get("dose_target"))
            for row in result.rows
            if row["null_index"] < 0
        }

    assert doses(back) == doses(again) == doses(first) == doses(fresh)
    assert all("dose_kl" not in row for row in back.rows if row["null_index"] >= 0)

    def listed(result):
        return json.dumps(sorted(result.settings["dose"], key=lambda one: (one["concept"], one["strength"])))

    assert listed(again) == listed(back) == listed(first)


def test_a_run_that_was_stopped_solves_for_nothing_again(model, unmeasured, tmp_path):
    store = tmp_path / "cells.sqlite"

    def stop(what, done, total):
        if what == "mine" and done > 0:
            raise Stopped

    with pytest.raises(Stopped):
        run(model, store, strengths="kl=0.05", progress=stop)
    partly = introspect.Store(store)
    assert sum(row["kind"] == "dose" for row in partly.rows()) == 2 and partly.damaged() == []
    unmeasured()
    resumed = run(model, store, strengths="kl=0.05")
    assert {row["dose_target"] for row in resumed.rows if row["null_index"] < 0} == {"kl=0.05"}
    assert all(math.isclose(one["kl"], 0.05, rel_tol=1e-3) for one in resumed.settings["dose"])


def test_a_new_concept_is_measured_and_the_others_are_not(model, monkeypatch, tmp_path):
    store, vectors = tmp_path / "cells.sqlite", random_vectors()
    run(model, store, vectors={"cat": vectors["cat"]}, strengths=0.2, dose=True)
    asked, native = [], introspect._C.measure_doses

    def measure(engine, context, named, **options):
        asked.extend(name for name, _ in named)
        return native(engine, context, named, **options)

    monkeypatch.setattr(introspect._C, "measure_doses", measure)
    result = run(model, store, vectors=vectors, strengths=0.2, dose=True)
    assert asked == ["bread"] and [one["concept"] for one in result.settings["dose"]] == ["cat", "bread"]
    other = {**vectors, "cat": 2.0 * vectors["bread"]}
    run(model, store, vectors=other, strengths=0.2, dose=True)
    assert asked == ["bread", "cat"]


def test_doses_are_no_readings_of_a_table(model, tmp_path):
    store = tmp_path / "cells.sqlite"
    result = run(model, store, strengths=0.2, dose=True)
    table = introspect.Store(store).to_pandas()
    assert set(table["kind"]) == {"base", "introspection", "random"}
    assert (table["kind"] != "base").sum() == len(result.rows)


@pytest.mark.parametrize("value", ["3", "[3]", '[{"concept": "cat"}]', '[{"kl": -2}]', "{"])
def test_doses_that_are_none_are_refused_with_their_place(model, value, tmp_path):
    import sqlite3

    store = tmp_path / "cells.sqlite"
    run(model, store, strengths=0.2, dose=True)
    with sqlite3.connect(store) as file:
        file.execute("UPDATE cells SET value = ? WHERE kind = 'dose'", (value,))
    with pytest.raises(introspect.IoError, match=r"cell [0-9a-f]{12}"):
        run(model, store, strengths=0.2, dose=True)
