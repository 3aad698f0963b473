"""What a model computes: metrics, patching, lenses, heads, probes, erasure; native in cpp's analysis module."""

from .attribution_patching import attribution_patch
from .effects import EffectGrid
from .metrics import (
    Accuracy,
    Divergence,
    JSDivergence,
    LogitDifference,
    LogProbability,
    Metric,
    Probability,
    ProbabilityDifference,
    Rank,
)
from .patching import PatchGrid, PatchGrids, causal_trace, patch_grid
from .path_patching import direct_path_grid, path_patching

__all__ = [
    "Accuracy",
    "Divergence",
    "EffectGrid",
    "JSDivergence",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "PatchGrid",
    "PatchGrids",
    "Probability",
    "ProbabilityDifference",
    "Rank",
    "attribution_patch",
    "causal_trace",
    "direct_path_grid",
    "patch_grid",
    "path_patching",
]
