"""Doses of injections: how much they do to a model, and the strengths that do as much.

One strength is 0.0006 to 12 nats of KL by prompt, vector and block, so equal strengths are not equal doses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import _C
from .. import progress as progress_module
from ..experiments.arguments import Arguments, Layers, Strengths
from ..experiments.doses import Dose, check_target, own_strengths, solve, stock_prompts
from ..steering.training import ControlVector
from .dose_rows import DoseRow, Doses

if TYPE_CHECKING:
    from ..model import Model

__all__ = [
    "CoherentWindow",
    "Dose",
    "DoseRow",
    "Doses",
    "coherent_window",
    "dose",
    "equal_dose",
    "solve_strength",
]

STRENGTHS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Where a dose is measured unless told otherwise, in residual norms."""

Texts = Sequence[str] | Sequence[Sequence[Mapping[str, str]]] | Sequence[Sequence[int]]
Context = str | os.PathLike | _C.Protocol | Texts | None
Vectors = ControlVector | Mapping[str, ControlVector]


@dataclass(frozen=True)
class CoherentWindow:
    """The strengths from 0 on at which steered text is coherent.

    Attributes:
        largest: the largest one, known to a factor of 1.19 (2 unless ``fine``).
        broken: the smallest strength that was tried and is not coherent; infinity where none was.
        tried: all that were tried.
    """

    largest: float
    broken: float
    unit: str
    tried: list[_C.Coherence]

    @property
    def text(self) -> str:
        """The first steered text at the largest strength."""
        return next(one.texts[0] for one in self.tried if one.strength == self.largest)


def dose(
    model: Model,
    vector: Vectors,
    protocol: Context = None,
    *,
    strengths: Strengths | None = None,
    targets: Strengths = (),
    strength_unit: str = "residual",
    layers: Layers = (_C.default_layers,),
    part: tuple[float, float] = (0.0, 1.0),
    nulls: int = 0,
    seed: int = 0,
    coherence: bool = True,
    max_new_tokens: int = 40,
    factor: float = _C.default_coherence_factor,
    more_repetition: float = 0.15,
    tolerance: float = 1e-3,
    memory_budget: int = 512 << 20,
    progress: Callable[[str, int, int], None] | bool | None = None,
) -> Doses:
    """What injections do to a model: divergence from the unsteered run, size, leakage, and how the text then reads.

    All vectors, ranges and strengths are measured in common graphs, whose beginnings run once.

    Args:
        model: with tokenizer.
        vector: a vector, or {concept: vector}; a concept's word is what leakage is measured of.
        protocol: where: a Protocol, a shipped protocol's name or a file (its own question, vectors at its injected
            spans), or texts, chats (lists of messages) or token ids that are steered at every token, as generation is.
            None is three everyday prompts.
        strengths: to measure; by default 0.025 to 0.8 residual norms, unless there are targets.
        targets: to solve for: numbers are KL in nats at the injected tokens, and texts are "kl=0.5", "kl_later=0.1",
            "kl_read=0.1", "sd=2", "sd_overall=10" or "coherent".
        strength_unit: "residual" or "absolute": see ``run_experiment``.
        layers: ranges, see ``run_experiment``.
        part: of the injected tokens, as fractions.
        nulls: random rotations of each vector, those of ``run_experiment`` with the same seed.
        coherence: also draw and score texts.
        max_new_tokens, factor, more_repetition: see ``coherent_window``.
        tolerance: how far off a target may be, as a share of it.
        memory_budget: bytes of one pass, weights aside.
        progress: see ``run_experiment``.

    Raises:
        ValueError: a target that no strength reaches, with the range that is reached; numbers that are not finite; a
            dose that is not above 0.
        TypeError: an argument of another kind.
        ConfigError: a protocol that adds no vectors; a range without any direction.
        IndexError: layers the model does not have.
        ShapeError: a vector of another width; a conversation or text longer than n_ctx.
        Error: an empty window for "coherent".
    """
    who = "dose"
    given = Arguments(who)
    where = context(given, model, protocol)
    named = vectors_of(given, vector)
    unit = given.unit(strength_unit) or "residual"
    asked = given.strengths("targets", targets) if isinstance(targets, str) or len(_items(targets)) else []
    wanted = [one if isinstance(one, str) else check_target(f"kl={one!r}", who) for one in asked]
    numbers: list[Any] = [] if wanted else list(STRENGTHS)
    if strengths is not None:
        numbers = given.strengths("strengths", strengths)
        if any(isinstance(one, str) for one in numbers):
            wanted, numbers = [*numbers, *wanted], []
    options: dict[str, Any] = {
        "layers": given.layers(layers),
        "part": given.pairs("part", part)[0],
        "nulls": given.whole("nulls", nulls, least=0),
        "seed": given.whole("seed", seed, least=0),
        "memory_budget": given.whole("memory_budget", memory_budget),
    }
    texts = {"max_new_tokens": max_new_tokens, "factor": factor, "more_repetition": more_repetition}
    if not numbers and not wanted:
        raise ValueError(f"{who}: at least one strength or target is needed, got none")
    with _shown(progress) as options["progress"]:
        found = []
        if numbers:
            measured = _C.measure_doses(
                given.engine(model), where, named, strengths=numbers, strength_unit=unit, **options
            )
            found += [Dose.of(one, unit) for one in measured]
        for target in wanted:
            found += solve(model, where, named, target, unit=unit, tolerance=tolerance, **texts, **options)
        rows = [DoseRow(**asdict(one)) for one in found]
        if coherence:
            rows = _with_texts(given.engine(model), where, named, rows, {**options, **texts, "strength_unit": unit})
    names = {name: place for place, (name, _) in enumerate(named)}
    rows.sort(key=lambda row: (names[row.concept], row.first_layer, row.last_layer, row.null_index, row.strength))
    return Doses(rows, str(model.name), where.name if isinstance(where, _C.Protocol) else "prompts")


