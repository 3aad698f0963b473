"""What broken model files, folders and full disks get: a typed error that says why, no crash, no half-written file."""

import json
import os
import resource
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import introspect
from introspect.io import (
    GgufFile,
    GgufWriter,
    HfFolder,
    SafetensorsFile,
    open_tensors,
    save_safetensors,
    write_atomically,
)

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def gguf_bytes(tmp_path):
    writer = GgufWriter("test")
    values = {"u": 7, "f": 0.5, "b": True, "s": "text", "words": ["a", "bc"], "numbers": [1, 2], "floats": [0.5]}
    for key, value in values.items():
        writer.set(key, value)
    writer.add("w", torch.ones(2, 3))
    writer.add("v", torch.ones(5))
    writer.write(tmp_path / "good.gguf")
    return (tmp_path / "good.gguf").read_bytes()


@pytest.fixture
def safetensors_bytes():
    return safetensors.torch.save({"w": torch.ones(2, 3), "v": torch.ones(5).half()}, {"a": "b"})


def use(path):
    """Everything a reader does with a file, or the library's own error."""
    try:
        source = open_tensors(path)
        if isinstance(source, GgufFile):
            source.metadata()
        for name in source.names():
            source.shape(name)
            source.read(name, dtype=torch.bfloat16)
        source.fingerprint()
    except introspect.Error as error:
        assert str(path) in str(error)  # every fault names its file


@st.composite
def damage(draw):
    """A function from good bytes to bad ones."""
    kind = draw(st.sampled_from(["truncate", "flip", "number", "insert"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    small = draw(st.integers(0, 255))
    number = draw(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1])))
    several = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8))
    inserted = draw(st.binary(min_size=1, max_size=20))

    def apply(good):
        at = int(where * len(good))
        if kind == "truncate":
            return good[:at]
        if kind == "insert":
            return good[:at] + inserted + good[at + small % 20 :]
        bad = bytearray(good)
        if kind == "number":
            at = min(at, len(bad) - 8)
            bad[at : at + 8] = struct.pack("<Q", number)
        else:
            for position, mask in several:
                bad[int(position * len(bad))] ^= mask
        return bytes(bad)

    return apply


@FUZZ
@given(damage=damage())
def test_a_damaged_gguf_file_is_an_error_or_harmless(tmp_path, gguf_bytes, damage):
    path = tmp_path / "bad.gguf"
    path.write_bytes(damage(gguf_bytes))
    use(path)


@FUZZ
@given(damage=damage())
def test_a_damaged_safetensors_file_is_an_error_or_harmless(tmp_path, safetensors_bytes, damage):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damage(safetensors_bytes))
    use(path)


@FUZZ
@given(tail=st.binary(max_size=200), version=st.sampled_from([2, 3]), counts=st.tuples(*[st.integers(0, 5)] * 2))
def test_any_bytes_behind_a_gguf_header_are_an_error_or_harmless(tmp_path, tail, version, counts):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, *counts) + tail)
    use(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "X", "I64"]) | JSON,
        "shape": st.lists(st.integers(0, 2**63), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(0, 40) | st.integers(0, 2**64), min_size=2, max_size=2) | JSON,
    }
)


@FUZZ
@given(header=JSON | st.dictionaries(st.text(max_size=12), ENTRY | JSON, max_size=3), data=st.binary(max_size=40))
def test_any_json_as_a_safetensors_header_is_an_error_or_harmless(tmp_path, header, data):
    text = json.dumps(header).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    use(path)


def safetensors_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "without gaps or overlaps"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, "without gaps or overlaps"),
        ({"a": entry(0, 4, [1])}, 8, "must fill the file"),
        ({"a": entry(0, 16, [4])}, 8, "end by byte 8"),
        ({"a": entry(8, 0, [2])}, 8, "must rise"),
        ({"a": entry(0, 8, [3])}, 8, "must account for the 8 bytes"),
        ({"a": entry(0, 8, [2**32, 2**32])}, 8, "does not fit in 64 bits"),
        ({"a": entry(0, 8, [-2])}, 8, "natural number"),
        ({"a": entry(0, 8, [2.0])}, 8, "natural number"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "must hold dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}}, 0, "must hold strings"),
        (b'{"a": {}, "a": {}}', 0, "the key 'a' twice"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", 0, "nest deeper"),
        (b'{"a": 1e999}', 0, "byte|range"),
        (b'{"\xff": {}}', 0, "must be JSON"),
        (b"[]", 0, "must be an object"),
    ],
)
def test_a_wrong_safetensors_header_is_named(tmp_path, header, size, message):
    path = safetensors_file(tmp_path / "a.safetensors", header, bytes(size))
    with pytest.raises(introspect.IoError, match=message):
        SafetensorsFile(path)


