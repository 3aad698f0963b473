"""The probe-report gap: a planted code that probes read and the answer does not say, and figures by hand (float64)."""

import json
import math

import pytest
import torch
from looped import TURNS, adding, changed, protocol
from tiny_chat import random_vectors

import introspect
from introspect.studies import probe_report_gap

LAYERS, STRENGTH = (1, 1), 3.0


@pytest.fixture(scope="module")
def asked():
    return protocol(read="content")


@pytest.fixture(scope="module")
def found(model, asked):
    options = {"strength": STRENGTH, "strength_unit": "absolute", "layers": LAYERS, "nulls": 2, "progress": False}
    return probe_report_gap(model, random_vectors(), asked, **options)


def test_curves_have_a_value_a_block(model, found):
    table = found.to_pandas()
    assert list(table["layer"]) == list(range(model.cfg.n_layers))
    shares = table[["decodable", "at_answer", "reported", "held_out"]].fillna(0)
    assert ((shares >= 0) & (shares <= 1)).all().all()
    assert len(found.decodable_nulls) == len(found.moved_nulls) == len(found.said_nulls) == 2
    assert found.chance == 0.5 and (found.first_layer, found.last_layer) == LAYERS


def test_what_moves_the_answer_is_that_of_plain_passes(model, found):
    words = list(found.concepts)
    assert math.isnan(found.moved[0]) and math.isnan(found.reported[0])  # the vectors have no direction there
    for block in (1, 2):
        gains, most = [], []
        for name, vector in random_vectors().items():
            one = introspect.ControlVector("qwen2", {block: vector.directions[block]})
            before = changed(model, TURNS)[-1].log_softmax(-1)
            after = changed(model, TURNS, [1, 2], adding(one, STRENGTH))[-1].log_softmax(-1)
            ids = [model.tokenizer.encode(word, add_special_tokens=False)[0] for word in words]
            own, other = (float(after[id] - before[id]) for id in (ids if name == words[0] else ids[::-1]))
            gains.append(own)
            most.append(own > other)
        assert found.moved[block] == pytest.approx(sum(gains) / len(gains), abs=1e-9)
        assert found.reported[block] == sum(most) / len(most)


def test_vectors_made_of_the_texts_are_decoded_and_blocks_before_them_hold_nothing(model, asked):
    """The mean difference of the probe's own texts must be read as its concept from the injected block on."""
    texts = {"cat": ["the cat", "a cat is", "cat cat"], "bread": ["the bread", "a bread is", "bread bread"]}
    read = {}
    for name, listed in texts.items():
        with torch.no_grad():
            passes = [model.run_with_cache(model.to_tokens(text), ["blocks.1.hook_resid_post"])[1] for text in listed]
        read[name] = torch.stack([one["blocks.1.hook_resid_post"][0].mean(0) for one in passes]).mean(0)
    middle = sum(read.values()) / 2
    vectors = {name: introspect.ControlVector("qwen2", {1: (mean - middle).float()}) for name, mean in read.items()}
    found = probe_report_gap(
        model,
        vectors,
        asked,
        texts=texts,
        strength=1.0,
        strength_unit="absolute",
        layers=(1, 1),
        nulls=0,
        progress=False,
    )
    assert found.decodable[1] == 1.0
    assert found.decodable_nulls == () and found.said_nulls == ()
    assert found.decodable[0] == found.at_answer[0] == 0.5  # nothing has changed there: one class for all


def test_the_figure_draws_every_curve(found):
    figure = found.plot()
    assert [len(axes.lines) for axes in figure.axes] == [5, 2 + len(found.moved_nulls)]


@pytest.mark.parametrize(
    ("fields", "texts", "error", "said"),
    [
        ({}, None, introspect.ConfigError, "must read content"),
        ({"read": "content", "injected": [1, 3]}, None, introspect.ConfigError, "follow one another"),
        ({"read": "content"}, {"cat": ["a", "b"], "bread": ["a"]}, ValueError, "as many texts"),
        ({"read": "content"}, {"cat": ["a"], "bread": ["a"]}, ValueError, "two or more"),
    ],
)
def test_what_cannot_be(model, fields, texts, error, said):
    with pytest.raises(error, match=said):
        probe_report_gap(model, random_vectors(), protocol(**fields), texts=texts, progress=False)


def test_the_shipped_protocol_is_of_this_kind():
    data = json.loads(introspect.load_protocol("content_report").to_json())
    assert data["read"] == "content" and data["injected"] == [1, 2]
