"""Attribution graphs from files: read, checked, scored and changed, as columns that the page can draw.

The files are circuit-tracer's and Neuronpedia's graph JSON (schema 1), and what ``AttributionGraph.save`` writes.
Nothing in them is trusted: sizes, numbers, ids and links are checked, and texts are only ever text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._json import parse_json
from .fields import MOST_TEXT, Fields, Refused, is_number

if TYPE_CHECKING:
    from ..circuits import AttributionGraph

SCHEMA = 1
MOST_BYTES = 512 << 20
MOST_NODES = 50_000
MOST_LINKS = 3_000_000
MOST_TOKENS = 8_192
MOST_LABEL = 2_000  # characters
KINDS = {  # and where they are
    "cross layer transcoder": ("feature", "mlp"),
    "transcoder": ("feature", "mlp"),
    "sae": ("stream feature", "residual"),
    "lorsa": ("attention feature", "attention"),
    "mlp reconstruction error": ("error", "mlp"),
    "reconstruction error": ("error", "residual"),
    "lorsa error": ("error", "attention"),
    "embedding": ("token", "mlp"),
    "token": ("token", "mlp"),
    "logit": ("logit", "mlp"),
    "bias": ("bias", "mlp"),
    "injection": ("injection", "mlp"),
}
ORDER = ("feature", "attention feature", "stream feature", "error", "token", "logit", "bias", "injection", "other")
_FEATURE_ID = re.compile(r"[ar]?(\d+)_(\d+)_(\d+)")


@dataclass(frozen=True)
class GraphData:
    """Nodes and links as columns; links go from ``source`` to ``target``, both places in ``ids``."""

    name: str
    metadata: dict[str, Any]
    q_params: dict[str, Any]
    tokens: list[str]
    ids: list[str]
    kinds: list[str]
    sites: list[str]  # attention, mlp or residual
    layers: np.ndarray  # int, -1 is the embedding
    positions: np.ndarray  # int
    labels: list[str]
    features: list[int | None]  # the number within the layer's dictionary
    activations: np.ndarray  # NaN where the file has none
    token_prob: np.ndarray  # of logits, else 0
    shares: np.ndarray  # cumulative influence of nodes as the file says it; small is important; NaN where it does not
    is_target: np.ndarray
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    prompt: str = ""  # the whole of it
    token_ids: list[int] = field(default_factory=list)  # where the file has them
    model_hash: str = ""
    qk: dict[int, dict[str, Any]] = field(default_factory=dict)
    dropped_links: int = 0

    @property
    def n(self) -> int:
        return len(self.ids)

    @cached_property
    def native(self) -> AttributionGraph:
        """The same nodes and links, node for node. Raises Refused."""
        return _native(self)

    def is_feature(self, node: int) -> bool:
        return "feature" in self.kinds[node]


def load(path: Path) -> GraphData:
    """Reads and checks a file. Raises Refused with what is wrong and where the limit is."""
    return from_json(parse_json(text_of(path), path.name, Refused), path.name)


def text_of(path: Path) -> str:
    """The JSON of a graph's file; .safetensors and circuit-tracer's .pt are written as JSON first, with biases."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise Refused(f"{path.name}: a graph file may have {MOST_BYTES >> 20} MiB, and this one has {size >> 20}", 413)
    if path.suffix in (".safetensors", ".pt"):
        from ..circuits import AttributionGraph

        return AttributionGraph.load(path).to_json(slug=path.stem, biases=True)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{path.name}: must be UTF-8: {error}") from None


def from_json(data: Any, name: str) -> GraphData:
    """A graph of parsed JSON. Raises Refused."""
    top = Fields(data, name)
    meta = _object(data, "metadata", name)
    version = meta.get("schema_version", SCHEMA)
    if not isinstance(version, int) or isinstance(version, bool) or version > SCHEMA or version < 0:
        raise Refused(f"{name}: schema_version must be at most {SCHEMA}, which this version reads, got {version!r}")
    tokens = [one[:MOST_LABEL] for one in Fields(meta, f"{name}: metadata").texts("prompt_tokens", MOST_TOKENS)]
    nodes = top.sequence("nodes", MOST_NODES)
    links = top.sequence("links", MOST_LINKS)
    if not nodes:
        raise Refused(f"{name}: a graph needs at least one node")
    columns = _nodes(nodes, len(tokens), name)
    place = {one: i for i, one in enumerate(columns["ids"])}
    source, target, weight, dropped = _links(links, place, name)
    return GraphData(
        name=name,
        metadata=_plain(meta),
        **_made_of(meta, len(tokens)),
        q_params=_q_params(data.get("qParams") or {}, place),
        tokens=tokens,
        source=source,
        target=target,
        weight=weight,
        dropped_links=dropped,
        **columns,
    )


