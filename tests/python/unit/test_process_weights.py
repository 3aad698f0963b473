"""Processed weights: the same model, and the property each option promises."""

import pytest
import torch
from tiny import write_tiny_transformers

import introspect

ALL = ["qwen2", "qwen2 windows", "qwen3 biases", "llama", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi3"]
ROTARY = [name for name in ALL if name != "gpt2"]
LAYER_NORM = ["gpt2", "gpt_neox"]
CAPPED = ["gemma2"]


@pytest.fixture(scope="module")
def engine(request, tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny") / "m", request.param)
    return introspect.load_model(folder, dtype=torch.float64).native


@pytest.fixture
def tokens(rng):
    return torch.randint(0, 101, (2, 11), generator=rng)


def on(names):
    return pytest.mark.parametrize("engine", names, indirect=True)


def floor(engine):
    """Rounding of float64, or of float32 where norms are computed in it: logits spread over tens."""
    return {"rtol": 0, "atol": 1e-10 if engine.cfg.normalization_type == "LN" else 1e-4}


@on(ALL)
def test_folding_norms_leaves_logits_and_makes_norms_neutral(engine, tokens):
    folded = engine.processed(fold_ln=True)
    torch.testing.assert_close(folded.forward(tokens), engine.forward(tokens), **floor(engine))
    for name in folded.weight_names():
        weight = folded.weight(name)
        if name.endswith(("ln1.w", "ln2.w", "ln_final.w")):
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif name.endswith(("ln1.b", "ln2.b", "ln_final.b")):
            assert torch.equal(weight, torch.zeros_like(weight)), name
        elif name.endswith(("_post.w", "q_norm.w", "k_norm.w", "W_O", "W_out", "W_E")):
            assert torch.equal(weight, engine.weight(name)), name


@on(LAYER_NORM)
def test_reading_weights_behind_a_layer_norm_are_centred(engine, tokens):
    folded = engine.processed(fold_ln=True)
    for name in ("attn.W_Q", "attn.W_V", "mlp.W_in"):
        assert folded.stacked_weight(name).mean(-2).abs().max() < 1e-15
    assert folded.weight("unembed.W_U").mean(0).abs().max() < 1e-15
    assert folded.weight("unembed.b_U").abs().max() > 0.1


@on(["qwen2 windows", "qwen3 biases", "gemma2", "gpt2"])
def test_a_tied_embedding_is_untied_when_one_side_changes(engine, tokens):
    assert engine.cfg.tie_word_embeddings
    folded = engine.processed(fold_ln=True)
    assert not folded.cfg.tie_word_embeddings
    assert torch.equal(folded.weight("embed.W_E"), engine.weight("embed.W_E"))
    expected = engine.weight("ln_final.w")[:, None] * engine.weight("unembed.W_U")
    if engine.cfg.normalization_type == "LN":
        expected = expected - expected.mean(0)
    torch.testing.assert_close(folded.weight("unembed.W_U"), expected, rtol=0, atol=1e-14)
    assert engine.processed(fold_value_biases=True).cfg.tie_word_embeddings


@on(LAYER_NORM)
def test_centred_writing_weights_write_no_mean(engine, tokens):
    centred = engine.processed(center_writing_weights=True)
    torch.testing.assert_close(centred.forward(tokens), engine.forward(tokens), **floor(engine))
    resid = centred.forward(tokens, stop_at_layer=engine.cfg.n_layers)
    assert resid.mean(-1).abs().max() < 1e-14
    assert engine.forward(tokens, stop_at_layer=engine.cfg.n_layers).mean(-1).abs().max() > 0.01


@on([name for name in ALL if name not in CAPPED])
def test_a_centred_unembedding_changes_no_log_probability(engine, tokens):
    logits = engine.processed(center_unembed=True).forward(tokens)
    before = engine.forward(tokens)
    torch.testing.assert_close(logits.log_softmax(-1), before.log_softmax(-1), rtol=0, atol=1e-12)
    assert logits.mean(-1).abs().max() < 1e-12
    assert before.mean(-1).abs().max() > 0.01


@on(ALL)
def test_value_biases_move_into_the_output_bias(engine, tokens):
    folded = engine.processed(fold_value_biases=True)
    torch.testing.assert_close(folded.forward(tokens), engine.forward(tokens), **floor(engine))
    assert folded.stacked_weight("attn.b_V").abs().max() == 0
    b_V, W_O, b_O = (engine.stacked_weight(f"attn.{name}") for name in ("b_V", "W_O", "b_O"))
    expected = b_O + torch.einsum("lhk,lhkd->ld", b_V, W_O)
    torch.testing.assert_close(folded.stacked_weight("attn.b_O"), expected, rtol=0, atol=1e-14)


@on(["gpt2"])
def test_refactored_heads_are_the_same_products_in_orthogonal_factors(engine, tokens):
    refactored = engine.processed(refactor_factored_attn_matrices=True)
    torch.testing.assert_close(refactored.forward(tokens), engine.forward(tokens), **floor(engine))
    W_Q, W_K, W_V, W_O = (refactored.stacked_weight(f"attn.W_{name}") for name in "QKVO")
    old_V, old_O = engine.stacked_weight("attn.W_V"), engine.stacked_weight("attn.W_O")
    torch.testing.assert_close(W_V @ W_O, old_V @ old_O, rtol=0, atol=1e-12)
    torch.testing.assert_close(W_O @ W_O.mT, torch.eye(8, dtype=torch.float64).expand(3, 6, 8, 8), rtol=0, atol=1e-12)
    with_bias = [
        torch.cat([W, refactored.stacked_weight(f"attn.b_{name}")[:, :, None]], 2)
        for W, name in ((W_Q, "Q"), (W_K, "K"))
    ]
    gram_Q, gram_K = (W.mT @ W for W in with_bias)  # diagonal, and the same
    torch.testing.assert_close(gram_Q, gram_K, rtol=0, atol=1e-12)
    assert (gram_Q - torch.diag_embed(gram_Q.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-12


@on(["gpt2"])
def test_every_option_at_once(engine, tokens):
    options = dict.fromkeys(
        ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices"),
        True,
    )
    everything = engine.processed(**options)
    before, after = (e.forward(tokens).log_softmax(-1) for e in (engine, everything))
    torch.testing.assert_close(after, before, **floor(engine))


@on(ALL)
def test_processing_nothing_shares_every_weight_and_leaves_the_original(engine, tokens):
    logits = engine.forward(tokens)
    same = engine.processed()
    assert same.hash == engine.hash
    assert torch.equal(same.forward(tokens), logits)
    for name in ("blocks.0.attn.W_Q", "blocks.1.mlp.W_out", "unembed.W_U"):
        assert same.weight(name).data_ptr() == engine.weight(name).data_ptr()
    folded = engine.processed(fold_ln=True, fold_value_biases=True)
    assert folded.hash != engine.hash
    assert folded.weight("blocks.1.mlp.W_out").data_ptr() == engine.weight("blocks.1.mlp.W_out").data_ptr()
    assert torch.equal(engine.forward(tokens), logits)


@on(["qwen2", "gemma2"])
@pytest.mark.parametrize(
    ("option", "why"),
    [("center_writing_weights", "only LayerNorm"), ("refactor_factored_attn_matrices", "with rotary positions")],
)
def test_an_option_that_would_make_another_model_is_refused(engine, option, why):
    with pytest.raises(introspect.ConfigError, match=f"{option} is not possible here: {why}"):
        engine.processed(**{option: True})


@on(CAPPED)
def test_a_capped_unembedding_is_not_centred(engine):
    with pytest.raises(introspect.ConfigError, match="center_unembed is not possible here: a soft cap"):
        engine.processed(center_unembed=True)


@on(["qwen2"])
def test_bfloat16_weights_are_folded_in_float32(engine, tmp_path):
    folder = write_tiny_transformers(tmp_path / "m", "qwen2")
    model = introspect.load_model(folder, dtype=torch.bfloat16).native
    folded = model.processed(fold_ln=True)
    assert folded.dtype == torch.bfloat16
    exact = model.weight("blocks.0.ln1.w").double()[:, None] * model.weight("blocks.0.attn.W_Q").double()
    assert torch.equal(folded.weight("blocks.0.attn.W_Q"), exact.bfloat16())
