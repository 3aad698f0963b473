"""Attribution graphs of models written by hand, whose circuits are known: every neuron is a feature, no error."""

import analytic
import pytest
import torch
from analytic import STEEP

from introspect import _C, Graph
from introspect.circuits import (
    GraphTarget,
    attribute,
    feature_interventions,
    head_loadings,
    predicted_effects,
    qk_attribution,
)

EXACT = 1e-6  # a norm's eps of 1 beside a stream of 1e-8 leaves the digits of float32's square root


def neurons(model):
    """The MLPs' neurons as features: relu, which their gelu is at these sizes."""
    weights = dict(model.native.named_weights())
    D = model.cfg.d_model
    site = lambda layer, point: [_C.DictionarySite(f"blocks.{layer}.{point}", D)]  # noqa: E731
    return {
        layer: _C.Dictionary(
            "standard",
            {
                "W_enc": weights[f"blocks.{layer}.mlp.W_in"],
                "b_enc": weights[f"blocks.{layer}.mlp.b_in"],
                "W_dec": weights[f"blocks.{layer}.mlp.W_out"].T.contiguous(),
                "b_dec": weights[f"blocks.{layer}.mlp.b_out"],
            },
            subtract_b_dec=False,
            origin=_C.DictionaryOrigin(
                inputs=site(layer, "mlp.hook_in"),
                outputs=site(layer, "hook_mlp_out"),
                model_hash=model.native.hash,
            ),
        )
        for layer in range(model.cfg.n_layers)
    }


def edges_of(graph):
    """{(source, target): weight} of what is not 0; a pre-activation counts in units of what steep neurons see."""
    name = lambda node: (node.kind[0], node.layer, node.position)  # noqa: E731
    out = {}
    for t, s in graph.adjacency().nonzero().tolist():
        target, source = graph.nodes[t], graph.nodes[s]
        weight = graph.adjacency()[t, s].item() / (STEEP if target.kind == "feature" else 1)
        if abs(weight) > EXACT:
            out[name(source), name(target)] = pytest.approx(weight, abs=1e-5)
    return out


def last_logits(model, tokens, edits):
    work = Graph()
    read = work.read(work.segment(model, tokens, None, edits))
    return model.native.readout(work.run()[read][0, -1]).double()


def target(dimension, size):
    return GraphTarget("it", torch.eye(size, dtype=torch.float64)[dimension])


def mlp(neurons_of, d_model, d_mlp):
    """Weights of relu neurons given as [(reads {dim: w}, bias, writes {dim: w})]."""
    W_in, b_in = torch.zeros(d_mlp, d_model, dtype=torch.float64), torch.full((d_mlp,), -STEEP, dtype=torch.float64)
    W_out = torch.zeros(d_model, d_mlp, dtype=torch.float64)
    for m, (reads, bias, writes) in enumerate(neurons_of):
        b_in[m] = STEEP * bias
        for dim, w in reads.items():
            W_in[m, dim] = STEEP * w
        for dim, w in writes.items():
            W_out[dim, m] = w / STEEP
    return {"W_in": W_in, "b_in": b_in, "W_out": W_out}


def chain():
    """3 in dimension 0; 2 of it to 1; that less 1 to 2; 3 of it to 3, which the logit reads."""
    layers = [[({0: 1}, 0, {1: 2})], [({1: 1}, -1, {2: 1})], [({2: 1}, 0, {3: 3})]]
    weights = {f"blocks.{i}.mlp.{name}": value for i, of in enumerate(layers) for name, value in mlp(of, 4, 1).items()}
    W_E, W_U = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    W_E[1, 0], W_U[0, 3] = 3, 1
    return analytic.model_of(
        {"embed.W_E": W_E, "unembed.W_U": W_U, **weights},
        n_layers=3, d_model=4, n_heads=1, d_head=1, d_mlp=1, d_vocab=2, n_ctx=4,
    )  # fmt: skip


def both_were_seen():
    """A and B: layer 0 marks each, layer 1's head takes A's mark along, its MLP says whether both are there."""
    weights = {
        **{
            f"blocks.0.mlp.{name}": value
            for name, value in mlp([({0: 1}, 0, {2: 2}), ({1: 1}, 0, {3: 1})], 6, 2).items()
        },
        **{f"blocks.1.mlp.{name}": value for name, value in mlp([({4: 1, 3: 1}, -1, {5: 1})], 6, 2).items()},
    }
    W_E = torch.eye(2, 6, dtype=torch.float64)
    W_U = torch.zeros(2, 6, dtype=torch.float64)
    W_U[0, 5] = 1
    qkv, o = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.float64)
    qkv[2, 2] = o[4, 0] = 1
    return analytic.model_of(
        {"embed.W_E": W_E, "unembed.W_U": W_U, "blocks.1.attn.W_QKV": qkv, "blocks.1.attn.W_O": o, **weights},
        n_layers=2, d_model=6, n_heads=1, d_head=1, d_mlp=2, d_vocab=2, n_ctx=4,
    )  # fmt: skip


