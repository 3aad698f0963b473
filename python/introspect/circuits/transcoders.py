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
    if input not in (None, "residual", "normalized", "mlp"):
        raise ValueError(f"{who}: input must be residual, normalized or mlp, got {input!r}")
    if isinstance(transcoders, _C.CrossLayerTranscoder):
        return {"transcoders": {}, "cross_layer": transcoders, "input": input}
    if isinstance(transcoders, Mapping):
        return {"transcoders": dict(transcoders), "cross_layer": None, "input": input}
    raise TypeError(f"{who}: transcoders must be {{layer: Transcoder}} or a CrossLayerTranscoder, got {transcoders!r}")
