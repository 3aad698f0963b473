"""What attribution graphs get that they must not take: broken models, prompts, targets and files."""

import json

import graph_sets
import pytest
import torch
from graph_sets import tokens_of
from tiny import tiny_loader, write_tiny_transformers

import introspect
from introspect import _C, ConfigError, Error
from introspect.circuits import (
    AttributionGraph,
    GraphTarget,
    attribute,
    head_loadings,
    predicted_effects,
    qk_attribution,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def graph(models):
    model = models("llama")
    return attribute(model, tokens_of(model).tolist(), graph_sets.per_layer(model), progress=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_broken_weights_is_refused(models, value):
    model = introspect.load_model(models("gpt2").name, dtype="float64")
    dict(model.native.named_weights())["blocks.1.mlp.W_out"][3, 5] = value
    tokens = tokens_of(model).tolist()
    with pytest.raises(Error, match="must be finite, got NaN or infinity"):
        attribute(model, tokens, graph_sets.per_layer(models("gpt2")), progress=False)
    with pytest.raises(Error, match="must be finite"):
        qk_attribution(model, tokens, layer=1, head=0, query=4, key=2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_models_of_few_digits_have_graphs_in_float32(tmp_path, name, dtype):
    """Edges sum to activations to float32's digits: what the model rounds is in its values, not between the parts."""
    model = introspect.load_model(write_tiny_transformers(tmp_path / name, name), dtype=dtype)
    transcoders = {layer: one.to(torch.float32) for layer, one in graph_sets.per_layer(model).items()}
    made = attribute(model, tokens_of(model).tolist(), transcoders, progress=False)
    assert made.native.weights.dtype == torch.float32
    table = made.to_pandas()
    features = table[table.kind == "feature"]
    assert len(features) > 30
    assert (features.in_sum - features.value).abs().max() < 1e-3 * features.value.abs().max()


@pytest.mark.parametrize(
    ("prompt", "error", "says"),
    [
        ([], TypeError, "must be a text"),
        ([[]], ValueError, "has none"),
        ([5], introspect.ShapeError, "at least 2"),
        ([5, 10**6], IndexError, "tokens must be 0 to"),
        ([5, -1], IndexError, "tokens must be 0 to"),
        ([[1, 2], [3, 4]], ValueError, "one prompt is wanted, got 2"),
        ([1] * 5000, (introspect.ShapeError, ValueError), "n_ctx|context|at most"),
        (3.5, TypeError, "must be a text"),
    ],
)
def test_prompts_that_are_none_are_refused(models, prompt, error, says):
    model = models("llama")
    with pytest.raises(error, match=says):
        attribute(model, prompt, graph_sets.per_layer(model), progress=False)
    if prompt == [5]:
        return  # one token attends to itself
    with pytest.raises(error, match=says):
        head_loadings(model, prompt, {}, _C.GraphNode("token", -1, 0), _C.GraphNode("logit", 3, 1, 4))
    with pytest.raises(error, match=says):
        qk_attribution(model, prompt, layer=0, head=0, query=1, key=0)


def test_targets_that_are_none_are_refused(models):
    model = models("llama")
    tokens, transcoders = tokens_of(model).tolist(), graph_sets.per_layer(model)
    D = model.cfg.d_model

    def made(*targets, **options):
        return attribute(model, tokens, transcoders, targets=list(targets), progress=False, **options)

    with pytest.raises(TypeError, match="targets must be GraphTargets, got 5"):
        made(5)
    with pytest.raises(TypeError, match="injections must be Injections"):
        made(injections=["cat"])
    for direction, error in (
        (torch.ones(D + 1), introspect.ShapeError),
        (torch.ones(1, D), introspect.ShapeError),
        (torch.full((D,), float("nan")), ValueError),
    ):
        with pytest.raises(error, match="target 'x' must have"):
            made(GraphTarget("x", direction))
    for options, error in (
        ({"weight": 0.0}, ValueError), ({"weight": float("nan")}, ValueError), ({"layer": 99}, IndexError),
        ({"layer": -1}, IndexError), ({"position": 99}, IndexError), ({"position": -99}, IndexError),
    ):  # fmt: skip
        with pytest.raises(error, match="target 'x' must"):
            made(GraphTarget("x", torch.ones(D), **options))


@pytest.mark.parametrize("options", [
    {"logit_mass": 0.0}, {"logit_mass": float("nan")}, {"max_logits": 0}, {"max_features": -1}, {"edges_per_row": -1},
    {"rows_per_batch": 0}, {"batches_per_update": 0}, {"memory_budget": -1}, {"time_budget": float("nan")},
])  # fmt: skip
def test_options_out_of_range_are_refused(models, options):
    model = models("llama")
    with pytest.raises(ValueError, match=r"attribute: .*(must be|budget)"):
        attribute(model, tokens_of(model).tolist(), graph_sets.per_layer(model), progress=False, **options)


def test_dictionaries_that_are_none_are_refused(models, tmp_path):
    model = models("llama")
    tokens, mine = tokens_of(model).tolist(), graph_sets.per_layer(model)
    for wrong in ("gemma-scope", [mine[0]], {"0": mine[0]}, {0: "mine"}):
        with pytest.raises(TypeError, match="transcoders must be"):
            attribute(model, tokens, wrong, progress=False)
    with pytest.raises(IndexError, match="layers of transcoders must be 0 to"):
        attribute(model, tokens, {99: mine[0].with_origin(_C.DictionaryOrigin())}, input="residual", progress=False)
    with pytest.raises(introspect.ShapeError, match="vectors of"):
        others = graph_sets.per_layer(introspect.load_model(write_tiny_transformers(tmp_path, "gpt2", n_embd=24)))
        attribute(model, tokens, {0: others[0].with_origin(_C.DictionaryOrigin())}, input="mlp", progress=False)
    with pytest.raises(ConfigError, match="must be of this model"):
        attribute(model, tokens, graph_sets.per_layer(models("qwen2")), progress=False)
    shorter = graph_sets.cross_layer(model).layers[1:]
    with pytest.raises((ConfigError, introspect.ShapeError, ValueError)):
        attribute(model, tokens, _C.CrossLayerTranscoder(shorter), progress=False)


def test_a_layer_without_a_transcoder_is_error_as_a_whole(models):
    model = models("llama")
    mine = graph_sets.per_layer(model)
    made = attribute(model, tokens_of(model).tolist(), {0: mine[0], 2: mine[2]}, progress=False)
    table = made.to_pandas()
    features = table[table.kind == "feature"]
    assert set(features.layer) == {0, 2}
    assert (features.in_sum - features.value).abs().max() < 1e-9


def broken(graph, change):
    data = json.loads(graph.to_json(biases=True))
    change(data, {kind: [n for n in data["nodes"] if n["feature_type"] == kind] for kind in
                  {n["feature_type"] for n in data["nodes"]}})  # fmt: skip
    return json.dumps(data)


FEATURE, ERROR = "cross layer transcoder", "mlp reconstruction error"


@pytest.mark.parametrize(
    "change",
    [
        lambda data, nodes: nodes[ERROR][0].update(ctx_idx=-5),
        lambda data, nodes: nodes[ERROR][0].update(ctx_idx=2**62),
        lambda data, nodes: nodes[ERROR][0].update(layer=str(2**62)),
        lambda data, nodes: nodes[ERROR][0].update(layer="9" * 40),
        lambda data, nodes: nodes[FEATURE][0].update(node_id=f"0_{2**62}_1"),
        lambda data, nodes: nodes[FEATURE][0].update(node_id=f"{2**62}_1_1"),
        lambda data, nodes: nodes[FEATURE][0].update(node_id="0_1_-7"),
        lambda data, nodes: nodes[FEATURE][0].update(node_id="0_1"),
        lambda data, nodes: nodes[FEATURE][0].update(ctx_idx=-7),
        lambda data, nodes: nodes[FEATURE][0].update(node_id=7),
        lambda data, nodes: nodes[FEATURE][0].pop("node_id"),
        lambda data, nodes: nodes["logit"][0].update(token_prob="high"),
        lambda data, nodes: nodes["bias"][0].update(layer="deep"),
        lambda data, nodes: data["links"][0].update(weight=10**400),
        lambda data, nodes: data["links"][0].update(weight=None),
        lambda data, nodes: data["links"][0].update(weight=float("nan")),
        lambda data, nodes: data["metadata"].update(schema_version=1e30),
        lambda data, nodes: data["metadata"].update(schema_version="2"),
        lambda data, nodes: data["metadata"].update(prompt_tokens=5),
        lambda data, nodes: data["metadata"].update(introspect={"tokens": ["a"]}),
        lambda data, nodes: data["metadata"].update(introspect=[]),
        lambda data, nodes: data.update(nodes={"a": 1}),
        lambda data, nodes: data.update(nodes=[None]),
        lambda data, nodes: data.update(links=[3]),
        lambda data, nodes: data.pop("metadata"),
    ],
)
def test_malicious_graphs_are_refused_in_words(graph, change):
    with pytest.raises(ConfigError, match=r"AttributionGraph: .{10}"):
        AttributionGraph.from_json(broken(graph, change))


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, "{", '{"nodes": [], "links": []}', "\x00"])
def test_what_is_no_graph_is_refused_in_words(text):
    with pytest.raises(ConfigError, match="AttributionGraph"):
        AttributionGraph.from_json(text)


def test_names_are_only_ever_text(graph):
    """Markup of a file stays text in its picture and its JSON."""
    bad = "<script>alert(1)</script>\"'&"
    data = json.loads(graph.prune(0.5, 0.8).to_json())
    for node in data["nodes"]:
        if node["feature_type"] == "logit":
            node["clerp"] = f'Output "{bad}" (p=0.5)'
    data["metadata"]["prompt_tokens"] = [bad] * len(data["metadata"]["prompt_tokens"])
    again = AttributionGraph.from_json(json.dumps(data))
    assert "<script" not in again.svg()
    assert any(node.name == bad for node in again.nodes)


def test_effects_of_features_without_activations_are_refused(graph):
    data = json.loads(graph.to_json())
    for node in data["nodes"]:
        node["activation"] = None
    again = AttributionGraph.from_json(json.dumps(data))
    first = next(i for i, n in enumerate(again.nodes) if n.kind == "feature" and n.layer == 0)
    with pytest.raises(ValueError, match="has no activation"):
        predicted_effects(again, {first: -1.0})
