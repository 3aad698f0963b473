"""The page of a study: what still stands, the ladder, how far each arm moves, then tables; nothing is fetched."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..output_files import write_text
from ..studies.claims import MARKS, NOT_RUN, Claims, Rung, lower_first, number, signed, upper_first
from ..studies.evidence import Evidence, Readings
from ..studies.from_results import evidence_of
from ..studies.methods import methods
from ..studies.rungs import EQUAL_LENGTH, NATURAL, QUESTIONS
from ..tables import NONE
from .page import conversation, settings, template

if TYPE_CHECKING:
    from ..studies.study import Study

KINDS = {
    "": "",
    "detection": "Does the model notice that something was injected?",
    "content": "Does it tell what was injected?",
    "localisation": "Does it tell where?",
}
IN_PLACE = {**EQUAL_LENGTH, "equal_dose": "random directions of the same dose (KL)", **NATURAL}
CONTENT = {
    "content": "the concept's own direction",
    "content_rotations": "random directions of the same length",
    "content_other_vectors": "other concepts' directions",
    "no_question": "no question asked",
    "observer": "an observer who only reads the text",
}
PLACES = {"localised": "which passage was injected", "localised_matched": "matched questions about the passages"}
UNIT, COMMA = re.compile(r"(?<=\d) (?=nats\b)"), re.compile(r"(?<=\d), (?=[+-]?[\d.]+\])")  # of "1 nats [-0.1, 2.1]"
RULES = (
    "A rung holds where its effect is above 0 for every control, and fails where it is shown to be below the smallest "
    "effect that counts. Concepts are the sample; p is corrected for the whole ladder."
)


def html(study: Study, claims: Claims | None = None) -> str:
    """The page as text.

    Args:
        claims: of the study, with the level that was chosen; made with the usual one if not given.
    """
    claims = claims or study.claims()
    evidence = evidence_of(study)
    own = study.results.get("injected") or next(iter(study.results.values()))
    return template("study.html.jinja").render(
        model=study.model,
        protocol=study.protocol,
        heading=_heading(study),
        claims=claims,
        stops=[
            {**_shown(rung), "sentence": rung.sentence}
            for rung in claims.stops()
            if lower_first(rung.sentence) not in claims.strongest
        ],
        counts=_counts(claims),
        rungs=list(_rungs(claims)),
        legend=_legend(claims),
        figures=list(_figures(evidence, claims)),
        tables=[one for one in (_arms(study, evidence, claims), _concepts(evidence)) if one],
        conversation=conversation(own),
        methods=methods(study, claims),
        registration=_registration(study),
        settings=settings(own),
        certificates=_certificates(study.certificates),
        versions=own.settings["versions"],
        rules=RULES,
        unbroken=_unbroken,
    )


def write(study: Study, path: str | os.PathLike, claims: Claims | None = None) -> Path:
    """Write the page: one file that needs no other. Raises IoError for a file that cannot be written."""
    write_text(Path(path), html(study, claims))
    return Path(path)


def _heading(study: Study) -> str:
    return f"{study.model['name']}: what its answers say of an injection ({study.protocol['name']})"


def _unbroken(text: str) -> str:
    """The text with numbers and intervals that no line breaks."""
    return COMMA.sub(",\u00a0", UNIT.sub("\u00a0", text))


def _css(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _shown(rung: Rung) -> dict[str, str]:
    return {"mark": rung.mark, "verdict": rung.verdict, "css": _css(rung.verdict), "title": upper_first(rung.title)}


def _counts(claims: Claims) -> list[dict[str, Any]]:
    counts = Counter(rung.verdict for rung in claims.rungs)
    return [{"mark": MARKS[one], "verdict": one, "css": _css(one), "n": counts[one]} for one in MARKS if counts[one]]


def _rungs(claims: Claims) -> Iterable[dict[str, str]]:
    branch = ""
    for rung in claims.rungs:
        kind = KINDS.get(rung.branch, rung.branch) if rung.branch != branch else ""
        branch = rung.branch
        yield {
            **_shown(rung),
            "kind": kind,
            "sentence": rung.sentence,
            "run": rung.what_would_run_it if rung.verdict == NOT_RUN else "",
            "effect": _effect(rung),
            "p": _p(rung),
        }


def _effect(rung: Rung) -> str:
    if rung.effect is None:
        return ""
    if rung.name == "live":
        return f"KL {rung.effect:.2g} nats"
    if rung.name == "concepts":
        return f"{round((rung.effect + 0.5) * rung.n_concepts)} of {rung.n_concepts} concepts"
    return number(rung.effect, rung.unit, rung.interval)


def _p(rung: Rung) -> str:
    """Corrected; of a rung above one that does not hold, that of the rung alone."""
    if rung.p is None or rung.p_own is None:
        return ""
    return f"alone {p_text(rung.p_own)}" if rung.p == 1 and rung.p_own < 0.1 else p_text(rung.p)


def p_text(p: float) -> str:
    """ "p = 0.012", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def _legend(claims: Claims) -> str:
    return (
        f"Effects with {100 * claims.confidence:.3g}% intervals over {claims.concepts} concepts, of the control that "
        f"decides; above 0 is towards the claim. The smallest effect that counts is {claims.smallest:g} nats, or "
        f"{100 * claims.smallest_share:g} points of a share. 0.2 nats move a probability of one half by five points."
    )


