"""GGUF files against the gguf package, which is the format's own: dequantisation, metadata and the writer."""

import gguf
import numpy as np
import pytest
import torch

import introspect
from introspect.io import GgufFile, GgufWriter, open_tensors

TYPES = ["F64", "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# What the package's Python writer can quantise; of the others we take random bytes as blocks.
QUANTISABLE = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
N_ROWS, N_COLUMNS = 37, 512  # an odd number of rows: the last piece of work is not a whole one


def finite_halves(rng, shape):
    """Float16 scales as models have them, with zeros, negative and subnormal ones among them."""
    values = rng.standard_normal(shape).astype(np.float16)
    values.flat[::7] = 0
    values.flat[::11] = np.float16(3e-7)
    return values


def random_blocks(rng, name):
    """Random bytes for [N_ROWS, N_COLUMNS] values, with every float16 scale finite."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (N_ROWS * N_COLUMNS // block, size), dtype=np.uint8)
    scale_offsets = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82]}
    scale_offsets |= {"Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
    for offset in scale_offsets[name]:
        blocks[:, offset : offset + 2] = finite_halves(rng, (len(blocks), 1)).view(np.uint8)
    return blocks.reshape(N_ROWS, -1)


def stored(rng, name):
    """(what the file holds, its values by the gguf package) for one tensor."""
    qtype = gguf.GGMLQuantizationType[name]
    if name == "F64":
        values = rng.standard_normal((N_ROWS, N_COLUMNS))
        return values, values
    if name in ("F32", "F16", "BF16"):
        data = gguf.quantize(rng.standard_normal((N_ROWS, N_COLUMNS), dtype=np.float32), qtype)
    else:
        data = random_blocks(rng, name)
    return data, gguf.dequantize(data, qtype)


def write_gguf(path, tensors, **options):
    """tensors: {name: (array, type's name)}."""
    writer = gguf.GGUFWriter(path, "test", **options)
    for name, (data, qtype) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[qtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", TYPES)
def test_dequantised_values_are_bit_equal_to_the_gguf_package(tmp_path, name):
    data, expected = stored(np.random.default_rng(0), name)
    source = open_tensors(write_gguf(tmp_path / "a.gguf", {"w": (data, name)}))
    assert source.dtype("w") == name
    assert source.shape("w") == [N_ROWS, N_COLUMNS]
    values = source.read("w", dtype=torch.float64 if name == "F64" else torch.float32)
    assert np.array_equal(values.numpy().view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("name", sorted(QUANTISABLE))
def test_values_quantised_by_the_gguf_package_come_back_bit_equal(tmp_path, name):
    qtype = gguf.GGMLQuantizationType[name]
    data = gguf.quantize(np.random.default_rng(1).standard_normal((3, 64), dtype=np.float32), qtype)
    source = open_tensors(write_gguf(tmp_path / "a.gguf", {"w": (data, name)}))
    assert np.array_equal(source.read("w").numpy(), gguf.dequantize(data, qtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TYPES)
def test_other_dtypes_are_the_float32_values_rounded_once(tmp_path, name, dtype):
    data, expected = stored(np.random.default_rng(2), name)
    source = open_tensors(write_gguf(tmp_path / "a.gguf", {"w": (data, name)}))
    torch.testing.assert_close(source.read("w", dtype=dtype), torch.from_numpy(expected).to(dtype), rtol=0, atol=0)


def test_rounding_to_half_precision_equals_torch_at_every_edge(tmp_path):
    # Scales from the whole range of float16 times Q8_0's integers: subnormal, overflowing, infinite and NaN products.
    bits = np.concatenate([np.arange(0, 1 << 16, 5, dtype=np.uint16), np.array([0x7BFF, 0x7C00, 0x7E00], np.uint16)])
    blocks = np.empty((len(bits), 34), dtype=np.uint8)
    blocks[:, :2] = bits[:, None].view(np.uint8)
    blocks[:, 2:] = np.arange(32, dtype=np.uint8) * 8 + 1
    source = open_tensors(write_gguf(tmp_path / "a.gguf", {"w": (blocks, "Q8_0")}))
    values = source.read("w", dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(source.read("w", dtype=dtype), values.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_one_thread_gives_the_same_bits_as_two(tmp_path):
    data = np.tile(stored(np.random.default_rng(3), "Q4_K")[0], (40, 1))  # more than one piece of work
    source = open_tensors(write_gguf(tmp_path / "a.gguf", {"w": (data, "Q4_K")}))
    two = source.read("w")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(source.read("w"), two)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(two.numpy(), gguf.dequantize(data, gguf.GGMLQuantizationType.Q4_K))


@pytest.mark.parametrize("checkpoint", ["smollm2", "qwen05"])
def test_real_checkpoints_are_bit_equal_to_the_gguf_package(request, checkpoint):
    path = request.getfixturevalue(checkpoint)
    source, reader = GgufFile(path), gguf.GGUFReader(path)
    assert source.names() == [t.name for t in reader.tensors]
    seen = set()
    for tensor in reader.tensors:
        name = tensor.tensor_type.name
        assert source.dtype(tensor.name) == name
        assert source.shape(tensor.name) == [int(n) for n in reversed(tensor.shape)]
        if name in seen and tensor.n_elements > 1 << 20:
            continue  # the package needs seconds for each large one
        seen.add(name)
        expected = gguf.dequantize(tensor.data[:2048], tensor.tensor_type)
        assert np.array_equal(source.read(tensor.name).numpy()[:2048], expected), tensor.name
    assert len(seen) > 1


@pytest.mark.parametrize("checkpoint", ["smollm2", "qwen05"])
def test_metadata_of_real_checkpoints_equals_the_gguf_package(request, checkpoint):
    path = request.getfixturevalue(checkpoint)
    source, reader = GgufFile(path), gguf.GGUFReader(path)
    ours = source.metadata()
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert source.keys() == list(theirs)
    assert ours == theirs
    assert source.architecture() == theirs["general.architecture"]


def test_every_metadata_type_comes_back(tmp_path):
    values = {
        "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.1, "float64": 0.1, "bool": True, "string": "日本 🙂",
    }  # fmt: skip
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "test")
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(kind, value)
    arrays = {"ints": [1, -2, 3], "floats": [0.5, -2.0], "strings": ["a", "", "é"], "bools": [True, False]}
    for key, value in arrays.items():
        writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = values | arrays | {"float32": float(np.float32(0.1)), "general.architecture": "test"}
    assert GgufFile(tmp_path / "a.gguf").metadata() == expected


def test_a_custom_alignment_is_followed(tmp_path):
    data = np.arange(3, dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "test")
    writer.add_custom_alignment(256)
    for name in "abc":
        writer.add_tensor(name, data + ord(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = open_tensors(tmp_path / "a.gguf")
    for name in "abc":
        assert np.array_equal(source.read(name).numpy(), data + ord(name))


def test_what_the_writer_wrote_is_read_by_the_gguf_package(tmp_path, rng):
    directions = {layer: torch.randn(7, generator=rng) for layer in range(1, 4)}
    matrix = torch.randn(2, 3, 5, generator=rng, dtype=torch.bfloat16)
    writer = GgufWriter("controlvector")
    metadata = {
        "controlvector.model_hint": "qwen2", "controlvector.layer_count": 3, "negative": -1,
        "large": 2**40, "ratio": 0.5, "truth": True, "words": ["a", "日本"], "numbers": [1, -2], "floats": [0.5],
    }  # fmt: skip
    for key, value in metadata.items():
        writer.set(key, value)
    for layer, direction in directions.items():
        writer.add(f"direction.{layer}", direction)
    writer.add("matrix", matrix.transpose(0, 2))
    writer.write(tmp_path / "v.gguf")

    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert {key: reader.fields[key].contents() for key in metadata} == metadata
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.layer_count"].types == [gguf.GGUFValueType.UINT32]
    assert reader.fields["ratio"].types == [gguf.GGUFValueType.FLOAT32]
    tensors = {t.name: t for t in reader.tensors}
    assert list(tensors) == ["direction.1", "direction.2", "direction.3", "matrix"]
    for layer, direction in directions.items():
        assert np.array_equal(tensors[f"direction.{layer}"].data, direction.numpy())
    assert np.array_equal(tensors["matrix"].data, matrix.transpose(0, 2).float().numpy())

    ours = GgufFile(tmp_path / "v.gguf")
    assert ours.metadata() == metadata | {"general.architecture": "controlvector"}
    assert torch.equal(ours.read("matrix"), matrix.transpose(0, 2).float())


def test_an_unreadable_quantisation_is_listed_and_named_when_read(tmp_path):
    blocks = np.zeros((1, 18), dtype=np.uint8)
    path = write_gguf(tmp_path / "a.gguf", {"w": (blocks, "IQ4_NL"), "x": (np.zeros(4, np.int32), "I32")})
    source = open_tensors(path)
    assert source.dtype("w") == "IQ4_NL"
    assert source.shape("w") == [1, 32]
    with pytest.raises(introspect.ConfigError, match="'w' is stored as IQ4_NL"):
        source.read("w")
    with pytest.raises(introspect.ConfigError, match="'x' is stored as I32"):
        source.read("x")
