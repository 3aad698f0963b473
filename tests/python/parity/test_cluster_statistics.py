"""Means over clusters, equivalence and meta-analysis against scipy, hand formulas and published figures."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from introspect import statistics

EACH = [f"concept {i}" for i in range(40)]
# Vaccination against tuberculosis, 13 trials (Colditz et al. 1994): cases and others, vaccinated and not.
BCG = [
    *((4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761)),
    *((180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232)),
    *((17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825)),
]


def log_risks():
    """log risk ratio and its standard error of each trial."""
    a, b, c, d = np.array(BCG, float).T
    return np.log(a / (a + b) / (c / (c + d))), np.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))


@pytest.fixture(params=[3, 6, 11])
def values(request, numpy_rng):
    return numpy_rng.normal(0.4, 1, request.param)


def test_a_mean_over_clusters_is_scipys_t_of_their_means(values):
    ours = statistics.clustered_mean(values, EACH[: len(values)], null=0.1, confidence=0.9)
    theirs = stats.ttest_1samp(values, 0.1, alternative="greater")
    np.testing.assert_allclose(ours.p_greater, theirs.pvalue, rtol=1e-11)
    np.testing.assert_allclose(ours.p_less, stats.ttest_1samp(values, 0.1, alternative="less").pvalue, rtol=1e-11)
    interval = stats.ttest_1samp(values, 0.1).confidence_interval(0.9)
    np.testing.assert_allclose([ours.interval.low, ours.interval.high], list(interval), rtol=1e-10)
    assert ours.standard_error == pytest.approx(stats.sem(values), rel=1e-12)


def test_readings_of_a_cluster_are_one_number(values, numpy_rng):
    """However many readings a concept has, it counts once: copies of readings make nothing more certain."""
    each = EACH[: len(values)]
    many = [(name, value) for name, value in zip(each, values, strict=True) for _ in range(numpy_rng.integers(1, 9))]
    ours = statistics.clustered_mean([value for _, value in many], [name for name, _ in many])
    once = statistics.clustered_mean(values, each)
    assert (ours.value, ours.p_greater) == (pytest.approx(once.value), pytest.approx(once.p_greater))
    assert ours.clusters == len(values)


def test_flips_of_signs_are_counted_one_by_one(values):
    ours = statistics.clustered_mean(values, EACH[: len(values)], null=0.2)
    flips = np.array(list(itertools.product([1, -1], repeat=len(values))))
    sums = flips @ (values - 0.2)
    assert ours.p_greater_by_flips == np.mean(sums >= sums[0] - 1e-12)
    assert ours.p_less_by_flips == np.mean(sums <= sums[0] + 1e-12)
    theirs = stats.permutation_test(
        (values - 0.2,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    assert ours.p_greater_by_flips == pytest.approx(theirs.pvalue)


def test_many_clusters_draw_their_flips(numpy_rng):
    values = numpy_rng.normal(0.25, 1, 40)
    ours = statistics.clustered_mean(values, EACH, flips=100_000)
    # With 40 clusters flips and t agree; 100,000 draws of p = 0.05 have an error of 0.0007.
    assert ours.p_greater_by_flips == pytest.approx(ours.p_greater, abs=0.006)
    assert ours.p_greater_by_flips == statistics.clustered_mean(values, EACH, flips=100_000).p_greater_by_flips
    assert statistics.clustered_mean(values + 5, EACH, flips=1000).p_greater_by_flips == 1 / 1000


def test_equivalence_is_two_one_sided_t_tests(values):
    bounds = (-0.7, 1.3)
    ours = statistics.equivalence(values, EACH[: len(values)], bounds)
    low = stats.ttest_1samp(values, bounds[0], alternative="greater").pvalue
    high = stats.ttest_1samp(values, bounds[1], alternative="less").pvalue
    np.testing.assert_allclose([ours.p_low, ours.p_high, ours.p], [low, high, max(low, high)], rtol=1e-11)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose([ours.mean.interval.low, ours.mean.interval.high], list(interval), rtol=1e-10)
    assert ours.smallest_bound == pytest.approx(max(map(abs, interval)))


def test_equivalence_by_bootstrap_is_a_plain_loop_within_monte_carlo_error(numpy_rng):
    values = numpy_rng.exponential(1, 12) - 0.8
    ours = statistics.equivalence(values, EACH[:12], (-0.5, 0.9), errors="bootstrap_t", resamples=20_000)
    drawn = values[numpy_rng.integers(0, 12, (20_000, 12))]
    t = (drawn.mean(1) - values.mean()) / (drawn.std(1, ddof=1) / math.sqrt(12))
    error = stats.sem(values)
    low, high = np.mean(t >= (values.mean() + 0.5) / error), np.mean(t <= (values.mean() - 0.9) / error)
    # Two draws of 20,000: an error of 0.002 each where p is about 0.1.
    np.testing.assert_allclose([ours.p_low, ours.p_high], [low, high], atol=0.01)
    ends = values.mean() - np.quantile(t, [0.95, 0.05]) * error
    np.testing.assert_allclose([ours.mean.interval.low, ours.mean.interval.high], ends, atol=0.1 * error)


def restricted_likelihood(tau_squared, y, v):
    w = 1 / (v + tau_squared)
    mean = (w * y).sum() / w.sum()
    return -0.5 * (np.log(v + tau_squared).sum() + np.log(w.sum()) + (w * (y - mean) ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_variance_between_studies_is_each_methods_own(seed):
    rng = np.random.default_rng(seed)
    k = rng.integers(2, 12)
    errors = rng.uniform(0.1, 0.8, k)
    y = rng.normal(0.3, np.sqrt(errors**2 + rng.choice([0, 0.4]) ** 2))
    v = errors**2
    w = 1 / v
    q = (w * (y - (w * y).sum() / w.sum()) ** 2).sum()
    moments = max(0, (q - (k - 1)) / (w.sum() - (w**2).sum() / w.sum()))
    found = {
        name: statistics.meta_analysis(y, errors, method=name) for name in ("reml", "paule_mandel", "dersimonian_laird")
    }
    assert found["dersimonian_laird"].tau_squared == pytest.approx(moments, abs=1e-12)
    assert found["reml"].q == pytest.approx(q)
    assert found["reml"].p_q == pytest.approx(stats.chi2.sf(q, k - 1))

    def excess(tau_squared):
        weights = 1 / (v + tau_squared)
        return (weights * (y - (weights * y).sum() / weights.sum()) ** 2).sum() - (k - 1)

    paule = optimize.brentq(excess, 0, 100) if excess(0) > 0 else 0.0
    assert found["paule_mandel"].tau_squared == pytest.approx(paule, abs=1e-9)
    grid = np.linspace(0, 4, 40_001)
    best = grid[np.argmax([restricted_likelihood(t, y, v) for t in grid])]
    assert found["reml"].tau_squared == pytest.approx(best, abs=1e-4)  # the grid's step


def test_hartung_and_knapps_interval_and_the_prediction_interval_are_their_formulas():
    y, errors = log_risks()
    found = statistics.meta_analysis(y, errors)
    w = 1 / (errors**2 + found.tau_squared)
    mean = (w * y).sum() / w.sum()
    spread = (w * (y - mean) ** 2).sum() / 12
    error = math.sqrt(max(1, spread) / w.sum())
    reach = stats.t.ppf(0.975, 12) * error
    np.testing.assert_allclose([found.effect.interval.low, found.effect.interval.high], [mean - reach, mean + reach])
    assert found.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, 12))
    reach = stats.t.ppf(0.975, 11) * math.sqrt(found.tau_squared + error**2)
    np.testing.assert_allclose([found.prediction.low, found.prediction.high], [mean - reach, mean + reach])
    np.testing.assert_allclose(found.weights, w / w.sum())


def test_trials_of_a_vaccine_have_the_figures_that_metafor_prints():
    """Viechtbauer's metafor on dat.bcg: rma(measure="RR", ...) and confint, to the digits printed there."""
    y, errors = log_risks()
    found = statistics.meta_analysis(y, errors, hartung_knapp=False)
    assert round(found.effect.value, 4) == -0.7145
    assert round(found.effect.standard_error, 4) == 0.1798
    assert [round(found.effect.interval.low, 4), round(found.effect.interval.high, 4)] == [-1.0669, -0.3622]
    assert round(found.tau_squared, 4) == 0.3132
    assert [round(found.tau_squared_interval.low, 4), round(found.tau_squared_interval.high, 4)] == [0.1197, 1.1115]
    assert round(100 * found.i_squared, 2) == 92.22
    assert round(found.q, 4) == 152.233
    assert round(statistics.meta_analysis(y, errors, method="dersimonian_laird").tau_squared, 4) == 0.3088
    assert round(statistics.meta_analysis(y, errors, method="paule_mandel").tau_squared, 4) == 0.3181


