"""The explorer's graphs: files read and refused, scores, changes predicted and measured."""

import copy
import json
import types
from dataclasses import replace

import graph_sets
import numpy as np
import pytest
import synthetic_graph
import torch
from explorer_server import PROMPT, write_dictionary

import introspect
from introspect.explorer import graph_changes, graphs, workspace
from introspect.explorer.dictionaries import Dictionaries, Sets
from introspect.explorer.fields import Fields, Refused
from introspect.explorer.session import Session
from introspect.explorer.worker import Job


def test_influence_of_a_graph_worked_out_by_hand():
    """The output gets a third each of 1, 6 and 7, whose own inputs weigh 3, 1 and 2; 0 is all that 9 gets."""
    links = [(1, 10, 1.0), (6, 10, -1.0), (7, 10, 1.0), (8, 7, 3.0), (9, 7, 1.0), (3, 7, -2.0), (0, 9, 5.0)]
    layers = [0, 2, 0, 1, 0, 0, 2, 2, 1, 1, 3, 0]
    graph = made(12, *zip(*links, strict=True), logits={10: 1.0}, layers=layers)
    expected = [1 / 18, 1 / 3, 0, 1 / 9, 0, 0, 1 / 3, 1 / 3, 1 / 6, 1 / 18, 0, 0]
    assert graphs.scores(graph).influence.tolist() == pytest.approx(expected, abs=1e-9)


def test_influence_is_that_of_the_inverse():
    """v = w inv(1 - A) - w, by a dense inverse."""
    graph = graphs.from_json(synthetic_graph.graph(n_features=40, seed=2), "made-up")
    dense = torch.zeros(graph.n, graph.n, dtype=torch.float64)
    for a, b, w in zip(graph.source, graph.target, graph.weight, strict=True):
        dense[b, a] += abs(w)
    dense = dense / dense.sum(1, keepdim=True).clamp_min(1e-10)
    w = torch.tensor(graph.token_prob)
    expected = w @ torch.linalg.inv(torch.eye(graph.n, dtype=torch.float64) - dense) - w
    torch.testing.assert_close(torch.tensor(graphs.scores(graph).influence), expected, rtol=0, atol=1e-10)


def test_the_library_says_the_same_of_a_graph(tmp_path):
    """AttributionGraph's scores and predictions, and its own file, by another reading of the same JSON."""
    data = synthetic_graph.graph(n_features=40, seed=2)
    native = introspect.circuits.AttributionGraph.from_json(json.dumps(data))
    graph = graphs.from_json(data, "made-up")
    scores, expected = graphs.scores(graph), native.scores()
    assert scores.replacement == pytest.approx(expected.replacement, rel=1e-6)
    assert scores.completeness == pytest.approx(expected.completeness, rel=1e-6)
    native.save(tmp_path / "own.safetensors")
    assert list(workspace.find(str(tmp_path)).graphs) == ["own"]
    own = graphs.load(tmp_path / "own.safetensors")
    assert (own.n, len(own.weight)) == (graph.n, len(graph.weight))
    feature = next(i for i, node in enumerate(native.nodes) if node.kind == "feature" and node.layer == 0)
    at = native.nodes[feature]
    number = own.ids.index(f"{at.layer}_{at.feature}_{at.position}")
    predicted = introspect.circuits.predicted_effects(native, {feature: -1.0})
    change = graphs.predict(own, {number: 0.0})
    both = zip(native.nodes, predicted.tolist(), strict=True)
    logits = {node.feature: value for node, value in both if node.kind == "logit"}
    places = {int(one.split("_")[1]): i for i, one in enumerate(own.ids) if own.kinds[i] == "logit"}
    assert any(logits.values())
    assert {token: change[i] for token, i in places.items()} == pytest.approx(logits, abs=1e-5)


