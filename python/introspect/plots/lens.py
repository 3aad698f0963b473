"""A reading at every layer: where along the depth an answer comes up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from ..tables import printable
from .style import CONCEPT, CONTROL, NULL, RANDOM, Figure, bare, colour_bar, frame, legend_below

ByLayer = Mapping[int, float]


@dataclass(frozen=True)
class LensCurve:
    """What a logit lens reads after every block, with and without an injection, and under random directions."""

    name: str
    base: ByLayer
    injected: ByLayer
    nulls: Sequence[ByLayer] = ()
    control: ByLayer = field(default_factory=dict)  # the injected reading of the control questions, on average
    steered: tuple[int, int] | None = None  # first and last steered block


def lens_curves(
    curves: Sequence[LensCurve], *, ylabel: str = "log-odds yes : no (nats)", title: str = "", zero: bool = True
) -> Figure:
    """One panel a curve, the steered blocks shaded: base against injected, with the range of the random directions.

    Args:
        zero: a line at 0, for log-odds.

    Raises:
        ValueError: no curves.
    """
    if not curves:
        raise ValueError("lens_curves: at least one curve is needed, got none")
    columns = min(len(curves), 2)
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(1.2 + 4.6 * columns, 1.2 + 2.7 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, curve in zip(panels, curves, strict=False):
        _panel(axes, curve, zero)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("layer", fontsize=9)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel(ylabel, fontsize=9)
    handles: dict[str, Artist] = {}
    for axes in panels[: len(curves)]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend_below(figure, list(handles.values()))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _panel(axes: Axes, curve: LensCurve, zero: bool) -> None:
    if curve.steered:
        first, last = curve.steered
        axes.axvspan(first - 0.5, last + 0.5, color="#f0e442", alpha=0.25, linewidth=0, label="steered blocks")
    if zero:
        axes.axhline(0, color="#555555", linewidth=0.9, zorder=1)
    if layers := null_layers(curve):
        low = [min(null[layer] for null in curve.nulls) for layer in layers]
        high = [max(null[layer] for null in curve.nulls) for layer in layers]
        axes.fill_between(layers, low, high, color=NULL, alpha=0.28, linewidth=0, label=RANDOM)
    for values, style, colour, label in (
        (curve.base, "--", "#333333", "without injection"),
        (curve.control, ":", CONTROL, "control questions, injected"),
        (curve.injected, "-", CONCEPT, "injected"),
    ):
        if values:
            layers = sorted(values)
            axes.plot(layers, [values[layer] for layer in layers], style, color=colour, linewidth=1.8, label=label)
    axes.set_title(curve.name, fontsize=9.5, loc="left")
    frame(axes)


def null_layers(curve: LensCurve) -> list[int]:
    """The layers that every random rotation has."""
    if not curve.nulls:
        return []
    return sorted(set.intersection(*(set(null) for null in curve.nulls)))


def lens_map(
    values: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    *,
    streams: Sequence[str],
    tokens: Sequence[str],
    label: str,
    title: str = "",
) -> Figure:
    """A lens as a map: streams upwards, the text's tokens along, in each cell what is read there.

    Args:
        values, texts: [stream][token]; the colour and what is written. Texts are left out where cells are too small.
    """
    finite = [v for row in values for v in row if math.isfinite(v)]
    norm = Normalize(min(finite, default=0.0), max(finite, default=1.0))
    columns, rows = len(tokens), len(streams)
    figure = Figure(
        figsize=(min(16.0, 2.4 + 0.78 * columns), min(12.0, 1.5 + 0.24 * rows)), dpi=110, layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(values, cmap="viridis", norm=norm, origin="lower", aspect="auto", interpolation="nearest")
    if columns <= 18 and rows <= 45:
        for i, row in enumerate(texts):
            for j, text in enumerate(row):
                dark = norm(values[i][j]) < 0.6
                axes.text(
                    j, i, _cell(text), ha="center", va="center", fontsize=6.5, color="white" if dark else "black",
                    parse_math=False,
                )  # fmt: skip
    step = math.ceil(rows / 40)
    axes.set_yticks(range(0, rows, step), [streams[i] for i in range(0, rows, step)])
    step = math.ceil(columns / 40)
    axes.set_xticks(
        range(0, columns, step), [_cell(tokens[i]) for i in range(0, columns, step)], rotation=45, ha="right"
    )
    for tick in axes.get_xticklabels():
        tick.set_parse_math(False)
    axes.set_ylabel("output of block", fontsize=9)
    axes.tick_params(labelsize=8, length=2)
    bare(axes)
    colour_bar(figure, axes, norm, "viridis", label)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def _cell(text: str) -> str:
    """A token as a cell shows it: spaces and line ends visible, and what no font has left to it."""
    shown = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    shown = "␣" + shown[1:] if shown.startswith(" ") else shown
    return shown if len(shown) <= 11 else shown[:10] + "…"
