"""The arms of a study, each against passes with plain hooks over the texts that it says it is of (float64)."""

import hashlib
import json
import sqlite3

import pytest
import torch
from looped import TURNS, adding, changed, log_odds, message_positions, protocol
from tiny_chat import write_tiny_chat

import introspect
from introspect.experiments.fields import KEYS
from introspect.studies import ARMS, Arm, Study, run_study
from introspect.studies.from_results import evidence_of

pytestmark = pytest.mark.filterwarnings("ignore:.*left the format of the answer")

LAYERS, STRENGTH, SEED, NULLS, N_EQUAL = (1, 2), 2.0, 3, 2, 3
PARAPHRASES = [{"name": "again", "question": "Noticed it now?", "prefix": "I say"}]
GROUPS = {"factual_yes": ["Is ice cold?"], "contested": ["Is art good?"]}
OPTIONS = {
    "strengths": [STRENGTH, -1.0],
    "layers": LAYERS,
    "nulls": NULLS,
    "seed": SEED,
    "paraphrases": PARAPHRASES,
    "groups": GROUPS,
    "words": 3,
    "progress": False,
}


@pytest.fixture(scope="module")
def shuffled(vectors):
    return {name: [introspect.random_rotation(vector, seed=17)] for name, vector in vectors.items()}


@pytest.fixture(scope="module")
def told():
    return protocol(name="told", turns=[TURNS[0], {"role": "user", "content": "Told. A thought."}, *TURNS[2:]])


@pytest.fixture(scope="module")
def study(model, vectors, shuffled, told):
    arms = [name for name in ARMS if name != "equal_dose"]  # doses are above 0
    return run_study(model, told, vectors=vectors, arms=arms, untold=protocol(), shuffled=shuffled, **OPTIONS)


class Naive:
    """One pass over a conversation with changes[layer](x [P, D]) at some of its messages."""

    def __init__(self, model):
        self.model = model

    def logits(self, turns, injected=(1, 2), changes=None, more=()):
        return changed(self.model, turns, injected, changes, more)

    def log_odds(self, turns, *args, **options):
        return log_odds(self.model, self.logits(turns, *args, **options)[-1])

    def log_probs(self, turns, *args, **options):
        """Of the tokens of cat and bread without and with a space, as content is read."""
        ids = [
            self.model.tokenizer.encode(text, add_special_tokens=False)[0]
            for text in ("cat", " cat", "bread", " bread")
        ]
        return self.logits(turns, *args, **options)[-1].log_softmax(-1)[ids].tolist()


@pytest.fixture(scope="module")
def naive(model):
    return Naive(model)


def rotation(vectors, concept, number):
    seed = int(hashlib.sha256(f"{SEED}/{concept}/{number}".encode()).hexdigest()[:16], 16)
    return introspect.random_rotation(vectors[concept], seed=seed)


def turns_of(row, given):
    """The conversation of a row that asks the own question or its paraphrase."""
    turns = given.turns
    if row["paraphrase"] == "again":
        turns[3] = {**turns[3], "content": "Noticed it now?"}
        turns[4] = {**turns[4], "content": "I say"}
    return turns


def rows_of(study, arm, n=None):
    rows = study[arm].rows
    assert rows and (n is None or len(rows) == n)
    return rows


def test_every_arm_runs_or_says_why_not(study):
    assert list(study.results) == [name for name in ARMS if name != "equal_dose"]
    assert study.not_run == {}
    assert set(study.settings["arms"]) == set(study.results)
    assert all(text.endswith(".") for text in study.settings["arms"].values())
    assert study.settings["paraphrases"] == ["again"] and study.settings["concepts"] == ["cat", "bread"]


