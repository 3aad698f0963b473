"""Logits and residuals against transformers on the same weights."""

import json

import pytest
import torch
from conftest import SLOW
from reference import in_dtype, transformers_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import introspect

PROMPTS = {
    "english": "The quick brown fox jumps over the lazy dog. " * 8,
    "code": "def fibonacci(n: int) -> int:\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "chinese": "人工智能正在改变我们的生活方式。我们需要了解语言模型知道什么。",
    "emoji": "I ❤️ cats 🐈‍⬛ and bread 🍞, mostly at 3:45 a.m. 👩🏽‍🚀",
    "chat": "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
}
CONTINUED = tuple(PROMPTS) if SLOW else ("code", "chat")  # greedily, and the texts compared

TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "qwen2": Qwen2Config(**TINY),
    "qwen2 tied": Qwen2Config(**TINY, tie_word_embeddings=True),
    "qwen2 one key head": Qwen2Config(**{**TINY, "num_key_value_heads": 1}),
    "llama": LlamaConfig(**TINY),
    "llama tied, every head its own keys": LlamaConfig(**{**TINY, "num_key_value_heads": 4}, tie_word_embeddings=True),
    "llama biases, wide heads": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True, head_dim=12),
    "llama3 rope": LlamaConfig(**TINY, rope_parameters=LLAMA3),
    "linear rope": LlamaConfig(**TINY, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}),
}
CLASSES = {"qwen2": Qwen2ForCausalLM, "llama": LlamaForCausalLM}


@pytest.mark.parametrize("name", CONFIGS)
def test_tiny_random_models_equal_transformers_in_float64(name, tmp_path, rng):
    config = CONFIGS[name]
    torch.manual_seed(0)
    theirs = CLASSES[config.model_type](config).double().eval()
    for parameter in theirs.parameters():  # biases start at zero and norms at one: a forgotten one would not show
        torch.nn.init.normal_(parameter, std=0.5)
    theirs.save_pretrained(tmp_path)
    ours = introspect.load_model(tmp_path, dtype=torch.float64)
    tokens = torch.randint(0, 101, (2, 40), generator=rng)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]
    logits, cache = ours.run_with_cache(tokens, [*names, "blocks.0.attn.hook_pattern"])
    with torch.no_grad():
        expected = theirs(tokens, output_hidden_states=True)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-9)
    for layer, hook in enumerate(names):
        torch.testing.assert_close(cache[hook], expected.hidden_states[layer], rtol=0, atol=1e-9)
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = theirs(tokens, output_attentions=True).attentions
    # transformers rounds the scores to float32 before this softmax: |score| * 2^-24 of each probability, scores being
    # of order ten. In later layers that rounding has gone through the weights, so the first is compared.
    torch.testing.assert_close(cache["blocks.0.attn.hook_pattern"], patterns[0], rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=["smollm2", "qwen05", "gemma3"])
def path(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def pair(path):
    return introspect.load_model(path), transformers_model(path)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_of_real_models_equal_transformers(pair, prompt):
    ours, theirs = pair
    tokens = ours.to_tokens(PROMPTS[prompt])
    with torch.no_grad():
        expected = theirs(tokens).logits
    logits = ours(tokens)
    assert (logits - expected).abs().max() < 1e-3  # float32 sums in other orders; logits spread over tens
    cache = ours.native.make_cache(1)
    cached = torch.cat([ours(part, cache=cache) for part in tokens.split(7, dim=1)], dim=1)
    assert (cached - logits).abs().max() < 2e-4  # DESIGN 5: the floor of float32
    assert (cached.argmax(-1) == logits.argmax(-1)).all()
    if prompt not in CONTINUED:
        return
    new = ours.native.generate(tokens.tolist(), max_new_tokens=12, stop_at_eos=False)[0]
    greedy = theirs.generate(
        tokens, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0, repetition_penalty=1.0
    )
    assert new == greedy[0, tokens.shape[1] :].tolist()


def test_batches_and_padding_of_a_real_model_agree(pair):
    ours, _ = pair
    rows = [ours.to_tokens(text)[0] for text in PROMPTS.values()]
    width = max(map(len, rows))
    singles = [ours(row[None])[0] for row in rows]
    for left in (True, False):
        padded, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            where = slice(width - len(row), None) if left else slice(None, len(row))
            padded[i, where], mask[i, where] = row, True
        logits = ours(padded, attention_mask=mask)
        for i, single in enumerate(singles):
            assert (logits[i, mask[i]] - single).abs().max() < 2e-4
            assert (logits[i, mask[i]].argmax(-1) == single.argmax(-1)).all()


def test_bfloat16_is_as_near_to_float32_as_transformers_own_bfloat16(pair, path):
    exact = pair[1]
    ours, theirs = introspect.load_model(path, dtype=torch.bfloat16), in_dtype(exact, torch.bfloat16)
    for prompt in ("code", "chinese", "chat"):
        tokens = ours.to_tokens(PROMPTS[prompt])
        with torch.no_grad():
            truth, expected = exact(tokens).logits, theirs(tokens).logits.float()
        error, their_error = (ours(tokens) - truth).abs(), (expected - truth).abs()
        assert error.mean() < 2 * their_error.mean()
        assert error.max() < 2 * their_error.max()
        # the readout does not round its logits to bfloat16: its error is that of the residual alone
        last = ours(tokens, logits_at="last")[0, -1]
        assert last.unique().numel() > 5 * expected[0, -1].unique().numel()


def test_gemma_3_has_its_bos_token_in_front(gemma3):
    ours = introspect.load_model(gemma3, dtype=torch.bfloat16)
    tokens = ours.to_tokens("Hello")
    assert tokens[0, 0] == ours.tokenizer.bos_token_id == 2
    assert (tokens == 2).sum() == 1


def test_stories15m_equals_transformers_and_run_c(stories15m):
    ours, theirs = introspect.load_model(stories15m), LlamaForCausalLM.from_pretrained(stories15m).eval()
    golden = json.loads((stories15m / "golden_greedy.json").read_text())
    tokens = torch.tensor([golden["prompt_ids"] + golden["greedy_ids"]])[:, :200]
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-3
    n = len(golden["greedy_ids"])
    new = ours.native.generate([golden["prompt_ids"]], max_new_tokens=n, stop_at_eos=False)[0]
    assert new == golden["greedy_ids"]
