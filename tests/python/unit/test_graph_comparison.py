"""Graphs beside each other, from circuit-tracer's .pt, pruned as it prunes, drawn, and from the command line."""

import csv
import json
import sys
import types
from typing import NamedTuple
from xml.etree import ElementTree

import graph_sets
import pytest
import torch
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect import _C
from introspect.circuits import AttributionGraph, attribute, compare, mean_graph
from introspect.cli.app import app
from introspect.sae import files

TEXT = "my dog eats bread and"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder, dtype="float64")


def graph_of(edges, nodes, weights=(1.0,), tokens=2):
    """A graph of {(target, source): weight} over these nodes and a target for each weight."""
    rows = sorted({t for t, _ in edges})
    entries = sorted(edges)
    counts = [sum(t == row for t, _ in entries) for row in rows]
    return AttributionGraph(
        _C.AttributionGraph(
            nodes,
            rows,
            torch.tensor([0, *counts]).cumsum(0),
            torch.tensor([s for _, s in entries]),
            torch.tensor([edges[e] for e in entries], dtype=torch.float64),
            token_texts=["x"] * tokens,
        )
    )


def node(kind, layer, position=-1, feature=-1, value=0.0, name=""):
    return _C.GraphNode(kind, layer, position, feature, value, name)


class LogitTarget(NamedTuple):  # circuit_tracer.attribution.targets.LogitTarget
    token_str: str
    vocab_idx: int


class Config:  # stands for its UnifiedConfig: attributes in a dictionary, a torch.dtype among them
    def __init__(self):
        self.n_layers, self.model_name, self.dtype = 2, "a-model", torch.float32


class Attack:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.fixture
def circuit_tracer(monkeypatch):
    """Its classes' module while a file is written; it is gone when the file is read."""
    module = types.ModuleType("circuit_tracer_of_the_test")
    for one in (LogitTarget, Config):
        monkeypatch.setattr(one, "__module__", module.__name__)
        setattr(module, one.__name__, one)
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def golden():
    """The graph of circuit-tracer's test_small_graph: 5 features, 2 x 2 errors, 2 tokens, a target."""
    edges = {11: [1, 3, 6, 8], 3: [0, 1, 6], 1: [9, 10], 0: [9]}
    matrix = torch.zeros(12, 12)
    for target, sources in edges.items():
        matrix[target, sources] = 10.0
    return {
        "input_string": "ab",
        "input_tokens": torch.tensor([0, 1]),
        "active_features": torch.tensor([[0, 0, 1], [0, 1, 2], [0, 0, 3], [1, 1, 4], [1, 1, 5], [1, 1, 6]]),
        "selected_features": torch.arange(5),
        "activation_values": torch.arange(1.0, 7.0),
        "adjacency_matrix": matrix,
        "logit_targets": [LogitTarget(" c", 7)],
        "logit_probabilities": torch.tensor([1.0]),
        "vocab_size": 16,
        "cfg": Config(),
        "scan_name": "a/set",
    }


GOLDEN = [1 / 12, 1 / 3, 0, 1 / 4, 0, 0, 1 / 3, 0, 1 / 4, 1 / 4, 1 / 6, 0]


