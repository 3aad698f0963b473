"""The random rotations that experiments compare vectors with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from .. import _C
from ..steering.training import ControlVector


def rotations(vectors: Mapping[str, ControlVector], n: int, seed: int) -> dict[str, list[ControlVector]]:
    """{concept: n random rotations of its vector}, each its own: those that ``run_experiment`` makes of the seed."""

    def drawn(concept: str, number: int) -> int:
        return int(hashlib.sha256(f"{seed}/{concept}/{number}".encode()).hexdigest()[:16], 16)

    return {
        concept: [_C.random_rotation(vector, seed=drawn(concept, i)) for i in range(n)]
        for concept, vector in vectors.items()
    }