def solve_strength(
    model: Model,
    vector: ControlVector,
    protocol: Context = None,
    *,
    target: str | None = None,
    kl: float | None = None,
    layers: Layers = (_C.default_layers,),
    strength_unit: str = "residual",
    tolerance: float = 1e-3,
    concept: str = "",
    progress: Callable[[str, int, int], None] | bool | None = None,
    **options: Any,
) -> float:
    """The strength at which a vector has a dose.

    Where more strength does not give more dose throughout, it is the smallest that reaches the target (as far as a grid
    of ratio 2 sees), and a warning says so.

    Args:
        vector, protocol, layers, strength_unit, tolerance: see ``dose``; of one range.
        target: "kl=0.5", "sd=2", "coherent", ...; or
        kl: in nats, at the injected tokens.
        options: part, seed, memory_budget of ``dose``, and max_new_tokens, factor and more_repetition for "coherent".

    Warns:
        UserWarning: the dose does not rise with the strength throughout.

    Raises:
        ValueError, TypeError, ConfigError, IndexError, ShapeError, Error: as ``dose`` does.
    """
    import warnings

    who = "solve_strength"
    given = Arguments(who)
    if (target is None) == (kl is None):
        raise ValueError(f"{who}: one of target and kl is needed, got {'neither' if kl is None else 'both'}")
    wanted = check_target(f"kl={given.number('kl', kl)!r}" if target is None else target, who)
    ranges = given.layers(layers)
    if len(ranges) != 1:
        raise ValueError(f"{who}: layers must be one range, got {len(ranges)}")
    where = context(given, model, protocol)
    with _shown(progress) as shown:
        (found,) = solve(
            model,
            where,
            [(concept, given.vector("vector", vector))],
            wanted,
            unit=given.unit(strength_unit) or "residual",
            layers=ranges,
            tolerance=tolerance,
            progress=shown,
            **options,
        )
    if not found.monotone:
        warnings.warn(
            f"{who}: more strength does not give more {wanted.partition('=')[0]} throughout; {found.strength:.4g} is "
            "the smallest strength that reaches it",
            stacklevel=2,
        )
    return found.strength