def test_the_golden_influences_of_circuit_tracer_from_its_own_file(tmp_path, circuit_tracer):
    torch.save(golden(), tmp_path / "g.pt")
    sys.modules.pop(circuit_tracer.__name__)
    graph = AttributionGraph.load(tmp_path / "g.pt")
    torch.testing.assert_close(graph.influence(), torch.tensor(GOLDEN, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(graph.adjacency(), golden()["adjacency_matrix"])
    assert graph.nodes[4] == node("feature", 1, 1, 5, 5.0)
    assert (graph.nodes[11].name, graph.nodes[11].feature, graph.model_name) == (" c", 7, "a-model")
    assert (graph.tokens, graph.prompt, graph.native.transcoders) == ([0, 1], "ab", "a/set")
    # what node pruning at 0.8 takes away in their test: feature 0, and with it the edges from and to it
    edges = graph.prune(0.8, 1.0)
    assert [(n.kind, n.layer, n.position) for n in edges.nodes if n.kind == "feature"] == [
        ("feature", 0, 1),
        ("feature", 1, 1),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adjacency_matrix": torch.zeros(11, 11)}, "an error for each layer and token"),
        ({"adjacency_matrix": torch.full((12, 12), float("nan"))}, "must be finite"),
        ({"adjacency_matrix": torch.ones(12, 12)}, "later layer"),
        ({"selected_features": torch.tensor([0, 1, 2, 3, 60])}, "must select features"),
        ({"active_features": torch.zeros(6, 3)}, "stands twice"),
        ({"logit_targets": []}, "logit_targets"),
        ({"input_tokens": "ab"}, "tensor input_tokens"),
    ],
)
def test_damaged_pt_files_are_refused(tmp_path, circuit_tracer, change, message):
    torch.save({**golden(), **change}, tmp_path / "g.pt")
    with pytest.raises(introspect.ConfigError, match=message):
        AttributionGraph.load(tmp_path / "g.pt")


def test_nothing_of_a_pt_file_is_run(tmp_path, circuit_tracer, capfd):
    torch.save({**golden(), "cfg": Attack()}, tmp_path / "g.pt")
    graph = AttributionGraph.load(tmp_path / "g.pt")
    assert graph.n_nodes == 12 and graph.model_name == "" and capfd.readouterr().out == ""
    with pytest.raises(introspect.IoError, match="print"):  # elsewhere such files are refused as ever
        torch.save({"cfg": Attack()}, tmp_path / "a.pt")
        introspect.io.read_torch_zip(tmp_path / "a.pt")


def published_prune(A, weights, kinds, node_threshold, edge_threshold):
    """circuit-tracer's prune_graph, in its own order of steps, over a dense float64 matrix."""

    def normalised(m):
        return m.abs() / m.abs().sum(1, keepdim=True).clamp(min=1e-10)

    def influence(m):
        now = weights @ m
        total = now.clone()
        while now.any():
            now = now @ m
            total += now
        return total

    def threshold(scores, share):
        ordered = scores.sort(descending=True).values
        place = int(torch.searchsorted(ordered.cumsum(0) / ordered.sum(), share))
        return ordered[min(place, max(int((ordered > 0).sum()) - 1, 0))]

    always = torch.tensor([kind in ("token", "logit") for kind in kinds])
    is_feature = torch.tensor([kind == "feature" for kind in kinds])
    v = influence(normalised(A))
    keep = (v >= threshold(v, node_threshold)) | always
    pruned = A.clone()
    pruned[~keep] = 0
    pruned[:, ~keep] = 0
    shares = normalised(pruned)
    scores = shares * (influence(shares) + weights)[:, None]
    edges = scores >= threshold(scores.flatten(), edge_threshold)
    before = None
    while before is None or not torch.equal(keep, before):
        before = keep.clone()
        edges[~keep] = False
        edges[:, ~keep] = False
        keep &= edges.any(0) | always
        keep &= edges.any(1) | ~is_feature
    return keep, edges


@pytest.mark.parametrize(("share_of_nodes", "share_of_edges"), [(0.8, 0.98), (0.5, 0.9), (0.95, 0.6), (0.9, 0.999)])
def test_pruning_keeps_what_the_published_formulas_keep(model, share_of_nodes, share_of_edges):
    graph = attribute(model, TEXT, graph_sets.per_layer(model), progress=False)
    nodes = graph.nodes
    A = graph.adjacency()
    A[:, [n.kind == "bias" for n in nodes]] = 0
    weights = torch.tensor([n.value if n.kind == "logit" else 0.0 for n in nodes], dtype=torch.float64)
    keep, edges = published_prune(A, weights, [n.kind for n in nodes], share_of_nodes, share_of_edges)
    small = graph.prune(share_of_nodes, share_of_edges)
    assert small.nodes == [n for n, kept in zip(nodes, keep.tolist(), strict=True) if kept]
    assert torch.equal(small.adjacency() != 0, edges[keep][:, keep])


def tiny(weights, more=()):
    """Two features and a target; `more`: further nodes between them."""
    nodes = [
        node("feature", 0, 1, 5, 1.0),
        node("feature", 1, 1, 7, 2.0),
        *more,
        node("token", -1, 0, 3, 0.0, "a"),
        node("token", -1, 1, 4, 0.0, "b"),
        node("logit", 2, 1, 9, 0.5, "c"),
    ]
    return graph_of(weights, nodes)


def test_two_graphs_are_matched_node_by_node():
    first = tiny({(0, 3): 1.0, (1, 0): 2.0, (4, 1): 3.0, (4, 0): 1.0})
    second = graph_of(
        {(0, 2): 1.0, (3, 0): 2.0},
        [node("feature", 0, 1, 5, 4.0), node("token", -1, 0, 3), node("token", -1, 1, 4), node("logit", 2, 1, 9, 0.5)],
    )
    found = compare(first, second)
    table = found.nodes.set_index(["kind", "layer", "position", "feature"])
    # by hand: the target's .5 goes to feature 1 (3/4) and 0 (1/4 and, through 1, 3/4); in the second all to feature 0
    assert table.loc[("feature", 1, 1, 7), "influence_first"] == pytest.approx(0.375)
    assert table.loc[("feature", 1, 1, 7), "change"] == pytest.approx(-0.375)
    assert not table.loc[("feature", 1, 1, 7), "in_second"]
    assert table.loc[("feature", 0, 1, 5), "value_second"] == 4
    assert table.loc[("feature", 0, 1, 5), "change"] == pytest.approx(0)
    assert found.jaccard == 0.5
    assert found.fell(1).feature.tolist() == [7] and found.rose().empty
    edges = found.edges.set_index(["source_layer", "target_layer"])
    assert edges.loc[(0, 2), ["weight_first", "weight_second", "change"]].to_list() == [1, 2, 1]
    assert edges.loc[(0, 1), "change"] == -2
    same = compare(first, first)
    assert same.jaccard == 1 and same.influence_correlation == pytest.approx(1)
    assert not same.nodes.change.any() and not same.edges.change.any()


def shifted(graph, by):
    """The same behind further tokens."""
    nodes = [
        node(n.kind, n.layer, n.position + by if n.position >= 0 else -1, n.feature, n.value, n.name)
        for n in graph.nodes
    ]
    native = graph.native
    return AttributionGraph(
        _C.AttributionGraph(
            nodes, native.targets, native.offsets, native.sources, native.weights, token_texts=["x"] * (2 + by)
        )
    )


def test_positions_count_from_the_end_or_as_given():
    graph = tiny({(0, 3): 1.0, (1, 0): 2.0, (4, 1): 3.0})
    later = shifted(graph, 3)
    assert compare(graph, later).jaccard == 1
    assert compare(graph, later, positions=[[0, 1], [0, 1, 2, 3, 4]]).jaccard == 0
    assert compare(graph, later, positions=[[0, 1], [None, None, None, 0, 1]]).jaccard == 1
    with pytest.raises(ValueError, match="must be 5 ascending numbers"):
        compare(graph, later, positions=[[0, 1], [0, 1]])


def test_the_mean_of_graphs():
    one = tiny({(0, 3): 1.0, (1, 0): 2.0, (4, 1): 3.0})
    other = shifted(tiny({(0, 3): 3.0, (4, 1): 1.0}), 1)
    mean = mean_graph([one, other])
    at = {(n.kind, n.layer, n.position): i for i, n in enumerate(mean.nodes)}
    A = mean.adjacency()
    assert A[at["feature", 0, 1], at["token", -1, 1]] == 2
    assert A[at["feature", 1, 1], at["feature", 0, 1]] == 1
    assert A[at["logit", 2, 1], at["feature", 1, 1]] == 2
    assert int((A != 0).sum()) == 3
    assert mean.token_texts == ["a", "b"]
    same = mean_graph([one, one])
    assert torch.equal(same.adjacency(), one.adjacency()) and same.nodes == one.nodes
    with pytest.raises(ValueError, match="at least one graph"):
        mean_graph([])


def test_a_mean_keeps_the_sums(model):
    """In-edges sum to the mean of the pre-activations, of every feature and target."""
    transcoders = graph_sets.per_layer(model)
    graphs = [
        attribute(model, text, transcoders, max_logits=1, progress=False) for text in (TEXT, "my cat eats bread and")
    ]
    mean = mean_graph(graphs)
    for i, n in enumerate(mean.nodes):
        if n.kind == "feature":
            assert mean.in_sums()[i].item() == pytest.approx(n.value, abs=1e-9)


def test_a_picture_has_every_node_and_edge_and_no_markup_of_names(model):
    graph = attribute(model, TEXT, graph_sets.per_layer(model), progress=False).prune(0.5, 0.8)
    root = ElementTree.fromstring(graph.svg())
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    kinds = [n.kind for n in graph.nodes]
    assert tags.count("circle") == kinds.count("feature") > 0
    assert tags.count("path") == graph.n_edges
    assert tags.count("g") == kinds.count("token") + kinds.count("logit")
    assert graph._repr_html_() == graph.svg()
    named = tiny({(0, 3): 1.0, (1, 0): -2.0, (4, 1): 3.0})
    nodes = [*named.nodes[:-1], node("logit", 2, 1, 9, 0.5, "<script>\n\x00&")]
    native = named.native
    odd = AttributionGraph(_C.AttributionGraph(nodes, native.targets, native.offsets, native.sources, native.weights))
    assert "<script>" not in odd.svg() and ElementTree.fromstring(odd.svg()) is not None
    whole = attribute(model, TEXT * 4, graph_sets.per_layer(model), progress=False)
    assert whole._repr_html_() is None
    with pytest.raises(ValueError, match="at most 600 nodes"):
        whole.svg()


@pytest.fixture(scope="module")
def sets(folder, tmp_path_factory):
    """The same transcoders in each form that the command line reads."""
    model = introspect.load_model(folder)
    where = tmp_path_factory.mktemp("sets")
    layers = {layer: one.to(torch.float32) for layer, one in graph_sets.per_layer(model).items()}
    for layer, one in layers.items():
        files.save(one, where / "yaml", format="circuit_tracer")
        files.save(one, where / "folders" / f"layer {layer}")
    files.save_cross_layer(graph_sets.cross_layer(model), where / "clt")
    return where


def run(*arguments, fails=False):
    result = CliRunner().invoke(app, ["graph", *map(str, arguments)])
    assert (result.exit_code != 0) == fails, result.output
    return result.output if fails else result.stdout


def test_the_command_line_from_a_prompt_to_a_picture(folder, sets, tmp_path):
    def attribute_with(name, out):
        return json.loads(run("attribute", folder, TEXT, "--transcoders", sets / name, "-o", tmp_path / out, "--json"))

    facts = attribute_with("yaml", "g.safetensors")
    assert attribute_with("folders", "f.json")["edges"] == facts["edges"]
    assert attribute_with("clt", "c.json")["nodes"] > 0
    model = introspect.load_model(folder)
    expected = attribute(model, TEXT, files.load_layers(sets / "yaml"), progress=False)
    saved = AttributionGraph.load(tmp_path / "g.safetensors")
    assert saved.nodes == expected.nodes
    torch.testing.assert_close(saved.adjacency(), expected.adjacency())

    run("prune", tmp_path / "g.safetensors", "-o", tmp_path / "p.json", "--nodes", "0.6", "--edges", "0.9")
    assert AttributionGraph.load(tmp_path / "p.json").n_nodes < saved.n_nodes
    shown = run("show", tmp_path / "g.safetensors", "-o", tmp_path / "g.svg", "--nodes", "0.5", "--edges", "0.7")
    assert "replacement" in shown and (tmp_path / "g.svg").read_text().startswith("<svg")
    compared = json.loads(
        run("compare", tmp_path / "g.safetensors", tmp_path / "p.json", "-o", tmp_path / "c.csv", "--json")
    )
    assert 0 < compared["jaccard"] < 1
    with open(tmp_path / "c.csv") as file:
        assert len(list(csv.DictReader(file))) >= saved.n_nodes
    checked = json.loads(
        run("validate", folder, tmp_path / "g.safetensors", "--transcoders", sets / "yaml", "--features", 4, "--json")
    )
    assert len(checked["features"]) == 4


def test_what_the_command_line_refuses(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "must hold layer_0" in run(
        "attribute", folder, TEXT, "--transcoders", tmp_path / "empty", "-o", tmp_path / "g.json", fails=True
    )
    assert "must end in" in run(
        "attribute", folder, TEXT, "--transcoders", tmp_path / "empty", "-o", tmp_path / "g.txt", fails=True
    )
    (tmp_path / "bad.json").write_text("{}")
    assert "not one of a graph" in run("show", tmp_path / "bad.json", fails=True)