# ---- figures


def _figures(evidence: Evidence, claims: Claims) -> Iterable[dict[str, Any]]:
    groups: list[tuple[str, Mapping[str, str]]] = [
        ("at the question about the model's own state", {"injected": "the concept's own direction"}),
        ("with something else in its place", IN_PLACE),
        ("the concept's own direction, at other questions", QUESTIONS),
    ]
    confidence = claims.confidence
    if evidence.has("injected"):
        text = "Nats of log-odds towards yes against the same reading with nothing injected."
        yield _forest("How far the answer moves", text, groups, evidence, "injected", "nats", confidence)
    if evidence.has("content"):
        text = "Gain of the concept's word less that of the other concepts' words, in nats."
        yield _forest(
            "How far the concept's word gains", text, [("", CONTENT)], evidence, "content", "nats", confidence
        )
    if evidence.has("localised"):
        text = "Share of right answers less the level of chance, in points of a hundred."
        title = "How often the injected passage is named"
        yield _forest(title, text, [("", PLACES)], evidence, "localised", "share", confidence)


def _forest(
    title: str,
    text: str,
    groups: Sequence[tuple[str, Mapping[str, str]]],
    evidence: Evidence,
    own: str,
    unit: str,
    confidence: float,
) -> dict[str, Any]:
    """One row an arm: its mean over concepts with an interval, and a point for every concept."""
    rows: list[dict[str, Any]] = []
    for head, arms in groups:
        there = [(name, label) for name, label in arms.items() if evidence.has(name)]
        if there and head:
            rows.append({"head": head})
        for name, label in there:
            mean, interval, points = _mean(evidence.arms[name], confidence)
            rows.append(
                {"label": label, "own": name == own, "at": mean, "interval": interval, "values": points}
                | {"value": number(mean, unit, interval)}
            )
    ends = [0.0]
    for row in rows:
        if "at" in row:
            ends += [row["at"], *(row["interval"] or ()), *row["values"]]
    ticks = _ticks(min(ends), max(ends))
    low, high = min(ticks[0], min(ends)), max(ticks[-1], max(ends))

    def place(value: float) -> float:
        return round(2 + 96 * (value - low) / (high - low), 2)

    for row in rows:
        if "at" in row:
            row["mean"], row["points"] = place(row["at"]), [place(value) for value in row["values"]]
            row["low"], row["high"] = map(place, row["interval"]) if row["interval"] else (None, None)
    scale = 1 if unit == "nats" else 100
    return {
        "title": title,
        "text": f"{text} Mean over concepts with its {100 * confidence:.3g}% interval; every small point is a concept, "
        "and the dotted line the mean of the first row.",
        "rows": rows,
        "zero": place(0.0),
        "own": next((row["mean"] for row in rows if row.get("own")), None),
        "ticks": [{"x": place(tick), "text": f"{scale * tick:+g}" if tick else "0"} for tick in ticks],
    }


