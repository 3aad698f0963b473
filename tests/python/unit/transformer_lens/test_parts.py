"""Parts, modules, weights and streams of a HookedTransformer under TransformerLens's names."""

import pytest
import torch
from tiny import ARCHITECTURES, write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect
from introspect import HookedTransformer

EXACT = {"rtol": 0, "atol": 0}
FLOOR = {"rtol": 0, "atol": 1e-9}
TOKENS = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(0))
FAMILIES = ["qwen2", "gpt2", "gemma2", "gpt_neox"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("model") / "tiny", request.param)
    return HookedTransformer.from_pretrained(folder, dtype="float64")


@pytest.fixture
def chat(tmp_path):
    return HookedTransformer(introspect.load_model(write_tiny_chat(tmp_path / "chat"), dtype=torch.float64))


def test_every_module_is_listed_before_what_is_in_it(model):
    listed = model.mod_dict
    names = list(listed)
    assert set(model.hook_dict) <= set(names)
    for name in names:
        for n in range(1, name.count(".") + 1):
            assert names.index(".".join(name.split(".")[:n])) < names.index(name)
    assert {
        "embed",
        "blocks",
        "blocks.0",
        "blocks.1.attn",
        "blocks.2.mlp",
        "blocks.0.ln1",
        "ln_final",
        "unembed",
    } <= set(names)
    assert listed["blocks.1.attn.hook_z"] is model.hook_dict["blocks.1.attn.hook_z"]
    assert torch.equal(listed["blocks.1.attn"].W_O, model.W_O[1]) and len(listed["blocks"]) == model.cfg.n_layers
    assert [name for name, _ in model.named_modules()] == ["", *names]
    assert [name for name, _ in model.named_children()] == [name for name in names if "." not in name]
    assert len(list(model.modules())) == len(names) + 1 and next(model.modules()) is model


def test_attention_has_its_circuits(model):
    for layer in range(model.cfg.n_layers):
        attn = model.blocks[layer].attn
        torch.testing.assert_close(attn.OV.AB, attn.W_V @ attn.W_O, **EXACT)
        torch.testing.assert_close(attn.QK.AB, attn.W_Q @ attn.W_K.mT, **EXACT)
        assert attn.OV.AB.shape == (model.cfg.n_heads, model.cfg.d_model, model.cfg.d_model)


def test_the_residual_of_an_input_can_be_run_on(model):
    resid, tokens, none, mask = model.input_to_embed(TOKENS)
    assert none is None and mask is None and torch.equal(tokens, TOKENS)
    torch.testing.assert_close(model(resid, start_at_layer=0), model(TOKENS), **FLOOR)
    given = torch.ones_like(TOKENS)
    given[0, :3] = 0
    resid, _, _, mask = model.input_to_embed(TOKENS, attention_mask=given)
    assert torch.equal(mask, given)
    masked = model(resid, start_at_layer=0, attention_mask=mask)
    torch.testing.assert_close(masked[0, 3:], model(TOKENS[:1, 3:])[0], **FLOOR)


# Weights


def test_a_state_dict_goes_into_another_model(model):
    other = HookedTransformer(model.native)
    state = {
        name: torch.randn(t.shape, dtype=t.dtype) if ".W_" in name else t.clone()
        for name, t in model.state_dict().items()
    }
    if model.native.cfg.tie_word_embeddings:
        state["embed.W_E"] = state["unembed.W_U"].T * model.native.cfg.embed_scale
    before = model(TOKENS)
    keys = other.load_state_dict(state)
    assert keys.missing_keys == [] == keys.unexpected_keys
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-15, atol=0, msg=name)  # Gemma's embedding is scaled
    torch.testing.assert_close(model(TOKENS), before, **EXACT)  # which shared its weights
    assert not torch.allclose(other(TOKENS), before)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(TOKENS), before, **FLOOR)


def test_repeated_keys_are_taken_for_those_of_a_group(tmp_path):
    model = HookedTransformer.from_pretrained(write_tiny_transformers(tmp_path / "tiny", "qwen2"), dtype="float64")
    state = model.state_dict()
    repeated = {
        name.replace("attn._", "attn."): t.repeat_interleave(3, 0) if "attn._" in name else t
        for name, t in state.items()
    }
    other = HookedTransformer(model.native)
    other.load_state_dict({name: t if "W_E" in name else 0.5 * t for name, t in repeated.items()})
    torch.testing.assert_close(other.W_K, 0.5 * model.W_K, **EXACT)
    repeated["blocks.1.attn.W_K"] = torch.randn(repeated["blocks.1.attn.W_K"].shape, dtype=torch.float64)
    with pytest.raises(introspect.ShapeError, match="same W_K"):
        other.load_state_dict(repeated)


