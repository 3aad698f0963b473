"""An entry of the atlas as experiments: every part, value of its axes, and concept that it is written for."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ... import _C
from ...steering.training import ControlVector
from .. import variants
from ..answers import spellings
from ..together import Experiment
from .entry import Entry, Part

CONCEPTS, CONCEPT = "$CONCEPTS", "$CONCEPT"
GROUPS = "groups"
"""As a protocol's "controls": the library's groups of questions; as the option "questions": the protocol's own ones."""
CHANGES = ("replace", "protocol", "question", "prefix", "reverse", "sign")
"""What a value of an axis may hold besides fields of a protocol."""


@dataclass(frozen=True)
class Cell:
    """One experiment of an entry and what its readings are.

    Attributes:
        about: the concept that it is written for; None: it is written for none.
        tags: of its axes, "order" and "vector".
        sign: see ``Reading``.
    """

    part: Part
    about: str | None
    tags: Mapping[str, Any]
    sign: int
    experiment: Experiment


def cells(
    entry: Entry,
    vectors: Mapping[str, ControlVector],
    settings: Mapping[str, Any],
    seed: int = 0,
) -> list[Cell]:
    """Every experiment of an entry with these concepts' vectors.

    Args:
        settings: strengths, strength_unit, layers, nulls, where a part has none of its own.

    Raises:
        ConfigError: a part that makes no protocol; it names the part and the place.
    """
    out: list[Cell] = []
    for part in entry.parts:
        for tags, values in _combinations(part):
            order = _order(list(vectors), tags["order"], seed)
            for about in vectors if part.per_concept else (None,):
                try:
                    protocol = _protocol(entry, part, values, tags, order, about)
                    options = _options(entry, part, vectors, settings, protocol)
                except _C.ConfigError as error:
                    raise _C.ConfigError(f"entry '{entry.name}', part '{part.name}': {error}") from None
                sign = 1
                for value in values:
                    sign *= value.get("sign", 1)
                for which, some in _injected(part, vectors, about):
                    found = Experiment(protocol, some, **options, seed=seed)
                    out.append(Cell(part, about, {**tags, "vector": which}, sign, found))
    return out


def _combinations(part: Part) -> Iterator[tuple[dict[str, Any], list[Mapping[str, Any]]]]:
    axes = [[(axis, name, value) for name, value in values.items()] for axis, values in part.vary.items()]
    for chosen in itertools.product(*axes):
        for order in range(part.orders):
            yield {**{axis: name for axis, name, _ in chosen}, "order": order}, [value for _, _, value in chosen]


def _order(names: list[str], order: int, seed: int) -> list[str]:
    """The concepts as they are, and then in random orders."""
    if order:
        random.Random(f"{seed}/{order}").shuffle(names)
    return names


def _injected(
    part: Part, vectors: Mapping[str, ControlVector], about: str | None
) -> Iterator[tuple[str, dict[str, ControlVector]]]:
    if about is None:
        yield "own", dict(vectors)
        return
    yield "own", {about: vectors[about]}
    if part.mismatch:
        yield "other", {name: vector for name, vector in vectors.items() if name != about}