def test_vectors_and_their_nulls(study, naive, told, vectors, shuffled):
    other = {"cat": "bread", "bread": "cat"}
    nulls = {
        "injected": lambda row: None,
        "rotations": lambda row: rotation(vectors, row["concept"], row["null_index"]),
        "shuffled_pairs": lambda row: shuffled[row["concept"]][0],
        "other_concepts": lambda row: vectors[other[row["concept"]]],
    }
    n = {"injected": 1, "rotations": 1 + NULLS, "shuffled_pairs": 2, "other_concepts": 2}
    for arm, null_of in nulls.items():
        for row in rows_of(study, arm, 2 * 2 * 2 * n[arm]):  # concepts, strengths, wordings
            vector = vectors[row["concept"]] if row["kind"] == "introspection" else null_of(row)
            turns = turns_of(row, told)
            expected = naive.log_odds(turns, changes=adding(vector, row["strength"]))
            assert row["injected"]["log_odds"] == pytest.approx(expected, abs=1e-9)
            assert row["base"]["log_odds"] == pytest.approx(naive.log_odds(turns), abs=1e-9)


def test_sham_is_told_against_untold(study, naive, told):
    rows = rows_of(study, "sham", 2)
    for row in rows:
        assert row["concept"] == "(nothing)" and row["strength"] == 0
        assert row["injected"]["log_odds"] == pytest.approx(naive.log_odds(turns_of(row, told)), abs=1e-9)
        untold = [TURNS[0], TURNS[1], *turns_of(row, told)[2:]]
        assert row["base"]["log_odds"] == pytest.approx(naive.log_odds(untold), abs=1e-9)
        assert row["base"]["log_odds"] != row["injected"]["log_odds"]


def test_the_input_is_edited_in_the_place_of_an_injection(study, naive, told):
    for row in rows_of(study, "input_edit", 4):
        turns = turns_of(row, told)
        assert row["base"]["log_odds"] == pytest.approx(naive.log_odds(turns), abs=1e-9)
        turns[1] = {**turns[1], "content": f"{turns[1]['content']}\n\nPlease think about {row['concept']}."}
        assert row["injected"]["log_odds"] == pytest.approx(naive.log_odds(turns), abs=1e-9)


def test_a_known_positive_asks_for_a_word_that_is_written(study, naive, told):
    for row in rows_of(study, "known_positive", 2):
        turns = told.turns
        asked = 'Is the secret word written in one of the messages above? Answer with "The answer is yes" or '
        turns[3] = {**turns[3], "content": asked + '"The answer is no".'}
        assert row["base"]["log_odds"] == pytest.approx(naive.log_odds(turns), abs=1e-9)
        turns[1] = {**turns[1], "content": f'{turns[1]["content"]}\n\nThe secret word is "{row["concept"]}".'}
        assert row["injected"]["log_odds"] == pytest.approx(naive.log_odds(turns), abs=1e-9)
    known = evidence_of(study).arms["known_positive"].by_concept()
    assert known == {
        row["concept"]: row["injected"]["log_odds"] - row["base"]["log_odds"] for row in study["known_positive"].rows
    }


def test_the_message_that_asks_is_the_other_span(study, naive, told, vectors):
    for row in rows_of(study, "other_span", 8):
        turns = turns_of(row, told)
        expected = naive.log_odds(turns, [3], adding(vectors[row["concept"]], row["strength"]))
        assert row["injected"]["log_odds"] == pytest.approx(expected, abs=1e-9)


def test_scale_and_dropout_change_the_natural_activations(study, naive, told):
    for row in rows_of(study, "scaled", 4):  # strengths are absolute: the library's own
        changes = {layer: (lambda x, by=1 + row["strength"]: x * by) for layer in LAYERS}
        assert row["strength"] == 0.1
        expected = naive.log_odds(turns_of(row, told), changes=changes)
        assert row["injected"]["log_odds"] == pytest.approx(expected, abs=1e-9)
    assert {row["strength"] for row in rows_of(study, "dropout", 4)} == {0.1}
    assert {row["strength"] for row in rows_of(study, "swap", 4)} == {1.0}
    assert len(rows_of(study, "noise")) == 8


def content_of(row, side):
    return [token["log_prob"] for token in row[side]["tokens"]]


