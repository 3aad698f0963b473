"""Pictures of results. Every function returns a matplotlib Figure and needs no display.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; what is random is grey everywhere.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .results import Compared, Detection, Identification, Result

CONCEPT, CONTROL, NULL = "#0072B2", "#D55E00", "#8a8a8a"
PANELS = 3  # beside one another
NATS = "change of log-odds yes : no (nats)"


def plot_vector(vector) -> Figure:
    """Which layers of a ControlVector hold its concept: shares of variance, and how well it tells its pairs apart.

    Raises:
        ValueError: the vector has no diagnostics, as one made by hand, added up or trained elsewhere.
    """
    diagnostics, spectrum = vector.diagnostics, vector.spectrum
    if not diagnostics:
        raise ValueError("plot_vector: the vector must have diagnostics, as a trained one has, and it has none")
    figure = Figure(figsize=(8.4, 6.0), layout="constrained")
    told_apart, variance = figure.subplots(2, 1, sharex=True)
    layers = sorted(diagnostics)
    lines = [
        ("accuracy on held-out pairs", "accuracy", CONCEPT, "o-"),
        ("AUC on held-out pairs", "auc", CONTROL, "s-"),
        ("pairs in the vector's order", "sign_agreement", NULL, "--"),
    ]
    for label, name, colour, style in lines:
        values = [getattr(diagnostics[layer], name) for layer in layers]
        if None not in values:
            told_apart.plot(layers, values, style, color=colour, label=label, markersize=4, linewidth=1.4)
    told_apart.axhline(0.5, color="#555555", linewidth=0.9, linestyle=":")
    told_apart.text(1.01, 0.5, "chance", transform=told_apart.get_yaxis_transform(), va="center", fontsize=8.5)
    told_apart.set_ylim(min(0.45, told_apart.get_ylim()[0]), 1.02)
    told_apart.set_ylabel("share of pairs", fontsize=9)
    if spectrum:
        bottom = [0.0] * len(layers)
        for rank in range(max(map(len, spectrum.values()))):
            shares = [(spectrum[layer] + [0.0] * (rank + 1))[rank] for layer in layers]
            name = "first component" if rank == 0 else "next components" if rank == 1 else "_"
            colour, alpha = (CONCEPT, 1.0) if rank == 0 else (NULL, max(0.7 - 0.09 * rank, 0.12))
            variance.bar(layers, shares, bottom=bottom, color=colour, alpha=alpha, width=0.8, label=name)
            bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
        variance.set_ylabel("share of variance", fontsize=9)
    else:
        explained = [diagnostics[layer].explained_variance for layer in layers]
        variance.bar(layers, explained, color=CONCEPT, width=0.8, label="along the direction")
        variance.set_ylabel("share of the differences", fontsize=9)
    variance.set_ylim(0, 1)
    variance.set_xlabel("layer", fontsize=9)
    for axes in (told_apart, variance):
        axes.tick_params(labelsize=8.5)
        axes.grid(axis="y", color="#ececec", linewidth=0.8)
        axes.set_axisbelow(True)
        _bare(axes)
        axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    trained = f"{vector.method} · {vector.n_pairs} pairs" + (f", {vector.folds} folds" if vector.folds else "")
    title = " · ".join(part for part in (vector.model_name, trained) if part)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def overview(results: Sequence[Result]) -> Figure | None:
    """Every concept's shift, less its controls', beside its random rotations; None where nothing was asked."""
    lines = [
        (f"{result.protocol['name']}\n{result.label(d.setting)}", d.headline, d.corrected is not None)
        for result in results
        if result.protocol["read"] == "yes_no"
        for d in result.detections()
    ]
    if not lines:
        return None
    figure = Figure(figsize=(8.4, 1.5 + 0.55 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for y, (_, compared, _) in enumerate(lines):
        _strip(axes, y, compared, CONCEPT, size=9)
    corrected = all(line[2] for line in lines)
    _finish(axes, [line[0] for line in lines], NATS + (", less the controls' mean" if corrected else ""))
    _legend(axes, [("concept", CONCEPT)], any(c.nulls for _, c, _ in lines))
    figure.suptitle(f"Concepts against random directions · {results[0].model['name']}", x=0.01, ha="left", fontsize=11)
    return figure


def shifts(result: Result) -> Figure:
    """The shift of every question, one panel a setting: the introspection question, then the controls."""
    detections = result.detections()
    questions = list(dict.fromkeys(r["question"] for r in result.rows if r["question_kind"] == "control"))
    head = ["introspection question"] + (["mean of the controls ± std"] if questions else [])
    names = head + [_shorten(question, 46) for question in questions]
    columns = min(len(detections), PANELS)
    rows = math.ceil(len(detections) / columns)
    figure = Figure(figsize=(3.6 + 3.4 * columns, 1.1 + rows * (0.8 + 0.27 * len(names))), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flat
    for axes, detection in itertools.zip_longest(panels, detections):
        if detection is None:
            axes.set_visible(False)
            continue
        _question_panel(axes, result, detection, questions)
        axes.set_title(result.label(detection.setting), fontsize=9.5, loc="left")
        _finish(axes, names, NATS)
        axes.tick_params(labelbottom=True)
        if questions:
            axes.axhline(1.5, color="#d0d0d0", linewidth=0.8)
        if axes.get_subplotspec().is_first_col():
            axes.get_yticklabels()[0].set_fontweight("bold")
    colours = [("introspection question", CONCEPT)] + ([("control question", CONTROL)] if questions else [])
    _legend(panels[0], colours, any(d.shift.nulls for d in detections))
    figure.suptitle(f"{result.protocol['name']} · {result.model['name']}", x=0.01, ha="left", fontsize=11)
    return figure


def _question_panel(axes: Axes, result: Result, detection: Detection, questions: list[str]) -> None:
    _strip(axes, 0, detection.shift, CONCEPT, size=9)
    if detection.control_mean is None:
        return
    _strip(axes, 1, detection.control_mean, CONTROL, size=8, error=detection.control_std)
    rows = result.select(detection.setting)
    for y, question in enumerate(questions, start=2):
        moved: dict[str, list[float]] = {"control": [], "null": []}
        for row in rows:
            if row["question"] == question and row["kind"] in moved:
                moved[row["kind"]].append(row["injected"]["log_odds"] - row["base"]["log_odds"])
        for value in moved["control"]:
            _strip(axes, y, Compared(value, tuple(moved["null"])), CONTROL, size=5)


def content(result: Result) -> Figure | None:
    """What the content report says: how much the concept's own token gained, and where it ranks among all tokens."""
    found = result.identifications()
    if not found:
        return None
    figure = Figure(figsize=(10.4, 2.0 + 0.75 * len(found)), layout="constrained")
    gains, ranks = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    for y, one in enumerate(found):
        _strip(gains, y - 0.17, one.gain, CONCEPT, size=9, band_height=0.13)
        _strip(gains, y + 0.2, one.spaced_gain, CONTROL, size=7, band_height=0.13)
        ranks.plot(one.null_ranks, [y - 0.17] * len(one.null_ranks), "|", color=NULL, markersize=10)
        _rank_arrow(ranks, y - 0.17, one.rank_base, one.rank, CONCEPT)
        _rank_arrow(ranks, y + 0.2, one.spaced_rank_base, one.spaced_rank, CONTROL)
    _finish(
        gains, [result.label(one.setting) for one in found], "gain of the concept's token in log-probability (nats)"
    )
    _ranks_axis(ranks, found)
    colours = [("token without a leading space", CONCEPT), ("with a leading space", CONTROL)]
    _legend(gains, colours, any(one.gain.nulls for one in found))
    figure.suptitle(f"{result.protocol['name']} · {result.model['name']}", x=0.01, ha="left", fontsize=11)
    return figure


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
    _bare(axes)


