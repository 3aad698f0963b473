"""Interventions on a graph's features: predictions, against the model with everything held fixed and the live one."""

import graph_sets
import pytest
import torch
from tiny import write_tiny_transformers

import introspect
from introspect.circuits import (
    GraphTarget,
    Injection,
    attribute,
    feature_interventions,
    predicted_effects,
    validate,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_transformers(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")
    return introspect.load_model(path, dtype="float64")


@pytest.fixture(scope="module")
def tokens(model):
    return torch.randint(0, model.cfg.d_vocab, (8,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["per layer", "cross-layer"])
def case(request, model, tokens):
    transcoders = graph_sets.per_layer(model) if request.param == "per layer" else graph_sets.cross_layer(model)
    return transcoders, attribute(model, tokens.tolist(), transcoders, progress=False)


def frozen_logits(model, tokens, changes):
    """The pass with patterns, norms' scales and MLP outputs held at their own values, the changes added."""
    names = [n for n in model.hook_dict if n.endswith(("hook_pattern", "hook_scale", "hook_mlp_out"))]
    _, cache = model.run_with_cache(tokens[None], names)

    def fix(x, hook):
        value = cache[hook.name].clone()
        for change in changes:
            for layer, vector in change.values.items():
                if hook.name == f"blocks.{layer}.hook_mlp_out":
                    value[0, change.positions[0]] += vector
        return value

    return model.run_with_hooks(tokens[None], [(n, fix) for n in names])[0, -1].double()


def test_with_everything_held_fixed_the_direct_edge_is_what_happens(model, tokens, case):
    transcoders, graph = case
    A = graph.adjacency()
    targets = [i for i, n in enumerate(graph.nodes) if n.kind == "logit"]
    features = [i for i, n in enumerate(graph.nodes) if n.kind == "feature"][::9]
    before = frozen_logits(model, tokens, [])
    for node in features:
        after = frozen_logits(model, tokens, feature_interventions(graph, transcoders, {node: -1.0}))
        change = (after - after.mean()) - (before - before.mean())
        for t in targets:
            assert change[graph.nodes[t].feature].item() == pytest.approx(-A[t, node].item(), rel=1e-8, abs=1e-9)


def test_predictions_are_those_of_the_whole_linear_model(case):
    _, graph = case
    A = graph.adjacency()
    values = torch.tensor([n.value if n.kind == "feature" else float("inf") for n in graph.nodes], dtype=torch.float64)
    B = A / values  # what a unit of relative change of a pre-activation passes on
    node = next(i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.layer == 0)
    total = torch.linalg.solve(torch.eye(len(values), dtype=torch.float64) - B, A[:, node])
    torch.testing.assert_close(predicted_effects(graph, {node: -1.0}), -total, rtol=1e-9, atol=1e-10)
    twice = predicted_effects(graph, {node: 1.0})
    torch.testing.assert_close(twice, total, rtol=1e-9, atol=1e-10)


def test_measured_changes_are_those_of_the_live_model(model, tokens, case):
    transcoders, graph = case
    found = validate(model, graph, transcoders, n=6)
    assert len(found.table) == 6 and set(found.table) >= {"predicted", "direct", "measured", "null"}
    row = found.table.iloc[2]
    at = graph.nodes[int(row.node)]
    changes = feature_interventions(graph, transcoders, {int(row.node): -1.0})

    def add(x, hook):
        for change in changes:
            for layer, vector in change.values.items():
                if hook.name == f"blocks.{layer}.hook_mlp_out":
                    x[0, at.position] += vector
        return x

    before = model(tokens[None])[0, -1].double()
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(model.cfg.n_layers)]
    after = model.run_with_hooks(tokens[None], [(names, add)])[0, -1].double()
    token = graph.nodes[found.target].feature
    expected = (after[token] - after.mean()) - (before[token] - before.mean())
    assert row.measured == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert -1 <= found.correlation <= 1 and found.null_ratio > 0


def test_what_is_no_feature_is_refused(model, case):
    transcoders, graph = case
    token = next(i for i, n in enumerate(graph.nodes) if n.kind == "token")
    with pytest.raises(ValueError, match="must be a feature"):
        predicted_effects(graph, {token: -1.0})
    with pytest.raises(IndexError, match="nodes are 0"):
        feature_interventions(graph, transcoders, {10**6: -1.0})
    with pytest.raises(IndexError, match="is no target"):
        validate(model, graph, transcoders, target=token)


@pytest.fixture(scope="module")
def injected(model, tokens):
    """A graph of given targets under injections, and what it was made with."""
    rng = torch.Generator().manual_seed(1)
    vector, direction, inner = torch.randn(3, model.cfg.d_model, generator=rng, dtype=torch.float64)
    last = model.cfg.n_layers - 1
    given = {
        "injections": [Injection(0, [2, 3], vector), Injection(last, [4], -vector)],
        "targets": [GraphTarget("yes - no", direction, position=5), GraphTarget("a probe", inner, layer=0, weight=0.5)],
    }
    transcoders = graph_sets.per_layer(model)
    return transcoders, attribute(model, tokens.tolist(), transcoders, **given, progress=False), given


def stream(model, tokens, injections, changes=()):
    """hook_resid_post of every block, with hooks."""
    seen = {}

    def edit(x, hook):
        layer, name = int(hook.name.split(".")[1]), hook.name.split(".", 2)[2]
        if name == "hook_mlp_out":
            for change in changes:
                if layer in change.values:
                    x[0, change.positions] += change.values[layer]
            return x
        for one in injections:
            if one.layer == layer:
                x[0, one.positions] += one.vector
        seen[layer] = x[0].clone()
        return x

    points = [f"blocks.{i}.{name}" for i in range(model.cfg.n_layers) for name in ("hook_mlp_out", "hook_resid_post")]
    model.run_with_hooks(tokens[None], [(points, edit)])
    return seen


@pytest.mark.parametrize("which", [0, 1])
def test_given_targets_and_injections_are_measured_as_they_were_given(model, tokens, injected, which):
    transcoders, graph, given = injected
    target = [i for i, n in enumerate(graph.nodes) if n.kind == "logit"][which]
    nodes = [i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.layer == 0 and n.position < 5][:3]
    found = validate(model, graph, transcoders, target=target, nodes=nodes, **given)

    def value(changes):
        resid = stream(model, tokens, given["injections"], changes)
        one = given["targets"][which]
        if one.layer is not None:
            return (resid[one.layer][one.position] @ one.direction).item()
        x = resid[model.cfg.n_layers - 1][one.position]  # gpt2: a layer norm with its weight; the bias is a constant
        weights = dict(model.native.named_weights())
        x = torch.nn.functional.layer_norm(x, x.shape, weights["ln_final.w"], eps=model.native.cfg.eps)
        return (x @ one.direction).item()

    for row in found.table.itertuples():
        expected = value(feature_interventions(graph, transcoders, {int(row.node): -1.0})) - value([])
        assert row.measured == pytest.approx(expected, rel=1e-6, abs=1e-9)
    # the probe stands at the last token, which earlier ones do not reach within the first block
    assert (found.table.measured.abs().max() > 1e-4) == (which == 0)


def test_what_an_injection_does_goes_through_the_whole_linear_model(injected):
    _, graph, _ = injected
    A = graph.adjacency()
    values = torch.tensor([n.value if n.kind == "feature" else float("inf") for n in graph.nodes], dtype=torch.float64)
    node = next(i for i, n in enumerate(graph.nodes) if n.kind == "injection")
    total = torch.linalg.solve(torch.eye(len(values), dtype=torch.float64) - A / values, A[:, node])
    torch.testing.assert_close(predicted_effects(graph, {node: -1.0}), -total, rtol=1e-9, atol=1e-10)


def test_other_targets_or_injections_than_the_graphs_are_refused(model, injected, case):
    transcoders, graph, given = injected
    targets, injections = given["targets"], given["injections"]
    with pytest.raises(ValueError, match="injections after blocks"):
        validate(model, graph, transcoders, n=2, targets=targets)
    for others in ((), targets[::-1]):
        with pytest.raises(ValueError, match="must be among attribute's targets"):
            validate(model, graph, transcoders, n=2, targets=others, injections=injections)
    with pytest.raises(ValueError, match="explains next tokens"):
        validate(model, case[1], case[0], n=2, targets=targets)
