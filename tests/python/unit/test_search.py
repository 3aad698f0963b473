"""Searching the layer ranges: what is run, what is said of it, and the measures of agreement."""

import math

import numpy as np
import positive_control
import pytest
import scipy.stats
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.experiments.range_search import Agreement

N_LAYERS = 7
STRENGTH = 0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model", num_hidden_layers=N_LAYERS)
    return introspect.load_model(folder)


@pytest.fixture(scope="module")
def vectors():
    return random_vectors(range(1, N_LAYERS))


@pytest.fixture(scope="module")
def sweep(model, vectors):
    """Every range, run exactly: {range: mean over the concepts of the shift}."""
    ranges = [(i, j) for i in range(1, N_LAYERS) for j in range(i, N_LAYERS)]
    table = introspect.run_experiment(
        model, positive_control.protocol(), vectors=vectors, strengths=[STRENGTH], layers=ranges, questions=[], nulls=0
    ).to_pandas()
    table["shift"] = table.log_odds - table.log_odds_base
    return table.groupby(["first_layer", "last_layer"])["shift"].mean().to_dict()


def test_a_screen_runs_the_highest_estimates_and_the_random_ranges_exactly(model, vectors, sweep):
    options = {"vectors": vectors, "questions": []}
    search = introspect.screen_ranges(
        model, positive_control.protocol(), strength=STRENGTH, k=3, sample=8, seed=4, **options
    )
    estimates = introspect.estimate_ranges(model, positive_control.protocol(), strengths=[STRENGTH], **options)
    guesses = estimates.scores(STRENGTH)
    highest = sorted(guesses, key=guesses.get, reverse=True)[:3]
    assert set(search.scores) == {*highest, *search.sampled}
    assert len(set(search.sampled)) == 8
    for pair, score in search.scores.items():
        assert score == pytest.approx(sweep[pair], abs=1e-4)  # float32, batches of another size
    assert search.n_ranges == len(sweep) == 21
    assert search.best == max(search.scores, key=search.scores.get)
    exact = [sweep[pair] for pair in search.sampled]
    expected = scipy.stats.spearmanr([guesses[pair] for pair in search.sampled], exact).statistic
    assert search.agreement.n == 8
    assert search.agreement.spearman == pytest.approx(expected)
    assert f"{len(search.scores)} of 21 ranges run" in str(search)
    assert "may be higher" in str(search)


def test_a_screen_of_every_range_is_the_sweep(model, vectors, sweep):
    search = introspect.screen_ranges(
        model, positive_control.protocol(), vectors=vectors, strength=STRENGTH, k=100, sample=0, questions=[]
    )
    assert search.scores == pytest.approx(sweep, abs=1e-4)
    assert search.best == max(sweep, key=sweep.get)
    assert search.agreement is None


@pytest.mark.parametrize("grid", [2, 3, 6])
def test_refining_ends_where_no_neighbour_is_better(grid, model, vectors, sweep):
    search = introspect.refine_ranges(
        model, positive_control.protocol(), vectors=vectors, strength=STRENGTH, grid=grid, keep=1, questions=[]
    )
    first, last = search.best
    for i in (first - 1, first, first + 1):
        for j in (last - 1, last, last + 1):
            assert sweep.get((i, j), -math.inf) <= sweep[search.best] + 1e-4
    for pair, score in search.scores.items():
        assert score == pytest.approx(sweep[pair], abs=1e-4)
    rows = [(row["first_layer"], row["last_layer"]) for row in search.result.rows if row["concept"] == "cat"]
    assert sorted(rows) == sorted(search.scores)  # none twice
    if grid == 2:
        assert len(search.scores) < len(sweep)
    assert "coarse to fine" in str(search)


def test_scores_are_less_the_controls_where_there_are_any(model, vectors):
    search = introspect.screen_ranges(
        model, positive_control.protocol(), vectors=vectors, strength=STRENGTH, k=1, sample=0, nulls=1
    )
    (pair,) = search.scores
    headlines = [one.corrected.value for one in search.result.detections()]
    assert search.scores[pair] == pytest.approx(sum(headlines) / 2)
    assert {row["kind"] for row in search.result.rows} == {"introspection", "control", "random"}


@pytest.mark.parametrize("ties", [False, True])
def test_agreement_is_scipys(ties, numpy_rng):
    x = numpy_rng.normal(size=40)
    y = x + numpy_rng.normal(size=40)
    if ties:
        x, y = x.round(), y.round()
    found = Agreement.of(x, y, 40)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(scipy.stats.kendalltau(x, y).statistic)
    assert found.overlap == 1
    assert math.isnan(Agreement.of(x, np.ones(40), 1).spearman)
    assert math.isnan(Agreement.of(np.ones(40), y, 1).kendall)


def test_overlap_counts_the_highest_in_common():
    assert Agreement.of([4, 3, 2, 1], [4, 1, 3, 2], 2).overlap == 0.5
    assert Agreement.of([1, 2, 3, 4], [4, 3, 2, 1], 2).overlap == 0
    with pytest.raises(ValueError):
        Agreement.of([1, 2, 3, 4], [4, 3, 2, 1], 5)


def test_searches_refuse_sizes_that_make_no_search(model, vectors):
    def refused(match, search, **options):
        with pytest.raises(ValueError, match=match):
            search(model, positive_control.protocol(), vectors=vectors, strength=1.0, **options)

    refused("k must be 1 or more", introspect.screen_ranges, k=0)
    refused("at least 2, got 5 and 1", introspect.screen_ranges, k=5, sample=1)
    refused("grid must be 2 or more", introspect.refine_ranges, grid=1)
    refused("keep 1 or more", introspect.refine_ranges, keep=0)
    with pytest.raises(ValueError, match="in common"):
        introspect.refine_ranges(model, positive_control.protocol(), vectors={}, strength=1.0)
