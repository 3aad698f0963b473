"""What came out, in one word and one sentence: of one result, and of all results on a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .results import Result, Setting
from .sweeps import headlines, sweep_bests

WORDS = ("yes", "unclear", "no", "failed")
ENOUGH = 5  # random directions; a spread or a mark of fewer says nothing
ALPHA = 0.05
KEPT_MASS, LEAST_MASS = 0.5, 0.1
"""A reading leaves the format of the answer where p(yes) + p(no) falls below this share of what it is without
injection, or below this while it is more without injection."""


@dataclass(frozen=True)
class Verdict:
    """One of WORDS, a sentence that says what came out, and sentences that say why."""

    word: str
    sentence: str
    reasons: list[str] = field(default_factory=list)


def judged(result: Result) -> bool:
    """Whether something is counted in this result; sampled texts are for reading."""
    return result.protocol["read"] in ("yes_no", "content")


def verdict(result: Result) -> Any:
    """``result.verdict()`` where Result has it, and otherwise the same judged here."""
    if hasattr(result, "verdict"):
        return result.verdict()
    return _judge(result)


def _judge(result: Result) -> Verdict:
    if not judged(result):
        return Verdict("unclear", "Texts were sampled. They are for reading; nothing in them was counted.")
    flagged = [setting for setting in result.groups if Mass.of(result, setting).flagged]
    reasons: list[str] = []
    compared = [one for listed in headlines(result).values() for _, one in listed]
    if not any(math.isfinite(one.value) for one in compared) or len(flagged) == len(result.groups):
        return Verdict("failed", "The injection breaks the model's text, so its answers say nothing.", reasons)
    bests = sweep_bests(result)
    if not bests:
        return Verdict("unclear", "There are no random directions to compare with, so nothing can be claimed.", reasons)
    above = [concept for concept, one in bests.items() if one.place.rank == 1 and one.value > 0]
    chance = max(1 / (len(one.place.nulls) + 1) for one in bests.values())
    p = _at_least(len(above), len(bests), chance)
    yes_no = result.protocol["read"] == "yes_no"
    moves = "moves the answer further towards yes" if yes_no else "raises its own word further"
    named = " and ".join(f"“{concept}”" for concept in above)
    moved = moves.replace("moves", "move").replace("raises its", "raise their") if len(above) > 1 else moves
    reasons.insert(0, f"More than every random direction of their size: {len(above)} of {len(bests)} concepts.")
    reasons.insert(1, f"Chance alone does that for at least as many in {100 * p:.2g}% of such runs.")
    if not above:
        return Verdict("no", f"No concept {moves} than random directions do.", reasons[:1] + reasons[2:])
    if p > ALPHA:
        return Verdict("unclear", f"{named} {moved} than random directions do, but chance may have done it.", reasons)
    return Verdict("yes", f"{named} {moved} than random directions do.", reasons)


def _at_least(k: int, n: int, chance: float) -> float:
    """P(k or more of n), each with this chance."""
    return sum(math.comb(n, i) * chance**i * (1 - chance) ** (n - i) for i in range(k, n + 1))


def overall(results: Sequence[Result]) -> Verdict:
    """The verdict of a page: the protocols' own where they agree, and otherwise that they do not.

    Protocols that ask yes or no decide; reports of what was injected do where nothing else was asked.
    """
    asked = [result for result in results if result.protocol["read"] == "yes_no"]
    counted = [(result, verdict(result)) for result in asked or results if judged(result)]
    if not counted:
        return Verdict("unclear", "Texts were sampled. They are for reading; nothing in them was counted.")
    if len(counted) == 1:
        one = counted[0][1]
        return Verdict(one.word, one.sentence, list(one.reasons))
    said = [f"{result.protocol['name']}: {one.word}. {one.sentence}" for result, one in counted]
    words = {one.word for _, one in counted}
    usable = words - {"failed"}
    if len(words) == 1:
        (word,) = words
        sentence = {
            "yes": f"All {len(counted)} protocols show more than random directions of the same size do.",
            "no": f"None of the {len(counted)} protocols shows more than random directions of the same size do.",
            "failed": "The injections break the model's text in every protocol, so its answers say nothing.",
            "unclear": "No protocol shows clearly more than random directions of the same size do, or clearly no more.",
        }[word]
        return Verdict(word, sentence, said)
    if len(usable) == 1 and usable != {"yes"}:
        return Verdict(next(iter(usable)), "That is what the protocols say in which the model's text held.", said)
    counts = Counter(one.word for _, one in counted)
    named = ", ".join(f"{word} in {counts[word]}" for word in WORDS if counts[word])
    return Verdict("unclear", f"The {len(counted)} protocols do not agree: {named}.", said)


@dataclass(frozen=True)
class Mass:
    """Probability of yes and no together, without and with an injection; without it the model says something else."""

    base: float
    injected: float
    flagged: bool

    @classmethod
    def of(cls, result: Result, setting: Setting) -> Mass:
        """Mean over the introspection questions of a setting; flagged where most of them leave the answer's format."""
        rows = [row for row in result.select(setting, kind="introspection") if is_finite(row)]
        base, injected = (
            math.fsum(map(_mass, (row[side] for row in rows))) / len(rows) if rows else math.nan
            for side in ("base", "injected")
        )
        leaving = sum(_leaves_format(row) for row in rows) if result.protocol["read"] == "yes_no" else 0
        return cls(base, injected, 2 * leaving > len(rows))


def _mass(reading: dict[str, Any]) -> float:
    return reading["p_yes"] + reading["p_no"]


def _leaves_format(row: dict[str, Any]) -> bool:
    """What the row says of itself, and for a row that does not, the same rule."""
    if "leaves_format" in row:
        return row["leaves_format"]
    before, after = _mass(row["base"]), _mass(row["injected"])
    return after < KEPT_MASS * before or after < LEAST_MASS <= before


def is_finite(row: dict[str, Any]) -> bool:
    """Whether what was read is finite, with and without the injection."""
    numbers = (row[side][name] for side in ("base", "injected") for name in ("log_odds", "p_yes", "p_no"))
    return all(map(math.isfinite, numbers))


def not_finite(result: Result) -> tuple[int, int]:
    """How many readings hold a number that is not finite, and how many readings there are."""
    broken = sum(not is_finite(row) for row in result.rows)
    return broken, len(result.rows)
