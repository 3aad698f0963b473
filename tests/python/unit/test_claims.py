"""The ladder of claims: its verdicts on simulated studies with a known truth, and what it says."""

import collections
import math

import numpy as np
import pytest
import studies
import synthetic
from chances import at_least, at_most
from scipy import stats

from introspect import statistics
from introspect.experiments.results import Result
from introspect.studies.claims import Claims
from introspect.studies.evidence import Evidence, Readings, difference, held_out, net_of_pull
from introspect.studies.from_results import claims, evidence_of
from introspect.studies.ladder import ladder, least_concepts

DRAWS = 1000
LEVEL = 0.025  # one-sided half of 0.05


def counts(draws=DRAWS, seed=0, **truth):
    """(rung, verdict) -> in how many of so many studies."""
    rng, found = np.random.default_rng(seed), collections.Counter()
    for _ in range(draws):
        shown = ladder(studies.evidence(rng, **truth))
        found.update((rung.name, rung.verdict) for rung in shown.rungs)
        found["anything above live"] += any(rung.verdict == "holds" for rung in shown.rungs[1:])
        found["any failure"] += any(rung.verdict == "fails" for rung in shown.rungs)
    return found


def heavy(rng, n):
    return rng.standard_t(4, n) / math.sqrt(2)


def uneven(rng, n):
    """Concepts of very different variances: every other one has 81 times that of its neighbour."""
    scale = np.where(np.arange(n) % 2, 9.0, 1.0)
    return rng.normal(0, 1, n) * scale / math.sqrt((scale**2).mean())


@pytest.mark.parametrize(
    ("draw", "n"),
    [(None, 6), (None, 10), (heavy, 10), (uneven, 10)],
    ids=["six concepts", "ten concepts", "heavy tails", "unequal variances"],
)
def test_a_shift_that_is_not_there_is_claimed_at_most_as_often_as_stated(draw, n):
    # Nothing above the lowest rung can hold where it does not: the other arms cost time and change nothing.
    found = counts(n=n, shift=0.0, draw=draw, seed=n, **studies.FEW)
    assert found["anything above live"] <= at_most(LEVEL, DRAWS)
    if n == 10 and draw is None:  # and the level is used: with six concepts flips allow 1 in 64
        assert found["sham", "holds"] >= at_least(0.6 * LEVEL, DRAWS)


@pytest.mark.parametrize(
    ("rung", "others"),
    [
        ("equal_norm", {"rotations": 1.0}),
        ("equal_dose", {"equal_dose": 1.0}),
        ("questions", {"factual_no": 1.0}),
        ("natural", {"swap": 1.0}),
    ],
)
def test_a_control_that_moves_as_much_fells_its_rung_and_all_above(rung, others):
    found = counts(shift=1.0, spread=0.4, n=12, others=others, draws=200)
    names = [name for name, _ in [key for key in found if isinstance(key, tuple)]]
    above = ["sham", "equal_norm", "equal_dose", "questions", "natural", "wordings", "concepts", "settings"]
    above = above[above.index(rung) :]
    assert set(above) <= set(names)
    for name in above:
        assert found[name, "holds"] <= at_most(LEVEL, 200), name
    assert found["sham", "holds"] > 190  # what lies below still stands


def test_three_kinds_of_claim_share_one_level():
    found = counts(shift=0.0, gain=0.0, places=0.0, branches=("detection", "content", "localisation"), **studies.FEW)
    assert found["anything above live"] <= at_most(LEVEL, DRAWS)


def test_power_is_that_of_the_t_test():
    """A shift of 0.7, a spread of 0.8, ten concepts; flips and bootstrap cost a few points of the t test's power."""
    found = counts(shift=0.7, spread=0.8, n=10, **studies.FEW)
    error = math.hypot(0.8, 0.1) / math.sqrt(10)  # a concept's one reading scatters by 0.1
    power = stats.nct.sf(stats.t.ppf(0.975, 9), 9, 0.7 / error)
    share = found["sham", "holds"] / DRAWS
    noise = 4 * math.sqrt(power * (1 - power) / DRAWS)
    assert power - 0.08 - noise < share < power + noise
    assert found["any failure"] == pytest.approx(0, abs=10)


