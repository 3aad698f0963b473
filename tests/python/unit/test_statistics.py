"""What must be true of introspect.statistics whatever the numbers, and what it refuses."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from introspect import statistics
from introspect.statistics import Factor

NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))
SAMPLES = st.lists(NUMBERS, min_size=2, max_size=30)
quick = settings(max_examples=60, deadline=None)


def ends(interval):
    return [interval.low, interval.high]


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    values = np.random.default_rng(0).normal(size=50)
    first, again, other = (ends(statistics.bootstrap_mean(values, seed=seed).interval) for seed in (3, 3, 4))
    assert first == again != other


@quick
@given(values=SAMPLES, method=st.sampled_from(["bca", "percentile"]))
def test_an_interval_lies_within_the_sample_and_wider_confidence_holds_it(values, method):
    narrow, wide = (statistics.bootstrap_mean(values, resamples=500, confidence=c, method=method) for c in (0.6, 0.95))
    assert min(values) - 1e-9 <= wide.interval.low <= narrow.interval.low
    assert narrow.interval.high <= wide.interval.high <= max(values) + 1e-9
    assert narrow.value == pytest.approx(np.mean(values), abs=1e-9)


@quick
@given(values=SAMPLES, shift=NUMBERS, scale=st.sampled_from([0.5, 2.0, 4.0]))
def test_intervals_move_and_stretch_with_the_values(values, shift, scale):
    plain = ends(statistics.bootstrap_mean(values, resamples=300).interval)
    moved = ends(statistics.bootstrap_mean([scale * x + shift for x in values], resamples=300).interval)
    spread = max(values) - min(values)
    assert moved == pytest.approx([scale * x + shift for x in plain], abs=1e-9 * (1 + scale * spread))


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Coverage of crossed factors: 200 designs of 12 questions x 8 concepts with effects of both, true mean 0."""
    rng = np.random.default_rng(0)
    questions, concepts = np.indices((12, 8)).reshape(2, -1).astype(str).tolist()
    factors = [Factor("question", questions), Factor("concept", concepts)]
    held = {"crossed": 0, "naive": 0}
    for seed in range(200):
        grid = rng.normal(size=(12, 1)) + rng.normal(size=(1, 8)) + rng.normal(size=(12, 8))
        for name, shared in (("crossed", factors), ("naive", [])):
            estimate = statistics.bootstrap_mean(grid.ravel(), shared, resamples=500, seed=seed)
            held[name] += 0 in estimate.interval
    assert 170 <= held["crossed"] <= 200  # 95% less what few levels cost, within 3 standard errors
    assert held["naive"] < 140


def test_paraphrases_are_drawn_within_their_question():
    """Two questions of one paraphrase each and no noise: only the questions vary; labels may be used again."""
    values = [0.0, 0.0, 1.0, 1.0]
    nested = [Factor("question", list("aabb")), Factor("paraphrase", list("xyxy"), within="question")]
    alone = statistics.bootstrap_mean(values, [nested[0]], resamples=4000, method="percentile")
    both = statistics.bootstrap_mean(values, nested, resamples=4000, method="percentile")
    # Means of two draws from {0, 1}: variance 1/8. Paraphrases add to neither question's mean.
    assert alone.standard_error == pytest.approx(math.sqrt(1 / 8), rel=0.05)
    assert both.standard_error == pytest.approx(math.sqrt(1 / 8), rel=0.05)


def test_what_both_arms_share_cancels_out_of_their_difference():
    rng = np.random.default_rng(0)
    concept = rng.normal(size=10) * 5
    values = np.concatenate([concept + 1, concept])
    arms, concepts = [1] * 10 + [0] * 10, [str(i) for i in range(10)] * 2
    paired = statistics.bootstrap_difference(values, arms, [Factor("concept", concepts)])
    assert ends(paired.interval) == pytest.approx([1, 1])
    assert statistics.bootstrap_difference(values, arms).standard_error > 1


