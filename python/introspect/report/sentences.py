"""What a result says, in sentences that claim no more than the random directions allow."""

from __future__ import annotations

import math
from typing import Any

from ..experiments.results import Compared, Detection, Identification, Result, Setting, setting_of
from ..experiments.sweeps import headlines, is_random, is_sweep, sweep_bests

TEXT_NAMES = {"base": "without", "injected": "with the concept", "random": "a random direction"}
NOT_FINITE = "not finite"


def texts(result: Result) -> list[dict[str, Any]]:
    """The sampled continuations: without anything, with each concept, and with its first random direction."""
    listed = []
    for row in result.rows:
        if row["kind"] != "introspection" or row["injected"].get("text") is None:
            continue
        others = [other for other in result.select(setting_of(row), question_kind="introspection") if is_random(other)]
        random = next((other["injected"].get("text") for other in others if other["question"] == row["question"]), None)
        said = {"base": row["base"].get("text"), "injected": row["injected"]["text"], "random": random}
        broken = repeats_itself(said["injected"]) and not repeats_itself(said["base"] or "")
        listed.append({"concept": row["concept"], "label": result.label(setting_of(row)), "broken": broken, **said})
    return listed


def repeats_itself(text: str) -> bool:
    """Whether most of a text's runs of three words have occurred in it before, as in text that loops."""
    words = text.split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(runs) >= 6 and 2 * len(set(runs)) < len(runs)


def summary(results: list[Result]) -> list[str]:
    """How often concepts leave the range of their random directions, and how often chance alone does that."""
    looked_at = [r for r in results if not is_sweep(r)]
    detected = [d.headline for r in looked_at if r.protocol["read"] == "yes_no" for d in r.detections()]
    identified = [one.gain for r in looked_at for one in r.identifications()]
    sentences = []
    if counted := _counted(detected):
        sentences.append(f"Detection: the shift towards yes is {counted}.")
    if counted := _counted(identified):
        sentences.append(f"Identification: the gain of the concept's own token is {counted}.")
    best = [found for r in results if is_sweep(r) for found in sweep_bests(r).values()]
    if best:
        first = sum(one.place.rank == 1 for one in best)
        chance = sum(1 / (len(one.place.nulls) + 1) for one in best)
        sentences.append(
            f"Sweeps: at its best setting a concept stands out further than every random rotation at its own best in "
            f"{first} of {len(best)} sweeps (chance alone: {chance:.1f})."
        )
    return sentences


def _counted(listed: list[Compared]) -> str:
    usable = [c for c in listed if c.nulls and math.isfinite(c.value) and all(map(math.isfinite, c.nulls))]
    if not usable:
        return ""
    above = sum(c.value > max(c.nulls) for c in usable)
    below = sum(c.value < min(c.nulls) for c in usable)
    chance = sum(1 / (len(c.nulls) + 1) for c in usable)
    inside = len(usable) - above - below
    counts = f"above all random rotations in {above}, below all in {below} and inside their range in {inside} of "
    left_out = len(listed) - len(usable)
    without = f"; {left_out} settings without comparable numbers are left out" if left_out else ""
    return f"{counts}{len(usable)} settings (chance alone: {chance:.1f} above, {chance:.1f} below){without}"


def sweep_verdict(result: Result, concept: str) -> str:
    """One sentence about the most striking of many settings."""
    n_settings = len(headlines(result).get(concept, []))
    best = sweep_bests(result).get(concept)
    if best is None:
        return f"“{concept}” was run in {n_settings} settings without comparable random directions: nothing is claimed."
    n = len(best.place.nulls)
    what = "shift" if result.protocol["read"] == "yes_no" else "gain"
    where = f"“{concept}” stands out most at {_place(result, best.setting)} ({what} {best.value:+.2f} nats)"
    best_of = f"when every rotation is taken at its own best of the {best.n_settings}"
    rank = f"{ordinal(best.place.rank)} of {n + 1} {best_of}"
    finite = [(one, compared) for one, compared in headlines(result)[concept] if math.isfinite(compared.value)]
    setting, compared = max(finite, key=lambda pair: abs(pair[1].value))
    largest = ""
    if setting != best.setting:
        largest = f" Its largest effect of either sign is {compared.value:+.2f} nats, at {_place(result, setting)}."
    if best.place.rank == 1:
        return f"{where}: {rank} (chance alone does this once in {n + 1} times).{largest}"
    alike = "so the best of this sweep is not told apart from the best of a random direction's"
    return f"{where}: {rank}, {alike}.{largest}"


def _place(result: Result, setting: Setting) -> str:
    """A setting without its concept."""
    return result.label(setting).removeprefix(f"{setting.concept}, ")


def detection_verdict(detection: Detection) -> str:
    """One sentence that says no more than the random directions allow."""
    compared = detection.headline
    less = "the controls' mean subtracted" if detection.corrected else "no controls asked"
    if not math.isfinite(compared.value):
        return f"“{detection.setting.concept}” gives a shift {_against_nulls(compared)}"
    side = "towards yes" if compared.value > 0 else "towards no" if compared.value < 0 else "either way"
    moved = f"“{detection.setting.concept}” shifts the answer by {compared.value:+.2f} nats {side} ({less})"
    return f"{moved}, {_against_nulls(compared)}"


def identification_verdict(one: Identification) -> str:
    """One sentence about the token of the concept in the content report."""
    if not math.isfinite(one.gain.value):
        return f"“{one.token}” has a log-probability {_against_nulls(one.gain)}"
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
        return "with no random directions to compare with, which says nothing yet."
    if not all(map(math.isfinite, compared.nulls)):
        return "and random directions of this strength break the model, so there is no band to compare with."
    rank = f"{ordinal(compared.rank)} of {n + 1}"
    if compared.inside:
        return f"which is inside the random band ({rank}): not told apart from a random direction."
    side = "above" if compared.value > max(compared.nulls) else "below"
    everyone = "the one random direction" if n == 1 else f"all {n} random directions"
    return f"which is {side} {everyone} ({rank}; chance alone does this once in {n + 1} times)."


def ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def percent(p: float) -> str:
    if not math.isfinite(p):
        return NOT_FINITE
    return f"{100 * p:.3g}%" if p >= 1e-5 or p == 0 else f"{100 * p:.1e}%"


def signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else NOT_FINITE