def test_content_is_read_after_a_yes(study, naive, told, vectors):
    turns = told.turns
    turns[4] = {**turns[4], "content": 'The answer is yes, and the injected thought seems to be"'}
    for row in rows_of(study, "content", 4 * (1 + NULLS)):
        vector = vectors[row["concept"]]
        if row["kind"] == "random":
            vector = rotation(vectors, row["concept"], row["null_index"])
        assert content_of(row, "base") == pytest.approx(naive.log_probs(turns), abs=1e-9)
        expected = naive.log_probs(turns, changes=adding(vector, row["strength"]))
        assert content_of(row, "injected") == pytest.approx(expected, abs=1e-9)


def test_nothing_is_asked_for_the_promotion_of_tokens(study, naive, told, vectors):
    rows = rows_of(study, "no_question", 4 * 3)
    assert len({row["question"] for row in rows}) == 3
    for row in rows:
        turns = told.turns
        turns[3] = {**turns[3], "content": row["question"]}
        turns[4] = {**turns[4], "content": 'The first word on this page is "'}
        expected = naive.log_probs(turns, changes=adding(vectors[row["concept"]], row["strength"]))
        assert content_of(row, "base") == pytest.approx(naive.log_probs(turns), abs=1e-9)
        assert content_of(row, "injected") == pytest.approx(expected, abs=1e-9)


def test_an_observer_reads_what_the_steered_model_said(study, naive, model, told, vectors):
    def said(vector, strength, n=3):
        """Greedy, steered at every token of the injected messages."""
        turns = [*told.turns[:2], {"role": "assistant", "content": ""}]
        ids = []
        for _ in range(n):
            changes = adding(vector, strength) if vector else {}
            ids.append(int(naive.logits(turns, [1, 2], changes, ids)[-1].argmax()))
        return model.tokenizer.decode(ids)

    transcripts = {(one["concept"], one["strength"]): one["said"] for one in study["observer"].settings["transcripts"]}
    spoken_base = study["observer"].settings["transcripts"][0]["said_base"]
    assert spoken_base == said(None, 0)
    for row in rows_of(study, "observer", 4):
        assert (row["first_layer"], row["last_layer"]) == LAYERS
        text = transcripts[row["concept"], row["strength"]]
        assert text == said(vectors[row["concept"]], row["strength"])
        turns = told.turns
        turns[4] = {**turns[4], "content": 'The answer is yes, and the injected thought seems to be"'}
        for side, words in (("base", spoken_base), ("injected", text)):
            heard = [*turns[:2], {**turns[2], "content": words}, *turns[3:]]
            assert content_of(row, side) == pytest.approx(naive.log_probs(heard), abs=1e-9)


def test_questions_in_groups_stand_in_the_questions_place(study, naive, told, vectors):
    rows = rows_of(study, "question_groups", 8)
    assert {row["group"] for row in rows} == set(GROUPS)
    for row in rows:
        turns = told.turns
        wording = f'{row["question"]} Answer with "The answer is yes" or "The answer is no".'
        turns[3] = {**turns[3], "content": wording}
        expected = naive.log_odds(turns, changes=adding(vectors[row["concept"]], row["strength"]))
        assert row["injected"]["log_odds"] == pytest.approx(expected, abs=1e-9)


