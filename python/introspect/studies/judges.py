"""Judges of texts: local models and servers, their agreement with people, and rates corrected for their mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import _C
from ..endpoint import Endpoint
from .answers import answer_shares, grade, spellings

if TYPE_CHECKING:
    import pandas

    from ..model import Model

ASKED = """You read what a language model said and decide which of these labels fits it: {labels}.
{rubric}
Answer with one label and nothing else."""
DRAWS = 2000
"""Resamplings of an interval."""
LEAST_MASS = 0.01
"""A local model that gives the labels together less than this has not answered the question."""


@dataclass(frozen=True)
class Judgement:
    """One text's label; None where the judge gave none, and then ``problem`` says why."""

    text: str
    label: str | None
    problem: str = ""
    shares: dict[str, float] = field(default_factory=dict)
    """of a local model: the probability of each label, of those that it may say"""


@dataclass(frozen=True)
class Judge:
    """Something that gives texts one of a few labels.

    Attributes:
        labels: {label: what it means}.
        ask: a text -> a Judgement; an Error of it is kept as a judgement without a label.
        name: in reports.
    """

    labels: Mapping[str, str]
    ask: Callable[[str], Judgement]
    name: str

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """A judgement of every text, in their order: what fails is marked and nothing is lost."""
        if isinstance(texts, str):
            raise TypeError(f"Judge.judge: a list of texts is wanted, got {texts!r}")
        out = []
        for text in texts:
            try:
                out.append(self.ask(text))
            except _C.Error as error:
                out.append(Judgement(text, None, str(error)))
        return out


def model_judge(model: Model, labels: Mapping[str, str], *, rubric: str = "") -> Judge:
    """A local model as judge: the label that it finds the most probable, exactly, without sampling.

    Args:
        model: with a chat template.
        labels: {label: what it means}; each is a word or a few.
        rubric: what else the judge should know.
    """
    _check_labels(labels, "model_judge")
    said = {label: spellings(label) for label in labels}

    def ask(text: str) -> Judgement:
        messages = [{"role": "user", "content": f"{_instruction(labels, rubric)}\n\nThe text:\n{text}"}]
        prompt = model.apply_chat_template(messages, add_generation_prompt=True)
        ids = model.native.tokenizer.encode(prompt, add_special_tokens=False)
        shares = answer_shares(model, [ids], said, progress=False)[0]
        del shares["(other)"]
        total = sum(shares.values())
        if total < LEAST_MASS:
            return Judgement(text, None, f"the labels have {total:.1e} of the probability", shares)
        shares = {label: share / total for label, share in shares.items()}
        return Judgement(text, max(shares, key=lambda label: shares[label]), shares=shares)

    return Judge(labels, ask, model.name)


def endpoint_judge(endpoint: Endpoint, labels: Mapping[str, str], *, rubric: str = "") -> Judge:
    """A server with chat completions as judge. Texts are sent to it, and nowhere else.

    Args:
        labels: {label: what it means}.
        rubric: what else the judge should know.
    """
    _check_labels(labels, "endpoint_judge")

    def ask(text: str) -> Judgement:
        said = endpoint.ask(_instruction(labels, rubric), f"The text:\n{text}")
        label = grade(said, {label: [label] for label in labels}, negations=False)
        problem = "" if label else f"no label in the answer {said[:80]!r}"
        return Judgement(text, label, problem)

    return Judge(labels, ask, endpoint.model)


def _instruction(labels: Mapping[str, str], rubric: str) -> str:
    meanings = "\n".join(f"{label}: {meaning}" for label, meaning in labels.items() if meaning)
    return ASKED.format(labels=", ".join(labels), rubric="\n".join(filter(None, (meanings, rubric))))


def _check_labels(labels: Mapping[str, str], who: str) -> None:
    if not isinstance(labels, Mapping) or len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{who}: labels must be two or more, {{label: what it means}}, got {labels!r}")
    folded = [label.casefold() for label in labels]
    if len(set(folded)) < len(folded):
        raise ValueError(f"{who}: labels must differ in more than case, got {', '.join(labels)}")


