"""A readout of one Python class, all the way: protocol, run, result, table, store, found there again, report."""

import json

import pytest
import torch
from looped import CONTROLS, TURNS, looped_readings, message_positions
from looped import protocol as any_protocol
from tiny_chat import random_vectors

import introspect
from introspect import report

LAYERS, STRENGTH = (1, 2), 2.0
N_LAYERS, WIDTH = 3, 32


@introspect.register_readout
class ResidualNorm:
    """The norm of the residual stream after every block, times the parameter."""

    name = "test_norm"
    needs = ("residuals",)

    def check_parameter(self, parameter):
        if isinstance(parameter, bool) or not isinstance(parameter, int | float) or parameter < 0:
            raise ValueError(f"must be 0 or more, got {parameter!r}")

    def check(self, value):
        if not isinstance(value, list) or any(one is not None and one < 0 for one in value):
            raise ValueError("test_norm must be of norms")

    def read(self, inputs):
        residuals = inputs["residuals"]
        assert residuals.dtype == torch.float32 and residuals.device.type == "cpu"
        return inputs.parameter * residuals.norm(dim=1)


@introspect.register_readout
class Cosine:
    """How alike the residuals with and without the injection are, and which token is the likeliest."""

    name = "test_cosine"
    needs = ("hook_resid_post", "unsteered_residuals", "unsteered_logits", "attention")

    def read(self, inputs):
        best = int(inputs.logits.argmax())
        if inputs["unsteered_residuals"] is None:
            assert inputs.unsteered_logits is None
            return {"best": best, "cosine": None}
        cosine = torch.cosine_similarity(inputs["hook_resid_post"], inputs["unsteered_residuals"], dim=1)
        same = bool(best == int(inputs.unsteered_logits.argmax()))
        return {"best": best, "cosine": cosine, "same": same, "attention": inputs["attention"].sum()}

    def columns(self, base, injected):
        return {"best_base": base["best"], "best": injected["best"], "same": injected["same"]}


@introspect.register_readout
class LastNorm:
    """A number: a column of its own."""

    name = "test_last_norm"
    needs = ("residuals",)
    own_question_only = True

    def read(self, inputs):
        return inputs["residuals"][-1].norm()


@pytest.fixture(scope="module")
def vectors():
    return random_vectors(LAYERS)


@pytest.fixture(scope="module")
def naive(model, vectors):
    return looped_readings(model, vectors, STRENGTH)


def run(model, vectors, given=None, **options):
    options = {"strengths": [STRENGTH], "layers": [LAYERS], "questions": [], "nulls": 0, "progress": False, **options}
    return introspect.run_experiment(model, given or any_protocol(), vectors=vectors, **options)


def test_one_class_goes_from_the_protocol_to_the_table_and_the_store(model, vectors, naive, tmp_path):
    given = any_protocol(readouts={"test_norm": 2, "test_last_norm": True})
    assert json.loads(given.to_json())["readouts"]["test_norm"] == 2
    result = run(model, vectors, given, store=tmp_path / "cells.sqlite")
    assert result.protocol["definition"]["readouts"]["test_norm"] == 2
    for row in result.rows:
        for side, state in (("base", naive[0]), ("injected", naive[1][row["concept"]])):
            norms = state.resid.norm(dim=1)
            assert row[side]["test_norm"] == pytest.approx((2 * norms).tolist(), rel=1e-5)  # float32
            assert row[side]["test_last_norm"] == pytest.approx(float(norms[-1]), rel=1e-5)
    table = result.to_pandas()
    assert {"test_last_norm", "test_last_norm_base"} <= set(table.columns)
    assert "test_norm" not in table.columns
    layers = result.readout_to_pandas("test_norm")
    assert len(layers) == 2 * N_LAYERS and set(layers.layer) == set(range(N_LAYERS))
    cat = layers[(layers.concept == "cat") & (layers.layer == 1)]
    assert cat.test_norm.item() == pytest.approx(2 * float(naive[1]["cat"].resid[1].norm()), rel=1e-5)
    assert cat.test_norm_base.item() == pytest.approx(2 * float(naive[0].resid[1].norm()), rel=1e-5)
    with pytest.raises(ValueError, match="no list of 'other'"):
        result.readout_to_pandas("other")

    stored = introspect.Store(tmp_path / "cells.sqlite").to_pandas()
    assert sorted(stored.test_last_norm) == pytest.approx(sorted({*table.test_last_norm, *table.test_last_norm_base}))
    plan = run(model, vectors, given, store=tmp_path / "cells.sqlite", plan=True)
    assert plan.found == plan.readings == 3
    again = run(model, vectors, given, store=tmp_path / "cells.sqlite")
    assert again.to_json() == result.to_json()
    more = any_protocol(readouts={"test_norm": 3, "test_last_norm": True})
    assert run(model, vectors, more, store=tmp_path / "cells.sqlite", plan=True).found == 0  # another parameter

    result.save(tmp_path / "mine.json")
    assert introspect.Result.load(tmp_path / "mine.json").readout_to_pandas("test_norm").equals(layers)


