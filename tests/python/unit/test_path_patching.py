"""Path patching against its four runs made one after another with hooks, as published; and what must hold by itself."""

import itertools

import pytest
import torch
from analytic import fraction_of_previous, induction_head, or_gate
from pairs import alike
from tiny import tiny_loader

import introspect
from introspect.analysis import direct_path_grid, path_patching

# Learned positions and biases, GQA, biases of queries and keys, parallel blocks, norms after layers and soft caps.
FAMILIES = ["gpt2", "llama", "qwen2", "gpt_neox", "gemma2"]
T = 7
METRIC = introspect.LogitDifference(5, 6) + 0.5 * introspect.LogProbability(7, position=3)
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64 on both sides


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=FAMILIES)
def model(request, models):
    return models(request.param)


@pytest.fixture(scope="module")
def prompts():
    return alike(T)


def site_of(model, receiver):
    """The hook point and the head of a receiver (kind, layer, head)."""
    kind, layer, head = receiver
    if kind == "logits":
        return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", None
    return (f"blocks.{layer}.hook_mlp_in", None) if kind == "mlp" else (f"blocks.{layer}.attn.hook_{kind}", head)


def four_runs(model, source, target, senders, receivers, freeze_mlps, positions=None):
    """The metric [pairs] of run D: senders (kind, layer, head), receivers (kind, layer, head)."""
    chosen = list(range(T)) if positions is None else positions
    _, a = model.run_with_cache(source)
    _, b = model.run_with_cache(target)
    layers = range(model.cfg.n_layers)
    heard = {}

    def hear(x, hook):
        heard[hook.name] = x.clone()

    def put(cache, head=None, at=None):
        def hook_fn(x, hook):
            index = (slice(None), slice(None) if at is None else at) + (() if head is None else (head,))
            x[index] = cache[hook.name][index]
            return x

        return hook_fn

    # Receivers are heard before they are frozen; senders are replaced after everything else.
    hooks = [(name, hear) for name in {site_of(model, receiver)[0] for receiver in receivers}]
    hooks += [(f"blocks.{layer}.attn.hook_{part}", put(b)) for layer in layers for part in "qkv"]
    if freeze_mlps:
        hooks += [(f"blocks.{layer}.hook_mlp_out", put(b)) for layer in layers]
    for kind, layer, head in senders:
        if kind == "input":
            hooks.append(("hook_embed", put(a, at=chosen)))
        elif kind == "mlp":
            hooks.append((f"blocks.{layer}.hook_mlp_out", put(a, at=chosen)))
        else:
            hooks.append((f"blocks.{layer}.attn.hook_z", put(a, head, chosen)))
    model.run_with_hooks(target, fwd_hooks=hooks)
    put_in = []
    for receiver in receivers:
        name, head = site_of(model, receiver)
        put_in.append((name, put(heard, head)))
    return METRIC(model.run_with_hooks(target, fwd_hooks=put_in)).double()


def node(kind, layer, head):
    return {"input": "input", "mlp": f"m{layer}", "head": f"a{layer}.h{head}"}[kind]


RECEIVERS = {
    "queries and keys of two layers": ["a2.h1<q>", "a1.g1<k>", "a2.g0<k>"],
    "an MLP": ["m1"],
    "an MLP, a head and a value": ["m1", "a2.h4<q>", "a2.g0<v>"],
    "logits": ["logits"],
}


def as_receiver(name):
    if name == "logits":
        return "logits", None, None
    if name.startswith("m"):
        return "mlp", int(name[1:]), None
    return name[-2], int(name[1]), int(name[4])


