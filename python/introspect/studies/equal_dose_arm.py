"""The arm of equal dose: random rotations at the strengths at which they do as much to the model as the vector.

Doses are read in the study's own graphs. A search begins with the rotation at the vector's strength, which another arm
runs anyway; every further measurement is the arm itself, and the one that has the vector's dose gives its rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Mapping
from typing import Any

from .. import _C
from ..experiments.arguments import Arguments
from ..experiments.results import Result
from . import variants
from .setup import Results, Setup, parts_of
from .together import Experiment

TOLERANCE = 0.02
"""How far off the vector's dose one of equal dose may be, as a share of it."""
MOST_ROUNDS = 60
REACH = 10.0
"""A search goes up to 32 times this, 320 times the vector's strength."""

Place = tuple[str, float, int, int]
"""An injection's concept, strength as rows have it, first and last block."""
Searches = dict[Place, list[_C.DoseSearch]]
PLACE = ("concept", "strength", "first_layer", "last_layer")
ROW = (*PLACE, "null_index", "question", "paraphrase", "place")
"""What rows of one result differ in."""


def at_the_vectors_strength(setup: Setup) -> list[Experiment]:
    """Every vector and its rotations, with their doses."""
    setup.needs_vectors("equal_dose")
    if least := [one for one in _strengths(setup) if one < 0]:
        variants.refuse("equal_dose", setup.protocol, f"strengths must be above 0, got {least[0]:g}")
    if not any(_strengths(setup)):
        variants.refuse("equal_dose", setup.protocol, "nothing is injected at strength 0")
    return [_measuring(setup, nulls=_n(setup))]


def planned(setup: Setup, _: Any) -> list[Experiment]:
    """What a plan takes for the arm: the rotations at the vectors' strength."""
    return [setup.experiment(nulls=_n(setup)), _measuring(setup, nulls=_n(setup))]


def run(setup: Setup, first: Results) -> Generator[list[Experiment], Results, Result]:
    """Round by round, until every rotation has its vector's dose.

    Args:
        first: of ``at_the_vectors_strength``.

    Raises:
        ValueError: a dose that no strength gives.
    """
    searches = _begun(setup, first[0])
    settings = list(zip(*_by_concept(searches).values(), strict=True))
    rows: list[dict[tuple, dict]] = [{} for _ in settings]
    collected: list[Result] = []
    ran: dict[tuple[Place, int], float] = {}
    for _ in range(MOST_ROUNDS):
        tried = {
            place: [_strength_of(search, ran.get((place, null))) for null, search in enumerate(listed)]
            for place, listed in searches.items()
        }
        missing = [number for number, places in enumerate(settings) if any(any(tried[place]) for place in places)]
        if not missing:
            break
        asked = []
        for number in missing:
            options = _at(setup, {place: tried[place] for place in settings[number] if any(tried[place])})
            asked += [setup.experiment(**options), _measuring(setup, **options)]
        results = yield asked
        collected = collected or [results[0]]
        for number, result, measured in zip(missing, results[::2], results[1::2], strict=True):
            _take(searches, tried, measured)
            for row in result.rows:
                null, place = row["null_index"], tuple(row[name] for name in PLACE)
                identity = tuple(row.get(name) for name in ROW)
                if null < 0:
                    rows[number].setdefault(identity, row)
                elif tried[place][null]:
                    rows[number][identity] = row
                    ran[place, null] = tried[place][null]  # type: ignore[index]
    else:
        raise ValueError(f"run_study: the search for equal doses did not end after {MOST_ROUNDS} rounds")
    out = collected[0]
    listed = [row for of_setting in rows for row in of_setting.values()]
    return Result({**parts_of(out), "settings": {**out.settings, "doses": _listed(setup, searches)}, "rows": listed})


def _n(setup: Setup) -> int:
    return Arguments("run_study").whole("n_equal_dose", setup.more.get("n_equal_dose", setup.nulls), least=1)


def _measuring(setup: Setup, **options: Any) -> Experiment:
    """The same injections with their doses, which hang on no question: it is asked in one wording."""
    plain = {"paraphrases": None, "asks_own_question": None, "readouts": None, "read": "yes_no"}
    protocol = variants.edited(setup.protocol, "doses", **plain)
    return setup.experiment(protocol, readouts={"injected_kl": True}, **options)


