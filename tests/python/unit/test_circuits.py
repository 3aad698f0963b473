"""Circuits: known ones are found, and they are run, searched, selected, drawn, and written to files."""

import json
import math

import pytest
import torch
from analytic import (
    FRACTION_EDGES,
    INDUCTION_EDGES,
    REVERSE_EDGES,
    fraction_of_previous,
    induction_head,
    linear,
    or_gate,
    reverse,
)
from pairs import load, pair
from tiny import write_tiny

import introspect
from introspect import LogitDifference
from introspect.circuits import Circuit, acdc, edge_attribution, faithfulness, run_circuit

# BOS A B C D A against BOS C D A B C: what each edge carries differs, and B follows A here, D follows C there.
CLEAN, CORRUPTED, RIGHT, WRONG = [0, 1, 2, 3, 4, 1], [0, 3, 4, 1, 2, 3], 2, 4


def nonzero(circuit, floor=1e-6):
    return {edge for edge, score in circuit.edges.items() if abs(score) > floor}


# Circuits that are known


def test_induction_head_edges_are_found_by_every_method_and_no_others():
    metric = LogitDifference(RIGHT, WRONG)
    model = induction_head(sharpness=4.0)  # soft enough that no gradient vanishes
    for method in ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact"):
        found = edge_attribution(model, CLEAN, CORRUPTED, metric, method=method)
        assert nonzero(found.circuit) == INDUCTION_EDGES, method
        assert set(found.top(5).edges) == INDUCTION_EDGES
        assert set(found.greedy(5).edges) == INDUCTION_EDGES
    sharp = induction_head(sharpness=100.0)
    logits = sharp(torch.tensor([CLEAN]))[0, -1]
    assert logits.argmax() == RIGHT and logits[RIGHT] == pytest.approx(1.0)
    found = edge_attribution(sharp, CLEAN, CORRUPTED, metric, method="exact")
    # Every edge of the circuit turns B into D when it is patched; a0.h0's input patched is a0.h0 patched.
    assert {edge: pytest.approx(-2.0) for edge in INDUCTION_EDGES} == {
        edge: found.circuit.score(edge) for edge in INDUCTION_EDGES
    }
    assert nonzero(found.circuit) == INDUCTION_EDGES


def test_acdc_finds_the_induction_head_and_its_circuit_does_the_task():
    model = induction_head(sharpness=100.0)
    metric = LogitDifference(RIGHT, WRONG)
    found = acdc(model, CLEAN, CORRUPTED, -metric, threshold=0.1)
    assert set(found.circuit.edges) == INDUCTION_EDGES
    kept = run_circuit(model, found.circuit, CLEAN, CORRUPTED, metric)
    assert kept.item() == pytest.approx(1.0) and found.metric == pytest.approx(-1.0)
    assert set(acdc(model, CLEAN, CORRUPTED, threshold=0.01).circuit.edges) == INDUCTION_EDGES  # KL from the clean run
    assert found.n_runs < found.circuit.native.n_possible_edges + 64  # few of those tried ahead are for nothing


def test_or_gate_shows_no_single_edge_and_both_together():
    model = or_gate()
    metric = LogitDifference(0, 1)
    options = {"metric": metric, "ablation": "zero"}
    assert metric(model(torch.tensor([[0]]))).item() == pytest.approx(1.0)
    exact = edge_attribution(model, [0], method="exact", **options).circuit
    heads = ["a0.h0->m0", "a0.h1->m0"]
    assert [exact.score(edge) for edge in heads] == pytest.approx([0.0, 0.0], abs=1e-9)
    whole = Circuit.whole(model)
    without = Circuit.of_edges(model, [edge for edge in whole.edges if edge not in heads])
    effect = run_circuit(model, without, [0], **options) - run_circuit(model, whole, [0], **options)
    assert effect.item() == pytest.approx(-1.0, abs=1e-9)
    eap = edge_attribution(model, [0], **options).circuit
    assert [eap.score(edge) for edge in heads] == pytest.approx([0.0, 0.0], abs=1e-9)  # blind: the gate is saturated
    joint = edge_attribution(model, [0], method="eap-ig-activations", gauss=True, ig_steps=4, **options).circuit
    assert [joint.score(edge) for edge in heads] == pytest.approx([-0.5, -0.5], abs=1e-9)
    # One of the two inputs is enough, so the first that is tried goes: what is known of ACDC and OR gates.
    kept = acdc(model, [0], metric=-metric, threshold=0.1, ablation="zero").circuit
    assert set(kept.edges) & set(heads) == {"a0.h0->m0"} and "m0->logits" in kept.edges


def test_fraction_of_previous_tokens_has_three_edges():
    model = fraction_of_previous()
    clean, corrupted = [2, 1, 0, 1, 1], [1, 0, 0, 2, 1]
    metric = LogitDifference(0, 2)
    assert metric(model(torch.tensor([clean]))).item() == pytest.approx(3 / 5)
    for method in ("eap-ig", "exact"):
        found = edge_attribution(model, clean, corrupted, metric, method=method)
        assert nonzero(found.circuit) == FRACTION_EDGES
    assert [found.circuit.score(edge) for edge in FRACTION_EDGES] == pytest.approx([2 / 5 - 3 / 5] * 3)
    assert set(acdc(model, clean, corrupted, -metric, threshold=0.01).circuit.edges) == FRACTION_EDGES


def test_reverse_has_five_edges():
    # x y z | z y is followed by x; the bar of the corrupted prompt stands a token later, and another token is first.
    clean, corrupted, metric = [1, 2, 3, 0, 3, 2], [5, 6, 4, 1, 0, 1], LogitDifference(1, 4)
    sharp = reverse(sharpness=100.0)
    assert sharp(torch.tensor([clean]))[0, 3:].argmax(-1).tolist() == [3, 2, 1]
    assert sharp(torch.tensor([corrupted]))[0, 4:].argmax(-1).tolist() == [1, 4]
    found = edge_attribution(sharp, clean, corrupted, metric, method="exact").circuit
    assert nonzero(found) == REVERSE_EDGES
    # Another length or another first token takes 1's logit away; another output has 4's besides.
    expected = {edge: pytest.approx(-2.0 if edge == "a1.h0->logits" else -1.0, abs=1e-6) for edge in REVERSE_EDGES}
    assert {edge: found.score(edge) for edge in REVERSE_EDGES} == expected
    assert set(acdc(sharp, clean, corrupted, -metric, threshold=0.1).circuit.edges) == REVERSE_EDGES
    assert set(acdc(sharp, clean, corrupted, threshold=0.01).circuit.edges) == REVERSE_EDGES
    soft = reverse(sharpness=4.0)
    for method in ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact"):
        scored = edge_attribution(soft, clean, corrupted, metric, method=method)
        assert nonzero(scored.circuit) == REVERSE_EDGES, method
        assert set(scored.greedy(5).edges) == REVERSE_EDGES
    outputs = introspect.analysis.patch_grid(
        sharp, clean, corrupted, ["z", "mlp_out"], metric=metric, direction="noising", positions="all"
    )
    assert outputs["z"].values.flatten().tolist() == pytest.approx([0, -1], abs=1e-6)
    assert outputs["mlp_out"].values.flatten().tolist() == pytest.approx([0, 1], abs=1e-6)


