"""The two oracles of experiment graphs agree, in every architecture: what the planner's tests compare with is right."""

import pytest
import torch
from graphs import Change, Graph, Segment, Sizes, Splice, graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_experiments import OurReference, TheirReference
from tiny import ARCHITECTURES, tiny_transformers

import introspect

FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: sums in another order


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pairs(request, tmp_path_factory):
    """Two models of equal shape, each as ours and as transformers'."""
    theirs = [tiny_transformers(request.param, seed) for seed in (0, 1)]
    ours = []
    for model in theirs:
        folder = tmp_path_factory.mktemp("tiny")
        model.save_pretrained(folder)
        ours.append(introspect.load_model(folder, dtype=torch.float64))
    return ours, theirs


def assert_equal(mine, other):
    assert mine.tokens == other.tokens
    for name in ("keys", "values", "residuals", "logits"):
        a, b = getattr(mine, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, **FLOOR, msg=lambda text, name=name: f"{name}: {text}")


@settings(max_examples=3, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_our_hooks_and_transformers_modules_give_the_same_states(pairs, data):
    ours, theirs = pairs
    sizes = Sizes.of(ours[0])
    graph = data.draw(graphs(sizes))
    mine, other = OurReference(graph, ours, sizes), TheirReference(graph, theirs, sizes)
    for node in range(len(graph.nodes)):
        assert_equal(mine.state(node), other.state(node))


def test_the_oracle_is_the_plain_model_where_nothing_is_changed(pairs):
    """Three segments of one model are one text, and a splice from oneself changes nothing."""
    (model, _), _ = pairs
    sizes = Sizes.of(model)
    nodes = (Segment((5, 9, 3)), Segment((7, 7), 0), Splice(1, 1, 4, 1), Segment((11, 4, 6), 2))
    state = OurReference(Graph(nodes), [model], sizes).state(3)
    tokens = torch.tensor([[5, 9, 3, 7, 7, 11, 4, 6]])
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(state.logits, logits[0, 5:], **FLOOR)
    torch.testing.assert_close(state.residuals[-1], cache["resid_post", sizes.n_layers - 1][0, 5:], **FLOOR)


def test_a_change_is_felt_by_what_comes_after_it_only(pairs):
    (model, _), _ = pairs
    sizes = Sizes.of(model)
    change = Change("add", "hook_resid_post", (1,), 3.0, seed=0, positions=(1,))
    nodes = (Segment((5, 9, 3)), Segment((5, 9, 3), changes=(change,)), Segment((7,), 0), Segment((7,), 1))
    reference = OurReference(Graph(nodes), [model], sizes)
    plain, steered = reference.state(0), reference.state(1)
    assert torch.equal(plain.keys[:2], steered.keys[:2])  # the output of block 1 is the first thing that differs
    assert torch.equal(plain.keys[2, :, :1], steered.keys[2, :, :1])
    assert not torch.allclose(plain.keys[2, :, 1:], steered.keys[2, :, 1:])
    assert not torch.allclose(reference.state(2).logits, reference.state(3).logits)
