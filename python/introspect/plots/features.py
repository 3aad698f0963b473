"""Features of dictionaries: densities, activations, and what rises between two models or sets of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .style import CONCEPT, CONTROL, NULL, Figure, NothingToDraw, frame, legend_below


def density_histogram(density: Any, *, tokens: int | None = None, title: str = "") -> Figure:
    """How often features are active: a histogram of log10 density.

    Args:
        density: share of tokens at which each feature is active.
        tokens: they were counted on; 1 / tokens is the least that can be seen, and is drawn.

    Raises:
        NothingToDraw: no feature was active.
    """
    values = [float(one) for one in density]
    alive = [math.log10(one) for one in values if one > 0]
    if not alive:
        raise NothingToDraw("density_histogram: no feature was active on these tokens")
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    low = math.floor(min(alive) * 2) / 2
    edges = [low + i / 8 for i in range(math.ceil(-low * 8) + 1)] if low < 0 else [-0.5, 0]
    axes.hist(alive, bins=edges, color=CONCEPT, alpha=0.85)
    if tokens:
        axes.axvline(-math.log10(tokens), color=NULL, linestyle="--", linewidth=1.1, label=f"once in {tokens:,} tokens")
        legend_below(figure, axes.get_legend_handles_labels()[0])
    axes.set_xlabel("log10 of the share of tokens at which a feature is active", fontsize=9)
    axes.set_ylabel("features", fontsize=9)
    frame(axes)
    dead = len(values) - len(alive)
    said = f"{len(alive):,} of {len(values):,} features active, {dead:,} never"
    axes.set_title(title or said, fontsize=10, loc="left")
    return figure


def activation_histogram(values: Sequence[float], heights: Sequence[float], *, title: str = "") -> Figure:
    """How large one feature is where it is active.

    Args:
        values, heights: middle and count of each bar.

    Raises:
        NothingToDraw: no bars.
    """
    if not values:
        raise NothingToDraw("activation_histogram: the feature was not active on these tokens")
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    width = (values[1] - values[0]) if len(values) > 1 else 1.0
    axes.bar(values, heights, width=width, color=CONCEPT)
    axes.set_xlabel("activation", fontsize=9)
    axes.set_ylabel("tokens", fontsize=9)
    frame(axes)
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def rising_features(found: Any, *, labelled: int = 12) -> Figure:
    """The change of every feature against its score, with the threshold that chance reaches.

    Args:
        found: a FeatureShift.
        labelled: how many features get their number beside them.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    change, scores = found.change.tolist(), found.scores.tolist()
    risen = set(found.risen)
    raised = [one in risen for one in found.ids.tolist()]
    for wanted, colour, label in ((False, NULL, "within chance"), (True, CONTROL, "risen beyond chance")):
        at = [i for i, one in enumerate(raised) if one is wanted]
        axes.plot(
            [change[i] for i in at], [scores[i] for i in at], "o", color=colour, markersize=3.5, alpha=0.7, label=label
        )
    axes.axhline(
        found.threshold,
        color="#333333",
        linestyle="--",
        linewidth=1.1,
        label=f"highest of chance ({found.nulls} nulls)",
    )
    for i in sorted(range(len(scores)), key=lambda i: -scores[i])[:labelled]:
        if raised[i]:
            axes.annotate(
                str(found.ids[i].item()), (change[i], scores[i]), fontsize=8, xytext=(4, 2), textcoords="offset points"
            )
    axes.set_xlabel(f"change of the mean activation, {found.names[1]} less {found.names[0]}", fontsize=9)
    axes.set_ylabel("change in standard deviations", fontsize=9)
    frame(axes)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    axes.set_title(f"{sum(raised)} of {len(scores):,} features rise beyond chance", fontsize=10, loc="left")
    return figure


def relative_norms(found: Any) -> Figure:
    """A histogram of the relative decoder norms of a CrosscoderClasses: which model each feature is of."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(found.relative_norm.tolist(), bins=[i / 50 for i in range(51)], color=CONCEPT, alpha=0.85)
    for edge in (*found.shared_range, *found.only_range):
        axes.axvline(edge, color="#555555", linestyle=":", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"|W_dec| in {found.names[1]} of the sum of both (0: {found.names[0]} only)", fontsize=9)
    axes.set_ylabel("features", fontsize=9)
    frame(axes)
    counts = ", ".join(f"{n:,} {name}" for name, n in found.counts.items())
    axes.set_title(counts, fontsize=10, loc="left")
    return figure
