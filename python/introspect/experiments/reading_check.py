"""What must be true of a reading that comes from a file, which somebody else may have written."""

from __future__ import annotations

import math
from typing import Any

_ROUNDING = 1e-3  # of a probability made from float32 logits


def check_reading(reading: Any) -> None:
    """Raises ValueError for what a run cannot have read. Null stands for what was not finite, or was not read."""
    _require(isinstance(reading, dict), f"a reading must be an object, got {_short(reading)}")
    for name in ("log_odds", "p_yes", "p_no"):
        _require(name in reading, f"a reading must hold {name}")
    for name in ("log_odds", "p_yes", "p_no", "set_log_odds", "entropy", "kl"):
        value = reading.get(name)
        _require(value is None or _is_number(value), f"{name} must be a number, got {_short(value)}")
        is_probability = name in ("p_yes", "p_no") and value is not None
        _require(not is_probability or 0 <= value <= 1 + _ROUNDING, f"{name} must be from 0 to 1, got {_short(value)}")
    _require(isinstance(reading.get("text", ""), str | None), f"text must be text, got {_short(reading.get('text'))}")
    for name in ("tokens", "answers"):
        tokens = reading.get(name)
        _require(tokens is None or isinstance(tokens, list), f"{name} must be a list, got {_short(tokens)}")
        for i, token in enumerate(tokens or ()):
            _check_token(token, f"{name}[{i}]")


def _check_token(token: Any, where: str) -> None:
    _require(isinstance(token, dict), f"{where} must be an object, got {_short(token)}")
    _require(isinstance(token.get("token"), str), f"{where}.token must be text, got {_short(token.get('token'))}")
    rank, log_prob = token.get("rank"), token.get("log_prob")
    _require(
        log_prob is None or (_is_number(rank) and rank >= 1), f"{where}.rank must be 1 or more, got {_short(rank)}"
    )
    _require(
        "log_prob" in token and (log_prob is None or (_is_number(log_prob) and not log_prob > _ROUNDING)),
        f"{where}.log_prob must be 0 or less, got {_short(log_prob)}",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
