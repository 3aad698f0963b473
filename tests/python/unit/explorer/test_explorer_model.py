"""The explorer's readings of a model at work, against the library."""

import http.client
import json
import socket
import threading
import time

import pytest
import torch
from explorer_server import PROMPT, TOKEN

import introspect
from introspect.explorer import worker


def test_lens_and_norms_are_the_librarys(explorer, model):
    status, read = explorer.post("/api/model/lens", {"prompt": PROMPT, "top_k": 3, "first": 2, "last": 5})
    table = introspect.analysis.logit_lens(model, PROMPT, top_k=3, positions=[2, 3, 4])
    assert status == 200
    assert read["base"]["streams"] == table.streams
    assert read["base"]["top"] == table.top_tokens
    torch.testing.assert_close(torch.tensor(read["base"]["p"]), table.top_log_probs.exp(), rtol=1e-4, atol=1e-6)
    _, cache = model.run_with_cache(model.to_tokens(PROMPT))
    length = cache["resid_post", 1][0, 3].norm().item()
    assert read["base"]["norm"][2][1] == pytest.approx(length, rel=1e-4)


def test_a_trained_lens_reads(explorer, model, lens):
    _, read = explorer.post("/api/model/lens", {"prompt": PROMPT, "top_k": 2, "lens": "trained", "target": " cat"})
    table = introspect.analysis.logit_lens(
        model, PROMPT, top_k=2, lens=introspect.analysis.Lens.load(lens), targets=[" cat"]
    )
    assert read["base"]["top"] == table.top_tokens
    torch.testing.assert_close(torch.tensor(read["base"]["target"]), table.log_probs[" cat"], rtol=1e-4, atol=1e-5)


def test_a_concept_is_trained_from_pairs(explorer, model):
    pairs = introspect.concept_pairs(model, "cat", introspect.load_suffixes()[:32])
    vector = introspect.ControlVector.train(model, pairs, method="pca_center")
    steer = {"kind": "concept", "word": "cat", "strength": 0.5, "layers": [1, 2]}
    _, found = explorer.post("/api/model/logits", {"prompt": PROMPT, "steer": steer, "top_k": 3})
    with model.steer(vector, layers=(1, 2), strength=0.5, unit="residual"):
        expected = model(PROMPT, logits_at="last")[0, -1].softmax(-1)
    for row in found["rows"]:
        assert row["steered"] == pytest.approx(expected[row["id"]].item(), rel=1e-3)


def test_logits_with_and_without_steering(explorer, model, folder):
    steer = {"kind": "vector", "name": "cat", "strength": 3.0, "unit": "absolute", "layers": [1, 2]}
    status, found = explorer.post("/api/model/logits", {"prompt": PROMPT, "steer": steer, "top_k": 4})
    assert status == 200
    vector = introspect.ControlVector.load(folder / "cat.gguf")
    base = model(PROMPT, logits_at="last")[0, -1].softmax(-1)
    with model.steer(3.0 * vector, layers=(1, 2)):
        steered = model(PROMPT, logits_at="last")[0, -1].softmax(-1)
    for row in found["rows"]:
        assert row["p"] == pytest.approx(base[row["id"]].item(), rel=1e-4)
        assert row["steered"] == pytest.approx(steered[row["id"]].item(), rel=1e-4)
    assert found["kl"] == pytest.approx((base * (base / steered).log()).sum().item(), rel=1e-3)


def test_attention_is_the_models(explorer, model):
    _, cache = model.run_with_cache(model.to_tokens(PROMPT))
    pattern = cache["pattern", 2][0]
    _, found = explorer.post("/api/model/attention", {"prompt": PROMPT, "heads": [[2, 1]]})
    torch.testing.assert_close(torch.tensor(found["patterns"]["2.1"]) / 1000, pattern[1], rtol=0, atol=6e-4)
    _, seen = explorer.post("/api/model/heads", {"prompt": PROMPT, "position": 4})
    largest = pattern[:, 4, 1:5].max(-1)
    torch.testing.assert_close(torch.tensor(seen["weight"][2]), largest.values, rtol=1e-4, atol=1e-6)
    assert seen["at"][2] == (largest.indices + 1).tolist()


