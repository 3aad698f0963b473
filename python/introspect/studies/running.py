"""The arms of a study, run together round by round, and what that takes."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _C
from ..experiments.plans import ExperimentPlan
from ..experiments.results import Result
from .setup import Arm, Results, Setup
from .together import Experiment, plan_together, run_together

if TYPE_CHECKING:
    from ..model import Model


@dataclass(frozen=True)
class StudyPlan:
    """What a study takes, known before it starts: the whole of it, each arm by itself, and arms that cannot be had."""

    together: ExperimentPlan
    arms: dict[str, ExperimentPlan]
    not_run: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name}: {plan}" for name, plan in {"together": self.together, **self.arms}.items()]
        return "\n".join(lines + [f"{name}: not run: {why}" for name, why in self.not_run.items()])

    def costs(self) -> dict[str, Any]:
        """``Study.costs``."""

        def of(plan: ExperimentPlan) -> dict[str, int]:
            return {"readings": plan.readings, "token_layers": plan.token_layers_to_run}

        return {"together": of(self.together), "arms": {name: of(plan) for name, plan in self.arms.items()}}


class Run:
    """The arms of a study with their experiments.

    Attributes:
        arms: those that can be had.
        not_run: {arm: why it cannot be had}.
        unplanned_token_layers: what rounds took that no plan could know of.
    """

    def __init__(self, setup: Setup, arms: Sequence[Arm], *, is_lenient: bool) -> None:
        self.setup = setup
        self.is_lenient = is_lenient
        self.arms: list[Arm] = []
        self.not_run: dict[str, str] = {}
        self.unplanned_token_layers = 0
        self._first: dict[str, list[Experiment]] = {}
        self._planned: dict[str, list[Experiment]] = {}
        """before what runs first is known"""
        for arm in arms:
            try:
                if arm.first:
                    self._first[arm.name] = list(arm.first(setup))
                self._planned[arm.name] = _as_list(arm.make(setup, None))
            except _C.ConfigError as error:
                self._leave_out(arm, error)
            else:
                self.arms.append(arm)

    def plan(self, store: Any, memory_budget: int) -> StudyPlan:
        shared = {"store": store, "memory_budget": memory_budget}
        arms = {}
        together: dict[Any, list[Experiment]] = {}
        """by round and model"""
        for arm in tuple(self.arms):
            first, own = self._first.get(arm.name, []), self._planned[arm.name]
            model = arm.model(self.setup) or self.setup.model
            try:
                plans = [plan_together(model, own, **shared)]
                if first:
                    plans.append(plan_together(self.setup.model, first, **shared))
            except _C.ConfigError as error:
                self._leave_out(arm, error)
                continue
            arms[arm.name] = _sum(plans)
            together.setdefault((bool(first), model), []).extend(own)
            together.setdefault((False, self.setup.model), []).extend(first)
        plans = [plan_together(model, listed, **shared) for (_, model), listed in together.items() if listed]
        return StudyPlan(_sum(plans), arms, self.not_run)

    def results(self, shared: dict[str, Any]) -> dict[str, Result]:
        """Of every arm. What arms need next runs together."""
        rounds = {arm.name: self._rounds(arm) for arm in self.arms}
        models = {arm.name: arm.model(self.setup) or self.setup.model for arm in self.arms}
        asked = {name: next(steps) for name, steps in rounds.items()}
        found: dict[str, Result] = {}
        number = 0
        while asked:
            by_model: dict[Any, dict[str, list[Experiment]]] = {}
            for name, experiments in asked.items():
                model = self.setup.model if number == 0 and name in self._first else models[name]
                by_model.setdefault(model, {})[name] = experiments
            answers: dict[str, list[Result]] = {}
            for model, named in by_model.items():
                if number >= 2:
                    self.unplanned_token_layers += _token_layers(model, named, shared["memory_budget"])
                answers |= _run_split(model, named, shared)
            asked = {}
            for arm in tuple(self.arms):
                if arm.name not in answers:
                    continue
                try:
                    asked[arm.name] = rounds[arm.name].send(answers[arm.name])
                except StopIteration as end:
                    found[arm.name] = end.value
                except (ValueError, _C.ConfigError) as error:  # a dose that nothing reaches
                    if not arm.rounds and not isinstance(error, _C.ConfigError):
                        raise
                    self._leave_out(arm, error, has_run=len(self.arms) > 1)
            number += 1
        return {arm.name: found[arm.name] for arm in self.arms}

    def _rounds(self, arm: Arm) -> Generator[list[Experiment], Results, Result]:
        first = None
        if arm.first:
            first = yield self._first[arm.name]
        if arm.rounds:
            return (yield from arm.rounds(self.setup, first))
        results = yield _as_list(arm.make(self.setup, first)) if arm.first else self._planned[arm.name]
        return arm.collect(self.setup, results, first)

    def _leave_out(self, arm: Arm, error: Exception, *, has_run: bool = False) -> None:
        """Notes why an arm cannot be had.

        Raises the error where the arm was named (a warning where others have run by then), and of the study's own.
        """
        if not self.is_lenient or arm.name == "injected":
            if not has_run or arm.name == "injected":
                raise error
            warnings.warn(f"run_study: arm {arm.name!r} is left out: {error}", stacklevel=4)
        self.not_run[arm.name] = str(error).removeprefix(f"arm '{arm.name}': ")
        self.arms = [one for one in self.arms if one is not arm]


def _run_split(model: Model, named: Mapping[str, list[Experiment]], shared: dict[str, Any]) -> dict[str, list[Result]]:
    """The results of all, by name."""
    results = iter(run_together(model, [one for listed in named.values() for one in listed], **shared))
    return {name: [next(results) for _ in listed] for name, listed in named.items()}


def _token_layers(model: Model, named: Mapping[str, list[Experiment]], memory_budget: int) -> int:
    listed = [one for of_arm in named.values() for one in of_arm]
    return plan_together(model, listed, memory_budget=memory_budget).token_layers_to_run


def _as_list(made: Experiment | Sequence[Experiment]) -> list[Experiment]:
    return [made] if isinstance(made, Experiment) else list(made)


def _sum(plans: Sequence[ExperimentPlan]) -> ExperimentPlan:
    """Of runs that come one after the other."""
    names = ("readings", "found", "token_layers_asked", "token_layers_to_run", "seconds", "passes", "bytes_read")
    sums = {name: sum(getattr(plan, name) for plan in plans) for name in names}
    return ExperimentPlan(**sums, peak_bytes=max(plan.peak_bytes for plan in plans))
