"""Steering: control vectors in effect for every pass inside a ``with`` block."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from .. import _C
from ..arguments import Layers, control_vector, control_vectors, layer_range, positions_and_ids
from ..hooks.manager import Effect, Hooked, Pass, Steered
from .norms import residual_norms

Vectors = _C.ControlVector | Sequence[_C.ControlVector | None]
SMALLEST = 1e-30  # a direction of zeros stays one
SPAN = ("first_position", "last_position")
Tokens = Iterable[int] | Callable[[int], bool]
Steerable = TypeVar("Steerable", bound=Hooked)


@dataclass(eq=False)
class DecidedOnPrompt:
    """Interventions that depend on the unsteered prompt, found once for each prompt."""

    how: _C.Intervention  # what they have in common
    interventions: list[_C.Intervention]
    vectors: Sequence[_C.ControlVector | None]
    rows: Sequence[int] | None
    layers: tuple[int, int] | None
    in_lengths: bool  # strengths are fractions of the residual stream's length
    condition: _C.Condition | None
    decided: WeakKeyDictionary[Any, list[_C.Intervention]] = field(default_factory=WeakKeyDictionary)  # by its cache

    def put_into(self, registry: _C.HookRegistry, of: Pass) -> None:
        """Puts in what is to be done to a pass: what the first pass into its cache decided."""
        what = "a condition" if self.condition is not None else "unit='residual'"
        if of.tokens.is_floating_point():
            raise _C.ConfigError(f"forward: {what} of steer is decided on tokens, not on a residual")
        if of.cache is not None and len(of.cache):
            interventions = self.decided.get(of.cache)
            if interventions is None:
                raise _C.ConfigError(
                    f"steer: {what} is decided on the prompt, and this pass continues a cache that got its prompt "
                    "elsewhere: fill the cache inside the block, or give rows=condition.rows(model, tokens) and "
                    "strengths in absolute units"
                )
        else:
            interventions = self._decide(of)
            if of.cache is not None:
                self.decided[of.cache] = interventions
        for intervention in interventions:
            registry.add_intervention(intervention)

    def _decide(self, of: Pass) -> list[_C.Intervention]:
        chosen = self.interventions
        if self.in_lengths:
            lengths = _residual_lengths(of, self.vectors, self.rows, self.layers)
            chosen = _C.as_interventions(lengths, self.how, model=of.model, layers=self.layers)
        if self.condition is not None:
            holds = self.condition.rows(of.model, of.tokens, of.attention_mask)
            chosen = [one for each in chosen if (one := each.restrict_rows(holds)) is not None]
        return chosen


@contextlib.contextmanager
def steer(
    model: Steerable,
    vector: Vectors,
    *,
    layers: Layers = None,
    op: str = "add",
    strength: float | str = 1.0,
    unit: str = "absolute",
    positions: tuple[int, int | None] | list[int] = (0, None),
    when: str = "all",
    tokens: Tokens | None = None,
    after: Iterable[int] | None = None,
    condition: _C.Condition | None = None,
    rows: Sequence[int] | None = None,
    second: _C.ControlVector | None = None,
    **parameters: float,
) -> Iterator[Steerable]:
    """Steer the residual stream after each block of a range, inside the ``with`` block, in this thread.

    What is steered depends on the text alone: it is the same in one pass, in chunks through a KV cache, in every
    step of ``generate``, and in a batch padded on either side. Padding is never steered.

    Args:
        vector: added as it is: scale it (``20 * vector``), or give a strength. A list steers a batch, one vector a
            row and None for a row as it is; rows that a list does not reach are not steered.
        layers: first and last block, both included, or one block; floats from 0.0 to 1.0 are fractions of the depth
            ((0.33, 0.66)); None is every layer the vector has.
        op: an operator that takes an operand, see Intervention: "add", "norm_preserving_add", "ablate",
            "interpolate", "project_to" (``target=``), "clamp" (``low=``, ``high=``), "rotate", "angular" and
            "adaptive_angular" (``angle=`` in degrees), or one of ``register_operator``.
        strength: of the operator; for "add" the same as scaling the vector. Or a dose, for "add" and one vector:
            "coherent" (the largest at which text stays coherent), "kl=0.5", "sd=2", which are solved for on a few
            everyday prompts before anything else (``introspect.solve_strength``, ``introspect.dose``).
        unit: "absolute": directions count as they are; "residual": each counts as one of the length of the residual
            stream after its block, the median over the prompt's tokens (``residual_norms``) of each row, unsteered.
            0.1 to 0.5 is usual. For "add" and "norm_preserving_add".
        positions: [first, last) positions of the text that are steered, None being open; or a list of positions.
            Padding does not count.
        when: "prompt" steers the prompt only; "generation" every position that a new token is predicted from: the
            prompt's last one, so that the first new token is steered too, and the new tokens; "all" both.
        tokens: only where such tokens stand: ids, or a predicate on ids.
        after: only after the first of these ids.
        condition: only the rows of which this Condition holds, decided on the unsteered prompt: in ``generate``
            the prompts, else the tokens of a call, or of the first call that fills a cache.
        rows: of the batch; None is all (of a list of vectors: 0, 1, ...).
        second: the second direction of a plane, for "rotate", "angular" and "adaptive_angular".
        parameters: of the operator, by name.

    Outside of ``generate``, a call without a cache takes all its tokens for the prompt; one with a cache must be
    told ``n_prompt`` where ``when`` asks for it, and ``history`` (the tokens in the cache) for ``after``.

    Warns:
        UserWarning: the vector was trained on a model of another hash.

    Raises:
        TypeError: an argument of another kind: a bare tensor for a vector, an int for positions.
        IndexError: a layer the model does not have, or, at a call, a row the batch does not have.
        ConfigError: an unknown operator, a vector without a direction in the range, or, at a call with a condition
            or unit="residual", a cache that was filled outside of the block.
        ShapeError: a vector of another width.
        ValueError: parameters, a strength, a unit or a phase that the operator or ``when`` does not take.
        HookError: at a call, a cache and no ``n_prompt`` or ``history`` where they are needed.
    """
    vectors = control_vectors(vector, "steer")
    layers = layer_range(layers, model.native.cfg.n_layers, "steer")
    positions_and_ids("steer", positions, tokens=tokens, after=after, rows=rows)
    if second is not None:
        control_vector(second, "steer")
    if condition is not None and not isinstance(condition, _C.Condition):
        raise TypeError(f"steer: condition must be an introspect.Condition, got {type(condition).__name__}")
    _check_unit(unit, op)
    if isinstance(strength, str):
        strength = _strength_of_dose(model, vector, strength, unit=unit, layers=layers, op=op)
    elif not hasattr(strength, "__float__"):
        raise TypeError(f"steer: strength must be a number or a dose, got {strength!r}")
    if rows is None and not isinstance(vector, _C.ControlVector):
        rows = range(len(vectors))
    for one in (*vectors, second):
        _warn_of_another_model(model, one)
    sets = token_sets(model.native.cfg.d_vocab, tokens)
    span: dict[str, Any] = {"positions": positions}
    if not isinstance(positions, list):
        span = dict(zip(SPAN, positions, strict=True))
    how = _C.Intervention(
        {},
        op=op,
        strength=strength,
        parameters=parameters,
        rows=None if rows is None else list(rows),
        text=_C.TextFilter(
            phase=when,
            after=None if after is None else list(after),
            skip_padding=True,
            **sets,
        ),
        **span,
    )
    interventions = _C.as_interventions(vectors, how, model=model, layers=layers, second=second)
    checked = model.native.make_hooks()
    for intervention in interventions:
        checked.add_intervention(intervention)  # throws now what the first pass would
    effects: list[Effect] = [Steered(intervention) for intervention in interventions]
    if condition is not None:
        condition.validate(model)
    if condition is not None or unit == "residual":
        effects = [DecidedOnPrompt(how, interventions, vectors, rows, layers, unit == "residual", condition)]
    model._put(effects, everywhere=False)
    try:
        yield model
    finally:
        model._take(effects)


def _strength_of_dose(
    model: Any, vector: Vectors, dose: str, *, unit: str, layers: tuple[int, int] | None, op: str
) -> float:
    """The strength that gives a dose on everyday prompts. They are run without what is in effect on the model."""
    from ..experiments.doses import check_target
    from ..studies.dose import solve_strength

    check_target(dose, "steer")
    if not isinstance(vector, _C.ControlVector) or op != "add":
        raise ValueError(f"steer: a dose goes with op 'add' and one vector, got {dose!r} with op {op!r}")
    blocks = layers or (min(vector.layers), max(vector.layers))
    return solve_strength(model, vector, target=dose, layers=blocks, strength_unit=unit, progress=False)


def _warn_of_another_model(model: Hooked, vector: _C.ControlVector | None) -> None:
    if vector is None or vector.model_hash in ("", model.native.hash):
        return
    warnings.warn(
        f"steer: the vector was trained on {vector.model_name!r} (hash {vector.model_hash[:12]}), and this "
        f"model is {model.name!r} (hash {model.native.hash[:12]})",
        stacklevel=4,
    )


def token_sets(d_vocab: int, tokens: Tokens | None) -> dict[str, list[int]]:
    """The ids of a TextFilter, those of a predicate by the shorter list."""
    if tokens is None:
        return {}
    vocabulary = range(d_vocab)
    chosen = [id for id in vocabulary if tokens(id)] if callable(tokens) else [int(id) for id in tokens]
    if not chosen:
        raise ValueError("steer: tokens must name at least one token, got none")
    if 2 * len(chosen) <= len(vocabulary):
        return {"tokens": chosen}
    return {"not_tokens": sorted(set(vocabulary) - set(chosen))}


def _check_unit(unit: str, op: str) -> None:
    if unit not in ("absolute", "residual"):
        raise ValueError(f"steer: unit must be 'absolute' or 'residual', got {unit!r}")
    if unit == "residual" and op not in ("add", "norm_preserving_add"):
        raise ValueError(f"steer: unit='residual' goes with op 'add' or 'norm_preserving_add', got op {op!r}")


def _residual_lengths(
    of: Pass, vectors: Sequence[_C.ControlVector | None], rows: Iterable[int] | None, layers: tuple[int, int] | None
) -> list[_C.ControlVector | None]:
    """For each steered row its vector, whose directions have the median length of that row's residual stream."""
    n_rows = of.tokens.shape[0]
    steered = list(range(n_rows) if rows is None else rows)
    each = list(vectors) * (len(steered) if len(vectors) == 1 else 1)
    measured: dict[tuple[Any, ...], dict[int, float]] = {}  # rows of one text, as of many samples, are measured once
    lengths: list[_C.ControlVector | None] = []
    for row, vector in zip(steered, each, strict=True):
        if vector is None:
            lengths.append(None)
            continue
        if not 0 <= row < n_rows:
            raise IndexError(f"steer: rows must be of the batch, which has {n_rows}, got {row}")
        blocks = [layer for layer in vector.layers if layers is None or layers[0] <= layer <= layers[1]]
        tokens = of.tokens[row]
        if of.attention_mask is not None:
            tokens = tokens[of.attention_mask[row].to(tokens.device, torch.bool)]
        text = (*tokens.tolist(), None, *blocks)
        if text not in measured:
            measured[text] = residual_norms(of.model, tokens, layers=blocks)
        directions: Any = {
            layer: direction * (measured[text][layer] / max(float(direction.norm()), SMALLEST))
            for layer, direction in vector.directions.items()
            if layer in measured[text]
        }
        lengths.append(_C.ControlVector(vector.model_type, directions))
    return lengths
