"""Noise, dropout, scale and swap, groups of questions and nulls of other strengths, against passes with plain hooks."""

import hashlib
import json

import pytest
import torch
from looped import TURNS, adding, changed, chat_ids, log_odds, message_positions, protocol

import introspect
from introspect.studies import Experiment, run_together

pytestmark = pytest.mark.filterwarnings("ignore:.*left the format of the answer")

LAYERS, SPAN, SEED = (1, 2), [1, 2], 3
OPTIONS = {"layers": LAYERS, "nulls": 0, "questions": [], "progress": False}
TEXT = "Rain fell all night, and the river rose."


def naive(model, turns=TURNS, injected=SPAN, changes=None):
    """Log-odds of one pass over the whole text."""
    return log_odds(model, changed(model, turns, injected, changes)[-1])


def drawn(concept, what, token, block, seed=SEED):
    """The generator of one token and block, as the library's headers say it is made."""
    own = int(hashlib.sha256(f"{seed}/{concept}/-1".encode()).hexdigest()[:16], 16)
    name = hashlib.sha256(f"{own}/{what}/{token}/{block}".encode()).hexdigest()
    return torch.Generator().manual_seed(int(name[:16], 16))


def noise(model, concept, length_of, seed=SEED):
    """{layer: change} that adds a Gaussian direction of a length to every token."""
    n = len(message_positions(model, TURNS, SPAN))

    def of(layer):
        rows = [torch.randn(32, generator=drawn(concept, "noise", token, layer, seed)) for token in range(n)]
        rows = [(row.double() * (length_of(layer) / row.norm().item())).float() for row in rows]
        return lambda x: x + torch.stack(rows).double()

    return {layer: of(layer) for layer in LAYERS}


def run(model, given, vectors, **options):
    return introspect.run_experiment(model, given, vectors=vectors, seed=SEED, **{**OPTIONS, **options})


@pytest.mark.parametrize("unit", ["absolute", "residual"])
def test_noise_has_the_vectors_length_at_every_token_and_block(model, vectors, unit):
    strength = 2.0 if unit == "absolute" else 0.3
    result = run(model, protocol(inject={"by": "noise"}), vectors, strengths=strength, strength_unit=unit)
    norms = introspect.residual_norms(model, TURNS, positions=message_positions(model, TURNS, SPAN))
    assert [row["concept"] for row in result.rows] == list(vectors)
    for row in result.rows:
        directions = vectors[row["concept"]].directions

        def length(layer, directions=directions):
            return strength * (directions[layer].norm().item() if unit == "absolute" else norms[layer])

        expected = naive(model, changes=noise(model, row["concept"], length))
        assert row["injected"]["log_odds"] == pytest.approx(expected, abs=1e-7)  # operands are float32
        assert row["base"]["log_odds"] == pytest.approx(naive(model), abs=1e-9)
    assert result.rows[0]["injected"]["log_odds"] != result.rows[1]["injected"]["log_odds"]


def test_dropout_drops_elements_and_scales_the_rest(model, vectors):
    result = run(model, protocol(inject={"by": "dropout", "rate": 0.25}), vectors, strengths=[1.0, 7.0])
    n = len(message_positions(model, TURNS, SPAN))
    assert [(row["concept"], row["strength"]) for row in result.rows] == [("cat", 0.25), ("bread", 0.25)]
    for row in result.rows:
        masks = {
            layer: torch.stack(
                [torch.rand(32, generator=drawn(row["concept"], "dropout", token, layer)) for token in range(n)]
            ).ge(0.25)
            * torch.tensor(1 / 0.75)
            for layer in LAYERS
        }
        assert 0.6 < torch.stack(list(masks.values())).gt(0).double().mean() < 0.9
        changes = {layer: (lambda x, mask=mask: x * mask) for layer, mask in masks.items()}
        assert row["injected"]["log_odds"] == pytest.approx(naive(model, changes=changes), abs=1e-9)


def test_scale_multiplies_the_natural_activations(model, vectors):
    result = run(model, protocol(inject={"by": "scale"}), vectors, strengths=[0.5, -0.25, 0.0])
    for row in result.rows:
        factor = 1 + row["strength"]
        changes = {layer: (lambda x, factor=factor: x * factor) for layer in LAYERS}
        assert row["injected"]["log_odds"] == pytest.approx(naive(model, changes=changes), abs=1e-9)
    assert len({row["injected"]["log_odds"] for row in result.rows}) == 3  # the same for every concept


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("text", [TEXT, f"$CONCEPT! {TEXT} And so on, for a long time, until the morning came again."])
def test_swap_puts_a_texts_activations_there(model, vectors, strength, text):
    given = protocol(inject={"by": "swap", "text": text, "texts": {"bread": "some bread"}})
    index = message_positions(model, TURNS, SPAN)
    for row in run(model, given, vectors, strengths=strength).rows:
        words = text.replace("$CONCEPT", {"cat": "cat", "bread": "some bread"}[row["concept"]])
        ids = model.tokenizer.encode(words, add_special_tokens=False)
        other = chat_ids(model, TURNS)
        for i, position in enumerate(index):
            other[position] = ids[i % len(ids)]
        names = [f"blocks.{layer}.hook_resid_post" for layer in LAYERS]
        _, cache = model.run_with_cache(torch.tensor([other]), names_filter=names)
        changes = {
            layer: (lambda x, there=cache[name][0, index]: (1 - strength) * x + strength * there)
            for layer, name in zip(LAYERS, names, strict=True)
        }
        assert row["injected"]["log_odds"] == pytest.approx(naive(model, changes=changes), abs=1e-7)


INJECTS = [
    {"by": "noise"},
    {"by": "dropout", "rate": 0.25},
    {"by": "scale"},
    {"by": "swap", "text": TEXT},
]


@pytest.mark.parametrize("inject", INJECTS, ids=lambda inject: inject["by"])
def test_draws_do_not_depend_on_what_runs_with_them(model, vectors, tmp_path, inject):
    """Other concepts, order, questions, parts, small batches, a store: the readings stay what they are."""
    given = protocol(inject=inject)
    options = {"strengths": [0.5, 2.0]}
    rows = run(model, given, vectors, **options).rows
    backwards = dict(reversed(vectors.items()))
    store = tmp_path / "cells.sqlite"
    others = [
        run(model, given, backwards, strengths=[2.0, 0.5], memory_budget=500_000).rows,
        *(run(model, given, {name: vector}, strengths=s).rows for name, vector in vectors.items() for s in (0.5, 2.0)),
        run(model, given, vectors, **options, store=store).rows,
        run(model, given, vectors, **options, store=store).rows,
    ]
    expected = {(row["concept"], row["strength"]): row["injected"]["log_odds"] for row in rows}
    for row in (row for listed in others for row in listed):
        assert row["injected"]["log_odds"] == pytest.approx(expected[row["concept"], row["strength"]], abs=1e-9)
    part = run(model, given, vectors, **options, parts=[(0.5, 1.0)]).rows
    assert part[0]["injected"]["log_odds"] != rows[0]["injected"]["log_odds"]


def n_cells(store):
    return len(introspect.Store(store))


def test_cells_hold_everything_that_decides_a_value(model, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    cat = {"cat": vectors["cat"]}

    def added(vectors=cat, **options):
        """How many cells a run adds; the same run again adds none."""
        before = n_cells(store)
        strengths = options.pop("strengths", 2.0)
        seed = options.pop("seed", SEED)
        given = protocol(inject=options.pop("inject"))
        for _ in range(2):
            introspect.run_experiment(
                model, given, vectors=vectors, seed=seed, strengths=strengths, **{**OPTIONS, **options}, store=store
            )
        return n_cells(store) - before

    assert added(inject=INJECTS[0]) == 2  # and the unsteered reading
    assert added(inject=INJECTS[0], seed=4) == 1
    assert added(inject=INJECTS[0], strengths=2.0 + 1e-6) == 1
    assert added(inject=INJECTS[0], strengths=-2.0) == 0  # a length
    assert added({"bread": vectors["cat"]}, inject=INJECTS[0]) == 1  # drawn by name
    assert (
        added({"cat": introspect.random_rotation(vectors["cat"], seed=1)}, inject=INJECTS[0]) <= 1
    )  # but for rounding
    assert added(inject=INJECTS[1]) == 1
    assert added(inject=INJECTS[1], strengths=9.0) == 0
    assert added(inject=INJECTS[1], seed=4) == 1
    assert added(inject={"by": "dropout", "rate": 0.2500001}) == 1
    assert added(inject=INJECTS[1], layers=(1, 1)) == 1
    assert added(inject=INJECTS[2]) == 1
    assert added(vectors, inject=INJECTS[2], seed=4) == 0  # the same for every concept and seed
    assert added(inject=INJECTS[2], strengths=2.0000001) == 1
    assert added(inject=INJECTS[3]) == 1
    assert added(vectors, inject=INJECTS[3], seed=4) == 0
    assert added(inject={"by": "swap", "text": "Another text."}) == 1
    assert added(inject=INJECTS[3], strengths=2.0000001) == 1


def test_several_places_are_each_injected_alone(model, vectors):
    """Of a localisation, as vectors are."""
    fields = {
        "turns": [{"role": "user", "content": "$SENTENCES"}, *TURNS[2:]],
        "injected": None,
        "sentences": ["One thing.", "Other things."],
        "answers": [" yes", " no"],
    }
    for inject in INJECTS:
        rows = run(model, protocol(**fields, inject=inject), vectors, strengths=0.5).rows
        assert [row["place"] for row in rows] == [0, 1, 0, 1]
        assert rows[0]["injected"] != rows[1]["injected"]


# Groups of questions

GROUPS = {"factual_yes": ["Is ice cold?"], "contested": ["Is art good?", "Is war bad?"]}


def test_questions_in_groups_are_asked_as_controls_are(model, vectors, tmp_path):
    cat = {"cat": vectors["cat"]}
    store = tmp_path / "cells.sqlite"
    given = protocol(controls={"questions": ["Is ice hot?"], "groups": GROUPS})
    result = run(model, given, cat, strengths=2.0, questions=None, store=store)
    asked = [(row["question"], row.get("group", "")) for row in result.rows if row["kind"] == "control"]
    by_group = sorted((question, name) for name, listed in GROUPS.items() for question in listed)
    assert asked[0] == ("Is ice hot?", "") and sorted(asked[1:]) == by_group
    for row in result.rows[1:]:
        turns = [*TURNS[:3], {"role": "user", "content": row["question"]}, TURNS[4]]
        changes = adding(cat["cat"], 2.0)
        assert row["injected"]["log_odds"] == pytest.approx(naive(model, turns, SPAN, changes), abs=1e-9)
    table = result.to_pandas()
    assert set(table.group) == {"(none)", *GROUPS}
    assert set(introspect.Store(store).to_pandas().group) == {"(none)", *GROUPS}
    (detection,) = result.detections()
    assert detection.n_controls == 1  # groups have no part in the mean that is subtracted
    back = introspect.Result.from_json(result.to_json())
    assert [row.get("group") for row in back.rows] == [row.get("group") for row in result.rows]
    assert len(result.merged(back).rows) == len(result.rows)
    assert introspect.Protocol.parse(given.to_json()).control_groups == GROUPS


def test_groups_can_be_chosen(model, vectors):
    cat = {"cat": vectors["cat"]}
    given = protocol(controls={"groups": GROUPS})
    none = run(model, given, cat, strengths=2.0, groups={})
    assert [row["kind"] for row in none.rows] == ["introspection"]
    own = run(model, given, cat, strengths=2.0, groups={"mine": ["So?"]})
    assert [row.get("group") for row in own.rows] == [None, "mine"]
    same = protocol(controls={"questions": ["So?"]})
    plain = run(model, same, cat, strengths=2.0, questions=None)
    assert own.rows[1]["injected"]["log_odds"] == plain.rows[1]["injected"]["log_odds"]


# Nulls of other strengths


def test_null_factors_are_on_the_nulls_strengths(model, vectors):
    cat = {"cat": vectors["cat"]}
    factors = {"cat": [0.5, 1.0, -2.0]}
    other = introspect.random_rotation(vectors["cat"], seed=9)
    options = {"nulls": 2, "null_vectors": {"cat": [other]}}
    result = run(model, protocol(), cat, strengths=2.0, **options, null_factors=factors)
    assert {row["strength"] for row in result.rows} == {2.0}
    single = {
        strength: run(model, protocol(), cat, strengths=strength, **options).rows for strength in (1.0, 2.0, -4.0)
    }
    expected = [single[2.0][0], single[1.0][1], single[2.0][2], single[-4.0][3]]
    for row, alone in zip(result.rows, expected, strict=True):
        assert row["injected"]["log_odds"] == pytest.approx(alone["injected"]["log_odds"], abs=1e-9)


# Experiments together


def test_experiments_of_their_own_are_what_each_is_by_itself(model, vectors):
    cat, bread = ({name: vectors[name]} for name in ("cat", "bread"))
    shared = {"seed": SEED, "questions": []}
    experiments = [
        Experiment(protocol(), cat, strengths=2.0, layers=(1, 2), nulls=2, **shared),
        Experiment(protocol(), bread, strengths=[0.1, 0.3], strength_unit="residual", layers=2, nulls=0, **shared),
        Experiment(protocol(inject={"by": "noise"}), cat, strengths=1.0, layers=(1, 1), **shared),
        Experiment(protocol(inject={"by": "swap", "text": TEXT}), bread, strengths=1.0, layers=(2, 2), **shared),
        Experiment(protocol(name="lens"), cat, strengths=2.0, layers=(1, 2), nulls=0, lens=True, seed=0, groups=GROUPS),
    ]
    with pytest.raises(introspect.ConfigError, match="controls"):  # of the last
        run_together(model, experiments, progress=False)
    experiments[-1] = experiments[-1].changed(protocol=protocol(name="lens", controls={"groups": GROUPS}), groups=None)
    together = run_together(model, experiments, progress=False)
    for one, result in zip(experiments, together, strict=True):
        alone = introspect.run_experiment(model, one.protocol, vectors=one.vectors, **one.options, progress=False)
        assert [row["injected"]["log_odds"] for row in result.rows] == pytest.approx(
            [row["injected"]["log_odds"] for row in alone.rows], abs=1e-9
        )
        assert [{**row, "base": 0, "injected": 0} for row in result.rows] == [
            {**row, "base": 0, "injected": 0} for row in alone.rows
        ]
        assert result.settings == alone.settings
    plan = run_together(model, experiments, plan=True)
    separate = [run_together(model, [one], plan=True) for one in experiments]
    assert plan.readings == sum(one.readings for one in separate)
    assert plan.token_layers_to_run < sum(one.token_layers_to_run for one in separate)


def test_what_experiments_share_is_no_option_of_one(model, vectors):
    with pytest.raises(TypeError, match="store is an option of run_together"):
        Experiment(protocol(), vectors, store="x")
    with pytest.raises(TypeError, match="strenghts"):
        Experiment(protocol(), vectors, strenghts=1.0)
    with pytest.raises(TypeError, match="list of Experiments"):
        run_together(model, [protocol()])
    with pytest.raises(ValueError, match="at least one"):
        run_together(model, [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inject": {"by": "dropout"}}, "rate"),
        ({"inject": {"by": "dropout", "rate": 1.0}}, "above 0 and below 1"),
        ({"inject": {"by": "swap"}}, "text"),
        ({"inject": {"by": "noise", "rate": 0.5}}, "rate is nothing that injecting by noise takes"),
        ({"inject": {"by": "vector", "text": "x"}}, "text is nothing"),
        ({"inject": {"by": "noise"}, "steer_generation": True}, "steer_generation must be false"),
        ({"inject": {"by": "gauss"}}, "swap, got"),
        ({"controls": {"groups": {"7": ["So?"]}}}, "name in words"),
        ({"controls": {"groups": {"mine": []}}}, "controls.groups.mine"),
        ({"controls": {"groups": {"mine": "So?"}}}, "controls.groups.mine"),
    ],
)
def test_mistakes_in_protocols_are_named(fields, message):
    with pytest.raises(introspect.ConfigError, match=message):
        protocol(**fields)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"null_factors": {"cat": [1.0]}}, ValueError, "one for each of its nulls \\(0\\)"),
        ({"null_factors": {"dog": []}}, ValueError, "vectors' names, got 'dog'"),
        ({"null_factors": {"cat": [float("nan")]}, "nulls": 1}, ValueError, "finite"),
        ({"groups": {"": ["So?"]}}, TypeError, "groups"),
        ({"groups": ["So?"]}, TypeError, "groups"),
        ({"groups": {"mine": ["So?"]}}, introspect.ConfigError, "no controls"),
    ],
)
def test_mistakes_in_options_are_named(model, vectors, options, error, message):
    with pytest.raises(error, match=message):
        run(model, protocol(), vectors, strengths=1.0, **options)


def test_protocols_keep_what_they_inject():
    for inject in INJECTS:
        given = protocol(inject=inject)
        again = introspect.Protocol.parse(given.to_json())
        assert again.hash == given.hash and again.inject == inject["by"]
        assert json.loads(given.to_json())["inject"] == inject
