"""Two attribution graphs beside each other, and the mean of several of one template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import _C
from .attribution_graph import AttributionGraph

if TYPE_CHECKING:
    import pandas as pd

Positions = Sequence[int | None]


class NodeKey(NamedTuple):
    """What makes a node of one graph that of another."""

    kind: str
    layer: int
    position: int
    feature: int
    site: str


@dataclass(frozen=True)
class GraphComparison:
    """Two graphs with their nodes matched by kind, layer, position, feature and site.

    A node or edge that one of them lacks has the value 0 there.
    """

    first: AttributionGraph
    second: AttributionGraph
    positions: tuple[Positions, Positions]  # where each position of each graph stands in the common text; None: nowhere

    @cached_property
    def nodes(self) -> pd.DataFrame:
        """One row a node of either: kind to site, name, its value and influence in each, the change.

        Sorted by how much its influence changed, most first. ``in_first`` and ``in_second`` say which graph has it.
        """
        import pandas as pd

        rows: dict[NodeKey, dict[str, Any]] = {}
        for side, graph, positions in self._sides():
            influence = graph.influence().tolist()
            for node, share in zip(graph.nodes, influence, strict=True):
                key = _key(node, positions)
                if key is None:
                    continue
                row = rows.setdefault(key, {**key._asdict(), "name": node.name, **_ABSENT})
                row[f"in_{side}"] = True
                row[f"value_{side}"] += node.value
                row[f"influence_{side}"] += share
        table = pd.DataFrame(list(rows.values()), columns=[*NodeKey._fields, "name", *_ABSENT])
        return _by_change(table, "influence")

    @cached_property
    def edges(self) -> pd.DataFrame:
        """One row an edge of either: source and target (kind to site), its weights, the change."""
        import pandas as pd

        weights: dict[tuple[NodeKey, NodeKey], list[float]] = {}
        for number, (_, graph, positions) in enumerate(self._sides()):
            keys = [_key(node, positions) for node in graph.nodes]
            for target, source, weight in _edges(graph):
                to, start = keys[target], keys[source]
                if to is not None and start is not None:
                    weights.setdefault((start, to), [0.0, 0.0])[number] += weight
        ends = ("source", "target")
        table = pd.DataFrame(
            [[*start, *to, *both] for (start, to), both in weights.items()],
            columns=[
                *(f"{end}_{name}" for end in ends for name in NodeKey._fields),
                "weight_first",
                "weight_second",
            ],
        )
        return _by_change(table, "weight")

    def rose(self, n: int = 10) -> pd.DataFrame:
        """The n nodes whose influence rose most from the first graph to the second."""
        return self.nodes[self.nodes.change > 0].sort_values("change", ascending=False).head(n)

    def fell(self, n: int = 10) -> pd.DataFrame:
        """The n nodes whose influence fell most."""
        return self.nodes[self.nodes.change < 0].sort_values("change").head(n)

    @property
    def jaccard(self) -> float:
        """Features of both over features of either; NaN where neither has any."""
        features = self.nodes[self.nodes.kind == "feature"]
        both = (features.in_first & features.in_second).sum()
        return float(both / len(features)) if len(features) else float("nan")

    @property
    def influence_correlation(self) -> float:
        """Pearson's, of the influence of features of either."""
        features = self.nodes[self.nodes.kind == "feature"]
        return _correlation(features.influence_first, features.influence_second)

    @property
    def weight_correlation(self) -> float:
        """Pearson's, of the weights of edges that both have."""
        both = self.edges[(self.edges.weight_first != 0) & (self.edges.weight_second != 0)]
        return _correlation(both.weight_first, both.weight_second)

    def to_pandas(self) -> pd.DataFrame:
        """``nodes``."""
        return self.nodes

    def to_dict(self) -> dict[str, Any]:
        """The measures by name, with the scores of each graph."""
        scores = [graph.scores() for graph in (self.first, self.second)]
        return {
            "features_first": int((self.nodes.in_first & (self.nodes.kind == "feature")).sum()),
            "features_second": int((self.nodes.in_second & (self.nodes.kind == "feature")).sum()),
            "jaccard": self.jaccard,
            "influence_correlation": self.influence_correlation,
            "weight_correlation": self.weight_correlation,
            **{
                f"{name}_{side}": getattr(of, name)
                for name in ("replacement", "completeness")
                for side, of in zip(("first", "second"), scores, strict=True)
            },
        }

    def _sides(self) -> tuple[tuple[str, AttributionGraph, Positions], ...]:
        return ("first", self.first, self.positions[0]), ("second", self.second, self.positions[1])

    def __repr__(self) -> str:
        return (
            f"GraphComparison(jaccard of features {self.jaccard:.2f}, correlation of influence "
            f"{self.influence_correlation:.2f}, of weights {self.weight_correlation:.2f})"
        )


def compare(
    first: AttributionGraph, second: AttributionGraph, *, positions: Sequence[Positions] | None = None
) -> GraphComparison:
    """Compare two graphs: one prompt clean and injected or patched, or a model and its fine-tuned copy.

    Args:
        positions: for each graph, the common position of each of its own, None where it has none; by default
            positions count from the end, so that prompts of two lengths are aligned at their last tokens.

    Raises:
        ValueError: positions that are not one for each token.
    """
    lists = _aligned([first, second], positions, "compare")
    return GraphComparison(first, second, (lists[0], lists[1]))


