"""The plots with plotly: numbers under the pointer, panels to zoom into, the colours of the others.

``*_drawing`` gives panels, which a page lays out as wide as it is; the functions without it put them into one figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ..experiments.results import Compared, Detection, Result
from ..experiments.sweeps import Curve, RangeGrid, range_grids
from .content import answers
from .curves import drawable_curves
from .heads import Map, columns_of
from .lens import LensCurve, null_layers
from .panels import (
    DIVERGING,
    EMPTY,
    INK,
    PAPER,
    SHARES,
    Drawing,
    Panel,
    Swatch,
    compose,
    faint,
    lines_of,
    number,
    plain,
)
from .ranges import BROKEN, NOT_RUN, OUTSIDE, marked, matrix, not_finite, panels_of, thinned
from .readings import ATTENTION, attention_maps, curves_by_layer, lens_label, lenses, localisation_title
from .strips import content_drawing, distinct, overview_drawing, rank_text, shifts_drawing
from .style import CONCEPT, CONTROL, NATS, NULL, RANDOM, THIRD, NothingToDraw


def strength_curves_drawing(result: Result, *, least: int = 2) -> Drawing:
    return _curves(drawable_curves(result, "strength", least))


def layer_curves_drawing(result: Result, *, least: int = 2) -> Drawing:
    return _curves(drawable_curves(result, "layer", least))


def _curves(found: list[Curve]) -> Drawing:
    panels, legend = [], []
    for curve in found:
        own = [("introspection question", [d.shift for d in curve.detections], CONCEPT, "solid")]
        if all(d.control_mean for d in curve.detections):
            means = [d.control_mean for d in curve.detections if d.control_mean]
            own.append(("mean of the controls", means, CONTROL, "dash"))
        parts = [(curve.name, own)]
        if all(d.corrected for d in curve.detections):
            less = [d.corrected for d in curve.detections if d.corrected]
            title = f"{curve.name}: introspection question less the controls"
            parts.append((title, [("introspection − controls", less, THIRD, "solid")]))
        for title, series in parts:
            traces: list[dict[str, Any]] = []
            for name, compared, colour, dash in series:
                band_colour = NULL if colour == THIRD else colour
                bands = _band(curve.xs, compared, band_colour)
                traces += bands
                traces.append(_line(curve.xs, [c.value for c in compared], colour, dash, name, compared, curve.labels))
                legend += [Swatch(name, "dash" if dash == "dash" else "line", colour)]
                legend += [Swatch(_band_name(name), "band", band_colour)] if bands else []
            shown = thinned(len(curve.xs), 9)
            x = {
                "title": curve.axis,
                "tickvals": [curve.xs[i] for i in shown],
                "ticktext": [curve.labels[i] for i in shown],
                "showgrid": False,
            }
            panels.append(Panel(title, traces, x, {"title": NATS, "zeroline": True}, 300))
    return Drawing(panels, distinct(legend))


def _band_name(name: str) -> str:
    return f"lowest to highest random direction, {name}"


def _line(
    xs: Sequence[float],
    values: Sequence[float],
    colour: str,
    dash: str,
    name: str,
    compared: Sequence[Compared],
    labels: Sequence[str],
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(xs),
        "y": [number(value) for value in values],
        "line": {"color": colour, "dash": dash, "width": 2},
        "name": name,
        "text": [f"{label}: {rank_text(c)}" for label, c in zip(labels, compared, strict=True)],
        "hovertemplate": "%{text}<extra>" + name + "</extra>",
    }


def _band(xs: Sequence[float], compared: Sequence[Compared], colour: str, name: str = "") -> list[dict[str, Any]]:
    points = [(x, c.nulls) for x, c in zip(xs, compared, strict=True) if c.nulls and all(map(math.isfinite, c.nulls))]
    if not points:
        return []
    shown = [x for x, _ in points]
    return [
        {
            "type": "scatter",
            "x": [*shown, *reversed(shown)],
            "y": [*(max(nulls) for _, nulls in points), *(min(nulls) for _, nulls in reversed(points))],
            "fill": "toself",
            "fillcolor": faint(colour, 0.2),
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
            "name": name or RANDOM,
        }
    ]


def range_maps_drawing(result: Result) -> Drawing:
    """The shift of every range; the pointer shows the range, its value and its rank among the random directions."""
    grids = range_grids(result)
    if not grids:
        raise NothingToDraw("range_maps: ranges of three widths or more are needed for one concept and strength")
    panels, seen = [], set()
    for grid in grids:
        quantities = panels_of(grid)
        values = [quantity(d) for _, quantity in quantities for d in grid.cells.values()]
        limit = max((abs(v) for v in values if math.isfinite(v)), default=1.0) or 1.0
        for title, quantity in quantities:
            last = title == quantities[-1][0]
            panels.append(_range_map(grid, title, quantity, limit, marked(grid) if last else [], last))
            seen |= {trace.get("name") for trace in panels[-1].traces}
    marks = ((OUTSIDE, "point", INK), (BROKEN, "cross", INK), (NOT_RUN, "block", EMPTY))
    legend = [Swatch(*mark) for mark in marks if mark[0] in seen or mark[0] == NOT_RUN]
    return Drawing(panels, legend, columns=3, width=380)


def _range_map(
    grid: RangeGrid, title: str, quantity: Any, limit: float, dots: Sequence[tuple[int, int]], last: bool
) -> Panel:
    firsts, lasts, shown = matrix(grid, quantity)
    texts = [[_range_text(grid.cells.get((i, j)), quantity, last) for j in lasts] for i in firsts]
    traces: list[dict[str, Any]] = [
        {
            "type": "heatmap",
            "x": lasts,
            "y": firsts,
            "z": [[number(v) for v in line] for line in shown],
            "text": texts,
            "coloraxis": "coloraxis",
            "hoverongaps": False,
            "hovertemplate": "blocks %{y}–%{x}: %{text}<extra></extra>",
        }
    ]
    size = max(3, min(7, 90 / len(lasts)))
    for cells, symbol, name in ((dots, "circle", OUTSIDE), (not_finite(grid, quantity), "x", BROKEN)):
        if cells:
            marker = {"color": INK, "size": size, "symbol": symbol, "line": {"color": PAPER, "width": 1}}
            ends = {"x": [j for _, j in cells], "y": [i for i, _ in cells]}
            traces.append(
                {"type": "scatter", "mode": "markers", **ends, "marker": marker, "hoverinfo": "skip", "name": name}
            )

    def axis(layers: Sequence[int], name: str) -> dict[str, Any]:
        # A cell for each block that was run, and its number under it: the blocks may lie far apart.
        return {
            "title": name,
            "type": "category",
            "categoryarray": list(layers),
            "tickvals": [layers[i] for i in thinned(len(layers), 10)],
            "showgrid": False,
        }

    colours = {
        "colorscale": DIVERGING,
        "cmin": -limit,
        "cmax": limit,
        "colorbar": {"title": {"text": "nats"}, "thickness": 12, "outlinewidth": 0},
    }
    y = {**axis(firsts, "first steered block"), "autorange": "reversed"}
    x = axis(lasts, "last steered block")
    return Panel(f"{grid.name}: {title}", traces, x, y, 340, colours=colours, background=EMPTY)


def _range_text(detection: Detection | None, quantity: Any, last: bool) -> str:
    if detection is None:
        return ""
    value = quantity(detection)
    if not math.isfinite(value):
        return "not finite"
    return rank_text(detection.headline) if last and detection.headline.nulls else f"{value:+.3f}"


def lens_drawing(result: Result) -> Drawing | None:
    """The lens of each setting, or of the most striking one of each concept in a sweep."""
    found = lenses(result)
    return lens_panels(found, ylabel=lens_label(result)) if found else None


def by_layer_drawing(result: Result, field: str) -> Drawing | None:
    """A readout's number of each layer."""
    found = curves_by_layer(result, field)
    return lens_panels(found, ylabel=field) if found else None


