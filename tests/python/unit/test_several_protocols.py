"""run_experiments: what each protocol gives by itself, from common graphs."""

from functools import partial

import pytest
import torch
from looped import CONTROLS, TURNS
from looped import protocol as any_protocol

import introspect

SMALL = 500_000  # bytes: holds one conversation, and not many
WITH_WORD = [{**turn, "content": turn["content"] + " $CONCEPT"} if i == 1 else turn for i, turn in enumerate(TURNS)]


protocol = partial(any_protocol, controls=CONTROLS)


def numbers(result):
    return [(row["base"], row["injected"]) for row in result.rows]


def protocols():
    """The same words read in several ways, and other words: with and without anything to measure first."""
    other = [*TURNS[:3], {"role": "user", "content": "Well, well?"}, TURNS[4]]
    return [
        protocol(),
        protocol(name="with lens", readouts={"lens": True, "attention": True}),
        protocol(name="changes", read="content", readouts={"divergence": True, "top_k": 3}),
        protocol(name="other words", turns=other),
        protocol(name="told", read="sample", steer_generation=True, sampling={"max_new_tokens": 5}),
    ]


def close(a, b):
    """Readings agree: sums may run in another order."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            close(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            close(left, right)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-7, abs=1e-9)
    else:
        assert a == b


OPTIONS = [
    {"strengths": [2.0], "layers": [(1, 2)], "nulls": 1},
    {"strengths": [0.3], "layers": [(1, 2), (2, 2)], "strength_unit": "residual", "nulls": 0},
    {"strengths": [2.0], "layers": [(1, 1)], "control_filter": 0.0, "nulls": 0},
    {"strengths": [2.0, -1.0], "layers": [(1, 2)], "nulls": 2, "memory_budget": SMALL},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_each_result_is_that_of_a_run_by_itself(model, vectors, options):
    together = introspect.run_experiments(model, protocols(), vectors=vectors, **options)
    assert [result.protocol["name"] for result in together] == [given.name for given in protocols()]
    for given, result in zip(protocols(), together, strict=True):
        alone = introspect.run_experiment(model, given, vectors=vectors, **options)
        close(numbers(result), numbers(alone))
        assert result.settings == alone.settings


def test_protocols_that_inject_in_different_ways_go_together(model, vectors):
    told = protocol(name="primed", inject={"by": "tokens", "turns": WITH_WORD})
    rotated = protocol(name="random", inject={"by": "random"})
    options = {"vectors": vectors, "strengths": [2.0], "layers": [(1, 2)], "questions": [], "nulls": 1}
    together = introspect.run_experiments(model, [told, rotated, protocol()], **options)
    for given, result in zip([told, rotated, protocol()], together, strict=True):
        close(numbers(result), numbers(introspect.run_experiment(model, given, **options)))


def test_readings_of_the_same_kind_are_one_cell(model, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    options = {"vectors": vectors, "strengths": [2.0], "layers": [(1, 2)], "nulls": 0, "store": store}
    introspect.run_experiments(model, [protocol(), protocol(name="again")], **options)
    n_cells = len(introspect.Store(store))
    introspect.run_experiment(model, protocol(), **options)
    assert len(introspect.Store(store)) == n_cells == 4 + 2 * 4  # unsteered, and two concepts: four questions each


def test_progress_counts_all_readings(model, vectors):
    steps = []
    given = [protocol(), protocol(name="again"), protocol(name="once more")]
    options = {"vectors": vectors, "strengths": [2.0], "layers": [(1, 2)], "nulls": 0}
    introspect.run_experiments(model, given, **options, progress=lambda *step: steps.append(step))
    assert steps[-1] == ("mine and 2 more", 36, 36)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_a_mistake_in_one_of_them_is_an_error_before_any_has_run(model, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    bad = protocol(yes_token=" absolutely")
    with pytest.raises(introspect.ConfigError, match="absolutely"):
        introspect.run_experiments(model, [protocol(), bad], vectors=vectors, layers=[(1, 2)], store=store)
    assert len(introspect.Store(store)) == 0


def test_what_can_be_asked_is_what_run_experiment_takes(model, vectors):
    with pytest.raises(TypeError, match="strenghts"):
        introspect.run_experiments(model, [protocol()], vectors=vectors, strenghts=[1.0])
    with pytest.raises(TypeError, match="vectors"):
        introspect.run_experiments(model, [protocol()])
    with pytest.raises(ValueError, match="at least one protocol"):
        introspect.run_experiments(model, [], vectors=vectors)


# Nulls from shuffled pairs


def test_shuffled_pairs_are_the_same_texts_in_other_pairs(model):
    pairs = introspect.concept_pairs(model, "cat", [f"{n}" for n in range(8)])
    seen = []

    def hiddens(train_strs, hidden_layers, **_):
        seen.append(train_strs)
        return {layer: torch.randn(len(train_strs), 32).numpy() for layer in hidden_layers}

    introspect.shuffled_vectors(model, pairs, 3, compute_hiddens=hiddens)
    true, *shuffled = seen
    assert true == [text for pair in pairs for text in pair]
    assert len(shuffled) == 3
    assert all(sorted(texts) == sorted(true) and texts != true for texts in shuffled)
    assert len({tuple(texts) for texts in shuffled}) == 3


def test_shuffled_vectors_are_as_long_as_the_true_one_and_repeat(model):
    pairs = introspect.concept_pairs(model, "cat", [f"{n} is" for n in range(8)])
    options = {"method": "mean_diff", "layers": [1, 2]}
    nulls = introspect.shuffled_vectors(model, pairs, 4, seed=3, **options)
    true = introspect.ControlVector.train(model, pairs, **options)
    for null in nulls:
        assert null.norms == pytest.approx(true.norms, rel=1e-6)  # float32 directions
    again = introspect.shuffled_vectors(model, pairs, 4, seed=3, **options)
    assert all(a == b for a, b in zip(nulls, again, strict=True))
    other = introspect.shuffled_vectors(model, pairs, 4, seed=4, **options)
    assert not any(a == b for a, b in zip(nulls, other, strict=True))
    with pytest.raises(ValueError, match="1 or more"):
        introspect.shuffled_vectors(model, pairs, 0)
