"""Feature cards in SAEDashboard's and Neuronpedia's files."""

import gzip
import json

import pytest
import torch
from dictionaries import dictionary_at
from tiny import write_tiny_transformers

import introspect
from introspect import _C
from introspect.sae.explanations import Explanation
from introspect.sae.export import (
    neuronpedia_upload,
    read_neuronpedia,
    read_saedashboard,
    saedashboard_feature,
    write_neuronpedia,
    write_saedashboard,
)
from introspect.sae.features import feature_statistics

# sae_dashboard/neuronpedia/neuronpedia_dashboard.py, and "vector" and "qualifying_token_index" of its current version
SAEDASHBOARD = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
    "correlated_features_l1", "correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt", "dataset", "decoder_weights_dist", "vector",
    "activations",
}  # fmt: skip
# Fields of Feature and Activation in sae_dashboard/neuronpedia/neuronpedia_export.py,
# those with a default of None aside
FEATURE = {
    "modelId", "layer", "index", "creatorId", "createdAt", "maxActApprox", "hasVector", "vector", "vectorLabel",
    "vectorDefaultSteerStrength", "hookName", "topkCosSimIndices", "topkCosSimValues", "neuron_alignment_indices",
    "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices", "correlated_neurons_pearson",
    "correlated_neurons_l1", "correlated_features_indices", "correlated_features_pearson", "correlated_features_l1",
    "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_heights",
    "freq_hist_data_bar_values", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
}  # fmt: skip
ACTIVATION = {
    "id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex", "minValue", "values", "creatorId",
    "dfaValues", "createdAt", "lossValues", "binMin", "binMax", "binContains", "qualifyingTokenIndex",
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say which model")


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    model = introspect.load_model(write_tiny_transformers(tmp_path_factory.mktemp("tiny"), "llama"))
    tokens = torch.randint(3, 60, (14, 9), generator=torch.Generator().manual_seed(0))
    sae = dictionary_at("blocks.1.hook_resid_post", 48, "topk", d_sae=40, dtype=torch.float32)
    return feature_statistics(model, sae, tokens)


@pytest.fixture
def cards(statistics):
    return [statistics.card(feature, top=4, per_quantile=2) for feature in statistics.top(3)]


def test_saedashboards_files_have_its_keys_and_its_bins(tmp_path, statistics):
    written = write_saedashboard(statistics, tmp_path, model_id="m", sae_set="mine", dataset="some text", top=4)
    assert [file.name for file in written] == ["batch-0.json"]
    batch = json.loads(written[0].read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("m", 1, "mine")
    active = statistics.ids[statistics.counts > 0].tolist()
    assert [one["feature_index"] for one in batch["features"]] == active
    for one in batch["features"]:
        assert set(one) == SAEDASHBOARD
        place = statistics.activations.index(one["feature_index"])
        assert (one["n_prompts_total"], one["n_tokens_in_prompt"]) == (14, 9) and one["dataset"] == "some text"
        assert one["frac_nonzero"] == pytest.approx(statistics.frequencies[place].item(), abs=1e-6)
        assert len(one["vector"]) == 48 and len(one["logits_hist_data_bar_values"]) == 50
        tops = [a for a in one["activations"] if a["bin_min"] == -1]
        assert len(tops) == min(4, statistics.context_counts[place].item())
        assert all(a["bin_contains"] == -1 for a in tops)
        assert max(tops[0]["values"]) == pytest.approx(statistics.max_active[place].item(), abs=6e-4)
        for a in one["activations"]:
            assert set(a) == {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}
            value = a["values"][a["qualifying_token_index"]]
            assert a["bin_min"] - 1e-3 <= value <= a["bin_max"] + 1e-3
            assert a["values"] == [round(x, 3) for x in a["values"]]
    bins = [a["bin_max"] for a in batch["features"][0]["activations"] if a["bin_min"] != -1]
    assert bins == sorted(bins, reverse=True)


def test_saedashboards_files_are_read_back(tmp_path, statistics, cards):
    write_saedashboard(statistics, tmp_path, [card["feature"] for card in cards], top=4, per_quantile=2)
    for card, read in zip(cards, read_saedashboard(tmp_path), strict=True):
        assert read["feature"] == card["feature"]
        assert read["frequency"] == pytest.approx(card["frequency"], abs=1e-7)
        assert [one["token"] for one in read["top_logits"]] == [one["token"] for one in card["top_logits"]]
        contexts = [c for group in card["groups"] for c in group["contexts"]]
        again = [c for group in read["groups"] for c in group["contexts"]]
        assert [c["tokens"] for c in again] == [c["tokens"] for c in contexts]
        assert [c["position"] for c in again] == [c["position"] for c in contexts]
        for mine, theirs in zip(contexts, again, strict=True):
            assert theirs["values"] == pytest.approx(mine["values"], abs=6e-4)


def test_neuronpedias_folder_has_its_files_and_fields(tmp_path, statistics):
    folder = write_neuronpedia(
        statistics, tmp_path, model_id="m", source_set="res-mine", release="r", creator_id="me", top=3, per_quantile=1
    )
    assert folder == tmp_path / "m" / "1-res-mine"
    assert {file.name for file in folder.iterdir()} == {
        "release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl", "features", "activations",
    }  # fmt: skip
    source = json.loads((folder / "source.jsonl").read_text())
    assert source["id"] == "1-res-mine" and source["setName"] == "res-mine" and source["num_prompts"] == 14
    rows = {}
    for name in ("features", "activations"):
        text = gzip.decompress((folder / name / "batch-0.jsonl.gz").read_bytes()).decode()
        rows[name] = [json.loads(line) for line in text.splitlines()]
    assert all(set(row) == FEATURE for row in rows["features"])
    assert all(set(row) == ACTIVATION for row in rows["activations"])
    assert len({row["id"] for row in rows["activations"]}) == len(rows["activations"])
    for row in rows["activations"]:
        assert row["layer"] == "1-res-mine" and row["maxValue"] == max(row["values"]) == row["values"][
            row["maxValueTokenIndex"]
        ]  # fmt: skip
    indices = [row["index"] for row in rows["features"]]
    assert indices == [str(one) for one in statistics.ids[statistics.counts > 0].tolist()]
    read = read_neuronpedia(folder)
    assert [one["feature"] for one in read] == [int(one) for one in indices]
    assert sum(len(group["contexts"]) for one in read for group in one["groups"]) == len(rows["activations"])


def test_uploads_hold_at_most_128_features_and_20_logits(cards):
    explained = {cards[0]["feature"]: [Explanation(cards[0]["feature"], "dogs", "excerpts", "gpt")]}
    (body,) = neuronpedia_upload(cards, model_id="m", source="1-x", explanations=explained)
    assert set(body) == {"modelId", "source", "features"}
    first = body["features"][0]
    assert set(first) == {"index", "density", "topLogits", "bottomLogits", "explanations", "activations"}
    assert first["explanations"] == [{"text": "dogs", "methodName": "excerpts", "modelName": "gpt"}]
    assert set(first["activations"][0]) == {"tokens", "values", "quantileMin", "quantileMax", "quantileFraction"}
    many = [{**cards[0], "feature": i, "top_logits": cards[0]["top_logits"] * 5} for i in range(300)]
    bodies = neuronpedia_upload(many, model_id="m", source="1-x")
    assert [len(one["features"]) for one in bodies] == [128, 128, 44]
    assert len(bodies[0]["features"][0]["topLogits"]) == 20


def test_a_nul_in_a_token_becomes_a_space(statistics, cards):
    card = cards[0]
    context = card["groups"][0]["contexts"][0]
    context["tokens"][0] = "a\0b"
    card["top_logits"][0]["token"] = "\0"
    made = saedashboard_feature(statistics, card)
    assert made["activations"][0]["tokens"][0] == "a b" and made["pos_str"][0] == " "


def test_heads_share_a_decoder_row(tmp_path_factory):
    model = introspect.load_model(write_tiny_transformers(tmp_path_factory.mktemp("tiny"), "qwen2"))
    sae = dictionary_at("blocks.1.attn.hook_z", 48, d_sae=6, dtype=torch.float32)
    found = feature_statistics(model, sae, torch.arange(3, 33).view(3, 10))
    feature = found.top(1)[0]
    made = saedashboard_feature(found, found.card(feature))
    lengths = sae.weights["W_dec"][feature].view(model.cfg.n_heads, -1).norm(dim=1)
    assert made["decoder_weights_dist"] == pytest.approx((lengths / lengths.sum()).tolist(), abs=6e-4)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"features": 3}', '{"features": [{"feature_index": 1}]}', '{"features": [7]}']
)
def test_files_of_another_kind_are_an_error_that_names_them(tmp_path, content):
    (tmp_path / "batch-0.json").write_text(content)
    with pytest.raises(_C.IoError, match=r"batch-0\.json"):
        read_saedashboard(tmp_path)
    with pytest.raises(_C.IoError, match="there is no file"):
        read_neuronpedia(tmp_path)