def test_a_shift_table_holds_introspection_beside_control():
    base, injected = [-5.0, -4.0, -6.0, -3.0], [-1.0, -2.0, -5.0, -3.0]
    table = statistics.shift_table(base, injected, ["own", "own", "sky", "sea"], [False, False, True, True])
    assert [(r.question, r.control, r.n, r.base, r.injected, r.shift) for r in table.rows] == [
        ("own", False, 2, -4.5, -1.5, 3.0),
        ("sky", True, 1, -6.0, -5.0, 1.0),
        ("sea", True, 1, -3.0, -3.0, 0.0),
    ]
    assert (table.introspection, table.control, table.effect.value) == (3.0, 0.5, 2.5)
    assert (table.introspection_base, table.control_injected) == (-4.5, -4.0)
    assert table.introspection_interval is None  # one question: conditional on it
    assert table.control_interval.value == 0.5
    assert 2.0 <= table.effect.interval.low <= 2.5 <= table.effect.interval.high <= 3.0


def test_a_general_yes_bias_is_no_effect():
    rng = np.random.default_rng(0)
    base = rng.normal(-5, 1, 40)
    questions = [f"own {i}" for i in range(20)] + [f"control {i}" for i in range(20)]
    biased = statistics.shift_table(base, base + 4 + rng.normal(0, 0.5, 40), questions, [0] * 20 + [1] * 20)
    assert biased.introspection > 3.5 and 0 in biased.effect.interval
    told = base + np.where(np.arange(40) < 20, 4, 1)
    assert statistics.shift_table(base, told, questions, [0] * 20 + [1] * 20).effect.interval.low > 2.9


@quick
@given(value=NUMBERS, nulls=st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_rank_and_its_p_count_the_nulls(value, nulls):
    band = statistics.null_band(value, nulls)
    assert band.rank == 1 + sum(null >= value for null in nulls)
    assert band.p == pytest.approx(band.rank / (1 + len(nulls)))
    assert band.p <= 1 and band.p_two_sided <= 1
    assert min(nulls) <= band.band.low <= band.band.high <= max(nulls)
    mirrored = statistics.null_band(-value, [-null for null in nulls])
    assert mirrored.p_two_sided == pytest.approx(band.p_two_sided)
    assert band.p_two_sided == pytest.approx(min(1, 2 * min(band.p, mirrored.p)))


def test_one_null_has_no_spread_and_equal_ones_no_z():
    assert math.isnan(statistics.null_band(1.0, [0.0]).standard_deviation)
    assert math.isnan(statistics.null_band(1.0, [0.0, 0.0]).z)


def test_the_maximum_of_a_sweep_is_judged_against_maxima():
    """Under the null one sweep in twenty is called found, not one point in twenty."""
    rng = np.random.default_rng(0)
    found = {True: 0, False: 0}
    pointwise = 0
    for _ in range(400):
        curves = rng.normal(size=(40, 15)) * np.linspace(0.1, 5, 15)
        for studentise in found:
            found[studentise] += statistics.max_null_band(curves[0], curves[1:], studentise=studentise).p_any <= 0.05
        pointwise += min(band.p for band in statistics.null_bands(curves[0], curves[1:])) <= 0.05
    for n in found.values():
        assert 5 <= n <= 36  # 20 expected, 4.4 the standard error
    assert pointwise > 120


def test_a_hill_where_nulls_are_quiet_is_seen_beside_noisy_points():
    rng = np.random.default_rng(0)
    curves = rng.normal(size=(30, 6)) * [0.1, 5, 5, 5, 5, 5]
    curves[0, 0] = 1.0
    band = statistics.max_null_band(curves[0], curves[1:])
    assert band.p[0] == band.p_any == pytest.approx(1 / 30)
    assert statistics.max_null_band(curves[0], curves[1:], studentise=False).p[0] > 0.5


@quick
@given(positives=SAMPLES, negatives=SAMPLES)
def test_auc_counts_pairs_and_turns_with_the_classes(positives, negatives):
    ours = statistics.auc(positives, negatives)
    pairs = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    assert ours.value == pytest.approx(np.mean(pairs))
    assert statistics.auc(negatives, positives).value == pytest.approx(1 - ours.value)
    assert 0 <= ours.interval.low <= ours.value + 1e-12 and ours.value - 1e-12 <= ours.interval.high <= 1


@quick
@given(positives=SAMPLES, negatives=SAMPLES, hit_rate=st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]))
def test_false_alarms_are_counted_at_the_highest_threshold_that_reaches_the_hit_rate(positives, negatives, hit_rate):
    ours = statistics.false_alarms_at(positives, negatives, hit_rate)
    assert ours.hit_rate == np.mean([x >= ours.threshold for x in positives]) >= hit_rate - 1e-9
    assert ours.false_alarm_rate == np.mean([x >= ours.threshold for x in negatives])
    assert np.mean([x > ours.threshold for x in positives]) < hit_rate


