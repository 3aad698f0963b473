"""ActivationCache: its keys, its slices, and decompositions of the residual stream that must sum to it."""

import pytest
import torch
from tiny import write_tiny_transformers

import introspect
from introspect.hooks.activation_cache import ActivationCache

N_LAYERS = 3


# One of each way in which a residual stream is written and read: grouped heads, biases of heads and MLPs, norms after
# layers (with a bias through one), learned positions and LayerNorm, parallel blocks, two rotary bases, no biases.
FAMILIES = {
    "qwen2": {},
    "llama": {},
    "gemma2": {"attention_bias": True},
    "gemma3 layer types": {},
    "gpt2": {},
    "gpt_neox": {},
    "phi3": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "m"
    write_tiny_transformers(folder, request.param, **FAMILIES[request.param])
    return introspect.load_model(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens(model):
    return torch.randint(0, model.cfg.d_vocab, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cache(model, tokens):
    return ActivationCache(dict(model.run_with_cache(tokens)[1]), model)


# Keys


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
        (("resid_post", 1), "blocks.1.hook_resid_post"),
        (("k", 2, "attn"), "blocks.2.attn.hook_k"),
        (("k", 2), "blocks.2.attn.hook_k"),
        (("pattern", -1), "blocks.2.attn.hook_pattern"),
        (("attn", -3), "blocks.0.attn.hook_pattern"),
        ("scale1ln1", "blocks.1.ln1.hook_scale"),
        (("normalized", 0, "ln2"), "blocks.0.ln2.hook_normalized"),
        ("embed", "hook_embed"),
        (("embed",), "hook_embed"),
        ("scale", "ln_final.hook_scale"),
    ],
)
def test_every_form_of_a_key_finds_the_activation(cache, key, name):
    assert cache[key] is cache.cache_dict[name]
    assert key in cache


def test_a_cache_is_a_mapping_over_full_names(cache):
    assert list(cache) == list(cache.keys()) == list(cache.cache_dict)
    assert len(cache) == len(cache.values()) == len(cache.items())
    assert cache.get("nonsense") is None
    assert dict(cache) == cache.cache_dict


@pytest.mark.parametrize("key", ["blocks.1.hook_resid_pots", ("resid_pots", 1)])
def test_a_misspelt_key_is_a_hook_error_and_a_key_error_that_names_the_nearest(cache, key):
    with pytest.raises(introspect.HookError, match=r"no 'blocks.1.hook_resid_pots'.*blocks.1.hook_resid_post"):
        cache[key]
    with pytest.raises(KeyError):
        cache[key]


@pytest.mark.parametrize("key", [3, None, (), (3, "k"), ("k", 0, "attn", 1)])
def test_what_is_no_key_at_all_is_missing_too(cache, key):
    with pytest.raises(introspect.HookError, match="key is a name or"):
        cache[key]


def test_an_activation_that_was_filtered_out_is_told_from_one_that_does_not_exist(model, tokens):
    cache = ActivationCache(model.run_with_cache(tokens, ["hook_embed"])[1], model)
    with pytest.raises(KeyError, match=r"'blocks.0.attn.hook_k' was not cached"):
        cache["k", 0]
    with pytest.raises(KeyError, match=r"'blocks.0.attn.hook_result' was not cached"):
        cache["result", 0]
    with pytest.raises(KeyError, match=r"no 'blocks.3.attn.hook_k'"):
        cache["k", 3]


# The whole cache


def test_removing_the_batch_dimension(model, tokens):
    cache = ActivationCache(model.run_with_cache(tokens[:1])[1], model)
    before = dict(cache.cache_dict)
    assert cache.remove_batch_dim() is cache
    assert not cache.has_batch_dim
    assert all(torch.equal(cache[name], before[name][0]) for name in before)
    with pytest.warns(UserWarning, match="already removed"):
        cache.remove_batch_dim()


def test_a_batch_of_two_keeps_its_dimension(cache):
    shapes = {name: x.shape for name, x in cache.items()}
    with pytest.raises(introspect.ShapeError, match="batch must be 1, got 2"):
        cache.remove_batch_dim()
    assert {name: x.shape for name, x in cache.items()} == shapes


def test_rows_of_the_batch(cache):
    row = cache.apply_slice_to_batch_dim(1)
    assert not row.has_batch_dim
    assert torch.equal(row["k", 0], cache["k", 0][1])
    rows = cache.apply_slice_to_batch_dim([1, 0])
    assert rows.has_batch_dim
    assert torch.equal(rows["pattern", 2], cache["pattern", 2].flip(0))
    with pytest.raises(introspect.ShapeError, match="removed"):
        row.apply_slice_to_batch_dim(0)
    assert row.apply_slice_to_batch_dim(None)["k", 0] is row["k", 0]


def test_to_changes_dtype_and_device_of_the_cache_alone(cache, model):
    assert cache.to(torch.float32)["k", 0].dtype == torch.float32
    assert cache.to("cpu", dtype=torch.bfloat16)["k", 0].dtype == torch.bfloat16
    assert cache.to("meta")["k", 0].device.type == "meta"
    assert model.dtype == torch.float64
    with pytest.raises(introspect.ConfigError, match="move_model"):
        cache.to("cpu", move_model=True)


def test_toggling_autograd_is_global_and_says_so(cache):
    with torch.enable_grad():
        with pytest.warns(UserWarning, match="off"):
            cache.toggle_autodiff()
        assert not torch.is_grad_enabled()
        with pytest.warns(UserWarning, match="on"):
            cache.toggle_autodiff(mode=True)
        assert torch.is_grad_enabled()


def test_stacked_activations(cache):
    assert torch.equal(cache.stack_activation("z"), torch.stack([cache["z", layer] for layer in range(N_LAYERS)]))
    assert cache.stack_activation("scale", 2, "ln2").shape == (2, 2, 7, 1)


# The residual stream

# The model's own float64 arithmetic on both sides; only the order of sums differs.
EXACT = {"rtol": 0, "atol": 1e-11}
# Root-mean-square norms are computed in float32, so a division by their scale is exact to 1e-7 of values around ten.
SCALED = {"rtol": 0, "atol": 1e-5}


def summing(cache):
    """How exactly components sum to the stream: to float32's rounding where a norm stands after layers."""
    return SCALED if cache.model.cfg.use_normalization_before_and_after else EXACT


def stream(cache, layer, mlp_input=False):
    if layer in (None, -1, N_LAYERS):
        return cache["resid_post", -1]
    parallel = cache.model.cfg.parallel_attn_mlp
    return cache["resid_mid" if mlp_input and not parallel else "resid_pre", layer]


def norm_output(cache, layer, mlp_input=False):
    """What the norm before a block, its MLP or the unembedding made of the stream, less its bias."""
    name = "ln_final" if layer in (None, -1, N_LAYERS) else f"blocks.{layer}.ln{2 if mlp_input else 1}"
    return cache[f"{name}.hook_normalized"] * cache.model.native.weight(f"{name}.w")


WHERE = [(None, False), (N_LAYERS, False), (-1, False), (2, False), (1, True), (0, True), (0, False)]


@pytest.mark.parametrize(("layer", "mlp_input"), WHERE)
def test_layers_sum_to_the_stream(cache, layer, mlp_input):
    stack, labels = cache.decompose_resid(layer, mlp_input, return_labels=True)
    assert len(labels) == len(stack)
    torch.testing.assert_close(stack.sum(0), stream(cache, layer, mlp_input), **summing(cache))
    normed = cache.decompose_resid(layer, mlp_input, apply_ln=True)
    torch.testing.assert_close(normed.sum(0), norm_output(cache, layer, mlp_input), **SCALED)


@pytest.mark.parametrize("expand_neurons", [True, False])
@pytest.mark.parametrize(("layer", "mlp_input"), WHERE)
def test_the_full_decomposition_sums_to_the_stream(cache, layer, mlp_input, expand_neurons):
    options = {"layer": layer, "mlp_input": mlp_input, "expand_neurons": expand_neurons}
    stack, labels = cache.get_full_resid_decomposition(**options, return_labels=True)
    assert len(labels) == len(stack) == len(set(labels))
    assert labels[-1] == "bias"
    torch.testing.assert_close(stack.sum(0), stream(cache, layer, mlp_input), **summing(cache))
    normed = cache.get_full_resid_decomposition(**options, apply_ln=True)
    torch.testing.assert_close(normed.sum(0), norm_output(cache, layer, mlp_input), **SCALED)


@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("mlp_input", [False, True])
def test_a_projection_of_the_decomposition_is_the_decomposition_of_the_projection(cache, rng, apply_ln, mlp_input):
    onto = torch.randn(cache.model.cfg.d_model, 3, generator=rng, dtype=torch.float64)
    options = {"layer": 2, "mlp_input": mlp_input, "apply_ln": apply_ln}
    for method in (cache.get_full_resid_decomposition, *([] if mlp_input else [cache.stack_neuron_results])):
        if method == cache.stack_neuron_results:
            options.pop("mlp_input")
        whole = method(**options)
        torch.testing.assert_close(method(**options, project_output_onto=onto), whole @ onto, **EXACT)
        torch.testing.assert_close(method(**options, project_output_onto=onto[:, 0]), whole @ onto[:, 0], **EXACT)


def test_labels_name_the_components(cache):
    cfg = cache.model.cfg
    embeds = ["embed", "pos_embed"] if cache.has_pos_embed else ["embed"]
    layers = [f"{layer}_{kind}_out" for layer in range(2) for kind in ("attn", "mlp")]
    assert cache.decompose_resid(2, return_labels=True)[1] == embeds + layers
    assert cache.decompose_resid(2, mode="mlp", incl_embeds=False, return_labels=True)[1] == ["0_mlp_out", "1_mlp_out"]
    stack, labels = cache.get_full_resid_decomposition(2, return_labels=True)
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(cfg.n_heads)]
    neurons = [f"L{layer}N{neuron}" for layer in range(2) for neuron in range(cfg.d_mlp)]
    assert labels == [*heads, *neurons, *embeds, "bias"]
    torch.testing.assert_close(stack[labels.index("embed")], cache["embed"], rtol=0, atol=0)
    labels = cache.get_full_resid_decomposition(1, expand_neurons=False, return_labels=True)[1]
    assert labels == [*heads[: cfg.n_heads], "0_mlp_out", *embeds, "bias"]


