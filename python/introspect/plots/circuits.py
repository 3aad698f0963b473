"""Curves of circuits: how much of a metric the best edges keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .style import CONCEPT, CONTROL, THIRD, Figure, frame

COLOURS = (CONCEPT, CONTROL, THIRD, "#CC79A7", "#56B4E9", "#E69F00")


class Curve(Protocol):
    """What is drawn of an introspect.circuits.Faithfulness."""

    @property
    def shares(self) -> list[float]: ...
    @property
    def faithfulness(self) -> list[float]: ...
    @property
    def cmd(self) -> float: ...
    @property
    def cpr(self) -> float: ...


def faithfulness_curve(curves: Mapping[str, Curve], *, title: str = "") -> Figure:
    """Faithfulness against the share of edges, on a logarithmic axis; 0 is no edge, 1 is the whole model.

    Args:
        curves: by the name that stands in the legend; one may be nameless.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    for level in (0.0, 1.0):
        axes.axhline(level, color="#555555", linewidth=0.9, zorder=1)
    for (name, curve), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        areas = f"CMD {curve.cmd:.2f}, CPR {curve.cpr:.2f}"
        label = f"{name}: {areas}" if name else areas
        axes.plot(curve.shares, curve.faithfulness, marker="o", markersize=3.5, color=colour, label=label, zorder=3)
    axes.set_xscale("log")
    axes.set_xlabel("share of edges", fontsize=9)
    axes.set_ylabel("faithfulness", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    frame(axes)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure
