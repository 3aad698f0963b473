"""Hooks on a model: who adds and removes what, contexts, failure, order, directions and bad input."""

import gc
import weakref

import pytest
import torch
from tiny import write_tiny

import introspect
from introspect import HookedTransformer, HookPoint

NAME = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("hooks") / "tiny", "LlamaForCausalLM")


@pytest.fixture
def model(folder):
    return HookedTransformer.from_pretrained(folder, dtype="float64", device="cpu")


@pytest.fixture
def tokens(model, rng):
    return torch.randint(0, model.cfg.d_vocab, (2, 7), generator=rng)


class Counter:
    """A hook that counts its calls and keeps what it was called with."""

    def __init__(self, replace=None):
        self.calls, self.points, self.replace = 0, [], replace

    def __call__(self, tensor, hook):
        self.calls += 1
        self.points.append(hook)
        self.last = tensor
        return None if self.replace is None else self.replace(tensor)


def n_hooks(model):
    return len(model.handles())


# Calling


def test_a_hook_is_called_with_its_point(model, tokens):
    counter = Counter()
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.attn.hook_z", counter)])
    (point,) = counter.points
    assert isinstance(point, HookPoint)
    assert point is model.hook_dict["blocks.2.attn.hook_z"] is model.blocks[2].attn.hook_z
    assert (point.name, point.layer()) == ("blocks.2.attn.hook_z", 2)
    assert counter.last.shape == (2, 7, model.cfg.n_heads, model.cfg.d_head)
    with pytest.raises(ValueError, match="hook_embed is not in a block"):
        model.hook_embed.layer()


def test_names_may_be_lists_and_predicates(model, tokens):
    counter = Counter()
    names = ["blocks.0.hook_resid_pre", "hook_embed"]
    with model.hooks([(names, counter), (lambda name: name.endswith("hook_pattern"), counter)]):
        model(tokens)
    called = [point.name for point in counter.points]
    assert called == ["hook_embed", "blocks.0.hook_resid_pre", *[f"blocks.{i}.attn.hook_pattern" for i in range(3)]]


def test_what_a_hook_returns_replaces_the_activation(model, tokens):
    _, cache = model.run_with_cache(tokens.flip(1))
    replaced = model.run_with_hooks(tokens, fwd_hooks=[(NAME, lambda x, hook: cache[hook.name])])
    torch.testing.assert_close(replaced, model(tokens.flip(1)), rtol=0, atol=1e-9)
    assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(NAME, lambda x, hook: None)]), model(tokens))


def test_hooks_run_in_the_order_of_addition_and_prepended_ones_first(model, tokens):
    order = []
    for number, prepend in ((1, False), (2, False), (3, True)):
        model.add_hook(NAME, lambda x, hook, number=number: order.append(number), prepend=prepend)
    model(tokens)
    assert order == [3, 1, 2]


def test_ctx_lives_until_contexts_are_cleared(model, tokens):
    def count(x, hook):
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1

    with model.hooks([(NAME, count)]):
        model(tokens)
        model(tokens)
    assert model.hook_dict[NAME].ctx == {"calls": 2}
    model.reset_hooks(clear_contexts=False)
    assert model.hook_dict[NAME].ctx == {"calls": 2}
    model.run_with_hooks(tokens, fwd_hooks=[(NAME, count)], clear_contexts=True)
    assert model.hook_dict[NAME].ctx == {}


# Contexts


def test_a_context_removes_its_own_hooks_only(model, tokens):
    outer, inner, own, permanent = Counter(), Counter(), Counter(), Counter()
    model.add_hook(NAME, own)
    model.add_perma_hook(NAME, permanent)
    with model.hooks([(NAME, outer)]):
        with model.hooks([(NAME, inner)]):
            assert model.context_level == 2
            model(tokens)
        model(tokens)
    model(tokens)
    assert [c.calls for c in (inner, outer, own, permanent)] == [1, 2, 3, 3]
    assert model.context_level == 0
    model.reset_hooks()
    model(tokens)
    assert [own.calls, permanent.calls] == [3, 4]
    model.reset_hooks(including_permanent=True)
    assert n_hooks(model) == 0


def test_hooks_added_inside_a_context_outlive_it(model, tokens):
    counter = Counter()
    with model.hooks([(NAME, lambda x, hook: None)]):
        model.add_hook(NAME, counter)
    model(tokens)
    assert counter.calls == 1