@pytest.mark.parametrize("freeze_mlps", [True, False])
@pytest.mark.parametrize("receivers", RECEIVERS.values(), ids=RECEIVERS.keys())
def test_paths_of_every_sender_equal_the_four_runs(model, prompts, receivers, freeze_mlps):
    clean, corrupted = prompts
    grid = path_patching(model, clean, corrupted, METRIC, senders="all", receivers=receivers, freeze_mlps=freeze_mlps)
    target = METRIC(model(corrupted)).double()
    torch.testing.assert_close(grid.corrupted, target, **FLOOR)
    torch.testing.assert_close(grid.clean, METRIC(model(clean)).double(), **FLOOR)
    # Heads of both groups; some are above the receivers.
    senders = [("input", None, None), ("mlp", 0, None), ("mlp", 1, None)]
    senders += [("head", 0, 1), ("head", 0, 5), ("head", 1, 2), ("head", 2, 3)]
    wanted = [as_receiver(name) for name in receivers]
    for sender in senders:
        expected = four_runs(model, clean, corrupted, [sender], wanted, freeze_mlps) - target
        found = grid.values[:, grid.labels["sender"].index(node(*sender))]
        torch.testing.assert_close(found, expected, **FLOOR, msg=lambda text, s=sender: f"{s}: {text}")


@pytest.mark.parametrize("freeze_mlps", [True, False])
def test_senders_patched_together_at_chosen_positions(model, prompts, freeze_mlps):
    clean, corrupted = prompts
    together = [("head", 0, 1), ("head", 0, 4), ("mlp", 0, None), ("head", 1, 2)]
    receivers = ["a2.h0<q>", "a2.h3<q>", "m2"]
    grid = path_patching(
        model, clean, corrupted, METRIC, senders=[[node(*one) for one in together]], receivers=receivers,
        freeze_mlps=freeze_mlps, positions=[3, -1], direction="noising",
    )  # fmt: skip
    wanted = [as_receiver(name) for name in receivers]
    expected = four_runs(model, corrupted, clean, together, wanted, freeze_mlps, [3, T - 1])
    torch.testing.assert_close(grid.metric()[:, 0], expected, **FLOOR)


def test_by_position_is_one_position_at_a_time(model, prompts):
    clean, corrupted = prompts
    options = {"senders": ["a0.h1", "m0"], "receivers": ["a2.g1<v>"], "freeze_mlps": False}
    grid = path_patching(model, clean, corrupted, METRIC, by_position=True, **options)
    assert grid.axes == ("sender", "position")
    for position in range(T):
        alone = path_patching(model, clean, corrupted, METRIC, positions=[position], **options)
        torch.testing.assert_close(grid.values[..., position], alone.values, **FLOOR)
    assert (grid.values[..., :2] == 0).all()  # the prompts begin alike
    last = path_patching(model, clean, corrupted, METRIC, by_position=True, positions=[-1], **options)
    torch.testing.assert_close(last.values[..., 0], grid.values[..., -1], **FLOOR)


@pytest.mark.parametrize("freeze_mlps", [True, False])
def test_all_senders_together_are_the_whole_change(model, prompts, freeze_mlps):
    clean, corrupted = prompts
    L, H = model.cfg.n_layers, model.cfg.n_heads
    everything = ["input", *(f"a{layer}.h{head}" for layer in range(L) for head in range(H))]
    everything += [f"m{layer}" for layer in range(L)]
    grid = path_patching(model, clean, corrupted, METRIC, senders=[everything], freeze_mlps=freeze_mlps)
    torch.testing.assert_close(grid.values[:, 0], grid.clean - grid.corrupted, **FLOOR)


@pytest.mark.parametrize("receivers", ["logits", "m2", "a2.h1<q>"])
@pytest.mark.parametrize("freeze_mlps", [True, False])
def test_equal_prompts_give_a_flat_grid(model, prompts, receivers, freeze_mlps):
    clean, _ = prompts
    options = {"senders": "all", "receivers": receivers, "freeze_mlps": freeze_mlps}
    grid = path_patching(model, clean, clean, METRIC, **options)
    assert (grid.values == 0).all()
    assert grid.token_layers_to_run == 0


