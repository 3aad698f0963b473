"""The explorer's server: its routes against the library, who may use it, and what malicious requests and files get."""

import copy
import http.client
import json
import socket
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import synthetic
import synthetic_graph
import torch
import typer
from explorer_server import TOKEN, running, write_dictionary
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.cli import explore
from introspect.explorer import graph_changes, graphs, server, workspace
from introspect.explorer.dictionaries import Dictionaries
from introspect.explorer.fields import Fields, Refused
from introspect.explorer.security import POLICY
from introspect.explorer.session import Session
from introspect.explorer.worker import Job

PROMPT = "a cat ate bread"
SCRIPT = "<script>document.title='stolen'</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    write_tiny_chat(folder / "model", n_layers=3)
    write_dictionary(folder / "sae")
    synthetic_graph.write(folder / "graph.json")
    random_vectors()["cat"].export_gguf(folder / "cat.gguf")
    run = folder / "run"
    run.mkdir()
    (run / "with_info.json").write_text(json.dumps(synthetic.detection()))
    (folder / "texts.txt").write_text("a cat ate bread\nno bread for a cat\nyes yes yes\n")
    return folder


@pytest.fixture(scope="module")
def lens(folder, model):
    """A trained lens; beside the folder, so that it is found by its option alone."""
    trained = introspect.analysis.TunedLens.regression(
        model, ["a cat ate bread", "no bread for a cat, yes", "yes no cat"]
    )
    trained.save(folder.parent / "lens.safetensors")
    return folder.parent / "lens.safetensors"


@pytest.fixture(scope="module")
def explorer(folder, lens):
    with running(workspace.find(str(folder), texts=folder / "texts.txt", lens=lens)) as one:
        yield one


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder / "model")


def test_a_folder_is_told_by_its_contents(folder, explorer):
    space = explorer.space
    assert space.model == str(folder / "model")
    assert {"sae": folder / "sae"} == space.dictionaries
    assert (list(space.graphs), list(space.runs), list(space.vectors)) == (["graph"], ["run"], ["cat"])


def test_a_folder_without_anything_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model, dictionary"):
        workspace.find(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no"):
        workspace.find(str(tmp_path / "gone"), model="m")


# A model at work


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


def test_a_client_that_goes_ends_its_work(explorer):
    """The worker is free again long before 1,000 tokens are written."""
    request = json.dumps({"prompt": PROMPT, "max_new_tokens": 1000}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", explorer.port)
    headers = {"x-secret-key": TOKEN, "content-type": "application/json"}
    connection.request("POST", "/api/model/generate", request, headers)
    connection.getresponse().read(60)
    assert explorer.worker._jobs
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    for _ in range(100):
        if not explorer.worker._jobs:
            break
        time.sleep(0.05)
    assert not explorer.worker._jobs
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


# Dictionaries


def test_features_of_a_text(explorer, model, folder):
    _, found = explorer.post("/api/dictionary/sae/activations", {"prompt": PROMPT, "most": 5})
    sae = introspect.SAE.load(folder / "sae")
    _, cache = model.run_with_cache(model.to_tokens(PROMPT), ["blocks.1.hook_resid_post"])
    values = sae.encode(cache["resid_post", 1][0])
    order = values[1:].max(0).values.topk(5).indices.tolist()
    assert [one["index"] for one in found["features"]] == order
    torch.testing.assert_close(
        torch.tensor(found["features"][0]["values"]), values[:, order[0]].float(), rtol=1e-4, atol=1e-6
    )
    _, of_one = explorer.post("/api/dictionary/sae/activations", {"prompt": PROMPT, "index": order[0]})
    assert of_one["values"] == found["features"][0]["values"]


def test_pages_come_from_a_cache_that_is_built_once(explorer, folder):
    assert explorer.get("api", "dictionary", "sae", "feature", "7")[1]["cached"] is False
    events = explorer.stream("/api/dictionary/sae/cache", {})
    assert events[-1]["done"]["texts"] == 3 and events[-1]["done"]["kept"]
    assert (folder / "sae" / "pages.safetensors").is_file()
    _, listed = explorer.post("/api/dictionary/sae/find", {})
    feature = listed["features"][0]["index"]
    _, card = explorer.get("api", "dictionary", "sae", "feature", str(feature))
    assert card["cached"] and card["max"] == listed["features"][0]["max"]
    example = card["groups"][0]["examples"][0]
    assert example["values"][example["at"]] == pytest.approx(card["max"], rel=1e-4)
    assert sum(card["histogram"]["counts"]) == card["count"]
    assert len(card["logits"]["raised"]) == 10


def test_labels_are_kept_in_an_editable_file(explorer, folder):
    assert explorer.post("/api/dictionary/sae/label", {"index": 5, "label": f"{SCRIPT} cats"})[0] == 200
    file = folder / "sae" / "labels.json"
    assert json.loads(file.read_text()) == {"features": {"5": f"{SCRIPT} cats"}}
    file.write_text(json.dumps({"features": {"5": "cats", "6": "by hand"}}))
    _, found = explorer.post("/api/dictionary/sae/find", {"words": "HAND"})
    assert found["features"] == [{"index": 6, "label": "by hand"}]
    explorer.post("/api/dictionary/sae/label", {"index": 5, "label": ""})
    assert json.loads(file.read_text()) == {"features": {"6": "by hand"}}
    status, refused = explorer.post("/api/dictionary/sae/label", {"index": 40, "label": "x"})
    assert status == 404 and "0 to 39" in refused["error"]


# Graphs


def test_influence_of_a_graph_worked_out_by_hand():
    """The output gets a third each of 1, 6 and 7, whose own inputs weigh 3, 1 and 2; 0 is all that 9 gets."""
    links = [(1, 10, 1.0), (6, 10, -1.0), (7, 10, 1.0), (8, 7, 3.0), (9, 7, 1.0), (3, 7, -2.0), (0, 9, 5.0)]
    graph = made(12, *zip(*links, strict=True), logits={10: 1.0})
    expected = [1 / 18, 1 / 3, 0, 1 / 9, 0, 0, 1 / 3, 1 / 3, 1 / 6, 1 / 18, 0, 0]
    assert graphs.scores(graph).influence.tolist() == pytest.approx(expected, abs=1e-9)


def test_influence_is_that_of_the_inverse():
    """v = w inv(1 - A) - w, by a dense inverse."""
    graph = graphs.from_json(synthetic_graph.graph(n_features=40, seed=2), "made-up")
    dense = torch.zeros(graph.n, graph.n, dtype=torch.float64)
    for a, b, w in zip(graph.source, graph.target, graph.weight, strict=True):
        dense[b, a] += abs(w)
    dense = dense / dense.sum(1, keepdim=True).clamp_min(1e-10)
    w = torch.tensor(graph.token_prob)
    expected = w @ torch.linalg.inv(torch.eye(graph.n, dtype=torch.float64) - dense) - w
    torch.testing.assert_close(torch.tensor(graphs.scores(graph).influence), expected, rtol=0, atol=1e-10)


def test_the_library_says_the_same_of_a_graph(tmp_path):
    """AttributionGraph's scores and predictions, and its own file, by another reading of the same JSON."""
    data = synthetic_graph.graph(n_features=40, seed=2)
    native = introspect.circuits.AttributionGraph.from_json(json.dumps(data))
    graph = graphs.from_json(data, "made-up")
    scores, expected = graphs.scores(graph), native.scores()
    assert scores.replacement == pytest.approx(expected.replacement, rel=1e-6)
    assert scores.completeness == pytest.approx(expected.completeness, rel=1e-6)
    native.save(tmp_path / "own.safetensors")
    assert list(workspace.find(str(tmp_path)).graphs) == ["own"]
    own = graphs.load(tmp_path / "own.safetensors")
    assert (own.n, len(own.weight)) == (graph.n, len(graph.weight))
    feature = next(i for i, node in enumerate(native.nodes) if node.kind == "feature" and node.layer == 0)
    at = native.nodes[feature]
    number = own.ids.index(f"{at.layer}_{at.feature}_{at.position}")
    predicted = introspect.circuits.predicted_effects(native, {feature: -1.0})
    change = graphs.predict(own, {number: 0.0})
    both = zip(native.nodes, predicted.tolist(), strict=True)
    logits = {node.feature: value for node, value in both if node.kind == "logit"}
    places = {int(one.split("_")[1]): i for i, one in enumerate(own.ids) if own.kinds[i] == "logit"}
    assert any(logits.values())
    assert {token: change[i] for token, i in places.items()} == pytest.approx(logits, abs=1e-5)


def made(n, source, target, weight, logits, activations=None):
    """A graph of features with these links."""
    return graphs.GraphData(
        {}, {}, ["a"], [str(i) for i in range(n)], ["logit" if i in logits else "feature" for i in range(n)],
        np.arange(n), np.zeros(n, int), [""] * n, [0] * n,
        np.array(activations if activations is not None else np.ones(n), float),
        np.array([logits.get(i, 0.0) for i in range(n)]), np.full(n, np.nan), np.zeros(n, bool),
        np.array(source), np.array(target), np.array(weight, float),
    )  # fmt: skip


def test_predicted_changes_are_those_of_the_linear_model():
    """a -> b -> logit and a -> logit: of a doubled, b rises by its link and passes on its share."""
    graph = made(3, [0, 1, 0], [1, 2, 2], [1.5, 4.0, 0.5], {2: 1.0}, activations=[2.0, 3.0, 0.0])
    change = graphs.predict(graph, {0: 2.0})
    assert change.tolist() == pytest.approx([2.0, 1.5, 0.5 + 4.0 * 1.5 / 3.0])
    held = graphs.predict(graph, {0: 2.0, 1: 1.0})  # b is held as it was
    assert held[2] == pytest.approx(0.5)


def test_a_graph_is_sent_whole_and_saved_with_pins(explorer):
    status, found = explorer.get("api", "graph", "graph")
    data = synthetic_graph.graph()
    assert status == 200
    assert found["nodes"]["id"] == [node["node_id"] for node in data["nodes"]]
    assert len(found["links"]["weight"]) == len(data["links"])
    node = found["nodes"]["id"][8]
    _, saved = explorer.post("/api/graph/graph/file", {"pinnedIds": [node], "supernodes": [["group", node]]})
    assert saved["qParams"]["pinnedIds"] == [node]
    assert saved["nodes"] == data["nodes"]
    read = graphs.from_json(saved, "saved")
    assert read.q_params["supernodes"] == [["group", node]]


def test_tracings_of_attention_keep_names_and_numbers_only():
    data = synthetic_graph.graph(n_features=3)
    ids = [node["node_id"] for node in data["nodes"]]
    pairs = [[ids[0], ids[1], 0.5], {"q": ids[1], "k": ids[0], "value": -0.25}, [float("nan")], "text", [[[]]]]
    data["nodes"][7]["qk_tracing_results"] = {"pair_wise_contributors": pairs, "top_q_marginal_contributors": 5}
    graph = graphs.from_json(data, "made-up")
    assert graph.qk == {
        7: {
            "pair_wise_contributors": [
                {"names": [ids[0], ids[1]], "weight": 0.5},
                {"names": [ids[1], ids[0]], "weight": -0.25},
            ],
            "top_q_marginal_contributors": [],
            "top_k_marginal_contributors": [],
        }
    }


def test_changes_of_a_graph(explorer):
    data = synthetic_graph.graph()
    node = next(one["node_id"] for one in data["nodes"] if one["feature_type"] == "cross layer transcoder")
    status, found = explorer.post("/api/graph/graph/change", {"changes": [{"node": node, "factor": 0}]})
    assert status == 200 and len(found["logits"]) == 3
    status, refused = explorer.post(
        "/api/graph/graph/change", {"changes": [{"node": node, "factor": 0}], "measure": True}
    )
    assert status in (400, 409) and "tokens" in refused["error"]  # it is of another model


def test_measured_changes_are_the_models(model, folder):
    """A feature of the open dictionary taken out at its own position: every logit less the mean, with and without."""
    space = workspace.find(str(folder))
    session = Session(model, space)
    dictionaries = Dictionaries(space, session)
    tokens = model.to_tokens(PROMPT)
    sae = dictionaries.sae("sae")
    _, cache = model.run_with_cache(tokens, ["blocks.1.hook_resid_post"])
    feature = int(sae.encode(cache["resid_post", 1][0])[3].argmax())
    words = session.shown(tokens[0])
    graph = made(2, [0], [1], [1.0], {1: 1.0}, activations=[1.0, 0.0])
    graph = replace(
        graph, metadata={"prompt": PROMPT}, tokens=words, ids=[f"1_{feature}_3", f"3_65_{len(words) - 1}"],
        features=[feature, None], layers=np.array([1, 3]), positions=np.array([3, len(words) - 1]),
    )  # fmt: skip
    measured = graph_changes.measure(graph, {0: 0.0}, session, dictionaries, Job())
    before = model(tokens, logits_at="last")[0, -1]
    with model.splice(sae, ablate=[feature], positions=[3]):
        after = model(tokens, logits_at="last")[0, -1]
    expected = (after - after.mean() - before + before.mean())[65].item()
    assert expected != 0
    assert measured == {graph.ids[1]: pytest.approx(expected, rel=1e-4)}
    with pytest.raises(Refused, match="no dictionary of layer 2"):
        graph_changes.measure(replace(graph, layers=np.array([2, 3])), {0: 0.0}, session, dictionaries, Job())


def broken_graph(what):
    data = copy.deepcopy(synthetic_graph.graph())
    nodes, links = data["nodes"], data["links"]
    if what == "schema":
        data["metadata"]["schema_version"] = 7
    elif what == "ids":
        nodes[3]["node_id"] = nodes[2]["node_id"]
    elif what == "number":
        links[0]["weight"] = 1e999
    elif what == "text":
        links[0]["weight"] = "1"
    elif what == "position":
        nodes[5]["ctx_idx"] = 10**9
    elif what == "layer":
        nodes[8]["layer"] = "../../etc"
    elif what == "nodes":
        data["nodes"] = [nodes[0]] * (graphs.MOST_NODES + 1)
    elif what == "tokens":
        data["metadata"]["prompt_tokens"] = ["a"] * (graphs.MOST_TOKENS + 1)
    elif what == "no object":
        data["metadata"] = []
    elif what == "circle":
        a, b = next((link["source"], link["target"]) for link in links if link["source"][0].isdigit())
        data["links"] += [{"source": b, "target": a, "weight": 1.0}]
    return data


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("schema", "schema_version must be at most 1"),
        ("ids", "two nodes have the id"),
        ("number", "finite number"),
        ("text", "finite number"),
        ("position", "ctx_idx must be of one of the 6 tokens"),
        ("layer", "layer must be a number or E"),
        ("nodes", "at most 50,000"),
        ("tokens", "at most 8,192"),
        ("no object", "metadata must be an object"),
        ("circle", "go in a circle"),
    ],
)
def test_a_malicious_graph_is_refused_with_its_reason(what, says, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(broken_graph(what)))
    with pytest.raises(Refused, match=says):
        graphs.scores(graphs.load(path))