def _object(data: Any, key: str, name: str) -> dict[str, Any]:
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, dict):
        raise Refused(f"{name}: {key} must be an object, got {type(value).__name__}")
    return value


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the metadata that are shown, cut to a length."""
    found = {key: str(meta[key])[:MOST_LABEL] for key in ("slug", "scan", "prompt") if key in meta}
    info = meta.get("info")
    if isinstance(info, Mapping):
        found |= {key: str(info[key])[:MOST_LABEL] for key in ("description", "creator_name") if info.get(key)}
    threshold = meta.get("node_threshold")
    return found | ({"node_threshold": float(threshold)} if threshold is not None and is_number(threshold) else {})


def _made_of(meta: Mapping[str, Any], n_tokens: int) -> dict[str, Any]:
    """Which prompt of which model: the library's own files say it exactly."""
    ours = meta.get("introspect")
    ids = ours.get("tokens") if isinstance(ours, Mapping) else None
    known = (
        isinstance(ids, list) and len(ids) == n_tokens and all(type(one) is int and 0 <= one < 1 << 31 for one in ids)
    )
    return {
        "prompt": str(meta.get("prompt", ""))[:MOST_TEXT],
        "token_ids": ids if known else [],
        "model_hash": str(ours.get("model_hash", "")) if isinstance(ours, Mapping) else "",
    }


def _number(node: Mapping[str, Any], key: str, missing: float, where: str) -> float:
    value = node.get(key)
    if value is None:
        return missing
    if not is_number(value) or abs(value) > 1e30:
        raise Refused(f"{where}: {key} must be a finite number, got {str(value)[:40]}")
    return float(value)


def _nodes(nodes: Sequence[Any], n_tokens: int, name: str) -> dict[str, Any]:
    found: dict[str, list] = {
        key: []
        for key in (
            "ids",
            "kinds",
            "sites",
            "layers",
            "positions",
            "labels",
            "features",
            "activations",
            "token_prob",
            "shares",
        )
    }
    is_target, qk, seen = [], {}, set()
    for i, node in enumerate(nodes):
        where = f"{name}: node {i}"
        if not isinstance(node, Mapping):
            raise Refused(f"{where}: must be an object, got {type(node).__name__}")
        given = node.get("node_id")
        if not isinstance(given, str) or not given or len(given) > 200:
            raise Refused(f"{where}: node_id must be text of 1 to 200 characters, got {str(given)[:60]!r}")
        if given in seen:
            raise Refused(
                f"{name}: two nodes have the id {given!r}, so that links to it could mean either. (Errors of "
                "circuit-tracer before 0.5.1 can collide with features of layer 0; write the graph again)"
            )
        seen.add(given)
        kind, site = KINDS.get(str(node.get("feature_type")), ("other", "mlp"))
        layer = str(node.get("layer"))
        if layer not in ("E", "-1") and not (layer.isascii() and layer.isdecimal() and len(layer) < 5):
            raise Refused(f"{where}: layer must be a number or E, got {layer[:20]!r}")
        position = node.get("ctx_idx")
        if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < n_tokens:
            raise Refused(f"{where}: ctx_idx must be of one of the {n_tokens} tokens, got {str(position)[:20]}")
        parts = _FEATURE_ID.fullmatch(given)
        is_feature = "feature" in kind
        found["ids"].append(given)
        found["kinds"].append(kind)
        found["sites"].append(site)
        found["layers"].append(-1 if layer == "E" else int(layer))
        found["positions"].append(position)
        found["labels"].append(str(node.get("clerp") or node.get("ppClerp") or "")[:MOST_LABEL])
        found["features"].append(int(parts[2]) if is_feature and parts and len(parts[2]) < 16 else None)
        found["activations"].append(_number(node, "activation", math.nan, where))
        probability = _number(node, "token_prob", 0.0, where) if kind == "logit" else 0.0
        found["token_prob"].append(min(max(probability, 0.0), 1.0))
        found["shares"].append(_number(node, "influence", math.nan, where))
        is_target.append(node.get("is_target_logit") is True)
        if isinstance(traced := node.get("qk_tracing_results"), Mapping):
            qk[i] = _qk(traced)
    whole = {key: np.array(found[key], dtype=np.int32) for key in ("layers", "positions")}
    numbers = {key: np.array(found[key], dtype=np.float64) for key in ("activations", "token_prob", "shares")}
    return {**found, **whole, **numbers, "is_target": np.array(is_target, dtype=bool), "qk": qk}