def test_a_chain_is_found_link_by_link():
    model = chain()
    graph = attribute(model, [0, 1], neurons(model), targets=[target(3, 4)], progress=False)
    assert edges_of(graph) == {
        (("t", -1, 1), ("f", 0, 1)): 3,
        (("f", 0, 1), ("f", 1, 1)): 6,
        (("b", 1, -1), ("f", 1, 1)): -1,
        (("f", 1, 1), ("f", 2, 1)): 5,
        (("f", 2, 1), ("l", 3, 1)): 15,
    }
    assert graph.scores().replacement == pytest.approx(1, abs=EXACT)
    assert graph.scores().completeness == pytest.approx(1, abs=EXACT)
    kept = [node for node in graph.prune(0.99, 0.99).nodes if node.kind in ("feature", "error")]
    assert [(node.kind, node.layer, node.position) for node in kept] == [("feature", i, 1) for i in range(3)]


def test_an_intervention_does_what_a_chain_says():
    model = chain()
    transcoders = neurons(model)
    graph = attribute(model, [0, 1], transcoders, max_logits=1, progress=False)
    first = graph.find("feature", 0, 1, 0)
    goal = next(i for i, node in enumerate(graph.nodes) if node.kind == "logit")
    token = graph.nodes[goal].feature

    def logit(changes):
        edits = feature_interventions(graph, transcoders, changes)
        row = last_logits(model, graph.tokens, edits)
        return (row[token] - row.mean()).item()

    for change in (-0.5, 0.5, 1.0):  # half of 6 is above 1: the second neuron stays active, and all is linear
        predicted = predicted_effects(graph, {first: change})[goal].item()
        assert abs(predicted) > 1
        assert logit({first: change}) - logit({}) == pytest.approx(predicted, rel=1e-4)
    # without the first the second is below its threshold, and only as much is lost as was there
    assert predicted_effects(graph, {first: -1.0})[goal].item() == pytest.approx(-9)
    assert logit({first: -1.0}) - logit({}) == pytest.approx(-7.5, rel=1e-4)


def test_two_hops_over_two_positions():
    model = both_were_seen()
    transcoders = neurons(model)
    graph = attribute(model, [0, 1], transcoders, targets=[target(5, 6)], mask_first=False, progress=False)
    found = edges_of(graph)
    assert {edge: weight for edge, weight in found.items() if edge[1] != ("f", 1, 0)} == {
        (("t", -1, 0), ("f", 0, 0)): 1,
        (("t", -1, 1), ("f", 0, 1)): 1,
        (("f", 0, 0), ("f", 1, 1)): 1,  # 2, of which the head takes half
        (("f", 0, 1), ("f", 1, 1)): 1,
        (("b", 1, -1), ("f", 1, 1)): -1,
        (("f", 1, 1), ("l", 2, 1)): 1,
    }
    # the head carries all of the one mark, and nothing of the other
    a, b, both = (graph.nodes[graph.find("feature", *at)] for at in ((0, 0, 0), (0, 1, 1), (1, 1, 0)))
    for source, through in ((a, 1), (b, 0)):
        loadings = head_loadings(model, [0, 1], transcoders, source, both, mask_first=False)
        assert loadings.layers == [1]
        assert loadings.heads[0, 0].item() / STEEP == pytest.approx(through, abs=1e-5)
        assert loadings.past_attention[0].item() / STEEP == pytest.approx(1 - through, abs=1e-5)
    # without one of the two the other does not get there
    for at in ((0, 0, 0), (0, 1, 1)):
        edits = feature_interventions(graph, transcoders, {graph.find("feature", *at): -1.0})
        assert last_logits(model, [0, 1], edits)[0].item() == pytest.approx(0, abs=1e-5)
    assert last_logits(model, [0, 1], [])[0].item() == pytest.approx(1, abs=1e-5)


def test_what_tracr_compiles_the_share_of_a_token_to():
    model = analytic.fraction_of_previous()
    tokens = [1, 0, 1, 2, 1]
    graph = attribute(model, tokens, neurons(model), targets=[target(4, 5)], mask_first=False, progress=False)
    ones = [p for p, token in enumerate(tokens) if token == 1]
    assert edges_of(graph) == {
        **{(("t", -1, p), ("f", 0, p)): 1 for p in ones},
        **{(("f", 0, p), ("l", 2, 4)): 1 / len(tokens) for p in ones},
    }


def test_induction_shows_in_the_head_and_not_in_the_graph():
    model = analytic.induction_head(sharpness=40.0)
    tokens = [0, 3, 4, 5, 3]  # what followed 3 was 4
    graph = attribute(model, tokens, neurons(model), targets=[target(6 + 8 + 6 + 4, 26)], progress=False)
    # the graph has only what was copied: that 4 was taken because 3 stood before it is in the pattern, held fixed
    assert edges_of(graph) == {(("t", -1, 2), ("l", 2, 4)): 1}
    why = qk_attribution(model, tokens, layer=1, head=0, query=4, key=2)
    assert why.pattern == pytest.approx(1, abs=1e-5)
    best = why.to_pandas(1).iloc[0]
    assert (best.query_kind, best.key_kind, best.key_layer) == ("token", "attention", 0)
    assert best.term == pytest.approx(40, rel=1e-4)
    assert why.terms.sum().item() == pytest.approx(why.score, rel=1e-9)
