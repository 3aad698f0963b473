"""Scores of heads as sums over pairs of parts, and edges as sums over heads: against the engine's own activations."""

import graph_sets
import pytest
import torch
from graph_sets import tokens_of
from tiny import ARCHITECTURES, tiny_loader

from introspect.circuits import attribute, head_loadings, qk_attribution


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_terms_sum_to_the_score_that_the_model_computes(models, name):
    model = models(name)
    tokens = tokens_of(model)
    layer, head, query, key = model.cfg.n_layers - 1, model.cfg.n_heads - 1, 8, 6
    names = [f"blocks.{layer}.attn.hook_attn_scores", f"blocks.{layer}.attn.hook_pattern"]
    _, cache = model.run_with_cache(tokens[None], names)
    score = cache[names[0]][0, head, query, key].item()
    cap = model.cfg.attn_scores_soft_cap
    for transcoders in (None, graph_sets.per_layer(model, skip=True), graph_sets.cross_layer(model)):
        found = qk_attribution(
            model, tokens.tolist(), layer=layer, head=head, query=query, key=key, transcoders=transcoders
        )
        assert found.terms.sum().item() == pytest.approx(found.score, abs=1e-9)
        capped = cap * torch.tanh(torch.tensor(found.score / cap)).item() if cap else found.score
        # the engine's RMS norms are float32 within
        assert capped == pytest.approx(score, rel=1e-5, abs=1e-5)
        assert found.pattern == pytest.approx(cache[names[1]][0, head, query, key].item(), rel=1e-4)
        assert (transcoders is None) == (not any(p.kind == "feature" for p in found.query_parts))


def test_taking_a_part_out_of_the_query_lowers_the_score_by_its_terms(models):
    model = models("gpt2")
    tokens = tokens_of(model)
    found = qk_attribution(model, tokens.tolist(), layer=1, head=0, query=5, key=3)
    place = next(i for i, p in enumerate(found.query_parts) if p.kind == "token")
    # with the norm's scale held fixed, by hand
    _, cache = model.run_with_cache(tokens[None], ["blocks.1.ln1.hook_scale", "blocks.1.attn.hook_k"])
    weights = dict(model.native.named_weights())
    K, H = model.cfg.d_head, model.cfg.n_heads
    x = weights["embed.W_E"][tokens[5]]
    x = (x - x.mean()) / cache["blocks.1.ln1.hook_scale"][0, 5] * weights["blocks.1.ln1.w"]
    q = weights["blocks.1.attn.W_QKV"][:K] @ x
    k = cache["blocks.1.attn.hook_k"][0, 3, 0]
    assert model.cfg.n_key_value_heads == H
    torch.testing.assert_close(found.terms[place].sum(), q @ k / K**0.5, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("skip", [False, True])
def test_head_parts_and_what_goes_past_sum_to_the_edge_at_every_layer(models, name, skip):
    model = models(name)
    tokens = tokens_of(model).tolist()
    transcoders = graph_sets.per_layer(model, skip=skip)
    graph = attribute(model, tokens, transcoders, progress=False)
    A = graph.adjacency()
    last = model.cfg.n_layers - 1
    features = [i for i, n in enumerate(graph.nodes) if n.kind == "feature"]
    target = [i for i in features if graph.nodes[i].layer == last][-1]
    logit = next(i for i, n in enumerate(graph.nodes) if n.kind == "logit")
    source = next(i for i in features if graph.nodes[i].layer == 0)
    token = next(i for i, n in enumerate(graph.nodes) if n.kind == "token" and n.position == 4)
    error = next(i for i, n in enumerate(graph.nodes) if n.kind == "error" and n.layer == 0 and n.position == 2)
    for t in (target, logit):
        for s in (source, token, error):
            found = head_loadings(model, tokens, transcoders, graph.nodes[s], graph.nodes[t])
            assert found.edge == pytest.approx(A[t, s].item(), rel=1e-9, abs=1e-10)
            sums = found.heads.sum(1) + found.past_attention
            torch.testing.assert_close(sums, torch.full_like(sums, found.edge), rtol=1e-9, atol=1e-10)
            assert found.layers[0] == (0 if s == token else 1)


def test_the_last_layer_of_a_cross_layer_feature_holds_its_whole_edge(models):
    model = models("llama")
    tokens = tokens_of(model).tolist()
    transcoders = graph_sets.cross_layer(model)
    graph = attribute(model, tokens, transcoders, progress=False)
    source = next(i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.layer == 0)
    target = [i for i, n in enumerate(graph.nodes) if n.kind == "feature" and n.layer == model.cfg.n_layers - 1][-1]
    found = head_loadings(model, tokens, transcoders, graph.nodes[source], graph.nodes[target])
    assert found.edge == pytest.approx(graph.adjacency()[target, source].item(), rel=1e-9, abs=1e-10)
    assert (found.heads.sum(1) + found.past_attention)[-1].item() == pytest.approx(found.edge, rel=1e-9, abs=1e-10)


def test_what_is_not_there_is_refused(models):
    model = models("llama")
    tokens = tokens_of(model).tolist()
    with pytest.raises(ValueError, match="does not see"):
        qk_attribution(model, tokens, layer=0, head=0, query=2, key=5)
    with pytest.raises(IndexError, match="head must be 0"):
        qk_attribution(model, tokens, layer=0, head=99, query=5, key=2)
    graph = attribute(model, tokens, graph_sets.per_layer(model), progress=False)
    logit = next(n for n in graph.nodes if n.kind == "logit")
    with pytest.raises(ValueError, match="source must be"):
        head_loadings(model, tokens, graph_sets.per_layer(model), logit, logit)
