"""Attribution graphs: edges against gradients of the engine's forward with everything held fixed, and identities."""

import json

import graph_sets
import pytest
import torch
from graph_sets import tokens_of
from tiny import ARCHITECTURES, tiny_loader

import introspect
from introspect.circuits import AttributionGraph, GraphTarget, Injection, attribute

SETS = {
    "residual": graph_sets.per_layer,
    "skip": lambda model: graph_sets.per_layer(model, skip=True),
    "normalized": lambda model: graph_sets.per_layer(model, hook_in="ln2.hook_normalized", skip=True),
    "mlp": lambda model: graph_sets.per_layer(model, hook_in="mlp.hook_in", skip=True),
    "cross-layer": graph_sets.cross_layer,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ARCHITECTURES for kind in ("mlp", "cross-layer")]
    + [(name, kind) for name in ("gpt2", "gemma2", "gpt_neox") for kind in ("residual", "skip", "normalized")],
)
def test_in_edges_sum_to_the_pre_activation(models, name, kind):
    model = models(name)
    graph = attribute(model, tokens_of(model).tolist(), SETS[kind](model), progress=False)
    table = graph.to_pandas()
    features = table[table.kind == "feature"]
    assert len(features) > 50
    # a jumprelu feature that is active is its pre-activation
    assert (features.in_sum - features.value).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt2", "gpt_neox"])
def test_targets_sum_to_their_logits_less_the_mean(models, name):
    model = models(name)
    tokens = tokens_of(model)
    graph = attribute(model, tokens.tolist(), graph_sets.per_layer(model, skip=True), progress=False)
    targets = [i for i, node in enumerate(graph.nodes) if node.kind == "logit"]
    _, cache = model.run_with_cache(tokens[None], ["ln_final.hook_normalized"])
    normed = cache["ln_final.hook_normalized"][0, -1].double()
    weights = dict(model.native.named_weights())
    W_U = weights.get("unembed.W_U", weights["embed.W_E"]).double().T
    normed = normed * weights["ln_final.w"].double()
    if "ln_final.b" in weights:
        normed = normed + weights["ln_final.b"].double()
    for i in targets:
        u = W_U[:, graph.nodes[i].feature] - W_U.mean(1)
        torch.testing.assert_close(graph.in_sums()[i], normed @ u, rtol=1e-6, atol=1e-6)  # engine's RMS is float32


def oracle_edges(model, tokens, transcoders, layer, position, feature):
    """d pre-activation / d (what is added to each layer's MLP output), patterns, scales and MLP outputs held fixed."""
    L = model.cfg.n_layers
    frozen = [
        name
        for name in model.hook_dict
        if name.endswith(("hook_pattern", "hook_scale", "hook_mlp_out")) and name.startswith("blocks.")
    ]
    _, cache = model.run_with_cache(tokens[None], [*frozen, *(f"blocks.{i}.hook_mlp_in" for i in range(L))])
    added = [torch.zeros(len(tokens), model.cfg.d_model, dtype=torch.float64, requires_grad=True) for _ in range(L)]
    seen = {}

    def fix(x, hook):
        value = cache[hook.name].detach()
        if hook.name.endswith("hook_mlp_out"):
            return value + added[int(hook.name.split(".")[1])]
        return value.expand_as(x) if value.shape != x.shape else value

    def look(x, hook):
        seen["x"] = x

    with torch.enable_grad():
        model.run_with_hooks(tokens[None], [(name, fix) for name in frozen] + [(f"blocks.{layer}.hook_mlp_in", look)])
        p = seen["x"][0, position] @ transcoders[layer].weights["W_enc"][feature]
        return torch.autograd.grad(p, added, allow_unused=True)


# The engine's RMS norms are float32 within, whatever the dtype; its layer norms are not.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("gpt2", 1e-9), ("gpt_neox", 1e-9), ("qwen2", 1e-4), ("qwen3", 1e-4), ("gemma2", 1e-4)]
)
def test_edges_are_the_gradients_of_a_forward_with_everything_held_fixed(models, name, tolerance):
    model = models(name)
    tokens = tokens_of(model)
    transcoders = graph_sets.per_layer(model)
    graph = attribute(model, tokens.tolist(), transcoders, progress=False)
    adjacency = graph.adjacency()
    last = model.cfg.n_layers - 1
    targets = [i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.layer == last][-3:]
    for target in targets:
        node = graph.nodes[target]
        gradients = oracle_edges(model, tokens, transcoders, last, node.position, node.feature)
        expected = torch.zeros(graph.n_nodes, dtype=torch.float64)
        for source, other in enumerate(graph.nodes):
            if other.kind == "feature" and other.layer < last:
                vector = other.value * transcoders[other.layer].weights["W_dec"][other.feature]
                expected[source] = gradients[other.layer][other.position] @ vector
        features = torch.tensor([n.kind == "feature" for n in graph.nodes])
        torch.testing.assert_close(adjacency[target][features], expected[features], rtol=tolerance, atol=tolerance)


