"""Every architecture against transformers on tiny random models, from every source that weights can come from.

float64 throughout, and 1e-9: sums in another order. Norms are float32 on both sides, in the same operations, so that
inputs this near to each other round alike.
"""

import json

import pytest
import torch
from reference import exact_forward
from tiny import ARCHITECTURES, ROPE_BASES, WINDOW, tiny_transformers
from tiny_gguf import write_tiny_gguf

import introspect
from introspect import _C

T = 24  # tokens: more than three windows
EXACT = {"rtol": 0, "atol": 1e-9}


def save(model, folder, **changes):
    """Save as transformers does, with changes to config.json (None removes a key)."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None or k not in changes}))
    return folder


def load(folder, **options):
    return introspect.load_model(folder, dtype=torch.float64, **options)


def tokens_of(rng, *shape):
    return torch.randint(3, 101, shape or (2, T), generator=rng)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, tmp_path_factory):
    theirs = tiny_transformers(request.param)
    return load(save(theirs, tmp_path_factory.mktemp("tiny"))), theirs


def residuals_and_patterns(model):
    n = model.cfg.n_layers
    residuals = [f"blocks.{layer}.hook_resid_pre" for layer in range(n)]
    return residuals, [f"blocks.{layer}.attn.hook_pattern" for layer in range(n)]


def test_logits_residuals_and_patterns_equal_transformers(pair, rng):
    ours, theirs = pair
    tokens = tokens_of(rng)
    expected = exact_forward(theirs, tokens)
    residuals, patterns = residuals_and_patterns(ours)
    logits, cache = ours.run_with_cache(tokens, [*residuals, *patterns, "unembed.hook_in"])
    torch.testing.assert_close(logits, expected.logits, **EXACT)
    torch.testing.assert_close(ours(tokens), expected.logits, **EXACT)  # without the patterns: other kernels
    # transformers' last hidden state is the one after the final norm.
    for name, hidden in zip([*residuals, "unembed.hook_in"], expected.hidden_states, strict=True):
        torch.testing.assert_close(cache[name], hidden, **EXACT)
    for name, pattern in zip(patterns, expected.attentions, strict=True):
        torch.testing.assert_close(cache[name], pattern, **EXACT)


@pytest.mark.parametrize("chunks", [[1] * T, [5, 1, 13, 5], [T - 1, 1]], ids=["one by one", "chunks", "prefix"])
def test_a_cache_changes_nothing(pair, rng, chunks):
    ours, theirs = pair
    tokens = tokens_of(rng)
    expected = exact_forward(theirs, tokens)
    residuals, patterns = residuals_and_patterns(ours)
    cache, seen = ours.native.make_cache(2), 0
    for part in tokens.split(chunks, dim=1):
        now = slice(seen, seen + part.shape[1])
        seen = now.stop
        logits, activations = ours.run_with_cache(part, [*residuals, *patterns], cache=cache)
        torch.testing.assert_close(logits, expected.logits[:, now], **EXACT)
        for name, hidden in zip(residuals, expected.hidden_states, strict=False):
            torch.testing.assert_close(activations[name], hidden[:, now], **EXACT)
        for name, pattern in zip(patterns, expected.attentions, strict=True):
            torch.testing.assert_close(activations[name], pattern[:, :, now, :seen], **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_equals_transformers(pair, rng, side):
    ours, theirs = pair
    lengths = [T, 9, 1]
    tokens, mask = torch.zeros(3, T, dtype=torch.long), torch.zeros(3, T, dtype=torch.bool)
    for row, n in enumerate(lengths):
        where = slice(T - n, None) if side == "left" else slice(None, n)
        tokens[row, where], mask[row, where] = tokens_of(rng, n), True
    expected = exact_forward(theirs, tokens, mask)
    residuals, patterns = residuals_and_patterns(ours)
    logits, cache = ours.run_with_cache(tokens, [*residuals, *patterns], attention_mask=mask)
    torch.testing.assert_close(logits[mask], expected.logits[mask], **EXACT)
    torch.testing.assert_close(ours(tokens, attention_mask=mask)[mask], expected.logits[mask], **EXACT)
    for name, hidden in zip(residuals, expected.hidden_states, strict=False):
        torch.testing.assert_close(cache[name][mask], hidden[mask], **EXACT)
    for name, pattern in zip(patterns, expected.attentions, strict=True):
        rows = mask[:, None, :].expand(pattern.shape[:3])
        torch.testing.assert_close(cache[name][rows], pattern[rows], **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_prompt_is_kept_in_the_cache(pair, rng, side):
    ours, theirs = pair
    tokens, mask = tokens_of(rng), torch.ones(2, T, dtype=torch.bool)
    mask[1, slice(None, 9) if side == "left" else slice(2, 11)] = False  # of a prompt of 11 tokens; 13 more come after
    cache = ours.native.make_cache(2)
    parts = zip(tokens.split([11, 12, 1], dim=1), mask.split([11, 12, 1], dim=1), strict=True)
    logits = torch.cat([ours(t, attention_mask=m, cache=cache) for t, m in parts], dim=1)
    for row in range(2):
        expected = exact_forward(theirs, tokens[row, mask[row]][None]).logits[0]
        torch.testing.assert_close(logits[row, mask[row]], expected, **EXACT)


def test_greedy_continuations_equal_transformers(pair, rng):
    ours, theirs = pair
    tokens = tokens_of(rng, 1, 9)
    expected = tokens
    for _ in range(12):  # beyond the window
        expected = torch.cat([expected, exact_forward(theirs, expected).logits[:, -1:].argmax(-1)], dim=1)
    assert ours.native.generate(tokens.tolist(), max_new_tokens=12, stop_at_eos=False)[0] == expected[0, 9:].tolist()


def test_a_state_dict_in_memory_is_the_model_of_its_folder(pair, rng):
    ours, theirs = pair
    model = _C.Model.from_state_dict(theirs.config.to_json_string(), theirs.state_dict(), dtype=torch.float64)
    tokens = tokens_of(rng)
    assert torch.equal(model.forward(tokens), ours(tokens))
    # Folders have another name for GPT-NeoX's unembedding, and keep each expert by itself.
    if theirs.config.model_type not in ("gpt_neox", "mixtral", "qwen3_moe"):
        assert model.hash == ours.native.hash


# What GGUF files cannot say about some of the tiny models.
GGUF_OVERRIDES = {
    "gemma2": {"query_pre_attn_scalar": 10},
    "gemma3": {"query_pre_attn_scalar": 10},
    "gemma3 layer types": {"query_pre_attn_scalar": 10, "final_logit_softcapping": None},
    "gpt2 n_inner": {"scale_attn_weights": True},
    "gpt_neox sequential": {"rotary_emb_base": 10000},
    "qwen3_moe": {"norm_topk_prob": True},
}
GGUF_KEYS = {
    "olmo3": {"attention__sliding_window_pattern": [True, False, True]},
    "qwen2 windows": {"attention__sliding_window": WINDOW, "attention__sliding_window_pattern": [False, True, True]},
    "gemma3 layer types": {"attention__sliding_window_pattern": [False, True, False]},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gguf_files_give_the_logits_of_safetensors(name, tmp_path, rng):
    theirs = tiny_transformers(name, **GGUF_OVERRIDES.get(name, {})).float()
    from_folder = load(save(theirs, tmp_path / "folder"))
    from_gguf = load(write_tiny_gguf(tmp_path / "a.gguf", theirs, **GGUF_KEYS.get(name, {})))
    tokens = tokens_of(rng)
    # GGUF keeps eps and the factors of llama3's frequencies as float32.
    torch.testing.assert_close(from_gguf(tokens), from_folder(tokens), rtol=0, atol=1e-5)


def test_a_gguf_of_gemma_3_with_the_defaults_it_leaves_out(tmp_path, rng):
    rope = {**ROPE_BASES, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    theirs = tiny_transformers("gemma3", query_pre_attn_scalar=10, rope_parameters=rope).float()
    ours = load(write_tiny_gguf(tmp_path / "a.gguf", theirs))
    torch.testing.assert_close(ours(tokens := tokens_of(rng)), exact_forward(theirs.double(), tokens).logits, **EXACT)


# The same models as transformers 4 wrote their configs.
OLD_CONFIGS = {
    "qwen2 windows": {"layer_types": None, "rope_parameters": None, "rope_theta": 10000.0},
    "llama llama3 rope": {
        "rope_parameters": None,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "llama linear rope": {
        "rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 3.0},
    },
    "gemma2": {
        "layer_types": None, "rope_parameters": None, "tie_word_embeddings": None, "hidden_act": "gelu_pytorch_tanh",
    },
    "gemma3": {
        "layer_types": None, "rope_parameters": None, "rope_theta": 300.0, "rope_local_base_freq": 10.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "sliding_window_pattern": 6,
        "tie_word_embeddings": None,
    },
    "gpt2": {"n_inner": None, "tie_word_embeddings": None, "activation_function": "gelu_fast"},
    "gpt_neox": {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 10000},
    "gpt_neox sequential": {"rope_parameters": None, "rotary_pct": 1.0, "rotary_emb_base": 100},
    "phi3": {"rope_parameters": None, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_CONFIGS)
def test_configs_of_transformers_4_mean_the_same(name, tmp_path, rng):
    theirs = tiny_transformers(name)
    ours = load(save(theirs, tmp_path, **OLD_CONFIGS[name]))
    torch.testing.assert_close(ours(tokens := tokens_of(rng)), exact_forward(theirs, tokens).logits, **EXACT)


def test_gpt2_checkpoints_without_a_prefix(tmp_path, rng):
    theirs = tiny_transformers("gpt2")
    state = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)  # the mask that early versions saved
    model = _C.Model.from_state_dict(theirs.config.to_json_string(), state, dtype=torch.float64)
    torch.testing.assert_close(model.forward(tokens := tokens_of(rng)), exact_forward(theirs, tokens).logits, **EXACT)


def test_the_text_part_of_a_multimodal_gemma_3(tmp_path, rng):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny_transformers("gemma3")
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text.config.to_dict(), vision_config=vision, mm_tokens_per_image=1)
    config._attn_implementation = "eager"
    both = Gemma3ForConditionalGeneration(config).double().eval()
    both.model.language_model.load_state_dict(text.model.state_dict())
    tokens = tokens_of(rng)
    expected = exact_forward(text, tokens).logits
    torch.testing.assert_close(load(save(both, tmp_path))(tokens), expected, **EXACT)
    model = _C.Model.from_state_dict(config.to_json_string(), both.state_dict(), dtype=torch.float64)
    torch.testing.assert_close(model.forward(tokens), expected, **EXACT)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "short_factor"),
        ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": -4.0}}, "factor"),
        ("llama", {"rope_scaling": {"type": "axial", "factor": 4.0}}, "axial"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention",
        ),
        ("qwen3", {"architectures": ["Qwen2MoeForCausalLM"]}, "Qwen2MoeForCausalLM"),
        ("mistral", {"num_local_experts": 8}, "mixture of experts"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "plain MLPs"),
        ("qwen3_moe", {"num_experts_per_tok": 7}, "experts_per_token"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "its files hold none"),
        ("llama", {"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 3}}, "3"),
        ("llama", {"quantization_config": {"quant_method": "awq", "version": "gemv"}}, "gemv"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "relu"),
        ("qwen2 windows", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("qwen2 windows", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma2", {"sliding_window": 0}, "sliding_window"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_read(name, changes, words, tmp_path):
    folder = save(tiny_transformers(name), tmp_path, **changes)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(introspect.ConfigError, match=words):
        introspect.load_model(folder)


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"expert_count": 8}, "expert_used_count"), ({"attention__sliding_window_pattern": [True]}, "must have 3")],
)
def test_what_a_gguf_file_cannot_run_is_said(keys, words, tmp_path):
    path = write_tiny_gguf(tmp_path / "a.gguf", tiny_transformers("mistral"), **keys)
    with pytest.raises(introspect.ConfigError, match=words):
        introspect.load_model(path)


def test_a_state_dict_that_does_not_fit_is_a_typed_error():
    theirs = tiny_transformers("qwen2")
    config, state = theirs.config.to_json_string(), theirs.state_dict()
    with pytest.raises(introspect.ConfigError, match="JSON"):
        _C.Model.from_state_dict("{", state)
    with pytest.raises(introspect.ConfigError, match=r"model\.norm\.weight"):
        _C.Model.from_state_dict(config, {k: v for k, v in state.items() if k != "model.norm.weight"})
    with pytest.raises(introspect.ShapeError, match=r"model\.norm\.weight"):
        _C.Model.from_state_dict(config, state | {"model.norm.weight": torch.ones(3)})
    with pytest.raises(introspect.ConfigError, match="hold floats"):
        _C.Model.from_state_dict(config, state | {"model.norm.weight": torch.ones(48, dtype=torch.int64)})


def test_the_hash_tells_apart_what_no_tensor_does(tmp_path):
    theirs = tiny_transformers("gemma2")
    changes = [{}, {"sliding_window": 8}, {"query_pre_attn_scalar": 9}, {"attn_logit_softcapping": None},
               {"final_logit_softcapping": 4.0}]  # fmt: skip
    hashes = {load(save(theirs, tmp_path / str(i), **change)).native.hash for i, change in enumerate(changes)}
    assert len(hashes) == len(changes)
