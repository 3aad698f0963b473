"""Interventions as data: each operator against its formula, written out again here, at points of every shape."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_tiny

import introspect

B, T = 3, 8
EXACT = {"rtol": 0, "atol": 0}
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: the same sums in another order

# Points of every shape: without and with heads, groups, patterns, width 1, and outside of the blocks.
POINTS = {
    "hook_resid_post": 1,
    "ln1.hook_scale": 1,
    "mlp.hook_post": 1,
    "attn.hook_z": 2,
    "attn.hook_k": 0,
    "attn.hook_pattern": 1,
    "hook_embed": -1,
}
OPERATIONS = ["add", "ablate", "project_out", "replace", "interpolate", "scale", "zero", "mean", "mean of x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")), dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens(model):
    return torch.randint(0, model.cfg.d_vocab, (B, T), generator=torch.Generator().manual_seed(1))


def full_name(point, layer):
    return point if layer < 0 else f"blocks.{layer}.{point}"


def run(model, tokens, interventions=(), names=(), **options):
    """Logits, and the activations at ``names``, of a pass under interventions."""
    hooks, cache = model.native.make_hooks(), introspect._C.ActivationCache()
    for intervention in interventions:
        hooks.add_intervention(intervention)
    for name in names:
        hooks.record(name, cache)
    return model.native.forward(tokens, hooks=hooks, **options), cache


@pytest.fixture(scope="module")
def plain(model, tokens):
    """The activations of the plain pass."""
    return run(model, tokens, names=[full_name(point, layer) for point, layer in POINTS.items()])[1]


def axes(point):
    """(position axis, head axis or None) of an activation."""
    if "pattern" in point:
        return 2, 1
    return 1, 2 if point.startswith("attn.hook_") else None


def random_values(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def formula(op, x, v, s):
    """What an operator makes of x [rows, positions, (heads,) width]; v broadcasts against x, or is [k, width]."""
    if op == "ablate":
        u = v / v.norm(dim=-1, keepdim=True)
        return x - s * (x * u).sum(-1, keepdim=True) * u
    if op == "project_out":  # the part of x in the span of v's rows, by least squares
        coefficients = torch.linalg.lstsq(v.T, x.reshape(-1, x.shape[-1]).T).solution
        return x - s * (v.T @ coefficients).T.reshape(x.shape)
    if op == "mean":
        return (x.mean(1, keepdim=True) if v is None else v).expand(x.shape)
    by_op = {"add": lambda: x + s * v, "interpolate": lambda: (1 - s) * x + s * v, "scale": lambda: s * x}
    by_op |= {"replace": lambda: v.expand(x.shape), "zero": lambda: torch.zeros_like(x)}
    return by_op[op]()


def changed(x, point, op, v, s, rows, positions, heads):
    """``x`` after an operator on some rows, positions and heads, by plain indexing."""
    position_axis, head_axis = axes(point)
    y = (x.transpose(1, 2) if position_axis == 2 else x).clone()
    if head_axis is None:
        index = (torch.tensor(rows)[:, None], torch.tensor(positions)[None])
    else:
        index = (
            torch.tensor(rows)[:, None, None],
            torch.tensor(positions)[None, :, None],
            torch.tensor(heads)[None, None],
        )
    y[index] = formula(op, y[index], v, s)
    return y.transpose(1, 2) if position_axis == 2 else y


@st.composite
def cases(draw):
    """An intervention on a random selection with an operand of a random admissible shape, and the expected change."""
    point = draw(st.sampled_from(sorted(POINTS)))
    op = draw(st.sampled_from(OPERATIONS))

    def subset(n):
        return st.none() | st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)

    by_list = draw(st.booleans())
    first = draw(st.integers(0, T - 1))
    span = (first, draw(st.one_of(st.none(), st.integers(first + 1, T + 2))))
    return {
        "point": point,
        "op": op,
        "strength": draw(st.floats(-2, 2).filter(lambda s: s not in (0, 1))),
        "rows": draw(subset(B)),
        "heads": draw(subset(2 if point == "attn.hook_k" else 4)) if axes(point)[1] else None,
        "positions": draw(subset(T)) if by_list else None,
        "span": span,
        "rank": draw(st.integers(1, 4)),
        "one_row": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def operand_of(case, W, rows, heads):
    """An operand in one of the documented shapes, and itself as it broadcasts against the selection."""
    rng = torch.Generator().manual_seed(case["seed"])
    has_heads, rank = axes(case["point"])[1] is not None, case["rank"]
    if case["op"] == "project_out":
        k = min(rank, W)
        v = random_values(rng, k, W)
        return v, v
    n, h = 1 if case["one_row"] else len(rows), len(heads)
    if rank == 1:
        v = random_values(rng, W)
        return v, v
    if not has_heads:
        v = random_values(rng, n, W) if rank == 2 else random_values(rng, n, T, W)
        return v, v[:, None] if rank == 2 else v
    if rank == 2:
        v = random_values(rng, h, W)
        return v, v
    if rank == 3:
        v = random_values(rng, n, h, W)
        return v, v[:, None]
    if "pattern" in case["point"]:
        v = random_values(rng, n, h, T, W)
        return v, v.transpose(1, 2)
    v = random_values(rng, n, T, h, W)
    return v, v


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_every_operator_is_its_formula_on_any_selection(model, tokens, plain, case):
    point, layer = case["point"], POINTS[case["point"]]
    name = full_name(point, layer)
    x = plain[name]
    op = case["op"].removesuffix(" of x")
    rows = case["rows"] or list(range(B))
    heads = case["heads"] or list(range(x.shape[axes(point)[1]] if axes(point)[1] else 0))
    positions = case["positions"] or list(range(*slice(*case["span"]).indices(T)))
    value = broadcast = None
    if op not in ("scale", "zero") and case["op"] != "mean of x":
        value, broadcast = operand_of(case, x.shape[-1], rows, heads)
        if op != "project_out" and broadcast.dim() >= 2 and broadcast.shape[1] == T and value.dim() >= 3:
            stored = value.dim() == (3 if axes(point)[1] is None else 4)
            broadcast = broadcast[:, positions] if stored else broadcast
    strength = 1.0 if op in ("replace", "zero", "mean") else case["strength"]
    intervention = introspect.Intervention(
        {layer: value},
        op=op,
        point=point,
        strength=strength,
        first_position=case["span"][0],
        last_position=case["span"][1],
        positions=case["positions"],
        heads=case["heads"],
        rows=case["rows"],
    )
    _, cache = run(model, tokens, [intervention], plain.names())
    expected = changed(x.double(), point, op, broadcast, strength, rows, positions, heads).to(x.dtype)
    # The norms of a float64 model are float32, as transformers' are.
    tolerance = FLOOR if x.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(cache[name], expected, **tolerance)
    # What is not selected is the same to the bit.
    keep = torch.ones(x.shape, dtype=torch.bool)
    keep = changed(keep, point, "zero", None, 1, rows, positions, heads)
    assert torch.equal(cache[name][keep], x[keep])


@pytest.mark.parametrize(
    ("op", "strength"),
    [("add", 0), ("ablate", 0), ("project_out", 0), ("interpolate", 0), ("replace", 0), ("zero", 0), ("scale", 1)],
)
def test_the_identity_leaves_the_pass_as_it_was_bit_for_bit(model, tokens, op, strength):
    value = None if op in ("scale", "zero") else torch.ones(model.cfg.d_model)
    i = introspect.Intervention({1: value}, op=op, strength=strength)
    assert i.is_identity and i.first_change() is None
    hooks = model.native.make_hooks()
    hooks.remove(hooks.add_intervention(i))  # it has an id all the same
    hooks.add_intervention(i)
    assert hooks.empty
    assert torch.equal(run(model, tokens, [i])[0], model(tokens))


def test_a_batch_of_different_interventions_equals_single_runs(model, tokens, rng):
    v = random_values(rng, 2, model.cfg.d_model)
    each = [
        introspect.Intervention({0: v[0]}, strength=3.0, rows=[0]),
        introspect.Intervention({1: v[1]}, op="ablate", rows=[1], first_position=2),
        introspect.Intervention({1: None}, op="zero", point="attn.hook_z", heads=[2], rows=[2]),
    ]
    together, _ = run(model, tokens, each)
    alone = [
        introspect.Intervention({0: v[0]}, strength=3.0),
        introspect.Intervention({1: v[1]}, op="ablate", first_position=2),
        introspect.Intervention({1: None}, op="zero", point="attn.hook_z", heads=[2]),
    ]
    for row, intervention in enumerate(alone):
        single, _ = run(model, tokens[row : row + 1], [intervention])
        torch.testing.assert_close(together[row], single[0], **FLOOR)


@pytest.mark.parametrize("chunks", [[8], [3, 5], [1] * 8])
def test_frozen_patterns_and_scales_are_those_of_the_other_prompt_in_chunks_too(model, tokens, chunks):
    c = model.cfg
    other = tokens.flip(1)
    points = ["attn.hook_pattern", "ln1.hook_scale", "ln2.hook_scale"]
    names = [full_name(p, layer) for p in points for layer in range(c.n_layers)]
    _, stored = run(model, other, names=[*names, "ln_final.hook_scale"])
    frozen = [
        introspect.Intervention(
            {layer: stored[full_name(p, layer)] for layer in range(c.n_layers)}, op="replace", point=p
        )
        for p in points
    ]
    whole, seen = run(model, tokens, frozen, names)
    for name in names:
        assert torch.equal(seen[name], stored[name])
    cache = model.native.make_cache(B)
    parts = [run(model, part, frozen, cache=cache)[0] for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **FLOOR)
    assert not torch.allclose(whole, model(tokens))


def test_positions_count_from_the_start_of_the_cache(model, tokens, rng):
    v = random_values(rng, B, T, model.cfg.d_model)
    for selection in ({"first_position": 2, "last_position": 6}, {"positions": [6, 1, 5]}):
        i = introspect.Intervention({1: v}, op="replace", **selection)
        cache = model.native.make_cache(B)
        parts = [run(model, part, [i], cache=cache)[0] for part in tokens.split(3, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), run(model, tokens, [i])[0], **FLOOR)


def test_a_stored_activation_that_is_too_short_is_an_error(model, tokens, rng):
    v = random_values(rng, 1, 5, model.cfg.d_model)
    with pytest.raises(introspect.ShapeError, match=r"position 7 .* only 5"):
        run(model, tokens, [introspect.Intervention({1: v}, op="replace")])
    run(model, tokens, [introspect.Intervention({1: v}, op="replace", last_position=5)])


def test_the_mean_of_positions_in_the_cache_is_refused(model, tokens):
    i = introspect.Intervention({1: None}, op="mean")
    cache = model.native.make_cache(B)
    run(model, tokens[:, :4], [i], cache=cache)
    with pytest.raises(introspect.HookError, match="one pass"):
        run(model, tokens[:, 4:], [i], cache=cache)
    assert len(cache) == 4
    run(model, tokens[:, 4:], [introspect.Intervention({1: None}, op="mean", first_position=4)], cache=cache)


@pytest.mark.parametrize("op", ["add", "ablate", "project_out", "replace", "interpolate", "mean", "scale"])
def test_gradients_flow_to_operands_and_through_the_activation(model, tokens, rng, op):
    v = random_values(rng, 2, 32) if op == "project_out" else random_values(rng, 32)
    name, s, positions = "blocks.1.hook_resid_post", 1.0 if op in ("replace", "mean") else 0.7, [1, 4]
    operand = None if op == "scale" else v.requires_grad_()
    hooks, cache = model.native.make_hooks(), introspect._C.ActivationCache()
    hooks.add_intervention(introspect.Intervention({1: operand}, op=op, strength=s, positions=positions))
    hooks.record(name, cache, gradient=True)
    hooks.record("blocks.1.hook_mlp_out", cache, gradient=True)  # what arrives at x, one of whose terms it is
    model.native.forward(tokens, hooks=hooks).square().mean().backward()

    x = run(model, tokens, names=[name])[1][name].requires_grad_()
    w = v.detach().clone().requires_grad_()
    changed(x, "hook_resid_post", op, w, s, range(B), positions, []).backward(cache[name + "_grad"])
    torch.testing.assert_close(cache["blocks.1.hook_mlp_out_grad"], x.grad, **FLOOR)
    if operand is not None:
        torch.testing.assert_close(operand.grad, w.grad, **FLOOR)


def test_a_registry_says_whether_an_intervention_needs_gradients(model):
    hooks = model.native.make_hooks()
    v = torch.zeros(model.cfg.d_model, requires_grad=True)
    hooks.add_intervention(introspect.Intervention({1: v}, strength=0.0))
    assert not hooks.needs_grad
    i = hooks.add_intervention(introspect.Intervention({1: v}))
    assert hooks.needs_grad
    hooks.remove(i)
    assert not hooks.needs_grad


@pytest.mark.parametrize(
    ("error", "match", "values", "options"),
    [
        (introspect.ConfigError, "no operator 'adds', only ablate, ", {1: torch.ones(32)}, {"op": "adds"}),
        (IndexError, "0 to 2, got 3", {3: torch.ones(32)}, {}),
        (IndexError, "must be -1, got 0", {0: torch.ones(32)}, {"point": "hook_embed"}),
        (introspect.HookError, "hook_pos_embed", {-1: torch.ones(32)}, {"point": "hook_pos_embed"}),
        (introspect.ShapeError, r"\[32\].*got \[31\]", {1: torch.ones(31)}, {}),
        (introspect.ShapeError, r"\[8\], \[2, 8\]", {1: torch.ones(4, 8)}, {"point": "attn.hook_z", "heads": [0, 1]}),
        (introspect.ShapeError, r"\[2 or 1, 32\]", {1: torch.ones(3, 32)}, {"rows": [0, 1]}),
        (introspect.ShapeError, "floating", {1: torch.ones(32, dtype=torch.long)}, {}),
        (introspect.ShapeError, r"\[k, 32\]", {1: torch.ones(2, 31)}, {"op": "project_out"}),
        (ValueError, "independent, got rank 1", {1: torch.ones(2, 32)}, {"op": "project_out"}),
        (ValueError, "NaN", {1: torch.full((32,), float("inf"))}, {}),
        (ValueError, "finite", {1: torch.ones(32)}, {"strength": float("nan")}),
        (ValueError, "needs an operand", {1: None}, {}),
        (ValueError, "takes no operand", {1: torch.ones(32)}, {"op": "zero"}),
        (ValueError, "no strength but 1", {1: torch.ones(32)}, {"op": "replace", "strength": 0.5}),
        (ValueError, "no heads", {1: torch.ones(32)}, {"heads": [0]}),
        (IndexError, "heads must be 0 to 1", {1: torch.ones(8)}, {"point": "attn.hook_k", "heads": [2]}),
        (ValueError, "twice", {1: torch.ones(32)}, {"positions": [3, 3]}),
        (IndexError, "negative", {1: torch.ones(32)}, {"positions": [-1]}),
        (ValueError, "before the first", {1: torch.ones(32)}, {"first_position": 3, "last_position": 2}),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(model, error, match, values, options):
    with pytest.raises(error, match=match):
        model.native.make_hooks().add_intervention(introspect.Intervention(values, **options))


def test_what_does_not_fit_the_batch_is_an_error(model, tokens):
    with pytest.raises(introspect.ShapeError, match="for 2 rows, but 3"):
        run(model, tokens, [introspect.Intervention({1: torch.ones(2, 32)})])
    with pytest.raises(IndexError, match="rows of the batch must be 0 to 2, got 3"):
        run(model, tokens, [introspect.Intervention({1: torch.ones(32)}, rows=[3])])


@pytest.mark.parametrize(
    ("values", "options", "first"),
    [
        ({2: torch.ones(32), 1: torch.ones(32)}, {"first_position": 5}, (1, 5)),
        ({1: torch.ones(32)}, {"positions": [7, 3]}, (1, 3)),
        ({-1: torch.ones(32)}, {"point": "hook_embed"}, (-1, 0)),
        ({-1: torch.ones(32)}, {"point": "unembed.hook_in"}, (2**63 - 1, 0)),
        ({1: torch.ones(32)}, {"first_position": 4, "last_position": 4}, None),
    ],
)
def test_the_first_change(values, options, first):
    assert introspect.Intervention(values, **options).first_change() == first


@settings(max_examples=50, deadline=None)
@given(
    layers=st.lists(st.integers(0, 2), min_size=1, unique=True),
    strength=st.floats(-100, 100),
    positions=st.lists(st.integers(0, 30), unique=True),
    rows=st.lists(st.integers(0, 5), unique=True),
    heads=st.lists(st.integers(0, 3), unique=True),
    last=st.none() | st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_json_there_and_back(layers, strength, positions, rows, heads, last, dtype):
    values = {layer: torch.randn(4, 8).to(dtype) for layer in layers}
    selection = {"positions": positions, "rows": rows, "heads": heads, "last_position": last}
    i = introspect.Intervention(values, op="interpolate", point="attn.hook_z", strength=strength, **selection)
    text, table = i.to_json()
    back = introspect.Intervention.from_json(text, table)
    assert (back.op, back.point, back.strength) == ("interpolate", "attn.hook_z", strength)
    assert {name: getattr(back, name) for name in selection} == selection
    assert back.values.keys() == values.keys()
    assert all(back.values[k].dtype == dtype and torch.equal(back.values[k], values[k]) for k in values)
    assert back.to_json()[0] == text


def test_equal_tensors_have_one_hash_and_others_another():
    v = torch.arange(6.0)
    variants = [v, v.double(), v.view(2, 3), v + 1]
    hashes = [next(iter(introspect.Intervention({0: x}).to_json()[1])) for x in [*variants, v.clone()]]
    assert len(set(hashes[:-1])) == len(variants)
    assert hashes[-1] == hashes[0]
    strided = torch.stack([v, v], 1)[:, 0]
    assert next(iter(introspect.Intervention({0: strided}).to_json()[1])) == hashes[0]


def test_json_that_does_not_fit_its_table_is_an_error():
    text, table = introspect.Intervention({1: torch.ones(4), 2: None}, op="mean").to_json()
    assert introspect.Intervention.from_json(text, table).values[2] is None
    from_json = introspect.Intervention.from_json
    with pytest.raises(introspect.ConfigError, match="not in the table"):
        from_json(text, {})
    with pytest.raises(introspect.ConfigError, match="another hash"):
        from_json(text, {name: tensor + 1 for name, tensor in table.items()})
    fields = json.loads(text)
    for broken in (
        "{",
        "[]",
        json.dumps({**fields, "streng": 1}),
        json.dumps({**fields, "strength": "1"}),
        json.dumps({**fields, "op": "nothing of the kind"}),
        json.dumps({**fields, "values": {"one": None}}),
    ):
        with pytest.raises(introspect.ConfigError):
            from_json(broken, table)
    with pytest.raises(introspect.HookError, match="hook_resid_post"):
        from_json(json.dumps({**fields, "point": "hook_resid_pots"}), table)
