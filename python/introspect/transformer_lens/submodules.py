"""``model.blocks[3].attn.W_Q`` and ``model.blocks[3].attn.hook_z``: the parts of a model by attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import _C
from ..hooks.points import HookPoint
from .factored_matrix import FactoredMatrix
from .lens_model import LensModel


class Part:
    """A part of a model: its weights, its hook points and the parts within it are attributes."""

    def __init__(self, model: LensModel, name: str) -> None:
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
            return self.model.native.weight(full)
        except ValueError:
            raise AttributeError(f"{self.name} has no {attribute!r}; it has {', '.join(dir(self))}") from None

    def _names(self) -> list[str]:
        return [*self.model.hook_dict, *self.model.native.weight_names()]

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
        return _C.apply_norm(self.model.native, resid[None], None, layer=int(layer), mlp_input=norm == "ln2")[0]


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

    def __init__(self, model: LensModel, layer: int) -> None:
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
        return self.model.native.weight("embed.W_E")[tokens.to(self.model.cfg.device)]


class FinalNorm(Part):
    """The norm after the last block; called with residuals [..., d_model]."""

    def __call__(self, resid: torch.Tensor) -> torch.Tensor:
        native = self.model.native
        return _C.apply_norm(native, resid[None], None, layer=native.cfg.n_layers)[0]


class Unembed(Part):
    """The unembedding; called with what the final norm gives [..., d_model], it gives logits [..., d_vocab].

    A soft cap (Gemma 2) is not part of it, as in TransformerLens.
    """

    def __call__(self, normalized: torch.Tensor) -> torch.Tensor:
        return normalized @ self.model.native.weight("unembed.W_U") + self.model.native.weight("unembed.b_U")


def blocks(model: LensModel) -> list[Block]:
    """One for each layer."""
    return [Block(model, layer) for layer in range(model.cfg.n_layers)]


def embed(model: LensModel) -> Embed:
    """The embedding."""
    return Embed(model, "embed")


def pos_embed(model: LensModel) -> Part:
    """The embedding of positions; it has ``W_pos`` where there is one."""
    return Part(model, "pos_embed")


def ln_final(model: LensModel) -> FinalNorm:
    """The norm after the last block."""
    return FinalNorm(model, "ln_final")


def unembed(model: LensModel) -> Unembed:
    """The unembedding."""
    return Unembed(model, "unembed")


_IN_MODEL: dict[str, Callable[[LensModel], Any]] = {
    "blocks": blocks,
    "embed": embed,
    "pos_embed": pos_embed,
    "ln_final": ln_final,
    "unembed": unembed,
}


def mod_dict(model: LensModel) -> dict[str, Part | HookPoint | list[Block]]:
    """Every part and every hook point by its name, a part before what is in it; "blocks" is the list of blocks.

    Hook points that a flag leaves out of "every point" are there, too.
    """
    found: dict[str, Any] = {}
    for name in [*model.native.weight_names(), *model.hook_dict]:
        pieces = name.split(".")
        for n in range(1, len(pieces)):
            found.setdefault(".".join(pieces[:n]), None)
    found |= model.hook_dict
    position = {name: place for place, name in enumerate(found)}
    for name in found:
        if found[name] is None:
            found[name] = _part(model, name)
    return {name: found[name] for name in sorted(found, key=lambda name: _in_tree(name, position))}


def _part(model: LensModel, name: str) -> Any:
    first, *inside = name.split(".")
    part = _IN_MODEL[first](model)
    for piece in inside:
        part = part[int(piece)] if isinstance(part, list) else getattr(part, piece)
    return part


def named_modules(model: LensModel) -> Iterator[tuple[str, Any]]:
    """("", the model), then the entries of ``mod_dict``."""
    yield "", model
    yield from mod_dict(model).items()


def modules(model: LensModel) -> Iterator[Any]:
    """The model, then the values of ``mod_dict``."""
    for _, module in named_modules(model):
        yield module


def named_children(model: LensModel) -> Iterator[tuple[str, Any]]:
    """Those entries of ``mod_dict`` that are in no other."""
    yield from ((name, module) for name, module in mod_dict(model).items() if "." not in name)


def children(model: LensModel) -> Iterator[Any]:
    """The values of ``named_children``."""
    for _, module in named_children(model):
        yield module


def _in_tree(name: str, position: dict[str, int]) -> list[int]:
    """What sorts a part before what is in it, and neighbours as they were met."""
    pieces = name.split(".")
    return [position[".".join(pieces[: n + 1])] for n in range(len(pieces))]
