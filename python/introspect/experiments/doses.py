"""Strengths that are given as doses ("kl=0.5", "sd=2", "coherent"), and the doses of what was run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import _C
from .dose import Dose
from .kept_doses import kept

COHERENT = "coherent"
ADDING = ("vector", "random")
"""Protocols that add vectors: what has a dose."""
WITHOUT_STRENGTH = ("model", "tokens", "dropout")

OF_TEXTS = ("max_new_tokens", "factor", "more_repetition")
"""Options of coherence alone."""

PROMPTS = (
    "Tell me about your day.",
    "What are you thinking about right now?",
    "What should I do this weekend?",
)
"""What is asked where a dose is of text in general and not of a protocol."""
BEGINNINGS = (
    "This morning I went outside and",
    "My favourite thing in the world is",
    "The most important news today is",
)
"""The same for models without a chat template."""


def is_target(value: Any) -> bool:
    return isinstance(value, str)


def check_target(text: str, who: str, name: str = "strength") -> str:
    """The text of a dose. Raises ValueError for any other text."""
    if text == COHERENT:
        return text
    try:
        _C.parse_dose(text)
    except ValueError as error:
        near = str(error).partition(": ")[2]
        raise ValueError(f"{who}: {name} must be a number, {COHERENT!r} or a dose such as 'kl=0.5': {near}") from None
    return text


def is_of_strength(protocol: _C.Protocol) -> bool:
    """Whether a run's strengths mean anything in a protocol."""
    return protocol.inject not in WITHOUT_STRENGTH


def stock_prompts(model: Any) -> list[list[int]]:
    """PROMPTS as a chat's first message, or BEGINNINGS where the model has no chat template: token ids."""
    native = model.native
    if not native.has_chat_template:
        return [model.to_tokens(text)[0].tolist() for text in BEGINNINGS]
    return [
        native.tokenizer.encode(
            native.chat_template.render([{"role": "user", "content": text}], add_generation_prompt=True),
            add_special_tokens=False,
        )
        for text in PROMPTS
    ]


def solve(
    model: Any, context: Any, vectors: Sequence[tuple[str, Any]], target: str, *, unit: str, **options: Any
) -> list[Dose]:
    """The strength of every vector and range that gives a target, with its dose.

    Args:
        context: a Protocol, or prompts as lists of token ids.
        target: "kl=0.5", "coherent", ...
        options: of the native module's dose functions, by name; layers are (first, last, whether they are fractions).
    """
    engine = model.native
    options = {"progress": None, **options, "strength_unit": unit}
    if target != COHERENT:
        what, value = _C.parse_dose(target)
        options = {name: option for name, option in options.items() if name not in OF_TEXTS}
        solved = _C.solve_doses(engine, context, list(vectors), what, value, **options)
        return [Dose.of(one.dose, unit, target, one.is_monotone) for one in solved]
    options = {name: option for name, option in options.items() if name not in ("tolerance", "nulls")}
    windows = [window.largest for window in _C.coherent_windows(engine, context, list(vectors), **options)]
    at = {name: option for name, option in options.items() if name not in OF_TEXTS}
    measured = _C.measure_doses(engine, context, list(vectors), **at, **own_strengths(windows))
    return [Dose.of(dose, unit, target) for dose in measured]


def own_strengths(settings: Iterable[Any]) -> dict[str, Any]:
    """The native module's "strengths" and "own_strengths" for settings of vectors, equally many of each range."""
    own: dict[tuple[str, int, int], list[float]] = {}
    for one in settings:
        own.setdefault((one.concept, one.first_layer, one.last_layer), []).append(one.strength)
    longest = max(map(len, own.values()))
    listed = [(*place, strengths) for place, strengths in own.items()]
    return {"strengths": [1.0] * longest, "own_strengths": listed}