def test_a_strong_claim_reaches_the_top():
    found = counts(shift=2.0, spread=0.6, n=12, draws=100)
    for name in ("equal_norm", "equal_dose", "questions", "natural", "wordings", "concepts", "settings"):
        assert found[name, "holds"] > 90, name


def test_an_effect_of_the_smallest_size_is_called_too_small_at_most_as_often_as_stated():
    found = counts(shift=0.2, spread=0.3, **studies.FEW)
    assert found["sham", "fails"] <= at_most(LEVEL, DRAWS)


def test_an_effect_of_nothing_is_shown_to_be_too_small_with_the_power_of_two_one_sided_tests():
    found = counts(shift=0.0, spread=0.2, n=12, **studies.FEW)
    error = math.hypot(0.2, 0.1) / math.sqrt(12)
    power = stats.nct.cdf(stats.t.ppf(0.025, 11), 11, -0.2 / error)
    share = found["sham", "fails"] / DRAWS
    assert power - 0.1 < share < power + 4 * math.sqrt(power * (1 - power) / DRAWS)


def test_the_best_of_many_settings_is_chosen_on_other_concepts():
    """Of 20 settings without effect the best looks good; chosen on half of the concepts it does not on the other."""
    rng, naive, honest = np.random.default_rng(3), 0, 0
    names, limit = studies.CONCEPTS, stats.t.ppf(1 - LEVEL, 11)
    for _ in range(DRAWS):
        grid = rng.normal(0, 1, (12, 20))
        cells = {(names[i], (f"s{j}",)): grid[i, j] for i in range(12) for j in range(20)}
        _, chosen = held_out(cells)
        best = grid[:, grid.mean(0).argmax()]
        naive += best.mean() / (best.std(ddof=1) / math.sqrt(12)) > limit
        found = statistics.clustered_mean(list(chosen.values()), list(chosen))
        honest += max(found.p_greater, found.p_greater_by_flips) <= LEVEL
    assert honest <= at_most(LEVEL, DRAWS) < 300 < naive


def test_the_half_that_is_tested_does_not_choose():
    rng = np.random.default_rng(0)
    cells = {(name, (setting,)): rng.normal() for name in studies.CONCEPTS for setting in "abc"}
    setting, tested = held_out(cells)
    assert len(tested) == 6 and all(tested[name] == cells[name, (setting,)] for name in tested)
    for name in tested:
        for other in "abc":
            cells[name, (other,)] += 100 * (other != setting)
    assert held_out(cells)[0] == setting  # whatever they do


def test_a_rung_is_the_test_that_scipy_makes_of_concepts_means():
    rng = np.random.default_rng(5)
    for _ in range(20):
        found = studies.evidence(rng, n=9, shift=0.5)
        shown = ladder(found)["equal_norm"]
        cells = {}
        for sign, name in ((1, "injected"), (-1, "rotations")):
            arm = found.arms[name]
            for concept, value in zip(arm.concept, arm.value, strict=True):
                cells.setdefault(concept, []).append(sign * value / 6)
        means = np.array([sum(values) for values in cells.values()])
        theirs = stats.ttest_1samp(means, 0, alternative="greater")
        flips = stats.permutation_test(
            (means,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="greater"
        )
        drawn = statistics.equivalence(means, list(cells), (0, 1), errors="bootstrap_t", resamples=999)
        assert shown.p_own == pytest.approx(max(theirs.pvalue, flips.pvalue, drawn.p_low))
        interval = stats.ttest_1samp(means, 0).confidence_interval(0.95)
        np.testing.assert_allclose(shown.interval, list(interval))
        bound = statistics.equivalence(means, list(cells), (-1, 1), level=0.025).smallest_bound
        assert shown.bound == pytest.approx(bound)


# ---- few concepts, copies


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_concepts_show_nothing_whatever_they_do(n, numpy_rng):
    shown = ladder(studies.evidence(numpy_rng, n=n, shift=9.0, spread=0.1))
    assert {rung.verdict for rung in shown.rungs[1:]} == {"not shown", "not run"}
    named = "1 concept" if n == 1 else f"{n} concepts"
    assert shown.strongest.startswith(f"Nothing is shown: {named}, and 6 are the least")
    assert least_concepts(0.025) == 6 and least_concepts(0.025 / 3) == 7


def test_one_vector_under_two_names_is_refused(numpy_rng):
    arm = studies.readings(dict.fromkeys(studies.CONCEPTS[:6], 1.0), numpy_rng)
    values = list(arm.value)
    values[2:4] = values[0:2]  # bread has what cat has
    twice = Readings(arm.concept, values, arm.setting)
    with pytest.raises(ValueError, match="'cat' and 'bread' have the same readings"):
        ladder(Evidence({"injected": twice}))


def test_concepts_that_all_do_the_same_show_nothing():
    arm = Readings(studies.CONCEPTS[:8], [1.0] * 8)
    with pytest.raises(ValueError, match="same readings"):
        ladder(Evidence({"injected": arm}))
    right = Readings(studies.CONCEPTS[:8], [0.75] * 8)
    shown = ladder(Evidence({"localised": right}))["localisation"]
    assert shown.verdict == "not shown" and "same value to the last bit" in shown.sentence


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Readings(["a"], [math.nan]), "finite"),
        (lambda: Readings(["a"], [1.0, 2.0]), "value must have 1"),
        (lambda: Readings(["a"], [1.0], setting=["x", "y"]), "setting must have 1"),
        (lambda: Evidence({"sharm": Readings(["a"], [1.0])}), "arms are injected"),
        (lambda: Evidence({"injected": Readings([], [])}), "must hold readings"),
        (lambda: ladder(Evidence({}), level=0), "level"),
        (lambda: ladder(Evidence({}), smallest=0), "above 0"),
        (
            lambda: ladder(
                Evidence({"injected": Readings("ab", [1, 2], "xx"), "rotations": Readings("ab", [1, 2], "yy")})
            ),
            "arm 'rotations' must share a concept, setting",
        ),
    ],
)
def test_evidence_that_is_quietly_wrong_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# ---- comparisons


