"""Attribution of edges, circuits and their runs: known circuits, identities, and plain loops of autograd and hooks."""

import json
import math

import pytest
import torch
from analytic import FRACTION_EDGES, INDUCTION_EDGES, fraction_of_previous, induction_head, linear, or_gate
from reference import exact_softmax
from tiny import ARCHITECTURES, tiny_transformers, write_tiny, write_tiny_transformers

import introspect
from introspect import LogitDifference
from introspect.circuits import Circuit, acdc, edge_attribution, faithfulness, run_circuit

T = 10
# BOS A B C D A against BOS C D A B C: what each edge carries differs, and B follows A here, D follows C there.
CLEAN, CORRUPTED, RIGHT, WRONG = [0, 1, 2, 3, 4, 1], [0, 3, 4, 1, 2, 3], 2, 4


def pair(rng, n=2, length=T):
    """Tokens that differ in some places."""
    clean = torch.randint(3, 101, (n, length), generator=rng)
    corrupted = clean.clone()
    corrupted[:, 2:5] = torch.randint(3, 101, (n, 3), generator=rng)
    return clean, corrupted


def load(name, folder, dtype=torch.float64, **overrides):
    return introspect.load_model(write_tiny_transformers(folder, name, **overrides), dtype=dtype)


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


# Against plain loops


def loop_scores(model, clean, corrupted, metric, alphas, positions=False):
    """The formula, sender by sender and receiver by receiver, with TransformerLens's hook points and autograd.

    Keys and values are hooked by group. Returns {edge: score}, the mean over prompts.
    """
    cfg = model.cfg
    H, G, L = cfg.n_heads, model.native.cfg.n_key_value_heads, cfg.n_layers
    senders = ["hook_embed", *(f"blocks.{i}.{p}" for i in range(L) for p in ("attn.hook_result", "hook_mlp_out"))]
    _, of_clean = model.run_with_cache(clean, names_filter=senders)
    _, of_corrupted = model.run_with_cache(corrupted, names_filter=senders)
    change = {name: of_corrupted[name] - of_clean[name] for name in senders}
    letters = {"q": H, "k": G, "v": G}
    points = [f"blocks.{i}.hook_{c}_input" for i in range(L) for c in letters]
    points += [f"blocks.{i}.hook_mlp_in" for i in range(L)] + [f"blocks.{L - 1}.hook_resid_post"]
    gradients = dict.fromkeys(points, 0)

    def keep(gradient, hook):
        gradients[hook.name] = gradients[hook.name] + gradient.detach() / len(alphas)

    for alpha in alphas:

        def start(embedding, hook, alpha=alpha):
            return of_corrupted["hook_embed"] + alpha * (of_clean["hook_embed"] - of_corrupted["hook_embed"])

        with model.hooks(fwd_hooks=[("hook_embed", start)], bwd_hooks=[(points, keep)]):
            metric(model(clean)).sum().backward()

    def outputs_before(layer, with_heads):
        yield "input", change["hook_embed"]
        for i in range(layer + (1 if with_heads else 0)):
            for h in range(H):
                yield f"a{i}.h{h}", change[f"blocks.{i}.attn.hook_result"][:, :, h]
            if i < layer:
                yield f"m{i}", change[f"blocks.{i}.hook_mlp_out"]

    scores = {}
    dims = (0, 2) if positions else (0, 1, 2)
    for layer in range(L):
        for letter, n in letters.items():
            for head in range(n):
                kind = "g" if letter != "q" and G != H else "h"
                gradient = gradients[f"blocks.{layer}.hook_{letter}_input"][:, :, head]
                for sender, delta in outputs_before(layer, with_heads=False):
                    scores[f"{sender}->a{layer}.{kind}{head}<{letter}>"] = (delta * gradient).sum(dims) / len(clean)
        gradient = gradients[f"blocks.{layer}.hook_mlp_in"]
        for sender, delta in outputs_before(layer, with_heads=not cfg.parallel_attn_mlp):
            scores[f"{sender}->m{layer}"] = (delta * gradient).sum(dims) / len(clean)
    for sender, delta in outputs_before(L, with_heads=False):
        scores[f"{sender}->logits"] = (delta * gradients[points[-1]]).sum(dims) / len(clean)
    return scores


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize("method", ["eap", "eap-ig", "clean-corrupted"])
def test_scores_equal_a_loop_of_hooks_and_autograd(name, method, tmp_path, rng):
    folder = write_tiny_transformers(tmp_path, name)
    hooked = introspect.HookedTransformer.from_pretrained_no_processing(folder, dtype=torch.float64)
    clean, corrupted = pair(rng)
    metric = LogitDifference([5, 6], [7, 8])
    alphas = {"eap": [1], "eap-ig": [k / 5 for k in range(5)], "clean-corrupted": [0, 1]}[method]
    expected = loop_scores(hooked, clean, corrupted, metric, alphas)
    found = edge_attribution(hooked, clean, corrupted, metric, method=method).circuit
    assert set(found.edges) == set(expected)
    ours = torch.tensor([found.score(edge) for edge in expected])
    theirs = torch.tensor([float(score) for score in expected.values()])
    # The pass with hooks rounds RMS norms to float32, LayerNorms not.
    floor = 1e-9 if name.startswith("gpt") else 3e-5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=floor * max(1.0, theirs.abs().max().item()))


