"""The ladder's first rung: what tells a silent model from an instrument that is dead."""

import collections

import numpy as np
import pytest
import studies
from chances import at_least, at_most

from introspect.studies.evidence import Evidence, Readings
from introspect.studies.from_results import claims
from introspect.studies.ladder import ladder

LEVEL = 0.025  # one-sided half of 0.05


def test_an_injection_that_changes_nothing_is_no_null_result(numpy_rng):
    made = studies.evidence(numpy_rng)
    arms = {**made.arms, "injected": Readings(made.arms["injected"].concept, [0.0] * len(made.arms["injected"]))}
    shown = ladder(Evidence(arms))
    assert shown["live"].verdict == "fails" and "changed nothing for cat" in shown["live"].sentence
    assert {rung.verdict for rung in shown.rungs[1:]} == {"not shown", "not run"}
    assert shown.strongest.startswith("Nothing can be said: the injection changed nothing")


@pytest.mark.parametrize(
    ("arm", "value", "said"),
    [
        ("dose", 0.0006, "too weak"),
        ("format", 0.2, "80% of the readings the model does not answer"),
        ("known_positive", None, "The injection moves nothing, and the known positive shows no yes"),
    ],
)
def test_a_dead_instrument_says_why(arm, value, said, numpy_rng):
    made = studies.evidence(numpy_rng, shift=0.0, spread=0.05)
    names = studies.CONCEPTS[:10]
    values = [value] * 10 if value is not None else numpy_rng.normal(0, 1, 10).tolist()
    shown = ladder(Evidence({**made.arms, arm: Readings(names, values)}))
    assert shown["live"].verdict == "fails" and said in shown["live"].sentence
    assert "fails" not in {rung.verdict for rung in shown.rungs[1:]}  # its absence is no finding


@pytest.mark.parametrize(("values", "verdict"), [([0.5, 2.0], "holds"), ([-0.5, 0.2], "fails")])
def test_a_known_positive_of_few_concepts_must_point_the_right_way(values, verdict, numpy_rng):
    made = studies.evidence(numpy_rng, n=2)
    shown = ladder(Evidence({**made.arms, "known_positive": Readings(studies.CONCEPTS[:2], values)}))
    assert shown["live"].verdict == verdict


def with_known_positive(evidence, rng, mean):
    """The study with a known positive of this true mean, a nat of spread between concepts."""
    concepts = evidence.arms["injected"].concepts
    known = Readings(concepts, (mean + rng.normal(0, 1, len(concepts))).tolist())
    return Evidence({**evidence.arms, "known_positive": known})


@pytest.mark.parametrize(
    ("shift", "known", "live", "sham"),
    [
        (0.0, 3.0, "holds", "fails"),  # the instrument works, the model is silent
        (0.0, 0.0, "fails", "not shown"),  # a dead instrument says nothing of the model
        (2.0, 0.0, "holds", "holds"),  # cannot read what is written, and detects what is injected
        (-2.0, 0.0, "holds", "fails"),  # moves, towards no
        (2.0, 3.0, "holds", "holds"),
    ],
    ids=["silent", "dead", "cannot read", "towards no", "detects and reads"],
)
def test_a_known_positive_tells_a_silent_model_from_a_dead_instrument(shift, known, live, sham):
    rng, draws, found = np.random.default_rng(5), 100, collections.Counter()
    for _ in range(draws):
        made = studies.evidence(rng, shift=shift, spread=0.1 if shift == 0 else 0.8, **studies.FEW)
        shown = ladder(with_known_positive(made, rng, known))
        found.update((name, shown[name].verdict) for name in ("live", "sham"))
    # A verdict is wrong in 1 of 40 studies by chance, and its power is above 0.9 here. The bound of a count is four
    # standard errors below its mean.
    assert found["live", live] >= at_least(0.85 if live == "fails" else 0.95, draws)
    assert found["sham", sham] >= at_least(0.9, draws)


def test_a_dead_instrument_claims_no_more_than_a_live_one():
    """No shift and no known positive: a false claim is as rare as stated, whatever the known positive happens to do."""
    rng, draws, claimed, refuted = np.random.default_rng(7), 500, 0, 0
    for _ in range(draws):
        made = studies.evidence(rng, shift=0.0, spread=0.2, **studies.FEW)
        shown = ladder(with_known_positive(made, rng, 0.0))
        claimed += any(rung.verdict == "holds" for rung in shown.rungs[1:])
        refuted += any(rung.verdict == "fails" for rung in shown.rungs[1:])
    assert claimed <= at_most(LEVEL, draws)
    assert refuted <= at_most(3 * LEVEL, draws)  # where chance alone makes the known positive or a movement


def test_a_known_positive_that_shows_nothing_is_said_where_the_injection_moves_the_answer(numpy_rng):
    made = studies.evidence(numpy_rng, shift=2.0)
    named = "The known positive shows no yes, but the injection moves the answer."
    assert named in ladder(with_known_positive(made, numpy_rng, 0.0))["live"].sentence
    assert named not in ladder(with_known_positive(made, numpy_rng, 5.0))["live"].sentence


def test_a_model_that_answers_neither_yes_nor_no_shows_nothing(numpy_rng):
    """A refuser: log-odds of two words that it never says."""
    made = studies.study(numpy_rng, shifts=dict.fromkeys(studies.CONCEPTS, 2.0))
    for row in made["injected"].rows:
        for side in ("base", "injected"):
            row[side] |= {"p_yes": 0.001 * row[side]["p_yes"], "p_no": 0.001 * row[side]["p_no"]}
    shown = claims(made)
    assert shown["live"].verdict == "fails" and "100% of the readings the model does not answer" in shown.strongest


def test_a_live_instrument_says_its_dose(numpy_rng):
    made = studies.evidence(numpy_rng)
    names = studies.CONCEPTS[:10]
    live = ladder(Evidence({**made.arms, "dose": Readings(names, [0.5] * 10), "format": Readings(names, [1.0] * 10)}))[
        "live"
    ]
    assert live.verdict == "holds" and live.effect == 0.5
    assert "0.5 nats" in live.sentence and "100% of the readings" in live.sentence


def test_most_readings_of_a_concept_being_broken_is_said(numpy_rng):
    made = studies.evidence(numpy_rng)
    shown = ladder(Evidence(made.arms, failed={"cat": (7, 10), "bread": (1, 10)}))
    assert shown["live"].verdict == "fails" and "Most readings of cat" in shown["live"].sentence
