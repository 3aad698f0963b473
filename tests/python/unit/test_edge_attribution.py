"""Attribution of edges against plain loops of autograd and hooks, and its identities in every architecture."""

import math

import pytest
import torch
from pairs import T, load, pair
from senders import exact_norms, transformers_outputs
from tiny import ARCHITECTURES, MIXTURES, tiny_transformers, write_tiny, write_tiny_transformers

import introspect
from introspect import LogitDifference
from introspect.circuits import Circuit, edge_attribution, run_circuit

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


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in MIXTURES])  # a router's choice jumps
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
