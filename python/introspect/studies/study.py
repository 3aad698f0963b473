"""A study: one protocol with its control arms, run together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _C
from .._json import parse_json
from ..experiments import doses
from ..experiments.arguments import Arguments
from ..experiments.dose import Dose
from ..experiments.dose import note as note_doses
from ..experiments.results import Result, finite
from ..output_files import write_text
from ..steering.training import ControlVector
from . import variants
from .arms import ARMS, DEFAULT_ARMS
from .certificates import certify
from .running import Run
from .setup import Arm, Setup

if TYPE_CHECKING:
    import pandas

    from ..model import Model
    from .claims import Claims

SCHEMA = 1
SAME = ("seed", "strength_unit", "threads", "versions")
"""Settings that a study has in common with its results."""
PARTS = ("model", "protocol", "settings", "arms")


@dataclass
class Study:
    """What a study saw.

    Attributes:
        results: {arm: Result}, in the order in which the arms were given.
        model, protocol: as a Result has them, of the study's own experiment.
        settings: when its first reading was made (by an earlier run too, of a study that went on), strengths, layers,
            paraphrases, seed; of every arm what it controls for.
        costs: {"arms": {arm: {"readings", "token_layers"}}, "together": the same}: readings of each arm, and tokens
            times layers that it takes by itself by the plan; together they take less, as they share what they have in
            common. "solving": how many doses equal ones took to be found, and tokens times layers beyond the plan.
        not_run: {arm: why it could not be had}.
        dose, certificates, registration: what was measured and noted beside the arms.
    """

    results: dict[str, Result]
    model: dict[str, Any]
    protocol: dict[str, Any]
    settings: dict[str, Any]
    costs: dict[str, Any] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    dose: dict[str, Any] = field(default_factory=dict)
    certificates: dict[str, Any] = field(default_factory=dict)
    registration: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, arm: str) -> Result:
        """The result of an arm; KeyError says why it is not there."""
        if arm not in self.results:
            why = self.not_run.get(arm, f"the study has {', '.join(self.results)}")
            raise KeyError(f"Study: arm {arm!r}: {why}")
        return self.results[arm]

    def claims(self, **options: Any) -> Claims:
        """What the study shows, as a ladder; see ``introspect.studies.ladder``."""
        from .from_results import claims

        return claims(self, **options)

    def report(self, path: str | os.PathLike, claims: Claims | None = None) -> Path:
        """Write the study's page, the verdict first; where it lies. ``claims`` are its own unless they are given."""
        from ..report.study_page import write

        return write(self, path, claims)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a reading of every arm, the arm's name first; columns that some arms lack are empty there."""
        import pandas

        tables = []
        for name, result in self.results.items():
            table = result.to_pandas()
            table.insert(0, "arm", name)
            tables.append(table)
        return pandas.concat(tables, ignore_index=True)

    def to_json(self) -> str:
        """JSON of schema 1, in which NaN and infinities are null."""
        data = {
            "schema": SCHEMA,
            "model": self.model,
            "protocol": self.protocol,
            "settings": self.settings,
            "costs": self.costs,
            "not_run": self.not_run,
            "dose": self.dose,
            "certificates": self.certificates,
            "registration": self.registration,
            "arms": {name: json.loads(result.to_json()) for name, result in self.results.items()},
        }
        return json.dumps(finite(data), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Study:
        """Raises ValueError for anything but a study of this schema, with the place of the mistake."""
        data = parse_json(text, "Study", ValueError)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"Study: schema must be {SCHEMA}, got {schema!r}")
        optional = ("costs", "not_run", "dose", "certificates", "registration")
        for name in (*PARTS, *optional):
            if name in PARTS and name not in data:
                raise ValueError(f"Study: it must hold {', '.join(PARTS)}, missing {name}")
            if not isinstance(data.get(name, {}), dict):
                raise ValueError(f"Study: {name} must be an object, got {type(data[name]).__name__}")
        results = {}
        for name, arm in data["arms"].items():
            try:
                results[name] = Result.from_json(json.dumps(arm))
            except ValueError as error:
                raise ValueError(f"Study: arms.{name}: {error}") from None
        return cls(results, *(data[name] for name in PARTS[:3]), **{name: data.get(name, {}) for name in optional})

    def save(self, path: str | os.PathLike) -> None:
        """Write the study as JSON; the file is complete or not there."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Study:
        """Raises ValueError with the path, and the place in it, for a file that is not a study."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        n = sum(len(result.rows) for result in self.results.values())
        return f"<Study of {self.protocol['name']} on {self.model['name']}: {', '.join(self.results)}; {n:,} rows>"


