"""What the arms of a study are made from, and what an arm is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import _C
from ..experiments.results import Result
from ..steering.training import ControlVector
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
        own_strengths: see ``Experiment``.
        nulls: random rotations of each concept.
        more: of single arms: see ``run_study``.
    """

    model: Model
    protocol: _C.Protocol
    vectors: Mapping[str, ControlVector]
    strengths: Any = None
    strength_unit: str | None = None
    own_strengths: Sequence[tuple[str, int, int, list[float]]] = ()
    layers: Any = (_C.default_layers,)
    nulls: int = _C.default_nulls
    seed: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    def experiment(self, protocol: _C.Protocol | None = None, **options: Any) -> Experiment:
        """The study's experiment with another protocol or other options: no nulls and no control questions."""
        mine = {
            "strengths": self.strengths,
            "strength_unit": self.strength_unit,
            "own_strengths": () if "strengths" in options else self.own_strengths,
            "layers": self.layers,
            "dose": False,
            "seed": self.seed,
            "nulls": 0,
            "questions": [],
            "groups": {},
            "models": self.more.get("models"),
            "readouts": self.more.get("readouts"),
        }
        return Experiment(protocol or self.protocol, options.pop("vectors", self.vectors), **{**mine, **options})

    def needs_vectors(self, arm: str) -> None:
        """Raises ConfigError for a protocol that adds no vectors."""
        if self.protocol.inject not in ("vector", "random"):
            why = f"it compares with added vectors, and this injects by {self.protocol.inject}"
            variants.refuse(arm, self.protocol, why)

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
        make: the experiments, one or several, of the setup and the results of ``first`` (None for a plan). ConfigError
            where a protocol or a study cannot have the arm.
        collect: their results as one, of the setup, the results and those of ``first``.
        first: experiments that must run before the others can be made.
        rounds: in the place of ``make`` (which a plan still takes) and ``collect``, of the setup and the results of
            ``first``: yields experiments, takes their results, as often as it needs, and returns them as one.
            ValueError or ConfigError where what it has seen does not allow the arm.
        model: that the experiments run on, where it is not the study's.
    """

    name: str
    controls_for: str
    make: Callable[[Setup, Any], Experiment | Sequence[Experiment]]
    collect: Callable[[Setup, Results, Any], Result] = lambda setup, results, known: joined(results)
    first: Callable[[Setup], Sequence[Experiment]] | None = None
    rounds: Callable[[Setup, Any], Generator[list[Experiment], Results, Result]] | None = None
    model: Callable[[Setup], Model | None] = lambda setup: None


def joined(results: Results) -> Result:
    """Results of one protocol as one, in their order."""
    out = results[0]
    for more in results[1:]:
        out = Result({**parts_of(out), "rows": [*out.rows, *more.rows]})
    return out


def parts_of(result: Result) -> dict[str, Any]:
    """The parts of a result, as its constructor takes them."""
    return {
        "schema": 1,
        "model": result.model,
        "protocol": result.protocol,
        "settings": result.settings,
        "rows": result.rows,
    }
