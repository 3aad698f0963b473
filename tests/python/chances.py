"""Bounds of counts in simulations, which a right program misses once in 10,000 times."""

from scipy import stats

RARE = 1e-4


def at_most(share: float, draws: int) -> float:
    """What a count of outcomes of this chance exceeds so rarely."""
    return stats.binom.ppf(1 - RARE, draws, share)


def at_least(share: float, draws: int) -> float:
    """What it falls below so rarely."""
    return stats.binom.ppf(RARE, draws, share)
