"""What the page steers with: a control vector, a concept, the direction of a word or a feature, as one description."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .fields import Fields, Refused
from .session import Session

KINDS = ("vector", "concept", "word", "feature")
OPERATORS = ("add", "ablate")
MOST_STRENGTH = 1e6


@dataclass(frozen=True)
class Steering:
    """A direction at layers [first, last], with a strength.

    Attributes:
        vector: a ControlVector with a direction at each of the layers; of a feature its dictionary.
        feature: its number, whose value is raised by the strength at the dictionary's own point.
        unit: "residual": strengths are fractions of the residual stream's usual length; "absolute": of the directions.
        title: what it is, for a person.
    """

    vector: Any
    layers: tuple[int, int]
    strength: float
    unit: str
    operator: str
    title: str
    feature: int | None = None

    @contextlib.contextmanager
    def on(self, model: Any, *, rows: list[bool] | None = None) -> Iterator[None]:
        """In effect inside the block; rows: which rows of the batch are steered."""
        if self.feature is not None:
            which = None if rows is None else [row for row, steered in enumerate(rows) if steered]
            edit: Any = (
                {"ablate": [self.feature]} if self.operator == "ablate" else {"add": {self.feature: self.strength}}
            )
            with model.splice(self.vector, rows=which, **edit):
                yield
            return
        vectors = self.vector if rows is None else [self.vector if steered else None for steered in rows]
        unit = self.unit if self.operator == "add" else "absolute"
        with model.steer(vectors, layers=self.layers, op=self.operator, strength=self.strength, unit=unit):
            yield


def steering_of(fields: Fields | None, session: Session) -> Steering | None:
    """The steering that a request describes; None for none. Raises Refused."""
    if fields is None:
        return None
    kind = fields.choice("kind", KINDS)
    strength = fields.number("strength", -MOST_STRENGTH, MOST_STRENGTH, 1.0)
    unit = fields.choice("unit", ("residual", "absolute"), "residual")
    operator = fields.choice("operator", OPERATORS, "add")
    if strength == 0:
        return None
    last = session.model.cfg.n_layers - 1
    layers = fields.integers("layers", 0, last, 2, None) or []
    if kind == "vector":
        name = fields.text("name")
        vector, title = session.vector(name), name
        own = sorted(vector.layers)
        first, final = layers or (own[0], own[-1])
    elif kind == "concept":
        word = fields.text("word", most=200)
        vector, title = session.concept(word), f"concept “{word}”"
        first, final = layers or (last // 3, 2 * last // 3)
    elif kind == "word":
        word = fields.text("word", most=200)
        direction, title = session.word_direction(word), f"the direction of “{word}”"
        first, final = layers or (last // 3, 2 * last // 3)
        vector = _everywhere(session, direction, range(first, final + 1))
    else:
        dictionary, index = fields.text("dictionary"), fields.integer("index", 0, 1 << 40)
        sae = session.dictionary(dictionary, index)
        return Steering(sae, (0, last), strength, "absolute", operator, f"feature {index} of {dictionary}", index)
    if first > final:
        raise Refused(f"the first layer must come first, got {first} to {final}")
    if not any(first <= layer <= final for layer in vector.layers):
        raise Refused(f"{title} has no direction in layers {first} to {final}; it has {sorted(vector.layers)}")
    return Steering(vector, (first, final), strength, unit, operator, title)


def _everywhere(session: Session, direction: Any, layers: Any) -> Any:
    from .. import ControlVector

    return ControlVector(session.model.cfg.model_name or "model", {layer: direction for layer in layers})
