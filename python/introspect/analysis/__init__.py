"""What a model computes: metrics, patching, lenses, heads, probes, erasure; native in cpp's analysis module."""

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

__all__ = [
    "Accuracy",
    "Divergence",
    "JSDivergence",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "Probability",
    "ProbabilityDifference",
    "Rank",
]
