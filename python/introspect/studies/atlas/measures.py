"""What an entry of the atlas takes from its readings: figures with intervals over concepts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ... import _C

AXIS_TAGS = ("kind", "group", "vector", "order", "strength", "place")
"""What every reading is sorted by, besides the axes of its part: kind "introspection", "control" or "random"; vector
"own" or "other" where a protocol is written for a concept."""


TINY = 1e-300
"""In the place of a probability of 0, which has no logarithm."""


@dataclass(frozen=True)
class Reading:
    """A row of a result with what it was made for.

    Attributes:
        about: the concept that the text is written for, or that is injected.
        injected: the concept whose vector is injected.
        tags: of AXIS_TAGS and the part's axes.
        sign: 1 where yes is the right answer, -1 where no is.
        left: whether the injection took the probability away from the answers.
    """

    row: Mapping[str, Any]
    about: str
    injected: str
    tags: Mapping[str, Any]
    sign: int = 1
    left: bool = False


@dataclass(frozen=True)
class Estimate:
    """A mean over clusters with its interval, and in ``each`` every cluster's mean.

    The interval is NaN where there is one cluster only, or all have the same mean, whose spread says nothing then.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    each: Mapping[str, float] = field(default_factory=dict)


def mean_over(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """The mean over clusters, each of which counts alike, with its 95% interval (``clustered_mean``).

    Args:
        values: [n]; those that are not finite are left out.
        clusters: [n].
    """
    kept = [(value, cluster) for value, cluster in zip(values, clusters, strict=True) if math.isfinite(value)]
    if not kept:
        return Estimate(math.nan)
    means = defaultdict(list)
    for value, cluster in kept:
        means[cluster].append(value)
    of_each = {cluster: float(np.mean(one)) for cluster, one in means.items()}
    each = list(of_each.values())
    value = float(np.mean(each))
    if len(each) < 2 or np.ptp(each) <= 1e-12 * max(1.0, abs(value)):
        return Estimate(value, n=len(each), each=of_each)
    found = _C.clustered_mean([value for value, _ in kept], [cluster for _, cluster in kept])
    return Estimate(found.value, found.interval.low, found.interval.high, len(each), of_each)


BOUNDS = {"share": (0.0, 1.0), "rank correlation": (-1.0, 1.0), "bits": (0.0, math.inf)}
"""What a number of a unit can be, where it is no difference."""


def within(found: Estimate, least: float, most: float) -> Estimate:
    """The estimate with the part of its interval that can be."""
    return replace(found, low=max(found.low, least), high=min(found.high, most)) if math.isfinite(found.low) else found


def counted(found: Estimate) -> Estimate:
    """The estimate of a share of right answers, with the exact interval where none or all of the clusters are right."""
    if found.n < 2 or not (set(found.each.values()) <= {0.0} or set(found.each.values()) <= {1.0}):
        return found
    exact = _C.proportion(round(found.value * found.n), found.n).interval
    return replace(found, low=exact.low, high=exact.high)


def mutual_information(shares: Sequence[Sequence[float]]) -> float:
    """Bits that the answer tells of what was injected, all of which is injected equally often.

    Args:
        shares: [injected, answer] probabilities or counts; each row is brought to a sum of one.
    """
    table = np.asarray(shares, dtype=float)
    table = table / table.sum(axis=1, keepdims=True) / len(table)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True)
    positive = table > 0
    return float((table[positive] * np.log2(table[positive] / expected[positive])).sum())


def expected_number(shares: Mapping[str, float]) -> float:
    """The mean of the numbers that are answered, by their shares; NaN where none has any."""
    numbers = {float(label): share for label, share in shares.items() if label.replace(".", "", 1).isdigit()}
    total = sum(numbers.values())
    return sum(number * share for number, share in numbers.items()) / total if total > 0 else math.nan


def _odds(reading: Reading, side: str) -> float:
    value = reading.row[side]["log_odds"]
    return math.nan if value is None else float(value)


def _rate(log_odds: float) -> float:
    return math.nan if math.isnan(log_odds) else 0.5 * (1 + math.tanh(log_odds / 2))


