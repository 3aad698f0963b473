"""A change of a graph's nodes: what the graph predicts of it, and what the model does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .fields import Refused
from .graphs import GraphData
from .session import Session
from .worker import Job

LISTED = 30  # nodes that change most


def as_rows(graph: GraphData, change: np.ndarray, factors: Mapping[int, float]) -> dict[str, Any]:
    """Logits, and the features that change most in relation to what they are."""
    logits = [i for i, kind in enumerate(graph.kinds) if kind == "logit"]
    others = [
        i
        for i, kind in enumerate(graph.kinds)
        if kind in ("feature", "attention feature") and i not in factors and change[i] != 0
    ]
    others.sort(key=lambda i: -abs(change[i]))

    def row(i: int) -> dict[str, Any]:
        return {"node": graph.ids[i], "label": graph.labels[i] or graph.ids[i], "predicted": float(change[i])}

    return {"logits": [row(i) for i in logits], "nodes": [row(i) for i in others[:LISTED]]}


def with_measured(answer: dict[str, Any], measured: Mapping[str, float]) -> dict[str, Any]:
    for row in (*answer["logits"], *answer["nodes"]):
        if row["node"] in measured:
            row["measured"] = measured[row["node"]]
    pairs = [(r["predicted"], r["measured"]) for r in (*answer["logits"], *answer["nodes"]) if "measured" in r]
    if len(pairs) > 2:
        a, b = np.array(pairs).T
        if a.std() > 0 and b.std() > 0:
            answer["correlation"] = float(np.corrcoef(a, b)[0, 1])
            answer["slope"] = float(a @ b / (a @ a))
    return answer


def measure(
    graph: GraphData, factors: Mapping[int, float], session: Session | None, dictionaries: Any, job: Job
) -> dict[str, float]:
    """Runs the prompt without and with the changes, and reads every logit node: {node id: change}, less the mean logit.

    Each changed feature is scaled at its own position by the dictionary of its layer, and everything else is as the
    model makes it: attention moves along. Raises Refused where the model or a layer's dictionary is not open.
    """
    import torch

    if session is None or dictionaries is None:
        raise Refused("measuring needs the model and the dictionaries of its layers: --model MODEL --sae DIR ...", 409)
    text = graph.metadata.get("prompt", "")
    tokens = session.encode(text)
    if tokens.shape[1] != len(graph.tokens):
        raise Refused(
            f"the graph is of {len(graph.tokens)} tokens, and this model makes {tokens.shape[1]} of its prompt: "
            "is it of another model?"
        )
    edits: dict[int, list[tuple[int, int, float]]] = {}
    for node, factor in factors.items():
        feature = graph.features[node]
        if feature is None:
            raise Refused(f"{graph.ids[node]} is no feature: only features can be changed in the model")
        edits.setdefault(int(graph.layers[node]), []).append((feature, int(graph.positions[node]), factor))
    wanted = {i: _vocabulary_id(graph.ids[i]) for i, kind in enumerate(graph.kinds) if kind == "logit"}

    def read() -> Any:
        job.check()
        with torch.no_grad():
            row = session.model(tokens, logits_at="last")[0, -1].double()
        return row - row.mean()

    before = read()
    with contextlib.ExitStack() as stack:
        for layer, changes in edits.items():
            sae = dictionaries.of_layer(layer)
            for position in sorted({at for _, at, _ in changes}):
                scale = {feature: factor for feature, at, factor in changes if at == position}
                stack.enter_context(session.model.splice(sae, scale=scale, positions=[position]))
        after = read()
    change = (after - before).tolist()
    return {graph.ids[i]: change[token] for i, token in wanted.items() if token is not None and token < len(change)}


def _vocabulary_id(node: str) -> int | None:
    """Of a logit's id, (layer)_token_position."""
    parts = node.split("_")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else None
