"""Control vectors: pairs of texts, training, arithmetic, files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from .. import _C
from .._C import (
    Activations,
    ControlVector,
    LayerDiagnostics,
    collect_activations,
    concept_pairs,
    contrast,
    diagnose,
    direction_of_pairs,
    random_directions,
    random_rotation,
)
from ..hooked_model import HookedModel
from ..model import load_model

__all__ = [
    "Activations",
    "ControlVector",
    "LayerDiagnostics",
    "collect_activations",
    "concept_pairs",
    "contrast",
    "contrast_models",
    "diagnose",
    "direction_of_pairs",
    "random_directions",
    "random_rotation",
    "shuffled_vectors",
]


def contrast_models(
    positive: HookedModel | str | os.PathLike,
    negative: HookedModel | str | os.PathLike,
    texts: Sequence[str],
    *,
    method: str = "pca_center",
    layers: Sequence[int] | None = None,
    read_position: int | tuple[int, int | None] = -1,
    point: str = "hook_resid_post",
    last_layer_after_norm: bool = False,
    memory_budget: int = 1 << 30,
    seed: int = 0,
    folds: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
    **load_options,
) -> ControlVector:
    """The vector that turns one model into another, from what the same texts are in both.

    Models given as paths or names are loaded one after the other, the second when the first is gone again. To keep what
    was read of one of them, take the steps by hand: ``collect_activations`` of each, then ``contrast``.

    Args:
        positive: the model that the vector leads to, or where it is.
        negative: the model that the vector is for.
        texts: run as they are, without a chat template.
        method: see direction_of_pairs.
        layers: see ControlVector.train, and so for the arguments that follow.
        load_options: of ``load_model``, for models that are not loaded yet.

    Raises:
        ValueError, IndexError, HookError, ShapeError, ConfigError: as ``collect_activations`` and ``contrast`` do.
        IoError: a model that cannot be loaded.
    """

    def read(model: HookedModel | str | os.PathLike) -> _C.Activations:
        return collect_activations(
            model if isinstance(model, HookedModel) else load_model(model, progress=progress, **load_options),
            list(texts),
            layers=None if layers is None else list(layers),
            read_position=read_position,
            point=point,
            last_layer_after_norm=last_layer_after_norm,
            memory_budget=memory_budget,
            progress=progress,
        )

    return contrast(read(positive), read(negative), method=method, seed=seed, folds=folds, progress=progress)


def shuffled_vectors(
    model: HookedModel, pairs: Sequence[tuple[str, str]], n: int = 10, *, seed: int = 0, **options: Any
) -> list[ControlVector]:
    """Null vectors: trained on the same texts, dealt into pairs at random.

    They know what the texts are about and how the model takes them, but not which side a text was on: the exchange of
    labels of a permutation test. Random rotations know neither. Each has the length of the true pairs' vector in every
    layer, so that equal strengths change the residual stream by as much. For ``run_experiment``'s ``null_vectors``.

    Args:
        pairs: those of the vector that the nulls are for.
        n: how many.
        seed: of the dealing.
        options: of ``ControlVector.train``.

    Raises:
        ValueError: n below 1, and as ``ControlVector.train``.
    """
    if n < 1:
        raise ValueError(f"shuffled_vectors: n must be 1 or more, got {n}")
    rng = random.Random(seed)
    texts = [text for pair in pairs for text in pair]
    sets = {"true pairs": list(pairs)}
    for number in range(n):
        rng.shuffle(texts)
        sets[f"shuffled {number}"] = list(zip(texts[::2], texts[1::2], strict=True))
    trained = ControlVector.train_many(model, sets, **options)
    lengths = trained.pop("true pairs").norms
    return [_of_lengths(vector, lengths) for vector in trained.values()]


def _of_lengths(vector: ControlVector, lengths: dict[int, float]) -> ControlVector:
    own = vector.norms
    scaled = ((layer, d * (lengths[layer] / own[layer])) for layer, d in vector.directions.items())
    return ControlVector(vector.model_type, dict(scaled))
