"""HookedTransformer on tiny random models: the properties that TransformerLens's own tests state, in float64."""

import pytest
import torch
from lens import FLOOR, cache_for, load

import introspect
from introspect import HookedTransformer

# Forward


def test_return_types(model, tokens):
    logits = model(tokens)
    assert torch.equal(logits, introspect.Model(model.native)(tokens))
    loss = model(tokens, return_type="loss")
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, **FLOOR)
    both = model(tokens, return_type="both")
    assert torch.equal(both.logits, logits)
    assert torch.equal(both.loss, loss)
    per_token = model(tokens, return_type="loss", loss_per_token=True)
    assert per_token.shape == (3, 11)
    torch.testing.assert_close(per_token.mean(), loss, **FLOOR)
    assert model(tokens, return_type=None) is None
    torch.testing.assert_close(model(tokens[0]), logits[:1], **FLOOR)
    with_ones = model(tokens, return_type="loss", attention_mask=torch.ones_like(tokens))
    torch.testing.assert_close(with_ones, loss, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -3])
def test_a_run_in_two_halves_is_the_full_run(model, tokens, layer):
    n_layers, called = model.cfg.n_layers, []
    logits, cache = model.run_with_cache(tokens)
    resid = model(tokens, stop_at_layer=layer)
    assert resid.shape == (3, 12, model.cfg.d_model)
    number = layer % n_layers if layer < 0 else layer
    name = f"blocks.{number}.hook_resid_pre" if number < n_layers else f"blocks.{n_layers - 1}.hook_resid_post"
    torch.testing.assert_close(resid, cache[name], **FLOOR)
    with model.hooks([(lambda name: name.endswith("hook_resid_post"), lambda x, hook: called.append(hook.layer()))]):
        torch.testing.assert_close(model(resid, start_at_layer=layer), logits, **FLOOR)
        assert called == list(range(number, n_layers))
        called.clear()
        model(tokens, stop_at_layer=layer)
        assert called == list(range(number))
    loss = model(resid, start_at_layer=layer, tokens=tokens, return_type="loss")
    torch.testing.assert_close(loss, model(tokens, return_type="loss"), **FLOOR)
    middle = model(model(tokens, stop_at_layer=1), start_at_layer=1, stop_at_layer=2)
    torch.testing.assert_close(middle, cache["resid_post", 1], **FLOOR)


def test_parts_of_the_model_can_be_called(model, tokens):
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(model.embed(tokens), cache["embed"], **FLOOR)
    torch.testing.assert_close(model.blocks[1](cache["resid_pre", 1]), cache["resid_post", 1], **FLOOR)
    normalized = model.ln_final(cache["resid_post", -1])
    torch.testing.assert_close(model.unembed(normalized), logits, **FLOOR)
    assert model.blocks[1].attn.W_O.shape == (model.cfg.n_heads, model.cfg.d_head, model.cfg.d_model)
    assert model.blocks[1].ln1.hook_scale.name == "blocks.1.ln1.hook_scale"
    assert len(model.blocks) == model.cfg.n_layers
    q = torch.einsum("bpd,hdk->bphk", model.blocks[1].ln1(cache["resid_pre", 1]), model.blocks[1].attn.W_Q)
    torch.testing.assert_close(q + model.blocks[1].attn.b_Q, cache["q", 1], **FLOOR)
    pre = model.blocks[1].ln2(cache["resid_mid", 1]) @ model.blocks[1].mlp.W_gate
    torch.testing.assert_close(pre, cache["pre", 1], **FLOOR)
    with pytest.raises(AttributeError, match="hook_z"):
        _ = model.blocks[1].attn.hook_nothing
    with pytest.raises(AttributeError, match="hook_nothing"):
        _ = model.hook_nothing


# Key-value caches


@pytest.mark.parametrize("split", [1, 5, 11])
def test_a_pass_after_a_cache_is_the_end_of_the_whole_pass(model, tokens, split):
    past = cache_for(model, 3)
    first = model(tokens[:, :split], past_kv_cache=past)
    entry = past[0]
    assert entry.past_keys.shape == (3, split, model.cfg.n_key_value_heads, model.cfg.d_head)
    assert past.entries[2].past_values.shape == entry.past_values.shape
    second = model(tokens[:, split:], past_kv_cache=past)
    torch.testing.assert_close(torch.cat([first, second], 1), model(tokens), **FLOOR)
    assert past.previous_attention_mask.tolist() == [[1] * 12] * 3


def test_a_frozen_cache_stays_as_it_is(model, tokens):
    past = cache_for(model, 3)
    model(tokens[:, :5], past_kv_cache=past)
    past.freeze()
    before = past[1].past_keys.clone()
    for _ in range(2):
        torch.testing.assert_close(model(tokens[:, 5:], past_kv_cache=past), model(tokens)[:, 5:], **FLOOR)
    assert torch.equal(past[1].past_keys, before)
    past.unfreeze()
    model(tokens[:, 5:], past_kv_cache=past)
    assert past[1].past_keys.shape[1] == 12


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_before_and_after_a_cache(chat, side):
    before, after = ["a cat", "bread and bread", "no"], [" eats", " yes yes", " no cat"]
    past = cache_for(chat, 3)
    chat(before, padding_side=side, past_kv_cache=past)
    logits = chat(after, padding_side=side, past_kv_cache=past)
    for text, more, row in zip(before, after, logits, strict=True):
        n = chat.to_tokens(more).shape[1]
        expected = chat(torch.cat([chat.to_tokens(text), chat.to_tokens(more)], 1))[0, -n:]
        torch.testing.assert_close(row[-n:] if side == "left" else row[:n], expected, **FLOOR)


