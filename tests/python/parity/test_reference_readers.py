"""Files that the reference readers take or refuse are taken or refused likewise: safetensors, transformers, json."""

import json
import struct

import pytest
import safetensors
import torch
from reference import exact_forward
from safetensors.torch import load_file, save_file
from tiny import tiny_transformers

import introspect
from introspect.io import HfFolder, SafetensorsFile

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
PLAIN = json.dumps({"a": ENTRY})


def entry(**changes):
    return json.dumps({"a": {**ENTRY, **changes}})


# name: (header, bytes of data)
HEADERS = {
    "plain": (PLAIN, 4),
    "metadata": ('{"__metadata__": {"x": "y"}, "a": ' + json.dumps(ENTRY) + "}", 4),
    "metadata null": ('{"__metadata__": null, "a": ' + json.dumps(ENTRY) + "}", 4),
    "metadata of numbers": ('{"__metadata__": {"x": 1}, "a": ' + json.dumps(ENTRY) + "}", 4),
    "metadata of null": ('{"__metadata__": {"x": null}, "a": ' + json.dumps(ENTRY) + "}", 4),
    "metadata list": ('{"__metadata__": [], "a": ' + json.dumps(ENTRY) + "}", 4),
    "metadata alone": ('{"__metadata__": {}}', 0),
    "metadata twice": ('{"__metadata__": {}, "__metadata__": {}, "a": ' + json.dumps(ENTRY) + "}", 4),
    "nothing": ("{}", 0),
    "a fourth key": (entry(more=[[{}]]), 4),
    "a fourth key, deep": (PLAIN[:-2] + ', "x": ' + "[" * 100 + "]" * 100 + "}}", 4),
    "a fourth key, too deep": (PLAIN[:-2] + ', "x": ' + "[" * 200 + "]" * 200 + "}}", 4),
    "a fourth key of NaN": (PLAIN[:-2] + ', "x": NaN}}', 4),
    "a tensor twice": ('{"a": ' + json.dumps({**ENTRY, "shape": [9]}) + ', "a": ' + json.dumps(ENTRY) + "}", 4),
    "a field twice": (PLAIN[:-2] + ', "dtype": "F32"}}', 4),
    "spaces after": (PLAIN + "   \n", 4),
    "spaces in front": ("  " + PLAIN, 4),
    "NUL after": (PLAIN + "\0\0", 4),
    "NUL and more after": (PLAIN + "\0x", 4),
    "more after": (PLAIN + "x", 4),
    "byte order mark": ("\ufeff" + PLAIN, 4),
    "empty": ("", 0),
    "no dtype": ('{"a": {"shape": [1], "data_offsets": [0, 4]}}', 4),
    "shape of fractions": (entry(shape=[1.0]), 4),
    "negative shape": (entry(shape=[-1]), 4),
    "three offsets": (entry(data_offsets=[0, 4, 4]), 4),
    "a gap": (entry(data_offsets=[4, 8]), 8),
    "more data": (PLAIN, 8),
    "less data": (PLAIN, 3),
    "a shape of another size": (entry(shape=[2]), 4),
    "no elements": (json.dumps({"a": {**ENTRY, "shape": [0], "data_offsets": [4, 4]}, "b": ENTRY}), 4),
    "no elements amid others": (json.dumps({"a": {**ENTRY, "shape": [0], "data_offsets": [2, 2]}, "b": ENTRY}), 4),
    "an empty name": (json.dumps({"": ENTRY}), 4),
    "escaped name": ('{"\\u0061": ' + json.dumps(ENTRY) + "}", 4),
    "broken surrogate": ('{"\\ud800": ' + json.dumps(ENTRY) + "}", 4),
    "a number out of range": (PLAIN[:-2] + ', "x": 1e999}}', 4),
    "F4": (json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}), 1),
    "F8_E4M3FNUZ": (json.dumps({"a": {"dtype": "F8_E4M3FNUZ", "shape": [2], "data_offsets": [0, 2]}}), 2),
    "F8_E5M2FNUZ": (json.dumps({"a": {"dtype": "F8_E5M2FNUZ", "shape": [2], "data_offsets": [0, 2]}}), 2),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_header_is_read_or_refused_as_by_safetensors(tmp_path, name):
    header, size = HEADERS[name]
    content = struct.pack("<Q", len(header.encode())) + header.encode() + bytes(size)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    try:
        expected = {tensor: facts["shape"] for tensor, facts in safetensors.deserialize(content)}
    except safetensors.SafetensorError:
        with pytest.raises(introspect.IoError):
            SafetensorsFile(path)
        return
    source = SafetensorsFile(path)
    assert {tensor: source.shape(tensor) for tensor in source.names()} == expected


