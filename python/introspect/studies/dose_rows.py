"""What was measured of doses, as a table, JSON, a picture and text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..experiments.dose import Dose
from ..experiments.results import finite

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas


@dataclass(frozen=True)
class DoseRow(Dose):
    """A Dose, and how the text reads that the model goes on with, greedily.

    Attributes:
        perplexity, perplexity_base: of the steered text under the unsteered model, and of the unsteered text.
        repetition, repetition_base: largest share of runs of three tokens that stood in the text before.
        coherence: 1 reads as the unsteered text, near 0 is broken: min(1, perplexity_base / perplexity) times
            1 - max(0, repetition - repetition_base). NaN where no text was drawn.
        coherent: whether the perplexity is within the factor and the repetition no larger: see ``coherent_window``.
        text: the first of the texts.
    """

    perplexity: float = math.nan
    perplexity_base: float = math.nan
    repetition: float = math.nan
    repetition_base: float = math.nan
    coherence: float = math.nan
    coherent: bool | None = None
    text: str = ""


@dataclass(frozen=True)
class Doses:
    """Doses of vectors over ranges and strengths.

    Attributes:
        rows: by vector, range and strength (or target).
        model, context: their names.
    """

    rows: list[DoseRow]
    model: str
    context: str

    def to_pandas(self) -> pandas.DataFrame:
        """One row an injection: target, strength, kl, coherence and the rest of DoseRow."""
        import pandas

        first = ("concept", "first_layer", "last_layer", "target", "strength", "unit", "kl", "coherence", "coherent")
        table = pandas.DataFrame([asdict(row) for row in self.rows])
        return table[[*first, *(name for name in table.columns if name not in first)]]

    def to_json(self) -> str:
        data = {"schema": 1, "model": self.model, "context": self.context, "rows": [asdict(row) for row in self.rows]}
        return json.dumps(finite(data), ensure_ascii=False, allow_nan=False)

    def plot(self) -> matplotlib.figure.Figure:
        """Dose, size and coherence over strength, a line for each vector and range."""
        from ..plots.doses import dose_curves

        return dose_curves(self)

    def summary(self) -> str:
        """A table in plain text."""

        def number(value: float) -> str:
            return "" if math.isnan(value) else f"{value:.3g}"

        head = ("vector", "blocks", "strength", "kl", "later", "sd", "leak", "coherence", "text")
        lines = [head]
        for row in self.rows:
            leak = f"{row.leak_base:.2g} to {row.leak:.2g}" if math.isfinite(row.leak) else ""
            coherence = f"{row.coherence:.2f}" + ("" if row.coherent is None else " ok" if row.coherent else " broken")
            lines.append(
                (
                    (row.concept or "vector") + ("" if row.null_index < 0 else f" (random {row.null_index})"),
                    f"{row.first_layer}-{row.last_layer}",
                    f"{row.strength:.3g}" + (f" ({row.target})" if row.target else ""),
                    number(row.kl),
                    number(row.kl_later),
                    number(row.sd),
                    leak,
                    coherence if math.isfinite(row.coherence) else "",
                    " ".join(row.text.split())[:60],
                )
            )
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def __iter__(self) -> Iterator[DoseRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)