def test_a_graph_that_is_no_json_is_refused(tmp_path):
    for text in ("[" * 100_000, "{", '{"metadata": {"prompt_tokens": ["a"]}, "nodes": [1], "links": []}', "[]"):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(Refused):
            graphs.load(path)


# Experiments


def test_a_run_and_a_cell(explorer):
    status, found = explorer.get("api", "run", "run")
    data = synthetic.detection()
    assert status == 200
    (protocol,) = found["protocols"]
    assert protocol["cells"]["n"] == len(data["rows"])
    _, cell = explorer.get("api", "run", "run", "with_info", "0")
    assert cell["injected"]["log_odds"] == pytest.approx(data["rows"][0]["injected"]["log_odds"], rel=1e-4)
    assert any(piece[1] for turn in cell["conversation"] for piece in turn["pieces"]) or not cell["conversation"]
    assert explorer.get("api", "run", "run", "with_info", "100000")[0] == 404


def test_a_report_may_draw_and_reach_nothing(explorer, folder):
    (folder / "run" / "report.html").write_text(SCRIPT)
    status, headers, body = explorer.raw("GET", "/run/run/report", None, {"x-secret-key": TOKEN})
    assert status == 200 and body.decode() == SCRIPT
    policy = headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'") and "connect-src" not in policy


