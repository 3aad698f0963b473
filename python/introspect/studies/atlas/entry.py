"""The format of an entry of the atlas: a published study as data (cpp/share/atlas)."""

from __future__ import annotations

import difflib
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import _C
from ..._json import parse_json
from ...data import share_folder
from .measures import AXIS_TAGS, Measure

WORDINGS = ("theirs", "own")
SETTINGS: dict[str, type | tuple[type, ...]] = {
    "layers": list,
    "strengths": list,
    "strength_unit": str,
    "concepts": int,
    "nulls": int,
}
OPTIONS = ("strengths", "strength_unit", "layers", "nulls", "readouts", "directions", "continuations", "questions")
"""What a part may ask of ``run_experiment`` by itself; "directions": true are the concepts' vectors."""


FED = (
    *("injected", "matched", "third_person", "content", "no_question", "observer"),
    *("localised", "localised_matched", "own"),
)
"""Arms of the ladder that a part may feed."""


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        beside: the figures of ours that it stands beside, by their whole name or its beginning ("detect/yes_rate");
            empty: there is none.
        value: a number, or a text where a range or a change was published.
    """

    name: str
    value: float | str
    unit: str = ""
    beside: str = ""
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """What the study claims that is none of the ladder's rungs: figures of ours that are above 0 where it is true.

    Attributes:
        contrasts: {what it is compared with, as it stands after "beside": the name of a figure, or of two, whose
            difference it is}. What a figure is by chance is taken from it.
        stands: what may be said where it holds: a clause.
        smallest: the smallest effect that counts, in the figures' unit; 0: any.
    """

    name: str
    title: str
    contrasts: Mapping[str, Sequence[str]]
    stands: str
    smallest: float


@dataclass(frozen=True)
class Part:
    """One experiment of an entry, or as many as its axes have values, times concepts where it is written for each.

    Attributes:
        protocol: a shipped protocol's name, or the fields of one.
        per_concept: $CONCEPT in its texts is a concept, for each of which a protocol is made.
        mismatch: with per_concept, the other concepts' vectors are injected too.
        vary: {axis: {value: changes}}: protocol fields, and "replace" {old: new} in its texts, "protocol" (another to
            start from), "question" and "prefix" (the last messages), "sign" (1 or -1: which answer is right).
        orders: how many orders $CONCEPTS, the list of the concepts, is written in; they are the axis "order".
        measures: what is taken from its readings.
        options: see OPTIONS.
        arms: {arm of ``studies.Evidence``: {axis: value or values}}: which arms of the ladder the readings of these
            values feed. "injected" feeds those of random vectors and of control questions too.
    """

    name: str
    protocol: str | Mapping[str, Any]
    measures: Sequence[Measure]
    per_concept: bool = False
    mismatch: bool = False
    vary: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    orders: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A published study.

    Attributes:
        asks: its question in a sentence.
        models: that it was published on.
        settings: layers, strengths, strength_unit, concepts (how many) and nulls of a run unless it says otherwise.
        texts: {"$NAME": text}: what stands for these names in its parts.
        differs: what ours does otherwise.
        wording: "theirs" or "own": whose prompts these are.
        claims: of its own, besides the ladder's.
    """

    name: str
    title: str
    source: str
    asks: str
    models: Sequence[str]
    published: Sequence[Published]
    settings: Mapping[str, Any]
    parts: Sequence[Part]
    differs: Sequence[str]
    wording: str
    texts: Mapping[str, str] = field(default_factory=dict)
    claims: Sequence[Claim] = ()

    @classmethod
    def parse(cls, text: str) -> Entry:
        """An entry of its JSON.

        Raises:
            ConfigError: a mistake in it, with its place.
        """
        data = parse_json(text, "entry", _C.ConfigError)
        top = _Fields(data, "entry")
        name = top.text("name")
        top.where = f"entry '{name}'"
        published = top.fields("published")
        out = cls(
            name,
            top.text("title"),
            top.text("source"),
            top.text("asks"),
            published.texts("models"),
            [_published(one) for one in published.each("figures")],
            _settings(top.fields("settings")),
            [_part(one) for one in top.each("parts")],
            top.texts("differs"),
            top.text("wording"),
            top.take("texts", dict, {}),
            [_claim(one) for one in top.each("claims")] if "claims" in top.left else [],
        )
        published.end()
        top.end()
        if out.wording not in WORDINGS:
            top.fail("wording", f"must be one of {', '.join(WORDINGS)}", out.wording)
        if len({part.name for part in out.parts}) < len(out.parts) or not out.parts:
            top.fail("parts", "must be one or more, each with a name of its own", [part.name for part in out.parts])
        for key, value in out.texts.items():
            if not key.startswith("$") or not isinstance(value, str):
                top.fail("texts", 'must be {"$NAME": text}', {key: value})
        measured = {f"{part.name}/{measure.name}" for part in out.parts for measure in part.measures}
        for claim in out.claims:
            for figures in claim.contrasts.values():
                if lacking := {"/".join(name.split("/")[:2]) for name in figures} - measured:
                    top.fail("claims", f"must be of figures that there are ({claim.name})", sorted(lacking))
        return out

    @classmethod
    def load(cls, path: str | os.PathLike) -> Entry:
        """Raises OSError for a file that cannot be read, ConfigError with its path for one that is no entry."""
        try:
            return cls.parse(Path(path).read_text(encoding="utf-8"))
        except _C.ConfigError as error:
            raise _C.ConfigError(f"{path}: {error}") from None


