"""Introspection experiments: protocols, and running them."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from .. import _C
from .. import progress as progress_module
from ..model import Model
from ..steering.training import ControlVector
from . import doses
from .arguments import MORE_PROTOCOLS, PROTOCOLS, Arguments, Layers, Strengths, Texts, lens_path, load_protocol
from .dose import Dose
from .dose import note as note_doses
from .plans import HOUR, ExperimentPlan
from .ray_workers import RayWorkers, fill
from .results import Result

__all__ = [
    "MORE_PROTOCOLS",
    "PROTOCOLS",
    "ConversationTokens",
    "conversation_tokens",
    "layer_ranges",
    "load_protocol",
    "run_experiment",
    "run_experiments",
]

PASS_SECONDS = 6.0
"""How long a pass of a run is to last; what it has read is then kept in the store."""

Protocol = str | os.PathLike | _C.Protocol


def layer_ranges(
    first: int, last: int, *, min_width: int = 1, max_width: int | None = None, step: int = 1
) -> list[tuple[int, int]]:
    """Every range of blocks within first to last, as the article sweeps them: (i, j) with first <= i <= j <= last.

    Args:
        first, last: the lowest and the highest block, both included.
        min_width, max_width: how many blocks a range holds, at least and at most.
        step: between neighbouring first blocks, and between neighbouring widths.

    Raises:
        ValueError: no such range.
    """
    widest = last - first + 1 if max_width is None else max_width
    if step < 1 or min_width < 1:
        raise ValueError(f"layer_ranges: step and min_width must be 1 or more, got {step} and {min_width}")
    ranges = [
        (i, i + width - 1)
        for i in range(first, last + 1, step)
        for width in range(min_width, min(widest, last - i + 1) + 1, step)
    ]
    if not ranges:
        raise ValueError(f"layer_ranges: no range of {min_width} to {widest} blocks lies within {first} to {last}")
    return ranges


class ConversationTokens(NamedTuple):
    """A conversation's token ids, cut where the chat template ends its messages."""

    before: list[int]
    """up to the first injected message"""
    injected: list[int]
    after: list[int]
    """the rest, down to the position that is read"""


def conversation_tokens(
    model: Model, protocol: Protocol, question: str | None = None, *, controls: Protocol | None = None
) -> ConversationTokens:
    """What ``run_experiment`` feeds to the model.

    Args:
        protocol: see ``load_protocol``.
        question: a control question; None is the protocol's own.
        controls: the conversation that it is asked in, as ``run_experiment`` has it.

    Raises:
        ConfigError: a template or tokenizer that does not fit the protocol; a question for a protocol without controls.
    """
    given = Arguments("conversation_tokens")
    asked, where = given.controls(given.protocol(protocol), controls)
    return ConversationTokens(*_C.conversation_tokens(given.engine(model), asked, question, where))