def made(n, source, target, weight, logits, activations=None, layers=None):
    """A graph of features with these links."""
    return graphs.GraphData(
        "made-up", {}, {}, ["a"], [str(i) for i in range(n)], ["logit" if i in logits else "feature" for i in range(n)],
        ["mlp"] * n, np.array(layers or range(n)), np.zeros(n, int), [""] * n, [0] * n,
        np.array(activations if activations is not None else np.ones(n), float),
        np.array([logits.get(i, 0.0) for i in range(n)]), np.full(n, np.nan), np.zeros(n, bool),
        np.array(source), np.array(target), np.array(weight, float),
    )  # fmt: skip


def test_predicted_changes_are_those_of_the_linear_model():
    """a -> b -> logit and a -> logit: of a doubled, b rises by its link and passes on its share."""
    graph = made(3, [0, 1, 0], [1, 2, 2], [1.5, 4.0, 0.5], {2: 1.0}, activations=[2.0, 3.0, 0.0])
    change = graphs.predict(graph, {0: 2.0})
    assert change.tolist() == pytest.approx([2.0, 1.5, 0.5 + 4.0 * 1.5 / 3.0])
    held = graphs.predict(graph, {0: 2.0, 1: 1.0})  # b is held as it was
    assert held[2] == pytest.approx(0.5)


def test_a_graph_is_sent_whole_and_saved_with_pins(explorer):
    status, found = explorer.get("api", "graph", "graph")
    data = synthetic_graph.graph()
    assert status == 200
    assert found["nodes"]["id"] == [node["node_id"] for node in data["nodes"]]
    assert len(found["links"]["weight"]) == len(data["links"])
    node = found["nodes"]["id"][8]
    _, saved = explorer.post("/api/graph/graph/file", {"pinnedIds": [node], "supernodes": [["group", node]]})
    assert saved["qParams"]["pinnedIds"] == [node]
    assert saved["nodes"] == data["nodes"]
    read = graphs.from_json(saved, "saved")
    assert read.q_params["supernodes"] == [["group", node]]


def test_tracings_of_attention_keep_names_and_numbers_only():
    data = synthetic_graph.graph(n_features=3)
    ids = [node["node_id"] for node in data["nodes"]]
    pairs = [[ids[0], ids[1], 0.5], {"q": ids[1], "k": ids[0], "value": -0.25}, [float("nan")], "text", [[[]]]]
    data["nodes"][7]["qk_tracing_results"] = {"pair_wise_contributors": pairs, "top_q_marginal_contributors": 5}
    graph = graphs.from_json(data, "made-up")
    assert graph.qk == {
        7: {
            "pair_wise_contributors": [
                {"names": [ids[0], ids[1]], "weight": 0.5},
                {"names": [ids[1], ids[0]], "weight": -0.25},
            ],
            "top_q_marginal_contributors": [],
            "top_k_marginal_contributors": [],
        }
    }


def test_changes_of_a_graph(explorer):
    data = synthetic_graph.graph()
    node = next(one["node_id"] for one in data["nodes"] if one["feature_type"] == "cross layer transcoder")
    status, found = explorer.post("/api/graph/graph/change", {"changes": [{"node": node, "factor": 0}]})
    assert status == 200 and len(found["logits"]) == 3
    status, refused = explorer.post(
        "/api/graph/graph/change", {"changes": [{"node": node, "factor": 0}], "measure": True}
    )
    assert status in (400, 409) and "tokens" in refused["error"]  # it is of another model


