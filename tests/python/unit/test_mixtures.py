"""Mixtures of experts: what the router shows and lets be changed, what its experts run, and what a mixture has not."""

import pytest
import torch
from adapters import adapter_of, random_peft
from reference import exact_softmax
from tiny import tiny_loader, tiny_transformers

import introspect
from introspect import analysis

FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss"]
EXACT = {"rtol": 0, "atol": 1e-9}
LAYER = 1
WEIGHTS, INDICES = (f"blocks.{LAYER}.mlp.hook_expert_{what}" for what in ("weights", "indices"))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=FAMILIES)
def model(request, load):
    return load(request.param)


@pytest.fixture
def tokens(rng):
    return torch.randint(3, 101, (2, 12), generator=rng)


def router_of(theirs, layer=LAYER):
    mlp = theirs.model.layers[layer].mlp
    return mlp.router if hasattr(mlp, "router") else mlp.gate


def expert_of(model):
    """The MLP of an expert in plain torch, from its weights under TransformerLens's names."""
    native, cfg = model.native, model.cfg
    names = set(native.weight_names())

    def linear(e, matrix, x):
        name = f"blocks.{LAYER}.mlp.experts.{e}.{matrix}"
        bias = native.weight(name + ".bias") if name + ".bias" in names else None
        return torch.nn.functional.linear(x, native.weight(name + ".weight"), bias)

    def expert(e, x):
        gate, up = linear(e, "W_gate", x), linear(e, "W_in", x)
        if cfg.act_fn == "swiglu_clamped":
            gate, up = gate.clamp(max=7), up.clamp(-7, 7)
            return linear(e, "W_out", (up + 1) * gate * torch.sigmoid(1.702 * gate))
        return linear(e, "W_out", torch.nn.functional.silu(gate) * up)

    return expert


def mixed(model, x, probabilities, indices):
    """Every expert for every token, and the chosen ones' weighted sum: [batch, pos, d_model]."""
    expert = expert_of(model)
    chosen = probabilities.gather(-1, indices)
    if model.cfg.norm_topk_prob:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    all_of_them = torch.stack([expert(e, x) for e in range(model.cfg.num_experts)], -2)  # [batch, pos, E, d_model]
    picked = all_of_them.gather(-2, indices[..., None].expand(*indices.shape, x.shape[-1]))
    return (chosen[..., None] * picked).sum(-2)


def normed(model, cache):
    return cache[f"blocks.{LAYER}.ln2.hook_normalized"] * model.native.weight(f"blocks.{LAYER}.ln2.w")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_router_shows_what_transformers_routes(name, load, tokens):
    theirs, model = tiny_transformers(name), load(name)
    seen = {}
    handle = router_of(theirs).register_forward_hook(
        lambda module, args, out: seen.update(zip("lwi", out, strict=True))
    )
    with torch.no_grad(), exact_softmax():
        theirs(tokens, use_cache=False)
    handle.remove()
    _, cache = model.run_with_cache(tokens, [WEIGHTS, INDICES])
    k, E = model.cfg.experts_per_token, model.cfg.num_experts
    assert cache[WEIGHTS].shape == (2, 12, E)
    assert cache[INDICES].shape == (2, 12, k)
    assert cache[INDICES].dtype == torch.int64
    torch.testing.assert_close(cache[WEIGHTS].flatten(0, 1), seen["l"].softmax(-1), **EXACT)
    assert torch.equal(cache[INDICES].flatten(0, 1), seen["i"])
    chosen = cache[WEIGHTS].gather(-1, cache[INDICES])
    if model.cfg.norm_topk_prob:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    torch.testing.assert_close(chosen.flatten(0, 1), seen["w"], **EXACT)


def test_what_an_mlp_writes_is_the_weighted_sum_of_its_experts(model, tokens):
    _, cache = model.run_with_cache(tokens, [WEIGHTS, INDICES, f"blocks.{LAYER}.hook_mlp_out",
                                             f"blocks.{LAYER}.ln2.hook_normalized"])  # fmt: skip
    expected = mixed(model, normed(model, cache), cache[WEIGHTS], cache[INDICES])
    torch.testing.assert_close(cache[f"blocks.{LAYER}.hook_mlp_out"], expected, **EXACT)


def test_changed_weights_change_the_choice_and_changed_indices_force_it(model, tokens):
    names = [f"blocks.{LAYER}.hook_mlp_out", f"blocks.{LAYER}.ln2.hook_normalized"]
    k = model.cfg.experts_per_token

    def without_the_first(x, hook):
        return torch.cat([torch.zeros_like(x[..., :1]), x[..., 1:]], -1)

    def all_to_the_last(x, hook):
        return (torch.arange(k) + model.cfg.num_experts - k).expand_as(x)

    _, plain = model.run_with_cache(tokens, [WEIGHTS, *names])
    with model.hooks(fwd_hooks=[(WEIGHTS, without_the_first)]):
        _, cache = model.run_with_cache(tokens, [WEIGHTS, INDICES, *names])
    assert not (cache[INDICES] == 0).any()
    expected = mixed(model, normed(model, cache), cache[WEIGHTS], cache[WEIGHTS].topk(k).indices)
    torch.testing.assert_close(cache[names[0]], expected, **EXACT)
    with model.hooks(fwd_hooks=[(INDICES, all_to_the_last)]):
        _, cache = model.run_with_cache(tokens, [INDICES, *names])
    expected = mixed(model, normed(model, cache), plain[WEIGHTS], cache[INDICES])
    torch.testing.assert_close(cache[names[0]], expected, **EXACT)
    with (
        pytest.raises(IndexError, match=f"must be 0 to {model.cfg.num_experts - 1}, got"),
        model.hooks(fwd_hooks=[(INDICES, lambda x, hook: torch.full_like(x, 99))]),
    ):
        model(tokens)


