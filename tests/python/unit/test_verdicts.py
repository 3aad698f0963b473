"""The word for what came out, against results whose answer is known by construction."""

import math

import numpy as np
import pytest
import synthetic

from introspect.experiments import detections
from introspect.experiments.results import Result
from introspect.report import verdicts

TEN = list(np.linspace(-0.5, 0.4, 10))


def result(shift=1.0, controls=(0.1, 0.0, -0.1), nulls=TEN, mass=0.9, mass_base=0.9, concepts=("cat",), **changes):
    """One setting: the shifts of the question, of each control, and of each rotation (whose controls stay)."""
    rows = []
    for concept in concepts:

        def row(kind, question, question_kind, shift, base=1.0, null_index=-1, concept=concept):
            sides = [synthetic.side(base), synthetic.side(base + shift)]
            for one, scale in zip(sides, (mass_base, mass), strict=True):
                one["p_yes"], one["p_no"] = (scale / synthetic.MASS * one[name] for name in ("p_yes", "p_no"))
            rows.append({**synthetic.row(concept, kind, question, question_kind, *sides, null_index), **changes})

        row("introspection", "Noticed it?", "introspection", shift)
        for i, moved in enumerate(controls):
            row("control", f"control {i}", "control", moved, -2.0)
        for k, moved in enumerate(nulls):
            row("random", "Noticed it?", "introspection", moved, null_index=k)
            for i in range(len(controls)):
                row("random", f"control {i}", "control", 0.0, -2.0, null_index=k)
    return Result(synthetic.result("no_info", "yes_no", rows))


def merged(*results, **changes):
    """The settings of several results as one, at strengths of their own."""
    rows = [{**row, "strength": 0.1 * (i + 1)} for i, one in enumerate(results) for row in one.rows]
    return Result({**synthetic.result("no_info", "yes_no", rows), **changes})


@pytest.mark.parametrize(
    ("changes", "word", "because"),
    [
        ({}, "yes", "above all 10"),
        ({"shift": 0.3}, "no", "inside"),
        ({"shift": -3.0}, "no", "below"),
        ({"shift": 0.4}, "no", "inside"),  # a tie counts against the concept
        ({"nulls": TEN[:9]}, "unclear", "only 9 random directions"),
        ({"nulls": []}, "unclear", "no random direction"),
        ({"controls": ()}, "unclear", "control questions asked: 0"),
        ({"controls": (0.1, 0.0)}, "unclear", "control questions asked: 2"),
        ({"shift": 2.0, "controls": (1.2, 1.1, 1.3)}, "unclear", "control questions move as well"),
        ({"shift": -0.1, "controls": (-2.0, -2.1, -1.9)}, "unclear", "control questions move as well"),
        ({"asked_in": "with_info"}, "unclear", "another conversation (with_info)"),
        ({"mass": 0.4}, "unclear", "from 90% to 40%"),
        ({"mass": 3e-7}, "unclear", "from 90% to 3.0e-05%"),
        ({"mass": 0.02, "mass_base": 0.02}, "unclear", "even without injection"),
        ({"shift": 0.3, "mass": 3e-7}, "unclear", "from 90%"),  # no "no" either
        ({"shift": math.nan}, "failed", "finite"),
    ],
)
def test_the_word_for_one_setting(changes, word, because):
    verdict = result(**changes).verdict()
    assert verdict.word == word
    assert because in " ".join([verdict.sentence, *verdict.reasons])
    assert verdict.sentence.endswith(".")
    assert str(verdict) == f"{word}: {verdict.sentence}"


def test_results_of_before_do_not_say_where_their_controls_were_asked():
    old = result()
    for row in old.rows:
        del row["asked_in"]
    assert old.verdict().word == "unclear"
    assert "not recorded" in old.verdict().sentence
    assert set(old.to_pandas().asked_in) == {"not recorded"}


def test_a_concepts_word_is_that_of_most_of_its_settings():
    yes, no = result(), result(shift=0.0)
    assert merged(yes, yes, no).verdict().word == "yes"
    assert merged(yes, no, no).verdict().word == "no"
    assert merged(yes, no).verdict().word == "unclear"
    assert "yes in 1, no in 1 of 2" in merged(yes, no).verdict().sentence