@pytest.fixture(scope="module")
def circuits(model, tmp_path_factory):
    """A folder of dictionaries, and for each form of them: Sets, the graph as its file is read, and as it was made."""
    folder, tokens = tmp_path_factory.mktemp("circuits"), model.to_tokens(PROMPT)[0].tolist()
    layers, crossing = graph_sets.per_layer(model), graph_sets.cross_layer(model)
    layers = {layer: one.to(torch.float32) for layer, one in layers.items()}
    crossing, stream = crossing.to(torch.float32), graph_sets.sae(model, "blocks.1.hook_resid_post").to(torch.float32)
    found = {}
    for name, sets in (
        ("layers", Sets(layers)), ("cross-layer", Sets(crossing)), ("stream", Sets({}, [stream])),
        ("both", Sets(layers, [stream])),
    ):  # fmt: skip
        made = circuits_of(model, tokens, sets)
        made.to_json(folder / f"{name}.json", biases=True)
        found[name] = sets, graphs.load(folder / f"{name}.json"), made
    for layer, one in layers.items():
        introspect.sae.files.save(one, folder / "layers" / f"layer {layer}")
    introspect.sae.files.save_cross_layer(crossing, folder / "cross-layer")
    return folder, found


def circuits_of(model, tokens, sets):
    return introspect.circuits.attribute(model, tokens, sets.transcoders, saes=sets.saes, progress=False)


def opened(sets):
    return types.SimpleNamespace(of_graph=lambda places: sets)


@pytest.mark.parametrize("name", ["layers", "cross-layer", "stream"])
def test_measured_changes_are_the_models(model, circuits, name):
    """What two features wrote is scaled by hooks wherever they write: every logit less the mean, with and without."""
    sets, graph, _ = circuits[1][name]
    tokens = model.to_tokens(PROMPT)
    order = np.argsort(-graphs.scores(graph).influence)
    nodes = [int(i) for i in order if graph.is_feature(i) and graph.layers[i] == (1 if name == "stream" else 0)][:2]
    factors = dict(zip(nodes, (0.0, 3.0), strict=True))
    measured = graph_changes.measure(graph, factors, Session(model, workspace.Workspace()), opened(sets), Job())
    added = {}
    for node, factor in factors.items():
        layer, position, feature = int(graph.layers[node]), int(graph.positions[node]), graph.features[node]
        size = (factor - 1) * graph.activations[node]
        if name == "cross-layer":
            rows = sets.transcoders.layers[layer].weights["W_dec"][feature].unflatten(0, (-1, model.cfg.d_model))
        else:
            rows = [(sets.saes[0] if name == "stream" else sets.transcoders[layer]).weights["W_dec"][feature]]
        point = "hook_resid_post" if name == "stream" else "hook_mlp_out"
        for i, row in enumerate(rows):
            added.setdefault(f"blocks.{layer + i}.{point}", []).append((position, size * row))

    def change(x, hook):
        for position, vector in added[hook.name]:
            x[0, position] += vector
        return x

    before = model(tokens)[0, -1]
    after = model.run_with_hooks(tokens, [(point, change) for point in added])[0, -1]
    moved = after - after.mean() - before + before.mean()
    logits = {
        graph.ids[i]: moved[int(graph.ids[i].split("_")[1])].item() for i in range(graph.n) if graph.kinds[i] == "logit"
    }
    assert max(map(abs, logits.values())) > 1e-3
    assert measured == pytest.approx(logits, rel=1e-3, abs=1e-4)


def test_what_cannot_be_changed_in_the_model_is_refused(model, circuits):
    sets, graph, _ = circuits[1]["layers"]
    session = Session(model, workspace.Workspace())
    feature = next(i for i in range(graph.n) if graph.is_feature(i))
    token = graph.kinds.index("token")
    with pytest.raises(Refused, match="layer 0 has no transcoder; open it with --sae"):
        graph_changes.measure(graph, {feature: 0.0}, session, opened(Sets()), Job())
    with pytest.raises(Refused, match="only features can be changed"):
        graph_changes.measure(graph, {token: 0.0}, session, opened(sets), Job())
    with pytest.raises(Refused, match="needs the graph's model"):
        graph_changes.measure(graph, {feature: 0.0}, None, opened(sets), Job())
    unknown = replace(graph, activations=np.full(graph.n, np.nan))
    with pytest.raises(Refused, match="no activation of"):
        graph_changes.measure(unknown, {feature: 0.0}, session, opened(sets), Job())
    with pytest.raises(ValueError, match="has no activation"):
        graphs.predict(unknown, {feature: 0.0})


