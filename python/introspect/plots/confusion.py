"""Confusion matrices: what was injected against what was answered."""

from __future__ import annotations

from collections.abc import Sequence

from .style import Figure, bare


def confusion(
    counts: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    truth: str = "injected",
    answer: str = "answered",
    title: str = "",
    interval: tuple[float, float] | None = None,
) -> Figure:
    """Rows are what was injected, columns what was answered; cells show the share of their row and the count.

    Args:
        counts: [truth][answer].
        interval: of the share of right answers, shown beside it.

    Raises:
        ValueError: counts that are not a square of the labels' size.
    """
    k = len(labels)
    if len(counts) != k or any(len(row) != k for row in counts):
        raise ValueError(f"confusion: counts must be {k} x {k}, got rows of {sorted({len(row) for row in counts})}")
    totals = [sum(row) for row in counts]
    shares = [[n / total if total else 0.0 for n in row] for row, total in zip(counts, totals, strict=True)]
    side = max(3.4, 1.5 + 0.62 * k)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            colour = "white" if share > 0.55 else "#222222"
            axes.text(j, i, f"{100 * share:.0f}%\n{counts[i][j]:g}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(k), labels, rotation=45 if k > 5 else 0, ha="right" if k > 5 else "center", fontsize=8.5)
    axes.set_yticks(range(k), labels, fontsize=8.5)
    axes.tick_params(length=0)
    axes.set_xlabel(answer, fontsize=9)
    axes.set_ylabel(truth, fontsize=9)
    bare(axes)
    axes.spines["bottom"].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.ax.axhline(1 / k, color="#D55E00", linewidth=2)
    bar.set_ticks([0, 1 / k, 1], labels=["0", f"chance {100 / k:.0f}%", "100%"])
    bar.ax.tick_params(labelsize=8.5)
    bar.outline.set_visible(False)  # type: ignore[operator]
    right = sum(counts[i][i] for i in range(k)) / (sum(totals) or 1)
    between = f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f}%)" if interval else ""
    head = f"{100 * right:.0f}%{between} right, chance {100 / k:.0f}%"
    figure.suptitle(f"{title}\n{head}" if title else head, x=0.01, ha="left", fontsize=10.5)
    return figure
