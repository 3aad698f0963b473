"""Dictionaries as interventions: what they change, in every architecture, planned, cached, batched and with gradients.

The oracle is a hook that does the equations of ``dictionaries`` in plain torch.
"""

import copy
import pickle
import warnings

import pytest
import torch
from dictionaries import ARCHITECTURES as KINDS
from dictionaries import decode, dictionary_at, edited, encode
from safetensors.torch import load_file
from tiny import ARCHITECTURES, write_tiny, write_tiny_transformers

import introspect
from introspect import _C
from introspect.steering.splice import splice_intervention

T = 10
FLOOR = {"rtol": 0, "atol": 1e-9}
POST = "blocks.1.hook_resid_post"
EDITS = {"add": {3: 2.0}, "clamp": {5: 1.5}, "scale": {7: -0.5}, "ablate": [0, 1]}

pytestmark = pytest.mark.filterwarnings("ignore:splice. the dictionary does not say which model")


def by_hand(sae, edits, *, error_term=True, strength=1.0):
    """A hook that does what the splice should."""

    def hook(x, hook):
        flat = x.flatten(2)
        f = encode(sae, flat)
        y = decode(sae, edited(f, **edits), flat)
        if error_term:
            y = y + flat - decode(sae, f, flat)
        return (flat + strength * (y - flat)).reshape(x.shape).to(x.dtype)

    return hook


