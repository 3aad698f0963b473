"""Maps of patching grids: layers upwards, positions or heads along."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .style import Figure, bare, colour_bar, signed_norm


def patch_map(
    values: Sequence[Sequence[float]],
    *,
    layers: Sequence[int | str],
    columns: Sequence[str],
    along: str = "position",
    label: str = "0 corrupted, 1 clean",
    title: str = "",
    signed: bool = False,
) -> Figure:
    """One map [layer][column]; the colours run from blue (below 0) to red, symmetric about zero.

    Args:
        layers, columns: what stands along the axes.
        signed: False: the scale is at least 1 wide, which is what a normalised grid is about.
    """
    norm, colours = signed_norm((v for row in values for v in row), least=0.0 if signed else 1.0, tolerance=0.02)
    width = min(11.0, 2.2 + 0.34 * len(columns))
    figure = Figure(figsize=(width, min(7.0, 1.8 + 0.15 * len(layers))), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap=colours, norm=norm, origin="lower", aspect="auto", interpolation="nearest")
    step = math.ceil(len(layers) / 12)
    axes.set_yticks(range(0, len(layers), step), [str(layers[i]) for i in range(0, len(layers), step)])
    step = math.ceil(len(columns) / 40)
    places = range(0, len(columns), step)
    longest = max((len(columns[i]) for i in places), default=0)
    rotation = 60 if longest > 3 else 0
    axes.set_xticks(list(places), [columns[i] for i in places], rotation=rotation, ha="right" if rotation else "center")
    axes.set_ylabel("layer", fontsize=9)
    axes.set_xlabel(along, fontsize=9)
    axes.tick_params(labelsize=8, length=2)
    bare(axes)
    colour_bar(figure, axes, norm, colours, label)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure
