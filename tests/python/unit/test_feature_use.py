"""Features put to use: steering, control vectors, decomposition, attribution, readouts of experiments, monitors."""

import pytest
import torch
from dictionaries import decode, dictionary_at, encode
from looped import TURNS, looped_readings, message_positions
from looped import protocol as any_protocol
from tiny_chat import random_vectors

import introspect
from introspect import sae as saes

LAYERS, STRENGTH = (1, 2), 2.0
POST = "blocks.1.hook_resid_post"
TEXT = "a cat and no bread"
FLOOR = {"rtol": 0, "atol": 1e-9}

pytestmark = pytest.mark.filterwarnings("ignore:.*the dictionary does not say which model")


@pytest.fixture(scope="module")
def sae(model):
    return dictionary_at(POST, model.cfg.d_model, "topk")


def generated(model, edit):
    """Greedy tokens with an edit by hand of the features, kept with what the dictionary does not explain."""
    with model.hooks([(POST, edit)]):
        return model.generate(TEXT, max_new_tokens=6, stop_at_eos=False)


# Steering


@pytest.mark.parametrize(("mode", "strength"), [("add", 6.0), ("clamp", 6.0), ("scale", -3.0)])
def test_steer_with_sae_keeps_the_error_and_generates(model, sae, mode, strength):
    def edit(x, hook):
        f = encode(sae, x)[..., 3]
        new = {"add": f + strength, "clamp": torch.full_like(f, strength), "scale": f * strength}[mode]
        return x + (new - f).unsqueeze(-1) * sae.W_dec[3]

    got = saes.steer_with_sae(model, sae, 3, strength, TEXT, mode=mode, max_new_tokens=6, stop_at_eos=False)
    assert got == generated(model, edit)


def test_contrastive_steering_raises_some_and_lowers_others(model, sae):
    def edit(x, hook):
        return x + 4 * (sae.W_dec[3] + 0.5 * sae.W_dec[7]) - 4 * sae.W_dec[5]

    options = {"max_new_tokens": 6, "stop_at_eos": False}
    got = saes.contrastive_steering(model, sae, {3: 1.0, 7: 0.5}, [5], 4.0, TEXT, **options)
    assert got == generated(model, edit) != model.generate(TEXT, **options)
    with pytest.raises(ValueError, match=r"got \[3\] on both"):
        saes.contrastive_steering(model, sae, [3], [3, 4], 4.0, TEXT)
    with pytest.raises(ValueError, match="at least one"):
        saes.contrastive_steering(model, sae, [], [], 4.0, TEXT)
    with pytest.raises(ValueError, match="mode must be"):
        saes.steer_with_sae(model, sae, 3, 1.0, TEXT, mode="set")


def test_the_plain_form_puts_the_reconstruction_in(model, sae):
    def edit(x, hook):
        f = encode(sae, x)
        f[..., 3] += 6.0
        return decode(sae, f, x)

    got = saes.steer_with_sae(model, sae, 3, 6.0, TEXT, error_term=False, max_new_tokens=6, stop_at_eos=False)
    assert got == generated(model, edit)


# Vectors and features


def test_a_control_vector_of_features_steers_as_adding_them_does(model, sae):
    tokens = model.to_tokens(TEXT)
    with model.splice(sae, add={3: 2.0, 5: -1.0}):
        expected = model(tokens)
    vector = sae.control_vector({3: 2.0, 5: -1.0}, model=model)
    assert list(vector.directions) == [1]
    with model.steer(vector):
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-5)  # vectors are float32
    before = dictionary_at("blocks.2.hook_resid_pre", model.cfg.d_model)
    assert list(before.control_vector({3: 1.0}).directions) == [1]  # the same place
    with pytest.raises(introspect.ConfigError, match="residual stream after a block"):
        dictionary_at("blocks.1.hook_mlp_out", model.cfg.d_model).control_vector({3: 1.0})
    with pytest.raises(IndexError, match="0 to 23, got 24"):
        sae.control_vector({24: 1.0})


