"""Studies of several machines and models as one."""

import math

import numpy as np
import pytest
import studies

from introspect import statistics
from introspect.experiments.results import Result
from introspect.studies.pooling import pool

NAMES = studies.CONCEPTS[:8]


def study(rng, model, mean=1.0, names=NAMES, **truth):
    shifts = dict(zip(names, rng.normal(mean, 0.3, len(names)).tolist(), strict=True))
    return studies.study(rng, shifts=shifts, model=model, **truth)


def test_models_are_pooled_with_random_effects(numpy_rng):
    means = (0.6, 1.0, 1.6, 1.2)
    made = [study(numpy_rng, f"model {i}", mean) for i, mean in enumerate(means)]
    found = pool(made)
    (sham,) = found["sham"]
    ladders = [one.claims()["sham"].contrasts[0] for one in made]
    effects, errors = ([one[name] for one in ladders] for name in ("effect", "standard_error"))
    theirs = statistics.meta_analysis(effects, errors)
    assert sham.effect == theirs.effect.value and sham.i_squared == theirs.i_squared
    assert sham.prediction == (theirs.prediction.low, theirs.prediction.high)
    assert sham.prediction[0] < sham.interval[0] < sham.effect < sham.interval[1] < sham.prediction[1]
    assert [one["label"] for one in sham.studies] == [f"model {i}, with_info" for i in range(4)]
    assert sum(one["weight"] for one in sham.studies) == pytest.approx(1)
    assert {one.control for one in found["questions"]} >= {
        "factual questions with the answer no",
        "contested questions",
    }
    assert found.to_pandas()["rung"].iloc[0] == "sham"
    assert "I²" in str(found) and "one more study would lie between" in str(found)


def test_parts_of_one_experiment_are_merged_and_count_once(numpy_rng, tmp_path):
    """Two machines that ran half of the concepts each, or the same ones twice, are one study."""
    halves = [study(numpy_rng, "one", names=part) for part in (NAMES[:4], NAMES[4:])]
    other = study(numpy_rng, "other")
    found = pool([*halves, other])
    (sham,) = found["sham"]
    assert [one["n"] for one in sham.studies] == [8, 8]
    assert found.notes == ["2 of one, with_info are parts of one experiment: their readings were merged."]
    for i, one in enumerate((other, halves[0], halves[1], other)):
        one.save(tmp_path / f"{i}.json")
    again = pool([tmp_path / f"{i}.json" for i in range(4)])
    (twice,) = again["sham"]
    assert sorted(one["effect"] for one in twice.studies) == pytest.approx(
        sorted(one["effect"] for one in sham.studies)
    )
    assert twice.interval == pytest.approx(sham.interval)  # the copy of `other` made nothing more certain


def test_single_results_are_pooled_too(numpy_rng):
    results = [study(numpy_rng, name).results["injected"] for name in "ab"]
    (sham,) = pool(results)["sham"]
    assert sham.prediction is None and len(sham.studies) == 2
    assert all(isinstance(one, Result) for one in results)


def test_a_rung_that_one_study_lacks_is_pooled_without_it(numpy_rng):
    made = [study(numpy_rng, name) for name in "abc"]
    del made[0].results["equal_dose"]
    found = pool(made)
    assert len(found["equal_dose"][0].studies) == 2 and len(found["equal_norm"][0].studies) == 3


def test_what_cannot_be_pooled_is_refused(numpy_rng):
    one = study(numpy_rng, "a")
    with pytest.raises(ValueError, match="got 2 that are parts of 1"):
        pool([one, one])
    with pytest.raises(ValueError, match="reml"):
        pool([one, study(numpy_rng, "b")], method="fixed")
    other = study(numpy_rng, "a")
    for result in other.results.values():
        result.settings["strength_unit"] = "absolute"
    with pytest.raises(ValueError, match="strength_unit"):
        pool([one, other, study(numpy_rng, "b")])


def test_an_interval_over_models_holds_the_truth_as_often_as_it_says():
    """Eight models, true mean 0.5, spread between models 0.4: 400 rounds, so a share has an error of 0.011."""
    rng, inside, predicted = np.random.default_rng(0), 0, 0
    for _ in range(400):
        errors = rng.uniform(0.1, 0.5, 8)
        true = rng.normal(0.5, 0.4, 9)
        found = statistics.meta_analysis(rng.normal(true[:8], errors), errors)
        inside += found.effect.interval.low <= 0.5 <= found.effect.interval.high
        predicted += found.prediction.low <= true[8] <= found.prediction.high
    assert abs(inside / 400 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)
    # Of few studies the published prediction interval is known to hold less than it says (Partlett & Riley 2017).
    assert 0.83 < predicted / 400 < 0.95
