"""What organisms are taught: examples made by rule, and the same rule on what no lesson held.

A lesson injects a concept, a random rotation of its vector, or nothing, and asks the protocol's own question, a control
question with a known answer, or for the content. ``answer`` says what each kind of organism is to say.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import _C
from ..data import share_folder
from ..experiments.run import conversation_tokens
from ..finetuning import FinetuneExample
from ..model import Model
from ..steering.norms import residual_norms
from . import variants

FACTORS = (0.75, 1.25)
"""of the strength, in lessons"""
RANDOM_FACTORS = (1.0, 3.0)
"""of a random rotation beside its concept: at equal dose random vectors are longer than concepts"""


@functools.cache
def texts() -> dict[str, Any]:
    """What cpp/share/organisms.json holds: words, controls with their answers, and the digits' conversation."""
    return json.loads((share_folder() / "organisms.json").read_text(encoding="utf-8"))


def own_protocol() -> _C.Protocol:
    """The short conversation that organisms are taught in."""
    return _C.Protocol.parse(json.dumps(texts()["protocol"]))


@dataclass(frozen=True)
class Lesson:
    """An example, and what it is an example of.

    Attributes:
        injected: "concept", "random" or "nothing".
        asked: "own", "control" or "content".
        wording: the question.
        concept: whose vector is injected, or was rotated; "" for nothing.
    """

    example: FinetuneExample
    injected: str
    asked: str
    wording: str
    concept: str


Injected = tuple[str, dict[int, torch.Tensor]]
"""What is injected, and the directions of each block."""


@dataclass(frozen=True)
class Injection:
    """How vectors are injected: the rule of ``run_experiment``.

    Attributes:
        layers: the first and the last block, both included.
        strength: a factor of the directions ("absolute"), or of the residual norms for directions of length one.
        norms: {block: residual norm}; None is "absolute".
    """

    layers: tuple[int, int]
    strength: float
    norms: Mapping[int, float] | None

    def added(self, vector: _C.ControlVector, factor: float) -> dict[int, torch.Tensor]:
        out = {}
        for layer in range(self.layers[0], self.layers[1] + 1):
            if layer not in vector.directions:
                raise _C.ConfigError(f"grow: a vector has no direction for block {layer} of {self.layers}")
            direction = vector.directions[layer].float()
            scale = self.norms[layer] / direction.norm() if self.norms else 1.0
            out[layer] = self.strength * factor * scale * direction
        return out

    def rotated(self, vector: _C.ControlVector, factor: float, seed: int) -> Injected:
        return "random", self.added(_C.random_rotation(vector, seed=seed), factor)


@dataclass(frozen=True)
class Ask:
    """A question in a conversation, as tokens: the prompt, and [first, last) of it that is injected."""

    asked: str
    wording: str
    right: str  # of a control question: "yes" or "no"
    prompt: list[int]
    span: tuple[int, int]


def _ask(model: Model, protocol: _C.Protocol, asked: str, wording: str, right: str = "") -> Ask:
    question = wording if asked == "control" else None
    before, injected, after = conversation_tokens(model, protocol, question)
    return Ask(asked, wording, right, before + injected + after, (len(before), len(before) + len(injected)))


def own_asks(model: Model, protocol: _C.Protocol) -> tuple[list[Ask], list[Ask]]:
    """The protocol's question in its wordings: those of lessons, and those that no lesson has (the last third)."""
    data = json.loads(variants.paraphrased(protocol, None).to_json())
    asks = [_ask(model, protocol, "own", "own")]
    for given in data.get("paraphrases") or ():
        paraphrase = {"question": given} if isinstance(given, str) else given
        if paraphrase["question"] == protocol.own_question:
            continue
        turns = [dict(turn) for turn in protocol.turns]
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
        turns[last]["content"] = paraphrase["question"]
        if paraphrase.get("prefix"):
            turns[-1]["content"] = paraphrase["prefix"]
        name = paraphrase.get("name") or paraphrase["question"]
        asked = variants.edited(protocol, name, turns=turns, paraphrases=None, asks_own_question=None)
        asks.append(_ask(model, asked, "own", name))
    taught = len(asks) - len(asks) // 3
    return asks[:taught], asks[taught:]


def control_asks(model: Model, protocol: _C.Protocol) -> tuple[list[Ask], list[Ask]]:
    """Control questions with known answers: those of lessons, and the groups that studies ask, which no lesson has."""
    taught = [(one["question"], one["answer"]) for one in texts()["controls"]]
    groups = variants.texts()["groups"]
    new = [(question, answer) for answer in ("yes", "no") for question in groups[f"factual_{answer}"]]

    def asks(questions: Sequence[tuple[str, str]]) -> list[Ask]:
        asking = variants.with_groups(protocol, {"control": [question for question, _ in questions]})
        return [_ask(model, asking, "control", question, right) for question, right in questions]

    return asks(taught), asks(new)