def test_scores_of_positions_equal_the_loop_and_sum_to_the_scores(tmp_path, rng):
    folder = write_tiny_transformers(tmp_path, "gpt2")
    hooked = introspect.HookedTransformer.from_pretrained_no_processing(folder, dtype=torch.float64)
    clean, corrupted = pair(rng)
    metric = introspect.LogProbability(9) + 0.5 * introspect.Divergence(position=4)
    metric_of = lambda logits: metric(logits, hooked(clean))  # noqa: E731
    expected = loop_scores(hooked, clean, corrupted, metric_of, [1], positions=True)
    found = edge_attribution(hooked, clean, corrupted, metric, per_position=True)
    for edge, scores in expected.items():
        s, r = found.circuit.native.parse_edge(edge)
        torch.testing.assert_close(found.by_position[:, s, r], scores, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.by_position.sum(0), found.circuit.scores, rtol=0, atol=1e-12)


def test_ungrouped_keys_are_those_of_each_query_head(tmp_path, rng):
    model = load("llama", tmp_path)
    clean, corrupted = pair(rng)
    grouped = edge_attribution(model, clean, corrupted, LogitDifference(5, 6)).circuit
    each = edge_attribution(model, clean, corrupted, LogitDifference(5, 6), ungrouped=True).circuit
    n = model.cfg.n_heads // model.cfg.n_key_value_heads
    for letter in "kv":
        heads = [each.score(f"a0.h1->a2.h{h}<{letter}>") for h in range(n)]
        assert math.fsum(heads) == pytest.approx(grouped.score(f"a0.h1->a2.g0<{letter}>"), abs=1e-9)
        assert max(heads) - min(heads) > 1e-6
    assert each.score("m0->a1.h3<q>") == pytest.approx(grouped.score("m0->a1.h3<q>"), abs=1e-9)
    # An exact run agrees: each query head's own key input, patched, and the file's names are EAP-IG's.
    exact = edge_attribution(
        model, clean, corrupted, LogitDifference(5, 6), method="exact", ungrouped=True, edges=["m0->a1.h4<k>"]
    )
    without = Circuit.of_edges(model, [e for e in each.edges if e != "m0->a1.h4<k>"], ungrouped=True)
    run = run_circuit(model, without, clean, corrupted, LogitDifference(5, 6))
    assert (run - exact.clean).mean().item() == pytest.approx(exact.circuit.score("m0->a1.h4<k>"), abs=1e-9)


# Identities, in every architecture


def exact_norms(model):
    """transformers' RMS norms in float64 of a float64 model, which they round to float32."""
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            # Gemma's 1 + weight is float32 in every dtype.
            weight = (1 + module.weight.float()).double() if name.startswith("Gemma") else module.weight
            weight = weight.detach()
            eps = getattr(module, "eps", None) or module.variance_epsilon

            def forward(x, weight=weight, eps=eps):
                return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight

            module.forward = forward
    return model


