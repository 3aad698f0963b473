"""What a control vector is made of."""

from __future__ import annotations

from .style import CONCEPT, CONTROL, NULL, Figure, bare


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
        bare(axes)
        axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    trained = f"{vector.method} · {vector.n_pairs} pairs" + (f", {vector.folds} folds" if vector.folds else "")
    title = " · ".join(part for part in (vector.model_name, trained) if part)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure
