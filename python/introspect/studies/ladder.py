"""The ladder of claims as arithmetic on plain arrays.

A rung compares arms concept by concept: every concept gives one number, the mean over its settings, wordings and
questions of the difference of two arms, and concepts are the sample. A rung with several controls holds where every one
of them is beaten (the largest p decides, which needs no correction: Berger 1982).

Holds: the mean is above 0. Its p is the largest of three: Student's t over the concepts, flips of their signs, and the
bootstrap-t that draws concepts. Six concepts are the least with which it can be at most 0.025. Differences that are
skewed towards 0 remain: of a mirrored exponential, 5 in 100 false claims with ten concepts and 3 with twenty, where t
alone makes 10 and 7.
Fails: the mean is shown to be below the smallest effect that counts, by the same tests (Bonferroni over the rung's
controls). The interval shows both: a rung holds where it lies above 0 and fails where it lies below that effect.
Not shown: neither; the bound is what the effect is shown to lie within, plus and minus (two one-sided tests).

The instrument is live where the injection acts and the answers are answers. A known positive decides only where the
injection is not shown to move the answer, to either side. If it shows a yes, the model is silent; if not, the
instrument may be dead, and no rung says anything.

Correction. The rungs of a branch stand in a fixed order, and each is tested at the full level only while those below it
that were run hold, so their number costs nothing (Maurer, Hothorn & Lehmacher 1995). The branches (detection, content,
localisation) are up to three chances: p is multiplied by how many of them were run, and intervals are as wide as that
asks.
A claim that is false holds in at most level / 2 of studies, over the whole ladder; a rung that is true fails in at most
as many, each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .claims import FAILS, HOLDS, NOT_RUN, NOT_SHOWN, Claims, Rung, listed, lower_first, number, upper_first
from .evidence import Evidence
from .rungs import BRANCHES, STEPS, Contrast, Step

LEAST_KL = 0.01
"""Nats of divergence below which an injection is too weak for a missing effect to say anything."""
RESAMPLES = 999
"""Of the bootstrap, whose p is 1 in 1,000 at least."""
LEAST_KEPT = 0.5
"""Share of readings that must be an answer."""
ANY = 1e-9
"""The smallest effect that counts, where any does."""
LIVE = ("injected", "content", "own", "moved", "localised")
"""Arms whose readings show that the injection acts; the first that is there is asked."""


@dataclass(frozen=True)
class Tested:
    """A contrast over the concepts that have it."""

    name: str
    n: int
    effect: float
    standard_error: float
    interval: tuple[float, float] | None
    p_above: float
    """of so high a mean if the true one were 0"""
    p_below: float
    """of so low a mean if the true one were the smallest that counts"""
    bound: float = math.nan
    """the mean is shown to lie within plus and minus this, whichever of the rung's contrasts it is"""
    problem: str = ""
    shown: str = ""
    """the effect in words, where it is no mean"""


