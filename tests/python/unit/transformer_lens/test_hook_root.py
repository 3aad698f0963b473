"""HookPoint and HookedRootModule in modules of one's own: hooks, caches and gradients of a small network."""

import pytest
import torch
from tiny import write_tiny

import introspect
from introspect import HookedRootModule, HookPoint

X = torch.tensor([[[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]]])  # [batch, pos, width]


class Square(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hook_in, self.hook_out = HookPoint(), HookPoint()

    def forward(self, x):
        return self.hook_out(self.hook_in(x) ** 2)


class Network(HookedRootModule):
    """(2 x)², then a sum."""

    def __init__(self):
        super().__init__()
        self.hook_start = HookPoint()
        self.blocks = torch.nn.ModuleList([Square(), Square()])
        self.setup()

    def forward(self, x, scale=1.0):
        x = self.hook_start(2 * x)
        for block in self.blocks:
            x = block(x)
        return scale * x.sum()


@pytest.fixture
def network():
    return Network()


def test_points_have_names_and_give_what_they_get(network):
    names = ["hook_start", "blocks.0.hook_in", "blocks.0.hook_out", "blocks.1.hook_in", "blocks.1.hook_out"]
    assert list(network.hook_dict) == names
    assert [point.name for point in network.hook_points()] == names
    assert network.mod_dict["blocks.1"] is network.blocks[1]
    assert network.blocks[1].hook_in.layer() == 1
    with pytest.raises(ValueError, match="not in a block"):
        network.hook_start.layer()
    assert network(X) == (2 * X).pow(4).sum()
    assert torch.equal(HookPoint()(X), X)


def test_hooks_see_and_replace_and_are_gone_afterwards(network):
    seen = []

    def see(x, hook):
        seen.append((hook.name, x.clone()))

    out = network.run_with_hooks(
        X, scale=3.0, fwd_hooks=[("hook_start", lambda x, hook: x + 1), (lambda name: name.endswith("hook_in"), see)]
    )
    assert out == 3 * (2 * X + 1).pow(4).sum()
    assert [name for name, _ in seen] == ["blocks.0.hook_in", "blocks.1.hook_in"]
    assert torch.equal(seen[1][1], (2 * X + 1) ** 2)
    assert network(X) == (2 * X).pow(4).sum()


def test_a_cache_holds_activations_and_gradients(network):
    out, cache = network.run_with_cache(X)
    assert out == (2 * X).pow(4).sum() and list(cache) == list(network.hook_dict)
    assert torch.equal(cache["blocks.0.hook_out"], (2 * X) ** 2)
    _, one = network.run_with_cache(X, names_filter="blocks.1.hook_in", pos_slice=-1, remove_batch_dim=True)
    assert one.keys() == {"blocks.1.hook_in"} and torch.equal(one["blocks.1.hook_in"], (2 * X[0, -1:]) ** 2)
    x = X.clone().requires_grad_()
    _, both = network.run_with_cache(x, incl_bwd=True)
    torch.testing.assert_close(both["hook_start_grad"], 4 * (2 * X) ** 3)
    torch.testing.assert_close(both["blocks.1.hook_out_grad"], torch.ones_like(X))
    torch.testing.assert_close(x.grad, 8 * (2 * X) ** 3)


def test_backward_hooks_replace_gradients(network):
    x = X.clone().requires_grad_()
    with network.hooks(bwd_hooks=[("hook_start", lambda grad, hook: (0.5 * grad,))]):
        network(x).backward()
    torch.testing.assert_close(x.grad, 4 * (2 * X) ** 3)


def test_contexts_nest_and_permanent_hooks_stay(network):
    network.add_perma_hook("hook_start", lambda x, hook: x + 1)
    with network.hooks([("hook_start", lambda x, hook: 2 * x)]):
        with network.hooks([("hook_start", lambda x, hook: x - 1)]):
            assert network.hook_start.has_hooks(level=2)
            assert network(X) == (2 * (2 * X + 1) - 1).pow(4).sum()
        assert network(X) == (2 * (2 * X + 1)).pow(4).sum()
    assert network(X) == (2 * X + 1).pow(4).sum()
    network.reset_hooks()
    assert network(X) == (2 * X + 1).pow(4).sum()
    network.reset_hooks(including_permanent=True)
    assert network(X) == (2 * X).pow(4).sum()
    network.add_hook("hook_start", lambda x, hook: 2 * x)
    network.add_hook("hook_start", lambda x, hook: x + 1, prepend=True)
    assert network(X) == (2 * (2 * X + 1)).pow(4).sum()


def test_a_failure_inside_a_context_leaves_nothing_behind(network):
    def fail(x, hook):
        hook.ctx["x"] = x
        raise KeyError

    with pytest.raises(KeyError):
        network.run_with_hooks(X, fwd_hooks=[("hook_start", fail)], clear_contexts=True)
    assert not network.hook_start.fwd_hooks and network.hook_start.ctx == {} and network.context_level == 0
    with pytest.raises(introspect.HookError, match=r"blocks\.0\.hook_inn.*blocks\.0\.hook_in"):
        network.run_with_hooks(X, fwd_hooks=[("hook_start", fail), ("blocks.0.hook_inn", fail)])
    assert not network.hook_start.fwd_hooks


def test_caching_hooks_fill_a_dict_until_they_are_reset(network):
    cache = network.add_caching_hooks(["hook_start"])
    network(X)
    assert cache.keys() == {"hook_start"} and network.is_caching
    network.reset_hooks()
    network(3 * X)
    assert torch.equal(cache["hook_start"], 2 * X)


def test_a_module_that_was_not_set_up_says_so():
    class Forgotten(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.hook = HookPoint()

    with pytest.raises(AttributeError, match="setup"):
        Forgotten().run_with_cache(X)


def test_points_of_a_model_are_hook_points_too(tmp_path):
    model = introspect.load_model(write_tiny(tmp_path))
    assert isinstance(model.hook_dict["hook_embed"], HookPoint)
    assert not isinstance(X, HookPoint)
    seen = []
    model.run_with_hooks(
        torch.tensor([[1, 2]]), [("hook_embed", lambda x, hook: seen.append(isinstance(hook, HookPoint)))]
    )
    assert seen == [True]


def test_a_hook_point_of_ones_own_can_stand_around_a_model(tmp_path):
    """A probe on top of a model: one object whose points are its own."""
    model = introspect.load_model(write_tiny(tmp_path))

    class Probe(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.hook_logits = HookPoint()
            self.setup()

        def forward(self, tokens):
            return self.hook_logits(model(tokens)).argmax(-1)

    tokens = torch.tensor([[1, 2, 3]])
    answers, cache = Probe().run_with_cache(tokens)
    assert torch.equal(cache["hook_logits"], model(tokens)) and torch.equal(answers, model(tokens).argmax(-1))
