"""Short names of activations."""

from __future__ import annotations

import re

_SHORT_NAME = re.compile(r"([a-z_]+)(\d+)(.*)")
_ACTIVATION_ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
_LAYER_TYPE_ALIASES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_IN_ATTENTION = {"q", "k", "v", "z", "rot_q", "rot_k", "result", "pattern", "attn_scores"}
_IN_MLP = {"pre", "pre_linear", "mid", "post"}
_IN_NORM = {"scale", "normalized"}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full hook name that a shorthand stands for.

    Names and aliases are TransformerLens's: ``("k", 6, "a")``, ``("pre", 2)``, ``("normalized", 27, "ln2")``, and in
    one word ``"k6"``, ``"scale4ln1"``. A full name is returned as it is.

    Args:
        name: of the activation; digits in it are the layer, and what follows them is the layer type.
        layer: block number, for activations that stand in every block.
        layer_type: "attn" (or "a"), "mlp" ("m"), "" ("b", "block") or a norm ("ln1", "ln2_post"), where the name alone
            does not say it.

    Returns:
        ``"blocks.6.attn.hook_k"``, ``"hook_embed"``, ``"ln_final.hook_scale"``; whether a model has it is not checked.
    """
    if layer is None and layer_type is None:
        if "." in name or name.startswith("hook_"):
            return name
        if short := _SHORT_NAME.fullmatch(name):
            name, layer, layer_type = short.groups()
    name = _ACTIVATION_ALIASES.get(name, name)
    if name in _IN_ATTENTION:
        layer_type = "attn"
    elif name in _IN_MLP:
        layer_type = "mlp"
    elif name in _IN_NORM and layer is None:
        layer_type = "ln_final"
    else:
        layer_type = _LAYER_TYPE_ALIASES.get(layer_type or "", layer_type)
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{layer_type}.hook_{name}" if layer_type else f"{block}hook_{name}"
