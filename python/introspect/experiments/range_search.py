"""Two quick ways through the layer ranges of an experiment: first-order estimates, and coarse-to-fine search."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _C
from ..model import Model
from ..steering.training import ControlVector
from .arguments import Arguments, Numbers, Texts
from .detections import all_finite
from .results import Result
from .run import Protocol, run_experiment

if TYPE_CHECKING:
    import pandas

Range = tuple[int, int]
Progress = Callable[[str, int, int], None] | bool


class RangeEstimates:
    """First-order estimates of the shifts that ``run_experiment`` would measure, for every layer range.

    A range's estimate is the sum of its blocks' parts. Nothing here was measured under an injection.
    """

    def __init__(self, parts: Sequence[_C.LayerEstimate], layers: Sequence[int]) -> None:
        self.parts = list(parts)
        self.layers = list(layers)
        self.concepts = list(dict.fromkeys(part.concept for part in parts))

    @property
    def ranges(self) -> list[Range]:
        """Every range between two blocks that all vectors have a direction for."""
        return [(first, last) for first in self.layers for last in self.layers if first <= last]

    def by_layer(self, concept: str, strength: float, *, null_index: int = -1) -> np.ndarray:
        """Each block's part in the estimate [n_layers]: the shift less the mean of the controls where there are any.

        Raises:
            ValueError: nothing was estimated for this injection.
        """
        found = [
            part
            for part in self.parts
            if (part.concept, part.strength, part.null_index) == (concept, strength, null_index)
        ]
        if not found:
            raise ValueError(f"RangeEstimates: no estimate for {concept!r} at {strength:g} with null {null_index}")

        def mean(kind: str) -> np.ndarray | float:
            rows = [part.by_layer for part in found if part.question_kind == kind]
            return np.mean(rows, axis=0) if rows else 0.0

        return mean("introspection") - np.asarray(mean("control"))

    def grid(self, concept: str, strength: float, *, null_index: int = -1) -> np.ndarray:
        """The estimates [first, last] of all ranges, NaN for those that are not in ``ranges``."""
        parts = self.by_layer(concept, strength, null_index=null_index)
        before = np.concatenate([[0.0], np.cumsum(parts)])
        grid = np.full((len(parts), len(parts)), math.nan)
        for first, last in self.ranges:
            grid[first, last] = before[last + 1] - before[first]
        return grid

    def scores(self, strength: float) -> dict[Range, float]:
        """Mean of the grids of all concepts, by range."""
        mean = np.mean([self.grid(concept, strength) for concept in self.concepts], axis=0)
        return {(first, last): float(mean[first, last]) for first, last in self.ranges}

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each injection, range and question, with the column ``estimated_shift``."""
        import pandas

        first, last = np.array(self.ranges).T
        tables = []
        for part in self.parts:
            before = np.concatenate([[0.0], np.cumsum(part.by_layer)])
            tables.append(
                pandas.DataFrame(
                    {
                        "concept": part.concept,
                        "strength": part.strength,
                        "first_layer": first,
                        "last_layer": last,
                        "question": part.question,
                        "question_kind": part.question_kind,
                        "kind": part.question_kind if part.null_index < 0 else "random",
                        "null_index": part.null_index,
                        "asked_in": part.asked_in,
                        "log_odds_base": part.log_odds_base,
                        "estimated_shift": before[last + 1] - before[first],
                    }
                )
            )
        return pandas.concat(tables, ignore_index=True)

    def __repr__(self) -> str:
        return (
            f"<RangeEstimates (first order) of {len(self.ranges)} ranges for {', '.join(self.concepts)}: "
            f"{len(self.parts)} injections and questions>"
        )


@dataclass(frozen=True)
class Agreement:
    """How well the order of some estimates is that of the exact values.

    Attributes:
        n: how many were compared.
        spearman: rank correlation, ties at their mean rank; NaN where one side is constant.
        kendall: tau-b.
        k: the size of the two sets of highest values that ``overlap`` is about.
        overlap: share of the k highest exact values that are among the k highest estimates; k / n by chance.
    """

    n: int
    spearman: float
    kendall: float
    k: int
    overlap: float

    @classmethod
    def of(cls, estimates: Sequence[float], exact: Sequence[float], k: int) -> Agreement:
        """Raises ValueError for unequally many values, fewer than two, or a k that is not from 1 to their number."""
        x, y = list(estimates), list(exact)
        return cls(len(x), _C.spearman(x, y), _C.kendall_tau(x, y), k, _C.top_k_overlap(x, y, k))


