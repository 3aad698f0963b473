"""Weights under TransformerLens's names and in its shapes, and what follows from weights alone.

Weights act from the right, on rows. Under grouped-query attention, W_K, W_V and their biases hold the matrix of a group
once for each query head that uses it, so that QK, OV and the scores built on them go by query heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

from .. import _C
from .factored_matrix import FactoredMatrix
from .lens_model import LensModel
from .state_dict import native_weights
from .text import to_single_token

Lens = TypeVar("Lens", bound=LensModel)


def whole(name: str, doc: str) -> Any:
    """A property that is the weight of this name."""
    return property(lambda model: model.native.weight(name), doc=doc)


def stacked(name: str, doc: str) -> Any:
    """A property that is a weight of every block, in a new tensor; a mixture of experts has none of an MLP."""

    def of(model: LensModel) -> torch.Tensor:
        try:
            return model.native.stacked_weight(name)
        except ValueError as error:
            raise NoSuchWeightError(str(error)) from None

    return property(of, doc=doc)


class LoadedKeys(NamedTuple):
    """The names that a state dict did not have, and those that the model does not."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def applicable(native: _C.Model, **processing: bool) -> dict[str, bool]:
    """The changes of weights that are asked for, without those that would make it another model, of which it warns."""
    if processing["center_writing_weights"] and native.cfg.normalization_type != "LN":
        warnings.warn("weights: RMSNorm sees the mean: center_writing_weights is left out", stacklevel=3)
        processing["center_writing_weights"] = False
    if processing["center_unembed"] and native.cfg.output_logits_soft_cap:
        warnings.warn("weights: a soft cap sees the mean: center_unembed is left out", stacklevel=3)
        processing["center_unembed"] = False
    return processing


class NoSuchWeightError(_C.ConfigError, AttributeError):
    """A weight that models of this kind lack; an AttributeError as well, so that ``hasattr`` is False."""


def W_gate(model: LensModel) -> torch.Tensor | None:
    """[n_layers, d_model, d_mlp], or None where the MLP has no gate.

    Raises:
        ConfigError: the model is a mixture of experts.
    """
    if model.native.cfg.num_experts:
        raise NoSuchWeightError("W_gate: each expert of a mixture has its own, blocks.0.mlp.experts.0.W_gate.weight")
    return model.native.stacked_weight("mlp.W_gate") if model.native.cfg.gated_mlp else None


def W_pos(model: LensModel) -> torch.Tensor:
    """[n_ctx, d_model].

    Raises:
        ConfigError: the model's positions are rotary.
    """
    if model.native.cfg.positional_embedding_type != "standard":
        raise NoSuchWeightError("W_pos: the model has rotary positions, and no embedding of them")
    return model.native.weight("pos_embed.W_pos")


def W_E_pos(model: LensModel) -> torch.Tensor:
    """W_E and W_pos, [d_vocab + n_ctx, d_model]: an overcomplete basis of what enters block 0."""
    return torch.cat([model.native.weight("embed.W_E"), W_pos(model)])


def QK(model: LensModel) -> FactoredMatrix:
    """W_Q W_Kᵀ of every head, [n_layers, n_heads, d_model, d_model]; without rotary positions."""
    return FactoredMatrix(model.native.stacked_weight("attn.W_Q"), model.native.stacked_weight("attn.W_K").mT)


def OV(model: LensModel) -> FactoredMatrix:
    """W_V W_O of every head, [n_layers, n_heads, d_model, d_model]."""
    return FactoredMatrix(model.native.stacked_weight("attn.W_V"), model.native.stacked_weight("attn.W_O"))


def state_dict(model: LensModel) -> dict[str, torch.Tensor]:
    """Every weight under its full name, "blocks.3.attn.W_Q"; views of what the model uses, not to be written to."""
    return {name: model.native.weight(name) for name in model.native.weight_names()}


def load_state_dict(model: LensModel, state_dict: Mapping[str, torch.Tensor], strict: bool = True) -> LoadedKeys:
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
    if any(".A_" in name for name, _ in model.native.named_weights(skip_quantised=True)):
        raise _C.ConfigError(
            "load_state_dict: this model has an adapter, which a state dict holds merged into the weights: load it "
            "into the model without the adapter"
        )
    folded = model.cfg.layer_norm_folding
    weights, missing, unexpected = native_weights(model.native, state_dict, strict=strict, folded=folded)
    model._use(model.native.with_weights(weights))
    return LoadedKeys(missing, unexpected)


def process_weights_(
    model: Lens,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    refactor_factored_attn_matrices: bool = False,
    fold_value_biases: bool = False,
) -> Lens:
    """Changes the weights as ``from_pretrained`` does with these arguments, and gives back the model.

    What the model computes stays; what does not apply to it (centring without LayerNorm or with capped logits) is
    left out with a warning.
    """
    wanted = applicable(
        model.native,
        fold_ln=fold_ln,
        center_writing_weights=center_writing_weights,
        center_unembed=center_unembed,
        fold_value_biases=fold_value_biases,
        refactor_factored_attn_matrices=refactor_factored_attn_matrices,
    )
    if any(wanted.values()):
        model._use(model.native.processed(**wanted), folded=fold_ln)
    return model


