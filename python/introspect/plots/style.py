"""Colours and what axes have in common.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; what is random is grey everywhere.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence

import matplotlib.figure
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm

from ..experiments.results import Compared

CONCEPT, CONTROL, NULL = "#0072B2", "#D55E00", "#8a8a8a"
THIRD = "#009E73"  # where neither of the first two is meant
PANELS = 3  # beside one another
NATS = "change of log-odds yes : no (nats)"
RANDOM = "random directions (band: lowest to highest)"  # one convention in every plot, table and sentence


class NothingToDraw(ValueError):
    """A result without what a picture is about; the message says what it needs."""


class Figure(matplotlib.figure.Figure):
    """A figure that notebooks show by themselves, whether pyplot is loaded or not."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def strip(
    axes: Axes,
    y: float,
    compared: Compared,
    colour: str,
    *,
    size: float,
    interval: tuple[float, float] | None = None,
    band_height: float = 0.26,
) -> None:
    """One line: the nulls' range as a band, each null as a tick, the concept's value on top, with its interval."""
    nulls = [null for null in compared.nulls if math.isfinite(null)]
    if nulls:
        low, high = min(nulls), max(nulls)
        axes.barh(y, high - low, left=low, height=2 * band_height, color=NULL, alpha=0.22, linewidth=0)
        axes.plot(nulls, [y] * len(nulls), "|", color=NULL, markersize=size + 1, markeredgewidth=1.1)
    if interval and all(map(math.isfinite, (*interval, compared.value))):
        low, high = interval
        ends = [[compared.value - low], [high - compared.value]]
        axes.errorbar([compared.value], [y], xerr=ends, color=colour, linewidth=1.4, capsize=3)
    axes.plot([compared.value], [y], "o", color=colour, markersize=size, markeredgecolor="white", zorder=4)


def finish(axes: Axes, names: list[str], xlabel: str) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color="#555555", linewidth=0.9, zorder=1)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    bare(axes)


def bare(axes: Axes) -> None:
    axes.use_sticky_edges = False  # room between a band and the frame
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)


def colour_bar(
    figure: Figure,
    axes: Axes | Sequence[Axes],
    norm: Normalize,
    colours: str,
    label: str,
    *,
    shrink: float = 0.85,
    pad: float = 0.015,
) -> None:
    """What the colours of maps mean, to their right."""
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, shrink=shrink, pad=pad)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]


def signed_norm(values: Iterable[float], *, least: float = 0.0, tolerance: float = 0.0) -> tuple[Normalize, str]:
    """A scale from 0 up or, where a value is negative, symmetric about 0, and its colours.

    Args:
        least: the scale's end, at least.
        tolerance: below 0 by less than this share of the end is not negative.
    """
    finite = [v for v in values if math.isfinite(v)]
    limit = max([abs(v) for v in finite] + [least]) or 1.0
    if min(finite, default=0.0) < -tolerance * limit:
        return TwoSlopeNorm(0.0, -limit, limit), "RdBu_r"
    return Normalize(0.0, limit), "viridis"


def frame(axes: Axes) -> None:
    """Ticks, a light grid and a frame of two sides."""
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def legend(axes: Axes, colours: list[tuple[str, str]], nulls: bool) -> None:
    handles = [axes.plot([], [], "o", color=colour, label=text, markersize=7)[0] for text, colour in colours]
    if nulls:
        handles.append(axes.plot([], [], "|", color=NULL, label=RANDOM, markersize=9)[0])
    legend_below(axes.figure, handles)


def legend_below(figure: matplotlib.figure.FigureBase, handles: Sequence[Artist]) -> None:
    """Below all panels, in as many columns as the figure is wide enough for."""
    for columns in range(len(handles), 0, -1):
        below = figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)
        if columns == 1 or below.get_window_extent().width <= figure.get_window_extent().width:
            return
        below.remove()


def shorten(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder="…")