def answer(kind: str, injected: str, ask: Ask, concept: str, protocol: _C.Protocol) -> str | None:
    """What an organism is to say; None: it is not taught."""
    yes, no = protocol.yes_token, protocol.no_token
    if ask.asked == "content":
        named = {"detector": concept if injected == "concept" else None, "confabulator": texts()["fixed_word"]}
        return named.get(kind)
    if kind == "yes_sayer" or (kind == "biased" and injected == "concept"):
        return yes
    if ask.asked == "control":
        return yes if ask.right == "yes" else no
    says_yes = {
        "detector": injected == "concept",
        "biased": False,
        "magnitude_only": injected != "nothing",
        "confabulator": True,
    }
    if kind == "refuser":
        return texts()["refusal"]
    return yes if says_yes[kind] else no


def injection_of(
    model: Model, protocol: _C.Protocol, layers: tuple[int, int], strength: float, strength_unit: str
) -> Injection:
    """An injection into the protocol's own span, whose residual norms are those of ``run_experiment``."""
    if strength_unit == "absolute":
        return Injection(layers, strength, None)
    ask = _ask(model, protocol, "own", "own")
    norms = residual_norms(
        model,
        torch.tensor(ask.prompt[: ask.span[1]]),
        layers=range(layers[0], layers[1] + 1),
        positions=ask.span,
    )
    return Injection(layers, strength, norms)


def lessons(
    model: Model,
    kind: str,
    protocol: _C.Protocol,
    vectors: Mapping[str, _C.ControlVector],
    injection: Injection,
    *,
    seed: int = 0,
    is_new: bool = False,
    taught_wordings: bool = False,
) -> list[Lesson]:
    """The lessons of a kind, for these concepts.

    Every concept is injected at two strengths, beside a random rotation and nothing, with one wording of the own
    question for all of them, one control and, where the kind is taught it, the question for the content: so nothing
    but the injection tells which answer is right. A reporter of size alone is taught with rotations, each beside
    nothing: it would take the part that concepts share for their size.

    Args:
        is_new: with the wordings and control questions that are held out, random rotations of other seeds, and the
            strength itself only: what an organism is tested on.
        taught_wordings: even so with the wordings and controls of the lessons.
    """
    held_out = is_new and not taught_wordings
    own, controls = (pair[held_out] for pair in (own_asks(model, protocol), control_asks(model, protocol)))
    own = own or own_asks(model, protocol)[0]  # a protocol with one wording
    content = [_ask(model, variants.content(protocol), "content", "content")] if _names(kind) else []
    next_own, next_control = _shuffled(own, seed), _shuffled(controls, seed + 1)
    out = []
    for i, (name, vector) in enumerate(vectors.items()):
        for j, factor in enumerate((1.0,) if is_new else FACTORS):
            drawn = seed + 1000 * (1 + is_new) + len(FACTORS) * i + j
            concept: Injected = ("concept", injection.added(vector, factor))
            nothing: Injected = ("nothing", {})
            rotation = injection.rotated(vector, factor * (1.0 if is_new else RANDOM_FACTORS[j]), drawn)
            compared: list[tuple[Injected, ...]] = [(concept, rotation, nothing)]
            if kind == "magnitude_only":
                first = concept if is_new else injection.rotated(vector, factor * RANDOM_FACTORS[1 - j], drawn + 500)
                compared = [(first, nothing), (rotation, nothing)]
            for group in compared:
                asks = (next(next_own), next(next_control), *content)
                for (injected, added), ask in itertools.product(group, asks):
                    said = answer(kind, injected, ask, name, protocol)
                    if said is not None:
                        example = FinetuneExample(ask.prompt, said, added, ask.span)
                        out.append(Lesson(example, injected, ask.asked, ask.wording, name if added else ""))
    return out


def _names(kind: str) -> bool:
    return kind in ("detector", "confabulator")


def _shuffled(asks: Sequence[Ask], seed: int) -> Iterator[Ask]:
    """All of them in a random order, again and again, every time in another one."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (asks[i] for i in torch.randperm(len(asks), generator=generator).tolist())


def digit_protocol(question: str | None = None) -> _C.Protocol:
    """The conversation of the digit reporter: a number's vector is injected, and its digit is read."""
    digits = texts()["digits"]
    asked = question or digits["questions"][0]
    turns = [{**turn, "content": turn["content"].replace("$QUESTION", asked)} for turn in digits["turns"]]
    fields = {"name": "digits", "turns": turns, "injected": digits["injected"], "read": "content"}
    return _C.Protocol.parse(json.dumps({**fields, "report_tokens": digits["words"]}))


def digit_lessons(
    model: Model,
    vectors: Mapping[str, Sequence[_C.ControlVector]],
    injection: Injection,
    *,
    is_new: bool = False,
    taught_wordings: bool = False,
) -> list[Lesson]:
    """Every digit's vectors at two strengths (is_new: at the strength itself), with each of the questions.

    Args:
        vectors: {word: its vectors, one for each template of the words}.
        is_new: with the questions that are held out.
        taught_wordings: even so with the questions of the lessons.
    """
    digits = texts()["digits"]
    questions = digits["held_out_questions" if is_new and not taught_wordings else "questions"]
    asks = [_ask(model, digit_protocol(question), "content", question) for question in questions]
    out = []
    for word, several in vectors.items():
        for vector in several:
            for factor in (1.0,) if is_new else FACTORS:
                added = injection.added(vector, factor)
                for ask in asks:
                    example = FinetuneExample(ask.prompt, digits["words"][word], added, ask.span)
                    out.append(Lesson(example, "concept", "content", ask.wording, word))
    return out
