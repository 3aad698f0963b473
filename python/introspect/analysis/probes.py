"""Probes: linear readouts of activations at every layer, with what chance, surface and memory give."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch

from .. import _C, statistics
from .._C import Probe, probe_of_direction
from ..arguments import native_model
from .probe_inputs import (
    RANDOM_MODEL,
    SURFACE,
    Labels,
    Position,
    baseline_names,
    check_lengths,
    check_options,
    classes_of,
    collect,
    folds_of,
    numbered,
    randomised,
    types_of,
)
from .probe_table import ProbeRow, ProbeTable, best_of, figures_of

__all__ = ["Probe", "ProbeRow", "ProbeTable", "fit_probe", "probe_layers", "probe_of_direction", "probe_readout"]


def probe_layers(
    model: Any,
    texts: Sequence[str],
    labels: Labels,
    *,
    layers: Sequence[int] | None = None,
    position: Position | list[Position] = -1,
    point: str = "hook_resid_post",
    kind: str = "logistic",
    C: float | Sequence[float] = 1.0,
    standardise: bool | None = None,
    folds: int | Sequence[int] = 5,
    groups: Sequence[Hashable] | None = None,
    nulls: int = 20,
    baselines: bool | Sequence[str] = True,
    control: bool | Sequence[Hashable] = True,
    description: bool = True,
    name: str = "",
    confidence: float = 0.95,
    seed: int = 0,
    last_layer_after_norm: bool = False,
    memory_budget: int = 1 << 30,
    progress: Callable[[str, int, int], None] | None = None,
) -> ProbeTable:
    """A linear probe at every layer, cross-validated, beside what chance, the surface and memory give.

    One pass reads all texts at all layers and positions; what texts begin with is run once. All layers, folds, values
    of C and shuffles of the labels are solved natively in batches.

    Args:
        texts: run as they are, without a chat template.
        labels: of each text, two classes or more; in sorted order the last of two is the positive one.
        layers: block numbers; None is all.
        position: a token's index, negative from the end; (first, last) for the mean over a span, last excluded and None
            to the end; or a list of these, each with probes of its own.
        point: a hook point of a block that has one vector a position.
        kind: "logistic" (L2; softmax for more than two classes), "mass_mean" (difference of means),
            "mass_mean_covariance" (the same after the inverse of the covariance within classes) or "ridge"
            (targets 1 and -1).
        C: inverse strength of the penalty as in scikit-learn (ridge: alpha = 1 / C). Of several the one with the least
            held-out loss is taken, chosen anew within each fold's training texts.
        standardise: divide by the training texts' standard deviations; None: logistic and ridge do.
        folds: how many, as StratifiedKFold or, with groups, StratifiedGroupKFold makes them, without shuffling; or the
            fold of each text.
        groups: of texts that share a template or a subject: a group is in one fold whole, its texts' labels are
            shuffled among themselves (or, where each group has one class, whole groups' labels), and intervals
            are over groups.
        nulls: how often labels are shuffled; p_auc compares with the highest AUC of each shuffle among all rows.
        baselines: the same from "length" and "words" of the texts (True), and, where it is named, from "random_model",
            this one with weights drawn anew: the best of its layers, for another pass over the texts.
        control: a control task: random labels for the tokens that are read, or for these types of the texts.
        description: the description length (kinds with probabilities).
        name: what the probes read, for their files and readouts.
        confidence: of intervals.
        seed: of shuffles, control labels, the description length's order and intervals.
        last_layer_after_norm: read the last layer after the final norm.
        memory_budget: bytes of activations at a time.
        progress: called with (what, done, total).

    Raises:
        ValueError: labels of one class, fewer groups than folds, a class that lies in one fold, an unknown kind, or
            activations that are not finite (naming text and layer). All but the last come before the first pass.
        IndexError: a layer or position that is not there.
        ConfigError: a model without tokenizer, or one that is hooked.

    Sources: Alain & Bengio 2016; Marks & Tegmark 2023, arXiv:2310.06824 (mass means); Hewitt & Liang 2019 (control
    tasks); Voita & Titov 2020 (description length).
    """
    native = native_model(model, "probe_layers")
    numbers, classes = classes_of(labels)
    check_lengths("probe_layers", texts, numbers, groups)
    wanted = baseline_names(baselines)
    penalties = [float(one) for one in C] if isinstance(C, Sequence) else [float(C)]
    check_options(kind, penalties, nulls)
    group_numbers, n_groups = numbered(groups) if groups is not None else ([], None)
    each = folds_of(folds, numbers, group_numbers)
    positions: list[Any] = list(position) if isinstance(position, list) else [position]
    layers = list(range(native.cfg.n_layers)) if layers is None else sorted(set(layers))
    activations = collect(native, texts, layers, positions, point, last_layer_after_norm, memory_budget, progress)
    data_hash = hashlib.sha256(f"{activations[0].texts_hash} {classes} {numbers}".encode()).hexdigest()
    origin = {
        "model_name": activations[0].model_name,
        "model_hash": activations[0].model_hash,
        "model_type": activations[0].model_type,
        "data_hash": data_hash,
        "point": point,
        "last_layer_after_norm": last_layer_after_norm,
        "name": name,
    }
    common: dict[str, Any] = {
        "classes": list(classes),
        "labels": numbers,
        "folds": each,
        "groups": group_numbers,
        "C": penalties,
        "confidence": confidence,
        "seed": seed,
    }
    rows: list[ProbeRow] = []
    probes: dict[tuple[int, Position], Probe] = {}
    held_out: dict[tuple[int, Position], torch.Tensor] = {}
    for at, read in zip(positions, activations, strict=True):
        studies = _C.study_probes(
            read.values,
            **common,
            types=types_of(native, texts, at, control),
            kind=kind,
            standardise=standardise,
            nulls=nulls,
            description=description,
            progress=progress,
        )
        for layer, study in zip(layers, studies, strict=True):
            rows.append(_row(layer, at, study))
            probes[(layer, at)] = study.probe.with_(**origin, layer=layer, position=at)
            held_out[(layer, at)] = study.held_out
    plain: dict[str, Any] = {**common, "nulls": 0, "description": False, "progress": False}
    surface = {}
    for what, features_of in SURFACE.items():
        if what in wanted:
            study = _C.study_probes(features_of(texts)[:, None], **plain)[0]
            surface[what] = _row(-1, positions[0], study)
    if RANDOM_MODEL in wanted:
        drawn = randomised(native, seed)
        read = collect(drawn, texts, layers, positions[:1], point, last_layer_after_norm, memory_budget, progress)[0]
        studies = _C.study_probes(read.values, **plain, kind=kind, standardise=standardise)
        surface[RANDOM_MODEL] = best_of(
            [_row(*one) for one in zip(layers, positions[:1] * len(layers), studies, strict=True)]
        )
    return ProbeTable(
        tuple(_with_p(rows, confidence)),
        probes,
        surface,
        held_out,
        tuple(each),
        classes,
        native.cfg.model_name,
        kind,
        n_groups,
        nulls,
        point,
    )


def fit_probe(
    x: torch.Tensor,
    labels: Labels,
    *,
    kind: str = "logistic",
    C: float = 1.0,
    standardise: bool | None = None,
    **where: Any,
) -> Probe:
    """A probe of activations [n, d], in float64.

    Args:
        labels: of each row; in sorted order the last of two classes is the positive one.
        kind, C, standardise: see ``probe_layers``.
        where: fields of the Probe, such as ``layer=12, position=-1, model_hash=model.hash, name="truth"``.

    Raises:
        ValueError: labels of one class, activations that are not finite (naming the row).
        ShapeError: another number of labels than rows.
    """
    numbers, classes = classes_of(labels, who="fit_probe")
    check_options(kind, [C], 0, who="fit_probe")
    probe = _C.fit_probe(x, numbers, list(classes), kind=kind, C=C, standardise=standardise)
    return probe.with_(**where) if where else probe


def probe_readout(probe: Probe, name: str | None = None) -> Any:
    """A probe as a readout of experiments: its score where the answer is read, by name.

    ``introspect.register_readout(probe_readout(probe))`` makes it known to protocols, runs, stores and tables; stores
    tell probes of one name apart. The activation is that of the last token, wherever the probe was fitted.

    Args:
        name: of the readout and its column; None is the probe's own, and "probe" if it has none.

    Raises:
        ConfigError: a probe that reads after the final norm.
    """
    if probe.last_layer_after_norm:
        raise _C.ConfigError("probe_readout: readouts have the residual stream itself, and the probe reads it normed")
    return _ProbeReadout(probe, name or probe.name or "probe")


class _ProbeReadout:
    def __init__(self, probe: Probe, name: str) -> None:
        self.name = name
        self.needs = ("residuals",) if probe.point == "hook_resid_post" else (probe.point,)
        weights = b"".join(t.numpy().tobytes() for t in (probe.weights, probe.bias, probe.mean, probe.scale))
        self.version = int.from_bytes(hashlib.sha256(weights + bytes([probe.layer])).digest()[:7], "big")
        self._probe = probe

    def read(self, inputs: Any) -> Any:
        score = self._probe.scores(inputs[self.needs[0]][self._probe.layer].flatten())
        return float(score) if score.dim() == 0 else score


def _row(layer: int, position: Position, study: _C.ProbeStudy) -> ProbeRow:
    return ProbeRow(
        layer,
        position,
        **figures_of(study.scores),
        C=study.probe.C,
        null_accuracy=tuple(study.null_accuracy),
        null_auc=tuple(study.null_auc),
        control_accuracy=study.control_accuracy,
        description_bits=study.description_bits,
        compression=study.compression,
    )


def _with_p(rows: list[ProbeRow], confidence: float) -> list[ProbeRow]:
    """The rows with p-values that count all of them: each against the highest of a shuffle among all rows."""
    found: dict[str, list[float] | list[None]] = {}
    for name in ("accuracy", "auc"):
        values = [getattr(row, name) for row in rows]
        nulls = list(zip(*(getattr(row, "null_" + name) for row in rows), strict=True))
        known = nulls and all(math.isfinite(x) for one in (values, *nulls) for x in one)
        found[name] = statistics.max_null_band(values, nulls, confidence=confidence).p if known else [None] * len(rows)
    return [
        replace(row, p_accuracy=accuracy, p_auc=auc)
        for row, accuracy, auc in zip(rows, found["accuracy"], found["auc"], strict=True)
    ]
