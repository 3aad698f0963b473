"""Shifts of the answer to yes-or-no questions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from ..results import Compared, Detection, Result
from ..sweeps import is_sweep
from .style import CONCEPT, CONTROL, NATS, PANELS, Figure, finish, legend, shorten, strip


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
    """Every concept's shift, less its controls', beside its random rotations; None where nothing was asked.

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
    questions = list(dict.fromkeys(r["question"] for r in result.rows if r["question_kind"] == "control"))
    head = ["introspection question"] + (["mean of the controls ± std"] if questions else [])
    names = head + [shorten(question, 46) for question in questions]
    columns = min(len(detections), PANELS)
    rows = math.ceil(len(detections) / columns)
    figure = Figure(figsize=(3.6 + 3.4 * columns, 1.1 + rows * (0.8 + 0.27 * len(names))), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flat
    for axes, detection in itertools.zip_longest(panels, detections):
        if detection is None:
            axes.set_visible(False)
            continue
        _question_panel(axes, result, detection, questions)
        axes.set_title(result.label(detection.setting), fontsize=9.5, loc="left")
        finish(axes, names, NATS)
        axes.tick_params(labelbottom=True)
        if questions:
            axes.axhline(1.5, color="#d0d0d0", linewidth=0.8)
        if axes.get_subplotspec().is_first_col():
            axes.get_yticklabels()[0].set_fontweight("bold")
    colours = [("introspection question", CONCEPT)] + ([("control question", CONTROL)] if questions else [])
    legend(panels[0], colours, any(d.shift.nulls for d in detections))
    figure.suptitle(f"{result.protocol['name']} · {result.model['name']}", x=0.01, ha="left", fontsize=11)
    return figure


def _question_panel(axes: Axes, result: Result, detection: Detection, questions: list[str]) -> None:
    strip(axes, 0, detection.shift, CONCEPT, size=9)
    if detection.control_mean is None:
        return
    strip(axes, 1, detection.control_mean, CONTROL, size=8, error=detection.control_std)
    rows = result.select(detection.setting)
    for y, question in enumerate(questions, start=2):
        moved: dict[str, list[float]] = {"control": [], "random": []}
        for row in rows:
            if row["question"] == question and row["kind"] in moved:
                moved[row["kind"]].append(row["injected"]["log_odds"] - row["base"]["log_odds"])
        for value in moved["control"]:
            strip(axes, y, Compared(value, tuple(moved["random"])), CONTROL, size=5)
