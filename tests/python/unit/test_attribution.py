"""Direct logit attribution and debug_prediction against the residual stream's algebra, in every family."""

import itertools

import pytest
import torch
from tiny import ARCHITECTURES, write_tiny_transformers

import introspect
from introspect import analysis
from introspect.analysis.attribution import part_of

UNITS = ["layer", "component", "head", "neuron"]
TEXT = torch.randint(3, 101, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny") / "m", request.param)
    return introspect.load_model(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny") / "m", "qwen2")
    return introspect.HookedTransformer.from_pretrained_no_processing(str(folder))


def norms_output(cfg):
    return cfg.use_normalization_before_and_after or cfg.use_normalization_after_only


def exact_logits(model, resid):
    """Logits of a final residual [..., d_model], in float64 throughout and without a soft cap."""
    native = model.native
    centred = resid - resid.mean(-1, keepdim=True) if native.cfg.normalization_type.startswith("LN") else resid
    x = centred / (centred.pow(2).mean(-1, keepdim=True) + native.cfg.eps).sqrt() * native.weight("ln_final.w").double()
    if native.cfg.normalization_type.startswith("LN"):
        x = x + native.weight("ln_final.b")
    return x @ native.weight("unembed.W_U") + native.weight("unembed.b_U")


@pytest.mark.parametrize("unit", UNITS)
def test_the_parts_sum_to_the_logit(model, unit):
    if unit == "neuron" and model.cfg.num_experts:
        with pytest.raises(introspect.ConfigError, match="neurons of a mixture of experts"):
            analysis.direct_logit_attribution(model, TEXT, 5, unit=unit)
        return
    found = analysis.direct_logit_attribution(model, TEXT, [5, 7], [6, 8], unit=unit, position=-2)
    logits, cache = model.run_with_cache(TEXT)
    exact = exact_logits(model, cache["resid_post", -1])[0, -2]
    expected = exact[[5, 7]] - exact[[6, 8]]
    torch.testing.assert_close(found.values.sum(0), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-9)
    cap = model.cfg.output_logits_soft_cap
    read = logits[0, -2] if not cap else cap * torch.atanh(logits[0, -2] / cap)  # norms of models are float32
    torch.testing.assert_close(found.logits, read[[5, 7]] - read[[6, 8]], rtol=0, atol=2e-5)
    # Nothing is left for the remainder but what norms after layers round to float32.
    rounds = norms_output(model.cfg) and unit in ("head", "neuron")
    assert found["remainder"].abs().max() < (1e-5 if rounds else 1e-12)


def test_the_parts_are_those_of_the_stream(model):
    """Each by its own formula, from plain hooks and weights."""
    native, cfg = model.native, model.native.cfg
    _, cache = model.run_with_cache(TEXT)
    resid = cache["resid_post", -1][0, -1]
    layer_norm = cfg.normalization_type.startswith("LN")
    centred = resid - resid.mean() if layer_norm else resid
    scale = (centred.pow(2).mean() + cfg.eps).sqrt()

    def reads(x, norm="ln_final", scale=scale):
        y = x - x.mean(-1, keepdim=True) if layer_norm else x
        return y / scale * native.weight(f"{norm}.w").double()

    direction = native.weight("unembed.W_U")[:, 5]
    component = analysis.direct_logit_attribution(model, TEXT, 5)
    head = analysis.direct_logit_attribution(model, TEXT, 5, unit="head")
    neuron = None if cfg.num_experts else analysis.direct_logit_attribution(model, TEXT, 5, unit="neuron")
    layer = analysis.direct_logit_attribution(model, TEXT, 5, unit="layer")
    post = norms_output(cfg)
    for i in range(cfg.n_layers):
        attention, mlp = (reads(cache[f"{name}_out", i][0, -1]) @ direction for name in ("attn", "mlp"))
        assert component[f"{i}_attn_out"].item() == pytest.approx(attention.item(), abs=1e-9)
        assert component[f"{i}_mlp_out"].item() == pytest.approx(mlp.item(), abs=1e-9)
        assert layer[f"{i}_block"].item() == pytest.approx((attention + mlp).item(), abs=1e-9)
        z, W_O = cache["z", i][0, -1], native.weight(f"blocks.{i}.attn.W_O")
        wrote = torch.einsum("hk,hkd->hd", z, W_O)
        if post:
            wrote = reads(wrote, f"blocks.{i}.ln1_post", cache["scale", i, "ln1_post"][0, -1].double())
        torch.testing.assert_close(head.by_head()[i], reads(wrote) @ direction, rtol=0, atol=1e-9)
        if neuron is None:
            continue
        acts = cache["post", i][0, -1][:4, None] * native.weight(f"blocks.{i}.mlp.W_out")[:4]
        if post:
            acts = reads(acts, f"blocks.{i}.ln2_post", cache["scale", i, "ln2_post"][0, -1].double())
        own = torch.stack([neuron[f"L{i}N{n}"] for n in range(4)])
        torch.testing.assert_close(own, reads(acts) @ direction, rtol=0, atol=1e-9)
    assert component["embed"].item() == pytest.approx((reads(cache["embed"][0, -1]) @ direction).item(), abs=1e-9)
    if layer_norm:
        assert component["ln_final.b"].item() == pytest.approx((native.weight("ln_final.b") @ direction).item())


def test_biases_of_processed_weights_have_their_row(tmp_path):
    folder = str(write_tiny_transformers(tmp_path / "m", "gpt2"))
    model = introspect.HookedTransformer.from_pretrained(folder, dtype=torch.float64, fold_ln=True)
    found = analysis.direct_logit_attribution(model, TEXT, 5)
    assert found["b_U"].item() == pytest.approx(model.b_U[5].item()) and abs(found["b_U"].item()) > 1e-3
    assert found.values.sum().item() == pytest.approx(model(TEXT)[0, -1, 5].item(), abs=1e-9)


def test_what_steering_adds_is_the_remainder(model):
    push = torch.full((model.cfg.d_model,), 0.1, dtype=torch.float64)
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    with model.hooks([(last, lambda x, hook: x + push * torch.arange(1.0, len(push) + 1))]):
        found = analysis.direct_logit_attribution(model, TEXT, 5)
        _, cache = model.run_with_cache(TEXT)
    exact = exact_logits(model, cache["resid_post", -1])[0, -1, 5]
    assert found.values.sum().item() == pytest.approx(exact.item(), abs=1e-9)
    assert abs(found["remainder"].item()) > 1e-3


def test_texts_of_their_own_length_and_tokens(lens):
    texts = [TEXT[0].tolist(), TEXT[0, :5].tolist()]
    both = analysis.direct_logit_attribution(lens, texts, [5, 7], 6)
    for column, (ids, token) in enumerate(zip(texts, (5, 7), strict=True)):
        one = analysis.direct_logit_attribution(lens, ids, token, 6)
        torch.testing.assert_close(both.values[:, column], one.values)
        assert one.logits.item() == pytest.approx(both.logits[column].item())
    frame = both.to_pandas()
    assert list(frame.columns[:4]) == ["part", "kind", "layer", "index"] and len(frame.columns) == 6
    assert frame.iloc[:, 4].sum() == pytest.approx(both.logits[0].item(), abs=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_has_a_table_and_a_picture(lens, unit, tmp_path):
    found = analysis.direct_logit_attribution(lens, TEXT, 5, unit=unit)
    assert len(found.to_pandas()) == len(found.labels)
    found.plot(title="t").savefig(tmp_path / "a.png")
    (label, most), *_ = found.largest(1)
    assert most == found.values.max().item() == found[label].item()


def test_wrong_arguments_are_named(lens):
    with pytest.raises(ValueError, match="unit must be 'layer'"):
        analysis.direct_logit_attribution(lens, TEXT, 5, unit="block")
    with pytest.raises(IndexError, match=r"tokens must be 0 to 100"):
        analysis.direct_logit_attribution(lens, TEXT, 101)
    with pytest.raises(IndexError, match="text of 9 tokens, got 9"):
        analysis.direct_logit_attribution(lens, TEXT, 5, position=9)
    with pytest.raises(ValueError, match="targets must be one token or 3, got 2"):
        analysis.direct_logit_attribution(lens, TEXT.expand(3, 9), [5, 6])
    with pytest.raises(TypeError, match=r"must be an introspect\.Model"):
        analysis.direct_logit_attribution("model", TEXT, 5)
    with pytest.raises(ValueError, match="one text is required, got 3"):
        analysis.debug_prediction(lens, TEXT.expand(3, 9), 5, 6)
    with pytest.raises(ValueError, match="must be two tokens"):
        analysis.debug_prediction(lens, TEXT, 5, 5)
    with pytest.raises(ValueError, match="unit must be 'head' or 'neuron'"):
        analysis.direct_logit_attribution(lens, TEXT, 5).by_head()


def test_logits_that_are_not_finite_name_the_block(lens):
    weight = dict(lens.native.named_weights())["blocks.1.mlp.W_out"]
    native = lens.native.with_weights({"blocks.1.mlp.W_out": torch.full_like(weight, torch.nan)})
    broken = introspect.Model(native)
    with pytest.raises(introspect.Error, match="block 1"):
        analysis.direct_logit_attribution(broken, TEXT, 5)
    with pytest.raises(introspect.Error, match="block 1"):
        analysis.debug_prediction(broken, TEXT, 5)


# debug_prediction


def test_a_prediction_is_followed_through_the_layers(model):
    cfg = model.native.cfg
    found = analysis.debug_prediction(model, TEXT, 5, 6, heads=True, neurons=not cfg.num_experts)
    _, cache = model.run_with_cache(TEXT)
    expected = exact_logits(model, cache["resid_post", -1])[0, -1]
    assert found.difference == pytest.approx((expected[5] - expected[6]).item(), abs=1e-9)
    assert found.exact.values.sum().item() == pytest.approx(found.difference, abs=1e-9)
    assert found.heads.values.sum().item() == pytest.approx(found.difference, abs=1e-9)
    if not cfg.num_experts:
        assert found.neurons.values.sum().item() == pytest.approx(found.difference, abs=1e-9)
    frame = found.to_pandas()
    assert len(frame) == cfg.n_layers
    assert frame["running"].iloc[-1] == pytest.approx(found.difference, abs=1e-9)
    for i in range(cfg.n_layers):
        lens = model.native.readout(cache["resid_post", i][0, -1])
        row = frame.iloc[i]
        assert row["rank_expected"] == 1 + (lens > lens[5]).sum() and row["rank_actual"] == 1 + (lens > lens[6]).sum()
        assert row["p_expected"] == pytest.approx(lens.softmax(0)[5].item(), abs=1e-9)
        assert row["lens_difference"] == pytest.approx((lens[5] - lens[6]).item(), abs=1e-9)
        naive = model.native.readout(cache["attn_out", i][0, -1])
        assert row["naive_attention"] == pytest.approx((naive[5] - naive[6]).item(), abs=1e-9)
        assert row["attention"] == pytest.approx(found.exact[f"{i}_attn_out"].item())


def test_the_turn_is_the_last_change_of_the_lens(model):
    cfg = model.native.cfg
    points = ("resid_pre", "resid_mid") if not cfg.parallel_attn_mlp else ("resid_pre",)
    _, cache = model.run_with_cache(TEXT)
    readings, writers = [], []
    for i in range(cfg.n_layers):
        for name in points:
            readings.append(model.native.readout(cache[name, i][0, -1]))
        writers += [f"{i}_attn_out", f"{i}_mlp_out"] if len(points) == 2 else [f"{i}_block"]
    readings.append(model.native.readout(cache["resid_post", -1][0, -1]))
    likely = {int(id) for reading in (readings[0], readings[-1]) for id in reading.topk(3).indices}
    turns = set()
    for first, other in itertools.permutations(sorted(likely), 2):
        found = analysis.debug_prediction(model, TEXT, first, other)
        ahead = [bool(r[first] >= r[other]) for r in readings]
        last = max((i for i, yes in enumerate(ahead) if yes), default=None)
        expected = None if ahead[-1] or last is None else writers[last]
        assert found.turn == expected
        turns.add(expected)
        sentence = found.sentence
        assert ("The turn is in" in sentence) == (expected is not None)
        assert ("never ahead" in sentence) == (not any(ahead)) and ("is ahead of" in sentence) == ahead[-1]
        if expected:
            layer = f"layer {part_of(expected).layer}"
            assert layer in sentence.split("The turn is in ")[1].split(":")[0]
    assert turns - {None}


def test_without_an_actual_token_it_is_the_likeliest_other(lens, tmp_path):
    best, second = lens(TEXT)[0, -1].topk(2).indices.tolist()
    assert analysis.debug_prediction(lens, TEXT, 5).ids == (5, best)
    found = analysis.debug_prediction(lens, TEXT, best)
    assert found.ids == (best, second) and found.turn is None and found.difference > 0
    assert "is ahead of" in found.sentence
    found.plot().savefig(tmp_path / "p.png")
    assert repr(found).startswith("DebuggedPrediction: ")
