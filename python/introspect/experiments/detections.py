"""What an injection did, beside what random rotations of it did: shifts of the log-odds, gains of tokens."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..statistics import Estimate, NullBand
    from .results import Result

LEAST_FOR_Z = 5
"""Random rotations from which on a standard deviation, and a distance in it, is worth showing."""
KEPT_MASS, LEAST_MASS = 0.5, 0.1
"""A setting leaves the format of the answer where p(yes) + p(no) falls below this share of the unsteered run's, or
below this while the unsteered run has more. (Those of cpp/include/introspect/experiments/defaults.h.)"""

NOT_RECORDED = "not recorded"
"""The conversation of control questions in results that were written before it was noted."""


class Setting(NamedTuple):
    """What was injected: a concept's vector, how strongly, and into which blocks (both ends included)."""

    concept: str
    strength: float
    first_layer: int
    last_layer: int


def blocks(first: int, last: int) -> str:
    """ "block 8" or "blocks 8–16"."""
    return f"block {first}" if first == last else f"blocks {first}–{last}"


@dataclass(frozen=True)
class Compared:
    """A quantity of one concept beside the same quantity of each random rotation of its vector."""

    value: float
    nulls: tuple[float, ...]
    n_failed: int = 0
    """rotations that gave no finite number; they are not among the nulls"""

    @classmethod
    def of(cls, value: float, nulls: Iterable[float]) -> Compared:
        """Rotations without a finite number are left out and counted."""
        nulls = tuple(nulls)
        usable = tuple(null for null in nulls if math.isfinite(null))
        return cls(value, usable, len(nulls) - len(usable))

    @cached_property
    def band(self) -> NullBand | None:
        """Where the value lies among the nulls; None without nulls, or with a number that is not finite."""
        from ..statistics import null_band  # here, because it loads torch

        return null_band(self.value, self.nulls) if self.nulls and all_finite(self.value, *self.nulls) else None

    @property
    def null_mean(self) -> float:
        return self.band.mean if self.band else math.nan

    @property
    def null_std(self) -> float:
        """Sample standard deviation; NaN for fewer than two nulls."""
        return self.band.standard_deviation if self.band else math.nan

    @property
    def z(self) -> float:
        """Distance from the nulls' mean in their standard deviations; NaN for fewer than LEAST_FOR_Z nulls."""
        return self.band.z if self.band and len(self.nulls) >= LEAST_FOR_Z else math.nan

    @property
    def rank(self) -> int:
        """1 when the concept's value is the highest; ties, and a value that is not finite, count against it."""
        if self.band:
            return self.band.rank
        return 1 if not self.nulls or math.isfinite(self.value) else len(self.nulls) + 1

    @property
    def inside(self) -> bool:
        """Whether the value lies between the lowest and the highest null."""
        return bool(self.nulls) and min(self.nulls) <= self.value <= max(self.nulls)

    @property
    def above_all(self) -> bool:
        """Whether the value is higher than that of every rotation, of one at least."""
        return bool(self.nulls) and math.isfinite(self.value) and self.value > max(self.nulls)

    def as_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "nulls": list(self.nulls),
            "n_failed": self.n_failed,
            "null_mean": self.null_mean,
            "null_std": self.null_std,
            "z": self.z,
            "rank": self.rank,
            "of": len(self.nulls) + 1,
            "inside_null_range": self.inside,
        }


@dataclass(frozen=True)
class Detection:
    """Shifts of log-odds (nats) of one setting: the introspection question, the controls, and their difference.

    The controls are those that belong to no group.

    Readings that are not finite are counted and averaged nowhere; where none is left, numbers are NaN.
    """

    setting: Setting
    base: float
    injected: float
    p_yes_base: float
    p_yes: float
    shift: Compared
    control_mean: Compared | None  # None where no control question was asked
    control_std: float
    corrected: Compared | None  # shift - control_mean
    n_controls: int
    mass_base: float = math.nan  # p(yes) + p(no) at the introspection question, without steering
    mass: float = math.nan
    leaves_format: bool = False  # at the introspection question
    n_failed: int = 0  # readings of the concept's own vector that are not finite
    n_readings: int = 0  # of the concept's own vector
    n_controls_leaving: int = 0  # controls at which the setting leaves the format
    controls: str = "own"  # the conversation that the controls were asked in
    rows: tuple[Sequence[dict], Sequence[dict]] = field(default=((), ()), repr=False, compare=False)

    @cached_property
    def effect(self) -> Estimate | None:
        """`corrected` with its bootstrap interval over questions; None for fewer than two controls."""
        return _effect(*self.rows)

    @property
    def headline(self) -> Compared:
        """What the verdict is about: the shift less the mean of the controls where there are any."""
        return self.corrected or self.shift


@dataclass(frozen=True)
class Identification:
    """The injected concept's own token among all tokens, base and injected."""

    setting: Setting
    token: str
    rank_base: int
    rank: int
    null_ranks: tuple[int, ...]
    gain: Compared  # log-probability injected - base, nats
    spaced_token: str
    spaced_rank_base: int
    spaced_rank: int
    spaced_gain: Compared
    others_gain: float  # mean gain of the other concepts' tokens under the same vector; NaN if there are none


