"""introspect.statistics against scipy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mutual_info_score, roc_auc_score

from introspect import statistics

SAME = {"rtol": 1e-12, "atol": 1e-12}
ROUNDED = {"rtol": 1e-9, "atol": 1e-12}  # sums of thousands of terms, and inverses of special functions


def ends(interval):
    return [interval.low, interval.high]


@pytest.fixture(params=["normal", "skewed", "tied"])
def sample(request, numpy_rng):
    draw = {
        "normal": lambda: numpy_rng.normal(0.4, 1, 40),
        "skewed": lambda: numpy_rng.exponential(1, 40) ** 2,
        "tied": lambda: numpy_rng.integers(0, 5, 40).astype(float),
    }
    return draw[request.param]()


def jackknife_acceleration(*samples, statistic):
    """Efron's from the definition, over the samples of a statistic (Davison & Hinkley 1997, 5.3)."""
    squares = cubes = 0.0
    for k, sample in enumerate(samples):
        without = [statistic(*samples[:k], np.delete(sample, i), *samples[k + 1 :]) for i in range(len(sample))]
        influence = (len(sample) - 1) * (np.mean(without) - np.array(without)) / len(sample)
        squares, cubes = squares + (influence**2).sum(), cubes + (influence**3).sum()
    return cubes / (6 * squares**1.5)


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_intervals_of_given_replicates_are_scipys(sample, confidence):
    for method in ("percentile", "BCa"):
        theirs = stats.bootstrap(
            (sample,), np.mean, n_resamples=999, confidence_level=confidence, method=method, random_state=0
        )
        acceleration = jackknife_acceleration(sample, statistic=np.mean) if method == "BCa" else None
        ours = statistics.bootstrap_interval(
            theirs.bootstrap_distribution, sample.mean(), confidence=confidence, acceleration=acceleration
        )
        np.testing.assert_allclose(ends(ours), list(theirs.confidence_interval), **ROUNDED)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_of_a_mean_is_scipys_within_monte_carlo_error(sample, method):
    theirs = stats.bootstrap((sample,), np.mean, n_resamples=20000, method=method.replace("bca", "BCa"), random_state=1)
    ours = statistics.bootstrap_mean(sample, resamples=20000, method=method)
    assert ours.value == pytest.approx(sample.mean())
    error = theirs.standard_error
    assert ours.standard_error == pytest.approx(error, rel=0.03)  # the error of a deviation of 20,000 is 0.5%
    # The ends' own error at 2.5% of 20,000 draws is about 0.03 standard errors on either side.
    np.testing.assert_allclose(ends(ours.interval), list(theirs.confidence_interval), rtol=0, atol=0.15 * error)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_of_a_difference_is_scipys_of_two_samples(numpy_rng, method):
    one, other = numpy_rng.exponential(1, 25), numpy_rng.normal(0, 2, 16)

    def difference(a, b, axis=-1):
        return a.mean(axis=axis) - b.mean(axis=axis)

    theirs = stats.bootstrap(
        (one, other), difference, n_resamples=20000, method=method.replace("bca", "BCa"), random_state=1
    )
    values, arms = np.concatenate([one, other]), [1] * 25 + [0] * 16
    ours = statistics.bootstrap_difference(values, arms, resamples=20000, method=method)
    assert ours.value == pytest.approx(one.mean() - other.mean())
    error = theirs.standard_error
    assert ours.standard_error == pytest.approx(error, rel=0.03)
    np.testing.assert_allclose(ends(ours.interval), list(theirs.confidence_interval), rtol=0, atol=0.15 * error)


def test_two_crossed_factors_spread_as_the_pigeonhole_bootstrap_says(numpy_rng):
    """Owen 2007: the resampled variance of a grid's mean, here by resampling rows and columns with numpy."""
    grid = numpy_rng.normal(size=(8, 5)) + 2 * numpy_rng.normal(size=(8, 1)) + numpy_rng.normal(size=(1, 5))
    rows, columns = np.indices(grid.shape).reshape(2, -1).astype(str).tolist()
    ours = statistics.bootstrap_mean(
        grid.ravel(), [statistics.Factor("row", rows), statistics.Factor("column", columns)], resamples=20000
    )
    drawn = [grid[np.ix_(numpy_rng.integers(0, 8, 8), numpy_rng.integers(0, 5, 5))].mean() for _ in range(20000)]
    assert ours.standard_error == pytest.approx(np.std(drawn, ddof=1), rel=0.03)
    naive = statistics.bootstrap_mean(grid.ravel(), resamples=20000).standard_error
    assert ours.standard_error > 1.5 * naive  # what pretending that 40 readings are independent would hide


