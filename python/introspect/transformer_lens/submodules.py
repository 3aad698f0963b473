"""``model.blocks[3].attn.W_Q`` and ``model.blocks[3].attn.hook_z``: the parts of a model by attribute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from . import left_out
from .factored_matrix import FactoredMatrix

if TYPE_CHECKING:
    from ..hooks.points import HookPoint
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


class Attention(Part):
    """Attention of a block; under grouped keys, QK and OV go by query heads."""

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of each head, [n_heads, d_model, d_model]; without rotary positions."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)  # type: ignore[arg-type, union-attr]

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of each head, [n_heads, d_model, d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)  # type: ignore[arg-type]


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

    @property
    def attn(self) -> Attention:
        """Attention."""
        return Attention(self.model, f"{self.name}.attn")


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

    def input_to_embed(
        self: Any,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: Any = None,
        attention_mask: torch.Tensor | None = None,
        past_kv_cache: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None, torch.Tensor | None]:
        """(residual before block 0 [batch, pos, d_model], tokens [batch, pos], None, attention mask or None).

        The residual is what ``forward(..., start_at_layer=0)`` takes; arguments are those of ``forward``.

        Raises:
            ConfigError: past_kv_cache: a pass that starts at a layer cannot go on from a cache.
        """
        if past_kv_cache is not None:
            raise _C.ConfigError("input_to_embed: past_kv_cache is not supported: give it to forward, with tokens")
        tokens, mask = self._tokens_of(input, prepend_bos, padding_side)
        mask = mask if attention_mask is None else attention_mask
        return self.forward(tokens, attention_mask=mask, stop_at_layer=0), tokens, None, mask

    @property
    def mod_dict(self: Any) -> dict[str, Part | HookPoint | list[Block]]:
        """Every part and every hook point by its name, a part before what is in it; "blocks" is the list of blocks.

        Hook points that a flag leaves out of "every point" are there, too.
        """
        found: dict[str, Any] = {}
        for name in [*self.engine.weight_names(), *self.hook_dict]:
            pieces = name.split(".")
            for n in range(1, len(pieces)):
                found.setdefault(".".join(pieces[:n]), None)
        found |= self.hook_dict
        position = {name: place for place, name in enumerate(found)}
        for name in found:
            if found[name] is None:
                found[name] = self._part(name)
        return {name: found[name] for name in sorted(found, key=lambda name: _in_tree(name, position))}

    def _part(self: Any, name: str) -> Any:
        part = self
        for piece in name.split("."):
            part = part[int(piece)] if isinstance(part, list) else getattr(part, piece)
        return part

    def named_modules(self: Any) -> Iterator[tuple[str, Any]]:
        """("", the model), then the entries of ``mod_dict``."""
        yield "", self
        yield from self.mod_dict.items()

    def modules(self: Any) -> Iterator[Any]:
        """The model, then the values of ``mod_dict``."""
        for _, module in self.named_modules():
            yield module

    def named_children(self: Any) -> Iterator[tuple[str, Any]]:
        """Those entries of ``mod_dict`` that are in no other."""
        yield from ((name, module) for name, module in self.mod_dict.items() if "." not in name)

    def children(self: Any) -> Iterator[Any]:
        """The values of ``named_children``."""
        for _, module in self.named_children():
            yield module

    def __getattr__(self: Any, attribute: str) -> HookPoint:
        own = hasattr(type(self), attribute)  # hook_dict and others: what failed in them must not look like this
        if own:
            return object.__getattribute__(self, attribute)  # says again what failed
        if attribute.startswith("hook_") and attribute in self.hook_dict:  # hook_embed, hook_pos_embed
            return self.hook_dict[attribute]
        raise AttributeError(left_out.missing(type(self).__name__, attribute, left_out.MODEL))


def _in_tree(name: str, position: dict[str, int]) -> list[int]:
    """What sorts a part before what is in it, and neighbours as they were met."""
    pieces = name.split(".")
    return [position[".".join(pieces[: n + 1])] for n in range(len(pieces))]