def test_a_vectors_features_are_found(model):
    sae = dictionary_at(POST, model.cfg.d_model, d_sae=16)
    vector = sae.control_vector({3: 5.0, 7: 2.0})
    best = saes.decompose(vector, sae, method="cosine", top_k=2)
    assert best.features[0] == 3
    v = vector.directions[1].double()
    assert best.weights[0] == pytest.approx((v @ sae.W_dec[3] / v.norm() / sae.W_dec[3].norm()).item())
    pursued = saes.decompose(vector, sae, top_k=30)
    assert set(pursued.features[:2]) == {3, 7}
    assert pursued.rest < 1e-3
    single = saes.decompose(sae.W_dec[4] * 2, sae, top_k=1)
    assert single.features == (4,) and single.weights[0] == pytest.approx(2 * sae.W_dec[4].norm().item())
    assert single.rest == pytest.approx(0, abs=1e-12)
    x = torch.full((model.cfg.d_model,), 0.3, dtype=torch.float64)
    f = encode(sae, x)
    by_encoder = saes.decompose(x, sae, method="encoder", top_k=3)
    assert by_encoder.weights == pytest.approx(f.sort(descending=True).values[:3].tolist())
    assert list(by_encoder.to_pandas().columns) == ["feature", "weight"]
    with pytest.raises(introspect.ConfigError, match="no direction there"):
        saes.decompose(introspect.ControlVector("qwen2", {0: v.float()}), sae)
    with pytest.raises(ValueError, match="zeros"):
        saes.decompose(torch.zeros(model.cfg.d_model), sae)


def test_the_features_that_differ_between_two_sets(model, sae, rng):
    positive, negative = torch.randn(2, 20, model.cfg.d_model, generator=rng, dtype=torch.float64)
    found = saes.contrast_features(sae, positive, negative, top_k=3)
    difference = encode(sae, positive).mean(0) - encode(sae, negative).mean(0)
    largest = difference.abs().argsort(descending=True)[:3]
    assert list(found) == largest.tolist()
    assert list(found.values()) == pytest.approx(difference[largest].tolist())


# Attribution


METRIC = introspect.LogitDifference(" yes", " no")


def by_hand(model, sae, metric_of, names=(POST, POST)):
    """f, its gradient through decode, x, dm/dx, of plain autograd."""
    tokens = model.to_tokens(TEXT)
    seen = {}

    def read(x, hook):
        seen["source"] = x.clone()

    def replace(x, hook):
        source = x if names[0] == names[1] else seen["source"]
        f = encode(sae, source.detach()).requires_grad_()
        error = (x - decode(sae, f, source)).detach()
        seen.update(f=f, x=x.detach())
        return decode(sae, f, source.detach()) + error

    hooks = [(names[1], replace)] if names[0] == names[1] else [(names[0], read), (names[1], replace)]
    logits = model.run_with_hooks(tokens, hooks)
    (gradient,) = torch.autograd.grad(metric_of(logits), seen["f"])
    return seen["f"].detach()[0], gradient[0]


def ids(model):
    return [model.tokenizer.encode(t, add_special_tokens=False)[0] for t in (" yes", " no")]


@pytest.mark.parametrize("names", [(POST, POST), ("blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out")])
@pytest.mark.parametrize(
    "config", [{}, {"input_norm": "layer_norm"}, {"rank_by_decoder_norm": True}], ids=["plain", "norm", "ranked"]
)
def test_effects_are_features_times_their_gradients(model, names, config):
    sae = dictionary_at(
        names[0], model.cfg.d_model, "topk", hook_out=names[1] if names[0] != names[1] else None, **config
    )
    yes, no = ids(model)
    f, gradient = by_hand(model, sae, lambda logits: logits[0, -1, yes] - logits[0, -1, no], names)
    found = saes.attribute_features(model, sae, TEXT, METRIC)
    dense = torch.zeros_like(f).index_put((found.positions, found.features), found.effects)
    torch.testing.assert_close(dense, f * gradient, **FLOOR)
    total = found.by_feature()
    assert list(total.values()) == sorted(total.values(), key=abs, reverse=True)
    table = found.to_pandas()
    assert len(table) == int((f != 0).sum()) and abs(table.effect).is_monotonic_decreasing


def test_effects_error_and_bias_sum_to_the_gradient_times_the_activation(model, sae):
    found = saes.attribute_features(model, sae, TEXT, METRIC)
    _, cache = model.run_with_cache(model.to_tokens(TEXT), [POST])
    x = cache[POST].requires_grad_()
    yes, no = ids(model)
    logits = model.run_with_hooks(model.to_tokens(TEXT), [(POST, lambda value, hook: x)])
    (gradient,) = torch.autograd.grad(logits[0, -1, yes] - logits[0, -1, no], x)
    per_position = torch.zeros(x.shape[1], dtype=torch.float64).index_add(0, found.positions, found.effects)
    expected = (x * gradient)[0].sum(-1)
    torch.testing.assert_close(per_position + found.error + found.bias, expected.detach(), rtol=1e-9, atol=1e-9)


