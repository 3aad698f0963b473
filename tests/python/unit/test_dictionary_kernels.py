"""The kernels of dictionaries: choices tile by tile equal those of the whole matrix, whatever the shapes and ties."""

import pytest
import torch
from dictionaries import ARCHITECTURES, K, dictionary, features, normal, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from introspect import _C, SAE

CHOOSE = ("topk", "abstopk", "batchtopk", "groupmax")


def tied(architecture: str, d_in: int, d_sae: int, seed: int, dtype) -> dict[str, torch.Tensor]:
    """Weights of small whole numbers: sums are exact and many are equal."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(-2, 3, shape, generator=rng).to(dtype)  # noqa: E731
    out = {"W_enc": draw(d_in, d_sae), "W_dec": draw(d_sae, d_in), "b_enc": draw(d_sae), "b_dec": draw(d_in)}
    if architecture == "gated":
        del out["b_enc"]
        out |= {"b_gate": draw(d_sae), "b_mag": draw(d_sae), "r_mag": torch.zeros(d_sae, dtype=dtype)}
    if architecture == "jumprelu":
        out["threshold"] = draw(d_sae).abs()
    return out


@settings(max_examples=60, deadline=None)
@given(
    architecture=st.sampled_from([a for a in ARCHITECTURES if a != "matching_pursuit"]),
    rows=st.integers(0, 40),
    d_in=st.integers(1, 40),
    groups=st.integers(1, 12),
    width=st.integers(1, 24),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_sparse_is_dense_is_the_equation_with_ties(architecture, rows, d_in, groups, width, share, dtype, seed):
    d_sae = groups * width
    k = groups if architecture == "groupmax" else max(1, round(share * d_sae))
    w = tied(architecture, d_in, d_sae, seed, dtype)
    sae = SAE(**w, architecture=architecture, k=k if architecture in CHOOSE else 0)
    x = torch.randint(-2, 3, (rows, d_in), generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    exact = {name: t.double() for name, t in w.items()}
    expected = features(architecture, exact, x.double() - exact["b_dec"], k) if rows else torch.zeros(0, d_sae).double()
    sparse = sae.encode_sparse(x)
    assert torch.equal(sparse.dense(), expected.to(dtype))
    assert torch.equal(sae.encode(x), expected.to(dtype))
    assert torch.equal(sae.encode(x.requires_grad_()).detach(), expected.to(dtype))
    assert (sparse.values != 0).all()
    for n in range(rows):
        assert sparse.indices[sparse.offsets[n] : sparse.offsets[n + 1]].diff().gt(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", CHOOSE)
def test_all_features_may_be_chosen(architecture, dtype):
    w = tied(architecture, 5, 24, 0, dtype)
    everything = SAE(**w, architecture=architecture, k=24)
    plain = SAE(**w)
    x = torch.randint(-2, 3, (7, 5)).to(dtype)
    p = plain.pre_activations(x).to(dtype)
    assert torch.equal(everything.encode(x), p if architecture == "abstopk" else torch.relu(p))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rows", [1, 3, 600])  # few rows have a kernel of their own; 600 are two tiles
def test_tiles_and_column_blocks(architecture, rows):
    # 6,000 columns of 512 rows do not fit one block
    sae = dictionary(architecture, d_in=16, d_sae=6_000, dtype=torch.float32)
    x = normal(rows, 16, dtype=torch.float32)
    sparse = sae.encode_sparse(x)
    dense = sae.encode(x.clone().requires_grad_()).detach()  # the whole matrix
    torch.testing.assert_close(sparse.dense(), dense, rtol=1e-5, atol=1e-5)
    y = sae.to("float64").decode(sparse.dense().double())
    assert (sae.decode(sparse) - y).norm() < 1e-5 * y.norm()  # thousands of terms, one after another in float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shapes_and_strides(architecture):
    sae = dictionary(architecture, dtype=torch.float32)
    x = normal(6, 4, 7, dtype=torch.float32)
    strided = x.transpose(0, 1)
    flat = strided.reshape(-1, 7).contiguous()
    assert torch.equal(sae.encode(strided), sae.encode(flat).reshape(4, 6, 24))
    assert torch.equal(sae(strided), sae(flat).reshape(4, 6, 7))
    assert torch.equal(sae.encode_sparse(strided).dense(), sae.encode(flat))
    assert torch.equal(sae.encode(x[0, 0]), sae.encode(x[0, 0][None])[0])
    assert sae(x[:0]).shape == (0, 4, 7) and sae.encode(x[:0]).shape == (0, 4, 24)
    wider = torch.zeros(6, 4, 9)
    wider[..., :7] = x
    assert torch.equal(sae.encode(wider[..., :7]), sae.encode(x))


def test_zero_rows_have_the_features_of_the_bias():
    w = weights("topk")
    w["b_dec"].zero_()
    w["b_enc"] = -w["b_enc"].abs()
    sae = SAE(**w, architecture="topk", k=4)
    assert not sae.encode(torch.zeros(3, 7).double()).any()
    assert sae.encode_sparse(torch.zeros(3, 7).double()).offsets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("architecture", CHOOSE)
def test_features_of_a_row_do_not_depend_on_the_others(architecture):
    if architecture == "batchtopk":
        return
    sae, x = dictionary(architecture, d_in=32, d_sae=640, dtype=torch.float32), normal(600, 32, dtype=torch.float32)
    assert torch.equal(sae.encode(x)[300:500], sae.encode(x[300:500]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_numbers_on_any_number_of_threads(architecture):
    sae, x = dictionary(architecture, d_in=48, d_sae=1200, dtype=torch.float32), normal(300, 48, dtype=torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            f = sae.encode_sparse(x)
            found.append((f.offsets, f.indices, f.values, sae.decode(f)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_decoding_checks_what_it_is_given():
    sae, f = dictionary("topk"), dictionary("topk").encode_sparse(normal(3, 7))
    wrong = _C.SparseFeatures(f.offsets, f.indices + 24, f.values, 24)
    with pytest.raises(IndexError, match="0 to 23"):
        sae.decode(wrong)
    with pytest.raises(_C.ShapeError, match="offsets must rise"):
        sae.decode(_C.SparseFeatures(f.offsets[:-1], f.indices, f.values, 24))
    with pytest.raises(_C.ShapeError, match="24"):
        sae.decode(_C.SparseFeatures(f.offsets, f.indices, f.values, 30))


def test_k_of_each():
    for architecture, k in K.items():
        f = dictionary(architecture).encode(normal(10, 7))
        per_row = (f != 0).sum(-1)
        if architecture == "batchtopk":
            assert per_row.sum() == int(k * 10)
        else:
            assert (per_row <= k).all() and per_row.max() == k