def coherent_window(
    model: Model,
    vector: ControlVector,
    protocol: Context = None,
    *,
    layers: Layers = (_C.default_layers,),
    strength_unit: str = "residual",
    max_new_tokens: int = 40,
    factor: float = _C.default_coherence_factor,
    more_repetition: float = 0.15,
    fine: bool = True,
    memory_budget: int = 512 << 20,
    progress: Callable[[str, int, int], None] | bool | None = None,
) -> CoherentWindow:
    """The largest strength at which the model's text is coherent: and at every smaller one that was tried.

    Texts are what the model goes on with, greedily, steered as ``dose`` says. They are coherent where their perplexity
    under the unsteered model is at most ``factor`` times that of its own texts, and the largest share of runs of three
    tokens that a text repeats is at most ``more_repetition`` above that of its own.

    Args:
        vector, protocol, layers, strength_unit, memory_budget, progress: see ``dose``; of one range.
        max_new_tokens: of each text.
        factor, more_repetition: see above.
        fine: the largest strength is known to a factor of 1.19, or else of 2, with about half the texts.

    Raises:
        Error: not even the smallest strength tried (1/32 residual norm, over all blocks together) is coherent.
        ValueError, TypeError, ConfigError, IndexError, ShapeError: as ``dose`` does.
    """
    who = "coherent_window"
    given = Arguments(who)
    ranges = given.layers(layers)
    if len(ranges) != 1:
        raise ValueError(f"{who}: layers must be one range, got {len(ranges)}")
    unit = given.unit(strength_unit) or "residual"
    with _shown(progress) as shown:
        (window,) = _C.coherent_windows(
            given.engine(model),
            context(given, model, protocol),
            [("", given.vector("vector", vector))],
            layers=ranges,
            strength_unit=unit,
            max_new_tokens=given.whole("max_new_tokens", max_new_tokens, least=1),
            factor=given.number("factor", factor),
            more_repetition=given.number("more_repetition", more_repetition),
            fine=bool(fine),
            memory_budget=given.whole("memory_budget", memory_budget),
            progress=shown,
        )
    return CoherentWindow(window.largest.strength, window.broken, unit, list(window.tried))


def equal_dose(
    model: Model,
    vectors: Vectors,
    protocol: Context,
    *,
    strength: float | str = _C.default_strength,
    strength_unit: str = "residual",
    layers: Layers = (_C.default_layers,),
    nulls: int = _C.default_nulls,
    null_vectors: Mapping[str, Sequence[ControlVector]] | None = None,
    seed: int = 0,
    what: str = "kl",
    tolerance: float = 1e-3,
    memory_budget: int = 512 << 20,
    progress: Callable[[str, int, int], None] | bool | None = None,
) -> dict[str, list[ControlVector]]:
    """Random vectors that do as much to the model as the concepts' own, each solved by itself.

    Rotations have a vector's length; their dose is often another (real vectors have been seen to be 3 to 1,000 times
    gentler). These are the rotations that ``run_experiment`` makes of the same seed, each scaled until its KL is the
    vector's.

    Args:
        vectors: {concept: vector}, or one.
        protocol: see ``dose``; not prompts.
        strength: of the vectors: a number, or a dose such as "kl=0.5", which each vector then has at a strength of its
            own.
        strength_unit, layers, seed, tolerance, memory_budget, progress: see ``dose``; of one range.
        nulls: rotations of each vector.
        null_vectors: {concept: vectors}: more nulls to scale.
        what: "kl", "kl_later" or "kl_read": which divergence is to be equal.

    Returns:
        {concept: vectors} whose directions are what is added to each block: inject them at strength 1 in absolute
        units, over the same range.

    Raises:
        ValueError: a dose that no strength reaches; a vector that does nothing.
        TypeError, ConfigError, IndexError, ShapeError: as ``dose`` does.
    """
    who = "equal_dose"
    given = Arguments(who)
    ranges = given.layers(layers)
    if len(ranges) != 1:
        raise ValueError(f"{who}: layers must be one range, got {len(ranges)}")
    where = context(given, model, protocol)
    named = vectors_of(given, vectors)
    unit = given.unit(strength_unit) or "residual"
    common: dict[str, Any] = {
        "layers": ranges,
        "seed": given.whole("seed", seed, least=0),
        "memory_budget": given.whole("memory_budget", memory_budget),
    }
    more = given.null_vectors(null_vectors)
    out: dict[str, list[ControlVector]] = {}
    with _shown(progress) as common["progress"]:
        (wanted,) = given.strengths("strength", strength)
        strengths = {name: wanted for name, _ in named}
        if isinstance(wanted, str):
            strengths = {one.concept: one.strength for one in solve(model, where, named, wanted, unit=unit, **common)}
        for name, vector in named:
            for one in _C.equal_doses(
                given.engine(model),
                where,
                [(name, vector)],
                what,
                strengths=[strengths[name]],
                strength_unit=unit,
                nulls=given.whole("nulls", nulls, least=0),
                null_vectors={name: more[name]} if name in more else {},
                tolerance=tolerance,
                **common,
            ):
                out.setdefault(name, []).append(one.added)
    return out