def _strip(
    axes: Axes, y: float, compared: Compared, colour: str, *, size: float, error: float = 0.0, band_height: float = 0.26
) -> None:
    """One line: the nulls' range as a band, each null as a dot, the concept's value on top."""
    nulls = [null for null in compared.nulls if math.isfinite(null)]
    if nulls:
        low, high = min(nulls), max(nulls)
        axes.barh(y, high - low, left=low, height=2 * band_height, color=NULL, alpha=0.22, linewidth=0)
        axes.plot(nulls, [y] * len(nulls), "|", color=NULL, markersize=size + 1, markeredgewidth=1.1)
    if error > 0:
        axes.errorbar([compared.value], [y], xerr=[error], color=colour, linewidth=1.4, capsize=3)
    axes.plot([compared.value], [y], "o", color=colour, markersize=size, markeredgecolor="white", zorder=4)


def _finish(axes: Axes, names: list[str], xlabel: str) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color="#555555", linewidth=0.9, zorder=1)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.use_sticky_edges = False  # room between a band and the frame
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)


def _legend(axes: Axes, colours: list[tuple[str, str]], nulls: bool) -> None:
    figure = axes.figure
    handles = [axes.plot([], [], "o", color=colour, label=text, markersize=7)[0] for text, colour in colours]
    if nulls:
        handles.append(
            axes.plot([], [], "|", color=NULL, label="random rotations (band: their range)", markersize=9)[0]
        )
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=8.5)


def _shorten(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder="…")
