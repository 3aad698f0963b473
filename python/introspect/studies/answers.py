"""Answers without a judge: the exact probability of everything that counts as one, and the label of a text by rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import _C
from ..analysis.prompts import tokens_of
from ..arguments import native_model
from ..progress import close, shown

if TYPE_CHECKING:
    from ..model import Model

OTHER = "(other)"
"""What no text of the answers says."""
Texts = Mapping[str, Sequence[str]]


def answer_shares(
    model: Model,
    prompts: Any,
    answers: Texts,
    *,
    interventions: Sequence[_C.Intervention] = (),
    memory_budget: int = 1 << 30,
    progress: Callable[[str, int, int], None] | bool | None = None,
) -> Any:
    """The exact probability of every label after a prompt: a rate without sampling and without a judge.

    A text counts whatever follows it, in the tokens that the tokenizer makes of it. Where one begins with another of a
    different label (" no", " not sure"), the longer is taken out of the shorter, so that labels add up with "(other)"
    to one. What prompts and answers have in common runs once.

    Args:
        prompts: a text, encoded as ``model.to_tokens`` does, or a list of texts or of token ids.
        answers: {label: texts}; ``spellings`` writes the usual forms of a word.
        interventions: while the prompts run; the answer is read without them. Their positions count from the prompt's
            first token.
        memory_budget: bytes of one pass, weights aside.
        progress: called with (what, done, total). None: bars on a terminal, a line in a notebook; False: nothing.

    Returns:
        {label: probability}, "(other)" last; a list of them where prompts are a list.

    Raises:
        ConfigError: a label without texts, a text without tokens or under two labels.
        ShapeError: a prompt that with the longest answer is longer than n_ctx.
        Error: logits that are not finite.
    """
    who = "answer_shares"
    engine = native_model(model, who)
    is_one = isinstance(prompts, str)
    rows = tokens_of(model, prompts, who, "prompts")
    listed = _checked(answers, who)
    tell = shown(progress)
    try:
        found = _C.answer_shares(
            engine,
            [(ids, list(interventions)) for ids in rows],
            listed,
            memory_budget=memory_budget,
            progress=tell,
        ).tolist()
    finally:
        close(tell)
    labels = [label for label, _ in listed]
    shares = [{**dict(zip(labels, one, strict=True)), OTHER: max(0.0, 1 - sum(one))} for one in found]
    return shares[0] if is_one else shares


def _checked(answers: Texts, who: str) -> list[tuple[str, list[str]]]:
    if not isinstance(answers, Mapping):
        raise TypeError(f"{who}: answers must be {{label: texts}}, got {answers!r}")
    if OTHER in answers:
        raise ValueError(f"{who}: {OTHER!r} is what no answer says; it cannot be a label")
    for label, texts in answers.items():
        one_by_one = [texts] if isinstance(texts, str) else texts
        if not isinstance(one_by_one, Sequence) or not all(isinstance(text, str) for text in one_by_one):
            raise TypeError(f"{who}: answers must be {{label: texts}}, got {texts!r} for {label!r}")
    return [(label, [texts] if isinstance(texts, str) else list(texts)) for label, texts in answers.items()]


def spellings(word: str, *, quotes: bool = True) -> list[str]:
    """A word as it may stand after the beginning of an answer: small or capital, with and without a space or a quote.

    Raises:
        ValueError: a word that is empty or has spaces around it.
    """
    if not word or word != word.strip():
        raise ValueError(f"spellings: a word is wanted, got {word!r}")
    cases = dict.fromkeys([word, word[0].lower() + word[1:], word[0].upper() + word[1:]])
    before = ["", " ", *([' "', '"', " '", "'"] if quotes else [])]
    return [start + case for case in cases for start in before]


NEGATIONS = re.compile(r"\b(?:not|no|never|without|cannot|\w+n't)\b[^.!?;:,]{0,20}$", re.I)
"""What before an answer in the same clause takes it back."""


def grade(text: str, answers: Texts, *, negations: bool = True) -> str | None:
    """The label of the answer that a text gives first, by whole words and whatever their case; None: it gives none.

    Args:
        answers: {label: texts}; of two that begin at the same place the longer one counts.
        negations: leave out an answer after a negation in its clause ("it is not about cats").
    """
    found: list[tuple[int, int, str]] = []
    for label, texts in _checked(answers, "grade"):
        for one in texts:
            words = one.strip().strip("\"'")
            if not words:
                raise ValueError(f"grade: a text of an answer must have letters, got {one!r} for {label!r}")
            for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.I):
                if negations and NEGATIONS.search(text[: match.start()]):
                    continue
                found.append((match.start(), -len(words), label))
                break
    return min(found)[2] if found else None
