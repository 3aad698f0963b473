"""The arms of a study: what is injected and asked beside the concepts' own vectors, and what each controls for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..experiments.results import Result
from ..steering.training import shuffled_vectors
from . import equal_dose_arm, staged_arms, variants
from .setup import Arm, Setup, parts_of
from .together import Experiment


def _injected(setup: Setup, _: Any) -> Experiment:
    return setup.experiment(dose=None)


def _rotations(setup: Setup, _: Any) -> Experiment:
    setup.needs_vectors("rotations")
    return setup.experiment(nulls=setup.nulls)


def _injecting(arm: str, inject: dict[str, Any], setup: Setup, **options: Any) -> Experiment:
    setup.needs_vectors(arm)
    return setup.experiment(variants.edited(setup.protocol, arm, inject=inject), **options)


def _scaled(setup: Setup, _: Any) -> Experiment:
    strengths = setup.more.get("scale")
    if strengths is None:  # a vector of the same strength adds as much
        strengths = setup.strengths if setup.is_residual and not setup.own_strengths else None
    return _injecting("scaled", {"by": "scale"}, setup, strengths=strengths, strength_unit=None)


def _swap(setup: Setup, _: Any) -> Experiment:
    text = setup.more.get("swap_text") or variants.texts()["swap"]
    strength = setup.more.get("swap_strength", 1.0)
    return _injecting("swap", {"by": "swap", "text": text}, setup, strengths=strength, strength_unit="absolute")


def _dropout(setup: Setup, _: Any) -> Experiment:
    return _injecting("dropout", {"by": "dropout", "rate": setup.more.get("dropout_rate", 0.1)}, setup)


def _input_edit(setup: Setup, _: Any) -> Experiment:
    setup.needs_vectors("input_edit")
    return setup.experiment(variants.input_edit(setup.protocol, setup.more.get("associations")))


def _known_positive(setup: Setup, _: Any) -> Experiment:
    return setup.experiment(variants.known_positive(setup.protocol), strengths=None, strength_unit=None)


def _other_span(setup: Setup, _: Any) -> Experiment:
    setup.needs_vectors("other_span")
    return setup.experiment(variants.other_span(setup.protocol))


def _shuffled_pairs(setup: Setup, _: Any) -> Experiment:
    setup.needs_vectors("shuffled_pairs")
    shuffled: Any = setup.more.get("shuffled")
    pairs: Any = setup.more.get("pairs")
    if shuffled is None and pairs is None:
        variants.refuse("shuffled_pairs", setup.protocol, "the vectors' pairs= (or shuffled= vectors) are not given")
    if shuffled is None and (lacking := setup.vectors.keys() - pairs.keys()):
        raise ValueError(f"run_study: pairs must be of every concept, missing {', '.join(sorted(lacking))}")
    if shuffled is None:
        shuffled = {
            concept: shuffled_vectors(
                setup.model,
                pairs[concept],
                setup.more.get("n_shuffled", 5),
                seed=setup.seed,
                method=vector.method,
                layers=vector.layers,
            )
            for concept, vector in setup.vectors.items()
        }
    return setup.experiment(null_vectors=shuffled)


def _other_concepts(setup: Setup, _: Any) -> Experiment:
    setup.needs_vectors("other_concepts")
    others = setup.more.get("others") or setup.vectors
    nulls = {
        concept: [vector for name, vector in others.items() if name != concept][: setup.nulls or None]
        for concept in setup.vectors
    }
    if not all(nulls.values()):
        variants.refuse("other_concepts", setup.protocol, "it needs vectors of two concepts or more (or others=)")
    return setup.experiment(null_vectors=nulls)


def _content(setup: Setup, _: Any) -> Experiment:
    nulls = setup.nulls if setup.protocol.inject in ("vector", "random") else 0
    return setup.experiment(variants.content(setup.protocol), nulls=nulls)


def _no_question(setup: Setup, _: Any) -> Experiment:
    return setup.experiment(variants.no_question(setup.protocol))


def _grouped(result: Result) -> Result:
    """The rows of questions in groups."""
    return Result({**parts_of(result), "rows": [row for row in result.rows if row.get("group")]})


def _question_groups(setup: Setup, _: Any) -> Experiment:
    groups = setup.more.get("groups") or variants.question_groups(setup.protocol)
    return setup.experiment(variants.with_groups(setup.protocol, groups), groups=None)


ARMS: dict[str, Arm] = {}
"""Every arm of the library, by name."""


def _add(name: str, controls_for: str, make: Callable[..., Any], **more: Any) -> None:
    ARMS[name] = Arm(name, controls_for, make, **more)


_add("injected", "The concepts' own vectors: what all other arms are compared with.", _injected)
_add(
    "sham",
    "What telling the model about injections does when nothing is injected: base readings with the protocol's "
    "information, against the same without it where the protocol has such a twin.",
    staged_arms.sham,
    collect=staged_arms.collect_sham,
)
_add(
    "rotations",
    "Whether any vector of this length does the same: random rotations of each vector. Needs vectors that are added.",
    _rotations,
)
_add(
    "equal_dose",
    "Whether any vector that disturbs the model as much does the same: random rotations at strengths that give the "
    "vector's KL from the base. Needs vectors that are added.",
    equal_dose_arm.planned,
    first=equal_dose_arm.at_the_vectors_strength,
    rounds=equal_dose_arm.run,
)
_add(
    "shuffled_pairs",
    "Whether it is the concept or the texts that the vector was trained on: vectors of the same texts in shuffled "
    "pairs. Needs the pairs, or vectors.",
    _shuffled_pairs,
)
_add(
    "other_concepts",
    "Whether it is this concept: vectors of the other concepts in its place. Needs two concepts or more.",
    _other_concepts,
)
_add(
    "noise",
    "Whether a disturbance without a direction does the same: Gaussian noise of the vector's length, independent for "
    "every token and block. Needs a protocol that injects into spans alone.",
    lambda setup, first: _injecting("noise", {"by": "noise"}, setup),
)
_add(
    "dropout",
    "Whether a loss of activations does the same: elements of the blocks' outputs set to zero. Needs a protocol that "
    "injects into spans alone.",
    _dropout,
)
_add(
    "scaled",
    "Whether a change of magnitude alone does the same: the natural activations times 1 + strength. Needs a protocol "
    "that injects into spans alone.",
    _scaled,
)
_add(
    "swap",
    "Whether natural but wrong activations do the same: those of an unrelated text in the spans' place. Needs a "
    "protocol that injects into spans alone.",
    _swap,
)
_add(
    "input_edit",
    "What the concept does when it is read and not injected: its word stands in the injected message. Needs whole "
    "messages that are injected.",
    _input_edit,
)
_add(
    "known_positive",
    "Whether the instrument can show a yes: the concept's word stands in the injected message as a secret word, and "
    "asked is whether it is there. Needs whole messages that are injected, and a question for yes or no.",
    _known_positive,
)
_add(
    "other_span",
    "Whether it matters where: the same vectors in the message that asks. Needs such a message, not injected itself.",
    _other_span,
)
_add(
    "content",
    "What the answer would name: the concepts' words after an answer that begins with yes, rotations too. Needs the "
    "beginning of an answer as the last message, and a protocol that does not read content itself.",
    _content,
)
_add(
    "no_question",
    "Whether the concept's word is likelier where nothing was asked: promotion of tokens. Needs a last message of the "
    "user that is not injected, and the beginning of an answer.",
    _no_question,
)
_add(
    "observer",
    "What the transcript alone tells: a model (the same, or observer=) reads what the steered model said, without its "
    "activations. Needs an injected message of the assistant.",
    staged_arms.observer,
    collect=staged_arms.collect_observer,
    first=staged_arms.spoken,
    model=lambda setup: setup.more.get("observer"),
)
_add(
    "question_groups",
    "What the injection does to questions that are not about the model's state: factual yes, factual no, contested, "
    "about the same message, in the third person.",
    _question_groups,
    collect=lambda setup, results, known: _grouped(results[0]),
)

DEFAULT_ARMS = tuple(ARMS)
"""All of them; those that a protocol or a study cannot have are left out with the reason (``Study.not_run``)."""
