"""Sampled trials: the texts of run_experiment at each seed, graded and counted."""

import pytest
from looped import protocol
from tiny_chat import random_vectors

import introspect
from introspect.studies import sample_trials

OPTIONS = {"strengths": [2.0], "layers": (1, 2), "progress": False}


def test_trials_are_the_texts_of_runs_with_their_seeds(model):
    vectors = random_vectors()
    found = sample_trials(model, protocol(), vectors, n=3, max_new_tokens=6, seed=5, **OPTIONS)
    table = found.to_pandas()
    assert len(table) == 3 * (1 + len(vectors)) and set(table["seed"]) == {5, 6, 7}
    asked = protocol(read="sample", sampling={"max_new_tokens": 6, "temperature": 1.0})
    for seed in (5, 6, 7):
        alone = introspect.run_experiment(model, asked, vectors=vectors, nulls=0, questions=[], seed=seed, **OPTIONS)
        mine = table[table["seed"] == seed]
        assert list(mine[mine["concept"] == "(nothing)"]["text"]) == [alone.rows[0]["base"]["text"]]
        for row in alone.rows:
            assert list(mine[mine["concept"] == row["concept"]]["text"]) == [row["injected"]["text"]]
    assert table["text"].nunique() > 3  # other seeds, other texts


def test_rotations_are_the_same_in_every_trial(model):
    vectors = {"cat": random_vectors()["cat"]}
    found = sample_trials(model, protocol(), vectors, n=2, max_new_tokens=3, nulls=2, **OPTIONS).to_pandas()
    assert sorted(set(found["null_index"])) == [-1, 0, 1]
    assert len(found) == 2 * (1 + 1 + 2)
    asked = protocol(read="sample", sampling={"max_new_tokens": 3, "temperature": 1.0})
    one = introspect.run_experiment(model, asked, vectors=vectors, nulls=2, questions=[], seed=0, **OPTIONS)
    first = found[(found["seed"] == 0) & (found["null_index"] >= 0)]
    assert list(first["text"]) == [row["injected"]["text"] for row in one.rows if row["null_index"] >= 0]


def test_rates_count_labels_with_exact_intervals(model):
    found = sample_trials(model, protocol(), random_vectors(), n=4, max_new_tokens=3, **OPTIONS)
    graded = found.labelled(["yes", None] * (len(found.trials) // 2))
    rates = graded.rates("yes")
    assert list(rates["n"]) == [4] * len(rates) and list(rates["k"]) == [
        sum(t.label == "yes" for t in graded.trials if t.concept == concept) for concept in rates["concept"]
    ]
    assert ((rates["low"] <= rates["rate"]) & (rates["rate"] <= rates["high"])).all()
    with pytest.raises(ValueError, match="labels, got 1"):
        found.labelled(["yes"])


@pytest.mark.parametrize(("options", "said"), [({"n": 0}, "n must be 1"), ({"n": 2, "temperature": 0}, "above 0")])
def test_trials_that_cannot_be(model, options, said):
    with pytest.raises(ValueError, match=said):
        sample_trials(model, protocol(), random_vectors(), **options)
