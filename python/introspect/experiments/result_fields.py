"""What the JSON of a result must hold; a file that does not is refused with the place of the mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .fields import KEYS, KINDS, OPTIONAL

Check = Callable[[Any], bool]


def _is(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


text, whole, number = _is(str), _is(int), _is(int, float, type(None))  # JSON has null for NaN and infinities
_CHECKS: dict[type, Check] = {str: text, int: whole, float: _is(int, float)}
READINGS = ("yes_no", "content", "sample")

MODEL: dict[str, Check] = {
    **dict.fromkeys(("name", "hash", "architecture", "dtype", "device"), text),
    "n_layers": whole,
}
PROTOCOL: dict[str, Check] = {
    **dict.fromkeys(("name", "hash", "yes_token", "no_token"), text),
    "read": lambda value: value in READINGS,
}
SETTINGS: dict[str, Check] = {
    **dict.fromkeys(("seed", "nulls", "threads"), whole),
    "strength_unit": text,
    "versions": lambda value: (
        isinstance(value, dict) and {"introspect", "torch"} <= value.keys() and all(map(text, value.values()))
    ),
}
ROW: dict[str, Check] = {
    **{name: _CHECKS[KINDS[name]] for name in KEYS},
    "base": _is(dict),
    "injected": _is(dict),
}
# What rows have from some version on, or in some protocols.
MORE_OF_ROW: dict[str, Check] = {
    **{name: _CHECKS[KINDS[name]] for name in OPTIONAL},
    "paraphrase": _is(str, int),  # its number in older files
    "seed": whole,
    "leaves_format": lambda value: isinstance(value, bool),
    **dict.fromkeys(("dose_kl", "dose_sd"), number),
    "dose_target": text,
}
READING: dict[str, Check] = dict.fromkeys(("log_odds", "p_yes", "p_no"), number)
TOKEN: dict[str, Check] = {"token": text, "id": whole, "log_prob": number, "rank": number}


def check_fields(data: dict[str, Any]) -> None:
    """Raises ValueError with the place of the first field that is missing or of another kind."""
    for name, fields in (("model", MODEL), ("protocol", PROTOCOL), ("settings", SETTINGS)):
        _check(data[name], fields, name)
    if not isinstance(data["rows"], list):
        raise ValueError(f"Result: rows must be a list, got {type(data['rows']).__name__}")
    for i, row in enumerate(data["rows"]):
        _check(row, ROW, f"rows[{i}]")
        _check(row, {name: fits for name, fits in MORE_OF_ROW.items() if name in row}, f"rows[{i}]")
    concepts = {row["concept"] for row in data["rows"]}
    for i, row in enumerate(data["rows"]):
        for side in ("base", "injected"):
            _check(row[side], READING, f"rows[{i}].{side}")
        tokens = [row[side].get("tokens") or [] for side in ("base", "injected")]
        for side, listed in zip(("base", "injected"), tokens, strict=True):
            if not isinstance(listed, list) or 0 < len(listed) < 2 * len(concepts):
                raise ValueError(
                    f"Result: rows[{i}].{side}.tokens must be two for each of the {len(concepts)} concepts"
                )
            for j, token in enumerate(listed):
                _check(token, TOKEN, f"rows[{i}].{side}.tokens[{j}]")
        if len(tokens[0]) != len(tokens[1]):
            raise ValueError(
                f"Result: rows[{i}] must have tokens on both sides, got {len(tokens[0])} and {len(tokens[1])}"
            )


def _check(value: Any, fields: dict[str, Check], place: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"Result: {place} must be an object, got {type(value).__name__}")
    for name, fits in fields.items():
        if name not in value:
            raise ValueError(f"Result: {place}.{name} is missing")
        if not fits(value[name]):
            shown = repr(value[name])
            raise ValueError(f"Result: {place}.{name} cannot be {shown[:60]}")
