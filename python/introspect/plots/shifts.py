"""Shifts of the answer to yes-or-no questions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..experiments.detections import ungrouped
from ..experiments.results import Compared, Detection, Result
from ..experiments.sweeps import is_random, is_sweep
from ..report.sections import control_interval
from .style import CONCEPT, CONTROL, NATS, PANELS, Figure, finish, legend, shorten, strip


@dataclass(frozen=True)
class Line:
    """One line of a plot: a value against its random directions, with its 95% interval if it has one."""

    name: str
    compared: Compared
    colour: str
    size: int = 10
    interval: tuple[float, float] | None = None


def headline_lines(results: Sequence[Result]) -> list[tuple[str, Compared, bool]]:
    """Of every setting: its name, its shift less the controls' if there are any, and whether there are."""
    several = len({result.model["name"] for result in results}) > 1
    return [
        (
            f"{result.model['name'] + ' · ' if several else ''}{result.protocol['name']}\n{result.label(d.setting)}",
            d.headline,
            d.corrected is not None,
        )
        for result in results
        if result.protocol["read"] == "yes_no" and not is_sweep(result)
        for d in result.detections()
    ]


def overview(results: Sequence[Result]) -> Figure | None:
    """Every concept's shift, less its controls', against its random directions; None where nothing was asked.

    Sweeps are left out: they have curves and maps. Of several models every line says which.
    """
    lines = headline_lines(results)
    if not lines:
        return None
    figure = Figure(figsize=(8.4, 1.5 + 0.55 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for y, (_, compared, _) in enumerate(lines):
        strip(axes, y, compared, CONCEPT, size=9)
    corrected = all(line[2] for line in lines)
    finish(axes, [line[0] for line in lines], NATS + (", less the controls' mean" if corrected else ""))
    legend(axes, [("concept", CONCEPT)], any(c.nulls for _, c, _ in lines))
    models = {result.model["name"] for result in results}
    of_model = f" · {results[0].model['name']}" if len(models) == 1 else ""
    figure.suptitle(f"Concepts against random directions{of_model}", x=0.01, ha="left", fontsize=11)
    return figure


def shifts(result: Result) -> Figure:
    """The shift of every question, one panel a setting: the introspection question, then the controls."""
    detections = result.detections()
    lines = [question_lines(result, detection) for detection in detections]
    longest = max(lines, key=len)
    columns = min(len(lines), PANELS)
    rows = math.ceil(len(lines) / columns)
    figure = Figure(figsize=(3.6 + 3.4 * columns, 1.1 + rows * (0.8 + 0.27 * len(longest))), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flat
    for axes, detection, own in itertools.zip_longest(panels, detections, lines):
        if detection is None:
            axes.set_visible(False)
            continue
        for y, line in enumerate(own):
            strip(axes, y, line.compared, line.colour, size=line.size - 1, interval=line.interval)
        axes.set_title(result.label(detection.setting), fontsize=9.5, loc="left")
        finish(axes, [shorten(line.name, 46) for line in longest], NATS)
        axes.tick_params(labelbottom=True)
        if len(longest) > 1:
            axes.axhline(1.5, color="#d0d0d0", linewidth=0.8)
        if axes.get_subplotspec().is_first_col():
            axes.get_yticklabels()[0].set_fontweight("bold")
    colours = [("introspection question", CONCEPT)] + ([("control question", CONTROL)] if len(longest) > 1 else [])
    legend(panels[0], colours, any(d.shift.nulls for d in detections))
    figure.suptitle(f"{result.protocol['name']} · {result.model['name']}", x=0.01, ha="left", fontsize=11)
    return figure


def question_lines(result: Result, detection: Detection) -> list[Line]:
    """The shift of the introspection question, the controls' mean with its interval, and every control question."""
    lines = [Line("introspection question", detection.shift, CONCEPT, 10)]
    if detection.control_mean is None:
        return lines
    ends = control_interval(result, detection)
    interval = ends if all(map(math.isfinite, ends)) else None
    name = "mean of the controls" + (", 95% interval" if interval else "")
    lines.append(Line(name, detection.control_mean, CONTROL, 9, interval))
    moved: dict[str, tuple[list[float], list[float]]] = {}
    for row in ungrouped(result.select(detection.setting, question_kind="control")):
        own, nulls = moved.setdefault(row["question"], ([], []))
        (nulls if is_random(row) else own).append(row["injected"]["log_odds"] - row["base"]["log_odds"])
    for question, (own, nulls) in moved.items():
        lines += [Line(question, Compared(value, tuple(nulls)), CONTROL, 6) for value in own]
    return lines