def test_senders_above_the_receivers_have_no_path(model, prompts):
    grid = path_patching(model, *prompts, METRIC, senders="all", receivers=["a1.g0<v>", "a1.h2<q>"], freeze_mlps=False)
    reaches = [name in ("input", "m0") or name.startswith("a0") for name in grid.labels["sender"]]
    assert ((grid.values != 0).all(0) == torch.tensor(reaches)).all()
    mlp = path_patching(model, *prompts, METRIC, senders="heads", receivers="m1")
    first = 1 if model.cfg.parallel_attn_mlp else 2  # a parallel MLP does not hear the heads beside it
    assert (mlp.values[:, :first] != 0).all() and (mlp.values[:, first:] == 0).all()


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_grids_of_paths_from_head_to_head(model, prompts, component):
    clean, corrupted = prompts
    L, H = model.cfg.n_layers, model.cfg.n_heads
    G = H if component == "q" else model.native.cfg.n_key_value_heads
    whole = direct_path_grid(model, clean, corrupted, METRIC, component=component)
    assert whole.values.shape == (2, L, H, L, G)
    assert whole.axes == ("source_layer", "source_head", "layer", "head")
    target = METRIC(model(corrupted)).double()
    for layer, head, later, reader in [(0, 1, 1, 0), (0, 4, 2, 1), (1, 5, 2, G - 1)]:
        expected = four_runs(model, clean, corrupted, [("head", layer, head)], [(component, later, reader)], True)
        torch.testing.assert_close(whole.values[:, layer, head, later, reader], expected - target, **FLOOR)
    one = direct_path_grid(model, clean, corrupted, METRIC, source=(1, 5), component=component)
    torch.testing.assert_close(one.values, whole.values[:, 1, 5], **FLOOR)
    for layer in range(L):
        assert (whole.values[:, layer, :, : layer + 1] == 0).all()
        assert (whole.values[:, layer, :, layer + 1 :] != 0).all()


def test_pairs_directions_and_budgets_change_nothing(models, prompts):
    model = models("llama")
    clean, corrupted = prompts
    options = {"senders": "heads", "receivers": ["a2.h1<q>", "a1.g0<v>"], "freeze_mlps": False}
    grid = path_patching(model, clean, corrupted, METRIC, **options)
    for pair in range(2):
        alone = path_patching(model, clean[pair], corrupted[pair], METRIC, **options)
        torch.testing.assert_close(alone.values[0], grid.values[pair], **FLOOR)
    swapped = path_patching(model, corrupted, clean, METRIC, direction="noising", **options)
    torch.testing.assert_close(swapped.values, grid.values, **FLOOR)
    small = path_patching(model, clean, corrupted, METRIC, memory_budget=1 << 18, **options)
    torch.testing.assert_close(small.values, grid.values, **FLOOR)


def test_pairs_of_several_lengths(models, prompts):
    model = models("gpt2")
    clean, corrupted = (x.tolist() for x in prompts)
    clean[1], corrupted[1] = clean[1][:-1], corrupted[1][:-1]
    grid = path_patching(model, clean, corrupted, introspect.LogitDifference(5, 6), receivers="a2.h1<q>")
    short = path_patching(model, clean[1], corrupted[1], introspect.LogitDifference(5, 6), receivers="a2.h1<q>")
    torch.testing.assert_close(grid.values[1:], short.values, **FLOOR)
    with pytest.raises(ValueError, match="by position, pairs must have as many tokens, got 7 and 6"):
        path_patching(model, clean, corrupted, introspect.LogitDifference(5, 6), by_position=True)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_divergence_is_from_the_clean_run(models, prompts, direction):
    model = models("gpt2")
    clean, corrupted = prompts
    grid = path_patching(model, clean, corrupted, introspect.Divergence(), direction=direction)
    assert (grid.clean == 0).all() and (grid.corrupted > 0).all()
    base = {"denoising": corrupted, "noising": clean}[direction]
    expected = introspect.Divergence()(model(base), reference=model(clean)).double()
    torch.testing.assert_close(grid.patched, expected, **FLOOR)
    source = {"denoising": clean, "noising": corrupted}[direction]
    _, a = model.run_with_cache(source)
    _, b = model.run_with_cache(base)
    named = introspect.HookedTransformer(model)
    for layer, head in itertools.product(range(3), (0, 3)):
        change = (a["z", layer] - b["z", layer])[:, :, head] @ named.W_O[layer, head]
        logits = named.unembed(named.ln_final(b["resid_post", 2] + change))
        expected = introspect.Divergence()(logits, reference=model(clean)).double() - grid.patched
        torch.testing.assert_close(grid.values[:, layer, head], expected, **FLOOR)