def test_nulls_of_equal_dose_have_the_vectors_divergence(model, naive, told, vectors):
    options = {**OPTIONS, "strengths": [2.0, 0.7], "n_equal_dose": N_EQUAL}
    study = run_study(model, told, vectors=vectors, arms="equal_dose", **options)
    result = study["equal_dose"]
    index = message_positions(model, told.turns, [1, 2])

    def kl(vector, strength):
        base = naive.logits(told.turns)[index].log_softmax(-1)
        there = naive.logits(told.turns, changes=adding(vector, strength))[index].log_softmax(-1)
        return (there.exp() * (there - base)).sum(-1).mean().item()

    strengths = {}
    for one in result.settings["doses"]:
        null = rotation(vectors, one["concept"], one["null_index"])
        target = kl(vectors[one["concept"]], one["strength"])
        assert kl(null, one["null_strength"]) == pytest.approx(target, rel=0.02)
        assert one["kl_vector"] == pytest.approx(target, rel=1e-4)
        strengths[one["concept"], one["strength"], one["null_index"]] = one["null_strength"]
    assert len(strengths) == 2 * 2 * N_EQUAL
    # The first measurement is the rotation at the vector's strength and the second the arm, as planned; more are not.
    solving = study.costs["solving"]
    counts = [one["measured"] for one in result.settings["doses"]]
    assert solving["measured"] == sum(counts) <= 4 * len(strengths)
    found = introspect.conversation_tokens(model, told)
    whole = model.cfg.n_layers * len([*found.before, *found.injected, *found.after])
    above = (model.cfg.n_layers - 1 - LAYERS[0]) * len(index)
    more = sum(max(0, count - 2) for count in counts)
    assert more > 0 and above * more <= solving["token_layers"] <= 2 * whole * (more + 2 * 2 * max(counts))
    assert len(result.rows) == len({(*(row[name] for name in KEYS),) for row in result.rows})
    assert len(result.rows) == 2 * 2 * (1 + N_EQUAL) * 2
    for row in result.rows:
        if row["kind"] == "random":
            strength = strengths[row["concept"], row["strength"], row["null_index"]]
            vector = rotation(vectors, row["concept"], row["null_index"])
        else:
            strength, vector = row["strength"], vectors[row["concept"]]
        expected = naive.log_odds(turns_of(row, told), changes=adding(vector, strength))
        assert row["injected"]["log_odds"] == pytest.approx(expected, abs=1e-9)


# The study as a whole