@pytest.mark.parametrize("name", ["layers", "both"])
def test_scores_of_a_graph_of_the_library_are_the_librarys(circuits, name):
    _, graph, made = circuits[1][name]
    found, expected = graphs.scores(graph), made.scores()
    assert (found.replacement, found.completeness) == pytest.approx(expected, rel=1e-5)
    assert len(set(graph.sites)) == (2 if name == "both" else 1)


@pytest.mark.parametrize("name", ["layers", "cross-layer", "both"])
def test_why_a_head_attends_is_computed_on_demand(model, circuits, name):
    sets, graph, _ = circuits[1][name]
    session = Session(model, workspace.Workspace())
    asked = Fields({"layer": 2, "head": 1, "query": 5, "key": 3})
    found = graph_changes.why_attended(graph, session, opened(sets), asked, Job())
    expected = introspect.circuits.qk_attribution(
        model, PROMPT, layer=2, head=1, query=5, key=3, transcoders=sets.transcoders, saes=sets.saes
    )
    table = expected.to_pandas(1)
    assert found["score"] == expected.score and found["pattern"] == expected.pattern
    assert found["pairs"][0]["weight"] == pytest.approx(table.term[0])
    parts = [one[end] for one in found["pairs"] for end in ("query", "key")]
    assert any(one["node"] for one in parts)
    for one in parts:
        if one["node"] is not None:
            assert graph.is_feature(graph.ids.index(one["node"]))
    alone = graph_changes.why_attended(graph, session, None, asked, Job())
    assert alone["score"] == pytest.approx(found["score"], rel=1e-4) and not alone["dictionaries"]
    for bad, says in (({"layer": 99}, "layer must be"), ({"key": 6}, "key must be"), ({"head": -1}, "head must be")):
        with pytest.raises(Refused, match=says):
            graph_changes.why_attended(graph, session, None, Fields({**asked._data, **bad}), Job())


def test_heads_of_a_link_are_those_of_head_loadings(model, circuits):
    sets, graph, _ = circuits[1]["layers"]
    session = Session(model, workspace.Workspace())
    output = graph.kinds.index("logit")
    source = next(i for i in range(graph.n) if graph.is_feature(i) and graph.layers[i] == 0 and graph.positions[i] == 2)
    found = graph_changes.heads_between(graph, source, output, session, opened(sets), Job())
    (link,) = np.flatnonzero((graph.source == source) & (graph.target == output))
    assert found["edge"] == pytest.approx(graph.weight[link], rel=1e-3, abs=1e-5)
    assert {row["layer"] for row in found["heads"]} == {1, 2}
    assert (found["query"], found["key"]) == (len(graph.tokens) - 1, 2)


def test_sets_of_a_folder_are_found_by_what_they_are(circuits):
    folder, found = circuits
    graph = found["layers"][1]
    space = workspace.find(str(folder / "layers"))
    write_dictionary(folder / "another", layer=0)  # of a point where the graph is not cut
    space.add("dictionaries", folder / "another")
    sets = graph_changes.sets_of(graph, Dictionaries(space, None))
    assert sorted(sets.transcoders) == [0, 1, 2] and sets.saes == []
    space = workspace.find(str(folder / "cross-layer.json"), dictionaries=[folder / "cross-layer"])
    assert list(space.cross_layer) == ["cross-layer"] and not space.dictionaries
    crossing = graph_changes.sets_of(found["cross-layer"][1], Dictionaries(space, None)).transcoders
    assert crossing.hash == found["cross-layer"][0].transcoders.hash
    both = workspace.find(str(folder / "layers"), dictionaries=[folder / "cross-layer"])
    with pytest.raises(Refused, match="more than one set of transcoders"):
        graph_changes.sets_of(graph, Dictionaries(both, None))
    twice = workspace.find(str(folder / "layers"), dictionaries=[folder / "layers" / "layer 0"])
    twice.dictionaries["again"] = folder / "layers" / "layer 0"
    with pytest.raises(Refused, match=r"two dictionaries are open that read blocks\.0"):
        graph_changes.sets_of(graph, Dictionaries(twice, None))


