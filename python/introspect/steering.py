"""Control vectors: pairs of texts, training, arithmetic, files."""

from ._C import (
    ControlVector,
    LayerDiagnostics,
    concept_pairs,
    diagnose,
    direction_of_pairs,
    random_directions,
    random_rotation,
)

__all__ = [
    "ControlVector",
    "LayerDiagnostics",
    "concept_pairs",
    "diagnose",
    "direction_of_pairs",
    "random_directions",
    "random_rotation",
]