# Who may use it


def test_the_token_is_needed_everywhere(explorer):
    assert explorer.raw("GET", "/")[0] == 401
    for path in ("/api/contents", "/static/main.js", "/api/model", "/v1/capabilities", "/run/run/report"):
        assert explorer.raw("GET", path)[0] == 401
        assert explorer.raw("GET", path, None, {"x-secret-key": "wrong"})[0] == 401
        assert explorer.raw("GET", path, None, {"cookie": f"introspect_{explorer.port}=wrong"})[0] == 401
    assert explorer.raw("GET", f"/api/contents?token={TOKEN}")[0] == 401  # the address of the page alone may carry it
    assert explorer.raw("GET", "/health")[0] == 200


def test_the_address_gives_a_cookie_that_goes_on(explorer):
    status, headers, body = explorer.raw("GET", f"/?token={TOKEN}")
    assert status == 200 and b"<!doctype html>" in body
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert explorer.raw("GET", "/api/contents", None, {"cookie": cookie.split(";")[0]})[0] == 200
    assert explorer.raw("GET", "/api/contents", None, {"authorization": f"Bearer {TOKEN}"})[0] == 200


def test_other_hosts_and_other_pages_are_refused(explorer):
    known = {"x-secret-key": TOKEN}
    for host in ("evil.example", f"evil.example:{explorer.port}", "127.0.0.1", f"127.0.0.1:{explorer.port + 1}", ""):
        assert explorer.raw("GET", "/api/contents", None, {**known, "host": host})[0] in (400, 403), host
    for origin in ("http://evil.example", "null", f"http://localhost:{explorer.port}", "https://127.0.0.1"):
        assert explorer.raw("POST", "/api/model/tokens", b"{}", {**known, "origin": origin})[0] == 403, origin
    assert explorer.raw("GET", "/api/contents", None, {**known, "sec-fetch-site": "cross-site"})[0] == 403
    ours = {**known, "origin": f"http://127.0.0.1:{explorer.port}", "sec-fetch-site": "same-origin"}
    assert explorer.raw("GET", "/api/contents", None, ours)[0] == 200


