"""Activations of a forward pass, by name."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch

from ._C import ConfigError, HookError, ShapeError
from .utils import Slice, SliceInput, get_act_name

_EVERY_POINT = dict.fromkeys(("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"), True)


class MissingActivationError(HookError, KeyError):
    """An activation that is not in a cache; a KeyError as well, as of any mapping."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError alone would put the message in quotes


class ActivationCache(Mapping):
    """Activations of a forward pass: a mapping from full hook names, which shorthand finds too.

    Keys are ``cache["blocks.5.hook_resid_post"]``, ``cache["resid_post", 5]``, ``cache["k", 6, "attn"]``,
    ``cache["pattern", -1]`` and ``cache["scale4ln1"]`` (``utils.get_act_name``); negative layers count from the last.

    Args:
        cache_dict: full hook name -> activation; tensors are kept, not copied.
        model: the model they are of.
        has_batch_dim: whether the first dimension of each is the batch.
    """

    def __init__(self, cache_dict: dict[str, torch.Tensor], model: Any, has_batch_dim: bool = True) -> None:
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
            layer += self.model.cfg.n_layers
        return get_act_name(name, layer, layer_type)

    def _missing(self, name: str) -> MissingActivationError:
        if name in self.model.engine.hook_names(**_EVERY_POINT):
            return MissingActivationError(f"ActivationCache: '{name}' was not cached: names_filter left it out")
        nearest = (
            ", ".join(difflib.get_close_matches(name, self.cache_dict, n=3, cutoff=0)) or "none: the cache is empty"
        )
        return MissingActivationError(f"ActivationCache: there is no '{name}'; the nearest are {nearest}")

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
        return f"ActivationCache with keys {list(self.cache_dict)}"

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
        last = self.model.cfg.n_layers if layer is None or layer == -1 else layer
        return torch.stack([self[activation_name, block, sublayer_type] for block in range(last)])
