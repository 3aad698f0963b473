"""``model.blocks[3].attn.W_Q`` and ``model.blocks[3].attn.hook_z``: the parts of a model by attribute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import _C

if TYPE_CHECKING:
    from .hook_points import HookPoint
    from .hooked_transformer import HookedTransformer


class Part:
    """A part of a model: its weights, its hook points and the parts within it are attributes."""

    def __init__(self, model: HookedTransformer, name: str) -> None:
        self.model = model
        self.name = name

    def __getattr__(self, attribute: str) -> torch.Tensor | HookPoint | Part:
        if attribute.startswith("__") or attribute in ("model", "name"):
            raise AttributeError(attribute)
        full = f"{self.name}.{attribute}"
        if full in self.model.hook_dict:
            return self.model.hook_dict[full]
        if any(name.startswith(full + ".") for name in self._names()):
            return Part(self.model, full)
        try:
            return self.model.engine.weight(full)
        except ValueError:
            raise AttributeError(f"{self.name} has no {attribute!r}; it has {', '.join(dir(self))}") from None

    def _names(self) -> list[str]:
        return [*self.model.hook_dict, *self.model.engine.weight_names()]

    def __dir__(self) -> list[str]:
        inside = [name.removeprefix(self.name + ".") for name in self._names() if name.startswith(self.name + ".")]
        return sorted({name.split(".")[0] for name in inside})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {', '.join(dir(self))})"


class Norm(Part):
    """A norm before attention or MLP; called with residuals [..., d_model], it gives what that part of the block reads.

    Its weight is applied, if it was not folded.
    """

    def __call__(self, resid: torch.Tensor) -> torch.Tensor:
        _, layer, norm = self.name.split(".")
        return _C.apply_norm(self.model.engine, resid[None], None, layer=int(layer), mlp_input=norm == "ln2")[0]


class Block(Part):
    """A block; called with the residual before it [batch, pos, d_model], it gives the one after it."""

    def __init__(self, model: HookedTransformer, layer: int) -> None:
        super().__init__(model, f"blocks.{layer}")
        self.layer = layer

    def __call__(self, resid_pre: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.model.forward(
            resid_pre, start_at_layer=self.layer, stop_at_layer=self.layer + 1, attention_mask=attention_mask
        )

    @property
    def ln1(self) -> Norm:
        """The norm before attention."""
        return Norm(self.model, f"{self.name}.ln1")

    @property
    def ln2(self) -> Norm:
        """The norm before the MLP."""
        return Norm(self.model, f"{self.name}.ln2")


class Embed(Part):
    """The embedding; called with tokens [batch, pos], it gives [batch, pos, d_model]."""

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.W_E[tokens.to(self.model.cfg.device)]


class FinalNorm(Part):
    """The norm after the last block; called with residuals [..., d_model]."""

    def __call__(self, resid: torch.Tensor) -> torch.Tensor:
        engine = self.model.engine
        return _C.apply_norm(engine, resid[None], None, layer=engine.cfg.n_layers)[0]


class Unembed(Part):
    """The unembedding; called with what the final norm gives [..., d_model], it gives logits [..., d_vocab].

    A soft cap (Gemma 2) is not part of it, as in TransformerLens.
    """

    def __call__(self, normalized: torch.Tensor) -> torch.Tensor:
        return normalized @ self.model.W_U + self.model.b_U


class Parts:
    """The parts that stand once in a model, and its blocks."""

    @property
    def blocks(self: Any) -> list[Block]:
        """One for each layer."""
        return [Block(self, layer) for layer in range(self.cfg.n_layers)]

    @property
    def embed(self: Any) -> Embed:
        """The embedding."""
        return Embed(self, "embed")

    @property
    def pos_embed(self: Any) -> Part:
        """The embedding of positions; it has ``W_pos`` where there is one."""
        return Part(self, "pos_embed")

    @property
    def ln_final(self: Any) -> FinalNorm:
        """The norm after the last block."""
        return FinalNorm(self, "ln_final")

    @property
    def unembed(self: Any) -> Unembed:
        """The unembedding."""
        return Unembed(self, "unembed")

    def __getattr__(self: Any, attribute: str) -> HookPoint:
        own = hasattr(type(self), attribute)  # hook_dict and others: what failed in them must not look like this
        if attribute.startswith("hook_") and not own and attribute in self.hook_dict:  # hook_embed, hook_pos_embed
            return self.hook_dict[attribute]
        raise AttributeError(f"{type(self).__name__} has no attribute {attribute!r}")