def run_experiment(
    model: Model,
    protocol: Protocol,
    *,
    vectors: Mapping[str, ControlVector],
    strengths: Strengths | None = None,
    strength_unit: str | None = None,
    layers: Layers = (_C.default_layers,),
    dose: bool | None = None,
    parts: Sequence[tuple[float, float]] = ((0.0, 1.0),),
    questions: Texts | None = None,
    groups: Mapping[str, Texts] | None = None,
    controls: Protocol | None = None,
    control_filter: float | None = None,
    nulls: int = _C.default_nulls,
    null_vectors: Mapping[str, Sequence[ControlVector]] | None = None,
    null_factors: Mapping[str, Sequence[float]] | None = None,
    concepts: Texts = (),
    models: Mapping[str, Model] | None = None,
    seed: int = 0,
    lens: bool | str | os.PathLike | _C.Lens = False,
    attention: bool = False,
    divergence: bool = False,
    top_k: int = 0,
    directions: Mapping[str, ControlVector] | None = None,
    continuations: Texts = (),
    readouts: Mapping[str, Any] | None = None,
    store: str | os.PathLike | _C.Store | None = None,
    memory_budget: int = 512 << 20,
    progress: Callable[[str, int, int], None] | bool | None = None,
    plan: bool = False,
    long: bool = False,
    ray: str | RayWorkers | None = None,
) -> Result:
    """Run a protocol with every vector x strength x layer range, and the same with random rotations of the vectors.

    The injected messages are prefilled once unsteered and once for each injection, with the vector added to the output
    of every block of the range at each of their tokens. Then the steering is off, unless the protocol keeps it on, and
    each question goes on from that cache. Readings are float32 log-odds, whatever the model's dtype. All of them are
    planned together, so what conversations and injections have in common runs once.

    With the defaults, which the command line shares, a vector is injected at 0.1 of the residual norm into the middle
    third of the blocks, and compared with ten random rotations of itself. ``print(result.summary())`` says what came
    out.

    Args:
        model: with tokenizer and chat template.
        protocol: a Protocol, a shipped protocol's name or a file, see ``load_protocol``.
        vectors: {concept: vector}.
        strengths: factors of the directions, or one; 0 is the unsteered run itself. None is 0.1 of the residual norm.
            Or doses: "kl=0.5" (nats at the injected tokens), "kl_later=", "kl_read=", "sd=2" (natural standard
            deviations) and "coherent" (the largest at which the model's text is coherent), see ``introspect.dose``:
            the strength of every vector and range that gives it is solved for in this protocol first, and rows have it.
        strength_unit: "absolute": a strength is the factor of the direction as it is; "residual": directions count as
            unit vectors, and 1 is the median norm of the unsteered residual stream after that block, over the injected
            tokens (see ``residual_norms``). None is "absolute" for numbers that are given, and else "residual".
        layers: a range (first, last) of blocks, both included, 0-based; a pair of floats is fractions of the depth
            ((0.33, 0.66) is 8 to 16 of 24); a number is one block; a list holds several of these.
        dose: measure the vectors' doses too: rows have ``dose_kl`` and ``dose_sd``, and ``settings["dose"]`` all of it.
            None: where the strengths are the default one or doses.
        parts: which of the injected tokens, as fractions (first, last) of their number; each is run by itself.
        questions: control questions, or one; None asks the protocol's own, [] none.
        groups: {name: control questions}: more of them, whose rows bear the group's name, and which have no part in the
            mean that is subtracted from a shift; None asks the protocol's own, {} none.
        controls: the conversation that control questions are asked in: "own" (the default of every shipped protocol)
            puts them in the place of the protocol's own question, "with_info" asks them as the article did, always
            after the long introduction, so that the shift of another conversation is subtracted; any other protocol
            will do too. Rows say where they were asked (``asked_in``).
        control_filter: keep the control questions whose base log-odds lie below this; ``settings`` says how many.
        nulls: random rotations of each vector, with its norms and the cosines between its layers. Ten are the fewest
            that a verdict is given on; each takes as long as the vector itself.
        null_vectors: {concept: vectors}: more nulls (trained on shuffled pairs, say), numbered after the rotations.
        null_factors: {concept: numbers}: factors on the strength of its nulls, one for each in the order of their
            numbers (of nulls that have the vector's dose, say). Their rows have the vector's strength.
        concepts: the words of protocols that inject by tokens or patch; by default the vectors' names.
        models: {name: model} for protocols in which another model prefills; of the model's shape, dtype and device.
        seed: of the rotations and of sampled text.
        lens: also read every block's output: log-odds, probabilities of the spellings of yes and no, report tokens.
            True is the logit lens; another one (``TunedLens``) is given itself or by its path, and stores know it by
            its content.
        attention: also the attention of every head from the read position to the injected tokens.
        divergence: also the next token's entropy, and KL(injected || base).
        top_k: also this many of the most raised and lowered tokens.
        directions: {name: vector}: also the residual at the read position on each of its unit directions.
        continuations: also the log-probability of these texts after the read position.
        readouts: {name: parameter} of what else is read: those above by their names, "injected_kl" (the dose of every
            injection, rotations too: KL(injected || base) at the injected tokens, their mean), and those of
            ``register_readout``.
        store: a file that keeps every reading as it is made; readings found there are not made again. In bfloat16 and
            float16, weights held as stored have readings of their own, under the dtype "bfloat16, weights as stored";
            a bare dtype is dense weights', also in older files.
        memory_budget: bytes of one pass, weights aside.
        progress: called with (what, done, total), counted in readings that are finished. None: bars on a terminal, a
            line in a notebook; False: nothing.
        plan: run nothing and return an ``ExperimentPlan``: how many readings, how long, how much memory.
        long: more than an hour is meant. Without it a run that is expected to take longer warns, and goes on.
        ray: run on the workers of a Ray cluster, each with the model: "auto" (the one that RAY_ADDRESS names, or else
            one on this machine), "local", an address, or ``RayWorkers``. Readings come into the store piece by piece.

    Warns:
        UserWarning: a vector of another model; directions that a range lacks; settings whose readings are not finite
            (kept as failed, averaged nowhere); settings that leave the format of the answer, where neither yes nor no
            is likely any more (``leaves_format``).

    Raises:
        ValueError: strengths that are not finite, no vectors, models that are not given, counts below their least, a
            memory budget that does not hold one conversation, more than ten million readings, a concept whose name
            table readers take for a missing value.
        TypeError: an argument of another kind; the message says what is wanted.
        IndexError: layers the model does not have.
        ShapeError: a vector of another width, a model of another shape, or a conversation longer than n_ctx.
        ConfigError: a protocol, template or tokenizer that does not fit; a range without any direction.
        Error: the unsteered run gives no finite numbers (float16 overflows in some models): the first such block is
            named, and nothing of it is kept.
    """
    return _run("run_experiment", [protocol], locals())[0]


