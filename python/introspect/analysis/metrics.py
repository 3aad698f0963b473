"""Metrics as data: what is measured of a run's logits, so that only the positions and tokens it names are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import _C

Token = int | str
Answer = Token | tuple[Token, ...]  # a tuple is one answer written in several ways
Answers = Answer | list[Answer]  # a list has one for each prompt


@dataclass(frozen=True)
class Metric:
    """A weighted sum of terms; ``LogitDifference`` and the others below make one.

    Metrics add up and are multiplied by numbers: ``LogitDifference(" Mary", " John") - 0.1 * Divergence()``. Called on
    logits [batch, pos, d_vocab] (with token ids, not text) one gives [batch], and gradients flow through it.
    """

    terms: tuple[Term, ...]

    def __add__(self, other: Metric) -> Metric:
        return Metric(self.terms + other.terms)

    def __mul__(self, factor: float) -> Metric:
        return Metric(tuple(replace(term, weight=term.weight * factor) for term in self.terms))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Metric:
        return self * (1 / divisor)

    def __radd__(self, other: int) -> Metric:
        return self if other == 0 else NotImplemented  # what sum() begins with

    def __neg__(self) -> Metric:
        return -1 * self

    def __sub__(self, other: Metric) -> Metric:
        return self + -other

    def __str__(self) -> str:
        return " + ".join(str(term) for term in self.terms)

    def resolve(self, model: Any, n_prompts: int = 1) -> list[_C.Metric]:
        """The native metric of each prompt.

        Args:
            model: whose tokenizer makes tokens of text; None where all are ids.

        Raises:
            ValueError: text that is not one token, or a list of another length than there are prompts.
        """
        terms = [term.resolve(model, n_prompts) for term in self.terms]
        return [_C.Metric(list(of_prompt)) for of_prompt in zip(*terms, strict=True)]

    def __call__(self, logits: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
        """The metric of each row of logits [batch, pos, d_vocab] or [pos, d_vocab]; reference: the clean run's."""
        batch = logits if logits.dim() == 3 else logits.unsqueeze(0)
        references = [None] * len(batch) if reference is None else reference.expand(batch.shape)
        natives = self.resolve(None, len(batch))
        values = [one.of_logits(row, ref) for one, row, ref in zip(natives, batch, references, strict=True)]
        return torch.stack(values) if logits.dim() == 3 else values[0]


@dataclass(frozen=True)
class Term:
    """One kind of number at one position."""

    kind: str
    right: Answers = ()
    wrong: Answers = ()
    position: int = -1
    reference: torch.Tensor | None = field(default=None, compare=False)
    weight: float = 1.0

    def resolve(self, model: Any, n_prompts: int) -> list[_C.MetricTerm]:
        """The native term of each prompt."""
        right, wrong = (self._of_prompts(answers, model, n_prompts) for answers in (self.right, self.wrong))
        given: dict[str, Any] = {"position": self.position, "reference": self.reference, "weight": self.weight}
        return [_C.MetricTerm(self.kind, r, w, **given) for r, w in zip(right, wrong, strict=True)]

    def _of_prompts(self, answers: Answers, model: Any, n_prompts: int) -> list[list[int]]:
        if not isinstance(answers, list):
            return [self._ids(answers, model)] * n_prompts
        if len(answers) != n_prompts:
            raise ValueError(
                f"{self.kind}: a list has one answer for each of the {n_prompts} prompts, got {len(answers)} "
                "(a tuple is one answer written in several ways)"
            )
        return [self._ids(answer, model) for answer in answers]

    def _ids(self, answer: Answer, model: Any) -> list[int]:
        tokens = answer if isinstance(answer, tuple) else (answer,)
        return [single_token(model, token, self.kind) for token in tokens]

    def __str__(self) -> str:
        given = ", ".join(repr(answers) for answers in (self.right, self.wrong) if answers != ())
        weight = "" if self.weight == 1 else f"{self.weight:g} "
        place = "" if self.position == -1 else f" at {self.position}"
        return f"{weight}{self.kind}({given}){place}"


def single_token(model: Any, token: Token | torch.Tensor, who: str) -> int:
    """The id of a text that is one token, or the id itself.

    Raises:
        ValueError: the text is several tokens, which are named, or none.
        TypeError: text, and no model or tokenizer to make a token of it.
    """
    if not isinstance(token, str):
        return int(token)
    if getattr(model, "tokenizer", None) is None:
        of = "logits alone know" if model is None else "the model has"
        raise TypeError(f"{who}: {token!r} is text, and {of} no tokenizer; give token ids")
    ids = model.tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        parts = [model.tokenizer.decode([one]) for one in ids]
        raise ValueError(f"{who}: an answer must be one token; {token!r} is {len(ids)}: {parts}")
    return ids[0]


def LogitDifference(right: Answers, wrong: Answers, *, position: int = -1) -> Metric:
    """Logit of the right answer less that of the wrong one, in nats; of several spellings, their means."""
    return Metric((Term("logit_difference", right, wrong, position),))


def LogProbability(right: Answers, *, position: int = -1) -> Metric:
    """Log-probability of the answer in nats; of several spellings, the log of their sum."""
    return Metric((Term("log_probability", right, (), position),))


def Probability(right: Answers, *, position: int = -1) -> Metric:
    """Probability of the answer, summed over its spellings."""
    return Metric((Term("probability", right, (), position),))


def ProbabilityDifference(right: Answers, wrong: Answers, *, position: int = -1) -> Metric:
    """Probability of the right answers less that of the wrong ones (greater-than: Hanna et al. 2023)."""
    return Metric((Term("probability_difference", right, wrong, position),))


def Rank(right: Answers, *, position: int = -1) -> Metric:
    """Rank of the answer, from 1, the most likely token."""
    return Metric((Term("rank", right, (), position),))


def Accuracy(right: Answers, wrong: Answers, *, position: int = -1) -> Metric:
    """1 where the likeliest of all these answers is a right one, or else 0."""
    return Metric((Term("accuracy", right, wrong, position),))


def Divergence(to: torch.Tensor | None = None, *, position: int = -1) -> Metric:
    """KL(reference || p) of the next token in nats.

    Args:
        to: logits or log-probabilities [d_vocab]; None: the clean run's.
    """
    return Metric((Term("divergence", (), (), position, to),))


def JSDivergence(to: torch.Tensor | None = None, *, position: int = -1) -> Metric:
    """Jensen-Shannon divergence of the next token from a reference in nats, at most log 2; ``to`` as of Divergence."""
    return Metric((Term("js_divergence", (), (), position, to),))


MetricLike = Metric | Callable[[torch.Tensor], torch.Tensor]
