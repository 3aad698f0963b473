"""What a study found as plain arrays, one table of readings for each arm: what the ladder's arithmetic takes."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Cell = tuple[str, ...]
K = TypeVar("K", bound=Hashable)
SAME_QUESTION = ("setting", "paraphrase", "question")
"""Arms that ask the same questions are compared reading by reading."""
SAME_SETTING = ("setting",)
"""Arms that ask other questions are compared setting by setting."""

FIRM = 7.0
"""Log-odds from which on answers are alike: fewer than one in a thousand are others."""


@dataclass(frozen=True)
class Readings:
    """The readings of one arm: lists of one length.

    ``value`` is a shift in nats, or 0 and 1 less the level of chance. Columns that say nothing are left empty.
    """

    concept: Sequence[str]
    value: Sequence[float]
    setting: Sequence[str] = ()
    """strength and layers"""
    paraphrase: Sequence[str] = ()
    question: Sequence[str] = ()
    base: Sequence[float] = ()
    """log-odds of the same reading with nothing injected"""

    def __post_init__(self) -> None:
        n = len(self.concept)
        for name in ("value", "setting", "paraphrase", "question", "base"):
            column = getattr(self, name)
            if len(column) not in ((n,) if name == "value" else (0, n)):
                raise ValueError(f"Readings: {name} must have {n} entries, one for each concept, got {len(column)}")
        for name in ("value", "base"):
            if not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"Readings: {name} must be finite, got NaN or infinity: leave such readings out")

    def __len__(self) -> int:
        return len(self.concept)

    @property
    def concepts(self) -> list[str]:
        return list(dict.fromkeys(self.concept))

    def distinct(self, column: str) -> list[str]:
        """The entries of a column, each once, in the order of the readings."""
        return list(dict.fromkeys(getattr(self, column)))

    def where(self, column: str, entry: str) -> Readings:
        """The readings with this entry."""
        kept = [i for i, found in enumerate(getattr(self, column)) if found == entry]
        columns = ("concept", "value", "setting", "paraphrase", "question", "base")
        return Readings(**{name: [getattr(self, name)[i] for i in kept] for name in columns if getattr(self, name)})

    def cells(self, key: Sequence[str]) -> dict[tuple[str, Cell], float]:
        """The mean value of each concept and cell of ``key``."""
        columns = [getattr(self, name) for name in key if getattr(self, name)]
        cells: Iterable[Cell] = zip(*columns, strict=True) if columns else [()] * len(self)
        return _means(zip(zip(self.concept, cells, strict=True), self.value, strict=True))

    def by_concept(self) -> dict[str, float]:
        """The mean of each concept over its cells, so that a setting with more readings does not count for more."""
        return _by_concept(self.cells(SAME_QUESTION))


@dataclass(frozen=True)
class Evidence:
    """All that a study found, by arm.

    Shifts of the log-odds (nats) at the question about the model's own state: ``injected`` and, in its place,
    ``rotations``, ``equal_dose``, ``shuffled_pairs``, ``noise``, ``dropout``, ``scaled``, ``swap``, ``input_edit``,
    ``other_span``; ``sham`` where it has readings of each concept.
    Shifts by the injection at other questions: ``factual_yes``, ``factual_no``, ``contested``, ``matched`` (about the
    same message), ``third_person``.
    Gains of the concept's own answer over other concepts' (nats): ``content`` and, in its place, ``content_rotations``,
    ``content_other_vectors``, ``no_question``, ``observer``.
    Right answers (0 or 1, less the level of chance): ``localised``, ``localised_matched`` (another question about the
    same passages).
    ``own``: what a claim of the study's own is read from, less the same without the injection.
    Of the instrument: ``moved`` (how far the injection moves the answers that name passages, in nats), ``dose`` (KL in
    nats), ``format`` (1 where the answer is still one), ``known_positive`` (shifts in nats where one must be: whether a
    word is written above that is; asked where the injection moves nothing).
    """

    arms: Mapping[str, Readings]
    missing: Mapping[str, str] = field(default_factory=dict)
    """why an arm that was run cannot be used"""
    failed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """of a concept: (readings that are not finite, of how many)"""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, arm in self.arms.items():
            if name not in ARMS:
                raise ValueError(f"Evidence: arms are {', '.join(ARMS)}, got {name!r}")
            if not len(arm):
                raise ValueError(f"Evidence: arm {name!r} must hold readings, got none: leave it out")

    def has(self, name: str) -> bool:
        return name in self.arms


SHIFTS = (
    *("injected", "sham", "rotations", "equal_dose", "shuffled_pairs", "noise", "dropout", "scaled"),
    *("swap", "input_edit", "other_span", "factual_yes", "factual_no", "contested", "matched", "third_person"),
    "known_positive",
)
GAINS = ("content", "content_rotations", "content_other_vectors", "no_question", "observer")
ARMS = (*SHIFTS, *GAINS, "localised", "localised_matched", "own", "moved", "dose", "format")


def difference(own: Readings, other: Readings, key: Sequence[str], who: str = "the arms") -> dict[str, float]:
    """Of every concept that both arms have, the mean of ``own`` less ``other`` over the cells that both have.

    Args:
        key: the columns that make a cell; those that an arm has not are left out for both.

    Raises:
        ValueError: the arms share no cell.
    """
    key = [name for name in key if getattr(own, name) and getattr(other, name)]
    ours, theirs = own.cells(key), other.cells(key)
    shared = {place: ours[place] - theirs[place] for place in ours if place in theirs}
    if not shared:
        named = ", ".join(("concept", *key))
        raise ValueError(f"ladder: {who} must share a {named} with the arm they are compared with, got none")
    return _by_concept(shared)


def net_of_pull(own: Readings, others: Sequence[Readings]) -> dict[str, float]:
    """The shift that is left when the pull of every answer towards one level is taken away.

    In every concept and setting a line is put through the shifts of the control questions over their log-odds without
    injection; what it says at the own question's log-odds is subtracted. Where the controls do not reach so far, it is
    the most that one rising curve of all answers, nowhere steeper than 1, allows: below the last control, that the
    answer ends as high as that one; above, that it moves as far. (A yes to everything moves answers that were a firm
    no furthest.) The same is done with all answers firmer than FIRM taken for as firm as that, and the smaller of the
    two counts. A setting is left out where the controls are fewer than four, or span less than a nat.
    """
    found: list[tuple[tuple[str, Cell], float]] = []
    lines: dict[tuple[str, Cell], list[tuple[float, float]]] = defaultdict(list)
    for arm in others:
        for place, base, value in _placed(arm):
            lines[place].append((base, value))
    for place, base, value in _placed(own):
        points = lines.get(place, [])
        if len(points) < 4 or not _spread(points):
            continue
        net = _beyond(points, base, value)
        firm = [_firm(*point) for point in points]
        found.append((place, min(net, _beyond(firm, *_firm(base, value))) if _spread(firm) else net))
    return _by_concept(_means(found))


def _spread(points: Sequence[tuple[float, float]]) -> bool:
    xs = [x for x, _ in points]
    return max(xs) - min(xs) >= 1


def _beyond(points: Sequence[tuple[float, float]], base: float, value: float) -> float:
    """What is left of a shift that began at ``base``, see net_of_pull. points: (log-odds, shift) of the controls."""
    xs = [x for x, _ in points]
    last = min(max(base, min(xs)), max(xs))
    return value - _line_at(points, last) - max(0.0, last - base)


def _firm(base: float, value: float) -> tuple[float, float]:
    """The same where no answer is firmer than FIRM, before and after."""
    before, after = (min(max(x, -FIRM), FIRM) for x in (base, base + value))
    return before, after - before


def held_out(cells: Mapping[tuple[str, Cell], float]) -> tuple[str, dict[str, float]]:
    """A setting that is the best on one half of the concepts, and what the other half does there.

    The halves are every other concept in the order of their names' hashes. (A setting for each concept that is the best
    on all others will not do: these settings are nearly always the same, and the best on all.)

    Args:
        cells: (concept, cell whose first entry is the setting) -> value.

    Returns:
        The setting, and the value there of every concept of the other half that has one.
    """
    names = sorted({concept for concept, _ in cells}, key=lambda name: hashlib.sha256(name.encode("utf-8")).digest())
    choosing, tested = set(names[1::2]), set(names[0::2])
    means = _means(((concept, cell[0]), value) for (concept, cell), value in cells.items())
    by_setting = _means((setting, value) for (concept, setting), value in means.items() if concept in choosing)
    best = max(by_setting, key=by_setting.__getitem__, default="")
    return best, {
        concept: value for (concept, setting), value in means.items() if setting == best and concept in tested
    }


def _placed(arm: Readings) -> list[tuple[tuple[str, Cell], float, float]]:
    settings = arm.setting or [""] * len(arm)
    bases = arm.base or []
    rows = zip(arm.concept, settings, bases, arm.value, strict=False)
    return [((concept, (setting,)), base, value) for concept, setting, base, value in rows]


def _line_at(points: Sequence[tuple[float, float]], x: float) -> float:
    """What the least-squares line through the points says at x."""
    n = len(points)
    mean_x, mean_y = sum(p[0] for p in points) / n, sum(p[1] for p in points) / n
    spread = sum((p[0] - mean_x) ** 2 for p in points)
    slope = sum((p[0] - mean_x) * (p[1] - mean_y) for p in points) / spread
    return mean_y + slope * (x - mean_x)


def _by_concept(cells: Mapping[tuple[str, Cell], float]) -> dict[str, float]:
    return _means((concept, value) for (concept, _), value in cells.items())


def _means(values: Iterable[tuple[K, float]]) -> dict[K, float]:
    """The mean value of every key, in the order in which they come."""
    sums: dict[K, float] = {}
    counts: dict[K, int] = {}
    for key, value in values:
        if key in sums:
            sums[key] += value
            counts[key] += 1
        else:
            sums[key], counts[key] = value, 1
    return {key: total / counts[key] for key, total in sums.items()}
