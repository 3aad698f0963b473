"""Experiments in pieces, each run by a model of its own into a store of its own."""

import sys

import pytest
from shared_out import has_same_bits
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.experiments import pieces
from introspect.experiments.arguments import Arguments
from introspect.experiments.run import native_experiment
from introspect.studies.together import DEFAULTS

BUDGET = 64 << 20
# Which readings share a product depends on the piece; ours do not mind.
FLOOR = {"float64": 1e-9, "float32": 0.0, "bfloat16": 0.0 if has_same_bits("bfloat16") else 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("pieces") / "model", num_hidden_layers=4)


def native(protocol, **options):
    given = Arguments("test")
    asked, controls = given.controls(given.protocol(protocol), None)
    made = native_experiment(given, {**DEFAULTS, "vectors": random_vectors((1, 2, 3)), **options})
    return {"own_strengths": [], **made, "protocol": asked, "controls": controls}


@pytest.mark.parametrize(
    ("protocol", "dtype"),
    [("no_info", "float64"), ("content_report", "float64"), ("no_info", "float32"), ("no_info", "bfloat16")],
)
def test_pieces_in_stores_of_their_own_are_the_whole_run(folder, tmp_path, protocol, dtype):
    options = {"layers": introspect.layer_ranges(1, 3), "nulls": 2, "strengths": 0.2, "strength_unit": "residual"}
    options["questions"] = ["Is ice hot?"]
    model = introspect.load_model(folder, dtype=dtype)
    whole = introspect.run_experiment(
        model, protocol, vectors=random_vectors((1, 2, 3)), **options, store=tmp_path / "whole.sqlite"
    )
    experiments = [native(protocol, **options)]
    store = introspect.Store(tmp_path / "one.sqlite")
    pieces.run(model, pieces.unsteered(experiments), store, BUDGET, 6.0)
    n_first = len(store)
    listed = pieces.cut(model, experiments, store, BUDGET, pieces=6)
    assert len(listed) >= 4
    for n, piece in enumerate(listed):
        own = tmp_path / f"{n}.sqlite"
        theirs = introspect.Store(own)
        theirs.merge(store.path)
        before = len(theirs)
        pieces.run(introspect.load_model(folder, dtype=dtype), piece.experiments, theirs, BUDGET, 6.0)
        assert len(theirs) - before == piece.plan.readings - piece.plan.found  # nothing of another piece
        merged = store.merge(own)
        assert merged.conflicts == [] and merged.damaged == 0
    assert len(store) > n_first
    plan = introspect.run_experiment(
        model, protocol, vectors=random_vectors((1, 2, 3)), **options, store=store, plan=True
    )
    assert plan.found == plan.readings
    again = introspect.run_experiment(model, protocol, vectors=random_vectors((1, 2, 3)), **options, store=store)
    assert len(again.rows) == len(whole.rows)
    for one, other in zip(again.rows, whole.rows, strict=True):
        assert {**one, "base": 0, "injected": 0} == {**other, "base": 0, "injected": 0}
        for side in ("base", "injected"):
            assert one[side]["log_odds"] == pytest.approx(other[side]["log_odds"], rel=0, abs=FLOOR[dtype])
    kept, undisturbed = (
        {row["key"] for row in introspect.Store(path, read_only=True).rows()}
        for path in (store.path, tmp_path / "whole.sqlite")
    )
    assert kept == undisturbed


def test_ranges_that_begin_at_one_block_stay_together(folder):
    one = native("no_info", layers=introspect.layer_ranges(1, 3), strengths=[1.0], nulls=0)
    listed = pieces.cut(introspect.load_model(folder), [one], None, BUDGET, pieces=100)
    places = [
        (name, first)
        for piece in listed
        for e in piece.experiments
        for name, _ in e["vectors"]
        for first in {layers[0] for layers in e["layers"]}
    ]
    assert len(places) == len(set(places))


def test_without_ray_the_error_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"introspect\[ray\]"):
        introspect.run_experiment(
            introspect.load_model(folder), "no_info", vectors=random_vectors(), strengths=1.0, nulls=0, ray="auto"
        )