@pytest.mark.parametrize("n", [1, 2, 17, 400])
def test_exact_intervals_and_tests_are_scipys(n):
    for k in sorted({0, 1, n // 3, n}):
        theirs = stats.binomtest(k, n, 0.25, alternative="greater")
        interval = stats.binomtest(k, n).proportion_ci(0.9, method="exact")
        ours = statistics.proportion(k, n, confidence=0.9)
        np.testing.assert_allclose(ends(ours.interval), list(interval), **ROUNDED)
        np.testing.assert_allclose(statistics.binomial_p(k, n, 0.25), theirs.pvalue, **ROUNDED)


def test_d_prime_and_criterion_are_quantiles_of_the_corrected_rates():
    ours = statistics.sensitivity(18, 2, 5, 27)
    z_hit, z_false = stats.norm.ppf(18.5 / 21), stats.norm.ppf(5.5 / 33)
    assert ours.d_prime == pytest.approx(z_hit - z_false)
    assert ours.criterion == pytest.approx(-(z_hit + z_false) / 2)
    perfect = statistics.sensitivity(10, 0, 0, 10)
    assert perfect.d_prime == pytest.approx(2 * stats.norm.ppf(10.5 / 11))
    assert (perfect.hits.value, perfect.false_alarms.value, perfect.criterion) == (1, 0, pytest.approx(0))


def test_auc_is_scikit_learns_and_its_error_delongs(numpy_rng):
    for ties in (False, True):
        positives, negatives = numpy_rng.normal(0.7, 1, 30), numpy_rng.normal(0, 1, 45)
        if ties:
            positives, negatives = positives.round(), negatives.round()
        ours = statistics.auc(positives, negatives)
        assert ours.value == pytest.approx(roc_auc_score([1] * 30 + [0] * 45, np.concatenate([positives, negatives])))
        # DeLong's components from their definition: every pair.
        wins = np.sign(positives[:, None] - negatives[None]) / 2 + 0.5
        error = math.sqrt(wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 45)
        assert ours.standard_error == pytest.approx(error)
        z = stats.norm.ppf(0.975)
        assert ends(ours.interval) == pytest.approx([ours.value - z * error, min(1, ours.value + z * error)])


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (5, 7)])
def test_information_is_scikit_learns_in_bits(numpy_rng, shape):
    counts = numpy_rng.integers(0, 9, shape)
    injected, reported = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(shape))
    ours = statistics.confusion(counts, permutations=0)
    assert ours.information == pytest.approx(mutual_info_score(injected, reported) / math.log(2))
    occupied = [(counts.sum(1) > 0).sum(), (counts.sum(0) > 0).sum(), (counts > 0).sum()]
    correction = (occupied[0] + occupied[1] - occupied[2] - 1) / (2 * counts.sum() * math.log(2))
    assert ours.information_corrected == pytest.approx(ours.information + correction)
    assert ours.accuracy.value == pytest.approx((injected == reported).mean())


def test_permutations_of_a_table_are_those_of_its_trials(numpy_rng):
    counts = np.array([[6, 2, 1], [2, 5, 2], [1, 3, 4]])
    injected, reported = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    observed = mutual_info_score(injected, reported)
    shuffled = np.array([mutual_info_score(injected, numpy_rng.permutation(reported)) for _ in range(400)])
    ours = statistics.confusion(counts, permutations=20000)
    share = (shuffled >= observed).mean()
    assert ours.p_information == pytest.approx(share, abs=4 * math.sqrt(share / 400) + 1e-3)
    assert ours.information_by_chance == pytest.approx(shuffled.mean() / math.log(2), rel=0.1)


def test_adjusted_p_values_are_scipys_and_the_definitions(numpy_rng):
    p = np.concatenate([numpy_rng.uniform(0, 1, 20), numpy_rng.uniform(0, 0.01, 5), [0.0, 1.0, 0.5, 0.5]])
    for method, theirs in (("benjamini_hochberg", "bh"), ("benjamini_yekutieli", "by")):
        np.testing.assert_allclose(
            statistics.adjusted_p(p, method), stats.false_discovery_control(p, method=theirs), **SAME
        )
    np.testing.assert_allclose(statistics.adjusted_p(p, "bonferroni"), np.minimum(1, p * len(p)), **SAME)
    rising = np.sort(p)
    stepped = [min(1, max((len(p) - j) * rising[j] for j in range(i + 1))) for i in range(len(p))]
    np.testing.assert_allclose(np.sort(statistics.adjusted_p(p, "holm")), stepped, **SAME)


@pytest.mark.parametrize(("n", "ties"), [(2, False), (3, False), (10, False), (10, True), (435, False), (435, True)])
def test_rank_agreement_is_scipys(numpy_rng, n, ties):
    a = numpy_rng.normal(size=n)
    b = 0.5 * a + numpy_rng.normal(size=n)
    if ties:
        a, b = a.round(1 if n > 9 else 0) + np.arange(n) // 2, b.round(1 if n > 9 else 0) - np.arange(n) // 2
    assert statistics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, nan_ok=True)
    assert statistics.kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, nan_ok=True)


def test_null_bands_are_numpys_quantiles_and_moments(numpy_rng):
    nulls, values = numpy_rng.normal(size=(20, 7)), numpy_rng.normal(size=7)
    for j, band in enumerate(statistics.null_bands(torch.tensor(values), torch.tensor(nulls), confidence=0.9)):
        here = nulls[:, j]
        assert ends(band.band) == pytest.approx(np.quantile(here, [0.05, 0.95]).tolist())
        assert (band.mean, band.standard_deviation) == pytest.approx((here.mean(), here.std(ddof=1)))
        assert band.z == pytest.approx((values[j] - here.mean()) / here.std(ddof=1))
        assert band.p == pytest.approx((1 + (here >= values[j]).sum()) / 21)
