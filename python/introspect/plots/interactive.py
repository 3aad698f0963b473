"""The plots with plotly: numbers under the pointer, panels to zoom into, the colours of the others."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..results import Compared, Result
from ..sweeps import Curve, curves, range_grids
from .heads import Map, columns_of
from .lens import LensCurve, null_layers
from .ranges import PANELS, matrix
from .readings import ATTENTION, attention_maps, lens_label, lenses
from .shifts import headline_lines
from .style import CONCEPT, CONTROL, NATS, NULL, THIRD

PLAIN = {
    "template": "plotly_white",
    "font": {"family": "system-ui, Segoe UI, Helvetica Neue, Arial, sans-serif", "size": 12},
}
MARGIN = {"l": 60, "r": 20, "t": 70, "b": 110}


def _lay_out(figure: go.Figure, height: int) -> None:
    """Sizes in pixels; the legend stands below the axes' titles."""
    inside = height - MARGIN["t"] - MARGIN["b"]
    legend = {"orientation": "h", "yanchor": "top", "y": -55 / inside, "x": 0}
    figure.update_layout(**PLAIN, height=height, margin=MARGIN, legend=legend)


def overview(results: Sequence[Result]) -> go.Figure | None:
    """Every concept's shift, less its controls', beside its random rotations."""
    lines = headline_lines(results)
    if not lines:
        return None
    names = [name.replace("\n", "<br>") for name, _, _ in lines]
    figure = go.Figure()
    for name, (_, compared, _) in zip(names, lines, strict=True):
        nulls = [null for null in compared.nulls if math.isfinite(null)]
        first = name == names[0]
        if nulls:
            figure.add_scatter(
                x=[min(nulls), max(nulls)],
                y=[name, name],
                mode="lines",
                line={"width": 18, "color": _faint(NULL, 0.3)},
                hoverinfo="skip",
                showlegend=False,
            )
            figure.add_scatter(
                x=nulls,
                y=[name] * len(nulls),
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 10, "color": NULL},
                name="random rotations",
                legendgroup="null",
                showlegend=first,
                hovertemplate="random: %{x:+.3f}<extra></extra>",
            )
        figure.add_scatter(
            x=[_number(compared.value)],
            y=[name],
            mode="markers",
            marker={"size": 12, "color": CONCEPT},
            name="concept",
            legendgroup="concept",
            showlegend=first,
            hovertemplate=f"{_place(compared)}<extra></extra>",
        )
    corrected = all(has_controls for _, _, has_controls in lines)
    title = NATS + (", less the controls’ mean" if corrected else "")
    _lay_out(figure, 210 + 46 * len(lines))
    figure.update_xaxes(title=title, zeroline=True, zerolinecolor="#555555")
    figure.update_yaxes(autorange="reversed")
    return figure


def strength_curves(result: Result) -> go.Figure | None:
    return _curves(curves(result, "strength"), "strength")


def layer_curves(result: Result) -> go.Figure | None:
    return _curves(curves(result, "layer"), "layer")


def _curves(found: list[Curve], along: str) -> go.Figure | None:
    if not found:
        return None
    titles = [t for curve in found for t in (curve.name, "introspection question less the controls")]
    figure = make_subplots(
        rows=len(found), cols=2, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=0.3 / len(found)
    )
    for row, curve in enumerate(found, start=1):
        series: list[tuple[str, list[Compared | None], str, str, int]] = [
            ("introspection question", [d.shift for d in curve.detections], CONCEPT, "solid", 1),
            ("mean of the controls", [d.control_mean for d in curve.detections], CONTROL, "dash", 1),
            ("introspection − controls", [d.corrected for d in curve.detections], THIRD, "solid", 2),
        ]
        for name, compared, colour, dash, column in series:
            known = [c for c in compared if c]
            if len(known) < len(compared):
                continue
            at: dict[str, Any] = {"row": row, "col": column, "legendgroup": name, "showlegend": row == 1}
            _band(figure, curve.xs, known, NULL if column == 2 else colour, at)
            figure.add_scatter(
                x=curve.xs,
                y=[_number(c.value) for c in known],
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2},
                name=name,
                text=[_place(c) for c in known],
                hovertemplate=along + " %{x:g}: %{text}<extra>" + name + "</extra>",
                **at,
            )
    _lay_out(figure, 180 + 270 * len(found))
    figure.update_xaxes(title=along)
    figure.update_yaxes(zeroline=True, zerolinecolor="#555555")
    figure.update_yaxes(title="nats", col=1)
    return figure


def _band(figure: go.Figure, xs: Sequence[float], compared: Sequence[Compared], colour: str, at: dict) -> None:
    points = [(x, c.nulls) for x, c in zip(xs, compared, strict=True) if c.nulls and all(map(math.isfinite, c.nulls))]
    if not points:
        return
    shown = [x for x, _ in points]
    figure.add_scatter(
        x=[*shown, *reversed(shown)],
        y=[*(max(nulls) for _, nulls in points), *(min(nulls) for _, nulls in reversed(points))],
        fill="toself",
        fillcolor=_faint(colour, 0.17),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name="random rotations of it",
        **{**at, "legendgroup": at["legendgroup"] + " null"},
    )