def _mean(arm: Readings, confidence: float) -> tuple[float, tuple[float, float] | None, list[float]]:
    from ..statistics import clustered_mean  # here, because it loads torch

    values = arm.by_concept()
    points = list(values.values())
    mean = sum(points) / len(points)
    if len(points) < 2 or min(points) == max(points):
        return mean, None, points
    found = clustered_mean(points, list(values), confidence=confidence)
    return mean, (found.interval.low, found.interval.high), points


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that reach from one to the other."""
    spread = high - low or 1.0
    raw = spread / 5
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


# ---- tables


def _arms(study: Study, evidence: Evidence, claims: Claims) -> dict[str, Any]:
    costs = study.costs.get("arms", {})
    said = study.settings.get("arms", {})
    rows = []
    for name, result in study.results.items():
        cost = costs.get(name, {})
        arm = evidence.arms.get(name)
        shown = NONE
        if arm is not None:
            mean, interval, _ = _mean(arm, claims.confidence)
            shown = number(mean, "nats", interval)
        work = f"{cost['token_layers']:,}" if cost else NONE
        why = said.get(name, NONE).split(" Needs ")[0]  # what an arm needs was there
        rows.append([name.replace("_", " "), why, f"{len(result.rows):,}", shown, work])
    for name, why in study.not_run.items():
        rows.append([name.replace("_", " "), f"not run: {why}", NONE, NONE, NONE])
    together = study.costs.get("together", {})
    text = ""
    if together:
        apart = sum(cost["token_layers"] for cost in costs.values())
        text = f"Together they took {together['token_layers']:,} tokens × layers; one by one it would be {apart:,}."
        if more := study.costs.get("solving", {}).get("token_layers"):
            text += f" Equal doses took {more:,} more to be found."
    return {
        "title": "The arms",
        "css": "words",
        "text": text,
        "header": ["arm", "controls for", "readings", "mean shift", "tokens × layers"],
        "rows": rows,
    }


def _concepts(evidence: Evidence) -> dict[str, Any] | None:
    if not evidence.has("injected"):
        return None
    shown = ["injected", *(name for name in ("rotations", "equal_dose", *QUESTIONS) if evidence.has(name))]
    columns = {name: evidence.arms[name].by_concept() for name in shown}
    labels = {"injected": "shift", "rotations": "random, same length", "equal_dose": "random, same dose"}
    rows = [
        [concept, *(signed(columns[name][concept]) if concept in columns[name] else NONE for name in shown)]
        for concept in sorted(columns["injected"], key=lambda concept: -columns["injected"][concept])
    ]
    return {
        "title": "The concepts",
        "css": "",
        "text": "Nats, the mean over settings, wordings and questions.",
        "header": ["concept", *(labels.get(name, name.replace("_", " ")) for name in shown)],
        "rows": rows,
    }


def _registration(study: Study) -> list[tuple[str, str]]:
    """What the study says of the file that was written before it."""
    data = study.registration
    if not data:
        return []
    deviations = data.get("deviations", [])
    lines = [
        ("written", str(data.get("written", ""))),
        ("hash", str(data.get("sha256", ""))),
        ("deviations", " ".join(deviations) or "none"),
    ]
    for one in data.get("outcomes", []):
        lines.append((f"expected of “{one['rung']}”", f"{one['expected']}; it is: {one['found']}"))
    return [(name, text) for name, text in lines if text]


def _certificates(certificates: Mapping[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ')}: {_certificate(one)}" for name, one in certificates.items()]


def _certificate(one: Any) -> str:
    if isinstance(one, Mapping):
        return str(one.get("sentence") or ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in one.items()))
    return str(one)
