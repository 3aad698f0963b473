"""Introspection experiments: protocols, and running them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path

from . import _C
from .model import Model
from .results import Result
from .steering import ControlVector
from .store import Store

PROTOCOLS = ("top_of_mind", "no_info", "with_info", "inaccurate_location", "lorem_ipsum", "content_report")

LayerRange = tuple[int, int] | tuple[float, float]


def load_protocol(source: str | os.PathLike) -> _C.Protocol:
    """An experiment's turns, injected messages and questions.

    Args:
        source: a shipped name (see ``introspect.experiment.PROTOCOLS``) or a JSON file of the format that
            ``introspect.Protocol`` describes.

    Raises:
        IoError: no such file.
        ConfigError: a mistake in it, with its place.
    """
    if source in PROTOCOLS:
        return _C.Protocol.load(Path(__file__).parent / "data" / "protocols" / f"{source}.json")
    if not Path(source).exists():
        raise _C.IoError(f"load_protocol: neither a file nor one of {', '.join(PROTOCOLS)}: {os.fspath(source)}")
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


def run_experiment(
    model: Model,
    protocol: _C.Protocol,
    *,
    vectors: Mapping[str, ControlVector],
    strengths: Sequence[float],
    layers: Sequence[LayerRange] = ((0.33, 0.66),),
    questions: Sequence[str] | None = None,
    nulls: int = 0,
    strength_unit: str = "absolute",
    seed: int = 0,
    store: str | os.PathLike | _C.Store | None = None,
    batch_bytes: int = 512 << 20,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Run a protocol with every vector x strength x layer range, and the same with random rotations of the vectors.

    The injected messages are prefilled once un-steered and once for each injection, with the vector added to the output
    of every block of the range at each of their tokens. Then the steering is off, unless the protocol keeps it on, and
    each question runs on a fork of that cache. Readings are float32 log-odds, whatever the model's dtype.

    Args:
        model: with tokenizer and chat template.
        protocol: see ``load_protocol``.
        vectors: {concept: vector}.
        strengths: factors of the directions; 0 is the un-steered run itself.
        layers: (first, last) blocks, both included, 0-based; a pair of floats is fractions of the depth
            ((0.33, 0.66) is 8 to 16 of 24).
        questions: control questions; None asks the protocol's own, [] none.
        nulls: random rotations of each vector, with its norms and the cosines between its layers.
        strength_unit: "absolute", or "residual": directions count as unit vectors, and 1 is the mean norm of the
            un-steered residual stream after that block, over the injected tokens.
        seed: of the rotations and of sampled text.
        store: a file that keeps every reading as it is made; readings found there are not made again.
        batch_bytes: memory for injections that run side by side.
        progress: called with (what, done, total), counted in readings.

    Raises:
        ValueError: strengths that are not finite, no vectors, counts below their least.
        IndexError: layers the model does not have.
        ShapeError: a vector of another width, or a conversation longer than n_ctx.
        ConfigError: a protocol, template or tokenizer that does not fit; a range without any direction.
    """
    data = json.loads(
        _C.run_experiment(
            model.engine,
            protocol,
            vectors=list(vectors.items()),
            strengths=list(strengths),
            layers=[_layer_range(pair) for pair in layers],
            questions=None if questions is None else list(questions),
            nulls=nulls,
            strength_unit=strength_unit,
            seed=seed,
            store=store if store is None or isinstance(store, _C.Store) else Store(store),  # type: ignore[arg-type]
            batch_bytes=batch_bytes,
            progress=progress,
        )
    )
    data["model"]["name"] = Path(model.name).name.removesuffix(".gguf")  # files often bear another model's name inside
    for warning in data.pop("warnings"):
        warnings.warn(warning, stacklevel=2)
    return Result(data)


def _layer_range(pair: LayerRange) -> tuple[float, float, bool]:
    first, last = pair
    is_fraction = not (isinstance(first, Integral) and isinstance(last, Integral))
    return float(first), float(last), is_fraction
