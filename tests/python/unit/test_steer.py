"""Where and when a model is steered: the same positions in one pass, through the cache, in batches and in generation.

What is expected is worked out here from the token ids, position by position, and applied by an intervention that lists
these positions, to one row at a time, without a cache and without padding.
"""

import warnings

import numpy as np
import pytest
import torch
from steered import FLOOR, LAYERS, VOCAB, D, by_chunks, expected_logits, greedy, padded, random_ids, random_vector
from tiny import write_tiny
from tiny_chat import write_tiny_chat

import introspect
from introspect.steering.steer import token_sets

N_PROMPT, N_NEW = 9, 6
EXACT = {"rtol": 0, "atol": 0}
SPECIAL = set(range(0, VOCAB, 3))
LONG, SHORT = 13, 8  # prompts of unequal length

OPERATORS = {
    "add": {},
    "norm_preserving_add": {"strength": 2.0},
    "ablate": {},
    "interpolate": {"strength": 0.5},
    "replace": {},
    "project_to": {"target": 4.0},
    "clamp": {"low": 1.0, "high": 2.0},
    "rotate": {"angle": 50.0},
    "angular": {"angle": 30.0},
    "adaptive_angular": {"angle": 30.0},
}
# name: (arguments of steer, whether position p of ids with n prompt tokens is steered)
WHERE = {
    "everywhere": ({}, lambda p, ids, n: True),
    "prompt": ({"when": "prompt"}, lambda p, ids, n: p < n),
    "generation": ({"when": "generation"}, lambda p, ids, n: p >= n - 1),
    "span": ({"positions": (2, 10)}, lambda p, ids, n: 2 <= p < 10),
    "list": ({"positions": [1, 4, 8, 11]}, lambda p, ids, n: p in (1, 4, 8, 11)),
    "tokens": ({"tokens": sorted(SPECIAL)}, lambda p, ids, n: ids[p] in SPECIAL),
    "not special": ({"tokens": lambda id: id not in SPECIAL}, lambda p, ids, n: ids[p] not in SPECIAL),
    "after": ({"after": [5, 50]}, lambda p, ids, n: any(id in (5, 50) for id in ids[:p])),
    "all together": (
        {"when": "generation", "positions": (3, 12), "after": range(40), "tokens": lambda id: id % 2 == 0},
        lambda p, ids, n: n - 1 <= p and 3 <= p < 12 and any(id < 40 for id in ids[:p]) and ids[p] % 2 == 0,
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")), dtype=torch.float64)


@pytest.fixture(scope="module")
def vector():
    return random_vector(1)


@pytest.fixture(scope="module")
def ids():
    return random_ids(N_PROMPT + N_NEW, 2)


CHUNKS = {
    "prefill and steps": [N_PROMPT] + [1] * N_NEW,
    "one by one": [1] * (N_PROMPT + N_NEW),
    "prompt in chunks": [4, N_PROMPT - 4, 1, 1, N_NEW - 2],
    "across the prompt's end": [N_PROMPT - 2, 4, N_NEW - 2],
}


@pytest.mark.parametrize("where", WHERE)
def test_a_pass_and_every_way_through_the_cache_steer_the_same_positions(model, vector, ids, where):
    arguments, rule = WHERE[where]
    expected = expected_logits(model, ids, N_PROMPT, vector, rule)
    tokens = torch.tensor([ids])
    assert not torch.equal(expected, model(tokens)[0])
    with model.steer(vector, **arguments):
        torch.testing.assert_close(model(tokens, n_prompt=N_PROMPT)[0], expected, **FLOOR)
        for sizes in CHUNKS.values():
            torch.testing.assert_close(by_chunks(model, tokens, sizes, N_PROMPT)[0], expected, **FLOOR)


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("where", ["everywhere", "prompt", "generation", "tokens"])
def test_every_operator_in_cached_steps_is_the_full_forward(model, vector, ids, op, where):
    arguments, rule = WHERE[where]
    expected = expected_logits(model, ids, N_PROMPT, vector, rule, op, **OPERATORS[op])
    with model.steer(vector, op=op, **arguments, **OPERATORS[op]):
        steps = by_chunks(model, torch.tensor([ids]), CHUNKS["prefill and steps"], N_PROMPT)
    torch.testing.assert_close(steps[0], expected, **FLOOR)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("where", WHERE)
def test_rows_of_a_padded_batch_are_steered_as_they_would_be_alone(model, vector, where, side):
    arguments, rule = WHERE[where]
    rows = [random_ids(n, n) for n in (LONG, SHORT, 10)]
    tokens, mask = padded(rows, side)
    more = torch.tensor([random_ids(4, 7 + r) for r in range(3)])
    cache = model.native.make_cache(3)
    with model.steer(vector, **arguments):
        logits = model(tokens, attention_mask=mask, cache=cache, n_prompt=LONG)
        steps = []
        for step in range(4):
            seen = torch.cat([tokens, more[:, :step]], dim=1)
            steps.append(model(more[:, step : step + 1], cache=cache, n_prompt=LONG, history=seen))
    for r, row in enumerate(rows):
        expected = expected_logits(model, row + more[r].tolist(), len(row), vector, rule)
        torch.testing.assert_close(logits[r, mask[r]], expected[: len(row)], **FLOOR)
        torch.testing.assert_close(torch.cat(steps, dim=1)[r], expected[len(row) :], **FLOOR)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("where", WHERE)
def test_a_padded_generation_is_that_of_each_prompt_alone_run_again_for_every_token(model, vector, where, side):
    arguments, rule = WHERE[where]
    prompts = [random_ids(n, n) for n in (LONG, SHORT)]
    options = {"max_new_tokens": N_NEW, "padding_side": side, "stop_at_eos": False}
    with model.steer(vector, **arguments):
        together = model.native.generate(prompts, hooks=model._hooks_of_pass(*padded(prompts, "left")), **options)
    expected = [greedy(model, prompt, N_NEW, vector, rule) for prompt in prompts]
    assert together == expected
    assert expected != model.native.generate(prompts, **options)


@pytest.mark.parametrize("op", OPERATORS)
def test_one_batch_takes_a_vector_for_each_row(model, op):
    vectors = [random_vector(3), None, random_vector(4, layers=(0, 1)), random_vector(5, layers=(1,))]
    prompts = [random_ids(n, n) for n in (9, 7, LONG, SHORT)]
    options = {"max_new_tokens": N_NEW, "stop_at_eos": False}
    with model.steer(vectors, op=op, **OPERATORS[op]):
        together = model.native.generate(prompts, hooks=model._hooks_of_pass(*padded(prompts, "left")), **options)
    always = WHERE["everywhere"][1]
    for prompt, vector, new in zip(prompts, vectors, together, strict=True):
        assert new == greedy(model, prompt, N_NEW, vector, always, op, **OPERATORS[op])


def test_rows_say_which_of_a_batch_are_steered(model, vector):
    rows = [random_ids(10, seed) for seed in range(4)]
    other = random_vector(6)
    plain = model(torch.tensor(rows))
    with model.steer(vector, rows=[2]):
        one = model(torch.tensor(rows))
    with model.steer([other, vector], rows=[3, 1]):
        two = model(torch.tensor(rows))
    always = WHERE["everywhere"][1]
    for r, ids in enumerate(rows):
        steered = {2: vector}.get(r), {3: other, 1: vector}.get(r)
        for got, by in zip((one, two), steered, strict=True):
            torch.testing.assert_close(got[r], expected_logits(model, ids, 10, by, always), **FLOOR)
    assert torch.equal(one[0], plain[0])


def test_what_is_no_steering_changes_nothing_bit_for_bit(model, vector, ids):
    tokens, options = torch.tensor([ids]), {"max_new_tokens": 4, "stop_at_eos": False}
    plain, text = model(tokens), model.native.generate([ids], **options)
    for nothing in (vector * 0, vector - vector, [None]):
        for op in ("add", "norm_preserving_add", "ablate"):
            with model.steer(nothing, op=op):
                torch.testing.assert_close(model(tokens), plain, **EXACT)
                assert (
                    model.native.generate([ids], hooks=model._hooks_of_pass(*padded([ids], "left")), **options) == text
                )
    with model.steer(vector, strength=0.0), model.steer(vector, positions=(40, None)):
        torch.testing.assert_close(model(tokens), plain, **EXACT)
    torch.testing.assert_close(model(tokens), plain, **EXACT)


@pytest.mark.parametrize("op", ["add", "norm_preserving_add"])
def test_strength_twenty_of_v_is_twenty_v_bit_for_bit(model, vector, ids, op):
    tokens = torch.tensor([ids])
    with model.steer(vector, op=op, strength=20.0):
        by_strength = model(tokens)
    with model.steer(20 * vector, op=op):
        torch.testing.assert_close(model(tokens), by_strength, **EXACT)


def test_padding_that_is_steered_would_not_matter(model, vector):
    """Masked keys have weight 0: whatever stands in padding, real tokens are the same."""
    rows = [random_ids(n, n) for n in (LONG, SHORT)]
    tokens, mask = padded(rows, "left")
    everything = introspect.Intervention(vector.directions)
    hooks = model.native.make_hooks()
    hooks.add_intervention(everything)
    with_padding = model.native.forward(tokens, attention_mask=mask, hooks=hooks)
    with model.steer(vector):
        without = model(tokens, attention_mask=mask)
    torch.testing.assert_close(with_padding[mask], without[mask], **EXACT)
    assert not torch.equal(with_padding, without)


@pytest.mark.parametrize("where", WHERE)
def test_a_known_text_resolves_to_positions(model, vector, where):
    arguments, rule = WHERE[where]
    rows = [random_ids(n, n) for n in (LONG, SHORT)]
    tokens, mask = padded(rows, "left")
    sets = token_sets(model.cfg.d_vocab, arguments.get("tokens"))
    after = list(arguments["after"]) if "after" in arguments else None
    text = introspect.TextFilter(phase=arguments.get("when", "all"), after=after, skip_padding=True, **sets)
    first, last = arguments["positions"] if isinstance(arguments.get("positions"), tuple) else (0, None)
    listed = arguments["positions"] if isinstance(arguments.get("positions"), list) else None
    given = introspect.Intervention(
        {1: torch.stack([torch.ones(D), 2 * torch.ones(D)])},
        text=text, first_position=first, last_position=last, positions=listed,
    )  # fmt: skip
    chosen = torch.zeros(2, LONG)
    for one in given.resolve(tokens, mask, n_prompt=LONG - 2):
        assert one.text == introspect.TextFilter()
        for row, operand in zip(one.rows, one.values[1].expand(2, D), strict=False):
            chosen[row, one.positions] += operand[0]
    for r, row in enumerate(rows):
        pad = LONG - len(row)
        expected = [float(r + 1) if rule(p, row, len(row) - 2) else 0.0 for p in range(len(row))]
        assert chosen[r].tolist() == [0.0] * pad + expected


def test_a_graph_tells_apart_what_parameters_and_texts_make_different(model, vector, ids):
    filters = [{}, {"skip_padding": True}, {"tokens": sorted(SPECIAL)}, {"not_tokens": sorted(SPECIAL)}]
    given = [
        introspect.Intervention(
            vector.directions, op="project_to", parameters={"target": target}, text=introspect.TextFilter(**text)
        )
        for target in (4.0, 5.0)
        for text in filters
    ]
    graph = introspect.Graph()
    nodes = [graph.segment(model, ids, interventions=[one]) for one in given]
    assert len(set(nodes)) == 6  # without padding there is none to skip
    reads = [graph.read(node, positions=range(len(ids)), layers=[LAYERS - 1]) for node in nodes]
    resids = graph.run()
    name = f"blocks.{LAYERS - 1}.hook_resid_post"
    for one, read in zip(given, reads, strict=True):
        hooks, cache = model.native.make_hooks(), introspect._C.ActivationCache()
        hooks.add_intervention(one)
        hooks.record(name, cache)
        model.native.forward(torch.tensor([ids]), hooks=hooks)
        torch.testing.assert_close(resids[read].reshape(-1, D), cache[name][0], **FLOOR)
    for text in ({"phase": "prompt"}, {"after": [5]}):
        unknown = introspect.Intervention(vector.directions, text=introspect.TextFilter(**text))
        with pytest.raises(introspect.ConfigError, match="segment"):
            graph.segment(model, ids, interventions=[unknown])


# Conditions


def summary(model, ids, layer, over):
    _, cache = model.run_with_cache(torch.tensor([ids]), [f"blocks.{layer}.hook_resid_post"])
    x = cache[f"blocks.{layer}.hook_resid_post"][0].double().numpy()
    return x[-1] if over == "last" else x.mean(0)


def measured(h, c, measure):
    if measure == "projection":
        return h @ c / np.linalg.norm(c)
    other = c if measure == "cosine" else np.tanh(np.outer(c, c) @ h / (c @ c))
    return h @ other / np.linalg.norm(h) / np.linalg.norm(other)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("over", ["mean", "last"])
@pytest.mark.parametrize("measure", ["cosine", "projection", "cast"])
def test_a_condition_measures_its_direction_in_each_prompt(model, rng, measure, over, side):
    rows = [random_ids(n, n) for n in (LONG, SHORT, 10)]
    tokens, mask = padded(rows, side)
    direction = torch.randn(D, generator=rng, dtype=torch.float64)
    condition = introspect.Condition(direction, layer=1, threshold=0.0, measure=measure, over=over)
    expected = [measured(summary(model, row, 1, over), direction.numpy(), measure) for row in rows]
    torch.testing.assert_close(condition.measure(model, tokens, mask), torch.tensor(expected), **FLOOR)
    for above in (True, False):
        for threshold in (min(expected), sum(expected) / 3, max(expected)):
            one = introspect.Condition(
                direction, layer=1, threshold=threshold + 1e-7, above=above, measure=measure, over=over
            )
            holds = [r for r, value in enumerate(expected) if (value > threshold + 1e-7) == above]
            assert one.rows(model, tokens, mask) == holds


@pytest.fixture(scope="module")
def conditional(model):
    """Prompts, a condition that holds of some of them, and those of which it does."""
    prompts = [random_ids(n, n) for n in (LONG, SHORT, 10, 9)]
    direction = torch.randn(D, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    values = [measured(summary(model, ids, 1, "mean"), direction.numpy(), "cosine") for ids in prompts]
    threshold = float(np.median(values))
    condition = introspect.Condition(direction, layer=1, threshold=threshold)
    return prompts, condition, [value > threshold for value in values]


@pytest.mark.parametrize("where", ["everywhere", "prompt", "generation", "tokens"])
@pytest.mark.parametrize("several", [False, True])
def test_a_condition_is_decided_on_the_prompt_and_kept_in_every_step(model, conditional, where, several):
    prompts, condition, holds = conditional
    assert sorted(holds) == [False, False, True, True]
    arguments, rule = WHERE[where]
    vectors = [random_vector(10 + r) for r in range(4)] if several else [random_vector(10)] * 4
    by = [vector if held else None for vector, held in zip(vectors, holds, strict=True)]
    tokens, mask = padded(prompts, "left")
    more = torch.tensor([random_ids(4, 7 + r) for r in range(4)])
    cache = model.native.make_cache(4)
    with model.steer(vectors if several else vectors[0], condition=condition, **arguments):
        alone = [model(torch.tensor([ids]))[0] for ids in prompts] if not several else None
        logits = [model(tokens, attention_mask=mask, cache=cache, n_prompt=LONG)]
        for step in range(4):
            logits.append(model(more[:, step : step + 1], cache=cache, n_prompt=LONG))
        hooks = model._hooks_of_pass(tokens, mask)
        new = model.native.generate(prompts, hooks=hooks, max_new_tokens=N_NEW, stop_at_eos=False)
    for r, ids in enumerate(prompts):
        expected = expected_logits(model, ids + more[r].tolist(), len(ids), by[r], rule)
        got = torch.cat([logits[0][r, mask[r]], *(step[r] for step in logits[1:])])
        torch.testing.assert_close(got, expected, **FLOOR)
        if alone is not None:
            torch.testing.assert_close(alone[r], expected[: len(ids)], **FLOOR)
        assert new[r] == greedy(model, ids, N_NEW, by[r], rule)


def test_a_condition_is_not_decided_in_the_middle_of_a_text(model, vector, conditional, ids):
    _, condition, _ = conditional
    cache = model.native.make_cache(1)
    model(torch.tensor([ids]), cache=cache)
    with (
        model.steer(vector, condition=condition),
        pytest.raises(introspect.ConfigError, match="decided on the prompt"),
    ):
        model(torch.tensor([[1]]), cache=cache)
    assert len(cache) == len(ids)
    model(torch.tensor([[1]]), cache=cache)


# Faults


def test_a_pass_that_does_not_know_enough_of_the_text_says_so_before_it_runs(model, vector, ids):
    tokens = torch.tensor([ids])
    for arguments, missing in (({"when": "prompt"}, "n_prompt"), ({"after": [5]}, "history")):
        cache = model.native.make_cache(1)
        model(tokens[:, :4], cache=cache)
        before = cache.keys(0).clone()
        with model.steer(vector, **arguments), pytest.raises(introspect.HookError, match=missing):
            model(tokens[:, 4:], cache=cache)
        assert len(cache) == 4 and torch.equal(cache.keys(0), before)
    with model.steer(vector, tokens=[5]), pytest.raises(introspect.HookError, match="tokens"):
        resid = torch.zeros(1, 2, D).double()
        model.native.forward(resid, start_at_layer=1, hooks=model._hooks_of_pass(resid))
    with pytest.raises(introspect.ShapeError, match="history"):
        model(tokens, history=tokens)


def test_rows_that_a_batch_does_not_have_are_refused_before_it_runs(model, vector, ids):
    seen = []
    with (
        model.steer([vector, vector]),
        model.hooks([("hook_embed", lambda x, hook: seen.append(x))]),
        pytest.raises(IndexError, match="rows"),
    ):
        model(torch.tensor([ids]))
    assert not seen


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"op": "unknown"}, introspect.ConfigError),
        ({"op": "project_to"}, ValueError),
        ({"op": "rotate", "angel": 3.0}, ValueError),
        ({"target": 3.0}, ValueError),
        ({"when": "later"}, ValueError),
        ({"layers": (1, 1)}, introspect.ConfigError),
        ({"layers": (0, LAYERS)}, IndexError),
        ({"positions": (-3, None)}, IndexError),
        ({"positions": (5, 2)}, ValueError),
        ({"rows": [-1]}, IndexError),
        ({"rows": [1, 1]}, ValueError),
        ({"tokens": []}, ValueError),
        ({"tokens": lambda id: False}, ValueError),
        ({"tokens": [-1]}, ValueError),
        ({"strength": float("nan")}, ValueError),
        ({"op": "zero"}, ValueError),
        ({"second": random_vector(1, layers=(0,)), "op": "rotate", "angle": 1.0}, introspect.ConfigError),
        ({"condition": introspect.Condition(torch.ones(D), layer=LAYERS, threshold=0.0)}, IndexError),
        ({"condition": introspect.Condition(torch.ones(D + 1), layer=0, threshold=0.0)}, introspect.ShapeError),
        ({"condition": introspect.Condition(torch.zeros(D), layer=0, threshold=0.0)}, ValueError),
        ({"condition": introspect.Condition(torch.ones(D), layer=0, threshold=float("nan"))}, ValueError),
    ],
)
def test_steering_is_checked_before_anything_runs_and_leaves_nothing_behind(model, vector, ids, arguments, error):
    with pytest.raises(error), model.steer(vector, **arguments):
        pytest.fail("nothing should have run")
    assert not model.is_hooked


