"""A cross-layer transcoder in a model: one transcoder for each pair of a layer that reads and one that is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import _C

LayerAmounts = Mapping[tuple[int, int], float]


def parts(transcoder: _C.CrossLayerTranscoder, *, sites: bool = True) -> Iterator[tuple[int, int, _C.Dictionary]]:
    """(layer that reads, layer that is written, what its features write there), those of a written layer in a row.

    The first of them has that layer's b_dec, the last its skip: added up they are the transcoder.

    Raises:
        ConfigError: a transcoder that does not say where it reads and writes.
    """
    origin = transcoder.origin
    if not origin.inputs or not origin.outputs:
        raise _C.ConfigError("splice: a cross-layer transcoder must say the hooks that it reads and writes")
    folded = transcoder.fold_decoder_norm() if transcoder.layers[0].rank_by_decoder_norm else transcoder
    layers = folded.layers
    writes = [folded.W_dec(layer) for layer in range(folded.n_layers)]
    b_dec, W_skip = folded.b_dec, folded.W_skip
    for target in range(folded.n_layers):
        for layer in range(target + 1):
            whole = layers[layer]
            weights = {name: t for name, t in whole.weights.items() if name not in ("W_dec", "b_dec")}
            weights["W_dec"] = writes[layer][:, target - layer].contiguous()
            if layer == 0 and b_dec is not None:
                weights["b_dec"] = b_dec[target]
            if layer == target and W_skip is not None:
                weights["W_skip"] = W_skip[target]
            where = _C.DictionaryOrigin(
                inputs=[origin.inputs[layer]],
                outputs=[origin.outputs[target]],
                model_name=origin.model_name,
                model_hash=origin.model_hash,
                context_size=origin.context_size,
                prepend_bos=origin.prepend_bos,
                centers_writing_weights=origin.centers_writing_weights,
                masks_bos=origin.masks_bos,
            )
            one = _C.Dictionary(
                whole.architecture,
                weights,
                k=whole.k,
                relu=whole.relu,
                subtract_b_dec=False,
                residual_threshold=whole.residual_threshold,
                origin=where,
            )
            yield layer, target, one


def edits_of_layer(layer: int, edits: Mapping[str, Any], who: str) -> dict[str, Any]:
    """The edits of one layer's features, of {(layer, feature): number} and lists of (layer, feature).

    Raises:
        TypeError: features that are not (layer, feature).
    """
    out: dict[str, Any] = {}
    for name, given in edits.items():
        for key in given or ():
            if not (isinstance(key, tuple) and len(key) == 2):
                raise TypeError(
                    f"{who}: features of a cross-layer transcoder are (layer, feature), got {key!r} in {name}"
                )
        if isinstance(given, Mapping):
            out[name] = {feature: amount for (at, feature), amount in given.items() if at == layer}
        elif name == "ablate":
            out[name] = [feature for at, feature in given or () if at == layer]
        elif given is not None:
            raise TypeError(f"{who}: {name} must be {{(layer, feature): number}}, got {type(given).__name__}")
    return out


def check_layers(edits: Mapping[str, Any], n_layers: int, who: str) -> None:
    """Raises IndexError for a layer that the transcoder does not have."""
    for given in edits.values():
        for key in given or ():
            if isinstance(key, tuple) and not 0 <= key[0] < n_layers:
                raise IndexError(f"{who}: layers are 0 to {n_layers - 1}, got {key[0]}")
