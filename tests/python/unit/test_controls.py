"""Where control questions are asked: in the protocol's own conversation, against naive passes (float64)."""

import json

import pytest
from looped import TURNS, chat_ids, log_odds, looped, message_positions, protocol
from tiny_chat import random_vectors

import introspect
from introspect.experiments.run import MORE_PROTOCOLS, PROTOCOLS

LAYERS, STRENGTH = (1, 2), 2.0
OTHER = [{"role": "system", "content": ""}, {"role": "user", "content": "Long ago, in a far country."}, *TURNS[2:]]
QUESTIONS = ["Is ice hot?", "Are you a bird?"]
WORDING = "$QUESTION Yes or no?"
CONTROLS = {
    "name": "elsewhere",
    "turns": [*OTHER[:3], {"role": "user", "content": WORDING}, OTHER[4]],
    "injected": [1, 2],
    "questions": QUESTIONS,
}


@pytest.fixture(scope="module")
def vector():
    return random_vectors()["cat"]


def run(model, given, vector, **options):
    options = {"strengths": [STRENGTH], "layers": [LAYERS], "nulls": 0, **options}
    return introspect.run_experiment(model, given, vectors={"cat": vector}, **options)


def asked(turns, question, wording=WORDING):
    """The conversation with a question in the place of its last user message."""
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    content = wording.replace("$QUESTION", question)
    return [{**turn, "content": content} if i == last else turn for i, turn in enumerate(turns)]


def expect(model, row, turns, injected, vector):
    positions = message_positions(model, turns, injected)
    added = {layer: STRENGTH * direction for layer, direction in vector.directions.items()}
    for side, change in (("base", {}), ("injected", added)):
        state = looped(model, chat_ids(model, turns), positions, change)
        assert row[side]["log_odds"] == pytest.approx(log_odds(model, state.logits), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "turns", "asked_in"),
    [
        ({}, TURNS, "own"),
        ({"controls": "own"}, TURNS, "own"),
        ({"controls": "elsewhere"}, OTHER, "elsewhere"),
        ({"controls": protocol(name="third", turns=OTHER)}, OTHER, "third"),
    ],
)
def test_controls_are_asked_in_the_conversation_that_rows_name(model, vector, options, turns, asked_in):
    result = run(model, protocol(controls=CONTROLS), vector, **options)
    own, *controls = result.rows
    expect(model, own, TURNS, [1, 2], vector)
    assert own["asked_in"] == "own"
    assert [row["question"] for row in controls] == QUESTIONS
    for row in controls:
        expect(model, row, asked(turns, row["question"]), [1, 2], vector)
        assert row["asked_in"] == asked_in
    assert result.settings["controls"] == asked_in
    table = result.to_pandas()
    assert list(table.asked_in) == ["own", asked_in, asked_in]


def test_a_protocol_may_say_where_its_controls_are_asked(model, vector):
    given = protocol(controls={**CONTROLS, "asked_in": "elsewhere"})
    assert introspect.Protocol.parse(given.to_json()).controls == "elsewhere"
    row = run(model, given, vector).rows[-1]
    expect(model, row, asked(OTHER, row["question"]), [1, 2], vector)
    assert row["asked_in"] == "elsewhere"
    back = run(model, given, vector, controls="own").rows[-1]
    expect(model, back, asked(TURNS, back["question"]), [1, 2], vector)


def test_turns_of_another_conversation_without_a_name_are_not_used_silently(model, vector):
    unnamed = {key: value for key, value in CONTROLS.items() if key != "name"}
    with pytest.warns(UserWarning, match="controls='given'"):
        row = run(model, protocol(controls=unnamed), vector).rows[-1]
    expect(model, row, asked(TURNS, row["question"]), [1, 2], vector)
    row = run(model, protocol(controls=unnamed), vector, controls="given").rows[-1]
    expect(model, row, asked(OTHER, row["question"]), [1, 2], vector)


def test_questions_alone_are_controls(model, vector):
    given = protocol(controls={"questions": QUESTIONS})
    row = run(model, given, vector).rows[-1]
    expect(model, row, asked(TURNS, row["question"], "$QUESTION"), [1, 2], vector)
    worded = protocol(controls={"questions": QUESTIONS, "question": "Tell me: $QUESTION"})
    row = run(model, worded, vector).rows[-1]
    expect(model, row, asked(TURNS, row["question"], "Tell me: $QUESTION"), [1, 2], vector)


def test_spans_that_are_not_neighbours_are_the_controls_too(model, vector):
    """The question's own message is injected: so is the control question in its place."""
    given = protocol(injected=[1, 3], controls={"questions": QUESTIONS})
    for row in run(model, given, vector).rows[1:]:
        expect(model, row, asked(TURNS, row["question"], "$QUESTION"), [1, 3], vector)


def test_a_prefix_of_ones_own_is_the_controls_prefix(model, vector):
    turns = [*TURNS[:4], {"role": "assistant", "content": "I say that it is"}]
    for row in run(model, protocol(turns=turns, controls=CONTROLS), vector).rows[1:]:
        expect(model, row, asked(turns, row["question"]), [1, 2], vector)


@pytest.mark.parametrize("name", sorted({*PROTOCOLS, *MORE_PROTOCOLS} - {"localisation"}))
def test_shipped_controls_stand_in_the_protocols_own_turns(model, name):
    """The tokens are those of the protocol's conversation but for its question, and with_info's when asked for."""
    given = introspect.load_protocol(name)
    question = given.control_questions[0]
    tokens = introspect.conversation_tokens(model, given, question)
    wording = json.loads(given.to_json())["controls"]["turns"][-2]["content"]
    assert [*tokens.before, *tokens.injected, *tokens.after] == chat_ids(model, asked(given.turns, question, wording))
    assert [len(chat_ids(model, given.turns, n)) for n in (given.injected[0],)] == [len(tokens.before)]
    if name != "anthropic_style":
        info = introspect.load_protocol("with_info")
        tokens = introspect.conversation_tokens(model, given, question, controls="with_info")
        assert [*tokens.before, *tokens.injected, *tokens.after] == chat_ids(
            model, asked(info.turns, question, wording)
        )


def test_with_info_is_its_own_conversation(model, vector):
    result = run(model, "with_info", vector, questions=["Is ice hot?"], controls="with_info")
    assert {row["asked_in"] for row in result.rows} == {"own"}


def test_estimates_ask_where_runs_do(model, vector):
    given = protocol(controls=CONTROLS)
    options = {"vectors": {"cat": vector}, "strengths": [1e-4]}
    for controls in ("own", "elsewhere"):
        table = introspect.estimate_ranges(model, given, controls=controls, **options).to_pandas()
        rows = introspect.run_experiment(model, given, controls=controls, nulls=0, layers=[LAYERS], **options).rows
        exact = {row["question"]: (row["base"]["log_odds"], row["asked_in"]) for row in rows}
        for question, (base, asked_in) in exact.items():
            found = table[table.question == question]
            assert found.log_odds_base.iloc[0] == pytest.approx(base, abs=1e-9)
            assert set(found.asked_in) == {asked_in}


def test_a_conversation_that_nobody_knows_is_refused(model, vector):
    with pytest.raises(ValueError, match="'own', 'elsewhere'"):
        run(model, protocol(controls=CONTROLS), vector, controls="elsewere")
    with pytest.raises(TypeError, match="controls"):
        run(model, protocol(controls=CONTROLS), vector, controls=3)


def test_passages_in_the_questions_place_are_an_error_that_says_what_to_do(model, vector):
    given = protocol(injected=[{"turn": 3, "text": "Noticed"}], controls={"questions": QUESTIONS})
    with pytest.raises(introspect.ConfigError, match=r"message 3.*asked_in"):
        run(model, given, vector)


# The store


def rows_of(store, name):
    table = introspect.Store(store).to_pandas()
    return table[table.protocol == name]


@pytest.mark.parametrize("controls", ["own", "elsewhere"])
def test_every_protocol_of_a_run_finds_its_rows_in_the_store(model, vector, tmp_path, controls):
    """Asked elsewhere, the controls of all of them are the same readings: one cell, and a row of each."""
    store = tmp_path / "cells.sqlite"
    turns = [{**turn, "content": turn["content"] + " Well."} if turn["role"] == "user" else turn for turn in TURNS]
    given = [protocol(controls=CONTROLS), protocol(name="other", turns=turns, controls=CONTROLS)]
    options = {"vectors": {"cat": vector}, "strengths": [STRENGTH], "layers": [LAYERS], "nulls": 1}
    results = introspect.run_experiments(model, given, store=store, controls=controls, **options)
    for result in results:
        stored = rows_of(store, result.protocol["name"])
        injected = stored[stored.kind != "base"].set_index(["question", "null_index"]).sort_index()
        expected = result.to_pandas().set_index(["question", "null_index"]).sort_index()
        assert list(injected.index) == list(expected.index)
        for column in ("log_odds", "log_odds_base", "kind", "asked_in"):
            assert list(injected[column]) == list(expected[column]), column
        assert len(stored[stored.kind == "base"]) == 1 + len(QUESTIONS)
    n_cells = 2 * 3 + 2 * 3 * 2 if controls == "own" else (2 + 2) + (2 + 2) * 2
    assert len(introspect.Store(store)) == n_cells


def test_rows_are_found_whoever_made_the_reading_first(model, vector, tmp_path):
    """A run of its own later, and a rerun, find every row once."""
    store = tmp_path / "cells.sqlite"
    first, second = protocol(controls=CONTROLS), protocol(name="again", controls=CONTROLS)
    for given in (first, second, second, first):
        run(model, given, vector, store=store)
    n_rows = 2 * (1 + len(QUESTIONS))
    assert len(introspect.Store(store)) == n_rows
    for name in ("mine", "again"):
        stored = rows_of(store, name)
        assert len(stored) == n_rows
        assert stored.log_odds.notna().all()