def test_perfect_and_useless_reports():
    perfect = statistics.confusion([[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [0, 0, 0, 10]])
    assert perfect.information == pytest.approx(2.0)  # log2 of 4
    assert (perfect.accuracy.value, perfect.chance) == (1.0, 0.25)
    assert perfect.p_accuracy == pytest.approx(0.25**40)
    assert perfect.p_information == pytest.approx(1 / 10001)
    constant = statistics.confusion([[10, 0], [10, 0]])  # "cat", whatever was injected
    assert (constant.information, constant.p_information, constant.accuracy.value) == (0.0, 1.0, 0.5)
    swapped = statistics.confusion([[0, 10], [10, 0]])  # all wrong, and yet everything is told
    assert (swapped.information, swapped.accuracy.value) == (pytest.approx(1.0), 0.0)
    none = statistics.confusion([[5, 0, 5], [0, 5, 5]])  # half name neither
    assert none.accuracy.value == 0.5 and none.information == pytest.approx(0.5)


def test_permuted_information_is_the_bias_that_chance_leaves():
    rng = np.random.default_rng(0)
    counts = np.zeros((5, 5), dtype=int)
    for injected, reported in zip(rng.integers(0, 5, 60), rng.integers(0, 5, 60), strict=True):
        counts[injected, reported] += 1
    table = statistics.confusion(counts)
    assert table.information > 0.05 and table.p_information > 0.05
    assert abs(table.information_corrected) < table.information


@quick
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_adjusted_p_values_keep_their_order_and_their_strength(p):
    bonferroni, holm, bh, by = (
        statistics.adjusted_p(p, method)
        for method in ("bonferroni", "holm", "benjamini_hochberg", "benjamini_yekutieli")
    )
    for values in (bonferroni, holm, bh, by):
        assert all(raw <= adjusted + 1e-15 <= 1 + 1e-15 for raw, adjusted in zip(p, values, strict=True))
        assert all(values[i] <= values[j] for i in range(len(p)) for j in range(len(p)) if p[i] < p[j])
    assert all(b >= h >= f for b, h, f in zip(bonferroni, np.array(holm) - 1e-15, np.array(bh) - 2e-15, strict=True))
    assert all(y >= f for y, f in zip(by, bh, strict=True))


@quick
@given(pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=25), k=st.integers(1, 25))
def test_orders_agree_with_themselves_and_turn_with_a_sign(pairs, k):
    a, b = map(list, zip(*pairs, strict=True))
    for agreement in (statistics.spearman, statistics.kendall_tau):
        both = agreement(a, b)
        if len(set(a)) == 1 or len(set(b)) == 1:
            assert math.isnan(both)
            continue
        assert both == pytest.approx(agreement(b, a)) == pytest.approx(-agreement(a, [-x for x in b]))
        assert agreement(a, [math.atan(x) for x in a]) == pytest.approx(1)
    if k <= len(a):
        assert statistics.top_k_overlap(a, a, k) == 1
        assert statistics.top_k_overlap(a, b, k) == statistics.top_k_overlap(b, a, k)
        assert statistics.top_k_overlap(a, b, len(a)) == 1


def test_the_overlap_of_two_orders():
    assert statistics.top_k_overlap([5, 4, 3, 2, 1], [1, 4, 5, 2, 3], 2) == 0.5
    assert statistics.top_k_overlap([5, 4, 3, 2, 1], [1, 2, 3, 4, 5], 2) == 0


def test_lists_arrays_and_tensors_are_one():
    values = [1.0, 2.0, 4.0]
    kinds = [values, tuple(values), np.array(values), np.array(values, dtype=np.float32), torch.tensor(values)]
    assert len({statistics.bootstrap_mean(x).interval.high for x in kinds}) == 1


