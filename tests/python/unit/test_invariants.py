"""What must be true of a forward pass in every architecture (DESIGN 5), in float64 on tiny random models."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from invariants import *  # noqa: F403  # the tests, and `tokens`
from invariants import FLOOR, B, all_equal, keys_and_values, steered
from tiny import ARCHITECTURES, write_tiny_transformers

import introspect


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    return write_tiny_transformers(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder, dtype=torch.float64)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["forward", "fork", "truncate", "slice", "splice", "reserve", "select", "steer", "fail"]),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    min_size=3,
    max_size=8,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_whatever_happens_to_forks_their_parent_stays_as_it_was(model, tokens, operations):
    parent, layers = model.native.make_cache(B), range(model.cfg.n_layers)
    parent.reserve(20)
    model(tokens[:, :6], cache=parent)
    before = keys_and_values(parent, layers)
    vector = torch.ones(model.cfg.d_model, dtype=torch.float64)
    forks = [parent.fork()]
    for name, which, n in operations:
        fork = forks[which % len(forks)]
        if name == "forward":
            model(tokens[:, : n + 1], cache=fork)
        elif name == "steer":
            steered(model, tokens[:, : n + 1], introspect.Intervention({0: vector}, strength=2.0), cache=fork)
        elif name == "fork":
            forks.append(fork.fork())
        elif name == "truncate":
            fork.truncate(min(n, len(fork)))
        elif name == "slice":
            forks.append(fork.slice(0, min(n, len(fork))))
        elif name == "splice":
            forks.append(fork.splice(min(n, len(fork), len(parent)), len(parent), parent))
        elif name == "reserve":
            fork.reserve(4 * n, which % model.cfg.n_layers)
        elif name == "select":
            forks.append(fork.select_positions(range(min(n, len(fork)))))
        else:
            with pytest.raises(IndexError):
                model(torch.full((B, 2), model.cfg.d_vocab), cache=fork)
        if len(forks) > 4 or any(len(f) > 40 for f in forks):
            forks = [parent.fork()]
        assert all_equal(keys_and_values(parent, layers), before)
    torch.testing.assert_close(model(tokens[:, 6:], cache=parent), model(tokens)[:, 6:], **FLOOR)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_reading_every_point_changes_nothing_bit_for_bit(folder, tokens, dtype):
    model = introspect.load_model(folder, dtype=dtype)
    for logits_at in ("all", "last"):
        logits, cache = model.run_with_cache(tokens, logits_at=logits_at)
        assert list(cache) == model.hook_names
        assert torch.equal(logits, model(tokens, logits_at=logits_at))