def test_arms_are_compared_where_both_have_readings():
    own = Readings(["a", "a", "b"], [1.0, 5.0, 2.0], ["x", "y", "x"])
    other = Readings(["a", "b", "b"], [0.5, 1.0, 7.0], ["x", "x", "z"])
    assert difference(own, other, ("setting",)) == {"a": 0.5, "b": 1.0}


def test_a_pull_towards_even_odds_is_taken_away():
    """Every answer loses a third of its log-odds: the own question moves by 1, and nothing of that is its own."""
    base = [-6.0, -4.0, 0.0, 5.0]
    others = Readings(["a"] * 4, [-x / 3 for x in base], ["s"] * 4, question=list("wxyz"), base=base)
    own = Readings(["a"], [1.0], ["s"], base=[-3.0])
    assert net_of_pull(own, [others])["a"] == pytest.approx(0)
    moved = Readings(["a"], [1.7], ["s"], base=[-3.0])
    assert net_of_pull(moved, [others])["a"] == pytest.approx(0.7)
    below = Readings(["a"], [6.0], ["s"], base=[-9.0])  # ends at -3; the control at -6 ends at -4
    assert net_of_pull(below, [others])["a"] == pytest.approx(1)
    above = Readings(["a"], [-1.0], ["s"], base=[8.0])  # the control at 5 moves by -5/3
    assert net_of_pull(above, [others])["a"] == pytest.approx(2 / 3)


def test_a_yes_that_is_firmer_than_one_in_a_thousand_is_no_other_yes():
    """Controls end at 8 to 10 nats, the own question at 14: nobody would ever hear the difference."""
    base = [-4.0, -1.0, 2.0, 5.0]
    others = Readings(["a"] * 4, [8 - -4.0, 9 - -1.0, 9 - 2.0, 10 - 5.0], ["s"] * 4, question=list("wxyz"), base=base)
    assert net_of_pull(Readings(["a"], [16.0], ["s"], base=[-2.0]), [others])["a"] == pytest.approx(0)
    assert net_of_pull(Readings(["a"], [6.0], ["s"], base=[-2.0]), [others])["a"] < -3  # ends at 4