def test_a_hook_point(explorer, model):
    name = "blocks.1.mlp.hook_post"
    _, found = explorer.post("/api/model/point", {"prompt": PROMPT, "name": name, "position": 2})
    _, cache = model.run_with_cache(model.to_tokens(PROMPT), [name])
    here = cache[name][0, 2]
    assert found["shape"] == list(cache[name].shape)
    assert found["largest"][0] == {
        "index": int(here.abs().argmax()),
        "value": pytest.approx(here[here.abs().argmax()].item(), rel=1e-4),
    }
    assert sum(found["histogram"]) == here.numel()
    status, refused = explorer.post("/api/model/point", {"prompt": PROMPT, "name": "blocks.1.mlp.hook_pots"})
    assert status == 400 and "hook_post" in refused["error"]


def test_texts_side_by_side_are_those_of_generate(explorer, model, folder):
    steer = {"kind": "vector", "name": "cat", "strength": 2.0, "unit": "absolute", "layers": [1, 2]}
    events = explorer.stream("/api/model/generate", {"prompt": PROMPT, "max_new_tokens": 8, "steer": steer})
    with model.steer(2.0 * introspect.ControlVector.load(folder / "cat.gguf"), layers=(1, 2)):
        steered = model.generate(PROMPT, max_new_tokens=8)
    assert events[-1]["done"]["texts"] == [model.generate(PROMPT, max_new_tokens=8), steered]
    assert {event["row"] for event in events if "row" in event} == {0, 1}


def test_a_word_and_a_feature_steer(explorer, model, folder):
    word = {"kind": "word", "word": " cat", "strength": 0.5, "layers": [1, 2]}
    _, found = explorer.post("/api/model/logits", {"prompt": PROMPT, "steer": word, "top_k": 100})
    cat = next(row for row in found["rows"] if row["token"] == " cat")
    assert cat["steered"] > cat["p"]
    feature = {"kind": "feature", "dictionary": "sae", "index": 7, "strength": 30.0}
    _, found = explorer.post("/api/model/logits", {"prompt": PROMPT, "steer": feature, "top_k": 3})
    with model.splice(introspect.SAE.load(folder / "sae"), add={7: 30.0}):
        expected = model(PROMPT, logits_at="last")[0, -1].softmax(-1)
    for row in found["rows"]:
        assert row["steered"] == pytest.approx(expected[row["id"]].item(), rel=1e-4)


def test_a_client_that_goes_ends_its_work(explorer, monkeypatch):
    """The worker is free again long before 1,000 tokens are written, which would take ten seconds."""
    written = []

    def slowly(job, event):
        time.sleep(0.01)
        written.append(event)
        emit(job, event)

    emit = worker.Job.emit
    monkeypatch.setattr(worker.Job, "emit", slowly)
    request = json.dumps({"prompt": PROMPT, "max_new_tokens": 1000}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", explorer.port)
    headers = {"x-secret-key": TOKEN, "content-type": "application/json"}
    connection.request("POST", "/api/model/generate", request, headers)
    connection.getresponse().read(60)
    assert explorer.worker._jobs
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    end = time.monotonic() + 60
    while explorer.worker._jobs and time.monotonic() < end:
        time.sleep(0.01)
    assert not explorer.worker._jobs
    assert 0 < len(written) < 1000
    assert explorer.post("/api/model/tokens", {"prompt": PROMPT})[0] == 200


def test_two_clients_wait_for_one_another(explorer):
    found = {}

    def ask(i):
        found[i] = explorer.post("/api/model/logits", {"prompt": "a cat " * (i + 1), "top_k": 1})[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [200] * 4
