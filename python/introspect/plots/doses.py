"""Doses over strength: divergence at the injected and the later tokens, size, and how the text reads."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from .style import CONCEPT, CONTROL, NULL, THIRD, Figure, NothingToDraw, frame, legend_below, shorten

COLOURS = (CONCEPT, CONTROL, THIRD, "#CC79A7", "#E69F00", "#56B4E9")
MOST = 12  # lines of one panel
LEAST_KL = 1e-6  # nats: below it is rounding


def dose_curves(doses: Any) -> Figure:
    """Three panels over strength: KL (dashed at the tokens after the injected ones), size, and coherence.

    A line is a vector and range, grey for random rotations; an open marker in the last panel is text that is broken.

    Raises:
        NothingToDraw: no row with a strength above 0.
    """
    lines: dict[tuple[str, int, int, int], list[Any]] = {}
    for row in doses:
        if row.strength > 0:
            lines.setdefault((row.concept, row.first_layer, row.last_layer, row.null_index), []).append(row)
    if not lines:
        raise NothingToDraw("dose_curves: at least one strength above 0 is needed")
    figure = Figure(figsize=(10.8, 3.9), layout="constrained")
    panels = figure.subplots(1, 3)
    handles = []
    vectors = [place for place in lines if place[3] < 0]
    for place, rows in list(lines.items())[: MOST + 10]:
        rows.sort(key=lambda row: row.strength)
        is_null = place[3] >= 0
        colour = NULL if is_null else COLOURS[vectors.index(place) % len(COLOURS)]
        name = f"{place[0] or 'vector'}, blocks {place[1]}–{place[2]}" + (" (random)" if is_null else "")
        style: dict[str, Any] = {"color": colour, "linewidth": 0.9 if is_null else 1.6, "markersize": 4}
        _line(panels[0], rows, "kl", marker="o", **style)
        if not is_null:
            _line(panels[0], rows, "kl_later", linestyle="--", marker="", **style)
            _line(panels[2], rows, "coherence", marker="o", **style)
            broken = [row for row in rows if row.coherent is False]
            panels[2].plot(
                [row.strength for row in broken],
                [row.coherence for row in broken],
                "o",
                color="white",
                markeredgecolor=colour,
                markersize=5,
                zorder=5,
            )
        _line(panels[1], rows, "sd", marker="o", **style)
        if not is_null or place[3] == 0:
            handles.append(panels[0].plot([], [], color=colour, label=shorten(name, 40))[0])
    if any(math.isfinite(row.kl_later) for row in doses):
        handles.append(panels[0].plot([], [], "--", color="#555555", label="at the later tokens")[0])
    if any(row.coherent is False for row in doses):
        handles.append(panels[2].plot([], [], "o", color="white", markeredgecolor="#555555", label="text is broken")[0])
    unit = next(iter(doses)).unit
    titles = (
        "KL from the unsteered run (nats a token)",
        "length (natural standard deviations)",
        "coherence of the text",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=9.5, loc="left")
        axes.set_xscale("log")
        _label(axes.xaxis, _few(sorted({row.strength for rows in lines.values() for row in rows})))
        axes.set_xlabel("strength" + (" (residual norms)" if unit == "residual" else ""), fontsize=9)
        frame(axes)
    for axes in panels[:2]:
        if axes.lines:
            axes.set_yscale("log")
            _label(axes.yaxis)
    panels[2].set_ylim(-0.03, 1.05)
    legend_below(figure, handles)
    return figure


def _few(strengths: list[float], most: int = 5) -> list[float]:
    return strengths[:: math.ceil(len(strengths) / most)]


def _label(axis: Axis, at: list[float] | None = None) -> None:
    """Numbers on a logarithmic axis: at these places, or at 1, 2 and 5 of every power of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if at is None else FixedLocator(at))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def _line(axes: Axes, rows: list[Any], name: str, **style: Any) -> None:
    least = LEAST_KL if name.startswith("kl") else 0.0
    points = [(row.strength, value) for row in rows if math.isfinite(value := getattr(row, name)) and value > least]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