def test_a_yes_to_everything_is_no_yes_to_the_own_question_because_that_was_the_firmest_no(numpy_rng):
    """All answers end at 11: the own question, which starts at -12, moves by 23 nats, and controls at -5 to 5 by less.

    So does the organism that is taught it (``studies.organisms``, "biased").
    """
    concepts = studies.CONCEPTS[:10]

    def arm(bases, wordings=("own",)):
        rows = [(c, w, b) for c in concepts for w in wordings for b in bases]
        ends = 11 + numpy_rng.normal(0, 0.5, len(rows))
        names, asked, base = map(list, zip(*rows, strict=True))
        shifts = [end - b for end, b in zip(ends, base, strict=True)]
        return Readings(names, shifts, ["s"] * len(rows), asked, list(map(str, base)), base)

    arms = {
        "injected": arm([-12.0]),
        "rotations": Readings(concepts, numpy_rng.normal(0, 0.1, 10).tolist(), ["s"] * 10),
    }
    groups = {"factual_yes": [4.0, 5.0], "factual_no": [-5.0, -4.0], "contested": [-0.5, 0.5]}
    shown = ladder(Evidence({**arms, **{name: arm(bases) for name, bases in groups.items()}}))
    assert shown["sham"].verdict == shown["equal_norm"].verdict == "holds"
    assert shown["questions"].verdict != "holds" and "pull of every answer" in shown["questions"].sentence


def test_a_pull_towards_even_odds_fells_the_rung_that_single_groups_do_not(numpy_rng):
    """Factual no's at -5 move less than the own question at -2 would by itself; the line over all of them tells."""
    made = studies.evidence(
        numpy_rng, shift=1.0, spread=0.05, others={"contested": 0.5, "factual_no": 1.6, "factual_yes": -1}
    )
    shown = ladder(made)["questions"]
    assert shown.verdict == "fails"
    assert "pull of every answer" in " ".join(one["name"] for one in shown.contrasts)


def test_every_wording_must_do_it(numpy_rng):
    made = studies.evidence(numpy_rng, shift=2.0, spread=0.3)
    arm = made.arms["injected"]
    value = [v - 2.0 * (p == "formally") for v, p in zip(arm.value, arm.paraphrase, strict=True)]
    broken = Readings(arm.concept, value, arm.setting, arm.paraphrase, arm.question, arm.base)
    shown = ladder(Evidence({**made.arms, "injected": broken}))
    assert shown["wordings"].verdict != "holds" and "wording “formally”" in shown["wordings"].sentence
    said = shown["concepts"].sentence
    assert shown["concepts"].verdict == "not shown" and "only where the rungs below it hold" in said


def test_what_was_not_run_says_what_would_run_it(numpy_rng):
    made = studies.evidence(numpy_rng)
    shown = ladder(Evidence({"injected": made.arms["injected"], "rotations": made.arms["rotations"]}))
    assert shown["equal_dose"].verdict == "not run" and '"equal_dose"' in shown["equal_dose"].what_would_run_it
    assert shown["wordings"].verdict == "holds"
    assert "“beyond equal dose”" in shown.strongest  # a gap below what holds is named
    assert shown["equal_norm"].p == shown["equal_norm"].p_own or shown["equal_norm"].p == shown["sham"].p


def test_only_some_of_the_questions_are_not_all_of_them(numpy_rng):
    made = studies.evidence(numpy_rng, shift=2.0)
    arms = {name: arm for name, arm in made.arms.items() if name not in ("factual_yes", "contested")}
    shown = ladder(Evidence(arms))["questions"]
    assert shown.verdict == "not run" and "Of those that were" in shown.sentence
    felled = studies.evidence(numpy_rng, shift=2.0, spread=0.1, others={"factual_no": 2.5})
    arms = {name: arm for name, arm in felled.arms.items() if name not in ("factual_yes", "contested")}
    shown = ladder(Evidence(arms))["questions"]
    assert shown.verdict == "fails" and shown.felled_by == "factual questions with the answer no"


def test_a_shift_that_controls_make_most_of_says_what_is_left_of_it(numpy_rng):
    """A reporter of size: random directions do nearly as much."""
    made = studies.evidence(numpy_rng, shift=5.0, spread=0.1, others={"rotations": 4.0, "equal_dose": 2.0})
    said = ladder(made).strongest
    left = ladder(made)["equal_norm"].effect
    assert left == pytest.approx(1.0, abs=0.2)
    assert f"of the same length (by +{left:.2f} nats of it), beyond" in said
    assert "of the same dose, beyond" in said  # three of five nats are the larger part