def test_in_a_linear_net_attribution_is_exact(rng):
    model = linear(rng)
    clean, corrupted = [1, 2, 3, 4, 5], [1, 7, 3, 9, 5]
    exact = edge_attribution(model, clean, corrupted, LogitDifference(3, 4), method="exact").circuit.scores
    assert exact.abs().max() > 0.1
    for method in ("eap", "eap-ig", "eap-ig-activations"):
        scores = edge_attribution(model, clean, corrupted, LogitDifference(3, 4), method=method).circuit.scores
        torch.testing.assert_close(scores, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations", "exact"])
def test_equal_prompts_score_zero_everywhere(method, tmp_path, rng):
    model = load("llama", tmp_path)
    clean, _ = pair(rng)
    found = edge_attribution(model, clean, clean, LogitDifference(5, 6), method=method)
    assert found.circuit.scores.abs().max() < 1e-12


# Search and selection


def slow_acdc(model, clean, corrupted, metric, threshold, ablation):
    """One edge after another, each in a run of its own."""
    whole = Circuit.whole(model)
    names = list(whole.edges)
    order = {name: (-r, -s) for name in names for s, r in [whole.native.parse_edge(name)]}
    kept = set(names)
    run = lambda edges: run_circuit(  # noqa: E731
        model, Circuit.of_edges(model, sorted(edges)), clean, corrupted, metric, ablation=ablation
    ).mean()
    current = run(kept)
    for name in sorted(names, key=order.__getitem__):
        without = run(kept - {name})
        if without - current < threshold:
            kept.remove(name)
            current = without
    return kept, current.item()


@pytest.mark.parametrize(("threshold", "ablation"), [(0.05, "patching"), (0.5, "patching"), (0.2, "zero")])
def test_acdc_equals_one_edge_after_another(threshold, ablation, tmp_path, rng):
    folder = write_tiny(tmp_path, "LlamaForCausalLM", num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    model = introspect.load_model(folder, dtype=torch.float64)
    clean, corrupted = pair(rng)
    metric = introspect.Divergence()
    expected, value = slow_acdc(model, clean, corrupted, metric, threshold, ablation)
    found = acdc(model, clean, corrupted, threshold=threshold, ablation=ablation)
    assert set(found.circuit.edges) == expected
    assert 0 < len(expected) < Circuit.whole(model).n_edges
    assert found.metric == pytest.approx(value, abs=1e-10)
    # From a circuit on: only its edges are tried.
    start = edge_attribution(model, clean, corrupted, metric, method="eap-ig", ablation=ablation).top(20)
    smaller = acdc(model, clean, corrupted, threshold=threshold, ablation=ablation, start=start)
    assert set(smaller.circuit.edges) <= set(start.edges)


def test_selection_takes_the_best_edges_and_prunes_what_dangles(tmp_path, rng):
    model = load("gpt2", tmp_path)
    clean, corrupted = pair(rng)
    found = edge_attribution(model, clean, corrupted, LogitDifference(5, 6)).circuit
    table = found.to_pandas()
    ten = found.top(10, prune=False)
    assert list(ten.edges) == table["edge"].head(10).tolist()
    signed = found.top(10, absolute=False, prune=False)
    assert set(signed.edges) == set(table.sort_values("score", ascending=False)["edge"].head(10))
    greedy = found.greedy(30, prune=False)
    assert greedy.n_edges == 30
    reads_in_graph = {"logits"} | {e.split("->")[0] for e in greedy.edges}
    assert all(e.split("->")[1].split("<")[0] in reads_in_graph for e in greedy.edges)  # from the logits up
    with pytest.raises(ValueError, match="0 to all can be taken, got 100000"):
        found.top(100_000)


def test_pruning_leaves_the_edges_on_ways_from_input_to_logits(tmp_path):
    model = load("gpt2", tmp_path)
    way = ["input->a0.h1<v>", "a0.h1->m1", "m1->logits"]
    dangling = ["input->a1.h0<q>", "m0->a2.h2<k>", "a2.h2->logits", "a0.h3->m2"]
    circuit = Circuit.of_edges(model, way + dangling)
    assert set(circuit.pruned().edges) == set(way)
    assert circuit.pruned().nodes == ["input", "a0.h1", "m1"]
    assert Circuit.of_edges(model, dangling).pruned().n_edges == 0


def test_faithfulness_is_the_curve_of_runs_and_its_areas(tmp_path, rng):
    model = load("gpt2", tmp_path)
    clean, corrupted = pair(rng)
    metric = LogitDifference(5, 6)
    scored = edge_attribution(model, clean, corrupted, metric, method="eap-ig")
    shares = [0.05, 0.2, 0.5, 1.0]
    curve = faithfulness(model, scored, clean, corrupted, metric, shares=shares)
    n = scored.circuit.n_edges
    values = [run_circuit(model, scored.top(int(k * n)), clean, corrupted, metric).mean().item() for k in shares]
    full, empty = scored.clean.mean().item(), scored.corrupted.mean().item()
    f = [(value - empty) / (full - empty) for value in values]
    assert curve.faithfulness == pytest.approx(f, abs=1e-9) and curve.faithfulness[-1] == pytest.approx(1.0)
    assert curve.cpr == pytest.approx(torch.trapezoid(torch.tensor(f), torch.tensor(shares)).item(), abs=1e-5)
    off = (1 - torch.tensor(f)).abs()
    assert curve.cmd == pytest.approx(torch.trapezoid(off, torch.tensor(shares)).item(), abs=1e-5)
    signed = faithfulness(model, scored, clean, corrupted, metric, shares=[0.2], absolute=False)
    lowering = Circuit.of_edges(
        model, sorted(scored.circuit.edges, key=scored.circuit.edges.get)[: int(0.2 * n)]
    ).pruned()
    assert signed.metric[0] == pytest.approx(run_circuit(model, lowering, clean, corrupted, metric).mean().item())
    assert len(curve.to_pandas()) == 4 and curve.plot().axes


def test_interventions_outside_of_a_circuit_of_nodes_equal_its_run(tmp_path, rng):
    model = load("llama", tmp_path)
    clean, corrupted = pair(rng)
    metric = LogitDifference(5, 6)
    inside = {"input", "a0.h1", "a1.h4", "a2.h0", "m0", "m2"}
    heads = {node for node in inside if node.startswith("a")}

    def fed(receiver):
        groups = {f"{layer}.g{int(head) // 3}" for layer, head in (node.split(".h") for node in heads)}
        return receiver.split("<")[0] in inside | groups | {"logits"}

    edges = [e for e in Circuit.whole(model).edges if e.split("->")[0] in inside and fed(e.split("->")[1])]
    circuit = Circuit.of_edges(model, edges)
    assert set(circuit.nodes) == inside

    zeroed = run_circuit(model, circuit, clean, metric=metric, ablation="zero")
    with_zeros = metric(forward_with(model, clean, circuit.outside()))
    torch.testing.assert_close(zeroed, with_zeros, rtol=0, atol=1e-5)
    points = [f"blocks.{i}.{p}" for i in range(3) for p in ("attn.hook_z", "hook_mlp_out")]
    _, cache = model.run_with_cache(corrupted, names_filter=points)
    resampled = run_circuit(model, circuit, clean, corrupted, metric)
    with_corrupted = metric(forward_with(model, clean, circuit.outside({p: cache[p] for p in points})))
    torch.testing.assert_close(resampled, with_corrupted, rtol=0, atol=1e-5)  # the pass rounds norms to float32


def forward_with(model, tokens, interventions):
    hooks = model.native.make_hooks()
    for intervention in interventions:
        hooks.add_intervention(intervention)
    return model.native.forward(tokens, hooks=hooks)


# Files, pictures, comparison


def test_a_file_is_read_as_it_was_written_and_has_eap_ig_s_fields(tmp_path, rng):
    model = load("llama", tmp_path / "model")
    clean, corrupted = pair(rng)
    circuit = edge_attribution(model, clean, corrupted, LogitDifference(5, 6)).top(30)
    circuit.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json")
    assert torch.equal(again.scores, circuit.scores) and torch.equal(again.in_graph, circuit.in_graph)
    each = circuit.ungrouped()
    held = json.loads(each.to_json())
    assert held["cfg"] == {"n_layers": 3, "n_heads": 6, "parallel_attn_mlp": False, "d_model": 48}
    assert len(held["nodes"]) == 2 + 3 * 7 and held["nodes"]["logits"] == {"in_graph": True}
    assert len(held["edges"]) == 19 + sum((1 + 7 * i) * 3 * 6 + 1 + 7 * i + 6 for i in range(1, 3)) + 3 * 6 + 7 + 3
    assert set(held["edges"]["a0.h0->a1.h2<k>"]) == {"score", "in_graph"}
    total = lambda scores: scores.sum().item()  # noqa: E731
    assert total(each.scores) == pytest.approx(total(circuit.scores))
    # A node that is out takes its edges with it, as in that package.
    held["nodes"]["m0"]["in_graph"] = False
    assert not any(e.startswith("m0->") or e.endswith("->m0") for e in Circuit.from_json(json.dumps(held)).edges)


def test_a_circuit_of_another_model_is_refused(tmp_path, rng):
    model, other = load("llama", tmp_path / "a"), load("gpt2", tmp_path / "b", n_layer=2)
    clean, corrupted = pair(rng)
    with pytest.raises(
        introspect.ConfigError, match=r"2 layers, 6 heads in 6 groups.*the model has 3 layers, 6 heads in 2"
    ):
        run_circuit(model, Circuit.whole(other), clean, corrupted, LogitDifference(5, 6))
    with pytest.raises(introspect.ConfigError, match="of different models"):
        Circuit.whole(model).compare(Circuit.whole(other))
    held = json.loads(Circuit.of_edges(model, ["input->logits"]).to_json())
    held["edges"]["a9.h0->logits"] = {"score": 1.0, "in_graph": True}
    with pytest.raises(introspect.ConfigError, match=r"a9\.h0.*3 layers of 6 heads"):
        Circuit.from_json(json.dumps(held))
    for name, reason in {
        "a1.h0->a0.h0<q>": "does not come before",
        "a0.h0->a1.h2": "an edge goes to",
        "a0.h7->logits": "there is no node",
        "nonsense": "an edge is",
    }.items():
        with pytest.raises(ValueError, match=reason):
            Circuit.of_edges(model, [name])


def test_pictures_and_comparisons(tmp_path, rng):
    model = load("llama", tmp_path)
    clean, corrupted = pair(rng)
    first = edge_attribution(model, clean, corrupted, LogitDifference(5, 6)).circuit
    second = edge_attribution(model, clean, corrupted, LogitDifference(5, 6), method="eap-ig").circuit
    a, b = first.top(20, prune=False), second.top(40, prune=False)
    found = a.compare(b)
    both = set(a.edges) & set(b.edges)
    assert (found.n_first, found.n_second, found.n_both) == (20, 40, len(both))
    assert found.jaccard == pytest.approx(len(both) / (60 - len(both)))
    from scipy.stats import spearmanr

    mask = Circuit.whole(model).in_graph
    expected = spearmanr(first.scores[mask].abs(), second.scores[mask].abs()).statistic
    assert found.spearman == pytest.approx(expected, abs=1e-9)
    picture = first.top(30).svg()
    assert picture.startswith("<svg") and picture.count("<path") >= first.top(30).n_edges and ">logits<" in picture
    with pytest.raises(ValueError, match="at most 2000 edges"):
        Circuit.whole(load("gpt2", tmp_path / "large", n_layer=9)).svg()


# Bad input


def test_bad_input_is_refused_before_anything_runs(tmp_path):
    model = load("llama", tmp_path)
    metric = LogitDifference(5, 6)
    with pytest.raises(ValueError, match=r"pair 0 have 4 and 5, and differ first at token 2: 6 against 9"):
        edge_attribution(model, [4, 5, 6, 7], [4, 5, 9, 6, 7], metric)
    with pytest.raises(ValueError, match="as many clean as corrupted prompts are needed, got 2 and 1"):
        edge_attribution(model, [[4, 5], [6, 7]], [4, 5], metric)
    with pytest.raises(ValueError, match="corrupted prompts are needed"):
        edge_attribution(model, [4, 5], metric=metric)
    with pytest.raises(ValueError, match="a metric is needed"):
        edge_attribution(model, [4, 5], [4, 6])
    with pytest.raises(ValueError, match="accuracy has no gradient; use the exact method"):
        edge_attribution(model, [4, 5], [4, 6], introspect.Accuracy(5, 6))
    with pytest.raises(ValueError, match="ig_steps must be at least 1, got 0"):
        edge_attribution(model, [4, 5], [4, 6], metric, method="eap-ig", ig_steps=0)
    with pytest.raises(ValueError, match="method must be eap"):
        edge_attribution(model, [4, 5], [4, 6], metric, method="eapig")
    with pytest.raises(ValueError, match="ablation must be patching"):
        edge_attribution(model, [4, 5], [4, 6], metric, ablation="resample")
    with pytest.raises(introspect.ShapeError, match="prompts of one length, got 2 and 3 tokens"):
        edge_attribution(model, [[4, 5], [4, 5, 6]], [[4, 6], [4, 6, 7]], metric, per_position=True)
    with pytest.raises(IndexError, match="positions of a prompt of 2 tokens are -2 to 1, got 5"):
        edge_attribution(model, [4, 5], [4, 6], LogitDifference(5, 6, position=5))
    with pytest.raises(IndexError, match="token ids must be 0 to 100"):
        edge_attribution(model, [4, 500], [4, 6], metric)
    with pytest.raises(ValueError, match="the metric is 1 with all edges and with none"):
        faithfulness(model, Circuit.whole(model), [4, 5], [4, 6], introspect.Probability(tuple(range(101))))
    with pytest.raises(
        ValueError, match=r"304 exact runs \(304 edges of 1 prompts\) are more than max_edges=200.*hours"
    ):
        edge_attribution(model, [4, 5], [4, 6], metric, method="exact", max_edges=200)
    W_U = dict(model.native.named_weights())["unembed.W_U"].clone()
    W_U[5] = math.nan
    broken = introspect.Model(model.native.with_weights({"unembed.W_U": W_U}), name="broken")
    with pytest.raises(introspect.Error, match="scores are not finite"):
        edge_attribution(broken, [4, 5], [4, 6], metric)
    with pytest.raises(ValueError, match="shares must ascend"):
        faithfulness(model, Circuit.whole(model), [4, 5], [4, 6], metric, shares=[0.5, 0.1])
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x)]), pytest.raises(introspect.ConfigError):
        edge_attribution(model, [4, 5], [4, 6], metric)