def test_less_is_run_than_cell_by_cell(models, prompts):
    grid = path_patching(models("llama"), *prompts, METRIC, receivers="a2.h1<q>")
    # 12 heads a pair are below layer 2, which is run for each of them; the run itself once.
    assert grid.token_layers_asked == 2 * 12 * T * 3
    assert grid.token_layers_to_run <= 2 * (12 * T + 3 * T)
    assert path_patching(models("llama"), *prompts, METRIC).token_layers_to_run == 0  # paths to the logits are readouts


def test_tables_intervals_and_pictures(models, prompts):
    model = models("gpt2")
    grid = path_patching(model, *prompts, METRIC)
    table = grid.to_pandas(intervals=True)
    assert list(table.columns) == ["layer", "head", "effect", "normalised", "low", "high"] and len(table) == 18
    row = table[(table.layer == 1) & (table["head"] == 2)].iloc[0]
    cell = grid.values[:, 1, 2]
    assert row.effect == pytest.approx(cell.mean().item()) and row.low <= row.effect <= row.high
    assert row.normalised == pytest.approx((cell / (grid.clean - grid.corrupted)).mean().item())
    top = grid.top(3)
    assert top.effect.abs().tolist() == sorted(table.effect.abs(), reverse=True)[:3]
    bars = path_patching(model, *prompts, METRIC, senders=["m0", ["a0.h1", "m1"]])
    for drawn in (grid, bars, direct_path_grid(model, *prompts, METRIC)):
        assert len(drawn.plot()._repr_png_()) > 5000
    by_position = path_patching(model, *prompts, METRIC, by_position=True)
    assert by_position.axes == ("layer", "head", "position")
    torch.testing.assert_close(by_position.values[..., -1], grid.values - by_position.values[..., 3], **FLOOR)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"senders": "head"}, ValueError, "senders are heads, mlps, all, or a list"),
        ({"senders": ["a0"]}, ValueError, "nodes are named like a9.h6"),
        ({"senders": ["a0.h1<q>"]}, ValueError, "reads and does not write"),
        ({"senders": ["logits"]}, ValueError, "reads and does not write"),
        ({"senders": ["a9.h1"]}, IndexError, "layers of senders are 0 to 2, got 9"),
        ({"senders": [(0, 6)]}, IndexError, "heads are 0 to 5, got 6"),
        ({"senders": [[]]}, ValueError, "an entry of senders is empty"),
        ({"senders": []}, ValueError, "pairs, senders and receivers are needed, got 2, 0 and 1"),
        ({"receivers": "a1.h0"}, ValueError, "a1.h0 writes; receivers are like"),
        ({"receivers": "a1.h5<k>"}, ValueError, r"groups of 3 heads here; a1.h5<k> is a1.g1<k>"),
        ({"receivers": "a1.g0<q>"}, ValueError, "queries are of heads"),
        ({"receivers": "a1.g2<v>"}, IndexError, r"one for each group of query heads\) are 0 to 1, got 2"),
        ({"receivers": "a3.h0<q>"}, IndexError, "layers of receivers are 0 to 2, got 3"),
        ({"receivers": ["logits", "m1"]}, ValueError, "logits are a receiver by themselves"),
        ({"positions": [7]}, IndexError, "positions of a prompt of 7 tokens are -7 to 6, got 7"),
        ({"direction": "up"}, ValueError, "direction must be denoising or noising, got 'up'"),
        ({"max_cells": 35}, ValueError, r"36 cells \(2 pairs, 18 senders, 1 receivers\) .*max_cells\) of 35"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_is_wrong(models, prompts, arguments, error, says):
    with pytest.raises(error, match=says):
        path_patching(models("llama"), *prompts, METRIC, **arguments)


def test_bad_prompts_and_metrics(models, prompts):
    model = models("llama")
    clean, corrupted = (x.tolist() for x in prompts)
    with pytest.raises(ValueError, match="pair 1 have 7 and 6, and differ first at token 2"):
        path_patching(model, clean, [corrupted[0], corrupted[1][:-1]], METRIC)
    with pytest.raises(ValueError, match="as many clean as corrupted prompts are needed, got 2 and 1"):
        path_patching(model, clean, corrupted[:1], METRIC)
    with pytest.raises(TypeError, match="metric must be LogitDifference or one of its neighbours, got function"):
        path_patching(model, clean, corrupted, lambda logits: logits.sum())
    with pytest.raises(IndexError, match="token ids must be 0 to 100, got 101"):
        path_patching(model, clean, corrupted, introspect.LogitDifference(101, 5))
    hooked = model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: None)])
    with hooked, pytest.raises(introspect.ConfigError, match="nothing hooked"):
        path_patching(model, clean, corrupted, METRIC)