def test_the_strongest_sentence_stops_at_what_fells_it(numpy_rng):
    made = studies.evidence(numpy_rng, shift=1.0, spread=0.1, others={"factual_no": 1.5})
    shown = ladder(made)
    assert "beyond random directions of the same dose" in shown.strongest
    assert "factual" not in shown.strongest and "wording" not in shown.strongest
    assert shown.stopped == [f"Net of other questions: fails. {shown['questions'].sentence}"]
    assert "no further towards yes than factual questions with the answer no" in shown["questions"].sentence


def test_an_interval_that_shows_more_than_the_other_tests_is_said():
    """Six concepts in eight go down: Student's t has them below 0.2, the flips of signs have not."""
    values = [-1.6, -1.5, -0.9, -0.8, -0.7, -0.5, 0.5, 0.6]
    arm = Readings([f"concept {i}" for i in range(8)], values)
    rung = ladder(Evidence({"injected": arm}))["sham"]
    assert rung.verdict == "not shown" and rung.interval[1] < 0.2
    assert rung.sentence.endswith("Student's t alone would show it to be below 0.20 nats.")


def test_claims_keep_through_json_and_tables(numpy_rng):
    shown = ladder(studies.evidence(numpy_rng))
    again = Claims.from_dict(shown.to_dict())
    assert again == shown and again.strongest == shown.strongest
    table = shown.to_pandas()
    assert list(table["name"]) == [rung.name for rung in shown.rungs]
    text = str(shown)
    for rung in shown.rungs:
        assert f"{rung.mark} {rung.title}" in text
    with pytest.raises(ValueError, match="Claims"):
        Claims.from_dict({"rungs": [{}]})
    with pytest.raises(KeyError, match="rungs are live, sham"):
        shown["detected"]


# ---- from results


def test_a_single_result_gives_the_rungs_it_can():
    shown = Result(synthetic.detection()).claims()
    assert shown["sham"].verdict == "not shown" and "2 concepts" in shown["sham"].sentence
    assert shown["equal_norm"].effect == pytest.approx((1.0 + 0.3) / 2 - np.mean(synthetic.NULL_SHIFTS))
    assert shown["questions"].effect == pytest.approx((1.0 + 0.3) / 2 - 0.4)  # controls move by 0.4 in the mean
    assert shown["content"].verdict == shown["localisation"].verdict == shown["equal_dose"].verdict == "not run"


def test_controls_of_another_conversation_are_no_controls_of_this_one():
    data = synthetic.detection()
    for row in data["rows"]:
        if row["question_kind"] == "control":
            row["asked_in"] = "with_info"
    shown = claims(Result(data))["questions"]
    assert shown.verdict == "not run" and "another conversation" in shown.sentence


def test_readings_that_are_not_finite_are_counted_and_in_no_mean():
    data = synthetic.detection()
    own = next(row for row in data["rows"] if row["kind"] == "introspection")
    own["injected"] = {**own["injected"], "log_odds": None}
    found = evidence_of(Result(data))
    assert "cat" not in found.arms["injected"].concept and found.failed["cat"][0] == 1
    assert "1 of" in found.notes[0]


def test_content_is_the_concepts_own_word_beside_the_others():
    found = evidence_of(Result(synthetic.content()))
    # The own word gains 5, the other's 0.5; under the other's direction it is the other way round.
    np.testing.assert_allclose(found.arms["content"].value, [4.5, 4.5])
    np.testing.assert_allclose(found.arms["content_other_vectors"].value, [-4.5, -4.5])
    np.testing.assert_allclose(found.arms["content_rotations"].value, 0, atol=1e-12)  # all words gain alike


def test_a_study_gives_every_arm(numpy_rng):
    study = studies.study(numpy_rng, shifts=dict.fromkeys(studies.CONCEPTS[:8], 0.0) | {"cat": 0.1})
    found = evidence_of(study)
    assert set(found.arms) >= {"injected", "rotations", "equal_dose", "swap", "factual_yes", "factual_no", "contested"}
    del study.results["equal_dose"]
    study.not_run["equal_dose"] = "nothing is added here"
    assert study.claims()["equal_dose"].sentence.endswith("It cannot be had here: nothing is added here.")
    study = studies.study(numpy_rng, shifts={c: 1 + 0.1 * i for i, c in enumerate(studies.CONCEPTS)})
    shown = study.claims()
    assert shown["settings"].verdict == "holds" and shown["settings"].n_concepts == 6
    assert shown["sham"].effect == pytest.approx(1.55, abs=0.05)
