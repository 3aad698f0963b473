"""Attribution patching against exact patching in the limit, hooks with plain autograd, and softmaxes made by hand."""

import math

import pytest
import torch
from pairs import alike
from tiny import tiny_loader, write_tiny_transformers

import introspect
from introspect.analysis import attribution_patch

# Learned positions, GQA, norms of queries and keys, parallel blocks, windows with soft caps and norms after layers.
FAMILIES = ["gpt2", "llama", "qwen3", "gpt_neox", "gemma2"]
T = 9  # longer than the windows of tiny models
POINTS = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "mlp_post"]
METRIC = introspect.LogitDifference(5, 6) + 0.5 * introspect.LogProbability(7, position=5)
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64 on both sides
# Gradients through RMS norms are float32 ones, on both sides and in this library's hooks.
RMS_FLOOR = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=FAMILIES)
def model(request, models):
    return models(request.param)


@pytest.fixture(scope="module")
def prompts():
    return alike(T)


def points_of(model):
    return [point for point in POINTS if not (point == "resid_mid" and model.cfg.parallel_attn_mlp)]


def hook_of(point, layer):
    return f"blocks.{layer}.mlp.hook_post" if point == "mlp_post" else introspect.utils.get_act_name(point, layer)


def with_gradients(model, tokens, names):
    """Values and gradients of the summed metric, with hooks and plain autograd."""
    values, gradients = {}, {}
    with model.hooks(
        fwd_hooks=[(name, lambda x, hook: values.__setitem__(hook.name, x.detach().clone())) for name in names],
        bwd_hooks=[(name, lambda g, hook: gradients.__setitem__(hook.name, g.detach().clone())) for name in names],
    ):
        METRIC(model(tokens)).sum().backward()
    return values, gradients


def floor_of(model):
    return FLOOR if model.cfg.normalization_type.startswith("LN") else RMS_FLOOR


def test_every_point_is_difference_times_gradient(model, prompts):
    clean, corrupted = prompts
    points = points_of(model)
    names = {(point, layer): hook_of(point, layer) for point in points for layer in range(model.cfg.n_layers)}
    found = attribution_patch(model, clean, corrupted, METRIC, points)
    summed = attribution_patch(model, clean, corrupted, METRIC, points, sum_positions=True)
    noising = attribution_patch(model, clean, corrupted, METRIC, points, direction="noising")
    at_corrupted, gradients = with_gradients(model, corrupted, list(names.values()))
    at_clean, clean_gradients = with_gradients(model, clean, list(names.values()))
    for point in points:
        for grid, slopes, sign in ((found[point], gradients, 1), (noising[point], clean_gradients, -1)):
            products = [
                sign * (at_clean[names[point, layer]] - at_corrupted[names[point, layer]]) * slopes[names[point, layer]]
                for layer in range(model.cfg.n_layers)
            ]
            expected = torch.stack(products, 1)
            if point != "mlp_post":
                expected = expected.sum(-1)
            torch.testing.assert_close(
                grid.values, expected, **floor_of(model), msg=lambda text, p=point: f"{p}: {text}"
            )
            assert grid.values.shape[1] == model.cfg.n_layers
        position = 3 if point == "pattern" else 2
        torch.testing.assert_close(summed[point].values, found[point].values.sum(position), **FLOOR)
    assert found["z"].axes == ("layer", "position", "head") and found["pattern"].axes == ("layer", "head", "dest")
    assert summed["z"].axes == ("layer", "head") and summed["resid_pre"].axes == ("layer",)
    weights = attribution_patch(model, clean, corrupted, METRIC, "pattern_dest_src")
    assert weights.axes == ("layer", "head", "dest", "src")
    torch.testing.assert_close(weights.values.sum(-1), found["pattern"].values, **FLOOR)
    torch.testing.assert_close(found["z"].corrupted, METRIC(model(corrupted)).double(), **FLOOR)
    torch.testing.assert_close(found["z"].clean, METRIC(model(clean)).double(), **FLOOR)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("point", ["resid_pre", "z", "q", "k", "v", "mlp_post"])