def test_dictionaries_of_another_set_are_noticed_by_their_activations(model, circuits):
    sets, graph, _ = circuits[1]["layers"]
    others = {layer: one.to(torch.float32) for layer, one in graph_sets.per_layer(model, d_sae=30).items()}
    feature = next(i for i in range(graph.n) if graph.is_feature(i))
    session = Session(model, workspace.Workspace())
    with pytest.raises(Refused, match=r"in the graph and .* in this model"):
        graph_changes.measure(graph, {feature: 0.0}, session, opened(Sets(others)), Job())
    assert graph_changes.measure(graph, {feature: 0.0}, session, opened(sets), Job())
    elsewhere = replace(graph, model_hash="0" * 64)
    with pytest.raises(Refused, match="of another model than the one that is open"):
        graph_changes.measure(elsewhere, {feature: 0.0}, session, opened(sets), Job())
    told = replace(graph, token_ids=[], model_hash="", tokens=[*graph.tokens[:-1], " Paris"])
    with pytest.raises(Refused, match="the graph has the token ' Paris' where"):
        graph_changes.measure(told, {feature: 0.0}, session, opened(sets), Job())


def broken_graph(what):
    data = copy.deepcopy(synthetic_graph.graph())
    nodes, links = data["nodes"], data["links"]
    if what == "schema":
        data["metadata"]["schema_version"] = 7
    elif what == "ids":
        nodes[3]["node_id"] = nodes[2]["node_id"]
    elif what == "number":
        links[0]["weight"] = 1e999
    elif what == "long number":
        links[0]["weight"] = 10**400
    elif what == "backwards":
        late = next(n for n in nodes if n["feature_type"] == "embedding" and n["ctx_idx"] == 5)
        early = next(n for n in nodes if n["layer"] == "1" and n["ctx_idx"] < 5)
        links += [{"source": late["node_id"], "target": early["node_id"], "weight": 1.0}]
    elif what == "text":
        links[0]["weight"] = "1"
    elif what == "position":
        nodes[5]["ctx_idx"] = 10**9
    elif what == "layer":
        nodes[8]["layer"] = "../../etc"
    elif what == "nodes":
        data["nodes"] = [nodes[0]] * (graphs.MOST_NODES + 1)
    elif what == "tokens":
        data["metadata"]["prompt_tokens"] = ["a"] * (graphs.MOST_TOKENS + 1)
    elif what == "no object":
        data["metadata"] = []
    elif what == "circle":
        a, b = next((link["source"], link["target"]) for link in links if link["source"][0].isdigit())
        data["links"] += [{"source": b, "target": a, "weight": 1.0}]
    return data


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("schema", "schema_version must be at most 1"),
        ("long number", "finite number"),
        ("backwards", "no earlier position"),
        ("ids", "two nodes have the id"),
        ("number", "finite number"),
        ("text", "finite number"),
        ("position", "ctx_idx must be of one of the 6 tokens"),
        ("layer", "layer must be a number or E"),
        ("nodes", "at most 50,000"),
        ("tokens", "at most 8,192"),
        ("no object", "metadata must be an object"),
        ("circle", "must lead to a later layer"),
    ],
)
def test_a_malicious_graph_is_refused_with_its_reason(what, says, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(broken_graph(what)))
    with pytest.raises(Refused, match=says):
        graphs.scores(graphs.load(path))


def test_a_graph_that_is_no_json_is_refused(tmp_path):
    for text in ("[" * 100_000, "{", '{"metadata": {"prompt_tokens": ["a"]}, "nodes": [1], "links": []}', "[]"):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(Refused):
            graphs.load(path)
