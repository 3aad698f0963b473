"""Token tries: every node is run once, and sees what it would see in its own sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ARCHITECTURES, MIXTURES, write_tiny_transformers

import introspect

SEQUENCES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=9), min_size=1, max_size=12)
LAYERS = [0, 2, 1]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def engine(request, tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny"), request.param)
    return introspect.load_model(folder, dtype=torch.float64).native


def plain(engine, sequence: list[int], point: str) -> torch.Tensor:
    """Activations of one sequence by itself, [pos, layers, ...]."""
    hooks, cache = engine.make_hooks(), introspect._C.ActivationCache()
    names = [f"blocks.{layer}.{point}" for layer in LAYERS]
    for name in names:
        hooks.record(name, cache)
    engine.forward(torch.tensor([sequence]), hooks=hooks, logits_at="none")
    kept = cache.to_dict()
    return torch.stack([kept[name][0] for name in names], dim=1)


@given(SEQUENCES)
def test_a_trie_holds_each_prefix_once_and_each_sequence_on_a_path(sequences):
    trie = introspect.TokenTrie(sequences)
    prefixes = {tuple(s[: n + 1]) for s in sequences for n in range(len(s))}
    assert len(trie) == len(prefixes)
    for sequence, end in zip(sequences, trie.ends, strict=True):
        path = trie.path(end)
        assert [trie.tokens[node] for node in path] == sequence
        assert [trie.depths[node] for node in path] == list(range(len(sequence)))
    assert all(parent < node for node, parent in enumerate(trie.parents))


@pytest.mark.parametrize("point", ["hook_resid_post", "attn.hook_z"])
def test_every_node_is_that_of_the_plain_run(engine, point):
    rng = torch.Generator().manual_seed(0)
    sequences = [torch.randint(1, 4, (n,), generator=rng).tolist() for n in (1, 3, 9, 14, 14, 20, 20, 20, 5)]
    trie = introspect.TokenTrie(sequences)
    # A budget of few nodes a pass, so that paths are carried from pass to pass.
    smallest = next(b for b in range(2000, 10**7, 2000) if plans(engine, trie, b))
    for budget in (smallest, 4 * smallest, 1 << 30):
        nodes = list(range(len(trie)))
        read = introspect.run_trie(engine, trie, nodes=nodes, layers=LAYERS, point=point, memory_budget=budget)
        for sequence, end in zip(sequences, trie.ends, strict=True):
            expected = plain(engine, sequence, point)
            # float64 sums of another order
            torch.testing.assert_close(read[trie.path(end)].double(), expected.double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("after_norm", [False, True])
def test_rows_are_means_over_their_nodes(engine, after_norm):
    rng = torch.Generator().manual_seed(1)
    sequences = [torch.randint(1, 4, (n,), generator=rng).tolist() for n in (1, 3, 9, 14, 20, 5)]
    trie = introspect.TokenTrie(sequences)
    nodes, rows = [], []
    for row, end in reversed(list(enumerate(trie.ends))):
        nodes += trie.path(end)
        rows += [row] * len(trie.path(end))
    last = engine.cfg.n_layers - 1
    budget = next(b for b in range(2000, 10**7, 2000) if plans(engine, trie, b))
    read = introspect.run_trie(
        engine, trie, nodes=nodes, rows=rows, layers=[last], memory_budget=budget, last_layer_after_norm=after_norm
    )
    for row, sequence in enumerate(sequences):
        hooks, cache = engine.make_hooks(), introspect._C.ActivationCache()
        name = "unembed.hook_in" if after_norm else f"blocks.{last}.hook_resid_post"
        hooks.record(name, cache)
        engine.forward(torch.tensor([sequence]), hooks=hooks, logits_at="none")
        torch.testing.assert_close(read[row, 0], cache.to_dict()[name][0].mean(0), rtol=1e-9, atol=1e-9)


def plans(engine, trie, budget: int) -> bool:
    try:
        return introspect._C.plan_trie(engine, trie, memory_budget=budget).n_passes > 0
    except ValueError:
        return False


# Of the largest value: sums in another order; bfloat16 keeps 8 bits, and three layers round a few units.
@pytest.mark.parametrize(("dtype", "floor"), [(torch.float32, 5e-6), (torch.bfloat16, 2**-8 * 8)])
def test_the_kernel_agrees_with_the_masked_product(tmp_path, dtype, floor):
    """float32 and bfloat16 walk the tree; the plain run of each sequence is the fused product."""
    for family in ARCHITECTURES:
        if dtype == torch.bfloat16 and family in MIXTURES:
            continue  # where two experts are nearly as probable, the last digit chooses
        engine = introspect.load_model(write_tiny_transformers(tmp_path / family, family), dtype=dtype).native
        sequences = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 4, 9], [2, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9, 4, 4, 4]]
        trie = introspect.TokenTrie(sequences)
        read = introspect.run_trie(engine, trie, nodes=trie.ends, layers=LAYERS)
        for row, sequence in enumerate(sequences):
            expected = plain(engine, sequence, "hook_resid_post")[-1].float()
            torch.testing.assert_close(read[row], expected, rtol=0, atol=floor * expected.abs().max().item())


@settings(max_examples=30, deadline=None)
@given(SEQUENCES, st.integers(1, 6))
def test_any_set_of_sequences_under_any_budget(tmp_path_factory, sequences, nodes_per_pass):
    engine = small_engine(tmp_path_factory)
    trie = introspect.TokenTrie(sequences)
    budget = smallest_budget(engine, trie, nodes_per_pass)
    read = introspect.run_trie(engine, trie, nodes=trie.ends, layers=LAYERS, memory_budget=budget)
    for row, sequence in enumerate(sequences):
        expected = plain(engine, sequence, "hook_resid_post")[-1]
        torch.testing.assert_close(read[row].double(), expected.double(), rtol=1e-9, atol=1e-9)


_small: list = []


def small_engine(tmp_path_factory):
    if not _small:
        folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny"), next(iter(ARCHITECTURES)))
        _small.append(introspect.load_model(folder, dtype=torch.float64).native)
    return _small[0]


def smallest_budget(engine, trie, nodes: int) -> int:
    """The fewest bytes with which passes take `nodes` nodes, or as many as there are."""

    def nodes_with(budget: int) -> int:
        try:
            return introspect._C.plan_trie(engine, trie, memory_budget=budget).nodes_per_pass
        except ValueError:
            return 0

    low, high = 0, 1 << 26
    wanted = min(nodes, nodes_with(high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if nodes_with(middle) >= wanted else (middle, high)
    return high


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"nodes": [99]}, IndexError),
        ({"nodes": []}, ValueError),
        ({"layers": [7]}, IndexError),
        ({"point": "hook_embed"}, introspect.HookError),
        ({"point": "hook_resid_pots"}, introspect.HookError),
        ({"point": "attn.hook_pattern"}, ValueError),
        ({"memory_budget": 10}, ValueError),
        ({"rows": [0, 1]}, ValueError),
        ({"rows": [1]}, ValueError),
        ({"rows": [-1]}, ValueError),
        ({"point": "attn.hook_z", "last_layer_after_norm": True}, ValueError),
    ],
)
def test_bad_reads_are_refused_before_the_first_pass(tmp_path_factory, change, error):
    engine = small_engine(tmp_path_factory)
    trie = introspect.TokenTrie([[1, 2], [1, 3]])
    steps: list = []
    with pytest.raises(error):
        options = {"nodes": [0], "layers": [0], "progress": lambda *step: steps.append(step)} | change
        introspect.run_trie(engine, trie, **options)
    assert not steps


def test_empty_tries_and_sequences_longer_than_the_context_are_refused(tmp_path_factory):
    engine = small_engine(tmp_path_factory)
    for sequences in ([], [[1], []]):
        with pytest.raises(ValueError, match="TokenTrie"):
            introspect.TokenTrie(sequences)
    long = introspect.TokenTrie([[1] * (engine.cfg.n_ctx + 1)])
    with pytest.raises(introspect.ShapeError, match="positions"):
        introspect.run_trie(engine, long, nodes=[0], layers=[0])
