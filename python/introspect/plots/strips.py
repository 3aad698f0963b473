"""Lines of values, each against its random directions, as plotly draws them: an overview, questions, report tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..experiments.results import Compared, Result
from .panels import PAPER, Drawing, Panel, Swatch, faint, lines_of, number
from .shifts import Line, headline_lines, question_lines
from .style import CONCEPT, CONTROL, NATS, NULL, RANDOM

BAND = Swatch(RANDOM, "tick", NULL)


def overview_drawing(results: Sequence[Result]) -> Drawing | None:
    """Every concept's shift, less its controls', against its random directions."""
    lines = headline_lines(results)
    if not lines:
        return None
    corrected = all(has_controls for _, _, has_controls in lines)
    title = NATS + (", less the controls’ mean" if corrected else "")
    rows = [Line(name, compared, CONCEPT) for name, compared, _ in lines]
    return Drawing([_strips("", rows, title, 46)], _strip_legend(rows, [("concept", CONCEPT)]), columns=1, width=600)


def shifts_drawing(result: Result) -> Drawing:
    """The shift of every question, one panel a setting."""
    panels, legend = [], []
    for detection in result.detections():
        rows = question_lines(result, detection)
        panels.append(_strips(result.label(detection.setting), rows, NATS, 27))
        own = [("introspection question", CONCEPT)]
        controls = [("control question", CONTROL)] if detection.control_mean else []
        legend += _strip_legend(rows, own + controls)
    return Drawing(panels, distinct(legend), width=560)


def content_drawing(result: Result) -> Drawing | None:
    """How much the concept's own token gained, and where it ranks among all tokens."""
    found = result.identifications()
    if not found:
        return None
    rows: list[Line] = []
    ranks: list[tuple[str, int, int, str]] = []
    for one in found:
        label = result.label(one.setting)
        rows.append(Line(label, one.gain, CONCEPT))
        rows.append(Line("… with a space before it", one.spaced_gain, CONTROL))
        ranks.append((label, one.rank_base, one.rank, CONCEPT))
        ranks.append(("… with a space before it", one.spaced_rank_base, one.spaced_rank, CONTROL))
    gains = _strips("", rows, "gain of the concept’s token in log-probability (nats)", 40)
    ys = list(range(len(ranks)))
    arrows: list[dict[str, Any]] = []
    for side, symbol in ((1, "circle-open"), (2, "circle")):
        arrows.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [line[side] for line in ranks],
                "y": ys,
                "marker": {"symbol": symbol, "size": 10, "color": [line[3] for line in ranks]},
                "text": [f"{before:,} → {after:,}" for _, before, after, _ in ranks],
                "hovertemplate": "rank %{text}<extra></extra>",
            }
        )
    joins = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for _, before, after, _ in ranks for x in (before, after, None)],
        "y": [at for y in ys for at in (y, y, None)],
        "line": {"color": NULL, "width": 1.5},
        "hoverinfo": "skip",
    }
    shown = [*(line[1] for line in ranks), *(line[2] for line in ranks)]
    x = {
        "title": "its rank among all tokens (1 = most probable), from ○ to ●",
        "type": "log",
        "autorange": "reversed",
        "tickvals": rank_ticks(min(shown, default=1), max(shown, default=1)),
    }
    y = _row_axis([line[0] for line in ranks])
    panel = Panel("", [joins, *arrows], x, y, 90 + 40 * len(ranks))
    legend = [("token without a space before it", CONCEPT), ("with a space before it", CONTROL)]
    return Drawing([gains, panel], _strip_legend(rows, legend), width=520)


def rank_ticks(lowest: int, highest: int) -> list[int]:
    """1, 2, 5, 10, 20 ... around these ranks: an axis of a decade or more has enough of them without the 2s and 5s."""
    steps = (1,) if highest >= 100 * max(1, lowest) else (1, 2, 5)
    ticks = [step * 10**power for power in range(len(str(highest)) + 1) for step in steps]
    first = max((i for i, tick in enumerate(ticks) if tick <= lowest), default=0)
    last = next(i for i, tick in enumerate(ticks) if tick >= highest)
    return ticks[first : last + 1]


def _strips(title: str, lines: Sequence[Line], xlabel: str, row_height: int) -> Panel:
    """A line for each value: the range of its random directions as a band, each as a tick, the value on top."""
    bands: dict[str, list] = {"x": [], "y": []}
    ticks: dict[str, list] = {"x": [], "y": []}
    for y, line in enumerate(lines):
        if nulls := [null for null in line.compared.nulls if math.isfinite(null)]:
            bands["x"] += [min(nulls), max(nulls), None]
            bands["y"] += [y, y, None]
            ticks["x"] += nulls
            ticks["y"] += [y] * len(nulls)
    width = max(6, min(18, row_height // 2))
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            **bands,
            "line": {"width": width, "color": faint(NULL, 0.28)},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            **ticks,
            "marker": {"symbol": "line-ns-open", "size": width - 4, "color": NULL},
            "name": RANDOM,
            "hovertemplate": "random: %{x:+.3f}<extra></extra>",
        },
    ]
    traces = [trace for trace in traces if trace["x"]]
    for colour in dict.fromkeys(line.colour for line in lines):
        own = [(y, line) for y, line in enumerate(lines) if line.colour == colour]
        ends = [line.interval or (math.nan, math.nan) for _, line in own]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [number(high - line.compared.value) for (_, high), (_, line) in zip(ends, own, strict=True)],
            "arrayminus": [number(line.compared.value - low) for (low, _), (_, line) in zip(ends, own, strict=True)],
            "thickness": 1.4,
        }
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [number(line.compared.value) for _, line in own],
                "y": [y for y, _ in own],
                "marker": {
                    "size": [line.size for _, line in own],
                    "color": colour,
                    "line": {"width": 1, "color": PAPER},
                },
                "text": [rank_text(line.compared) for _, line in own],
                "hovertemplate": "%{text}<extra></extra>",
                **({"error_x": bars} if any(line.interval for _, line in own) else {}),
            }
        )
    x = {"title": xlabel, "zeroline": True}
    return Panel(title, traces, x, _row_axis([line.name for line in lines]), 80 + row_height * len(lines))


def _row_axis(names: Sequence[str]) -> dict[str, Any]:
    """Lines of a table as an axis: numbers below, so that two lines may bear one name."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [lines_of(name, 40) for name in names],
        "range": [len(names) - 0.4, -0.6],
        "showgrid": False,
    }


def _strip_legend(lines: Sequence[Line], colours: Sequence[tuple[str, str]]) -> list[Swatch]:
    random = [BAND] if any(line.compared.nulls for line in lines) else []
    return [Swatch(name, "point", colour) for name, colour in colours] + random


def distinct(legend: Sequence[Swatch]) -> list[Swatch]:
    """Every name once."""
    return list({swatch.name: swatch for swatch in legend}.values())


def rank_text(compared: Compared) -> str:
    if not math.isfinite(compared.value):
        return "not finite"
    text = f"{compared.value:+.3f}"
    if compared.band is None:
        return text
    return f"{text}, {compared.rank} of {len(compared.nulls) + 1} from the highest" + (
        ", inside" if compared.inside else ""
    )
