"""Metrics as data: each formula written out in torch, and what they refuse."""

import math
from types import SimpleNamespace

import pytest
import torch

import introspect

V, T = 101, 5


@pytest.fixture
def logits(rng):
    return 3 * torch.randn(2, T, V, generator=rng, dtype=torch.float64)


@pytest.fixture
def reference(rng):
    return torch.randn(V, generator=rng, dtype=torch.float64)


def log_softmax(x):
    return x - x.exp().sum(-1, keepdim=True).log()


FORMULAS = {
    "logit difference": (introspect.LogitDifference(5, 6), lambda x: x[:, -1, 5] - x[:, -1, 6]),
    "of spellings": (
        introspect.LogitDifference((5, 7), 6, position=1),
        lambda x: (x[:, 1, 5] + x[:, 1, 7]) / 2 - x[:, 1, 6],
    ),
    "of each prompt": (
        introspect.LogitDifference([5, 7], [6, 8]),
        lambda x: torch.stack([x[0, -1, 5] - x[0, -1, 6], x[1, -1, 7] - x[1, -1, 8]]),
    ),
    "log-probability": (introspect.LogProbability(5), lambda x: log_softmax(x)[:, -1, 5]),
    "probability": (introspect.Probability((5, 6)), lambda x: log_softmax(x)[:, -1, 5:7].exp().sum(-1)),
    "greater than": (
        introspect.ProbabilityDifference((5, 6), (7, 8)),
        lambda x: log_softmax(x)[:, -1, 5:7].exp().sum(-1) - log_softmax(x)[:, -1, 7:9].exp().sum(-1),
    ),
    "rank": (introspect.Rank(5), lambda x: 1 + (x[:, -1] > x[:, -1, 5:6]).double().sum(-1)),
    "accuracy": (introspect.Accuracy(5, (6, 7)), lambda x: (x[:, -1, 5] > x[:, -1, 6:8].amax(-1)).double()),
    "a sum": (
        introspect.LogitDifference(5, 6) - 0.5 * introspect.LogProbability(3, position=-2),
        lambda x: x[:, -1, 5] - x[:, -1, 6] - 0.5 * log_softmax(x)[:, -2, 3],
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_metric_is_its_formula_and_so_are_its_gradients(name, logits):
    metric, formula = FORMULAS[name]
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    got, expected = metric(ours), formula(theirs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    if expected.requires_grad:
        got.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_ranks_and_accuracies_of_logits_that_are_not_numbers_are_none(logits):
    logits[1, -1, 50] = math.nan
    for metric in (introspect.Rank(5), introspect.Accuracy(5, (6, 50))):
        values = metric(logits)
        assert values[0].isfinite() and values[1].isnan()  # comparisons with NaN are false: rank 1, and 0


def test_metrics_are_summed_and_divided(logits):
    ours = sum([introspect.LogitDifference(5, 6), introspect.Probability(7)]) / 2
    expected = (introspect.LogitDifference(5, 6)(logits) + introspect.Probability(7)(logits)) / 2
    torch.testing.assert_close(ours(logits), expected, rtol=0, atol=1e-12)
    with pytest.raises(TypeError):
        1 + introspect.Rank(5)


def test_divergences_are_from_a_reference_to_the_run(logits, reference):
    q, p = log_softmax(reference), log_softmax(logits[:, -1])
    kl = (q.exp() * (q - p)).sum(-1)
    torch.testing.assert_close(introspect.Divergence(reference)(logits), kl, rtol=0, atol=1e-12)
    m = ((q.exp() + p.exp()) / 2).log()
    js = ((q.exp() * (q - m)).sum(-1) + (p.exp() * (p - m)).sum(-1)) / 2
    torch.testing.assert_close(introspect.JSDivergence(reference)(logits), js, rtol=0, atol=1e-12)
    assert (js < math.log(2)).all()
    of_clean = introspect.Divergence(position=2)
    torch.testing.assert_close(of_clean(logits, logits), torch.zeros(2).double(), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="clean run's logits are needed"):
        of_clean(logits)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (introspect.LogitDifference(5, 101), IndexError, "0 to 100, got 101"),
        (introspect.LogitDifference(5, 6, position=5), IndexError, "5 tokens are -5 to 4, got 5"),
        (introspect.LogitDifference([5], 6), ValueError, "one answer for each of the 2 prompts, got 1"),
        (introspect.LogitDifference(" cat", 6), TypeError, "give token ids"),
        (introspect.Rank((5, 6)), ValueError, "one token is needed, got 2"),
        (math.inf * introspect.Rank(5), ValueError, "the weight must be finite"),
        (introspect.Divergence(torch.zeros(7)), introspect.ShapeError, r"must be \[101\], got \[7\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(metric, error, message, logits):
    with pytest.raises(error, match=message):
        metric(logits)


def test_an_answer_must_be_one_token(shared_data):
    model = SimpleNamespace(tokenizer=introspect.Tokenizer.load(shared_data / "tokenizers/qwen2.5"))
    with pytest.raises(ValueError, match=r"must be one token; ' introspections' is \d"):
        introspect.LogitDifference(" introspections", " cat").resolve(model)
    (native,) = introspect.LogitDifference(" dog", " cat").resolve(model)
    assert model.tokenizer.decode(native.terms[0].right) == " dog"