def run_experiments(model: Model, protocols: Protocol | Sequence[Protocol], **options: Any) -> list[Result]:
    """Several protocols with the same vectors and options: what their conversations have in common runs once.

    Args:
        model: with tokenizer and chat template.
        protocols: see ``load_protocol``.
        options: as ``run_experiment`` has them.

    Returns:
        For each protocol what ``run_experiment`` makes of it; with ``plan=True`` one plan for all.

    Raises:
        TypeError: an option that ``run_experiment`` does not have.
        ValueError, IndexError, ShapeError, ConfigError, Error: as ``run_experiment`` does; what can be known before is
            raised before any of them has run.
    """
    try:
        given = inspect.signature(run_experiment).bind(model, None, **options)
    except TypeError as error:
        raise TypeError(f"run_experiments: {error}") from None
    given.apply_defaults()
    results = _run("run_experiments", protocols, given.arguments)
    return results[0] if given.arguments["plan"] else results  # type: ignore[return-value]


def _run(who: str, protocols: Any, arguments: Mapping[str, Any]) -> list[Result]:
    """Run protocols with run_experiment's other arguments, put into the native module's form."""
    options = dict(arguments)
    with lens_path(options["lens"]) as options["lens"]:
        given = Arguments(who)
        given.engine(options["model"])
        asked = [given.controls(protocol, options["controls"]) for protocol in given.protocols(protocols)]
        one = native_experiment(given, options)
        experiments = [{**one, "protocol": protocol, "controls": controls} for protocol, controls in asked]
        return run_native(who, experiments, options)


