"""torch.save's files, read without executing anything, and written so that torch.load reads them."""

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import introspect
from introspect.io import read_torch_zip, save_torch_zip

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128),
]
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))) * 7 - 3).to(dtype)
    kind = draw(st.sampled_from(["as it is", "transposed", "strided", "expanded"]))
    if kind == "transposed" and x.dim() >= 2:
        return x.transpose(0, -1)
    if kind == "strided" and x.dim() >= 1:
        return x[::2]
    if kind == "expanded":
        return x.unsqueeze(0).expand(3, *x.shape)
    return x


values = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(-5, 5), inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4).map(collections.OrderedDict)
    ),
    max_leaves=12,
)


def assert_same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert torch.equal(ours.nan_to_num(), theirs.detach().nan_to_num()) if theirs.numel() else True
    elif isinstance(theirs, dict):
        assert type(ours) is dict and list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert type(ours) is type(theirs) and (ours == theirs or (ours != ours and theirs != theirs))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_whatever_torch_saves_of_plain_values_is_read_as_torch_loads_it(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    assert_same(read_torch_zip(tmp_path / "x.pt"), value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_what_is_written_torch_loads_with_weights_only(tmp_path, value):
    save_torch_zip(tmp_path / "x.pt", value)
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert_same(loaded, read_torch_zip(tmp_path / "x.pt"))
    assert zipfile.ZipFile(tmp_path / "x.pt").testzip() is None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path, protocol):
    value = {"a": [1, 2.5, "text", None, True], "b": (torch.arange(6.0).view(2, 3), {"c": torch.zeros(0)})}
    torch.save(value, tmp_path / "x.pt", pickle_protocol=protocol)
    assert_same(read_torch_zip(tmp_path / "x.pt"), value)


def test_a_state_dict_with_parameters_and_shared_storages_is_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    whole = torch.arange(10.0)
    torch.save(
        {"state": model.state_dict(), "p": model[0].bias, "views": [whole[:4], whole[2:], whole.size()]},
        tmp_path / "x.pt",
    )
    read = read_torch_zip(tmp_path / "x.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(read["state"][name], tensor)
    assert torch.equal(read["p"], model[0].bias)
    first, second, size = read["views"]
    assert torch.equal(second, whole[2:]) and size == (10,)
    first[2] = -1.0
    assert second[0] == -1.0  # one storage, as it was saved


class Evil:
    def __init__(self, call, *arguments):
        self.what = call, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Evil(exec, "raise SystemExit"), "exec"),
        (Evil(__import__, "os"), "__import__"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (Path("x"), "PosixPath"),
        ({1, 2}, "__builtin__.set"),
        (b"bytes", "_codecs.encode"),
        (3 + 4j, "builtins.complex|__builtin__.complex"),
        (torch.float32, "torch.float32"),
    ],
)
def test_every_other_name_and_instruction_is_refused_by_name(tmp_path, value, named):
    torch.save({"a": value}, tmp_path / "x.pt")
    with pytest.raises(introspect.IoError, match=named):
        read_torch_zip(tmp_path / "x.pt")


def archive(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in (records or {}).items():
            file.writestr(f"a/data/{name}", content)
        file.writestr("a/version", "3\n")
    return path


def tensor_pickle(offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], numel: int = 4) -> bytes:
    """What torch writes of a float32 tensor with storage "0", with any numbers in it."""
    buffer = io.BytesIO()

    class Storage:
        pass

    class Rebuilt:
        def __reduce__(self):
            arguments = (Storage(), offset, sizes, strides, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(value, Storage) else None

    Pickler(buffer, protocol=2).dump(Rebuilt())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("offset", "sizes", "strides", "numel"),
    [
        (0, (5,), (1,), 4), (1, (4,), (1,), 4), (-1, (2,), (1,), 4), (0, (-1,), (1,), 4), (0, (2,), (-1,), 4),
        (0, (2, 2), (3, 1), 4), (0, (2**62, 2**62), (0, 0), 4), (0, (2,), (2**62,), 4), (4, (1,), (1,), 4),
        (0, (2,), (1, 1), 4), (0, (2,), (1,), 5), (0, (2,), (1,), 2**62), (2**62, (0,), (1,), 4), (0, (2,), (1,), -1),
    ],
)  # fmt: skip
def test_a_tensor_outside_its_storage_is_refused(tmp_path, offset, sizes, strides, numel):
    archive(tmp_path / "x.pt", tensor_pickle(0, (2, 2), (2, 1)), {"0": bytes(16)})
    assert read_torch_zip(tmp_path / "x.pt").shape == (2, 2)
    archive(tmp_path / "x.pt", tensor_pickle(offset, sizes, strides, numel), {"0": bytes(16)})
    with pytest.raises(introspect.IoError):
        read_torch_zip(tmp_path / "x.pt")


