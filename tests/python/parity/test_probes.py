"""Probes against scikit-learn: folds, coefficients, cross-validated scores, nested choice of C."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from introspect import _C, analysis


def data(n, d, n_classes=2, seed=0, dtype=torch.float64):
    """Rows with a steep spectrum, as activations have, and labels that they tell in part."""
    rng = torch.Generator().manual_seed(seed)
    spread = torch.randn(d, d, generator=rng, dtype=torch.float64) * torch.logspace(0, -3, d, dtype=torch.float64)
    labels = torch.randint(0, n_classes, (n,), generator=rng)
    rows = torch.randn(n, d, generator=rng, dtype=torch.float64) @ spread.T + 3
    rows = rows + 0.15 * torch.randn(n_classes, d, generator=rng, dtype=torch.float64)[labels]
    return rows.to(dtype), labels.tolist()


def tight(C, **options):
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-10, max_iter=20000, **options))


@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("n", "d", "n_classes"), [(200, 30, 2), (60, 150, 2), (150, 30, 3), (50, 90, 4)])
def test_logistic_probes_have_scikit_learns_coefficients(n, d, n_classes, C):
    rows, labels = data(n, d, n_classes)
    theirs = tight(C).fit(rows.numpy(), labels)[-1]
    ours = analysis.fit_probe(rows, labels, C=C)
    np.testing.assert_allclose(ours.weights.numpy(), theirs.coef_, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.bias.numpy(), theirs.intercept_, rtol=0, atol=1e-4)


def test_without_a_scaler_too():
    rows, labels = data(120, 20)
    theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=20000).fit(rows.numpy(), labels)
    ours = analysis.fit_probe(rows, labels, C=0.3, standardise=False)
    np.testing.assert_allclose(ours.weights.numpy(), theirs.coef_, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("n", "d", "n_classes"), [(100, 20, 2), (40, 90, 2), (100, 20, 3)])
def test_ridge_probes_are_ridge_classifiers(n, d, n_classes):
    rows, labels = data(n, d, n_classes)
    theirs = RidgeClassifier(alpha=1 / 0.7).fit(StandardScaler().fit_transform(rows.numpy()), labels)
    ours = analysis.fit_probe(rows, labels, kind="ridge", C=0.7)
    np.testing.assert_allclose(ours.weights.numpy(), np.atleast_2d(theirs.coef_), rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.bias.numpy(), theirs.intercept_, rtol=0, atol=1e-9)


def of_splitter(splitter, labels, groups=None):
    folds = np.full(len(labels), -1)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        folds[test] = fold
    return folds.tolist()


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_folds_are_those_of_scikit_learns_splitters():
    rng, compared = np.random.default_rng(0), 0
    for _ in range(150):
        n, n_classes, n_folds = rng.integers(20, 120), rng.integers(2, 5), int(rng.integers(2, 6))
        labels = rng.integers(0, n_classes, n)
        groups = rng.integers(0, rng.integers(n_folds, 30), n)
        if min(np.bincount(labels, minlength=n_classes)) < n_folds or len(set(groups)) < n_folds:
            continue
        compared += 1
        ours = _C.stratified_folds(labels.tolist(), n_folds)
        assert ours == of_splitter(StratifiedKFold(n_folds), labels)
        grouped = _C.stratified_group_folds(labels.tolist(), groups.tolist(), n_folds)
        assert grouped == of_splitter(StratifiedGroupKFold(n_folds), labels, groups)
    assert compared > 100


def study(values, labels, folds, **options):
    classes = [str(k) for k in range(max(labels) + 1)]
    return _C.study_probes(values, classes, labels, folds=folds, progress=False, **{"nulls": 0, **options})


@pytest.mark.parametrize(("n", "d"), [(200, 40), (60, 120)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_cross_validated_scores_are_those_of_a_loop_of_scikit_learn(n, d, n_classes):
    rows, labels = data(n, d, n_classes)
    splitter, y = StratifiedKFold(4), np.array(labels)
    folds = of_splitter(splitter, y)
    (ours,) = study(rows[:, None], labels, folds, C=[0.5])
    stated = cross_val_predict(tight(0.5), rows.numpy(), y, cv=splitter, method="predict_proba")
    assert ours.scores.log_loss == pytest.approx(log_loss(y, stated), abs=1e-4)
    assert ours.scores.accuracy.value == pytest.approx(np.mean(stated.argmax(1) == y), abs=1e-12)
    aucs = [
        roc_auc_score(y[test], stated[test, 1] if n_classes == 2 else stated[test], multi_class="ovr")
        for _, test in splitter.split(rows, y)
    ]
    assert ours.scores.auc.value == pytest.approx(np.mean(aucs), abs=1e-6)


def test_float32_activations_give_the_same_scores_to_a_thousandth():
    rows, labels = data(200, 40)
    folds = _C.stratified_folds(labels, 5)
    single, double = (study(x[:, None], labels, folds)[0] for x in (rows.float(), rows))
    assert single.scores.log_loss == pytest.approx(double.scores.log_loss, abs=1e-3)
    torch.testing.assert_close(single.held_out, double.held_out, rtol=0, atol=1e-2)


def test_C_is_chosen_by_the_other_folds_alone():
    rows, labels = data(120, 30)
    y, choices = np.array(labels), [0.003, 0.1, 10.0]
    folds = np.array(of_splitter(StratifiedKFold(4), y))
    (ours,) = study(rows[:, None], labels, folds.tolist(), C=choices)
    expected, x = np.empty(len(y)), rows.numpy()
    for outer in range(4):
        rest = folds != outer
        losses = []
        for C in choices:
            loss = 0.0
            for inner in set(range(4)) - {outer}:
                train, test = rest & (folds != inner), folds == inner
                loss += log_loss(y[test], tight(C).fit(x[train], y[train]).predict_proba(x[test]), normalize=False)
            losses.append(loss)
        chosen = choices[int(np.argmin(losses))]
        expected[~rest] = tight(chosen).fit(x[rest], y[rest]).decision_function(x[~rest])
    np.testing.assert_allclose(ours.held_out.numpy(), expected, rtol=0, atol=2e-3)
