"""The rungs of the ladder: what each compares with what, and how its outcome is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .claims import upper_first
from .evidence import SAME_QUESTION, SAME_SETTING, Evidence, Readings, difference, held_out, net_of_pull

LEAST_PARAPHRASES = 3
LEAST_CONCEPTS = 6
"""of which all must go the same way for one chance in 40"""

DETECTION, CONTENT, LOCALISATION, OWN = "detection", "content", "localisation", "own"
BRANCHES = (DETECTION, CONTENT, LOCALISATION, OWN)
"""Claims of kinds none of which needs another: that something was injected, what it was, where, and what a study claims
besides these (``own_step``)."""


@dataclass(frozen=True)
class Contrast:
    """One comparison: a number for each concept that is above 0 where the claim is true."""

    name: str
    """what it is compared with, as it stands after "than" or "beside" """
    values: Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """A rung before it is tested. Its claim holds where every contrast does.

    ``needs`` are arms without which it is not run. Texts may hold {effect}, {controls} (all of them), {worst} (the one
    that decides), {least} (that it is the one) and {bound} (the smallest effect that counts).
    """

    name: str
    title: str
    branch: str
    needs: tuple[str, ...]
    contrasts: Callable[[Evidence], list[Contrast]]
    stands: str
    """what may be said where this rung and all below it hold: a clause, or (above a branch's lowest) what follows it"""
    holds: str
    fails: str
    not_shown: str
    not_run: str
    run: str
    unit: str = "nats"
    least: float | None = None
    """the smallest effect that counts, where it is not the ladder's; 0: any"""


def _run(*arms: str, protocol: str = "protocol", **more: str) -> str:
    """The call that runs a rung."""
    given = {"vectors": "vectors", **({"arms": f"[{', '.join(map(repr, arms))}]"} if arms else {}), **more}
    listed = ", ".join(f"{name}={value}" for name, value in given.items())
    return f"introspect.studies.run_study(model, {protocol}, {listed})".replace("'", '"')


def _against(
    own: str, others: Mapping[str, str], key: Sequence[str] = SAME_QUESTION
) -> Callable[[Evidence], list[Contrast]]:
    """Contrasts of an arm with every other one that was run. others: arm -> its name in a sentence."""

    def contrasts(evidence: Evidence) -> list[Contrast]:
        if not evidence.has(own):
            return []
        return [
            Contrast(text, difference(evidence.arms[own], evidence.arms[name], key, f"arm {name!r}"))
            for name, text in others.items()
            if evidence.has(name)
        ]

    return contrasts


def _sham(evidence: Evidence) -> list[Contrast]:
    if not evidence.has("injected"):
        return []
    own, name = evidence.arms["injected"], "being told of an injection, with none"
    if evidence.has("sham"):
        return [Contrast(name, difference(own, evidence.arms["sham"], SAME_QUESTION, "arm 'sham'"))]
    return [Contrast(name, own.by_concept())]


QUESTIONS = {
    "factual_yes": "factual questions with the answer yes",
    "factual_no": "factual questions with the answer no",
    "contested": "contested questions",
    "matched": "other questions about the same message",
    "third_person": "the same question about somebody else",
}


def _questions(evidence: Evidence) -> list[Contrast]:
    contrasts = _against("injected", QUESTIONS, SAME_SETTING)(evidence)
    others = [evidence.arms[name] for name in ("factual_yes", "factual_no", "contested") if evidence.has(name)]
    if contrasts and (values := net_of_pull(evidence.arms["injected"], others)):
        contrasts.append(Contrast("what a pull of every answer towards one level explains", values))
    return contrasts


def _net(evidence: Evidence) -> Readings | None:
    """The shift of every reading, less that of random directions where they were run."""
    if not evidence.has("injected"):
        return None
    own = evidence.arms["injected"]
    if not evidence.has("rotations"):
        return own
    columns = [name for name in SAME_QUESTION if getattr(own, name) and getattr(evidence.arms["rotations"], name)]
    mine, random = own.cells(columns), evidence.arms["rotations"].cells(columns)
    places = [place for place in mine if place in random]
    cells: dict[str, Any] = {name: [cell[i] for _, cell in places] for i, name in enumerate(columns)}
    return Readings([concept for concept, _ in places], [mine[p] - random[p] for p in places], **cells)


def _wordings(evidence: Evidence) -> list[Contrast]:
    net = _net(evidence)
    if net is None or len(net.distinct("paraphrase")) < LEAST_PARAPHRASES:
        return []
    wordings = net.distinct("paraphrase")
    named = {one: "protocol's own wording" if one == "own" else f"wording “{one}”" for one in wordings}
    return [Contrast(named[one], net.where("paraphrase", one).by_concept()) for one in wordings]


def _held_out(evidence: Evidence) -> list[Contrast]:
    net = _net(evidence)
    if net is None or len(net.distinct("setting")) < 2 or len(net.concepts) < 2 * LEAST_CONCEPTS:
        return []
    setting, values = held_out(net.cells(SAME_SETTING))
    return [Contrast(setting, values)]


def _concepts(evidence: Evidence) -> list[Contrast]:
    net = _net(evidence)
    return [] if net is None else [Contrast("concepts", net.by_concept())]


def _content(evidence: Evidence) -> list[Contrast]:
    if not evidence.has("content"):
        return []
    contrasts = [Contrast("other concepts' words under the same injection", evidence.arms["content"].by_concept())]
    others = {
        "content_other_vectors": "what it gains under other concepts' directions",
        "content_rotations": "what it gains under random directions of the same length",
    }
    return contrasts + _against("content", others)(evidence)


def _localised(evidence: Evidence) -> list[Contrast]:
    return [Contrast("chance", evidence.arms["localised"].by_concept())] if evidence.has("localised") else []


def _matched(evidence: Evidence) -> list[Contrast]:
    if not (evidence.has("localised") and evidence.has("localised_matched")):
        return []
    matched = evidence.arms["localised_matched"]
    if not matched.question:
        return _against("localised", {"localised_matched": "the matched question"}, SAME_SETTING)(evidence)
    return [
        Contrast(f"“{one}”", difference(evidence.arms["localised"], matched.where("question", one), SAME_SETTING))
        for one in matched.distinct("question")
    ]


EQUAL_LENGTH = {
    "rotations": "random directions of the same length",
    "shuffled_pairs": "directions trained on shuffled pairs",
    "noise": "noise of the same length",
    "dropout": "dropout",
    "scaled": "the natural activation scaled",
}
NATURAL = {
    "swap": "the activations of a natural text",
    "input_edit": "the concept written into the text",
    "other_span": "an injection into another passage",
}


def own_step(
    name: str, title: str, stands: str, contrasts: Sequence[Contrast], *, unit: str, least: float, run: str = ""
) -> Step:
    """A claim of a study that is none of the ladder's, as a rung.

    Args:
        stands: what may be said where it holds: a clause.
        contrasts: with names as they stand after "beside"; without any the rung is not run.
        unit: see ``claims.number``.
        least: the smallest effect that counts; 0: any above 0.
    """
    said = stands.replace("{", "{{").replace("}", "}}")
    bound = "{bound} is shown to be out of reach" if least else "shown to be below 0"
    return Step(
        name=name,
        title=title,
        branch=OWN,
        needs=(),
        contrasts=lambda evidence: list(contrasts),
        stands=stands,
        holds=f"{upper_first(said)} (beside {{controls}}: {{effect}}{{least}}).",
        fails=f"It is not so that {said} (beside {{worst}}: {{effect}}, {'and ' if least else ''}{bound}).",
        not_shown=f"It is open whether {said} (beside {{worst}}: {{effect}}).",
        not_run="It was not read.",
        run=run,
        unit=unit,
        least=least,
    )


STEPS = (
    Step(
        name="sham",
        title="moves the answer",
        branch=DETECTION,
        needs=("injected",),
        contrasts=_sham,
        stands="an injection moves the model's answer towards yes",
        holds="The answer moves towards yes by {effect} against being told of an injection with none.",
        fails="The injection does not move the answer towards yes: {effect}, and {bound} is shown to be out of reach.",
        not_shown="It is open whether the injection moves the answer towards yes: {effect}.",
        not_run="No question about the model's own state was asked under an injection.",
        run=_run("injected", "sham"),
    ),
    Step(
        name="equal_norm",
        title="beyond equal length",
        branch=DETECTION,
        needs=("rotations",),
        contrasts=_against("injected", EQUAL_LENGTH),
        stands="beyond random directions of the same length",
        holds="The answer moves further than with {controls}: by {effect}{least}.",
        fails="The answer moves no further than with {worst}: the difference is {effect}, shown to be below {bound}.",
        not_shown="Not told apart from {worst}: the difference is {effect}.",
        not_run="No random directions of the same length were injected.",
        run=_run("injected", "rotations"),
    ),
    Step(
        name="equal_dose",
        title="beyond equal dose",
        branch=DETECTION,
        needs=("equal_dose",),
        contrasts=_against("injected", {"equal_dose": "random directions that change the text as much (same KL)"}),
        stands="beyond random directions of the same dose",
        holds="The answer moves further than with {controls}: by {effect}.",
        fails="The answer moves no further than with {worst}: the difference is {effect}, shown to be below {bound}.",
        not_shown="Not told apart from {worst}: the difference is {effect}.",
        not_run="No random directions of the same dose were injected; at the same length their dose may be another.",
        run=_run("injected", "equal_dose"),
    ),
    Step(
        name="questions",
        title="net of other questions",
        branch=DETECTION,
        needs=("factual_yes", "factual_no", "contested"),
        contrasts=_questions,
        stands="beyond its effect on factual and contested questions",
        holds="The question about the model's own state moves further than {controls}: by {effect}{least}.",
        fails="The question about the model's own state moves no further towards yes than {worst}: the difference is "
        "{effect}, shown to be below {bound}. A shift that other questions share is no sign of noticing.",
        not_shown="Not told apart from the shift of {worst}: the difference is {effect}.",
        not_run="Not all of the other questions were asked under the injection: factual yes, factual no, contested.",
        run=_run("injected", "question_groups"),
    ),
    Step(
        name="natural",
        title="beyond natural changes",
        branch=DETECTION,
        needs=("swap",),
        contrasts=_against("injected", NATURAL),
        stands="beyond another text's activations",
        holds="The answer moves further than with {controls}: by {effect}{least}.",
        fails="The answer moves no further than with {worst}: the difference is {effect}, shown to be below {bound}.",
        not_shown="Not told apart from {worst}: the difference is {effect}.",
        not_run="No natural text's activations were put in the place of the injection.",
        run=_run("injected", "swap", "input_edit", "other_span"),
    ),
    Step(
        name="wordings",
        title="in every wording",
        branch=DETECTION,
        needs=("injected",),
        contrasts=_wordings,
        stands="in every wording",
        holds="It is so in each of {n} wordings and answer schemes: by {effect}{least}.",
        fails="It is not so in the {worst}: {effect}, shown to be below {bound}.",
        not_shown="It is open in the {worst}: {effect}.",
        not_run=f"Fewer than {LEAST_PARAPHRASES} wordings or answer schemes were asked.",
        run=_run(paraphrases="[...]"),
    ),
    Step(
        name="concepts",
        title="in most concepts",
        branch=DETECTION,
        needs=("injected",),
        contrasts=_concepts,
        stands="with most concepts",
        holds="It is so with {effect}, so no single concept carries it.",
        fails="It is so with {effect} only: less than half, as is shown.",
        not_shown="It is so with {effect}; that most concepts do so is not shown.",
        not_run="No concept was injected.",
        run=_run("injected"),
        unit="share",
    ),
    Step(
        name="settings",
        title="at a held-out setting",
        branch=DETECTION,
        needs=("injected",),
        contrasts=_held_out,
        stands="at a setting chosen on other concepts",
        holds="At the setting that is best on half of the concepts ({worst}) the others move by {effect}.",
        fails="At the setting that is best on half of the concepts ({worst}) the others move by {effect}, "
        "shown to be below {bound}.",
        not_shown="At the setting that is best on half of the concepts ({worst}) it is open for the rest: {effect}.",
        not_run=f"It takes two settings and {2 * LEAST_CONCEPTS} concepts: one half of them to choose a setting, the "
        "other to be tested there.",
        run=_run(strengths="[...]", layers="[...]"),
    ),
    Step(
        name="content",
        title="names the concept",
        branch=CONTENT,
        needs=("content",),
        contrasts=_content,
        stands="the answer leans towards the word of what was injected",
        holds="The concept's own word gains more than {controls}: {effect}{least}.",
        fails="The concept's own word gains no more than {worst}: {effect}, shown to be below {bound}.",
        not_shown="The gain of the concept's own word is not told apart from {worst}: {effect}.",
        not_run="What was injected was not asked for.",
        run=_run("injected", "content"),
    ),
    Step(
        name="promotion",
        title="beyond token promotion",
        branch=CONTENT,
        needs=("content", "no_question"),
        contrasts=_against("content", {"no_question": "with no question asked"}, SAME_SETTING),
        stands="beyond what it does with nothing asked",
        holds="The word gains more when it is asked for than with no question: by {effect}.",
        fails="The word gains as much with no question asked: the difference is {effect}, shown to be below {bound}. "
        "The injection promotes a token; the model does not report.",
        not_shown="Not told apart from the word's gain with no question asked: the difference is {effect}.",
        not_run="The word's gain with no question asked was not read.",
        run=_run("injected", "content", "no_question"),
    ),
    Step(
        name="observer",
        title="beyond an observer",
        branch=CONTENT,
        needs=("content", "observer"),
        contrasts=_against("content", {"observer": "for an observer who only reads the text"}, SAME_SETTING),
        stands="beyond what a reader of the text could tell",
        holds="The word gains more than for an observer who only reads the text: by {effect}.",
        fails="An observer who only reads the text tells as much: the difference is {effect}, shown to be below "
        "{bound}.",
        not_shown="Not told apart from what an observer reads in the text: the difference is {effect}.",
        not_run="No observer was asked who only reads the text.",
        run=_run("injected", "content", "observer"),
    ),
    Step(
        name="localisation",
        title="finds the passage",
        branch=LOCALISATION,
        needs=("localised",),
        contrasts=_localised,
        stands="the model names the injected passage more often than chance does",
        holds="The right passage is named {effect} more often than by chance.",
        fails="The right passage is named no more often than by chance: {effect}, shown to be below {bound}.",
        not_shown="It is open whether the right passage is named more often than by chance: {effect}.",
        not_run="The model was not asked which passage was injected.",
        run=_run("injected", protocol='"localisation"'),
        unit="share",
    ),
    Step(
        name="matched",
        title="beyond a matched question",
        branch=LOCALISATION,
        needs=("localised", "localised_matched"),
        contrasts=_matched,
        stands="beyond its naming at a question that has nothing to do with it",
        holds="The right passage is named {effect} more often than at {controls}{least}.",
        fails="At {worst} the injected passage is named as often: the difference is {effect}, shown to be below "
        "{bound}.",
        not_shown="Not told apart from {worst}, where the injected passage is named too: the difference is {effect}.",
        not_run="No matched question (most abstract, most concrete, preferred) was asked.",
        run=_run("injected", "question_groups", protocol='"localisation"'),
        unit="share",
    ),
)
