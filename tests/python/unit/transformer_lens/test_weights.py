"""Weights under TransformerLens's names, on tiny random models in float64: they compute what the model computes."""

import json

import pytest
import torch
from lens import FLOOR, cache_for, load
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, write_tiny, write_tiny_transformers

import introspect
from introspect import FactoredMatrix

WITH_BOS = {
    "GptOssForCausalLM",
    "LlamaForCausalLM",
    "MixtralForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "MistralForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GPT2LMHeadModel",
    "Phi3ForCausalLM",
}


def test_weights_compute_what_the_model_computes(model, tokens):
    c = model.cfg
    _, cache = model.run_with_cache(tokens)
    for layer in range(c.n_layers):
        normalized = cache["normalized", layer, "ln1"] * model.blocks[layer].ln1.w
        q = torch.einsum("bpd,hdk->bphk", normalized, model.W_Q[layer]) + model.b_Q[layer]
        torch.testing.assert_close(q, cache["q", layer], **FLOOR)
        v = torch.einsum("bpd,hdk->bphk", normalized, model.W_V[layer]) + model.b_V[layer]
        repeated = cache["v", layer].repeat_interleave(c.n_heads // c.n_key_value_heads, 2)
        torch.testing.assert_close(v, repeated, **FLOOR)
        out = torch.einsum("bphk,hkd->bpd", cache["z", layer], model.W_O[layer]) + model.b_O[layer]
        torch.testing.assert_close(out, cache["attn_out", layer], **FLOOR)
        mlp = cache["post", layer] @ model.W_out[layer] + model.b_out[layer]
        torch.testing.assert_close(mlp, cache["mlp_out", layer], **FLOOR)
    assert model.W_E.shape == (c.d_vocab, c.d_model)
    assert model.W_U.shape == (c.d_model, c.d_vocab)
    assert model.W_gate.shape == model.W_in.shape == (c.n_layers, c.d_model, c.d_mlp)
    assert set(model.state_dict()) == set(model.native.weight_names())
    with pytest.raises(introspect.ConfigError, match="rotary"):
        _ = model.W_pos


def test_grouped_heads_are_heads_with_repeated_keys_and_values(tmp_path, tokens):
    """The same model written with a key and value head of its own for each query head."""
    folder = write_tiny(tmp_path / "grouped", "LlamaForCausalLM")
    grouped, weights = load(folder), load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weight.view(2, 8, -1).repeat_interleave(2, 0).reshape(32, -1).contiguous()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 4}))
    save_file(weights, folder / "model.safetensors")
    full = load(folder)
    torch.testing.assert_close(grouped(tokens), full(tokens), **FLOOR)
    for name in ("W_K", "W_V", "b_K", "b_V", "W_Q", "W_O"):
        assert torch.equal(getattr(grouped, name), getattr(full, name))
    for mode in ("Q", "K", "V"):
        torch.testing.assert_close(grouped.all_composition_scores(mode), full.all_composition_scores(mode), **FLOOR)
    few, many = (model.run_with_cache(tokens)[1] for model in (grouped, full))
    assert (few["k", 1].shape[2], many["k", 1].shape[2]) == (2, 4)
    torch.testing.assert_close(few["pattern", 1], many["pattern", 1], **FLOOR)


def test_circuits_of_grouped_heads(model):
    assert model.cfg.n_key_value_heads < model.cfg.n_heads
    for circuit, expected in ((model.QK, model.W_Q @ model.W_K.mT), (model.OV, model.W_V @ model.W_O)):
        assert isinstance(circuit, FactoredMatrix)
        torch.testing.assert_close(circuit.AB, expected, **FLOOR)
    norm = torch.linalg.matrix_norm
    for mode, right in (("Q", model.QK.AB), ("K", model.QK.AB.mT), ("V", model.OV.AB)):
        scores = model.all_composition_scores(mode)
        L, R = model.OV.AB[0, 1], right[2, 3]
        torch.testing.assert_close(scores[0, 1, 2, 3], norm(L @ R) / norm(L) / norm(R), **FLOOR)
        assert not scores[1, :, :2].any()
    with pytest.raises(ValueError, match="mode"):
        model.all_composition_scores("O")
    assert model.all_head_labels()[5] == "L1H1"


def test_directions_and_biases(chat):
    cat, no = chat.to_single_token(" cat"), chat.to_single_token(" no")
    directions = chat.tokens_to_residual_directions(torch.tensor([[cat, no], [no, cat]]))
    assert directions.shape == (2, 2, chat.cfg.d_model)
    for given in (" cat", cat, torch.tensor(cat), torch.tensor([cat])):
        assert torch.equal(chat.tokens_to_residual_directions(given), chat.W_U[:, cat])
    assert torch.equal(directions[0, 1], chat.W_U[:, no])
    assert not chat.accumulated_bias(2, mlp_input=True).any()  # Qwen2 has biases of q, k and v only


def test_gradients_of_weights_are_there_when_asked_for(folder, tokens):
    model = load(folder)
    name = "blocks.1.hook_resid_post"
    with model.hooks(bwd_hooks=[(name, lambda g, hook: None)]):
        model(tokens, return_type="loss").backward()
    assert all(weight.grad is None for weight in model.parameters())
    model.requires_grad_(True)
    model(tokens, return_type="loss").backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    step = 1e-3  # norms are computed in float32: a smaller one drowns in their rounding
    weight = dict(model.named_parameters())["blocks.1.mlp.W_out"]
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for sign in (1, -2):
        with torch.no_grad():
            weight += sign * step * direction
        losses.append(model(tokens, return_type="loss").item())
    expected = (losses[0] - losses[1]) / (2 * step)
    assert abs(expected) > 0.1
    assert float((gradients["blocks.1.mlp.W_out"] * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    model.zero_grad()
    model.requires_grad_(False)
    assert not model(tokens).requires_grad


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_answers_to_the_same_names(name, tmp_path, rng):
    model = load(write_tiny_transformers(tmp_path / "tiny", name))
    c, tokens = model.cfg, torch.randint(3, 100, (2, 9), generator=rng)
    assert c.default_prepend_bos is (c.original_architecture in WITH_BOS)
    loss, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    assert loss.isfinite()
    assert all(value.isfinite().all() for value in cache.values() if value.ndim == 3)
    assert cache["blocks.0.hook_resid_pre_grad"].shape == (2, 9, c.d_model)
    logits = model(tokens)
    # within the rounding of norms, which are computed in float32
    torch.testing.assert_close(model(model(tokens, stop_at_layer=1), start_at_layer=1), logits, rtol=0, atol=1e-5)
    past = cache_for(model, 2)
    parts = [model(part, past_kv_cache=past) for part in tokens.split([4, 5], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), logits, rtol=0, atol=1e-5)
    z = cache["z", 2].reshape(2, 9, -1) @ model.W_O[2].flatten(0, 1) + model.b_O[2]
    if not c.use_normalization_before_and_after and not c.use_normalization_after_only:
        torch.testing.assert_close(z, cache["attn_out", 2], rtol=0, atol=1e-5)
    assert model.QK.shape == model.OV.shape == (c.n_layers, c.n_heads, c.d_model, c.d_model)
    assert model.all_composition_scores("V").isfinite().all()
    batch = model.generate(tokens, 4, do_sample=False, stop_at_eos=False, verbose=False)
    alone = model.generate(tokens[1:], 4, do_sample=False, stop_at_eos=False, verbose=False)
    assert batch[1].tolist() == alone[0].tolist()
