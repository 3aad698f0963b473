"""A planned graph gives what every node run by itself over its whole sequence gives: DESIGN 5, through the graph.

float64 tiny models of every architecture; 1e-9 where sums run in another order, bit equality where memory is shared or
what is computed is the same.
"""

from dataclasses import replace

import pytest
import torch
from graphs import (
    MORE_POINTS,
    PATTERN_POINTS,
    POINTS,
    Change,
    Graph,
    Read,
    Segment,
    Sizes,
    Splice,
    build,
    changes,
    graphs,
    interventions,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference_experiments import OurReference
from tiny import ARCHITECTURES, write_tiny_transformers

import introspect

FLOOR = {"rtol": 0, "atol": 1e-9}
PROPERTY = {"deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck)}


def sizes_of(models):
    return Sizes.of(models[0], POINTS + MORE_POINTS + PATTERN_POINTS)


def load_pair(tmp_path_factory, architecture):
    """Two models of equal shape and other weights."""
    folders = [write_tiny_transformers(tmp_path_factory.mktemp("tiny"), architecture, seed) for seed in (0, 1)]
    return [introspect.load_model(folder, dtype=torch.float64) for folder in folders]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def models(request, tmp_path_factory):
    return load_pair(tmp_path_factory, request.param)


@pytest.fixture(scope="module", params=["qwen2", "gemma3 layer types"])
def few(request, tmp_path_factory):
    """For properties of the planner, which an architecture has no part in beyond windows and caps."""
    return load_pair(tmp_path_factory, request.param)


def expected(graph, models):
    """Every reading of a drawn graph, run without a plan; for a cache, (keys, values)."""
    reference = OurReference(graph, models, sizes_of(models))
    for read in graph.reads:
        state = reference.state(read.node)
        if read.what == "cache":
            yield state.keys, state.values
            continue
        layers = list(read.layers) or slice(None)
        if read.what == "attention":
            heads = list(read.heads) or slice(None)
            patterns = state.patterns[layers][:, heads][:, :, list(read.positions)]  # [layer, head, position, key]
            yield patterns.permute(2, 0, 1, 3)[..., slice(*read.keys) if read.keys else slice(None)]
        else:
            yield state.activations[read.point][layers][:, list(read.positions)].transpose(0, 1)


def keys_and_values(cache):
    layers = range(cache.n_layers)
    return torch.cat([cache.keys(i) for i in layers]), torch.cat([cache.values(i) for i in layers])


def assert_reads(graph, readings, reads, models):
    for read, number, other in zip(graph.reads, reads, expected(graph, models), strict=True):
        mine = readings[number]
        pairs = zip(keys_and_values(mine), other, strict=True) if read.what == "cache" else [(mine, other)]
        for a, b in pairs:
            torch.testing.assert_close(a, b, **FLOOR, msg=lambda text, read=read: f"{read}: {text}")


def smallest_budget(ours):
    """Bytes, within 5%, of the least budget that the graph can be run in."""
    high = 1
    while not fits(ours, high):
        high *= 2
    low = high // 2
    while high - low > 0.05 * high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(ours, middle) else (middle, high)
    return high


def fits(ours, budget):
    try:
        ours.plan(memory_budget=budget)
    except ValueError:
        return False
    return True


# Planned = naive


@pytest.mark.parametrize("point", PATTERN_POINTS)
def test_attention_is_read_as_it_was_changed(models, point):
    """Zero one head's pattern, or make its scores flat: a reading of attention has it, as run_with_cache does."""
    op, strength = ("zero", 1.0) if point == "attn.hook_pattern" else ("scale", 0.25)
    change = Change(op, point, (1,), strength, seed=0, heads=(1,))
    nodes = (Segment((5, 9, 3)), Segment((7, 8, 4, 6), 0, changes=(change,)), Segment((5, 3), 1))
    asked = [Read(node, "attention", positions=(0, -1), layers=(0, 1, 2)) for node in range(3)]
    ours, _, reads = build(Graph(nodes, tuple(asked)), models)
    readings = ours.run()
    assert_reads(Graph(nodes, tuple(asked)), readings, reads, models)
    if op == "zero":
        assert not readings[reads[1]][:, 1, 1].any()
        sums = readings[reads[1]][:, 1, 0].sum(-1)  # of a head that was left alone; sinks take some of it
        assert sums.allclose(torch.ones_like(sums)) != models[0].cfg.attn_sinks


@pytest.mark.parametrize("order", [("gpt2", "qwen2"), ("qwen2", "gpt2"), ("qwen2", "wide qwen2")])
def test_models_of_a_graph_may_differ_in_what_their_caches_do_not_hold(tmp_path_factory, order):
    """Where queries are read, how wide the MLP is and how much memory it takes are each model's own."""
    alike = {
        "gpt2": ("gpt2", {}),
        "qwen2": ("qwen2", {"num_key_value_heads": 6}),
        "wide qwen2": ("qwen2", {"num_key_value_heads": 6, "intermediate_size": 300}),
    }
    models = []
    for name in order:
        architecture, overrides = alike[name]
        folder = write_tiny_transformers(tmp_path_factory.mktemp("alike"), architecture, **overrides)
        models.append(introspect.load_model(folder, dtype=torch.float64))
    nodes = (Segment((5, 9, 3)), Segment((7, 8, 4, 6), 0, model=1), Segment((5, 3), 1))
    read = tuple(Read(node, what, positions=(0, -1)) for node in (1, 2) for what in ("attention", "activation"))
    ours, _, reads = build(Graph(nodes, read), models)
    assert_reads(Graph(nodes, read), ours.run(), reads, models)
    backwards, _, _ = build(Graph(nodes, read), models[::-1])
    assert ours.plan().peak_bytes == backwards.plan().peak_bytes


@pytest.mark.parametrize("at", [(0, 1), (1, 2), (1, 3), (2, 4)])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_splice_cuts_no_tokens_that_are_changed_together(few, at, side):
    """The mean over a segment's tokens takes all of them, also where some are spliced elsewhere."""
    mean = Change("mean of x", "hook_resid_pre", (0,), 1.0, seed=0)
    plain, mixed = Segment((3, 4, 5, 6)), Segment((3, 4, 5, 6), None, 0, (mean,))
    nodes = (mixed, plain) if side == "source" else (plain, mixed)
    nodes += (Splice(target=1, first=at[0], last=at[1], source=0), Segment((3,), 2))
    graph = Graph(nodes, (Read(2, "cache"), Read(3, "activation"), Read(0, "cache")))
    ours, _, reads = build(graph, few)
    assert_reads(graph, ours.run(), reads, few)


@settings(max_examples=3, **PROPERTY)
@given(data=st.data())
def test_a_planned_graph_equals_every_node_run_by_itself(models, data):
    graph = data.draw(graphs(sizes_of(models)))
    ours, _, reads = build(graph, models)
    assert_reads(graph, ours.run(), reads, models)


@settings(max_examples=25, **PROPERTY)
@given(data=st.data())
def test_a_planned_graph_equals_the_naive_run_under_any_budget(few, data):
    graph = data.draw(graphs(sizes_of(few), max_nodes=10))
    ours, _, reads = build(graph, few)
    least = smallest_budget(ours)
    budget = data.draw(st.sampled_from([least, 2 * least, 1 << 30]))
    assert_reads(graph, ours.run(memory_budget=budget), reads, few)


@settings(max_examples=10, **PROPERTY)
@given(data=st.data())
def test_readings_come_once_each_as_their_passes_end(few, data):
    graph = data.draw(graphs(sizes_of(few)))
    ours, _, reads = build(graph, few)
    budget, got = smallest_budget(ours), {}

    def on_read(number, reading):
        assert number not in got
        got[number] = reading

    assert ours.run(memory_budget=budget, on_read=on_read) == []
    assert_reads(graph, got, reads, few)
    assert sorted(got) == list(range(len(set(reads))))


@settings(max_examples=10, **PROPERTY)
@given(data=st.data())
def test_what_is_asked_for_beside_a_reading_does_not_change_it(few, data):
    """Any subset of the readings, in a graph that holds nothing else, gives the same numbers."""
    graph = data.draw(graphs(sizes_of(few)))
    chosen = data.draw(st.sampled_from(graph.reads))
    ours, _, reads = build(Graph(graph.nodes, (chosen,)), few)
    assert_reads(Graph(graph.nodes, (chosen,)), ours.run(), reads, few)


def ranges_of(sizes, n_blocks=3, n_tokens=4):
    """Every range of the first blocks in one turn, with a question after each: the sweep, of which most is shared."""
    turn, question = tuple(range(5, 5 + n_tokens)), (20, 21)
    nodes = [Segment((3, 4))]
    for first in range(n_blocks):
        for last in range(first, n_blocks):
            change = Change("add", "hook_resid_post", tuple(range(first, last + 1)), 2.0, seed=1)
            nodes.append(Segment(turn, 0, changes=(change,)))
            nodes.append(Segment(question, len(nodes) - 1))
    asked = [i for i in range(1, len(nodes)) if nodes[i].tokens == question]
    return Graph(tuple(nodes), tuple(Read(i, "activation", layers=(sizes.n_layers - 1,)) for i in asked))


def test_a_range_sweep_equals_the_naive_run_and_shares_what_is_equal(models):
    graph = ranges_of(sizes_of(models))
    ours, _, reads = build(graph, models)
    plan = ours.plan()
    n_layers, n_ranges = models[0].cfg.n_layers, len(graph.reads)
    assert plan.token_layers_asked == n_ranges * 8 * n_layers
    # Before block m a turn knows of its range what lies below m: one of the m (m + 1) / 2 ranges in there, or nothing.
    states = [min(1 + m * (m + 1) // 2, n_ranges) for m in range(n_layers)]
    assert plan.token_layers_to_run <= 2 * n_layers + (4 + 2) * sum(states)
    assert_reads(graph, ours.run(), reads, models)


# Identity


@settings(max_examples=25, **PROPERTY)
@given(data=st.data())
def test_equal_segments_are_one_node(few, data):
    """Whatever tensors hold the operands: content is what counts."""
    sizes = sizes_of(few)
    n = data.draw(st.integers(1, 6))
    tokens = tuple(data.draw(st.lists(st.integers(3, 9), min_size=n, max_size=n)))
    made = tuple(data.draw(st.lists(changes(sizes, n), max_size=2)))
    other = tuple(data.draw(st.lists(changes(sizes, n), max_size=2)))
    graph = introspect.Graph()

    def node(which):
        return graph.segment(few[0], tokens, None, interventions(Segment(tokens, changes=which), sizes))

    assert node(made) == node(made)
    assert graph.hash(node(made)) == graph.hash(node(made))

    def acting(which):  # what has no operand has nothing of its seed
        alike = [replace(c, seed=0, shape=()) if c.op in ("scale", "zero", "mean of x") else c for c in which]
        return [c for c in alike if c.strength != (1.0 if c.op == "scale" else 0.0)]

    assume(acting(made) != acting(other))
    assert node(made) != node(other)


# DESIGN 5, in every architecture


T = 12  # tokens: more than a window


@pytest.fixture
def tokens(models, rng):
    return torch.randint(3, models[0].cfg.d_vocab, (T,), generator=rng).tolist()


def added(model, seed=0, layers=(1,), strength=3.0, **options):
    rng = torch.Generator().manual_seed(seed)
    directions = {layer: torch.randn(model.cfg.d_model, generator=rng, dtype=torch.float64) for layer in layers}
    return introspect.Intervention(directions, strength=strength, **options)


def residuals(model, *paths, graph=None):
    """Residuals after every block at all tokens of the last segment of each path [(tokens, interventions), ...]."""
    graph = graph or introspect.Graph()
    reads = []
    for path in paths:
        node = None
        for tokens, made in path:
            node = graph.segment(model, tokens, node, made)
        reads.append(graph.read(node, positions=range(len(path[-1][0]))))
    readings = graph.run()
    return [readings[read] for read in reads]


def test_strength_zero_is_the_unsteered_run_bit_for_bit(models, tokens):
    model = models[0]
    (plain,) = residuals(model, [(tokens, [])])
    (zero,) = residuals(model, [(tokens, [added(model, strength=0.0)])])
    assert torch.equal(zero, plain)
    graph = introspect.Graph()
    assert graph.segment(model, tokens, None, [added(model, strength=0.0)]) == graph.segment(model, tokens)


def test_kv_before_the_first_change_equals_the_baseline_bit_for_bit(models, tokens):
    model, graph = models[0], introspect.Graph()
    steered = added(model, first_position=4, last_position=8)
    reads = [graph.read_cache(graph.segment(model, tokens, None, made)) for made in ([], [steered])]
    base, changed = (graph.run()[read] for read in reads)
    # The output of block 1 is what changes: keys of block 2 are the first to differ.
    for layer in (0, 1):
        assert torch.equal(base.keys(layer), changed.keys(layer))
        assert torch.equal(base.values(layer), changed.values(layer))
    assert torch.equal(base.keys(2)[:, :, :4], changed.keys(2)[:, :, :4])
    assert torch.equal(base.values(2)[:, :, :4], changed.values(2)[:, :, :4])
    assert not torch.equal(base.keys(2)[:, :, 4:8], changed.keys(2)[:, :, 4:8])


@pytest.mark.parametrize("cuts", [[T], [5, 7], [1] * T, [T - 1, 1]], ids=["whole", "chunks", "one by one", "prefix"])
def test_segments_of_any_length_equal_the_whole(models, tokens, cuts):
    model = models[0]
    _, cache = model.run_with_cache(torch.tensor([tokens]))
    whole = torch.stack([cache["resid_post", layer][0] for layer in range(model.cfg.n_layers)], dim=1)
    graph, node, reads = introspect.Graph(), None, []
    for part in torch.tensor(tokens).split(cuts):
        node = graph.segment(model, part, node)
        reads.append(graph.read(node, positions=range(len(part))))
    readings = graph.run()
    torch.testing.assert_close(torch.cat([readings[read] for read in reads]), whole, **FLOOR)


def test_splicing_a_models_own_kv_into_itself_changes_nothing_bit_for_bit(models, tokens):
    model, steered = models[0], added(models[0])
    results = []
    for spliced in (False, True):
        graph = introspect.Graph()
        node = graph.segment(model, tokens, None, [steered])
        node = graph.splice(node, 2, 9, node) if spliced else node
        reads = graph.read_cache(node), graph.read(graph.segment(model, tokens[:3], node), positions=range(3))
        readings = graph.run()
        results.append([*keys_and_values(readings[reads[0]]), readings[reads[1]]])
    for plain, spliced in zip(*results, strict=True):
        assert torch.equal(plain, spliced)


def test_a_batch_of_different_interventions_equals_single_runs(models, tokens):
    model = models[0]
    made = [[added(model, seed, layers=(seed % 3,), strength=seed + 1.0)] for seed in range(6)]
    together = residuals(model, *([(tokens, [one]), (tokens[:4], [])] for (one,) in made))
    for (one,), mine in zip(made, together, strict=True):
        (alone,) = residuals(model, [(tokens, [one]), (tokens[:4], [])])
        torch.testing.assert_close(mine, alone, **FLOOR)


def test_a_fork_leaves_its_parent_unchanged(models, tokens):
    """In the graph, and in the caches that it hands out."""
    model, graph = models[0], introspect.Graph()
    parent = graph.segment(model, tokens)
    child = graph.segment(model, tokens[:4], parent, [added(model)])
    reads = graph.read_cache(parent), graph.read_cache(child)
    cache, longer = (graph.run()[read] for read in reads)
    alone = introspect.Graph()
    alone.read_cache(alone.segment(model, tokens))
    before = [x.clone() for x in keys_and_values(cache)]
    for mine, other in zip(before, keys_and_values(alone.run()[0]), strict=True):
        torch.testing.assert_close(mine, other, **FLOOR)
    longer.truncate(2)
    model(torch.tensor([tokens[:3]]), cache=longer)
    model(torch.tensor([tokens[:3]]), cache=cache.fork())
    assert all(torch.equal(a, b) for a, b in zip(keys_and_values(cache), before, strict=True))


def test_segments_of_other_lengths_beside_a_segment_change_nothing(models, tokens):
    """What padding is elsewhere: a graph has none."""
    model = models[0]
    paths = [[(tokens[:n], []), (tokens[-m:], [])] for n, m in ((1, 5), (12, 1), (4, 4))]
    together = residuals(model, *paths)
    for path, mine in zip(paths, together, strict=True):
        (alone,) = residuals(model, path)
        torch.testing.assert_close(mine, alone, **FLOOR)


def test_readouts_of_residuals_are_the_models_logits(models, tokens):
    model, graph = models[0], introspect.Graph()
    read = graph.read(
        graph.segment(model, tokens[7:], graph.segment(model, tokens[:7])), layers=[model.cfg.n_layers - 1]
    )
    logits = model.native.readout(graph.run()[read][0, 0])
    torch.testing.assert_close(logits.double(), model(torch.tensor([tokens]))[0, -1], **FLOOR)


# Mistakes, before anything runs


def test_a_mistake_names_its_place(models, tokens, tmp_path_factory):
    model, graph = models[0], introspect.Graph()
    node = graph.segment(model, tokens)
    with pytest.raises(ValueError, match="read"):
        graph.run()
    with pytest.raises(ValueError, match="token"):
        graph.segment(model, [])
    with pytest.raises(IndexError, match=str(model.cfg.d_vocab)):
        graph.segment(model, [model.cfg.d_vocab])
    with pytest.raises(IndexError, match="77"):
        graph.segment(model, tokens, 77)
    with pytest.raises(IndexError, match="12"):
        graph.read(node, positions=[T])
    with pytest.raises(IndexError, match="9"):
        graph.read(node, layers=[9])
    with pytest.raises(introspect.HookError):
        graph.read(node, point="hook_resid_past")
    with pytest.raises(IndexError, match="13"):
        graph.splice(node, 0, T + 1, node)
    other = graph.segment(model, [tokens[0], *(3 + t % 90 for t in tokens[1:])])
    with pytest.raises(ValueError, match="token"):
        graph.splice(node, 0, 5, other)
    with pytest.raises(introspect.ShapeError, match=str(model.cfg.n_ctx)):
        graph.segment(model, [5] * (model.cfg.n_ctx + 1 - T), node)
    narrow = write_tiny_transformers(tmp_path_factory.mktemp("narrow"), "qwen2", num_hidden_layers=2)
    with pytest.raises(introspect.ShapeError):
        graph.segment(introspect.load_model(narrow, dtype=torch.float64), tokens, node)
    graph.read(node)
    with pytest.raises(ValueError, match="budget"):
        graph.plan(memory_budget=100)
    with pytest.raises(ValueError, match="budget"):
        graph.run(memory_budget=100)


def test_an_exception_from_a_callback_ends_the_run_and_the_graph_runs_again(few):
    graph = introspect.Graph()
    graph.read(graph.segment(few[0], [5, 6, 7]))

    def stop(*_):
        raise KeyboardInterrupt

    for option in ("on_read", "progress"):
        with pytest.raises(KeyboardInterrupt):
            graph.run(**{option: stop})
    assert len(graph.run()) == 1


def test_an_operand_that_was_written_into_is_another(tmp_path_factory):
    """Graphs hash memory once and compare it afterwards, so that no way to write into it goes unseen."""
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny"), "llama")
    model = introspect.load_model(folder)
    vector = torch.ones(model.cfg.d_model)
    graph = introspect.Graph()

    def segment():
        return graph.segment(model, [3, 4, 5], interventions=[introspect.Intervention({1: vector})])

    first = segment()
    assert segment() == first
    vector.data.mul_(2)  # no version counts it
    second = segment()
    vector.numpy()[0] = -0.0
    third = segment()
    vector.numpy()[0] = 0.0
    fourth = segment()
    assert len({first, second, third, fourth}) == 4
    vector.fill_(1)
    assert segment() == first
