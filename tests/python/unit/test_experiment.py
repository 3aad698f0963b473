"""Experiments on a tiny model: what a run must hold to whatever the numbers are. parity/ has the numbers."""

import json
import math
import statistics
import warnings

import pytest
import torch
from tiny_chat import write_tiny_chat

import introspect
from introspect.experiments.run import PROTOCOLS

SMALL = 500_000  # bytes: holds one conversation, and not many


def protocol(**changes):
    data = {
        "name": "mine",
        "turns": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "A thought."},
            {"role": "assistant", "content": "{ }"},
            {"role": "user", "content": "Noticed it?"},
            {"role": "assistant", "content": "The answer is"},
        ],
        "injected": [1, 2],
        "controls": {
            "turns": [
                {"role": "system", "content": ""},
                {"role": "user", "content": "A thought."},
                {"role": "assistant", "content": "{ }"},
                {"role": "user", "content": "$QUESTION"},
                {"role": "assistant", "content": "The answer is"},
            ],
            "injected": [1, 2],
            "questions": ["Is ice hot?", "Are you a bird?"],
        },
    }
    return introspect.Protocol.parse(json.dumps({**data, **changes}))


def run(model, vectors, given=None, **options):
    options = {"strengths": [2.0], "layers": [(1, 2)], "nulls": 0, **options}
    return introspect.run_experiment(model, given or protocol(), vectors=vectors, **options)


def numbers(result):
    return [(row["base"], row["injected"]) for row in result.rows]


def close(a, b, tolerance=1e-9):
    for left, right in zip(a.rows, b.rows, strict=True):
        for side in ("base", "injected"):
            assert left[side]["log_odds"] == pytest.approx(right[side]["log_odds"], abs=tolerance)


# Protocols


@pytest.mark.parametrize("name", PROTOCOLS)
def test_shipped_protocols_are_the_published_ones_word_for_word(name, shared_data):
    published = json.loads((shared_data / "introspection" / "protocol.json").read_text())
    ours = introspect.load_protocol(name)
    assert ours.name == name
    assert ours.turns == published["variants"][name]
    assert ours.injected == published["runs"][name]["injected"]
    assert ours.read == published["runs"][name]["read"]
    assert ours.steer_generation == published["runs"][name]["steer_generation"]
    assert (ours.yes_token, ours.no_token) == (published["yes_token"], published["no_token"])
    controls = json.loads(ours.to_json())["controls"]
    assert controls["turns"] == published["control_question_template"]
    assert controls["questions"] == ours.control_questions == published["control_questions"]


