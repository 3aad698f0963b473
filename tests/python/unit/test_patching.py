"""Patching grids, planned as one graph, against a loop of single hooks over the same cells."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pairs import alike
from tiny import write_tiny_transformers

import introspect
from introspect import patching
from introspect.analysis import causal_trace, patch_grid
from introspect.analysis.patching import _span_of

FAMILIES = ["qwen2", "llama", "gemma2", "gpt2", "gpt_neox"]  # GQA, biases, post norms, learned positions, parallel
T = 6
POINTS = ["resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
METRIC = introspect.LogitDifference(5, 6) + 0.5 * introspect.LogProbability(7, position=3)
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64 on both sides


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {name: write_tiny_transformers(folder / name.replace(" ", "_"), name) for name in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, folders):
    return introspect.HookedTransformer.from_pretrained_no_processing(str(folders[request.param]), dtype=torch.float64)


@pytest.fixture(scope="module")
def qwen2(folders):
    return introspect.load_model(folders["qwen2"], dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts():
    return alike(T)


def has(model, point):
    return not (point == "resid_mid" and model.cfg.parallel_attn_mlp)


def by_hooks(model, clean, corrupted, point, metric):
    """[pairs, layer, pos (, head)] of one hook a cell; patterns by destination."""
    _, cache = model.run_with_cache(clean)
    name = introspect.utils.get_act_name(point, 0)
    shape = cache[name].shape
    heads = 0 if point not in ("z", "q", "k", "v", "pattern") else shape[1 if point == "pattern" else 2]
    values = torch.zeros(len(clean), model.cfg.n_layers, T, *([heads] if heads else []), dtype=torch.float64)
    for layer, pos, head in itertools.product(range(model.cfg.n_layers), range(T), range(heads or 1)):
        at = introspect.utils.get_act_name(point, layer)

        def put(x, hook, at=at, pos=pos, head=head):
            index = (slice(None), pos, head) if heads else (slice(None), pos)
            if point == "pattern":
                index = (slice(None), head, pos)
            x[index] = cache[at][index]
            return x

        value = metric(model.run_with_hooks(corrupted, fwd_hooks=[(at, put)]))
        values[(slice(None), layer, pos, head) if heads else (slice(None), layer, pos)] = value.double()
    return values


@pytest.mark.parametrize("point", POINTS)
def test_a_grid_is_the_loop_of_single_hooks(model, prompts, point):
    clean, corrupted = prompts
    if not has(model, point):
        with pytest.raises(introspect.HookError, match="resid_mid"):
            patch_grid(model, clean, corrupted, [point], metric=METRIC)
        return
    grid = patch_grid(model, clean, corrupted, [point], metric=METRIC)
    expected = by_hooks(model, clean, corrupted, point, METRIC)
    torch.testing.assert_close(grid.values, expected, **FLOOR)
    assert expected.std() > 1e-3  # something is patched
    torch.testing.assert_close(grid.clean, METRIC(model(clean)).double(), **FLOOR)
    torch.testing.assert_close(grid.corrupted, METRIC(model(corrupted)).double(), **FLOOR)
    assert grid.token_layers_to_run < grid.token_layers_asked


def test_noising_swaps_the_runs_and_normalising_does_not(qwen2, prompts):
    clean, corrupted = prompts
    noising = patch_grid(qwen2, clean, corrupted, metric=METRIC, direction="noising")
    swapped = patch_grid(qwen2, corrupted, clean, metric=METRIC)
    torch.testing.assert_close(noising.values, swapped.values, **FLOOR)
    torch.testing.assert_close(noising.clean, swapped.corrupted, **FLOOR)
    # All of the residual before the first block is the whole other prompt.
    whole = patch_grid(qwen2, clean, corrupted, metric=METRIC, positions="all", layers=[0])
    torch.testing.assert_close(whole.normalised(), torch.ones(2, 1, dtype=torch.float64), **FLOOR)
    torch.testing.assert_close(whole.values[:, 0], whole.clean, **FLOOR)


def test_equal_prompts_give_a_flat_grid_that_costs_no_more_than_a_run(qwen2, prompts):
    grid = patch_grid(qwen2, prompts[0], prompts[0], ["z"], metric=METRIC)
    torch.testing.assert_close(grid.values, grid.corrupted.view(-1, 1, 1, 1).expand_as(grid.values), **FLOOR)
    assert grid.token_layers_to_run == 2 * T * qwen2.cfg.n_layers
    assert grid.normalised().isnan().all()


@pytest.mark.parametrize("patch", ["zero", "mean"])
def test_ablations_need_one_prompt(qwen2, prompts, patch):
    clean = prompts[0]
    grid = patch_grid(qwen2, clean, points=["z"], metric=METRIC, patch=patch, positions="all")
    for layer, head in itertools.product(range(qwen2.cfg.n_layers), range(qwen2.cfg.n_heads)):

        def ablate(z, hook, head=head):
            z[:, :, head] = 0 if patch == "zero" else z[:, :, head].mean(1, keepdim=True)
            return z

        with qwen2.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", ablate)]):
            expected = METRIC(qwen2(clean))
        torch.testing.assert_close(grid.values[:, layer, head], expected, **FLOOR)


def test_a_mean_of_a_data_set_can_be_given(qwen2, prompts, rng):
    mean = torch.randn(qwen2.cfg.n_layers, qwen2.cfg.d_model, generator=rng, dtype=torch.float64)
    grid = patch_grid(qwen2, prompts[0], points=["mlp_out"], metric=METRIC, patch={"mlp_out": mean}, layers=[1])

    def put(x, hook):
        x[:, 4] = mean[1]
        return x

    with qwen2.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", put)]):
        torch.testing.assert_close(grid.values[:, 0, 4], METRIC(qwen2(prompts[0])), **FLOOR)


def test_a_window_patches_layers_together(qwen2, prompts):
    clean, corrupted = prompts
    _, cache = qwen2.run_with_cache(clean)
    grid = patch_grid(qwen2, clean, corrupted, ["mlp_out"], metric=METRIC, window=2)

    def put(x, hook):
        x[:, 3] = cache[hook.name][:, 3]
        return x

    for layer in range(qwen2.cfg.n_layers):
        window = range(max(0, layer - 1), layer + 1)
        with qwen2.hooks(fwd_hooks=[(f"blocks.{one}.hook_mlp_out", put) for one in window]):
            torch.testing.assert_close(grid.values[:, layer, 3], METRIC(qwen2(corrupted)), **FLOOR)


def test_spans_align_prompts_of_different_lengths(qwen2, rng):
    clean, corrupted = [5, 6, 7, 8, 9], [5, 6, 60, 61, 8, 90]
    spans = {"subject": ((2, 3), (3, 4)), "end": ([3, 4], [4, 5])}
    metric = introspect.LogitDifference(5, 6)
    grid = patch_grid(qwen2, clean, corrupted, metric=metric, spans=spans)
    assert grid.labels["position"] == ["subject", "end"]
    _, cache = qwen2.run_with_cache(torch.tensor([clean]))
    for place, (taken, put) in enumerate([([2], [3]), ([3, 4], [4, 5])]):

        def patch(x, hook, taken=taken, put=put):
            x[:, put] = cache[hook.name][:, taken]
            return x

        with qwen2.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", patch)]):
            expected = metric(qwen2(torch.tensor([corrupted])))
        torch.testing.assert_close(grid.values[:, 1, place], expected, **FLOOR)


def test_any_function_of_the_logits_is_a_metric(qwen2, prompts):
    clean, corrupted = prompts
    by_data = patch_grid(qwen2, clean, corrupted, ["attn_out"], metric=METRIC)
    by_function = patch_grid(qwen2, clean, corrupted, ["attn_out"], metric=lambda logits: METRIC(logits)[0])
    torch.testing.assert_close(by_function.values, by_data.values, **FLOOR)
    torch.testing.assert_close(by_function.clean, by_data.clean, **FLOOR)


def test_a_divergence_is_from_the_clean_run(qwen2, prompts):
    clean, corrupted = prompts
    grid = patch_grid(qwen2, clean, corrupted, metric=introspect.Divergence())
    torch.testing.assert_close(grid.clean, torch.zeros(2, dtype=torch.float64), **FLOOR)
    p, q = (qwen2(tokens)[:, -1].log_softmax(-1) for tokens in (corrupted, clean))
    torch.testing.assert_close(grid.corrupted, (q.exp() * (q - p)).sum(-1), **FLOOR)
    noising = patch_grid(qwen2, clean, corrupted, metric=introspect.Divergence(), direction="noising")
    torch.testing.assert_close(noising.clean, torch.zeros(2, dtype=torch.float64), **FLOOR)


def test_a_grid_as_a_table_and_a_picture(qwen2, prompts):
    grids = patch_grid(qwen2, *prompts, ["resid_pre", "z"], metric=METRIC)
    table = grids.to_pandas(intervals=True)
    assert list(table.columns) == ["point", "layer", "position", "value", "normalised", "low", "high", "head"]
    cell = table[(table["point"] == "hook_resid_pre") & (table["layer"] == 1) & (table["position"] == 3)]
    assert cell["value"].item() == pytest.approx(float(grids["resid_pre"].mean()[1, 3]))
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    with pytest.raises(AttributeError, match="choose it by its point"):
        grids.values  # noqa: B018
    assert grids["z"].plot().axes[0].get_ylabel() == "layer"


def test_causal_tracing_restores_a_noised_subject(qwen2):
    prompt = list(range(5, 11))
    grids = causal_trace(qwen2, prompt, (1, 3), samples=3, window=2)
    _, cache = qwen2.run_with_cache(torch.tensor([prompt]))
    logits = qwen2(torch.tensor([prompt]))[0, -1]
    answer = int(logits.argmax())
    subject = cache["hook_embed"][0, 1:3]
    draws = np.random.RandomState(1).randn(3, 2, qwen2.cfg.d_model) * 3 * float(subject.std(correction=0))

    def noise(x, hook):
        x[:, 1:3] += torch.from_numpy(draws).float().to(x.dtype)
        return x

    def restore(x, hook):
        x[:, 2] = cache[hook.name][:, 2]
        return x

    batch = torch.tensor([prompt] * 3)
    with qwen2.hooks(fwd_hooks=[("hook_embed", noise), ("blocks.1.hook_resid_post", restore)]):
        expected = qwen2(batch)[:, -1].softmax(-1)[:, answer]
    torch.testing.assert_close(grids["resid_post"].values[:, 1, 2], expected, **FLOOR)
    assert float(grids["resid_post"].clean[0]) == pytest.approx(float(logits.softmax(-1)[answer]))


# TransformerLens's names


def test_transformer_lens_grids_are_loops_of_hooks_whatever_the_metric(model, prompts):
    clean, corrupted = prompts
    _, cache = model.run_with_cache(clean)

    def metric(logits):
        return METRIC(logits).mean()

    for name, point in [("resid_pre", "resid_pre"), ("attn_head_k_by_pos", "k"), ("attn_head_out_by_pos", "z")]:
        grid = getattr(patching, f"get_act_patch_{name}")
        expected = by_hooks(model, clean, corrupted, point, METRIC).mean(0).float()
        torch.testing.assert_close(grid(model, corrupted, cache, metric), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(grid(model, corrupted, cache, METRIC), expected, rtol=0, atol=1e-5)
    by_destination = patching.get_act_patch_attn_head_pattern_by_pos(model, corrupted, cache, METRIC)
    expected = by_hooks(model, clean, corrupted, "pattern", METRIC).mean(0).transpose(1, 2).float()
    torch.testing.assert_close(by_destination, expected, rtol=0, atol=1e-5)


def test_planned_setters_and_others_give_the_same_numbers(model, prompts):
    clean, corrupted = prompts
    _, cache = model.run_with_cache(clean)
    grids = {
        patching.layer_head_dest_src_pos_pattern_patch_setter: ("pattern", ["layer", "head", "dest_pos", "src_pos"]),
        patching.layer_head_pattern_patch_setter: ("pattern", ["layer", "head"]),
        patching.layer_head_vector_patch_setter: ("q", ["layer", "head"]),
    }
    for setter, (name, axes) in grids.items():
        rows = patching.make_df_from_ranges([2, 2, 3, 2][: len(axes)], axes)
        planned, of_loop = (
            patching.generic_activation_patch(model, corrupted, cache, METRIC, one, name, index_df=rows)
            for one in (setter, lambda *given, setter=setter: setter(*given))
        )
        assert planned.shape == (len(rows),)
        torch.testing.assert_close(planned, of_loop, rtol=0, atol=1e-5)


def test_every_grid_has_its_shape(model, prompts):
    clean, corrupted = prompts
    _, cache = model.run_with_cache(clean)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    every = {
        patching.get_act_patch_attn_head_all_pos_every: (5, layers, heads),
        patching.get_act_patch_attn_head_by_pos_every: (5, layers, T, heads),
        patching.get_act_patch_block_every: (3, layers, T),
    }
    for grid, shape in every.items():
        assert grid(model, corrupted, cache, METRIC).shape == shape
    assert patching.get_act_patch_attn_head_pattern_dest_src_pos(model, corrupted, cache, METRIC).shape == (
        layers, heads, T, T
    )  # fmt: skip


def test_prompts_are_lists_arrays_or_tensors_of_ids(qwen2, prompts):
    clean, corrupted = prompts
    expected = patch_grid(qwen2, clean, corrupted, metric=METRIC).values
    columns = lambda x: x.t().contiguous().t()  # noqa: E731
    for form in (np.asarray, columns, list, lambda x: list(np.asarray(x)), torch.Tensor.tolist):
        assert torch.equal(patch_grid(qwen2, form(clean), form(corrupted), metric=METRIC).values, expected)


def test_a_grid_of_one_run_draws_the_metric_itself(qwen2):
    grid = patch_grid(qwen2, [5, 6, 7, 8], metric=METRIC, patch="zero")["resid_pre"]
    assert grid.normalised().isnan().all()
    drawn = grid.plot().axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn, grid.mean())


def test_a_subject_has_all_tokens_that_share_its_characters(shared_data):
    tokenizer = introspect.Tokenizer.load(shared_data / "tokenizers/gpt2")
    model = SimpleNamespace(tokenizer=tokenizer)
    cat, grass = "\U0001f431", "\u8349"
    for text, subject in ((f"I like {cat} and", cat), (f"see \u732b{grass} grow", grass), ("a naïve one", "naïve")):
        ids = tokenizer.encode(text, add_special_tokens=False)
        first, last = _span_of(model, ids, subject, "who")
        assert subject in tokenizer.decode(ids[first:last])
        for fewer in (ids[first + 1 : last], ids[first : last - 1]):
            assert subject not in tokenizer.decode(fewer)
    with pytest.raises(ValueError, match="'' is not in the prompt"):
        _span_of(model, ids, "", "who")


# What bad input gets


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"corrupted": [5, 6, 9]}, ValueError, "pair 0 have 4 and 3, and differ first at token 2: 7 against 9"),
        ({"layers": [3]}, IndexError, "layers are 0 to 2, got 3"),
        ({"positions": [9]}, IndexError, "positions of a prompt of 4 tokens are -4 to 3, got 9"),
        ({"positions": [-5]}, IndexError, "-4 to 3, got -5"),
        ({"layers": []}, ValueError, "layers must hold one at least"),
        ({"positions": []}, ValueError, "positions must hold one at least"),
        ({"points": ["z"], "heads": []}, ValueError, "heads must hold one at least"),
        ({"points": ["z"], "heads": "some"}, ValueError, "heads must be numbers or 'all'"),
        ({"spans": {}}, ValueError, "spans must hold one at least"),
        ({"spans": {"name": [1, 2]}}, TypeError, "spans are {name: .clean span, corrupted span.}"),
        ({"clean": [[]], "corrupted": [[]]}, ValueError, "number 0 of clean has none"),
        ({"clean": torch.zeros(1, 1, 4).long()}, TypeError, "clean must be a text, token ids"),
        ({"clean": torch.zeros(4)}, TypeError, "clean must be a text, token ids"),
        ({"metric": introspect.LogitDifference(" a", " b")}, TypeError, "the model has no tokenizer; give token ids"),
        ({"points": ["z"], "heads": [6]}, IndexError, "heads are 0 to 5, got 6"),
        ({"points": ["resid_prey"]}, introspect.HookError, "resid_pre"),
        ({"corrupted": None}, ValueError, "say what is put in"),
        ({"by_key": True}, ValueError, "keys are an axis of patterns"),
        ({"max_cells": 5}, ValueError, "12 cells .* more than max_cells=5; they would take some 0.0 hours"),
        ({"direction": "both"}, ValueError, "denoising or noising"),
        ({"metric": "logits"}, TypeError, "or a function of logits, got 'logits'"),
        ({"points": []}, ValueError, "at least one point"),
        ({"clean": [[5, 6, 7, 8]] * 2}, ValueError, "as many clean as corrupted prompts"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused_before_it_runs(qwen2, arguments, error, message):
    given = {"clean": [5, 6, 7, 8], "corrupted": [5, 6, 9, 8], "metric": METRIC, **arguments}
    with pytest.raises(error, match=message):
        patch_grid(qwen2, **given)


def test_a_cache_of_other_prompts_is_refused(model, prompts):
    _, cache = model.run_with_cache(prompts[0][:, :4])
    with pytest.raises(ValueError, match=r"the cache is of \(2, 4\) tokens, the corrupted prompts of \(2, 6\)"):
        patching.get_act_patch_resid_pre(model, prompts[1], cache, METRIC)


def test_a_trace_takes_one_point_by_name_and_wants_samples(qwen2):
    one = causal_trace(qwen2, [5, 6, 7, 8], (1, 2), points="resid_post", metric=METRIC, samples=2)
    assert list(one.grids) == ["hook_resid_post"]
    with pytest.raises(ValueError, match="samples must be 1 or more, got 0"):
        causal_trace(qwen2, [5, 6, 7, 8], (1, 2), samples=0)
