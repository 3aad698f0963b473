"""Explanations of features by a language model, and how well they foretell where a feature is active.

Nothing here runs unless an endpoint is given: any server with the chat completions of OpenAI's interface.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _C
from ..endpoint import Endpoint

if TYPE_CHECKING:
    import pandas

SHOWN = 0.3  # of the largest value: tokens at or above are marked
AROUND = 16  # tokens before and after the marked one

EXPLAIN = """You study one feature of a neural network that reads text. It is active on some tokens and silent on
others. You see short excerpts. Tokens on which it is active stand between << and >>, and after an excerpt each of them
is listed with its strength from 0 to 10. Say in one short phrase what these tokens have in common: their meaning, their
form, or what stands before them. Say nothing of what the network does with it, and do not list the tokens.
End with a line that begins with [EXPLANATION]: and holds the phrase."""

DETECT = """You know what one feature of a neural network is said to stand for. For each numbered excerpt decide whether
the feature is active anywhere in it. Answer with a JSON list of 1 (active) and 0 (silent), one number an excerpt, in
their order, and nothing else."""

FUZZ = """You know what one feature of a neural network is said to stand for. In each numbered excerpt some tokens stand
between << and >>. Decide for each excerpt whether the marked tokens are those on which the feature is active. Answer
with a JSON list of 1 (they are) and 0 (they are not), one number an excerpt, in their order, and nothing else."""


@dataclass(frozen=True)
class Explanation:
    """What a feature is said to stand for.

    Attributes:
        feature: its number.
        text: the phrase.
        method: how it was made.
        model: which language model said so.
    """

    feature: int
    text: str
    method: str
    model: str


@dataclass(frozen=True)
class Score:
    """How well an explanation foretells a feature on excerpts that it was not made of.

    Attributes:
        method: "detection": is it active in the excerpt; "fuzzing": are the marked tokens the right ones.
        accuracy: mean of the shares answered right among true and among false excerpts; 0.5 is chance.
        right: of each kind, with exact intervals: {"true": ..., "false": ...}.
        answers: each excerpt's truth and answer.
    """

    method: str
    accuracy: float
    right: dict[str, Any]
    answers: tuple[tuple[bool, bool], ...]

    def to_pandas(self) -> pandas.DataFrame:
        """One row an excerpt: truth, answer."""
        import pandas

        return pandas.DataFrame(self.answers, columns=["truth", "answer"])


def explain(
    card: dict[str, Any], endpoint: Endpoint, *, examples: int = 10, around: int = AROUND, seed: int = 0
) -> Explanation:
    """What a feature stands for, said by a language model that sees excerpts of its card.

    The examples are every second of the top contexts and some of each interval of values, so that weak activations are
    explained too; the others are left for the scores.

    Args:
        card: of ``feature_card``.
        endpoint: whom to ask.
        examples: how many excerpts.
        around: tokens shown before and after the one at which a context is active.

    Raises:
        ConfigError: a feature that was never active.
        Error: no answer, or one without an explanation.
    """
    shown, _ = _split(card, examples, 0, seed)
    if not shown:
        raise _C.ConfigError(f"explain: feature {card['feature']} was never active on these texts")
    largest = card["max_active"]
    lines = [f"Excerpt {i}: {_marked(one, largest, around)}" for i, one in enumerate(shown, 1)]
    answer = endpoint.ask(EXPLAIN, "\n\n".join(lines))
    found = re.findall(r"\[EXPLANATION\]:\s*(.+)", answer)
    text = found[-1].strip() if found else ""
    if not text:
        raise _C.Error(f"explain: the answer must hold a line [EXPLANATION]: ..., got {answer[-200:]!r}")
    return Explanation(card["feature"], text, "excerpts", endpoint.model)


def detection_score(
    explanation: Explanation,
    card: dict[str, Any],
    others: Sequence[dict[str, Any]],
    endpoint: Endpoint,
    *,
    excerpts: int = 10,
    batch: int = 5,
    around: int = AROUND,
    seed: int = 0,
) -> Score:
    """Whether the explanation tells excerpts in which the feature is active from those in which it is not.

    Args:
        others: contexts of other features' cards, of which those without the feature are the false ones: cards, or
            contexts {"tokens", "values"} in which ``values`` are this feature's.
        excerpts: of either kind.
        batch: excerpts asked for at once.

    Raises:
        ConfigError: fewer than one excerpt of either kind.
        Error: no answer, or one that is no list of as many numbers.

    Source: Paulo et al. 2024, 2410.13928 (detection).
    """
    _, true = _split(card, 0, excerpts, seed)
    false = _silent(card, others)
    random.Random(seed).shuffle(false)
    items = [(True, _plain(one, around)) for one in true] + [(False, _plain(one, around)) for one in false[:excerpts]]
    return _score("detection", DETECT, explanation, items, endpoint, batch, seed)


def fuzzing_score(
    explanation: Explanation,
    card: dict[str, Any],
    endpoint: Endpoint,
    *,
    excerpts: int = 10,
    batch: int = 5,
    around: int = AROUND,
    seed: int = 0,
) -> Score:
    """Whether the explanation tells excerpts with the right tokens marked from the same ones with others marked.

    Raises: as ``detection_score``.

    Source: Paulo et al. 2024, 2410.13928 (fuzzing).
    """
    _, held = _split(card, 0, 2 * excerpts, seed)
    chance = random.Random(seed)
    items = []
    for number, one in enumerate(held):
        window = _window(one, around)
        marked = _active(window, card["max_active"])
        if number % 2:
            silent = [i for i, value in enumerate(window["values"]) if value <= 0]
            if not silent:
                continue
            marked = chance.sample(silent, min(len(marked), len(silent)))
        items.append((number % 2 == 0, _with_marks(window["tokens"], marked)))
    return _score("fuzzing", FUZZ, explanation, items, endpoint, batch, seed)


def _score(
    method: str,
    system: str,
    explanation: Explanation,
    items: list[tuple[bool, str]],
    endpoint: Endpoint,
    batch: int,
    seed: int,
) -> Score:
    counts = {truth: sum(one is truth for one, _ in items) for truth in (True, False)}
    if not all(counts.values()):
        raise _C.ConfigError(
            f"{method}: excerpts of both kinds are needed, got {counts[True]} true and {counts[False]} false ones"
        )
    random.Random(seed).shuffle(items)
    answers: list[bool] = []
    for first in range(0, len(items), batch):
        asked = items[first : first + batch]
        lines = [f"{i}. {text}" for i, (_, text) in enumerate(asked, 1)]
        said = endpoint.ask(system, f"The feature: {explanation.text}\n\n" + "\n\n".join(lines))
        answers += _numbers(method, said, len(asked))
    pairs = tuple((truth, answer) for (truth, _), answer in zip(items, answers, strict=True))
    right = {
        name: _C.proportion(sum(answer is truth for t, answer in pairs if t is truth), counts[truth])
        for name, truth in (("true", True), ("false", False))
    }
    accuracy = (right["true"].value + right["false"].value) / 2
    return Score(method, accuracy, right, pairs)


def _numbers(method: str, said: str, wanted: int) -> list[bool]:
    found = re.findall(r"\[[\s\d,]*\]", said)
    numbers = json.loads(found[-1]) if found and re.search(r"\d", found[-1]) else []
    if len(numbers) != wanted or any(one not in (0, 1) for one in numbers):
        raise _C.Error(f"{method}: the answer must be a list of {wanted} numbers 0 or 1, got {said[-200:]!r}")
    return [one == 1 for one in numbers]


def _split(card: dict[str, Any], examples: int, held: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Contexts to explain by and to score by: those at even places of each group, and those at odd ones."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    seen: set[tuple[str, ...]] = set()
    for group in card["groups"]:
        for place, context in enumerate(group["contexts"]):
            key = tuple(context["tokens"])
            if key not in seen:
                sides[place % 2].append(context)
                seen.add(key)
    for side in sides:
        random.Random(seed).shuffle(side)
    return sides[0][:examples], sides[1][:held]


def _silent(card: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[Any]:
    """Contexts without the feature: given as such, or those of other cards that are not among this card's."""
    own = {tuple(context["tokens"]) for group in card["groups"] for context in group["contexts"]}
    found = []
    for other in others:
        if "groups" not in other:
            if max(other["values"]) <= 0:
                found.append(other)
            continue
        for group in other["groups"]:
            found += [context for context in group["contexts"] if tuple(context["tokens"]) not in own]
    return found