def test_what_the_unsteered_run_gives_and_columns_of_ones_own(model, vectors, naive):
    result = run(model, vectors, readouts={"test_cosine": True}, lens=True)
    table = result.to_pandas()
    base = naive[0]
    for row, line in zip(result.rows, table.to_dict("records"), strict=True):
        injected = naive[1][row["concept"]]
        cosine = torch.cosine_similarity(injected.resid, base.resid, dim=1)
        found = row["injected"]["test_cosine"]
        assert found["cosine"] == pytest.approx(cosine.tolist(), abs=1e-5)
        positions = message_positions(model, TURNS, [1, 2])
        assert found["attention"] == pytest.approx(float(injected.patterns[..., positions].sum()), rel=1e-5)
        assert row["base"]["test_cosine"] == {"best": int(base.logits.argmax()), "cosine": None}
        assert line["best"] == int(injected.logits.argmax()) and line["best_base"] == int(base.logits.argmax())
        assert line["same"] == (line["best"] == line["best_base"])
        # The lens beside it is what it is by itself.
    alone = run(model, vectors, lens=True)
    assert [row["injected"]["lens"] for row in alone.rows] == [row["injected"]["lens"] for row in result.rows]


def test_control_questions_are_left_out_of_a_readout_of_the_own_question(model, vectors):
    result = run(model, vectors, any_protocol(controls=CONTROLS), readouts={"test_last_norm": True}, questions=None)
    assert {row["kind"]: "test_last_norm" in row["injected"] for row in result.rows} == {
        "introspection": True,
        "control": False,
    }


def test_the_report_draws_it_by_layer(model, vectors, tmp_path):
    run(model, vectors, readouts={"test_norm": 1}, nulls=2).save(tmp_path / "mine.json")
    report.write(tmp_path)
    assert (tmp_path / "mine_test_norm.png").stat().st_size > 5000
    assert "test_norm" in (tmp_path / "report.html").read_text()


def test_mistakes_are_named_before_anything_runs(model, vectors, tmp_path):
    with pytest.raises(introspect.ConfigError, match=r"'?test_nor'?.*nearest names are test_norm.*attention"):
        run(model, vectors, readouts={"test_nor": True})
    with pytest.raises(ValueError, match="test_norm must be 0 or more, got -1"):
        run(model, vectors, readouts={"test_norm": -1})
    with pytest.raises(introspect.ConfigError, match=r"readouts\.test_norm must be 0 or more"):
        any_protocol(readouts={"test_norm": -1})
    with pytest.raises(TypeError, match="readouts must be a dictionary"):
        run(model, vectors, readouts=["test_norm"])
    with pytest.raises(introspect.ConfigError, match="lens"):
        introspect.register_readout(type("Mine", (), {"name": "lens", "read": lambda self, inputs: 1})())
    with pytest.raises(introspect.HookError, match="hook_resid_pos"):
        introspect.register_readout(
            type("Mine", (), {"name": "x", "needs": ("hook_resid_pos",), "read": lambda self, inputs: 1})()
        )
    with pytest.raises(TypeError, match="a text name and a function read"):
        introspect.register_readout(object())


def test_an_error_in_it_is_the_callers_and_what_is_no_value_is_refused(model, vectors):
    class Broken:
        name = "test_broken"

        def read(self, inputs):
            if inputs.parameter is True:
                raise ZeroDivisionError("mine")
            return object()

        def check_parameter(self, parameter):
            pass

    introspect.register_readout(Broken)
    with pytest.raises(ZeroDivisionError, match="mine"):
        run(model, vectors, readouts={"test_broken": True})
    with pytest.raises(TypeError, match="readout 'test_broken': read must return numbers"):
        run(model, vectors, readouts={"test_broken": 2})


def test_a_stored_value_that_it_cannot_have_read_is_named(model, vectors, tmp_path):
    import sqlite3

    path = tmp_path / "cells.sqlite"
    run(model, vectors, readouts={"test_norm": 1}, store=path)
    with sqlite3.connect(path) as database:
        key, value = database.execute("SELECT key, value FROM cells WHERE kind = 'introspection'").fetchone()
        wrong = json.dumps({**json.loads(value), "test_norm": [-1.0]})
        database.execute("UPDATE cells SET value = ? WHERE key = ?", (wrong, key))
    assert [one["what"] for one in introspect.Store(path).damaged() if one["key"] == key] == [
        "Reading::from_json: test_norm must be of norms"
    ]
    with pytest.raises(introspect.IoError, match="test_norm must be of norms"):
        run(model, vectors, readouts={"test_norm": 1}, store=path)
