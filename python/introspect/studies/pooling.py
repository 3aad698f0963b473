"""Studies of several machines and models as one: rows of the same experiment are merged, others are pooled."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..experiments.results import Result
from .claims import Claims, number
from .from_results import claims

if TYPE_CHECKING:
    import pandas

    from ..statistics import MetaAnalysis
    from .study import Study


@dataclass(frozen=True)
class PooledContrast:
    """One comparison of one rung over studies."""

    rung: str
    control: str
    unit: str
    studies: list[dict[str, Any]]
    """label, effect, standard_error, n (concepts) and weight of each"""
    effect: float
    interval: tuple[float, float]
    p: float
    """two-sided, for this contrast alone"""
    i_squared: float
    i_squared_interval: tuple[float, float]
    tau: float
    """standard deviation between studies"""
    prediction: tuple[float, float] | None
    """where one more study's effect would lie; None for fewer than three studies, and too narrow for few: of eight it
    holds 88 of 100 where it says 95"""

    def __str__(self) -> str:
        mean = number(self.effect, self.unit, self.interval)
        said = f"{self.rung}, against {self.control}: {mean} over {len(self.studies)} studies"
        spread = f"I² {100 * self.i_squared:.0f}%"
        if self.prediction is None:
            return f"{said}; {spread}"
        low, high = self.prediction
        return (
            f"{said}; {spread}; one more study would lie between {number(low, self.unit)} and {number(high, self.unit)}"
        )


@dataclass(frozen=True)
class Pooled:
    """Random effects over studies of the contrasts that at least two of them have."""

    contrasts: list[PooledContrast]
    claims: dict[str, Claims]
    """of each study by itself, after merging"""
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, rung: str) -> list[PooledContrast]:
        """The contrasts of a rung."""
        return [one for one in self.contrasts if one.rung == rung]

    def to_pandas(self) -> pandas.DataFrame:
        """One row a contrast."""
        import pandas

        def row(one: PooledContrast) -> dict[str, Any]:
            low, high = one.prediction or (math.nan, math.nan)
            return {
                "rung": one.rung,
                "control": one.control,
                "studies": len(one.studies),
                "effect": one.effect,
                "low": one.interval[0],
                "high": one.interval[1],
                "unit": one.unit,
                "p": one.p,
                "i_squared": one.i_squared,
                "tau": one.tau,
                "prediction_low": low,
                "prediction_high": high,
            }

        return pandas.DataFrame([row(one) for one in self.contrasts])

    def __str__(self) -> str:
        return "\n".join([*map(str, self.contrasts), *(f"! {note}" for note in self.notes)])


def pool(
    found: Sequence[Study | Result | str | os.PathLike],
    *,
    method: str = "reml",
    level: float = 0.05,
    smallest: float = 0.2,
) -> Pooled:
    """Pool studies, results or files of them.

    Studies of one model (by its weights), dtype and protocol are parts of one experiment, whatever machine they ran on:
    their rows are merged, and what both have counts once. What is left is pooled with random effects. Models that were
    given the same concepts share that sample of concepts, which the pooled error does not hold: it speaks of other
    models with these concepts.

    Args:
        found: studies or results, or paths of their files.
        method: of the variance between studies: "reml", "paule_mandel" or "dersimonian_laird".
        level: intervals have the confidence 1 - level.
        smallest: the smallest shift that counts, in nats.

    Raises:
        ValueError: fewer than two studies are left after merging, or two of one experiment cannot be merged; it names
            the difference.
    """
    parts = [_loaded(one) for one in found]
    groups: dict[tuple[str, ...], list[dict[str, Result]]] = defaultdict(list)
    for part in parts:
        groups[_identity(part)].append(part)
    notes: list[str] = []
    ladders: dict[str, Claims] = {}
    for members in groups.values():
        merged = _merged(members)
        label = _label(merged, ladders)
        if len(members) > 1:
            notes.append(f"{len(members)} of {label} are parts of one experiment: their readings were merged.")
        ladders[label] = claims(_as_found(merged), level=level, smallest=smallest)
    if len(ladders) < 2:
        raise ValueError(
            f"pool: at least 2 studies of different models or protocols are required, got {len(parts)} that are parts "
            f"of {len(ladders)}: merge them (Result.merged)"
        )
    return Pooled(list(_contrasts(ladders, method, 1 - level)), ladders, notes)


@dataclass(frozen=True)
class _Merged:
    """What claims asks of a study."""

    results: Mapping[str, Result]


def _loaded(one: Any) -> dict[str, Result]:
    """The results of a study by arm, or the one result as its only arm."""
    if isinstance(one, str | os.PathLike):
        from .files import load_found

        one = load_found(Path(one))
    return {"injected": one} if isinstance(one, Result) else dict(one.results)


def _as_found(results: Mapping[str, Result]) -> Any:
    return results["injected"] if set(results) == {"injected"} else _Merged(results)


def _identity(results: Mapping[str, Result]) -> tuple[str, ...]:
    first = results.get("injected") or next(iter(results.values()))
    return (first.model["hash"], first.model["dtype"], first.protocol["name"], first.protocol["hash"])


def _merged(members: Sequence[Mapping[str, Result]]) -> dict[str, Result]:
    out: dict[str, Result] = dict(members[0])
    for other in members[1:]:
        for name, result in other.items():
            out[name] = out[name].merged(result) if name in out else result
    return out


def _label(results: Mapping[str, Result], taken: Mapping[str, Any]) -> str:
    first = results.get("injected") or next(iter(results.values()))
    label = f"{first.model['name']}, {first.protocol['name']}"
    n = 2
    while label in taken:
        label, n = f"{first.model['name']}, {first.protocol['name']} ({n})", n + 1
    return label


def _contrasts(ladders: Mapping[str, Claims], method: str, confidence: float) -> Iterable[PooledContrast]:
    from ..statistics import meta_analysis  # here, because it loads torch

    found: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for label, ladder in ladders.items():
        for rung in ladder.rungs:
            # A count of concepts is no mean with an error of its own.
            for one in rung.contrasts if rung.name != "concepts" else ():
                error = one["standard_error"]
                if error is not None and math.isfinite(error) and error > 0:
                    shown = {key: one[key] for key in ("effect", "standard_error", "n")}
                    found[rung.name, one["name"], rung.unit].append({"label": label, **shown})
    for (name, control, unit), studies in found.items():
        if len(studies) < 2:
            continue
        pooled: MetaAnalysis = meta_analysis(
            [one["effect"] for one in studies],
            [one["standard_error"] for one in studies],
            method=method,
            confidence=confidence,
        )
        low, high = pooled.prediction.low, pooled.prediction.high
        yield PooledContrast(
            rung=name,
            control=control,
            unit=unit,
            studies=[{**one, "weight": weight} for one, weight in zip(studies, pooled.weights, strict=True)],
            effect=pooled.effect.value,
            interval=(pooled.effect.interval.low, pooled.effect.interval.high),
            p=pooled.p,
            i_squared=pooled.i_squared,
            i_squared_interval=(pooled.i_squared_interval.low, pooled.i_squared_interval.high),
            tau=math.sqrt(pooled.tau_squared),
            prediction=None if math.isnan(low) else (low, high),
        )