def call(name, *args, **options):
    return lambda: getattr(statistics, name)(*args, **options)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (call("bootstrap_mean", [1.0]), "bootstrap_mean: at least 2 values required, got 1"),
        (call("bootstrap_mean", [1.0, math.nan]), "values must be finite"),
        (call("bootstrap_mean", [1.0, 2.0], [Factor("q", ["a", "a"])]), "a factor with at least 2 levels"),
        (call("bootstrap_mean", [1.0, 2.0], [Factor("q", ["a"])]), "factor 'q' must have 2 levels"),
        (call("bootstrap_mean", [1.0, 2.0], [Factor("p", ["a", "b"], within="q")]), "'p' must lie within a factor"),
        (call("bootstrap_mean", [1.0, 2.0], confidence=1.0), "confidence must lie between 0 and 1, got 1"),
        (call("bootstrap_mean", [1.0, 2.0], resamples=1), "at least 2 resamples"),
        (call("bootstrap_mean", [1.0, 2.0], method="basic"), "method must be bca or percentile, got basic"),
        (call("bootstrap_difference", [1.0, 2.0], [1, 1]), "values of both arms required, got none of arm 0"),
        (call("bootstrap_difference", [1.0, 2.0], [1, 2]), "arms must be 0 or 1, got 2"),
        (call("bootstrap_difference", [1.0, 2.0], [1]), "2 arms required"),
        (call("bootstrap_interval", [], 1.0), "at least 1 replicates required"),
        (call("shift_table", [1.0, 2.0], [1.0, 2.0], ["a", "a"], [0, 1]), "question 'a' must be"),
        (call("shift_table", [1.0, 2.0], [1.0, 2.0], ["a", "b"], [0, 0]), "control questions required, got 2 and 0"),
        (call("shift_table", [1.0, 2.0], [1.0, 2.0, 3.0], ["a", "b"], [0, 1]), "of one length"),
        (call("null_band", 1.0, []), "at least 1 nulls required"),
        (call("null_band", math.inf, [1.0]), "value must be finite"),
        (call("null_bands", [1.0, 2.0], [[1.0, 2.0, 3.0]]), "every null must have 2 points, got 3"),
        (call("max_null_band", [1.0], np.zeros((0, 1))), "at least 1 null required"),
        (call("proportion", 3, 2), "successes must be 0 to 2, got 3"),
        (call("proportion", 0, 0), "at least 1 trial required"),
        (call("binomial_p", 1, 2, 1.5), "chance must be 0 to 1"),
        (call("sensitivity", 1, 0, 0, 0), "a trial of either kind required"),
        (call("auc", [1.0], [1.0, 2.0]), "at least 2 positives required, got 1"),
        (call("false_alarms_at", [1.0], [2.0], 0.0), "hit_rate must be above 0"),
        (call("confusion", [[1, 2]]), "at least 2 rows and as many columns"),
        (call("confusion", [[1, 0.5], [0, 1]]), "whole numbers"),
        (call("confusion", [[0, 0], [0, 0]]), "at least 1 trial"),
        (call("adjusted_p", []), "at least 1 p-values"),
        (call("adjusted_p", [1.2]), "p-values must be 0 to 1"),
        (call("adjusted_p", [0.2], "sidak"), "method must be bonferroni, holm"),
        (call("spearman", [1.0, 2.0], [1.0]), "lists must be of one length, got 2 and 1"),
        (call("kendall_tau", [1.0], [1.0]), "at least 2 values"),
        (call("top_k_overlap", [1.0, 2.0], [1.0, 2.0], 3), "k must be 1 to 2, got 3"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_what_is_required(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_a_bootstrap_that_would_empty_an_arm_says_so():
    """Each concept is in one arm only but for one: leaving it out would leave nothing to compare."""
    values, arms, concepts = [1.0, 2.0, 3.0], [1, 0, 0], ["a", "a", "b"]
    factors = [Factor("concept", concepts)]
    with pytest.raises(ValueError, match="without any one level"):
        statistics.bootstrap_difference(values, arms, factors)
    assert statistics.bootstrap_difference(values, arms, factors, method="percentile").value == -1.5