def test_what_does_not_fit_a_state_dict_is_named(model):
    other, state = HookedTransformer(model.native), model.state_dict()
    name = "blocks.1.mlp.W_out"
    with pytest.raises(introspect.ConfigError, match=f"missing {name}"):
        other.load_state_dict({key: t for key, t in state.items() if key != name})
    with pytest.raises(introspect.ConfigError, match=r"unknown blocks\.9\.mlp\.W_out"):
        other.load_state_dict({**state, "blocks.9.mlp.W_out": state[name]})
    with pytest.raises(introspect.ShapeError, match=name):
        other.load_state_dict({**state, name: state[name].T})
    keys = other.load_state_dict(
        {name: 2 * state[name], "blocks.0.attn.mask": torch.ones(3), "x": torch.ones(1)}, strict=False
    )
    assert name not in keys.missing_keys and keys.unexpected_keys == ["x"]
    torch.testing.assert_close(other.blocks[1].mlp.W_out, 2 * state[name], **EXACT)
    torch.testing.assert_close(other.W_Q, model.W_Q, **EXACT)


def test_a_bias_that_a_model_lacks_must_be_zero(tmp_path):
    model = HookedTransformer.from_pretrained(write_tiny_transformers(tmp_path / "tiny", "mistral"), dtype="float64")
    state = model.state_dict()
    state["blocks.0.attn.b_O"] = state["blocks.0.attn.b_O"] + 1
    with pytest.raises(introspect.ConfigError, match=r"blocks\.0\.attn\.b_O is not zero"):
        model.load_state_dict(state)


PROCESSING = {"fold_ln": "fold_layer_norm", "center_writing_weights": "center_writing_weights",
              "center_unembed": "center_unembed", "fold_value_biases": "fold_value_biases"}  # fmt: skip


@pytest.mark.parametrize("change", PROCESSING)
def test_weights_are_processed_in_place_and_in_a_state_dict(tmp_path, change):
    folder = write_tiny_transformers(tmp_path / "tiny", "gpt2")
    expected = HookedTransformer.from_pretrained(folder, dtype="float64", **{change: True})
    model = HookedTransformer.from_pretrained(folder, dtype="float64")
    logits, state = model(TOKENS), model.state_dict()
    processed = getattr(model, PROCESSING[change])(state)
    assert torch.equal(model(TOKENS), logits)  # a state dict was asked for, the model stays
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(processed[name], tensor, **EXACT)
    assert getattr(model, PROCESSING[change])() is model
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, **EXACT)
    assert model.cfg.normalization_type == expected.cfg.normalization_type
    torch.testing.assert_close(model(TOKENS).log_softmax(-1), logits.log_softmax(-1), **FLOOR)


def test_process_weights_does_all_of_it_and_keeps_gradients(tmp_path):
    folder = write_tiny_transformers(tmp_path / "tiny", "gpt2")
    options = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True}
    expected = HookedTransformer.from_pretrained(folder, dtype="float64", **options)
    model = HookedTransformer.from_pretrained(folder, dtype="float64").requires_grad_()
    assert model.process_weights_() is model and model.cfg.normalization_type == "LNPre"
    assert next(model.parameters()).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), expected(TOKENS), **FLOOR)
    rms = HookedTransformer.from_pretrained(write_tiny_transformers(tmp_path / "rms", "qwen2"), dtype="float64")
    with pytest.warns(UserWarning, match="RMSNorm sees the mean"):
        rms.process_weights_()
    loaded = HookedTransformer.from_pretrained(folder, dtype="float64")
    loaded.load_and_process_state_dict(loaded.state_dict(), fold_value_biases=False)
    torch.testing.assert_close(loaded(TOKENS), expected(TOKENS), **FLOOR)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_asking_whether_a_model_has_something_never_fails(tmp_path, name):
    model = HookedTransformer.from_pretrained(write_tiny_transformers(tmp_path / "tiny", name))
    plain = introspect.load_model(tmp_path / "tiny")
    rotary = model.cfg.positional_embedding_type == "rotary"
    assert hasattr(model, "W_E_pos") == hasattr(model, "W_pos") == (not rotary)
    for owner in (model, plain, model.cfg, plain.cfg, model.blocks[0], model.blocks[0].attn, plain.native.cfg):
        for attribute in dir(owner):
            hasattr(owner, attribute)
    if rotary:
        with pytest.raises(introspect.ConfigError, match="rotary positions, and no embedding"):
            model.W_pos  # noqa: B018
        with pytest.raises(AttributeError, match="rotary positions, and no embedding"):
            model.W_E_pos  # noqa: B018
    assert model.n_params_total == sum(t.numel() for t in model.parameters())