def test_metrics_that_are_not_finite_or_do_not_differ_are_errors(tmp_path, rng):
    model = load("llama", tmp_path)
    clean, corrupted = pair(rng)
    metric = LogitDifference(5, 6)
    scored = edge_attribution(model, clean, corrupted, metric)
    with pytest.raises(ValueError, match="with all edges and with none: there is nothing to keep"):
        faithfulness(model, scored, clean, clean, metric)  # equal but for rounding, of which shares would be made
    with pytest.raises(ValueError, match="scores of edges must be numbers, got NaN"):
        scored.circuit.with_scores(torch.full_like(scored.circuit.scores, math.nan))
    with pytest.raises(ValueError, match="edges must hold one at least"):
        edge_attribution(model, clean, corrupted, metric, method="exact", edges=[])
    broken = dict(model.native.named_weights())["blocks.1.mlp.W_out"].clone()
    broken[0, 0] = math.nan
    bad = introspect.Model(model.native.with_weights({"blocks.1.mlp.W_out": broken}))
    with pytest.raises(introspect.Error, match="acdc: the metric of the circuit that is begun with is nan"):
        acdc(bad, clean, corrupted, threshold=0.1)
    with pytest.raises(introspect.Error, match="faithfulness: the metric is nan with all edges"):
        faithfulness(bad, scored, clean, corrupted, metric)