def _qk(traced: Mapping[str, Any]) -> dict[str, Any]:
    """Ranked pairs and marginals of why a head attends: names and numbers only."""
    most, kept = 200, {}
    for key in ("pair_wise_contributors", "top_q_marginal_contributors", "top_k_marginal_contributors"):
        rows = []
        for row in (traced.get(key) or [])[:most] if isinstance(traced.get(key), list) else []:
            cells = list(row.values()) if isinstance(row, Mapping) else row if isinstance(row, list) else []
            names = [str(cell)[:200] for cell in cells if isinstance(cell, str)]
            numbers = [float(cell) for cell in cells if is_number(cell)]
            if names and numbers:
                rows.append({"names": names[:2], "weight": numbers[-1]})
        kept[key] = rows
    return kept


def _links(links: Sequence[Any], place: Mapping[str, int], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    source, target, weight, dropped = [], [], [], 0
    for i, link in enumerate(links):
        if not isinstance(link, Mapping):
            raise Refused(f"{name}: link {i}: must be an object, got {type(link).__name__}")
        start, end = link.get("source"), link.get("target")
        if not isinstance(start, str) or not isinstance(end, str):
            raise Refused(f"{name}: link {i}: source and target must be node ids")
        value = _number(link, "weight", math.nan, f"{name}: link {i}")
        if math.isnan(value):
            raise Refused(f"{name}: link {i}: weight is missing")
        a, b = place.get(start), place.get(end)
        if a is None or b is None:
            dropped += 1
            continue
        source.append(a)
        target.append(b)
        weight.append(value)
    return np.array(source, dtype=np.int32), np.array(target, dtype=np.int32), np.array(weight), dropped


def _q_params(given: Any, place: Mapping[str, int]) -> dict[str, Any]:
    """Pinned nodes, supernodes and the clicked node of a file, as far as they are nodes of it."""
    if not isinstance(given, Mapping):
        return {}
    found: dict[str, Any] = {}
    if isinstance(pinned := given.get("pinnedIds"), list):
        found["pinnedIds"] = [one for one in pinned[:MOST_NODES] if isinstance(one, str) and one in place]
    if isinstance(groups := given.get("supernodes"), list):
        kept = []
        for group in groups[:1_000]:
            if isinstance(group, list) and group and isinstance(group[0], str):
                kept.append([group[0][:200], *(one for one in group[1:] if isinstance(one, str) and one in place)])
        found["supernodes"] = kept
    if isinstance(clicked := given.get("clickedId"), str) and clicked in place:
        found["clickedId"] = clicked
    return found


# Numbers of a graph


@dataclass(frozen=True)
class Scores:
    """What is computed of a graph's links; see AttributionGraph.

    Attributes:
        influence: of each node on the logits, weighted by their probabilities; biases take no part.
        node_share: cumulative share of it, the most influential first; small is important, as in the files.
        link_share: the same for links, by normalised weight times the influence of where they lead.
        replacement, completeness: errors count against both.
    """

    influence: np.ndarray
    node_share: np.ndarray
    link_share: np.ndarray
    replacement: float
    completeness: float


def scores(graph: GraphData) -> Scores:
    """Raises Refused for links that do not lead from what is earlier in the model to what is later."""
    native = graph.native
    influence = native.influence().numpy()
    found = native.scores()
    counts = np.array([kind != "bias" for kind in graph.kinds])
    absolute = np.abs(graph.weight) * counts[graph.source]
    into = np.bincount(graph.target, absolute, graph.n)
    weights = influence + _target_weights(graph)
    link = absolute / np.maximum(into[graph.target], 1e-10) * weights[graph.target]
    return Scores(influence, _cumulative(influence), _cumulative(link), found.replacement, found.completeness)


def _target_weights(graph: GraphData) -> np.ndarray:
    """The outputs' probabilities; 1 each where the file has none."""
    is_logit = np.array([kind == "logit" for kind in graph.kinds])
    weights = np.where(is_logit, graph.token_prob, 0.0)
    return weights if weights.any() else is_logit.astype(float)


def _native(graph: GraphData) -> AttributionGraph:
    from .. import _C
    from ..circuits import AttributionGraph

    weights = _target_weights(graph)
    nodes, taken = [], set()
    for i, kind in enumerate(graph.kinds):
        is_feature = kind not in ("error", "token", "logit", "bias", "injection")
        at = -1 if kind in ("bias", "injection") else int(graph.positions[i])
        # A file's id says which node it is, and not all kinds have a number of their own.
        layer, number = int(graph.layers[i]), graph.features[i] if is_feature else -1
        if number is None or (kind, graph.sites[i], layer, at, number) in taken:
            number = -2 - i
        taken.add((kind, graph.sites[i], layer, at, number))
        value = graph.activations[i] if is_feature and np.isfinite(graph.activations[i]) else weights[i]
        nodes.append(_C.GraphNode("feature" if is_feature else kind, layer, at, number, value, "", graph.sites[i]))
    order = np.argsort(graph.target, kind="stable")
    targets, counts = np.unique(graph.target, return_counts=True)
    try:
        native = _C.AttributionGraph(
            nodes,
            targets.tolist(),
            torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
            torch.from_numpy(graph.source[order].astype(np.int64)),
            torch.from_numpy(graph.weight[order].astype(np.float64)),
            prompt=str(graph.metadata.get("prompt", "")),
            token_texts=graph.tokens,
        )
    except ValueError as error:
        raise Refused(f"{graph.name}: {str(error).removeprefix('AttributionGraph: ')}") from None
    return AttributionGraph(native)


def _cumulative(values: np.ndarray) -> np.ndarray:
    order = np.argsort(-values, kind="stable")
    total = values.sum()
    shares = np.empty(len(values))
    shares[order] = np.cumsum(values[order]) / total if total > 0 else 1.0
    return shares


def predict(graph: GraphData, factors: Mapping[int, float]) -> np.ndarray:
    """How much each node changes when features are multiplied by a factor, as ``predicted_effects`` has it.

    Of a changed feature itself, what it is changed by.
    """
    from ..circuits import predicted_effects

    change = predicted_effects(graph.native, {node: factor - 1 for node, factor in factors.items()}).numpy()
    for node, factor in factors.items():
        change[node] = (factor - 1) * graph.activations[node]
    return change


def columns(graph: GraphData, of: Scores) -> dict[str, Any]:
    """What the page draws."""
    shares = np.where(np.isfinite(graph.shares), graph.shares, of.node_share)
    return {
        "metadata": graph.metadata,
        "qParams": graph.q_params,
        "tokens": graph.tokens,
        "kinds": list(ORDER),
        "nodes": {
            "id": graph.ids,
            "kind": [ORDER.index(kind) for kind in graph.kinds],
            "layer": graph.layers.tolist(),
            "position": graph.positions.tolist(),
            "label": graph.labels,
            "feature": graph.features,
            "activation": graph.activations.tolist(),
            "prob": graph.token_prob.tolist(),
            "share": shares.tolist(),
            "influence": of.influence.tolist(),
            "target": graph.is_target.astype(int).tolist(),
        },
        "links": {
            "source": graph.source.tolist(),
            "target": graph.target.tolist(),
            "weight": graph.weight.tolist(),
            "share": of.link_share.tolist(),
        },
        "qk": {str(i): one for i, one in graph.qk.items()},
        "scores": {"replacement": of.replacement, "completeness": of.completeness},
        "dropped_links": graph.dropped_links,
    }
