"""Local and served judges, against a server of the test; kappa and corrected rates, against sklearn and simulation."""

import numpy
import pytest
import torch
from chat_server import serving
from sklearn.metrics import cohen_kappa_score
from tiny_chat import write_tiny_chat

import introspect
from introspect.endpoint import Endpoint
from introspect.studies import agreement, answer_shares, corrected_rates, endpoint_judge, model_judge, spellings

LABELS = {"yes": "it says that it noticed something", "no": "it says that it did not"}


@pytest.fixture
def server():
    with serving() as made:
        yield made


def test_a_server_judges_and_rubbish_is_marked(server):
    replies = {"good": "Yes.", "bad": "NO", "odd": "maybe", "none": None}
    server.reply = lambda system, user: replies[user.splitlines()[-1]]
    found = endpoint_judge(server.endpoint, LABELS, rubric="Be strict.").judge(list(replies))
    assert [one.label for one in found] == ["yes", "no", None, None]
    assert [one.text for one in found] == list(replies)
    assert "'maybe'" in found[2].problem and "choices" in found[3].problem
    assert "Be strict." in server.asked[0]["body"]["messages"][0]["content"]


def test_a_judge_that_is_offline_loses_nothing():
    found = endpoint_judge(Endpoint("http://127.0.0.1:1/v1", "x"), LABELS).judge(["a", "b"])
    assert [(one.text, one.label) for one in found] == [("a", None), ("b", None)]
    assert all("gave no answer" in one.problem for one in found)


def test_a_local_model_gives_the_label_with_the_largest_share(tmp_path):
    model = introspect.load_model(write_tiny_chat(tmp_path / "model"), dtype=torch.float64)
    judge = model_judge(model, LABELS)
    found = judge.judge(["I see a cat.", "Nothing."])
    asked = "You read what a language model said and decide which of these labels fits it: yes, no."
    for one in found:
        if one.label is None:  # a random model says anything
            assert "of the probability" in one.problem
            continue
        assert one.label == max(one.shares, key=one.shares.get)
    meanings = "\n".join(f"{label}: {meaning}" for label, meaning in LABELS.items())
    content = f"{asked}\n{meanings}\nAnswer with one label and nothing else.\n\nThe text:\nNothing."
    prompt = model.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids = model.tokenizer.encode(prompt, add_special_tokens=False)
    shares = answer_shares(model, [ids], {label: spellings(label) for label in LABELS}, progress=False)[0]
    total = shares["yes"] + shares["no"]
    scale = 1 if found[1].label is None else total
    assert found[1].shares == pytest.approx({label: shares[label] / scale for label in LABELS})


@pytest.mark.parametrize("labels", [{"yes": ""}, {"yes": "", "Yes": ""}, ["yes", "no"]])
def test_labels_that_cannot_be(labels):
    with pytest.raises(ValueError, match="labels must"):
        endpoint_judge(Endpoint("http://127.0.0.1:1/v1", "x"), labels)


def test_kappa_is_that_of_sklearn():
    rng = numpy.random.default_rng(0)
    truth = rng.choice(["yes", "no", "refuses"], 200, p=[0.5, 0.3, 0.2])
    judged = [one if rng.random() < 0.8 else rng.choice(["yes", "no"]) for one in truth]
    found = agreement([*judged, None], [*truth, "yes"])
    assert found.kappa == pytest.approx(cohen_kappa_score(truth, judged), abs=1e-12)
    assert found.accuracy == pytest.approx(numpy.mean(truth == numpy.array(judged)))
    assert found.interval[0] < found.kappa < found.interval[1] and found.n_failed == 1
    assert numpy.isnan(agreement(["yes"] * 3, ["yes"] * 3).kappa)


def test_corrected_rates_of_two_labels_are_rogan_and_gladens():
    judged, truth = ["yes"] * 45 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 40, ["yes"] * 50 + ["no"] * 50
    known = agreement(judged, truth)  # sensitivity 0.9, specificity 0.8
    found = corrected_rates(["yes"] * 55 + ["no"] * 45, known)["yes"]
    assert found.raw == 0.55 and found.rate == pytest.approx((0.55 + 0.8 - 1) / (0.9 + 0.8 - 1))
    assert corrected_rates(["no"] * 20, known)["yes"].rate == 0.0  # fewer than its false ones: none


def test_corrected_intervals_hold_the_truth():
    """Of 60 simulated studies at least 50 intervals of 95 % do: fewer has a chance of 1 in 1,000."""
    rng, covered = numpy.random.default_rng(1), 0
    mistakes = {"yes": [0.85, 0.15], "no": [0.2, 0.8]}

    def say(truth):
        return ["yes", "no"][int(rng.random() > mistakes[truth][0])]

    for _ in range(60):
        gold = ["yes"] * 60 + ["no"] * 60
        known = agreement([say(one) for one in gold], gold)
        texts = ["yes" if rng.random() < 0.3 else "no" for _ in range(150)]
        low, high = corrected_rates([say(one) for one in texts], known)["yes"].interval
        covered += low <= 0.3 <= high
    assert covered >= 50


def test_rates_that_cannot_be_corrected():
    same = agreement(["yes", "no"] * 4, ["yes", "yes", "no", "no"] * 2)
    with pytest.raises(ValueError, match="tell the labels apart"):
        corrected_rates(["yes"], same)
    with pytest.raises(ValueError, match="missing refuses"):
        corrected_rates(["refuses"], same)
    with pytest.raises(ValueError, match="of every label there must be labelled texts, missing no"):
        corrected_rates(["yes"], agreement(["no", "yes"], ["yes", "yes"]))
    with pytest.raises(ValueError, match="no text has a judged label"):
        corrected_rates([None], same)
    with pytest.raises(ValueError, match="a true label for each"):
        agreement(["yes"], ["yes", "no"])
