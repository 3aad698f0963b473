"""The routes of Neuronpedia's inference server, against the library."""

import torch
from explorer_server import PROMPT

import introspect


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
