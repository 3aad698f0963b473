"""Introspection experiments: protocols, and running them."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

from . import _C
from . import progress as progress_module
from .model import Model
from .plans import HOUR, ExperimentPlan
from .results import Result
from .steering import ControlVector
from .store import Store

PROTOCOLS = ("top_of_mind", "no_info", "with_info", "inaccurate_location", "lorem_ipsum", "content_report")
"""The article's conversations."""

MORE_PROTOCOLS = (
    "lens_no_info",
    "lens_with_info",
    "lens_inaccurate_location",
    "lens_quarter_strength",
    "lens_content_report",
    "finetune_no_info",
    "finetune_with_info",
    "finetune_content_report",
    "anthropic_style",
    "priming_content_report",
    "paraphrases",
    "localisation",
)
"""Made from them, or after the replication; each says in ``source`` what it is."""

PASS_SECONDS = 6.0
"""How long a pass of a run is to last; what it has read is then kept in the store."""

LayerRange = tuple[int, int] | tuple[float, float]


def load_protocol(source: str | os.PathLike) -> _C.Protocol:
    """An experiment's turns, injected messages and questions.

    Args:
        source: a shipped name (``PROTOCOLS`` and ``MORE_PROTOCOLS`` of introspect.experiment) or a JSON file of the
            format that ``introspect.Protocol`` describes.

    Raises:
        IoError: no such file.
        ConfigError: a mistake in it, with its place.
    """
    if source in PROTOCOLS + MORE_PROTOCOLS:
        return _C.Protocol.load(Path(__file__).parent / "data" / "protocols" / f"{source}.json")
    if not Path(source).exists():
        raise _C.IoError(
            f"load_protocol: neither a file nor one of {', '.join(PROTOCOLS + MORE_PROTOCOLS)}: {os.fspath(source)}"
        )
    return _C.Protocol.load(source)


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


def conversation_tokens(model: Model, protocol: _C.Protocol, question: str | None = None) -> ConversationTokens:
    """What ``run_experiment`` feeds to the model.

    Args:
        question: a control question, asked in the protocol's control conversation; None is the protocol's own.

    Raises:
        ConfigError: a template or tokenizer that does not fit the protocol; a question without a control conversation.
    """
    return ConversationTokens(*_C.conversation_tokens(model.engine, protocol, question))


def run_experiment(
    model: Model,
    protocol: _C.Protocol,
    *,
    vectors: Mapping[str, ControlVector],
    strengths: Sequence[float] = (20.0,),
    layers: Sequence[LayerRange] = ((0.33, 0.66),),
    parts: Sequence[tuple[float, float]] = ((0.0, 1.0),),
    questions: Sequence[str] | None = None,
    control_filter: float | None = None,
    nulls: int = 0,
    null_vectors: Mapping[str, Sequence[ControlVector]] | None = None,
    concepts: Sequence[str] = (),
    models: Mapping[str, Model] | None = None,
    strength_unit: str = "absolute",
    seed: int = 0,
    lens: bool = False,
    attention: bool = False,
    divergence: bool = False,
    top_k: int = 0,
    directions: Mapping[str, ControlVector] | None = None,
    continuations: Sequence[str] = (),
    store: str | os.PathLike | _C.Store | None = None,
    memory_budget: int = 512 << 20,
    progress: Callable[[str, int, int], None] | bool | None = None,
    plan: bool = False,
    long: bool = False,
) -> Result:
    """Run a protocol with every vector x strength x layer range, and the same with random rotations of the vectors.

    The injected messages are prefilled once un-steered and once for each injection, with the vector added to the output
    of every block of the range at each of their tokens. Then the steering is off, unless the protocol keeps it on, and
    each question goes on from that cache. Readings are float32 log-odds, whatever the model's dtype. All of them are
    planned together, so what conversations and injections have in common runs once.

    Args:
        model: with tokenizer and chat template.
        protocol: see ``load_protocol``.
        vectors: {concept: vector}.
        strengths: factors of the directions; 0 is the un-steered run itself.
        layers: (first, last) blocks, both included, 0-based; a pair of floats is fractions of the depth
            ((0.33, 0.66) is 8 to 16 of 24).
        parts: which of the injected tokens, as fractions (first, last) of their number; each is run by itself.
        questions: control questions; None asks the protocol's own, [] none.
        control_filter: keep the control questions whose base log-odds lie below this; ``settings`` says how many.
        nulls: random rotations of each vector, with its norms and the cosines between its layers.
        null_vectors: {concept: vectors}: more nulls (trained on shuffled pairs, say), numbered behind the rotations.
        concepts: the words of protocols that inject by tokens or patch; by default the vectors' names.
        models: {name: model} for protocols in which another model prefills; of the model's shape, dtype and device.
        strength_unit: "absolute", or "residual": directions count as unit vectors, and 1 is the mean norm of the
            un-steered residual stream after that block, over the injected tokens.
        seed: of the rotations and of sampled text.
        lens: also read every block's output: log-odds, probabilities of the spellings of yes and no, report tokens.
        attention: also the attention of every head from the read position to the injected tokens.
        divergence: also the next token's entropy, and KL(injected || base).
        top_k: also this many of the most raised and lowered tokens.
        directions: {name: vector}: also the residual at the read position on each of its unit directions.
        continuations: also the log-probability of these texts behind the read position.
        store: a file that keeps every reading as it is made; readings found there are not made again.
        memory_budget: bytes of one pass, weights aside.
        progress: called with (what, done, total), counted in readings that are finished. None: bars on a terminal, a
            line in a notebook; False: nothing.
        plan: run nothing and return an ``ExperimentPlan``: how many readings, how long, how much memory.
        long: more than an hour is meant. Without it a run that is expected to take longer warns, and goes on.

    Raises:
        ValueError: strengths that are not finite, no vectors, models that are not given, counts below their least, a
            memory budget that does not hold one conversation, more than ten million readings.
        IndexError: layers the model does not have.
        ShapeError: a vector of another width, a model of another shape, or a conversation longer than n_ctx.
        ConfigError: a protocol, template or tokenizer that does not fit; a range without any direction.
    """
    return _run([protocol], locals())[0]