def test_answers_carry_a_strict_policy(explorer):
    for path in (f"/?token={TOKEN}", "/health", "/static/none.js"):
        headers = explorer.raw("GET", path, None, {"x-secret-key": TOKEN})[1]
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY and "http" not in POLICY.replace("'self'", "")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static//etc/passwd",
        "/api/graph/..%2f..%2fetc%2fpasswd", "/api/graph/%2e%2e", "/run/..%2f..%2f/report", "/api/run/%2fetc",
        "/api/dictionary/..%2fmodel", "/api/graph/graph.json", "/static/main.js%00.css",
    ],
)  # fmt: skip
def test_no_path_leaves_the_workspace(explorer, path):
    status, _, body = explorer.raw("GET", path, None, {"x-secret-key": TOKEN})
    assert status == 404
    assert b"root:" not in body and b"import" not in body


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("/api/model/tokens", b"not json", "must be JSON"),
        ("/api/model/tokens", b"[" * 50_000, "must be JSON"),
        ("/api/model/tokens", [1], "a JSON object is needed"),
        ("/api/model/tokens", {}, "prompt is missing"),
        ("/api/model/tokens", {"prompt": ""}, "empty"),
        ("/api/model/tokens", {"prompt": 5}, "prompt must be text"),
        ("/api/model/tokens", {"prompt": "\ud800"}, "surrogates"),
        ("/api/model/tokens", {"prompt": "x" * 200_001}, "at most 200,000 characters"),
        ("/api/model/tokens", {"prompt": "x" * 5_000}, "may have 2,048 tokens"),
        ("/api/model/lens", {"prompt": PROMPT, "top_k": 1e9}, "top_k must be a whole number from 1 to 50"),
        ("/api/model/lens", {"prompt": PROMPT, "first": -1}, "first must be"),
        ("/api/model/attention", {"prompt": PROMPT, "heads": [[99, 0]]}, "there is no head 99.0"),
        ("/api/model/attention", {"prompt": PROMPT, "heads": [[0, 0]] * 13}, "at most 12"),
        ("/api/model/logits", {"prompt": PROMPT, "steer": {"kind": "shell"}}, "kind must be one of"),
        ("/api/model/logits", {"prompt": PROMPT, "steer": {"kind": "vector", "name": "../x"}}, "no control vector"),
        ("/api/model/logits", {"prompt": PROMPT, "steer": {"kind": "word", "word": "a", "strength": 1e99}}, "strength"),
        ("/api/graph/graph/change", {"changes": [{"node": "none", "factor": 0}]}, "there is no node"),
    ],
)
def test_bad_requests_say_what_is_wrong(explorer, path, data, says):
    status, answer = explorer.post(path, data)
    assert status in (400, 404, 413)
    assert says in answer["error"]


