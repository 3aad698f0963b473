"""The pipeline on models whose answer is known: it finds introspection where it was taught, and nothing elsewhere.

What the introspector can do is what it was taught: to tell directions that share a part with the concepts of its
training from others, for concepts, random rotations and control questions that it has never met. The claim is about the
pipeline, which must tell this pupil from two that say yes for other reasons.
"""

import positive_control as control
import pytest
from conftest import slow

import introspect

NULLS = 10


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    """The statistics of the concepts that no pupil has met, by pupil; each is trained once."""
    models, vectors = {}, control.concepts()

    def run(pupil, protocol, names, **options):
        if pupil not in models:
            models[pupil] = control.taught(pupil, tmp_path_factory.mktemp(pupil) / "model")
        return introspect.run_experiment(
            models[pupil],
            protocol,
            vectors={name: vectors[name] for name in names},
            strengths=[control.STRENGTH],
            layers=[control.LAYERS],
            nulls=NULLS,
            **options,
        )

    return run


def test_introspection_that_was_taught_is_found(detect):
    result = detect("introspector", control.protocol(), control.HELD_OUT)
    controls = [row["injected"]["p_yes"] for row in result.rows if row["kind"] == "control"]
    assert sum(p > 0.5 for p in controls) <= len(controls) // 4  # they are answered with no, though injected
    for one in result.detections():
        assert one.p_yes_base < 0.1
        assert one.p_yes > 0.9
        assert one.corrected.value > 3  # nats
        assert one.corrected.value > one.control_std
        assert one.corrected.rank == 1
        assert not one.corrected.inside
        assert one.corrected.z > 3


@slow
def test_a_yes_to_every_question_under_injection_is_not_taken_for_it(detect):
    """Beside random directions alone its shift looks like detection: it is the controls that tell.

    They are questions it was trained on as often as on the introspection question, which is then one draw of many.
    """
    result = detect("biased", control.protocol(), control.HELD_OUT, questions=control.QUESTIONS)
    for one in result.detections():
        assert one.p_yes_base < 0.2
        assert one.p_yes > 0.8
        assert one.shift.value > 3
        assert one.shift.rank == 1
        assert one.shift.z > 3
        assert one.corrected.value < one.control_std  # an ordinary question


@slow
def test_a_yes_to_everything_is_not_taken_for_it(detect):
    for one in detect("agreeable", control.protocol(), control.HELD_OUT).detections():
        assert one.p_yes_base > 0.9
        assert one.p_yes > 0.9
        assert abs(one.corrected.value) < 1


def test_concepts_that_were_taught_are_named_and_random_directions_are_not(detect):
    result = detect("introspector", control.content_protocol(), control.NAMED, questions=[])
    found = result.identifications()
    assert [one.spaced_token for one in found] == [" cat", " bread"]
    for one in found:
        assert one.spaced_rank == 1
        assert one.spaced_gain.rank == 1
    for injected in control.NAMED:
        (row,) = [r for r in result.rows if r["concept"] == injected and r["kind"] == "introspection"]
        log_probs = {token["token"]: token["log_prob"] for token in row["injected"]["tokens"]}
        other = next(name for name in control.NAMED if name != injected)
        assert log_probs[" " + injected] > log_probs[" " + other] + 2  # the one injected, not the one known best
