"""``replicate``: run an entry of the atlas on a model, and set its figures beside the published ones."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import _C
from ...data import load_words
from ...experiments.arguments import Arguments
from ...experiments.results import Result, finite
from ...experiments.runs import model_facts
from ...output_files import write_text
from ...steering.training import ControlVector
from ..claims import Claims
from ..together import run_together
from .entry import Entry, Published
from .entry import entry as find_entry
from .expand import Cell, asks_for_words, cells
from .measures import Figure, Reading
from .table import text_table
from .verdict import claims_of, verdict

if TYPE_CHECKING:
    import pandas

    from ...model import Model

SCHEMA = 1
CONCEPTS = 6
"""where an entry does not say"""
FEWEST = 2
"""Concepts: of one alone there is nothing to tell it from."""


@dataclass
class Replication:
    """An entry as it came out on a model.

    Attributes:
        entry: what was run.
        model: ``Result.model``.
        settings: concepts, strengths, strength_unit, layers, seed.
        figures: ours.
        claims: the ladder of what its readings show; its rungs are of ``introspect.studies``, and the study's own.
        differs: what is not as it was published.
        results: {protocol's name, and " (other concepts)" where others' vectors are injected: Result}.
    """

    entry: Entry
    model: dict[str, Any]
    settings: dict[str, Any]
    figures: list[Figure]
    claims: Claims
    differs: list[str]
    results: dict[str, Result] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Figure:
        """A figure by its name; KeyError lists them."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(f"Replication: there are {', '.join(one.name for one in self.figures)}, got {name!r}")

    def published(self, figure: Figure) -> list[Published]:
        """The published figures that stand beside one of ours."""
        return [
            one
            for one in self.entry.published
            if one.beside and (figure.name == one.beside or figure.name.startswith(f"{one.beside}/"))
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """One row a figure of ours, with the published ones in a text; then published ones that stand beside none."""
        import pandas

        return pandas.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """``to_pandas`` as a list of dictionaries."""
        out = []
        for figure in self.figures:
            one = figure.estimate
            out.append(
                {
                    "figure": figure.name,
                    "value": one.value,
                    "low": one.low,
                    "high": one.high,
                    "unit": figure.unit,
                    "chance": figure.chance,
                    "n": one.n,
                    "n_readings": figure.n_readings,
                    "n_failed": figure.n_failed,
                    "n_left": figure.n_left,
                    "published": "; ".join(map(_stated, self.published(figure))),
                }
            )
        return out

    @property
    def verdict(self) -> str:
        """What stands in a line, and the names of the rungs by what became of them."""
        return verdict(self.claims)

    def __str__(self) -> str:
        return text_table(self)

    def to_json(self) -> str:
        """JSON of schema 1: verdict, rungs, figures, what was published, and every result; NaN is null."""
        data = {
            "schema": SCHEMA,
            "entry": self.entry.name,
            "title": self.entry.title,
            "source": self.entry.source,
            "model": self.model,
            "settings": self.settings,
            "verdict": self.verdict,
            "claims": self.claims.to_dict(),
            "figures": self.rows(),
            "published": [asdict(one) for one in self.entry.published],
            "differs": self.differs,
            "results": {name: json.loads(result.to_json()) for name, result in self.results.items()},
        }
        return json.dumps(finite(data), ensure_ascii=False, allow_nan=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write ``to_json``; the file is complete or not there."""
        write_text(Path(path), self.to_json())


def _stated(one: Published) -> str:
    value = f"{one.value:g}" if isinstance(one.value, int | float) else one.value
    unit = f" {one.unit}" if one.unit and one.unit != "%" else one.unit
    return f"{one.name}: {value}{unit}" + (f" ({one.note})" if one.note else "")


def replicate(
    name: str | os.PathLike | Entry,
    model: Model,
    *,
    vectors: Mapping[str, ControlVector] | None = None,
    concepts: int | Sequence[str] | None = None,
    strengths: Any = None,
    strength_unit: str | None = None,
    layers: Any = None,
    seed: int = 0,
    store: str | os.PathLike | _C.Store | None = None,
    memory_budget: int = 512 << 20,
    progress: Callable[[str, int, int], None] | bool | None = None,
    plan: bool = False,
    long: bool = False,
) -> Replication:
    """Run an entry of the atlas: all of its parts in common graphs.

    Args:
        name: of ``ENTRIES``, a file, or an Entry.
        model: with tokenizer and chat template.
        vectors: {concept: vector}; None: of the concepts' words, less the mean over the library's baseline words.
        concepts: how many of the vectors, or of the library's words, or which; None: as many as the entry says. Where
            an answer is chosen among their words, the library's are taken that have equally many tokens.
        strengths, strength_unit, layers: as ``run_experiment`` has them, for parts that have none of their own; None:
            the entry's.
        seed: of rotations and of the orders of lists.
        store, memory_budget, progress, long: as ``run_experiment`` has them.
        plan: run nothing (but the concepts' vectors) and return the ``ExperimentPlan``.

    Raises:
        ValueError: no entry of that name (the nearest are named); concepts that have no vector; fewer than two.
        ConfigError: words of unequal length to choose between; a model without chat template; as ``run_experiment``.
        TypeError, IndexError, ShapeError, Error: as ``run_experiment``.
    """
    who = "replicate"
    entry = find_entry(name)
    given = Arguments(who)
    engine = given.engine(model)
    if not engine.has_chat_template:  # before vectors are trained
        raise _C.ConfigError(
            f"{who}: model '{engine.cfg.model_name}' has no chat template, and the entries are conversations: it is a "
            "base model, or its files lack the template. Give one when you load it (chat_template=, --chat-template): "
            '"plain" writes the turns as plain text, "chatml" and others as chats, a file in Jinja as it says'
        )
    chosen = _vectors(who, model, entry, vectors, concepts)
    settings = {key: value for key, value in entry.settings.items() if key in ("strengths", "strength_unit", "nulls")}
    settings["layers"] = entry.settings.get("layers", _C.default_layers) if layers is None else layers
    if strengths is not None:
        settings |= {"strengths": strengths, "strength_unit": given.unit(strength_unit)}
    listed = cells(entry, chosen, settings, given.whole("seed", seed, least=0))
    shared: dict[str, Any] = {"store": store, "memory_budget": memory_budget, "progress": progress, "long": long}
    experiments = [cell.experiment for cell in listed]
    if plan:
        return run_together(model, experiments, **shared, plan=True)  # type: ignore[return-value]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*left the format of the answer")  # figures count them
        results = run_together(model, experiments, **shared)
    readings = {part.name: [] for part in entry.parts}  # type: dict[str, list[Reading]]
    for cell, result in zip(listed, results, strict=True):
        readings[cell.part.name] += _readings(cell, result)
    figures = [
        figure
        for part in entry.parts
        for measure in part.measures
        for figure in measure.figures(part.name, readings[part.name])
    ]
    facts = model_facts(model)
    said = {
        "concepts": list(chosen),
        "strengths": settings.get("strengths"),
        "strength_unit": settings.get("strength_unit"),
        "layers": list(settings["layers"]) if isinstance(settings["layers"], tuple) else settings["layers"],
        "seed": seed,
        "vectors": "given" if vectors is not None else "of words",
    }
    claims = claims_of(entry, listed, results, figures, facts["name"])
    return Replication(entry, facts, said, figures, claims, _differs(entry, facts, said), _named(listed, results))


def _vectors(
    who: str,
    model: Model,
    entry: Entry,
    vectors: Mapping[str, ControlVector] | None,
    concepts: int | Sequence[str] | None,
) -> dict[str, ControlVector]:
    """The concepts' vectors: of those that are given, or trained."""
    known = list(dict(Arguments(who).vectors(vectors))) if vectors is not None else load_words("concepts")
    if isinstance(concepts, str):
        raise TypeError(f"{who}: concepts must be a number or a list of words, got {concepts!r}")
    is_named = concepts is not None and not isinstance(concepts, int)
    if is_named:
        names = list(concepts)  # type: ignore[arg-type]
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"{who}: concepts must be a number or a list of words, got {concepts!r}")
        if vectors is not None and (lacking := [name for name in names if name not in vectors]):
            raise ValueError(f"{who}: there is no vector of {', '.join(lacking)}; there are {', '.join(known)}")
        if len(set(names)) < len(names):
            raise ValueError(f"{who}: concepts must be named once each, got {', '.join(names)}")
    else:
        usual = len(known) if vectors is not None else entry.settings.get("concepts", CONCEPTS)
        n: int = usual if concepts is None else Arguments(who).whole("concepts", concepts, least=FEWEST)
        if vectors is None and asks_for_words(entry):
            known = _equally_long(model, known)
        if n > len(known):
            raise ValueError(f"{who}: {n} concepts are asked for, and there are {len(known)}: {', '.join(known)}")
        names = known[:n]
    if len(names) < FEWEST:
        raise ValueError(f"{who}: two concepts or more are needed, got {', '.join(names) or 'none'}")
    if asks_for_words(entry):
        lengths = {name: _length(model, name) for name in names}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} ({n})" for name, n in lengths.items())
            raise _C.ConfigError(
                f"{who}: '{entry.name}' chooses between the concepts' words, which must have equally many tokens: "
                f"a longer one is less likely for its length alone. Got {shown}"
            )
    if vectors is not None:
        return {name: vectors[name] for name in names}
    every = list(range(model.cfg.n_layers))  # the first block too, into which hahami injects
    return ControlVector.train_words_many(model, names, load_words("baseline"), layers=every)


def _length(model: Model, word: str) -> int:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise _C.ConfigError("replicate: the model has no tokenizer")
    return len(tokenizer.encode(f" {word.lower()}", add_special_tokens=False))


def _equally_long(model: Model, words: Sequence[str]) -> list[str]:
    """The words that have as many tokens as most of them have."""
    by_length: dict[int, list[str]] = {}
    for word in words:
        by_length.setdefault(_length(model, word), []).append(word)
    return max(by_length.values(), key=len)


def _readings(cell: Cell, result: Result) -> list[Reading]:
    out = []
    for row in result.rows:
        kind = row["kind"]
        if kind == "random" and row["question_kind"] == "control":
            kind = "random_control"
        tags = {**cell.tags, "kind": kind, "group": row.get("group", ""), "strength": row["strength"]}
        tags["place"] = row.get("place", -1)
        about = cell.about or row["concept"]
        out.append(Reading(row, about, row["concept"], tags, cell.sign, result.leaves_format(row)))
    return out


def _named(listed: Sequence[Cell], results: Sequence[Result]) -> dict[str, Result]:
    return {
        result.protocol["name"] + (" (other concepts)" if cell.tags["vector"] == "other" else ""): result
        for cell, result in zip(listed, results, strict=True)
    }


def _differs(entry: Entry, model: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    strengths = settings["strengths"]
    unit = "times the residual norm" if settings["strength_unit"] == "residual" else settings["strength_unit"] or ""
    shown = ", ".join(map(str, strengths if isinstance(strengths, list | tuple) else [strengths]))
    return [
        f"model: {model['name']} ({model['n_layers']} blocks) in {model['dtype']}; "
        f"published on {', '.join(entry.models)}",
        f"{len(settings['concepts'])} concepts; strengths {shown} {unit}".rstrip()
        + " unless a part has its own; blocks "
        + (f"{settings['layers'][0]:g} to {settings['layers'][1]:g}" if _is_range(settings["layers"]) else "as given"),
        "judge: none; exact probabilities of answers in the place of graded samples",
        "wording: " + ("theirs" if entry.wording == "theirs" else "our own, after the study's description"),
        *entry.differs,
    ]


def _is_range(layers: Any) -> bool:
    return isinstance(layers, list | tuple) and len(layers) == 2 and all(isinstance(one, int | float) for one in layers)
