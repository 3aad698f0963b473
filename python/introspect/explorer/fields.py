"""What a browser or a script sends, field by field: each has a kind and limits, and what is outside is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

MOST_TEXT = 200_000  # characters
_MISSING = object()


class Refused(Exception):
    """A request that cannot be answered: the sentence for the person, and HTTP's status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # a whole number of JSON may have any number of digits


class Fields:
    """The fields of a JSON object, read by name; ``aliases`` are other spellings, as of Neuronpedia's clients."""

    def __init__(self, data: Any, what: str = "the request") -> None:
        if not isinstance(data, Mapping):
            raise Refused(f"{what}: a JSON object is needed, got {_kind(data)}")
        self._data, self._what = data, what

    def _get(self, name: str, default: Any, needed: str) -> Any:
        value = self._data.get(name, self._data.get(_camel(name), _MISSING))
        if value is _MISSING or (value is None and default is not _MISSING):
            if default is _MISSING:
                raise Refused(f"{self._what}: {name} is missing; it must be {needed}")
            return default
        return value

    def _refuse(self, name: str, needed: str, value: Any) -> Refused:
        shown = repr(value) if isinstance(value, int | float | bool | str) else _kind(value)
        return Refused(f"{self._what}: {name} must be {needed}, got {shown[:80]}")

    def has(self, name: str) -> bool:
        return self._get(name, None, "") is not None

    def text(self, name: str, default: Any = _MISSING, most: int = MOST_TEXT) -> str:
        needed = f"text of at most {most:,} characters"
        value = self._get(name, default, needed)
        if value is default:
            return value
        if not isinstance(value, str):
            raise self._refuse(name, needed, value)
        if len(value) > most:
            raise Refused(f"{self._what}: {name} must be {needed}, got {len(value):,}", 413)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Refused(f"{self._what}: {name} must be text without lone surrogates") from None
        return value

    def choice(self, name: str, among: Sequence[str], default: Any = _MISSING) -> str:
        value = self._get(name, default, f"one of {', '.join(among)}")
        if value is not default and value not in among:
            raise self._refuse(name, f"one of {', '.join(among)}", value)
        return value

    def integer(self, name: str, low: int, high: int, default: Any = _MISSING) -> int:
        needed = f"a whole number from {low:,} to {high:,}"
        value = self._get(name, default, needed)
        if value is default:
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 12:  # Neuronpedia's index
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._refuse(name, needed, value)
        return value

    def number(self, name: str, low: float, high: float, default: Any = _MISSING) -> float:
        needed = f"a number from {low:g} to {high:g}"
        value = self._get(name, default, needed)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._refuse(name, needed, value)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._get(name, default, "true or false")
        if not isinstance(value, bool):
            raise self._refuse(name, "true or false", value)
        return value

    def sequence(self, name: str, most: int, default: Any = _MISSING) -> Any:
        needed = f"a list of at most {most:,}"
        value = self._get(name, default, needed)
        if value is default:
            return value
        if not isinstance(value, list):
            raise self._refuse(name, needed, value)
        if len(value) > most:
            raise Refused(f"{self._what}: {name} must be {needed}, got {len(value):,}", 413)
        return value

    def integers(self, name: str, low: int, high: int, most: int, default: Any = _MISSING) -> list[int]:
        values = self.sequence(name, most, default)
        if values is default:
            return values
        return [Fields({name: value}, self._what).integer(name, low, high) for value in values]

    def numbers(self, name: str, most: int, default: Any = _MISSING) -> list[float]:
        values = self.sequence(name, most, default)
        if values is default:
            return values
        for value in values:
            if not is_number(value):
                raise self._refuse(name, "finite numbers", value)
        return [float(value) for value in values]

    def texts(self, name: str, most: int, default: Any = _MISSING) -> list[str]:
        values = self.sequence(name, most, default)
        if values is default:
            return values
        return [Fields({name: value}, self._what).text(name) for value in values]

    def object(self, name: str, default: Any = _MISSING) -> Fields | None:
        value = self._get(name, default, "an object")
        return None if value is None else Fields(value, f"{self._what}: {name}")

    def objects(self, name: str, most: int, default: Any = _MISSING) -> list[Fields]:
        values = self.sequence(name, most, default)
        return [Fields(value, f"{self._what}: {name}") for value in values or []]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", type(None): "nothing", bool: "true or false"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