def resolve(
    who: str,
    model: Any,
    experiment: Mapping[str, Any],
    known: dict[Any, list[Dose]],
    *,
    only_plan: bool,
    store: _C.Store | None = None,
) -> tuple[dict[str, Any], list[Dose]]:
    """An experiment in the native module's form whose strengths are numbers, and the doses that were solved for.

    Args:
        experiment: "strengths" holds numbers, or the texts of doses.
        known: what has been solved for other experiments of the same call.
        only_plan: nothing is solved: every dose counts as strength 1, since a plan does not depend on it.
        store: where doses are looked for and kept.
    """
    given = experiment["strengths"]
    if not given or not any(map(is_target, given)):
        return dict(experiment), []
    unit = experiment["strength_unit"] or "residual"
    out = {**experiment, "strengths": [1.0] * len(given), "strength_unit": unit}
    protocol = experiment["protocol"]
    if only_plan or not is_of_strength(protocol):
        return out, []
    if protocol.inject not in (*ADDING, "noise"):
        raise _C.ConfigError(
            f"{who}: protocol {protocol.name!r} injects by {protocol.inject}, which has no dose: its strengths must be "
            f"numbers, got {given[0]!r}"
        )
    if len(experiment["parts"]) != 1:
        raise ValueError(f"{who}: doses are of one part of the injected tokens, got {len(experiment['parts'])} parts")
    doses: list[Dose] = []
    for target in given:
        key = (target, unit, *_place(model, protocol, target), str(experiment["layers"]), experiment["parts"][0])
        key = (*key, experiment["seed"], *((name, id(vector)) for name, vector in experiment["vectors"]))
        if key not in known:

            def make(vectors: Sequence[tuple[str, Any]], target: str = target) -> list[Dose]:
                return solve(
                    model,
                    _adding(protocol),
                    vectors,
                    target,
                    unit=unit,
                    layers=experiment["layers"],
                    part=experiment["parts"][0],
                    seed=experiment["seed"],
                )

            known[key] = kept(model, experiment, unit, store, target, make)
        doses += known[key]
    return {**out, **own_strengths(doses)}, doses if protocol.inject in ADDING else []


def _adding(protocol: _C.Protocol) -> _C.Protocol:
    """The protocol itself, or of noise, which has the vector's length, the one that adds the vector."""
    if protocol.inject in ADDING:
        return protocol
    data = json.loads(protocol.to_json())
    del data["inject"]
    return _C.Protocol.parse(json.dumps(data))


def _place(model: Any, protocol: _C.Protocol, target: str) -> tuple:
    """What a dose in a protocol depends on: of KL at the injected tokens nothing that stands after them."""
    if not target.startswith("kl="):
        return (protocol.hash,)
    tokens = _C.conversation_tokens(model.native, protocol)
    spans = (tuple(protocol.injected), tuple(protocol.passages), tuple(protocol.answers))
    return (protocol.inject == "random", protocol.relative_strength, tuple(tokens[0]), tuple(tokens[1]), *spans)


def measure(model: Any, experiment: Mapping[str, Any], store: _C.Store | None = None) -> list[Dose]:
    """The doses of an experiment whose strengths are numbers; none where it adds no vectors or has several parts."""
    protocol = experiment["protocol"]
    if protocol.inject not in ADDING or len(experiment["parts"]) != 1:
        return []
    unit, strengths = experiment["strength_unit"], experiment["strengths"]
    if strengths is None:
        unit, strengths = "residual", [_C.default_strength]
    unit = unit or "absolute"

    def make(vectors: Sequence[tuple[str, Any]]) -> list[Dose]:
        measured = _C.measure_doses(
            model.native,
            protocol,
            vectors,
            strengths=strengths,
            strength_unit=unit,
            layers=experiment["layers"],
            part=experiment["parts"][0],
            seed=experiment["seed"],
            leak=False,  # half as much again
        )
        return [Dose.of(one, unit) for one in measured]

    return kept(model, experiment, unit, store, strengths, make)
