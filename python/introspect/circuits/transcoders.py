"""Transcoders and SAEs in the forms in which people give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import _C


def transcoder_arguments(transcoders: Any, input: str | None, who: str, saes: Sequence[Any] = ()) -> dict[str, Any]:
    """{layer: Transcoder} or a CrossLayerTranscoder, where they read, and SAEs, as native functions take them.

    Raises:
        TypeError: something else.
        ValueError: an input that is not residual, normalized or mlp.
    """
    if input not in (None, "residual", "normalized", "mlp"):
        raise ValueError(f"{who}: input must be residual, normalized or mlp, got {input!r}")
    others = list(saes.values()) if isinstance(saes, Mapping) else list(saes)
    for one in others:
        if not isinstance(one, _C.Dictionary):
            raise TypeError(f"{who}: saes must be SAEs, got {one!r}")
    found: dict[str, Any] = {"transcoders": {}, "cross_layer": None, "input": input, "saes": others}
    if isinstance(transcoders, _C.CrossLayerTranscoder):
        return {**found, "cross_layer": transcoders}
    if isinstance(transcoders, Mapping):
        for layer, one in transcoders.items():
            if not isinstance(layer, int) or not isinstance(one, _C.Dictionary):
                raise TypeError(f"{who}: transcoders must be {{layer: Transcoder}}, got {{{layer!r}: {one!r}}}")
        return {**found, "transcoders": dict(transcoders)}
    raise TypeError(f"{who}: transcoders must be {{layer: Transcoder}} or a CrossLayerTranscoder, got {transcoders!r}")
