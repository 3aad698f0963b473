"""What the injected state holds beside what moves the answer and what is reported, by block."""

from __future__ import annotations

from typing import Any

from .style import CONCEPT, CONTROL, NULL, THIRD, Figure, frame, legend_below


def gap(found: Any) -> Figure:
    """A Gap: shares of concepts named above, nats below, over the blocks; what is random is grey."""
    figure = Figure(figsize=(8.2, 6.2), layout="constrained")
    shares, nats = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    blocks = range(len(found.moved))
    for nulls in (found.decodable_nulls, found.at_answer_nulls):
        if nulls:
            low, high = zip(*((min(one), max(one)) for one in zip(*nulls, strict=True)), strict=True)
            label = "rotations of the vectors (band: lowest to highest)" if nulls is found.decodable_nulls else None
            shares.fill_between(blocks, low, high, color=NULL, alpha=0.18, linewidth=0, label=label)
    shares.plot(blocks, found.decodable, "o-", color=CONCEPT, markersize=4, label="probe, at the injected tokens")
    shares.plot(blocks, found.at_answer, "s--", color=THIRD, markersize=4, label="probe, where the answer is read")
    label = "the answer, injected into this block alone"
    shares.plot(blocks, found.reported, "^-", color=CONTROL, markersize=4, label=label)
    label = f"the answer, blocks {found.first_layer}–{found.last_layer}: {found.said:.2f}"
    shares.axhline(found.said, color=CONTROL, linewidth=1.2, linestyle=":", label=label)
    shares.axhline(found.chance, color="#999999", linewidth=0.8)
    shares.set_ylim(-0.03, 1.03)
    shares.set_ylabel("share of concepts named", fontsize=9)
    if found.moved_nulls:
        low, high = zip(*((min(one), max(one)) for one in zip(*found.moved_nulls, strict=True)), strict=True)
        nats.fill_between(blocks, low, high, color=NULL, alpha=0.22, linewidth=0)
        for one in found.moved_nulls:  # a band between single blocks, or of one rotation, has no area
            nats.plot(blocks, one, "_", color=NULL, markersize=7)
    nats.plot(blocks, found.moved, "^-", color=CONTROL, markersize=4)
    nats.axhline(0, color="#999999", linewidth=0.8)
    nats.set_ylabel("gain of the concept's word\n(nats)", fontsize=9)
    nats.set_xlabel("block", fontsize=9)
    for axes in (shares, nats):
        axes.axvspan(found.first_layer - 0.5, found.last_layer + 0.5, color=CONCEPT, alpha=0.05, linewidth=0)
        frame(axes)
    legend_below(figure, shares.get_legend_handles_labels()[0])
    title = f"{found.model} · {len(found.concepts)} concepts · strength {found.strength:g}"
    shares.set_title(title, fontsize=10, loc="left")
    return figure