def test_nothing_comes_from_later_layers_or_positions(models):
    model = models("llama")
    graph = attribute(model, tokens_of(model).tolist(), graph_sets.cross_layer(model), progress=False)
    for target, source in graph.adjacency().nonzero().tolist():
        t, s = graph.nodes[target], graph.nodes[source]
        assert s.position <= t.position
        assert s.layer < t.layer or (s.kind == "bias" and s.layer == t.layer)


@pytest.mark.parametrize("edges_per_row", [0, 5])
def test_folding_keeps_the_sums_whatever_is_left_out(models, edges_per_row):
    model = models("qwen2")
    tokens = tokens_of(model).tolist()
    transcoders = graph_sets.per_layer(model)
    whole = attribute(model, tokens, transcoders, progress=False)
    graph = attribute(
        model, tokens, transcoders, max_features=40, edges_per_row=edges_per_row, rows_per_batch=7, progress=False
    )
    table = graph.to_pandas()
    features = table[table.kind == "feature"]
    assert 20 < len(features) <= 40 < whole.notes["active_features"]
    assert (features.in_sum - features.value).abs().max() < 1e-9
    logits = [(n.feature, s) for n, s in zip(graph.nodes, graph.in_sums().tolist(), strict=True) if n.kind == "logit"]
    other = [(n.feature, s) for n, s in zip(whole.nodes, whole.in_sums().tolist(), strict=True) if n.kind == "logit"]
    assert [f for f, _ in logits] == [f for f, _ in other]
    torch.testing.assert_close(
        torch.tensor([s for _, s in logits]), torch.tensor([s for _, s in other]), rtol=1e-10, atol=1e-10
    )
    assert graph.scores().replacement < whole.scores().replacement  # what has no node counts as error


def test_batches_do_not_change_the_graph(models):
    model = models("gemma3")
    tokens = tokens_of(model).tolist()
    transcoders = graph_sets.per_layer(model, skip=True)
    one = attribute(model, tokens, transcoders, progress=False)
    two = attribute(model, tokens, transcoders, rows_per_batch=3, batches_per_update=1, progress=False)
    assert one.nodes == two.nodes
    torch.testing.assert_close(one.adjacency(), two.adjacency(), rtol=1e-10, atol=1e-11)


def test_influence_is_that_of_the_inverse(models):
    model = models("llama")
    graph = attribute(model, tokens_of(model).tolist(), graph_sets.per_layer(model), progress=False)
    A = graph.adjacency().abs()
    biases = torch.tensor([n.kind == "bias" for n in graph.nodes])
    A[:, biases] = 0
    A = A / A.sum(1, keepdim=True).clamp(min=1e-10)
    w = torch.tensor([n.value if n.kind == "logit" else 0.0 for n in graph.nodes], dtype=torch.float64)
    expected = torch.linalg.solve((torch.eye(len(w), dtype=torch.float64) - A).T, w) - w
    torch.testing.assert_close(graph.influence(), expected, rtol=1e-10, atol=1e-12)


