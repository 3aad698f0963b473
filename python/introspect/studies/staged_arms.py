"""Arms of several experiments, or that must know something before: sham, observer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _C
from ..experiments.arguments import load_protocol
from ..experiments.results import Result
from . import variants
from .setup import NOTHING, Results, Setup, parts_of
from .together import Experiment

# ---- sham -----------------------------------------------------------------------------------------------------------


def sham(setup: Setup, _: Any) -> list[Experiment]:
    """Told, and untold where the protocol has a twin without its information; nothing is injected into either."""
    told = setup.experiment(strengths=0.0, strength_unit="absolute")
    given = setup.more.get("untold")
    twin = variants.untold(setup.protocol, None if given is None else load_protocol(given))
    return [told] if twin is None else [told, told.changed(protocol=twin)]


def collect_sham(setup: Setup, results: Results, _: Any) -> Result:
    """Rows of the base readings: what was told shifts nothing by itself, or as much as the untold twin says less."""
    told, untold = results[0], results[-1]
    concept = told.concepts[0]

    def of(result: Result) -> list[dict]:
        return [row for row in result.rows if row["concept"] == concept]

    rows = [
        {**row, "concept": NOTHING, "base": other["base"], "injected": row["base"], "leaves_format": False}
        for row, other in zip(of(told), of(untold), strict=True)
    ]
    settings = {**told.settings, "untold": untold.protocol["name"] if untold is not told else None}
    return Result({**parts_of(told), "settings": settings, "rows": rows})


# ---- observer -------------------------------------------------------------------------------------------------------


def spoken(setup: Setup) -> list[Experiment]:
    setup.needs_vectors("observer")
    said, _ = variants.spoken(setup.protocol, setup.more.get("words", 24))
    return [setup.experiment(said)]


def observer(setup: Setup, first: Results | None) -> list[Experiment]:
    """One experiment a setting: in each the model has said something else. A plan takes it for some words."""
    _, at = variants.spoken(setup.protocol, 1)
    if first is None:
        words = " word" * setup.more.get("words", 24)
        base, said = words, [dict.fromkeys(setup.vectors, words)]
    else:
        base = first[0].rows[0]["base"]["text"]
        said = [{name: row["injected"]["text"] for name, row in rows.items()} for rows in _by_setting(first[0].rows)]
    protocols = [variants.observed(setup.protocol, at, base, texts) for texts in said]
    # Nothing is injected: these rows get the settings of what was said.
    return [setup.experiment(one, strengths=None, strength_unit=None, layers=(_C.default_layers,)) for one in protocols]


def collect_observer(setup: Setup, results: Results, first: Results) -> Result:
    names = ("concept", "strength", "first_layer", "last_layer")
    rows = []
    for said, result in zip(_by_setting(first[0].rows), results, strict=True):
        rows += [{**row, **{name: said[row["concept"]][name] for name in names}} for row in result.rows]
    transcripts = [
        {**{name: row[name] for name in names}, "said": row["injected"]["text"], "said_base": row["base"]["text"]}
        for row in first[0].rows
    ]
    settings = {**results[0].settings, "transcripts": transcripts}
    return Result({**parts_of(results[0]), "settings": settings, "rows": rows})


def _by_setting(rows: Sequence[dict]) -> list[dict[str, dict]]:
    """Of every setting, in their order, the row of each concept: strengths may be a concept's own."""
    by_concept: dict[str, list[dict]] = {}
    for row in rows:
        by_concept.setdefault(row["concept"], []).append(row)
    return [dict(zip(by_concept, of_setting, strict=True)) for of_setting in zip(*by_concept.values(), strict=True)]
