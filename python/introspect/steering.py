"""Control vectors: pairs of texts, training, arithmetic, files."""

from ._C import ControlVector, concept_pairs, random_rotation

__all__ = ["ControlVector", "concept_pairs", "random_rotation"]
