"""Interventions on the features of an attribution graph: what they do to the model, and whether the graph said so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .._C import CrossLayerTranscoder, Intervention
from ..arguments import native_model
from ..graph import Graph
from .attribution_graph import AttributionGraph

if TYPE_CHECKING:
    import pandas as pd


def predicted_effects(graph: AttributionGraph, changes: Mapping[int, float]) -> torch.Tensor:
    """What the linear model of a graph says of changed features: the change of every node, float64 [nodes].

    A node's number stands for its pre-activation, of a target its logit less the mean. Features keep on being active.

    Args:
        changes: {node: relative change}: -1 takes a feature out, 1 doubles it.

    Raises:
        IndexError: a node that is not there.
        ValueError: one that is no feature.
    """
    nodes, native = graph.nodes, graph.native
    relative = torch.zeros(len(nodes), dtype=torch.float64)
    for node, change in changes.items():
        _feature(graph, node, "predicted_effects")
        relative[node] = change
    out = torch.zeros(len(nodes), dtype=torch.float64)
    offsets, weights = native.offsets.tolist(), native.weights.double()
    rows = sorted(range(len(native.targets)), key=lambda row: nodes[native.targets[row]].layer)
    for row in rows:
        target = native.targets[row]
        first, end = offsets[row], offsets[row + 1]
        out[target] = weights[first:end] @ relative[native.sources[first:end]]
        if target not in changes and nodes[target].kind == "feature":
            relative[target] = out[target] / nodes[target].value
    return out


def feature_interventions(
    graph: AttributionGraph, transcoders: Any, changes: Mapping[int, float]
) -> list[Intervention]:
    """The same changes as data for a model: relative changes of features, written where they write.

    For ``Graph.segment``, ``model.forward`` or ``generate``: they act at the features' own positions, and add to what
    the MLPs write, whose errors stay.

    Raises:
        IndexError: a node, or a feature of a layer without a transcoder.
        ValueError: a node that is no feature.
    """
    out = []
    for node, change in changes.items():
        at = _feature(graph, node, "feature_interventions")
        for layer, vector in _writes(transcoders, at.layer, at.feature).items():
            out.append(
                Intervention(
                    {layer: change * at.value * vector}, op="add", point="hook_mlp_out", positions=[at.position]
                )
            )
    return out


@dataclass(frozen=True)
class Validation:
    """Predicted and measured changes of a target's logit (less the mean) when features are taken out one by one.

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
    target: int | None = None,
    nodes: Sequence[int] | None = None,
    n: int = 40,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Validation:
    """Take features of a graph out of the model, one at a time, and compare what happens with what the graph says.

    Everything after a feature runs as in the model itself, attention and MLPs too. All runs are one planned graph.

    Args:
        target: a node of kind logit; the likeliest by default.
        nodes: features; by default the n of most influence.
        seed: of the null vectors.

    Raises:
        ValueError: a graph without features or next-token targets, or of another model.
        IndexError: nodes that are not there.
    """
    import pandas as pd

    native = native_model(model, "validate")
    if graph.model_hash and graph.model_hash != native.hash:
        raise ValueError(f"validate: the graph is of another model ({graph.model_name})")
    targets = [i for i, node in enumerate(graph.nodes) if node.kind == "logit"]
    if target is None:
        if not targets:
            raise ValueError("validate: the graph must have a next token as target, got none")
        target = max(targets, key=lambda i: graph.nodes[i].value)
    if target not in targets:
        raise IndexError(f"validate: node {target} is no target")
    influence = graph.influence()
    if nodes is None:
        features = [i for i, node in enumerate(graph.nodes) if node.kind == "feature"]
        nodes = sorted(features, key=lambda i: -influence[i].item())[:n]
    if not nodes:
        raise ValueError("validate: the graph has no features")
    direct = _row(graph, target)
    rng = torch.Generator().manual_seed(seed)

    work = Graph()
    reads = [work.read(work.segment(model, graph.tokens))]
    for node in nodes:
        changes = feature_interventions(graph, transcoders, {node: -1.0})
        reads.append(work.read(work.segment(model, graph.tokens, None, changes)))
        nulls = []
        for change in changes:
            ((layer, vector),) = change.values.items()
            assert isinstance(vector, torch.Tensor)
            noise = torch.randn(vector.shape, generator=rng, dtype=torch.float64).to(vector)
            nulls.append(
                Intervention(
                    {layer: noise * vector.norm() / noise.norm()},
                    op="add",
                    point="hook_mlp_out",
                    positions=change.positions,
                )
            )
        reads.append(work.read(work.segment(model, graph.tokens, None, nulls)))
    found: list[Any] = work.run(progress=progress)
    token = graph.nodes[target].feature
    logits = []
    for read in reads:
        row = native.readout(found[read][0, -1]).double()
        logits.append((row[token] - row.mean()).item())
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
                "measured": logits[1 + 2 * place] - logits[0],
                "null": logits[2 + 2 * place] - logits[0],
            }
        )
    return Validation(pd.DataFrame(rows), target)


def _row(graph: AttributionGraph, target: int) -> torch.Tensor:
    out = torch.zeros(graph.n_nodes, dtype=torch.float64)
    row = graph.native.targets.index(target)
    first, end = graph.native.offsets[row].item(), graph.native.offsets[row + 1].item()
    out[graph.native.sources[first:end]] = graph.native.weights[first:end].double()
    return out


def _feature(graph: AttributionGraph, node: int, who: str) -> Any:
    if not 0 <= node < graph.n_nodes:
        raise IndexError(f"{who}: nodes are 0 to {graph.n_nodes - 1}, got {node}")
    at = graph.nodes[node]
    if at.kind != "feature":
        raise ValueError(f"{who}: node {node} must be a feature, got a {at.kind}")
    return at


def _writes(transcoders: Any, layer: int, feature: int) -> dict[int, torch.Tensor]:
    """What one unit of a feature adds to each MLP's output."""
    if isinstance(transcoders, CrossLayerTranscoder):
        rows = transcoders.W_dec(layer)[feature]
        return {layer + i: row for i, row in enumerate(rows)}
    if layer not in transcoders:
        raise IndexError(f"feature_interventions: layer {layer} has no transcoder")
    dictionary = transcoders[layer].fold_input_scale()
    row = dictionary.weights["W_dec"][feature]
    # Ranked by the decoder's norms, activations are of rows of length 1.
    return {layer: row / row.norm() if dictionary.rank_by_decoder_norm else row}