def test_a_file_of_ones_own_is_a_protocol(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(protocol().to_json())
    assert introspect.load_protocol(path).hash == protocol().hash
    with pytest.raises(introspect.IoError, match="with_info"):
        introspect.load_protocol(tmp_path / "missing.json")


def test_controls_may_stand_in_a_file_beside(tmp_path):
    data = json.loads(protocol().to_json())
    (tmp_path / "questions.json").write_text(json.dumps(data["controls"]))
    (tmp_path / "mine.json").write_text(json.dumps({**data, "controls": "questions.json"}))
    assert introspect.load_protocol(tmp_path / "mine.json").hash == protocol().hash


# Rows


def test_there_is_a_row_for_every_concept_strength_range_question_and_rotation(model, vectors):
    result = run(model, vectors, strengths=[0, 2.0], layers=[(1, 1), (1, 2)], nulls=2)
    table = result.to_pandas()
    assert len(table) == 2 * 2 * 2 * 3 * (1 + 2)
    assert set(table.kind) == {"introspection", "control", "random"}
    assert set(table[table.kind == "random"].null_index) == {0, 1}
    own = table[(table.kind == "introspection")]
    assert set(own.question) == {"Noticed it?"}
    assert set(table[table.question_kind == "control"].question) == {"Is ice hot?", "Are you a bird?"}
    assert table.log_odds.notna().all()


def test_questions_are_the_protocols_none_or_ones_own(model, vectors):
    assert len(run(model, vectors).rows) == 2 * 3
    assert len(run(model, vectors, questions=[]).rows) == 2
    asked = run(model, vectors, questions=["Why?"]).to_pandas()
    assert list(asked.question) == ["Noticed it?", "Why?"] * 2


def test_strength_zero_is_the_base_run_bit_for_bit(model, vectors):
    result = run(model, vectors, strengths=[0.0], nulls=1)
    assert all(row["base"] == row["injected"] for row in result.rows)
    assert any(row["base"] != row["injected"] for row in run(model, vectors).rows)


def test_many_passes_give_what_one_does(model, vectors):
    options = {"strengths": [1.0, -3.0], "layers": [(1, 1), (2, 2), (1, 2)], "nulls": 1}
    close(run(model, vectors, **options), run(model, vectors, **options, memory_budget=SMALL))


def test_the_injection_is_the_one_of_a_plain_forward_pass(model, vectors):
    """No cache, no cutting: one pass over the whole text with the directions at the injected positions."""
    given = protocol()

    def ids(n, **options):
        text = model.apply_chat_template(given.turns[:n], **options)
        return model.tokenizer.encode(text, add_special_tokens=False)

    tokens = torch.tensor([ids(5, continue_final_message=True)])
    span = (len(ids(1)), len(ids(3)))
    (yes,), (no,) = (model.tokenizer.encode(word, add_special_tokens=False) for word in (" yes", " no"))
    for row in run(model, vectors, questions=[]).rows:
        with model.steer(2.0 * vectors[row["concept"]], layers=(1, 2), positions=span):
            logits = model(tokens)[0, -1]
        assert row["injected"]["log_odds"] == pytest.approx(float(logits[yes] - logits[no]), abs=1e-9)
        assert row["injected"]["p_yes"] == pytest.approx(float(logits.softmax(-1)[yes]), rel=1e-9)


def test_residual_strength_is_a_fraction_of_the_median_norm_at_each_layer(model, vectors):
    given = protocol()
    text = model.apply_chat_template(given.turns[:3])
    n_before = len(model.to_tokens(model.apply_chat_template(given.turns[:1]))[0])
    names = [f"blocks.{layer}.hook_resid_post" for layer in (1, 2)]
    _, cache = model.run_with_cache(model.to_tokens(text), names_filter=names)
    scaled = {}
    for layer, name in zip((1, 2), names, strict=True):
        norm = statistics.median(cache[name][0, n_before:].norm(dim=-1).tolist())
        direction = vectors["cat"].directions[layer].double()
        scaled[layer] = 0.3 * norm * direction / direction.norm()
    expected = run(
        model, {"cat": introspect.ControlVector("qwen2", scaled)}, strengths=[1.0]
    )  # float32 directions: equal to about 1e-7
    close(run(model, {"cat": vectors["cat"]}, strengths=[0.3], strength_unit="residual"), expected, 1e-5)
    doubled = {"cat": 2 * vectors["cat"]}
    close(run(model, doubled, strengths=[0.3], strength_unit="residual"), expected, 1e-5)


def test_the_first_position_of_a_conversation_is_left_out_of_the_median_norm(model, vectors):
    turns = [{"role": "user", "content": "A thought."}, {"role": "assistant", "content": "It is"}]
    given = protocol(turns=turns, injected=[0], controls=json.loads(protocol().to_json())["controls"])
    tokens = model.to_tokens(model.apply_chat_template(turns[:1]))
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.1.hook_resid_post"])
    norm = statistics.median(cache["blocks.1.hook_resid_post"][0, 1:].norm(dim=-1).tolist())
    direction = vectors["cat"].directions[1].double()
    expected = introspect.ControlVector("qwen2", {1: 0.3 * norm * direction / direction.norm()})
    options = {"layers": [(1, 1)], "questions": []}
    residual = run(model, {"cat": vectors["cat"]}, given, strengths=[0.3], strength_unit="residual", **options)
    close(residual, run(model, {"cat": expected}, given, strengths=[1.0], **options), 1e-5)


def test_fractions_of_the_depth_are_blocks(model, vectors):
    table = run(model, vectors, layers=[(0.34, 1.0)]).to_pandas()
    assert set(table.first_layer) == {1}
    assert set(table.last_layer) == {2}
    close(run(model, vectors, layers=[(0.34, 1.0)]), run(model, vectors, layers=[(1, 2)]))


# Reads


def test_a_content_report_ranks_every_concepts_tokens(model, vectors):
    given = protocol(read="content")
    result = run(model, vectors, given, questions=["Why?"])
    for row in result.rows:
        if row["question_kind"] == "control":
            assert "tokens" not in row["injected"]
            continue
        assert [t["token"] for t in row["injected"]["tokens"]] == ["cat", " cat", "b", " bread"]
        for token in row["injected"]["tokens"]:
            assert 1 <= token["rank"] <= model.cfg.d_vocab
            assert token["log_prob"] <= 0
    spaced = {row["concept"]: row["injected"]["tokens"][1] for row in result.rows if row["kind"] == "introspection"}
    assert spaced["cat"] != spaced["bread"]
    table = result.to_pandas()
    assert {"token", "rank_base", "rank", "log_prob_base", "log_prob", "spaced_rank"} <= set(table.columns)


def test_the_rank_of_the_most_probable_token_is_one(model, vectors):
    words = {"cat": " yes", "bread": " no"}
    result = run(model, vectors, protocol(read="content", report_tokens=words), questions=[])
    for row in result.rows:
        tokens = row["base"]["tokens"]
        by_probability = sorted(tokens, key=lambda t: -t["log_prob"])
        assert [t["rank"] for t in by_probability] == sorted(t["rank"] for t in tokens)
        assert math.exp(tokens[0]["log_prob"]) == pytest.approx(row["base"]["p_yes"], rel=1e-12)


def test_sampled_text_is_steered_to_its_end(model, vectors):
    given = protocol(read="sample", steer_generation=True, sampling={"max_new_tokens": 12})
    result = run(model, vectors, given, questions=[], strengths=[5.0])
    text = model.apply_chat_template(given.turns, continue_final_message=True)
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    start = len(model.to_tokens(model.apply_chat_template(given.turns[:1]))[0])
    for row in result.rows:
        assert row["base"]["text"] == model.generate(text, max_new_tokens=12)
        with model.steer(5.0 * vectors[row["concept"]], layers=(1, 2), positions=(start, None)):
            assert row["injected"]["text"] == model.generate(text, max_new_tokens=12)
    assert len(ids) > start


def test_controls_beside_an_injection_that_stays_on_are_said_to_be_unlike(model, vectors):
    with pytest.warns(UserWarning, match="compares unlike things"):
        run(model, vectors, protocol(steer_generation=True), questions=["Is ice hot?"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unlike things")
        run(model, vectors, protocol(steer_generation=True), questions=[])
        run(model, vectors, protocol(), questions=["Is ice hot?"])


def test_sampling_with_a_temperature_depends_on_the_seed_alone(model, vectors):
    given = protocol(read="sample", sampling={"max_new_tokens": 12, "temperature": 1.5})

    def texts(vectors, **options):
        return [row["injected"]["text"] for row in run(model, vectors, given, questions=[], **options).rows]

    first = texts(vectors, nulls=1)
    assert first == texts(vectors, nulls=1) == texts(vectors, nulls=1, memory_budget=SMALL)
    assert first[2:3] == texts({"bread": vectors["bread"]})  # whatever its neighbours are
    assert texts(vectors, seed=1) != first[::2]


# The store


def test_a_second_run_takes_every_reading_from_the_store(model, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    options = {"nulls": 1, "strength_unit": "residual", "strengths": [0.2], "store": store}
    first = run(model, vectors, **options)
    n_cells = len(introspect.Store(store))
    asked = []
    second = run(model, vectors, **options, progress=lambda *step: asked.append(step))
    assert numbers(first) == numbers(second)
    assert len(introspect.Store(store)) == n_cells
    assert len(asked) < 3  # no layer ran: a run calls back between layers


def test_an_interrupted_run_keeps_what_it_finished(model, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    options = {"nulls": 3, "memory_budget": SMALL}

    def stop_halfway(what, done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, vectors, **options, store=store, progress=stop_halfway)
    kept = len(introspect.Store(store))
    assert kept > 0
    steps = []
    resumed = run(model, vectors, **options, store=store, progress=lambda *step: steps.append(step))
    assert numbers(resumed) == numbers(run(model, vectors, **options))
    done, total = steps[-1][1:]
    assert done == total == len(introspect.Store(store))


def test_what_changes_a_reading_changes_its_place_in_the_store(model, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    sizes = [0]

    def grow(**options):
        run(model, {"cat": vectors["cat"]}, store=store, questions=[], **options)
        sizes.append(len(introspect.Store(store)))
        return sizes[-1] - sizes[-2]

    assert grow() == 2  # base and injected
    assert grow() == 0
    assert grow(strengths=[3.0]) == 1
    assert grow(layers=[(2, 2)]) == 1
    assert grow(given=protocol(yes_token=" cat")) == 2
    turns = json.loads(protocol().to_json())["turns"]
    turns[3]["content"] = "Well?"
    assert grow(given=protocol(turns=turns)) == 2
    assert grow(given=protocol(name="renamed")) == 0


# Mistakes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strengths": [math.nan]}, ValueError, "finite"),
        ({"strengths": [math.inf]}, ValueError, "finite"),
        ({"strengths": []}, ValueError, "strength"),
        ({"layers": []}, ValueError, "layer"),
        ({"layers": [(1, 3)]}, IndexError, "0 to 2"),
        ({"layers": [(-1, 2)]}, IndexError, "0 to 2"),
        ({"layers": [(2, 1)]}, IndexError, "order"),
        ({"layers": [(0.5, 1.5)]}, IndexError, "fractions"),
        ({"layers": [(0, 0)]}, introspect.ConfigError, "direction"),
        ({"nulls": -1}, ValueError, "nulls"),
        ({"memory_budget": 1000}, ValueError, "question '.*' of protocol 'mine'"),
        ({"strength_unit": "metres"}, ValueError, "metres"),
        ({"vectors": {}}, ValueError, "vector"),
        (
            {"vectors": {"x": introspect.ControlVector("qwen2", {1: torch.ones(31)})}},
            introspect.ShapeError,
            "32",
        ),
        ({"given": protocol(yes_token=" absolutely")}, introspect.ConfigError, "absolutely"),
        ({"given": protocol(read="sample", sampling={"max_new_tokens": 9000})}, introspect.ShapeError, "8192"),
    ],
)
def test_a_mistake_is_an_error_before_anything_runs(model, vectors, options, error, message):
    def running(*step):
        raise AssertionError("work had begun")

    arguments = {"vectors": vectors, "progress": running, **options}
    with pytest.raises(error, match=message):
        run(model, arguments.pop("vectors"), arguments.pop("given", None), **arguments)


def test_controls_need_a_place_for_the_question(model, vectors):
    data = json.loads(protocol().to_json())
    del data["controls"]
    bare = introspect.Protocol.parse(json.dumps(data))
    assert len(run(model, vectors, bare).rows) == 2
    with pytest.raises(introspect.ConfigError, match="controls"):
        run(model, vectors, bare, questions=["Why?"])


def test_a_vector_of_another_model_is_named_in_a_warning(model, vectors, tmp_path):
    other = introspect.load_model(write_tiny_chat(tmp_path / "other", seed=1))
    pairs = introspect.concept_pairs(other, "cat", ["I", "It"])
    with pytest.warns(UserWarning, match="other weights"):
        run(model, {"cat": introspect.ControlVector.train(other, pairs)})


def test_a_model_without_a_tokenizer_cannot_be_asked(vectors, tmp_path):
    folder = write_tiny_chat(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(introspect.ConfigError, match="tokenizer"):
        run(introspect.load_model(folder), vectors)
