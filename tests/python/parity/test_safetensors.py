"""safetensors files against the safetensors package, which is the format's own."""

import json

import pytest
import safetensors
import safetensors.torch
import torch

import introspect
from introspect.io import HfFolder, SafetensorsFile, open_tensors, save_safetensors

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32]


@pytest.mark.parametrize("wanted", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", FLOATS)
def test_every_float_dtype_is_read_as_torch_converts_it(tmp_path, rng, stored, wanted):
    tensor = torch.randn(33, 70, generator=rng).to(stored)
    safetensors.torch.save_file({"w": tensor}, tmp_path / "a.safetensors")
    source = open_tensors(tmp_path / "a.safetensors")
    assert source.shape("w") == [33, 70]
    torch.testing.assert_close(source.read("w", dtype=wanted), tensor.to(wanted), rtol=0, atol=0)


def test_tensors_at_unaligned_offsets_are_read(tmp_path, rng):
    tensors = {"bytes": torch.tensor([1], dtype=torch.uint8), "w": torch.randn(300, 700, generator=rng)}
    header = {"bytes": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    header["w"] = {"dtype": "F32", "shape": [300, 700], "data_offsets": [1, 1 + 840000]}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + b"\1" + tensors["w"].numpy().tobytes()
    (tmp_path / "a.safetensors").write_bytes(content)
    source = open_tensors(tmp_path / "a.safetensors")
    assert torch.equal(source.read("w"), tensors["w"])
    assert torch.equal(source.read("w", dtype=torch.bfloat16), tensors["w"].bfloat16())


def test_reading_into_rows_of_a_fused_weight(tmp_path, rng):
    q, k = torch.randn(4, 8, generator=rng), torch.randn(2, 8, generator=rng)
    safetensors.torch.save_file({"q": q, "k": k}, tmp_path / "a.safetensors")
    source, fused = open_tensors(tmp_path / "a.safetensors"), torch.full((6, 8), float("nan"))
    source.read_into("q", fused[:4])
    source.read_into("k", fused[4:])
    assert torch.equal(fused, torch.cat([q, k]))


def test_integers_are_listed_and_not_read(tmp_path):
    tensors = {str(d).removeprefix("torch."): torch.zeros(3, dtype=d) for d in INTEGERS}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    source = open_tensors(tmp_path / "a.safetensors")
    assert sorted(source.names()) == sorted(tensors)
    for name in tensors:
        with pytest.raises(introspect.ConfigError, match=f"'{name}' is stored as {source.dtype(name)}"):
            source.read(name)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_what_the_writer_wrote_is_read_by_the_safetensors_package(tmp_path, rng, dtype):
    tensor = (torch.randn(5, 3, generator=rng) * 10).abs().to(dtype)
    tensors = [
        ("odd", torch.tensor([True])),
        ("w", tensor.t()),
        ("scalar", torch.tensor(1.5)),
        ("none", torch.empty(0, 4)),
    ]
    path = tmp_path / "a.safetensors"
    save_safetensors(path, tensors, metadata={"method": "日本", "a": "1"})
    with safetensors.safe_open(path, "pt") as theirs:
        assert theirs.metadata() == {"method": "日本", "a": "1"}
        assert sorted(theirs.keys()) == sorted(name for name, _ in tensors)
        for name, expected in tensors:
            got = theirs.get_tensor(name)
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            assert torch.equal(got.flatten().view(torch.uint8), expected.flatten().view(torch.uint8))
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    assert header_size % 8 == 0
    assert SafetensorsFile(path).metadata() == {"method": "日本", "a": "1"}


def test_shards_are_one_source_and_have_the_fingerprint_of_a_single_file(tmp_path, rng):
    tensors = {f"layers.{i}.w": torch.randn(3, 2000, generator=rng) for i in range(4)}
    safetensors.torch.save_file(tensors, tmp_path / "single.safetensors")
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    index = {"metadata": {"total_size": 96000}, "weight_map": {}}
    for i, (name, tensor) in enumerate(tensors.items()):
        shard = list(shards)[i % 2]
        shards[shard][name] = tensor
        index["weight_map"][name] = shard
    for shard, content in shards.items():
        safetensors.torch.save_file(content, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')

    sharded = HfFolder(tmp_path).weights
    assert sorted(sharded.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(sharded.read(name), tensor)
    fingerprint = open_tensors(tmp_path / "single.safetensors").fingerprint()
    assert sharded.fingerprint() == fingerprint
    assert open_tensors(tmp_path / "model.safetensors.index.json").fingerprint() == fingerprint

    changed = dict(tensors)
    changed["layers.2.w"] = tensors["layers.2.w"].clone()
    changed["layers.2.w"][-1, -1] += 1
    safetensors.torch.save_file(changed, tmp_path / "changed.safetensors")
    assert open_tensors(tmp_path / "changed.safetensors").fingerprint() != fingerprint


def test_a_real_folder_gives_the_tensors_of_the_safetensors_package(stories15m):
    folder = HfFolder(stories15m)
    assert json.loads(folder.config_json)["model_type"] == "llama"
    theirs = safetensors.torch.load_file(stories15m / "model.safetensors")
    assert sorted(folder.weights.names()) == sorted(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(folder.weights.read(name), tensor.float())