def _shift(reading: Reading) -> float:
    return _odds(reading, "injected") - _odds(reading, "base")


def _towards_zero(reading: Reading) -> float:
    return abs(_odds(reading, "base")) - abs(_odds(reading, "injected"))


def _labelled(reading: Reading, side: str) -> dict[str, float]:
    shares = reading.row[side].get("answer_shares")
    if shares is None:
        raise _C.ConfigError("measure: no answers were read; the part's options must have readouts.answer_shares")
    return shares


def _identified(reading: Reading, gain: bool = False) -> float:
    shares = _labelled(reading, "injected")
    if gain:
        base = _labelled(reading, "base")
        shares = {name: math.log(max(share, TINY) / max(base[name], TINY)) for name, share in shares.items()}
    best = max(shares.values())
    winners = [name for name, share in shares.items() if share == best]
    return float(reading.injected in winners) / len(winners)


def _share(reading: Reading, side: str, label: str) -> float:
    shares = _labelled(reading, side)
    label = reading.injected if label == "own" else label
    total = sum(shares.values())
    return shares[label] / total if total > 0 else math.nan


def _localised(reading: Reading, gain: bool = False) -> float:
    row = reading.row
    values = np.array([token["log_prob"] for token in row["injected"]["answers"]], dtype=float)
    if gain:
        values = values - np.array([token["log_prob"] for token in row["base"]["answers"]], dtype=float)
    return float(values.argmax() == row["place"]) if np.isfinite(values).all() else math.nan


def _projection(reading: Reading) -> float:
    """How much the text moves the stream on its concept's direction, beyond the mean of the other concepts'."""
    moved = {}
    for name, layers in reading.row["injected"].get("projections", {}).items():
        base = reading.row["base"]["projections"][name]
        moved[name] = float(np.mean([value - base[layer] for layer, value in layers.items()]))
    others = [value for name, value in moved.items() if name != reading.injected]
    if not others or reading.injected not in moved:
        raise _C.ConfigError("measure: projection needs the directions of two concepts or more")
    return moved[reading.injected] - float(np.mean(others))


def _repeats(reading: Reading) -> float:
    values = [np.sum(reading.row[side]["continuations"]) for side in ("injected", "base")]
    return float(values[0] - values[1])


@dataclass(frozen=True)
class Kind:
    """A kind of measure: what it takes of one reading, its unit, and what it is by chance."""

    of: Callable[..., float]
    unit: str
    chance: Callable[[Sequence[Reading]], float] = lambda readings: math.nan
    needs_answers: bool = False
    """yes and no must stay likely"""
    is_right: bool = False
    """whether an answer is right: 1 or 0"""


def _one_in(readings: Sequence[Reading]) -> float:
    return 1 / len(_labelled(readings[0], "injected"))


def _one_place(readings: Sequence[Reading]) -> float:
    return 1 / len(readings[0].row["injected"]["answers"])


KINDS: dict[str, Kind] = {
    "yes_shift": Kind(_shift, "nats", needs_answers=True),
    "yes_rate": Kind(lambda reading: _rate(_odds(reading, "injected")), "share", needs_answers=True),
    "false_positives": Kind(lambda reading: _rate(_odds(reading, "base")), "share"),
    "towards_zero": Kind(_towards_zero, "nats", needs_answers=True),
    "right_label": Kind(lambda reading: reading.sign * _odds(reading, "injected"), "nats"),
    "label_share": Kind(
        lambda reading: float(reading.sign * _odds(reading, "injected") > 0),
        "share",
        lambda readings: 0.5,
        is_right=True,
    ),
    "identified": Kind(_identified, "share", _one_in, is_right=True),
    "identified_by_gain": Kind(lambda reading: _identified(reading, True), "share", _one_in, is_right=True),
    "answer_share": Kind(lambda reading, label: _share(reading, "injected", label), "share"),
    "answer_gain": Kind(
        lambda reading, label: _share(reading, "injected", label) - _share(reading, "base", label), "share"
    ),
    "localised": Kind(_localised, "share", _one_place, is_right=True),
    "localised_by_gain": Kind(lambda reading: _localised(reading, True), "share", _one_place, is_right=True),
    "projection": Kind(_projection, "residual units"),
    "repeats": Kind(_repeats, "nats"),
}
"""Measures that are the mean of a number a reading."""
WHOLE = {"mutual_information": "bits", "self_report": "rank correlation"}
"""Measures of all readings together, and their units."""


