"""Tables of probes: a row for every layer and position."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from .._C import Probe
from ..arguments import native_model
from .probe_inputs import Labels, Position, as_list, check_lengths, collect, numbered

if TYPE_CHECKING:
    import pandas

    from ..plots.style import Figure


@dataclass(frozen=True)
class ProbeRow:
    """One probe: how well it does on texts that it has not seen.

    Attributes:
        layer, position: where it reads; of the surface layer is -1.
        accuracy, accuracy_low, accuracy_high: share of the texts whose class is predicted, and its interval.
        auc, auc_low, auc_high: mean over folds; of more than two classes the mean of one against the rest.
        log_loss: nats a text; NaN for kinds without probabilities.
        C: inverse strength of the penalty.
        null_accuracy, null_auc: of every shuffle of the labels.
        p_accuracy, p_auc: chance of so much anywhere among the rows under shuffled labels; None without nulls.
        control_accuracy: on random labels of the tokens that are read; None where they are all one.
        description_bits, compression: the online code of the labels, and how many times shorter than by chance it is.
    """

    layer: int
    position: Position
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auc: float
    auc_low: float
    auc_high: float
    log_loss: float
    C: float
    null_accuracy: tuple[float, ...] = ()
    null_auc: tuple[float, ...] = ()
    p_accuracy: float | None = None
    p_auc: float | None = None
    control_accuracy: float | None = None
    description_bits: float | None = None
    compression: float | None = None

    @property
    def selectivity(self) -> float | None:
        """Accuracy less that of the control task (Hewitt & Liang 2019)."""
        return None if self.control_accuracy is None else self.accuracy - self.control_accuracy

    def columns(self) -> dict[str, Any]:
        """The row of a table: the nulls as their means and highest values."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__ if not name.startswith("null_")}
        for name in ("null_accuracy", "null_auc"):
            values = [v for v in getattr(self, name) if math.isfinite(v)]
            out[name] = sum(values) / len(values) if values else None
            out[name + "_highest"] = max(values, default=None)
        out["selectivity"] = self.selectivity
        return out


@dataclass(frozen=True, eq=False)
class ProbeTable:
    """Probes at layers and positions of a model; ``probe_layers`` says what the figures mean.

    Attributes:
        rows: by position, then by layer.
        probes: (layer, position) -> the Probe, fitted on all texts.
        baselines: "length", "words", "random_model" -> a row of what the texts' surface, or random weights, give.
        held_out: (layer, position) -> scores [n] or [n, K] by the probe that has not seen the text's fold.
        folds: of each text.
        classes: names; of two the second is the positive one.
        model_name, kind, n_groups, nulls: of the study.
    """

    rows: tuple[ProbeRow, ...]
    probes: dict[tuple[int, Position], Probe]
    baselines: dict[str, ProbeRow]
    held_out: dict[tuple[int, Position], torch.Tensor]
    folds: tuple[int, ...]
    classes: tuple[str, ...]
    model_name: str
    kind: str
    n_groups: int | None
    nulls: int
    point: str = "hook_resid_post"

    @property
    def best(self) -> ProbeRow:
        """The row with the highest AUC, or accuracy where no fold holds both classes."""
        return best_of(self.rows)

    def probe(self, layer: int | None = None, position: Position | None = None) -> Probe:
        """The probe of a layer (None: the best row's) at a position (None: the only one, or the best row's).

        Raises:
            KeyError: a layer or position that was not probed.
        """
        best = self.best
        layer = best.layer if layer is None else layer
        at = next(iter(self.probes))[1] if len({p for _, p in self.probes}) == 1 else best.position
        return self.probes[(layer, at if position is None else position)]

    def to_pandas(self) -> pandas.DataFrame:
        """One row a probe."""
        import pandas

        return pandas.DataFrame([row.columns() for row in self.rows])

    def plot(self, metric: str = "auc", *, title: str | None = None) -> Figure:
        """The metric by layer with its interval, the shuffled labels' range and the surface's level.

        Args:
            metric: "auc" or "accuracy".
        """
        from ..plots.probes import probe_curves

        return probe_curves(self, metric, title=title)

    def transfer(
        self,
        model: Any,
        texts: Sequence[str],
        labels: Labels,
        *,
        groups: Sequence[Hashable] | None = None,
        confidence: float = 0.95,
        seed: int = 0,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> ProbeTable:
        """The same probes on other texts, which none of them was fitted on: a table without nulls and baselines.

        Raises:
            ConfigError: another model than that of the probes.
            ValueError: labels that the probes do not know, or of one class.
        """
        native = native_model(model, "ProbeTable.transfer")
        for probe in self.probes.values():
            _C.check_probe("ProbeTable.transfer", probe, native)
        known = {name: number for number, name in enumerate(self.classes)}
        names = [str(label) for label in as_list(labels)]
        check_lengths("ProbeTable.transfer", texts, names, groups)
        if strange := sorted(set(names) - set(known)):
            raise ValueError(f"ProbeTable.transfer: labels must be {', '.join(known)}, got {strange[0]!r}")
        numbers = [known[name] for name in names]
        layers, positions = sorted({at for at, _ in self.probes}), list(dict.fromkeys(p for _, p in self.probes))
        after_norm = next(iter(self.probes.values())).last_layer_after_norm
        activations = collect(native, texts, layers, positions, self.point, after_norm, 1 << 30, progress)
        group_numbers, _ = numbered(groups) if groups is not None else ([], 0)
        rows = []
        for position, read in zip(positions, activations, strict=True):
            for place, layer in enumerate(layers):
                scores = _C.evaluate_probe(
                    self.probes[(layer, position)],
                    read.values[:, place],
                    numbers,
                    group_numbers,
                    confidence=confidence,
                    seed=seed,
                )
                figures: dict[str, Any] = figures_of(scores)
                rows.append(ProbeRow(layer, position, **figures, C=self.probes[(layer, position)].C))
        n_groups = None if groups is None else len(set(groups))
        return ProbeTable(
            tuple(rows), self.probes, {}, {}, (), self.classes, self.model_name, self.kind, n_groups, 0, self.point
        )

    def __repr__(self) -> str:
        best = self.best
        return (
            f"ProbeTable({self.model_name!r}, {self.kind}, {len(self.rows)} probes, best layer {best.layer} at "
            f"{best.position}: AUC {best.auc:.3f}, accuracy {best.accuracy:.3f})"
        )


def best_of(rows: Sequence[ProbeRow]) -> ProbeRow:
    """The row with the highest AUC, or accuracy where no fold holds both classes."""
    return max(rows, key=lambda row: (row.auc if math.isfinite(row.auc) else -1.0, row.accuracy))


def figures_of(scores: _C.ProbeScores) -> dict[str, float]:
    out = {"log_loss": scores.log_loss}
    for name in ("accuracy", "auc"):
        estimate = getattr(scores, name)
        out |= {
            name: estimate.value,
            name + "_low": estimate.interval.low,
            name + "_high": estimate.interval.high,
        }
    return out