# Models whose paths are known


def effects(model, clean, corrupted, metric, senders, receivers, **options):
    """Noising: what the clean run loses when the senders tell the receivers what they tell them in the other one."""
    found = path_patching(
        model, clean, corrupted, metric, senders=senders, receivers=receivers, direction="noising", **options
    )
    return [round(value, 6) for value in found.values[0].tolist()]


def test_or_gate_needs_both_paths_and_one_is_enough():
    prompts, metric = ([0], [1]), introspect.LogitDifference(0, 1)
    senders = ["a0.h0", "a0.h1", ["a0.h0", "a0.h1"], "input"]
    assert effects(or_gate(), *prompts, metric, senders, "m0") == [0, 0, -1, 0]
    assert effects(or_gate(), *prompts, metric, senders, "logits") == [0, 0, 0, 0]  # the MLP is in between
    assert effects(or_gate(), *prompts, metric, senders, "logits", freeze_mlps=False) == [0, 0, -1, 0]
    restored = path_patching(or_gate(), *prompts, metric, senders=senders, receivers="m0")
    assert restored.values[0].tolist() == pytest.approx([1, 1, 1, 0], abs=1e-6)


def test_induction_head_is_told_what_to_match_by_the_previous_token_head():
    model, prompts = induction_head(sharpness=100.0), ([0, 1, 2, 3, 4, 1], [0, 3, 4, 1, 2, 3])
    metric, senders = introspect.LogitDifference(2, 4), ["input", "a0.h0", "m0"]
    for receiver, expected in (
        ("a1.h0<q>", [-2, 0, 0]), ("a1.h0<k>", [0, -2, 0]), ("a1.h0<v>", [-2, 0, 0]), ("logits", [0, 0, 0])
    ):  # fmt: skip
        assert effects(model, *prompts, metric, senders, receiver) == expected, receiver
    assert effects(model, *prompts, metric, ["a1.h0", "m1"], "logits") == [-2, 0]
    grid = direct_path_grid(model, *prompts, metric, component="k", direction="noising")
    assert grid.values[0, 0, 0, :, 0].tolist() == pytest.approx([0, -2], abs=1e-6)


def test_a_fraction_goes_from_the_mlp_through_the_values_of_the_averaging_head():
    model, prompts = fraction_of_previous(), ([2, 1, 0, 1, 1], [1, 0, 0, 2, 1])
    metric = introspect.LogitDifference(0, 2)
    lost = pytest.approx([0, 2 / 5 - 3 / 5], abs=1e-6)
    assert effects(model, *prompts, metric, ["input", "m0"], "a1.h0<v>") == lost
    assert effects(model, *prompts, metric, ["m0", "a1.h0"], "logits") == lost
    assert effects(model, *prompts, metric, ["m0"], "a1.h0<q>") == [0]


def test_bad_positions_and_digits(model, prompts):
    with pytest.raises(ValueError, match="positions must hold one at least"):
        path_patching(model, *prompts, METRIC, positions=[])
    with pytest.raises(ValueError, match="nodes are named like"):
        path_patching(model, *prompts, METRIC, senders=["a\u0661.h1"])
