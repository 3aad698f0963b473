"""Weights under TransformerLens's names and in its shapes, against the files they were read from."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIG, write_tiny, write_tiny_transformers

import introspect

H, G, L, D = (CONFIG[k] for k in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "hidden_size"))
K = D // H


@pytest.fixture(scope="module", params=["Qwen2ForCausalLM", "LlamaForCausalLM"])
def folder(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "m", request.param)


@pytest.fixture(scope="module")
def engine(folder):
    return introspect.load_model(folder, dtype=torch.float64).native


@pytest.fixture(scope="module")
def stored(folder):
    return load_file(folder / "model.safetensors")


def heads(rows, n):
    """nn.Linear's [n * d_head, d_model] as [n, d_model, d_head]."""
    return rows.view(n, -1, rows.shape[-1]).transpose(1, 2)


@pytest.mark.parametrize("layer", range(L))
def test_the_weights_of_a_block_are_those_of_the_file(engine, stored, layer):
    prefix = f"model.layers.{layer}."
    mlp, attn = prefix + "mlp.", prefix + "self_attn."
    expected = {
        "ln1.w": stored[prefix + "input_layernorm.weight"],
        "ln2.w": stored[prefix + "post_attention_layernorm.weight"],
        "attn.W_Q": heads(stored[attn + "q_proj.weight"], H),
        "attn._W_K": heads(stored[attn + "k_proj.weight"], G),
        "attn._W_V": heads(stored[attn + "v_proj.weight"], G),
        "attn.W_K": heads(stored[attn + "k_proj.weight"], G).repeat_interleave(H // G, 0),
        "attn.W_V": heads(stored[attn + "v_proj.weight"], G).repeat_interleave(H // G, 0),
        "attn.W_O": stored[attn + "o_proj.weight"].T.reshape(H, K, D),
        "mlp.W_gate": stored[mlp + "gate_proj.weight"].T,
        "mlp.W_in": stored[mlp + "up_proj.weight"].T,
        "mlp.W_out": stored[mlp + "down_proj.weight"].T,
    }
    for name, value in expected.items():
        assert torch.equal(engine.weight(f"blocks.{layer}.{name}"), value), name


def test_biases_are_those_of_the_file_and_zero_where_there_are_none(engine, stored):
    def bias(name, n):
        found = stored.get(f"model.layers.1.self_attn.{name}_proj.bias")
        return torch.zeros(n, K, dtype=torch.float64) if found is None else found.view(n, K)

    assert torch.equal(engine.weight("blocks.1.attn.b_Q"), bias("q", H))
    assert torch.equal(engine.weight("blocks.1.attn._b_K"), bias("k", G))
    assert torch.equal(engine.weight("blocks.1.attn.b_K"), bias("k", G).repeat_interleave(H // G, 0))
    assert torch.equal(engine.weight("blocks.1.attn.b_V"), bias("v", G).repeat_interleave(H // G, 0))
    for name, size in [("attn.b_O", D), ("mlp.b_in", 48), ("mlp.b_out", D)]:
        assert torch.equal(engine.weight(f"blocks.0.{name}"), torch.zeros(size, dtype=torch.float64))
    assert torch.equal(engine.weight("unembed.b_U"), torch.zeros(101, dtype=torch.float64))


def test_the_weights_outside_of_blocks(engine, stored):
    assert torch.equal(engine.weight("embed.W_E"), stored["model.embed_tokens.weight"])
    assert torch.equal(engine.weight("unembed.W_U"), stored["lm_head.weight"].T)
    assert torch.equal(engine.weight("ln_final.w"), stored["model.norm.weight"])


def test_weights_act_on_activations_from_the_right(folder):
    model = introspect.load_model(folder, dtype=torch.float64)
    tokens = torch.arange(12).view(2, 6)
    cache = model.run_with_cache(tokens)[1]
    weight = {n: model.native.weight(f"blocks.2.{n}") for n in ("ln1.w", "attn.W_Q", "attn.b_Q", "attn.W_O")}
    x = cache["blocks.2.ln1.hook_normalized"] * weight["ln1.w"]
    q = torch.einsum("btd,hdk->bthk", x, weight["attn.W_Q"]) + weight["attn.b_Q"]
    torch.testing.assert_close(q, cache["blocks.2.attn.hook_q"], rtol=0, atol=1e-12)
    out = torch.einsum("bthk,hkd->btd", cache["blocks.2.attn.hook_z"], weight["attn.W_O"])
    torch.testing.assert_close(out, cache["blocks.2.hook_attn_out"], rtol=0, atol=1e-12)


def test_stacked_weights_have_the_blocks_first(engine):
    for name, shape in [
        ("attn.W_Q", (L, H, D, K)),
        ("attn.W_K", (L, H, D, K)),
        ("attn._W_K", (L, G, D, K)),
        ("attn.W_O", (L, H, K, D)),
        ("mlp.W_out", (L, 48, D)),
        ("mlp.b_in", (L, 48)),
    ]:
        stacked = engine.stacked_weight(name)
        assert stacked.shape == shape
        assert torch.equal(stacked[1], engine.weight(f"blocks.1.{name}"))


def test_what_the_model_has_is_a_view_and_a_stack_is_not(engine):
    view = engine.weight("blocks.0.attn.W_Q")
    assert view.data_ptr() == engine.weight("blocks.0.attn.W_Q").data_ptr()
    assert engine.weight("blocks.0.attn._W_K").untyped_storage().data_ptr() == view.untyped_storage().data_ptr()
    assert engine.stacked_weight("attn.W_Q").untyped_storage().data_ptr() != view.untyped_storage().data_ptr()


def test_every_name_that_is_listed_has_a_weight(engine):
    names = engine.weight_names()
    assert len(set(names)) == len(names)
    assert {"embed.W_E", "blocks.0.ln1.w", "blocks.2.attn._W_K", "ln_final.w", "unembed.b_U"} <= set(names)
    assert not {"pos_embed.W_pos", "blocks.0.attn.W_K", "blocks.0.ln1.b"} & set(names)
    assert all(engine.weight(name).numel() > 0 for name in names)


@pytest.mark.parametrize(
    "name", ["", "W_E", "pos_embed.W_pos", "blocks.3.attn.W_Q", "blocks.-1.attn.W_Q", "blocks.0", "blocks.0.attn.W_X",
             "blocks.0.attn.q_norm.w", "blocks.x.attn.W_Q", "blocks.0.ln1.b"],
)  # fmt: skip
def test_a_name_the_model_does_not_have_is_an_error(engine, name):
    with pytest.raises(ValueError, match="has no"):
        engine.weight(name)


def test_a_stack_of_a_name_no_block_has_is_an_error(engine):
    with pytest.raises(ValueError, match="blocks have no"):
        engine.stacked_weight("W_Q")


FAMILIES = ["qwen3 biases", "llama", "gemma2", "gemma3 layer types", "gpt2", "gpt_neox", "phi3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_weights_act_on_activations_from_the_right(family, tmp_path):
    model = introspect.load_model(write_tiny_transformers(tmp_path / "m", family), dtype=torch.float64)
    engine, cfg = model.native, model.cfg
    cache = model.run_with_cache(torch.arange(12).view(2, 6))[1]
    names = engine.weight_names()

    def normed(norm):
        x = cache[f"{norm}.hook_normalized"] * engine.weight(f"{norm}.w")
        return x + engine.weight(f"{norm}.b") if f"{norm}.b" in names else x

    def close(got, name):
        # Gemma's norms are float32 times a float32 weight, which is rounded before the product here sees it.
        torch.testing.assert_close(got, cache[name], rtol=0, atol=1e-5 if cfg.norm_weight_offset else 1e-12)

    close(engine.weight("embed.W_E")[torch.arange(12).view(2, 6)], "hook_embed")
    if "pos_embed.W_pos" in names:
        close(engine.weight("pos_embed.W_pos")[:6].expand(2, 6, -1), "hook_pos_embed")
    for block in ("blocks.0", "blocks.2"):
        x = normed(f"{block}.ln1")
        for letter, k in (("Q", ""), ("K", "_"), ("V", "_")):
            W, b = (engine.weight(f"{block}.attn.{k}{kind}_{letter}") for kind in "Wb")
            close(torch.einsum("btd,hdk->bthk", x, W) + b, f"{block}.attn.hook_{letter.lower()}")
        x = normed(f"{block}.ln2")
        post = cache[f"{block}.mlp.hook_post"]
        if cfg.gated_mlp:
            close(
                x @ engine.weight(f"{block}.mlp.W_in") + engine.weight(f"{block}.mlp.b_in"),
                f"{block}.mlp.hook_pre_linear",
            )
            gate = x @ engine.weight(f"{block}.mlp.W_gate")
            if f"{block}.mlp.b_gate" in names:
                gate = gate + engine.weight(f"{block}.mlp.b_gate")
            close(gate, f"{block}.mlp.hook_pre")
        else:
            close(x @ engine.weight(f"{block}.mlp.W_in") + engine.weight(f"{block}.mlp.b_in"), f"{block}.mlp.hook_pre")
        if not cfg.use_normalization_before_and_after:
            z = cache[f"{block}.attn.hook_z"]
            attn = torch.einsum("bthk,hkd->btd", z, engine.weight(f"{block}.attn.W_O"))
            close(attn + engine.weight(f"{block}.attn.b_O"), f"{block}.hook_attn_out")
            close(
                post @ engine.weight(f"{block}.mlp.W_out") + engine.weight(f"{block}.mlp.b_out"),
                f"{block}.hook_mlp_out",
            )
    close(normed("ln_final") @ engine.weight("unembed.W_U") + engine.weight("unembed.b_U"), "unembed.hook_out")