@dataclass(frozen=True)
class Agreement:
    """How a judge's labels agree with people's.

    ``kappa`` is Cohen's (1960): the share agreed on beyond what the frequencies of both give by chance; NaN where both
    use one label only. ``interval`` is its 95 % percentile interval over 2,000 resamplings of the texts. ``counts``
    [truth, judged] are in the order of ``labels``. ``n_failed`` texts have no judged label and count nowhere.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    kappa: float
    interval: tuple[float, float]
    accuracy: float
    n_failed: int

    def to_pandas(self) -> pandas.DataFrame:
        """Rows: what people said; columns: what the judge said."""
        import pandas

        return pandas.DataFrame(self.counts, index=list(self.labels), columns=list(self.labels))


def agreement(judged: Sequence[Judgement | str | None], truth: Sequence[str], *, seed: int = 0) -> Agreement:
    """A judge beside labels that people gave to the same texts, in the same order.

    Raises:
        ValueError: other numbers of the two, or no text with a judged label.
    """
    import numpy

    given = [one.label if isinstance(one, Judgement) else one for one in judged]
    if len(given) != len(truth):
        raise ValueError(f"agreement: there must be a true label for each judgement, got {len(truth)} for {len(given)}")
    pairs = [(right, label) for right, label in zip(truth, given, strict=True) if label is not None]
    if not pairs:
        raise ValueError("agreement: no text has a judged label")
    labels = tuple(sorted({label for pair in pairs for label in pair}))
    place = {label: i for i, label in enumerate(labels)}
    rows = numpy.array([[place[right], place[label]] for right, label in pairs])

    n = len(labels)
    cells = rows[:, 0] * n + rows[:, 1]
    draws = numpy.random.default_rng(seed).multinomial(
        len(cells), numpy.bincount(cells, minlength=n * n) / len(cells), DRAWS
    )
    kappas = [kappa for draw in draws if math.isfinite(kappa := _kappa(draw.reshape(n, n)))]
    low, high = numpy.quantile(kappas, [0.025, 0.975]) if kappas else (math.nan, math.nan)
    counts = numpy.bincount(cells, minlength=n * n).reshape(n, n)
    return Agreement(
        labels,
        tuple(tuple(int(n) for n in row) for row in counts),
        _kappa(counts),
        (float(low), float(high)),
        float(numpy.trace(counts) / counts.sum()),
        len(given) - len(pairs),
    )


def _kappa(counts: Any) -> float:
    total = counts.sum()
    chance = float(counts.sum(0) @ counts.sum(1)) / total**2
    return float((counts.trace() / total - chance) / (1 - chance)) if chance < 1 else math.nan


@dataclass(frozen=True)
class CorrectedRate:
    """How often a label is true, of how often a judge gives it: ``raw``, ``rate``, and its 95 % interval."""

    raw: float
    rate: float
    interval: tuple[float, float]


def corrected_rates(
    judged: Sequence[Judgement | str | None], known: Agreement, *, seed: int = 0
) -> dict[str, CorrectedRate]:
    """How often each label is true among texts that only a judge has read, with its mistakes taken out.

    With P[i, j] how often the judge says j of a text that is i, its rates are q = p P, so p = q P^-1; what leaves the
    simplex is put back on it. Intervals resample the texts and the judge's known mistakes together.
    Source: Rogan & Gladen 1978 for two labels; Buonaccorsi 2010 for more.

    Args:
        judged: of the texts whose truth is not known; those without a label count nowhere.
        known: the judge's agreement on labelled texts.

    Raises:
        ValueError: a label that no labelled text has, no judged text, or a judge that does not tell the labels apart.
    """
    import numpy

    labels = known.labels
    given = [label for one in judged if (label := one.label if isinstance(one, Judgement) else one) is not None]
    if not given:
        raise ValueError("corrected_rates: no text has a judged label")
    if unknown := sorted(set(given) - set(labels)):
        raise ValueError(f"corrected_rates: labelled texts must have every judged label, missing {', '.join(unknown)}")
    counts = numpy.array(known.counts)
    if never := [label for label, n in zip(labels, counts.sum(1), strict=True) if n == 0]:
        raise ValueError(f"corrected_rates: of every label there must be labelled texts, missing {', '.join(never)}")
    said = numpy.array([given.count(label) for label in labels])

    def rates(said: Any, counts: Any) -> Any:  # [..., L], [..., L, L]
        mistakes = counts / counts.sum(-1, keepdims=True)
        shares = said / said.sum(-1, keepdims=True)
        return _onto_simplex(numpy.linalg.solve(numpy.swapaxes(mistakes, -1, -2), shares[..., None])[..., 0])

    if _is_singular(counts):
        raise ValueError("corrected_rates: the judge does not tell the labels apart: its mistakes cannot be undone")
    rng = numpy.random.default_rng(seed)
    texts = rng.multinomial(said.sum(), said / said.sum(), size=DRAWS)
    mistakes = numpy.stack([rng.multinomial(row.sum(), row / row.sum(), size=DRAWS) for row in counts], axis=1)
    telling = ~_is_singular(mistakes)  # a draw in which the judge tells nothing apart says nothing
    drawn = rates(texts[telling], mistakes[telling])
    low, high = numpy.quantile(drawn, [0.025, 0.975], axis=0)
    exact = rates(said, counts)
    return {
        label: CorrectedRate(float(said[i] / said.sum()), float(exact[i]), (float(low[i]), float(high[i])))
        for i, label in enumerate(labels)
    }


def _is_singular(counts: Any) -> Any:
    """Whether rows of mistakes [..., L, L] are combinations of one another."""
    import numpy

    return numpy.linalg.matrix_rank(counts / counts.sum(-1, keepdims=True), tol=1e-6) < counts.shape[-1]


def _onto_simplex(p: Any) -> Any:
    """The nearest points [..., L] with parts of 0 or more that add up to 1.

    Source: Wang & Carreira-Perpiñán 2013, arXiv:1309.1541.
    """
    import numpy

    ordered = -numpy.sort(-p, axis=-1)
    excess = (numpy.cumsum(ordered, axis=-1) - 1) / numpy.arange(1, p.shape[-1] + 1)
    last = (ordered > excess).sum(-1, keepdims=True) - 1
    return numpy.maximum(p - numpy.take_along_axis(excess, last, axis=-1), 0)
