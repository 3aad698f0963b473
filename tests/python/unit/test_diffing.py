"""Features that rise between models and sets of texts, monitors of them, and crosscoders between models."""

import numpy as np
import pytest
import torch
from dictionaries import dictionary_at, encode
from safetensors.torch import load_file, save_file
from tiny import write_tiny

import introspect
from introspect import _C
from introspect.sae.contexts import Contexts
from introspect.sae.diffing import (
    crosscoder_classes,
    feature_monitor,
    latent_scaling,
    rising_features,
    text_features,
)
from introspect.sae.probing import sparse_probing

D, V = 32, 101
HOOK = "blocks.0.hook_resid_pre"  # the embedding as it is

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say which model")


def model_of(folder, embedding):
    """A tiny model with these rows of the embedding [V, D]."""
    write_tiny(folder, "LlamaForCausalLM")
    state = load_file(folder / "model.safetensors")
    state["model.embed_tokens.weight"] = embedding.contiguous()
    save_file(state, folder / "model.safetensors")
    return introspect.load_model(folder, dtype="float64")


def basis(n=D):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(3)).double()).Q


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Token t embeds along direction t % 16; the tuned copy adds direction 20 to every token a little."""
    U = basis()
    embedding = U[torch.arange(V) % 16] * (1 + torch.arange(V)[:, None] / V)
    base = model_of(tmp_path_factory.mktemp("base"), embedding)
    noise = torch.rand(V, 1, generator=torch.Generator().manual_seed(0)).double()
    tuned = model_of(tmp_path_factory.mktemp("tuned"), embedding + U[20] * (0.2 + 0.4 * noise))
    origin = _C.DictionaryOrigin(inputs=[_C.DictionarySite(HOOK, D)])
    weights = {"W_enc": U, "W_dec": U, "threshold": torch.full((D,), 1e-6).double()}  # above what rounding leaves
    sae = _C.Dictionary("jumprelu", weights, subtract_b_dec=False, origin=origin)
    return base, tuned, sae


@pytest.fixture
def tokens(rng):
    return torch.randint(3, V, (24, 10), generator=rng)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_numbers_of_texts_are_pooled_over_their_tokens(planted, tokens, pool):
    model, _, sae = planted
    lengths = torch.randint(2, 11, (24,), generator=torch.Generator().manual_seed(1))
    texts = torch.arange(24) // 2  # two contexts a text
    contexts = Contexts(tokens, lengths, (7,), texts)
    read = contexts.read()
    x = _C.read_contexts(model, [HOOK], tokens)
    f = encode(sae, x)
    found = text_features(model, sae, contexts, pool=pool)
    assert found.shape == (12, D)
    for text in range(12):
        rows = f[texts == text][read[texts == text]]
        expected = rows.mean(0) if pool == "mean" else rows.amax(0)
        torch.testing.assert_close(found[text], expected, rtol=1e-9, atol=1e-12)
    some = text_features(model, sae, contexts, pool=pool, features=[9, 2])
    torch.testing.assert_close(some, found[:, [9, 2]])
    with pytest.raises(ValueError, match="mean or max"):
        text_features(model, sae, contexts, pool="sum")


def test_a_planted_difference_between_models_is_found_and_nothing_else(planted, tokens):
    base, tuned, sae = planted
    found = rising_features(tuned, sae, tokens, against=base, seed=1)
    assert found.risen == [20] and found.top(1) == [20]
    assert found.p[20] == pytest.approx(1 / 201) and found.p[torch.arange(D) != 20].min() > 0.05
    frame = found.to_pandas()
    assert frame.iloc[0]["feature"] == 20 and frame.iloc[0]["change"] > 0 and len(frame) == D
    back = rising_features(base, sae, tokens, against=tuned, seed=1)
    assert back.risen == [] and back.change[20] == pytest.approx(-found.change[20].item())
    found.plot()


def test_nothing_rises_between_a_model_and_itself(planted, tokens):
    base, _, sae = planted
    found = rising_features(base, sae, tokens, against=base)
    assert found.risen == [] and (found.change == 0).all() and (found.p == 1).all()


def test_shuffled_texts_rise_as_often_as_alpha_says(planted):
    """Texts of one kind cut into two sets: any feature of 32 rises in about 1 of 10 cuts."""
    base, _, sae = planted
    rng = torch.Generator().manual_seed(5)
    risen = 0
    for seed in range(30):
        tokens = torch.randint(3, V, (20, 10), generator=rng)
        found = rising_features(base, sae, tokens[:10], against=tokens[10:], nulls=60, alpha=0.1, seed=seed)
        risen += bool(found.risen)
    assert risen <= 9  # a binomial of 30 and 0.1 passes 9 once in 2,000 times


def test_texts_with_a_planted_token_raise_its_feature(planted, rng):
    base, _, sae = planted
    plain = torch.randint(0, V, (20, 10), generator=rng)
    plain[plain % 16 == 6] += 1
    with_six = plain.clone()
    with_six[:, ::3] = 6 + 16 * torch.randint(0, 5, with_six[:, ::3].shape, generator=rng)
    found = rising_features(base, sae, with_six, against=plain)
    assert found.top(1) == [6] and 6 in found.risen
    torch.testing.assert_close(found.after, text_features(base, sae, with_six).mean(0))
    torch.testing.assert_close(found.before, text_features(base, sae, plain).mean(0))


def test_what_a_comparison_cannot_be_made_of_is_refused(planted, tokens):
    base, tuned, sae = planted
    with pytest.raises(ValueError, match="20 nulls"):
        rising_features(tuned, sae, tokens, against=base, nulls=5)
    with pytest.raises(ValueError, match="alpha"):
        rising_features(tuned, sae, tokens, against=base, alpha=1.5)
    with pytest.raises(ValueError, match="two texts"):
        rising_features(tuned, sae, tokens[:1], against=base)


def test_a_monitor_flags_what_passes_the_harmless_threshold(planted, tokens):
    base, tuned, sae = planted
    monitor = feature_monitor(tuned, sae, {"six": 6, "planted": 20}, tokens[:12], false_positive_rate=0)
    scores = text_features(tuned, sae, tokens[:12], features=[6, 20])
    assert monitor.thresholds["planted"] > scores[:, 1].max().item()
    caught = monitor.detect(tuned, tokens[:12])
    assert not caught.is_misaligned.any()
    bad = torch.full((12, 10), 6)
    caught = monitor.detect(base, bad)
    assert caught.is_misaligned.all() and caught.features == ("six", "planted")
    report = monitor.report(base, bad, tokens[12:])
    assert report["six"].recall.value == 1 and report["six"].auc.value == 1
    with pytest.raises(ValueError, match="at least one feature"):
        feature_monitor(base, sae, {}, tokens)


def crosscoder(U, norms_a, norms_b):
    """Feature i reads direction i of both models together and writes it with these lengths."""
    n = len(norms_a)
    sites = [_C.DictionarySite(HOOK, D, model) for model in (0, 1)]
    W_dec = torch.cat([U[:n] * norms_a[:, None], U[:n] * norms_b[:, None]], 1)
    total = (norms_a.square() + norms_b.square())[:, None]
    weights = {"W_enc": W_dec / total, "W_dec": W_dec, "b_enc": torch.zeros(n).double()}
    origin = _C.DictionaryOrigin(inputs=sites, outputs=sites)
    return _C.Dictionary("standard", weights, subtract_b_dec=False, origin=origin)


def test_classes_are_those_of_relative_decoder_norms():
    U = basis()
    a = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.05, 0.5]).double()
    b = torch.tensor([1.0, 0.0, 2.0, 3.0, 1.00, 0.5]).double()
    found = crosscoder_classes(crosscoder(U, a, b))
    np.testing.assert_allclose(found.relative_norm, (b / (a + b)).numpy(), rtol=1e-9)
    assert found.classes == ("shared", "first only", "second only", "between", "second only", "shared")
    assert found.of("second only") == [2, 4] and found.counts["between"] == 1
    torch.testing.assert_close(found.cosine[[0, 3, 4, 5]], torch.ones(4).double())
    found.plot()
    with pytest.raises(_C.ConfigError, match="two models"):
        crosscoder_classes(dictionary_at(HOOK, D))


def test_latent_scaling_tells_a_feature_of_one_model_from_one_that_was_left_in_the_error(tmp_path_factory, tokens):
    """Feature 0 is the second model's alone. Feature 1 is in both models, and its decoder row for the first is 0."""
    U = basis()
    rows = torch.zeros(V, D).double()
    of = torch.arange(V) % 4  # tokens of directions 0 to 3
    second = model_of(tmp_path_factory.mktemp("second"), rows + U[of])
    first = model_of(tmp_path_factory.mktemp("first"), torch.where(of[:, None] == 0, rows, U[of]))
    ones = torch.ones(4).double()
    written = torch.tensor([0.0, 0.0, 1.0, 1.0]).double()
    both = crosscoder(U, written, ones)
    classes = crosscoder_classes(both)
    assert classes.of("second only") == [0, 1], "by norms the two look alike"
    found = latent_scaling((first, second), both, tokens, [0, 1])
    assert found.error_ratio[0].item() == pytest.approx(0, abs=1e-9)
    assert found.error_ratio[1].item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(found.reconstruction_ratio, torch.zeros(2).double(), atol=1e-9, rtol=0)
    # written for the first model by another feature along the same direction: Latent Decoupling
    twin = both.weights["W_dec"].clone()
    twin = torch.cat([twin, torch.cat([U[1], torch.zeros(D).double()])[None]])
    encoder = torch.cat([both.weights["W_enc"], torch.cat([U[1], torch.zeros(D).double()])[None]])
    weights = {"W_enc": encoder, "W_dec": twin, "b_enc": torch.zeros(5).double()}
    split = _C.Dictionary("standard", weights, subtract_b_dec=False, origin=both.origin)
    found = latent_scaling((first, second), split, tokens, [0, 1])
    assert found.reconstruction_ratio[1].item() == pytest.approx(1, abs=1e-9)
    assert found.reconstruction_ratio[0].item() == pytest.approx(0, abs=1e-9)
    assert found.error_ratio[1].item() == pytest.approx(0, abs=1e-9)
    assert found.to_pandas().shape == (2, 3)
    with pytest.raises(_C.ConfigError, match="2 models, got 1"):
        latent_scaling((first,), both, tokens, [0])


