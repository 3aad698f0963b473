"""Strengths that give a dose, and nulls of equal dose, against passes over whole texts with plain hooks."""

import pytest
import torch
from looped import TURNS, chat_ids, message_positions, protocol
from plain_doses import EXACT, LAYERS, QUIET, added_of, kl, run

import introspect


@pytest.mark.parametrize("what", ["kl", "kl_later", "kl_read"])
@pytest.mark.parametrize("unit", ["absolute", "residual"])
def test_a_target_is_reached(model, vectors, what, unit):
    target = f"{what}=0.05"
    found = introspect.dose(model, vectors, protocol(), targets=target, strength_unit=unit, coherence=False, **QUIET)
    for row in found:
        assert row.target == target
        assert getattr(row, what) == pytest.approx(0.05, rel=1e-3)
        (again,) = introspect.dose(
            model, {row.concept: vectors[row.concept]}, protocol(), strengths=row.strength, strength_unit=unit,
            coherence=False, **QUIET,
        )  # fmt: skip
        assert getattr(again, what) == pytest.approx(getattr(row, what), **EXACT)


def test_a_solved_strength_is_the_root_of_plain_passes(model, vectors):
    """Bisection over whole passes with hooks, to the tolerance that is asked for."""
    vector, target = vectors["bread"], 0.3
    ids, index = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    base, _ = run(model, ids)

    def dose(strength):
        steered, _ = run(model, ids, index, added_of(model, vector, strength))
        return kl(steered, base)[index].mean().item()

    low, high = 0.0, 1.0
    assert dose(high) > target
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if dose(middle) < target else (low, middle)
    solved = introspect.solve_strength(
        model, vector, protocol(), kl=target, strength_unit="absolute", tolerance=1e-8, **QUIET
    )
    assert solved == pytest.approx(high, rel=1e-7)


@pytest.mark.parametrize("what", ["sd", "sd_overall"])
def test_a_length_is_reached_without_a_search(model, vectors, what):
    found = introspect.dose(model, vectors, protocol(), targets=f"{what}=2", coherence=False, **QUIET)
    assert [getattr(row, what) for row in found] == pytest.approx([2.0, 2.0], rel=1e-6)


def test_a_dose_that_is_not_monotone_is_said_and_solved_for_its_smallest_strength(model):
    """A direction along which the tiny model's KL rises, falls and rises again is looked for among random ones."""
    strengths = [2.0**k for k in range(-6, 5)]
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        vector = introspect.ControlVector("qwen2", {1: torch.randn(32, generator=rng)})
        rows = introspect.dose(
            model, vector, protocol(), strengths=strengths, layers=1, coherence=False, progress=False
        ).rows
        values = [row.kl_read for row in rows]
        peak = next((i for i in range(1, len(values) - 1) if values[i] > 1.2 * values[i + 1]), None)
        if peak is not None and values[peak] > 1.2 * values[peak - 1]:
            break
    else:
        pytest.fail("no such direction")
    target = 0.97 * values[peak]
    assert max(values[:peak]) < target
    with pytest.warns(UserWarning, match="more strength does not give more kl_read throughout"):
        solved = introspect.solve_strength(
            model, vector, protocol(), target=f"kl_read={target!r}", layers=1, progress=False
        )
    assert strengths[peak - 1] < solved <= strengths[peak] * 1.001


def test_strengths_may_be_doses(model, vectors):
    given = protocol(relative_strength=0.5)
    ranges = [(1, 1), (1, 2)]
    result = introspect.run_experiment(
        model, given, vectors=vectors, strengths=["kl=0.02", "kl=0.2"], layers=ranges, nulls=1, questions=[],
        progress=False,
    )  # fmt: skip
    assert result.settings["strength_unit"] == "residual"
    doses = result.settings["dose"]
    assert [(one["concept"], one["target"]) for one in doses] == [
        (concept, target) for target in ("kl=0.02", "kl=0.2") for concept in vectors for _ in ranges
    ]
    table = result.to_pandas()
    shown = table[table.kind == "introspection"]
    assert len(shown) == 8
    assert len(table) == 16
    for row in shown.itertuples():
        assert row.dose_kl == pytest.approx(float(row.dose_target.partition("=")[2]), rel=1e-3)
        solved = introspect.solve_strength(
            model, vectors[row.concept], given, target=row.dose_target, layers=(row.first_layer, row.last_layer),
            progress=False,
        )  # fmt: skip
        assert row.strength == pytest.approx(0.5 * solved, rel=1e-9)
        plain = introspect.run_experiment(
            model, given, vectors={row.concept: vectors[row.concept]}, strengths=solved, strength_unit="residual",
            layers=(row.first_layer, row.last_layer), nulls=0, questions=[], progress=False,
        ).rows[0]  # fmt: skip
        assert row.log_odds == pytest.approx(plain["injected"]["log_odds"], abs=1e-9)
        assert "dose_kl" not in plain
    again = introspect.Result.from_json(result.to_json())
    assert again.to_pandas().equals(table)
    assert again.merged(result).settings["dose"] == result.settings["dose"]


def test_the_default_strength_shows_its_dose(model, vectors):
    result = introspect.run_experiment(model, protocol(), vectors=vectors, layers=LAYERS, nulls=0, progress=False)
    (row, _) = introspect.dose(model, vectors, protocol(), strengths=0.1, coherence=False, **QUIET)
    assert result.rows[0]["dose_kl"] == pytest.approx(row.kl, **EXACT)
    assert result.dose_kl(result.groups[0]) == result.rows[0]["dose_kl"]
    assert "KL" in result.summary()
    told = introspect.run_experiment(
        model, protocol(), vectors=vectors, layers=LAYERS, nulls=0, dose=False, progress=False
    )
    assert "dose" not in told.settings


# ---- nulls of equal dose


@pytest.mark.parametrize("what", ["kl", "kl_later"])
def test_nulls_of_equal_dose_have_the_vectors_own_in_plain_passes(model, vectors, what):
    nulls = introspect.equal_dose(model, vectors, protocol(), strength=0.3, nulls=3, seed=4, what=what, **QUIET)
    ids, index = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    counted = index if what == "kl" else list(range(index[-1] + 1, len(ids)))
    norms = introspect.residual_norms(model, TURNS, positions=index)
    base, _ = run(model, ids)

    def dose(added):
        steered, _ = run(model, ids, index, added)
        return kl(steered, base)[counted].mean().item()

    assert list(nulls) == list(vectors)
    for concept, listed in nulls.items():
        own = dose(added_of(model, vectors[concept], 0.3, norms))
        assert len(listed) == 3
        for null in listed:
            assert null.layers == list(LAYERS)
            assert dose({layer: direction.double() for layer, direction in null.directions.items()}) == pytest.approx(
                own, rel=1.1e-3
            )


def test_nulls_of_equal_dose_are_the_runs_own_rotations(model, vectors):
    """What differs from equal norm is the strength alone: the rotations are those that run_experiment makes."""
    options = {"vectors": {"cat": vectors["cat"]}, "layers": LAYERS, "questions": [], "seed": 4, "progress": False}
    index = message_positions(model, TURNS, [1, 2])
    norms = introspect.residual_norms(model, TURNS, positions=index)
    nulls = introspect.equal_dose(model, {"cat": vectors["cat"]}, protocol(), strength=0.3, nulls=2, seed=4, **QUIET)
    for number, null in enumerate(nulls["cat"]):
        strength = null.norms[1] / norms[1]
        by_run = introspect.run_experiment(
            model, protocol(), strengths=strength, strength_unit="residual", nulls=2, **options
        )
        given = introspect.run_experiment(
            model, protocol(), strengths=1.0, null_vectors={"cat": nulls["cat"]}, nulls=0, **options
        )
        (one,) = [row for row in by_run.rows if row["null_index"] == number]
        (other,) = [row for row in given.rows if row["null_index"] == number]
        assert other["injected"]["log_odds"] == pytest.approx(one["injected"]["log_odds"], abs=1e-6)  # float32 lengths


