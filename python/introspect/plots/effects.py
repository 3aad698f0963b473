"""Maps of effects by layer, and of paths from heads to heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .patching import patch_map
from .style import CONCEPT, CONTROL, Figure, bare


def effect_plot(
    values: torch.Tensor,
    axes: Sequence[str],
    labels: Mapping[str, Sequence],
    *,
    label: str = "effect on the metric",
    title: str = "",
) -> Figure:
    """One picture of ``values``, with a dimension for each of ``axes``.

    Args:
        axes: "sender" alone is drawn as bars, layers with one other axis or none as a map, and four axes as a map of
            source heads and later heads.
    """
    if list(axes) == ["sender"]:
        return _bars(values.tolist(), [str(one) for one in labels["sender"]], label, title)
    if len(axes) == 4:
        rows, columns = (
            [f"a{layer}.h{head}" for layer in labels[first] for head in labels[second]]
            for first, second in (axes[:2], axes[2:])
        )
        values = values.reshape(len(rows), len(columns))
        figure = patch_map(
            values.tolist(), layers=rows, columns=columns, along="head", label=label, title=title, signed=True
        )
        figure.axes[0].set_ylabel("source head", fontsize=9)
        return figure
    if len(axes) == 1:
        values = values.unsqueeze(-1)
    along = axes[1] if len(axes) > 1 else ""
    return patch_map(
        values.tolist(),
        layers=labels[axes[0]],
        columns=[str(one) for one in labels[along]] if along else [""],
        along=along,
        label=label,
        title=title,
        signed=True,
    )


def _bars(values: Sequence[float], names: Sequence[str], label: str, title: str) -> Figure:
    figure = Figure(figsize=(6.5, 0.9 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(names)), values, color=[CONTROL if value < 0 else CONCEPT for value in values])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(labelsize=8, length=2)
    bare(axes)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure
