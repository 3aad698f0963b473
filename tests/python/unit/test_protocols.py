"""Kinds of protocols: what is injected where, and how it is asked about, against naive passes (float64)."""

import contextlib
import json

import pytest
import torch
from looped import CONTROLS, TURNS, chat_ids, log_odds, looped, message_positions, protocol
from tiny_chat import write_tiny_chat

import introspect
from introspect.experiments.run import MORE_PROTOCOLS

LAYERS, STRENGTH = (1, 2), 2.0
SENTENCES = ["The train is late.", "He has two boxes.", "It rains a lot."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(write_tiny_chat(folder / "model"), dtype=torch.float64)


@pytest.fixture(scope="module")
def other(folder):
    return introspect.load_model(write_tiny_chat(folder / "other", seed=1), dtype=torch.float64)


@pytest.fixture(scope="module")
def vector():
    rng = torch.Generator().manual_seed(5)
    return introspect.ControlVector("qwen2", {layer: torch.randn(32, generator=rng) for layer in LAYERS})


def run(model, given, vector=None, **options):
    options = {"strengths": [STRENGTH], "layers": [LAYERS], "questions": [], "nulls": 0, **options}
    return introspect.run_experiment(model, given, vectors={"cat": vector} if vector else {}, **options)


def added(vector):
    return {layer: STRENGTH * direction for layer, direction in vector.directions.items()}


def expect(model, reading, state):
    assert reading["log_odds"] == pytest.approx(log_odds(model, state.logits), abs=1e-9)


# What is injected where


def test_messages_that_are_not_neighbours_are_injected_apart(model, vector):
    (row,) = run(model, protocol(injected=[1, 3]), vector).rows
    positions = message_positions(model, TURNS, [1, 3])
    expect(model, row["injected"], looped(model, chat_ids(model, TURNS), positions, added(vector)))
    together = message_positions(model, TURNS, [1, 2, 3])
    state = looped(model, chat_ids(model, TURNS), together, added(vector))
    assert row["injected"]["log_odds"] != pytest.approx(log_odds(model, state.logits), abs=1e-3)


def test_a_part_of_the_injected_tokens(model, vector):
    positions = message_positions(model, TURNS, [1, 2])
    half = len(positions) // 2
    parts = [(0.0, half / len(positions)), (half / len(positions), 1.0), (0.0, 1.0)]
    rows = run(model, protocol(), vector, parts=parts).rows
    spans = positions[:half], positions[half:], positions
    for row, part, span in zip(rows, parts, spans, strict=True):
        expect(model, row["injected"], looped(model, chat_ids(model, TURNS), span, added(vector)))
        assert (row.get("part_first", 0.0), row.get("part_last", 1.0)) == part


def test_a_passage_is_the_tokens_that_spell_it(model, vector):
    turns = [*TURNS[:1], {"role": "user", "content": " ".join(SENTENCES)}, *TURNS[2:]]
    (row,) = run(model, protocol(turns=turns, injected=[{"turn": 1, "text": SENTENCES[1]}]), vector).rows
    ids = chat_ids(model, turns)
    # The tiny vocabulary spells nearly everything in single bytes, so a place in the text is a place among the tokens.
    pieces = [model.tokenizer.decode([i]) for i in ids]
    text = "".join(pieces)
    start = text.index(SENTENCES[1])
    ends = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces))]
    span = [i for i, end in enumerate(ends) if start < end <= start + len(SENTENCES[1])]
    assert "".join(pieces[i] for i in span).strip() == SENTENCES[1]
    expect(model, row["injected"], looped(model, ids, span, added(vector)))


def test_another_model_prefills_the_injected_messages(model, other):
    given = protocol(inject={"by": "model", "model": "finetune"})
    (row,) = run(model, given, models={"finetune": other}).rows
    ids = chat_ids(model, TURNS)
    positions = message_positions(model, TURNS, [1, 2])
    cache = model.native.make_cache(1)
    before, span, after = ids[: positions[0]], ids[positions[0] : positions[-1] + 1], ids[positions[-1] + 1 :]
    model(torch.tensor([before]), cache=cache, logits_at="none")
    other(torch.tensor([span]), cache=cache, logits_at="none")
    logits = model(torch.tensor([after]), cache=cache)[0, -1]
    assert row["injected"]["log_odds"] == pytest.approx(log_odds(model, logits), abs=1e-9)
    expect(model, row["base"], looped(model, ids))
    assert row["concept"] == "finetune"
    (same,) = run(model, given, models={"finetune": model}).rows
    assert same["injected"]["log_odds"] == pytest.approx(same["base"]["log_odds"], abs=1e-9)


def test_priming_writes_the_word_into_the_text(model):
    primed = [dict(turn) for turn in TURNS]
    primed[1]["content"] = "A thought of $CONCEPT."
    given = protocol(inject={"by": "tokens", "turns": primed}, read="content")
    rows = run(model, given, concepts=["cat", "bread"]).rows
    assert [row["concept"] for row in rows] == ["cat", "bread"]
    for row in rows:
        turns = json.loads(json.dumps(primed).replace("$CONCEPT", row["concept"]))
        expect(model, row["injected"], looped(model, chat_ids(model, turns)))
        expect(model, row["base"], looped(model, chat_ids(model, TURNS)))


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_patching_puts_another_conversations_residuals_there(model, strength):
    turns = [dict(turn) for turn in TURNS]
    turns[1]["content"] = "A thought of $CONCEPT."
    plain = [dict(turn) for turn in TURNS]
    plain[1]["content"] = "A thought of mist."
    given = protocol(turns=plain, inject={"by": "patch", "turns": turns})
    (row,) = run(model, given, concepts=["lump"], strengths=[strength], layers=[(1, 1)]).rows
    theirs = json.loads(json.dumps(turns).replace("$CONCEPT", "lump"))
    positions = message_positions(model, plain, [1, 2])
    assert positions == message_positions(model, theirs, [1, 2])
    name = "blocks.1.hook_resid_post"
    ours, donor = (
        model.run_with_cache(torch.tensor([chat_ids(model, t)]), names_filter=[name])[1][name][0, positions]
        for t in (plain, theirs)
    )
    mixed = (1 - strength) * ours + strength * donor
    expect(model, row["injected"], looped(model, chat_ids(model, plain), positions, replaced={1: mixed}))


def test_random_directions_take_the_vectors_place(model, vector):
    random = run(model, protocol(inject={"by": "random"}), vector, nulls=1).rows
    plain = run(model, protocol(), vector, nulls=1).rows
    assert random[0]["injected"] != plain[0]["injected"]
    assert random[1]["injected"] == plain[1]["injected"]  # rotations of the vector all the same
    again = run(model, protocol(inject={"by": "random"}), vector, nulls=1).rows
    assert again[0]["injected"] == random[0]["injected"]


def test_a_relative_strength_is_a_factor(model, vector):
    (row,) = run(model, protocol(relative_strength=0.25), vector, strengths=[8.0]).rows
    assert row["strength"] == STRENGTH
    assert row["injected"] == run(model, protocol(), vector).rows[0]["injected"]


# How it is asked


ASKED = ["Did you?", {"question": "Did you see it?", "prefix": "I say"}, {"question": "So?", "name": "in a word"}]
IN_OTHER_WORDS = {"Did you?": None, "Did you see it? / I say": "I say", "in a word": None}


def expect_paraphrase(model, row, question, prefix, vector):
    turns = [dict(turn) for turn in TURNS]
    turns[3]["content"], turns[4]["content"] = question, prefix or TURNS[4]["content"]
    positions = message_positions(model, turns, [1, 2])
    expect(model, row["base"], looped(model, chat_ids(model, turns)))
    expect(model, row["injected"], looped(model, chat_ids(model, turns), positions, added(vector)))


def test_paraphrases_are_asked_besides_the_question_of_the_turns(model, vector):
    given = protocol(paraphrases=ASKED, controls=CONTROLS)
    rows = run(model, given, vector, questions=["Is ice hot?"]).rows
    assert [row["question"] for row in rows] == ["Noticed it?", "Did you?", "Did you see it?", "So?", "Is ice hot?"]
    assert [row["paraphrase"] for row in rows] == ["own", *IN_OTHER_WORDS, "control"]
    assert given.paraphrase_names == list(IN_OTHER_WORDS)
    prefixes = [None, *IN_OTHER_WORDS.values(), None]
    for row, prefix in zip(rows, prefixes, strict=True):
        expect_paraphrase(model, row, row["question"], prefix, vector)
    assert introspect.Protocol.parse(given.to_json()).hash == given.hash


def test_a_protocol_may_leave_its_own_question_to_the_paraphrases(model, vector):
    given = protocol(paraphrases=ASKED, asks_own_question=False)
    assert not given.asks_own_question
    rows = run(model, given, vector).rows
    assert [row["paraphrase"] for row in rows] == list(IN_OTHER_WORDS)
    assert introspect.Protocol.parse(given.to_json()).hash == given.hash


def test_a_question_that_is_among_the_paraphrases_is_not_asked_twice(model, vector):
    given = protocol(paraphrases=["So?", {"question": "Noticed it?", "name": "as it is"}])
    rows = run(model, given, vector).rows
    assert [row["paraphrase"] for row in rows] == ["So?", "as it is"]
    again = protocol(paraphrases=[{"question": "Noticed it?", "prefix": "I say"}])  # another prefix is another question
    assert len(run(model, again, vector).rows) == 2


def test_rows_without_paraphrases_have_no_such_column(model, vector):
    assert "paraphrase" not in run(model, protocol(), vector).to_pandas()


def test_localisation_injects_each_sentence_alone(model, vector):
    turns = [dict(turn) for turn in TURNS]
    turns[1]["content"] = "Some lines.\n$SENTENCES"
    given = protocol(turns=turns, injected=None, sentences=SENTENCES, answers=["A", "B", "C"])
    assert "B: He has two boxes." in given.turns[1]["content"]
    assert introspect.Protocol.parse(given.to_json()).hash == given.hash
    result = run(model, given, vector)
    assert [row["place"] for row in result.rows] == [0, 1, 2]
    for row, sentence in zip(result.rows, SENTENCES, strict=True):
        alone = protocol(turns=given.turns, injected=[{"turn": 1, "text": sentence}])
        expected = run(model, alone, vector).rows[0]["injected"]["log_odds"]
        assert row["injected"]["log_odds"] == pytest.approx(expected, abs=1e-9)
        assert [one["token"] for one in row["injected"]["answers"]] == ["A", "B", "C"]
    found = result.localisation()
    assert found.counts.sum() == found.corrected.sum() == 3
    assert found.chance == pytest.approx(1 / 3)
    named = [max(range(3), key=lambda i: row["injected"]["answers"][i]["log_prob"]) for row in result.rows]
    assert found.accuracy == pytest.approx(sum(i == j for i, j in enumerate(named)) / 3)
    with pytest.raises(ValueError, match="passage"):
        run(model, protocol(), vector).localisation()


# Files


# The answers of the localisation are no single tokens here; parity/test_experiment.py has it on a real vocabulary.
@pytest.mark.parametrize("name", sorted(set(MORE_PROTOCOLS) - {"localisation"}))
def test_shipped_protocols_run(model, other, vector, name):
    given = introspect.load_protocol(name)
    assert given.name == name
    assert given.source
    assert introspect.Protocol.parse(given.to_json()).hash == given.hash
    spelled = bool(json.loads(given.to_json()).get("yes_variants"))  # in more than the tiny vocabulary has
    with pytest.warns(UserWarning, match="tokens of this model") if spelled else contextlib.nullcontext():
        result = run(model, given, vector, models={"finetune": other})
    assert len(result.rows) == max(1, len(given.paraphrases), len(given.answers))
    assert all(torch.isfinite(torch.tensor(row["injected"]["log_odds"])) for row in result.rows)


def test_a_file_takes_what_it_does_not_give_from_the_one_it_is_based_on(tmp_path):
    (tmp_path / "first.json").write_text(protocol(controls=CONTROLS).to_json())
    (tmp_path / "second.json").write_text(json.dumps({"name": "second", "based_on": "first.json", "injected": [1]}))
    second = introspect.load_protocol(tmp_path / "second.json")
    assert (second.name, second.injected, second.turns) == ("second", [1], TURNS)
    assert second.control_questions == CONTROLS["questions"]
    (tmp_path / "first.json").write_text(json.dumps({"name": "first", "based_on": "second.json"}))
    with pytest.raises(introspect.ConfigError, match="based_on"):
        introspect.load_protocol(tmp_path / "second.json")


# Mistakes


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"injected": [2, 1]}, r"injected\[1\]"),
        ({"injected": [{"turn": 1, "text": "not there"}]}, r"injected\[0\].text .*not there"),
        ({"injected": [{"turn": 9, "text": "A"}]}, r"injected\[0\].turn"),
        ({"injected": [1, {"turn": 1, "text": "A"}]}, r"injected\[1\]"),
        ({"inject": {"by": "magic"}}, "inject.by .*magic"),
        ({"inject": {"by": "model"}}, "inject.model is missing"),
        ({"inject": {"by": "tokens", "turns": TURNS}}, "CONCEPT"),
        ({"inject": {"by": "tokens", "turns": TURNS[:2]}}, "inject.turns"),
        (
            {"inject": {"by": "tokens", "turns": [*TURNS[:4], {"role": "assistant", "content": "$CONCEPT"}]}},
            r"inject.turns\[4\]",
        ),
        ({"readouts": {"lens": 1}}, "readouts.lens"),
        ({"readouts": {"top_k": -1}}, "top_k"),
        ({"paraphrases": []}, "paraphrases"),
        ({"paraphrases": ["So?", "So?"]}, r"paraphrases\[1\] must differ"),
        ({"paraphrases": [{"question": "So?", "name": "own"}]}, r"paraphrases\[0\] must differ"),
        ({"asks_own_question": False}, "asks_own_question"),
        ({"controls": {"questions": ["So?"], "injected": [1]}}, "controls.turns is missing"),
        ({"controls": {"questions": ["So?"], "question": "No place."}}, r"controls.question .*QUESTION"),
        ({"controls": {"questions": ["So?"], "asked_in": "with_info"}}, "controls.asked_in .*with_info"),
        ({"controls": {**CONTROLS, "name": "own"}}, "controls.name"),
        ({"sentences": SENTENCES}, "exclude"),
        ({"injected": None, "sentences": SENTENCES}, "SENTENCES"),
        ({"answers": ["A", "B"]}, "answers"),
        ({"relative_strength": "x"}, "relative_strength"),
    ],
)
def test_a_mistake_in_a_protocol_is_named_with_its_place(fields, place):
    with pytest.raises(introspect.ConfigError, match=place):
        protocol(**fields)


def test_mistakes_of_a_run_are_errors_before_anything_runs(model, vector, folder):
    def running(*step):
        raise AssertionError("work had begun")

    by_model = protocol(inject={"by": "model", "model": "finetune"})
    deeper = introspect.load_model(write_tiny_chat(folder / "deep", num_hidden_layers=4), dtype=torch.float64)
    primed = [dict(turn) for turn in TURNS]
    primed[1]["content"] = "A thought of $CONCEPT."
    by_patch = protocol(inject={"by": "patch", "turns": primed})
    sentences = [{"role": "user", "content": "$SENTENCES"}, *TURNS[2:]]
    for given, options, error, match in [
        (by_model, {}, ValueError, "finetune"),
        (by_model, {"models": {"finetune": deeper}}, introspect.ShapeError, "layers"),
        (by_patch, {}, ValueError, "concepts"),
        (by_patch, {"concepts": ["cat"]}, introspect.ConfigError, "as many tokens"),
        (protocol(), {"vector": vector, "parts": [(0.5, 0.5)]}, ValueError, "parts"),
        (protocol(), {"vector": vector, "top_k": -1}, ValueError, "top_k"),
        (protocol(), {"vector": vector, "continuations": [""]}, ValueError, "continuation"),
        (
            protocol(turns=sentences, injected=None, sentences=SENTENCES, answers=["A", "B", "never"]),
            {"vector": vector},
            introspect.ConfigError,
            "never",
        ),
    ]:
        with pytest.raises(error, match=match):
            run(model, given, **options, progress=running)