@dataclass(frozen=True)
class RangeSearch:
    """What a search through the layer ranges found. It is no sweep: only ``scores`` were run.

    Attributes:
        method: how the ranges were chosen.
        result: the exact rows of every range that was run.
        scores: exact mean over the concepts of the shift less the mean of the controls (where there are any), nats;
            -inf where readings are not finite.
        n_ranges: how many ranges there are.
        estimates: what the choice was made by, where it was made by estimates.
        agreement: of the estimates with exact runs of ranges drawn at random from all.
        sampled: the ranges drawn for it.
    """

    method: str
    result: Result
    scores: dict[Range, float]
    n_ranges: int
    estimates: RangeEstimates | None = None
    agreement: Agreement | None = None
    sampled: list[Range] = field(default_factory=list)

    @property
    def best(self) -> Range:
        """The range with the highest score of those that were run."""
        return max(self.scores, key=lambda pair: self.scores[pair])

    def __str__(self) -> str:
        first, last = self.best
        text = (
            f"{self.method}: {len(self.scores)} of {self.n_ranges} ranges run, highest at blocks {first} to {last} "
            f"({self.scores[self.best]:+.2f} nats). A search: ranges that were not run may be higher, and the highest "
            "of many is high by chance too."
        )
        if (a := self.agreement) is not None:
            text += (
                f" Estimates against exact runs of {a.n} ranges drawn at random: Spearman {a.spearman:.2f}, "
                f"Kendall {a.kendall:.2f}, {a.overlap:.0%} of the highest {a.k} in common ({a.k / a.n:.0%} by chance)."
            )
        return text