def test_hooks_can_be_left_in_place(model, tokens):
    counter = Counter()
    model.run_with_hooks(tokens, fwd_hooks=[(NAME, counter)], reset_hooks_end=False)
    model(tokens)
    assert counter.calls == 2
    model.reset_hooks(level=7)
    assert n_hooks(model) == 1
    model.reset_hooks(level=1)
    assert n_hooks(model) == 0


def test_a_failure_in_a_context_leaves_the_model_as_it_was(model, tokens):
    before, own = model(tokens), Counter()
    model.add_hook("hook_embed", own)

    def fail(x, hook):
        raise KeyError("from the hook")

    with pytest.raises(KeyError, match="from the hook"), model.hooks([(NAME, fail)]):
        model(tokens)
    with pytest.raises(KeyError, match="from the block"), model.hooks([(NAME, Counter())]):
        raise KeyError("from the block")
    with pytest.raises(KeyError, match="from the hook"):
        model.run_with_cache(tokens, names_filter="hook_embed", reset_hooks_end=False, **_failing(model, fail))
    model.reset_hooks()
    assert n_hooks(model) == model.context_level == 0
    assert torch.equal(model(tokens), before)


def _failing(model, hook):
    model.add_hook(NAME, hook)
    return {}


def test_reset_by_direction_and_at_one_point(model):
    for dir in ("fwd", "bwd"):
        model.add_hook([NAME, "hook_embed"], Counter(), dir=dir)
    model.reset_hooks(direction="bwd")
    assert [handle.direction for handle in model.handles()] == ["fwd", "fwd"]
    point = model.hook_dict[NAME]
    assert point.has_hooks("fwd")
    assert not point.has_hooks("bwd")
    point.remove_hooks()
    assert not point.has_hooks()
    assert [handle.name for handle in model.handles()] == ["hook_embed"]


def test_a_point_can_be_hooked_by_itself(model, tokens):
    counter = Counter()
    model.blocks[0].hook_mlp_out.add_hook(counter)
    model.hook_embed.add_perma_hook(counter)
    model(tokens)
    assert [point.name for point in counter.points] == ["hook_embed", "blocks.0.hook_mlp_out"]
    assert len(model.hook_embed.fwd_hooks) == 1
    assert "1 fwd" in repr(model.hook_embed)


def test_hooks_may_change_the_hooks_while_a_pass_runs(model, tokens):
    later = Counter()

    def once(x, hook):
        hook.remove_hooks()
        model.add_hook("blocks.2.hook_resid_post", later)

    model.add_hook("blocks.0.hook_resid_pre", once)
    model(tokens)  # the pass goes on with what there was when it began
    assert later.calls == 0
    model(tokens)
    assert later.calls == 1


def test_steering_outlives_a_reset_inside_its_block(model, tokens, rng):
    directions = {layer: torch.randn(model.cfg.d_model, generator=rng) for layer in (1, 2)}
    plain = model(tokens)
    with model.steer(introspect.ControlVector("llama", directions)):
        model.reset_hooks(including_permanent=True)
        assert not torch.equal(model(tokens), plain)
    assert torch.equal(model(tokens), plain)


def test_a_model_with_hooks_is_freed(folder):
    model = HookedTransformer.from_pretrained(folder, device="cpu")
    model.add_perma_hook(NAME, Counter())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# Gradients


def test_backward_hooks_see_the_gradient_and_may_replace_it(model, tokens):
    forward, seen, zero, below = Counter(), Counter(), Counter(lambda g: 0 * g), Counter()
    with model.hooks([(NAME, forward)], [(NAME, seen)]):
        loss = model(tokens, return_type="loss")
        loss.backward()
    step = 1e-3 * torch.randn(forward.last.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    up, down = (
        model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(NAME, lambda x, hook, s=s: x + s * step)])
        for s in (1, -1)
    )
    # Central differences; norms are computed in float32, so that a smaller step drowns in their rounding.
    assert abs(up - down) / 2e-3 > 0.1
    torch.testing.assert_close((seen.last * step).sum() / 1e-3, (up - down) / 2e-3, rtol=1e-3, atol=1e-3)
    with model.hooks(bwd_hooks=[(NAME, zero), ("blocks.0.hook_resid_post", below)]):
        model(tokens, return_type="loss").backward()
    assert zero.calls == below.calls == 1
    assert not below.last.any()


def test_backward_hooks_belong_to_the_pass_they_were_there_for(model, tokens):
    during, other = Counter(), Counter()
    loss = model.run_with_hooks(tokens, return_type="loss", bwd_hooks=[(NAME, during)])
    assert n_hooks(model) == 0
    with model.hooks(bwd_hooks=[("hook_embed", other)]):
        model(tokens, return_type="loss")
        loss.backward()
    assert (during.calls, other.calls) == (1, 0)


