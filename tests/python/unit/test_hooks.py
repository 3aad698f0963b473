"""Hooks, recorders and caches of activations: what is seen, what is changed, and what never is."""

import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_tiny

import introspect
from introspect._C import ActivationCache

B, T = 2, 7
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: other kernels for other shapes, nothing else
POST = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")), dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens(model):
    return torch.randint(0, model.cfg.d_vocab, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hooks(model):
    return model.native.make_hooks()


@pytest.fixture(scope="module")
def everything(model, tokens):
    """Every activation of the plain pass."""
    hooks, cache = model.native.make_hooks(), ActivationCache()
    for name in model.hook_names:
        hooks.record(name, cache)
    model.native.forward(tokens, hooks=hooks)
    return cache.to_dict()


def returning_nothing(action):
    """A hook that does something with the tensor and returns None."""

    def hook(x, name):
        action(x)

    return hook


def indices(n):
    return st.integers(-n, n - 1)


POSITIONS = st.one_of(
    st.none(),
    indices(T),
    st.lists(indices(T), min_size=1, max_size=9),
    st.tuples(*[st.none() | st.integers(-T - 2, T + 2)] * 2),
    st.tuples(*[st.none() | st.integers(-T - 2, T + 2)] * 2, st.integers(1, 4)),
)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(
        [
            "hook_embed",
            POST,
            "attn.hook_q",
            "attn.hook_k",
            "attn.hook_pattern",
            "attn.hook_attn_scores",
            "ln1.hook_scale",
        ]
    ),
    positions=POSITIONS,
    heads=st.none() | st.lists(indices(2), min_size=1, max_size=3),
)
def test_a_recorded_part_is_plain_indexing_of_the_whole(model, tokens, everything, name, positions, heads):
    name = f"blocks.1.{name}" if name[:4] in ("attn", "ln1.") else name
    by_key = name.endswith(("pattern", "attn_scores"))
    head_axis = 1 if by_key else 2 if ".attn." in name else None
    heads = heads if head_axis else None
    expected = everything[name]
    if heads:
        expected = expected.index_select(head_axis, torch.tensor(heads) % expected.shape[head_axis])
    index = slice(*positions) if isinstance(positions, tuple) else slice(None) if positions is None else positions
    expected = expected[:, :, index] if by_key else expected[:, index]

    hooks, cache = model.native.make_hooks(), ActivationCache()
    hooks.record(name, cache, positions=positions, heads=heads)
    logits = model.native.forward(tokens, hooks=hooks)
    torch.testing.assert_close(cache[name], expected, **FLOOR)
    torch.testing.assert_close(logits, model(tokens), **FLOOR)
    assert cache[name].untyped_storage().nbytes() == cache[name].nbytes  # nothing but what was asked for is kept


def test_recording_everything_keeps_the_order_of_the_pass_and_the_logits(model, tokens, everything, hooks):
    assert list(everything) == [name for name in model.hook_names if name in everything]
    cache = ActivationCache()
    for name in reversed(model.hook_names):
        hooks.record(name, cache)
    torch.testing.assert_close(model.native.forward(tokens, hooks=hooks), model(tokens), **FLOOR)
    assert len(cache) == len(everything)
    assert all(torch.equal(value, everything[name]) for name, value in cache.items())
    assert POST in cache and "blocks.1" not in cache
    with pytest.raises(KeyError, match="nothing_of_the_kind"):
        cache["nothing_of_the_kind"]


def test_different_parts_at_one_pattern_are_each_what_was_asked_for(model, tokens, everything, hooks):
    name = "blocks.1.attn.hook_pattern"
    caches = [ActivationCache() for _ in range(3)]
    hooks.record(name, caches[0], positions=-1, heads=[1])
    hooks.record(name, caches[1], positions=(2, 5))
    hooks.record(name, caches[2])
    model.native.forward(tokens, hooks=hooks)
    whole = everything[name]
    expected = [whole[:, 1:2, -1], whole[:, :, 2:5], whole]
    for cache, part in zip(caches, expected, strict=True):
        torch.testing.assert_close(cache[name], part, **FLOOR)


def test_the_cache_may_live_in_another_dtype(model, tokens, everything, hooks):
    cache = ActivationCache()
    hooks.record(POST, cache, dtype=torch.float16, device=torch.device("cpu"))
    hooks.record("hook_embed", cache)
    model.native.forward(tokens, hooks=hooks)
    assert torch.equal(cache[POST], everything[POST].half())
    assert cache.nbytes == cache[POST].nbytes + cache["hook_embed"].nbytes
    halved = cache.to(dtype=torch.float32)
    assert [x.dtype for _, x in halved.items()] == [torch.float32] * 2
    assert cache["hook_embed"].dtype == torch.float64
    assert model.dtype == torch.float64 and model.device.type == "cpu"


