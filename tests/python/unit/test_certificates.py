"""Certificates: they hold for a sound run, and show each way in which one is not."""

from dataclasses import replace

import pytest
import torch
from looped import protocol
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.studies import certify

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit", ["absolute", "residual"])
def test_a_sound_run_is_certified(folder, dtype, unit):
    model = introspect.load_model(folder, dtype=dtype)
    found = certify(model, protocol(), random_vectors(), strengths=[0.5], strength_unit=unit, layers=[LAYERS])
    assert found.holds, found.sentence
    assert found.sentence.startswith("Certified")
    ids = introspect.conversation_tokens(model, protocol())
    assert (len(found.span), len(found.after)) == (len(ids.injected), len(ids.after))
    assert found.before == 0 and max(found.after) > 0


def test_what_acted_is_what_was_added(model):
    """At a range of one block the stream changes by the vector itself there, and by nothing after it."""
    vectors = random_vectors()
    found = certify(model, protocol(), vectors, strengths=[3.0], layers=[(2, 2)])
    length = 3 * vectors[found.concept].directions[2].double().norm()
    assert found.span == pytest.approx([float(length)] * len(found.span), rel=1e-6)
    assert found.after == [0.0] * len(found.after)


@pytest.mark.parametrize(
    "change", [{"cached": 1.0}, {"batch": 1.0}, {"resumed": 1.0}, {"before": 1e-9}, {"span": [1.0, 0.0]}]
)
def test_each_fault_is_one(model, change):
    found = certify(model, protocol(), random_vectors(), strengths=[1.0], layers=[LAYERS])
    spoiled = replace(found, **change)
    assert found.holds and not spoiled.holds and spoiled.sentence.startswith("NOT certified")


def test_an_injection_that_does_nothing_is_not_certified(model):
    """The field's silent fault: a hook that never fires."""
    found = certify(model, protocol(), random_vectors(), strengths=[0.0], strength_unit="absolute", layers=[LAYERS])
    assert not found.holds


@pytest.mark.parametrize(
    "fields",
    [{"injected": [1, 3]}, {"injected": [{"turn": 1, "text": "thought"}]}, {"steer_generation": True}],
)
def test_protocols_of_another_kind(model, fields):
    with pytest.raises(introspect.ConfigError, match="must add vectors to whole messages"):
        certify(model, protocol(**fields), random_vectors(), layers=[LAYERS])