def test_a_header_longer_than_the_file_is_not_believed(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(introspect.IoError, match="must fit in the file's 10 bytes"):
        SafetensorsFile(path)


def gguf_head(n_tensors, n_fields, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields)


def gguf_text(text):
    return struct.pack("<Q", len(text)) + text


def gguf_tensor(name, dims, kind, offset):
    return gguf_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with 'GGUF'"),
        (b"GGUX" + bytes(100), "begins with 'GGUF'"),
        (gguf_head(0, 2**62), "count of metadata entries"),
        (gguf_head(2**62, 0), "count of tensors"),
        (gguf_head(0, 1) + struct.pack("<Q", 2**63) + bytes(20), "goes beyond the end"),
        (gguf_head(0, 1) + gguf_text(b"key") + struct.pack("<IIQ", 9, 8, 2**61), "count of array elements"),
        (gguf_head(0, 1) + gguf_text(b"key") + struct.pack("<IIQ", 9, 9, 0), "array of arrays"),
        (gguf_head(0, 1) + gguf_text(b"key") + struct.pack("<IQ", 13, 0), "unknown metadata type 13"),
        (gguf_head(0, 1) + gguf_text(b"\xff\xfe") + struct.pack("<IQ", 4, 0), "must be UTF-8"),
        (gguf_head(0, 2) + (gguf_text(b"key") + struct.pack("<II", 4, 1)) * 2, "the key 'key' twice"),
        (gguf_head(0, 1) + gguf_text(b"general.alignment") + struct.pack("<II", 4, 0), "power of two"),
        (gguf_head(0, 1) + gguf_text(b"general.alignment") + struct.pack("<IQ", 10, 32), "must be a uint32"),
        (gguf_head(1, 0) + gguf_tensor(b"w", [1] * 5, 0, 0), "at most 4 dimensions"),
        (gguf_head(1, 0) + gguf_tensor(b"w", [2**40, 2**40], 0, 0), "does not fit in 64 bits"),
        (gguf_head(1, 0) + gguf_tensor(b"w", [33], 2, 0) + bytes(100), "multiple of 32, got 33"),
        (gguf_head(1, 0) + gguf_tensor(b"w", [4], 0, 1) + bytes(100), "multiple of 32, begins at 1"),
        (gguf_head(1, 0) + gguf_tensor(b"w", [0], 0, 0), "before the tensors' data begin"),
        (gguf_head(1, 0) + gguf_tensor(b"w", [100], 0, 0) + bytes(100), "goes beyond the end"),
        (gguf_head(1, 0) + gguf_tensor(b"w", [4], 0, 2**63) + bytes(100), "goes beyond the end"),
        (gguf_head(2, 0) + gguf_tensor(b"w", [4], 0, 0) * 2 + bytes(200), "overlap|twice"),
        (gguf_head(2, 0) + gguf_tensor(b"v", [4], 0, 0) + gguf_tensor(b"w", [4], 0, 0) + bytes(200), "overlap"),
    ],
)
def test_a_wrong_gguf_file_is_named(tmp_path, content, message):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(introspect.IoError, match=message):
        GgufFile(path)


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_an_unknown_gguf_version_is_named(tmp_path, version):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_head(0, 0, version) + bytes(50))
    with pytest.raises(introspect.ConfigError, match=f"version must be 2 or 3, little-endian, got {version}"):
        GgufFile(path)


def test_a_quantisation_that_nobody_knows_is_listed_and_named_when_read(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_head(1, 0) + gguf_tensor(b"w", [2**50, 16], 77, 0) + bytes(100))
    source = GgufFile(path)
    assert source.dtype("w") == "type 77"
    with pytest.raises(introspect.ConfigError, match="'w' is stored as type 77"):
        source.read("w")


def test_metadata_that_is_not_utf8_is_an_error_when_asked_for(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_head(0, 1) + gguf_text(b"key") + struct.pack("<I", 8) + gguf_text(b"\xc3\x28"))
    source = GgufFile(path)
    with pytest.raises(introspect.IoError, match="'key' must be UTF-8"):
        source.value("key")
    with pytest.raises(introspect.ConfigError, match="no metadata key 'other'"):
        source.value("other")


