"""The tables of a report: one definition of their columns serves the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..experiments.detections import KEPT_MASS, LEAST_MASS, failed, ungrouped
from ..experiments.results import Compared, Detection, Identification, Result, Setting
from ..experiments.sweeps import headlines, is_sweep
from ..tables import NONE, without_empty_columns
from .sentences import (
    NOT_FINITE,
    detection_verdict,
    identification_verdict,
    ordinal,
    percent,
    signed,
    sweep_verdict,
    texts,
)

LISTED = 8  # settings of a sweep that are shown for each concept
MARK = "⚠"  # of settings whose strength breaks the text
INTERVALS = (
    "95% intervals: of means over questions the BCa bootstrap over these questions (Efron 1987), of shares the exact "
    "one (Clopper & Pearson 1934)."
)
COLUMNS = {
    "dose": "KL of the next token from the run without injection, in nats, mean over the injected tokens",
    "log-odds": "logit of yes minus logit of no, without → with injection, in nats",
    "p(yes)": "probability of the yes token, without → with injection",
    "yes + no": "probability of both together; where it falls, the model says something else",
    "shift": "how far the log-odds move, in nats; above 0 is towards yes",
    "controls": "mean shift of the control questions with its 95% interval",
    "shift − controls": "what is left when the controls' mean is subtracted, with its 95% interval",
    "token": "the concept's own token",
    "token's rank": "its place among all tokens, 1 is the most probable",
    "gain": "change of its log-probability, in nats",
    "with a space": "the same token with a space before it",
    "other concepts": "mean gain of the other concepts' tokens under the same injection",
    "random": "lowest to highest of the same quantity under the random directions",
    "z": "distance from the random directions' mean in their standard deviations",
    "among random": "rank among itself and the random directions, 1st is the highest; inside: between them",
}


@dataclass(frozen=True)
class Table:
    """Cells as text. ``flagged`` holds the rows whose strength breaks the text."""

    header: list[str]
    rows: list[list[str]]
    flagged: list[bool] = field(default_factory=list)

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(column, what it means), of the columns that are there."""
        return [(name, COLUMNS[name]) for name in self.header if name in COLUMNS]


def detection_table(result: Result) -> Table:
    """Shifts of the yes-or-no reading, one row a setting; of a sweep those with the largest effects of either sign."""
    rows, flagged = [], []
    for d in listed(result, result.detections()):
        low, high = control_interval(result, d)
        flagged.append(d.leaves_format)
        rows.append(
            [
                result.label(d.setting),
                _dose(result, d.setting),
                _arrow(signed(d.base), signed(d.injected)),
                _arrow(percent(d.p_yes_base), percent(d.p_yes)),
                _arrow(percent(d.mass_base), percent(d.mass)) + (f" {MARK}" if d.leaves_format else ""),
                signed(d.shift.value),
                signed(d.control_mean.value) + _between(low, high) if d.control_mean else NONE,
                signed(d.corrected.value) + _between(*difference_interval(d)) if d.corrected else NONE,
                *_null_cells(d.headline),
            ]
        )
    names = ["injected", "dose", "log-odds", "p(yes)", "yes + no", "shift", "controls", "shift − controls"]
    return _table([*names, "random", "z", "among random"], rows, flagged)


def identification_table(result: Result) -> Table:
    """The concept's own token in the content report, one row a setting; of a sweep as in detection_table."""
    rows = [
        [
            result.label(one.setting),
            _dose(result, one.setting),
            repr(one.token),
            f"{one.rank_base:,} → {one.rank:,}",
            signed(one.gain.value),
            f"{one.spaced_rank_base:,} → {one.spaced_rank:,}, {signed(one.spaced_gain.value)}",
            NONE if math.isnan(one.others_gain) else signed(one.others_gain),
            *_null_cells(one.gain),
        ]
        for one in listed(result, result.identifications())
    ]
    names = ["injected", "dose", "token", "token's rank", "gain", "with a space", "other concepts"]
    return _table([*names, "random", "z", "among random"], rows, [False] * len(rows))


def _table(header: list[str], rows: list[list[str]], flagged: list[bool]) -> Table:
    return Table(*without_empty_columns(header, rows), flagged)


def listed(result: Result, found: Sequence[Any]) -> Sequence[Any]:
    """All settings, or of a sweep the LISTED of each concept with the largest effects, of either sign."""
    if not is_sweep(result):
        return found

    def size(one: Detection | Identification) -> float:
        value = (one.headline if isinstance(one, Detection) else one.gain).value
        return abs(value) if math.isfinite(value) else -1.0

    by_concept = [[one for one in found if one.setting.concept == concept] for concept in result.concepts]
    return [one for own in by_concept for one in sorted(own, key=size, reverse=True)[:LISTED]]


def control_interval(result: Result, detection: Detection) -> tuple[float, float]:
    """95% interval of the controls' mean shift over control questions (BCa); NaN for fewer than three of them."""
    rows = ungrouped(result.select(detection.setting, kind="control"))
    shifts = [row["injected"]["log_odds"] - row["base"]["log_odds"] for row in rows]
    if len(shifts) < 3 or not all(map(math.isfinite, shifts)) or max(shifts) == min(shifts):
        return math.nan, math.nan
    from ..statistics import Factor, bootstrap_mean  # here, because it loads torch

    interval = bootstrap_mean(shifts, [Factor("question", [row["question"] for row in rows])]).interval
    return interval.low, interval.high


def difference_interval(detection: Detection) -> tuple[float, float]:
    """95% interval of the shift less the controls' mean (BCa over questions); NaN for fewer than three controls."""
    effect = detection.effect
    if effect is None or detection.n_controls < 3 or effect.interval.low == effect.interval.high:
        return math.nan, math.nan
    return effect.interval.low, effect.interval.high


def _dose(result: Result, setting: Setting) -> str:
    kl = result.dose_kl(setting)
    return NONE if kl is None else f"{kl:.3g}"


def _arrow(before: str, after: str) -> str:
    return NOT_FINITE if NOT_FINITE in (before, after) else f"{before} → {after}"


def _between(low: float, high: float) -> str:
    return f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) and math.isfinite(high) else ""


def _null_cells(compared: Compared) -> list[str]:
    if not compared.nulls and not getattr(compared, "n_failed", 0):
        return [NONE, NONE, NONE]
    finite = [null for null in compared.nulls if math.isfinite(null)]
    broken = len(compared.nulls) - len(finite) + getattr(compared, "n_failed", 0)
    spread = f"{min(finite):+.2f} to {max(finite):+.2f}" if finite else ""
    if broken:
        spread = f"{spread}, {broken} {NOT_FINITE}" if finite else NOT_FINITE
    if compared.band is None:
        return [spread, NONE, NONE]
    z = compared.z
    rank = f"{ordinal(compared.rank)} of {len(compared.nulls) + 1}" + (", inside" if compared.inside else "")
    return [spread, NONE if math.isnan(z) else f"{z:+.1f}", rank]


def sections(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What a reader sees of each protocol: its verdict, tables, sentences and texts."""
    listed = []
    for result in results:
        tables, sentences = [], []
        if result.protocol["read"] == "yes_no":
            tables.append(detection_table(result))
        if found := result.identifications():
            tables.append(identification_table(result))
        if is_sweep(result):
            sentences = [sweep_verdict(result, concept) for concept in headlines(result)]
        else:
            if result.protocol["read"] == "yes_no":
                sentences += [detection_verdict(d) for d in result.detections()]
            sentences += [identification_verdict(one) for one in found]
        listed.append(
            {
                "name": result.protocol["name"],
                "verdict": result.verdict(),
                "tables": tables,
                "verdicts": sentences,
                "note": _sweep_note(result) if tables else "",
                "warnings": warnings(result, tables),
                "texts": texts(result),
            }
        )
    return listed


def _sweep_note(result: Result) -> str:
    if not is_sweep(result):
        return ""
    n = max(sum(setting.concept == concept for setting in result.groups) for concept in result.concepts)
    return f"The {min(LISTED, n)} of {n} settings of each concept with the largest effect, of either sign."


def warnings(result: Result, tables: Sequence[Table] = ()) -> list[str]:
    """What a reader must know before the numbers: cells that are missing, not finite, or of broken text."""
    said = []
    if left := result.unfinished:
        said.append(f"Incomplete: {left[0]:,} of {left[1]:,} readings are done. Run the same command again to go on.")
    broken, total = sum(map(failed, result.rows)), len(result.rows)
    if broken:
        said.append(
            f"{broken:,} of {total:,} readings are not finite: the model breaks there. They are in no mean and no rank."
        )
    flagged = [d for d in result.detections() if d.leaves_format] if result.protocol["read"] == "yes_no" else []
    if flagged:
        said.append(
            f"In {len(flagged):,} of {len(result.groups):,} settings ({MARK}) the strength breaks the text: yes and no "
            f"together have less than {100 * KEPT_MASS:.0f}% of the probability that they have without injection, or "
            f"less than {100 * LEAST_MASS:.0f}%. The model is about to say something else; the log-odds say little."
        )
    return said


def concept_settings(result: Result) -> dict[str, list[Setting]]:
    """The settings of each concept, in the order of the rows."""
    return {concept: [s for s in result.groups if s.concept == concept] for concept in result.concepts}
