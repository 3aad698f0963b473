"""Experiments cut into pieces for several processes: what shares its beginning stays together."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import _C
from . import doses
from .plans import ExperimentPlan

Native = Mapping[str, Any]
"""An experiment in the native module's form."""

CUT = ("vector", "random", "noise")
"""Ways to inject whose concepts are the vectors; protocols of other ways stay whole."""
MOST_REPEATED = 1.25
"""A piece is cut only if its parts together cost at most this much of it."""


@dataclass(frozen=True)
class Piece:
    """Experiments that one process runs together, and their plan."""

    experiments: list[Native]
    plan: ExperimentPlan

    @property
    def cost(self) -> int:
        return self.plan.token_layers_to_run


def plan_of(model: Any, experiments: Sequence[Native], store: _C.Store | None, memory_budget: int) -> ExperimentPlan:
    """What is missing of experiments whose strengths are numbers."""
    planned: list[_C.RunPlan] = []
    _native(model, experiments, store, memory_budget, before=planned.append, only_plan=True)
    return ExperimentPlan.of(planned[0])


def run(model: Any, experiments: Sequence[Native], store: _C.Store, memory_budget: int, seconds: float) -> None:
    """Make the readings of experiments whose strengths are numbers."""
    _native(model, experiments, store, memory_budget, pass_seconds=seconds)


def measure_doses(model: Any, experiment: Native, store: _C.Store, who: str) -> None:
    """Put the doses of an experiment into the store: those that are solved for, or those of its strengths."""
    numbers, found = doses.resolve(who, model, experiment, {}, only_plan=False, store=store)
    if not found and experiment["dose"]:
        doses.measure(model, numbers, store)


def unsteered(experiments: Sequence[Native]) -> list[Native]:
    """What every piece needs: the readings without injection, and the residual norms."""
    out: list[Native] = []
    for one in experiments:
        if one["protocol"].inject not in CUT:
            continue
        unit = one["strength_unit"] or ("residual" if one["strengths"] is None else "absolute")
        part = _of_concepts(one, [one["vectors"][0][0]])
        nothing = {"strengths": [0.0], "strength_unit": unit, "own_strengths": [], "nulls": 0}
        out.append({**part, **nothing, "null_vectors": {}, "null_factors": {}, "layers": one["layers"][:1]})
    return out


def of_each_concept(experiment: Native) -> list[Native]:
    """The experiment with one vector at a time."""
    if experiment["protocol"].inject not in CUT:
        return [experiment]
    return [_of_concepts(experiment, [name]) for name, _ in experiment["vectors"]]


def cut(
    model: Any, experiments: Sequence[Native], store: _C.Store | None, memory_budget: int, *, pieces: int
) -> list[Piece]:
    """Pieces of about equal cost, the dearest first; those of which nothing is missing are left out.

    Experiments are cut by concepts first, and then between ranges that begin at different blocks: ranges that begin at
    the same one share their steered layers, and strengths, rotations and questions of one range what stands before.

    Args:
        experiments: their strengths are numbers.
        store: readings that are there cost nothing.
        pieces: how many are wanted. There are fewer where cutting would repeat too much.
    """

    def piece(some: Sequence[Native]) -> Piece:
        return Piece(list(some), plan_of(model, some, store, memory_budget))

    open_pieces, number = [], 0
    kinds = [[one for one in experiments if one["protocol"].inject in CUT]]
    kinds += [[one] for one in experiments if one["protocol"].inject not in CUT]
    for some in kinds:
        if some:
            open_pieces.append((0, number, piece(some)))
            number += 1
    most = sum(one.cost for *_, one in open_pieces) / max(1, pieces)
    open_pieces = [(-one.cost, n, one) for _, n, one in open_pieces]
    heapq.heapify(open_pieces)
    done: list[Piece] = []
    while open_pieces:
        *_, largest = heapq.heappop(open_pieces)
        halves = [piece(some) for some in _halves(largest.experiments, model.cfg.n_layers)]
        if largest.cost <= most or not halves or sum(one.cost for one in halves) > MOST_REPEATED * largest.cost:
            done.append(largest)
            continue
        for one in halves:
            heapq.heappush(open_pieces, (-one.cost, number, one))
            number += 1
    missing = [one for one in done if one.plan.found < one.plan.readings]
    return sorted(missing, key=lambda one: -one.cost)


def _halves(experiments: Sequence[Native], n_layers: int) -> list[list[Native]]:
    """Two parts of experiments that share little; none where everything shares its beginning."""
    if any(one["protocol"].inject not in CUT for one in experiments):
        return []
    names = list(dict.fromkeys(name for one in experiments for name, _ in one["vectors"]))
    if len(names) > 1:
        middle = len(names) // 2
        parts: list[list[Native]] = [
            [_of_concepts(one, some) for one in experiments] for some in (names[:middle], names[middle:])
        ]
        return [[one for one in part if one["vectors"]] for part in parts]
    firsts = sorted({_first(layers, n_layers) for one in experiments for layers in one["layers"]})
    if len(firsts) < 2:
        return []
    # What begins at a low block runs through all those above it.
    weights = [n_layers - first for first in firsts]
    n = next(n for n in range(1, len(firsts) + 1) if 2 * sum(weights[:n]) >= sum(weights))
    border = firsts[min(n, len(firsts) - 1)]
    out: list[list[Native]] = []
    for is_low in (True, False):
        part: list[Native] = [
            {**one, "layers": layers}
            for one in experiments
            if (layers := [r for r in one["layers"] if (_first(r, n_layers) < border) == is_low])
        ]
        out.append(part)
    return out


def _of_concepts(experiment: Native, names: Sequence[str]) -> Native:
    """The experiment with some of its vectors. Readouts of the concepts' words read all words still."""
    own = {name: vectors for name, vectors in experiment["null_vectors"].items() if name in names}
    return {
        **experiment,
        "vectors": [(name, vector) for name, vector in experiment["vectors"] if name in names],
        "concepts": experiment["concepts"] or [name for name, _ in experiment["vectors"]],
        "null_vectors": own,
        "null_factors": {name: one for name, one in experiment["null_factors"].items() if name in names},
        "own_strengths": [one for one in experiment.get("own_strengths", ()) if one[0] in names],
    }


def _first(layers: tuple[float, float, bool], n_layers: int) -> int:
    first, last, is_fraction = layers
    return _C.blocks_of_fractions(first, last, n_layers)[0] if is_fraction else int(first)


def _native(
    model: Any,
    experiments: Sequence[Native],
    store: _C.Store | None,
    memory_budget: int,
    *,
    before: Any = None,
    only_plan: bool = False,
    pass_seconds: float = 6.0,
) -> None:
    _C.run_experiments(
        model.native,
        experiments=[dict(one) for one in experiments],
        store=store,  # type: ignore[arg-type]  # None: none
        memory_budget=memory_budget,
        progress=None,
        work=None,
        before=before,
        only_plan=only_plan,
        pass_seconds=pass_seconds,
    )