def test_a_custom_mask_and_a_later_start_go_with_a_cache(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :2] = mask[1, 6] = 0
    whole = model(tokens, attention_mask=mask)
    past = cache_for(model, 3)
    model(tokens[:, :5], attention_mask=mask[:, :5], past_kv_cache=past)
    past.freeze()
    rest = model(tokens[:, 5:], attention_mask=mask[:, 5:], past_kv_cache=past)
    torch.testing.assert_close(rest[mask[:, 5:].bool()], whole[:, 5:][mask[:, 5:].bool()], **FLOOR)
    resid = model(tokens[:, 5:], stop_at_layer=0)
    started = model(resid, start_at_layer=0, attention_mask=mask, past_kv_cache=past)  # the whole mask, as there
    torch.testing.assert_close(started, rest, **FLOOR)


# Caches of activations


@pytest.mark.parametrize("pos_slice", [3, -1, (2, 9), (0, None, 3), [0, 5, 11], torch.tensor([1, 4])])
def test_pos_slice_is_a_slice_of_the_full_cache(model, tokens, pos_slice):
    _, full = model.run_with_cache(tokens)
    _, sliced = model.run_with_cache(tokens, pos_slice=pos_slice)
    index = (
        [pos_slice] if isinstance(pos_slice, int) else slice(*pos_slice) if isinstance(pos_slice, tuple) else pos_slice
    )
    assert list(sliced) == list(full)
    for name, value in full.items():
        is_pattern = name.endswith(("hook_pattern", "hook_attn_scores"))
        torch.testing.assert_close(sliced[name], value[:, :, index] if is_pattern else value[:, index], **FLOOR)


def test_caches_in_other_forms(model, tokens):
    name = "blocks.1.attn.hook_z"
    _, full = model.run_with_cache(tokens[:1])
    _, as_dict = model.run_with_cache(tokens[:1], return_cache_object=False, names_filter=name)
    assert isinstance(as_dict, dict)
    assert list(as_dict) == [name]
    _, single = model.run_with_cache(tokens[:1], remove_batch_dim=True, names_filter=[name])
    torch.testing.assert_close(single[name], full[name][0], **FLOOR)
    _, low = model.run_with_cache(tokens[:1], dtype=torch.float32, names_filter=lambda n: "attn" in n)
    assert low["z", 1].dtype == torch.float32
    _, some = model.run_with_cache(tokens[:1], names_filter=name, heads=[3, 0])
    torch.testing.assert_close(some[name], full[name][:, :, [3, 0]], **FLOOR)
    loss, cache = model.run_with_cache(tokens, return_type="loss")
    assert torch.equal(loss, model(tokens, return_type="loss"))
    with pytest.raises(introspect.ShapeError):
        model.run_with_cache(tokens, remove_batch_dim=True)
    assert cache.model is model


def test_caching_hooks_fill_a_dict_of_the_callers(model, tokens):
    wanted = ["blocks.0.attn.hook_pattern", "blocks.1.hook_resid_post"]
    _, expected = model.run_with_cache(tokens, names_filter=wanted, return_type="loss", incl_bwd=True, pos_slice=(2, 5))
    cache, forward, backward = model.get_caching_hooks(wanted, incl_bwd=True, pos_slice=(2, 5))
    with model.hooks(forward, backward):
        model(tokens, return_type="loss").backward()
    assert set(cache) == set(expected)
    assert all(torch.equal(cache[name], value) for name, value in expected.items())
    added = model.add_caching_hooks(wanted)
    model(tokens)
    model.reset_hooks()
    assert added["blocks.1.hook_resid_post"].shape == (3, 12, model.cfg.d_model)


def test_later_hooks_do_not_change_what_is_cached(model, tokens):
    def spoil(x, hook):
        x *= 0

    _, clean = model.run_with_cache(tokens)
    kept = {name: value.clone() for name, value in clean.items()}
    model.run_with_hooks(tokens, fwd_hooks=[(lambda name: "resid" in name, spoil)])
    assert all(torch.equal(clean[name], value) for name, value in kept.items())


# Loading and bad input


