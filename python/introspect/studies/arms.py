"""The arms of a study: what is injected and asked beside the concepts' own vectors, and what each controls for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import _C
from ..experiments.results import Result
from ..steering.training import ControlVector, shuffled_vectors
from . import variants
from .together import Experiment

if TYPE_CHECKING:
    from ..model import Model

NOTHING = "(nothing)"
"""The concept of readings without an injection."""
Results = Sequence[Result]


@dataclass(frozen=True)
class Setup:
    """What the arms of a study are made from.

    Attributes:
        protocol: with the study's paraphrases.
        strengths, strength_unit, layers, seed: as ``run_experiment`` has them.
        nulls: random rotations, and vectors of equal dose, of each concept.
        more: of single arms: see ``run_study``.
    """

    model: Model
    protocol: _C.Protocol
    vectors: Mapping[str, ControlVector]
    strengths: Any = None
    strength_unit: str | None = None
    layers: Any = (_C.default_layers,)
    nulls: int = _C.default_nulls
    seed: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    def experiment(self, protocol: _C.Protocol | None = None, **options: Any) -> Experiment:
        """The study's experiment with another protocol or other options: no nulls and no control questions."""
        mine = {
            "strengths": self.strengths,
            "strength_unit": self.strength_unit,
            "layers": self.layers,
            "seed": self.seed,
            "nulls": 0,
            "questions": [],
            "groups": {},
            "models": self.more.get("models"),
            "readouts": self.more.get("readouts"),
        }
        return Experiment(protocol or self.protocol, options.pop("vectors", self.vectors), **{**mine, **options})

    @property
    def is_residual(self) -> bool:
        """Whether strengths are fractions of the residual norm."""
        return self.strengths is None or self.strength_unit == "residual"


@dataclass(frozen=True)
class Arm:
    """One arm of a study: a name, and what it makes of the study's experiment.

    Attributes:
        name: in results.
        controls_for: one sentence.
        make: the experiments, one or several; what ``first`` gave is its second argument. ConfigError where a protocol
            or a study cannot have the arm.
        collect: their results as one.
        first: experiments that must run before the others can be made.
        collect_after: in the place of ``collect``, which also gets what ``first`` gave.
        model: that the experiments run on, where it is not the study's.
    """

    name: str
    controls_for: str
    make: Callable[[Setup, Results | None], Experiment | Sequence[Experiment]]
    collect: Callable[[Setup, Results], Result] = lambda setup, results: joined(results)
    first: Callable[[Setup], Sequence[Experiment]] | None = None
    collect_after: Callable[[Setup, Results, Results], Result] | None = None
    model: Callable[[Setup], Model | None] = lambda setup: None


def joined(results: Results) -> Result:
    """Results of one protocol as one, in their order."""
    out = results[0]
    for more in results[1:]:
        out = Result({**parts_of(out), "rows": [*out.rows, *more.rows]})
    return out


def grouped(result: Result) -> Result:
    """The rows of questions in groups."""
    return Result({**parts_of(result), "rows": [row for row in result.rows if row.get("group")]})


def parts_of(result: Result) -> dict[str, Any]:
    """The parts of a result, as its constructor takes them."""
    return {
        "schema": 1,
        "model": result.model,
        "protocol": result.protocol,
        "settings": result.settings,
        "rows": result.rows,
    }


def _vectors_only(setup: Setup, arm: str) -> None:
    if setup.protocol.inject not in ("vector", "random"):
        variants.refuse(
            arm, setup.protocol, f"it compares with added vectors, and this injects by {setup.protocol.inject}"
        )


def _injected(setup: Setup, _: Any) -> Experiment:
    return setup.experiment()


def _rotations(setup: Setup, _: Any) -> Experiment:
    _vectors_only(setup, "rotations")
    return setup.experiment(nulls=setup.nulls)


def _injecting(arm: str, inject: dict[str, Any], setup: Setup, **options: Any) -> Experiment:
    _vectors_only(setup, arm)
    return setup.experiment(variants.edited(setup.protocol, arm, inject=inject), **options)


def _scaled(setup: Setup, _: Any) -> Experiment:
    strengths = setup.more.get("scale")
    if strengths is None:  # a vector of the same strength adds as much
        strengths = setup.strengths if setup.is_residual and not isinstance(setup.strengths, str) else None
    return _injecting("scaled", {"by": "scale"}, setup, strengths=strengths, strength_unit=None)


def _swap(setup: Setup, _: Any) -> Experiment:
    text = setup.more.get("swap_text") or variants.texts()["swap"]
    strength = setup.more.get("swap_strength", 1.0)
    return _injecting("swap", {"by": "swap", "text": text}, setup, strengths=strength, strength_unit="absolute")


def _dropout(setup: Setup, _: Any) -> Experiment:
    return _injecting("dropout", {"by": "dropout", "rate": setup.more.get("dropout_rate", 0.1)}, setup)


def _input_edit(setup: Setup, _: Any) -> Experiment:
    _vectors_only(setup, "input_edit")
    return setup.experiment(variants.input_edit(setup.protocol, setup.more.get("associations")))


def _other_span(setup: Setup, _: Any) -> Experiment:
    _vectors_only(setup, "other_span")
    return setup.experiment(variants.other_span(setup.protocol))


