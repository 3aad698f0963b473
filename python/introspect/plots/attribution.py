"""What parts of a model add to a logit: by layer, and the largest of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .style import CONCEPT, CONTROL, THIRD, Figure, bare, frame, legend_below

ByLayer = Mapping[int, float]
_COLOURS = (CONCEPT, CONTROL, THIRD)


def attribution_by_layer(series: Mapping[str, ByLayer], *, ylabel: str, title: str = "") -> Figure:
    """A bar for each layer and series."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    _bars(axes, series)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.set_xlabel("layer", fontsize=9)
    if len(series) > 1:
        legend_below(figure, axes.get_legend_handles_labels()[0])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def largest_parts(values: Mapping[str, float], *, n: int = 20, xlabel: str, title: str = "") -> Figure:
    """The n values furthest from zero, the largest first."""
    chosen = sorted(values, key=lambda name: -abs(values[name]))[:n]
    chosen.sort(key=lambda name: -values[name])
    figure = Figure(figsize=(5.6, 0.9 + 0.22 * len(chosen)), layout="constrained")
    axes = figure.subplots()
    numbers = [values[name] for name in chosen]
    axes.barh(range(len(chosen)), numbers, color=[CONCEPT if v > 0 else CONTROL for v in numbers])
    axes.set_yticks(range(len(chosen)), chosen, fontsize=8.5)
    axes.invert_yaxis()
    axes.axvline(0, color="#555555", linewidth=0.9)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(labelsize=8.5)
    bare(axes)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def two_tokens(
    series: Mapping[str, ByLayer],
    running: Sequence[float],
    log_probs: Mapping[str, Sequence[float]],
    *,
    turn: float | None = None,
    title: str = "",
) -> Figure:
    """What each layer adds to the difference of two tokens' logits, with its sum; below, both tokens by the lens.

    Args:
        running: the difference after each layer, at the final norm's scale.
        log_probs: token -> log-probability after each layer.
        turn: the layer at which the expected token falls behind for good, marked in both.
    """
    figure = Figure(figsize=(7.6, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _bars(above, series)
    above.plot(range(len(running)), running, color="#333333", linewidth=1.3, marker=".", label="running sum")
    above.set_ylabel("expected less actual (nats)", fontsize=9)
    for (name, values), colour in zip(log_probs.items(), (CONCEPT, CONTROL), strict=True):
        below.plot(range(len(values)), values, color=colour, linewidth=1.5, marker=".", label=name)
    below.set_ylabel("log-probability by the lens", fontsize=9)
    below.set_xlabel("layer", fontsize=9)
    frame(below)
    for axes in (above, below):
        if turn is not None:
            axes.axvline(turn, color="#555555", linewidth=0.9, linestyle=":", label="turn")
    handles = dict(zip(*reversed(above.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(below.get_legend_handles_labels()), strict=True))
    legend_below(figure, list(handles.values()))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _bars(axes, series: Mapping[str, ByLayer]) -> None:
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [layer + (i - (len(series) - 1) / 2) * width for layer in values]
        axes.bar(places, list(values.values()), width=width, color=_COLOURS[i], label=name)
    axes.axhline(0, color="#555555", linewidth=0.9)
    frame(axes)
