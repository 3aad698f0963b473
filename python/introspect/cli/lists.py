"""Options that take several values parted by commas: what ``introspect sweep`` and ``introspect dose`` share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .common import Layers, parse_layers, parse_number, parse_strength


def parse_numbers(text: str) -> list[float]:
    return [parse_number(part.strip()) for part in text.split(",")]


def parse_strengths(text: str) -> list[float | str]:
    return [parse_strength(part.strip()) for part in text.split(",")]


def parse_ranges(text: str) -> list[Layers]:
    return [parse_layers(part.strip()) for part in text.split(",")]


def flat(lists: list[Any] | None) -> list[Any]:
    """One list of what an option's values, each itself a list, hold."""
    return [item for one in lists or [] for item in one]


Strengths = Annotated[
    list[Any] | None,
    typer.Option(
        "--strength",
        parser=parse_strengths,
        metavar="S,S,...",
        help="Factors of the vectors, or doses that are solved for in every range: kl=0.5 (nats), sd=2, coherent.",
    ),
]
Fractions = Annotated[
    list[Any] | None,
    typer.Option(
        "--fraction",
        parser=parse_numbers,
        metavar="F,F,...",
        help="Strengths as fractions of the median residual norm: this if neither is given.",
    ),
]