@dataclass(frozen=True)
class Measure:
    """A measure of a part, and of which readings.

    Attributes:
        kind: of KINDS or WHOLE.
        of: {tag: value or values} of the readings; without "kind" and "group" those of the protocol's own question.
        less: tags of the readings whose mean, of each concept, is subtracted.
        each: tags of whose values each has a figure of its own.
        label: of answer_share and answer_gain: an answer, or "own" for the injected concept.
    """

    kind: str
    name: str = ""
    of: Mapping[str, Any] = field(default_factory=dict)
    less: Mapping[str, Any] = field(default_factory=dict)
    each: Sequence[str] = ()
    label: str = ""

    @classmethod
    def parse(cls, data: Any, where: str) -> Measure:
        """A measure of its name or its fields. Raises ConfigError with the place of a mistake."""
        given = {"measure": data} if isinstance(data, str) else data
        if not isinstance(given, dict):
            raise _C.ConfigError(f"{where} must be a name or an object, got {data!r}")
        if unknown := set(given) - {"measure", "name", "of", "less", "each", "label"}:
            raise _C.ConfigError(f"{where}: unknown field {', '.join(sorted(unknown))}")
        kind = given.get("measure")
        if kind not in KINDS and kind not in WHOLE:
            raise _C.ConfigError(f"{where}: measure must be one of {', '.join((*KINDS, *WHOLE))}, got {kind!r}")
        each = given.get("each", [])
        label = given.get("label", "")
        for name, value, wanted in (("of", given.get("of", {}), dict), ("less", given.get("less", {}), dict)):
            if not isinstance(value, wanted):
                raise _C.ConfigError(f"{where}: {name} must be {{tag: value}}, got {value!r}")
        if not isinstance(each, list) or (kind in WHOLE and given.get("less")):
            raise _C.ConfigError(f"{where}: each must be a list of tags, and {', '.join(WHOLE)} have no less")
        if bool(label) != (kind in ("answer_share", "answer_gain")):
            raise _C.ConfigError(f"{where}: label goes with answer_share and answer_gain, got {label!r} for {kind}")
        return cls(str(kind), str(given.get("name", kind)), given.get("of", {}), given.get("less", {}), each, label)

    def figures(self, part: str, readings: Sequence[Reading]) -> list[Figure]:
        """One figure for each of the values of ``each`` that occur, in their order.

        Raises:
            ConfigError: no reading is left, they were not read what the measure needs, or they lack one of its tags.
        """
        chosen = [one for one in readings if fits(one.tags, {**_own(self.of, self.each), **self.of})]
        if not chosen:
            raise _C.ConfigError(f"measure {part}/{self.name}: no reading has {dict(self.of)}")
        split: dict[tuple, list[Reading]] = defaultdict(list)
        for reading in chosen:
            split[tuple(_value(reading.tags, tag) for tag in self.each)].append(reading)
        out = []
        for values, some in split.items():
            if "group" in self.each and values[self.each.index("group")] == "":
                continue
            same = dict(zip(self.each, values, strict=True))
            minus = [one for one in readings if fits(one.tags, {**same, **_own(self.less), **self.less})]
            name = "/".join([part, self.name, *(f"{tag}={value}" for tag, value in same.items())])
            out.append(self._figure(name, some, minus if self.less else []))
        return out

    def _figure(self, name: str, readings: Sequence[Reading], minus: Sequence[Reading]) -> Figure:
        if self.less and not minus:
            raise _C.ConfigError(f"measure {name}: no reading has {dict(self.less)}, which is to be subtracted")
        left = sum(reading.left for reading in readings)
        if self.kind in WHOLE:
            found = within(_WHOLE[self.kind](readings), *BOUNDS[WHOLE[self.kind]])
            return Figure(name, found, WHOLE[self.kind], n_readings=len(readings))
        kind = KINDS[self.kind]
        arguments = {"label": self.label} if self.label else {}
        values = [kind.of(reading, **arguments) for reading in readings]
        n_failed = sum(not math.isfinite(value) for value in values)
        about = [reading.about for reading in readings]
        if minus:
            level: dict[str, list[float]] = defaultdict(list)
            for reading in minus:
                value = kind.of(reading, **arguments)
                if math.isfinite(value):
                    level[reading.about].append(value)
            less = {concept: float(np.mean(some)) for concept, some in level.items()}
            values = [value - less.get(concept, math.nan) for value, concept in zip(values, about, strict=True)]
        found = mean_over(values, about)
        is_level = not minus and self.kind != "answer_gain"
        found = counted(found) if is_level and kind.is_right else found
        return Figure(
            name,
            within(found, *BOUNDS[kind.unit]) if is_level and kind.unit in BOUNDS else found,
            kind.unit,
            math.nan if minus else kind.chance(readings),
            len(readings),
            n_failed,
            left if kind.needs_answers else 0,
        )