def _protocol(
    entry: Entry,
    part: Part,
    values: Sequence[Mapping[str, Any]],
    tags: Mapping[str, Any],
    order: list[str],
    about: str | None,
) -> _C.Protocol:
    start = next((value["protocol"] for value in reversed(values) if "protocol" in value), part.protocol)
    data = json.loads(_C.Protocol.load(start).to_json()) if isinstance(start, str) else dict(start)
    replaced: dict[str, str] = {}
    for value in values:
        data |= {name: one for name, one in value.items() if name not in CHANGES}
        replaced |= value.get("replace", {})
        for name, role in (("question", "user"), ("prefix", "assistant")):
            if name in value:
                data["turns"] = _put(data["turns"], role, value[name])
        if "reverse" in value:
            data[value["reverse"]] = list(reversed(data[value["reverse"]]))
    for old, new in replaced.items():
        if _replaced(data, old, "") == data:
            raise _C.ConfigError(f"replace: {old!r} stands nowhere in the protocol")
        data = _replaced(data, old, new)
    for old, new in entry.texts.items():
        data = _replaced(data, old, new)
    data = _replaced(data, CONCEPTS, ", ".join(word.lower() for word in order))
    if about is not None:
        data = _replaced(data, CONCEPT, about.lower())
    named = [f"{axis} {value}" for axis, value in tags.items() if axis in part.vary]
    named += [f"order {tags['order']}"] if part.orders > 1 else []
    named += [about] if about is not None else []
    data["name"] = ", ".join([f"{entry.name} {part.name}", *named])
    data.setdefault("source", f"{entry.source}; wording: {entry.wording}")
    asks_groups = data.get("controls") == GROUPS
    if asks_groups:
        del data["controls"]
    protocol = _C.Protocol.parse(json.dumps(data))
    if asks_groups:
        grouped = json.loads(variants.with_groups(protocol, variants.question_groups(protocol)).to_json())
        protocol = _C.Protocol.parse(json.dumps({**grouped, "name": data["name"]}))
    return protocol


def _put(turns: list[dict[str, str]], role: str, text: str) -> list[dict[str, str]]:
    """The turns with another last message of this role."""
    last = max(i for i, turn in enumerate(turns) if turn["role"] == role)
    return [{**turn, "content": text} if i == last else turn for i, turn in enumerate(turns)]


def _replaced(data: Any, old: str, new: str) -> Any:
    if isinstance(data, str):
        return data.replace(old, new)
    if isinstance(data, list):
        return [_replaced(one, old, new) for one in data]
    if isinstance(data, dict):
        return {key: _replaced(one, old, new) for key, one in data.items()}
    return data


def _options(
    entry: Entry,
    part: Part,
    vectors: Mapping[str, ControlVector],
    settings: Mapping[str, Any],
    protocol: _C.Protocol,
) -> dict[str, Any]:
    adds = protocol.inject in ("vector", "random")
    given: dict[str, Any] = {"nulls": 0, **part.options}
    out: dict[str, Any] = {
        "strengths": settings.get("strengths"),
        "strength_unit": settings.get("strength_unit"),
        "layers": _range(settings.get("layers", _C.default_layers)),
        "dose": False,
    }
    asks_controls = given.pop("questions", None) == GROUPS
    none: dict[str, Any] = {"questions": [], "groups": {}}
    out |= dict.fromkeys(none) if asks_controls else none
    if given.pop("directions", False):
        given["directions"] = dict(vectors)
    if given["nulls"] and adds:
        given["nulls"] = settings.get("nulls", given["nulls"])
    if "layers" in given:
        given["layers"] = _range(given["layers"])
    if shares := given.get("readouts", {}).get("answer_shares"):
        given["readouts"] = {**given["readouts"], "answer_shares": _answers(shares, list(vectors))}
    if protocol.inject in ("tokens", "model"):  # nothing is added
        out |= {"strengths": None, "strength_unit": None}
    for old, new in entry.texts.items():
        given = _replaced(given, old, new)
    return out | given


def _range(layers: Any) -> Any:
    """A range of two numbers as ``run_experiment`` has it, since a list would be two ranges; others as they are."""
    is_pair = isinstance(layers, list) and len(layers) == 2 and all(isinstance(at, int | float) for at in layers)
    return tuple(layers) if is_pair else layers


def _answers(shares: Mapping[str, Sequence[str]], concepts: Sequence[str]) -> dict[str, list[str]]:
    """The labels with the concepts' words in the place of "$CONCEPTS"; what is a concept already is left out."""
    words = {concept.lower() for concept in concepts}
    out: dict[str, list[str]] = {}
    for label, texts in shares.items():
        if label == CONCEPTS:
            out |= {concept: spellings(concept.lower()) for concept in concepts}
        elif label.lower() not in words:
            out[label] = list(texts)
    return out


def asks_for_words(entry: Entry) -> bool:
    """Whether its parts choose between the concepts' words, which then must be of equal length."""
    return any(CONCEPTS in part.options.get("readouts", {}).get("answer_shares", {}) for part in entry.parts)
