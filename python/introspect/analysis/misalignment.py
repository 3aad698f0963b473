"""Detection by named features against thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from .._C import ControlVector, Probe, probe_of_direction
from ..arguments import native_model
from .probe_inputs import Position, collect

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class MisalignmentReport:
    """Scores of named features for each text, and the verdict.

    Attributes:
        texts: as they were given.
        features: names, in the order of the scores' columns.
        thresholds: name -> score at and above which a text is flagged.
        scores: float64 [texts, features].
    """

    texts: tuple[str, ...]
    features: tuple[str, ...]
    thresholds: dict[str, float]
    scores: torch.Tensor

    @property
    def margins(self) -> torch.Tensor:
        """Scores less their thresholds, [texts, features]: at 0 and above a feature flags the text."""
        return self.scores - torch.tensor([self.thresholds[name] for name in self.features], dtype=self.scores.dtype)

    @property
    def max_score(self) -> torch.Tensor:
        """The highest score of each text, whatever the thresholds, [texts]."""
        return self.scores.max(1).values

    @property
    def is_misaligned(self) -> torch.Tensor:
        """Whether some feature reaches its threshold, bool [texts]."""
        return (self.margins >= 0).any(1)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a text: a column for each feature, max_score, the feature with the largest margin, is_misaligned."""
        import pandas

        rows = []
        for text, scores, margins in zip(self.texts, self.scores.tolist(), self.margins.tolist(), strict=True):
            strongest = self.features[max(range(len(margins)), key=margins.__getitem__)]
            rows.append(
                {
                    "text": text,
                    **dict(zip(self.features, scores, strict=True)),
                    "max_score": max(scores),
                    "feature": strongest,
                    "is_misaligned": max(margins) >= 0,
                }
            )
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        n = int(self.is_misaligned.sum())
        return f"MisalignmentReport({n} of {len(self.texts)} texts flagged by {', '.join(self.features)})"


def detect_misalignment(
    model: Any,
    texts: str | Sequence[str],
    features: Mapping[str, Any] | Sequence[Any],
    *,
    thresholds: float | Mapping[str, float] | None = None,
    position: Position | None = None,
    progress: Any = None,
) -> MisalignmentReport:
    """Whether texts show what named features stand for: scores against thresholds, their maximum and a verdict.

    Args:
        texts: one or several, run as they are.
        features: {name: feature}, or features that have a name: probes of two classes, control vectors of one layer
            (their projection), or any object with ``layer`` and ``scores(x)`` of activations [n, d], and, if it is not
            the last token after the block, ``position`` and ``point``.
        thresholds: one for all, or by name; None: each feature's own (``set_threshold`` gives a probe one).
        position: where all are read, (0, None) for the mean over each text; None: where each feature reads.

    Raises:
        ConfigError: a probe of another model, a vector of several layers, or a feature without threshold.
        TypeError: no features, or one that cannot be scored.
        ValueError: activations that are not finite, naming text and layer.
    """
    native = native_model(model, "detect_misalignment")
    listed = (texts,) if isinstance(texts, str) else tuple(texts)
    named = _named(features)
    limits = {name: _threshold(name, feature, thresholds) for name, feature in named.items()}
    places: dict[tuple[str, bool, Any], list[str]] = {}  # point, after the norm, position -> names
    for name, feature in named.items():
        if isinstance(feature, Probe):
            _C.check_probe("detect_misalignment", feature, native)
        where = getattr(feature, "position", -1) if position is None else position
        point = getattr(feature, "point", "hook_resid_post")
        places.setdefault((point, getattr(feature, "last_layer_after_norm", False), where), []).append(name)
    scores = {}
    for (point, after_norm, where), names in places.items():
        layers = sorted({named[name].layer for name in names})
        read = collect(native, listed, layers, [where], point, after_norm, 1 << 30, progress)[0]
        for name in names:
            found = torch.as_tensor(named[name].scores(read.values[:, layers.index(named[name].layer)]))
            if found.shape != (len(listed),):
                raise TypeError(
                    f"detect_misalignment: {name!r} must give one score a text, got shape {tuple(found.shape)}"
                )
            scores[name] = found.double().cpu()
    return MisalignmentReport(listed, tuple(named), limits, torch.stack([scores[name] for name in named], 1))


def _named(features: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if isinstance(features, Mapping):
        found = {str(name): _scorer(str(name), feature) for name, feature in features.items()}
    else:
        found = {}
        for feature in features:
            name = getattr(feature, "name", "") or getattr(feature, "concept", "")
            if not name or name in found:
                raise TypeError(f"detect_misalignment: every feature needs a name of its own, got {name!r}")
            found[name] = _scorer(name, feature)
    if not found:
        raise TypeError("detect_misalignment: at least one feature is needed, got none")
    return found


def _scorer(name: str, feature: Any) -> Any:
    if isinstance(feature, ControlVector):
        if len(feature.layers) != 1:
            raise _C.ConfigError(
                f"detect_misalignment: {name!r} has directions at {len(feature.layers)} layers; one is read: "
                "probe_of_direction(vector.directions[layer], layer=layer)"
            )
        (layer,) = feature.layers
        probe = probe_of_direction(feature.directions[layer], layer=layer, name=name)
        return probe.with_(model_hash=feature.model_hash, model_name=feature.model_name)
    if not callable(getattr(feature, "scores", None)) or not isinstance(getattr(feature, "layer", None), int):
        raise TypeError(
            f"detect_misalignment: {name!r} must have a layer and scores(x), as probes have, got "
            f"{type(feature).__name__}"
        )
    return feature


def _threshold(name: str, feature: Any, thresholds: float | Mapping[str, float] | None) -> float:
    given = thresholds.get(name) if isinstance(thresholds, Mapping) else thresholds
    own = getattr(feature, "threshold", None) if given is None else given
    if own is None:
        raise _C.ConfigError(
            f"detect_misalignment: {name!r} has no threshold: give thresholds=, or set_threshold for a probe"
        )
    return float(own)