def test_memory_that_two_entries_share_counts_once(model, tokens, hooks):
    cache = ActivationCache()
    hooks.record(POST, cache)
    hooks.record("blocks.2.hook_resid_pre", cache)
    model.native.forward(tokens, hooks=hooks)
    assert cache.nbytes == cache[POST].nbytes


def test_recorders_and_hooks_run_in_the_order_of_addition(model, tokens, everything, hooks):
    calls, caches = [], [ActivationCache() for _ in range(3)]
    hooks.record(POST, caches[0])
    hooks.add(POST, lambda x, name: calls.append("first") or x + 1)
    hooks.record(POST, caches[1])
    hooks.add(POST, lambda x, name: calls.append("second") or x * 2)
    hooks.record(POST, caches[2])
    hooks.add(POST, lambda x, name: calls.append("before") or x - 3, prepend=True)
    hooks.add_intervention(introspect.Intervention({1: torch.full((32,), 5.0)}))
    model.native.forward(tokens, hooks=hooks)
    assert calls == ["before", "first", "second"]
    x = everything[POST]
    torch.testing.assert_close(caches[0][POST], x + 2, **FLOOR)  # the intervention, then what was put before
    torch.testing.assert_close(caches[1][POST], x + 3, **FLOOR)
    torch.testing.assert_close(caches[2][POST], 2 * (x + 3), **FLOOR)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.zero_(),
        lambda x: x.data.zero_(),
        lambda x: x.numpy().fill(0),
        lambda x: x[:, :, ::2].zero_() + x[:, :, 1::2].zero_(),
    ],
    ids=["in place", "through .data", "through numpy", "through views"],
)
def test_a_hook_that_writes_in_place_changes_the_pass_and_nothing_recorded(model, tokens, hooks, write):
    before, at, after = ActivationCache(), ActivationCache(), ActivationCache()
    _, plain = model.run_with_cache(tokens, ["blocks.0.hook_resid_post"])
    hooks.record("blocks.0.hook_resid_post", before)  # the same memory as the next block's resid_pre
    hooks.record("blocks.1.hook_resid_pre", at)

    hooks.add("blocks.1.hook_resid_pre", returning_nothing(write))
    hooks.record("blocks.1.hook_resid_pre", after)
    logits = model.native.forward(tokens, hooks=hooks)
    assert torch.equal(before["blocks.0.hook_resid_post"], plain["blocks.0.hook_resid_post"])
    assert torch.equal(at["blocks.1.hook_resid_pre"], plain["blocks.0.hook_resid_post"])
    assert not after["blocks.1.hook_resid_pre"].any()
    replaced = model.run_with_hooks(tokens, [("blocks.1.hook_resid_pre", lambda x, hook: torch.zeros_like(x))])
    assert torch.equal(logits, replaced)


def test_a_tensor_that_a_hook_keeps_and_writes_into_later_changes_nothing(model, tokens, hooks):
    cache, kept = ActivationCache(), []

    def keep(x, name):
        kept.append(x)
        return x

    hooks.add(POST, keep)
    hooks.record(POST, cache)
    hooks.add("blocks.2.hook_resid_mid", returning_nothing(lambda x: kept[0].zero_()))
    assert torch.equal(model.native.forward(tokens, hooks=hooks), model(tokens))
    assert not kept[0].any()
    assert cache[POST].all()


def test_a_hook_that_only_looks_leaves_the_pass_as_it_was_bit_for_bit(model, tokens, hooks):
    for name in model.hook_names:
        if "attn.hook_" not in name:  # where the pattern is seen, it is computed by other kernels
            hooks.add(name, lambda x, name: None)
    assert torch.equal(model.native.forward(tokens, hooks=hooks), model(tokens))


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (lambda x: x[:, 1:], r"blocks\.1\.hook_resid_post' must return \[2, 7, 32\].*got \[2, 6, 32\]"),
        (lambda x: x.float(), "Double.*got.*Float"),
        (lambda x: 3, "a tensor or None, got int"),
        (lambda x: x[:, :, :, None], r"got \[2, 7, 32, 1\]"),
    ],
)
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_what_cannot_replace_is_a_hook_error_that_names_the_hook(model, tokens, hooks, result, match, direction):
    hooks.add(POST, lambda x, name: result(x), direction=direction)
    with pytest.raises(introspect.HookError, match=match):
        model.native.forward(tokens, hooks=hooks).sum().backward()


