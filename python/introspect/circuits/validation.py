"""Interventions on the features of an attribution graph: what they do to the model, and whether the graph said so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from .._C import CrossLayerTranscoder, GraphNode, GraphTarget, Injection, Intervention
from ..arguments import native_model
from ..graph import Graph
from .attribution_graph import AttributionGraph

if TYPE_CHECKING:
    import pandas as pd


def predicted_effects(graph: AttributionGraph, changes: Mapping[int, float]) -> torch.Tensor:
    """What the linear model of a graph says of changed features: the change of every node, float64 [nodes].

    A node's number stands for its pre-activation, of a target its logit less the mean. Features keep on being active.

    Args:
        changes: {node: relative change} of features and injections: -1 takes one out, 1 doubles it.

    Raises:
        IndexError: a node that is not there.
        ValueError: one that is neither feature nor injection; a feature of which the graph's file has no activation.
    """
    nodes, native = graph.nodes, graph.native
    relative = torch.zeros(len(nodes), dtype=torch.float64)
    for node, change in changes.items():
        if _node(graph, node, "predicted_effects").kind != "injection":
            _feature(graph, node, "predicted_effects", "a feature or an injection")
        relative[node] = change
    out = torch.zeros(len(nodes), dtype=torch.float64)
    offsets, weights = native.offsets.tolist(), native.weights.double()
    rows = sorted(range(len(native.targets)), key=lambda row: nodes[native.targets[row]].depth)
    for row in rows:
        target = native.targets[row]
        first, end = offsets[row], offsets[row + 1]
        out[target] = weights[first:end] @ relative[native.sources[first:end]]
        if target in changes or nodes[target].kind != "feature" or out[target] == 0:
            continue
        if nodes[target].value == 0:
            raise ValueError(
                f"predicted_effects: {nodes[target]} has no activation, so that what it passes on is not known"
            )
        relative[target] = out[target] / nodes[target].value
    return out


def feature_interventions(
    graph: AttributionGraph, transcoders: Any, changes: Mapping[int, float], *, saes: Sequence[Any] = ()
) -> list[Intervention]:
    """The same changes as data for a model: relative changes of features, written where they write.

    For ``Graph.segment``, ``model.forward`` or ``generate``: they act at the features' own positions, and add to what
    the MLPs write (or, of SAEs, to the vector that they read), whose errors stay.

    Args:
        transcoders, saes: as of ``attribute``.

    Raises:
        IndexError: a node, or a feature of a layer without a dictionary.
        ValueError: a node that is no feature.
    """
    out = []
    for node, change in changes.items():
        at = _feature(graph, node, "feature_interventions")
        for layer, vector in _writes(transcoders, saes, at).items():
            out.append(
                Intervention(
                    {layer: change * at.value * vector}, op="add", point=_POINTS[at.site], positions=[at.position]
                )
            )
    return out


@dataclass(frozen=True)
class Validation:
    """Predicted and measured changes of a target (a logit less the mean) when features are taken out one by one.

    ``table``: one row a feature: node, layer, position, feature, influence, predicted (through the whole graph), direct
    (its edge to the target alone), measured, null (a random vector of the same length, at the same place).
    """

    table: pd.DataFrame
    target: int

    @property
    def correlation(self) -> float:
        """Pearson's, of predicted and measured."""
        return float(self.table.predicted.corr(self.table.measured))

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of their sizes."""
        return float(self.table.predicted.abs().rank().corr(self.table.measured.abs().rank()))

    @property
    def slope(self) -> float:
        """Measured for each unit predicted, by least squares through 0."""
        return float((self.table.predicted * self.table.measured).sum() / (self.table.predicted**2).sum())

    @property
    def null_ratio(self) -> float:
        """Root mean square of the nulls' changes over that of the features'."""
        return float(((self.table.null**2).mean() / (self.table.measured**2).mean()) ** 0.5)

    def __repr__(self) -> str:
        return (
            f"Validation({len(self.table)} features, correlation {self.correlation:.2f}, slope {self.slope:.2f}, "
            f"nulls {self.null_ratio:.2f} of the size)"
        )


def validate(
    model: Any,
    graph: AttributionGraph,
    transcoders: Any,
    *,
    saes: Sequence[Any] = (),
    target: int | None = None,
    nodes: Sequence[int] | None = None,
    n: int = 40,
    targets: Sequence[GraphTarget] = (),
    injections: Sequence[Injection] = (),
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Validation:
    """Take features of a graph out of the model, one at a time, and compare what happens with what the graph says.

    Everything after a feature runs as in the model itself, attention and MLPs too. All runs are one planned graph.

    Args:
        target: a node of kind logit; the one of the largest probability or weight by default.
        nodes: features; by default the n of most influence.
        targets, injections: those that ``attribute`` was given, which a graph knows by name only; injections stay in
            the model.
        seed: of the null vectors.

    Raises:
        ValueError: a graph without features or targets, of another model, or of other targets or injections.
        IndexError: nodes that are not there.
    """
    import pandas as pd

    native = native_model(model, "validate")
    if graph.model_hash and graph.model_hash != native.hash:
        raise ValueError(f"validate: the graph is of another model ({graph.model_name})")
    found_targets = [i for i, node in enumerate(graph.nodes) if node.kind == "logit"]
    if target is None:
        if not found_targets:
            raise ValueError("validate: the graph must have a target, got none")
        target = max(found_targets, key=lambda i: graph.nodes[i].value)
    if target not in found_targets:
        raise IndexError(f"validate: node {target} is no target")
    wanted = _given_target(graph, target, targets)
    injected = _given_injections(graph, injections)
    influence = graph.influence()
    if nodes is None:
        features = [i for i, node in enumerate(graph.nodes) if node.kind == "feature"]
        nodes = sorted(features, key=lambda i: -influence[i].item())[:n]
    if not nodes:
        raise ValueError("validate: the graph has no features")
    direct = _row(graph, target)
    rng = torch.Generator().manual_seed(seed)

    work = Graph()

    def read(changes: Sequence[Intervention]) -> int:
        segment = work.segment(model, graph.tokens, None, [*changes, *injected])
        return work.read(segment, positions=[graph.nodes[target].position])

    reads = [read([])]
    for node in nodes:
        changes = feature_interventions(graph, transcoders, {node: -1.0}, saes=saes)
        reads.append(read(changes))
        nulls = []
        for change in changes:
            ((layer, vector),) = change.values.items()
            assert isinstance(vector, torch.Tensor)
            noise = torch.randn(vector.shape, generator=rng, dtype=torch.float64).to(vector)
            nulls.append(
                Intervention(
                    {layer: noise * vector.norm() / noise.norm()},
                    op="add",
                    point=_POINTS[graph.nodes[node].site],
                    positions=change.positions,
                )
            )
        reads.append(read(nulls))
    found: list[Any] = work.run(progress=progress)
    values = [_value(native, graph.nodes[target], wanted, found[one][0]) for one in reads]
    rows = []
    for place, node in enumerate(nodes):
        at = graph.nodes[node]
        rows.append(
            {
                "node": node,
                "layer": at.layer,
                "position": at.position,
                "feature": at.feature,
                "influence": influence[node].item(),
                "predicted": predicted_effects(graph, {node: -1.0})[target].item(),
                "direct": -direct[node].item(),
                "measured": values[1 + 2 * place] - values[0],
                "null": values[2 + 2 * place] - values[0],
            }
        )
    return Validation(pd.DataFrame(rows), target)


def _given_target(graph: AttributionGraph, target: int, targets: Sequence[GraphTarget]) -> GraphTarget | None:
    """The target that a node stands for; None: the next token of its number."""
    node = graph.nodes[target]
    if not graph.notes.get("given_targets", bool(targets)):
        if targets:
            raise ValueError("validate: the graph explains next tokens, and targets were given")
        return None
    if not (node.feature < len(targets) and targets[node.feature].name == node.name):
        raise ValueError(
            f"validate: the graph's target {node.name!r} must be among attribute's targets, got "
            f"{[one.name for one in targets]}"
        )
    return targets[node.feature]


def _given_injections(graph: AttributionGraph, injections: Sequence[Injection]) -> list[Intervention]:
    layers = sorted({node.layer for node in graph.nodes if node.kind == "injection"})
    given = sorted({one.layer for one in injections})
    if layers != given:
        raise ValueError(
            f"validate: the graph has injections after blocks {layers}, and those given are after {given}; "
            "give attribute's injections"
        )
    return [
        Intervention({one.layer: one.vector}, op="add", point="hook_resid_post", positions=one.positions)
        for one in injections
    ]


def _value(native: _C.Model, node: GraphNode, target: GraphTarget | None, resid_LD: torch.Tensor) -> float:
    """What a target's node stands for, of the stream after every block at its position; a constant aside."""
    if target is None:
        row = native.readout(resid_LD[-1]).double()
        return (row[node.feature] - row.mean()).item()
    if target.layer is not None:
        x = resid_LD[target.layer]
    else:
        x = _C.apply_norm(native, resid_LD[-1].to(native.dtype)[None], None, layer=native.cfg.n_layers)[0]
    return (x.double() @ target.direction.double()).item()


