"""What the content report says."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from ..experiments.results import Identification, Result
from .confusion import confusion
from .style import CONCEPT, CONTROL, NULL, Figure, bare, finish, legend, strip


def content(result: Result) -> Figure | None:
    """What the content report says: how much the concept's own token gained, and where it ranks among all tokens."""
    found = result.identifications()
    if not found:
        return None
    figure = Figure(figsize=(10.4, 2.0 + 0.75 * len(found)), layout="constrained")
    gains, ranks = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    for y, one in enumerate(found):
        strip(gains, y - 0.17, one.gain, CONCEPT, size=9, band_height=0.13)
        strip(gains, y + 0.2, one.spaced_gain, CONTROL, size=7, band_height=0.13)
        ranks.plot(one.null_ranks, [y - 0.17] * len(one.null_ranks), "|", color=NULL, markersize=10)
        _rank_arrow(ranks, y - 0.17, one.rank_base, one.rank, CONCEPT)
        _rank_arrow(ranks, y + 0.2, one.spaced_rank_base, one.spaced_rank, CONTROL)
    finish(gains, [result.label(one.setting) for one in found], "gain of the concept's token in log-probability (nats)")
    _ranks_axis(ranks, found)
    colours = [("token without a leading space", CONCEPT), ("with a leading space", CONTROL)]
    legend(gains, colours, any(one.gain.nulls for one in found))
    figure.suptitle(f"{result.protocol['name']} · {result.model['name']}", x=0.01, ha="left", fontsize=11)
    return figure


def identified(result: Result) -> Figure | None:
    """Which concept's token gained most, against which was injected; None for fewer than three concepts.

    The unspaced tokens of all concepts are compared, once for every setting. Chance is one in the number of concepts.
    """
    concepts = result.concepts
    if len(concepts) < 3 or not result.identifications():
        return None
    counts = answers(result)
    title = f"{result.protocol['name']} · {result.model['name']}\nwhich concept's token gained most"
    return confusion(counts, concepts, answer="token that gained most", title=title)


def answers(result: Result) -> list[list[int]]:
    """[injected concept][concept whose unspaced token gained most], counted over settings."""
    concepts = result.concepts
    counts = [[0] * len(concepts) for _ in concepts]
    for row in result.rows:
        base, injected = row["base"].get("tokens"), row["injected"].get("tokens")
        if row["kind"] != "introspection" or not base or not injected:
            continue
        gains = [after["log_prob"] - before["log_prob"] for before, after in zip(base[::2], injected[::2], strict=True)]
        if all(map(math.isfinite, gains)):
            counts[concepts.index(row["concept"])][gains.index(max(gains))] += 1
    return counts


def _rank_arrow(axes: Axes, y: float, base: int, injected: int, colour: str) -> None:
    axes.annotate("", (injected, y), (base, y), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.6})
    axes.plot([base], [y], "o", color="white", markeredgecolor=colour, markersize=5, zorder=3)
    axes.annotate(
        f"{base:,} → {injected:,}",
        (min(base, injected), y),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        color=colour,
    )


def _ranks_axis(axes: Axes, found: list[Identification]) -> None:
    highest = max(max(one.rank_base, one.rank, one.spaced_rank_base, one.spaced_rank) for one in found)
    axes.set_xscale("log")
    axes.set_xlim(max(highest, 10) * 2.0, 0.12)  # the best rank is at the right, with room for the numbers
    ticks = [10**k for k in range(7) if 10**k <= max(highest, 10) * 2]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("its rank among all tokens (1 = most probable)", fontsize=9)
    axes.tick_params(labelsize=8.5, left=False)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    bare(axes)