@pytest.mark.parametrize("start", ["hook_embed", POST])
def test_a_tensor_that_a_hook_keeps_stands_in_the_graph(model, tokens, hooks, start):
    """The graph begins at an earlier gradient, or where the hook asks for one itself."""
    kept, cache = [], ActivationCache()

    def keep(x, name):
        kept.append(x.requires_grad_())
        x.retain_grad()

    hooks.record(start, cache, gradient=True)
    hooks.add(POST, keep)
    hooks.record("blocks.2.hook_resid_pre", cache, gradient=True)
    logits = model.native.forward(tokens, hooks=hooks)
    torch.testing.assert_close(logits, model(tokens), **FLOOR)
    logits.square().sum().backward()
    assert torch.equal(kept[0].grad, cache["blocks.2.hook_resid_pre_grad"])


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_errors_of_a_hook_pass_through_as_themselves(model, tokens, hooks, direction):
    class Mine(Exception):
        pass

    def hook(x, name):
        raise Mine(name)

    hooks.add(POST, hook, direction=direction)
    with pytest.raises(Mine, match=POST):
        model.native.forward(tokens, hooks=hooks).sum().backward()


def test_names_that_do_not_exist_list_the_nearest(hooks):
    for call in (lambda name: hooks.add(name, print), lambda name: hooks.record(name, ActivationCache())):
        with pytest.raises(introspect.HookError, match=r"blocks\.1\.hook_resid_post"):
            call("blocks.1.hook_resid_pots")
    assert hooks.empty


@pytest.mark.parametrize(
    ("error", "name", "options"),
    [
        (ValueError, POST, {"heads": [0]}),
        (IndexError, "blocks.1.attn.hook_k", {"heads": [2]}),
        (ValueError, POST, {"positions": (0, 4, 0)}),
        (ValueError, POST, {"positions": (1, 2, 3, 4)}),
    ],
)
def test_parts_that_cannot_be_are_refused(hooks, error, name, options):
    with pytest.raises(error):
        hooks.record(name, ActivationCache(), **options)
    assert hooks.empty


@pytest.mark.parametrize("gradient", [False, True])
def test_a_position_that_the_pass_does_not_have_is_an_error(model, tokens, hooks, gradient):
    hooks.record(POST, ActivationCache(), positions=T, gradient=gradient)
    with pytest.raises(IndexError, match="-7 to 6, got 7"):
        model.native.forward(tokens, hooks=hooks)


# Which hooks are there


def test_hooks_are_removed_one_by_one_and_a_copy_is_independent(model, tokens, hooks):
    seen = []
    first = hooks.add(POST, lambda x, name: seen.append("first"))
    second = hooks.add(POST, lambda x, name: seen.append("second"))
    copy = hooks.copy()
    hooks.remove(first)
    model.native.forward(tokens, hooks=hooks)
    assert seen == ["second"]
    model.native.forward(tokens, hooks=copy)
    assert seen == ["second", "first", "second"]
    copy.remove(second)
    assert copy.add("hook_embed", print) not in (first, second)
    hooks.remove(second)
    assert hooks.empty and not copy.empty
    with pytest.raises(introspect.HookError, match=f"no hook {first}"):
        hooks.remove(first)


@pytest.mark.parametrize("direction", [None, "fwd", "bwd"])
@pytest.mark.parametrize("including_permanent", [False, True])
@pytest.mark.parametrize("level", [None, 0, 1])
def test_reset_takes_the_hooks_of_its_direction_level_and_permanence(hooks, direction, including_permanent, level):
    ids = {}
    for d in ("fwd", "bwd"):
        for permanent in (False, True):
            for depth in (0, 1):
                ids[d, permanent, depth] = hooks.add(POST, print, direction=d, permanent=permanent, level=depth)
    hooks.reset(direction=direction, including_permanent=including_permanent, level=level)
    for (d, permanent, depth), id in ids.items():
        gone = direction in (None, d) and (including_permanent or not permanent) and level in (None, depth)
        if gone:
            with pytest.raises(introspect.HookError):
                hooks.remove(id)
        else:
            hooks.remove(id)
    assert hooks.empty and not hooks.needs_grad


def test_a_hook_is_let_go_with_its_registry_on_any_thread(model):
    class Hook:
        def __call__(self, x, name):
            return None

    hooks, hook = model.native.make_hooks(), Hook()
    for direction in ("fwd", "bwd"):
        hooks.add(POST, hook, direction=direction)
    alive, held = weakref.ref(hook), [hooks.copy()]
    del hooks, hook
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert alive() is None


# Gradients


