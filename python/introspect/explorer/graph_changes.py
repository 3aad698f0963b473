"""What the model does of which a graph tells: changes of its features, and why heads attend where it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from .. import _C
from .dictionaries import Sets
from .fields import Fields, Refused
from .graphs import GraphData
from .session import Session
from .worker import Job

LISTED = 30  # nodes that change most
ALIKE = 0.25  # activations of bfloat16 and float32 differ by a few percent


def as_rows(graph: GraphData, change: np.ndarray, factors: Mapping[int, float]) -> dict[str, Any]:
    """Logits, and the features that change most in relation to what they are."""
    logits = [i for i, kind in enumerate(graph.kinds) if kind == "logit"]
    others = [i for i, kind in enumerate(graph.kinds) if graph.is_feature(i) and i not in factors and change[i] != 0]
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


def tokens_of(graph: GraphData, session: Session | None) -> Any:
    """The prompt of a graph as this model reads it, int64 [1, pos]. Raises Refused."""
    if session is None:
        raise Refused("this needs the graph's model: --model MODEL", 409)
    native = session.model.native
    if graph.model_hash and graph.model_hash != native.hash:
        raise Refused("the graph is of another model than the one that is open, or of other weights of it", 409)
    if graph.token_ids:
        if max(graph.token_ids) >= session.model.cfg.d_vocab:
            raise Refused("the graph's tokens are not in the open model's vocabulary: is it of another model?")
        return torch.tensor([graph.token_ids])
    tokens = session.encode(graph.prompt)
    if tokens.shape[1] != len(graph.tokens):
        raise Refused(
            f"the graph is of {len(graph.tokens)} tokens, and this model makes {tokens.shape[1]} of its prompt: "
            "is it of another model?"
        )
    for own, other in zip(session.shown(tokens[0]), graph.tokens, strict=True):
        if own.strip() != other.strip() and "\ufffd" not in own + other and not other.startswith("<"):
            raise Refused(f"the graph has the token {other[:40]!r} where this model reads {own[:40]!r} in its prompt")
    return tokens


def sets_of(graph: GraphData, dictionaries: Any) -> Sets:
    """The open dictionaries that a graph can be of: those where it has features or errors."""
    if dictionaries is None:
        return Sets()
    kinds = zip(graph.kinds, graph.sites, graph.layers.tolist(), strict=True)
    return dictionaries.of_graph({(site, layer) for kind, site, layer in kinds if "feature" in kind or kind == "error"})


def measure(
    graph: GraphData, factors: Mapping[int, float], session: Session | None, dictionaries: Any, job: Job
) -> dict[str, float]:
    """Runs the prompt without and with the changes, and reads every logit node: {node id: change}, less the mean logit.

    Each changed feature is changed by a multiple of the graph's activation at its own position, wherever it writes, and
    everything else is as the model makes it: attention moves along. Raises Refused where the model or a layer's
    dictionary is not open.
    """
    from ..analysis import intervened
    from ..circuits import feature_interventions

    tokens = tokens_of(graph, session)
    assert session is not None
    if dictionaries is None:
        raise Refused("measuring needs the dictionaries of the graph's layers: --sae DIR ...", 409)
    for node in factors:
        if not graph.is_feature(node) or graph.features[node] is None:
            raise Refused(f"{graph.ids[node]} is no feature: only features can be changed in the model")
        if not np.isfinite(graph.activations[node]):
            raise Refused(f"the file has no activation of {graph.ids[node]}, so that it cannot be changed in the model")
    open_sets = sets_of(graph, dictionaries)
    _check_active(graph, factors, session, tokens, open_sets)
    relative = {node: factor - 1 for node, factor in factors.items()}
    try:
        changes = feature_interventions(graph.native, open_sets.transcoders, relative, saes=open_sets.saes)
    except IndexError as error:
        raise Refused(f"{error}; open it with --sae DIR for each layer of the graph", 409) from None
    wanted = {i: _vocabulary_id(graph.ids[i]) for i, kind in enumerate(graph.kinds) if kind == "logit"}

    def read() -> Any:
        job.check()
        with torch.no_grad():
            row = session.model(tokens, logits_at="last")[0, -1].double()
        return row - row.mean()

    before = read()
    with intervened(session.model, changes):
        after = read()
    change = (after - before).tolist()
    return {graph.ids[i]: change[token] for i, token in wanted.items() if token is not None and token < len(change)}


def _check_active(graph: GraphData, nodes: Iterable[int], session: Session, tokens: Any, sets: Sets) -> None:
    """Raises Refused for a feature that is not as active here as the graph says: the dictionary is another."""
    points = {}
    for node in nodes:
        found = sets.encoder(graph.sites[node], int(graph.layers[node]))
        if found is not None and graph.features[node] < found[1].d_sae:
            points[node] = found
    names = sorted({name for name, _ in points.values()})
    if not names:
        return
    with torch.no_grad():
        _, cache = session.model.run_with_cache(tokens, names, logits_at="none")
    for node, (name, encoder) in points.items():
        position, feature, said = int(graph.positions[node]), graph.features[node], graph.activations[node]
        x = cache[name][0, position].reshape(1, -1)
        value = float(encoder.encode(x.to(encoder.dtype))[0, feature])
        if abs(value - said) > ALIKE * max(abs(said), abs(value)):
            raise Refused(
                f"{graph.ids[node]} is {said:.3g} in the graph and {value:.3g} in this model: the open dictionaries or "
                "the model are not the graph's"
            )


def why_attended(
    graph: GraphData, session: Session | None, dictionaries: Any, fields: Fields, job: Job
) -> dict[str, Any]:
    """Why a head attends from one position of the graph's prompt to another: the pairs of largest terms."""
    from ..circuits import qk_attribution

    tokens = tokens_of(graph, session)
    assert session is not None
    cfg, n = session.model.cfg, tokens.shape[1]
    layer, head = fields.integer("layer", 0, cfg.n_layers - 1), fields.integer("head", 0, cfg.n_heads - 1)
    query = fields.integer("query", 0, n - 1)
    key = fields.integer("key", 0, query)
    open_sets = sets_of(graph, dictionaries)
    job.check()
    found = qk_attribution(
        session.model, tokens[0].tolist(), layer=layer, head=head, query=query, key=key,
        transcoders=open_sets.transcoders, saes=open_sets.saes,
    )  # fmt: skip
    terms = found.terms.double()
    order = terms.abs().flatten().argsort(descending=True, stable=True)[:LISTED].tolist()
    place = {one: i for i, one in enumerate(graph.ids)}

    def part(one: Any, position: int) -> dict[str, Any]:
        prefix = {"attention": "a", "residual": "r"}.get(one.site, "")
        node = f"{prefix}{one.layer}_{one.feature}_{position}" if one.kind == "feature" else ""
        return {"name": said_of(one), "node": node if node in place else None}

    pairs = [
        {
            "query": part(found.query_parts[at // terms.shape[1]], query),
            "key": part(found.key_parts[at % terms.shape[1]], key),
            "weight": float(terms.flatten()[at]),
        }
        for at in order
    ]
    return {
        "score": found.score,
        "pattern": found.pattern,
        "soft_cap": found.soft_cap,
        "pairs": pairs,
        "shown": float(terms.flatten()[order].sum()),
        "dictionaries": bool(open_sets),
    }


def said_of(part: Any) -> str:
    """A part of the stream in words."""
    if part.kind in ("token", "bias"):
        return part.kind
    if part.kind == "attention":
        return f"attention of layer {part.layer}"
    where = {"mlp": "", "attention": "attention ", "residual": "stream "}[part.site]
    number = f" {part.feature}" if part.kind == "feature" else ""
    return f"{where}{part.kind}{number} of layer {part.layer}"


def heads_between(
    graph: GraphData, source: int, target: int, session: Session | None, dictionaries: Any, job: Job
) -> dict[str, Any]:
    """Which heads carry a link: the largest loadings, and the edge itself."""
    from ..circuits import head_loadings

    tokens = tokens_of(graph, session)
    assert session is not None
    open_sets = sets_of(graph, dictionaries)
    nodes = graph.native.nodes
    job.check()
    ends = [nodes[source], nodes[target]]
    if ends[1].kind == "logit":
        token = _vocabulary_id(graph.ids[target])
        if token is None:
            raise Refused(f"{graph.ids[target]} does not say which token it is")
        ends[1] = _C.GraphNode("logit", ends[1].layer, ends[1].position, token)
    found = head_loadings(session.model, tokens[0].tolist(), open_sets.transcoders, *ends, saes=open_sets.saes)
    rows = [
        {"layer": layer, "head": head, "loading": value}
        for layer, values in zip(found.layers, found.heads.tolist(), strict=True)
        for head, value in enumerate(values)
        if value != 0
    ]
    rows.sort(key=lambda row: -abs(row["loading"]))
    return {
        "edge": found.edge,
        "heads": rows[:LISTED],
        "query": int(graph.positions[target]),
        "key": int(graph.positions[source]),
    }


def _vocabulary_id(node: str) -> int | None:
    """Of a logit's id, (layer)_token_position."""
    parts = node.split("_")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else None
