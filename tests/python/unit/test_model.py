"""Readouts, hooks, generation and errors of a model of every family; test_invariants.py has what DESIGN 5 states."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_tiny, write_tiny_transformers

import introspect

FAMILIES = [
    "qwen2 windows", "qwen3", "llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi3", "olmo2", "gpt_oss",
]  # fmt: skip
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: other kernels for other shapes, nothing else


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / request.param
    return introspect.load_model(write_tiny_transformers(folder, request.param), dtype=torch.float64)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """For what no architecture changes."""
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("plain") / "tiny"), dtype=torch.float64)


@pytest.fixture
def tokens(rng):
    return torch.randint(0, 101, (3, 12), generator=rng)


def test_logits_are_float32_for_float32_and_bfloat16_models(tmp_path, tokens):
    folder = write_tiny(tmp_path / "m")
    for dtype in (torch.float32, torch.bfloat16):
        model = introspect.load_model(folder, dtype=dtype)
        assert model(tokens).dtype == torch.float32
        assert model.dtype == dtype


def test_readouts_equal_the_full_logits(model, tokens):
    full = model(tokens)
    ids, positions = torch.tensor([5, 99, 0]), torch.tensor([2, 11])
    torch.testing.assert_close(model(tokens, logits_at="last"), full[:, -1:], **FLOOR)
    assert model(tokens, logits_at="none") is None
    read = model.native.forward(tokens, logits_at="positions", positions=positions, vocab_ids=ids)
    torch.testing.assert_close(read, full[:, positions][:, :, ids], **FLOOR)


def test_a_pass_that_fails_leaves_the_cache_as_it_was(model, tokens):
    cache = model.native.make_cache(3)
    model(tokens[:, :6], cache=cache)

    def fail(activation, hook):
        raise KeyError("from the hook")

    with pytest.raises(KeyError, match="from the hook"):
        model.run_with_hooks(tokens[:, 6:], [("blocks.1.hook_resid_post", fail)], cache=cache)
    torch.testing.assert_close(model(tokens[:, 6:], cache=cache), model(tokens)[:, 6:], **FLOOR)


def test_every_hook_point_is_read_with_its_shape(model, tokens):
    c = model.cfg
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, model(tokens), **FLOOR)
    assert list(cache) == model.hook_names
    head, kv = (3, 12, c.n_heads, c.d_head), (3, 12, c.n_key_value_heads, c.d_head)
    shapes = {"q": head, "z": head, "k": kv, "v": kv}
    if c.original_architecture != "GPT2LMHeadModel":
        shapes |= {"rot_q": head, "rot_k": kv}
    shapes |= {"pattern": (3, c.n_heads, 12, 12), "attn_scores": (3, c.n_heads, 12, 12)}
    for name, shape in shapes.items():
        assert cache[f"blocks.1.attn.hook_{name}"].shape == shape
    if c.num_experts:
        assert cache["blocks.1.mlp.hook_expert_weights"].shape == (3, 12, c.num_experts)
        assert cache["blocks.1.mlp.hook_expert_indices"].shape == (3, 12, c.experts_per_token)
    else:
        assert cache["blocks.1.mlp.hook_pre"].shape == (3, 12, c.d_mlp)
    norm = "ln1_post" if c.use_normalization_after_only else "ln1"
    assert cache[f"blocks.1.{norm}.hook_scale"].shape == (3, 12, 1)
    resid = cache["blocks.1.hook_resid_pre"] + cache["blocks.1.hook_attn_out"] + cache["blocks.1.hook_mlp_out"]
    torch.testing.assert_close(resid, cache["blocks.1.hook_resid_post"], **FLOOR)
    if not c.attn_sinks:
        torch.testing.assert_close(cache["blocks.2.attn.hook_pattern"].sum(-1), torch.ones(3, c.n_heads, 12).double())


def test_patching_a_residual_makes_the_rest_of_the_run_the_other_prompts(model, tokens):
    _, clean = model.run_with_cache(tokens, ["blocks.1.hook_resid_post"])
    other = tokens.flip(1)
    patched = model.run_with_hooks(other, [("blocks.1.hook_resid_post", lambda x, hook: clean[hook.name])])
    torch.testing.assert_close(patched, model(tokens), **FLOOR)


def test_names_that_do_not_exist_are_errors_before_anything_runs(model, tokens):
    calls = []
    hooks = [("hook_embed", lambda x, hook: calls.append(hook)), ("blocks.1.hook_residpost", lambda x, hook: None)]
    with pytest.raises(introspect.HookError, match=r"blocks\.1\.hook_resid_post"):
        model.run_with_hooks(tokens, hooks)
    assert not calls
    with pytest.raises(introspect.HookError):
        model.run_with_cache(tokens, [f"blocks.{model.cfg.n_layers}.hook_resid_post"])


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 3}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batched_generation_equals_single_generation(model, tokens, options, side):
    prompts = [tokens[0].tolist(), tokens[1, :5].tolist(), tokens[2, :1].tolist()]
    batch = model.native.generate(prompts, max_new_tokens=10, padding_side=side, **options)
    first = model.native.generate(prompts[:1], max_new_tokens=10, **options)
    assert batch[0] == first[0]  # row 0 draws from the same stream alone and in a batch
    if not options:
        assert [model.native.generate([p], max_new_tokens=10)[0] for p in prompts] == batch


def test_greedy_generation_is_the_argmax_of_full_passes(model, tokens):
    row = tokens[:1]
    for _ in range(8):
        row = torch.cat([row, model(row)[:, -1:].argmax(-1)], dim=1)
    new = model.native.generate(tokens[:1].tolist(), max_new_tokens=8, stop_at_eos=False)[0]
    assert new == row[0, 12:].tolist()


def test_sampling_follows_the_softmax(plain, tokens):
    probabilities = torch.softmax(plain(tokens[:1])[0, -1] / 2.0, -1)
    draws = plain.native.generate(tokens[:1].tolist() * 4000, max_new_tokens=1, temperature=2.0, seed=1)
    counts = torch.bincount(torch.tensor(draws).flatten(), minlength=plain.cfg.d_vocab) / 4000
    # five standard deviations of a binomial share
    assert ((counts - probabilities).abs() <= 5 * (probabilities / 4000).sqrt() + 1e-3).all()


def test_repetition_penalty_and_stop_tokens(plain, tokens):
    prompt = tokens[:1]
    logits = plain(prompt)[0, -1].float()
    seen = prompt[0].unique()
    logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1e6, logits[seen] / 1e6)
    first = plain.native.generate(prompt.tolist(), max_new_tokens=1, repetition_penalty=1e6)[0][0]
    assert first == logits.argmax()
    greedy = plain.native.generate(prompt.tolist(), max_new_tokens=6)[0]
    stopped = plain.native.generate(prompt.tolist(), max_new_tokens=6, stop_token_ids=[greedy[2]])[0]
    assert stopped == greedy[: greedy.index(greedy[2]) + 1]


def test_bad_input_is_a_typed_error(plain, tokens):
    with pytest.raises(IndexError, match="token ids must be 0 to 100"):
        plain(tokens + 90)
    with pytest.raises(introspect.ShapeError, match="n_ctx"):
        plain(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(introspect.ShapeError, match="int64"):
        plain(tokens.float())
    with pytest.raises(introspect.ShapeError, match="real token"):
        plain(tokens, attention_mask=torch.zeros(3, 12, dtype=torch.bool))
    with pytest.raises(introspect.ShapeError, match="batch 3"):
        plain(tokens, cache=plain.native.make_cache(2))
    with pytest.raises(introspect.ConfigError, match="tokenizer"):
        plain("text without a tokenizer")
    with pytest.raises(introspect.ShapeError, match="n_ctx"):
        plain.native.generate(tokens.tolist(), max_new_tokens=60)
    for options in ({"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}, {"repetition_penalty": 0.0}):
        with pytest.raises(ValueError, match="generate"):
            plain.native.generate(tokens.tolist(), **options)
    with pytest.raises(ValueError, match="at least one token"):
        plain.native.generate([[]])


def test_a_model_without_tokenizer_files_loads_with_tokenizer_none(plain):
    assert plain.tokenizer is None


def test_wrong_checkpoints_are_typed_errors(tmp_path):
    folder = write_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")

    def broken(error, match, config=config, weights=weights):
        (folder / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(error, match=match):
            introspect.load_model(folder)

    broken(introspect.ConfigError, "MambaForCausalLM", {**config, "architectures": ["MambaForCausalLM"]})
    default = {k: v for k, v in config.items() if k != "hidden_size"}  # transformers takes 4096 for none
    broken(introspect.ShapeError, r"must be \[101, 4096\] by the config", default)
    broken(introspect.ConfigError, "must be a whole number", {**config, "hidden_size": "32"})
    broken(introspect.ConfigError, "multiple", {**config, "num_key_value_heads": 3})
    broken(introspect.ConfigError, "spiral", {**config, "rope_scaling": {"rope_type": "spiral", "factor": 2.0}})
    broken(introspect.ShapeError, "embed_tokens.weight", {**config, "vocab_size": 102})
    del weights["model.norm.weight"]
    broken(introspect.ConfigError, r"model\.norm\.weight", weights=weights)
    (folder / "config.json").write_text("{")
    with pytest.raises(introspect.IoError):
        introspect.load_model(folder)


def test_the_hash_names_the_checkpoint_whatever_its_dtype(tmp_path):
    a, b = write_tiny(tmp_path / "a"), write_tiny(tmp_path / "b", seed=1)
    hashes = [introspect.load_model(a, dtype=d).hash for d in (torch.float32, torch.bfloat16)]
    assert hashes[0] == hashes[1] != introspect.load_model(b).hash
