"""Models of random weights from TransformerLens's config: what they compute, how they begin, and that they learn."""

import copy
import math

import pytest
import torch
from tiny import tiny_transformers, write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect
from introspect import HookedTransformer, HookedTransformerConfig

SIZES = {"n_layers": 2, "d_model": 24, "n_ctx": 16, "d_head": 6, "d_vocab": 31, "d_mlp": 20, "dtype": torch.float64}
TOKENS = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(0))
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: the same sums in another order


def config(**fields):
    return HookedTransformerConfig(**{**SIZES, "act_fn": "gelu", "device": "cpu", "seed": 5, **fields})


def randomised(model, seed=1):
    """The same model with biases and norms that are not what they begin with."""
    rng = torch.Generator().manual_seed(seed)
    state = {
        name: tensor if "W_" in name else tensor + torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype) * 0.3
        for name, tensor in model.state_dict().items()
    }
    for name in [name for name in state if name.endswith((".mlp.b_gate",))]:
        state[name] = torch.zeros_like(state[name])
    model.load_state_dict(state)
    return model


def forward_by_hand(state, cfg, tokens):
    """A GPT-2-like decoder written down from its definition, weights in TransformerLens's shapes."""

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + cfg.eps).sqrt()
        return x * state[f"{name}.w"] + state[f"{name}.b"]

    x = state["embed.W_E"][tokens] + state["pos_embed.W_pos"][: tokens.shape[1]]
    future = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}."
        heads = {}
        for kind in "QKV":
            W, b = state[f"{at}attn.W_{kind}"], state[f"{at}attn.b_{kind}"]
            heads[kind] = torch.einsum("btd,hdk->bhtk", norm(x, at + "ln1"), W) + b[:, None]
        scores = heads["Q"] @ heads["K"].mT / math.sqrt(cfg.d_head)
        pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
        z = pattern @ heads["V"]
        x = x + torch.einsum("bhtk,hkd->btd", z, state[at + "attn.W_O"]) + state[at + "attn.b_O"]
        hidden = torch.nn.functional.gelu(norm(x, at + "ln2") @ state[at + "mlp.W_in"] + state[at + "mlp.b_in"])
        x = x + hidden @ state[at + "mlp.W_out"] + state[at + "mlp.b_out"]
    return norm(x, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


def test_a_new_model_computes_what_its_config_says():
    model = randomised(HookedTransformer(config()))
    assert (model.cfg.n_heads, model.cfg.d_mlp, model.cfg.act_fn) == (4, 20, "gelu")
    with torch.no_grad():
        expected = forward_by_hand(model.state_dict(), model.cfg, TOKENS)
        torch.testing.assert_close(model(TOKENS), expected, **FLOOR)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu", "n_heads": 6, "eps": 1e-6,
                   "d_head": 10, "n_key_value_heads": 2, "rotary_base": 10000.0, "use_attn_scale": True}),
        ("gpt_neox", {"parallel_attn_mlp": True, "n_heads": 6, "d_head": 8, "rotary_dim": 4, "eps": 1e-5}),
        ("gpt_neox sequential", {"n_heads": 6, "d_head": 8, "rotary_base": 100, "eps": 1e-5}),
    ],
)  # fmt: skip
def test_rotary_models_compute_what_transformers_does(name, fields):
    theirs = tiny_transformers(name)
    wide = {"n_layers": 3, "d_model": 48, "n_ctx": 64, "d_vocab": 101, "d_mlp": 52}
    cfg = config(**{**wide, "positional_embedding_type": "rotary", **fields})
    model = HookedTransformer(cfg)
    reference = HookedTransformer.from_pretrained(name, hf_model=theirs, dtype="float64")
    state = reference.state_dict()
    state["unembed.b_U"] = torch.zeros(101, dtype=torch.float64)
    model.load_state_dict(state)
    tokens = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)  # its norms are float32


# How weights begin


