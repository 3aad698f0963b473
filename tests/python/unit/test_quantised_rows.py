"""Products with rows of quantised blocks against the gguf package's values and float64 products."""

import gguf
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from quantised import ENCODINGS, as_tensor, block_size, random_rows

from introspect import ConfigError, ShapeError, ops


def rows_of(rng, encoding, n_rows, n_columns, dtype=torch.float32):
    """(rows, their values in float64 by the gguf package)."""
    data = random_rows(rng, encoding, (n_rows, n_columns))
    kind = gguf.GGMLQuantizationType[encoding]
    stored = data.view({"F32": np.float32, "F16": np.float16}.get(encoding, np.uint8))
    values = torch.from_numpy(gguf.dequantize(stored, kind).astype(np.float64)).view(n_rows, n_columns)
    return ops.QuantisedRows(encoding, as_tensor(data), dtype), values


def assert_product(got, x, values, eps):
    """Within what summing in a precision of `eps` gives: an error for each of the products."""
    wanted = x.double() @ values.t()
    size = x.double().abs() @ values.abs().t()
    assert got.shape == wanted.shape
    assert ((got.double() - wanted).abs() <= eps * size + 1e-30).all()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    encoding=st.sampled_from(ENCODINGS),
    n_rows=st.sampled_from([1, 2, 23, 24, 25, 97]),
    n_blocks=st.integers(1, 70),
    n=st.sampled_from([1, 2, 3, 4, 5, 16, 17, 40]),
    seed=st.integers(0, 2**31),
)
def test_products_are_those_of_the_values(encoding, n_rows, n_blocks, n, seed):
    rng = np.random.default_rng(seed)
    block = block_size(encoding)
    n_columns = block * (n_blocks if block == 32 else 1 + n_blocks // 12 if block == 256 else n_blocks)
    rows, values = rows_of(rng, encoding, n_rows, n_columns)
    x = torch.from_numpy(rng.standard_normal((n, n_columns)).astype(np.float32))
    assert rows.shape == (n_rows, n_columns)
    assert torch.equal(rows.dense(torch.float64), values)
    # Float32 sums in a few accumulators: some units in the last place of the sum of sizes.
    assert_product(rows.product(x), x, values, 3e-6)
    assert_product(rows.product(x.double()), x, values, 1e-12)
    half = x.to(torch.bfloat16)
    assert_product(rows.product(half), half, values, 1.2e-2)  # values, sums rounded to eight bits


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_row_s_result_does_not_depend_on_how_many_rows_there_are(encoding):
    rng = np.random.default_rng(1)
    rows, _ = rows_of(rng, encoding, 31, 512)
    x = torch.from_numpy(rng.standard_normal((40, 512)).astype(np.float32))
    for few in (2, 3, 4):
        assert torch.equal(rows.product(x[:few])[0], rows.product(x[:1])[0])
    for many in (6, 17, 40):
        assert torch.equal(rows.product(x[:many])[:5], rows.product(x[:5]))


def test_pieces_of_several_encodings_are_one_matrix():
    rng = np.random.default_rng(2)
    parts = [rows_of(rng, encoding, n, 256) for encoding, n in (("Q4_K", 33), ("Q8_0", 5), ("F16", 7), ("Q6_K", 20))]
    rows = ops.QuantisedRows.joined([part for part, _ in parts])
    values = torch.cat([v for _, v in parts])
    x = torch.from_numpy(rng.standard_normal((9, 256)).astype(np.float32))
    bias = torch.from_numpy(rng.standard_normal(65).astype(np.float32))
    for n in (1, 4, 9):
        assert_product(rows.product(x[:n], bias) - bias, x[:n], values, 1e-5)
    part = rows.rows(30, 20)
    assert torch.equal(part.dense(torch.float64), values[30:50])
    assert torch.equal(part.product(x), rows.product(x)[:, 30:50])
    ids = torch.tensor([[64, 0], [33, 37]])
    assert torch.equal(rows.gather(ids, torch.float64), values[ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 7])
def test_gradients_are_those_of_the_dense_product(dtype, n):
    rng = np.random.default_rng(3)
    rows, values = rows_of(rng, "Q4_K", 40, 256)
    x = torch.from_numpy(rng.standard_normal((n, 256))).to(dtype).requires_grad_()
    bias = torch.zeros(40, dtype=dtype, requires_grad=True)
    g = torch.from_numpy(rng.standard_normal((n, 40))).to(dtype)
    got = torch.autograd.grad(rows.product(x, bias), (x, bias), g)
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(got[0].double(), g.double() @ values, **tolerance)
    torch.testing.assert_close(got[1].double(), g.double().sum(0), **tolerance)


def test_a_gradient_of_a_gradient_is_that_of_the_dense_product():
    rng = np.random.default_rng(4)
    rows, values = rows_of(rng, "Q8_0", 12, 64, torch.float64)
    x = torch.from_numpy(rng.standard_normal((3, 64))).requires_grad_()

    def curvature(product):
        (g,) = torch.autograd.grad(product(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), x)[0]

    torch.testing.assert_close(curvature(rows.product), curvature(lambda y: y @ values.t()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0x7FFF, 0xFFFF, 0x7C00])
@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_that_is_not_finite_is_in_every_product(encoding, scale, dtype):
    """As a page of 0xFF in a file has it: rounding in whole numbers would carry NaN into 0."""
    data = random_rows(np.random.default_rng(0), encoding, (40, 256))
    at = 208 if encoding == "Q6_K" else 0
    data[3, at : at + 2] = np.array([scale], dtype=np.uint16).view(np.uint8)
    rows = ops.QuantisedRows(encoding, as_tensor(data), dtype)
    x = torch.randn(40, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    for n in (1, 4, 5, 40):
        assert not rows.product(x[:n])[:, 3].isfinite().any()


def test_faults_are_named():
    block = torch.zeros(3, 34, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="IQ2_XS"):
        ops.QuantisedRows("IQ2_XS", block)
    with pytest.raises(ShapeError, match="whole number of blocks of 34"):
        ops.QuantisedRows("Q8_0", block[:, :33].contiguous())
    with pytest.raises(ShapeError, match="uint8"):
        ops.QuantisedRows("Q8_0", block.float())
    with pytest.raises(ShapeError, match="contiguous"):
        ops.QuantisedRows("Q8_0", torch.zeros(34, 34, dtype=torch.uint8).t())
    rows = ops.QuantisedRows("Q8_0", block)
    with pytest.raises(ShapeError, match="32"):
        rows.product(torch.zeros(2, 33))
    with pytest.raises(ShapeError, match=r"bias must be \[3\], got \[2\]"):
        rows.product(torch.zeros(2, 32), torch.ones(2))
    with pytest.raises(IndexError, match="0 to 2"):
        rows.gather(torch.tensor([3]))
    with pytest.raises(IndexError, match="there are 3"):
        rows.rows(2, 2)
    with pytest.raises(ShapeError, match="32 columns"):
        ops.QuantisedRows.joined([rows, ops.QuantisedRows("Q8_0", torch.zeros(1, 68, dtype=torch.uint8))])
