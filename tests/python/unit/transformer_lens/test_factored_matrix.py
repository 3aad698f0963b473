"""The algebra of factored matrices equals that of the matrices they stand for, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import introspect
from introspect import FactoredMatrix
from introspect.utils import composition_scores

FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: the same sums in another order
settings.register_profile("face", deadline=None, max_examples=40)
settings.load_profile("face")

dims = st.integers(1, 6)
leading = st.lists(st.integers(1, 3), max_size=2).map(tuple)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@st.composite
def matrices(draw, square=False):
    lead, left, mid, right = draw(leading), draw(dims), draw(dims), draw(dims)
    torch.manual_seed(draw(st.integers(0, 1000)))
    return FactoredMatrix(random(*lead, left, mid), random(*lead, mid, left if square else right))


@given(matrices(), dims)
def test_products_equal_the_dense_ones(matrix, n):
    dense = matrix.A @ matrix.B
    torch.testing.assert_close(matrix.AB, dense, **FLOOR)
    torch.testing.assert_close(matrix.T.AB, dense.mT, **FLOOR)
    right, left = random(matrix.rdim, n), random(n, matrix.ldim)
    assert isinstance(matrix @ right, FactoredMatrix)
    torch.testing.assert_close((matrix @ right).AB, dense @ right, **FLOOR)
    torch.testing.assert_close((left @ matrix).AB, left @ dense, **FLOOR)
    torch.testing.assert_close(matrix @ right[:, 0], dense @ right[:, 0], **FLOOR)
    torch.testing.assert_close(left[0] @ matrix, left[0] @ dense, **FLOOR)
    other = FactoredMatrix(random(matrix.rdim, 2), random(2, n))
    torch.testing.assert_close((matrix @ other).AB, dense @ other.A @ other.B, **FLOOR)
    torch.testing.assert_close((3 * matrix * torch.tensor(0.5)).AB, 1.5 * dense, **FLOOR)


@given(matrices())
def test_spectrum_equals_the_dense_one(matrix):
    U, S, V = matrix.svd()
    rank = S.shape[-1]
    torch.testing.assert_close(S, torch.linalg.svdvals(matrix.AB)[..., :rank], **FLOOR)
    torch.testing.assert_close(U @ torch.diag_embed(S) @ V.mT, matrix.AB, **FLOOR)
    identity = torch.eye(rank, dtype=torch.float64).expand(*S.shape[:-1], rank, rank)
    torch.testing.assert_close(U.mT @ U, identity, **FLOOR)
    torch.testing.assert_close(V.mT @ V, identity, **FLOOR)
    torch.testing.assert_close(matrix.norm(), torch.linalg.matrix_norm(matrix.AB), **FLOOR)
    torch.testing.assert_close(matrix.make_even().AB, matrix.AB, **FLOOR)
    torch.testing.assert_close(matrix.U @ matrix.collapse_l(), matrix.AB, **FLOOR)
    torch.testing.assert_close(matrix.collapse_r() @ matrix.Vh.mT, matrix.AB, **FLOOR)


@given(matrices(square=True))
def test_traces_of_powers_are_those_of_the_eigenvalues(matrix):
    values, dense = matrix.eigenvalues, matrix.AB
    for power in (1, 2, 3):
        trace = torch.linalg.matrix_power(dense, power).diagonal(dim1=-2, dim2=-1).sum(-1)
        # relative: the trace of a third power reaches thousands
        torch.testing.assert_close(values.pow(power).sum(-1).real, trace, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(matrix.BA, matrix.B @ matrix.A, **FLOOR)


def test_indexing_equals_dense_indexing_but_keeps_the_matrix():
    matrix = FactoredMatrix(random(3, 4, 5, 2), random(3, 4, 2, 6))
    dense = matrix.AB
    for index in (1, -1, (1, 2), (slice(1, 3), 0), torch.tensor([2, 0]), (None, 1), [0, 2]):
        torch.testing.assert_close(matrix[index].AB, dense[index], **FLOOR)
    torch.testing.assert_close(matrix[1, 2, 3].AB, dense[1, 2, 3:4], **FLOOR)
    torch.testing.assert_close(matrix[1, 2, -1, -2].AB, dense[1, 2, 4:5, 4:5], **FLOOR)
    torch.testing.assert_close(matrix[..., :2, 1:3].AB, dense[..., :2, 1:3], **FLOOR)
    torch.testing.assert_close(matrix[:, :, [4, 0]].AB, dense[:, :, [4, 0]], **FLOOR)
    torch.testing.assert_close(matrix.unsqueeze(1).AB, dense.unsqueeze(1), **FLOOR)
    torch.testing.assert_close(matrix.get_corner(2), dense[:2, :2, :2, :2], **FLOOR)
    assert matrix.ndim == 4
    assert matrix.shape == dense.shape
    for bad in ((1, 2, 3, 4, 5), (0, 0, 5), (0, 0, 0, -7), 3):
        with pytest.raises(IndexError):
            matrix[bad]


def test_leading_dimensions_broadcast():
    A, B = random(3, 1, 5, 2), random(4, 2, 5)
    torch.testing.assert_close(FactoredMatrix(A, B).AB, A @ B, **FLOOR)
    assert FactoredMatrix(A, B).pair[0].shape == (3, 4, 5, 2)


@pytest.mark.parametrize("broadcast", [True, False])
def test_composition_scores_are_ratios_of_dense_norms(broadcast):
    left, right = (
        FactoredMatrix(random(2, 3, 6, 2), random(2, 3, 2, 6)),
        FactoredMatrix(random(3, 6, 2), random(3, 2, 6)),
    )
    L, R = left.AB, right.AB
    if broadcast:
        L = L[:, :, None]
    norm = torch.linalg.matrix_norm
    expected = norm(L @ R) / norm(L) / norm(R)
    torch.testing.assert_close(composition_scores(left, right, broadcast_dims=broadcast), expected, **FLOOR)


def test_sixteen_bit_factors_get_a_float32_spectrum():
    matrix = FactoredMatrix(random(6, 2).bfloat16(), random(2, 6).bfloat16())
    full = FactoredMatrix(matrix.A.float(), matrix.B.float())
    torch.testing.assert_close(matrix.S, full.S)
    torch.testing.assert_close(matrix.norm(), full.norm())


def test_what_does_not_fit_is_a_shape_error():
    matrix = FactoredMatrix(random(4, 2), random(2, 5))
    for bad in (
        lambda: FactoredMatrix(random(4, 2), random(3, 5)),
        lambda: FactoredMatrix(random(3, 4, 2), random(2, 2, 5)),
        lambda: FactoredMatrix(random(4), random(4, 2)),
        lambda: matrix @ random(4, 3),
        lambda: matrix @ random(4),
        lambda: random(3, 5) @ matrix,
        lambda: matrix * random(2),
        lambda: matrix.BA,
        lambda: matrix.eigenvalues,
        lambda: composition_scores(matrix, matrix),
    ):
        with pytest.raises(introspect.ShapeError):
            bad()