@pytest.fixture(scope="module", params=ARCHITECTURES)
def any_model(request, tmp_path_factory):
    return introspect.load_model(
        write_tiny_transformers(tmp_path_factory.mktemp("tiny"), request.param), dtype=torch.float64
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")), dtype=torch.float64)


def tokens_for(model, rng, rows=2):
    return torch.randint(3, model.cfg.d_vocab, (rows, T), generator=rng)


def at(model, point="hook_resid_post", architecture="standard", layer=1, **config):
    widths = {"attn.hook_z": model.cfg.n_heads * model.cfg.d_head}
    return dictionary_at(f"blocks.{layer}.{point}", widths.get(point, model.cfg.d_model), architecture, **config)


def test_with_the_error_term_nothing_edited_is_nothing_changed_bit_for_bit(any_model, rng):
    tokens = tokens_for(any_model, rng)
    expected = any_model(tokens)
    for point in ("hook_resid_post", "hook_mlp_out", "attn.hook_z"):
        with any_model.splice(at(any_model, point)):
            assert torch.equal(any_model(tokens), expected)


def test_edits_and_reconstructions_are_what_a_hook_makes_of_them(any_model, rng):
    tokens = tokens_for(any_model, rng)
    for point in ("hook_resid_post", "hook_mlp_out", "attn.hook_z"):
        sae = at(any_model, point, "topk")
        for edits, error_term in ((EDITS, True), ({}, False), (EDITS, False)):
            with any_model.splice(sae, **edits, error_term=error_term):
                got = any_model(tokens)
            hook = by_hand(sae, edits, error_term=error_term)
            expected = any_model.run_with_hooks(tokens, [(f"blocks.1.{point}", hook)])
            torch.testing.assert_close(got, expected, **FLOOR)
            assert not torch.allclose(got, any_model(tokens), atol=1e-3)


def test_a_planned_graph_reads_what_single_passes_read(any_model, rng):
    ids = tokens_for(any_model, rng, 1)[0].tolist()
    last = any_model.cfg.n_layers - 1
    z, post = at(any_model, "attn.hook_z", "jumprelu"), at(any_model, "hook_resid_post", "topk", layer=0)
    sets = [
        [],
        [_C.splice(post, edits=[(3, 1.0, 2.0)])],
        [_C.splice(post, keeps="nothing")],
        [_C.splice(z, edits=[(5, 0.0, 1.5), (7, -0.5, 0.0)]), _C.splice(post, edits=[(3, 1.0, 2.0)])],
        [_C.splice(z, keeps="nothing", strength=0.7)],
    ]
    graph, reads, expected = introspect.Graph(), [], []
    for interventions in sets:
        node = graph.segment(any_model, ids, interventions=interventions)
        reads.append(graph.read(node, positions=list(range(T)), layers=[last]))
        hooks, cache = any_model.native.make_hooks(), _C.ActivationCache()
        for one in interventions:
            hooks.add_intervention(one)
        hooks.record(f"blocks.{last}.hook_resid_post", cache)
        any_model.native.forward(torch.tensor([ids]), hooks=hooks)
        expected.append(cache[f"blocks.{last}.hook_resid_post"][0])
    found = graph.run()
    for read, wanted in zip(reads, expected, strict=True):
        torch.testing.assert_close(found[read][:, 0], wanted, **FLOOR)
    assert not torch.allclose(expected[0], expected[1])


def test_a_splice_is_the_same_whole_in_chunks_and_token_by_token(any_model, rng):
    tokens = tokens_for(any_model, rng)
    with any_model.splice(at(any_model), add={3: 2.0}, positions=(2, None)):
        whole = any_model(tokens)
        for sizes in ([4, 6], [1] * T):
            cache = any_model.native.make_cache(2)
            parts = [any_model(part, cache=cache) for part in tokens.split(sizes, 1)]
            torch.testing.assert_close(torch.cat(parts, 1), whole, **FLOOR)


def test_a_splice_is_the_same_in_a_padded_batch_and_alone(any_model, rng):
    tokens = tokens_for(any_model, rng, 1)
    padding = torch.full((1, 3), 1)
    with any_model.splice(at(any_model), clamp={3: 4.0}, positions=[1, 5]):
        alone = any_model(tokens)
        for side in ("left", "right"):
            parts = (padding, tokens) if side == "left" else (tokens, padding)
            mask = torch.cat([torch.full(p.shape, p is tokens) for p in parts], 1)
            found = any_model(torch.cat(parts, 1), attention_mask=mask)
            torch.testing.assert_close(found[mask], alone[0], **FLOOR)


def test_rows_of_a_batch_have_splices_of_their_own(model, rng):
    tokens = tokens_for(model, rng, 3)
    sae = at(model)
    with model.splice(sae, add={3: 2.0}, rows=[0]), model.splice(sae, error_term=False, rows=[2]):
        together = model(tokens)
    for row, how in enumerate(({"add": {3: 2.0}}, {}, {"error_term": False})):
        with model.splice(sae, **how):
            torch.testing.assert_close(together[row], model(tokens[row : row + 1])[0], **FLOOR)


@pytest.mark.parametrize("architecture", [kind for kind in KINDS if kind != "batchtopk"])  # which is refused
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"input_norm": "expected_average_only_in", "input_scale": 0.5},
        {"input_norm": "constant_norm_rescale"},
        {"input_norm": "layer_norm"},
        {"rank_by_decoder_norm": True},
    ],
    ids=lambda config: ", ".join(map(str, config.values())) or "plain",
)
def test_every_architecture_and_input_norm(model, rng, architecture, config):
    if architecture in ("gated", "matching_pursuit") and "rank_by_decoder_norm" in config:
        pytest.skip("its choice is not of such p")
    sae = at(model, architecture=architecture, **config)
    tokens = tokens_for(model, rng)
    for edits, error_term, strength in ((EDITS, True, 1.0), ({}, False, 1.0), (EDITS, False, 0.4), (EDITS, True, -2.0)):
        with model.splice(sae, **edits, error_term=error_term, strength=strength):
            got = model(tokens)
        hook = by_hand(sae, edits, error_term=error_term, strength=strength)
        torch.testing.assert_close(got, model.run_with_hooks(tokens, [(POST, hook)]), **FLOOR)


@pytest.mark.parametrize("error_term", [True, False])
@pytest.mark.parametrize("layers", [(1, 1), (0, 2)], ids=["one layer", "across layers"])
def test_a_transcoder_reads_one_point_and_writes_another(model, rng, layers, error_term):
    d = model.cfg.d_model
    below, above = f"blocks.{layers[0]}.hook_mlp_in", f"blocks.{layers[1]}.hook_mlp_out"
    sae = dictionary_at(below, d, "topk", hook_out=above, skip=True)
    read = {}

    def keep(x, hook):
        read["x"] = x.clone()

    def write(x, hook):
        f = encode(sae, read["x"])
        y = decode(sae, edited(f, **EDITS), read["x"])
        return y + x - decode(sae, f, read["x"]) if error_term else y

    tokens = tokens_for(model, rng)
    expected = model.run_with_hooks(tokens, [(below, keep), (above, write)])
    with model.splice(sae, **EDITS, error_term=error_term):
        torch.testing.assert_close(model(tokens), expected, **FLOOR)