def test_steer_takes_doses(model, vectors):
    tokens = model.to_tokens("A cat sat there.")
    for unit in ("absolute", "residual"):
        solved = introspect.solve_strength(
            model, vectors["cat"], kl=0.1, layers=LAYERS, strength_unit=unit, progress=False
        )
        with model.steer(vectors["cat"], strength=solved, unit=unit, layers=LAYERS):
            expected = model(tokens)
        with model.steer(vectors["cat"], strength="kl=0.1", unit=unit, layers=LAYERS):
            assert torch.equal(model(tokens), expected)


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kl=-1", "kl must be a number above 0, got '-1'"),
        ("kl=0", "kl must be a number above 0, got '0'"),
        ("kl=abc", "kl must be a number above 0, got 'abc'"),
        ("kl=nan", "kl must be a number above 0, got 'nan'"),
        ("kl=inf", "kl must be a number above 0, got 'inf'"),
        ("kl=", "kl must be a number above 0, got ''"),
        ("kl=0.5x", "kl must be a number above 0, got '0.5x'"),
        ("nats=1", "a name of kl, kl_later, kl_read, sd, sd_overall, got 'nats=1'"),
        ("0.5", "got '0.5'"),
        ("", "got ''"),
    ],
)
def test_doses_are_refused_that_are_none(model, vectors, text, words):
    with pytest.raises(ValueError, match=words):
        introspect.run_experiment(model, protocol(), vectors=vectors, strengths=text, **QUIET)
    with pytest.raises(ValueError, match=words):
        introspect.solve_strength(model, vectors["cat"], protocol(), target=text, **QUIET)
    with pytest.raises(ValueError, match=words), model.steer(vectors["cat"], strength=text):
        pass


def test_a_dose_out_of_reach_says_what_is_reached(model, vectors):
    with pytest.raises(ValueError, match=r"'cat' in blocks 1 to 2 a dose of kl=1000: .* to [\d.]+ \(at"):
        introspect.dose(model, {"cat": vectors["cat"]}, protocol(), targets=1000.0, **QUIET)
    zeros = introspect.ControlVector("qwen2", {1: torch.zeros(32), 2: torch.zeros(32)})
    with pytest.raises(ValueError, match="no strength gives"):
        introspect.solve_strength(model, zeros, protocol(), kl=0.1, **QUIET)
    with pytest.raises(ValueError, match="no strength gives"):
        introspect.solve_strength(model, zeros, protocol(), target="sd=1", **QUIET)
    with pytest.raises(ValueError, match="has nothing to equal"):
        introspect.equal_dose(model, {"none": zeros}, protocol(), nulls=1, **QUIET)


def test_doses_are_of_protocols_that_add_vectors_and_of_one_part(model, vectors):
    run_it = {"vectors": vectors, "strengths": "kl=0.1", **QUIET}
    with pytest.raises(introspect.ConfigError, match="injects by scale, which has no dose"):
        introspect.run_experiment(model, protocol(inject={"by": "scale"}), **run_it)
    with pytest.raises(ValueError, match="one part"):
        introspect.run_experiment(model, protocol(), parts=[(0.0, 0.5), (0.5, 1.0)], **run_it)
    with pytest.raises(ValueError, match="numbers or doses, not some of each"):
        introspect.run_experiment(model, protocol(), **{**run_it, "strengths": [0.1, "kl=0.1"]})


def test_a_plan_solves_nothing(model, vectors):
    plans = [
        introspect.run_experiment(
            model, protocol(), vectors=vectors, strengths=strengths, strength_unit="residual", plan=True, **QUIET
        )
        for strengths in (["kl=0.1", "coherent"], [0.1, 0.2])
    ]
    assert plans[0].readings == plans[1].readings
