"""Statistics, contexts, neighbours and effects of features, against dense features in plain torch and numpy."""

import numpy as np
import pytest
import torch
from dictionaries import dictionary_at, encode
from tiny import write_tiny_transformers

import introspect
from introspect import _C
from introspect.sae.contexts import Contexts
from introspect.sae.features import FeatureStatistics, feature_card, feature_statistics, histogram, logit_effects

D = 48

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say which model")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_transformers(tmp_path_factory.mktemp("tiny"), "llama"), dtype="float64")


@pytest.fixture
def contexts(rng):
    tokens = torch.randint(3, 40, (9, 12), generator=rng)
    lengths = torch.tensor([12, 5, 12, 9, 1, 12, 3, 12, 7])
    return Contexts(tokens, lengths, (5, 8), torch.arange(9))


def dense(model, sae, contexts, hook):
    """Features [contexts, tokens, d_sae], 0 where nothing is read; one context after another."""
    out = torch.zeros(*contexts.tokens.shape, sae.d_sae, dtype=torch.float64)
    for i, length in enumerate(contexts.lengths.tolist()):
        _, cache = model.run_with_cache(contexts.tokens[i : i + 1, :length], names_filter=[hook])
        out[i, :length] = encode(sae, cache[hook].flatten(2))[0]
    return out * contexts.read()[..., None]


@pytest.fixture
def known(model, contexts):
    hook = "blocks.1.hook_resid_post"
    sae = dictionary_at(hook, D, "jumprelu", size=0.2)
    return sae, feature_statistics(model, sae, contexts), dense(model, sae, contexts, hook)


def test_statistics_are_those_of_dense_features(known, contexts):
    sae, found, f = known
    read = contexts.read()
    rows = f[read].numpy()
    assert found.activations.read_tokens == len(rows) == int(read.sum())
    np.testing.assert_array_equal(found.counts, (rows != 0).sum(0))
    np.testing.assert_allclose(found.frequencies, (rows != 0).mean(0))
    np.testing.assert_allclose(found.mean_active, rows.sum(0) / np.maximum((rows != 0).sum(0), 1), rtol=1e-9)
    np.testing.assert_allclose(found.max_active, rows.max(0), rtol=1e-9)
    np.testing.assert_array_equal(found.context_counts, (f != 0).any(1).sum(0))
    assert found.dead_share == pytest.approx((rows == 0).all(0).mean())
    assert found.top(3) == np.argsort(-(rows != 0).mean(0), kind="stable")[:3].tolist()
    frame = found.to_pandas()
    assert list(frame.columns) == ["feature", "label", "frequency", "count", "contexts", "mean_active", "max_active"]
    assert len(frame) == sae.d_sae
    for feature in range(sae.d_sae):
        got = _C.feature_values(found.activations, feature, torch.arange(9))
        torch.testing.assert_close(got, f[..., feature], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_batches_and_chosen_features_change_nothing(model, known, contexts, batch_tokens):
    sae, found, _ = known
    other = feature_statistics(model, sae, contexts, batch_tokens=batch_tokens).activations
    assert torch.equal(other.places, found.activations.places)
    torch.testing.assert_close(other.values, found.activations.values, rtol=1e-9, atol=1e-9)
    some = feature_statistics(model, sae, contexts, features=[17, 3], batch_tokens=batch_tokens)
    assert some.ids.tolist() == [3, 17]
    for name in ("frequencies", "mean_active", "max_active", "counts", "context_counts"):
        torch.testing.assert_close(getattr(some, name), getattr(found, name)[[3, 17]], rtol=1e-9, atol=1e-9)
    with pytest.raises(IndexError, match="feature 4 is not among the 2"):
        some.contexts(4)


def test_rows_that_were_read_before_give_the_same(model, known, contexts):
    sae, found, _ = known
    x = _C.read_contexts(model, ["blocks.1.hook_resid_post"], contexts.tokens, lengths=contexts.lengths)
    other = _C.feature_activations_of_rows(sae, contexts.tokens, x, **contexts.arguments)
    assert torch.equal(other.places, found.activations.places)
    torch.testing.assert_close(other.values, found.activations.values, rtol=1e-9, atol=1e-9)


def test_groups_are_the_top_contexts_and_intervals_of_equal_width(known, contexts):
    sae, found, f = known
    read = int(contexts.read().sum())
    for feature in range(sae.d_sae):
        values = f[..., feature]
        groups = found.contexts(feature, top=4, quantiles=5, per_quantile=2, seed=1)
        if not (values > 0).any():
            assert groups == []
            continue
        first, *intervals = groups
        active = (values != 0).any(1)
        highest = values.amax(1)[active].sort(descending=True).values[:4]
        at = values[first.rows, first.positions]
        torch.testing.assert_close(at, highest, rtol=1e-9, atol=1e-9)
        assert (first.low, first.share) == (-1, -1) and first.high == pytest.approx(values.max().item())
        torch.testing.assert_close(first.values, values[first.rows], rtol=1e-9, atol=1e-9)
        edges = np.linspace(0, values.max().item(), 6)
        flat = values[contexts.read()].numpy()
        for number, group in enumerate(intervals):
            low, high = edges[4 - number], edges[5 - number]
            assert group.low == pytest.approx(low) and group.high == pytest.approx(high)
            inside = (flat >= group.low) & (flat <= group.high)
            assert group.share == pytest.approx(inside.sum() / read, abs=1e-12)
            chosen = values[group.rows, group.positions]
            assert ((chosen > 0) & (chosen >= group.low) & (chosen <= group.high)).all()
            within = ((values > 0) & (values >= group.low) & (values <= group.high)).any(1).sum().item()
            assert len(group.rows) == len(set(group.rows.tolist())) == min(2, within)
        again = found.contexts(feature, top=4, quantiles=5, per_quantile=2, seed=1)
        assert all(torch.equal(a.rows, b.rows) for a, b in zip(groups, again, strict=True))


def test_coactive_features_are_those_of_the_correlation_matrix(known, contexts):
    _, found, f = known
    rows = f[contexts.read()].numpy()
    alive = (rows != 0).any(0)
    correlation = np.corrcoef(rows[:, alive].T)
    number = {feature: i for i, feature in enumerate(np.flatnonzero(alive).tolist())}
    for feature in number:
        near = found.coactive(feature, k=100)
        shared = ((rows != 0) & (rows[:, [feature]] != 0)).sum(0)
        expected = [i for i in number if i != feature and shared[i]]
        assert sorted(near.ids.tolist()) == expected
        for one, pearson, cosine, both in zip(
            near.ids.tolist(), near.similarity, near.cosine, near.shared, strict=True
        ):
            assert pearson.item() == pytest.approx(correlation[number[feature], number[one]], abs=1e-9)
            a, b = rows[:, feature], rows[:, one]
            assert cosine.item() == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-9)
            assert both.item() == shared[one]
        assert (near.similarity.diff() <= 0).all()