def test_a_transcoder_may_read_what_the_mlp_itself_reads(tmp_path, rng):
    """mlp.hook_in, normed and times the norm's weight: Gemma Scope 2's transcoders and mwhanna's are of it."""
    folder = write_tiny(tmp_path)
    model = introspect.load_model(folder, dtype=torch.float64)
    tokens, names = tokens_for(model, rng), ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    _, cache = model.run_with_cache(tokens, names_filter=list(names))
    gate, up, down = (
        load_file(folder / "model.safetensors")[f"model.layers.1.mlp.{name}_proj.weight"].double()
        for name in ("gate", "up", "down")
    )
    x = cache[names[0]]
    mlp = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(mlp, cache[names[1]], **FLOOR)
    assert not [name for name in model.hook_dict if name.endswith("mlp.hook_in")]  # by name alone, as hook_mlp_in

    sae, edits = dictionary_at(names[0], model.cfg.d_model, hook_out=names[1]), {"clamp": {3: 2.0}}

    def write(y, hook):
        f = encode(sae, x)
        return y + decode(sae, edited(f, **edits), x) - decode(sae, f, x)

    expected = model.run_with_hooks(tokens, [(names[1], write)])
    with model.splice(sae, **edits):
        torch.testing.assert_close(model(tokens), expected, **FLOOR)


def test_parts_of_a_cross_layer_transcoder_add_up(model, rng):
    d, tokens = model.cfg.d_model, tokens_for(model, rng)
    points = "blocks.0.hook_mlp_in", "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
    first, second = (dictionary_at(points[i], d, hook_out=points[2], seed=i) for i in range(2))
    hooks = model.native.make_hooks()
    hooks.add_intervention(_C.splice(first, keeps="nothing"))
    hooks.add_intervention(_C.splice(second, keeps="everything"))
    read = {}

    def keep(x, hook):
        read[hook.name] = x.clone()

    def write(x, hook):
        parts = zip((first, second), points, strict=False)
        return sum(decode(sae, encode(sae, read[name]), read[name]) for sae, name in parts)

    expected = model.run_with_hooks(tokens, [(points[0], keep), (points[1], keep), (points[2], write)])
    torch.testing.assert_close(model.native.forward(tokens, hooks=hooks), expected, **FLOOR)


@pytest.mark.parametrize("error_term", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu"])
def test_gradients_flow_through_x_and_operands_as_in_plain_torch(model, rng, architecture, error_term):
    tokens, edits = tokens_for(model, rng), {"scale": {3: 0.5}, "add": {4: 2.0}, "clamp": {5: 1.0}}
    x0 = torch.randn(2, T, model.cfg.d_model, generator=rng, dtype=torch.float64)
    grads = []
    for ours in (True, False):
        sae, x = at(model, architecture=architecture), x0.clone().requires_grad_()
        tensors = [tensor.requires_grad_() for _, tensor in sorted(sae.weights.items())]
        hooks = model.native.make_hooks()
        hooks.add("blocks.1.hook_resid_mid", lambda value, name, leaf=x: leaf)
        if ours:
            edit = [(3, 0.5, 0.0), (4, 1.0, 2.0), (5, 0.0, 1.0)]
            hooks.add_intervention(_C.splice(sae, edits=edit, keeps="error" if error_term else "nothing"))
        else:
            hook = by_hand(sae, edits, error_term=error_term)
            hooks.add(POST, lambda value, name, hook=hook: hook(value, None))
        logits = model.native.forward(tokens, hooks=hooks)
        found = torch.autograd.grad((logits**2).sum(), [x, *tensors], allow_unused=True)
        grads.append([torch.zeros(()) if g is None else g for g in found])
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs.expand_as(mine).to(mine.dtype), rtol=1e-9, atol=1e-8)
    assert grads[0][0].abs().max() > 1


