"""How alike the directions of two dictionaries are, and whether known features were found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import _C

ROWS = 4096  # of a matrix of cosines at a time


@dataclass(frozen=True, eq=False)
class Recovery:
    """How well learned directions give back true ones.

    Attributes:
        mmcs: mean over true features of the largest |cosine| with a learned one; one learned feature may serve several.
        mcc: mean |cosine| of the one-to-one matching that makes it largest, over the true features that are matched
            (all, unless fewer were learned).
        found: share of the true features with a |cosine| of 0.9 or more in that matching.
        matches: int64 [n, 2], true and learned feature of each pair.
        cosines: [n], with their signs.
    """

    mmcs: float
    mcc: float
    found: float
    matches: torch.Tensor
    cosines: torch.Tensor


def recovery(learned: Any, true: Any) -> Recovery:
    """MMCS and MCC of learned against true features.

    Args:
        learned, true: dictionaries, or directions [features, d].

    Raises:
        ShapeError: directions of different widths.

    Sources: Sharkey et al. 2022 (MMCS); Hungarian matching as in SynthSAEBench, 2602.14687 (MCC).
    """
    from scipy.optimize import linear_sum_assignment

    cosines = decoder_cosines(true, learned)
    size = cosines.abs()
    rows, columns = linear_sum_assignment(size.numpy(), maximize=True)
    matches = torch.stack([torch.as_tensor(rows), torch.as_tensor(columns)], 1)
    matched = cosines[matches[:, 0], matches[:, 1]]
    found = (matched.abs() >= 0.9).double().sum().item() / len(cosines)
    return Recovery(size.amax(1).mean().item(), matched.abs().mean().item(), found, matches, matched)


def decoder_cosines(a: Any, b: Any) -> torch.Tensor:
    """Cosines of the directions of two dictionaries (or directions [features, d]), float64 [of a, of b].

    Raises:
        ShapeError: directions of different widths.
    """
    first, second = _units(a), _units(b)
    if first.shape[1] != second.shape[1]:
        raise _C.ShapeError(f"decoder_cosines: widths must be equal, got {first.shape[1]} and {second.shape[1]}")
    return first @ second.T


def best_cosines(a: Any, b: Any | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """For every feature of ``a`` the feature of ``b`` whose direction is most alike, without the whole matrix.

    ``b`` None: the most alike other feature of ``a`` itself: near 1 two features are one that was split or doubled.

    Returns:
        cosines float64 [of a], and the features int64 [of a].

    Raises:
        ShapeError: directions of different widths.
    """
    first = _units(a)
    second = first if b is None else _units(b)
    if first.shape[1] != second.shape[1]:
        raise _C.ShapeError(f"best_cosines: widths must be equal, got {first.shape[1]} and {second.shape[1]}")
    found = []
    for start in range(0, len(first), ROWS):
        cosines = first[start : start + ROWS] @ second.T
        if b is None:
            own = torch.arange(len(cosines))
            cosines[own, own + start] = -2
        found.append(cosines.max(1))
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def _units(directions: Any) -> torch.Tensor:
    rows = directions.weights["W_dec"] if isinstance(directions, _C.Dictionary) else directions
    if rows.ndim != 2:
        raise _C.ShapeError(f"directions must be [features, d], got {list(rows.shape)}")
    return torch.nn.functional.normalize(rows.detach().cpu().double(), dim=1)