def ladder(
    evidence: Evidence,
    *,
    level: float = 0.05,
    smallest: float = 0.2,
    smallest_share: float = 0.05,
    own: Sequence[Step] = (),
) -> Claims:
    """The rungs of a study, each with its verdict, and what still stands.

    Args:
        level: the chance, at most, that a false claim holds is half of it, and intervals have the confidence 1 - level.
        smallest: the smallest shift that counts, in nats. 0.2 moves a probability of one half by five points and any
            other by less.
        smallest_share: the smallest gain in right answers that counts.
        own: claims of the study besides the ladder's (``rungs.own_step``), in their order.

    Raises:
        ValueError: arms that share no readings with what they are compared with, concepts that are copies of one
            another, or options out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"ladder: level must lie between 0 and 1, got {level}")
    if not (smallest > 0 and smallest_share > 0):
        raise ValueError(f"ladder: the smallest effects must be above 0, got {smallest} and {smallest_share}")
    _check_copies(evidence)
    steps = (*STEPS, *own)
    contrasts = {step.name: step.contrasts(evidence) for step in steps}
    branches = [one for one in BRANCHES if any(contrasts[step.name] for step in steps if step.branch == one)]
    # One branch that was not run costs nothing; with none there is nothing to correct.
    alpha = level / 2 / max(1, len(branches))
    live = _live(evidence, alpha)
    rungs = [live]
    reached = dict.fromkeys(BRANCHES, 0.0)  # the largest p so far
    for step in steps:
        usual = smallest if step.unit == "nats" else smallest_share
        least = usual if step.least is None else step.least or ANY
        tested = [_test(step, contrast, alpha, least, len(contrasts[step.name])) for contrast in contrasts[step.name]]
        rung = _decide(step, tested, evidence, alpha, least, reached[step.branch], live.verdict, len(branches))
        if tested:
            stopped = rung.verdict in (FAILS, NOT_SHOWN)
            reached[step.branch] = 1.0 if stopped else max(reached[step.branch], rung.p_own or 0.0)
        rungs.append(rung)
    counts = [len(arm.concepts) for name, arm in evidence.arms.items() if name in LIVE]
    return Claims(
        rungs=rungs,
        level=level,
        smallest=smallest,
        smallest_share=smallest_share,
        branches=len(branches),
        concepts=max(counts, default=0),
        notes=list(evidence.notes),
    )


def least_concepts(alpha: float) -> int:
    """How many concepts there must be for all of them together to show anything: 2^-n is at most alpha."""
    return math.ceil(math.log2(1 / alpha) - 1e-9)


def _check_copies(evidence: Evidence) -> None:
    """One vector under two names would count twice."""
    for name in ("injected", "content", "localised"):
        if name not in evidence.arms or name == "localised":
            continue
        arm = evidence.arms[name]
        found: dict[tuple[float, ...], str] = {}
        values: dict[str, list[float]] = {}
        for concept, value in zip(arm.concept, arm.value, strict=True):
            values.setdefault(concept, []).append(value)
        for concept, own in values.items():
            if not any(own):  # nothing moved: the instrument's matter
                continue
            if (twin := found.get(tuple(own))) is not None:
                raise ValueError(
                    f"ladder: concepts must differ, but {twin!r} and {concept!r} have the same readings in {name!r} to "
                    "the last bit: is one vector there twice?"
                )
            found[tuple(own)] = concept


def _test(step: Step, contrast: Contrast, alpha: float, least: float, of: int = 1) -> Tested:
    """One of ``of`` contrasts of a rung."""
    from ..statistics import clustered_mean, equivalence  # here, because it loads torch

    concepts, values = list(contrast.values), list(contrast.values.values())
    n = len(values)
    if step.name == "concepts":
        return _count(values, alpha)
    mean = sum(values) / n if n else math.nan
    few = _few(n, alpha)
    if n < 2:
        return Tested(contrast.name, n, mean, math.nan, None, 1.0, 1.0, problem=few)
    if max(values) == min(values):
        same = "all concepts have the same value to the last bit"
        return Tested(contrast.name, n, mean, math.nan, None, 1.0, 1.0, problem=few or same)
    above = clustered_mean(values, concepts, confidence=1 - 2 * alpha)
    drawn = equivalence(values, concepts, (0.0, least), errors="bootstrap_t", resamples=RESAMPLES)
    below = clustered_mean(values, concepts, confidence=1 - 2 * alpha / of, null=least)
    return Tested(
        contrast.name,
        n,
        above.value,
        above.standard_error,
        (above.interval.low, above.interval.high),
        max(above.p_greater, above.p_greater_by_flips, drawn.p_low),
        max(below.p_less, below.p_less_by_flips, drawn.p_high),
        max(abs(below.interval.low), abs(below.interval.high)),
        few,
    )


def _few(n: int, alpha: float) -> str:
    """What is wrong with so few concepts; nothing if there are enough."""
    least = least_concepts(alpha)
    named = "concept" if n == 1 else "concepts"
    return f"{n} {named}, and {least} are the least that can show anything" if n < least else ""


def _count(values: list[float], alpha: float) -> Tested:
    """How many concepts are above 0, against one half: a sign test."""
    from ..statistics import binomial_p, proportion

    n, k = len(values), sum(value > 0 for value in values)
    exact = proportion(k, n, confidence=1 - 2 * alpha)
    few = _few(n, alpha)
    interval = (exact.interval.low - 0.5, exact.interval.high - 0.5)
    p_above, p_below = binomial_p(k, n, 0.5), binomial_p(n - k, n, 0.5)
    error = math.sqrt(k * (n - k) / n**3) if n else math.nan
    shown = f"{k} of {n} concepts"
    return Tested(
        "half of the concepts", n, k / n - 0.5, error, interval, p_above, p_below, max(map(abs, interval)), few, shown
    )


def _decide(
    step: Step,
    tested: list[Tested],
    evidence: Evidence,
    alpha: float,
    least: float,
    reached: float,
    live: str,
    branches: int,
) -> Rung:
    absent = [name for name in step.needs if not evidence.has(name)]
    reason = " ".join(evidence.missing[name] for name in absent if name in evidence.missing)
    same: dict[str, Any] = {name: getattr(step, name) for name in ("name", "title", "branch", "unit", "stands")}
    if not tested:
        return Rung(**same, verdict=NOT_RUN, sentence=_joined(step.not_run, reason), what_would_run_it=step.run)
    beaten = max(tested, key=lambda one: (one.p_above, -one.effect))
    felled = min(tested, key=lambda one: one.p_below)
    fails = felled.p_below * len(tested) <= alpha
    worst = felled if fails else beaten
    chain = max(reached, beaten.p_above)
    same |= {
        "effect": worst.effect,
        "interval": worst.interval,
        "p": None if worst.problem else min(1.0, chain * branches),
        "p_own": beaten.p_above,
        "bound": None if math.isnan(worst.bound) else worst.bound,
        "n_concepts": worst.n,
        "contrasts": [
            {
                "name": one.name,
                "effect": one.effect,
                "standard_error": one.standard_error,
                "interval": one.interval,
                "p": one.p_above,
                "n": one.n,
            }
            for one in tested
        ],
    }
    texts = _texts(step, tested, worst, least)
    names = " and ".join(one.name for one in tested if one.p_below * len(tested) <= alpha)
    own_holds = beaten.p_above <= alpha and not fails
    if live == FAILS:
        said = _joined(step.not_shown.format(**texts), "The instrument is not live, so this says nothing.")
        return Rung(**same, verdict=NOT_SHOWN, sentence=said)
    if fails:
        return Rung(**same, verdict=FAILS, felled_by=names, sentence=step.fails.format(**texts))
    if not own_holds:
        if worst.problem:
            said = f"{upper_first(worst.problem)}. What was seen is {texts['effect']}."
        else:
            within = f"It is shown to lie within ±{number(same['bound'], step.unit).lstrip('+')}."
            alone = _by_t_alone(worst, tested, texts, least if len(tested) == 1 else -math.inf)
            said = _joined(step.not_shown.format(**texts), within if step.name != "concepts" else "", alone)
        return Rung(**same, verdict=NOT_SHOWN, sentence=said)
    if chain > alpha:
        said = _joined(step.holds.format(**texts), "But it counts only where the rungs below it hold.")
        return Rung(**same, verdict=NOT_SHOWN, sentence=said)
    if absent:
        said = _joined(step.not_run, f"Of those that were: {lower_first(step.holds.format(**texts))}", reason)
        return Rung(**same, verdict=NOT_RUN, sentence=said, what_would_run_it=step.run)
    return Rung(**same, verdict=HOLDS, sentence=step.holds.format(**texts))


def _texts(step: Step, tested: list[Tested], worst: Tested, least: float) -> Mapping[str, object]:
    several = len(tested) > 1
    return {
        "effect": worst.shown or number(worst.effect, step.unit, worst.interval),
        "bound": number(least, step.unit).lstrip("+"),
        "worst": worst.name,
        "controls": listed([one.name for one in tested]),
        "least": f", least beside {worst.name}" if several and step.name != "wordings" else "",
        "n": len(tested),
    }


def _by_t_alone(worst: Tested, tested: Sequence[Tested], texts: Mapping[str, object], least: float) -> str:
    """What the interval, which is Student's, shows and the other tests do not: above 0, or below ``least``."""
    if worst.interval is None or worst.shown:
        return ""
    if all(one.interval and one.interval[0] > 0 for one in tested):
        return "Student's t alone would show it."
    return f"Student's t alone would show it to be below {texts['bound']}." if worst.interval[1] < least else ""


