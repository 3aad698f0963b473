"""Organisms of a real model: each does what it was taught, and the ladder tells them apart."""

import pytest
import torch
from conftest import slow

import introspect
from introspect.studies import run_study, variants
from introspect.studies.organisms import behaviours, grow

STEPS = {"detector": 110, "magnitude_only": 90, "confabulator": 40, "yes_sayer": 20, "biased": 110, "refuser": 60}
SEED = 3
"""Of lessons and random directions: one whose results no rule of the ladder was made from."""
ARMS = ["injected", "sham", "rotations", "equal_dose", "question_groups", "content", "no_question", "known_positive"]
DIRECTIONS = ("sham", "equal_norm", "equal_dose")
SHIFTS = (*DIRECTIONS, "questions")
GROUPS = {name: questions[:3] for name, questions in variants.texts()["groups"].items()}


@pytest.fixture(scope="module")
def model():
    return introspect.load_model("smollm2-135m-instruct", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def organisms(model):
    """One of each kind, made when it is first asked for."""
    grown = {}

    def of(kind):
        if kind not in grown:
            lr = 1e-3 if kind == "detector" else 2e-3
            grown[kind] = grow(model, kind, steps=STEPS[kind], lr=lr, seed=SEED, progress=False)
        return grown[kind]

    return of


def ladder(model, **settings):
    """Of a study with three questions of each group, in the protocol's own wording."""
    options = {"arms": ARMS, "paraphrases": [], "nulls": 2, "groups": GROUPS, "certified": False, "seed": SEED}
    return run_study(model, progress=False, **options, **settings).claims()


@slow
@pytest.mark.parametrize("kind", STEPS)
def test_an_organism_does_what_it_was_taught_with_concepts_it_has_not_met(organisms, kind):
    """Three in four of its answers at least: with fewer it would not be what its name says, and no study could tell.

    With nothing injected there is one prompt for each wording, which lessons hold: nine in ten.
    """
    rows = [row for row in behaviours(organisms(kind), progress=False) if row["wordings"] == "taught"]
    own = {(row["concepts"], row["injected"]): row for row in rows if row["asked"] == "own"}
    assert own["new", "concept"]["accuracy"] >= 0.75
    assert own["", "nothing"]["accuracy"] >= 0.9
    assert own["", "random"]["accuracy"] >= 0.75
    assert own["new", "concept"]["loss"] < own["new", "concept"]["base_loss"]
    content = {row["concepts"]: row for row in rows if row["asked"] == "content" and row["injected"] == "concept"}
    if kind == "detector":  # it names what it was taught to name, and likelier what it was not
        assert content["taught"]["loss"] < 0.5 * content["taught"]["base_loss"]
        assert content["new"]["loss"] < content["new"]["base_loss"]
    if kind == "confabulator":
        assert content["new"]["accuracy"] == 1  # the one word it names


@slow
def test_the_ladder_lets_the_detector_past_every_shift(organisms):
    """It says yes to concepts and to nothing else, so no control can explain its yes.

    The last rung has six controls at once, and with eight concepts the bootstrap leaves a few true differences open:
    that Student's intervals are above 0 is asked there.
    """
    found = ladder(organisms("detector").model, **organisms("detector").settings())
    assert {name: found[name].verdict for name in DIRECTIONS} == dict.fromkeys(DIRECTIONS, "holds"), found
    assert all(contrast["interval"][0] > 0 for contrast in found["questions"].contrasts), found


@slow
@pytest.mark.parametrize("kind", ["magnitude_only", "yes_sayer", "biased", "confabulator"])
def test_the_ladder_stops_what_only_looks_like_a_detector(organisms, kind):
    """Some shift must not hold: random vectors do it too, it was there before, or other questions move as far.

    Where one does hold against a reporter of size, less than half of its shift may be left beside random directions.
    """
    found = ladder(organisms(kind).model, **organisms(kind).settings())
    verdicts = {name: found[name].verdict for name in SHIFTS}
    if kind == "magnitude_only" and verdicts["equal_norm"] == "holds":
        assert found["equal_norm"].effect < 0.5 * found["sham"].effect
        assert "nats of it" in found.strongest
    else:
        assert set(verdicts.values()) != {"holds"}, found
    if kind == "magnitude_only":
        assert verdicts["sham"] == "holds"
    assert found["promotion"].verdict != "holds", found


@slow
def test_the_ladder_finds_nothing_in_a_refuser_and_in_the_untaught_model(model, organisms):
    refuser = organisms("refuser")
    assert ladder(refuser.model, **refuser.settings())["live"].verdict == "fails"  # it says neither yes nor no
    untaught = ladder(model, **refuser.settings())
    assert untaught["sham"].verdict != "holds" and untaught["promotion"].verdict != "holds", untaught