def test_vectors_must_fit_the_model(model, vector):
    wide = introspect.ControlVector("qwen2", {0: torch.ones(D + 1)})
    for vectors in (wide, [vector, wide], [wide, wide]):
        with pytest.raises(introspect.ShapeError), model.steer(vectors):
            pass
    with pytest.raises(ValueError, match="at least one"), model.steer([]):
        pass
    with pytest.raises(ValueError, match="one vector for"), model.steer([vector, vector], rows=[0]):
        pass


def test_a_vector_of_another_model_is_steered_with_and_warned_of(model, vector, tmp_path):
    other = introspect.load_model(write_tiny_chat(tmp_path / "another"))
    pairs = [("a cat", "the dog"), ("my cat purrs", "no")]
    theirs = introspect.ControlVector.train(other, pairs, method="mean_diff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # on its own model, and one that does not know where it comes from
        with other.steer(theirs), model.steer(vector):
            pass
    names = f"{theirs.model_name}.*{theirs.model_hash[:12]}.*{model.name}.*{model.hash[:12]}"
    for arguments in ({"vector": theirs}, {"vector": [None, theirs]}):
        with pytest.warns(UserWarning, match=names) as warned, model.steer(**arguments):
            pass
        assert warned[0].filename == __file__


def test_steering_ends_with_its_block_when_that_fails(model, vector, ids):
    plain = model(torch.tensor([ids]))
    with pytest.raises(KeyError), model.steer(vector), model.steer(vector, when="prompt"):
        raise KeyError
    torch.testing.assert_close(model(torch.tensor([ids])), plain, **EXACT)


def test_hooked_transformer_generates_under_the_same_steering(model, vector, conditional):
    prompts, condition, holds = conditional
    lens = introspect.HookedTransformer(model.native)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False, "verbose": False}
    for arguments, rule in (WHERE["generation"], WHERE["all together"]):
        with lens.steer(vector, condition=condition, **arguments):
            for ids, held in zip(prompts, holds, strict=True):
                expected = greedy(model, ids, N_NEW, vector if held else None, rule)
                for cached in (True, False):
                    for penalty in (0.0, 1e-9):  # greedy generation takes no notice of it, but of the steps
                        new = lens.generate(
                            torch.tensor([ids]), use_past_kv_cache=cached, freq_penalty=penalty, **options
                        )
                        assert new[0, len(ids) :].tolist() == expected
