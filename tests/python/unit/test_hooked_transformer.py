"""HookedTransformer on tiny random models: the properties that TransformerLens's own tests state, in float64."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, write_tiny, write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect
from introspect import FactoredMatrix, HookedTransformer, HookedTransformerKeyValueCache

FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: other kernels for other shapes, nothing else
WITH_BOS = {
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GPT2LMHeadModel",
    "Phi3ForCausalLM",
}
FAMILIES = ["Qwen2ForCausalLM", "LlamaForCausalLM"]


def load(folder, **options):
    return HookedTransformer.from_pretrained(folder, **{"dtype": "float64", "device": "cpu", **options})


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny", request.param)


@pytest.fixture
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "chat")


@pytest.fixture
def chat(chat_folder):
    return load(chat_folder)


@pytest.fixture
def tokens(model, rng):
    return torch.randint(0, model.cfg.d_vocab, (3, 12), generator=rng)


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


# Padding and masks


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_unequal_length_are_those_texts_alone(chat, side):
    texts = ["a cat", "bread", "no, the cat eats no bread yes"]
    tokens = chat.to_tokens(texts, padding_side=side)
    singles = [chat(text)[0] for text in texts]
    for logits in (
        chat(texts, padding_side=side),
        chat(tokens, padding_side=side),
        chat(tokens),  # a pad token of its own shows what is padding
        chat(tokens, attention_mask=tokens != chat.tokenizer.pad_token_id),
    ):
        for row, single in zip(logits, singles, strict=True):
            real = row[-len(single) :] if side == "left" else row[: len(single)]
            torch.testing.assert_close(real, single, **FLOOR)
    losses = [chat(text, return_type="loss", loss_per_token=True).flatten() for text in texts]
    torch.testing.assert_close(chat(texts, return_type="loss", padding_side=side), torch.cat(losses).mean(), **FLOOR)


def test_where_eos_stands_in_for_pad_left_padding_is_told_by_its_side(chat):
    texts = ["a cat", "no, the cat eats no bread"]
    chat.tokenizer.pad_token = chat.tokenizer.eos_token
    chat.tokenizer.padding_side = "left"
    tokens = chat.to_tokens(texts, prepend_bos=True)  # BOS, EOS and pad are one token
    assert (tokens[:, 0] == chat.tokenizer.eos_token_id).all()
    for text, row in zip(texts, chat(tokens), strict=True):
        alone = chat(text, prepend_bos=True)[0]
        torch.testing.assert_close(row[-len(alone) :], alone, **FLOOR)
    chat.tokenizer.padding_side = "right"  # then a row may begin or end with EOS and mean it
    real = torch.tensor([[chat.tokenizer.eos_token_id, 5, 6], [7, 8, chat.tokenizer.eos_token_id]])
    ones = torch.ones_like(real)
    torch.testing.assert_close(chat(real), chat(real, attention_mask=ones), **FLOOR)


def test_masked_tokens_have_no_influence(model, tokens, rng):
    mask = torch.ones_like(tokens)
    mask[0, :4] = mask[1, 2] = mask[2, -3:] = 0
    other = torch.where(mask.bool(), tokens, torch.randint(0, model.cfg.d_vocab, tokens.shape, generator=rng))
    assert not torch.equal(other, tokens)
    a, b = (model(t, attention_mask=mask, return_type="both") for t in (tokens, other))
    torch.testing.assert_close(a.logits[mask.bool()], b.logits[mask.bool()], **FLOOR)
    torch.testing.assert_close(a.loss, b.loss, **FLOOR)
    alone = model(tokens[:1, 4:])
    torch.testing.assert_close(a.logits[:1, 4:], alone, **FLOOR)


# Key-value caches


def cache_for(model, batch):
    return HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)


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


# Text


def test_text_to_tokens_and_back(chat):
    assert chat.cfg.default_prepend_bos is False  # Qwen2
    plain = chat.to_tokens("a cat eats")
    assert torch.equal(plain, torch.tensor([chat.tokenizer.encode("a cat eats")]))
    with_bos = chat.to_tokens("a cat eats", prepend_bos=True)
    assert with_bos[0].tolist() == [chat.tokenizer.eos_token_id, *plain[0].tolist()]  # there is no other BOS
    assert torch.equal(chat.to_tokens(chat.tokenizer.eos_token + "a cat eats", prepend_bos=True), with_bos)
    assert chat.to_string(plain) == ["a cat eats"]
    assert chat.to_string(plain[0]) == chat.to_string(plain[0].tolist()) == "a cat eats"
    assert chat.to_str_tokens("a cat no") == ["a", " cat", " no"]
    assert chat.to_str_tokens(chat.to_tokens("a cat no")) == ["a", " cat", " no"]
    assert chat.to_str_tokens(["a cat", "no"])[0] == ["a", " cat"]
    cat = chat.to_single_token(" cat")
    assert chat.to_single_str_token(cat) == chat.to_string(cat) == " cat"
    assert chat.get_token_position(" cat", "a cat no cat") == 1
    assert chat.get_token_position(cat, chat.to_tokens("a cat no cat"), mode="last") == 3
    assert chat.get_token_position(" cat", "a cat", prepend_bos=True) == 2
    with pytest.raises(ValueError, match="2 tokens"):
        chat.to_single_token("ab")
    with pytest.raises(ValueError, match="does not occur"):
        chat.get_token_position(" no", "a cat")
    with pytest.raises(ValueError, match="padding_side"):
        chat.to_tokens("a", padding_side="top")


def test_long_text_is_cut_to_the_context(tmp_path):
    model = load(write_tiny_chat(tmp_path / "chat", max_position_embeddings=16))
    assert model.to_tokens("a" * 40).shape == (1, 16)
    assert model.to_tokens("a" * 40, truncate=False).shape == (1, 40)
    assert model.to_tokens("a" * 40, prepend_bos=True)[0, 0] == model.tokenizer.eos_token_id
    assert model("a" * 40).shape[1] == 16


def test_the_tokenizer_has_a_transformers_face(chat):
    tokenizer = chat.tokenizer
    batch = tokenizer(["a cat", "no bread yes"], padding=True, return_tensors="pt")
    assert batch.input_ids.shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).tolist() == [2, len(tokenizer.encode("no bread yes"))]
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["a cat", "no bread yes"]
    assert tokenizer.convert_tokens_to_ids("Ġcat") == chat.to_single_token(" cat")
    assert tokenizer.convert_ids_to_tokens([chat.to_single_token(" cat")]) == ["Ġcat"]
    assert tokenizer.tokenize("a cat") == ["a", "Ġcat"]
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.get_vocab()["Ġcat"] == chat.to_single_token(" cat")
    assert tokenizer("a cat", max_length=1, truncation=True)["input_ids"] == tokenizer.encode("a")
    with pytest.raises(introspect.ConfigError, match="no token"):
        tokenizer.pad_token = "<nothing>"


def test_another_tokenizer_can_be_used(chat_folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(chat_folder)
    model, own = load(chat_folder, tokenizer=theirs, default_padding_side="left"), load(chat_folder)
    assert model.tokenizer is theirs
    assert theirs.padding_side == "left"
    texts = ["a cat", "no, the bread"]
    assert torch.equal(model.to_tokens(texts), own.to_tokens(texts, padding_side="left"))
    torch.testing.assert_close(model(texts)[:, -1], own(texts, padding_side="left")[:, -1], **FLOOR)
    assert model.to_str_tokens("a cat") == ["a", " cat"]
    assert model.generate("a cat", do_sample=False, verbose=False) == own.generate(
        "a cat", do_sample=False, verbose=False
    )


# Generation


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_generates_what_its_texts_generate_alone(chat, use_past_kv_cache, side):
    texts = ["a cat", "no, the cat eats no bread yes", "b"]
    options = {"max_new_tokens": 8, "do_sample": False, "verbose": False, "use_past_kv_cache": use_past_kv_cache}
    singles = [chat.generate(text, **options) for text in texts]
    assert chat.generate(texts, padding_side=side, **options) == singles
    tokens = chat.to_tokens(texts, padding_side=side)
    out = chat.generate(tokens, padding_side=side, **options)
    assert out.shape == (3, tokens.shape[1] + 8)
    assert torch.equal(out[:, : tokens.shape[1]], tokens)
    new = [chat.generate(text, return_type="tokens", **options)[0, -8:].tolist() for text in texts]
    assert out[:, -8:].tolist() == new


def test_greedy_generation_is_the_argmax_of_full_passes(chat):
    row = chat.to_tokens("a cat")
    for _ in range(6):
        row = torch.cat([row, chat(row)[:, -1:].argmax(-1)], 1)
    for options in ({"do_sample": False}, {"temperature": 0.0}, {"do_sample": False, "freq_penalty": 2.0}):
        assert torch.equal(chat.generate(chat.to_tokens("a cat"), 6, verbose=False, stop_at_eos=False, **options), row)


def test_sampling_follows_torchs_seed_and_the_penalty(chat):
    tokens = chat.to_tokens("a cat").repeat(4, 1)
    for options in ({}, {"freq_penalty": 0.5}, {"top_k": 5, "temperature": 2.0}, {"top_p": 0.5}):
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(chat.generate(tokens, 8, verbose=False, stop_at_eos=False, **options))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(0)
    once = chat.generate(tokens[:1], 40, verbose=False, stop_at_eos=False, freq_penalty=1e6)
    assert len(set(once[0, 2:].tolist())) == 40  # no token comes twice


def test_a_row_ends_with_its_eos_and_is_filled_up(chat):
    tokens = chat.to_tokens("a cat")
    free = chat.generate(tokens, 6, do_sample=False, stop_at_eos=False, verbose=False)[0, 2:].tolist()
    eos = free[2]
    options = {"do_sample": False, "eos_token_id": eos, "verbose": False}
    assert chat.generate(tokens, 6, **options)[0, 2:].tolist() == free[: free.index(eos) + 1]
    other = chat.to_tokens("no")
    batch = chat.generate(["a cat", "no"], 6, return_type="tokens", **options)
    assert batch[0, tokens.shape[1] :].tolist()[: free.index(eos) + 1] == free[: free.index(eos) + 1]
    alone = chat.generate(other, 6, **options)[0].tolist()
    assert [t for t in batch[1].tolist() if t != chat.tokenizer.pad_token_id][: len(alone)] == alone


def test_hooks_take_part_in_generation(chat):
    plain = chat.generate("a cat", do_sample=False, verbose=False, stop_at_eos=False)
    with chat.hooks([("blocks.2.hook_resid_post", lambda x, hook: x.flip(-1))]):
        assert chat.generate("a cat", do_sample=False, verbose=False, stop_at_eos=False) != plain
    assert chat.generate("a cat", do_sample=False, verbose=False, stop_at_eos=False) == plain


# Weights


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
    if not c.use_normalization_before_and_after:
        torch.testing.assert_close(z, cache["attn_out", 2], rtol=0, atol=1e-5)
    assert model.QK.shape == model.OV.shape == (c.n_layers, c.n_heads, c.d_model, c.d_model)
    assert model.all_composition_scores("V").isfinite().all()
    batch = model.generate(tokens, 4, do_sample=False, stop_at_eos=False, verbose=False)
    alone = model.generate(tokens[1:], 4, do_sample=False, stop_at_eos=False, verbose=False)
    assert batch[1].tolist() == alone[0].tolist()


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
