"""Logits that are not finite: returned by a pass, refused before a token is chosen of them."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_tiny, write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect


def spoilt(folder, **changes):
    """The tiny model with tensors of `changes` put in place, by name."""
    state = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        name = name.replace("__", ".") + ".weight"
        state[name] = change(state[name])
    save_file(state, folder / "model.safetensors")
    return folder


def with_nan(x):
    x = x.clone()
    x.view(-1)[::7] = float("nan")
    return x


# What is wrong, and the block out of which the first residual comes that is not finite.
FAULTS = {
    "embedding": ({"model__embed_tokens": with_nan}, torch.float32, "the embedding"),
    "overflow in block 1": ({"model__layers__1__mlp__down_proj": lambda x: x * 1e6}, torch.float16, "block 1"),
    "overflow of values in block 2": (
        {"model__layers__2__self_attn__v_proj": lambda x: x * 1e7},
        torch.float16,
        "block 2",
    ),
    "NaN in block 0": ({"model__layers__0__mlp__up_proj": with_nan}, torch.float32, "block 0"),
    "NaN at the end": ({"lm_head": with_nan}, torch.float64, "block 2"),
    "NaN in the last norm": ({"model__norm": with_nan}, torch.bfloat16, "block 2"),
}


@pytest.fixture(params=FAULTS)
def fault(request, tmp_path):
    changes, dtype, place = FAULTS[request.param]
    folder = spoilt(write_tiny_chat(tmp_path / "m"), **changes)
    return folder, dtype, place


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_names_the_block_before_it_chooses_a_token(fault, temperature):
    folder, dtype, place = fault
    model = introspect.load_model(folder, dtype=dtype)
    chosen = []
    with pytest.raises(introspect.Error, match=f"comes out of {place}, .*(bfloat16|float32)"):
        model.native.generate([[3, 4, 5]], temperature=temperature, on_token=lambda *token: chosen.append(token))
    assert chosen == []
    with pytest.raises(introspect.Error, match="not finite"):
        model.generate("cat", max_new_tokens=3)


def test_a_pass_returns_what_it_computed(fault):
    folder, dtype, place = fault
    model = introspect.load_model(folder, dtype=dtype)
    tokens = torch.tensor([[3, 4, 5]])
    logits = model(tokens)
    assert not logits.isfinite().all()
    with pytest.raises(introspect.Error, match=f"^here: .*comes out of {place}, "):
        model.native.check_finite(logits, who="here", tokens=tokens)


@pytest.mark.parametrize("options", [{}, {"freq_penalty": 0.5}, {"use_past_kv_cache": False}, {"do_sample": False}])
def test_the_lens_interface_names_it_too(tmp_path, options):
    folder = spoilt(write_tiny_chat(tmp_path / "m"), model__layers__1__mlp__down_proj=lambda x: x * 1e6)
    model = introspect.HookedTransformer.from_pretrained(folder, dtype=torch.float16)
    with pytest.raises(introspect.Error, match="comes out of block 1, "):
        model.generate("cat", max_new_tokens=3, verbose=False, **options)


def test_steering_that_overflows_is_told_in_the_middle_of_a_text(tmp_path):
    model = introspect.load_model(write_tiny_chat(tmp_path / "m"), dtype=torch.float16)
    vector = introspect.ControlVector("qwen2", {0: torch.ones(32), 1: torch.ones(32)})  # 65504 is the largest number
    with model.steer(60000 * vector), pytest.raises(introspect.Error, match=r"comes out of block 1, .*add less"):
        model.generate("cat", max_new_tokens=3)
    assert isinstance(model.generate("cat", max_new_tokens=3), str)


def test_only_the_rows_that_still_run_count(tmp_path):
    model = introspect.load_model(write_tiny(tmp_path), dtype=torch.float32)
    hooks = model.native.make_hooks()

    def spoil_row_1(x, name):
        x[1] = float("nan")

    hooks.add("blocks.1.hook_resid_post", spoil_row_1)
    with pytest.raises(introspect.Error, match="comes out of block 1, "):
        model.native.generate([[3, 4], [5, 6]], max_new_tokens=2, hooks=hooks)


def test_forbidden_tokens_are_no_fault(tmp_path):
    model = introspect.load_model(write_tiny(tmp_path))
    hooks = model.native.make_hooks()

    def forbid(x, name):
        x[..., 7:] = -float("inf")

    hooks.add("unembed.hook_out", forbid) if "unembed.hook_out" in model.native.hook_names() else None
    (new,) = model.native.generate([[3, 4]], max_new_tokens=5, temperature=1.0, hooks=hooks)
    assert len(new) == 5
    model.native.check_finite(torch.tensor([[1.0, -float("inf")]]), tokens=torch.tensor([[3]]))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(introspect.Error):
            model.native.check_finite(torch.tensor([[1.0, bad]]), tokens=torch.tensor([[3]]))
    with pytest.raises(introspect.Error):
        model.native.check_finite(torch.full((1, 3), -float("inf")), tokens=torch.tensor([[3]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("d_head", [8, 32])
def test_queries_and_keys_that_are_not_finite_reach_the_logits(tmp_path, dtype, d_head):
    """ATen's fused attention gives 0 for a query whose scores are all NaN; the softmax of NaN is NaN."""
    n = 4 * d_head
    folder = write_tiny(tmp_path, "LlamaForCausalLM", hidden_size=n, num_hidden_layers=2)
    model = introspect.load_model(folder, dtype=dtype)
    W_QKV = dict(model.native.named_weights())["blocks.1.attn.W_QKV"]
    tokens = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    for rows in (slice(0, n), slice(n, n + n // 2)):
        for value in (float("nan"), float("inf")):
            spoilt = W_QKV.clone()
            spoilt[rows] = value
            native = model.native.with_weights({"blocks.1.attn.W_QKV": spoilt})
            cache = native.make_cache(2)
            step = [native.forward(tokens[:, i : i + 1], cache=cache) for i in range(5)][-1]
            graph = introspect.Graph()
            whole = introspect.Model(native, name="spoilt")
            start = graph.segment(whole, [3, 4, 5])
            for token in (6, 7):
                graph.read(graph.segment(whole, [token, 8], start), layers=[1])
            found = {
                "pass": native.forward(tokens),
                "one token": native.forward(tokens[:, :1]),
                "step": step,
                "padded": native.forward(tokens, attention_mask=mask)[mask],
                "graph": torch.cat([reading.flatten() for reading in graph.run()]),
            }
            for how, numbers in found.items():
                assert numbers.isnan().all(), (how, rows, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_head", [8, 32])
@pytest.mark.parametrize("padded", [False, True])
def test_scores_that_overflow_downwards_reach_the_logits(tmp_path, dtype, d_head, padded):
    """A softmax of nothing but -inf is NaN; a query that sees such keys is none that sees no key."""
    model = introspect.load_model(write_tiny(tmp_path, "LlamaForCausalLM", hidden_size=4 * d_head), dtype=dtype)
    mask = torch.arange(40)[None] >= 3 if padded else None
    hooks = [
        ("blocks.1.attn.hook_rot_q", lambda x, hook: torch.full_like(x, 1e25)),
        ("blocks.1.attn.hook_rot_k", lambda x, hook: torch.full_like(x, -1e25)),
    ]
    assert model.run_with_hooks(torch.arange(3, 43)[None], hooks, attention_mask=mask).isnan().all()


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "mixtral"])
def test_what_is_not_a_number_at_any_hook_point_reaches_the_logits(tmp_path, architecture):
    model = introspect.load_model(write_tiny_transformers(tmp_path, architecture))
    tokens = torch.arange(3, 12)[None]
    floating = {}
    look = [(name, lambda x, hook: floating.__setitem__(hook.name, x.is_floating_point())) for name in model.hook_names]
    model.run_with_hooks(tokens, look)

    def spoil(x, hook):
        x = x.clone()
        of_pairs = hook.name.endswith(("attn_scores", "pattern"))  # [batch, head, query, key]
        x.select(2 if of_pairs else 1, 4).fill_(float("nan"))
        return x

    for name in (name for name, is_floating in floating.items() if is_floating):
        assert model.run_with_hooks(tokens, [(name, spoil)])[0, 4].isnan().all(), name