def _strengths(setup: Setup) -> list[float]:
    """Those of the run, as it was given them."""
    given = Arguments("run_study")
    numbers = [_C.default_strength] if setup.strengths is None else given.numbers("strengths", setup.strengths)
    own = [strength for *_, strengths in setup.own_strengths for strength in strengths]
    return own or numbers


def _by_concept(searches: Searches) -> dict[str, list[Place]]:
    out: dict[str, list[Place]] = defaultdict(list)
    for place in searches:
        out[place[0]].append(place)
    return out


def _doses(result: Result) -> dict[tuple[Place, int], float]:
    """The mean KL at all injected tokens, of several passages together."""
    sums: dict[tuple[Place, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in result.rows:
        if row["strength"] == 0:
            continue
        kl, n = (row["injected"].get(name) for name in ("injected_kl", "injected_tokens"))
        both = sums[tuple(row[name] for name in PLACE), row["null_index"]]  # type: ignore[index]
        both[0] += math.nan if kl is None else kl * n
        both[1] += n or 0
    return {key: total / n for key, (total, n) in sums.items()}


def _begun(setup: Setup, first: Result) -> Searches:
    """Searches that have measured the rotations at the vectors' strengths."""
    doses = _doses(first)
    out: Searches = {}
    for (place, null), target in doses.items():
        if null >= 0:
            continue
        concept, strength, first_layer, last_layer = place
        if not (math.isfinite(target) and target > 0):
            raise ValueError(
                f"run_study: equal_dose: {concept!r} in blocks {first_layer} to {last_layer} has nothing to equal: at "
                f"strength {strength:g} its KL is {target}"
            )
        out[place] = []
        for number in range(_n(setup)):
            search = _C.DoseSearch(target, strength, REACH * strength, TOLERANCE)
            search.take({strength: doses[place, number]})
            out[place].append(search)
    return out


def _strength_of(search: _C.DoseSearch, ran: float | None) -> float:
    """What a rotation is to be run at that was last run at ``ran``; 0: it need not."""
    if not search.is_done:
        return search.next()[0]
    return 0.0 if search.found == ran else search.found


def _at(setup: Setup, tried: Mapping[Place, list[float]]) -> dict[str, Any]:
    """Options of an experiment with some vectors of one setting and their rotations at strengths of their own."""
    relative = setup.protocol.relative_strength
    given = {strength * relative: strength for strength in _strengths(setup)}
    _, _, first, last = next(iter(tried))
    return {
        "vectors": {place[0]: setup.vectors[place[0]] for place in tried},
        "strengths": [1.0],
        "own_strengths": [(concept, *blocks, [given[strength]]) for concept, strength, *blocks in tried],
        "strength_unit": "residual" if setup.is_residual else "absolute",
        "layers": (first, last),
        "nulls": _n(setup),
        "null_factors": {place[0]: [one / place[1] for one in listed] for place, listed in tried.items()},
    }


def _take(searches: Searches, tried: Mapping[Place, list[float]], measured: Result) -> None:
    for (place, null), dose in _doses(measured).items():
        if null < 0 or not tried[place][null] or searches[place][null].is_done:
            continue
        search = searches[place][null]
        search.take({tried[place][null]: dose})
        if search.is_unreachable:
            concept, _, first, last = place
            raise ValueError(
                f"run_study: equal_dose: no strength gives {concept!r} (null {null}) in blocks {first} to {last} a KL "
                f"of {search.target:.4g}: from what was tried it reaches {search.reached}"
            )


def _listed(setup: Setup, searches: Searches) -> list[dict[str, Any]]:
    """Of every rotation its strength and dose, for the result's settings."""
    return [
        {
            **dict(zip(PLACE, place, strict=True)),
            "null_index": number,
            "null_strength": search.found,
            "kl": search.doses[search.found],
            "kl_vector": search.target,
            "measured": search.n_measured,
        }
        for place, listed in searches.items()
        for number, search in enumerate(listed)
    ]
