"""A choice of indices along one dimension, in TransformerLens's notation."""

from __future__ import annotations

import numpy as np
import torch

SliceInput = int | tuple | slice | list | np.ndarray | torch.Tensor | None


class Slice:
    """A choice of indices along one dimension, in TransformerLens's notation.

    Args:
        input_slice: None keeps all; an int takes one index and drops the dimension; a tuple is the arguments of a
            Python slice, ``(stop,)``, ``(start, stop)`` or ``(start, stop, step)``; a list, array or tensor holds
            indices, or a bool for each index.

    Raises:
        ValueError: anything else, or an array with more than one dimension.
    """

    def __init__(self, input_slice: SliceInput | Slice = None) -> None:
        self.slice: int | slice | np.ndarray
        self.mode: str
        if isinstance(input_slice, Slice):
            self.slice, self.mode = input_slice.slice, input_slice.mode
        elif input_slice is None:
            self.slice, self.mode = slice(None), "identity"
        elif isinstance(input_slice, (int, np.integer)) and not isinstance(input_slice, bool):
            self.slice, self.mode = int(input_slice), "int"
        elif isinstance(input_slice, slice):
            self.slice, self.mode = input_slice, "slice"
        elif isinstance(input_slice, tuple) and 1 <= len(input_slice) <= 3:
            self.slice, self.mode = slice(*input_slice), "slice"
        elif isinstance(input_slice, (list, np.ndarray, torch.Tensor)):
            array = input_slice.cpu().numpy() if isinstance(input_slice, torch.Tensor) else np.asarray(input_slice)
            if array.ndim > 1:
                raise ValueError(f"Slice: indices must be one-dimensional, got shape {array.shape}")
            if array.size and not (array.dtype == bool or np.issubdtype(array.dtype, np.integer)):
                raise ValueError(f"Slice: indices must be integers or bools, got {array.dtype}")
            if array.ndim == 0:
                self.slice, self.mode = int(array), "int"
            else:
                self.slice, self.mode = array if array.size else array.astype(np.int64), "array"
        else:
            raise ValueError(
                f"Slice: must be None, an int, a tuple of 1 to 3, a list, array or tensor, got {input_slice!r}"
            )

    def apply(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The chosen indices of one dimension; an int drops it. A view, but for arrays.

        Raises:
            IndexError: an index out of range.
        """
        if self.mode == "identity":
            return tensor
        index: list = [slice(None)] * tensor.ndim
        index[dim] = torch.from_numpy(self.slice) if isinstance(self.slice, np.ndarray) else self.slice
        return tensor[tuple(index)]

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """The chosen indices of a dimension of size ``max_ctx``, int64.

        Raises:
            ValueError: no ``max_ctx``, unless the slice is an int.
        """
        if isinstance(self.slice, int):
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None:
            raise ValueError("Slice.indices: max_ctx must be given unless the slice is an int")
        return np.arange(max_ctx, dtype=np.int64)[self.slice]

    def __repr__(self) -> str:
        return f"Slice({self.slice!r}, mode={self.mode!r})"

    @classmethod
    def unwrap(cls, slice_input: SliceInput | Slice) -> Slice:
        """A Slice of anything a Slice is made of, but an int keeps its dimension, with size one."""
        return cls([int(slice_input)] if isinstance(slice_input, (int, np.integer)) else slice_input)
