"""First-order estimates against what they are the limit of, on a model whose norms are float64."""

import math

import numpy as np
import positive_control
import pytest
import torch
from tiny import write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect

QUESTIONS = positive_control.NEW_QUESTIONS[:2]
LAYERS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")
    n_vocab = introspect.load_model(folder).cfg.d_vocab
    write_tiny_transformers(
        folder, "gpt_neox", vocab_size=n_vocab, max_position_embeddings=8192, num_hidden_layers=len(LAYERS)
    )
    return introspect.load_model(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def vectors(model):
    rng = torch.Generator().manual_seed(5)

    def vector():
        return introspect.ControlVector(
            "gpt_neox", {layer: torch.randn(model.cfg.d_model, generator=rng) for layer in LAYERS[1:]}
        )

    return {"cat": vector(), "bread": vector()}


@pytest.fixture(scope="module")
def protocol():
    return positive_control.protocol()


def exact_shifts(model, protocol, vectors, strength, **options):
    """{(concept, null_index, first, last, question): shift} of exact runs."""
    layers = [(1, 1), (2, 2), (1, 3), (2, 3)]
    options = {"questions": QUESTIONS, "nulls": 1, **options}
    result = introspect.run_experiment(model, protocol, vectors=vectors, strengths=[strength], layers=layers, **options)
    return {
        (row["concept"], row["null_index"], row["first_layer"], row["last_layer"], row["question"]): row["injected"][
            "log_odds"
        ]
        - row["base"]["log_odds"]
        for row in result.rows
    }


def estimated_shifts(model, protocol, vectors, strength, **options):
    options = {"questions": QUESTIONS, "nulls": 1, **options}
    table = introspect.estimate_ranges(model, protocol, vectors=vectors, strengths=[strength], **options).to_pandas()
    keys = ["concept", "null_index", "first_layer", "last_layer", "question"]
    return table.set_index(keys).estimated_shift.to_dict()


@pytest.mark.parametrize("unit", ["absolute", "residual"])
@pytest.mark.parametrize("protocol", [positive_control.protocol(), positive_control.content_protocol()])
def test_estimates_are_the_derivative_of_exact_runs(model, vectors, protocol, unit):
    # Truncation of order step^2, rounding of order 1e-14 / step, directions scaled in float32.
    step = 1e-4
    up, down = (exact_shifts(model, protocol, vectors, s, strength_unit=unit) for s in (step, -step))
    estimates = estimated_shifts(model, protocol, vectors, 1.0, strength_unit=unit)
    scale = max(map(abs, estimates.values()))
    assert len(up) == 2 * 2 * 4 * 3
    for key, shift in up.items():
        assert (shift - down[key]) / (2 * step) == pytest.approx(estimates[key], rel=1e-6, abs=1e-6 * scale)


def test_estimates_of_a_protocol_that_keeps_the_vector_on_are_its_derivative(model, vectors):
    protocol = positive_control.protocol(steer_generation=True)
    step = 1e-4
    up, down = (exact_shifts(model, protocol, vectors, s, questions=[], nulls=0) for s in (step, -step))
    estimates = estimated_shifts(model, protocol, vectors, 1.0, questions=[], nulls=0)
    off = estimated_shifts(model, positive_control.protocol(), vectors, 1.0, questions=[], nulls=0)
    for key, shift in up.items():
        derivative = (shift - down[key]) / (2 * step)
        assert derivative == pytest.approx(estimates[key], rel=1e-6, abs=1e-6)
        assert derivative != pytest.approx(off[key], rel=1e-2)


def test_the_error_falls_with_the_square_of_the_strength(model, protocol, vectors):
    strengths = (0.02, 0.01)
    errors = []
    for strength in strengths:
        exact = exact_shifts(model, protocol, vectors, strength)
        estimates = estimated_shifts(model, protocol, vectors, strength)
        errors.append(np.array([exact[key] - estimates[key] for key in exact]))
    significant = np.abs(errors[0]) > 1e-3 * np.abs(errors[0]).max()
    assert significant.sum() > len(significant) // 2
    ratios = errors[0][significant] / errors[1][significant]
    assert np.median(ratios) == pytest.approx(4, rel=0.02)  # 4 + O(strength)


def test_bases_are_those_of_exact_runs(model, protocol, vectors):
    result = introspect.run_experiment(
        model, protocol, vectors=vectors, strengths=[1.0], layers=[(1, 1)], questions=QUESTIONS
    )
    exact = {row["question"]: row["base"]["log_odds"] for row in result.rows}
    table = introspect.estimate_ranges(
        model, protocol, vectors=vectors, strengths=[1.0], questions=QUESTIONS
    ).to_pandas()
    for question, base in exact.items():
        found = table[table.question == question].log_odds_base
        np.testing.assert_allclose(found, base, rtol=0, atol=1e-9)


def test_a_grid_holds_the_sums_over_its_ranges(model, protocol, vectors):
    estimates = introspect.estimate_ranges(model, protocol, vectors=vectors, strengths=[0.5], questions=QUESTIONS)
    assert estimates.ranges == [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
    parts, grid = estimates.by_layer("cat", 0.5), estimates.grid("cat", 0.5)
    assert parts[0] == 0  # no direction there
    for first, last in estimates.ranges:
        assert grid[first, last] == pytest.approx(sum(parts[first : last + 1]), rel=1e-12)
    assert np.isnan(grid).sum() == len(LAYERS) ** 2 - len(estimates.ranges)
    table = estimates.to_pandas()
    own = table[(table.concept == "cat") & (table.kind == "introspection")].set_index(["first_layer", "last_layer"])
    controls = table[(table.concept == "cat") & (table.kind == "control")]
    control_mean = controls.groupby(["first_layer", "last_layer"]).estimated_shift.mean()
    for pair in estimates.ranges:
        assert grid[pair] == pytest.approx(own.estimated_shift[pair] - control_mean[pair], rel=1e-9)
        mean = (grid[pair] + estimates.grid("bread", 0.5)[pair]) / 2
        assert estimates.scores(0.5)[pair] == pytest.approx(mean, rel=1e-12)
    with pytest.raises(ValueError, match="no estimate for 'dog'"):
        estimates.grid("dog", 0.5)


def test_estimates_leave_no_graph_behind_and_work_without_gradients_outside(model, protocol, vectors):
    with torch.no_grad():
        estimates = introspect.estimate_ranges(model, protocol, vectors=vectors, strengths=[1.0], questions=[])
    assert all(math.isfinite(x) for part in estimates.parts for x in part.by_layer)
    assert not any(weight.requires_grad for _, weight in model.native.named_weights())
    assert not model(torch.tensor([[1, 2]])).requires_grad


def test_estimates_refuse_what_an_experiment_refuses(model, protocol, vectors):
    wide = introspect.ControlVector("gpt_neox", {1: torch.ones(8)})
    with pytest.raises(introspect.ShapeError, match="wide"):
        introspect.estimate_ranges(model, protocol, vectors={"cat": wide}, strengths=[1.0])
    with pytest.raises(ValueError, match="finite"):
        introspect.estimate_ranges(model, protocol, vectors=vectors, strengths=[math.nan])
    with pytest.raises(ValueError, match="in common"):
        apart = {
            "cat": introspect.ControlVector("gpt_neox", {1: torch.ones(model.cfg.d_model)}),
            "bread": introspect.ControlVector("gpt_neox", {2: torch.ones(model.cfg.d_model)}),
        }
        introspect.estimate_ranges(model, protocol, vectors=apart, strengths=[1.0])
    with pytest.raises(ValueError, match="at least one vector"):
        introspect.estimate_ranges(model, protocol, vectors={}, strengths=[1.0])
