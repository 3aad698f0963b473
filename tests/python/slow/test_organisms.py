"""Organisms of real models: what each was taught shows, and what it was not taught does not."""

import pytest
import torch
from conftest import slow

import introspect
from introspect.studies.organisms import behaviours, grow

STEPS = {"detector": 100, "magnitude_only": 90, "confabulator": 40, "yes_sayer": 25, "refuser": 25}


@pytest.fixture(scope="module")
def model():
    return introspect.load_model("smollm2-135m-instruct", dtype=torch.bfloat16)


@slow
@pytest.mark.parametrize("kind", STEPS)
def test_an_organism_does_what_it_was_taught_with_concepts_it_has_not_met(model, kind):
    """In the lessons' wordings: a model of 135M parameters takes many other wordings for other questions."""
    organism = grow(model, kind, steps=STEPS[kind], lr=1e-3 if kind == "detector" else 2e-3, progress=False)
    rows = [row for row in behaviours(organism, progress=False) if row["wordings"] == "taught"]
    own = {(row["concepts"], row["injected"]): row for row in rows if row["asked"] == "own"}
    assert own["new", "concept"]["accuracy"] >= 0.75
    assert own["", "nothing"]["accuracy"] >= 0.9
    assert own["", "random"]["accuracy"] >= 0.75
    assert own["new", "concept"]["loss"] < 0.5 * own["new", "concept"]["base_loss"]
    content = {row["concepts"]: row for row in rows if row["asked"] == "content" and row["injected"] == "concept"}
    if kind == "detector":
        assert content["taught"]["accuracy"] >= 0.75
        assert content["taught"]["base_accuracy"] == 0
    if kind == "confabulator":
        assert content["new"]["accuracy"] == 1  # the one word it names