def detect(result: Result, setting: Setting) -> Detection:
    """The statistics of the yes-or-no reading in one setting."""
    own, asked = (ungrouped(result.select(setting, kind=kind)) for kind in ("introspection", "control"))
    used, controls = _usable(own), _usable(asked)
    nulls = _nulls(result, setting)
    null_shifts = [_mean_shift(rows, "introspection") for rows in nulls]
    value = mean(map(shift_of, used))
    control_mean = corrected = None
    if controls:
        null_controls = [_mean_shift(rows, "control") for rows in nulls]
        control_mean = Compared.of(mean(map(shift_of, controls)), null_controls)
        differences = (a - b for a, b in zip(null_shifts, null_controls, strict=True))
        corrected = Compared.of(value - control_mean.value, differences)
    return Detection(
        setting=setting,
        base=mean(row["base"]["log_odds"] for row in used),
        injected=mean(row["injected"]["log_odds"] for row in used),
        p_yes_base=mean(row["base"]["p_yes"] for row in used),
        p_yes=mean(row["injected"]["p_yes"] for row in used),
        shift=Compared.of(value, null_shifts),
        control_mean=control_mean,
        control_std=statistics.stdev(map(shift_of, controls)) if len(controls) > 1 else math.nan,
        corrected=corrected,
        n_controls=len(controls),
        mass_base=mean(mass(row["base"]) for row in used),
        mass=mean(mass(row["injected"]) for row in used),
        leaves_format=2 * sum(map(result.leaves_format, used)) > len(used),
        n_failed=len(own) + len(asked) - len(used) - len(controls),
        n_readings=len(own) + len(asked),
        n_controls_leaving=sum(map(result.leaves_format, controls)),
        controls=next((row.get("asked_in", NOT_RECORDED) for row in asked), "own"),
        rows=(used, controls),
    )


def identify(result: Result, setting: Setting) -> Identification | None:
    """The statistics of the content report in one setting; None where no tokens were read, or no finite numbers."""
    rows = [row for row in result.select(setting, kind="introspection") if row["injected"].get("tokens")]
    own = next((row for row in rows if not failed(row)), None)
    if own is None:
        return None
    index = 2 * result.concepts.index(setting.concept)
    null_rows = [row for rows in _nulls(result, setting) for row in rows if row["question"] == own["question"]]
    pairs = token_pairs(own)
    (base, injected), (spaced_base, spaced) = pairs[index], pairs[index + 1]

    def gain(position: int) -> Compared:
        return Compared.of(_gain(pairs[position]), (_gain(token_pairs(row)[position]) for row in null_rows))

    return Identification(
        setting=setting,
        token=injected["token"],
        rank_base=base["rank"],
        rank=injected["rank"],
        null_ranks=tuple(row["injected"]["tokens"][index]["rank"] for row in null_rows if not failed(row)),
        gain=gain(index),
        spaced_token=spaced["token"],
        spaced_rank_base=spaced_base["rank"],
        spaced_rank=spaced["rank"],
        spaced_gain=gain(index + 1),
        others_gain=mean(_gain(pair) for i, pair in enumerate(pairs) if i % 2 == 0 and i != index),
    )


def mass(reading: dict) -> float:
    """How much of the next token's probability yes and no have."""
    return reading["p_yes"] + reading["p_no"]


def answer_mass(reading: dict) -> float:
    """The same of whatever the answers are: yes and no, or the answers of a localisation."""
    answers = reading.get("answers")
    if not answers:
        return mass(reading)
    return sum(math.nan if one["log_prob"] is None else math.exp(one["log_prob"]) for one in answers)


def failed(row: dict) -> bool:
    """Whether what was read is no finite number, with or without the injection."""
    return not all_finite(*(row[side][name] for side in ("base", "injected") for name in ("log_odds", "p_yes", "p_no")))


def shift_of(row: dict) -> float:
    return row["injected"]["log_odds"] - row["base"]["log_odds"]


def token_pairs(row: dict) -> list[tuple[dict, dict]]:
    return list(zip(row["base"].get("tokens") or [], row["injected"].get("tokens") or [], strict=True))


def all_finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def ungrouped(rows: Iterable[dict]) -> list[dict]:
    """Without questions of groups, which are compared by themselves."""
    return [row for row in rows if not row.get("group")]


def _usable(rows: Iterable[dict]) -> list[dict]:
    return [row for row in rows if not failed(row)]


def _nulls(result: Result, setting: Setting) -> list[list[dict]]:
    """Rows of each random rotation."""
    found: dict[tuple[int, int], list[dict]] = {}
    seed = result.settings.get("seed", 0)
    for row in result.select(setting, kind="random"):
        found.setdefault((row.get("seed", seed), row["null_index"]), []).append(row)
    return [found[i] for i in sorted(found)]


def _mean_shift(rows: Iterable[dict], question_kind: str) -> float:
    return mean(map(shift_of, _usable(ungrouped(row for row in rows if row["question_kind"] == question_kind))))


def _effect(introspection: Sequence[dict], controls: Sequence[dict]) -> Estimate | None:
    """The mean shift less that of the controls, BCa over questions."""
    from ..statistics import shift_table

    rows = [*introspection, *controls]
    own, asked = ({row["question"] for row in part} for part in (introspection, controls))
    if not own or len(asked) < 2 or own & asked:
        return None
    return shift_table(
        [row["base"]["log_odds"] for row in rows],
        [row["injected"]["log_odds"] for row in rows],
        [row["question"] for row in rows],
        [False] * len(introspection) + [True] * len(controls),
        resamples=2000,
    ).effect


def _gain(pair: tuple[dict, dict]) -> float:
    base, injected = pair
    return injected["log_prob"] - base["log_prob"]