def test_decoder_neighbours_are_the_highest_cosines(known):
    sae, _, _ = known
    W = torch.nn.functional.normalize(sae.weights["W_dec"], dim=1)
    cosines = W @ W.T - 3 * torch.eye(sae.d_sae)
    for feature in (0, 23):
        near = _C.decoder_neighbours(sae, feature, 5)
        values, ids = cosines[feature].topk(5)
        assert near.ids.tolist() == ids.tolist()
        torch.testing.assert_close(near.similarity, values)
    with pytest.raises(IndexError):
        _C.decoder_neighbours(sae, 24)


def test_a_file_gives_the_same_statistics_back(tmp_path, model, known):
    sae, found, _ = known
    found.save(tmp_path / "features.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "features.safetensors", model, sae)
    for name in ("tokens", "lengths", "ids", "offsets", "places", "values"):
        assert torch.equal(getattr(loaded.activations, name), getattr(found.activations, name)), name
    assert loaded.activations.special_tokens == [5, 8]
    with pytest.raises(_C.ConfigError, match="another dictionary"):
        FeatureStatistics.load(tmp_path / "features.safetensors", model, dictionary_at("x", D))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "features.safetensors").read_bytes()[:900])
    with pytest.raises(_C.IoError):
        FeatureStatistics.load(tmp_path / "cut.safetensors", model, sae)


def test_a_feature_of_one_token_is_found_at_that_token(model, contexts):
    """Planted: feature t reads and writes the embedding of token t, and only it."""
    embeddings = _C.read_contexts(model, ["hook_embed"], torch.arange(40)[None])[0]
    inverse = torch.linalg.pinv(embeddings)  # [D, 40]: x @ inverse is one-hot for an embedding
    origin = _C.DictionaryOrigin(inputs=[_C.DictionarySite("hook_embed", D)])
    weights = {"W_enc": inverse.T.contiguous(), "W_dec": embeddings, "threshold": torch.full((40,), 0.5).double()}
    sae = _C.Dictionary("jumprelu", weights, subtract_b_dec=False, origin=origin)
    found = feature_statistics(model, sae, contexts)
    read = contexts.read()
    for token in range(40):
        expected = ((contexts.tokens == token) & read).nonzero()
        assert found.counts[token] == len(expected)
        if len(expected):
            group = found.contexts(token, top=100, quantiles=0)[0]
            assert (contexts.tokens[group.rows, group.positions] == token).all()
            assert sorted(group.rows.tolist()) == expected[:, 0].unique().tolist()
            assert found.mean_active[token].item() == pytest.approx(1, abs=1e-9)
    assert found.counts[5] == 0, "special tokens are not read"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2"])