def slope_along(model, tokens, name, value, direction):
    """The slope of the sum of squared logits as an activation moves in a direction, from five passes.

    The norms of a float64 model round to float32, as transformers' do: a wide step, a stencil of fourth order.
    """

    def loss(x):
        hooks = model.native.make_hooks()
        hooks.add(name, lambda _, __: x)
        return float(model.native.forward(tokens, hooks=hooks).square().sum())

    h = 4e-3
    minus2, minus1, plus1, plus2 = (loss(value + k * h * direction) for k in (-2, -1, 1, 2))
    return (minus2 - 8 * minus1 + 8 * plus1 - plus2) / (12 * h)


@pytest.mark.parametrize(
    "name",
    ["hook_embed", "blocks.0.attn.hook_q", "blocks.1.attn.hook_pattern", "blocks.1.ln2.hook_scale", POST,
     "blocks.2.mlp.hook_post", "ln_final.hook_normalized"],
)  # fmt: skip
def test_recorded_gradients_are_the_slopes_of_the_pass(model, tokens, hooks, name):
    cache = ActivationCache()
    hooks.record(name, cache, gradient=True)
    hooks.record(name, cache)
    assert hooks.needs_grad
    model.native.forward(tokens, hooks=hooks).square().sum().backward()
    value, gradient = cache[name], cache[name + "_grad"]
    assert gradient.shape == value.shape
    direction = gradient / gradient.norm()
    # float32 rounding of a loss of order 1e4 over the step; a wrong gradient is off by its own size
    slope = slope_along(model, tokens, name, value, direction)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-3)


def test_each_site_sees_its_own_gradient_although_tensors_are_shared(model, tokens, hooks):
    cache = ActivationCache()
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", POST):
        hooks.record(name, cache, gradient=True)
    hooks.add("blocks.1.hook_resid_pre", lambda g, name: 2 * g, direction="bwd")
    hooks.record("blocks.1.hook_resid_pre", cache, gradient=True)
    model.native.forward(tokens, hooks=hooks).sum().backward()
    # After the doubling stands the recorder added last; the block before it gets what was returned.
    assert torch.equal(cache["blocks.0.hook_resid_post_grad"], cache["blocks.1.hook_resid_pre_grad"])
    single, plain = model.native.make_hooks(), ActivationCache()
    single.record("blocks.1.hook_resid_pre", plain, gradient=True)
    model.native.forward(tokens, hooks=single).sum().backward()
    torch.testing.assert_close(
        cache["blocks.1.hook_resid_pre_grad"], 2 * plain["blocks.1.hook_resid_pre_grad"], **FLOOR
    )


def test_backward_hooks_see_what_earlier_ones_made_and_may_write_in_place(model, tokens, hooks):
    cache, seen = ActivationCache(), []
    hooks.record(POST, cache, gradient=True, positions=-1)
    hooks.add(POST, returning_nothing(lambda g: g.mul_(3)), direction="bwd")
    hooks.add(POST, lambda g, name: seen.append((g.clone(), name)), direction="bwd")
    model.native.forward(tokens, hooks=hooks).sum().backward()
    ((gradient, name),) = seen
    assert name == POST
    torch.testing.assert_close(gradient[:, -1], 3 * cache[POST + "_grad"], **FLOOR)


def test_gradients_reach_an_interventions_tensor_and_a_recorded_activation(model, tokens, hooks, rng):
    v = torch.randn(model.cfg.d_model, generator=rng, dtype=torch.float64).requires_grad_()
    cache = ActivationCache()
    hooks.add_intervention(introspect.Intervention({0: v}))
    hooks.record(POST, cache, detach=False)
    hooks.record("blocks.1.hook_resid_pre", cache, gradient=True)
    loss = model.native.forward(tokens, hooks=hooks).square().mean()
    by_activation, by_vector = torch.autograd.grad(loss, [cache[POST], v])
    assert by_activation.shape == cache[POST].shape and by_activation.any()
    torch.testing.assert_close(by_vector, cache["blocks.1.hook_resid_pre_grad"].sum((0, 1)), **FLOOR)


def test_a_backward_hook_where_autograd_is_off_is_an_error(model, tokens, hooks):
    hooks.add(POST, print, direction="bwd")
    with torch.no_grad(), pytest.raises(introspect.HookError, match="no_grad"):
        model.native.forward(tokens, hooks=hooks)


def test_an_interventions_gradient_is_not_needed_where_autograd_is_off(model, tokens, hooks):
    hooks.add_intervention(introspect.Intervention({0: torch.ones(32, requires_grad=True)}))
    assert hooks.needs_grad
    with torch.no_grad():
        assert not model.native.forward(tokens, hooks=hooks).requires_grad
