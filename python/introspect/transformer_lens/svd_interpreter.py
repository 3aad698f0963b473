"""Singular directions of weights, read in the vocabulary."""

from __future__ import annotations

from typing import Literal

import torch

from .hooked_transformer import HookedTransformer


class SVDInterpreter:
    """The directions that a head or an MLP writes or reads most, as logits of every token.

    Source: Millidge & Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices are Highly
    Interpretable".
    """

    def __init__(self, model: HookedTransformer) -> None:
        self.model = model
        self.cfg = model.cfg

    def get_singular_vectors(
        self,
        vector_type: Literal["OV", "w_in", "w_out"],
        layer_index: int,
        num_vectors: int = 10,
        head_index: int | None = None,
    ) -> torch.Tensor:
        """What the first singular directions say in the vocabulary, float32 [d_vocab, 1, num_vectors].

        A direction's sign is arbitrary.

        Args:
            vector_type: "OV": what a head writes; "w_in": what an MLP reads, by the weight of the norm before it where
                that is not folded; "w_out": what an MLP writes.
            layer_index: the block.
            num_vectors: how many directions, of the largest singular values first.
            head_index: for "OV".

        Raises:
            ValueError: another type, or "OV" without a head.
            IndexError: a layer or head that the model does not have, or more directions than there are.
        """
        if vector_type not in ("OV", "w_in", "w_out"):
            raise ValueError(f"get_singular_vectors: vector_type must be OV, w_in or w_out, got {vector_type!r}")
        if not 0 <= layer_index < self.cfg.n_layers:
            raise IndexError(
                f"get_singular_vectors: layer_index must be 0 to {self.cfg.n_layers - 1}, got {layer_index}"
            )
        block = self.model.blocks[layer_index]
        if vector_type == "OV":
            if head_index is None:
                raise ValueError("get_singular_vectors: OV needs head_index")
            if not 0 <= head_index < self.cfg.n_heads:
                raise IndexError(
                    f"get_singular_vectors: head_index must be 0 to {self.cfg.n_heads - 1}, got {head_index}"
                )
            directions = block.attn.OV[head_index].Vh.mT
        else:
            reads = block.ln2.w if hasattr(block.ln2, "w") else 1  # OLMo 2 and 3 read the stream as it is
            matrix = block.mlp.W_out if vector_type == "w_out" else block.mlp.W_in.T * reads
            directions = torch.linalg.svd(matrix.detach().float(), full_matrices=False)[2]
        if not 0 < num_vectors <= len(directions):
            raise IndexError(f"get_singular_vectors: num_vectors must be 1 to {len(directions)}, got {num_vectors}")
        return (directions[:num_vectors].detach().float() @ self.model.W_U.detach().float()).T[:, None]
