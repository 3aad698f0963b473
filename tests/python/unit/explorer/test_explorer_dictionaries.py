"""The explorer's features of texts, pages and labels."""

import json

import pytest
import torch
from explorer_server import PROMPT, SCRIPT

import introspect


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
