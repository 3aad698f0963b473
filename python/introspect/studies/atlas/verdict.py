"""The ladder of a replication: which of its rungs the readings of an entry hold, and what became of each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ...experiments.detections import all_finite, shift_of
from ...experiments.results import Result
from .. import from_results
from ..claims import FAILS, HOLDS, NOT_RUN, NOT_SHOWN, Claims
from ..evidence import Evidence
from ..from_results import Columns
from ..ladder import ladder
from ..rungs import Contrast, Step, own_step
from .entry import Claim, Entry
from .expand import Cell
from .measures import TINY, Figure, expected_number, fits

NO_ANSWERS = "its answers are not read (readouts.answer_shares)"


def claims_of(
    entry: Entry, cells: Sequence[Cell], results: Sequence[Result], figures: Sequence[Figure], model: str = "model"
) -> Claims:
    """The ladder of an entry's readings, and of what it claims besides.

    Args:
        cells, results: in one order.
        model: its name, for what would run a claim.
    """
    return ladder(evidence_of(cells, results), own=[_own(entry, claim, figures, model) for claim in entry.claims])


def evidence_of(cells: Sequence[Cell], results: Sequence[Result]) -> Evidence:
    """The readings by the arms that their parts say they feed; axes of a part are its wordings."""
    collected: dict[str, Columns] = defaultdict(Columns)
    missing: dict[str, str] = {}
    fed = []
    for cell, result in zip(cells, results, strict=True):
        arms = [arm for arm, wanted in cell.part.arms.items() if fits(cell.tags, wanted)]
        fed += [result] if arms else []
        wording = ", ".join(str(cell.tags[axis]) for axis in cell.part.vary) or "own"
        for arm in arms:
            if arm == "injected":
                from_results.collect(result, collected, missing, paraphrase=wording)
            elif arm in ("localised", "localised_matched"):
                from_results.collect_places(result, collected, arm)
            elif arm in ("content", "no_question", "observer"):
                _collect_named(result, arm, collected)
            else:
                _collect_rows(cell, result, arm, collected, wording)
    return from_results.evidence_from(fed, collected, missing)


def _collect_rows(cell: Cell, result: Result, arm: str, collected: dict[str, Columns], wording: str) -> None:
    """Shifts at another question, or what a claim of the study's own is read from."""
    for row in from_results.usable(result, "introspection"):
        value = _moved(row) if arm == "own" else shift_of(row)
        if math.isfinite(value):
            about = {**row, "concept": cell.about or row["concept"]}
            collected[arm].add(about, value, paraphrase=wording)


def _moved(row: Mapping[str, Any]) -> float:
    """How far the reading is from the one without an injection, in whatever is read of it."""
    base, injected = row["base"], row["injected"]
    if (projections := injected.get("projections", {}).get(row["concept"])) is not None:
        before = base["projections"][row["concept"]]
        return math.fsum(value - before[layer] for layer, value in projections.items()) / len(projections)
    if "answer_shares" in injected:
        return expected_number(injected["answer_shares"]) - expected_number(base["answer_shares"])
    return shift_of(dict(row))


def _collect_named(result: Result, arm: str, collected: dict[str, Columns]) -> None:
    """The gain of the injected concept's word less the mean gain of the others', and of these the same."""
    for row in from_results.usable(result, "introspection"):
        gains = _gains(result.concepts, row)
        for concept, gain in gains.items():
            others = [other for name, other in gains.items() if name != concept]
            if not others:
                continue
            value = gain - math.fsum(others) / len(others)
            if concept == row["concept"]:
                collected[arm].add(row, value)
            elif arm == "content":
                collected["content_other_vectors"].add({**row, "concept": concept}, value)


def _gains(concepts: Sequence[str], row: Mapping[str, Any]) -> dict[str, float]:
    """Of every concept the gain of its answer in nats; none unless all are finite."""
    before, after = (row[side].get("answer_shares") for side in ("base", "injected"))
    if before is None or after is None:
        raise ValueError(f"verdict: a part of answers must read them, and {NO_ANSWERS}")
    if not all_finite(*before.values(), *after.values()):
        return {}
    return {name: math.log(max(after[name], TINY) / max(before[name], TINY)) for name in concepts if name in after}


def _own(entry: Entry, claim: Claim, figures: Sequence[Figure], model: str) -> Step:
    by_name = {figure.name: figure for figure in figures}
    contrasts, unit = [], "nats"
    for beside, names in claim.contrasts.items():
        first, *less = (by_name[name] for name in names)
        unit = first.unit
        chance = 0.0 if math.isnan(first.chance) or less else first.chance
        values = {
            concept: value - (less[0].estimate.each[concept] if less else chance)
            for concept, value in first.estimate.each.items()
            if not less or concept in less[0].estimate.each
        }
        if values:
            contrasts.append(Contrast(beside, values))
    run = f'introspect.studies.replicate("{entry.name}", {model})'
    return own_step(claim.name, claim.title, claim.stands, contrasts, unit=unit, least=claim.smallest, run=run)


def verdict(claims: Claims) -> str:
    """The ladder in a line: what still stands, and the names of the rungs by what became of them."""
    named = []
    for outcome, said in ((HOLDS, "holds"), (FAILS, "fails"), (NOT_SHOWN, "not shown")):
        titles = [rung.title for rung in claims.rungs if rung.verdict == outcome]
        if titles:
            named.append(f"{said}: {', '.join(titles)}")
    left = sum(rung.verdict == NOT_RUN for rung in claims.rungs)
    return f"{claims.strongest} ({'; '.join([*named, f'not run: {left} of {len(claims.rungs)} rungs'])})"
