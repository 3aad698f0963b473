"""Effects of patching: how much the metric of the patched run changes, exactly or as an estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from .. import _C
from .metrics import Metric
from .patching import PatchGrid
from .prompts import Prompts, check_aligned, tokens_of

if TYPE_CHECKING:
    import pandas as pd

    from ..plots.style import Figure

Direction = Literal["denoising", "noising"]


@dataclass(frozen=True)
class EffectGrid(PatchGrid):
    """What patching each place adds to the metric of the patched run, for every pair of prompts.

    ``values`` are these effects [pairs, one dimension for each of ``axes``]: 0 where nothing can change. ``clean`` and
    ``corrupted`` are the metrics [pairs] of both runs as they are; the patched run is the corrupted one (denoising) or
    the clean one (noising).
    """

    direction: Direction = "denoising"
    _column: ClassVar[str] = "effect"

    @property
    def patched(self) -> torch.Tensor:
        """The metric of the run that is patched, as it is [pairs]."""
        return self.clean if self.direction == "noising" else self.corrupted

    def metric(self) -> torch.Tensor:
        """The metric of the patched run in each cell: what ``patch_grid`` calls its values."""
        return self.values + self._of_pairs(self.patched)

    def normalised(self) -> torch.Tensor:
        """Of each pair: effects as a share of the clean run's metric less the corrupted one's; NaN where it is 0."""
        gap = self._of_pairs(self.clean - self.corrupted)
        return torch.where(gap == 0, torch.nan, self.values / gap)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The rows of the ``n`` largest mean effects, of either sign."""
        table = self.to_pandas()
        order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order[:n]].reset_index(drop=True)

    def plot(self, *, normalised: bool | None = False, title: str = "") -> Figure:
        """A map of mean effects: layers upwards, or source heads upwards and later heads along.

        Of more axes than a map has, effects are summed over positions.
        """
        from ..plots.effects import effect_plot

        values = self.normalised().nanmean(0) if normalised else self.mean()
        axes = list(self.axes)
        for axis in ("position", "dest", "src"):
            if len(axes) > 2 and axis in axes:
                values = values.sum(axes.index(axis))
                axes.remove(axis)
        label = "share of clean - corrupted" if normalised else "effect on the metric"
        return effect_plot(values, axes, self.labels, label=label, title=title or self.point)

    def _of_pairs(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, *[1] * len(self.axes))


def pairs_of(
    model: Any, clean: Prompts, corrupted: Prompts, metric: Metric, direction: str, who: str
) -> tuple[list[_C.PatchPair], Sequence[Sequence[int]]]:
    """Native pairs of prompts and the clean prompts' tokens.

    Raises:
        TypeError: a metric that is not data.
        ValueError: prompts of different lengths, as many of one as not of the other, or another direction.
    """
    if not isinstance(metric, Metric):
        raise TypeError(f"{who}: metric must be LogitDifference or one of its neighbours, got {type(metric).__name__}")
    if direction not in ("denoising", "noising"):
        raise ValueError(f"{who}: direction must be denoising or noising, got {direction!r}")
    cleans, others = tokens_of(model, clean, who, "clean"), tokens_of(model, corrupted, who, "corrupted")
    if len(cleans) != len(others):
        raise ValueError(f"{who}: as many clean as corrupted prompts are needed, got {len(cleans)} and {len(others)}")
    runs = list(zip(cleans, others, strict=True))
    check_aligned(model, runs, who)
    metrics = metric.resolve(model, len(runs))
    ordered = runs if direction == "noising" else [(other, one) for one, other in runs]
    return [_C.PatchPair(to, from_, one) for (to, from_), one in zip(ordered, metrics, strict=True)], cleans


def ends_of(found: Any, direction: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean and the corrupted run's metrics [pairs]."""
    return (found.to, found.from_) if direction == "noising" else (found.from_, found.to)
