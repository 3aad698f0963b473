"""keep_blocks=False: what is read from weights in memory, and from blocks one by one, is as with blocks in memory."""

import json

import graph_sets
import pytest
import torch
from dictionaries import dictionary_at
from quantised import write_quantised
from tiny import write_tiny, write_tiny_transformers
from tiny_chat import write_tiny_chat
from torch import nn

import introspect
from introspect import analysis
from introspect.analysis import JacobianLens, TunedLens

# Positions and LayerNorm's biases; a parallel MLP; norms after layers and a soft cap; experts; grouped heads.
FAMILIES = ["gpt2", "gpt_neox", "gemma2", "qwen3_moe", "llama"]
IN_MEMORY = ["embed.W_E", "ln_final.w", "unembed.W_U", "unembed.b_U"]
TEXT = torch.randint(3, 80, (1, 9), generator=torch.Generator().manual_seed(0))


def both_ways(source, **options):
    return [
        introspect.load_model(source, **{"dtype": torch.float64, **options}, keep_blocks=kept) for kept in (True, False)
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory):
    return both_ways(write_tiny_transformers(tmp_path_factory.mktemp("tiny"), request.param))


@pytest.fixture(scope="module")
def lenses(models):
    return [introspect.HookedTransformer(model) for model in models]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return both_ways(write_tiny_chat(tmp_path_factory.mktemp("chat") / "model"))


def same(values):
    a, b = values
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, zip(a, b, strict=True)))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same((a[key], b[key])) for key in a)
    return a == b


def test_weights_outside_the_blocks_are_the_same(models):
    names = IN_MEMORY + [name for name in ("pos_embed.W_pos", "ln_final.b") if name in models[0].native.weight_names()]
    for name in names:
        assert same([model.native.weight(name) for model in models]), name


def test_weights_of_blocks_are_refused_by_name(models, lenses):
    left = models[1].native
    for name in ("blocks.0.attn.W_Q", "blocks.1.ln1.w", "blocks.0.mlp.nothing"):
        with pytest.raises(introspect.ConfigError, match=rf"'{name}'.*blocks stay in the files.*keep_blocks"):
            left.weight(name)
    with pytest.raises(introspect.ConfigError, match=r"'attn\.W_Q'.*blocks stay in the files"):
        left.stacked_weight("attn.W_Q")
    for name in ("blocks.99.attn.W_Q", "unembed.W_X"):  # which no model has
        with pytest.raises(ValueError, match="this model has no"):
            left.weight(name)


EDITS = {
    "named_weights": lambda model: model.named_weights(),
    "quantised_weights": lambda model: model.quantised_weights(),
    "weight_names": lambda model: model.weight_names(),
    "with_weights": lambda model: model.with_weights({}),
    "process_weights": lambda model: model.processed(fold_ln=True),
    "orthogonalised": lambda model: introspect._C.orthogonalised(
        introspect.Model(model), torch.ones(model.cfg.d_model)
    ),
}


@pytest.mark.parametrize("who", EDITS)
def test_whoever_lists_or_edits_blocks_says_so(chats, who):
    """An edit that skipped the blocks would give a model that is half of each."""
    EDITS[who](chats[0].native)
    with pytest.raises(introspect.ConfigError, match=f"^{who}: .*blocks stay in the files.*keep_blocks"):
        EDITS[who](chats[1].native)


def test_training_is_refused_before_it_begins(chats):
    example = introspect.FinetuneExample([5], [6])
    with pytest.raises(introspect.ConfigError, match=r"train_lora: .*keep_blocks"):
        introspect.train_lora(chats[1], [example], steps=1)
    with pytest.raises(introspect.ConfigError, match=r"jacobian_lens: .*keep_blocks"):
        JacobianLens.compute(chats[1], [[5, 6, 7, 8]], skip_first=1)


@pytest.mark.parametrize("unit", ["layer", "component", "head", "neuron"])
def test_logits_are_taken_apart_alike(models, unit):
    if unit == "neuron" and models[0].cfg.num_experts:
        pytest.skip("neurons of experts are not taken apart")
    texts = [TEXT[0].tolist(), TEXT[0, :5].tolist()]
    found = [analysis.direct_logit_attribution(model, texts, [5, 7], [6, 8], unit=unit) for model in models]
    assert same([(one.labels, one.values, one.logits) for one in found])


def test_by_layer_no_block_is_read_for_it(models):
    left = models[1]
    before = left.native.n_block_reads
    analysis.direct_logit_attribution(left, TEXT, 5, unit="component")
    assert left.native.n_block_reads - before == left.cfg.n_layers  # of the pass


def test_a_prediction_is_debugged_alike(models):
    heads = {"heads": True, "neurons": not models[0].cfg.num_experts}
    kept, left = (analysis.debug_prediction(model, TEXT, 5, 6, **heads) for model in models)
    assert str(kept) == str(left)


