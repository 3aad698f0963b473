"""config.json read as transformers 5 reads it: settings that stand in two places, absent and null fields, fields that a
family does not have.

Random combinations of such fields for every family, on tiny models of random weights in float64: logits as transformers
computes them, or an error that names one of the fields. Where transformers refuses a config, ours may too, and must not
fail otherwise.
"""

import json
import random

import pytest
import torch
from reference import exact_forward
from safetensors.torch import save_file

import introspect

N_CASES = 28  # a family
N_LAYERS = 3

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NO_GROUPS = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
BASE = {
    "qwen2": ("Qwen2ForCausalLM", SIZES),
    "qwen3": ("Qwen3ForCausalLM", {**SIZES, "head_dim": 8}),
    "llama": ("LlamaForCausalLM", SIZES),
    "mistral": ("MistralForCausalLM", SIZES),
    "gemma2": ("Gemma2ForCausalLM", {**SIZES, "head_dim": 8}),
    "gemma3_text": ("Gemma3ForCausalLM", {**SIZES, "head_dim": 8}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 61, "n_positions": 40, "n_embd": 24, "n_layer": N_LAYERS, "n_head": 4,
                                 "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**NO_GROUPS, "num_attention_heads": 3}),
    "phi3": ("Phi3ForCausalLM", SIZES),
}  # fmt: skip

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = [
    None,
    {},
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_theta": 700.0},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 90.0},
    {"rope_type": "linear", "type": "default", "factor": 2.0},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    LLAMA3,
    {**LLAMA3, "rope_theta": 30.0, "original_max_position_embeddings": 12},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "linear"},
]
BY_LAYER = [
    {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 40.0},
     "sliding_attention": {"rope_theta": 7.0}},
    {"full_attention": {"rope_type": "default"}, "sliding_attention": None},
    {"full_attention": {"type": "linear", "factor": 2.0}},
    {"sliding_attention": {"rope_type": "default", "rope_theta": 9.0}},
    {"rope_theta": 11.0, "sliding_attention": {"rope_theta": 9.0}, "full_attention": {**LLAMA3, "rope_theta": 30.0}},
    {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
]  # fmt: skip
ROPE_FIELDS = {
    "rope_theta": [100.0, 5e5, 3],
    "rope_scaling": ROPES,
    "rope_parameters": ROPES,
    "rotary_emb_base": [80.0],
    "rope_local_base_freq": [6.0],
    "partial_rotary_factor": [0.5, 1.0],
    "rotary_pct": [0.5, 1.0],
    "original_max_position_embeddings": [10, 20],
}
WINDOW_FIELDS = {
    "sliding_window": [None, 3, 5],
    "use_sliding_window": [True, False],
    "max_window_layers": [0, 1, 5],
    "sliding_window_pattern": [1, 2, 3],
    "_sliding_window_pattern": [2],
    "layer_types": [
        None,
        ["full_attention"] * N_LAYERS,
        ["sliding_attention", "full_attention", "sliding_attention"],
        ["sliding_attention"] * N_LAYERS,
        ["full_attention"] * (N_LAYERS + 1),
        ["chunked_attention"] * N_LAYERS,
    ],
}
OTHER_FIELDS = {
    "head_dim": [6, 10, None],
    "num_key_value_heads": [None, 1, 4],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "tie_word_embeddings": [True, False],
    "hidden_act": ["gelu", "silu", "gelu_pytorch_tanh"],
    "hidden_activation": ["gelu", "silu"],
    "activation_function": ["gelu", "gelu_fast"],
    "rms_norm_eps": [0.01],
    "layer_norm_eps": [0.01],
    "layer_norm_epsilon": [0.01],
    "query_pre_attn_scalar": [9, 100],
    "attn_logit_softcapping": [None, 2.0],
    "final_logit_softcapping": [None, 2.0],
    "use_parallel_residual": [True, False],
    "scale_attn_weights": [True, False],
    "n_inner": [None, 20],
    "intermediate_size": [12],
    "n_embd": [16],
    "hidden_size": [16],
    "n_ctx": [7],
    "unknown_scale": [float("nan"), float("inf")],
    "quant_scale": [{"a": [float("-inf")]}],
}
FIELDS = {**ROPE_FIELDS, **WINDOW_FIELDS, **OTHER_FIELDS}


def cases(family):
    """Changes to the base config, the same for every run."""
    rng = random.Random(family)
    rope = {**ROPE_FIELDS, "rope_parameters": ROPES + BY_LAYER * (3 if family == "gemma3_text" else 1)}
    for number in range(N_CASES):
        pool = [rope, WINDOW_FIELDS, OTHER_FIELDS][number % 3] if number % 4 else {**FIELDS, **rope}
        names = rng.sample(sorted(pool), k=rng.randint(1, min(4, len(pool))))
        yield (
            {name: rng.choice(pool[name]) for name in names},
            rng.random() < 0.3
            and rng.choice(
                ["rms_norm_eps", "hidden_act", "num_key_value_heads", "head_dim", "n_head", "max_position_embeddings"]
            ),
        )


