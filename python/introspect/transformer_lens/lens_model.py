"""What a HookedTransformer holds; its methods are functions on this, in the modules beside this one."""

from __future__ import annotations

from typing import Any, Literal

from .. import _C
from ..hooked_model import HookedModel
from .transformer_config import LoadedConfig

Side = Literal["left", "right"]


class LensModel(HookedModel):
    """A hooked model with TransformerLens's ``cfg``, a tokenizer of any kind and, in ``dataset``, texts.

    The tokenizer is a transformers one or anything with its ``encode``, ``decode``, ``padding_side`` and the ids of
    special tokens. Where it has no BOS token, its EOS token stands in, and where it has no pad token, too.
    """

    def __init__(
        self, native: _C.Model, cfg: LoadedConfig, *, name: str, tokenizer: Any, default_padding_side: Side | None
    ) -> None:
        super().__init__(native, name=name)
        self._cfg = cfg
        self.dataset: Any = None
        self.set_tokenizer(tokenizer, default_padding_side)

    @property
    def cfg(self) -> LoadedConfig:
        """Sizes and options, under TransformerLens's names."""
        return self._cfg

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with the methods of a transformers one, or None."""
        return self._tokenizer

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """Uses another tokenizer: a transformers one, or anything with its ``encode``, ``decode`` and special ids."""
        if default_padding_side not in (None, "left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {default_padding_side!r}")
        if tokenizer is not None and (default_padding_side or getattr(tokenizer, "padding_side", None) is None):
            tokenizer.padding_side = default_padding_side or "right"
        self._tokenizer = tokenizer

    def forward(self, *args: Any, **options: Any) -> Any:
        """One forward pass; what runs a whole pass asks here, so that a subclass may have one of its own."""
        raise NotImplementedError

    def _hook_flags(self) -> dict[str, bool]:
        return self.cfg.hook_flags()

    def _use(self, native: _C.Model, *, folded: bool = False) -> None:
        """Another native model in place of this one: the same hook points, and gradients for what had them."""
        with_gradient = {
            name for name, tensor in self.native.named_weights(skip_quantised=True) if tensor.requires_grad
        }
        self.native = self.cfg.native = native
        self.cfg.layer_norm_folding = self.cfg.layer_norm_folding or folded
        for name, tensor in native.named_weights(skip_quantised=True):
            if name in with_gradient:
                tensor.requires_grad_()

    def __getattr__(self, name: str) -> Any:
        is_point = name.startswith("hook_") and not hasattr(type(self), name)  # hook_embed, hook_pos_embed
        if is_point and name in self.hook_dict:
            return self.hook_dict[name]
        return super().__getattr__(name)
