"""Pages of features that circuit-tracer's sets come with: read one by one, and nothing in them trusted."""

import gzip
import json
import struct
import zlib
from pathlib import Path

import pytest
import synthetic_graph
from explorer_server import SCRIPT, running

from introspect.explorer import workspace
from introspect.explorer.feature_folders import FeatureFolder, paired
from introspect.explorer.fields import Refused

FEATURE = {
    "index": 3, "top_logits": [" cat", SCRIPT], "bottom_logits": [["bread", -0.5]], "act_max": 2.5,
    "activation_frequency": 0.01,
    "examples_quantiles": [{"quantile_name": "Top activations", "examples": [
        {"tokens": ["a", SCRIPT], "tokens_acts_list": [0.0, 2.5], "train_token_ind": 1},
        {"tokens": ["too", "short"], "tokens_acts_list": [1.0]}, {"tokens": 5}, "text"]}],
}  # fmt: skip


def pack(folder: Path, layers: dict[int, list[dict]], compress) -> None:
    index = {}
    for layer, features in layers.items():
        blob, offsets = b"", [0]
        for one in features:
            packed = compress(json.dumps(one).encode())
            blob += struct.pack("<I", len(packed)) + packed
            offsets.append(len(blob))
        (folder / f"layer_{layer}.bin").write_bytes(blob)
        index[str(layer)] = {"filename": f"layer_{layer}.bin", "offsets": offsets}
    (folder / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))


@pytest.mark.parametrize("form", ["gzip", "zlib", "files", "files of a scan"])
def test_pages_of_circuit_tracers_sets_are_read(tmp_path, form):
    features = tmp_path / "features"
    features.mkdir()
    synthetic_graph.write(tmp_path / "graph.json")
    others = [{**FEATURE, "index": i, "act_max": float(i)} for i in range(3)]
    if form in ("gzip", "zlib"):
        pack(features, {0: others, 2: [*others, FEATURE]}, gzip.compress if form == "gzip" else zlib.compress)
    else:
        inside = features / "none" if form == "files of a scan" else features  # the scan of synthetic graphs
        inside.mkdir(exist_ok=True)
        (inside / "18.json").write_text(json.dumps(FEATURE))  # Cantor: (2 + 3)(2 + 3 + 1) / 2 + 3
    assert paired(2, 3) == 18
    with running(workspace.find(str(tmp_path))) as server:
        assert server.get("api", "graph", "graph")[1]["has_pages"]
        status, card = server.get("api", "graph", "graph", "feature", "2", "3")
        assert status == 200
        assert card["logits"] == {"raised": [[" cat", None], [SCRIPT, None]], "lowered": [["bread", -0.5]]}
        (group,) = card["groups"]
        assert group["examples"] == [{"tokens": ["a", SCRIPT], "values": [0.0, 2.5], "at": 1}]
        assert (card["max"], card["density"]) == (2.5, 0.01)
        for layer, index in ((2, 4), (1, 0), (9, 99)):
            status, refused = server.get("api", "graph", "graph", "feature", str(layer), str(index))
            assert status == 404 and "hold none" in refused["error"]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"filename": "../secret"}, "no file of the folder"),
        ({"filename": "/etc/passwd"}, "no file of the folder"),
        ({"filename": 5}, "must have a filename"),
        ({"offsets": [0, 10**12]}, "do not fit"),
        ({"offsets": [-5, 20]}, "do not fit"),
        ({"offsets": [30, 5]}, "do not fit"),
        ({"offsets": "all"}, "must have a filename and offsets"),
    ],
)
def test_indices_that_lead_elsewhere_are_refused(tmp_path, broken, says):
    (tmp_path / "secret").write_text("secret")
    features = tmp_path / "features"
    features.mkdir()
    pack(features, {0: [FEATURE]}, gzip.compress)
    index = json.loads(gzip.decompress((features / "index.json.gz").read_bytes()))
    index["0"].update(broken)
    (features / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))
    with pytest.raises(Refused, match=says):
        FeatureFolder(features).card(0, 0)


def test_bombs_and_torn_pages_are_refused(tmp_path, monkeypatch):
    pack(tmp_path, {0: [FEATURE], 1: [{"x": "a" * 10_000_000}]}, gzip.compress)
    (tmp_path / "18.json").write_text("[" * 100_000)
    monkeypatch.setattr("introspect.explorer.feature_folders.MOST_BYTES", 1 << 20)
    with pytest.raises(Refused, match="cut short, or larger"):
        FeatureFolder(tmp_path).card(1, 0)
    blob = tmp_path / "layer_0.bin"
    blob.write_bytes(blob.read_bytes()[:10] + b"x" * 20 + blob.read_bytes()[30:])
    with pytest.raises(Refused, match=r"damaged|cut short|must be JSON"):
        FeatureFolder(tmp_path).card(0, 0)
    (tmp_path / "index.json.gz").write_bytes(b"no gzip")
    with pytest.raises(Refused, match="damaged"):
        FeatureFolder(tmp_path).card(0, 0)
    (tmp_path / "index.json.gz").unlink()
    with pytest.raises(Refused, match="must"):
        FeatureFolder(tmp_path).card(2, 3)