def mean_graph(graphs: Sequence[AttributionGraph], *, positions: Sequence[Positions] | None = None) -> AttributionGraph:
    """The mean of graphs of prompts of one template: what is the same in all of them stays, the rest fades.

    Nodes are matched as by ``compare``; weights and values are means over all graphs, 0 where one lacks the edge or
    node. Tokens that differ are one node, of number -1. Nodes of positions that have no common one are left out.

    Args:
        positions: as in ``compare``.

    Raises:
        ValueError: no graphs, or positions that are not one for each token.
    """
    if not graphs:
        raise ValueError("mean_graph: at least one graph is needed, got none")
    lists = _aligned(graphs, positions, "mean_graph")
    tokens: dict[int, list[tuple[int, str]]] = {}
    for graph, places in zip(graphs, lists, strict=True):
        for node in graph.nodes:
            place = places[node.position] if node.kind == "token" else None
            if place is not None:
                tokens.setdefault(place, []).append((node.feature, node.name))
    shared = {place: of[0] for place, of in tokens.items() if len(set(of)) == 1 and len(of) == len(graphs)}
    n_layers = max((node.layer for graph in graphs for node in graph.nodes if node.kind == "logit"), default=0)
    values: dict[NodeKey, list[Any]] = {}
    weights: dict[tuple[NodeKey, NodeKey], float] = {}
    for graph, places in zip(graphs, lists, strict=True):
        keys: list[NodeKey | None] = []
        for node in graph.nodes:
            key = _key(node, places)
            if key is not None and key.kind == "token" and key.position not in shared:
                key = key._replace(feature=-1)
            keys.append(key)
            if key is not None:
                held = values.setdefault(key, [0.0, node.name])
                held[0] += node.value / len(graphs)
        for target, source, weight in _edges(graph):
            to, start = keys[target], keys[source]
            if to is not None and start is not None:
                weights[to, start] = weights.get((to, start), 0.0) + weight / len(graphs)
    # Positions from 0 again.
    lowest = min((key.position for key in values if key.kind not in _NOWHERE), default=0)
    order = sorted(values, key=lambda key: (_ORDER.index(key.kind), key.layer, key.site, key.position, key.feature))
    number = {key: i for i, key in enumerate(order)}
    names = {place: shared[place][1] if place in shared else "*" for place in tokens}
    nodes = [
        _C.GraphNode(
            key.kind,
            n_layers if key.kind == "logit" else key.layer,
            -1 if key.kind in _NOWHERE else key.position - lowest,
            key.feature,
            values[key][0],
            names[key.position] if key.kind == "token" else values[key][1],
            key.site,
        )
        for key in order
    ]
    entries = sorted((number[to], number[start], weight) for (to, start), weight in weights.items())
    targets = sorted({row for row, _, _ in entries})
    counts = torch.zeros(len(order), dtype=torch.long)
    for row, _, _ in entries:
        counts[row] += 1
    head = graphs[0]
    return AttributionGraph(
        _C.AttributionGraph(
            nodes,
            targets,
            torch.cat([torch.zeros(1, dtype=torch.long), counts[targets].cumsum(0)]),
            torch.tensor([start for _, start, _ in entries], dtype=torch.long),
            torch.tensor([weight for _, _, weight in entries], dtype=head.native.weights.dtype),
            model_name=head.model_name,
            model_hash=head.model_hash if len({graph.model_hash for graph in graphs}) == 1 else "",
            prompt="".join(names[place] for place in sorted(names)),
            tokens=[shared[place][0] if place in shared else -1 for place in sorted(names)],
            token_texts=[names[place] for place in sorted(names)],
            transcoders=head.native.transcoders,
            notes={"mean_of": [graph.prompt for graph in graphs]},
        )
    )


_NOWHERE = ("bias", "injection")
_ORDER = ("feature", "error", "token", "bias", "injection", "logit")
_ABSENT = {
    "in_first": False,
    "in_second": False,
    "value_first": 0.0,
    "value_second": 0.0,
    "influence_first": 0.0,
    "influence_second": 0.0,
}


def _key(node: _C.GraphNode, positions: Positions) -> NodeKey | None:
    if node.kind in _NOWHERE:
        return NodeKey(node.kind, node.layer, -1, node.feature, node.site)
    place = positions[node.position]
    return None if place is None else NodeKey(node.kind, node.layer, place, node.feature, node.site)


def _edges(graph: AttributionGraph) -> list[tuple[int, int, float]]:
    native = graph.native
    rows = torch.repeat_interleave(torch.tensor(native.targets, dtype=torch.long), native.offsets.diff())
    return list(zip(rows.tolist(), native.sources.tolist(), native.weights.double().tolist(), strict=True))


def _aligned(
    graphs: Sequence[AttributionGraph], positions: Sequence[Positions] | None, who: str
) -> list[tuple[int | None, ...]]:
    sizes = [max([len(graph.token_texts), *(node.position + 1 for node in graph.nodes)], default=0) for graph in graphs]
    if positions is None:
        longest = max(sizes)
        return [tuple(range(longest - size, longest)) for size in sizes]
    if len(positions) != len(graphs):
        raise ValueError(f"{who}: positions must be given for {len(graphs)} graphs, got {len(positions)}")
    for graph, (size, places) in enumerate(zip(sizes, positions, strict=True)):
        known = [place for place in places if place is not None]
        if len(places) != size or known != sorted(set(known)):
            raise ValueError(
                f"{who}: positions of graph {graph} must be {size} ascending numbers or None, got {list(places)}"
            )
    return [tuple(places) for places in positions]


def _by_change(table: pd.DataFrame, name: str) -> pd.DataFrame:
    table["change"] = table[f"{name}_second"] - table[f"{name}_first"]
    order = table.change.abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _correlation(a: pd.Series, b: pd.Series) -> float:
    return float(a.corr(b)) if len(a) > 1 and a.std() > 0 and b.std() > 0 else float("nan")