def test_singular_directions_are_read_in_the_vocabulary(model):
    interpreter = introspect.SVDInterpreter(model)
    W_U = model.W_U.float()
    block = model.blocks[1]
    matrices = {
        "w_out": (block.mlp.W_out, None),
        "w_in": (block.mlp.W_in.T * block.ln2.w, None),
        "OV": (block.attn.W_V[2] @ block.attn.W_O[2], 2),
    }
    for kind, (matrix, head) in matrices.items():
        got = interpreter.get_singular_vectors(kind, 1, num_vectors=3, head_index=head)
        V = torch.linalg.svd(matrix.double())[2][:3].float()
        assert got.shape == (101, 1, 3)
        torch.testing.assert_close(got[:, 0].abs(), (V @ W_U).T.abs(), rtol=1e-3, atol=1e-3)
    for arguments, error in ((("OV", 1), ValueError), (("w_up", 1), ValueError), (("w_in", 99), IndexError)):
        with pytest.raises(error):
            interpreter.get_singular_vectors(*arguments)


# Generation


def test_a_stream_puts_together_what_generate_gives(model):
    options = {"max_new_tokens": 11, "do_sample": False, "stop_at_eos": False, "verbose": False}
    whole = model.generate(TOKENS, **options)
    for cached in (True, False):
        pieces = list(model.generate_stream(TOKENS, max_tokens_per_yield=4, use_past_kv_cache=cached, **options))
        assert [piece.shape for piece in pieces] == [(2, 10), (2, 4), (2, 4), (2, 2)]
        assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert len(list(model.generate_stream(TOKENS, max_tokens_per_yield=99, **options))) == 1
    stop = int(whole[0, 9 + 2])
    ended = {**options, "stop_at_eos": True, "eos_token_id": stop}
    pieces = torch.cat(list(model.generate_stream(TOKENS, max_tokens_per_yield=3, **ended)), dim=1)
    assert torch.equal(pieces, model.generate(TOKENS, **ended))


def test_a_stream_of_text_is_text(chat):
    options = {"max_new_tokens": 12, "do_sample": False, "stop_at_eos": False, "verbose": False}
    whole = chat.generate("the cat", **options)
    pieces = list(chat.generate_stream("the cat", max_tokens_per_yield=3, **options))
    assert len(pieces) > 3 and all(isinstance(piece, str) for piece in pieces)
    assert "".join(pieces) == whole and pieces[0].startswith("the cat")
    torch.manual_seed(3)
    one = list(chat.generate_stream("the cat", max_new_tokens=5, verbose=False))
    torch.manual_seed(3)
    assert one == list(chat.generate_stream("the cat", max_new_tokens=5, verbose=False))
    tokens = torch.cat(list(chat.generate_stream("the cat", return_type="tokens", **options)), dim=1)
    assert chat.to_string(tokens[0]) == whole
    with pytest.raises(ValueError, match="one text is streamed, got 2"):
        chat.generate_stream(["a", "b"])
    with pytest.raises(ValueError, match="max_tokens_per_yield must be positive"):
        chat.generate_stream("a", max_tokens_per_yield=0)


def test_a_stream_runs_under_the_steering_it_was_begun_in(chat):
    vector = introspect.ControlVector("qwen2", {1: 5 * torch.randn(32, generator=torch.Generator().manual_seed(2))})
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with chat.steer(vector):
        pieces = chat.generate_stream("a cat", max_tokens_per_yield=2, **options)
        steered = chat.generate("a cat", **options)
    assert "".join(pieces) == steered != chat.generate("a cat", **options)


# Texts of a model's training


def test_a_point_of_the_data_set_is_drawn(chat):
    chat.dataset = [{"text": "a cat"}, {"text": "bread"}]
    assert {chat.sample_datapoint() for _ in range(30)} == {"a cat", "bread"}
    chat.dataset = chat.dataset[:1]
    assert chat.sample_datapoint(tokenize=True).tolist() == chat.to_tokens("a cat").tolist()
    chat.dataset = None
    with pytest.raises(ValueError, match="no data set is known for Qwen2ForCausalLM"):
        chat.sample_datapoint()


def test_groups_stay_groups(tmp_path, chat):
    chat.set_ungroup_grouped_query_attention(False)
    with pytest.raises(introspect.ConfigError, match="n_key_value_heads"):
        chat.set_ungroup_grouped_query_attention(True)
    ungrouped = HookedTransformer.from_pretrained(write_tiny_transformers(tmp_path / "tiny", "gpt2"))
    ungrouped.set_ungroup_grouped_query_attention(True)


def test_easy_transformer_is_an_old_name():
    assert introspect.EasyTransformer is HookedTransformer
    assert introspect.EasyTransformerConfig is introspect.HookedTransformerConfig
