"""Maps of heads by layers, as of the attention an answer pays to the injected span."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from .style import Figure, bare, colour_bar, signed_norm

Map = Sequence[Sequence[float]]  # [layer][head]
NAMED = 4  # heads of a panel that are named


def head_maps(maps: Mapping[str, Map], *, label: str = "attention to the injected span", title: str = "") -> Figure:
    """One panel a map, layers upwards and heads along; the heads with the largest values are named (L39H5).

    Of neighbours in a layer only the larger one is, where two names would overlap.
    Panels share one scale; where a value is negative, as in a difference of two conditions, it is symmetric about zero.

    Raises:
        ValueError: no maps, or maps of different shapes.
    """
    shapes = {(len(values), *map(len, values)) for values in maps.values()}
    if len(shapes) != 1:
        raise ValueError(f"head_maps: maps of one shape are needed, got {len(maps)} of {len(shapes)} shapes")
    n_layers, n_heads = len(next(iter(maps.values()))), len(next(iter(maps.values()))[0])
    norm, colours = signed_norm(v for values in maps.values() for row in values for v in row)
    columns = columns_of(len(maps))
    rows = math.ceil(len(maps) / columns)
    height = min(6.0, 1.2 + 0.16 * n_layers)
    width = min(4.6, 2.4 + 0.1 * n_heads)
    figure = Figure(figsize=(1.4 + width * columns, 0.9 + height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, (name, values) in zip(panels, maps.items(), strict=False):
        axes.imshow(values, cmap=colours, norm=norm, origin="lower", aspect="auto", interpolation="nearest")
        axes.set_title("\n".join(textwrap.wrap(name, 30)), fontsize=9, loc="left")
        axes.set_xlabel("head", fontsize=9)
        _name_heads(axes, values, dark=colours == "viridis", limit=norm.vmax or 1.0)
        axes.set_xticks(range(0, n_heads, math.ceil(n_heads / 10)))
        axes.set_yticks(range(0, n_layers, math.ceil(n_layers / 12)))
        axes.tick_params(labelsize=8.5, length=2, labelbottom=True)
        bare(axes)
    for axes in panels[len(maps) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("layer", fontsize=9)
    colour_bar(figure, panels, norm, colours, label, shrink=0.8, pad=0.01)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def columns_of(n_maps: int) -> int:
    """Panels beside one another: pairs stay pairs."""
    return 2 if n_maps in (2, 4) else min(n_maps, 3)


def largest(values: Map, n: int = NAMED) -> list[tuple[int, int]]:
    """(layer, head) of the values furthest from zero, the furthest first."""
    heads = [(layer, head) for layer, row in enumerate(values) for head, v in enumerate(row) if math.isfinite(v)]
    return sorted(heads, key=lambda at: -abs(values[at[0]][at[1]]))[:n]


def _name_heads(axes: Axes, values: Map, *, dark: bool, limit: float) -> None:
    n_heads = len(values[0])
    named: list[tuple[int, int]] = []
    for layer, head in largest(values):
        if abs(values[layer][head]) < limit / 4:  # nothing stands out on the common scale
            continue
        if any(layer == row and abs(head - other) < n_heads / 3 for row, other in named):  # the names would overlap
            continue
        named.append((layer, head))
        leftwards = head > n_heads / 2
        axes.annotate(
            f"L{layer}H{head}",
            (head - 0.5 if leftwards else head + 0.5, layer),
            xytext=(-2 if leftwards else 2, 0),
            textcoords="offset points",
            ha="right" if leftwards else "left",
            va="center",
            fontsize=7.5,
            color="white" if dark else "black",
            fontweight="bold",
        )