def run_study(
    model: Model,
    protocol: str | os.PathLike | _C.Protocol = "with_info",
    *,
    vectors: Mapping[str, ControlVector],
    arms: Iterable[str | Arm] | str | Arm = DEFAULT_ARMS,
    strengths: Any = None,
    strength_unit: str | None = None,
    layers: Any = (_C.default_layers,),
    paraphrases: Any = None,
    nulls: int = _C.default_nulls,
    seed: int = 0,
    certified: bool = True,
    store: str | os.PathLike | _C.Store | None = None,
    memory_budget: int = 512 << 20,
    progress: Callable[[str, int, int], None] | bool | None = None,
    plan: bool = False,
    long: bool = False,
    **more: Any,
) -> Study:
    """Run a protocol with its control arms: all of them in common graphs.

    Args:
        model: with tokenizer and chat template.
        protocol: a Protocol, a shipped protocol's name or a file.
        vectors: {concept: vector}.
        arms: names of ``introspect.studies.ARMS`` or Arms of one's own. Of the default ones those that the protocol
            cannot have are left out, with the reason in ``Study.not_run``; one that is named must be possible.
        strengths, strength_unit, layers, seed: as ``run_experiment`` has them; strengths may be doses ("kl=0.5"), which
            are solved for once, and hold for every arm of the vectors' length.
        paraphrases: the own question in other words, as a protocol has them; None: the protocol's, or the library's
            where it asks the article's question; []: none.
        nulls: rotations of each concept.
        certified: read the first injection in other ways too, see ``certify``; reports print what came out.
        store, memory_budget, progress, long: as ``run_experiment`` has them.
        plan: run nothing and return a ``StudyPlan``.
        more: of single arms. Of shuffled_pairs ``pairs`` or ``shuffled`` ({concept: pairs or vectors}) and
            ``n_shuffled``; of equal_dose ``n_equal_dose`` (rotations of each concept, ``nulls``); of other_concepts
            ``others`` ({concept: vector}); ``dropout_rate``; of scaled ``scale`` (strengths); ``swap_text`` and
            ``swap_strength``; of input_edit ``associations`` ({concept: text}); of sham ``untold`` (a protocol);
            ``observer`` (a model) and ``words`` (how many tokens it reads); of question_groups ``groups`` ({name:
            questions}); of all ``models`` and ``readouts``, as ``run_experiment`` has them.

    Raises:
        ConfigError: a named arm that the protocol cannot have; and as ``run_experiment``.
        TypeError, ValueError, IndexError, ShapeError, Error: as ``run_experiment``.
    """
    given = Arguments("run_study")
    given.engine(model)
    if unknown := set(more) - MORE:
        raise TypeError(f"run_study: options of arms are {', '.join(sorted(MORE))}, got {', '.join(sorted(unknown))}")
    setup = Setup(
        model,
        variants.paraphrased(given.protocol(protocol), paraphrases),
        dict(given.vectors(vectors)),
        strengths,
        given.unit(strength_unit),
        layers=layers,
        nulls=given.whole("nulls", nulls, least=1),
        seed=given.whole("seed", seed, least=0),
        more=more,
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    setup, solved = _solved(given, setup, plan, store)
    shared = {"store": store, "memory_budget": memory_budget, "progress": progress, "long": long}
    run = Run(setup, _chosen(given, arms), is_lenient=arms is DEFAULT_ARMS)
    costs = run.plan(store if plan else None, memory_budget)
    if plan:
        return costs  # type: ignore[return-value]
    results = run.results(shared)
    if solved and "injected" in results:
        note_doses(vars(results["injected"]), solved, setup.protocol.relative_strength)
    own = next(iter(results.values()))
    same: dict[str, Any] = {name: own.settings[name] for name in SAME if name in own.settings}
    settings = {
        "started": _started(given.store(store, plan), results.values(), now),
        **same,
        "strengths": list(dict.fromkeys(row["strength"] for row in own.rows)),
        "layers": list(dict.fromkeys((row["first_layer"], row["last_layer"]) for row in own.rows)),
        "nulls": setup.nulls,
        "paraphrases": setup.protocol.paraphrase_names,
        "concepts": list(setup.vectors),
        "arms": {arm.name: arm.controls_for for arm in run.arms},
    }
    study = Study(results, own.model, own.protocol, settings, costs.costs(), run.not_run)
    if "equal_dose" in results:
        solving = results["equal_dose"].settings["doses"]
        measured = sum(one["measured"] for one in solving)
        study.costs["solving"] = {"measured": measured, "token_layers": run.unplanned_token_layers}
    if "injected" in results:
        study.dose = {"injected": results["injected"].settings.get("dose", [])}
    if certified and "injected" in results:
        study.certificates = _certified(setup, results["injected"])
    return study


def _started(store: _C.Store | None, results: Iterable[Result], now: str) -> str:
    """When the first injected reading was made: a study that goes on from a store was started before ``now``."""
    place = ("concept", "strength", "first_layer", "last_layer")
    asked = {
        (one.model["hash"], one.protocol["hash"], one.settings["seed"], *(row[name] for name in place))
        for one in results
        for row in one.rows
    }
    names = ("model_hash", "protocol_hash", "seed", *place)
    rows = store.asked() if store else []
    written = [row["written"] for row in rows if row["written"] and tuple(row[name] for name in names) in asked]
    return min([now, *(f"{one[:19]}+00:00" for one in written)])


def _certified(setup: Setup, injected: Result) -> dict[str, Any]:
    """The certificate of the first injection, or why there is none."""
    row = injected.rows[0]
    try:
        found = certify(
            setup.model,
            setup.protocol,
            {row["concept"]: setup.vectors[row["concept"]]},
            strengths=row["strength"] / setup.protocol.relative_strength,
            strength_unit=injected.settings["strength_unit"],
            layers=(row["first_layer"], row["last_layer"]),
        )
    except _C.ConfigError as error:
        return {"not certified": str(error)}
    return {"first injection": found.to_dict()}


def _solved(given: Arguments, setup: Setup, only_plan: bool, store: Any) -> tuple[Setup, list[Dose]]:
    """The setup with numbers in the place of strengths that are doses, and those doses."""
    strengths = None if setup.strengths is None else given.strengths("strengths", setup.strengths)
    if not strengths or not any(map(doses.is_target, strengths)):
        return setup, []
    asked = {
        "protocol": setup.protocol,
        "vectors": list(setup.vectors.items()),
        "strengths": strengths,
        "strength_unit": setup.strength_unit,
        "layers": given.layers(setup.layers),
        "parts": [(0.0, 1.0)],
        "seed": setup.seed,
    }
    kept = given.store(store, only_plan)
    numbers, found = doses.resolve(given.who, setup.model, asked, {}, only_plan=only_plan, store=kept)
    return (
        replace(
            setup,
            strengths=numbers["strengths"],
            strength_unit=numbers["strength_unit"],
            own_strengths=numbers.get("own_strengths", ()),
        ),
        found,
    )


MORE = {
    *("pairs", "shuffled", "n_shuffled", "n_equal_dose", "others", "dropout_rate", "scale", "swap_text"),
    *("swap_strength", "associations", "untold", "observer", "words", "groups", "models", "readouts"),
}


def _chosen(given: Arguments, arms: Any) -> list[Arm]:
    listed = [arms] if isinstance(arms, str | Arm) else given.items("arms", arms)
    out = []
    for one in listed:
        if isinstance(one, str) and one not in ARMS:
            raise ValueError(f"run_study: arms must be of {', '.join(ARMS)} (or Arms), got {one!r}")
        if not isinstance(one, str | Arm):
            given.fail("arms", "a list of names or Arms", one)
        out.append(ARMS[one] if isinstance(one, str) else one)
    names = [arm.name for arm in out]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"run_study: arms must be one or more, each once, got {names}")
    return out
