"""Probes by layer: what they tell apart, and what chance and the texts' surface give in the same place."""

from __future__ import annotations

import math
from typing import Any

from .style import CONCEPT, CONTROL, NULL, THIRD, Figure, frame, legend_below

COLOURS = (CONCEPT, CONTROL, THIRD, "#CC79A7", "#E69F00", "#56B4E9")
NAMES = {"auc": "AUC on held-out texts", "accuracy": "accuracy on held-out texts"}
SOURCES = {"length": "their length", "words": "their words", "random_model": "a model of random weights"}


def probe_curves(table: Any, metric: str = "auc", *, title: str | None = None) -> Figure:
    """The metric by layer of a ProbeTable, a line for each position with its interval.

    Grey: from the lowest to the highest shuffle of the labels. Dashed: what the texts' surface gives.

    Raises:
        ValueError: an unknown metric.
    """
    if metric not in NAMES:
        raise ValueError(f"probe_curves: the metric must be auc or accuracy, got {metric!r}")
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    positions = list(dict.fromkeys(row.position for row in table.rows))
    for place, position in enumerate(positions):
        rows = [row for row in table.rows if row.position == position]
        layers = [row.layer for row in rows]
        colour = COLOURS[place % len(COLOURS)]
        nulls = [[v for v in getattr(row, f"null_{metric}") if math.isfinite(v)] for row in rows]
        if all(nulls):
            low, high = [min(v) for v in nulls], [max(v) for v in nulls]
            label = f"{table.nulls} shuffles of the labels (band: lowest to highest)" if place == 0 else None
            axes.fill_between(layers, low, high, color=NULL, alpha=0.22, linewidth=0, label=label)
        low = [getattr(row, f"{metric}_low") for row in rows]
        high = [getattr(row, f"{metric}_high") for row in rows]
        axes.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)
        name = f"probe at {position}" if len(positions) > 1 else "probe, with its interval"
        axes.plot(
            layers, [getattr(row, metric) for row in rows], "o-", color=colour, markersize=4, linewidth=1.5, label=name
        )
    for (what, row), style in zip(table.baselines.items(), ("--", ":", "-."), strict=False):
        value = getattr(row, metric)
        if math.isfinite(value):
            axes.axhline(
                value, color="#333333", linestyle=style, linewidth=1.2, label=f"from {SOURCES[what]}: {value:.2f}"
            )
    chance = 0.5 if metric == "auc" else 1 / len(table.classes)
    axes.axhline(chance, color="#999999", linewidth=0.8)
    axes.set_ylim(top=1.02)
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel(NAMES[metric], fontsize=9)
    frame(axes)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    said = f"{' against '.join(table.classes)} · {table.model_name} · {table.kind}"
    axes.set_title(said if title is None else title, fontsize=10, loc="left")
    return figure