def test_only_one_kind_of_layer(cache):
    attn, mlp = (cache.decompose_resid(mode=mode, incl_embeds=False) for mode in ("attn", "mlp"))
    torch.testing.assert_close(attn, cache.stack_activation("attn_out"), rtol=0, atol=0)
    torch.testing.assert_close(mlp, cache.stack_activation("mlp_out"), rtol=0, atol=0)
    with pytest.raises(ValueError, match="mode must be"):
        cache.decompose_resid(mode="heads")


def test_accumulated_streams_and_their_labels(cache):
    stack, labels = cache.accumulated_resid(return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    expected = [*(cache["resid_pre", layer] for layer in range(N_LAYERS)), cache["resid_post", -1]]
    assert torch.equal(stack, torch.stack(expected))
    if not cache.model.cfg.parallel_attn_mlp:
        stack, labels = cache.accumulated_resid(1, incl_mid=True, mlp_input=True, return_labels=True)
        assert labels == ["0_pre", "0_mid", "1_pre", "1_mid"]
        assert torch.equal(stack[1::2], torch.stack([cache["resid_mid", 0], cache["resid_mid", 1]]))


def test_the_logit_lens_ends_in_the_models_own_logits(cache):
    lens = cache.accumulated_resid(apply_ln=True)
    assert torch.equal(lens[-1], cache["unembed.hook_in"])
    engine = cache.model.native
    logits = lens @ engine.weight("unembed.W_U") + engine.weight("unembed.b_U")
    torch.testing.assert_close(logits[-1], cache["unembed.hook_out"], **EXACT)
    stop = torch.stack([engine.readout(cache["resid_pre", layer]) for layer in range(N_LAYERS)])
    if engine.cfg.output_logits_soft_cap == 0:
        torch.testing.assert_close(logits[:-1], stop, **EXACT)


@pytest.mark.parametrize("mlp_input", [False, True])
def test_accumulated_streams_up_to_a_layer_are_normed_with_its_scale(cache, mlp_input):
    normed = cache.accumulated_resid(1, apply_ln=True, mlp_input=mlp_input)
    torch.testing.assert_close(normed[-1], norm_output(cache, 1, mlp_input), **SCALED)


def test_heads_sum_to_what_attention_writes(cache):
    engine, H = cache.model.native, cache.model.cfg.n_heads
    heads = cache.stack_head_results(2)
    bias = engine.weight("blocks.2.attn.b_O")
    if cache.model.cfg.use_normalization_before_and_after:
        bias = bias / cache["scale2ln1_post"] * engine.weight("blocks.2.ln1_post.w")
    of_layer = cache.stack_head_results()[2 * H :]
    torch.testing.assert_close(of_layer.sum(0) + bias, cache["attn_out", 2], **summing(cache))
    stack, labels = cache.stack_head_results(2, return_labels=True, incl_remainder=True)
    assert labels == [*(f"L{layer}H{head}" for layer in range(2) for head in range(H)), "remainder"]
    assert torch.equal(stack[:-1], heads)
    torch.testing.assert_close(stack.sum(0), stream(cache, 2), **EXACT)
    normed = cache.stack_head_results(2, incl_remainder=True, apply_ln=True)
    torch.testing.assert_close(normed.sum(0), norm_output(cache, 2), **SCALED)


def test_head_results_are_the_hooked_ones(cache, model, tokens):
    hooked = model.run_with_cache(tokens, [f"blocks.{layer}.attn.hook_result" for layer in range(N_LAYERS)])[1]
    before = cache.stack_head_results()
    cache.compute_head_results()
    for layer in range(N_LAYERS):
        torch.testing.assert_close(cache["result", layer], hooked[f"blocks.{layer}.attn.hook_result"], **EXACT)
    torch.testing.assert_close(cache.stack_head_results(apply_ln=False), before, **EXACT)


def test_a_cached_head_result_that_a_hook_has_changed_is_what_counts(model, tokens):
    name = "blocks.1.attn.hook_result"
    seen = {}

    def ablate(result, hook):
        return torch.cat([torch.zeros_like(result[:, :, :1]), result[:, :, 1:]], dim=2)

    def keep(activation, hook):
        seen[hook.name] = activation

    model.run_with_hooks(tokens, [(name, ablate), *((n, keep) for n in [*model.hook_names, name])])
    cache = ActivationCache(seen, model)
    heads = cache.stack_head_results(2, incl_remainder=True)
    assert heads[model.cfg.n_heads].abs().max() == 0
    torch.testing.assert_close(heads.sum(0), cache["resid_pre", 2], **EXACT)


def test_neurons_sum_to_what_the_mlp_writes(cache):
    results = cache.get_neuron_results(1)
    assert results.shape == (2, 7, cache.model.cfg.d_mlp, cache.model.cfg.d_model)
    out = results.sum(-2) + cache.model.native.weight("blocks.1.mlp.b_out")  # zero where a norm stands after
    torch.testing.assert_close(out, cache["mlp_out", 1], **summing(cache))
    stack, labels = cache.stack_neuron_results(2, return_labels=True, incl_remainder=True)
    assert labels[cache.model.cfg.d_mlp] == "L1N0"
    torch.testing.assert_close(stack[cache.model.cfg.d_mlp : -1].movedim(0, -2), results, **EXACT)
    torch.testing.assert_close(stack.sum(0), stream(cache, 2), **EXACT)
    normed = cache.stack_neuron_results(2, incl_remainder=True, apply_ln=True)
    torch.testing.assert_close(normed.sum(0), norm_output(cache, 2), **SCALED)


def test_some_neurons_and_their_projections(cache, rng):
    onto = torch.randn(cache.model.cfg.d_model, 2, generator=rng, dtype=torch.float64)
    whole = cache.get_neuron_results(1)
    for neurons in ([3, 0, -1], (2, 9), torch.tensor([5]), 4, -2):
        python_index = slice(*neurons) if isinstance(neurons, tuple) else neurons
        chosen = whole[:, :, python_index]
        results = cache.get_neuron_results(1, neurons)
        torch.testing.assert_close(results, chosen, **EXACT)
        torch.testing.assert_close(
            cache.get_neuron_results(1, neurons, project_output_onto=onto), chosen @ onto, **EXACT
        )
        vector = cache.get_neuron_results(1, neurons, project_output_onto=onto[:, 1])
        torch.testing.assert_close(vector, chosen @ onto[:, 1], **EXACT)
    stack, labels = cache.stack_neuron_results(2, neuron_slice=[3, -1], return_labels=True)
    assert labels == ["L0N3", f"L0N{whole.shape[2] - 1}", "L1N3", f"L1N{whole.shape[2] - 1}"]
    torch.testing.assert_close(stack[2], whole[:, :, 3], **EXACT)
    assert cache.stack_neuron_results(2, neuron_slice=3, return_labels=True)[1] == ["L0N3", "L1N3"]


METHODS = [
    ("accumulated_resid", {}),
    ("decompose_resid", {}),
    ("stack_head_results", {"incl_remainder": True}),
    ("stack_neuron_results", {"layer": 2, "incl_remainder": True}),
    ("get_full_resid_decomposition", {}),
]


@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_slice_of_positions_is_a_slice_of_the_whole(cache, method, options, apply_ln):
    run = getattr(cache, method)
    whole = run(**options, apply_ln=apply_ln)
    for pos_slice, index in [(-1, -1), (3, 3), ((2, 5), slice(2, 5)), ([6, 0], [6, 0]), (torch.tensor([-1]), [-1])]:
        torch.testing.assert_close(run(**options, apply_ln=apply_ln, pos_slice=pos_slice), whole[:, :, index], **EXACT)
    with pytest.raises(IndexError):
        run(**options, pos_slice=7)


@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_without_the_batch_dimension_all_is_the_same(cache, method, options, apply_ln):
    whole = getattr(cache, method)(**options, apply_ln=apply_ln)
    row = getattr(cache.apply_slice_to_batch_dim(1), method)
    torch.testing.assert_close(row(**options, apply_ln=apply_ln), whole[:, 1], **EXACT)
    torch.testing.assert_close(row(**options, apply_ln=apply_ln, pos_slice=-1), whole[:, 1, -1], **EXACT)


# Norms and logits


def attributions(cache, stack, token_directions):
    """The definition: components through the final norm at its cached scale, times columns of the unembedding."""
    engine = cache.model.native
    if engine.cfg.normalization_type == "LN":
        stack = stack - stack.mean(-1, keepdim=True)
    normed = stack / cache["ln_final.hook_scale"] * engine.weight("ln_final.w")
    return torch.einsum("nbtd,btd->nbt", normed, token_directions)


def test_logit_attributions_are_products_with_the_unembedding(cache, tokens):
    stack = cache.decompose_resid()
    W_U = cache.model.native.weight("unembed.W_U").T
    everywhere = torch.ones(2, 7, 1, dtype=torch.float64)
    wrong = (tokens + 5) % cache.model.cfg.d_vocab
    by_row, wrong_by_row = torch.tensor([4, 9]), torch.tensor([5, 0])
    for got, directions in [
        (cache.logit_attrs(stack, 17), everywhere * W_U[17]),
        (cache.logit_attrs(stack, torch.tensor([17])), everywhere * W_U[17]),
        (cache.logit_attrs(stack, 17, 3), everywhere * (W_U[17] - W_U[3])),
        (cache.logit_attrs(stack, tokens), W_U[tokens]),
        (cache.logit_attrs(stack, tokens, wrong), W_U[tokens] - W_U[wrong]),
        (cache.logit_attrs(stack, by_row, wrong_by_row), everywhere * (W_U[by_row] - W_U[wrong_by_row])[:, None]),
    ]:
        torch.testing.assert_close(got, attributions(cache, stack, directions), **EXACT)


def test_logit_attributions_of_everything_sum_to_the_logits(cache, tokens):
    engine = cache.model.native
    if engine.cfg.output_logits_soft_cap > 0:
        pytest.skip("the soft cap is not a sum")
    attrs = cache.logit_attrs(cache.get_full_resid_decomposition(), tokens)
    logits = cache["unembed.hook_out"].gather(-1, tokens[..., None])[..., 0]
    if "ln_final.b" in engine.weight_names():
        logits = logits - (engine.weight("ln_final.b") @ engine.weight("unembed.W_U"))[tokens]
    torch.testing.assert_close(attrs.sum(0), logits, **SCALED)


def test_logit_attributions_of_slices(cache, tokens):
    whole = cache.logit_attrs(cache.decompose_resid(), tokens)
    last = cache.decompose_resid(pos_slice=-1)
    torch.testing.assert_close(cache.logit_attrs(last, tokens[:, -1], pos_slice=-1), whole[:, :, -1], **EXACT)
    stack = cache.decompose_resid()
    torch.testing.assert_close(cache.logit_attrs(stack, tokens[1], batch_slice=1), whole[:, 1], **EXACT)
    row = cache.apply_slice_to_batch_dim(1)
    attrs = row.logit_attrs(row.decompose_resid(), tokens[1], has_batch_dim=False)
    torch.testing.assert_close(attrs, whole[:, 1], **EXACT)


def test_norms_of_stacks(cache):
    stack = cache.decompose_resid(2, mlp_input=True)
    normed = cache.apply_ln_to_stack(stack, 2, mlp_input=True)
    torch.testing.assert_close(normed, cache.decompose_resid(2, mlp_input=True, apply_ln=True), **EXACT)
    torch.testing.assert_close(cache.apply_ln_to_stack(stack[:, :, 3], 2, True, pos_slice=3), normed[:, :, 3], **EXACT)
    torch.testing.assert_close(cache.apply_ln_to_stack(stack, 2, True, batch_slice=[1]), normed[:, [1]], **EXACT)
    own = cache.apply_ln_to_stack(cache["resid_post", -1][None], recompute_ln=True)
    assert torch.equal(own[0], cache["unembed.hook_in"])


def test_what_does_not_fit_is_refused(cache):
    stack = cache.decompose_resid()
    with pytest.raises(introspect.ShapeError, match="scale must fit"):
        cache.apply_ln_to_stack(stack[:, :, 3])
    with pytest.raises(introspect.ShapeError, match="tokens must fit"):
        cache.logit_attrs(stack, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="one shape"):
        cache.logit_attrs(stack, 3, torch.tensor([3, 4]))
    with pytest.raises(IndexError, match="tokens must be 0 to 100"):
        cache.logit_attrs(stack, 101)
    with pytest.raises(IndexError, match="layer must be 0 to 3"):
        cache.decompose_resid(4)
    with pytest.raises(ValueError, match="no MLP after"):
        cache.decompose_resid(3, mlp_input=True)
    with pytest.raises(introspect.ShapeError, match="projection must be"):
        cache.get_full_resid_decomposition(project_output_onto=torch.zeros(5))
    with pytest.raises(IndexError):
        cache.get_neuron_results(0, cache.model.cfg.d_mlp)


def test_what_was_not_cached_is_named(model, tokens):
    names = [n for n in model.hook_names if n.endswith("embed") or n == "blocks.0.hook_resid_pre"]
    cache = ActivationCache(model.run_with_cache(tokens, names)[1], model)
    with pytest.raises(introspect.HookError, match=r"'blocks.0.hook_attn_out' is needed and was not cached"):
        cache.decompose_resid(1)
    with pytest.raises(introspect.HookError, match=r"'blocks.0.ln1.hook_scale' was not cached"):
        cache.apply_ln_to_stack(cache["embed"][None], 0)


def test_heads_need_nothing_but_what_they_are_made_of(model, tokens):
    names = [name for name in model.hook_names if name.endswith(("hook_z", "ln1_post.hook_scale"))]
    cache = ActivationCache(model.run_with_cache(tokens, names)[1], model)
    H = model.cfg.n_heads
    assert cache.stack_head_results().shape == (N_LAYERS * H, 2, 7, model.cfg.d_model)
    with pytest.raises(introspect.HookError, match=r"'blocks.2.hook_resid_post' is needed and was not cached"):
        cache.stack_head_results(incl_remainder=True)


def test_half_precision_is_summed_in_float32(model, tokens, cache):
    """The remainder is what the rounded heads leave of the stream: one rounding, its own, is all that is lost."""
    rounded = ActivationCache({name: x.clone() for name, x in cache.items()}, model).to(torch.bfloat16)
    stack = rounded.stack_head_results(incl_remainder=True)
    assert stack.dtype == torch.bfloat16
    error = stack.float().sum(0) - rounded["resid_post", -1].float()
    assert (error.abs() <= 2**-8 * stack[-1].float().abs() + 1e-5).all()
    assert rounded.logit_attrs(stack, 3).dtype == torch.float32


def test_gradients_pass_through_a_decomposition(model, tokens, cache):
    leaf = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in cache.items()}
    grad_cache = ActivationCache(leaf, model)
    with torch.enable_grad():
        grad_cache.get_full_resid_decomposition(1, apply_ln=True).sum(0).square().sum().backward()
    assert leaf["blocks.0.attn.hook_z"].grad.abs().max() > 0
    assert leaf["blocks.0.mlp.hook_post"].grad.abs().max() > 0
