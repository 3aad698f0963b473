"""What an experiment takes, known before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..progress import duration

if TYPE_CHECKING:
    from .. import _C

HOUR = 3600.0


@dataclass(frozen=True)
class ExperimentPlan:
    """What ``run_experiment(..., plan=True)`` gives in place of a result.

    Attributes:
        readings: questions under injections, and without; those that are shared count each time.
        found: of those, in the store.
        token_layers_asked: tokens times layers of the missing ones, each conversation run by itself.
        token_layers_to_run: those that are run instead.
        seconds: estimate, by a short timed pass of this model on this machine as it is now.
        peak_bytes: estimate of the memory beside the model.
        passes: over the model's blocks. Blocks that stay in their files (``keep_blocks=False``) are read again by each.
        bytes_read: of those files, over all passes; 0 where the model is in memory.
    """

    readings: int
    found: int
    token_layers_asked: int
    token_layers_to_run: int
    seconds: float
    peak_bytes: int
    passes: int = 0
    bytes_read: int = 0

    @classmethod
    def of(cls, plan: _C.RunPlan) -> ExperimentPlan:
        return cls(*(getattr(plan, name) for name in cls.__dataclass_fields__))

    def __str__(self) -> str:
        found = f" ({self.found:,} of them in the store)" if self.found else ""
        if self.found == self.readings:
            return f"{self.readings:,} readings, all of them in the store"
        passes = f"{self.passes:,} pass{'es' if self.passes > 1 else ''} over the weights"
        read = f"; {memory(self.bytes_read)} read from files in {passes}" if self.bytes_read else ""
        return (
            f"{self.readings:,} readings{found}, about {duration(self.seconds)}, {memory(self.peak_bytes)} beside the "
            f"model; {number(self.token_layers_to_run)} token-layers instead of {number(self.token_layers_asked)}{read}"
        )


def number(n: int) -> str:
    """ "31,250" or "1.2 million"."""
    return f"{n:,}" if n < 100_000 else f"{n / 1e6:,.3g} million" if n < 1e9 else f"{n / 1e6:,.0f} million"


def memory(n_bytes: int) -> str:
    """ "120 MB" or "3.1 GB"."""
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"