def test_a_target_of_ones_own(models):
    model = models("gpt2")
    tokens = tokens_of(model)
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    graph = attribute(
        model,
        tokens.tolist(),
        graph_sets.per_layer(model),
        targets=[GraphTarget("probe", direction, layer=1, position=4)],
        progress=False,
    )
    _, cache = model.run_with_cache(tokens[None], ["blocks.1.hook_resid_post"])
    node = next(i for i, n in enumerate(graph.nodes) if n.kind == "logit")
    expected = cache["blocks.1.hook_resid_post"][0, 4].double() @ direction
    torch.testing.assert_close(graph.in_sums()[node], expected, rtol=1e-9, atol=1e-9)
    assert max(n.layer for n in graph.nodes if n.kind == "feature") <= 1


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2"])
def test_an_injected_vector_is_a_node_of_each_layer_it_is_added_at(models, name):
    model = models(name)
    tokens = tokens_of(model)
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    injections = [Injection(0, [2, 3], vector), Injection(1, [3], -vector)]
    graph = attribute(
        model, tokens.tolist(), graph_sets.per_layer(model, skip=True), injections=injections, progress=False
    )
    table = graph.to_pandas()
    features = table[table.kind == "feature"]
    assert (features.in_sum - features.value).abs().max() < 1e-9
    nodes = [i for i, n in enumerate(graph.nodes) if n.kind == "injection"]
    assert [graph.nodes[i].layer for i in nodes] == [0, 1]
    assert graph.influence()[nodes].min() > 0
    # the targets' logits are those of the injected model
    steered = [
        introspect.Intervention({0: vector}, positions=[2, 3]),
        introspect.Intervention({1: -vector}, positions=[3]),
    ]
    with introspect.analysis.intervened(model, steered):
        logits = model(tokens[None])[0, -1].double()
    if model.cfg.output_logits_soft_cap:
        cap = model.cfg.output_logits_soft_cap
        logits = cap * torch.atanh(logits / cap)
    for i, node in enumerate(graph.nodes):
        if node.kind == "logit":
            expected = logits[node.feature] - logits.mean()
            torch.testing.assert_close(graph.in_sums()[i], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(IndexError, match="must be at 0 to"):
        attribute(model, tokens.tolist(), {}, injections=[Injection(0, [99], vector)], progress=False)


def hand_made() -> AttributionGraph:
    """Two tokens, two features, one error, one logit, as the JSON of circuit-tracer has them."""
    node = {"run_idx": 0, "reverse_ctx_idx": 0, "influence": None, "activation": None, "token_prob": 0.0}

    def made(node_id, feature, layer, ctx, kind, **more):
        return {
            **node,
            "node_id": node_id,
            "feature": feature,
            "layer": layer,
            "ctx_idx": ctx,
            "feature_type": kind,
            "jsNodeId": node_id + "-0",
            "clerp": "",
            "is_target_logit": kind == "logit",
            **more,
        }

    nodes = [
        made("0_5_1", 20, "0", 1, "cross layer transcoder", activation=2.0),
        made("1_7_1", 43, "1", 1, "cross layer transcoder", activation=1.0),
        made("0_-1_1", -1, "0", 1, "mlp reconstruction error"),
        made("E_11_0", 11, "E", 0, "embedding"),
        made("E_12_1", 12, "E", 1, "embedding"),
        made("3_9_1", 9, "3", 1, "logit", token_prob=0.5, clerp='Output " x" (p=0.500)'),
    ]
    links = [
        ("E_11_0", "0_5_1", 1.0),
        ("E_12_1", "0_5_1", -3.0),
        ("0_5_1", "1_7_1", 2.0),
        ("0_-1_1", "1_7_1", 2.0),
        ("1_7_1", "3_9_1", 4.0),
        ("0_5_1", "3_9_1", 1.0),
        ("E_12_1", "3_9_1", -3.0),
    ]
    text = {
        "metadata": {"slug": "a", "scan": "m", "prompt": "a b", "prompt_tokens": ["a", " b"], "schema_version": 1},
        "qParams": {},
        "nodes": nodes,
        "links": [{"source": s, "target": t, "weight": w} for s, t, w in links],
    }
    return AttributionGraph.from_json(json.dumps(text))


def test_influence_by_hand():
    graph = hand_made()
    at = {(n.kind, n.layer, n.position): i for i, n in enumerate(graph.nodes)}
    v = graph.influence()
    # logit .5: shares 4/8, 1/8, 3/8; feature 1: halves; feature 0: quarters
    assert v[at["feature", 1, 1]] == pytest.approx(0.25)
    assert v[at["feature", 0, 1]] == pytest.approx(0.5 / 8 + 0.125)
    assert v[at["error", 0, 1]] == pytest.approx(0.125)
    assert v[at["token", -1, 0]] == pytest.approx((0.0625 + 0.125) / 4)
    assert v[at["token", -1, 1]] == pytest.approx((0.0625 + 0.125) * 0.75 + 0.5 * 3 / 8)
    tokens, errors = 0.0625 + 0.125 + 0.1875, 0.125
    assert graph.scores().replacement == pytest.approx(tokens / (tokens + errors))
    everything = 0.5 + 0.25 + 0.1875 + 0.125 + tokens
    assert graph.scores().completeness == pytest.approx((everything - 0.25 * 0.5) / everything)
    best = graph.paths(at["token", -1, 1], at["logit", 2, 1])
    assert [p.nodes[1:-1] for p in best] == [[], [at["feature", 0, 1], at["feature", 1, 1]], [at["feature", 0, 1]]]
    assert [p.weight for p in best] == pytest.approx([3 / 8, 0.75 * 0.5 * 0.5, 0.75 / 8])
    groups = graph.supernodes({"said": [at["logit", 2, 1]], "features": [at["feature", 0, 1], at["feature", 1, 1]]})
    assert groups.tolist() == [[0, 5], [0, 2]]


def test_files_hold_every_digit(models, tmp_path):
    model = models("llama")
    graph = attribute(model, tokens_of(model).tolist(), graph_sets.per_layer(model), name="a set", progress=False)
    graph.save(tmp_path / "g.safetensors")
    again = AttributionGraph.load(tmp_path / "g.safetensors")
    assert again.nodes == graph.nodes and again.tokens == graph.tokens and again.notes == graph.notes
    assert torch.equal(again.adjacency(), graph.adjacency())
    graph.to_json(tmp_path / "g.json", biases=True)
    other = AttributionGraph.load(tmp_path / "g.json")
    assert len(other.nodes) == graph.n_nodes
    torch.testing.assert_close(other.influence(), graph.influence(), rtol=1e-5, atol=1e-8)
    required = json.loads((tmp_path / "g.json").read_text())
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(required["metadata"])
    assert all(
        {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"} <= set(n)
        for n in required["nodes"]
    )


def test_pruning_keeps_tokens_and_targets_and_no_dead_ends(models):
    model = models("gemma3")
    graph = attribute(model, tokens_of(model).tolist(), graph_sets.per_layer(model), progress=False)
    small = graph.prune(0.6, 0.9)
    kinds = [n.kind for n in small.nodes]
    assert kinds.count("token") == len(graph.tokens) and small.n_nodes < graph.n_nodes / 2
    A = small.adjacency()
    for i, node in enumerate(small.nodes):
        if node.kind in ("feature", "error"):
            assert A[:, i].any(), node
        if node.kind == "feature":
            assert A[i].any(), node
    assert graph.prune(1.0, 1.0).n_nodes <= graph.n_nodes
    with pytest.raises(ValueError, match="thresholds must be 0 to 1"):
        graph.prune(1.5)


def broken(change):
    text = json.loads(hand_made().to_json())
    change(text)
    return json.dumps(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["metadata"].update(schema_version=2), "schema 2"),
        (lambda t: t["nodes"].append(t["nodes"][0]), "stands twice"),
        (lambda t: t["links"].append({"source": "none", "target": "1_7_1", "weight": 1.0}), "not there"),
        (lambda t: t["links"].append({"source": "1_7_1", "target": "0_5_1", "weight": 1.0}), "later layer"),
        (lambda t: t["nodes"][0].update(feature_type="<script>"), "feature_type"),
        (lambda t: t["nodes"][0].update(node_id="../../x"), "node id"),
        (lambda t: t.pop("links"), "links"),
    ],
)
def test_bad_graph_files_are_refused(change, message):
    with pytest.raises(introspect.ConfigError, match=message):
        AttributionGraph.from_json(broken(change))


def test_what_does_not_fit_is_refused_before_work(models):
    model, other = models("llama"), models("qwen2")
    tokens = tokens_of(model).tolist()
    mine = graph_sets.per_layer(model)
    with pytest.raises(introspect.ConfigError, match="must be of this model"):
        attribute(model, tokens, {0: graph_sets.transcoder(other, 0)}, progress=False)
    with pytest.raises(introspect.ConfigError, match="must be of layer 1"):
        attribute(model, tokens, {1: mine[0]}, progress=False)
    with pytest.raises(introspect.ConfigError, match="must read hook_mlp_in"):
        attribute(model, tokens, {0: graph_sets.transcoder(model, 0, hook_in="hook_resid_pre")}, progress=False)
    with pytest.raises(introspect.ConfigError, match="not linear"):
        attribute(model, tokens, {0: graph_sets.transcoder(model, 0, input_norm="layer_norm")}, progress=False)
    with pytest.raises(introspect.ShapeError, match="at least 2"):
        attribute(model, tokens[:1], mine, progress=False)
    with pytest.raises(ValueError, match="memory budget"):
        attribute(model, tokens, mine, memory_budget=1000, progress=False)
    with pytest.raises(IndexError, match="position"):
        attribute(model, tokens, mine, targets=[GraphTarget("x", torch.ones(model.cfg.d_model), position=99)])
