"""Maps of all layer ranges: the first steered block against the last."""

from __future__ import annotations

import math
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm

from ..experiments.detections import LEAST_FOR_Z
from ..experiments.results import Detection, Result
from ..experiments.sweeps import RangeGrid, range_grids
from .style import Figure, NothingToDraw, bare

MOST = 4  # rows of one figure
OUTSIDE, BROKEN, NOT_RUN = "above or below all random directions", "not finite", "not run"
COLOURS = "RdBu_r"  # blue below zero, red above: kept apart by the colour-blind, too

# What is drawn of each range, and what its title says.
PANELS: list[tuple[str, Callable[[Detection], float]]] = [
    ("introspection question", lambda d: d.shift.value),
    ("mean of the controls", lambda d: d.control_mean.value if d.control_mean else math.nan),
    ("introspection − controls", lambda d: d.corrected.value if d.corrected else math.nan),
]


def range_maps(result: Result) -> Figure:
    """The shift of every range, one row for each concept and strength.

    A dot marks ranges whose last quantity lies above or below all random directions, where there are five or more.

    Raises:
        ValueError: no concept and strength was run with ranges of three widths or more.
    """
    grids = range_grids(result)
    if not grids:
        raise NothingToDraw("range_maps: ranges of three widths or more are needed for one concept and strength")
    left_out = len(grids) - MOST
    grids = grids[:MOST]
    panels = max(map(panels_of, grids), key=len)
    figure = Figure(figsize=(1.6 + 3.6 * len(panels), 1.0 + 3.5 * len(grids)), layout="constrained")
    rows = figure.subplots(len(grids), len(panels), squeeze=False)
    for row, grid in zip(rows, grids, strict=True):
        values = [quantity(d) for _, quantity in panels for d in grid.cells.values()]
        limit = max((abs(v) for v in values if math.isfinite(v)), default=1.0) or 1.0
        norm = TwoSlopeNorm(0.0, -limit, limit)
        for axes, (title, quantity) in zip(row, panels, strict=True):
            _map(axes, grid, quantity, norm)
            _cross(axes, grid, quantity)
            axes.set_title(title, fontsize=9.5, loc="left")
            axes.set_xlabel("last steered block", fontsize=9)
        dots = _mark(row[-1], grid)
        row[0].set_ylabel(f"{grid.name}\nfirst steered block", fontsize=9)
        bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=list(row), shrink=0.85, pad=0.01)
        bar.set_label("nats", fontsize=9)
        bar.ax.tick_params(labelsize=8.5)
        bar.outline.set_visible(False)  # type: ignore[operator]
        if (n := _nulls(grid)) >= LEAST_FOR_Z:
            chance = 2 * len(grid.cells) / (n + 1)
            outside = f"dots: {dots} of {len(grid.cells)} outside the {n} random (by chance: {chance:.0f})"
            row[-1].set_xlabel(f"last steered block\n{outside}", fontsize=9)
    more = f" · the first {MOST} of {left_out + MOST}" if left_out > 0 else ""
    title = f"{result.protocol['name']} · {result.model['name']} · change of log-odds yes : no{more}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def panels_of(grid: RangeGrid) -> list[tuple[str, Callable[[Detection], float]]]:
    """What is drawn of a grid: all of PANELS, or the shift alone where no controls were asked."""
    return PANELS if any(d.corrected for d in grid.cells.values()) else PANELS[:1]


def marked(grid: RangeGrid) -> list[tuple[int, int]]:
    """The ranges outside of all their random directions; none where there are fewer than LEAST_FOR_Z of these."""
    return [
        ends
        for ends, d in grid.cells.items()
        if d.headline.band and len(d.headline.nulls) >= LEAST_FOR_Z and not d.headline.inside
    ]


def not_finite(grid: RangeGrid, quantity: Callable[[Detection], float]) -> list[tuple[int, int]]:
    """The ranges that were run and gave no finite number."""
    return [ends for ends, d in grid.cells.items() if not math.isfinite(quantity(d))]


def thinned(n: int, most: int) -> list[int]:
    """At most so many of the numbers 0 to n - 1, evenly spaced from the first."""
    return list(range(0, n, max(1, math.ceil(n / most))))


def matrix(grid: RangeGrid, quantity: Callable[[Detection], float]) -> tuple[list[int], list[int], list[list[float]]]:
    """First layers (rows), last layers (columns) and the quantity, NaN where a range was not run."""
    firsts = sorted({first for first, _ in grid.cells})
    lasts = sorted({last for _, last in grid.cells})
    values = [
        [quantity(grid.cells[first, last]) if (first, last) in grid.cells else math.nan for last in lasts]
        for first in firsts
    ]
    return firsts, lasts, values


def _map(axes: Axes, grid: RangeGrid, quantity: Callable[[Detection], float], norm: TwoSlopeNorm) -> None:
    firsts, lasts, values = matrix(grid, quantity)
    axes.imshow(values, cmap=COLOURS, norm=norm, interpolation="nearest", aspect="auto")
    axes.autoscale(enable=False)  # marks do not move the edges
    axes.set_facecolor("#dedede")  # what was not run is not white, as zero is
    for ticks, layers in ((axes.set_xticks, lasts), (axes.set_yticks, firsts)):
        shown = thinned(len(layers), 10)
        ticks(shown, [str(layers[i]) for i in shown])
    axes.tick_params(labelsize=8.5, length=2)
    bare(axes)
    axes.spines["bottom"].set_visible(False)


def _mark(axes: Axes, grid: RangeGrid) -> int:
    firsts, lasts, _ = matrix(grid, lambda d: d.headline.value)
    outside = [(lasts.index(last), firsts.index(first)) for first, last in marked(grid)]
    if outside:
        size = min(14.0, 900 / len(lasts) ** 1.5)
        xs, ys = zip(*outside, strict=True)
        axes.scatter(xs, ys, s=size, color="black", linewidth=0, zorder=3)
    return len(outside)


def _cross(axes: Axes, grid: RangeGrid, quantity: Callable[[Detection], float]) -> None:
    firsts, lasts, _ = matrix(grid, quantity)
    for first, last in not_finite(grid, quantity):
        axes.plot(lasts.index(last), firsts.index(first), "x", color="black", markersize=5)


def _nulls(grid: RangeGrid) -> int:
    return max((len(d.headline.nulls) for d in grid.cells.values()), default=0)
