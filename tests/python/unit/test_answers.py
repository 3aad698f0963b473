"""Answers without a judge: exact probabilities against passes over every text (float64), and labels by rule."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from looped import protocol
from tiny_chat import random_vectors

import introspect
from introspect.studies import answer_shares, grade, spellings

ANSWERS = {"cat": [" cat", " a cat"], "yes": [" yes", "Y"], "y": [" y"], "many": [" yes, many", " ye s"]}


def probability(model, prompt, text, hooks=()):
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([[*prompt, *ids]]), hooks)[0].double().log_softmax(-1)
    return math.exp(sum(logits[len(prompt) - 1 + i, id].item() for i, id in enumerate(ids)))


def by_hand(model, prompt, answers, hooks=()):
    """The sum over each label's texts, less those of other labels that go on from one of them."""

    def begins(a, b):
        return len(a) < len(b) and b[: len(a)] == a

    encode = model.tokenizer.encode
    flat = [(label, encode(text, add_special_tokens=False), text) for label, texts in answers.items() for text in texts]
    shares = dict.fromkeys(answers, 0.0)
    for label, ids, text in flat:
        within = [one for one in flat if begins(one[1], ids)]
        nearest = max(within, key=lambda one: len(one[1]), default=None)
        if nearest and nearest[0] == label:
            continue
        p = probability(model, prompt, text, hooks)
        shares[label] += p
        if nearest:
            shares[nearest[0]] -= p
    return shares


def test_shares_are_those_of_a_pass_over_every_text(model):
    prompts = ["Is it so?", "cat yes", "Is it so? Say"]
    found = answer_shares(model, prompts, ANSWERS, progress=False)
    for prompt, shares in zip(prompts, found, strict=True):
        expected = by_hand(model, model.to_tokens(prompt)[0].tolist(), ANSWERS)
        other = shares.pop("(other)")
        assert shares == pytest.approx(expected, rel=1e-9, abs=0)
        assert other == pytest.approx(1 - sum(expected.values()), rel=1e-9)
    assert answer_shares(model, prompts[1], ANSWERS, progress=False) == answer_shares(model, [prompts[1]], ANSWERS)[0]


def test_answers_are_read_after_an_injection_that_has_ended(model):
    ids = model.to_tokens("Is it so?")[0].tolist()
    added = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def add(resid, hook):
        resid[:, : len(ids)] += added
        return resid

    found = answer_shares(model, [ids], ANSWERS, interventions=[introspect.Intervention({1: added})], progress=False)
    expected = by_hand(model, ids, ANSWERS, [("blocks.1.hook_resid_post", add)])
    found[0].pop("(other)")
    assert found[0] == pytest.approx(expected, rel=1e-6)  # directions are kept in float32


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("abc ", min_size=1, max_size=4), min_size=2, max_size=8, unique=True), st.integers(1, 3))
def test_labels_and_the_rest_add_up_to_one(model, texts, n_labels):
    answers = {str(i): texts[i::n_labels] for i in range(n_labels) if texts[i::n_labels]}
    shares = answer_shares(model, "x", answers, progress=False)
    shares.pop("(other)")
    expected = by_hand(model, model.to_tokens("x")[0].tolist(), answers)
    assert shares == pytest.approx(expected, rel=1e-6, abs=1e-15)
    assert all(share >= 0 for share in shares.values()) and sum(shares.values()) < 1 + 1e-12


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        ({}, introspect.ConfigError, "there must be a label"),
        ({"a": []}, introspect.ConfigError, "label 'a' must have a text"),
        ({"a": [""]}, introspect.ConfigError, "must have a token"),
        ({"a": [" yes"], "b": [" yes"]}, introspect.ConfigError, "under 'a' and 'b'"),
        ({"": [" yes"]}, introspect.ConfigError, "a label must be a text"),
        ({"a": [3]}, TypeError, "label: texts"),
        ([" yes"], TypeError, "label: texts"),
        ({"(other)": [" yes"]}, ValueError, "cannot be a label"),
    ],
)
def test_answers_that_cannot_be(model, answers, error, said):
    with pytest.raises(error, match=said):
        answer_shares(model, "x", answers, progress=False)


def test_answers_that_are_too_long(model):
    with pytest.raises(introspect.ShapeError, match="positions"):
        answer_shares(model, "x", {"a": ["x" * (model.cfg.n_ctx + 1)]}, progress=False)


def test_an_experiment_reads_the_shares_of_answers(model):
    vectors = random_vectors()
    result = introspect.run_experiment(
        model,
        protocol(),
        vectors=vectors,
        strengths=[2.0],
        layers=(1, 2),
        nulls=1,
        questions=[],
        readouts={"answer_shares": ANSWERS},
        progress=False,
    )
    given = introspect.conversation_tokens(model, protocol())
    prompt = [*given.before, *given.injected, *given.after]
    row = result.rows[0]
    assert row["base"]["answer_shares"] == pytest.approx(by_hand(model, prompt, ANSWERS), rel=1e-9)
    directions = vectors[row["concept"]].directions
    first, last = len(given.before), len(given.before) + len(given.injected)

    def hook(layer):
        def add(resid, hook):
            resid[:, first:last] += 2.0 * directions[layer].double()
            return resid

        return (f"blocks.{layer}.hook_resid_post", add)

    expected = by_hand(model, prompt, ANSWERS, [hook(1), hook(2)])
    assert row["injected"]["answer_shares"] == pytest.approx(expected, rel=1e-9)
    assert introspect.Result.from_json(result.to_json()).rows[0]["injected"]["answer_shares"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="answer_shares must have a list of texts"):
        introspect.run_experiment(model, protocol(), vectors=vectors, readouts={"answer_shares": {"a": " yes"}})


def test_spellings():
    assert {" cat", "Cat", ' "cat', "'Cat"} <= set(spellings("cat"))
    assert set(spellings("Paris", quotes=False)) == {"Paris", " Paris", "paris", " paris"}
    for word in ("", " cat"):
        with pytest.raises(ValueError, match="a word is wanted"):
            spellings(word)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I think it is about bread.", "bread"),
        ("Cats? No: bread, then a CAT.", "bread"),
        ("concatenate", None),
        ("It is not about a cat.", None),
        ("It isn't a cat; it is bread.", "bread"),
        ("No. It is a cat.", "cat"),
        ("a sourdough bread", "sourdough"),
        ("", None),
    ],
)
def test_grades_by_rule(text, label):
    answers = {"cat": [" cat"], "bread": [" bread"], "sourdough": ["sourdough bread"]}
    assert grade(text, answers) == label