def _window(context: dict[str, Any], around: int) -> dict[str, Any]:
    at = context.get("position")
    if at is None:
        at = context["values"].index(max(context["values"]))
    first, last = max(at - around, 0), at + around + 1
    return {"tokens": context["tokens"][first:last], "values": context["values"][first:last]}


def _active(window: dict[str, Any], largest: float) -> list[int]:
    """Tokens that are shown as active: those not far below the largest of the excerpt."""
    top = min(max(window["values"]), largest)
    return [i for i, value in enumerate(window["values"]) if value > 0 and value >= SHOWN * top]


def _plain(context: dict[str, Any], around: int) -> str:
    return "".join(_window(context, around)["tokens"])


def _with_marks(tokens: Sequence[str], marked: Sequence[int]) -> str:
    """Marked neighbours stand within one pair of marks."""
    at = set(marked)
    out = []
    for i, token in enumerate(tokens):
        if i in at and i - 1 not in at:
            out.append("<<")
        out.append(token)
        if i in at and i + 1 not in at:
            out.append(">>")
    return "".join(out)


def _marked(context: dict[str, Any], largest: float, around: int) -> str:
    window = _window(context, around)
    marked = _active(window, largest)
    strengths = ", ".join(
        f"{window['tokens'][i]!r} {max(1, round(10 * window['values'][i] / largest)) if largest > 0 else 0}"
        for i in marked
    )
    return f"{_with_marks(window['tokens'], marked)}\nActive: {strengths}"