def test_it_is_the_limit_of_exact_patching(models, prompts, name, point):
    """Of a small step towards the other run; in the families whose norms are float64."""
    model = models(name)
    clean, corrupted = prompts
    grid = attribution_patch(model, clean, corrupted, METRIC, [point])
    _, cache = model.run_with_cache(clean)
    layer, index = 1, (slice(None), 4) + ((1,) if point not in ("resid_pre",) else ())
    site = hook_of(point, layer)

    def effect(step):
        def move(x, hook):
            x[index] = x[index] + step * (cache[site][index] - x[index])
            return x

        return (METRIC(model.run_with_hooks(corrupted, fwd_hooks=[(site, move)])).double() - grid.corrupted) / step

    errors = [
        (effect(step) - grid.values[(slice(None), layer, *index[1:])]).abs().max().item() for step in (1e-3, 1e-4)
    ]
    assert grid.values[(slice(None), layer, *index[1:])].abs().max() > 1e-4  # something is there to be found
    assert errors[1] < errors[0] / 8 and errors[1] < 1e-3  # of first order in the step


def row_of_softmax(scores):
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def test_corrected_queries_and_keys_are_a_softmax_made_anew(model, prompts):
    """One query or key of the other run, a softmax in plain loops, and linear from the pattern on."""
    clean, corrupted = prompts
    cfg = model.native.cfg
    grids = attribution_patch(model, clean, corrupted, METRIC, ["q", "k"], method="atp+qk")
    rotary = cfg.positional_embedding_type == "rotary"
    group = cfg.n_heads // cfg.n_key_value_heads
    for layer in (0, cfg.n_layers - 1):
        q_name, k_name = (f"blocks.{layer}.attn.hook_{'rot_' if rotary else ''}{part}" for part in "qk")
        pattern_name = f"blocks.{layer}.attn.hook_pattern"
        ours, gradients = with_gradients(model, corrupted, [q_name, k_name, pattern_name])
        theirs, _ = with_gradients(model, clean, [q_name, k_name])
        window = cfg.window_size if cfg.attn_types and cfg.attn_types[layer] == "local" else T

        def score(q, k):
            raw = float(q @ k) / cfg.attn_scale
            cap = cfg.attn_scores_soft_cap
            return cap * math.tanh(raw / cap) if cap else raw

        for pair, head in ((0, 0), (1, cfg.n_heads - 1)):
            q, k = ours[q_name][pair, :, head], ours[k_name][pair, :, head // group]
            slopes = gradients[pattern_name][pair, head]
            for i in (2, T - 1):
                seen = range(max(0, i - window + 1), i + 1)
                old = row_of_softmax([score(q[i], k[j]) for j in seen])
                new = row_of_softmax([score(theirs[q_name][pair, i, head], k[j]) for j in seen])
                expected = sum((b - a) * float(slopes[i, j]) for j, a, b in zip(seen, old, new, strict=True))
                assert grids["q"].values[pair, layer, i, head].item() == pytest.approx(
                    expected, rel=floor_of(model)["rtol"], abs=floor_of(model)["atol"]
                )
        for pair, kv_head, j in ((0, 0, 3), (1, cfg.n_key_value_heads - 1, 5)):
            expected = 0.0
            for head in range(kv_head * group, (kv_head + 1) * group):
                q, k = ours[q_name][pair, :, head], ours[k_name][pair, :, kv_head]
                slopes = gradients[pattern_name][pair, head]
                for i in range(j, min(T, j + window)):
                    seen = range(max(0, i - window + 1), i + 1)
                    old = row_of_softmax([score(q[i], k[s]) for s in seen])
                    moved = [theirs[k_name][pair, j, kv_head] if s == j else k[s] for s in seen]
                    new = row_of_softmax([score(q[i], key) for key in moved])
                    expected += sum((b - a) * float(slopes[i, s]) for s, a, b in zip(seen, old, new, strict=True))
            assert grids["k"].values[pair, layer, j, kv_head].item() == pytest.approx(
                expected, rel=floor_of(model)["rtol"], abs=floor_of(model)["atol"]
            )


def test_corrections_stay_finite_where_scores_are_huge(models, prompts):
    """Queries a thousand times as large saturate every row: exponentials of score differences overflow."""
    native = models("gpt2").native
    weights = {name: x.clone() for name, x in native.named_weights()}
    for layer in range(native.cfg.n_layers):
        weights[f"blocks.{layer}.attn.W_QKV"][: native.cfg.d_model] *= 1000
    large = introspect.HookedTransformer(native.with_weights(weights))
    grids = attribution_patch(large, *prompts, METRIC, ["q", "k"], method="atp+qk")
    assert all(grid.values.isfinite().all() for grid in grids.grids.values())


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2"])
def test_grad_drop_is_the_mean_over_dropped_layers(models, prompts, name):
    """Each layer's outputs without a gradient, by backward hooks, one backward pass a layer."""
    model = models(name)
    clean, corrupted = prompts
    L = model.cfg.n_layers
    points = ["z", "v", "mlp_out", "resid_pre"]
    names = {(point, layer): hook_of(point, layer) for point in points for layer in range(L)}
    grids = attribution_patch(model, clean, corrupted, METRIC, points, method="atp*")
    at_clean, _ = with_gradients(model, clean, list(names.values()))
    at_corrupted, _ = with_gradients(model, corrupted, list(names.values()))
    sums = dict.fromkeys(names, 0.0)
    for dropped in range(L):
        outputs = [f"blocks.{dropped}.hook_attn_out", f"blocks.{dropped}.hook_mlp_out"]
        gradients = {}

        def keep(g, hook, gradients=gradients):
            gradients[hook.name] = g.detach().clone()

        # Hooks of a point run in order: what is read at a dropped output is nothing.
        hooks = [(output, lambda g, hook: torch.zeros_like(g)) for output in outputs]
        hooks += [(at, keep) for at in names.values()]
        with model.hooks(bwd_hooks=hooks):
            METRIC(model(corrupted)).sum().backward()
        for key, at in names.items():
            slope = gradients.get(at, torch.zeros_like(at_clean[at]))
            sums[key] = sums[key] + ((at_clean[at] - at_corrupted[at]) * slope).sum(-1).abs()
    for point in points:
        expected = torch.stack([sums[point, layer] for layer in range(L)], 1)
        expected = expected / (L if point == "resid_pre" else L - 1)
        torch.testing.assert_close(grids[point].values, expected, **floor_of(model))


def test_star_of_queries_has_both_corrections(models, prompts):
    """Nothing flows back from above the last layer: dropping any other layer leaves its estimates as they are."""
    model = models("gpt2")
    last = model.cfg.n_layers - 1
    star = attribution_patch(model, *prompts, METRIC, ["q", "k"], method="atp*")
    fixed = attribution_patch(model, *prompts, METRIC, ["q", "k"], method="atp+qk")
    for point in ("q", "k"):
        torch.testing.assert_close(star[point].values[:, last], fixed[point].values[:, last].abs(), **FLOOR)
        assert (star[point].values >= 0).all()
        assert not torch.allclose(star[point].values[:, 0], fixed[point].values[:, 0].abs())


def test_equal_prompts_give_zeros_and_batches_change_nothing(models, prompts):
    model = models("llama")
    clean, corrupted = prompts
    flat = attribution_patch(model, clean, clean, METRIC, points_of(model))
    assert all((grid.values == 0).all() for grid in flat.grids.values())
    whole = attribution_patch(model, clean, corrupted, METRIC, ["z", "k"], method="atp*")
    for pair in range(2):
        alone = attribution_patch(model, clean[pair], corrupted[pair], METRIC, ["z", "k"], method="atp*")
        for point in ("z", "k"):
            torch.testing.assert_close(alone[point].values[0], whole[point].values[pair], **RMS_FLOOR)
    one_by_one = attribution_patch(model, clean, corrupted, METRIC, ["z"], memory_budget=1)
    batch = attribution_patch(model, clean, corrupted, METRIC, ["z"])
    torch.testing.assert_close(one_by_one.values, batch.values, **RMS_FLOOR)


def test_pairs_of_several_lengths_are_summed_over_positions(models, prompts):
    model = models("gpt2")
    clean, corrupted = (x.tolist() for x in prompts)
    clean[1], corrupted[1] = clean[1][:-1], corrupted[1][:-1]
    with pytest.raises(ValueError, match="pairs must have as many tokens, got 9 and 8: sum the positions"):
        attribution_patch(model, clean, corrupted, METRIC)
    grid = attribution_patch(model, clean, corrupted, METRIC, sum_positions=True)
    for pair in range(2):
        alone = attribution_patch(model, clean[pair], corrupted[pair], METRIC, sum_positions=True)
        torch.testing.assert_close(alone.values[0], grid.values[pair], **FLOOR)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_divergence_is_from_the_clean_run(models, prompts, direction):
    model = models("gpt2")
    clean, corrupted = prompts
    grid = attribution_patch(model, clean, corrupted, introspect.Divergence(), direction=direction)
    assert (grid.clean.abs() < 1e-12).all()
    expected = introspect.Divergence()(model(corrupted), reference=model(clean)).double()
    torch.testing.assert_close(grid.corrupted, expected, **FLOOR)
    if direction == "noising":  # a divergence is flat where it is 0
        assert grid.values.abs().max() < 1e-9
    else:
        assert grid.values.abs().max() > 1e-3


def test_tables_and_pictures(models, prompts):
    points = ["resid_pre", "z", "pattern_dest_src"]
    grids = attribution_patch(models("gpt2"), *prompts, METRIC, points)
    assert list(grids.grids) == points
    table = grids.to_pandas()
    assert {"point", "layer", "effect", "normalised"} <= set(table.columns)
    z = grids["z"]
    assert len(z.to_pandas()) == 3 * T * 6
    best = z.top(1).iloc[0]
    assert abs(best.effect) == pytest.approx(z.mean().abs().max().item())
    assert all(len(grid.plot()._repr_png_()) > 5000 for grid in grids.grids.values())


@pytest.mark.parametrize(
    ("name", "arguments", "error", "says"),
    [
        ("gpt2", {"points": ["head"]}, ValueError, "points are resid_pre, .*mlp_post; got 'head'"),
        ("gpt2", {"points": []}, ValueError, "pairs and points are needed, got 2 and 0"),
        ("gpt_neox", {"points": ["resid_mid"]}, introspect.HookError, "resid_mid"),
        ("gpt2", {"method": "ig"}, ValueError, r"method must be atp, atp\+qk or atp\*, got 'ig'"),
        ("gpt2", {"metric": introspect.LogitDifference(5, 6, position=T)}, IndexError, "positions of a prompt of 9"),
        ("gpt2", {"metric": introspect.Rank(5)}, ValueError, "rank has no gradient; use patch_grid"),
        ("gpt2", {"metric": len}, TypeError, "metric must be LogitDifference"),
    ],
)
def test_bad_requests_say_what_is_wrong(models, prompts, name, arguments, error, says):
    with pytest.raises(error, match=says):
        attribution_patch(models(name), *prompts, **{"metric": METRIC, **arguments})


def test_a_model_of_one_layer_has_nothing_to_drop(tmp_path, prompts):
    model = introspect.load_model(write_tiny_transformers(tmp_path, "gpt2", n_layer=1), dtype=torch.float64)
    with pytest.raises(ValueError, match="GradDrop needs two layers at least"):
        attribution_patch(model, *prompts, METRIC, method="atp*")
