"""``replicate``: run an entry of the atlas on a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ... import _C
from ...data import load_words
from ...experiments.arguments import Arguments
from ...experiments.runs import model_facts
from ...steering.training import ControlVector
from ..together import run_together
from .entry import Entry
from .entry import entry as find_entry
from .expand import asks_for_words, cells
from .replication import Replication, replication_of

if TYPE_CHECKING:
    from ...model import Model

CONCEPTS = 8
"""where an entry does not say; with fewer than seven an entry of two kinds of claims can show nothing"""
FEWEST = 2
"""Concepts: of one alone there is nothing to tell it from."""


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
    ray: Any = None,
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
        store, memory_budget, progress, long, ray: as ``run_experiment`` has them.
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
        results = run_together(model, experiments, **shared, ray=ray)
    facts = model_facts(model)
    said = {
        "concepts": list(chosen),
        "strengths": settings.get("strengths"),
        "strength_unit": settings.get("strength_unit"),
        "layers": list(settings["layers"]) if isinstance(settings["layers"], tuple) else settings["layers"],
        "seed": seed,
        "vectors": "given" if vectors is not None else "of words",
    }
    return replication_of(entry, listed, results, facts, said)


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
