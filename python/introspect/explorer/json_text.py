"""JSON as the page gets it: NaN and infinities are null, numbers are as short as they are worth."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.responses import JSONResponse


def plain(value: Any, digits: int = 5) -> Any:
    """The same value of dicts, lists and plain values, with floats of so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if hasattr(value, "tolist"):  # a tensor or an array
        return plain(value.tolist(), digits)
    return value


def dumps(value: Any) -> str:
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode("utf-8")


class Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return dumps(content).encode("utf-8")
