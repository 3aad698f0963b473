"""The .pt files in which circuit-tracer keeps its graphs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from .. import _C


def read_pt(path: str | os.PathLike) -> _C.AttributionGraph:
    """Read a graph that circuit-tracer saved with ``Graph.to_pt``. Nothing in the file is executed.

    Its nodes are the selected features, errors by layer and position, tokens and targets; it has none for biases.

    Raises:
        IoError: the file is damaged.
        ConfigError: it is not of a graph, or its tensors do not fit one another.
    """
    value = _C.read_torch_zip(os.fspath(path), objects_as_data=True)
    where = f"read_pt: {os.fspath(path)}"
    if not isinstance(value, dict):
        raise _C.ConfigError(f"{where} must hold a dictionary of a graph, got {type(value).__name__}")
    tensors = {
        name: _tensor(value, name, where)
        for name in ("adjacency_matrix", "active_features", "input_tokens", "logit_probabilities")
    }
    matrix, active = tensors["adjacency_matrix"], tensors["active_features"].long()
    tokens, weights = tensors["input_tokens"].long().flatten(), tensors["logit_probabilities"].double()
    if active.dim() != 2 or active.shape[1] != 3 or matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise _C.ConfigError(
            f"{where} must have active_features [n, 3] and a square adjacency_matrix, "
            f"got {list(active.shape)} and {list(matrix.shape)}"
        )
    selected = value.get("selected_features")
    selected = torch.arange(len(active)) if selected is None else _tensor(value, "selected_features", where).long()
    if len(selected) and not 0 <= int(selected.min()) <= int(selected.max()) < len(active):
        raise _C.ConfigError(f"{where} must select features 0 to {len(active) - 1}, got {int(selected.max())}")
    activations = _tensor(value, "activation_values", where).double()
    if len(activations) == len(active):
        activations = activations[selected]
    names = _targets(value, where)
    n_errors = len(matrix) - len(selected) - len(tokens) - len(names)
    if len(activations) != len(selected) or len(weights) != len(names) or len(tokens) == 0:
        raise _C.ConfigError(
            f"{where} must have as many activations as selected features, and weights as targets: got "
            f"{len(activations)} and {len(selected)}, {len(weights)} and {len(names)}"
        )
    if n_errors < 0 or n_errors % len(tokens):
        raise _C.ConfigError(
            f"{where} must have an error for each layer and token: a matrix of {len(matrix)} nodes leaves {n_errors} "
            f"for {len(tokens)} tokens"
        )
    n_layers, T = n_errors // len(tokens), len(tokens)
    texts = [f"<{token}>" for token in tokens.tolist()]
    nodes = [
        _C.GraphNode("feature", layer, position, feature, activation)
        for (layer, position, feature), activation in zip(active[selected].tolist(), activations.tolist(), strict=True)
    ]
    nodes += [_C.GraphNode("error", layer, position) for layer in range(n_layers) for position in range(T)]
    nodes += [_C.GraphNode("token", -1, t, token, 0.0, texts[t]) for t, token in enumerate(tokens.tolist())]
    nodes += [
        _C.GraphNode("logit", n_layers, T - 1, token, weight, name)
        for (name, token), weight in zip(names, weights.tolist(), strict=True)
    ]
    rows, sources = matrix.nonzero(as_tuple=True)
    targets = rows.unique_consecutive()
    counts = torch.bincount(rows, minlength=len(matrix))[targets]
    try:
        native = _C.AttributionGraph(
            nodes,
            targets.tolist(),
            torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
            sources,
            matrix[rows, sources].to(torch.float64 if matrix.dtype == torch.float64 else torch.float32),
            model_name=_model_name(value),
            prompt=str(value["input_string"]) if isinstance(value.get("input_string"), str) else "",
            tokens=tokens.tolist(),
            token_texts=texts,
            transcoders=_text(value.get("scan_name", value.get("scan"))),
            notes={"from": "circuit-tracer", "active_features": len(active)},
        )
    except ValueError as error:
        raise _C.ConfigError(f"{where}: {error}") from error
    return native


def _tensor(value: Mapping[str, Any], name: str, where: str) -> torch.Tensor:
    found = value.get(name)
    if not isinstance(found, torch.Tensor):
        raise _C.ConfigError(f"{where} must have a tensor {name}, got {type(found).__name__}")
    if found.is_floating_point() and not torch.isfinite(found).all():
        raise _C.ConfigError(f"{where}: {name} must be finite")
    return found


def _targets(value: Mapping[str, Any], where: str) -> list[tuple[str, int]]:
    """Text and number of each target: of a tensor (older files), or of LogitTarget(token_str, vocab_idx)."""
    found = value.get("logit_targets", value.get("logit_tokens"))
    if isinstance(found, torch.Tensor):
        return [("", int(token)) for token in found.long().flatten().tolist()]
    out = []
    for one in found if isinstance(found, list) else []:
        pair = one.get("arguments") if isinstance(one, dict) else one
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int)):
            raise _C.ConfigError(f"{where}: a target must be a text and a number, got {str(one)[:60]!r}")
        out.append((pair[0], pair[1]))
    if not out:
        raise _C.ConfigError(f"{where} must have logit_targets")
    return out


def _model_name(value: Mapping[str, Any]) -> str:
    cfg = value.get("cfg")
    state = cfg.get("state", cfg) if isinstance(cfg, dict) else None
    return _text(state.get("model_name")) if isinstance(state, dict) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