def test_reading_into_the_wrong_tensor_is_a_shape_error(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", [("w", torch.ones(2, 3))])
    source = open_tensors(tmp_path / "a.safetensors")
    wrong = [
        torch.empty(3, 2),
        torch.empty(3, 2).t(),
        torch.empty(2, 3, dtype=torch.int64),
        torch.empty(2, 3, device="meta"),
    ]
    for out in wrong:
        with pytest.raises(introspect.ShapeError, match="'w'"):
            source.read_into("w", out)
    with pytest.raises(introspect.IoError, match="no tensor 'x'"):
        source.read("x")


def test_what_is_not_a_file_is_an_error_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, message in [("pipe.gguf", "must be a file"), ("absent.gguf", "No such file")]:
        with pytest.raises(introspect.IoError, match=message):
            open_tensors(tmp_path / path)
    with pytest.raises(introspect.IoError, match="is a folder"):
        GgufFile(tmp_path)


def test_a_path_that_is_not_utf8_can_be_named(tmp_path):
    with pytest.raises(introspect.IoError, match="absent\udcff"):
        open_tensors(os.fsencode(tmp_path) + b"/absent\xff")


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(2)}, path)
    (tmp_path / "config.json").write_text("{}")
    for opened in (path, tmp_path):
        with pytest.raises(introspect.ConfigError, match="safetensors"):
            open_tensors(opened)


def test_a_folder_that_lacks_something_says_what(tmp_path):
    with pytest.raises(introspect.IoError, match="is not there"):
        HfFolder(tmp_path / "absent")
    with pytest.raises(introspect.IoError, match=r"no config\.json"):
        HfFolder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(introspect.IoError, match="must be JSON"):
        HfFolder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(introspect.IoError, match=r"neither model\.safetensors nor"):
        HfFolder(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "absent.safetensors"}}')
    with pytest.raises(introspect.IoError, match=r"absent\.safetensors: cannot be opened"):
        HfFolder(tmp_path)
    save_safetensors(tmp_path / "shard.safetensors", [("v", torch.ones(2))])
    index.write_text('{"weight_map": {"w": "shard.safetensors"}}')
    with pytest.raises(introspect.IoError, match="no tensor 'w'"):
        HfFolder(tmp_path)
    for outside in ("../a.safetensors", "/etc/passwd", ""):
        index.write_text(json.dumps({"weight_map": {"w": outside}}))
        with pytest.raises(introspect.IoError, match="must lie in the index's folder"):
            HfFolder(tmp_path)


def test_writers_refuse_what_their_format_cannot_hold(tmp_path):
    one = torch.ones(1)
    for name in ("", "__metadata__"):
        with pytest.raises(ValueError, match="name"):
            save_safetensors(tmp_path / "a", [(name, one)])
    with pytest.raises(ValueError, match="'w' twice"):
        save_safetensors(tmp_path / "a", [("w", one), ("w", one)])
    with pytest.raises(introspect.ShapeError, match="'w' must have a dtype"):
        save_safetensors(tmp_path / "a", [("w", one.to(torch.complex128))])
    writer = GgufWriter("test")
    writer.add("w", one)
    for name in ("", "w", "x" * 64):
        with pytest.raises(ValueError, match="name"):
            writer.add(name, one)
    for tensor in (torch.ones(()), torch.ones(1, 1, 1, 1, 1), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(introspect.ShapeError, match="'x' must be a floating tensor"):
            writer.add("x", tensor)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk():
    """Files that may not grow beyond 64 KiB, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # Python ignores SIGXFSZ, so write() fails
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large_gguf(path):
    writer = GgufWriter("test")
    writer.add("w", torch.ones(100_000))
    writer.write(path)


WRITERS = {
    "gguf": large_gguf,
    "safetensors": lambda path: save_safetensors(path, [("w", torch.ones(100_000))]),
    "text": lambda path: write_atomically(path, b"x" * 400_000),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path, full_disk, write):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(introspect.IoError, match="cannot be written"):
        write(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_folder_that_is_not_there_is_an_error(tmp_path, write):
    with pytest.raises(introspect.IoError, match="cannot be created"):
        write(tmp_path / "absent" / "file")
