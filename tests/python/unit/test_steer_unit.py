"""steer(unit="residual"): strengths that are fractions of the median residual norm of each unsteered prompt."""

import numpy as np
import pytest
import torch
from steered import FLOOR, LAYERS, by_chunks, expected_logits, greedy, padded, random_ids, random_vector
from tiny import write_tiny

import introspect

STRENGTH = 0.4
N_NEW = 6
LENGTHS = (12, 7, 12, 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")), dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts():
    rows = [random_ids(n, n) for n in LENGTHS]
    rows[2] = rows[0]  # as of two samples of one prompt
    return rows


def scaled(model, vector, ids, layers=None):
    """The vector in absolute units for one text, by its recorded residual stream."""
    _, cache = model.run_with_cache(torch.tensor([ids]))
    directions = {}
    for layer, direction in vector.directions.items():
        if layers is None or layers[0] <= layer <= layers[1]:
            norms = np.linalg.norm(cache["resid_post", layer][0].numpy(), axis=-1)
            directions[layer] = direction.double() / direction.double().norm() * (STRENGTH * float(np.median(norms)))
    return introspect.ControlVector("qwen2", directions)


def everywhere(p, ids, n):
    return True


TOLERANCE = {"rtol": 0.0, "atol": 1e-5}  # directions are float32, as every vector's


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_is_steered_by_its_own_norm(model, prompts, side):
    vector = random_vector(1)
    tokens, mask = padded(prompts, side)
    with model.steer(vector, strength=STRENGTH, unit="residual"):
        logits = model(tokens, attention_mask=mask)
    for r, ids in enumerate(prompts):
        expected = expected_logits(model, ids, len(ids), scaled(model, vector, ids), everywhere)
        torch.testing.assert_close(logits[r, mask[r]], expected, **TOLERANCE)


def test_generate_keeps_what_the_prompt_decided(model, prompts):
    vectors = [random_vector(r + 1, layers=(0, 1, 2)) for r in range(len(prompts))]
    vectors[1] = None
    with model.steer(vectors, strength=STRENGTH, unit="residual", layers=(1, 2), when="generation"):
        hooks = model._hooks_of_pass(*padded(prompts, "left"))
        new = model.native.generate(prompts, hooks=hooks, max_new_tokens=N_NEW, stop_at_eos=False)
    for vector, ids, row in zip(vectors, prompts, new, strict=True):
        by = vector and scaled(model, vector, ids, layers=(1, 2))
        assert row == greedy(model, ids, N_NEW, by, lambda p, ids, n: p >= n - 1)


def test_a_cache_remembers_its_prompts_norm(model, prompts):
    ids, vector = prompts[0] + random_ids(5, 3), random_vector(1)
    with model.steer(vector, strength=STRENGTH, unit="residual"):
        logits = by_chunks(model, torch.tensor([ids]), [len(prompts[0]), 1, 4], len(prompts[0]))
    expected = expected_logits(model, ids, len(prompts[0]), scaled(model, vector, prompts[0]), everywhere)
    torch.testing.assert_close(logits[0], expected, **TOLERANCE)
    cache = model.native.make_cache(1)
    model(torch.tensor([ids]), cache=cache)
    with (
        model.steer(vector, strength=STRENGTH, unit="residual"),
        pytest.raises(introspect.ConfigError, match="unit='residual' is decided on the prompt"),
    ):
        model(torch.tensor([[1]]), cache=cache)


def test_it_goes_with_a_condition_and_rows(model, prompts):
    vector = random_vector(1)
    direction = torch.randn(vector.d_model, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    tokens, mask = padded(prompts, "left")
    values = introspect.Condition(direction, layer=1, threshold=0.0).measure(model, tokens, mask)
    condition = introspect.Condition(direction, layer=1, threshold=float(np.median(values)))
    holds = set(condition.rows(model, tokens, mask)) & {1, 3}
    with model.steer(vector, strength=STRENGTH, unit="residual", condition=condition, rows=[1, 3]):
        logits = model(tokens, attention_mask=mask)
    for r, ids in enumerate(prompts):
        by = scaled(model, vector, ids) if r in holds else None
        expected = expected_logits(model, ids, len(ids), by, everywhere)
        torch.testing.assert_close(logits[r, mask[r]], expected, **TOLERANCE)


def test_a_vector_s_own_scale_does_not_matter(model, prompts):
    tokens = torch.tensor([prompts[0]])
    logits = []
    for scale in (1.0, 64.0):
        with model.steer(random_vector(1, scale=scale), strength=STRENGTH, unit="residual"):
            logits.append(model(tokens))
    torch.testing.assert_close(*logits, **FLOOR | {"atol": 1e-6})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"unit": "norm"}, ValueError, "'absolute' or 'residual', got 'norm'"),
        ({"unit": "residual", "op": "ablate"}, ValueError, "goes with op 'add'"),
        ({"unit": "residual", "strength": float("inf")}, ValueError, "strength"),
        ({"unit": "residual", "layers": (0, LAYERS)}, IndexError, "layer"),
    ],
)
def test_units_are_checked_before_anything_runs(model, arguments, error, words):
    with pytest.raises(error, match=words), model.steer(random_vector(1), **arguments):
        pytest.fail("nothing should have run")
    assert not model.is_hooked


def test_a_row_that_is_not_there_is_named(model, prompts):
    with (
        model.steer(random_vector(1), unit="residual", rows=[1]),
        pytest.raises(IndexError, match="the batch, which has 1, got 1"),
    ):
        model(torch.tensor([prompts[0]]))
