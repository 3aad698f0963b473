"""Matrices kept as a product of two, such as the QK and OV circuits of heads: low rank, never multiplied out."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from .. import _C


class FactoredMatrix:
    """The product A B of A [..., ldim, mdim] and B [..., mdim, rdim], with mdim usually the smallest.

    Leading dimensions broadcast. Norms, singular values and eigenvalues are computed from matrices of mdim rows or
    columns (and in float32 where the factors are of 16 bits); only ``AB`` multiplies out.

    Raises:
        ShapeError: factors that are not matrices, or whose inner or leading dimensions do not fit.
    """

    def __init__(self, A: torch.Tensor, B: torch.Tensor) -> None:
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise _C.ShapeError(
                "FactoredMatrix: factors [..., ldim, mdim] and [..., mdim, rdim] are required, got "
                f"{list(A.shape)} and {list(B.shape)}"
            )
        try:
            leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except RuntimeError:
            raise _C.ShapeError(
                f"FactoredMatrix: leading dimensions must broadcast, got {list(A.shape)} and {list(B.shape)}"
            ) from None
        self.A = A.broadcast_to(leading + A.shape[-2:])
        self.B = B.broadcast_to(leading + B.shape[-2:])
        self.ldim, self.mdim, self.rdim = A.shape[-2], A.shape[-1], B.shape[-1]
        self.shape = torch.Size((*leading, self.ldim, self.rdim))
        self.has_leading_dims = len(leading) > 0

    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({tuple(self.shape)}), Hidden Dim({self.mdim})"

    @property
    def ndim(self) -> int:
        """Number of dimensions, leading ones and the matrix's two."""
        return len(self.shape)

    @property
    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The two factors."""
        return self.A, self.B

    @property
    def AB(self) -> torch.Tensor:
        """The matrix itself, [..., ldim, rdim]."""
        return self.A @ self.B

    @property
    def BA(self) -> torch.Tensor:
        """The product in the other order, [..., mdim, mdim]: its nonzero eigenvalues are those of AB.

        Raises:
            ShapeError: a matrix that is not square.
        """
        if self.ldim != self.rdim:
            raise _C.ShapeError(f"FactoredMatrix.BA: ldim must equal rdim, got {list(self.shape)}")
        return self.B @ self.A

    @property
    def T(self) -> FactoredMatrix:
        """The transpose of the two matrix dimensions."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    # Algebra

    def __matmul__(self, other: torch.Tensor | FactoredMatrix) -> Any:
        """``self @ other``: a FactoredMatrix, or for a vector [rdim] a tensor [..., ldim]."""
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if other.ndim == 0 or other.shape[-1 if other.ndim == 1 else -2] != self.rdim:
            raise _C.ShapeError(f"FactoredMatrix @: {list(self.shape)} does not fit {list(other.shape)} on its right")
        if other.ndim == 1:
            return (self.A @ (self.B @ other[:, None])).squeeze(-1)
        if self.rdim > self.mdim:
            return FactoredMatrix(self.A, self.B @ other)
        return FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: torch.Tensor) -> Any:
        """``other @ self``: a FactoredMatrix, or for a vector [ldim] a tensor [..., rdim]."""
        if other.ndim == 0 or other.shape[-1] != self.ldim:
            raise _C.ShapeError(f"@ FactoredMatrix: {list(self.shape)} does not fit {list(other.shape)} on its left")
        if other.ndim == 1:
            return ((other[None] @ self.A) @ self.B).squeeze(-2)
        if self.ldim > self.mdim:
            return FactoredMatrix(other @ self.A, self.B)
        return FactoredMatrix(other, self.AB)

    def __mul__(self, scalar: float | torch.Tensor) -> FactoredMatrix:
        if isinstance(scalar, torch.Tensor) and scalar.numel() != 1:
            raise _C.ShapeError(f"FactoredMatrix *: a scalar is required, got {list(scalar.shape)}; matrices take @")
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """A new leading dimension of size one, before dimension k of the leading ones."""
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Entries as those of AB, but the two matrix dimensions always stay: an int leaves one row, or one column.

        Raises:
            IndexError: an index out of range, or more of them than there are dimensions.
        """
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in [i for i in index if not isinstance(i, torch.Tensor)]:
            at = next(n for n, i in enumerate(index) if i is Ellipsis)
            missing = self.ndim - sum(i is not None and i is not Ellipsis for i in index)
            index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
        n_given = sum(i is not None for i in index)
        if n_given > self.ndim:
            raise IndexError(f"FactoredMatrix: {n_given} indices for a matrix of shape {list(self.shape)}")
        n_matrix = max(0, n_given - (self.ndim - 2))  # how many of them are for the matrix's own two dimensions
        leading, matrix = index[: len(index) - n_matrix], index[len(index) - n_matrix :]
        A, B = (self.A[leading], self.B[leading]) if leading else (self.A, self.B)
        if n_matrix > 0:
            A = A[..., _kept(matrix[0], self.ldim), :]
        if n_matrix > 1:
            B = B[..., _kept(matrix[1], self.rdim)]
        return FactoredMatrix(A, B)

    def get_corner(self, k: int = 3) -> torch.Tensor:
        """The first k entries of AB along every dimension."""
        corner = tuple(slice(k) for _ in self.shape[:-2])
        return self.A[corner][..., :k, :] @ self.B[corner][..., :k]

    # Spectra

    @cached_property
    def _reduced(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(Q_A, R_A, Q_B, R_B) of A = Q_A R_A and Bᵀ = Q_B R_B, so that AB = Q_A (R_A R_Bᵀ) Q_Bᵀ."""
        A, B = (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in self.pair)
        return (*torch.linalg.qr(A), *torch.linalg.qr(B.mT))

    @cached_property
    def _svd(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        Q_A, R_A, Q_B, R_B = self._reduced
        U, S, Vh = torch.linalg.svd(R_A @ R_B.mT, full_matrices=False)
        return Q_A @ U, S, Q_B @ Vh.mT

    def svd(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(U [..., ldim, m], S [..., m], V [..., rdim, m]) with AB = U diag(S) Vᵀ; m is the smallest of the three dims.

        The third is V and not its transpose, as in TransformerLens. Computed once.
        """
        return self._svd

    @property
    def U(self) -> torch.Tensor:
        """Left singular vectors, the columns of [..., ldim, m]."""
        return self._svd[0]

    @property
    def S(self) -> torch.Tensor:
        """Singular values [..., m], the largest first."""
        return self._svd[1]

    @property
    def V(self) -> torch.Tensor:
        """Right singular vectors, the columns of [..., rdim, m]."""
        return self._svd[2]

    @property
    def Vh(self) -> torch.Tensor:
        """The same as V: TransformerLens has always returned V under this name, and its notebooks count on it."""
        return self._svd[2]

    @property
    def eigenvalues(self) -> torch.Tensor:
        """Complex eigenvalues of AB [..., mdim], but for zeros.

        Raises:
            ShapeError: a matrix that is not square.
        """
        BA = self.BA
        return torch.linalg.eigvals(BA.float() if BA.dtype in (torch.bfloat16, torch.float16) else BA)

    def norm(self) -> torch.Tensor:
        """Frobenius norm of AB, [...]."""
        _, R_A, _, R_B = self._reduced
        return torch.linalg.matrix_norm(R_A @ R_B.mT)

    def collapse_l(self) -> torch.Tensor:
        """diag(S) Vᵀ [..., m, rdim]: what AB does to its right side, without the rotation U."""
        return self.S[..., :, None] * self.V.mT

    def collapse_r(self) -> torch.Tensor:
        """U diag(S) [..., ldim, m]: what AB does to its left side, without the rotation V."""
        return self.U * self.S[..., None, :]

    def make_even(self) -> FactoredMatrix:
        """The same matrix with factors U sqrt(S) and sqrt(S) Vᵀ."""
        root = self.S.sqrt()
        return FactoredMatrix(self.U * root[..., None, :], root[..., :, None] * self.V.mT)


def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> torch.Tensor:
    """How much of what ``left`` writes ``right`` reads: |L R| / (|L| |R|), in Frobenius norms.

    Args:
        broadcast_dims: every left matrix with every right one, [*left's leading dims, *right's leading dims]; else the
            leading dimensions are paired as in a product.

    Raises:
        ShapeError: left's rdim is not right's ldim.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", composition of heads.
    """
    if left.rdim != right.ldim:
        raise _C.ShapeError(
            f"composition_scores: left's rdim must be right's ldim, got {list(left.shape)} and {list(right.shape)}"
        )
    # Rotations of what is left of L, or right of R, change no norm: two small factors remain.
    L = left._reduced[1] @ left.B.to(left._reduced[1].dtype)  # [..., m, d]
    R = right.A.to(right._reduced[3].dtype) @ right._reduced[3].mT  # [..., d, m]
    if not broadcast_dims:
        return torch.linalg.matrix_norm(L @ R) / torch.linalg.matrix_norm(L) / torch.linalg.matrix_norm(R)
    flat_L, flat_R = L.reshape(-1, *L.shape[-2:]), R.reshape(-1, *R.shape[-2:])
    columns = flat_R.permute(1, 0, 2).flatten(1)  # [d, n_right * m]: all of right in one product for each of left
    products = [(one @ columns).reshape(one.shape[0], *flat_R.shape[::2]).norm(dim=(0, 2)) for one in flat_L]
    norms = torch.linalg.matrix_norm(flat_L)[:, None] * torch.linalg.matrix_norm(flat_R)
    return (torch.stack(products) / norms).reshape(*left.shape[:-2], *right.shape[:-2])


def _kept(index: Any, size: int) -> Any:
    """An index that leaves its dimension in place."""
    if not isinstance(index, int):
        return index
    if not -size <= index < size:
        raise IndexError(f"FactoredMatrix: index {index} is out of range for a dimension of size {size}")
    return slice(index, index + 1 or None)