def _joined(*sentences: str) -> str:
    return " ".join(one for one in sentences if one)


def _live(evidence: Evidence, alpha: float) -> Rung:
    """Whether the injection acted, the answers are still answers, and what must show an effect does."""
    same: dict[str, Any] = {"name": "live", "title": "the instrument is live", "branch": ""}
    own = next((evidence.arms[name] for name in LIVE if evidence.has(name)), None)
    if own is None:
        run = 'introspect.studies.run_study(model, "with_info", vectors=vectors)'
        return Rung(**same, verdict=NOT_RUN, sentence="Nothing was injected.", what_would_run_it=run)
    faults, said, effect, alone = [], [], None, ""
    if lost := [concept for concept, (n, of) in evidence.failed.items() if 2 * n > of]:
        faults.append(f"most readings of {listed(lost)} are no finite numbers")
    if evidence.has("dose"):
        doses = evidence.arms["dose"].by_concept()
        effect = sum(doses.values()) / len(doses)
        if weak := [concept for concept, kl in doses.items() if kl < LEAST_KL]:
            shown = ", ".join(f"{concept} {doses[concept]:.2g}" for concept in weak)
            faults.append(f"the injection is too weak to say anything (KL in nats: {shown}; {LEAST_KL} is asked for)")
        said.append(f"a divergence of {effect:.2g} nats")
    elif not evidence.has("localised") or own is not evidence.arms["localised"]:
        moved = {concept: 0.0 for concept in own.concepts}
        for concept, value in zip(own.concept, own.value, strict=True):
            moved[concept] = max(moved[concept], abs(value))
        if still := [concept for concept, most in moved.items() if most == 0]:
            faults.append(f"the injection changed nothing for {listed(still)}")
        said.append("readings that change")
    if evidence.has("format"):
        kept = evidence.arms["format"].value
        share = sum(kept) / len(kept)
        if share < LEAST_KEPT:
            faults.append(f"in {100 * (1 - share):.0f}% of the readings the model does not answer the question")
        said.append(f"{100 * share:.0f}% of the readings an answer")
    if evidence.has("known_positive"):
        known, shows = _known_positive(evidence, alpha)
        moves = shows or _moves(evidence, alpha)
        if not moves:
            faults.append(f"the injection moves nothing, and the known positive shows no yes ({known})")
        said.append(f"a known positive of {known}")
        alone = "" if shows or not moves else " The known positive shows no yes, but the injection moves the answer."
    if faults:
        return Rung(
            **same, verdict=FAILS, effect=effect, felled_by="the instrument", sentence=f"{upper_first(listed(faults))}."
        )
    if not said:
        run = "introspect.dose(model, vector, protocol)"
        return Rung(
            **same, verdict=NOT_RUN, sentence="Whether the injection acts was not measured.", what_would_run_it=run
        )
    missing = "" if evidence.has("dose") else " How large the injection is was not measured (introspect.dose)."
    return Rung(**same, verdict=HOLDS, effect=effect, sentence=f"The injection acts: {listed(said)}.{alone}{missing}")


def _known_positive(evidence: Evidence, alpha: float) -> tuple[str, bool]:
    """The known positive's shift in words, and whether it shows a yes."""
    known = _test(STEPS[0], Contrast("the known positive", evidence.arms["known_positive"].by_concept()), alpha, 1.0)
    # With concepts too few for a test it must still point the right way.
    shows = known.effect > 0 if known.problem else known.p_above <= alpha
    return number(known.effect, "nats", known.interval), shows


def _moves(evidence: Evidence, alpha: float) -> bool:
    """Whether the injection is shown to move the answer, to either side."""
    for contrast in STEPS[0].contrasts(evidence):
        for sign in (1, -1):
            values = {concept: sign * value for concept, value in contrast.values.items()}
            moved = _test(STEPS[0], Contrast(contrast.name, values), alpha, 1.0)
            if not moved.problem and 2 * moved.p_above <= alpha:  # of two sides
                return True
    return False
