"""Activations of a forward pass, by name."""

from __future__ import annotations

import warnings
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Literal

import torch

from .. import _C
from .._C import ConfigError, HookError, ShapeError
from .manager import Hooked
from .names import get_act_name
from .slices import Slice, SliceInput

Stack = torch.Tensor | tuple[torch.Tensor, list[str]]
Tokens = str | int | torch.Tensor


class MissingActivationError(HookError, KeyError):
    """An activation that is not in a cache; a KeyError as well, as of any mapping."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError alone would put the message in quotes


class ActivationCache(Mapping):
    """Activations of a forward pass: a mapping from full hook names, which shorthand finds too.

    Its methods take the residual stream apart. Components are what is added to the stream, so that they sum to it;
    where a norm stands after a layer (Gemma 2 and 3), it is applied to the layer's heads and neurons with its cached
    scale. With ``apply_ln`` they are what the next norm makes of them at its cached scale, its weight included, so that
    no weights need to have been folded (TransformerLens leaves the weight out, and is right for folded ones only).
    ``pos_slice`` is what ``utils.Slice`` takes; an int drops the position dimension. ``layer`` names the block whose
    input is taken apart; None, -1 and n_layers mean the input of the unembedding.

    Keys are ``cache["blocks.5.hook_resid_post"]``, ``cache["resid_post", 5]``, ``cache["k", 6, "attn"]``,
    ``cache["pattern", -1]`` and ``cache["scale4ln1"]`` (``utils.get_act_name``); negative layers count from the last.

    Args:
        cache_dict: full hook name -> activation; tensors are kept, not copied.
        model: the model they are of.
        has_batch_dim: whether the first dimension of each is the batch.
    """

    def __init__(self, cache_dict: dict[str, torch.Tensor], model: Hooked, has_batch_dim: bool = True) -> None:
        self.cache_dict = dict(cache_dict)  # tensors are shared, entries are not
        self.model = model
        self.has_batch_dim = has_batch_dim

    # A mapping

    def __getitem__(self, key: str | tuple) -> torch.Tensor:
        name = self._full_name(key)
        try:
            return self.cache_dict[name]
        except KeyError:
            raise self._missing(name) from None

    def _full_name(self, key: Any) -> str:
        if isinstance(key, str):
            return key if key in self.cache_dict else get_act_name(key)
        if not isinstance(key, tuple) or not 1 <= len(key) <= 3 or not isinstance(key[0], str):
            raise MissingActivationError(f"ActivationCache: a key is a name or (name, layer, layer_type), got {key!r}")
        name, layer, layer_type = (*key, None, None)[:3]
        if isinstance(layer, int) and layer < 0:
            layer += self.model.native.cfg.n_layers
        return get_act_name(name, layer, layer_type)

    def _missing(self, name: str) -> MissingActivationError:
        try:
            self.model.native.check_hook_name(name)
        except HookError as error:
            return MissingActivationError(f"ActivationCache: there is no '{name}': {error}")
        return MissingActivationError(f"ActivationCache: '{name}' was not cached: names_filter left it out")

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def keys(self) -> KeysView[str]:
        """Full hook names, in the order of the forward pass."""
        return self.cache_dict.keys()

    def values(self) -> ValuesView[torch.Tensor]:
        """The activations, in the order of the forward pass."""
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, torch.Tensor]:
        """Pairs of full hook name and activation."""
        return self.cache_dict.items()

    __eq__ = object.__eq__  # equality of tensors has no truth value
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        names = list(self.cache_dict)
        shown = names if len(names) <= 8 else [*names[:5], "...", names[-1]]
        sizes = {
            tuple(tensor.shape[:2]) for name, tensor in self.cache_dict.items() if name.endswith("hook_resid_post")
        }
        of = f", [batch, pos] {list(*sizes)}" if self.has_batch_dim and len(sizes) == 1 else ""
        return f"ActivationCache({len(names)} activations{of}: {', '.join(shown)})"

    # The whole cache

    @property
    def has_embed(self) -> bool:
        """Whether the token embeddings are cached."""
        return "hook_embed" in self.cache_dict

    @property
    def has_pos_embed(self) -> bool:
        """Whether position embeddings are cached; models with rotary positions have none."""
        return "hook_pos_embed" in self.cache_dict

    def remove_batch_dim(self) -> ActivationCache:
        """Drop the first dimension of every activation, in this cache, and return it.

        Raises:
            ShapeError: the batch has more than one row.
        """
        if not self.has_batch_dim:
            warnings.warn("the batch dimension was already removed", stacklevel=2)
            return self
        for name, activation in self.cache_dict.items():
            if activation.shape[0] != 1:
                raise ShapeError(
                    f"ActivationCache.remove_batch_dim: the batch must be 1, got {activation.shape[0]} at '{name}'"
                )
        for name in self.cache_dict:
            self.cache_dict[name] = self.cache_dict[name][0]
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: SliceInput | Slice) -> ActivationCache:
        """A cache of some rows of the batch; an int drops the dimension.

        Raises:
            ShapeError: the batch dimension was removed.
        """
        rows = Slice(batch_slice)
        if not self.has_batch_dim and rows.mode != "identity":
            raise ShapeError("ActivationCache.apply_slice_to_batch_dim: the batch dimension was removed")
        sliced = {name: rows.apply(activation) for name, activation in self.cache_dict.items()}
        return ActivationCache(sliced, self.model, has_batch_dim=self.has_batch_dim and rows.mode != "int")

    def to(
        self,
        device: torch.device | str | torch.dtype | None = None,
        move_model: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> ActivationCache:
        """Move every activation of this cache to a device, or floating ones to a dtype, and return the cache.

        Args:
            device: a dtype is taken here too.
            move_model: what TransformerLens once did as well. A model stays where it was loaded: True is an error.
            dtype: of floating activations.

        Raises:
            ConfigError: move_model is True.
        """
        if move_model:
            raise ConfigError("ActivationCache.to: a model stays where it was loaded; move_model must be False")
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for name, activation in self.cache_dict.items():
            wanted = dtype if activation.is_floating_point() else None
            self.cache_dict[name] = activation.to(device=device, dtype=wanted)
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch autograd on or off for the whole of torch, as ``torch.set_grad_enabled`` does."""
        warnings.warn(f"autograd is now {'on' if mode else 'off'} in all of torch", stacklevel=2)
        torch.set_grad_enabled(mode)

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> torch.Tensor:
        """The activation of every block before ``layer``, stacked: [layers, ...].

        Args:
            activation_name: as in a key.
            layer: None, -1 and n_layers all mean every block.
            sublayer_type: as in a key, where the name alone does not say it.
        """
        return torch.stack([self[activation_name, block, sublayer_type] for block in range(self._layer(layer))])

    # The residual stream

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput | Slice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack:
        """The residual stream before each block up to ``layer``, [streams, ..., d_model]: the logit lens.

        Args:
            incl_mid: the streams between attention and MLP, too.
            apply_ln: of the whole depth, the final norm of each stream with its own scale and with its bias, ready for
                the unembedding; up to an earlier layer, that layer's norm at its cached scale.
            mlp_input: end with the input of the MLP of ``layer``.
            return_labels: return (stack, labels), labels such as "3_pre", "3_mid" and "final_post".

        Raises:
            HookError: a stream that was not cached.
        """
        options = {"layer": self._layer(layer), "incl_mid": incl_mid, "mlp_input": mlp_input, "apply_ln": apply_ln}
        return self._stack(_C.accumulated_resid, pos_slice, return_labels, **options)

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: SliceInput | Slice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack:
        """What the embeddings and each layer write to the stream, [components, ..., d_model].

        Args:
            mlp_input: the stream that enters the MLP of ``layer``, with what its attention has written.
            mode: all layers, or the MLPs or attention layers only.
            incl_embeds: begin with the embeddings.
            return_labels: return (stack, labels), labels such as "embed", "3_attn_out" and "3_mlp_out".

        Raises:
            HookError: an output that was not cached.
        """
        options = {"layer": self._layer(layer), "mlp_input": mlp_input, "apply_ln": apply_ln}
        return self._stack(_C.decompose_resid, pos_slice, return_labels, mode=mode, incl_embeds=incl_embeds, **options)

    def compute_head_results(self) -> None:
        """Add ``attn.hook_result`` of every layer, what each head writes, [..., n_heads, d_model], to this cache.

        The methods do not need it: it is for reading the results by name.
        """
        for layer in range(self.model.native.cfg.n_layers):
            name = get_act_name("result", layer)
            if name not in self.cache_dict:
                self.cache_dict[name] = _C.head_results(self.model.native, layer, self["z", layer])

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceInput | Slice = None,
        apply_ln: bool = False,
    ) -> Stack:
        """What each head before ``layer`` writes to the stream, [layers * n_heads, ..., d_model], without b_O.

        Args:
            return_labels: return (stack, labels), labels such as "L3H7".
            incl_remainder: end with the rest of the stream, "remainder".
        """
        options = {"layer": self._layer(layer), "incl_remainder": incl_remainder, "apply_ln": apply_ln}
        return self._stack(_C.stack_head_results, pos_slice, return_labels, **options)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: SliceInput | Slice = None,
        pos_slice: SliceInput | Slice = None,
        project_output_onto: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What each neuron of one layer writes to the stream, [..., neurons, d_model].

        Args:
            neuron_slice: as pos_slice, along the neurons.
            project_output_onto: [d_model] or [d_model, outputs]; d_model is gone or becomes outputs, and nothing of
                neurons times d_model is made.
        """
        results = self._stack(
            _C.neuron_results,
            pos_slice,
            layer=layer,
            neurons=self._neurons(neuron_slice),
            projection=project_output_onto,
        )
        n_last = 0 if project_output_onto is not None and project_output_onto.ndim == 1 else 1
        results = results.movedim(0, -1 - n_last)
        return results.squeeze(-1 - n_last) if Slice(neuron_slice).mode == "int" else results

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: SliceInput | Slice = None,
        neuron_slice: SliceInput | Slice = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: torch.Tensor | None = None,
    ) -> Stack:
        """What each neuron before ``layer`` writes to the stream, [neurons, ..., d_model], without b_out.

        Args:
            neuron_slice: as pos_slice, along the neurons of each layer.
            return_labels: return (stack, labels), labels such as "L3N100".
            incl_remainder: end with the rest of the stream, "remainder".
            project_output_onto: [d_model] or [d_model, outputs]; d_model is gone or becomes outputs, and nothing of
                neurons times d_model is made, with apply_ln neither.
        """
        return self._stack(
            _C.stack_neuron_results,
            pos_slice,
            return_labels,
            layer=self._layer(layer),
            neurons=self._neurons(neuron_slice),
            incl_remainder=incl_remainder,
            apply_ln=apply_ln,
            projection=project_output_onto,
        )

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: SliceInput | Slice = None,
        return_labels: bool = False,
        project_output_onto: torch.Tensor | None = None,
    ) -> Stack:
        """Every component of the stream: heads, then neurons, the embeddings, and the biases of layers in one.

        Args:
            mlp_input: the stream that enters the MLP of ``layer``.
            expand_neurons: False has each MLP as one component.
            return_labels: return (stack, labels); the last is "bias".
            project_output_onto: as in stack_neuron_results.

        Returns:
            [components, ..., d_model]; they sum to the stream (with apply_ln, to its norm without the norm's bias).
        """
        return self._stack(
            _C.full_resid_decomposition,
            pos_slice,
            return_labels,
            layer=self._layer(layer),
            mlp_input=mlp_input,
            expand_neurons=expand_neurons,
            apply_ln=apply_ln,
            projection=project_output_onto,
        )

    # Norms and logits

    def apply_ln_to_stack(
        self,
        residual_stack: torch.Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceInput | Slice = None,
        batch_slice: SliceInput | Slice = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> torch.Tensor:
        """A stack [n, ..., d_model] of components as the norm before ``layer`` passes them on, at its cached scale.

        ``weight * (x - mean) / scale``, the mean for LayerNorm only; LayerNorm's bias belongs to no component.

        Args:
            mlp_input: the norm before the MLP of ``layer``.
            pos_slice: the positions that the stack has; it is not applied to the stack.
            batch_slice: rows of the batch, taken from the stack and the scale.
            has_batch_dim: whether the stack has a batch dimension.
            recompute_ln: instead the whole norm of each component, with its own scale and the bias.
        """
        layer = self._layer(layer)
        stack = Slice(batch_slice).apply(residual_stack, dim=1) if has_batch_dim else residual_stack
        scale = None if recompute_ln else self._scale(layer, mlp_input, pos_slice, batch_slice)
        return _C.apply_norm(self.model.native, stack, scale, layer=layer, mlp_input=mlp_input)

    def logit_attrs(
        self,
        residual_stack: torch.Tensor,
        tokens: Tokens,
        incorrect_tokens: Tokens | None = None,
        pos_slice: SliceInput | Slice = None,
        batch_slice: SliceInput | Slice = None,
        has_batch_dim: bool = True,
    ) -> torch.Tensor:
        """How much each component of a stack [n, ..., d_model] adds to the logit of a token: direct logit attribution.

        Over a whole decomposition they sum to the logit, but for the biases of the final norm and the unembedding and
        for a soft cap on logits.

        Args:
            tokens: one token (text, id or tensor of one), a token for each row of the batch [batch], or for each
                position [batch, pos].
            incorrect_tokens: likewise; what is added to their logit is subtracted.
            pos_slice: the positions that the stack has; it is not applied to the stack.
            batch_slice: rows of the batch, taken from the stack.
            has_batch_dim: whether the stack has a batch dimension.

        Returns:
            [n, ...], float32 at least.

        Raises:
            ValueError: text that is not one token, or tokens and incorrect_tokens of different shapes.
            IndexError: a token that is not in the vocabulary.
            ShapeError: tokens that do not fit the stack.
        """
        correct = self._token_ids(tokens)
        incorrect = None if incorrect_tokens is None else self._token_ids(incorrect_tokens)
        if incorrect is not None and incorrect.shape != correct.shape:
            raise ValueError(
                "logit_attrs: tokens and incorrect_tokens must have one shape, got "
                f"{list(correct.shape)} and {list(incorrect.shape)}"
            )
        stack = Slice(batch_slice).apply(residual_stack, dim=1) if has_batch_dim else residual_stack
        by_row = correct.ndim == 1 and stack.ndim == 4 and len(correct) == stack.shape[1]
        if by_row:
            correct, incorrect = correct[:, None], None if incorrect is None else incorrect[:, None]
        scale = self._scale(self.model.native.cfg.n_layers, False, pos_slice, batch_slice)
        return _C.logit_attributions(self.model.native, stack, scale, correct, incorrect)

    # What the methods share

    def _layer(self, layer: int | None) -> int:
        return self.model.native.cfg.n_layers if layer is None or layer == -1 else layer

    def _n_positions(self) -> int:
        for name, activation in self.cache_dict.items():
            if not name.removesuffix("_grad").endswith((".hook_pattern", ".hook_attn_scores")):
                return activation.shape[1 if self.has_batch_dim else 0]
        raise MissingActivationError("ActivationCache: the cache holds no activation with positions")

    def _neurons(self, neuron_slice: SliceInput | Slice) -> torch.Tensor | None:
        return _indices(neuron_slice, self.model.native.cfg.d_mlp)

    def _scale(
        self, layer: int, mlp_input: bool, pos_slice: SliceInput | Slice, batch_slice: SliceInput | Slice
    ) -> torch.Tensor:
        name = "scale" if layer == self.model.native.cfg.n_layers else f"scale{layer}ln{2 if mlp_input else 1}"
        scale = Slice(pos_slice).apply(self[name], dim=-2)
        return Slice(batch_slice).apply(scale) if self.has_batch_dim else scale

    def _token_ids(self, tokens: Tokens) -> torch.Tensor:
        if isinstance(tokens, str):
            encoded = self.model.native.tokenizer.encode(tokens, add_special_tokens=False)
            if len(encoded) != 1:
                raise ValueError(f"logit_attrs: {tokens!r} must be one token, got {len(encoded)}")
            return torch.tensor(encoded[0])
        ids = torch.as_tensor(tokens, dtype=torch.long)
        return ids.reshape(()) if ids.numel() == 1 else ids

    def _stack(self, function: Any, pos_slice: SliceInput | Slice, return_labels: bool = False, **options) -> Any:
        """A native decomposition; dimensions are dropped as an int slice and a vector to project on ask for."""
        projection = options.get("projection")
        if projection is not None and projection.ndim == 1:
            options["projection"] = projection.unsqueeze(-1)
        positions = None if pos_slice is None else _indices(pos_slice, self._n_positions())
        result = function(self.model.native, self.cache_dict, positions=positions, **options)
        stack, labels = result if isinstance(result, tuple) else (result, [])
        if Slice(pos_slice).mode == "int":
            stack = stack.squeeze(-2)
        if projection is not None and projection.ndim == 1:
            stack = stack.squeeze(-1)
        return (stack, labels) if return_labels else stack


def _indices(chosen: SliceInput | Slice, size: int) -> torch.Tensor | None:
    """Non-negative indices of a dimension, int64 [n]; None for all of it."""
    one = Slice(chosen)
    if one.mode == "identity":
        return None
    if isinstance(one.slice, int):
        return torch.tensor([range(size)[one.slice]])
    return torch.from_numpy(one.indices(size))
