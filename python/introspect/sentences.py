"""What a result says, in sentences and tables that claim no more than the random rotations allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .detections import failed, shift_of
from .results import Compared, Detection, Identification, Result, setting_of
from .sweeps import headlines, is_sweep, sweep_bests

TEXT_NAMES = {"base": "without", "injected": "with the concept", "random": "a random rotation"}
LISTED = 8  # settings of a sweep that are shown for each concept
RESAMPLES = 4999  # of the bootstrap


def texts(result: Result) -> list[dict[str, Any]]:
    """The sampled continuations: without anything, with each concept, and with the first random rotation of it."""
    listed = []
    for row in result.rows:
        if row["kind"] != "introspection" or row["injected"].get("text") is None:
            continue
        nulls = result.select(setting_of(row), kind="random", question_kind="introspection")
        random = next((null["injected"]["text"] for null in nulls if null["question"] == row["question"]), None)
        texts = {"base": row["base"]["text"], "injected": row["injected"]["text"], "random": random}
        listed.append({"concept": row["concept"], "label": result.label(setting_of(row)), **texts})
    return listed


def summary(results: list[Result]) -> list[str]:
    """How often concepts leave the range of their random rotations, beside how often chance alone does that."""
    looked_at = [r for r in results if not is_sweep(r)]
    detected = [d.headline for r in looked_at if r.protocol["read"] == "yes_no" for d in r.detections()]
    identified = [one.gain for r in looked_at for one in r.identifications()]
    sentences = []
    if places := _places(detected):
        sentences.append(f"Detection: the shift towards yes is {places}.")
    if places := _places(identified):
        sentences.append(f"Identification: the gain of the concept's own token is {places}.")
    best = [found for r in results if is_sweep(r) for found in sweep_bests(r).values()]
    if best:
        first = sum(one.place.rank == 1 for one in best)
        chance = sum(1 / (len(one.place.nulls) + 1) for one in best)
        sentences.append(
            f"Sweeps: at its best setting a concept stands out further than every random rotation at its own best in "
            f"{first} of {len(best)} sweeps (chance alone: {chance:.1f})."
        )
    return sentences


def sweep_verdict(result: Result, concept: str) -> str:
    """One sentence about the most striking of many settings."""
    n_settings = len(headlines(result).get(concept, []))
    best = sweep_bests(result).get(concept)
    if best is None:
        return f"“{concept}” was run in {n_settings} settings without comparable random directions: nothing is claimed."
    n = len(best.place.nulls)
    what = "shift" if result.protocol["read"] == "yes_no" else "gain"
    setting = result.label(best.setting).partition(", ")[2]
    where = f"“{concept}” stands out most at {setting} ({what} {best.value:+.2f} nats)"
    place = (
        f"{ordinal(best.place.rank)} of {n + 1} when every rotation is taken at its own best of the {best.n_settings}"
    )
    if best.place.rank == 1:
        return f"{where}: {place} (chance alone does this once in {n + 1} times)."
    return f"{where}: {place}, so the best of this sweep is not told apart from the best of a random direction's."


def _places(listed: list[Compared]) -> str:
    listed = [c for c in listed if c.nulls and math.isfinite(c.value) and all(map(math.isfinite, c.nulls))]
    if not listed:
        return ""
    above = sum(c.value > max(c.nulls) for c in listed)
    below = sum(c.value < min(c.nulls) for c in listed)
    chance = sum(1 / (len(c.nulls) + 1) for c in listed)
    places = f"above all random rotations in {above}, below all in {below} and inside their range in "
    inside = f"{len(listed) - above - below} of {len(listed)} settings"
    return places + f"{inside} (chance alone: {chance:.1f} above, {chance:.1f} below)"


def detection_verdict(detection: Detection) -> str:
    """One sentence that says no more than the nulls allow."""
    compared = detection.headline
    less = "the controls' mean subtracted" if detection.corrected else "no controls asked"
    moved = f"“{detection.setting.concept}” shifts the answer by {compared.value:+.2f} nats ({less})"
    return f"{moved}, {_against_nulls(compared)}"


def identification_verdict(one: Identification) -> str:
    """One sentence about the token of the concept in the content report."""
    moved = (
        f"goes from rank {one.rank_base:,} to {one.rank:,}" if one.rank != one.rank_base else f"stays at {one.rank:,}"
    )
    gain = f"its log-probability changes by {one.gain.value:+.2f} nats"
    return f"“{one.token}” {moved} and {gain}, {_against_nulls(one.gain)}"


def _against_nulls(compared: Compared) -> str:
    n = len(compared.nulls)
    if not math.isfinite(compared.value):
        return "which is no finite number: the model breaks at this strength."
    if n == 0:
        return "with no random directions beside it, which says nothing yet."
    if not all(map(math.isfinite, compared.nulls)):
        return "and random directions of this strength break the model, so there is no band to compare with."
    place = f"{ordinal(compared.rank)} of {n + 1}"
    if compared.inside:
        return f"which is inside the random band ({place}): not told apart from a random direction."
    side = "above" if compared.value > compared.null_mean else "below"
    everyone = "the one random direction" if n == 1 else f"all {n} random directions"
    return f"which is {side} {everyone} ({place}; chance alone does this once in {n + 1} times)."


def ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


# One definition of the tables' columns serves the terminal and the page.
def detection_table(result: Result) -> tuple[list[str], list[list[str]]]:
    header = ["injected", "log-odds", "p(yes)", "shift", "controls", "shift − controls", "random", "z", "place"]
    rows = []
    for d in _listed(result, result.detections()):
        shown = d.headline
        low, high = control_interval(result, d)
        rows.append(
            [
                result.label(d.setting),
                f"{d.base:+.2f} → {d.injected:+.2f}",
                f"{percent(d.p_yes_base)} → {percent(d.p_yes)}",
                f"{d.shift.value:+.2f}",
                f"{d.control_mean.value:+.2f}{_between(low, high)}" if d.control_mean else "–",
                f"{d.corrected.value:+.2f}{_between(d.shift.value - high, d.shift.value - low)}"
                if d.corrected
                else "–",
                *_null_cells(shown),
            ]
        )
    return header, rows


def identification_table(result: Result) -> tuple[list[str], list[list[str]]]:
    header = [
        "injected",
        "token",
        "rank",
        "gain",
        "spaced rank",
        "spaced gain",
        "other concepts",
        "random",
        "z",
        "place",
    ]
    rows = [
        [
            result.label(one.setting),
            repr(one.token),
            f"{one.rank_base:,} → {one.rank:,}",
            f"{one.gain.value:+.2f}",
            f"{one.spaced_rank_base:,} → {one.spaced_rank:,}",
            f"{one.spaced_gain.value:+.2f}",
            "–" if math.isnan(one.others_gain) else f"{one.others_gain:+.2f}",
            *_null_cells(one.gain),
        ]
        for one in _listed(result, result.identifications())
    ]
    return header, rows


def _listed(result: Result, found: Sequence[Any]) -> Sequence[Any]:
    """All settings, or the most striking of each concept in a sweep."""
    if not is_sweep(result):
        return found

    def striking(one: Detection | Identification) -> float:
        compared = one.headline if isinstance(one, Detection) else one.gain
        return compared.z if math.isfinite(compared.z) else -math.inf

    by_concept = {c: [one for one in found if one.setting.concept == c] for c in result.concepts}
    return [one for c in by_concept for one in sorted(by_concept[c], key=striking, reverse=True)[:LISTED]]


def control_interval(result: Result, detection: Detection) -> tuple[float, float]:
    """95% interval of the controls' mean shift over control questions; NaN for fewer than three of them.

    Source: Efron 1987, the BCa bootstrap (scipy.stats.bootstrap), with a fixed seed.
    """
    shifts = [shift_of(row) for row in result.select(detection.setting, kind="control") if not failed(row)]
    if len(shifts) < 3 or max(shifts) == min(shifts):
        return math.nan, math.nan
    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap((shifts,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0)).confidence_interval
    return float(interval.low), float(interval.high)


def _between(low: float, high: float) -> str:
    return f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) and math.isfinite(high) else ""


def _null_cells(compared: Compared) -> list[str]:
    if not compared.nulls:
        return ["–", "–", "–"]
    spread = "" if math.isnan(compared.null_std) else f" ± {compared.null_std:.2f}"
    z = "–" if math.isnan(compared.z) else f"{compared.z:+.1f}"
    place = f"{ordinal(compared.rank)} of {len(compared.nulls) + 1}" + (", inside" if compared.inside else "")
    return [f"{compared.null_mean:+.2f}{spread}", z, place]


def percent(p: float) -> str:
    if not math.isfinite(p):
        return "–"
    return f"{100 * p:.3g}%" if p >= 1e-5 else f"{100 * p:.1e}%"


def sections(results: list[Result]) -> list[dict[str, Any]]:
    """What a reader sees of each protocol: its tables, sentences and texts."""
    listed = []
    for result in results:
        tables, verdicts, note = [], [], ""
        found = result.identifications()
        if result.protocol["read"] == "yes_no":
            tables.append(detection_table(result))
        if found:
            tables.append(identification_table(result))
        if is_sweep(result):
            verdicts = [sweep_verdict(result, concept) for concept in headlines(result)]
            n = len(result.groups) // len(result.concepts)
            note = f"The {LISTED} of {n} settings of each concept that are furthest above their random rotations."
        else:
            if result.protocol["read"] == "yes_no":
                verdicts += [detection_verdict(d) for d in result.detections()]
            verdicts += [identification_verdict(one) for one in found]
        shown = {"tables": tables, "verdicts": verdicts, "note": note if tables else "", "texts": texts(result)}
        listed.append({"name": result.protocol["name"], **shown})
    return listed
