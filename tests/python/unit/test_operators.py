"""The operators of control vectors against their formulas in numpy, and operators a user registers."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_tiny

import introspect

B, T, D = 2, 5, 32
NAME = "blocks.1.hook_resid_post"
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: the same sums in another order; residuals here are below 100
OPERATORS = ("norm_preserving_add", "multiply", "project_to", "clamp", "rotate", "angular", "adaptive_angular")
PLANES = ("rotate", "angular", "adaptive_angular")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")), dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens(model):
    return torch.randint(0, model.cfg.d_vocab, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def x(model, tokens):
    """What the operators are given."""
    return model.run_with_cache(tokens, [NAME])[1][NAME]


def apply(model, tokens, value, op, strength=1.0, **options):
    """The residual stream after block 1, changed there."""
    hooks, cache = model.native.make_hooks(), introspect._C.ActivationCache()
    hooks.add_intervention(introspect.Intervention({1: value}, op=op, strength=strength, **options))
    hooks.record(NAME, cache)
    model.native.forward(tokens, hooks=hooks)
    return cache[NAME]


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def turn(degrees):
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def in_plane(x, rows, move):
    """x [D] with its coordinates in the plane of two rows replaced by ``move`` of them."""
    basis = np.linalg.qr(rows.T)[0]  # [D, 2]
    basis = basis * np.sign(np.sum(basis * rows.T, axis=0))  # row 0 along the first, row 1 on the second's side
    coordinates = basis.T @ x
    return x + basis @ (move(coordinates) - coordinates)


def formula(op, x, v, s, p):
    """What an operator makes of one activation x [D]; v is [D] or [2, D]."""
    if op == "norm_preserving_add":
        return unit(x + s * v) * np.linalg.norm(x)
    if op == "multiply":
        return x * (1 + s * (v - 1))
    if op in ("project_to", "clamp"):
        at = x @ unit(v)
        aim = p["target"] if op == "project_to" else np.clip(at, p.get("low"), p.get("high"))
        return x + s * (aim - at) * unit(v)
    if op == "adaptive_angular":
        return formula("angular", x, v, s, p) if x @ v.reshape(-1, D)[0] > 0 else x
    if v.ndim == 1:  # the plane of v and x: seen from x, v is at some angle
        to_v = np.arccos(np.clip(unit(x) @ unit(v), -1, 1))
        aim = to_v - np.deg2rad(s * p["angle"]) if op == "rotate" else np.deg2rad(p["angle"])
        away = unit(x - (x @ unit(v)) * unit(v))
        return np.linalg.norm(x) * (np.cos(aim) * unit(v) + np.sin(aim) * away)
    if op == "rotate":
        return in_plane(x, v, lambda c: turn(s * p["angle"]) @ c)
    return in_plane(x, v, lambda c: np.linalg.norm(c) * turn(p["angle"]) @ np.array([1, 0]))


@st.composite
def cases(draw):
    op = draw(st.sampled_from(OPERATORS))
    number = st.floats(-40, 40)
    parameters = {}
    if op in PLANES:
        parameters = {"angle": draw(st.floats(-360, 360))}
    elif op == "project_to":
        parameters = {"target": draw(number)}
    elif op == "clamp":
        low, high = sorted((draw(number), draw(number)))
        kept = draw(st.sampled_from([("low",), ("high",), ("low", "high")]))
        parameters = {key: end for key, end in (("low", low), ("high", high)) if key in kept}
    strength = 1.0 if "angular" in op else draw(st.floats(-3, 3).filter(lambda s: s != 0))
    rows = draw(st.integers(1, 2)) if op in PLANES else 0
    return op, parameters, strength, rows, draw(st.integers(0, 2**31))


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_every_operator_is_its_formula(model, tokens, x, case):
    op, parameters, strength, rows, seed = case
    random = np.random.default_rng(seed).standard_normal((2, D)) * 3
    v = random if rows == 2 else random[0]
    changed = apply(model, tokens, torch.from_numpy(v), op, strength, parameters=parameters)
    expected = [[formula(op, one.numpy(), v, strength, parameters) for one in row] for row in x]
    torch.testing.assert_close(changed, torch.tensor(np.array(expected)), **FLOOR)


@pytest.mark.parametrize("op", ["norm_preserving_add", "rotate", "angular", "adaptive_angular"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_operators_that_keep_the_norm_do(tmp_path, tokens, rng, op, dtype):
    model = introspect.load_model(write_tiny(tmp_path), dtype=dtype)
    parameters = {} if op == "norm_preserving_add" else {"angle": 70.0}
    v = torch.randn(D, generator=rng) * 5
    _, cache = model.run_with_cache(tokens, [NAME])
    changed = apply(model, tokens, v, op, parameters=parameters)
    # Each of the 32 numbers of a bfloat16 activation is rounded to 8 bits, a relative error of at most 1/256.
    tolerance = {"rtol": 1 / 256 if dtype == torch.bfloat16 else 1e-12, "atol": 0}
    torch.testing.assert_close(changed.double().norm(dim=-1), cache[NAME].double().norm(dim=-1), **tolerance)
    assert not torch.equal(changed, cache[NAME])


@pytest.mark.parametrize("op", ["norm_preserving_add", "multiply", "project_to", "clamp", "rotate"])
def test_strength_zero_changes_nothing_bit_for_bit(model, tokens, x, op):
    parameters = {"project_to": {"target": 3.0}, "clamp": {"low": 3.0}, "rotate": {"angle": 5.0}}.get(op, {})
    assert torch.equal(apply(model, tokens, torch.ones(D), op, 0.0, parameters=parameters), x)


@pytest.mark.parametrize("op", ["norm_preserving_add", "project_to", "clamp", "ablate"])
def test_a_zero_direction_changes_nothing_bit_for_bit(model, tokens, x, op):
    parameters = {"project_to": {"target": 3.0}, "clamp": {"low": 3.0}}.get(op, {})
    assert torch.equal(apply(model, tokens, torch.zeros(D), op, parameters=parameters), x)


@pytest.mark.parametrize("op", ["rotate", "angular"])
def test_an_activation_along_the_direction_has_no_plane_with_it_and_stays(model, tokens, x, op):
    changed = apply(model, tokens, -x[0, 0] / 3, op, parameters={"angle": 40.0})
    assert torch.equal(changed[0, 0], x[0, 0])
    assert not torch.equal(changed[0, 1], x[0, 1])


@pytest.mark.parametrize("away", [1e-14, 1e-11, 1e-6])
def test_an_activation_almost_along_the_direction_keeps_its_norm(model, tokens, x, rng, away):
    v = x[0, 0] + away * torch.randn(D, generator=rng, dtype=torch.float64)
    changed = apply(model, tokens, v, "angular", parameters={"angle": 40.0})
    torch.testing.assert_close(changed.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("op", "value", "parameters", "error", "message"),
    [
        ("project_to", torch.ones(D), {}, ValueError, "needs target"),
        ("project_to", torch.ones(D), {"goal": 1.0}, ValueError, "target"),
        ("project_to", torch.ones(D), {"target": float("nan")}, ValueError, "finite"),
        ("add", torch.ones(D), {"target": 1.0}, ValueError, "no parameters"),
        ("clamp", torch.ones(D), {"low": 2.0, "high": 1.0}, ValueError, "low"),
        ("rotate", torch.ones(D), {}, ValueError, "needs angle"),
        ("rotate", torch.zeros(D), {"angle": 1.0}, ValueError, "zero"),
        ("rotate", torch.ones(2, D), {"angle": 1.0}, ValueError, "parallel"),
        ("angular", torch.ones(3, D), {"angle": 1.0}, introspect.ShapeError, "plane"),
        ("angular", torch.ones(D - 1), {"angle": 1.0}, introspect.ShapeError, "plane"),
    ],
)
def test_what_an_operator_does_not_take_is_refused_before_anything_runs(model, op, value, parameters, error, message):
    with pytest.raises(error, match=message):
        model.native.make_hooks().add_intervention(introspect.Intervention({1: value}, op=op, parameters=parameters))
    with pytest.raises(ValueError, match="no strength but 1"):
        model.native.make_hooks().add_intervention(
            introspect.Intervention({1: torch.ones(D)}, op="angular", strength=2.0, parameters={"angle": 1.0})
        )


def test_parameters_and_text_filters_survive_json():
    text = introspect.TextFilter(phase="generation", tokens=[7, 5, 5], not_tokens=[2], after=[9, 3], skip_padding=True)
    given = introspect.Intervention({1: torch.ones(2, D)}, op="rotate", parameters={"angle": 30.5}, text=text)
    described, table = given.to_json()
    assert json.loads(described)["parameters"] == {"angle": 30.5}
    assert json.loads(described)["text"] == {
        "phase": "generation", "tokens": [5, 7], "not_tokens": [2], "after": [3, 9], "skip_padding": True,
    }  # fmt: skip
    read = introspect.Intervention.from_json(described, table)
    assert (read.parameters, read.text) == ({"angle": 30.5}, text)
    assert read.to_json()[0] == described
    plain = json.loads(introspect.Intervention({1: torch.ones(D)}).to_json()[0])
    assert "text" not in plain and "parameters" not in plain


@pytest.mark.parametrize("text", ['{"phase": "later"}', '{"token": [1]}', '{"tokens": "a"}', "[]"])
def test_a_text_filter_that_is_none_is_refused(text):
    with pytest.raises(introspect.ConfigError):
        introspect.Intervention.from_json('{"text": ' + text + "}", {})


def test_an_operator_of_the_users_is_data_like_any_other(model, tokens, x, rng):
    calls = []

    def towards(x, v, strength, *, power, base):
        calls.append(tuple(x.shape))
        x.mul_(base).add_(strength * v**power)  # its own copy
        return x

    introspect.register_operator("tests.towards", towards, parameters={"power": None, "base": 1.0})
    assert "tests.towards" in introspect.operator_names()
    v = torch.randn(D, generator=rng, dtype=torch.float64)
    given = introspect.Intervention({1: v}, op="tests.towards", strength=2.0, parameters={"power": 3}, rows=[1])
    hooks, cache = model.native.make_hooks(), introspect._C.ActivationCache()
    hooks.add_intervention(introspect.Intervention.from_json(*given.to_json()))
    hooks.record("blocks.0.hook_resid_post", cache)
    hooks.record(NAME, cache)
    model.native.forward(tokens, hooks=hooks)
    torch.testing.assert_close(cache[NAME][1], x[1] + 2 * v**3, **FLOOR)
    assert torch.equal(cache[NAME][0], x[0])
    assert calls == [(1, T, D)]
    with pytest.raises(ValueError, match="needs power"):
        hooks.add_intervention(introspect.Intervention({1: v}, op="tests.towards"))
    with pytest.raises(ValueError, match="taken"):
        introspect.register_operator("tests.towards", towards)


@pytest.mark.parametrize(
    ("name", "function", "error"),
    [
        ("shape", lambda x, v, strength: x[..., :1], introspect.HookError),
        ("nothing", lambda x, v, strength: None, introspect.HookError),
        ("raises", lambda x, v, strength: 1 / 0, ZeroDivisionError),
    ],
)
def test_what_is_wrong_with_an_operator_of_the_users_ends_the_pass(model, tokens, x, name, function, error):
    introspect.register_operator(f"tests.{name}", function)
    with pytest.raises(error):
        apply(model, tokens, torch.ones(D), f"tests.{name}")
    assert torch.equal(model.run_with_cache(tokens, [NAME])[1][NAME], x)