def estimate_ranges(
    model: Model,
    protocol: Protocol,
    *,
    vectors: Mapping[str, ControlVector],
    strengths: Numbers | None = None,
    strength_unit: str | None = None,
    questions: Texts | None = None,
    controls: Protocol | None = None,
    nulls: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> RangeEstimates:
    """Estimate the shift of every layer range from one forward and one backward pass a question.

    The gradient of the log-odds by what is added to each block of the unsteered run, times the direction, is that
    block's part of the shift to first order, and a range's parts add up. The error grows with the square of the
    strength: good for ranking ranges at small strengths, no measurement. Source: attribution patching, Nanda 2023;
    Kramár et al. 2024, arXiv:2403.00745.

    Args:
        nulls: random rotations to estimate as well; none unless asked for, since a verdict takes measured ones.
        progress: called with (what, done, total), counted in questions; None and False as in ``run_experiment``.

    The other arguments, their defaults and errors are those of ``run_experiment``.
    """
    return _estimate("estimate_ranges", locals())


def _estimate(who: str, options: Mapping[str, Any]) -> RangeEstimates:
    given = Arguments(who)
    engine = given.engine(options["model"])
    protocol, controls = given.controls(given.protocol(options["protocol"]), options["controls"])
    vectors = given.vectors(options["vectors"])
    parts = _C.estimate_layers(
        engine,
        protocol,
        vectors=vectors,
        strengths=None if options["strengths"] is None else given.numbers("strengths", options["strengths"]),
        questions=None if options["questions"] is None else given.texts("questions", options["questions"]),
        controls=controls,
        nulls=given.whole("nulls", options["nulls"], least=0),
        strength_unit=given.unit(options["strength_unit"]),
        seed=given.whole("seed", options["seed"], least=0),
        progress=given.callback(options["progress"]),
    )
    return RangeEstimates(parts, _common_layers(dict(vectors), who))


def screen_ranges(
    model: Model,
    protocol: Protocol,
    *,
    vectors: Mapping[str, ControlVector],
    strength: float | None = None,
    k: int = 20,
    sample: int = 20,
    nulls: int = 0,
    seed: int = 0,
    **options: Any,
) -> RangeSearch:
    """Run exactly the ranges whose estimates are highest, and some drawn at random to see how good the estimates are.

    Agreement is measured on the random ranges alone: among the highest estimates it would look worse than it is.

    Args:
        strength: of the injection; None is the default of ``run_experiment``, in its unit.
        k: how many ranges of the highest estimates are run.
        sample: how many are drawn from all ranges; 0 measures no agreement.
        nulls: random rotations of each vector that every range is run with as well; a search compares ranges and needs
            none. ``run_experiment`` on the range that was found gives its verdict.
        seed: of the draw, and of ``run_experiment``.
        options: the others of ``run_experiment``: questions, controls, strength_unit, store, memory_budget, progress.

    Raises:
        ValueError: k below 1, or sample of 1 or below 0; and as ``run_experiment``.
    """
    given = Arguments("screen_ranges")
    k, sample = given.whole("k", k), given.whole("sample", sample)
    if k < 1 or sample < 0 or sample == 1:
        raise ValueError(f"screen_ranges: k must be 1 or more and sample 0 or at least 2, got {k} and {sample}")
    common = _common(given, locals())
    known = {name: options.get(name) for name in ("questions", "controls", "strength_unit", "progress")}
    estimates = _estimate("screen_ranges", {**known, **common, "nulls": 0})
    guesses = estimates.scores(_only_strength(estimates))
    ranges = estimates.ranges
    chosen = sorted(ranges, key=lambda pair: -guesses[pair])[:k]
    drawn = np.random.default_rng(seed).permutation(len(ranges))[: min(sample, len(ranges))]
    sampled = [ranges[i] for i in sorted(drawn.tolist())]
    to_run = list(dict.fromkeys(chosen + sampled))
    result = run_experiment(**common, layers=to_run, nulls=nulls, **options)
    scores = _scores(result)
    agreement = None
    sampled = [pair for pair in sampled if math.isfinite(scores[pair])]
    if len(sampled) > 1:
        exact = [scores[pair] for pair in sampled]
        agreement = Agreement.of([guesses[pair] for pair in sampled], exact, max(1, len(sampled) // 4))
    return RangeSearch(
        f"first-order estimates of all ranges, then exact runs of the highest {len(chosen)}",
        result,
        scores,
        len(ranges),
        estimates,
        agreement,
        sampled,
    )


def refine_ranges(
    model: Model,
    protocol: Protocol,
    *,
    vectors: Mapping[str, ControlVector],
    strength: float | None = None,
    grid: int = 6,
    keep: int = 3,
    nulls: int = 0,
    seed: int = 0,
    **options: Any,
) -> RangeSearch:
    """Run a coarse grid of ranges exactly, then finer ones around the best, down to single blocks.

    From the best ranges, both ends are moved by a step until no move is new; then the step is halved, down to one
    block. It finds a local optimum, not necessarily the highest of all ranges.

    Args:
        strength: of the injection; None is the default of ``run_experiment``, in its unit.
        grid: how many blocks a coarse range may begin or end at.
        keep: around how many of the best ranges each round looks.
        nulls: random rotations of each vector that every range is run with as well; a search compares ranges and needs
            none. ``run_experiment`` on the range that was found gives its verdict.
        seed: of ``run_experiment``.
        options: the others of ``run_experiment``: questions, controls, strength_unit, store, memory_budget, progress.

    Raises:
        ValueError: grid below 2 or keep below 1; and as ``run_experiment``.
    """
    given = Arguments("refine_ranges")
    grid, keep = given.whole("grid", grid), given.whole("keep", keep)
    if grid < 2 or keep < 1:
        raise ValueError(f"refine_ranges: grid must be 2 or more and keep 1 or more, got {grid} and {keep}")
    common = _common(given, locals())
    layers = _common_layers(common["vectors"], "refine_ranges")
    n = len(layers)
    ends = sorted({round(i * (n - 1) / (grid - 1)) for i in range(grid)})
    step = max(1, (n - 1) // (grid - 1))
    to_run = {(i, j) for i in ends for j in ends if i <= j}  # places in layers, not blocks
    scores: dict[Range, float] = {}
    result: Result | None = None
    while to_run:
        found = run_experiment(
            **common,
            layers=[(layers[i], layers[j]) for i, j in sorted(to_run)],
            nulls=nulls,
            **options,
        )
        if result is None:
            result = found
        else:
            result.rows += found.rows
        scores |= {(layers.index(first), layers.index(last)): s for (first, last), s in _scores(found).items()}
        best = sorted(scores, key=lambda pair: -scores[pair])[:keep]
        to_run = _around(best, step, n) - scores.keys()
        while not to_run and step > 1:
            step //= 2
            to_run = _around(best, step, n) - scores.keys()
    assert result is not None  # the grid has a range
    named = {(layers[i], layers[j]): score for (i, j), score in scores.items()}
    return RangeSearch("coarse to fine", result, named, n * (n + 1) // 2)


def _common(given: Arguments, options: Mapping[str, Any]) -> dict[str, Any]:
    """What estimates and runs of a search share."""
    given.engine(options["model"])
    strength = options["strength"]
    return {
        "model": options["model"],
        "protocol": given.protocol(options["protocol"]),
        "vectors": dict(given.vectors(options["vectors"])),
        "strengths": None if strength is None else [given.number("strength", strength)],
        "seed": options["seed"],
    }


def _only_strength(estimates: RangeEstimates) -> float:
    (strength,) = {part.strength for part in estimates.parts}
    return strength


def _around(ranges: Sequence[Range], step: int, n: int) -> set[Range]:
    """The ranges with one or both ends moved by a step."""
    moves = (-step, 0, step)
    moved = {(i + di, j + dj) for i, j in ranges for di in moves for dj in moves}
    return {(i, j) for i, j in moved if 0 <= i <= j < n}


def _scores(result: Result) -> dict[Range, float]:
    by_range: dict[Range, list[float]] = {}
    for one in result.detections():
        pair = (one.setting.first_layer, one.setting.last_layer)
        by_range.setdefault(pair, []).append(one.headline.value)
    return {pair: statistics.fmean(values) if all_finite(*values) else -math.inf for pair, values in by_range.items()}


def _common_layers(vectors: Mapping[str, ControlVector], who: str) -> list[int]:
    """Blocks that every vector has a direction for."""
    layers = set.intersection(*(set(vector.directions) for vector in vectors.values())) if vectors else set()
    if not layers:
        raise ValueError(f"{who}: the vectors must have a block in common that they have a direction for")
    return sorted(layers)