@dataclass(frozen=True)
class Figure:
    """A number of ours with its interval.

    Attributes:
        name: part/measure, and the values of axes that it is of.
        chance: what answers that know nothing would give; NaN where that is not known or 0.
        n_failed: readings without finite numbers, which are left out.
        n_left: readings whose injection took the probability away from yes and no, which count all the same.
    """

    name: str
    estimate: Estimate
    unit: str
    chance: float = math.nan
    n_readings: int = 0
    n_failed: int = 0
    n_left: int = 0

    def __str__(self) -> str:
        one = self.estimate
        interval = f" [{one.low:.3g}, {one.high:.3g}]" if math.isfinite(one.low) else ""
        return f"{one.value:.3g}{interval}"


def _own(given: Mapping[str, Any], each: Sequence[str] = ()) -> dict[str, Any]:
    """What readings are meant where nothing else is said: of the protocol's own question."""
    if "kind" in given or "kind" in each:
        return {}
    return {"kind": "control" if "group" in given or "group" in each else "introspection"}


def fits(tags: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether these tags have the values that are wanted.

    Args:
        wanted: {tag: value or values}.

    Raises:
        ConfigError: a tag that is not among them; to leave it out, or let it pass, would be to read something else.
    """
    found = {tag: _value(tags, tag) for tag in wanted}
    return all(found[tag] in (value if isinstance(value, list) else [value]) for tag, value in wanted.items())


def _value(tags: Mapping[str, Any], tag: str) -> Any:
    if tag not in tags:
        raise _C.ConfigError(f"atlas: readings have the tags {', '.join(tags)}, and no {tag!r}")
    return tags[tag]


def _information(readings: Sequence[Reading]) -> Estimate:
    """Mutual information of injected concept and answer, the interval over the orders of the list."""
    values, orders = [], []
    for order in dict.fromkeys(reading.tags["order"] for reading in readings):
        table: dict[str, list[list[float]]] = defaultdict(list)
        for reading in readings:
            if reading.tags["order"] == order:
                table[reading.injected].append(list(_labelled(reading, "injected").values()))
        rows = [np.mean(some, axis=0) for some in table.values()]
        values.append(mutual_information(rows) if np.isfinite(rows).all() else math.nan)
        orders.append(str(order))
    return mean_over(values, orders)


def _self_report(readings: Sequence[Reading]) -> Estimate:
    """Rank correlation of the strength and the number that is said, of each concept; the interval over concepts."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for reading in readings:
        said = expected_number(_labelled(reading, "injected"))
        found[reading.about][reading.row["strength"]].append(said)
    values = []
    for by_strength in found.values():
        said_at = [float(np.mean(said)) for said in by_strength.values()]
        usable = len(said_at) > 1 and np.isfinite(said_at).all()
        values.append(_C.spearman(list(by_strength), said_at) if usable else math.nan)
    return mean_over(values, list(found))


_WHOLE = {"mutual_information": _information, "self_report": _self_report}