def load_and_process_state_dict(
    model: Lens,
    state_dict: Mapping[str, torch.Tensor],
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
    refactor_factored_attn_matrices: bool = False,
) -> Lens:
    """``load_state_dict``, then ``process_weights_``."""
    load_state_dict(model, state_dict, strict=False)
    return process_weights_(
        model, fold_ln, center_writing_weights, center_unembed, refactor_factored_attn_matrices, fold_value_biases
    )


def _processed(model: LensModel, state_dict: Mapping[str, torch.Tensor] | None, change: str) -> Any:
    native = model.native
    if state_dict is not None:
        native = native.with_weights(native_weights(native, state_dict, strict=False)[0])
    native = native.processed(**{change: True})
    if state_dict is not None:
        return {name: native.weight(name) for name in native.weight_names()}
    model._use(native, folded=change == "fold_ln")
    return model


def fold_layer_norm(model: LensModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
    """The weights of norms go into the products after them: of a state dict, which is returned as another, or of
    this model, which is returned."""
    return _processed(model, state_dict, "fold_ln")


def center_writing_weights(model: LensModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
    """What is written to the residual stream has no mean; takes and gives what ``fold_layer_norm`` does.

    Raises:
        ConfigError: the model's norms see the mean.
    """
    return _processed(model, state_dict, "center_writing_weights")


def center_unembed(model: LensModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
    """The logits of a position have no mean; takes and gives what ``fold_layer_norm`` does.

    Raises:
        ConfigError: the model's logits are capped.
    """
    return _processed(model, state_dict, "center_unembed")


def fold_value_biases(model: LensModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
    """Biases of values go into b_O; takes and gives what ``fold_layer_norm`` does."""
    return _processed(model, state_dict, "fold_value_biases")


def refactor_factored_attn_matrices(model: LensModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
    """QK and OV are factored by their singular values; takes and gives what ``fold_layer_norm`` does.

    Raises:
        ConfigError: rotary positions, norms of queries and keys, or grouped keys.
    """
    return _processed(model, state_dict, "refactor_factored_attn_matrices")


def n_params_total(model: LensModel) -> int:
    """Number of weights, embeddings, biases and norms among them."""
    return model.native.n_params


def named_parameters(model: LensModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor once, in the form in which the layers use it ("blocks.3.attn.W_QKV"): what gets gradients."""
    yield from model.native.named_weights()


def parameters(model: LensModel) -> Iterator[torch.Tensor]:
    """The tensors of ``named_parameters``."""
    for _, tensor in named_parameters(model):
        yield tensor


def requires_grad_(model: Lens, requires_grad: bool = True) -> Lens:
    """Whether passes record gradients of the weights; they do not unless asked to, whatever hooks do.

    The weights are those of every model that shares this engine.
    """
    for tensor in parameters(model):
        tensor.requires_grad_(requires_grad)
    return model


def zero_grad(model: LensModel, set_to_none: bool = True) -> None:
    """Forgets the gradients of the weights."""
    for tensor in parameters(model):
        tensor.grad = None if set_to_none or tensor.grad is None else tensor.grad.zero_()


def tokens_to_residual_directions(model: LensModel, tokens: str | int | torch.Tensor) -> torch.Tensor:
    """The columns of W_U for tokens [...]: [..., d_model], or [d_model] for one token, as text too.

    A direction is what the residual is multiplied with after the final norm, whose weight stands between them
    unless the model was loaded with ``fold_ln=True``.
    """
    if isinstance(tokens, str):
        tokens = to_single_token(model, tokens)
    ids = torch.as_tensor(tokens, device=model.cfg.device)
    return model.native.weight("unembed.W_U").T[ids if ids.numel() > 1 else ids.flatten()[0]]


def accumulated_bias(
    model: LensModel, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
) -> torch.Tensor:
    """The sum of b_O and b_out of the blocks before ``layer``, [d_model].

    Args:
        layer: 0 to n_layers.
        mlp_input: b_O of block ``layer`` too: what has been added before its MLP.
        include_mlp_biases: False leaves b_out out.

    Raises:
        IndexError: a layer out of range.
    """
    return _C.accumulated_bias(model.native, layer, mlp_input, include_mlp_biases)


def all_composition_scores(model: LensModel, mode: str) -> torch.Tensor:
    """How much each head composes with each later one, [n_layers, n_heads, n_layers, n_heads].

    Args:
        mode: "Q", "K" or "V": through what of the later head. Grouped keys and values count once for each query
            head. Pairs of which the second is not in a later layer are 0.

    Raises:
        ValueError: another mode.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
    """
    return _C.composition_scores(model.native, mode)


def all_head_labels(model: LensModel) -> list[str]:
    """ "L0H0", "L0H1", ..."""
    return [f"L{layer}H{head}" for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
