"""Shifts along strengths or layers: the introspection question and the controls side by side, with null bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from ..experiments.results import Compared, Result
from ..experiments.sweeps import Curve, curves, range_grids
from .ranges import thinned
from .style import CONCEPT, CONTROL, NATS, NULL, THIRD, Figure, NothingToDraw, frame, legend_below

MOST = 6  # rows of one figure
BAND = "lowest to highest random direction"


def strength_curves(result: Result, *, least: int = 2) -> Figure:
    """Shifts against strength, one row for each concept and range.

    Args:
        least: strengths of a curve.

    Raises:
        ValueError: no concept and range was run with so many strengths.
    """
    return _figure(result, "strength", least)


def layer_curves(result: Result, *, least: int = 2) -> Figure:
    """Shifts against the steered blocks, one row for each concept, strength and width of the range.

    A range stands at its middle, and its first and last block are written there. Where there are ranges of three widths
    or more, which range_maps shows, only single blocks are drawn here.

    Args:
        least: ranges of a curve.

    Raises:
        ValueError: no concept and strength was run with so many ranges of one width.
    """
    return _figure(result, "layer", least)


def _figure(result: Result, along: str, least: int) -> Figure:
    found = drawable_curves(result, along, least)
    left_out = len(found) - MOST
    found = found[:MOST]
    columns = 2 if any(_has_controls(curve) for curve in found) else 1
    figure = Figure(figsize=(5.2 * columns, 1.1 + 2.7 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), columns, squeeze=False, sharex="row")
    for panels, curve in zip(rows, found, strict=True):
        _both(panels[0], curve)
        if columns == 2:
            _difference(panels[1], curve)
        panels[0].set_title(curve.name, fontsize=9.5, loc="left")
        panels[0].set_ylabel(NATS.replace(" (", "\n("), fontsize=9)
        for axes in panels:
            axes.axhline(0, color="#555555", linewidth=0.9, zorder=1)
            axes.set_xlabel(curve.axis, fontsize=9)
            frame(axes)
            axes.set_xticks(*_ticks(curve))
    labels: dict[str, Any] = {}
    for axes in rows[0]:
        labels |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend_below(figure, list(labels.values()))
    more = f" · the first {MOST} of {left_out + MOST}" if left_out > 0 else ""
    figure.suptitle(f"{result.protocol['name']} · {result.model['name']}{more}", x=0.01, ha="left", fontsize=11)
    return figure


def _has_controls(curve: Curve) -> bool:
    return all(d.corrected is not None for d in curve.detections)


def _both(axes: Axes, curve: Curve) -> None:
    band(axes, curve.xs, [d.shift for d in curve.detections], CONCEPT, f"{BAND}, introspection question")
    controls = [d.control_mean for d in curve.detections]
    if None not in controls:
        band(axes, curve.xs, controls, CONTROL, f"{BAND}, controls")  # type: ignore[arg-type]
        values = [d.control_mean.value for d in curve.detections if d.control_mean]
        axes.plot(curve.xs, values, "s--", color=CONTROL, markersize=4, linewidth=1.4, label="mean of the controls")
    values = [d.shift.value for d in curve.detections]
    axes.plot(curve.xs, values, "o-", color=CONCEPT, markersize=4.5, linewidth=1.6, label="introspection question")


def _difference(axes: Axes, curve: Curve) -> None:
    if not _has_controls(curve):
        axes.set_visible(False)
        return
    compared = [d.corrected for d in curve.detections if d.corrected]
    band(axes, curve.xs, compared, NULL, f"{BAND}, difference")
    values = [c.value for c in compared]
    axes.plot(curve.xs, values, "D-", color=THIRD, markersize=4, linewidth=1.6, label="introspection − controls")
    axes.set_title("introspection question less the controls", fontsize=9.5, loc="left")


def band(axes: Axes, xs: Sequence[float], compared: Sequence[Compared], colour: str, label: str) -> None:
    """From the lowest to the highest null at each x."""
    points = [
        (x, min(c.nulls), max(c.nulls))
        for x, c in zip(xs, compared, strict=True)
        if c.nulls and all(map(math.isfinite, c.nulls))
    ]
    if points:
        shown, low, high = zip(*points, strict=True)
        axes.fill_between(shown, low, high, color=colour, alpha=0.16, linewidth=0.8, label=label)


def _ticks(curve: Curve) -> tuple[list[float], list[str]]:
    """Those of the curve's own positions whose labels have room."""
    shown = thinned(len(curve.xs), 9 if max(map(len, curve.labels)) > 3 else 14)
    return [curve.xs[i] for i in shown], [curve.labels[i] for i in shown]


def drawable_curves(result: Result, along: str, least: int) -> list[Curve]:
    """``curves``, of which there must be one. NothingToDraw says why there is none."""
    found = curves(result, along, least=least)
    if not found:
        raise NothingToDraw(_why(result, along, least))
    return found


def _why(result: Result, along: str, least: int) -> str:
    ranges = sorted({(s.first_layer, s.last_layer) for s in result.groups})
    strengths = sorted({s.strength for s in result.groups})
    if along == "strength":
        run = ", ".join(f"{strength:g}" for strength in strengths)
        return f"strength_curves: {least} strengths or more of one concept and range are needed, got {run}"
    if range_grids(result):
        return "layer_curves: ranges of three widths or more are drawn by range_maps, and no single blocks were run"
    run = ", ".join(f"{first}–{last}" for first, last in ranges)
    return f"layer_curves: {least} ranges or more of one width are needed for one concept and strength, got {run}"