def test_values_that_contain_themselves_or_are_nested_too_deep_are_refused(tmp_path):
    loop: list = []
    loop.append(loop)
    deep: list = []
    for _ in range(200):
        deep = [deep]
    for value, said in ((loop, "contains itself"), (deep, "nested")):
        archive(tmp_path / "x.pt", pickle.dumps(value, protocol=2))
        with pytest.raises(introspect.IoError, match=said):
            read_torch_zip(tmp_path / "x.pt")


def test_a_value_that_stands_a_million_times_is_there_once(tmp_path):
    laughs: list = ["ha"]
    for _ in range(30):
        laughs = [laughs, laughs, laughs, laughs]
    archive(tmp_path / "x.pt", pickle.dumps(laughs, protocol=2))
    read = read_torch_zip(tmp_path / "x.pt")
    assert read[0] is read[3]
    text = "x" * (1 << 20)
    archive(tmp_path / "x.pt", pickle.dumps([text] * 1000, protocol=2))
    with pytest.raises(introspect.IoError, match="repeats"):
        read_torch_zip(tmp_path / "x.pt")


def test_archives_that_are_not_torchs_are_refused(tmp_path):
    good = pickle.dumps([1], protocol=2)
    archive(tmp_path / "packed.pt", good, compression=zipfile.ZIP_DEFLATED)
    archive(tmp_path / "none.pt", b"")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("a.txt", "x")
    torch.save([1], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    # Both entries of the directory say that they begin where the first does.
    data = bytearray(archive(tmp_path / "x.pt", good).read_bytes())
    places = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]
    data[places[1] + 42 : places[1] + 46] = struct.pack("<I", 0)
    (tmp_path / "overlap.pt").write_bytes(data)
    for name, said in (
        ("packed", "compressed"), ("none", "ends"), ("other", "data.pkl"), ("old", "zip"), ("overlap", "overlap"),
        ("missing", "missing"),
    ):  # fmt: skip
        with pytest.raises(introspect.IoError, match=said):
            read_torch_zip(tmp_path / f"{name}.pt")


def test_damaged_bytes_are_an_error_or_another_value_and_never_more(tmp_path):
    torch.save({"a": torch.arange(12.0).view(3, 4).t(), "b": [1, "x", (2.0, None)]}, tmp_path / "x.pt")
    good = (tmp_path / "x.pt").read_bytes()
    rng = torch.Generator().manual_seed(0)
    path = tmp_path / "y.pt"
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(int(torch.randint(1, 4, (), generator=rng))):
            data[int(torch.randint(len(data), (), generator=rng))] = int(torch.randint(256, (), generator=rng))
        cut = int(torch.randint(len(data), (), generator=rng)) if torch.rand((), generator=rng) < 0.1 else len(data)
        path.write_bytes(data[:cut])
        try:
            read_torch_zip(path)
        except introspect.IoError:
            continue


def test_what_cannot_be_written_is_refused(tmp_path):
    loop: list = []
    loop.append(loop)
    for value, error in (
        ({"a": object()}, TypeError), (loop, ValueError), (torch.zeros(2).to_sparse(), introspect.ShapeError),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), introspect.ShapeError),
    ):  # fmt: skip
        with pytest.raises(error):
            save_torch_zip(tmp_path / "x.pt", value)
    assert not (tmp_path / "x.pt").exists()


def test_an_instruction_that_is_not_known_is_named(tmp_path):
    archive(tmp_path / "x.pt", pickle.dumps(b"bytes", protocol=4))
    with pytest.raises(introspect.IoError, match="instruction C at byte"):
        read_torch_zip(tmp_path / "x.pt")