def lens_panels(curves: Sequence[LensCurve], *, ylabel: str) -> Drawing:
    panels, legend = [], []
    for curve in curves:
        traces: list[dict[str, Any]] = []
        if layers := null_layers(curve):
            nulls = [Compared(0.0, tuple(null[layer] for null in curve.nulls)) for layer in layers]
            traces += _band(layers, nulls, NULL)
            legend.append(Swatch(RANDOM, "band", NULL))
        for values, dash, colour, name in (
            (curve.base, "dash", INK, "without injection"),
            (curve.control, "dot", CONTROL, "control questions, injected"),
            (curve.injected, "solid", CONCEPT, "injected"),
        ):
            if not values:
                continue
            layers = sorted(values)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": layers,
                    "y": [number(values[layer]) for layer in layers],
                    "line": {"color": colour, "dash": dash, "width": 2},
                    "name": name,
                    "hovertemplate": "layer %{x}: %{y:+.3f}<extra>" + name + "</extra>",
                }
            )
            legend.append(Swatch(name, {"solid": "line"}.get(dash, dash), colour))
        shapes = []
        if curve.steered:
            first, last = curve.steered
            ends = {"x0": first - 0.5, "x1": last + 0.5, "y0": 0, "y1": 1}
            shapes.append({"type": "rect", **ends, "fillcolor": "rgba(224,200,30,0.2)", "line": {"width": 0}})
            legend.append(Swatch("steered blocks", "block", "rgba(224,200,30,0.35)"))
        y = {"title": ylabel, "zeroline": True}
        panels.append(Panel(curve.name, traces, {"title": "layer", "showgrid": False}, y, 300, shapes))
    return Drawing(panels, distinct(legend))