def test_the_chance_of_a_yes_is_stated_and_holds():
    """Ten thousand results in which the concept's own direction is one more random one: Markov's bound is kept.

    The settings of a result are as alike as can be (one draw for all of them), half alike, or independent.
    """
    rng = np.random.default_rng(0)
    for n_settings in (1, 2, 3, 4):
        one = merged(*[result()] * n_settings)
        bound = verdicts.chance(one)
        m = n_settings // 2 + 1
        assert bound == pytest.approx(n_settings / m / 11)
        for alike in (0.0, 0.5, 1.0):
            shared = rng.standard_normal((10_000, 1, 11))
            own = rng.standard_normal((10_000, n_settings, 11))
            drawn = math.sqrt(alike) * shared + math.sqrt(1 - alike) * own
            above = drawn[:, :, 0] > drawn[:, :, 1:].max(-1)
            rate = (above.sum(1) >= m).mean()
            assert rate <= bound + 4 * math.sqrt(bound / 10_000)
    assert f"at most {100 / 11:.0f} of 100" in result().verdict().sentence


def test_two_concepts_must_agree():
    both = result(concepts=("cat", "bread"))
    assert both.verdict().word == "yes"
    assert verdicts.chance(both) == pytest.approx(1 / 11)  # both of two, so no more often than one
    half = Result(synthetic.result("no_info", "yes_no", result().rows + result(0.0, concepts=("bread",)).rows))
    assert half.verdict().word == "unclear"
    assert "1 of 2 concepts" in half.verdict().sentence


def test_a_content_report_is_about_the_concepts_token():
    assert Result(synthetic.content()).verdict().word == "yes"
    few = synthetic.content()
    few["rows"] = [row for row in few["rows"] if row["null_index"] < 3]
    assert Result(few).verdict().word == "unclear"
    data = synthetic.content()
    for row in data["rows"]:
        if row["kind"] == "introspection":
            row["injected"]["tokens"] = row["base"]["tokens"]
    assert Result(data).verdict().word == "no"


def test_texts_are_for_reading():
    verdict = Result(synthetic.sample()).verdict()
    assert verdict.word == "unclear" and "read them" in verdict.sentence


@pytest.mark.parametrize(("right", "word"), [(20, "yes"), (8, "no"), (2, "no")])
def test_a_localisation_is_compared_with_guessing(right, word):
    rows = []
    for k in range(24):
        place, named = k % 3, k % 3 if k < right else (k + 1) % 3
        row = synthetic.row("cat", "introspection", "Which?", "introspection", synthetic.side(0.0), synthetic.side(0.0))
        row = {**row, "place": place, "strength": 0.1 * k}
        for side, gain in (("base", 0.0), ("injected", 1.0)):
            values = [-2.0 + gain * (i == named) for i in range(3)]
            answers = [{"token": "ABC"[i], "id": i, "log_prob": v, "rank": 1} for i, v in enumerate(values)]
            row[side] = {**row[side], "answers": answers}
        rows.append(row)
    data = synthetic.result("localisation", "yes_no", rows)
    data["protocol"]["answers"] = ["A", "B", "C"]
    assert Result(data).verdict().word == word
    data["rows"] = rows[:6]
    assert Result(data).verdict().word == "unclear"


def test_repr_is_one_line_with_the_verdict():
    shown = repr(result())
    assert "\n" not in shown and "yes." in shown and "no_info" in shown


def test_the_summary_shows_every_setting_with_its_numbers():
    lines = merged(result(), result(shift=0.0, mass=0.2)).summary().splitlines()
    assert lines[0].endswith("UNCLEAR")
    (first, second) = [line.split("  ") for line in lines if line.startswith("cat")]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (first, second)]
    assert cells[0] == ["cat", "0.1 x residual", "8-16", "+1.00", "+0.00", "+1.00", "1 of 11", "90% -> 90%", "yes"]
    assert cells[1][-2:] == ["90% -> 20%", "unclear"]
    assert max(map(len, lines[5:])) <= 100


def test_a_sweep_is_listed_by_its_largest_settings():
    many = merged(*[result(shift=0.1 * i) for i in range(12)])
    lines = [line for line in many.summary().splitlines() if line.startswith("cat")]
    assert len(lines) == verdicts.LISTED
    assert "and 4 settings more" in many.summary()


def test_no_z_from_few_rotations():
    few = detections.Compared(3.0, (0.0, 0.1, -0.1, 0.2))
    assert math.isnan(few.z) and not math.isnan(few.null_std)
    assert not math.isnan(detections.Compared(3.0, (0.0, 0.1, -0.1, 0.2, 0.3)).z)
