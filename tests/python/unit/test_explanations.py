"""Explanations of features, against a local server that answers as OpenAI's do."""

import json
import re

import pytest
from chat_server import serving

from introspect import _C
from introspect.sae.explanations import Endpoint, Explanation, detection_score, explain, fuzzing_score


@pytest.fixture
def server():
    with serving() as made:
        yield made


def context(words, active):
    return {
        "context": 0,
        "position": words.index(active) if active in words else 0,
        "tokens": [" " + word for word in words],
        "values": [5.0 if word == active else 0.0 for word in words],
    }


def card(active, feature=3, n=24):
    """A feature that is active on one word and nowhere else."""
    texts = [context(["the", f"big{i}", active, "ran", f"to{i}"], active) for i in range(n)]
    groups = [
        {"low": -1, "high": 5.0, "share": -1, "contexts": texts[: n // 2]},
        {"low": 4.0, "high": 5.0, "share": 0.1, "contexts": texts[n // 2 :]},
    ]
    return {"feature": feature, "max_active": 5.0, "groups": groups}


def test_an_explanation_is_made_of_marked_excerpts(server):
    server.reply = lambda system, user: "It is clear.\n[EXPLANATION]: the word dog"
    found = explain(card("dog"), server.endpoint, examples=6)
    assert found == Explanation(3, "the word dog", "excerpts", "judge")
    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions" and asked["body"]["model"] == "judge"
    assert asked["headers"]["Authorization"] == "Bearer secret"
    user = asked["body"]["messages"][1]["content"]
    assert user.count("<< dog>>") == 6 and user.count("' dog' 10") == 6 and user.count("Excerpt") == 6


def test_excerpts_to_score_by_are_not_those_it_was_made_of(server):
    server.reply = lambda system, user: "[EXPLANATION]: dogs"
    explain(card("dog"), server.endpoint, examples=12)
    shown = set(re.findall(r"big\d+", server.asked[0]["body"]["messages"][1]["content"]))
    server.asked.clear()
    server.reply = lambda system, user: json.dumps([1] * len(re.findall(r"^\d+\. ", user, re.MULTILINE)))
    detection_score(Explanation(3, "dogs", "", ""), card("dog"), [card("cat", 4)], server.endpoint, excerpts=6)
    scored = {
        one
        for asked in server.asked
        for line in asked["body"]["messages"][1]["content"].splitlines() if " dog" in line
        for one in re.findall(r"big\d+", line)
    }  # fmt: skip
    assert len(shown) == 12 and scored and not shown & scored


def judge(is_true):
    """A judge that looks at each numbered excerpt."""

    def reply(system, user):
        excerpts = re.findall(r"^\d+\. (.*)$", user, re.MULTILINE)
        return "Sure: " + json.dumps([int(is_true(one)) for one in excerpts])

    return reply


def test_detection_is_right_for_who_knows_the_feature_and_chance_for_who_says_yes(server):
    explained = Explanation(3, "the word dog", "", "")
    others = [card("cat", 4), card("sun", 5)]
    server.reply = judge(lambda text: " dog" in text)
    found = detection_score(explained, card("dog"), others, server.endpoint, excerpts=8, batch=3)
    assert found.accuracy == 1 and found.method == "detection" and len(found.answers) == 16
    assert found.right["true"].trials == found.right["false"].trials == 8
    assert all("<<" not in asked["body"]["messages"][1]["content"].split("\n\n", 1)[1] for asked in server.asked)
    server.reply = judge(lambda text: True)
    assert detection_score(explained, card("dog"), others, server.endpoint, excerpts=8).accuracy == 0.5
    server.reply = judge(lambda text: " dog" not in text)
    found = detection_score(explained, card("dog"), others, server.endpoint, excerpts=8)
    assert found.accuracy == 0 and not found.to_pandas().eval("truth == answer").any()


def test_fuzzing_tells_right_marks_from_others(server):
    explained = Explanation(3, "the word dog", "", "")
    server.reply = judge(lambda text: "<< dog>>" in text)
    found = fuzzing_score(explained, card("dog"), server.endpoint, excerpts=5, batch=4)
    assert found.accuracy == 1 and {truth for truth, _ in found.answers} == {True, False}
    assert all(line.count("<<") == 1 for asked in server.asked
               for line in re.findall(r"^\d+\. .*$", asked["body"]["messages"][1]["content"],
                                        re.MULTILINE))  # fmt: skip


@pytest.mark.parametrize("answer", ["no list", "[1, 0]", "[1, 2, 0, 1, 1]", "[]", "[1, 1, 1, 1, 1, 1, 1]"])
def test_an_answer_that_is_no_list_of_as_many_numbers_is_an_error(server, answer):
    server.reply = lambda system, user: answer
    with pytest.raises(_C.Error, match="5 numbers 0 or 1"):
        detection_score(Explanation(3, "x", "", ""), card("dog"), [card("cat", 4)], server.endpoint, batch=5)


def test_faults_of_the_server_are_said_without_the_key(server):
    server.reply = lambda system, user: None
    with pytest.raises(_C.Error, match="without choices"):
        explain(card("dog"), server.endpoint)
    server.reply = lambda system, user: "no explanation here"
    with pytest.raises(_C.Error, match="EXPLANATION"):
        explain(card("dog"), server.endpoint)
    server.status = 401
    with pytest.raises(_C.Error, match="answered 401") as error:
        explain(card("dog"), server.endpoint)
    assert "secret" not in str(error.value) and "secret" not in repr(server.endpoint)
    with pytest.raises(_C.Error, match="no answer"):
        explain(card("dog"), Endpoint("http://127.0.0.1:1/v1", "x"))
    with pytest.raises(ValueError, match="http"):
        explain(card("dog"), Endpoint("file:///etc", "x"))
    with pytest.raises(_C.ConfigError, match="never active"):
        explain({**card("dog"), "groups": []}, server.endpoint)
    with pytest.raises(_C.ConfigError, match="both kinds"):
        detection_score(Explanation(3, "x", "", ""), card("dog"), [], server.endpoint)
