"""OLMo 2 and 3: norms of what layers write and none of what they read, and of all heads of a token as one vector."""

import pytest
import torch
from reference import exact_softmax
from tiny import tiny_loader, tiny_transformers

import introspect
from introspect import _C

EXACT = {"rtol": 0, "atol": 1e-9}
LAYER = 1
Q_NORM = f"blocks.{LAYER}.attn.q_norm"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tokens(rng):
    return torch.randint(3, 101, (2, 12), generator=rng)


@pytest.mark.parametrize("name", ["olmo2", "olmo3"])
def test_what_norms_give_is_what_transformers_norms_give(name, load, tokens):
    theirs, model = tiny_transformers(name), load(name)
    block, seen = theirs.model.layers[LAYER], {}
    norms = {
        "attn.q_norm": block.self_attn.q_norm, "attn.k_norm": block.self_attn.k_norm,
        "ln1_post": block.post_attention_layernorm, "ln2_post": block.post_feedforward_layernorm,
    }  # fmt: skip
    for key, norm in norms.items():
        norm.register_forward_hook(lambda module, args, out, key=key: seen.update({key: out.detach()}))
    with exact_softmax():
        theirs(tokens, use_cache=False)
    names = [f"blocks.{LAYER}.{key}.hook_{what}" for key in norms for what in ("normalized", "scale")]
    _, cache = model.run_with_cache(tokens, names)
    for key in norms:
        normalized, scale = (cache[f"blocks.{LAYER}.{key}.hook_{what}"] for what in ("normalized", "scale"))
        weight = model.native.weight(f"blocks.{LAYER}.{key}.w")
        torch.testing.assert_close(normalized.flatten(2) * weight, seen[key], **EXACT)
        assert scale.shape == (*normalized.shape[:-1], 1)
        if normalized.dim() == 4:  # one number for all heads
            assert torch.equal(scale, scale[:, :, :1].expand_as(scale))


def test_a_changed_scale_divides_each_head_by_its_own(load, tokens):
    model = load("olmo2")
    points = [f"{Q_NORM}.hook_scale", f"{Q_NORM}.hook_normalized", f"blocks.{LAYER}.attn.hook_q"]
    factors = torch.linspace(1, 2, model.cfg.n_heads)[:, None]
    with model.hooks(fwd_hooks=[(points[0], lambda x, hook: x * factors)]):
        _, changed = model.run_with_cache(tokens, points)
    _, plain = model.run_with_cache(tokens, points)
    torch.testing.assert_close(changed[points[1]], plain[points[1]] / factors, rtol=0, atol=1e-6)  # scales are float32


def test_layers_read_the_stream_as_it_is(load, tokens):
    model = load("olmo3")
    assert not any(".ln1." in name or ".ln2." in name for name in model.hook_dict)
    with pytest.raises(introspect.HookError, match=r"ln1_post\.hook_normalized"):
        model.run_with_cache(tokens, [f"blocks.{LAYER}.ln1.hook_normalized"])
    points = ("hook_resid_pre", "attn.hook_q", "hook_mlp_in", "mlp.hook_pre")
    _, cache = model.run_with_cache(tokens, [f"blocks.{LAYER}.{point}" for point in points])
    W_Q = model.native.weight(f"blocks.{LAYER}.attn.W_Q")
    q = torch.einsum("btd,hdk->bthk", cache["resid_pre", LAYER], W_Q)
    torch.testing.assert_close(cache["q", LAYER], q, **EXACT)
    pre = cache["mlp_in", LAYER] @ model.native.weight(f"blocks.{LAYER}.mlp.W_gate")
    torch.testing.assert_close(cache["pre", LAYER], pre, **EXACT)


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory):
    def load(name):
        theirs = tiny_transformers(name).bfloat16()
        theirs.save_pretrained(folder := tmp_path_factory.mktemp("bfloat16"))
        return theirs, introspect.load_model(folder, dtype=torch.bfloat16)

    return load


@pytest.mark.parametrize("name", ["olmo2", "gpt_oss"])
def test_norms_round_after_their_weight_as_in_transformers_bit_for_bit(name, in_bfloat16, rng):
    theirs, ours = in_bfloat16(name)
    x = torch.randn(3, 7, 48, generator=rng).bfloat16()
    expected = theirs.model.norm(x)
    assert torch.equal(_C.apply_norm(ours.native, x, None, layer=ours.cfg.n_layers, mlp_input=False), expected)
    rounded_first = (
        theirs.model.norm.weight * (x.float() * (x.float().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()).bfloat16()
    )
    assert not torch.equal(rounded_first, expected)


def test_queries_and_keys_are_normed_and_turned_as_in_transformers_bit_for_bit(in_bfloat16, tokens):
    from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb

    theirs, ours = in_bfloat16("olmo2")
    attention = theirs.model.layers[0].self_attn
    _, cache = ours.run_with_cache(tokens, [f"blocks.0.attn.hook_{kind}" for kind in ("q", "k", "rot_q", "rot_k")])
    q, k = (cache[f"blocks.0.attn.hook_{kind}"] for kind in "qk")
    q, k = attention.q_norm(q.flatten(2)).view(q.shape), attention.k_norm(k.flatten(2)).view(k.shape)
    # Angles of models in from_pretrained's dtypes come from float32 frequencies.
    frequencies = 1 / 10000 ** (torch.arange(0, 8, 2).float() / 8)
    angles = (torch.arange(tokens.shape[1])[:, None] * frequencies).repeat(1, 2)[None]
    expected = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), angles.cos(), angles.sin())
    for kind, turned in zip(("rot_q", "rot_k"), expected, strict=True):
        assert torch.equal(cache[f"blocks.0.attn.hook_{kind}"], turned.transpose(1, 2))