def test_a_cache_is_read_alike(models, lenses):
    caches = [lens.run_with_cache(TEXT)[1] for lens in lenses]
    n = models[0].cfg.n_layers
    assert same([lens.tokens_to_residual_directions(7) for lens in lenses])
    assert same([(lens.W_E, lens.W_U, lens.b_U) for lens in lenses])
    for layer, mlp_input in ((1, False), (1, True), (n, False)):
        for apply_ln in (False, True):
            options = {"layer": layer, "mlp_input": mlp_input, "apply_ln": apply_ln}
            assert same([cache.accumulated_resid(**options, return_labels=True) for cache in caches])
            assert same([cache.decompose_resid(**options, return_labels=True) for cache in caches])
    assert same([cache.stack_head_results(layer=n, incl_remainder=True) for cache in caches])
    stacks = [cache.decompose_resid(layer=n) for cache in caches]
    assert same([cache.logit_attrs(stack, 5, incorrect_tokens=6) for cache, stack in zip(caches, stacks, strict=True)])


def test_biases_add_up_alike(lenses):
    if lenses[0].cfg.normalization_type.startswith("LN"):
        for mlp_input in (False, True):
            options = {"layer": 1, "mlp_input": mlp_input, "include_mlp_biases": not mlp_input}
            assert same([lens.accumulated_bias(**options) for lens in lenses])


def test_lenses_read_alike(models):
    tables = [analysis.logit_lens(model, TEXT, top_k=3, targets=[5]) for model in models]
    assert same([(t.top_tokens, t.top_log_probs, t.log_probs, t.ranks) for t in tables])
    texts = [TEXT[0].tolist(), TEXT[0].flip(0).tolist()]
    tuned = [TunedLens.train(model, texts, steps=2, tokens_per_step=8) for model in models]
    assert same([[t for layer in lens.layers[1:-1] for t in lens.translators[layer]] for lens in tuned])
    assert same([analysis.trajectory(model, TEXT, lens=tuned[0]).measures for model in models])


def test_a_lens_that_knows_only_the_unembedding_finds_it(tmp_path):
    """tuned-lens's folders name no checkpoint: the hash of W_U tells whether the lens is the model's."""
    models = both_ways(write_tiny(tmp_path / "m", vocab_size=211))
    hashes = [introspect._C.unembedding_hash(model) for model in models]
    assert hashes[0] == hashes[1] != ""
    d = models[0].cfg.d_model
    translators = nn.ModuleDict({str(i): nn.Linear(d, d) for i in range(models[0].cfg.n_layers)})
    torch.save(translators.state_dict(), tmp_path / "params.pt")
    config = {"base_model_name_or_path": "x/y", "d_model": d, "num_hidden_layers": len(translators), "bias": True,
              "unembed_hash": hashes[0], "lens_type": "linear_tuned_lens"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    lens = TunedLens.load(tmp_path)
    assert same([analysis.logit_lens(model, TEXT, lens=lens).log_probs for model in models])


def test_heads_are_classified_alike(chats):
    kept, left = (analysis.classify_heads(model, n_tokens=6, n_sequences=1) for model in chats)
    assert kept.to_pandas().equals(left.to_pandas())


def test_circuits_are_found_alike(chats):
    metric = introspect.LogitDifference(5, 6)
    clean, corrupted = [4, 9, 11, 12], [4, 9, 13, 12]
    found = [
        introspect.circuits.edge_attribution(model, clean, corrupted, metric, method="eap-ig", ig_steps=2)
        for model in chats
    ]
    assert same([one.circuit.scores for one in found])


@pytest.mark.parametrize("hook_in", ["hook_mlp_in", "mlp.hook_in"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])  # the second has norms with biases, beside attention
def test_attribution_graphs_are_alike(tmp_path, family, hook_in):
    models = both_ways(write_tiny_transformers(tmp_path, family))
    tokens = graph_sets.tokens_of(models[0]).tolist()
    transcoders = graph_sets.per_layer(models[0], hook_in=hook_in)
    graphs = [introspect.circuits.attribute(model, tokens, transcoders, progress=False) for model in models]
    assert graphs[0].n_edges > 100
    assert graphs[0].to_pandas().equals(graphs[1].to_pandas())


def test_patching_grids_are_alike(chats):
    metric = introspect.LogitDifference(5, 6)
    grids = [
        analysis.patch_grid(model, [4, 9, 11, 12], [4, 9, 13, 12], points=["resid_pre", "z"], metric=metric)
        for model in chats
    ]
    assert str(grids[0].to_pandas()) == str(grids[1].to_pandas())


def test_a_dictionary_is_checked_alike(tmp_path, chats):
    sae = dictionary_at("blocks.1.hook_resid_post", chats[0].cfg.d_model)
    reports = []
    for model in chats:
        with pytest.warns(UserWarning) as seen:
            introspect.HookedTransformer(model).run_with_saes(TEXT, saes=sae)
        reports.append([str(warning.message) for warning in seen])
    assert reports[0] == reports[1]


@pytest.mark.parametrize("weights", ["dense", "as stored"])
def test_a_gguf_file_is_read_alike(tmp_path, weights):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "head_dim": 32}
    path = write_quantised(tmp_path / "tiny.gguf", "qwen2", ("Q4_K", "Q6_K", "F16", "Q4_K"), **sizes)
    models = both_ways(path, dtype=torch.float32, weights=weights)
    found = [analysis.direct_logit_attribution(model, TEXT, 5, 6, unit="head") for model in models]
    assert same([(one.labels, one.values) for one in found])
    assert same([analysis.logit_lens(model, TEXT, targets=[5]).log_probs for model in models])
    assert same([model.native.weight("unembed.W_U") for model in models])