def drawn_in_order(shapes, seed, std):
    torch.manual_seed(seed)
    return [torch.empty(shape, dtype=torch.float64).normal_(std=std) for shape in shapes]


def test_weights_are_drawn_as_transformer_lens_draws_them():
    """Its modules declare embed, pos_embed, then by block W_Q, W_O, W_K, W_V, W_in and W_out, then unembed."""
    model = HookedTransformer(config())
    block = [(4, 24, 6), (4, 6, 24), (4, 24, 6), (4, 24, 6), (24, 20), (20, 24)]
    expected = drawn_in_order([(31, 24), (16, 24), *block, *block, (24, 31)], 5, 0.8 / math.sqrt(24))
    names = ["embed.W_E", "pos_embed.W_pos"]
    for layer in range(2):
        names += [f"blocks.{layer}.attn.{w}" for w in ("W_Q", "W_O", "W_K", "W_V")]
        names += [f"blocks.{layer}.mlp.{w}" for w in ("W_in", "W_out")]
    state = model.state_dict()
    for name, tensor in zip([*names, "unembed.W_U"], expected, strict=True):
        torch.testing.assert_close(state.pop(name), tensor, rtol=0, atol=0, msg=name)
    assert {name.rsplit(".", 1)[1] for name in state} == {"w", "b", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U"}
    assert all(torch.equal(t, torch.full_like(t, name.endswith(".w"))) for name, t in state.items())


@pytest.mark.parametrize(
    ("mode", "of_W_Q", "of_W_in", "of_W_U"),
    [  # variances by fan in and out: [heads, in, out] has in and heads x out; muP takes unembed for an embedding
        ("gpt2", 0.64 / 64, 0.64 / 64, 0.64 / 64),
        ("xavier_normal", 2 / (64 + 128), 2 / (64 + 256), 2 / (64 + 999)),
        ("xavier_uniform", 2 / (64 + 128), 2 / (64 + 256), 2 / (64 + 999)),
        ("kaiming_normal", 2 / 64, 2 / 64, 2 / 64),
        ("kaiming_uniform", 2 / 64, 2 / 64, 2 / 64),
        ("muP", 1 / 64, 1 / 64, 1.0),
    ],
)
def test_init_modes_have_the_spread_of_their_definitions(mode, of_W_Q, of_W_in, of_W_U):
    sizes = {"d_model": 64, "d_head": 16, "n_heads": 8, "d_mlp": 256, "d_vocab": 999}
    model = HookedTransformer(config(**sizes, init_mode=mode))
    for tensor, variance in (
        (model.blocks[0].attn.W_Q, of_W_Q),
        (model.blocks[1].mlp.W_in, of_W_in),
        (model.W_U, of_W_U),
    ):
        assert float(tensor.detach().var()) == pytest.approx(variance, rel=0.08)  # of 8,192 numbers and more
        if "uniform" in mode:
            assert float(tensor.detach().abs().max()) <= math.sqrt(3 * variance)


def test_a_seed_repeats_the_weights_and_init_weights_draws_again():
    one, other = HookedTransformer(config()), HookedTransformer(config())
    assert torch.equal(one.W_E, other.W_E)
    assert not torch.equal(one.W_E, HookedTransformer(config(seed=6)).W_E)
    other.load_state_dict({name: 2 * t for name, t in other.state_dict().items()})
    other.init_weights()
    assert torch.equal(one.W_Q, other.W_Q)


def test_without_init_weights_everything_is_zero():
    state = HookedTransformer(config(init_weights=False)).state_dict()
    assert not any(tensor.any() for name, tensor in state.items() if "W_" in name)


def test_a_model_is_made_of_a_dict_and_of_another_models_cfg(tmp_path):
    of_dict = HookedTransformer({**SIZES, "act_fn": "silu", "n_heads": 3, "device": "cpu"})
    assert of_dict.cfg.n_heads == 3 and of_dict.cfg.d_vocab_out == 31
    loaded = HookedTransformer.from_pretrained(write_tiny_transformers(tmp_path / "tiny", "qwen3"))
    new = HookedTransformer(loaded.cfg)
    assert new.state_dict().keys() - {"unembed.b_U"} == loaded.state_dict().keys() - {"unembed.b_U"}
    assert float(new.W_E.detach().std()) == pytest.approx(0.8 / math.sqrt(48), rel=0.05)


def test_the_vocabulary_is_as_large_as_the_tokenizers(tmp_path):
    tokenizer = introspect.load_model(write_tiny_chat(tmp_path / "tiny")).tokenizer
    fields = {**SIZES, "act_fn": "gelu", "device": "cpu", "d_vocab": -1}
    model = HookedTransformer(fields, tokenizer=_face(tokenizer))
    assert model.cfg.d_vocab == tokenizer.vocab_size and model("a cat").shape[-1] == tokenizer.vocab_size
    named = HookedTransformer({**fields, "tokenizer_name": str(tmp_path / "tiny")})
    assert named.to_tokens("a cat").tolist() == model.to_tokens("a cat").tolist()
    with pytest.raises(introspect.ConfigError, match="d_vocab"):
        HookedTransformer(fields)


def _face(tokenizer):
    from introspect.hub.tokenizer_adapter import TokenizerAdapter

    return TokenizerAdapter(tokenizer, name_or_path="tiny", n_ctx=16)


def test_a_new_model_learns_with_torchs_optimisers():
    """A sequence of period three, of which two tokens tell the third: the loss goes far below that of guessing."""
    model = HookedTransformer(config(dtype=torch.float32))
    tokens = torch.tensor([[3, 7, 11] * 5, [2, 5, 9] * 5])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model(tokens, return_type="loss").item()
    assert first == pytest.approx(math.log(31), abs=1.0)
    before = model.W_E.detach().clone()
    for _ in range(40):
        loss = model(tokens, return_type="loss")
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 0.2 * first
    assert not torch.equal(before, model.W_E)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_norms_without_weights_do_not_learn():
    model = HookedTransformer(config(normalization_type="LNPre"))
    learns = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert model.cfg.normalization_type == "LNPre" and learns
    assert not any("ln" in name for name in learns)


def test_a_state_dict_of_norms_without_weights_is_loaded():
    """As TransformerLens writes it: no weights of norms, and the masks of attention."""
    model = HookedTransformer(config(normalization_type="LNPre"))
    state = {name: 2 * tensor for name, tensor in model.state_dict().items() if "ln" not in name}
    state |= {"blocks.0.attn.mask": torch.ones(16, 16).bool(), "blocks.0.attn.IGNORE": torch.tensor(-torch.inf)}
    keys = model.load_state_dict(state)
    assert keys.missing_keys == [] == keys.unexpected_keys
    assert torch.equal(model.W_Q, torch.stack([state[f"blocks.{layer}.attn.W_Q"] for layer in range(2)]))
    assert torch.equal(model.blocks[0].ln1.w, torch.ones(24, dtype=torch.float64))
    with pytest.raises(introspect.ConfigError, match=r"missing blocks\.0\.ln1\.w"):
        HookedTransformer(config()).load_state_dict(state)


def test_a_gated_state_dict_of_transformer_lens_has_no_bias_of_the_gate():
    model = HookedTransformer(config(normalization_type="RMS", gated_mlp=True, act_fn="silu"))
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("b_gate")}
    model.load_state_dict({**state, "blocks.1.mlp.W_gate": 2 * state["blocks.1.mlp.W_gate"]})
    assert torch.equal(model.blocks[1].mlp.W_gate, 2 * state["blocks.1.mlp.W_gate"])
    assert not model.blocks[1].mlp.b_gate.any()
    with pytest.raises(introspect.ConfigError, match=r"mlp\.b_in is not zero, and is added before the gate"):
        model.load_state_dict({**state, "blocks.0.mlp.b_in": state["blocks.0.mlp.b_in"] + 1})


