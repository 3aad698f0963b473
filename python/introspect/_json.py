"""JSON from files that nobody vouches for, and values as JSON can hold them."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_json(text: str | bytes, who: str, error: type[Exception] | None = None) -> Any:
    """The value of a JSON text.

    Args:
        who: what the text is, which begins the error's message.
        error: what to raise; introspect.IoError if not given.

    Raises:
        IoError: it is not JSON, or nests deeper than Python can read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        reason = "JSON must not nest as deep"
    except ValueError as problem:
        reason = f"must be JSON: {problem}"
    if error is not None:
        raise error(f"{who}: {reason}")
    from ._C import IoError  # here, because it loads torch

    raise IoError(f"{who}: {reason}")


def finite(value: Any) -> Any:
    """The same value with None in place of NaN and infinities, as JSON needs it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