def test_a_body_may_not_be_too_large(explorer):
    status, answer = explorer.post("/api/model/tokens", {"prompt": "x" * (9 << 20)})
    assert status == 413 and "8 MiB" in answer["error"]
    headers = {"x-secret-key": TOKEN, "content-length": "9" * 17}
    assert explorer.raw("POST", "/api/model/tokens", b"", headers)[0] == 413


def test_a_second_server_on_the_port_is_told_so(explorer):
    with pytest.raises(OSError, match=f"port {explorer.port} is taken by another introspect explore"):
        server.bind(explorer.port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.settimeout(0.1)
        with pytest.raises(OSError, match="taken by another program"):
            server.bind(other.getsockname()[1])


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(typer.Exit):
        explore.command("anything")
    assert 'pip install "introspect[explore]"' in capsys.readouterr().err


def test_it_listens_on_the_loopback_address_only():
    with server.bind(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_numbers_are_whole_and_within_limits():
    fields = Fields({"topK": 5, "index": "12", "flag": 1, "many": [1, float("nan")]})
    assert fields.integer("top_k", 1, 10) == 5  # Neuronpedia's spelling
    assert fields.integer("index", 0, 100) == 12
    with pytest.raises(Refused, match="flag must be true or false"):
        fields.flag("flag")
    with pytest.raises(Refused, match="finite numbers"):
        fields.numbers("many", 5)


# Neuronpedia's routes


def test_neuronpedia_tells_what_it_serves(explorer):
    assert explorer.get("health")[1]["status"] == "healthy"
    _, found = explorer.get("v1", "capabilities")
    assert found["endpoints"]["activation_all"] and not found["endpoints"]["lens_jacobian"]
    assert found["sae_sets"] == ["sae"]
    status, answer = explorer.post("/v1/activation/single-batch", {})
    assert status == 501 and "/v1/activation/single once for each" in answer["error"]


def test_neuronpedia_activations(explorer, model, folder):
    sae = introspect.SAE.load(folder / "sae")
    tokens = model.to_tokens(PROMPT)
    _, cache = model.run_with_cache(tokens, ["blocks.1.hook_resid_post"])
    values = sae.encode(cache["resid_post", 1][0])
    _, single = explorer.post("/v1/activation/single", {"prompt": PROMPT, "model": "m", "source": "sae", "index": "7"})
    torch.testing.assert_close(torch.tensor(single["activation"]["values"]), values[:, 7], rtol=1e-4, atol=1e-6)
    assert single["activation"]["maxValueIndex"] == int(values[:, 7].argmax())
    request = {"prompt": PROMPT, "model": "m", "sourceSet": "sae", "selectedSources": [], "sortByTokenIndexes": [3]}
    _, every = explorer.post("/v1/activation/all", {**request, "ignoreBos": False, "numResults": 2})
    assert [one["index"] for one in every["activations"]] == values[3].topk(2).indices.tolist()
    _, by_token = explorer.post("/v1/activation/topk-by-token", {"prompt": PROMPT, "source": "sae", "topK": 2})
    assert by_token["results"][2]["topFeatures"][0]["featureIndex"] == int(values[2].argmax())
    _, source = explorer.post("/v1/activation/source", {"prompts": [PROMPT], "source": "sae"})
    assert len(source["results"][0]["activeFeatures"]) == int((values != 0).any(0).sum())
    _, raw = explorer.post("/v1/activation/raw", {"prompts": [PROMPT], "layers": [1]})
    torch.testing.assert_close(
        torch.tensor(raw["results"][0]["activations"][0]["values"][0]),
        cache["resid_post", 1][0, -1],
        rtol=1e-4,
        atol=1e-4,
    )


def test_neuronpedia_steers_and_reads_the_lens(explorer, model):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    request = {
        "prompt": PROMPT, "model": "m", "steerMethod": "SIMPLE_ADDITIVE", "normalizeSteering": False,
        "types": ["STEERED", "DEFAULT"], "nCompletionTokens": 6, "temperature": 0, "strengthMultiplier": 2,
        "freqPenalty": 0, "seed": 1,
        "vectors": [{"steeringVector": vector.tolist(), "strength": 1.5, "hook": "blocks.1.hook_resid_post"}],
    }  # fmt: skip
    _, found = explorer.post("/v1/steer/completion", request)
    with model.steer(introspect.ControlVector("m", {1: 3.0 * vector})):
        steered = model.generate(PROMPT, max_new_tokens=6)
    assert [(one["type"], one["output"]) for one in found["outputs"]] == [
        ("STEERED", steered),
        ("DEFAULT", model.generate(PROMPT, max_new_tokens=6)),
    ]
    status, refusal = explorer.post("/v1/steer/completion", {**request, "steerMethod": "PROJECTION_CAP"})
    assert status == 400 and "SIMPLE_ADDITIVE" in refusal["error"]
    _, lens = explorer.post(
        "/v1/lens/prompt", {"prompt": PROMPT, "model": "m", "type": ["LOGIT_LENS"], "stream": False}
    )
    kinds = [one["kind"] for one in lens["messages"]]
    assert kinds[:2] == ["meta", "prompt"] and kinds[-1] == "done"
    table = introspect.analysis.logit_lens(model, PROMPT, top_k=10, layers=[0, 1, 2])
    assert lens["messages"][4]["results"][0]["top_tokens"] == [row[2] for row in table.top_tokens]


def test_a_server_without_a_model_says_so(tmp_path):
    synthetic_graph.write(tmp_path / "graph.json")
    with running(workspace.find(str(tmp_path / "graph.json"))) as alone:
        assert alone.get("api", "graph", "graph")[0] == 200
        status, answer = alone.post("/api/model/tokens", {"prompt": "a"})
        assert status == 409 and "no model was opened" in answer["error"]
        assert alone.get("api", "dictionary", "x")[0] == 409
