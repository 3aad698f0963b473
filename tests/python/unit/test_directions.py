"""Directions of pairs of activations: each method against numpy's or scikit-learn's formula, diagnostics, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tiny_chat import write_tiny_chat

import introspect
from introspect import diagnose, direction_of_pairs

COMPONENTS = ["pca_center", "pca_global_center", "pca_diff", "pca_diff_uncentered"]


def pairs_of(n, d, seed, shared=1.0):
    """Pairs that differ along a planted direction, by more in some than in others; float32 as activations are."""
    rng = np.random.default_rng(seed)
    planted = rng.normal(size=d)
    planted /= np.linalg.norm(planted)
    common = shared * rng.normal(size=(n, d))
    size = rng.uniform(2, 8, size=(n, 1))
    positive = common + size * planted + 0.1 * rng.normal(size=(n, d))
    negative = common + 0.1 * rng.normal(size=(n, d))
    return positive.astype(np.float32), negative.astype(np.float32), planted


def rows_of(positive, negative, method):
    """What the method takes the first component of."""
    positive, negative = positive.astype(np.float64), negative.astype(np.float64)
    difference, both = positive - negative, np.concatenate([positive, negative])
    return {
        "pca_center": np.concatenate([difference, -difference]) / 2,
        "pca_diff_uncentered": difference,
        "pca_diff": difference - difference.mean(0),
        "pca_global_center": both - both.mean(0),
    }[method]


def first_component(positive, negative, method):
    """By a full singular value decomposition; repeng's vote for the sign, and the sum where that is even."""
    direction = np.linalg.svd(rows_of(positive, negative, method), full_matrices=False).Vh[0]
    projections = (positive.astype(np.float64) - negative) @ direction
    return direction * np.sign(np.sign(projections).sum() or projections.sum())


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("method", COMPONENTS)
@given(n=st.integers(2, 70), d=st.integers(2, 70), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_components_are_the_first_singular_vector_with_the_votes_sign(method, n, d, seed):
    positive, negative, _ = pairs_of(n, d, seed)
    expected = first_component(positive, negative, method)
    found = direction_of_pairs(*tensors(positive, negative), method=method).double().numpy()
    values = np.linalg.svd(rows_of(positive, negative, method), compute_uv=False)
    if values[1] < values[0] * (1 - 1e-6):  # or the rows, which are sums of float32, do not fix the direction
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_components_at_a_models_size_equal_full_decompositions():
    positive, negative, _ = pairs_of(300, 256, 3)
    for method in COMPONENTS:
        found = direction_of_pairs(*tensors(positive, negative), method=method).double().numpy()
        np.testing.assert_allclose(found, first_component(positive, negative, method), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("n", "d"), [(40, 12), (15, 60)])
def test_logistic_is_scikit_learns_regression(n, d):
    positive, negative, _ = pairs_of(n, d, 5)
    rows = np.concatenate([positive, negative]).astype(np.float64)
    labels = np.repeat([1, 0], n)
    theirs = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(rows, labels).coef_[0]
    found = direction_of_pairs(*tensors(positive, negative), method="logistic").double().numpy()
    np.testing.assert_allclose(found, theirs / np.linalg.norm(theirs), rtol=0, atol=1e-5)


def test_mean_difference():
    positive, negative, _ = pairs_of(30, 20, 6)
    found = direction_of_pairs(*tensors(positive, negative), method="mean_diff")
    np.testing.assert_allclose(found, (positive.astype(np.float64) - negative).mean(0), rtol=0, atol=1e-6)


def test_reading_vectors_depend_on_their_seed_and_nothing_else():
    positive, negative, planted = tensors(*pairs_of(200, 40, 7, shared=0.3))
    one, again, other = (direction_of_pairs(positive, negative, method="lat", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert min(float(v.double() @ planted) for v in (one, other)) > 0.95


def test_diagnostics_are_of_held_out_pairs():
    positive, negative, _ = pairs_of(31, 10, 8, shared=4.0)
    folds = 3
    direction = direction_of_pairs(*tensors(positive, negative), method="mean_diff")
    found = diagnose(*tensors(positive, negative), direction, method="mean_diff", folds=folds)
    positive, negative, d = positive.astype(np.float64), negative.astype(np.float64), direction.double().numpy()
    difference = positive - negative
    share = np.sum((difference @ d) ** 2) / np.sum(d**2) / np.sum(difference**2)
    assert found.explained_variance == pytest.approx(share, rel=1e-9)
    assert found.sign_agreement == np.mean(difference @ d > 0)
    fold = np.arange(31) % folds
    accuracy = auc = 0.0
    for k in range(folds):
        rest, held = fold != k, fold == k
        axis = difference[rest].mean(0)
        middle = (positive[rest].mean(0) + negative[rest].mean(0)) / 2 @ axis
        scores = np.concatenate([positive[held] @ axis, negative[held] @ axis])
        labels = np.repeat([1, 0], held.sum())
        accuracy += held.mean() * np.mean((scores > middle) == labels)
        auc += held.mean() * roc_auc_score(labels, scores)
    assert 0.5 < accuracy < 1  # a case that can go wrong
    assert found.accuracy == pytest.approx(accuracy, abs=1e-9)
    assert found.auc == pytest.approx(auc, abs=1e-9)


@pytest.mark.parametrize("method", [*COMPONENTS, "lat", "mean_diff", "logistic"])
def test_bad_pairs_are_refused(method):
    good = torch.ones(4, 3)
    for other, error, says in [
        (torch.ones(3, 3), introspect.ShapeError, r"\[4, 3\].*\[3, 3\]"),  # unequal count
        (torch.ones(4, 2), introspect.ShapeError, "one shape"),
        (torch.ones(4, 3), ValueError, "differ"),
        (torch.full((4, 3), float("nan")), ValueError, "finite"),
    ]:
        with pytest.raises(error, match=says):
            direction_of_pairs(good, other, method=method)
    with pytest.raises(introspect.ShapeError):
        direction_of_pairs(torch.ones(0, 3), torch.ones(0, 3), method=method)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"))


def test_training_says_which_layer_has_no_variance(model):
    with pytest.raises(ValueError, match=r"layer [12]: .*differ"):
        introspect.ControlVector.train(model, [("the same", "the same")] * 3, layers=[1, 2])


@pytest.mark.parametrize("method", [*COMPONENTS, "lat", "mean_diff", "logistic"])
def test_a_trained_vector_keeps_its_diagnostics_in_both_files(model, tmp_path, method):
    suffixes = ["I", "It", "We", "A", "The", "So", "Well", "Yes"]
    pairs = introspect.concept_pairs(model, "cat", suffixes)
    vector = introspect.ControlVector.train(model, pairs, method=method, folds=2)
    assert vector.diagnostics.keys() == vector.directions.keys()
    for suffix in (".gguf", ".safetensors"):
        vector.save(tmp_path / f"v{suffix}")
        back = introspect.ControlVector.load(tmp_path / f"v{suffix}")
        assert back == vector
        assert back.folds == 2
        for layer, one in vector.diagnostics.items():
            assert repr(back.diagnostics[layer]) == repr(one)
            assert None not in (one.accuracy, one.auc)
            assert 0 <= one.auc <= 1
    assert (-vector).diagnostics == {}
    without = introspect.ControlVector.train(model, pairs, method=method, folds=0)
    assert without == vector
    assert without.diagnostics[1].auc is None


def test_norms_cosines_and_random_directions():
    rng = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(512, generator=rng) * layer for layer in (1, 2, 3)}
    vector = introspect.ControlVector("llama", directions)
    assert vector.norms == pytest.approx({k: float(v.norm()) for k, v in directions.items()}, rel=1e-6)
    other = introspect.ControlVector("llama", {2: -3 * directions[2], 3: torch.zeros(512), 9: directions[1]})
    cosines = vector.cosine(other)
    assert cosines.keys() == {2, 3}
    assert cosines[2] == pytest.approx(-1)
    assert np.isnan(cosines[3])
    with pytest.raises(introspect.ShapeError):
        vector.cosine(introspect.ControlVector("llama", {1: torch.ones(4)}))
    random = introspect.random_directions(vector, seed=1)
    assert random.norms == pytest.approx(vector.norms, rel=1e-6)
    assert random == introspect.random_directions(vector, seed=1)
    assert random != introspect.random_directions(vector, seed=2)
    # Cosines of random directions have a standard deviation of 512 ** -0.5.
    assert max(map(abs, random.cosine(vector).values())) < 5 * 512**-0.5
