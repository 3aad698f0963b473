"""Probes as monitors: thresholds set on harmless texts, and how well they find what they are to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import _C
from .._C import Probe
from ..arguments import native_model
from .probe_inputs import collect


@dataclass(frozen=True)
class MonitorReport:
    """A monitor on texts that neither its probe nor its threshold was made of.

    Attributes:
        threshold: of the score.
        recall: share of positives at or above it, with its exact interval.
        false_alarms: the same of negatives.
        auc: whatever the threshold, with its interval.
        calibration_error: mean distance of stated probability and observed share; None for kinds without probabilities.
    """

    threshold: float
    recall: Any
    false_alarms: Any
    auc: Any
    calibration_error: float | None


def probe_scores(model: Any, probe: Probe, texts: Sequence[str], *, progress: Any = None) -> torch.Tensor:
    """A probe's scores of texts, float64 [n], or [n, K] for more than two classes.

    Raises:
        ConfigError: a probe of another model.
        ValueError: activations that are not finite, naming the text.
    """
    return probe.scores(_activations(model, probe, texts, "probe_scores", progress))


def set_threshold(
    model: Any, probe: Probe, harmless: Sequence[str], *, false_positive_rate: float = 0.01, progress: Any = None
) -> Probe:
    """The probe with the lowest threshold that at most this share of harmless texts reaches.

    Args:
        harmless: texts of their own, neither those of the probe nor those that it is judged on; a thousand for 1 %.

    Raises:
        ConfigError: a probe of another model or of more than two classes.
        ValueError: no texts, or a rate that is not from 0 to below 1.
    """
    _check_two("set_threshold", probe)
    scores = probe_scores(model, probe, harmless, progress=progress)
    return probe.with_(threshold=_C.threshold_at(scores.tolist(), false_positive_rate))


def monitor_report(
    model: Any,
    probe: Probe,
    positives: Sequence[str],
    negatives: Sequence[str],
    *,
    confidence: float = 0.95,
    bins: int = 10,
    progress: Any = None,
) -> MonitorReport:
    """Recall, false alarms, AUC and calibration of a probe with a threshold.

    Raises:
        ConfigError: a probe of another model, of more than two classes, or without threshold.
        ValueError: fewer than two texts of either kind.
    """
    _check_two("monitor_report", probe)
    if probe.threshold is None:
        raise _C.ConfigError("monitor_report: the probe must have a threshold: set_threshold gives it one")
    texts = [*positives, *negatives]
    activations = _activations(model, probe, texts, "monitor_report", progress)
    scores, n = probe.scores(activations).tolist(), len(positives)
    report = _C.monitor_report(scores[:n], scores[n:], threshold=probe.threshold, confidence=confidence)
    error = None
    if probe.kind in ("logistic", "mass_mean_covariance"):
        stated = probe.probabilities(activations)[:, 1].tolist()
        error = _C.calibration_error(stated, [1] * n + [0] * len(negatives), bins)
    return MonitorReport(report.threshold, report.recall, report.false_alarms, report.auc, error)


def _check_two(who: str, probe: Probe) -> None:
    if len(probe.classes) != 2:
        raise _C.ConfigError(f"{who}: a monitor's probe has two classes, got {len(probe.classes)}")


def _activations(model: Any, probe: Probe, texts: Sequence[str], who: str, progress: Any) -> torch.Tensor:
    native = native_model(model, who)
    _C.check_probe(who, probe, native)
    read = collect(
        native, texts, [probe.layer], [probe.position], probe.point, probe.last_layer_after_norm, 1 << 30, progress
    )
    return read[0].values[:, 0]
