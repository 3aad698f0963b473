"""Weights under TransformerLens's names and in its shapes, and what follows from weights alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

from .. import _C
from .factored_matrix import FactoredMatrix
from .state_dict import native_weights
from .transformer_config import LoadedConfig

Self = TypeVar("Self", bound="WeightMethods")


def _whole(name: str, doc: str) -> Any:
    return property(lambda self: self.engine.weight(name), doc=doc)


def _stacked(name: str, doc: str) -> Any:
    return property(lambda self: self.engine.stacked_weight(name), doc=doc)


class LoadedKeys(NamedTuple):
    """The names that a state dict did not have, and those that the model does not."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def applicable(engine: _C.Model, **processing: bool) -> dict[str, bool]:
    """The changes of weights that are asked for, without those that would make it another model, of which it warns."""
    if processing["center_writing_weights"] and engine.cfg.normalization_type != "LN":
        warnings.warn("weights: RMSNorm sees the mean: center_writing_weights is left out", stacklevel=3)
        processing["center_writing_weights"] = False
    if processing["center_unembed"] and engine.cfg.output_logits_soft_cap:
        warnings.warn("weights: a soft cap sees the mean: center_unembed is left out", stacklevel=3)
        processing["center_unembed"] = False
    return processing


class NoSuchWeightError(_C.ConfigError, AttributeError):
    """A weight that models of this kind lack; an AttributeError as well, so that ``hasattr`` is False."""


class WeightMethods:
    """The weights of a HookedTransformer. Those of one layer are in ``blocks``; stacks of all layers are copies.

    Weights act from the right, on rows. Under grouped-query attention, W_K, W_V and their biases hold the matrix of a
    group once for each query head that uses it, so that QK, OV and the scores built on them go by query heads.
    """

    engine: _C.Model
    cfg: LoadedConfig

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
            raise NoSuchWeightError("W_pos: the model has rotary positions, and no embedding of them")
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

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True) -> LoadedKeys:
        """Uses copies of these weights from now on; other models that shared the old ones keep them.

        Tensors got from ``parameters`` before are no longer the model's: give an optimiser the new ones.

        Args:
            state_dict: weights under TransformerLens's names and in its shapes, as ``state_dict`` gives them; masks and
                rotary tables in it are passed over.
            strict: False keeps the model's own weight for a name that is missing, and passes unknown ones over.

        Returns:
            missing_keys and unexpected_keys, as torch's does.

        Raises:
            ConfigError: strict, and names are missing or not known; a bias that the model does not have.
            ShapeError: a weight of another shape.
        """
        if any(".A_" in name for name, _ in self.engine.named_weights()):
            raise _C.ConfigError(
                "load_state_dict: this model has an adapter, which a state dict holds merged into the weights: load it "
                "into the model without the adapter"
            )
        folded = self.cfg.layer_norm_folding
        weights, missing, unexpected = native_weights(self.engine, state_dict, strict=strict, folded=folded)
        self._use(self.engine.with_weights(weights))
        return LoadedKeys(missing, unexpected)

    def _use(self: Any, engine: _C.Model, *, folded: bool = False) -> None:
        """Another native model in place of this one: the same hook points, and gradients for what had them."""
        with_gradient = {name for name, tensor in self.engine.named_weights() if tensor.requires_grad}
        self.engine = self.cfg.engine = engine
        self.cfg.layer_norm_folding = self.cfg.layer_norm_folding or folded
        for name, tensor in engine.named_weights():
            if name in with_gradient:
                tensor.requires_grad_()

    def process_weights_(
        self: Self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = False,
    ) -> Self:
        """Changes the weights as ``from_pretrained`` does with these arguments, and gives back the model.

        What the model computes stays; what does not apply to it (centring without LayerNorm or with capped logits) is
        left out with a warning.
        """
        wanted = applicable(
            self.engine,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )
        if any(wanted.values()):
            self._use(self.engine.processed(**wanted), folded=fold_ln)
        return self

    def load_and_process_state_dict(
        self: Self,
        state_dict: Mapping[str, torch.Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> Self:
        """``load_state_dict``, then ``process_weights_``."""
        self.load_state_dict(state_dict, strict=False)
        return self.process_weights_(
            fold_ln, center_writing_weights, center_unembed, refactor_factored_attn_matrices, fold_value_biases
        )

    def _processed(self: Any, state_dict: Mapping[str, torch.Tensor] | None, change: str) -> Any:
        engine = self.engine
        if state_dict is not None:
            engine = engine.with_weights(native_weights(engine, state_dict, strict=False)[0])
        engine = engine.processed(**{change: True})
        if state_dict is not None:
            return {name: engine.weight(name) for name in engine.weight_names()}
        self._use(engine, folded=change == "fold_ln")
        return self

    def fold_layer_norm(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
        """The weights of norms go into the products after them: of a state dict, which is returned as another, or of
        this model, which is returned."""
        return self._processed(state_dict, "fold_ln")

    def center_writing_weights(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
        """What is written to the residual stream has no mean; takes and gives what ``fold_layer_norm`` does.

        Raises:
            ConfigError: the model's norms see the mean.
        """
        return self._processed(state_dict, "center_writing_weights")

    def center_unembed(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
        """The logits of a position have no mean; takes and gives what ``fold_layer_norm`` does.

        Raises:
            ConfigError: the model's logits are capped.
        """
        return self._processed(state_dict, "center_unembed")

    def fold_value_biases(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Biases of values go into b_O; takes and gives what ``fold_layer_norm`` does."""
        return self._processed(state_dict, "fold_value_biases")

    def refactor_factored_attn_matrices(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
        """QK and OV are factored by their singular values; takes and gives what ``fold_layer_norm`` does.

        Raises:
            ConfigError: rotary positions, norms of queries and keys, or grouped keys.
        """
        return self._processed(state_dict, "refactor_factored_attn_matrices")

    @property
    def n_params_total(self) -> int:
        """Number of weights, embeddings, biases and norms among them."""
        return self.engine.n_params

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