def test_a_sparse_probe_finds_the_planted_feature_and_nothing_in_shuffled_labels(planted, rng):
    base, _, sae = planted
    texts = torch.randint(0, V, (60, 8), generator=rng)
    texts[texts % 16 == 6] += 1
    labels = torch.arange(60) % 2
    texts[labels == 1, 2] = 6
    found = sparse_probing(base, sae, texts, labels.tolist(), ks=(1, 2))
    assert found.features[1] == (6,) and found.accuracy[1] == 1 and 6 in found.features[2]
    assert found.dense_accuracy == 1 and int(found.test.sum()) == 18
    shuffled = labels[torch.randperm(60, generator=rng)]
    assert sparse_probing(base, sae, texts, shuffled.tolist(), ks=(1,)).accuracy[1] < 0.8
    with pytest.raises(ValueError, match="two classes"):
        sparse_probing(base, sae, texts, [0] * 60)


def test_a_crosscoder_that_is_trained_on_two_models_finds_what_the_tuned_one_has_more(tmp_path_factory, rng):
    """Tokens embed along direction t % 16 in both models; the tuned one adds direction 20 to a sixth of all tokens."""
    U = basis()
    embedding = U[torch.arange(V) % 16] * (1 + 0.2 * torch.rand(V, 1, generator=rng).double())
    has = torch.arange(V) // 16 == 3  # each direction has one such token
    base = model_of(tmp_path_factory.mktemp("base"), embedding)
    tuned = model_of(tmp_path_factory.mktemp("tuned"), embedding + has[:, None] * U[20])
    texts = torch.randint(0, V, (200, 40), generator=rng)
    both = introspect.SAE.train(
        [base, tuned], texts.tolist(), hook=[(HOOK, 0), (HOOK, 1)], architecture="batchtopk", d_sae=24, k=1.2, lr=5e-3,
        training_tokens=300 * 256, train_batch_size_tokens=256, context_size=20, prepend_bos=False, held_out_tokens=256,
        sequence_separator_token=None, exclude_special_tokens=False, max_norm_multiple=None, progress=False,
    )  # fmt: skip
    classes = crosscoder_classes(both)
    own = classes.of("second only")[0]
    second = both.W_dec[own, D:].double()
    assert torch.nn.functional.cosine_similarity(second, U[20], dim=0) > 0.95
    alive = text_features([base, tuned], both, texts).sum(0) > 0
    others = [i for i in alive.nonzero().flatten().tolist() if i != own]
    assert len(others) >= 14 and all(classes.classes[i] == "shared" for i in others), classes.to_pandas()

    held_out = torch.randint(0, V, (40, 10), generator=rng)
    active = text_features([base, tuned], both, held_out, features=[own], pool="max")[:, 0] > 0
    assert torch.equal(active, has[held_out].any(1))
    scaling = latent_scaling((base, tuned), both, held_out, [own])
    assert scaling.error_ratio.abs() < 0.1 and scaling.reconstruction_ratio.abs() < 0.2