def test_strength_zero_is_dropped(model, rng):
    what = _C.splice(at(model), keeps="nothing", strength=0.0)
    assert what.is_identity
    tokens = tokens_for(model, rng)
    with model.splice(at(model), error_term=False, strength=0.0):
        assert torch.equal(model(tokens), model(tokens))


def test_in_float32_within_the_floor(tmp_path_factory, rng):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    wide, narrow = (introspect.load_model(folder, dtype=dtype) for dtype in (torch.float64, torch.float32))
    tokens = tokens_for(wide, rng)
    with wide.splice(at(wide), **EDITS):
        expected = wide(tokens)
    with narrow.splice(at(narrow, dtype=torch.float32), **EDITS):
        torch.testing.assert_close(narrow(tokens).double(), expected, rtol=0, atol=2e-4)
    plain = narrow(tokens)
    with narrow.splice(at(narrow, dtype=torch.float32)):
        assert torch.equal(narrow(tokens), plain)


def test_json_pickle_and_copies_keep_it(model):
    given = _C.splice(at(model, architecture="jumprelu"), edits=[(3, 1.0, 2.0)], strength=0.5)
    for same in (_C.Intervention.from_json(*given.to_json()), pickle.loads(pickle.dumps(given)), copy.deepcopy(given)):
        assert (same.op, same.parameters, same.strength) == ("sae_jumprelu", given.parameters, 0.5)
        assert {k: v.dtype for k, v in same.values[1].items()} == {k: v.dtype for k, v in given.values[1].items()}
        assert torch.equal(same.values[1]["features"], torch.tensor([3]))


def test_generation_steers_prompt_and_new_tokens_or_one_of_them(model, rng):
    tokens = tokens_for(model, rng, 1)
    sae = at(model, layer=2)
    for when in ("all", "prompt", "generation"):
        with model.splice(sae, clamp={3: 30.0}, when=when):
            got = model.generate(tokens, max_new_tokens=6, stop_at_eos=False) if model.tokenizer else None
            assert got is None  # a model without a tokenizer: logits say it
            cache = model.native.make_cache(1)
            first = model(tokens, cache=cache, n_prompt=T)
            second = model(tokens[:, :1], cache=cache, n_prompt=T)
        span = {"all": (0, None), "prompt": (0, T), "generation": (T - 1, None)}[when]
        with model.splice(sae, clamp={3: 30.0}, positions=span):
            whole = model(torch.cat([tokens, tokens[:, :1]], 1))
        torch.testing.assert_close(torch.cat([first, second], 1), whole, **FLOOR)


# What does not fit


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda m: dictionary_at("blocks.9.hook_resid_post", m.cfg.d_model), introspect.HookError, "does not exist"),
        (lambda m: dictionary_at("blocks.1.hook_resid", m.cfg.d_model), introspect.HookError, "nearest"),
        (lambda m: dictionary_at(POST, m.cfg.d_model + 1), introspect.ShapeError, "is 32 wide"),
        (lambda m: dictionary_at("", m.cfg.d_model), introspect.ConfigError, "where it reads"),
        (
            lambda m: dictionary_at(POST, m.cfg.d_model, origin={"model_hash": "0" * 64, "model_name": "other"}),
            introspect.ConfigError,
            "was trained on 'other'",
        ),
        (lambda m: "sae", TypeError, "must be an introspect.SAE"),
    ],
    ids=["layer", "point", "width", "no site", "model", "no dictionary"],
)
def test_a_dictionary_that_does_not_fit_is_an_error_before_anything_runs(model, make, error, match):
    sae = make(model)
    with pytest.raises(error, match=match), model.splice(sae, error_term=False):
        pytest.fail("it is in")


@pytest.mark.parametrize(
    ("origin", "match"),
    [
        ({}, "does not say which model"),
        ({"model_name": "gpt2"}, "trained on 'gpt2'"),
        ({"context_size": 4096}, "contexts of 4096 tokens, longer than this model's 64"),
    ],
)
def test_what_may_be_wrong_is_a_warning_that_says_so(model, origin, match):
    with pytest.warns(UserWarning, match=match), model.splice(dictionary_at(POST, model.cfg.d_model, origin=origin)):
        pass