def test_studies_that_agree_by_luck_give_no_narrow_interval():
    errors = [0.3, 0.3, 0.3]
    lucky = statistics.meta_analysis([0.5, 0.5001, 0.4999], errors)
    usual = statistics.meta_analysis([0.5, 0.5001, 0.4999], errors, hartung_knapp=False)
    assert lucky.effect.standard_error == usual.effect.standard_error
    assert lucky.effect.interval.high > usual.effect.interval.high


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: statistics.clustered_mean([1, math.nan, 2], EACH[:3]), "finite"),
        (lambda: statistics.clustered_mean([1, 2, 3], EACH[:2]), "3 clusters required"),
        (lambda: statistics.clustered_mean([1, 2, 3], ["a"] * 3), "at least 2 clusters"),
        (lambda: statistics.clustered_mean([2, 2, 2], EACH[:3]), "copy"),
        (lambda: statistics.clustered_mean([1, 2], EACH[:2], confidence=1), "confidence"),
        (lambda: statistics.equivalence([1, 2], EACH[:2], (1, -1)), "low one below"),
        (lambda: statistics.equivalence([1, 2], EACH[:2], (-1, 1), level=0.5), "level"),
        (lambda: statistics.equivalence([1, 2], EACH[:2], (-1, 1), errors="normal"), "student or bootstrap_t"),
        (lambda: statistics.meta_analysis([1], [1]), "at least 2 effects"),
        (lambda: statistics.meta_analysis([1, 2], [1]), "2 standard errors"),
        (lambda: statistics.meta_analysis([1, 2], [1, 0]), "above 0"),
        (lambda: statistics.meta_analysis([1, math.inf], [1, 1]), "finite"),
        (lambda: statistics.meta_analysis([1, 2], [1, 1], method="fixed"), "reml, paule_mandel"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
