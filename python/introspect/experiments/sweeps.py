"""Results of sweeps: what was varied, and what the most striking of many settings is worth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .detections import blocks
from .results import Compared, Detection, Result, Setting

MANY = 8  # settings of one concept: more are drawn as curves and maps, and only the most striking are listed


def is_random(row: dict) -> bool:
    """Whether a row is of a random direction and not of a concept or a control question."""
    return row["null_index"] >= 0


def random_direction(row: dict) -> tuple:
    """Which random direction of its concept a row is of; runs of another seed have others."""
    return (row.get("seed", -1), row["null_index"])


def is_sweep(result: Result) -> bool:
    """Whether a concept has more settings than one would look at one by one."""
    return len(result.groups) > MANY * len(result.concepts)


@dataclass(frozen=True)
class Furthest:
    """The setting of a sweep in which a concept stands out most from its random rotations.

    ``place`` compares how far it stands out there with how far each rotation does where that one stands out most, so it
    may be read as if a single setting had been run.
    """

    setting: Setting
    value: float
    n_settings: int
    place: Compared


def furthest(listed: Iterable[tuple[Setting, Compared]]) -> Furthest | None:
    """The setting with the largest standardised value; None without nulls.

    In each setting the concept and its rotations are standardised together (mean and standard deviation over all of
    them); the largest over the settings is taken for the concept and for every rotation. That keeps the chance that any
    of them stands out anywhere at 1 in n + 1, however many settings there are and however alike they are.
    Source: Westfall & Young 1993, Resampling-Based Multiple Testing (single-step maxT).
    """
    usable = [
        (setting, compared)
        for setting, compared in listed
        if compared.nulls and not compared.n_failed and all(map(math.isfinite, (compared.value, *compared.nulls)))
    ]
    counts = {len(compared.nulls) for _, compared in usable}
    if len(counts) != 1:
        return None
    from ..statistics import max_null_band  # loads torch

    curve = [compared.value for _, compared in usable]
    band = max_null_band(curve, list(zip(*(compared.nulls for _, compared in usable), strict=True)))
    setting, compared = usable[band.scores.index(band.highest)]
    return Furthest(setting, compared.value, len(usable), Compared(band.highest, tuple(band.null_highest)))


def headlines(result: Result) -> dict[str, list[tuple[Setting, Compared]]]:
    """Of every concept, each setting with what the verdict is about: the corrected shift, or the gain of its token."""
    found: dict[str, list[tuple[Setting, Compared]]] = {concept: [] for concept in result.concepts}
    if result.protocol["read"] == "yes_no":
        for detection in result.detections():
            found[detection.setting.concept].append((detection.setting, detection.headline))
    else:
        for one in result.identifications():
            found[one.setting.concept].append((one.setting, one.gain))
    return {concept: listed for concept, listed in found.items() if listed}


def sweep_bests(result: Result) -> dict[str, Furthest]:
    """Of every concept, the setting in which it stands out most, and each rotation's best."""
    found = {concept: furthest(listed) for concept, listed in headlines(result).items()}
    return {concept: one for concept, one in found.items() if one is not None}


@dataclass(frozen=True)
class Curve:
    """Settings that differ in one thing, in its order."""

    name: str  # what they have in common
    along: str  # "strength" or "layer"
    detections: list[Detection]

    @property
    def xs(self) -> list[float]:
        if self.along == "strength":
            return [d.setting.strength for d in self.detections]
        return [(d.setting.first_layer + d.setting.last_layer) / 2 for d in self.detections]

    @property
    def labels(self) -> list[str]:
        """What stands at each x: a strength, a block, or the first and last block of a range."""
        if self.along == "strength":
            return [f"{d.setting.strength:g}" for d in self.detections]
        ends = [(d.setting.first_layer, d.setting.last_layer) for d in self.detections]
        return [f"{first}" if first == last else f"{first}–{last}" for first, last in ends]

    @property
    def axis(self) -> str:
        """The name of the x axis."""
        if self.along == "strength":
            return "strength"
        wide = any(d.setting.first_layer != d.setting.last_layer for d in self.detections)
        return "steered blocks (first–last)" if wide else "steered block"


def curves(result: Result, along: str, *, least: int = 3) -> list[Curve]:
    """The curves of a sweep along "strength" or "layer", of ``least`` settings or more.

    Over strengths there is one for each concept and range, over layers one for each concept, strength and width of the
    range; where range_grids shows the wider ranges, only that of single blocks.
    """
    groups: dict[tuple, list[Detection]] = {}
    for detection in result.detections():
        concept, strength, first, last = detection.setting
        given = result.dose_target(detection.setting) or strength
        common = (concept, first, last) if along == "strength" else (concept, given, last - first)
        groups.setdefault(common, []).append(detection)
    found = []
    gridded = {(grid.concept, grid.strength) for grid in range_grids(result)} if along == "layer" else set()
    for common, listed in groups.items():
        in_a_map = common[:2] in gridded and common[2] > 0
        if len(listed) < least or in_a_map:
            continue
        if along == "strength":
            name = f"{common[0]}, {blocks(int(common[1]), int(common[2]))}"
            listed.sort(key=lambda d: d.setting.strength)
        else:
            width = "single blocks" if common[2] == 0 else f"{common[2] + 1} blocks at a time"
            name = f"{common[0]}, {_given(result, common[1])}, {width}"
            listed.sort(key=lambda d: d.setting.first_layer)
        found.append(Curve(name, along, listed))
    return found


@dataclass(frozen=True)
class RangeGrid:
    """Settings that differ in their ranges: {(first layer, last layer): Detection}."""

    concept: str
    strength: float | str  # the dose, where one was asked for
    name: str
    cells: dict[tuple[int, int], Detection]


def range_grids(result: Result) -> list[RangeGrid]:
    """Of every concept and strength with ranges of three widths or more, the grid of its ranges."""
    groups: dict[tuple[str, float | str], dict[tuple[int, int], Detection]] = {}
    for detection in result.detections():
        concept, strength, first, last = detection.setting
        groups.setdefault((concept, result.dose_target(detection.setting) or strength), {})[first, last] = detection
    return [
        RangeGrid(concept, strength, f"{concept}, {_given(result, strength)}", cells)
        for (concept, strength), cells in groups.items()
        if len({last - first for first, last in cells}) >= 3
    ]


def _given(result: Result, strength: float | str) -> str:
    """A strength, or the dose that was asked for, as it was given."""
    return strength if isinstance(strength, str) else f"{strength:g}{result.unit}"