@pytest.mark.parametrize("word", ["F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_the_other_eight_bit_floats_are_read(tmp_path, word):
    dtype = {"F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz}[word]
    values = torch.arange(256, dtype=torch.uint8)
    header = json.dumps({"a": {"dtype": word, "shape": [256], "data_offsets": [0, 256]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(values.numpy()))
    read = SafetensorsFile(tmp_path / "a.safetensors").read("a")
    torch.testing.assert_close(read, values.view(dtype).float(), rtol=0, atol=0, equal_nan=True)


CONFIGS = [
    '{"a": 1}', ' {"a": 1}\n', '{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}',
    '{"a": [NaN, "NaN", {"NaN": -Infinity}]}', '{"a": "\\"NaN", "b": NaN}', '{"a": nan}', '{"a": -NaN}', '{"a": Inf}',
    '{"a": NaNs}', '{NaN: 1}', '{"a": 1, "a": 2}', '{"a": 1}\0', '{"a": 1}\0{', '\0{"a": 1}', '{"a": "\0"}',
    '\ufeff{"a": 1}', '{"a": 1} x', '{"a": 1,}', "{'a': 1}", '{"a": 01}', '{"a": +1}', '{"a": .5}', '{"a": 1.}',
    '{"a": 1e5}', '{"a": "\t"}', '{"a": "\\u00e9\\ud83d\\ude42"}', '{"a": "\\x41"}', '{"a": tru}',
    '{"a": 123456789012345678901234567890}', "", "{", '{"a"}', '{"a": 1}{"b": 2}', "// no\n{}",
]  # fmt: skip


@pytest.mark.parametrize("text", CONFIGS, ids=range(len(CONFIGS)))
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_is_read_or_refused_as_by_pythons_json(tmp_path, name, text):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(text)
    try:
        json.loads((tmp_path / name).read_text())
    except ValueError:
        with pytest.raises(introspect.IoError, match=name):
            HfFolder(tmp_path)
    else:
        HfFolder(tmp_path)


@pytest.fixture(scope="module")
def theirs():
    return tiny_transformers("llama")


def sharded(theirs, folder, change):
    """A folder of two shards after `change(shards, weight_map)`, and transformers' model of it."""
    from transformers import AutoModelForCausalLM

    theirs.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {f"model-0000{k}-of-00002.safetensors": {} for k in (1, 2)}
    for i, (name, tensor) in enumerate(state.items()):
        shards[list(shards)[i % 2]][name] = tensor
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    change(shards, weight_map)
    for shard, tensors in shards.items():
        save_file(tensors, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    return folder, reference


def names_what_nobody_has(shards, weight_map):
    weight_map["model.unused.weight"] = next(iter(shards))


def omits_one(shards, weight_map):
    del weight_map["model.norm.weight"]


def names_the_wrong_shard(shards, weight_map):
    name = "model.norm.weight"
    weight_map[name] = next(shard for shard in shards if shard != weight_map[name])


def has_one_twice(shards, weight_map):
    name = "model.norm.weight"
    for factor, shard in enumerate(shards, 1):
        shards[shard][name] = torch.ones(48, dtype=torch.float64) * factor


@pytest.mark.parametrize("change", [names_what_nobody_has, omits_one, names_the_wrong_shard, has_one_twice])
def test_an_index_that_errs_is_read_as_by_transformers(theirs, tmp_path, rng, change):
    folder, reference = sharded(theirs, tmp_path, change)
    tokens = torch.randint(3, 101, (1, 12), generator=rng)
    ours = introspect.load_model(folder, dtype=torch.float64)
    torch.testing.assert_close(ours(tokens), exact_forward(reference, tokens).logits, rtol=0, atol=1e-9)


def test_a_tensor_that_no_shard_has_is_named(theirs, tmp_path):
    def drop(shards, weight_map):
        del shards[weight_map["model.norm.weight"]]["model.norm.weight"]

    folder, _ = sharded(theirs, tmp_path, drop)
    with pytest.raises(introspect.ConfigError, match=r"model\.norm\.weight"):
        introspect.load_model(folder)