def test_an_expert_that_nobody_chose_is_not_run(model, tokens):
    """Its weights are no numbers, and nothing comes of it."""
    tokens = tokens[:1, :1]
    _, cache = model.run_with_cache(tokens, [INDICES])
    idle = set(range(model.cfg.num_experts)) - set(cache[INDICES].flatten().tolist())
    name = f"blocks.{LAYER}.mlp.experts.{idle.pop()}.W_out"
    weights = dict(model.native.named_weights())
    broken = introspect.Model(model.native.with_weights({name: torch.full_like(weights[name], torch.nan)}), name="m")
    torch.testing.assert_close(broken(tokens), model(tokens), rtol=0, atol=0)


def test_interventions_on_the_routers_weights_are_planned_as_they_are_run(model, tokens):
    first = torch.eye(model.cfg.num_experts, dtype=torch.float64)[0]
    change = introspect.Intervention({LAYER: first}, strength=2.0, point="mlp.hook_expert_weights", first_position=3)
    graph = introspect.Graph()
    node = graph.segment(model, tokens[0], interventions=[change])
    graph.read(node, layers=[2])
    hooks = model.native.make_hooks()
    hooks.add_intervention(change)
    expected = model.native.forward(tokens[:1], hooks=hooks, stop_at_layer=3)[0]
    torch.testing.assert_close(graph.run()[0][0][-1], expected[-1], **EXACT)
    indices = introspect.Intervention({LAYER: torch.ones(model.cfg.experts_per_token)}, point="mlp.hook_expert_indices")
    with pytest.raises(introspect.HookError, match="a callback can change"):
        hooks.add_intervention(indices)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_the_router_and_the_experts_that_ran(name, load, tokens):
    theirs, model = tiny_transformers(name), load(name)
    target = torch.randn(101, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with exact_softmax():
        (theirs(tokens, use_cache=False).logits @ target).tanh().sum().backward()
    weights = {n: w.clone().requires_grad_() for n, w in model.native.named_weights() if ".mlp." in n}
    own = introspect.Model(model.native.with_weights(weights), name="m")
    (own(tokens) @ target).tanh().sum().backward()
    for layer in range(model.cfg.n_layers):
        prefix, mlp = f"blocks.{layer}.mlp.", theirs.model.layers[layer].mlp
        expected = {prefix + "W_router": router_of(theirs, layer).weight.grad}
        for e in range(model.cfg.num_experts):
            gate_up, down = mlp.experts.gate_up_proj.grad[e], mlp.experts.down_proj.grad[e]
            if name == "gpt_oss":  # [in, out], gate and up in turns
                gate_up, down = gate_up.T.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1), down.T
            expected |= {f"{prefix}experts.{e}.W_in": gate_up, f"{prefix}experts.{e}.W_out": down}
        for key, gradient in expected.items():
            got = weights[key].grad
            got = torch.zeros_like(gradient) if got is None else got
            scale = max(1.0, gradient.abs().max().item())  # RMS norms are float32 on both sides
            torch.testing.assert_close(got, gradient, rtol=0, atol=1e-5 * scale)


def test_folded_norms_leave_the_logits_as_they_were(model, tokens):
    folded = introspect.Model(model.native.processed(fold_ln=True, center_unembed=False), name="folded")
    torch.testing.assert_close(folded(tokens), model(tokens), rtol=0, atol=1e-5)  # norms round to float32
    _, cache = folded.run_with_cache(tokens, [WEIGHTS])
    torch.testing.assert_close(cache[WEIGHTS], model.run_with_cache(tokens, [WEIGHTS])[1][WEIGHTS], rtol=0, atol=1e-6)


def test_what_a_mixture_has_not_is_said(model, tokens):
    with pytest.raises(introspect.HookError, match="hook_post' does not exist"):
        model.run_with_cache(tokens, [f"blocks.{LAYER}.mlp.hook_post"])
    with pytest.raises(ValueError, match=r"mlp\.experts\.0\.W_in\.weight"):
        model.native.stacked_weight("mlp.W_in")
    with pytest.raises(introspect.ConfigError, match="neurons of a mixture of experts"):
        analysis.direct_logit_attribution(model, tokens[:1], 5, unit="neuron")
    names = model.native.weight_names()
    assert f"blocks.{LAYER}.mlp.experts.0.W_gate.weight" in names
    assert all(model.native.weight(name).isfinite().all() for name in names)


def test_an_adapter_of_attention_fits(tmp_path, tokens):
    wrapped = random_peft("mixtral", tmp_path, target_modules=["q_proj", "v_proj"])
    with torch.no_grad(), exact_softmax():
        expected = wrapped(tokens, use_cache=False).logits
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    torch.testing.assert_close(model.with_adapter(adapter_of(tmp_path))(tokens), expected, rtol=0, atol=1e-6)