def range_maps(result: Result) -> go.Figure | None:
    """The shift of every range; the pointer shows the range, its value and its place among the rotations."""
    grids = range_grids(result)
    if not grids:
        return None
    has_controls = any(d.corrected for grid in grids for d in grid.cells.values())
    panels = PANELS if has_controls else PANELS[:1]
    titles = [f"{grid.name}<br>{title}" for grid in grids for title, _ in panels]
    figure = make_subplots(
        rows=len(grids),
        cols=len(panels),
        subplot_titles=titles,
        horizontal_spacing=0.06,
        vertical_spacing=0.28 / len(grids) if len(grids) > 1 else None,
    )
    for row, grid in enumerate(grids, start=1):
        axis = f"coloraxis{row}"
        values = [quantity(d) for _, quantity in panels for d in grid.cells.values()]
        limit = max((abs(v) for v in values if math.isfinite(v)), default=1.0) or 1.0
        middle = 1 - (row - 0.5) / len(grids)
        bar = {"title": "nats", "len": 0.9 / len(grids), "y": middle, "thickness": 14}
        figure.update_layout({axis: {"colorscale": "RdBu_r", "cmin": -limit, "cmax": limit, "colorbar": bar}})
        for column, (title, quantity) in enumerate(panels, start=1):
            firsts, lasts, shown = matrix(grid, quantity)
            texts = [
                [_range_text(grid.cells[i, j].headline, title) if (i, j) in grid.cells else "" for j in lasts]
                for i in firsts
            ]
            figure.add_heatmap(
                x=lasts,
                y=firsts,
                z=[[_number(v) for v in line] for line in shown],
                text=texts,
                coloraxis=axis,
                hoverongaps=False,
                hovertemplate="blocks %{y}–%{x}: %{z:+.3f}%{text}<extra></extra>",
                row=row,
                col=column,
            )
    _lay_out(figure, 180 + 340 * len(grids))
    figure.update_layout(plot_bgcolor="#dedede")
    figure.update_xaxes(title="last steered block", showgrid=False)
    figure.update_yaxes(title="first steered block", col=1)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def lens(result: Result) -> go.Figure | None:
    """The lens of each setting, or of the most striking one of each concept in a sweep."""
    found = lenses(result)
    return lens_curves(found, ylabel=lens_label(result)) if found else None


def attention(result: Result) -> go.Figure | None:
    """What an injection changes in the attention to the injected span, by head."""
    maps = attention_maps(result)
    return head_maps(maps, label=ATTENTION) if maps else None


def lens_curves(curves: Sequence[LensCurve], *, ylabel: str = "log-odds yes : no (nats)") -> go.Figure:
    columns = min(len(curves), 2)
    rows = math.ceil(len(curves) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[curve.name for curve in curves],
        shared_yaxes=True,
        horizontal_spacing=0.05,
        vertical_spacing=0.3 / rows,
    )
    for i, curve in enumerate(curves):
        at: dict[str, Any] = {"row": i // columns + 1, "col": i % columns + 1}
        if curve.steered:
            first, last = curve.steered
            figure.add_vrect(
                x0=first - 0.5,
                x1=last + 0.5,
                fillcolor="#f0e442",
                opacity=0.2,
                line_width=0,
                exclude_empty_subplots=False,
                **at,
            )
        if layers := null_layers(curve):
            nulls = [Compared(0.0, tuple(null[layer] for null in curve.nulls)) for layer in layers]
            _band(figure, layers, nulls, NULL, {**at, "legendgroup": "", "showlegend": i == 0})
        for values, dash, colour, name in (
            (curve.base, "dash", "#333333", "without injection"),
            (curve.control, "dot", CONTROL, "control questions, injected"),
            (curve.injected, "solid", CONCEPT, "injected"),
        ):
            if not values:
                continue
            layers = sorted(values)
            figure.add_scatter(
                x=layers,
                y=[_number(values[layer]) for layer in layers],
                mode="lines",
                line={"color": colour, "dash": dash, "width": 2},
                name=name,
                legendgroup=name,
                showlegend=i == 0,
                hovertemplate="layer %{x}: %{y:+.3f}<extra>" + name + "</extra>",
                **at,
            )
    _lay_out(figure, 180 + 270 * rows)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title=ylabel, col=1)
    return figure


def head_maps(maps: Mapping[str, Map], *, label: str = "attention to the injected span") -> go.Figure:
    everything = [v for values in maps.values() for row in values for v in row if math.isfinite(v)]
    limit = max(map(abs, everything), default=1.0) or 1.0
    signed = min(everything, default=0.0) < 0
    columns = columns_of(len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=["<br>".join(textwrap.wrap(name, 40)) for name in maps],
        horizontal_spacing=0.05,
        vertical_spacing=0.3 / rows,
    )
    for i, values in enumerate(maps.values()):
        figure.add_heatmap(
            z=[[_number(v) for v in row] for row in values],
            coloraxis="coloraxis",
            hovertemplate="L%{y}H%{x}: %{z:.4f}<extra></extra>",
            row=i // columns + 1,
            col=i % columns + 1,
        )
    scale = {"colorscale": "RdBu_r" if signed else "Viridis", "cmin": -limit if signed else 0.0, "cmax": limit}
    _lay_out(figure, 180 + (150 + 9 * len(next(iter(maps.values())))) * rows)
    figure.update_layout(coloraxis={**scale, "colorbar": {"title": {"text": label, "side": "right"}, "thickness": 14}})
    figure.update_xaxes(title="head", showgrid=False)
    figure.update_yaxes(showgrid=False)
    figure.update_yaxes(title="layer", col=1)
    return figure


def _range_text(headline: Compared, title: str) -> str:
    return f"<br>{_place(headline)}" if headline.nulls and title == PANELS[-1][0] else ""


def _place(compared: Compared) -> str:
    text = f"{compared.value:+.3f}"
    if not compared.nulls:
        return text
    return f"{text}, {compared.rank} of {len(compared.nulls) + 1} from the highest" + (
        ", inside" if compared.inside else ""
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
