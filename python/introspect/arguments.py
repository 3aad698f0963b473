"""Arguments in the forms in which people give them, as the functions that take them want them."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch

from . import _C

Messages = Sequence[Mapping[str, str]]
Layers = int | float | Sequence[int] | Sequence[float] | None

_LAYERS = (
    "layers must be one block (14), the first and the last block (8, 16), both included, or their fractions of the "
    "depth (0.33, 0.66)"
)
VECTOR_HINT = "introspect.ControlVector(model_type, {layer: direction}) makes one"


def layer_range(layers: Any, n_layers: int, who: str) -> tuple[int, int] | None:
    """The first and the last block that are meant, both included; None for None.

    Args:
        layers: a block number; the first and the last; a ``range`` of blocks; or floats from 0.0 to 1.0, which are
            fractions of the depth: f is block round(f n_layers), at most the last one, as in ``run_experiment``. A
            single float is the one block at that depth.
        n_layers: of the model. Block numbers are not compared with it: whoever uses them does.
        who: the function that asks, for the message.

    Raises:
        TypeError: something else.
        ValueError: fractions out of order or not from 0 to 1, fractions and block numbers mixed, or a range of blocks
            that is empty or leaves some out.
    """
    if layers is None:
        return None
    if isinstance(layers, range):
        if not layers or layers.step != 1:
            raise ValueError(f"{who}: a range of blocks must hold neighbouring ones, got {layers}")
        return layers[0], layers[-1]
    ends = [layers, layers] if _is_number(layers) else layers
    if isinstance(ends, str | bytes | Mapping) or not hasattr(ends, "__len__") or not hasattr(ends, "__iter__"):
        raise TypeError(f"{who}: {_LAYERS}; got {layers!r}")
    ends = list(ends)
    if len(ends) == 1:
        ends *= 2
    if len(ends) != 2 or not all(_is_number(end) for end in ends):
        raise TypeError(f"{who}: {_LAYERS}; got {layers!r}")
    numbers = [_block(end) for end in ends]
    if None not in numbers:
        return numbers[0], numbers[1]  # type: ignore[return-value]
    if any(number for number in numbers):  # 0 is the first block either way
        raise ValueError(f"{who}: layers are two block numbers or two fractions of the depth, got {layers!r}")
    first, last = (float(end) for end in ends)
    if not 0 <= first <= last <= 1:
        raise ValueError(f"{who}: fractions of the depth must be in order and from 0 to 1, got {layers!r}")
    return _C.blocks_of_fractions(first, last, n_layers)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | str | bytes):
        return False
    return _block(value) is not None or (hasattr(value, "__float__") and not getattr(value, "shape", ()))


def _block(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def listed(values: Any, name: str, who: str) -> list:
    """The values as a list; those of a tensor too.

    Raises:
        TypeError: one value, or text, where several are wanted.
    """
    if isinstance(values, torch.Tensor):
        return values.flatten().tolist()
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise TypeError(f"{who}: {name} must be a list, got {values!r}")
    return list(values)


def all_or_some(values: Any, name: str, who: str) -> list:
    """The values as a list; an empty one for None, by which native functions mean all.

    Raises:
        TypeError: one value, or text, where several are wanted.
        ValueError: an empty list, of which nobody knows whether it means none or all.
    """
    if values is None:
        return []
    chosen = listed(values, name, who)
    if not chosen:
        raise ValueError(f"{who}: {name} must hold one at least (None is all of them), got an empty list")
    return chosen


def native_model(model: Any, who: str, name: str = "model") -> _C.Model:
    """The native model of an introspect.Model or HookedTransformer, for work that knows nothing of its hooks.

    Raises:
        TypeError: it is none.
        ConfigError: it is hooked or steered, which would be left out.
    """
    native = model if isinstance(model, _C.Model) else getattr(model, "native", None)
    if isinstance(native, _C.Model):
        if getattr(model, "is_hooked", False):
            raise _C.ConfigError(
                f"{who}: {name} must have nothing hooked into it and no steering, which would be left out: "
                "leave the with block, or call reset_hooks()"
            )
        return native
    hint = "; introspect.load_model makes one of a name or path" if isinstance(model, str | os.PathLike) else ""
    raise TypeError(f"{who}: model must be an introspect.Model, got {type(model).__name__}{hint}")


def control_vectors(vector: Any, who: str) -> list[_C.ControlVector | None]:
    """The vectors that are meant by one, or by a list with None for a row as it is.

    Raises:
        TypeError: something else, with what makes a vector of it.
    """
    if isinstance(vector, _C.ControlVector):
        return [vector]
    if isinstance(vector, Sequence) and not isinstance(vector, str):
        for one in vector:
            if one is not None:
                control_vector(one, who)
        return list(vector)
    control_vector(vector, who)
    raise AssertionError  # it is none


def control_vector(vector: Any, who: str) -> _C.ControlVector:
    """The vector itself.

    Raises:
        TypeError: it is none.
    """
    if isinstance(vector, _C.ControlVector):
        return vector
    hint = VECTOR_HINT
    if callable(getattr(vector, "native", None)):  # repeng's
        hint = "vector.native() is one of the same directions"
    elif isinstance(vector, str | os.PathLike):
        hint = "introspect.ControlVector.load(path) reads one"
    raise TypeError(f"{who}: a vector must be an introspect.ControlVector, got {type(vector).__name__}; {hint}")


def positions_and_ids(who: str, positions: Any, **ids: Any) -> None:
    """Raises TypeError for positions that are neither (first, last) nor a list, and for ids that are no list."""
    is_span = isinstance(positions, tuple) and len(positions) == 2
    if not is_span and not isinstance(positions, list):
        raise TypeError(f"{who}: positions must be (first, last) or a list of positions, got {positions!r}")
    for name, value in ids.items():
        if value is not None and not callable(value) and (isinstance(value, str) or not hasattr(value, "__iter__")):
            raise TypeError(f"{who}: {name} must be a list of token ids, got {value!r}")


# Prompts


def is_messages(prompt: Any) -> TypeGuard[Messages]:
    """True for a conversation: a list of {"role": ..., "content": ...}."""
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and bool(prompt)
        and all(isinstance(message, Mapping) for message in prompt)
    )


def as_texts(prompt: Any, render: Callable[[Messages], str], who: str) -> list[str]:
    """The texts that are meant by one, by a conversation, or by a list of texts and conversations.

    Args:
        render: makes the text of a conversation.

    Raises:
        TypeError: something else.
    """
    if isinstance(prompt, str):
        return [prompt]
    if is_messages(prompt):
        return [_rendered(prompt, render, who)]
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence):
        raise TypeError(f"{who}: {_PROMPT}, got {type(prompt).__name__}")
    texts = []
    for one in prompt:
        if is_messages(one):
            one = _rendered(one, render, who)
        if not isinstance(one, str):
            raise TypeError(f"{who}: {_PROMPT}, got a list with {type(one).__name__}")
        texts.append(one)
    return texts


_PROMPT = "text, a list of texts, or messages [{'role': ..., 'content': ...}] is required"


def _rendered(messages: Messages, render: Callable[[Messages], str], who: str) -> str:
    for message in messages:
        if not {"role", "content"} <= set(message):
            raise ValueError(f"{who}: a message must have 'role' and 'content', got {sorted(message)}")
    return render(messages)


def as_rows(prompt: Any, to_ids: Callable[[Any], list[list[int]]], who: str) -> list[list[int]]:
    """Token ids by row: those of tokens [batch, pos] or [pos], or of anything else what ``to_ids`` makes of it.

    Raises:
        ShapeError: tokens of another shape or dtype.
    """
    if not isinstance(prompt, torch.Tensor):
        return to_ids(prompt)
    if prompt.layout != torch.strided or prompt.is_meta or prompt.is_nested:
        raise _C.ShapeError(f"{who}: tokens must be a dense tensor, got {prompt.layout} on {prompt.device}")
    if prompt.ndim not in (1, 2) or prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
        raise _C.ShapeError(f"{who}: tokens must be int64 [batch, pos], got {prompt.dtype} {list(prompt.shape)}")
    return (prompt[None] if prompt.ndim == 1 else prompt).tolist()


def checked_source(source: Any, who: str) -> str | os.PathLike:
    """The name or path of a model.

    Raises:
        TypeError: something else.
    """
    if isinstance(source, str | os.PathLike):
        return source
    raise TypeError(
        f"{who}: a model is a short name, a path, a hub id or a transformers model in memory, got "
        f"{type(source).__name__}"
    )