def test_integrated_gradients_account_for_the_whole_difference(model):
    sae = dictionary_at(POST, model.cfg.d_model, "topk", size=2.0)  # b_dec of about the activations' length

    def metric(logits):
        return (logits[:, -1, 5] / 5).tanh()

    tokens = model.to_tokens(TEXT)
    with model.hooks([(POST, lambda x, hook: decode(sae, torch.zeros(*x.shape[:2], sae.d_sae).double(), x))]):
        empty = metric(model(tokens)).item()
    whole = metric(model(tokens)).item()
    found = saes.attribute_features(model, sae, TEXT, metric, method="ig", steps=60)
    assert found.metric == pytest.approx(whole)
    assert (found.effects.sum() + found.error.sum()).item() == pytest.approx(whole - empty, abs=3e-4)
    assert abs(whole - empty) > 0.02
    with pytest.raises(ValueError, match="one prompt"):
        saes.attribute_features(model, sae, [TEXT, TEXT], metric)


# Readouts


def test_features_are_read_in_every_run_of_an_experiment(model, sae, tmp_path):
    vectors = random_vectors(LAYERS)
    naive = looped_readings(model, vectors, STRENGTH)
    options = {"strengths": [STRENGTH], "layers": [LAYERS], "questions": [], "nulls": 0, "progress": False}
    readouts = saes.feature_readout(sae, features=[3, 5, 7]) | saes.feature_readout(sae, top_k=2, name="largest")
    result = introspect.run_experiment(
        model, any_protocol(), vectors=vectors, readouts=readouts, store=tmp_path / "cells.sqlite", **options
    )
    for row, line in zip(result.rows, result.to_pandas().to_dict("records"), strict=True):
        for side, state in (("base", naive[0]), ("injected", naive[1][row["concept"]])):
            f = encode(sae, state.resid[1])
            found = row[side]["features"]
            assert found["ids"] == [3, 5, 7]
            assert found["values"] == pytest.approx(f[[3, 5, 7]].tolist(), abs=1e-5)
            column = "features_3_base" if side == "base" else "features_3"
            assert line[column] == pytest.approx(f[3].item(), abs=1e-5)
            assert row[side]["largest"]["ids"] == f.topk(2).indices.tolist()
    plan = introspect.run_experiment(
        model,
        any_protocol(),
        vectors=vectors,
        readouts=readouts,
        store=tmp_path / "cells.sqlite",
        plan=True,
        **options,
    )
    assert plan.found == plan.readings


def test_features_at_the_injected_tokens(model, sae):
    vectors = random_vectors(LAYERS)
    found = saes.injected_features(model, sae, any_protocol(), vectors, strength=STRENGTH, layers=LAYERS)
    cut = introspect.conversation_tokens(model, any_protocol())
    text = torch.tensor([[*cut.before, *cut.injected]])
    span = slice(len(cut.before), text.shape[1])
    assert len(found.tokens) == len(cut.injected) == len(message_positions(model, TURNS, [1, 2]))
    _, cache = model.run_with_cache(text, [POST])
    torch.testing.assert_close(found.base, encode(sae, cache[POST][0, span]), **FLOOR)
    for name, vector in vectors.items():
        with model.steer(STRENGTH * vector, layers=LAYERS, positions=(span.start, None)):
            _, cache = model.run_with_cache(text, [POST])
        torch.testing.assert_close(found.vectors[name], encode(sae, cache[POST][0, span]), **FLOOR)
    table = found.to_pandas(top_k=3)
    assert set(table.vector) == set(vectors) and len(table) <= 3 * len(vectors)


def test_a_feature_is_one_that_detect_misalignment_takes(model, sae):
    texts = [TEXT, "bread bread bread"]
    features = [saes.Feature(sae, 3, "cats"), saes.Feature(sae, 5, "bread", threshold=0.0)]
    found = introspect.analysis.detect_misalignment(model, texts, features, thresholds={"cats": 1e9})
    for row, text in enumerate(texts):
        _, cache = model.run_with_cache(model.to_tokens(text), [POST])
        f = encode(sae, cache[POST][0, -1])
        assert found.scores[row].tolist() == pytest.approx(f[[3, 5]].tolist(), abs=1e-6)
    with pytest.raises(IndexError, match="0 to 23"):
        saes.Feature(sae, 24)


def test_a_readout_needs_a_dictionary_of_one_known_site(model):
    with pytest.raises(introspect.ConfigError, match="which point it reads"):
        saes.feature_readout(introspect.SAE(torch.eye(4), torch.eye(4)))
    with pytest.raises(TypeError, match=r"must be an introspect\.SAE"):
        saes.feature_readout("sae")