def test_a_dictionary_of_this_model_is_no_warning_and_any_model_lets_another_in(model):
    own = dictionary_at(POST, model.cfg.d_model, origin={"model_hash": model.hash, "model_name": "whatever"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.splice(own):
            pass
    other = dictionary_at(POST, model.cfg.d_model, origin={"model_hash": "0" * 64})
    with pytest.warns(UserWarning, match="hash 000000000000"), model.splice(other, any_model=True):
        pass


def test_centred_weights_are_noticed(tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny"), "gpt2")
    plain = introspect.HookedTransformer.from_pretrained(folder, dtype="float64")
    centred = introspect.HookedTransformer.from_pretrained(folder, dtype="float64", center_writing_weights=True)
    d = plain.cfg.d_model
    name = {"model_name": plain.native.cfg.model_name}
    old, new = (dictionary_at(POST, d, origin=name | {"centers_writing_weights": c}) for c in (True, False))
    for model, sae, match in ((plain, old, "center_writing_weights=True"), (centred, new, "differ by their mean")):
        with pytest.warns(UserWarning, match=match), model.splice(sae):
            pass
    for model, sae in ((plain, new), (centred, old)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with model.splice(sae):
                pass


def test_a_dictionary_stands_elsewhere_where_someone_knows_better(model, rng):
    tokens = tokens_for(model, rng)
    sae = at(model)
    with model.splice(sae, add={3: 2.0}, hook="blocks.0.hook_resid_mid"):
        got = model(tokens)
    hook = by_hand(sae, {"add": {3: 2.0}})
    torch.testing.assert_close(got, model.run_with_hooks(tokens, [("blocks.0.hook_resid_mid", hook)]), **FLOOR)


@pytest.mark.parametrize(
    ("edits", "error", "match"),
    [
        ({"add": {24: 1.0}}, IndexError, "0 to 23, got 24"),
        ({"add": {3: 1.0}, "clamp": {3: 0.0}}, ValueError, "got 3 twice"),
        ({"add": {3: float("nan")}}, ValueError, "finite"),
        ({"add": [3]}, TypeError, "must be {feature: number}"),
    ],
)
def test_bad_edits_are_named(model, edits, error, match):
    with pytest.raises(error, match=match), model.splice(at(model), **edits):
        pytest.fail("it is in")


def test_a_batchtopk_is_refused_and_says_why(model):
    sae = at(model, architecture="batchtopk", k=3.0)
    with pytest.raises(introspect.ConfigError, match="hangs on its neighbours"), model.splice(sae):
        pytest.fail("it is in")


def test_some_heads_are_not_enough(model, rng):
    what = _C.splice(at(model, "attn.hook_z"), edits=[(3, 1.0, 1.0)])
    some = _C.Intervention(what.values, op=what.op, point=what.point, parameters=what.parameters, heads=[0])
    hooks = model.native.make_hooks()
    hooks.add_intervention(some)
    with pytest.raises(introspect.ShapeError, match="of heads it wants all"):
        model.native.forward(tokens_for(model, rng), hooks=hooks)


def test_features_of_circuit_tracers_dictionaries_are_left_alone_at_bos(stories15m, rng):
    model = introspect.load_model(stories15m)
    sae = dictionary_at(POST, model.cfg.d_model, origin={"masks_bos": True}, dtype=torch.float32)
    tokens = model.to_tokens("Once upon a time")
    bos = model.tokenizer.bos_token_id
    assert tokens[0, 0] == bos
    with model.splice(sae, add={3: 5.0}):
        _, cache = model.run_with_cache(tokens, [POST])
    _, plain = model.run_with_cache(tokens, [POST])
    change = (cache[POST] - plain[POST])[0].abs().amax(-1)
    assert change[0] == 0
    assert (change[1:] > 0).all()


def test_an_intervention_of_ones_own_for_graphs(model, rng):
    what = splice_intervention(model, at(model), add={3: 2.0}, positions=[1], skip_padding=False)
    assert what.text == _C.TextFilter()
    assert what.positions == [1]