class _Fields:
    """The fields of an object, each taken once; what is left at the end is a mistake."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise _C.ConfigError(f"{where} must be an object, got {type(data).__name__}")
        self.left, self.where = dict(data), where

    def fail(self, name: str, wanted: str, got: Any) -> Any:
        raise _C.ConfigError(f"{self.where}: {name} {wanted}, got {json.dumps(got, ensure_ascii=False)[:200]}")

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        if name not in self.left:
            if default is None:
                raise _C.ConfigError(f"{self.where}: {name} is missing")
            return default
        value = self.left.pop(name)
        is_number_for_bool = kind is int and isinstance(value, bool)
        if not isinstance(value, kind) or is_number_for_bool:
            kinds = kind if isinstance(kind, tuple) else (kind,)
            self.fail(name, f"must be of type {' or '.join(one.__name__ for one in kinds)}", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.take(name, str, default)
        if default is None and not value.strip():
            self.fail(name, "must be a text that is not empty", value)
        return value

    def texts(self, name: str) -> list[str]:
        value = self.take(name, list)
        if not all(isinstance(one, str) for one in value):
            self.fail(name, "must be a list of texts", value)
        return value

    def fields(self, name: str) -> _Fields:
        return _Fields(self.take(name, dict), f"{self.where}: {name}")

    def each(self, name: str) -> list[_Fields]:
        return [_Fields(one, f"{self.where}: {name}[{i}]") for i, one in enumerate(self.take(name, list))]

    def end(self) -> None:
        if self.left:
            raise _C.ConfigError(f"{self.where}: unknown field {', '.join(self.left)}")


def _published(one: _Fields) -> Published:
    figure = Published(
        one.text("name"),
        one.take("value", (int, float, str)),
        one.text("unit", ""),
        one.text("beside", ""),
        one.text("note", ""),
    )
    one.end()
    return figure


def _claim(one: _Fields) -> Claim:
    contrasts = one.take("contrasts", dict)
    for name, figures in contrasts.items():
        if not isinstance(figures, list) or len(figures) not in (1, 2) or not all(isinstance(f, str) for f in figures):
            one.fail("contrasts", "must be {beside what: [figure] or [figure, figure]}", {name: figures})
    claim = Claim(
        one.text("name"),
        one.text("title"),
        contrasts,
        one.text("stands"),
        float(one.take("smallest", (int, float))),
    )
    if not contrasts or not claim.smallest >= 0:
        one.fail("smallest", "must be 0 or more, and contrasts one or more", claim.smallest)
    one.end()
    return claim


def _settings(one: _Fields) -> dict[str, Any]:
    found = {name: one.take(name, kind) for name, kind in SETTINGS.items() if name in one.left}
    one.end()
    layers = found.get("layers", [0.0, 1.0])
    if len(layers) != 2 or not all(isinstance(at, int | float) for at in layers):
        one.fail("layers", "must be [first, last]", layers)
    return found


def _part(one: _Fields) -> Part:
    name = one.text("name")
    one.where = f"{one.where} ({name})"
    vary = one.take("vary", dict, {})
    for axis, values in vary.items():
        if axis in AXIS_TAGS:
            one.fail("vary", f"must not have an axis of the name {axis}", axis)
        if not isinstance(values, dict) or not values or not all(isinstance(value, dict) for value in values.values()):
            one.fail(f"vary.{axis}", "must be {value: {field: ...}}", values)
        for value in values.values():
            if value.get("sign", 1) not in (1, -1):
                one.fail(f"vary.{axis}", "must have a sign of 1 or -1", value["sign"])
    options = one.take("options", dict, {})
    if unknown := set(options) - set(OPTIONS):
        one.fail("options", f"must be of {', '.join(OPTIONS)}", sorted(unknown))
    part = Part(
        name,
        one.take("protocol", (str, dict)),
        [Measure.parse(measure, f"{one.where}: measures[{i}]") for i, measure in enumerate(one.take("measures", list))],
        one.take("per_concept", bool, False),
        one.take("mismatch", bool, False),
        vary,
        one.take("orders", int, 1),
        options,
        one.take("arms", dict, {}),
    )
    one.end()
    for arm, wanted in part.arms.items():
        if arm not in FED:
            one.fail("arms", f"must be of {', '.join(FED)}", arm)
        if not isinstance(wanted, dict) or not set(wanted) <= {"vector", *part.vary}:
            one.fail(f"arms.{arm}", "must be {axis: value or values}", wanted)
    if not part.measures or part.orders < 1:
        one.fail("measures", "must be one or more, and orders 1 or more", part.orders)
    if part.mismatch and not part.per_concept:
        one.fail("mismatch", "must go with per_concept", True)
    known = {*AXIS_TAGS, *part.vary}
    for measure in part.measures:
        if lacking := {*measure.of, *measure.less, *measure.each} - known:
            one.fail(f"measures: {measure.name}", f"must go by {', '.join(sorted(known))}", sorted(lacking))
    return part


def _folder() -> Path:
    return share_folder() / "atlas"


ENTRIES: tuple[str, ...] = tuple(sorted(path.stem for path in _folder().glob("*.json")))
"""The names of the library's entries."""


@functools.cache
def _shipped(name: str) -> Entry:
    return Entry.load(_folder() / f"{name}.json")


def entry(source: str | os.PathLike | Entry) -> Entry:
    """An entry of the library by its name, or of a file.

    Raises:
        ValueError: there is none of that name; the nearest are named.
        ConfigError: a mistake in it, with its place.
    """
    if isinstance(source, Entry):
        return source
    name = os.fspath(source)
    if name in ENTRIES:
        return _shipped(name)
    if Path(name).is_file():
        return Entry.load(name)
    near = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.4) or ENTRIES
    raise ValueError(f"entry: there is no {name!r} in the atlas (and no such file); nearest: {', '.join(near)}")
