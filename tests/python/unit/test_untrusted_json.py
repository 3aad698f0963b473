"""JSON from files and callers: what nests too deep, is of another type or no JSON gets a short error that names it."""

import json
import sqlite3

import pytest
import torch
from safetensors.torch import save_file
from tiny import write_tiny
from tiny_chat import write_tiny_chat

import introspect
from introspect import _C
from introspect.io import HfFolder, SafetensorsFile, open_tensors

DEEP = 200_000
NESTED = {
    "lists": "[" * DEEP + "]" * DEEP,
    "objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "both": '[{"a":' * DEEP + "1" + "}]" * DEEP,
    "unclosed lists": "[" * DEEP,
    "unclosed objects": '{"a":' * DEEP,
}
# An operation, a model, a vector, a store and a protocol as their writers make them; the fields of each are asked for
# by the tests below.
PROTOCOL = {
    "name": "p",
    "turns": [{"role": "user", "content": "Noticed it?"}],
    "injected": [0],
    "report_tokens": {"cat": " cat"},
    "sampling": {"temperature": 1},
}
INTERVENTION = {"op": "add", "point": "hook_resid_post", "values": {}, "text": {"tokens": [1]}, "parameters": {"a": 1}}
ORIGIN = {
    "model_name": "m", "model_hash": "h", "method": "pca", "n_pairs": 3, "spectrum": {"1": [0.5]}, "folds": 0,
    "diagnostics": {}, "point": "hook_resid_post", "read_position": "-1", "last_layer_after_norm": False,
}  # fmt: skip
ACTIVATIONS = {
    "layers": [1], "position": {"first": -1, "is_span": False}, "point": "hook_resid_post",
    "last_layer_after_norm": False, "texts_hash": "t", "model_name": "m", "model_hash": "h", "model_type": "qwen2",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


def copied(tiny, folder):
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def in_folder(name, read):
    def reader(tiny, folder, text):
        (copied(tiny, folder) / name).write_text(text)
        read(folder)

    return reader


def index(tiny, folder, text):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(text)
    HfFolder(folder)


def header(tiny, folder, text):
    data = text.encode()
    (folder / "a.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)
    SafetensorsFile(folder / "a.safetensors")


def vector(tiny, folder, text):
    metadata = {"format": "controlvector", "model_type": "qwen2", "origin": text}
    save_file({"direction.1": torch.ones(4)}, folder / "v.safetensors", metadata)
    introspect.ControlVector.load(folder / "v.safetensors")


def activations(tiny, folder, text):
    save_file({"activations": torch.ones(2, 1, 4)}, folder / "a.safetensors", {"format": "activations", "origin": text})
    introspect.Activations.load(folder / "a.safetensors")


def protocol_file(tiny, folder, text):
    (folder / "p.json").write_text(text)
    introspect.load_protocol(folder / "p.json")


def based_on(tiny, folder, text):
    (folder / "q.json").write_text(text)
    protocol_file(tiny, folder, '{"based_on": "q.json"}')


def controls_file(tiny, folder, text):
    (folder / "c.json").write_text(text)
    protocol_file(tiny, folder, json.dumps({**PROTOCOL, "controls": "c.json"}))


def result_file(tiny, folder, text):
    (folder / "r.json").write_text(text)
    introspect.Result.load(folder / "r.json")


def sweep(tiny, store, unit="absolute"):
    return introspect.run_experiment(
        introspect.load_model(tiny),
        introspect.Protocol.parse(json.dumps(PROTOCOL)),
        vectors={"cat": introspect.ControlVector("qwen2", {1: torch.ones(32)})},
        strengths=[0.1],
        layers=[(1, 1)],
        questions=[],
        strength_unit=unit,
        store=store,
    )


def stored(kind):
    def reader(tiny, folder, text):
        path = folder / "cells.sqlite"
        sweep(tiny, path, "residual")
        with sqlite3.connect(path) as database:
            database.execute(f"UPDATE cells SET value = ? WHERE kind {kind} 'norms'", (text,))
        if kind == "!=":
            with pytest.raises(introspect.IoError):
                introspect.Store(path).to_pandas()
        sweep(tiny, path, "residual")

    return reader


READERS = {
    "intervention": (lambda tiny, folder, text: introspect.Intervention.from_json(text, {}), INTERVENTION),
    "protocol": (lambda tiny, folder, text: introspect.Protocol.parse(text), PROTOCOL),
    "protocol file": (protocol_file, PROTOCOL),
    "based_on": (based_on, PROTOCOL),
    "controls": (controls_file, {"turns": PROTOCOL["turns"], "injected": [0], "questions": ["$QUESTION"]}),
    "store reading": (stored("!="), {"log_odds": 1.0, "p_yes": 0.1, "p_no": 0.2, "tokens": [], "projections": {}}),
    "store norms": (stored("="), None),
    "result": (result_file, {"schema": 1, "model": {}, "protocol": {}, "settings": {}, "rows": []}),
    "tokenizer.json": (in_folder("tokenizer.json", introspect.Tokenizer.load), "tokenizer.json"),
    "tokenizer_config.json": (in_folder("tokenizer_config.json", introspect.Tokenizer.load), "tokenizer_config.json"),
    "config.json": (in_folder("config.json", introspect.load_model), "config.json"),
    "generation_config.json": (in_folder("generation_config.json", introspect.load_model), {"eos_token_id": 1}),
    "config_json": (lambda tiny, folder, text: _C.Model.from_tensors(text, {}), "config.json"),
    "index": (index, {"weight_map": {"w": "a.safetensors"}}),
    "safetensors": (header, {"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "__metadata__": {}}),
    "vector": (vector, ORIGIN),
    "activations": (activations, ACTIVATIONS),
}


def refused(read, tiny, folder, text):
    with pytest.raises((introspect.ConfigError, introspect.IoError, introspect.HookError, ValueError)) as caught:
        read(tiny, folder, text)
    message = str(caught.value)
    assert len(message) < 1000
    assert "json.exception" not in message and "sto" not in message.split(), message  # nlohmann's, std::stoll's


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("name", READERS)
def test_text_that_nests_too_deep_is_refused(tiny, tmp_path, name, kind):
    refused(READERS[name][0], tiny, tmp_path, NESTED[kind])


@pytest.mark.parametrize("name", [name for name, (_, good) in READERS.items() if good is not None])
def test_a_field_that_nests_too_deep_is_refused(tiny, tmp_path, name):
    read, good = READERS[name]
    good = json.loads((tiny / good).read_text()) if isinstance(good, str) else good
    for field in [*good, "unknown"][:12]:
        folder = tmp_path / field.replace("/", "-")
        folder.mkdir()
        text = json.dumps({**good, field: "@"}).replace('"@"', NESTED["both"], 1)
        refused(read, tiny, folder, text)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "text",
    ["", "{", "nul", "{} {}", "{}\0x", "\ufeff{}", "[1]", "1e999", '"' + "x" * 100_000 + '"', '{"a": 01}'],
    ids=range(10),
)
def test_what_is_no_such_json_is_refused(tiny, tmp_path, name, text):
    refused(READERS[name][0], tiny, tmp_path, text)


LONG = "y" * 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"op": LONG}, {"point": LONG}, {"point": 1}, {"strength": "1"}, {"rows": [1.5]}, {"rows": 1}, {"rows": [2**63]},
        {"first_position": 2**64}, {"values": {LONG: None}}, {"values": {"1": LONG}}, {"values": {"1": [LONG]}},
        {"values": []}, {"parameters": {LONG: LONG}}, {"text": {"phase": LONG}}, {"text": {LONG: 1}}, {LONG: 1},
        {"text": {"tokens": [1, "a"]}}, {"last_position": 1.5},
    ],
    ids=range(18),
)  # fmt: skip
def test_a_wrong_field_of_an_intervention_is_named_and_not_dumped(tiny, tmp_path, fields):
    refused(READERS["intervention"][0], tiny, tmp_path, json.dumps({**INTERVENTION, **fields}))


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("projections", {"a": {"x": 1}}, "a layer of projections must be a whole number, got 'x'"),
        ("projections", [1], "projections must be an object, got a list of 1 element"),
        ("tokens", [{"token": "a"}], r"tokens\[0\].id is missing"),
        ("tokens", [{"token": "a", "id": 1.5}], r"tokens\[0\].id must be a whole number, got 1.5"),
        ("log_odds", "high", "log_odds must be a number, got 'high'"),
        ("lens", {"log_odds": [[]]}, r"lens.log_odds\[0\] must be a number, got a list of 0 elements"),
    ],
)
def test_a_wrong_field_of_a_stored_reading_is_named(tiny, tmp_path, field, value, place):
    path = tmp_path / "cells.sqlite"
    sweep(tiny, path)
    good = READERS["store reading"][1]
    with sqlite3.connect(path) as database:
        database.execute("UPDATE cells SET value = ?", (json.dumps({**good, field: value}),))
    with pytest.raises(introspect.IoError, match=place):
        sweep(tiny, path)


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("spectrum", {"one": [1]}, "a layer of spectrum must be a whole number, got 'one'"),
        ("spectrum", {"1": 2}, "spectrum.1 must be a list, got 2"),
        ("n_pairs", 2.5, "n_pairs must be a whole number, got 2.5"),
        ("diagnostics", {"1": {}}, "diagnostics.1.explained_variance is missing"),
    ],
)
def test_a_wrong_field_of_a_vectors_origin_is_named(tiny, tmp_path, field, value, place):
    with pytest.raises(introspect.IoError, match=place):
        vector(tiny, tmp_path, json.dumps({**ORIGIN, field: value}))


def test_norms_without_a_layer_are_an_error_that_names_it(tiny, tmp_path):
    with pytest.raises(introspect.IoError, match="residual norms of a scene: layer 1 is missing"):
        stored("=")(tiny, tmp_path, "[[0, 1.0], [2, 1.0]]")


def test_a_text_file_larger_than_any_is_not_read(tmp_path):
    write_tiny(tmp_path)
    with (tmp_path / "config.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(introspect.IoError, match="must be a text of at most 1073741824 bytes"):
        open_tensors(tmp_path)