def test_weight_processing_is_off_unless_asked_for(folder, tokens):
    plain, same = load(folder), HookedTransformer.from_pretrained_no_processing(folder, dtype="float64", device="cpu")
    assert torch.equal(plain(tokens), same(tokens))
    assert plain.cfg.normalization_type == "RMS"
    processed = load(folder, fold_ln=True, center_unembed=True)
    assert processed.cfg.normalization_type == "RMSPre"
    torch.testing.assert_close(processed(tokens).log_softmax(-1), plain(tokens).log_softmax(-1), **FLOOR)
    assert not torch.allclose(processed.W_U, plain.W_U)
    torch.testing.assert_close(processed(tokens).mean(-1), torch.zeros(3, 12, dtype=torch.float64), **FLOOR)
    with pytest.warns(UserWarning, match="RMSNorm"):
        assert torch.equal(load(folder, center_writing_weights=True)(tokens), plain(tokens))


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_transformers_model_in_memory_can_be_used(kind, chat_folder, tokens):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
    config = getattr(transformers, f"{kind}Config")(**sizes, **({"intermediate_size": 24} if kind == "Llama" else {}))
    torch.manual_seed(0)
    theirs = (
        getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config).double().eval()
    )
    model = load("no-such-folder", hf_model=theirs)
    assert model.tokenizer is None
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, **FLOOR)
    with_text = load(chat_folder, hf_model=theirs)
    assert with_text("a cat", prepend_bos=False).shape == (1, 2, 300)


def test_config_has_transformer_lenss_fields(model):
    c = model.cfg
    assert (c.n_layers, c.n_heads, c.n_key_value_heads, c.d_model, c.d_head) == (3, 4, 2, 32, 8)
    assert (c.d_mlp, c.d_vocab, c.d_vocab_out, c.n_ctx) == (48, 101, 101, 64)
    assert (c.act_fn, c.gated_mlp, c.positional_embedding_type, c.attn_only) == ("silu", True, "rotary", False)
    assert (c.attn_scores_soft_cap, c.window_size, c.attn_types, c.use_local_attn) == (-1.0, None, None, False)
    assert (c.dtype, c.device.type) == (torch.float64, "cpu")
    assert c.to_dict()["rotary_base"] == 10000
    assert "n_layers=3" in repr(c)
    c.use_attn_result = True
    assert any(name.endswith("hook_result") for name in model.hook_names)
    with pytest.raises(AttributeError, match="cannot be set"):
        c.n_layers = 4
    with pytest.raises(AttributeError, match="nothing"):
        _ = c.nothing


@pytest.mark.parametrize(
    "options",
    [{"first_n_layers": 1}, {"n_ctx": 16}, {"checkpoint_index": 3}, {"n_devices": 2}, {"torch_dtype": "auto"}],
    ids=lambda options: next(iter(options)),
)
def test_arguments_that_cannot_be_honoured_are_errors(folder, options):
    with pytest.raises(introspect.ConfigError, match=next(iter(options))):
        load(folder, **options)


def test_bad_input_is_a_typed_error_and_leaves_the_model_as_it_was(model, tokens):
    before = model(tokens)
    resid = model(tokens, stop_at_layer=1)
    for error, call in (
        (introspect.ConfigError, lambda: model("text without a tokenizer")),
        (introspect.ConfigError, lambda: model.to_string(tokens)),
        (introspect.ConfigError, lambda: model.generate(tokens, verbose=False)),  # no EOS
        (introspect.ConfigError, lambda: model.generate(tokens, num_beams=3)),
        (introspect.ConfigError, lambda: model.to("meta")),
        (introspect.ConfigError, lambda: load("no-such-model-anywhere")),
        (introspect.ShapeError, lambda: model(torch.zeros(2, 5, 32))),
        (introspect.ShapeError, lambda: model(tokens.double())),
        (introspect.ShapeError, lambda: model(resid[..., :-1], start_at_layer=1)),
        (introspect.ShapeError, lambda: model(tokens, attention_mask=torch.ones(3, 11))),
        (introspect.ShapeError, lambda: model(tokens, past_kv_cache=cache_for(model, 2))),
        (IndexError, lambda: model(tokens + 101)),
        (IndexError, lambda: model(tokens, stop_at_layer=4)),
        (IndexError, lambda: model(resid, start_at_layer=-4)),
        (IndexError, lambda: model.accumulated_bias(4)),
        (ValueError, lambda: model(tokens, return_type="probabilities")),
        (ValueError, lambda: model(resid, start_at_layer=1, return_type="loss")),
        (ValueError, lambda: model.generate(tokens, return_type="embeds")),
        (ValueError, lambda: model.generate(tokens, top_k=0, stop_at_eos=False, verbose=False)),
        (TypeError, lambda: model("text", start_at_layer=1)),
        (TypeError, lambda: model(tokens, no_such_argument=1)),
    ):
        with pytest.raises(error):
            call()
        assert torch.equal(model(tokens), before)


def test_short_names_of_transformer_lens():
    from introspect.hub.pretrained import aliases

    names = aliases()
    for short, id in {
        "gpt2": "openai-community/gpt2",
        "gpt2-small": "openai-community/gpt2",
        "pythia-70m": "EleutherAI/pythia-70m",
        "pythia-125m-deduped": "EleutherAI/pythia-160m-deduped",
        "gemma-2-2b": "google/gemma-2-2b",
        "llama-2-7b": "meta-llama/Llama-2-7b-hf",
        "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
        "mistral-7b": "mistralai/Mistral-7B-v0.1",
    }.items():
        assert names[short] == id
