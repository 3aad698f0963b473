"""A cache of keys and values with the face of TransformerLens's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import _C
from .transformer_config import HookedTransformerConfig


@dataclass(frozen=True)
class HookedTransformerKeyValueCacheEntry:
    """Keys and values of one layer, [batch, pos, n_key_value_heads, d_head]: views, not to be written to.

    Keys are those after RoPE; TransformerLens keeps them before it and rotates all of them at every step.
    """

    past_keys: torch.Tensor
    past_values: torch.Tensor


class HookedTransformerKeyValueCache:
    """Keys and values of a prefix, for ``forward(past_kv_cache=...)``.

    ``native`` is the KVCache itself, which can be forked, cut and saved.
    """

    def __init__(self, native: _C.KVCache) -> None:
        self.native = native
        self.frozen = False

    @classmethod
    def init_cache(
        cls, cfg: HookedTransformerConfig, device: torch.device | str | None = None, batch_size: int = 1
    ) -> HookedTransformerKeyValueCache:
        """An empty cache for the model whose ``cfg`` this is.

        Raises:
            ConfigError: another device than the model's.
        """
        if device is not None and torch.device(device).type != torch.device(cfg.device).type:
            raise _C.ConfigError(f"init_cache: the cache must be where the model is, {cfg.device}, got {device}")
        return cls(cfg.native.make_cache(batch_size))

    def for_pass(self) -> _C.KVCache:
        """What a pass appends to: a fork that is dropped afterwards if the cache is frozen."""
        return self.native.fork() if self.frozen else self.native

    def freeze(self) -> None:
        """Passes go on from this cache but leave it as it is, until ``unfreeze``."""
        self.frozen = True

    def unfreeze(self) -> None:
        """Passes append to it again."""
        self.frozen = False

    @property
    def previous_attention_mask(self) -> torch.Tensor:
        """Which positions hold real tokens: int [batch, pos]."""
        if (mask := self.native.mask) is not None:
            return mask.int()
        return torch.ones(self.native.batch, self.native.length, dtype=torch.int)

    @property
    def entries(self) -> list[HookedTransformerKeyValueCacheEntry]:
        """One for each layer."""
        return [self[layer] for layer in range(self.native.n_layers)]

    def __getitem__(self, layer: int) -> HookedTransformerKeyValueCacheEntry:
        keys, values = self.native.keys(layer), self.native.values(layer)
        return HookedTransformerKeyValueCacheEntry(keys.transpose(1, 2), values.transpose(1, 2))
