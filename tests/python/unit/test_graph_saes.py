"""Attribution graphs with SAEs of attention and of the stream: an SAE stands in for the vector that it reads."""

import graph_sets
import pytest
import torch
from graph_sets import tokens_of
from tiny import ARCHITECTURES, tiny_loader

from introspect import ConfigError
from introspect.circuits import (
    AttributionGraph,
    GraphTarget,
    attribute,
    compare,
    feature_interventions,
    head_loadings,
    predicted_effects,
    qk_attribution,
    validate,
)

STREAM = ("blocks.0.hook_resid_post",)
HEADS = ("blocks.0.hook_attn_out", "blocks.1.hook_attn_out")
BOTH = (*HEADS, "blocks.1.hook_resid_pre")  # which is the stream after block 0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


def graph_of(model, points, transcoders=None, **options):
    saes = graph_sets.saes(model, *points)
    return attribute(model, tokens_of(model).tolist(), transcoders, saes=saes, progress=False, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("points", [HEADS, BOTH])
def test_in_edges_sum_to_the_pre_activation(models, name, points):
    model = models(name)
    for transcoders in (None, graph_sets.per_layer(model, skip=True), graph_sets.cross_layer(model)):
        graph = graph_of(model, points, transcoders)
        table = graph.to_pandas()
        features = table[table.kind == "feature"]
        assert set(features.site) == {"attention", "mlp", "residual"} - ({"mlp"} if transcoders is None else set()) - (
            set() if points == BOTH else {"residual"}
        )
        # a jumprelu feature that is active is its pre-activation
        assert (features.in_sum - features.value).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_targets_sum_to_what_they_are_without_saes(models, name):
    model = models(name)
    plain = attribute(model, tokens_of(model).tolist(), graph_sets.per_layer(model), progress=False)
    graph = graph_of(model, BOTH)
    ends = [[(n.feature, s) for n, s in zip(g.nodes, g.in_sums().tolist(), strict=True) if n.kind == "logit"]
            for g in (plain, graph)]  # fmt: skip
    assert [f for f, _ in ends[0]] == [f for f, _ in ends[1]]
    assert [s for _, s in ends[0]] == pytest.approx([s for _, s in ends[1]], rel=1e-9, abs=1e-9)


def test_nothing_passes_an_sae_of_the_stream(models):
    model = models("qwen2")
    graph = graph_of(model, STREAM, graph_sets.per_layer(model))
    A = graph.adjacency()
    below = [i for i, n in enumerate(graph.nodes) if n.kind != "bias" and n.depth < 3]
    above = [i for i, n in enumerate(graph.nodes) if n.depth > 3]
    cut = [i for i, n in enumerate(graph.nodes) if n.site == "residual"]
    assert A[above][:, cut].abs().max() > 0 and A[cut][:, below].abs().max() > 0
    assert A[above][:, below].abs().max() == 0


@pytest.mark.parametrize(("name", "tolerance"), [("gpt2", 1e-9), ("gpt_neox", 1e-9), ("qwen2", 1e-4), ("gemma2", 1e-4)])
@pytest.mark.parametrize("source_point", ["hook_resid_post", "hook_attn_out"])
def test_edges_are_the_gradients_where_vectors_are_held(models, name, tolerance, source_point):
    """An SAE's vector is put in as a constant plus what is differentiated. The engine's RMS norms are float32."""
    model = models(name)
    tokens = tokens_of(model)
    held = f"blocks.0.{source_point}"
    read = "blocks.1.hook_attn_out"
    target_sae, source_sae = graph_sets.sae(model, read), graph_sets.sae(model, held)
    graph = attribute(model, tokens.tolist(), saes=[source_sae, target_sae], progress=False)
    frozen = [
        n for n in model.hook_dict if n.endswith(("hook_pattern", "hook_scale", "hook_mlp_out")) and "blocks" in n
    ]
    _, cache = model.run_with_cache(tokens[None], [*frozen, held, read])
    added = torch.zeros(len(tokens), model.cfg.d_model, dtype=torch.float64, requires_grad=True)
    seen = {}

    def fix(x, hook):
        if hook.name == read:
            seen["x"] = x
            return x
        value = cache[hook.name].detach()
        return value + added if hook.name == held else value.expand_as(x)

    A = graph.adjacency()
    targets = [i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.site == "attention" and n.layer == 1]
    with torch.enable_grad():
        model.run_with_hooks(tokens[None], [(point, fix) for point in (*frozen, held, read)])
        for target in targets[-3:]:
            node = graph.nodes[target]
            p = seen["x"][0, node.position] @ target_sae.weights["W_enc"][node.feature]
            (gradient,) = torch.autograd.grad(p, added, retain_graph=True)
            for source, other in enumerate(graph.nodes):
                if other.kind == "feature" and other.layer == 0:
                    vector = other.value * source_sae.weights["W_dec"][other.feature]
                    expected = (gradient[other.position] @ vector).item()
                    assert A[target, source].item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_a_probe_above_an_sae_of_its_own_layer_reads_its_features(models):
    model = models("llama")
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    graph = graph_of(model, STREAM, targets=[GraphTarget("probe", direction, layer=0, position=5)])
    sae = graph_sets.sae(model, STREAM[0])
    target = next(i for i, n in enumerate(graph.nodes) if n.kind == "logit")
    for source, node in enumerate(graph.nodes):
        if node.kind == "feature" and node.position == 5:
            expected = node.value * (sae.weights["W_dec"][node.feature] @ direction).item()
            assert graph.adjacency()[target, source].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt2", "gpt_neox"])
def test_scores_are_sums_over_parts_of_saes(models, name):
    model = models(name)
    tokens = tokens_of(model).tolist()
    plain = qk_attribution(model, tokens, layer=1, head=1, query=8, key=5)
    for points in (HEADS, BOTH):
        found = qk_attribution(model, tokens, layer=1, head=1, query=8, key=5, saes=graph_sets.saes(model, *points))
        assert found.terms.sum().item() == pytest.approx(plain.score, rel=1e-9, abs=1e-9)
        kinds = {part.kind for part in found.query_parts}
        assert ("token" in kinds) == (points == HEADS) and "attention" not in kinds


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("skip", [False, True])
def test_head_parts_and_what_goes_past_sum_to_the_edge(models, name, skip):
    model = models(name)
    tokens = tokens_of(model).tolist()
    transcoders = graph_sets.per_layer(model, skip=skip)
    for points in (HEADS, STREAM, (*STREAM, "blocks.1.hook_attn_out")):
        saes = graph_sets.saes(model, *points)
        graph = attribute(model, tokens, transcoders, saes=saes, progress=False)
        A = graph.adjacency()
        ends = {}
        for i, node in enumerate(graph.nodes):
            if node.kind in ("feature", "error", "logit") and (node.position >= 3 or node.kind == "error"):
                ends.setdefault((node.kind, node.site, node.layer), i)
        pairs = [
            (s, t) for s in ends.values() for t in ends.values() if graph.nodes[t].kind != "error" and A[t, s] != 0
        ]
        assert len(pairs) > 4
        for s, t in pairs:
            found = head_loadings(model, tokens, transcoders, graph.nodes[s], graph.nodes[t], saes=saes)
            assert found.edge == pytest.approx(A[t, s].item(), rel=1e-9, abs=1e-10)
            sums = found.heads.sum(1) + found.past_attention
            torch.testing.assert_close(sums, torch.full_like(sums, found.edge), rtol=1e-9, atol=1e-10)


def test_between_saes_of_the_stream_a_head_carries_the_pattern_times_its_ov(models):
    """a_s v_t O_h V_h (scale and weight of the norm) v_s, times the pattern; by hand, of GPT-2."""
    model = models("gpt2")
    tokens = tokens_of(model)
    saes = graph_sets.saes(model, "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    graph = attribute(model, tokens.tolist(), saes=saes, progress=False)
    features = [i for i, n in enumerate(graph.nodes) if n.kind == "feature"]
    source = next(i for i in features if graph.nodes[i].layer == 0 and graph.nodes[i].position == 3)
    target = next(i for i in features if graph.nodes[i].layer == 1 and graph.nodes[i].position == 6)
    s, t = graph.nodes[source], graph.nodes[target]
    found = head_loadings(model, tokens.tolist(), {}, s, t, saes=saes)
    _, cache = model.run_with_cache(tokens[None], ["blocks.1.attn.hook_pattern", "blocks.1.ln1.hook_scale"])
    weights = dict(model.native.named_weights())
    H, K = model.cfg.n_heads, model.cfg.d_head
    x = s.value * saes[0].weights["W_dec"][s.feature]
    x = (x - x.mean()) / cache["blocks.1.ln1.hook_scale"][0, 3] * weights["blocks.1.ln1.w"]
    for head in range(H):
        v = weights["blocks.1.attn.W_QKV"][(2 * H + head) * K : (2 * H + head + 1) * K] @ x
        o = weights["blocks.1.attn.W_O"][:, head * K : (head + 1) * K] @ v
        expected = cache["blocks.1.attn.hook_pattern"][0, head, 6, 3] * (o @ saes[1].weights["W_enc"][t.feature])
        torch.testing.assert_close(found.heads[0, head], expected, rtol=1e-9, atol=1e-10)
    assert found.past_attention.abs().max() < 1e-9  # of another position


def test_features_are_changed_where_their_saes_stand(models):
    model = models("llama")
    tokens = tokens_of(model)
    transcoders, saes = graph_sets.per_layer(model), graph_sets.saes(model, *BOTH)
    graph = attribute(model, tokens.tolist(), transcoders, saes=saes, progress=False)
    for site, point in (("attention", "hook_attn_out"), ("residual", "hook_resid_post"), ("mlp", "hook_mlp_out")):
        node = next(i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.site == site)
        (change,) = feature_interventions(graph, transcoders, {node: -1.0}, saes=saes)
        at = graph.nodes[node]
        assert (change.point, list(change.positions)) == (point, [at.position])
        own = {"mlp": transcoders[at.layer], "attention": saes[0], "residual": saes[2]}[site]
        torch.testing.assert_close(change.values[at.layer], -at.value * own.weights["W_dec"][at.feature])
    assert len(validate(model, graph, transcoders, saes=saes, n=4).table) == 4
    node = next(i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.site == "residual")
    with pytest.raises(IndexError, match="no SAE of hook_resid_post"):
        feature_interventions(graph, transcoders, {node: -1.0})


def test_effects_pass_through_sites_in_their_order(models):
    model = models("qwen2")
    graph = graph_of(model, BOTH, graph_sets.per_layer(model))
    A = graph.adjacency()
    values = torch.tensor([n.value if n.kind == "feature" else float("inf") for n in graph.nodes], dtype=torch.float64)
    node = next(i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.site == "attention")
    total = torch.linalg.solve(torch.eye(len(values), dtype=torch.float64) - A / values, A[:, node])
    torch.testing.assert_close(predicted_effects(graph, {node: 1.0}), total, rtol=1e-9, atol=1e-9)
    A = A.abs()
    A[:, torch.tensor([n.kind == "bias" for n in graph.nodes])] = 0
    A = A / A.sum(1, keepdim=True).clamp(min=1e-10)
    w = torch.tensor([n.value if n.kind == "logit" else 0.0 for n in graph.nodes], dtype=torch.float64)
    expected = torch.linalg.solve((torch.eye(len(w), dtype=torch.float64) - A).T, w) - w
    torch.testing.assert_close(graph.influence(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_files_know_the_sites(models, tmp_path, suffix):
    graph = graph_of(models("llama"), BOTH, graph_sets.per_layer(models("llama")))
    path = tmp_path / f"g{suffix}"
    if suffix == ".json":
        graph.to_json(path, biases=True)
    else:
        graph.save(path)
    again = AttributionGraph.load(path)
    one = [(n.kind, n.site, n.layer, n.position, n.feature) for n in graph.nodes]
    assert [(n.kind, n.site, n.layer, n.position, n.feature) for n in again.nodes] == one
    torch.testing.assert_close(again.influence(), graph.influence(), rtol=1e-5, atol=1e-8)
    assert compare(graph, again).jaccard == 1
    assert "<svg" in graph.prune(0.3, 0.5).svg()


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (["blocks.0.attn.hook_z"], "hook_attn_out, hook_resid_post or hook_resid_pre"),
        (["blocks.0.hook_mlp_out"], "hook_attn_out, hook_resid_post or hook_resid_pre"),
        (["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"], "two SAEs are of one vector"),
        (["blocks.99.hook_resid_post"], "after block 0 to"),
        (["blocks.0.hook_resid_pre"], "after block 0 to"),
        (["hook_resid_post"], "must begin with its block"),
        (["blocks.x.hook_resid_post"], "must begin with its block"),
        ([""], "got ''"),
    ],
)
def test_saes_that_a_graph_cannot_be_cut_at_are_refused(models, points, says):
    with pytest.raises((ConfigError, IndexError), match=says):
        graph_of(models("gpt2"), points)


def test_what_is_no_sae_is_refused(models):
    model = models("gpt2")
    tokens = tokens_of(model).tolist()
    with pytest.raises(ConfigError, match="must write where it reads"):
        attribute(model, tokens, saes=[_transcoder_as_sae(model)], progress=False)
    with pytest.raises(TypeError, match="saes must be SAEs"):
        attribute(model, tokens, saes=["gemma-scope"], progress=False)
    with pytest.raises(ConfigError, match="got none"):
        attribute(model, tokens, progress=False)


def _transcoder_as_sae(model):
    one = graph_sets.sae(model, "blocks.0.hook_resid_post")
    from introspect import _C

    site = _C.DictionarySite("blocks.0.hook_mlp_out", model.cfg.d_model)
    where = _C.DictionaryOrigin(inputs=list(one.origin.inputs), outputs=[site])
    return _C.Dictionary("jumprelu", dict(one.weights), origin=where)