def _row(graph: AttributionGraph, target: int) -> torch.Tensor:
    out = torch.zeros(graph.n_nodes, dtype=torch.float64)
    row = graph.native.targets.index(target)
    first, end = graph.native.offsets[row].item(), graph.native.offsets[row + 1].item()
    out[graph.native.sources[first:end]] = graph.native.weights[first:end].double()
    return out


def _node(graph: AttributionGraph, node: int, who: str) -> GraphNode:
    if not 0 <= node < graph.n_nodes:
        raise IndexError(f"{who}: nodes are 0 to {graph.n_nodes - 1}, got {node}")
    return graph.nodes[node]


def _feature(graph: AttributionGraph, node: int, who: str, what: str = "a feature") -> GraphNode:
    at = _node(graph, node, who)
    if at.kind != "feature":
        raise ValueError(f"{who}: node {node} must be {what}, got a {at.kind}")
    return at


_POINTS = {"attention": "hook_attn_out", "mlp": "hook_mlp_out", "residual": "hook_resid_post"}


def _writes(transcoders: Any, saes: Sequence[Any], at: GraphNode) -> dict[int, torch.Tensor]:
    """What one unit of a feature adds at its site of each layer."""
    crosses = at.site == "mlp" and isinstance(transcoders, CrossLayerTranscoder)
    dictionary = transcoders.layers[at.layer] if crosses else _dictionary(transcoders, saes, at)
    if not 0 <= at.feature < dictionary.d_sae:
        raise IndexError(f"feature_interventions: {at} is no feature of a dictionary with {dictionary.d_sae}")
    dictionary = dictionary.fold_input_scale()
    row = dictionary.weights["W_dec"][at.feature]
    # Ranked by the decoder's norms, activations are of rows of length 1.
    row = row / row.norm() if dictionary.rank_by_decoder_norm else row
    rows = row.unflatten(0, (-1, transcoders.d_out)) if crosses else [row]
    return {at.layer + i: part for i, part in enumerate(rows)}


def _dictionary(transcoders: Any, saes: Sequence[Any], at: GraphNode) -> Any:
    if at.site == "mlp":
        if at.layer not in (transcoders or {}):
            raise IndexError(f"feature_interventions: layer {at.layer} has no transcoder")
        return transcoders[at.layer]
    names = {f"blocks.{at.layer}.{_POINTS[at.site]}"}
    if at.site == "residual":
        names.add(f"blocks.{at.layer + 1}.hook_resid_pre")
    for one in saes:
        if one.origin.inputs and one.origin.inputs[0].hook_name in names:
            return one
    raise IndexError(f"feature_interventions: layer {at.layer} has no SAE of {_POINTS[at.site]}")