def test_a_study_is_its_file(study, tmp_path):
    study.save(tmp_path / "study.json")
    back = Study.load(tmp_path / "study.json")
    assert back.to_json() == study.to_json()
    assert back["observer"].settings == study["observer"].settings
    table = study.to_pandas()
    assert list(dict.fromkeys(table.arm)) == list(study.results)
    assert len(table) == sum(len(result.rows) for result in study.results.values())
    assert "rotations" in repr(study)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema must be 1"),
        ({"arms": None}, "missing arms"),
        ({"arms": []}, "arms must be an object"),
        ({"arms": {"injected": {"schema": 1}}}, "arms.injected: Result"),
        ({"costs": 3}, "costs must be an object"),
    ],
)
def test_what_is_no_study_is_refused_with_the_place(study, change, message, tmp_path):
    data = {key: value for key, value in {**json.loads(study.to_json()), **change}.items() if value is not None}
    (tmp_path / "study.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        Study.load(tmp_path / "study.json")


def test_arms_share_what_they_have_in_common(study, model, told, vectors, shuffled):
    arms = [name for name in ARMS if name != "equal_dose"]
    given = {"vectors": vectors, "arms": arms, "untold": protocol(), "shuffled": shuffled, **OPTIONS}
    plan = run_study(model, told, **given, plan=True)
    assert plan.costs() == study.costs
    alone = sum(one.token_layers_to_run for one in plan.arms.values())
    assert 0 < plan.together.token_layers_to_run < 0.75 * alone
    assert plan.together.readings == sum(one.readings for one in plan.arms.values())
    assert "observer" in str(plan)


def test_readings_are_found_in_a_store(model, told, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    given = {
        "vectors": vectors,
        "arms": ["injected", "noise", "question_groups", "observer"],
        **OPTIONS,
        "store": store,
    }
    first = run_study(model, told, **given)
    n = len(introspect.Store(store))
    plan = run_study(model, told, **{**given, "arms": ["injected", "noise", "question_groups"]}, plan=True)
    assert plan.together.found == plan.together.readings
    again = run_study(model, told, **given)
    assert len(introspect.Store(store)) == n
    for name, result in first.results.items():
        assert [row["injected"] for row in again[name].rows] == [row["injected"] for row in result.rows]


def test_an_arm_of_ones_own(model, told, vectors):
    halved = Arm("halved", "Half of it.", lambda setup, known: setup.experiment(strengths=[1.0]))
    study = run_study(model, told, vectors=vectors, arms=["injected", halved], **OPTIONS)
    assert {row["strength"] for row in study["halved"].rows} == {1.0}
    assert study.settings["arms"]["halved"] == "Half of it."


def test_another_model_may_observe(model, told, vectors, tmp_path):
    other = introspect.load_model(write_tiny_chat(tmp_path / "other", seed=1), dtype=torch.float64)
    study = run_study(model, told, vectors=vectors, arms=["injected", "observer"], observer=other, **OPTIONS)
    assert study["observer"].model["hash"] == other.hash
    row = study["observer"].rows[0]
    transcript = study["observer"].settings["transcripts"][0]
    turns = told.turns
    turns[2] = {**turns[2], "content": transcript["said"]}
    turns[4] = {**turns[4], "content": 'The answer is yes, and the injected thought seems to be"'}
    assert content_of(row, "injected") == pytest.approx(Naive(other).log_probs(turns), abs=1e-9)


SENTENCES = {
    "turns": [{"role": "user", "content": "$SENTENCES"}, *TURNS[2:]],
    "injected": None,
    "sentences": ["One thing.", "Other things."],
    "answers": [" yes", " no"],
}
CLOSED = TURNS[:4]


@pytest.mark.parametrize(
    ("fields", "arm", "message"),
    [
        ({"steer_generation": True}, "noise", "reaches the spans alone"),
        ({"steer_generation": True}, "swap", "reaches the spans alone"),
        ({"inject": {"by": "swap", "text": "x"}}, "rotations", "injects by swap"),
        ({"inject": {"by": "noise"}}, "equal_dose", "injects by noise"),
        ({}, "shuffled_pairs", "pairs="),
        ({"injected": [1, 3]}, "other_span", "not injected"),
        ({"injected": [1, 3]}, "no_question", "not injected"),
        ({"injected": [1]}, "observer", "message of the assistant"),
        ({"turns": CLOSED}, "content", "beginning of an answer"),
        ({"turns": CLOSED}, "no_question", "beginning of an answer"),
        ({"read": "content"}, "content", "reads the content itself"),
        (SENTENCES, "content", "where a thought was injected"),
        (SENTENCES, "input_edit", "whole messages"),
        (SENTENCES, "observer", "whole messages"),
        (SENTENCES, "other_span", "no answers for places"),
    ],
)
def test_an_arm_that_a_protocol_cannot_have_says_why(model, vectors, fields, arm, message):
    given = protocol(name="odd", **fields)
    with pytest.raises(introspect.ConfigError, match=message):
        run_study(model, given, vectors=vectors, arms=arm, **OPTIONS | {"paraphrases": []})


def test_default_arms_that_cannot_be_had_are_left_out_with_the_reason(model, vectors):
    options = {**OPTIONS, "strengths": 2.0, "paraphrases": None, "groups": None}
    given = {"vectors": {"cat": vectors["cat"]}, **options}
    study = run_study(model, protocol(**SENTENCES), **{k: v for k, v in given.items() if v is not None})
    assert set(study.not_run) == {
        *("shuffled_pairs", "other_concepts", "input_edit", "known_positive", "other_span"),
        *("content", "no_question", "observer"),
    }
    assert "two concepts" in study.not_run["other_concepts"]
    assert {row["group"] for row in study["question_groups"].rows} == {"matched"}
    with pytest.raises(KeyError, match="whole messages"):
        study["observer"]


def test_a_study_that_goes_on_is_the_one_that_was_begun(model, told, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    options = {**OPTIONS, "strengths": [2.0], "paraphrases": [], "n_equal_dose": 1, "certified": False}
    given = {"vectors": vectors, "arms": ["injected", "equal_dose"], "store": store, **options}
    first = run_study(model, told, **given)
    n = len(introspect.Store(store))
    with sqlite3.connect(store) as database:
        database.execute("UPDATE cells SET written = '2026-01-31T23:59:59.123Z' WHERE concept = 'cat' AND rowid > 3")
    again = run_study(model, told, **given)
    assert len(introspect.Store(store)) == n  # the search's steps are there too
    assert again.settings["started"] == "2026-01-31T23:59:59+00:00" < first.settings["started"]
    assert again.costs == first.costs
    assert again["equal_dose"].settings["doses"] == first["equal_dose"].settings["doses"]
    assert [row["injected"] for row in again["equal_dose"].rows] == [
        row["injected"] for row in first["equal_dose"].rows
    ]
    other = run_study(model, told, **{**given, "seed": SEED + 1})  # of other rotations nothing is there
    assert other.settings["started"] >= first.settings["started"]


def test_what_is_seen_to_be_out_of_reach_leaves_the_arms_that_have_run(model, told):
    nothing = {"cat": introspect.ControlVector("qwen2", {layer: torch.zeros(32) for layer in LAYERS})}
    options = {**OPTIONS, "strengths": [2.0], "paraphrases": [], "certified": False}
    with pytest.warns(UserWarning, match="'equal_dose' is left out.*nothing to equal"):
        study = run_study(model, told, vectors=nothing, arms=["rotations", "equal_dose"], **options)
    assert list(study.results) == ["rotations"] and "nothing to equal" in study.not_run["equal_dose"]
    with pytest.raises(ValueError, match="nothing to equal"):
        run_study(model, told, vectors=nothing, arms=["equal_dose"], **options)


def test_doses_that_cannot_be_equalled_leave_the_rest(model, told, vectors):
    options = {name: value for name, value in OPTIONS.items() if name != "words"} | {"strengths": [-1.0], "words": 1}
    study = run_study(model, told, vectors=vectors, **options)
    assert "above 0" in study.not_run["equal_dose"] and "rotations" in study.results
    with pytest.raises(introspect.ConfigError, match="above 0"):
        run_study(model, told, vectors=vectors, arms="equal_dose", **options)


def test_strengths_may_be_doses(model, told, vectors):
    options = {**OPTIONS, "strengths": "kl=0.05"}
    study = run_study(model, told, vectors=vectors, arms=["injected", "noise", "equal_dose", "observer"], **options)
    rows = study["injected"].rows
    assert all(row["dose_kl"] == pytest.approx(0.05, rel=0.02) for row in rows)
    strengths = {row["concept"]: row["strength"] for row in rows}
    assert strengths["cat"] != strengths["bread"]
    for arm in ("noise", "equal_dose", "observer"):
        assert {row["concept"]: row["strength"] for row in study[arm].rows} == strengths
    assert all(one["kl"] == pytest.approx(0.05, rel=0.04) for one in study["equal_dose"].settings["doses"])
    assert study.dose["injected"]


def test_shipped_groups_and_paraphrases(model, vectors):
    from introspect.studies import variants

    groups = variants.texts()["groups"]
    assert all(len(groups[name]) >= 8 for name in ("factual_yes", "factual_no", "contested"))
    questions = [question for listed in groups.values() for question in listed]
    assert len(set(questions)) == len(questions)
    given = variants.paraphrased(introspect.load_protocol("with_info"), None)
    assert len(given.paraphrases) == 5 and given.asks_own_question
    assert variants.paraphrased(introspect.load_protocol("content_report"), None).paraphrases == []
    assert variants.untold(given).turns == introspect.load_protocol("no_info").turns
    assert variants.untold(introspect.load_protocol("no_info")) is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"arms": "rotation"}, ValueError, "arms must be of injected"),
        ({"arms": []}, ValueError, "one or more"),
        ({"arms": ["noise", "noise"]}, ValueError, "each once"),
        ({"arms": [7]}, TypeError, "names or Arms"),
        ({"swaptext": "x"}, TypeError, "options of arms"),
        ({"nulls": 0}, ValueError, "nulls must be 1 or more"),
        ({"arms": "shuffled_pairs", "pairs": {"cat": []}}, ValueError, "missing bread"),
        ({"arms": "dropout", "dropout_rate": 2.0}, introspect.ConfigError, "rate"),
    ],
)
def test_mistakes_are_named_before_anything_runs(model, told, vectors, options, error, message):
    with pytest.raises(error, match=message):
        run_study(model, told, vectors=vectors, **{**OPTIONS, **options})
