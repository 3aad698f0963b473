"""What a study shows: rungs from "the instrument is live" upwards, and the strongest sentence that still stands."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .._json import finite

if TYPE_CHECKING:
    import pandas


HOLDS, FAILS, NOT_SHOWN, NOT_RUN = "holds", "fails", "not shown", "not run"
MARKS = {HOLDS: "✓", FAILS: "✗", NOT_SHOWN: "?", NOT_RUN: "–"}


@dataclass(frozen=True)
class Rung:
    """One claim and what became of it.

    ``verdict`` is "holds", "fails" (shown to be smaller than what counts, or the other way), "not shown" or "not run".
    ``effect`` and ``interval`` are of the control that decides, in ``unit`` ("nats", a "share", or another); the effect
    is shown to lie within plus and minus ``bound``. ``p`` is corrected for the whole ladder, ``p_own`` is of this rung
    alone. ``stands`` is what may be said, as part of a sentence, where this rung and all below it hold.
    """

    name: str
    title: str
    branch: str
    verdict: str
    sentence: str
    stands: str = ""
    unit: str = "nats"
    effect: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_own: float | None = None
    bound: float | None = None
    n_concepts: int = 0
    felled_by: str = ""
    what_would_run_it: str = ""
    contrasts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mark(self) -> str:
        """A sign for the verdict that needs no colour."""
        return MARKS[self.verdict]


@dataclass(frozen=True)
class Claims:
    """The ladder of one study."""

    rungs: list[Rung]
    level: float
    smallest: float
    smallest_share: float
    branches: int
    concepts: int
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Rung:
        """The rung of this name; KeyError lists them."""
        for rung in self.rungs:
            if rung.name == name:
                return rung
        raise KeyError(f"Claims: rungs are {', '.join(rung.name for rung in self.rungs)}, got {name!r}")

    @property
    def strongest(self) -> str:
        """The strongest sentence that still stands."""
        live = self["live"]
        if live.verdict == FAILS:
            return f"Nothing can be said: {lower_first(live.sentence)}"
        said = [sentence for branch in self._branches() if (sentence := self._stands(branch))]
        if said:
            return " ".join(said)
        first = self._first()
        if live.verdict == NOT_RUN and not first:
            return "Nothing was injected, so nothing is claimed."
        refuted = [rung for rung in first if rung.verdict == FAILS]
        if refuted:
            return f"Nothing was found: {lower_first(refuted[0].sentence)}"
        return (
            f"Nothing is shown: {lower_first(first[0].sentence)}"
            if first
            else "Nothing was asked, so nothing is claimed."
        )

    @property
    def stopped(self) -> list[str]:
        """Of each kind of claim, what keeps it from being stronger."""
        return [f"{upper_first(rung.title)}: {rung.verdict}. {rung.sentence}" for rung in self.stops()]

    @property
    def confidence(self) -> float:
        """Of the intervals: wider than 1 - level where several kinds of claim were tested."""
        return 1 - self.level / max(1, self.branches)

    def _branches(self) -> list[list[Rung]]:
        names = dict.fromkeys(rung.branch for rung in self.rungs if rung.branch)
        return [[rung for rung in self.rungs if rung.branch == name] for name in names]

    def _first(self) -> list[Rung]:
        """Of each branch the lowest rung that was run."""
        run = ([rung for rung in branch if rung.verdict != NOT_RUN] for branch in self._branches())
        return [rungs[0] for rungs in run if rungs]

    def stops(self) -> list[Rung]:
        """Of each branch that was run the lowest rung that does not hold: one that was tested, or else one not run."""
        found = []
        for branch in self._branches():
            if all(rung.verdict == NOT_RUN for rung in branch):
                continue
            tested = [rung for rung in branch if rung.verdict in (FAILS, NOT_SHOWN)]
            left = tested or [rung for rung in branch if rung.verdict == NOT_RUN]
            found += left[:1]
        return found

    def _stands(self, branch: list[Rung]) -> str:
        """The rungs that hold up to the first that does not, in one sentence; those that were not run are named."""
        held: list[Rung] = []
        gaps: list[Rung] = []
        open_: list[Rung] = []
        for rung in branch:
            if rung.verdict == HOLDS:
                held.append(rung)
                gaps, open_ = gaps + open_, []
            elif rung.verdict == NOT_RUN:
                open_.append(rung)
            else:
                break
        if not held:
            return ""
        first, *above = held
        sentence = upper_first(first.stands)
        if first.effect is not None:
            sentence += f" ({number(first.effect, first.unit, first.interval)}, {first.n_concepts} concepts)"
        sentence += f": {listed([rung.stands + _rest(rung, first) for rung in above])}" if above else ""
        named = ", ".join(f"“{rung.title}”" for rung in gaps)
        return f"{sentence}. Left out below that: {named}, not run." if gaps else f"{sentence}."

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, NaN as null."""
        rungs = [asdict(rung) for rung in self.rungs]
        return finite({**asdict(self), "rungs": rungs, "strongest": self.strongest, "stopped": self.stopped})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Claims:
        """Raises ValueError for anything that to_dict does not write."""
        try:
            rungs = [
                Rung(**{**_with_tuple(one), "contrasts": [_with_tuple(each) for each in one["contrasts"]]})
                for one in data["rungs"]
            ]
            own = {key: data[key] for key in cls.__dataclass_fields__ if key != "rungs"}
            if bad := {rung.verdict for rung in rungs} - MARKS.keys():
                raise ValueError(f"verdicts are {', '.join(MARKS)}, got {sorted(bad)}")
            return cls(rungs=rungs, **own)
        except (KeyError, TypeError) as error:
            raise ValueError(f"Claims: a ladder as to_dict writes it is required, got another ({error})") from None

    def to_pandas(self) -> pandas.DataFrame:
        """One row a rung."""
        import pandas

        def row(rung: Rung) -> dict[str, Any]:
            low, high = rung.interval or (math.nan, math.nan)
            shown = {key: getattr(rung, key) for key in ("name", "branch", "verdict", "effect")}
            more = {
                key: getattr(rung, key)
                for key in ("unit", "p", "p_own", "bound", "n_concepts", "felled_by", "sentence")
            }
            return {**shown, "low": low, "high": high, **more}

        return pandas.DataFrame([row(rung) for rung in self.rungs])

    def __str__(self) -> str:
        lines = [self.strongest, ""]
        width = max(len(rung.title) for rung in self.rungs)
        for rung in self.rungs:
            lines.append(f"{rung.mark} {rung.title.ljust(width)}  {rung.verdict.ljust(9)}  {rung.sentence}")
        lines += [f"! {note}" for note in self.notes]
        return "\n".join(lines)


def _rest(rung: Rung, first: Rung) -> str:
    """What is left of a shift where the rung's controls make more than half of it."""
    if rung.unit != first.unit or rung.effect is None or first.effect is None or 2 * rung.effect >= first.effect:
        return ""
    return f" (by {number(rung.effect, rung.unit)} of it)"


def _with_tuple(data: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists for tuples."""
    return {**data, "interval": data["interval"] and tuple(data["interval"])}


def number(value: float, unit: str, interval: tuple[float, float] | None = None) -> str:
    """ "+2.10 nats [+1.20, +3.00]", points of a hundred for a "share", or the number with the name of its unit."""
    digits, scale, name = (0, 100.0, "points") if unit == "share" else (2, 1.0, unit)
    said = f"{signed(scale * value, digits)} {name}"
    if interval is None:
        return said
    return f"{said} [{signed(scale * interval[0], digits)}, {signed(scale * interval[1], digits)}]"


def signed(value: float, digits: int = 2) -> str:
    """ "+2.10", "-0.30"; "0.00" for what is not told from zero by these digits."""
    text = f"{value:+.{digits}f}"
    return text[1:] if not text.strip("+-0.") else text


def listed(names: list[str]) -> str:
    """ "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]
