"""Weights under TransformerLens's names, in the form in which the native model holds them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .. import _C

# What TransformerLens's state dict holds besides weights.
_BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")


def native_weights(
    native: _C.Model, state: Mapping[str, torch.Tensor], *, strict: bool = True, folded: bool = False
) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """Weights by TransformerLens's names as ``native.with_weights`` takes them, copied to the model's dtype and device.

    Args:
        native: the model they are for.
        state: "blocks.3.attn.W_Q" [n_heads, d_model, d_head] and so on, as ``state_dict`` gives them; grouped keys
            and values under "attn._W_K" or, repeated for each query head, "attn.W_K".
        strict: names that are missing or not known are an error.
        folded: the model's norms have no weights in TransformerLens, so that none of theirs need be there.

    Returns:
        The weights, and the names that were missing and not known.

    Raises:
        ConfigError: strict, and a name is missing or not known; a bias that is not zero, and the model has none, or
            TransformerLens's of a gated MLP, which it adds after the product with the gate.
        ShapeError: a weight of another shape.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith(_BUFFERS)}
    wanted = native.weight_names()
    given = {name: _as_stored(name, state, native.cfg) for name in wanted if _present(name, state)}
    given |= _unnamed(native, wanted, given, folded)
    known = {*wanted, *(name.replace("attn._", "attn.") for name in wanted)}
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in state if name not in known]
    if strict and (missing or unexpected):
        faults = [
            f"{what} {_listed(names)}" for what, names in (("missing", missing), ("unknown", unexpected)) if names
        ]
        raise _C.ConfigError(f"load_state_dict: {'; '.join(faults)}")
    held = dict(native.named_weights())
    weights = Weights(native, given)
    out: dict[str, torch.Tensor] = {}
    for name, old in held.items():
        new = weights.fused(name)
        if tuple(new.shape) != tuple(old.shape):
            raise _C.ShapeError(f"load_state_dict: {name} must come to {list(old.shape)}, got {list(new.shape)}")
        out[name] = new.detach().to(old.device, old.dtype, copy=True).contiguous()
    _check_biases(native, held, given)
    return out, missing, unexpected


class Weights:
    """The weights given, and the model's own where none is given."""

    def __init__(self, native: _C.Model, given: Mapping[str, torch.Tensor]) -> None:
        self.native = native
        self.given = given
        self.names = set(native.weight_names())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.given:
            return self.native.weight(name)
        new, old = self.given[name], self.native.weight(name)
        if new.shape != old.shape:
            raise _C.ShapeError(f"load_state_dict: {name} must be {list(old.shape)}, got {list(new.shape)}")
        return new

    def _grouped(self, block: str, kind: str) -> torch.Tensor:
        grouped = f"{block}attn._{kind}"
        return self[grouped if grouped in self.names else f"{block}attn.{kind}"]

    def fused(self, name: str) -> torch.Tensor:
        """One of the tensors of ``named_weights``."""
        block = name[: name.rindex(".", 0, name.rindex(".")) + 1] if name.startswith("blocks.") else ""
        last = name.rsplit(".", 1)[1]
        if last == "W_QKV":
            heads = [self[f"{block}attn.W_Q"], self._grouped(block, "W_K"), self._grouped(block, "W_V")]
            return torch.cat([w.transpose(1, 2).flatten(0, 1) for w in heads])  # [heads d_head, d_model]
        if last == "b_QKV":
            return torch.cat(
                [self[f"{block}attn.b_Q"].flatten(), *(self._grouped(block, k).flatten() for k in ("b_K", "b_V"))]
            )
        if last == "W_O":
            return self[name].flatten(0, 1).T
        if last in ("W_in", "b_in") and f"{block}mlp.W_gate" in self.names:
            both = [self[name.replace("_in", "_gate")], self[name]]
            return torch.cat([w.T for w in both]) if last == "W_in" else torch.cat(both)
        if last in ("W_in", "W_out", "W_U"):
            return self[name].T
        if name == "embed.W_E":
            return self[name] / self.native.cfg.embed_scale
        return self[name]


def _unnamed(
    native: _C.Model, wanted: list[str], given: Mapping[str, torch.Tensor], folded: bool
) -> dict[str, torch.Tensor]:
    """Weights that TransformerLens's models of this kind do not have: of folded norms, and the biases of gates."""
    out = {}
    for name in wanted:
        if name in given:
            continue
        block, last = name.rsplit(".", 1)
        if last == "b_gate" and (b_in := given.get(f"{block}.b_in")) is not None:
            if b_in.any():
                raise _C.ConfigError(f"load_state_dict: {block}.b_in is not zero, and is added before the gate here")
            out[name] = torch.zeros_like(native.weight(name))
        elif folded and last in ("w", "b") and block.rsplit(".", 1)[-1].startswith("ln"):
            out[name] = native.weight(name)
    return out


def _present(name: str, state: Mapping[str, torch.Tensor]) -> bool:
    return name in state or name.replace("attn._", "attn.") in state


def _as_stored(name: str, state: Mapping[str, torch.Tensor], cfg: _C.Config) -> torch.Tensor:
    if name in state:
        return state[name]
    n = cfg.n_heads // cfg.n_key_value_heads
    repeated = state[name.replace("attn._", "attn.")]
    if not torch.equal(repeated, repeated[::n].repeat_interleave(n, dim=0)):
        raise _C.ShapeError(f"load_state_dict: the {n} query heads of a group must have the same {name[-3:]}")
    return repeated[::n]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_biases(native: _C.Model, held: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
    """Biases that a model does not have are zeros in its state dict, and must be zeros in what is given."""
    for name, tensor in given.items():
        kind = name.rsplit(".", 1)[1]
        if not kind.lstrip("_").startswith("b_"):
            continue
        block = name[: len(name) - len(kind)]
        fused = {"b_Q": "b_QKV", "b_K": "b_QKV", "b_V": "b_QKV", "b_gate": "b_in"}.get(kind.lstrip("_"), kind)
        if block + fused not in held and tensor.any():
            raise _C.ConfigError(f"load_state_dict: {name} is not zero, and this model has no such bias")
    tied = "unembed.W_U" not in held and {"unembed.W_U", "embed.W_E"} <= given.keys()
    if tied and not torch.equal(given["unembed.W_U"].T * native.cfg.embed_scale, given["embed.W_E"]):
        raise _C.ConfigError("load_state_dict: unembed.W_U must be embed.W_E transposed: in this model they are one")
