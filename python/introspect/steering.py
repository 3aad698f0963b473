"""Control vectors: pairs of texts, training, arithmetic, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from . import _C
from ._C import (
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
from .model import Model, load_model

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
]


def contrast_models(
    positive: Model | str | os.PathLike,
    negative: Model | str | os.PathLike,
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

    def read(model: Model | str | os.PathLike) -> _C.Activations:
        return collect_activations(
            model if isinstance(model, Model) else load_model(model, progress=progress, **load_options),
            list(texts),
            layers=None if layers is None else list(layers),
            read_position=read_position,
            point=point,
            last_layer_after_norm=last_layer_after_norm,
            memory_budget=memory_budget,
            progress=progress,
        )

    return contrast(read(positive), read(negative), method=method, seed=seed, folds=folds, progress=progress)