def _shuffled_pairs(setup: Setup, _: Any) -> Experiment:
    _vectors_only(setup, "shuffled_pairs")
    shuffled, pairs = setup.more.get("shuffled"), setup.more.get("pairs")
    if not shuffled and not pairs:
        variants.refuse("shuffled_pairs", setup.protocol, "the vectors' pairs= (or shuffled= vectors) are not given")
    if not shuffled:
        n = setup.more.get("n_shuffled", 5)
        shuffled = {
            concept: shuffled_vectors(
                setup.model, pairs[concept], n, seed=setup.seed, method=vector.method, layers=vector.layers
            )
            for concept, vector in setup.vectors.items()
        }
    return setup.experiment(null_vectors=shuffled)


def _other_concepts(setup: Setup, _: Any) -> Experiment:
    _vectors_only(setup, "other_concepts")
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


def _question_groups(setup: Setup, _: Any) -> Experiment:
    groups = setup.more.get("groups") or variants.question_groups(setup.protocol)
    return setup.experiment(variants.with_groups(setup.protocol, groups), groups=None)


# ---- sham -----------------------------------------------------------------------------------------------------------


def _sham(setup: Setup, _: Any) -> list[Experiment]:
    """Told, and untold where the protocol has a twin without its information; nothing is injected into either."""
    told = setup.experiment(strengths=0.0, strength_unit="absolute")
    twin = setup.more.get("untold") or variants.untold(setup.protocol)
    return [told] if twin is None else [told, told.changed(protocol=twin)]


def _collect_sham(setup: Setup, results: Results) -> Result:
    """Rows of the base readings: what was told shifts nothing by itself, or as much as the untold twin says less."""
    told, untold = results[0], results[-1]
    concept = told.concepts[0]

    def of(result: Result) -> list[dict]:
        return [row for row in result.rows if row["concept"] == concept]

    rows = [
        {**row, "concept": NOTHING, "base": other["base"], "injected": row["base"], "leaves_format": False}
        for row, other in zip(of(told), of(untold), strict=True)
    ]
    settings = {**told.settings, "untold": untold.protocol["name"] if untold is not told else None}
    return Result({**parts_of(told), "settings": settings, "rows": rows})


# ---- observer -------------------------------------------------------------------------------------------------------


def _spoken(setup: Setup) -> list[Experiment]:
    _vectors_only(setup, "observer")
    said, _ = variants.spoken(setup.protocol, setup.more.get("words", 24))
    return [setup.experiment(said)]


def _observer(setup: Setup, first: Results | None) -> list[Experiment]:
    """One experiment a setting: in each the model has said something else. A plan takes it for some words."""
    _, at = variants.spoken(setup.protocol, 1)
    if first is None:
        words = " word" * setup.more.get("words", 24)
        base, said = words, [dict.fromkeys(setup.vectors, words)]
    else:
        base = first[0].rows[0]["base"]["text"]
        said = [{row["concept"]: row["injected"]["text"] for row in rows} for rows in _by_setting(first[0]).values()]
    protocols = [variants.observed(setup.protocol, at, base, texts) for texts in said]
    # Nothing is injected: these rows get the settings of what was said.
    return [setup.experiment(one, strengths=None, strength_unit=None, layers=(_C.default_layers,)) for one in protocols]


def _by_setting(said: Result) -> dict[tuple[float, int, int], list[dict]]:
    found: dict[tuple[float, int, int], list[dict]] = {}
    for row in said.rows:
        found.setdefault((row["strength"], row["first_layer"], row["last_layer"]), []).append(row)
    return found


def _collect_observer(setup: Setup, results: Results, first: Results) -> Result:
    rows = []
    for (strength, first_layer, last_layer), result in zip(_by_setting(first[0]), results, strict=True):
        setting = {"strength": strength, "first_layer": first_layer, "last_layer": last_layer}
        rows += [{**row, **setting} for row in result.rows]
    transcripts = [
        {key: row[key] for key in ("concept", "strength", "first_layer", "last_layer")}
        | {"said": row["injected"]["text"], "said_base": row["base"]["text"]}
        for row in first[0].rows
    ]
    settings = {**results[0].settings, "transcripts": transcripts}
    return Result({**parts_of(results[0]), "settings": settings, "rows": rows})


# ---- equal dose -----------------------------------------------------------------------------------------------------


def _equal_dose(setup: Setup, _: Any) -> list[Experiment]:
    """One experiment a setting: in each the rotations have other strengths."""
    _vectors_only(setup, "equal_dose")
    raise _C.ConfigError("arm 'equal_dose': not there yet")


# ---- the table ------------------------------------------------------------------------------------------------------


ARMS: dict[str, Arm] = {}
"""Every arm of the library, by name."""


def _add(name: str, controls_for: str, make: Callable[..., Any], **more: Any) -> None:
    ARMS[name] = Arm(name, controls_for, make, **more)


_add("injected", "The concepts' own vectors: what all other arms are compared with.", _injected)
_add(
    "sham",
    "What telling the model about injections does when nothing is injected: base readings with the protocol's "
    "information, against the same without it where the protocol has such a twin.",
    _sham,
    collect=_collect_sham,
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
    _equal_dose,
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
    _observer,
    collect_after=_collect_observer,
    first=_spoken,
    model=lambda setup: setup.more.get("observer"),
)
_add(
    "question_groups",
    "What the injection does to questions that are not about the model's state: factual yes, factual no, contested, "
    "about the same message, in the third person.",
    _question_groups,
    collect=lambda setup, results: grouped(results[0]),
)

DEFAULT_ARMS = tuple(ARMS)
"""All of them; those that a protocol or a study cannot have are left out with the reason (``Study.not_run``)."""
