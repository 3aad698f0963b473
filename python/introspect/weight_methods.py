"""Weights under TransformerLens's names and in its shapes, and what follows from weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from . import _C
from .factored_matrix import FactoredMatrix
from .transformer_config import HookedTransformerConfig

Self = TypeVar("Self", bound="WeightMethods")


def _whole(name: str, doc: str) -> Any:
    return property(lambda self: self.engine.weight(name), doc=doc)


def _stacked(name: str, doc: str) -> Any:
    return property(lambda self: self.engine.stacked_weight(name), doc=doc)


class WeightMethods:
    """The weights of a HookedTransformer. Those of one layer are in ``blocks``; stacks of all layers are copies.

    Weights act from the right, on rows. Under grouped-query attention, W_K, W_V and their biases hold the matrix of a
    group once for each query head that uses it, so that QK, OV and the scores built on them go by query heads.
    """

    engine: _C.Model
    cfg: HookedTransformerConfig

    W_E = _whole("embed.W_E", "[d_vocab, d_model]; with Gemma's scale, so that rows are what hook_embed sees.")
    W_U = _whole("unembed.W_U", "[d_model, d_vocab].")
    b_U = _whole("unembed.b_U", "[d_vocab].")
    W_Q = _stacked("attn.W_Q", "[n_layers, n_heads, d_model, d_head].")
    W_K = _stacked("attn.W_K", "[n_layers, n_heads, d_model, d_head].")
    W_V = _stacked("attn.W_V", "[n_layers, n_heads, d_model, d_head].")
    W_O = _stacked("attn.W_O", "[n_layers, n_heads, d_head, d_model].")
    b_Q = _stacked("attn.b_Q", "[n_layers, n_heads, d_head].")
    b_K = _stacked("attn.b_K", "[n_layers, n_heads, d_head].")
    b_V = _stacked("attn.b_V", "[n_layers, n_heads, d_head].")
    b_O = _stacked("attn.b_O", "[n_layers, d_model].")
    W_in = _stacked("mlp.W_in", "[n_layers, d_model, d_mlp].")
    W_out = _stacked("mlp.W_out", "[n_layers, d_mlp, d_model].")
    b_in = _stacked("mlp.b_in", "[n_layers, d_mlp].")
    b_out = _stacked("mlp.b_out", "[n_layers, d_model].")

    @property
    def W_gate(self) -> torch.Tensor | None:
        """[n_layers, d_model, d_mlp], or None where the MLP has no gate."""
        return self.engine.stacked_weight("mlp.W_gate") if self.engine.cfg.gated_mlp else None

    @property
    def W_pos(self) -> torch.Tensor:
        """[n_ctx, d_model].

        Raises:
            ConfigError: the model's positions are rotary.
        """
        if self.engine.cfg.positional_embedding_type != "standard":
            raise _C.ConfigError("W_pos: the model has rotary positions, and no embedding of them")
        return self.engine.weight("pos_embed.W_pos")

    @property
    def W_E_pos(self) -> torch.Tensor:
        """W_E and W_pos, [d_vocab + n_ctx, d_model]: an overcomplete basis of what enters block 0."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head, [n_layers, n_heads, d_model, d_model]; without rotary positions."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head, [n_layers, n_heads, d_model, d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every weight under its full name, "blocks.3.attn.W_Q"; views of what the model uses, not to be written to."""
        return {name: self.engine.weight(name) for name in self.engine.weight_names()}

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor once, in the form in which the layers use it ("blocks.3.attn.W_QKV"): what gets gradients."""
        yield from self.engine.named_weights()

    def parameters(self) -> Iterator[torch.Tensor]:
        """The tensors of ``named_parameters``."""
        for _, tensor in self.named_parameters():
            yield tensor

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Whether passes record gradients of the weights; they do not unless asked to, whatever hooks do.

        The weights are those of every model that shares this engine.
        """
        for tensor in self.parameters():
            tensor.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of the weights."""
        for tensor in self.parameters():
            tensor.grad = None if set_to_none or tensor.grad is None else tensor.grad.zero_()

    def tokens_to_residual_directions(self, tokens: str | int | torch.Tensor) -> torch.Tensor:
        """The columns of W_U for tokens [...]: [..., d_model], or [d_model] for one token, as text too.

        A direction is what the residual is multiplied with after the final norm, whose weight stands between them
        unless the model was loaded with ``fold_ln=True``.
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)  # type: ignore[attr-defined]
        ids = torch.as_tensor(tokens, device=self.cfg.device)
        return self.W_U.T[ids if ids.numel() > 1 else ids.flatten()[0]]

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> torch.Tensor:
        """The sum of b_O and b_out of the blocks before ``layer``, [d_model].

        Args:
            layer: 0 to n_layers.
            mlp_input: b_O of block ``layer`` too: what has been added before its MLP.
            include_mlp_biases: False leaves b_out out.

        Raises:
            IndexError: a layer out of range.
        """
        return _C.accumulated_bias(self.engine, layer, mlp_input, include_mlp_biases)

    def all_composition_scores(self, mode: str) -> torch.Tensor:
        """How much each head composes with each later one, [n_layers, n_heads, n_layers, n_heads].

        Args:
            mode: "Q", "K" or "V": through what of the later head. Grouped keys and values count once for each query
                head. Pairs of which the second is not in a later layer are 0.

        Raises:
            ValueError: another mode.

        Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
        """
        return _C.composition_scores(self.engine, mode)

    def all_head_labels(self) -> list[str]:
        """ "L0H0", "L0H1", ..."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]
