"""Transcoders in the forms in which people give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _C


def transcoder_arguments(transcoders: Any, input: str | None, who: str) -> dict[str, Any]:
    """{layer: Transcoder} or a CrossLayerTranscoder, and where they read, as native functions take them.

    Raises:
        TypeError: something else.
        ValueError: an input that is not residual, normalized or mlp.
    """
    if input is not None and input not in _C.TranscoderInput.__members__:
        raise ValueError(f"{who}: input must be residual, normalized or mlp, got {input!r}")
    where = None if input is None else _C.TranscoderInput.__members__[input]
    if isinstance(transcoders, _C.CrossLayerTranscoder):
        return {"transcoders": {}, "cross_layer": transcoders, "input": where}
    if isinstance(transcoders, Mapping):
        return {"transcoders": dict(transcoders), "cross_layer": None, "input": where}
    raise TypeError(f"{who}: transcoders must be {{layer: Transcoder}} or a CrossLayerTranscoder, got {transcoders!r}")
