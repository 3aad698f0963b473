"""Panels of plotly: drawn one by one on a page, whose columns follow its width, or side by side in one figure.

Colours that depend on the page's theme stand in a panel as names ("@ink"); THEMES says what they are.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..experiments.results import finite
from .style import CONCEPT, CONTROL, THIRD

INK, SOFT, GRID, PAPER, EMPTY = "@ink", "@soft", "@grid", "@paper", "@empty"
DIVERGING, SHARES = "@diverging", "@shares"

# ColorBrewer's RdBu (Brewer 2003) on white; on black its ends are light and its middle is dark.
_LIGHT = [
    "#053061",
    "#2166ac",
    "#4393c3",
    "#92c5de",
    "#d1e5f0",
    "#f7f7f7",
    "#fddbc7",
    "#f4a582",
    "#d6604d",
    "#b2182b",
    "#67001f",
]
_DARK = [
    "#a6d4fa",
    "#5fb0ee",
    "#2f86c9",
    "#215f90",
    "#1f3d57",
    "#25282d",
    "#4d2f25",
    "#80452c",
    "#b9623a",
    "#e88c5e",
    "#ffc5a3",
]


def _scale(colours: Sequence[str]) -> list[list[Any]]:
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


THEMES: dict[str, dict[str, Any]] = {
    "light": {
        INK: "#1c1e21",
        SOFT: "#7d848e",
        GRID: "#e6e8eb",
        PAPER: "#ffffff",
        EMPTY: "#dedede",
        DIVERGING: _scale(_LIGHT),
        SHARES: _scale(["#f7fbff", "#9ecae1", "#08519c"]),
    },
    "dark": {
        INK: "#e6e7e9",
        # On black the lighter ones of the same palette, which the colour-blind tell apart as well.
        CONCEPT: "#56b4e9",
        CONTROL: "#f0894a",
        THIRD: "#2fc79b",
        SOFT: "#8d949e",
        GRID: "#3a3e45",
        PAPER: "#17191d",
        EMPTY: "#4a4e55",
        DIVERGING: _scale(_DARK),
        SHARES: _scale(["#25282d", "#215f90", "#a6d4fa"]),
    },
}
FONT = "system-ui, Segoe UI, Helvetica Neue, Arial, sans-serif"


@dataclass(frozen=True)
class Swatch:
    """An entry of a legend. ``kind``: "line", "dash", "dot" (a dotted line), "point", "tick", "band" or "block"."""

    name: str
    kind: str
    colour: str


@dataclass
class Panel:
    """One pair of axes. Traces, axes, shapes and annotations are plotly's, as dictionaries."""

    title: str
    traces: list[dict[str, Any]]
    x: dict[str, Any]
    y: dict[str, Any]
    height: int  # pixels
    shapes: list[dict[str, Any]] = field(default_factory=list)  # x in data, y in paper coordinates
    colours: dict[str, Any] | None = None  # plotly's coloraxis
    background: str = "rgba(0,0,0,0)"

    def as_dict(self) -> dict[str, Any]:
        """The panel as a figure of its own."""
        layout = {
            "height": self.height,
            "margin": {"l": 8, "r": 12, "t": 10, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": self.background,
            "font": {"family": FONT, "size": 12, "color": INK},
            "hoverlabel": {"bgcolor": PAPER, "font": {"color": INK}, "align": "left"},
            "showlegend": False,
            "xaxis": _axis(self.x),
            "yaxis": _axis(self.y),
            "shapes": [{**shape, "xref": "x", "yref": "paper", "layer": "below"} for shape in self.shapes],
        }
        if self.colours:
            layout["coloraxis"] = self.colours
        return finite({"data": self.traces, "layout": layout})


@dataclass
class Drawing:
    """Panels that belong together, with one legend."""

    panels: list[Panel]
    legend: list[Swatch] = field(default_factory=list)
    columns: int = 2  # at most, where the panels stand in one figure
    width: int = 420  # pixels that a panel needs on a page


def _axis(own: dict[str, Any]) -> dict[str, Any]:
    title = {"text": own["title"], "standoff": 10, "font": {"size": 12}} if "title" in own else None
    common = {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": SOFT,
        "zeroline": False,
        "tickfont": {"size": 11},
    }
    return {**common, **own, **({"title": title} if title else {})}


def compose(drawing: Drawing) -> go.Figure:
    """All panels in one figure with one legend, for notebooks: at least 480 pixels of width a column."""
    columns = min(len(drawing.panels), drawing.columns)
    rows = math.ceil(len(drawing.panels) / columns)
    heights = [max(p.height for p in drawing.panels[r * columns : (r + 1) * columns]) for r in range(rows)]
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=["<br>".join(map(plain, textwrap.wrap(p.title, 52))) for p in drawing.panels],
        row_heights=heights,
        horizontal_spacing=0.28 / columns if columns > 1 else 0.0,
        vertical_spacing=min(110 / sum(heights), 1 / rows) if rows > 1 else 0.0,
    )
    margin = {"l": 80, "r": 30, "t": 60, "b": 110}
    height = sum(heights) + 90 * (rows - 1) + margin["t"] + margin["b"]
    inside = height - margin["t"] - margin["b"]
    seen: set[str] = set()
    for i, panel in enumerate(drawing.panels):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        axis = f"coloraxis{i + 1}"
        for trace in panel.traces:
            name = trace.get("name", "")
            shown = bool(name) and trace.get("showlegend", True) and name not in seen
            seen.add(name)
            more = {"coloraxis": axis} if "coloraxis" in trace else {}
            figure.add_trace({**_themed(trace), **more, "legendgroup": name, "showlegend": shown}, **at)
        for shape in panel.shapes:
            figure.add_shape(
                {**_themed(shape), "yref": "y domain", "layer": "below"}, **at, exclude_empty_subplots=False
            )
        figure.update_xaxes(**_themed(_axis(panel.x)), **at)
        figure.update_yaxes(**_themed(_axis(panel.y)), **at)
        if panel.colours:
            of_x = figure.get_subplot(**at).xaxis.domain
            of_y = figure.get_subplot(**at).yaxis.domain
            bar = {"x": of_x[1] + 0.005, "y": sum(of_y) / 2, "len": of_y[1] - of_y[0], "thickness": 12}
            colours = _themed(panel.colours)
            figure.update_layout({axis: {**colours, "colorbar": {**colours.get("colorbar", {}), **bar}}})
    legend = {"orientation": "h", "yanchor": "top", "y": -60 / inside, "x": 0}
    background = _themed(drawing.panels[0].background)
    figure.update_layout(
        plot_bgcolor=background if background.startswith("#") else "#ffffff",
        template="plotly_white",
        font={"family": FONT, "size": 12},
        height=height,
        margin=margin,
        legend=legend,
    )
    return figure


def _themed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _themed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_themed(item) for item in value]
    return THEMES["light"].get(value, value) if isinstance(value, str) else value


def page_json(panel: Panel) -> str:
    """A panel for the page's script. Texts of results stand in it: "<" is escaped, so that none ends the script."""
    return json.dumps(panel.as_dict(), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def plain(text: str) -> str:
    """Text that plotly shows as it is: it takes some HTML for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def lines_of(text: str, width: int) -> str:
    """Text in plotly's lines of about ``width`` characters."""
    return "<br>".join(plain(line) for part in text.split("\n") for line in textwrap.wrap(part, width) or [""])


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