# The config


def test_a_config_fills_in_what_follows_from_the_rest():
    cfg = HookedTransformerConfig(3, 64, 128, 16, act_fn="gelu", d_vocab=10, positional_embedding_type="rotary")
    assert (cfg.n_layers, cfg.d_model, cfg.n_ctx, cfg.d_head) == (3, 64, 128, 16)
    assert (cfg.n_heads, cfg.d_mlp, cfg.rotary_dim, cfg.d_vocab_out) == (4, 256, 16, 10)
    assert cfg.initializer_range == pytest.approx(0.1) and cfg.attn_scale == 4.0
    assert cfg.n_params == 3 * (4 * 64 * 16 * 4 + 2 * 64 * 256)
    assert HookedTransformerConfig.unwrap(cfg) is cfg
    assert HookedTransformerConfig.from_dict(cfg.to_dict()) == cfg == copy.deepcopy(cfg)
    assert "d_model=64" in repr(cfg)
    with pytest.warns(UserWarning, match="no multiple"):
        assert HookedTransformerConfig(1, 64, 8, 10, act_fn="gelu").n_heads == 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_layer": 2}, "no field 'n_layer'"),
        ({"act_fn": None}, "act_fn must be given"),
        ({"n_layers": 0}, "n_layers must be a positive int, got 0"),
        ({"d_model": "12"}, "d_model must be a positive int, got '12'"),
        ({"use_local_attn": True}, "window_size"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_at_once(fields, words):
    with pytest.raises(introspect.ConfigError, match=words):
        config(**fields)
    with pytest.raises(introspect.ConfigError, match="n_ctx, d_head must be given"):
        HookedTransformerConfig(n_layers=1, d_model=8)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attn_only": True, "act_fn": None}, "attn_only=True is not supported"),
        ({"act_fn": "solu_ln"}, "act_fn='solu_ln' is not supported"),
        ({"act_fn": "relu"}, "act_fn='relu' is not supported"),
        ({"normalization_type": None}, "normalization_type=None is not supported"),
        ({"positional_embedding_type": "shortformer"}, "positional_embedding_type='shortformer' is not supported"),
        ({"attention_dir": "bidirectional"}, "attention_dir='bidirectional' is not supported"),
        ({"num_experts": 4, "experts_per_token": 2}, "num_experts=4 is not supported"),
        ({"d_vocab_out": 2}, "d_vocab_out must be d_vocab = 31, got 2"),
        ({"init_mode": "normal"}, "init_mode must be one of gpt2"),
        ({"n_heads": 5, "n_key_value_heads": 2}, "n_heads"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"post_embedding_ln": True}, "post_embedding_ln=True"),
        ({"n_devices": 2}, "n_devices=2"),
    ],
)
def test_what_the_engine_does_not_run_is_said_by_its_field(fields, words):
    with pytest.raises(introspect.ConfigError, match=words):
        HookedTransformer(config(**fields))


def test_a_name_is_not_taken_for_a_config():
    with pytest.raises(TypeError, match="from_pretrained loads a model by its name"):
        HookedTransformer("gpt2-small")


def test_native_configs_say_what_they_do_not_take():
    json = HookedTransformer(config()).native.cfg.to_json()
    with pytest.raises(introspect.ConfigError, match="no field 'width'"):
        introspect._C.Config.from_json(json.replace('"d_model"', '"width"'))
    with pytest.raises(introspect.ConfigError, match="d_model has the wrong type"):
        introspect._C.Config.from_json(json.replace('"d_model":24', '"d_model":24.5'))
    with pytest.raises(introspect.ConfigError, match="d_head"):
        introspect._C.Config.from_json(json.replace('"d_head":6', '"d_head":-6'))
    assert introspect._C.Config.from_json(json).to_json() == json