def run_native(
    who: str, experiments: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, stacklevel: int = 4
) -> list[Result]:
    """Run experiments that are in the native module's form; with ``plan`` a list of one plan for all.

    Args:
        experiments: of ``native_experiment``, each with its "protocol" and "controls".
        options: model, store, memory_budget, progress, plan and long, as people give them.
        stacklevel: of warnings, to the caller's line.
    """
    given = Arguments(who)
    model, plan, long = options["model"], bool(options["plan"]), bool(options["long"])
    planned: list[ExperimentPlan] = []
    given.callback(options["progress"])
    shared = {
        "model": given.engine(model),
        "store": given.store(options["store"], plan),
        "memory_budget": given.whole("memory_budget", options["memory_budget"]),
    }

    def before(one: _C.RunPlan) -> None:
        planned.append(ExperimentPlan.of(one))
        if not plan and not long and planned[0].seconds > HOUR:
            warnings.warn(f"{who}: {planned[0]} (long=True: this is meant)", stacklevel=stacklevel + 1)

    known: dict[Any, list[Dose]] = {}
    store = shared["store"]
    shown = None if plan else progress_module.shown(options["progress"])
    with ExitStack() as stack:
        stack.callback(progress_module.close, shown)
        if options.get("ray") is None or plan:
            solved = [doses.resolve(who, model, one, known, only_plan=plan, store=store) for one in experiments]
        else:
            if store is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                store = shared["store"] = given.store(os.path.join(folder, "cells.sqlite"))
            solved = fill(
                who,
                model,
                experiments,
                store,
                options["ray"],
                memory_budget=shared["memory_budget"],
                seconds=PASS_SECONDS,
                progress=shown,
            )
        native = [one for one, _ in solved]
        texts = _C.run_experiments(
            **shared,
            experiments=native,
            progress=shown,
            work=getattr(shown, "work", None),
            before=before,
            only_plan=plan,
            pass_seconds=PASS_SECONDS,
        )
        if plan:
            return planned  # type: ignore[return-value]  # one for all protocols
        results = [json.loads(text) for text in texts]
        for data, (experiment, found) in zip(results, solved, strict=True):
            measured = found or (doses.measure(model, experiment, store) if experiment["dose"] else [])
            note_doses(data, measured, experiment["protocol"].relative_strength)
            # What reports show: turns, injected, controls.
            data["protocol"]["definition"] = json.loads(experiment["protocol"].to_json())
            # Files often bear another model's name inside.
            data["model"]["name"] = Path(model.name).name.removesuffix(".gguf")
        for warning in dict.fromkeys(warning for data in results for warning in data.pop("warnings")):
            warnings.warn(warning, stacklevel=stacklevel)
        return [Result(data) for data in results]


def native_experiment(given: Arguments, options: Mapping[str, Any]) -> dict[str, Any]:
    """What people give of one experiment as the native module takes it, but for its protocol and controls.

    Raises:
        TypeError, ValueError: they say what is wanted.
    """

    def unless_none(read: Callable[[str, Any], Any], name: str) -> Any:
        return None if options[name] is None else read(name, options[name])

    return {
        "vectors": given.vectors(options["vectors"]),
        "strengths": unless_none(given.strengths, "strengths"),
        "dose": options["strengths"] is None if options["dose"] is None else bool(options["dose"]),
        "strength_unit": given.unit(options["strength_unit"]),
        "own_strengths": [],
        "layers": given.layers(options["layers"]),
        "parts": given.pairs("parts", options["parts"]),
        "questions": unless_none(given.texts, "questions"),
        "groups": given.groups(options["groups"]),
        "control_filter": unless_none(given.number, "control_filter"),
        "nulls": given.whole("nulls", options["nulls"], least=0),
        "null_vectors": given.null_vectors(options["null_vectors"]),
        "null_factors": given.null_factors(options["null_factors"]),
        "concepts": [given.concept("concepts", one) for one in given.texts("concepts", options["concepts"])],
        "models": given.models(options["models"]),
        "seed": given.whole("seed", options["seed"], least=0),
        "readouts": given.readouts(options),
        "directions": given.vectors({} if options["directions"] is None else options["directions"], "directions"),
    }
