"""Experiments with vectors, strengths, layers, nulls and questions of their own, in common graphs."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import _C
from ..experiments.arguments import Arguments, lens_path
from ..experiments.plans import ExperimentPlan
from ..experiments.results import Result
from ..experiments.run import native_experiment, run_experiment, run_native
from ..steering.training import ControlVector

if TYPE_CHECKING:
    from ..model import Model

SHARED = ("store", "memory_budget", "progress", "plan", "long", "ray")
"""Options of ``run_experiment`` that experiments which run together have in common."""
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(run_experiment).parameters.items()
    if name not in ("model", "protocol", "vectors", *SHARED)
}


@dataclass(frozen=True)
class Experiment:
    """What ``run_experiment`` is called with, but for the model and what experiments that run together share.

    Attributes:
        protocol: a Protocol, a shipped protocol's name or a file.
        vectors: {concept: vector}; protocols that add none take their concepts from it.
        options: of ``run_experiment``, by name.
        own_strengths: (concept, first block, last block, strengths), as many as ``strengths`` and in their place, of
            vectors whose strengths are their own.
    """

    protocol: str | os.PathLike | _C.Protocol
    vectors: Mapping[str, ControlVector] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    own_strengths: Sequence[tuple[str, int, int, list[float]]] = ()

    def __init__(
        self,
        protocol: str | os.PathLike | _C.Protocol,
        vectors: Mapping[str, ControlVector] | None = None,
        *,
        own_strengths: Sequence[tuple[str, int, int, list[float]]] = (),
        **options: Any,
    ) -> None:
        for name in options:
            if name not in DEFAULTS:
                shared = f"; {name} is an option of run_together" if name in SHARED else ""
                raise TypeError(f"Experiment: an option of run_experiment is wanted, got {name!r}{shared}")
        values = {
            "protocol": protocol,
            "vectors": dict(vectors or {}),
            "options": options,
            "own_strengths": own_strengths,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def changed(self, **options: Any) -> Experiment:
        """The same experiment with other options (or ``protocol`` or ``vectors``)."""
        protocol, vectors = options.pop("protocol", self.protocol), options.pop("vectors", self.vectors)
        return Experiment(protocol, vectors, **{**self.options, "own_strengths": self.own_strengths, **options})


def run_together(
    model: Model,
    experiments: Sequence[Experiment],
    *,
    store: str | os.PathLike | _C.Store | None = None,
    memory_budget: int = 512 << 20,
    progress: Callable[[str, int, int], None] | bool | None = None,
    plan: bool = False,
    long: bool = False,
    ray: Any = None,
) -> list[Result]:
    """Run experiments that differ in anything but the model in common graphs: what they share runs once.

    Args:
        model: with tokenizer and chat template.
        experiments: in the order of the results.
        store, memory_budget, progress, plan, long, ray: see ``run_experiment``.

    Returns:
        For each experiment what ``run_experiment`` makes of it by itself; with ``plan=True`` one plan for all.

    Raises:
        TypeError, ValueError, IndexError, ShapeError, ConfigError, Error: as ``run_experiment`` does; what can be known
            before is raised before any of them has run.
    """
    who = "run_together"
    given = Arguments(who)
    given.engine(model)
    listed = given.items("experiments", experiments)
    with ExitStack() as stack:
        native = []
        for one in listed:
            if not isinstance(one, Experiment):
                given.fail("experiments", "a list of Experiments", one)
            options = {**DEFAULTS, **one.options, "vectors": one.vectors}
            options["lens"] = stack.enter_context(lens_path(options["lens"]))
            protocol, controls = given.controls(given.protocol(one.protocol), options["controls"])
            asked = {"protocol": protocol, "controls": controls, "own_strengths": list(one.own_strengths)}
            native.append({**native_experiment(given, options), **asked})
        shared = {
            "model": model,
            "store": store,
            "memory_budget": memory_budget,
            "progress": progress,
            "plan": plan,
            "long": long,
            "ray": ray,
        }
        results = run_native(who, native, shared, stacklevel=3)
    return results[0] if plan else results  # type: ignore[return-value]


def plan_together(model: Model, experiments: Sequence[Experiment], **shared: Any) -> ExperimentPlan:
    """What ``run_together`` would take; nothing runs."""
    return run_together(model, experiments, **shared, plan=True)  # type: ignore[return-value]