def run_experiments(model: Model, protocols: Sequence[_C.Protocol], **options: Any) -> list[Result]:
    """Several protocols with the same vectors and options: what their conversations have in common runs once.

    Args:
        model: with tokenizer and chat template.
        protocols: see ``load_protocol``.
        options: as ``run_experiment`` has them.

    Returns:
        For each protocol what ``run_experiment`` makes of it; with ``plan=True`` one plan for all.

    Raises:
        TypeError: an option that ``run_experiment`` does not have.
        ValueError, IndexError, ShapeError, ConfigError: as ``run_experiment`` does, before any of them has run.
    """
    given = inspect.signature(run_experiment).bind(model, None, **options)
    given.apply_defaults()
    results = _run(protocols, given.arguments)
    return results[0] if given.arguments["plan"] else results  # type: ignore[return-value]


def _run(protocols: Sequence[_C.Protocol], arguments: Mapping[str, Any]) -> list[Result]:
    """Run protocols with run_experiment's other arguments, put into the native module's form."""
    options = dict(arguments)
    del options["protocol"]
    model, store = options.pop("model"), options["store"]
    plan, long = options.pop("plan"), options.pop("long")
    planned: list[ExperimentPlan] = []

    def before(one: _C.RunPlan) -> None:
        planned.append(ExperimentPlan.of(one))
        if not plan and not long and planned[0].seconds > HOUR:
            warnings.warn(f"run_experiment: {planned[0]} (long=True: this is meant)", stacklevel=4)

    shown = None if plan else progress_module.shown(options["progress"])
    given: dict[str, Any] = {
        **options,
        "model": model.engine,
        "protocols": list(protocols),
        "vectors": list(options["vectors"].items()),
        "strengths": list(options["strengths"]),
        "layers": [_layer_range(pair) for pair in options["layers"]],
        "parts": [(float(first), float(last)) for first, last in options["parts"]],
        "questions": None if options["questions"] is None else list(options["questions"]),
        "null_vectors": {name: list(more) for name, more in (options["null_vectors"] or {}).items()},
        "concepts": list(options["concepts"]),
        "models": {name: other.engine for name, other in (options["models"] or {}).items()},
        "directions": list((options["directions"] or {}).items()),
        "continuations": list(options["continuations"]),
        "store": _store(store, plan),
        "progress": shown,
        "work": getattr(shown, "work", None),
        "before": before,
        "only_plan": plan,
        "pass_seconds": PASS_SECONDS,
    }
    try:
        texts = _C.run_experiments(**given)
    finally:
        progress_module.close(shown)
    if plan:
        return planned  # type: ignore[return-value]  # one for all protocols
    results = [json.loads(text) for text in texts]
    for data, protocol in zip(results, protocols, strict=True):
        data["protocol"]["definition"] = json.loads(protocol.to_json())  # what reports show: turns, injected, controls
        # Files often bear another model's name inside.
        data["model"]["name"] = Path(model.name).name.removesuffix(".gguf")
    for warning in dict.fromkeys(warning for data in results for warning in data.pop("warnings")):
        warnings.warn(warning, stacklevel=3)
    return [Result(data) for data in results]


def _store(store: str | os.PathLike | _C.Store | None, plan: bool) -> _C.Store | None:
    if store is None or isinstance(store, _C.Store):
        return store
    if plan:  # which writes nothing
        return Store(store, read_only=True) if Path(store).exists() else None
    return Store(store)


def _layer_range(pair: LayerRange) -> tuple[float, float, bool]:
    first, last = pair
    is_fraction = not (isinstance(first, Integral) and isinstance(last, Integral))
    return float(first), float(last), is_fraction