def context(given: Arguments, model: Any, protocol: Any) -> _C.Protocol | list[list[int]]:
    """Where a dose is measured, as the native module takes it: a Protocol, or prompts as token ids."""
    engine = given.engine(model)
    if protocol is None:
        return stock_prompts(model)
    if isinstance(protocol, str | os.PathLike | _C.Protocol):
        return given.protocol(protocol)
    prompts = []
    for one in given.items("protocol", protocol):
        if isinstance(one, str):
            prompts.append(engine.to_tokens(one)[0].tolist())
        elif isinstance(one, Sequence) and one and all(isinstance(message, Mapping) for message in one):
            is_open = one[-1].get("role") == "assistant"
            written = engine.chat_template.render(
                list(one), add_generation_prompt=not is_open, continue_final_message=is_open
            )
            prompts.append(engine.tokenizer.encode(written, add_special_tokens=False))
        elif isinstance(one, Sequence) and one and all(isinstance(token, int) for token in one):
            prompts.append(list(one))
        else:
            given.fail("protocol", "a protocol, or a list of texts, chats (lists of messages) or token ids", one)
    if not prompts:
        raise ValueError(f"{given.who}: at least one prompt is needed, got none")
    return prompts


def vectors_of(given: Arguments, vectors: Any) -> list[tuple[str, ControlVector]]:
    """One vector goes by the concept that it was trained for, where it says so."""
    if isinstance(vectors, ControlVector):
        return [(getattr(vectors, "concept", "") or "", vectors)]
    listed = given.vectors(vectors, "vector")
    if not listed:
        raise ValueError(f"{given.who}: at least one vector is needed, got none")
    return listed


def _items(given: Any) -> list[Any]:
    return list(given) if hasattr(given, "__iter__") else [given]


@contextmanager
def _shown(progress: Any) -> Iterator[Any]:
    shown = progress_module.shown(progress)
    try:
        yield shown
    finally:
        progress_module.close(shown)


def _with_texts(
    engine: _C.Model, where: Any, vectors: Sequence[tuple[str, ControlVector]], rows: list[DoseRow], options: Any
) -> list[DoseRow]:
    """The rows of vectors (not of rotations) with how their texts read."""
    own = own_strengths(row for row in rows if row.null_index < 0)
    read = _C.measure_coherence(engine, where, list(vectors), **{**options, "nulls": 0}, **own)
    found = {(one.concept, one.first_layer, one.last_layer, one.strength): one for one in read}
    out = []
    for row in rows:
        one = found.get((row.concept, row.first_layer, row.last_layer, row.strength)) if row.null_index < 0 else None
        if one is None:
            out.append(row)
            continue
        names = ("perplexity", "perplexity_base", "repetition", "repetition_base")
        numbers = {name: getattr(one, name) for name in names}
        out.append(replace(row, **numbers, coherence=one.score, coherent=one.is_coherent, text=(one.texts or [""])[0]))
    return out