def test_logit_effects_are_the_derivative_of_logits_with_the_norm_held(tmp_path, family, rng):
    uncapped = {"final_logit_softcapping": None} if family == "gemma2" else {}
    model = introspect.load_model(write_tiny_transformers(tmp_path, family, **uncapped), dtype="float64")
    sae = dictionary_at("blocks.2.hook_resid_post", D)
    found = logit_effects(model, sae, [4, 7])
    tokens = torch.randint(3, 101, (1, 6), generator=rng)
    logits, cache = model.run_with_cache(tokens, names_filter=["ln_final.hook_scale"])
    scale = cache["ln_final.hook_scale"]
    for feature, effect in zip((4, 7), found, strict=True):
        row = sae.weights["W_dec"][feature]
        hooks = [
            ("blocks.2.hook_resid_post", lambda x, hook, row=row: x + row),
            ("ln_final.hook_scale", lambda x, hook: scale),
        ]
        raised = model.run_with_hooks(tokens, fwd_hooks=hooks)
        # RMS norms divide in float32, in float64 models too
        close = {"rtol": 1e-8, "atol": 1e-8} if family == "gpt2" else {"rtol": 0, "atol": 1e-4}
        torch.testing.assert_close((raised - logits) * scale, effect.expand_as(logits), **close)


def test_logit_effects_go_through_the_heads_and_stop_at_norms(tmp_path, model):
    width = model.cfg.n_heads * model.cfg.d_head
    sae = dictionary_at("blocks.1.attn.hook_z", width)
    weights = dict(model.native.named_weights())
    through = sae.weights["W_dec"][[3]] @ weights["blocks.1.attn.W_O"].double().T
    expected = through * weights["ln_final.w"] @ weights["unembed.W_U"].T
    torch.testing.assert_close(logit_effects(model, sae, [3]), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(_C.ConfigError, match="no linear way"):
        logit_effects(model, dictionary_at("blocks.1.mlp.hook_pre", model.cfg.d_mlp), [0])
    gemma = introspect.load_model(write_tiny_transformers(tmp_path, "gemma2"), dtype="float64")
    with pytest.raises(_C.ConfigError, match="norm"):
        logit_effects(gemma, dictionary_at("blocks.1.attn.hook_z", gemma.cfg.n_heads * gemma.cfg.d_head), [0])


def test_a_card_is_plain_and_whole(model, known):
    import json

    sae, found, _ = known
    feature = found.top(1)[0]
    card = feature_card(found.labelled({feature: "my name"}), feature, top=3, per_quantile=2, logits=4, neighbours=5)
    assert json.loads(json.dumps(card)) == card
    assert card["label"] == "my name" and card["frequency"] == pytest.approx(found.frequencies[feature].item())
    assert len(card["top_logits"]) == len(card["bottom_logits"]) == 4
    effects = logit_effects(model, sae, [feature])[0]
    assert card["top_logits"][0]["id"] == int(effects.argmax()) and card["bottom_logits"][0]["id"] == int(
        effects.argmin()
    )
    assert sum(card["histogram"]["heights"]) == card["count"] and sum(card["logit_histogram"]["heights"]) == 101
    shown = card["groups"][0]["contexts"][0]
    assert shown["values"][shown["position"]] == pytest.approx(card["max_active"])
    assert len(shown["tokens"]) == len(shown["values"])
    assert len(card["neighbours"]) == 5
    W_enc, W_dec = (sae.weights[name][feature] for name in ("W_enc", "W_dec"))
    assert card["encoder_decoder_cosine"] == pytest.approx(torch.cosine_similarity(W_enc, W_dec, dim=0).item())


def test_histograms_have_the_bars_of_numpy(rng):
    values = torch.randn(200, generator=rng)
    heights, edges = np.histogram(values.numpy(), bins=50)
    found = histogram(values)
    assert np.abs(np.array(found["heights"]) - heights).sum() <= 2  # a value on an edge
    np.testing.assert_allclose(found["values"], (edges[1:] + edges[:-1]) / 2, rtol=1e-5, atol=1e-6)


def test_more_activations_than_fit_are_refused_early(model, known, contexts):
    sae, _, _ = known
    with pytest.raises(ValueError, match="memory budget"):
        feature_statistics(model, sae, contexts, memory_budget=100)
    with pytest.raises(IndexError, match="feature ids"):
        feature_statistics(model, sae, contexts, features=[24])