def transformers_parts(model, name):
    """What each layer's attention and MLP are called, and the norms after them, in transformers."""
    family = ARCHITECTURES[name][0]
    if family == "GPT2":
        return [(b.attn.c_proj, b.attn, b.mlp, None) for b in model.transformer.h], model.transformer.wte
    if family == "GPTNeoX":
        return [(b.attention.dense, b.attention, b.mlp, None) for b in model.gpt_neox.layers], model.gpt_neox.embed_in
    gemma = family.startswith("Gemma")
    layers = model.model.layers
    return [
        (
            b.self_attn.o_proj,
            b.post_attention_layernorm if gemma else b.self_attn,
            b.post_feedforward_layernorm if gemma else b.mlp,
            b.post_attention_layernorm if gemma else None,
        )
        for b in layers
    ], model.model.embed_tokens


def transformers_outputs(model, name, tokens, metric=None):
    """What every sender writes in transformers, in the order of Circuit.senders, and the metric's gradient at each."""
    parts, embedding = transformers_parts(model, name)
    kept, handles = {}, []

    def keep(key, value):
        if metric is not None and value.requires_grad:
            value.retain_grad()
        kept[key] = value

    def output_of(module, key):
        first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
        handles.append(module.register_forward_hook(lambda _, __, out: keep(key, first(out))))

    output_of(embedding, "input")
    for layer, (project, attention, mlp, _) in enumerate(parts):
        handles.append(project.register_forward_pre_hook(lambda _, args, i=layer: keep(f"z{i}", args[0])))
        output_of(project, f"raw{layer}")
        output_of(attention, f"a{layer}")
        output_of(mlp, f"m{layer}")
    with exact_softmax():
        value = metric(model(tokens).logits) if metric is not None else model(tokens)
    for handle in handles:
        handle.remove()
    if metric is not None:
        value.sum().backward()
    gradient = lambda key: kept[key].grad if metric is not None else None  # noqa: E731
    outputs, gradients = [kept["input"].detach()], [gradient("input")]
    heads = model.config.num_attention_heads
    for layer, (project, _, _, norm) in enumerate(parts):
        weight = project.weight if isinstance(project, torch.nn.Linear) else project.weight.T  # [D, H K]
        for z, W in zip(kept[f"z{layer}"].chunk(heads, -1), weight.chunk(heads, 1), strict=True):
            out = (z @ W.T).detach()
            if norm is not None:  # with the scale of the whole
                raw = kept[f"raw{layer}"].detach()
                out = (
                    out
                    * (raw.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
                    * (1 + norm.weight.detach().float()).double()
                )
            outputs.append(out)
            gradients.append(gradient(f"a{layer}"))
        outputs.append(kept[f"m{layer}"].detach())
        gradients.append(gradient(f"m{layer}"))
    return outputs, gradients


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sums_over_receivers_are_attribution_patching_through_transformers(name, tmp_path, rng):
    """Sum over v of EAP(u, v) is the sender's change times the gradient at its output, in float64 to 1e-9."""
    theirs = exact_norms(tiny_transformers(name))
    model = load(name, tmp_path)
    clean, corrupted = pair(rng)
    metric = LogitDifference([5, 6], [7, 8])
    of_clean, gradients = transformers_outputs(theirs, name, clean, metric)
    of_corrupted, _ = transformers_outputs(theirs, name, corrupted)
    expected = torch.tensor(
        [
            ((b - a) * gradient).sum().item() / len(clean)
            for a, b, gradient in zip(of_clean, of_corrupted, gradients, strict=True)
        ],
        dtype=torch.float64,
    )
    found = edge_attribution(model, clean, corrupted, metric)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found.circuit.scores.sum(1), expected, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_sums_over_receivers_are_this_library_s_attribution_patching(name, tmp_path, rng):
    model = load(name, tmp_path)
    clean, corrupted = pair(rng)
    metric = LogitDifference(5, 6)
    scores = edge_attribution(model, clean, corrupted, metric).circuit.node_scores()
    found = introspect.analysis.attribution_patch(
        model, clean, corrupted, metric, ["z", "mlp_out"], direction="noising", sum_positions=True
    )
    for node, score in scores.items():
        if node != "input":
            layer, _, head = node[1:].partition(".h")
            point = "mlp_out" if node.startswith("m") else "z"
            values = found[point].mean()[int(layer)]
            assert score == pytest.approx(float(values[int(head)] if head else values), abs=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_integrated_gradients_are_complete(name, tmp_path, rng):
    """Edges of the input sum to m(corrupted) - m(clean), those of a component to the effect of replacing it: 1e-9."""
    folder = write_tiny_transformers(tmp_path, name)
    model = introspect.load_model(folder, dtype=torch.float64)
    clean, corrupted = pair(rng)
    # Embeddings of tokens that differ lie close to one another, so that the way is smooth and few points are enough.
    W_E = dict(model.native.named_weights())["embed.W_E"].clone()
    for ours, theirs in zip(clean.flatten().tolist(), corrupted.flatten().tolist(), strict=True):
        if ours != theirs:
            W_E[theirs] = W_E[ours] + 0.02 * torch.randn(W_E.shape[1], generator=rng, dtype=torch.float64)
    model = introspect.Model(model.native.with_weights({"embed.W_E": W_E}), name="near")
    metric = LogitDifference(5, 6)
    found = edge_attribution(model, clean, corrupted, metric, method="eap-ig", ig_steps=24, gauss=True)
    change = (found.corrupted - found.clean).mean()
    assert abs(change) > 1e-4
    torch.testing.assert_close(found.circuit.scores[0].sum(), change, rtol=0, atol=1e-9)

    options = {"method": "eap-ig-activations", "ig_steps": 24, "gauss": True}
    found = edge_attribution(model, clean, corrupted, metric, **options)
    whole = Circuit.whole(model)
    for component in ("a1.", f"m{model.cfg.n_layers - 1}->"):
        left = Circuit.of_edges(model, [edge for edge in whole.edges if not edge.startswith(component)])
        effect = (run_circuit(model, left, clean, corrupted, metric) - found.clean).mean()
        total = math.fsum(score for edge, score in found.circuit.edges.items() if edge.startswith(component))
        assert total == pytest.approx(effect.item(), abs=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_circuit_of_all_edges_is_the_model_and_one_of_none_the_corrupted_run(name, tmp_path, rng):
    model = load(name, tmp_path)
    clean, corrupted = pair(rng)
    metric = LogitDifference(5, 6)
    whole, none = Circuit.whole(model), Circuit.of_edges(model, [])
    values = run_circuit(model, [whole, none], clean, corrupted, metric)
    found = edge_attribution(model, clean, corrupted, metric)
    torch.testing.assert_close(values[0], found.clean, rtol=0, atol=1e-11)
    torch.testing.assert_close(values[1], found.corrupted, rtol=0, atol=1e-11)
    # Model.forward rounds RMS norms of float64 models to float32, as transformers does.
    layer_norm = model.cfg.normalization_type == "LN"
    torch.testing.assert_close(found.clean, metric(model(clean)), rtol=0, atol=1e-9 if layer_norm else 1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_exact_edges_are_runs_without_that_edge(name, tmp_path, rng):
    model = load(name, tmp_path)
    clean, corrupted = pair(rng)
    metric = LogitDifference(5, 6)
    edges = list(Circuit.whole(model).edges)
    chosen = edges[:: len(edges) // 40]
    found = edge_attribution(model, clean, corrupted, metric, method="exact", edges=chosen)
    left = [Circuit.of_edges(model, [e for e in edges if e != edge]) for edge in chosen]
    effects = (run_circuit(model, left, clean, corrupted, metric) - found.clean).mean(1)
    ours = torch.tensor([found.circuit.score(edge) for edge in chosen], dtype=torch.float64)
    torch.testing.assert_close(ours, effects, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exact_edges_equal_a_hook_at_the_receiver(name, tmp_path, rng):
    folder = write_tiny_transformers(tmp_path, name)
    hooked = introspect.HookedTransformer.from_pretrained_no_processing(folder, dtype=torch.float64)
    clean, corrupted = pair(rng)
    metric = LogitDifference(5, 6)
    _, before = hooked.run_with_cache(clean, names_filter=["blocks.0.attn.hook_result"])
    _, after = hooked.run_with_cache(corrupted, names_filter=["blocks.0.attn.hook_result"])
    change = (after["blocks.0.attn.hook_result"] - before["blocks.0.attn.hook_result"])[:, :, 1]
    group = "h" if name == "gpt2" else "g"
    for edge, point, head in (
        ("a0.h1->a2.h3<q>", "blocks.2.hook_q_input", 3),
        (f"a0.h1->a1.{group}1<k>", "blocks.1.hook_k_input", 1),
        (f"a0.h1->a2.{group}0<v>", "blocks.2.hook_v_input", 0),
        ("a0.h1->m1", "blocks.1.hook_mlp_in", None),
        ("a0.h1->logits", "blocks.2.hook_resid_post", None),
    ):

        def replace(x, hook, head=head):
            if head is None:
                return x + change
            x[:, :, head] += change
            return x

        patched = metric(hooked.run_with_hooks(clean, fwd_hooks=[(point, replace)]))
        expected = (patched - metric(hooked(clean))).mean().item()
        ours = edge_attribution(hooked, clean, corrupted, metric, method="exact", edges=[edge]).circuit.score(edge)
        assert ours == pytest.approx(expected, abs=1e-9 if name == "gpt2" else 2e-5)


# Ablations, metrics, batches


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-positional"])
def test_other_alternatives_are_what_they_say(ablation, tmp_path, rng):
    folder = write_tiny_transformers(tmp_path, "gpt2")
    hooked = introspect.HookedTransformer.from_pretrained_no_processing(folder, dtype=torch.float64)
    clean, _ = pair(rng)
    others = torch.randint(3, 101, (5, T), generator=rng)
    _, cache = hooked.run_with_cache(others, names_filter=["blocks.1.hook_mlp_out"])
    out = cache["blocks.1.hook_mlp_out"]
    alternative = {"zero": 0 * out[0], "mean": out.mean((0, 1)), "mean-positional": out.mean(0)}[ablation]
    metric = LogitDifference(5, 6)
    patched = metric(
        hooked.run_with_hooks(clean, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: 0 * x + alternative)])
    )
    left = Circuit.of_edges(hooked, [e for e in Circuit.whole(hooked).edges if not e.startswith("m1->")])
    ours = run_circuit(hooked, left, clean, metric=metric, ablation=ablation, mean_over=others)
    torch.testing.assert_close(ours, patched, rtol=0, atol=1e-9)


def test_a_callable_metric_gives_the_same_scores(tmp_path, rng):
    model = load("llama", tmp_path)
    clean, corrupted = pair(rng)
    data = edge_attribution(model, clean, corrupted, LogitDifference(5, 6), method="eap-ig")
    called = edge_attribution(
        model, clean, corrupted, lambda logits: logits[0, -1, 5] - logits[0, -1, 6], method="eap-ig"
    )
    torch.testing.assert_close(called.circuit.scores, data.circuit.scores, rtol=0, atol=1e-10)
    torch.testing.assert_close(called.clean, data.clean, rtol=0, atol=1e-12)


def test_prompts_of_several_lengths_are_the_mean_of_single_ones(tmp_path, rng):
    model = load("qwen2", tmp_path)
    pairs = [pair(rng, 1, length) for length in (7, 10, 7)]
    clean, corrupted = ([p[i][0].tolist() for p in pairs] for i in range(2))
    metric = LogitDifference([3, 4, 5], [6, 7, 8])
    together = edge_attribution(model, clean, corrupted, metric, method="eap-ig")
    alone = [
        edge_attribution(model, c, d, LogitDifference(3 + i, 6 + i), method="eap-ig")
        for i, (c, d) in enumerate(zip(clean, corrupted, strict=True))
    ]
    mean = torch.stack([one.circuit.scores for one in alone]).mean(0)
    torch.testing.assert_close(together.circuit.scores, mean, rtol=0, atol=1e-10)
    assert together.clean.tolist() == pytest.approx([one.clean.item() for one in alone])


def test_float32_and_bfloat16_models_come_close_to_float64(tmp_path, rng):
    clean, corrupted = pair(rng)
    metric = LogitDifference(5, 6)
    # Weights half as large: the random ones are chaotic in bfloat16.
    folder = write_tiny(tmp_path, "LlamaForCausalLM")
    wide, single, half = (
        edge_attribution(introspect.load_model(folder, dtype=dtype), clean, corrupted, metric).circuit
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    )
    largest = wide.scores.abs().max().item()
    torch.testing.assert_close(single.scores, wide.scores, rtol=0, atol=1e-4 * largest)
    assert wide.compare(half).spearman > 0.8
    assert half.scores.isfinite().all()


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
