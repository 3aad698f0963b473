"""Names of activations and slices of tensors, as TransformerLens's ``utils`` has them."""

from __future__ import annotations

import re

import numpy as np
import torch

SliceInput = int | tuple | slice | list | np.ndarray | torch.Tensor | None

_SHORT_NAME = re.compile(r"([a-z_]+)(\d+)(.*)")
_ACTIVATION_ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
_LAYER_TYPE_ALIASES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_IN_ATTENTION = {"q", "k", "v", "z", "rot_q", "rot_k", "result", "pattern", "attn_scores"}
_IN_MLP = {"pre", "pre_linear", "mid", "post"}
_IN_NORM = {"scale", "normalized"}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full hook name that a shorthand stands for.

    Names and aliases are TransformerLens's: ``("k", 6, "a")``, ``("pre", 2)``, ``("normalized", 27, "ln2")``, and in
    one word ``"k6"``, ``"scale4ln1"``. A full name is returned as it is.

    Args:
        name: of the activation; digits in it are the layer, and what follows them is the layer type.
        layer: block number, for activations that stand in every block.
        layer_type: "attn" (or "a"), "mlp" ("m"), "" ("b", "block") or a norm ("ln1", "ln2_post"), where the name alone
            does not say it.

    Returns:
        ``"blocks.6.attn.hook_k"``, ``"hook_embed"``, ``"ln_final.hook_scale"``; whether a model has it is not checked.
    """
    if layer is None and layer_type is None:
        if "." in name or name.startswith("hook_"):
            return name
        if short := _SHORT_NAME.fullmatch(name):
            name, layer, layer_type = short.groups()
    name = _ACTIVATION_ALIASES.get(name, name)
    if name in _IN_ATTENTION:
        layer_type = "attn"
    elif name in _IN_MLP:
        layer_type = "mlp"
    elif name in _IN_NORM and layer is None:
        layer_type = "ln_final"
    else:
        layer_type = _LAYER_TYPE_ALIASES.get(layer_type or "", layer_type)
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{layer_type}.hook_{name}" if layer_type else f"{block}hook_{name}"


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