def test_gradients_are_cached_beside_activations(model, tokens):
    hooks = {name: Counter() for name in ("hook_embed", "blocks.1.attn.hook_z", NAME)}
    with model.hooks(bwd_hooks=list(hooks.items())):
        model(tokens, return_type="loss").backward()
    with torch.no_grad():  # asked for gradients, it computes them
        loss, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    for name, hook in hooks.items():  # within the rounding of norms, which are computed in float32
        torch.testing.assert_close(cache[name + "_grad"], hook.last, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, model(tokens, return_type="loss"), rtol=1e-6, atol=1e-6)
    assert not model(tokens).requires_grad
    with pytest.raises(ValueError, match="scalar"):
        model.run_with_cache(tokens, incl_bwd=True)
    assert n_hooks(model) == 0


# Bad input


@pytest.mark.parametrize("dir", ["fwd", "bwd"])
def test_a_name_that_does_not_exist_is_an_error_that_hooks_nothing(model, tokens, dir):
    counter = Counter()
    hooks = [("hook_embed", counter), ("blocks.1.hook_residpost", counter)]
    for add in (
        lambda: model.add_hook(["hook_embed", "blocks.1.hook_residpost"], counter, dir),
        lambda: model.run_with_hooks(tokens, **{f"{dir}_hooks": hooks}),
        lambda: model.run_with_cache(tokens, names_filter=["hook_embed", "blocks.1.hook_residpost"]),
    ):
        with pytest.raises(introspect.HookError, match=r"blocks\.1\.hook_resid_post"):
            add()
        assert n_hooks(model) == 0
    assert counter.calls == 0
    for bad in ("blocks.3.hook_resid_post", "blocks.-1.hook_resid_post", "", "blocks.0"):
        with pytest.raises(introspect.HookError):
            model.add_hook(bad, counter)


def test_a_predicate_that_selects_nothing_is_an_error(model, tokens):
    for call in (
        lambda: model.add_hook(lambda name: "layer9" in name, Counter()),
        lambda: model.run_with_hooks(tokens, fwd_hooks=[(lambda name: False, Counter())]),
        lambda: model.run_with_cache(tokens, names_filter=lambda name: False),
    ):
        with pytest.raises(introspect.HookError, match="none of the"):
            call()
    _, cache = model.run_with_cache(tokens, names_filter=[])
    assert len(cache) == 0


@pytest.mark.parametrize(
    "replacement",
    [lambda x: x[:1], lambda x: x.float(), lambda x: x[..., None], lambda x: "text", lambda x: (x, x)],
    ids=["shape", "dtype", "rank", "text", "pair"],
)
def test_a_replacement_that_does_not_fit_is_an_error(model, tokens, replacement):
    before = model(tokens)
    with pytest.raises(introspect.HookError):
        model.run_with_hooks(tokens, fwd_hooks=[(NAME, lambda x, hook: replacement(x))])
    assert torch.equal(model(tokens), before)
    assert n_hooks(model) == 0


def test_arguments_of_the_wrong_kind_are_errors(model):
    with pytest.raises(TypeError, match="callable"):
        model.add_hook(NAME, "not a function")
    with pytest.raises(ValueError, match="dir"):
        model.add_hook(NAME, Counter(), dir="sideways")
    with pytest.raises(ValueError, match="direction"):
        model.reset_hooks(direction="sideways")
    assert n_hooks(model) == 0


# Flags


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("use_attn_result", ["attn.hook_result"]),
        ("use_split_qkv_input", ["hook_q_input", "hook_k_input", "hook_v_input"]),
        ("use_attn_in", ["hook_attn_in"]),
        ("use_hook_mlp_in", ["hook_mlp_in"]),
    ],
)
def test_points_that_only_a_hook_needs_are_shown_with_their_flag(model, tokens, flag, names):
    names = [f"blocks.1.{name}" for name in names]
    plain = model(tokens)
    logits, cache = model.run_with_cache(tokens, names_filter=names)  # by name, without the flag
    assert set(cache) == set(names)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-9)
    assert not set(names) & set(model.run_with_cache(tokens)[1])
    assert set(names) <= set(model.hook_dict)
    getattr(model, f"set_{flag}")(True)
    assert getattr(model.cfg, flag)
    counter = Counter()
    model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name in names, counter)])
    assert [point.name for point in counter.points] == names
    assert set(names) <= set(model.run_with_cache(tokens)[1])