def attention_drawing(result: Result) -> Drawing | None:
    """What an injection changes in the attention to the injected span, by head."""
    maps = attention_maps(result)
    return head_panels(maps, label=ATTENTION) if maps else None


def head_panels(maps: Mapping[str, Map], *, label: str) -> Drawing:
    everything = [v for values in maps.values() for row in values for v in row if math.isfinite(v)]
    limit = max(map(abs, everything), default=1.0) or 1.0
    signed = min(everything, default=0.0) < 0
    colours = {
        "colorscale": DIVERGING if signed else "Viridis",
        "cmin": -limit if signed else 0.0,
        "cmax": limit,
        "colorbar": {"title": {"text": lines_of(label, 30), "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }
    panels = []
    for name, values in maps.items():
        heatmap = {
            "type": "heatmap",
            "z": [[number(v) for v in row] for row in values],
            "coloraxis": "coloraxis",
            "hovertemplate": "L%{y}H%{x}: %{z:.4f}<extra></extra>",
        }
        x, y = {"title": "head", "showgrid": False}, {"title": "layer", "showgrid": False}
        panels.append(Panel(name, [heatmap], x, y, 200 + 9 * len(values), colours=colours))
    return Drawing(panels, columns=columns_of(len(maps)))


def identified_drawing(result: Result) -> Drawing | None:
    """Which concept's token gained most, against which was injected."""
    if len(result.concepts) < 3 or not result.identifications():
        return None
    title = "which concept’s token gained most"
    return confusion_drawing(answers(result), result.concepts, answer="token that gained most", title=title)


def localised_drawing(result: Result) -> Drawing | None:
    """Which passage's answer rose most, against which passage was injected."""
    if (found := localisation_title(result)) is None:
        return None
    counts, title = found
    labels = [str(i + 1) for i in range(len(counts))]
    return confusion_drawing(counts, labels, truth="injected passage", answer="answer that rose most", title=title)


def confusion_drawing(
    counts: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    truth: str = "injected",
    answer: str = "answered",
    title: str = "",
) -> Drawing:
    shares = [[n / sum(row) if sum(row) else 0.0 for n in row] for row in counts]
    shown = [
        [f"{100 * share:.0f}%<br>{n:g}" for share, n in zip(row, own, strict=True)]
        for row, own in zip(shares, counts, strict=True)
    ]
    names = {"tickvals": list(range(len(labels))), "ticktext": [plain(label) for label in labels], "showgrid": False}
    heatmap = {
        "type": "heatmap",
        "z": shares,
        "text": shown,
        "texttemplate": "%{text}",
        "coloraxis": "coloraxis",
        "hovertemplate": "%{text}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
    }
    colours = {"colorscale": SHARES, "cmin": 0.0, "cmax": 1.0, "showscale": False}
    x, y = {**names, "title": answer}, {**names, "title": truth, "autorange": "reversed"}
    return Drawing([Panel(title, [heatmap], x, y, 140 + 52 * len(labels), colours=colours)], columns=1)


def _figure(drawing: Drawing | None) -> go.Figure | None:
    return compose(drawing) if drawing else None


def overview(results: Sequence[Result]) -> go.Figure | None:
    """Every concept's shift, less its controls', against its random directions; None where nothing was asked."""
    return _figure(overview_drawing(results))


def shifts(result: Result) -> go.Figure:
    """The shift of every question, one panel a setting."""
    return compose(shifts_drawing(result))


def content(result: Result) -> go.Figure | None:
    """What the content report says; None where no tokens were read."""
    return _figure(content_drawing(result))


def strength_curves(result: Result) -> go.Figure:
    """Shifts against strength. ValueError where no concept and range was run with two strengths."""
    return compose(strength_curves_drawing(result))


def layer_curves(result: Result) -> go.Figure:
    """Shifts against the steered blocks. ValueError where no two ranges of one width were run."""
    return compose(layer_curves_drawing(result))


def range_maps(result: Result) -> go.Figure:
    """The shift of every range. ValueError where no ranges of three widths were run."""
    return compose(range_maps_drawing(result))


def lens(result: Result) -> go.Figure | None:
    """The lens of each setting; None where none was read."""
    return _figure(lens_drawing(result))


def attention(result: Result) -> go.Figure | None:
    """What an injection changes in the attention to the injected span; None where none was read."""
    return _figure(attention_drawing(result))


def lens_curves(curves: Sequence[LensCurve], *, ylabel: str = "log-odds yes : no (nats)") -> go.Figure:
    """Lens readings by layer, one panel a curve."""
    return compose(lens_panels(curves, ylabel=ylabel))


def head_maps(maps: Mapping[str, Map], *, label: str = "attention to the injected span") -> go.Figure:
    """Maps of heads by layers, one panel a map."""
    return compose(head_panels(maps, label=label))