def reference(folder):
    """transformers' model of the folder's config with random weights, which are saved beside it; None if it refuses."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).double().eval()
    except Exception:  # the strict checks of its config, and whatever its layers make of the values
        return None
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.4 if parameter.dim() == 1 else 1.0 if "embed" in name else 1.5 / min(parameter.shape) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * scale)
            if "norm" in name and "emma" not in type(model).__name__ and not name.endswith("bias"):
                parameter.add_(1.0)
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():  # a tied unembedding comes last
        if tensor.data_ptr() not in seen:
            state[name] = tensor
        seen.add(tensor.data_ptr())
    save_file(state, folder / "model.safetensors")
    return model


def names_one_of(message, changes, dropped):
    words = [*changes, str(dropped), "rope", "rotary", "layer", "tensor", "head", "window", "activation", "sliding"]
    return any(word in message for word in words)


@pytest.mark.parametrize("family", BASE)
def test_fields_of_a_config_mean_what_they_mean_in_transformers(family, tmp_path):
    architecture, base = BASE[family]
    tokens = torch.randint(3, 61, (2, 14), generator=torch.Generator().manual_seed(1))
    n_equal = 0
    for number, (changes, dropped) in enumerate(cases(family)):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = {"model_type": family, "architectures": [architecture], **base, **changes}
        config.pop(dropped, None)
        (folder / "config.json").write_text(json.dumps(config))
        theirs = reference(folder)
        if theirs is None:
            continue
        try:
            expected = exact_forward(theirs, tokens).logits
        except Exception:
            expected = None
        try:
            ours = introspect.load_model(folder, dtype=torch.float64)
        except introspect.Error as error:
            assert names_one_of(str(error), changes, dropped), f"{changes}, without {dropped}: {error}"
            continue
        if expected is None:
            continue
        difference = (ours(tokens) - expected).abs().max().item()
        assert difference < 1e-9, f"{changes}, without {dropped}: logits differ by {difference}"
        n_equal += 1
    assert n_equal >= N_CASES // 3  # the rest is refused by one side


PAIRS = [
    ("llama", {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("llama", {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5e5}}),
    ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 10}),
    ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 12},
               "original_max_position_embeddings": 9}),
    ("llama", {"use_sliding_window": True, "sliding_window": 3}),
    ("mistral", {"attention_bias": True, "use_sliding_window": False, "sliding_window": 3}),
    ("gemma2", {"query_pre_attn_scalar": 9, "hidden_act": "silu", "sliding_window_pattern": 3, "sliding_window": 3}),
    ("gemma2", {}),
    ("gemma3_text", {"sliding_window_pattern": 1, "sliding_window": 3}),
    ("gemma3_text", {"rope_theta": 30.0, "rope_local_base_freq": 5.0,
                     "rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("gpt_neox", {"rope_theta": 30.0, "partial_rotary_factor": 0.5, "head_dim": 8}),
    ("gpt_neox", {"rotary_emb_base": 30.0, "rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 80.0}}),
    ("gpt2", {"hidden_size": 16, "num_hidden_layers": 2}),
    ("phi3", {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}}),
    ("qwen2", {"head_dim": 10, "attention_bias": True}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "attention_bias": True}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), PAIRS, ids=range(len(PAIRS)))
def test_settings_that_stand_twice_or_not_at_all_have_transformers_value(family, changes, tmp_path):
    architecture, base = BASE[family]
    config = {"model_type": family, "architectures": [architecture], **base, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = reference(tmp_path)
    tokens = torch.randint(3, 61, (2, 14), generator=torch.Generator().manual_seed(1))
    ours = introspect.load_model(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(ours(tokens), exact_forward(theirs, tokens).logits, rtol=0, atol=1e-9)


def test_numbers_that_json_lacks_are_read_as_transformers_writes_them(tmp_path):
    architecture, base = BASE["llama"]
    config = {"model_type": "llama", "architectures": [architecture], **base, "initializer_range": 0.02}
    text = json.dumps({**config, "a": float("nan"), "b": {"__float__": "Infinity"}, "c": [float("-inf")]})
    (tmp_path / "config.json").write_text(text)
    reference(tmp_path)
    introspect.load_model(tmp_path)
    for value in (float("nan"), float("inf"), {"__float__": "NaN"}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": value}))
        with pytest.raises(introspect.ConfigError, match=r"'rope_theta' must be a number, got (NaN|Infinity)"):
            introspect.load_model(tmp_path)
