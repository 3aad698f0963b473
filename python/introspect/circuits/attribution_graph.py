"""Attribution graphs: which features made a model say what it says, as a value, and how one is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import _C
from .._C import GraphNode, GraphTarget, Injection
from ..analysis.prompts import one_prompt
from ..arguments import native_model
from ..output_files import write_bytes
from ..progress import duration
from .transcoders import transcoder_arguments

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "AttributionGraph",
    "AttributionPlan",
    "GraphNode",
    "GraphPath",
    "GraphScores",
    "GraphTarget",
    "Injection",
    "attribute",
]


class GraphScores(NamedTuple):
    """How much of a graph runs through its features instead of errors, 0 to 1 each."""

    replacement: float  # influence of tokens / (tokens + errors)
    completeness: float  # share of in-edges not from errors, nodes weighed by influence


class GraphPath(NamedTuple):
    """A way through a graph: node numbers from source to target, and the product of its edges' shares."""

    nodes: list[int]
    weight: float


@dataclass(frozen=True)
class AttributionPlan:
    """What ``attribute(..., plan=True)`` gives in place of a graph.

    Attributes:
        active_features: over all layers and positions.
        rows: of features, at most.
        rows_per_batch: that the memory budget has room for.
        seconds: estimate for them, by some that were timed on this machine as it is now.
        bytes: estimate of the memory beside model and dictionaries, the graph included.
    """

    active_features: int
    rows: int
    rows_per_batch: int
    seconds: float
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows over {self.active_features:,} active features, about {duration(self.seconds)}, "
            f"{self.bytes / 2**20:,.0f} MiB beside model and dictionaries"
        )


@dataclass(frozen=True)
class AttributionGraph:
    """Nodes, and how much each adds to each one after it, in a model whose patterns, norms and MLPs are held fixed.

    Edge (t, s) is what s adds to t's pre-activation, of a target to its logit: with errors and biases the edges into a
    node sum to it. Nodes stand in order: features by depth, position and number, then errors, tokens, biases,
    injections and targets. What prunes or selects returns another graph.

    Source: Ameisen et al. 2025, "Circuit Tracing"; formulas of scores and pruning as in circuit-tracer.
    """

    native: _C.AttributionGraph

    @classmethod
    def load(cls, path: str | os.PathLike) -> AttributionGraph:
        """Read a graph: our .safetensors, the JSON of circuit-tracer and Neuronpedia (schema 1), circuit-tracer's .pt.

        Raises:
            ConfigError: the JSON is not one of a graph, of a newer schema, or has nodes that stand twice.
            IoError: the file cannot be read or is damaged.
        """
        if Path(path).suffix == ".json":
            try:
                text = Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise _C.IoError(f"AttributionGraph.load: {path} cannot be read: {error}") from error
            return cls.from_json(text)
        if Path(path).suffix == ".pt":
            from .graph_pt import read_pt

            return cls(read_pt(path))
        return cls(_C.AttributionGraph.load(os.fspath(path)))

    @classmethod
    def from_json(cls, text: str) -> AttributionGraph:
        """The same of the text of such a JSON file."""
        return cls(_C.AttributionGraph.from_json(text))

    def save(self, path: str | os.PathLike) -> None:
        """Write it, whole or not at all: .json for circuit-tracer and Neuronpedia, .safetensors with every digit."""
        if Path(path).suffix == ".json":
            self.to_json(path)
        else:
            self.native.save(os.fspath(path))

    def to_json(
        self, path: str | os.PathLike | None = None, *, slug: str = "", scan: str = "", biases: bool = False
    ) -> str:
        """The graph JSON of circuit-tracer and Neuronpedia, also written to ``path`` if given.

        Args:
            slug: its name there; the file's name, or "graph".
            scan: the model's name there; this model's name.
            biases: keep the nodes of biases and injections, which those front ends do not draw.
        """
        slug = slug or (Path(path).stem if path is not None else "graph")
        text = self.native.to_json(slug, scan or self.native.model_name, biases=biases)
        if path is not None:
            write_bytes(path, text.encode())
        return text

    @property
    def model_name(self) -> str:
        return self.native.model_name

    @property
    def model_hash(self) -> str:
        """Of the checkpoint; empty where a file does not say."""
        return self.native.model_hash

    @property
    def prompt(self) -> str:
        return self.native.prompt

    @property
    def tokens(self) -> list[int]:
        return self.native.tokens

    @property
    def token_texts(self) -> list[str]:
        return self.native.token_texts

    @property
    def notes(self) -> dict[str, Any]:
        """How it was made: active features, those that got a row, options."""
        return self.native.notes

    @cached_property
    def nodes(self) -> list[GraphNode]:
        return self.native.nodes

    @property
    def n_nodes(self) -> int:
        return self.native.n_nodes

    @property
    def n_edges(self) -> int:
        return self.native.n_edges

    def adjacency(self) -> torch.Tensor:
        """Every edge, signed, [targets, sources] over all nodes; of at most 20,000 nodes."""
        return self.native.adjacency()

    def in_sums(self) -> torch.Tensor:
        """The sum of each node's in-edges, float64 [nodes]: its pre-activation, biases included."""
        return self.native.in_sums()

    def influence(self, *, biases: bool = False) -> torch.Tensor:
        """How much of the targets runs through each node, float64 [nodes]; biases take part if asked for."""
        return self.native.influence(biases=biases)

    def scores(self, *, biases: bool = False) -> GraphScores:
        """Replacement and completeness."""
        return GraphScores(*self.native.scores(biases=biases))

    def prune(
        self, node_threshold: float = 0.8, edge_threshold: float = 0.98, *, biases: bool = False
    ) -> AttributionGraph:
        """Without the nodes and edges that carry little; tokens and targets stay.

        Args:
            node_threshold: the smallest set of nodes with this share of all influence stays.
            edge_threshold: and of the edges between them.

        Raises:
            ValueError: thresholds not in 0 to 1.
        """
        return AttributionGraph(
            self.native.pruned(node_threshold=node_threshold, edge_threshold=edge_threshold, biases=biases)
        )

    def subgraph(self, nodes: Sequence[int]) -> AttributionGraph:
        """Only these nodes, by number, and the edges between them."""
        return AttributionGraph(self.native.subgraph(list(nodes)))

    def paths(self, source: int, target: int, n: int = 10) -> list[GraphPath]:
        """The heaviest ways from one node to another, heaviest first."""
        return [GraphPath(*path) for path in self.native.paths(source, target, n)]

    def find(self, kind: str, layer: int, position: int = -1, feature: int = -1, site: str = "mlp") -> int:
        """The number of a node; ``site`` of features and errors is mlp, attention or residual.

        Raises:
            IndexError: there is none.
        """
        return self.native.find(kind, layer, position, feature, site)

    def supernodes(self, groups: Mapping[str, Sequence[int]]) -> torch.Tensor:
        """The graph between groups of nodes: [groups, groups], row t the sum of edges from each group into group t.

        Raises:
            ValueError: a node of two groups.
        """
        owner: dict[int, int] = {}
        for number, (name, members) in enumerate(groups.items()):
            for node in members:
                if not 0 <= node < self.n_nodes:
                    raise IndexError(f"AttributionGraph.supernodes: nodes are 0 to {self.n_nodes - 1}, got {node}")
                if node in owner:
                    raise ValueError(f"AttributionGraph.supernodes: node {node} is in two groups, one is {name!r}")
                owner[node] = number
        of_node = torch.full((self.n_nodes,), -1)
        for node, number in owner.items():
            of_node[node] = number
        targets = torch.repeat_interleave(
            torch.tensor(self.native.targets, dtype=torch.long), self.native.offsets.diff()
        )
        to, source = of_node[targets], of_node[self.native.sources]
        kept = (to >= 0) & (source >= 0)
        out = torch.zeros(len(groups), len(groups), dtype=torch.float64)
        return out.index_put_((to[kept], source[kept]), self.native.weights[kept].double(), accumulate=True)

    def svg(self) -> str:
        """A picture: tokens along x, layers along y; a line's width is its share of the target's in-edges.

        Raises:
            ValueError: more than 600 nodes or 4,000 edges; ``prune`` first.
        """
        from .graph_picture import svg

        return svg(self.native)

    def _repr_html_(self) -> str | None:
        """For notebooks: the picture, where the graph is small enough for one."""
        from .graph_picture import MOST_EDGES, MOST_NODES

        return self.svg() if self.n_nodes <= MOST_NODES and self.n_edges <= MOST_EDGES else None

    def to_pandas(self) -> pd.DataFrame:
        """One row a node: kind, layer, position, feature, value, name, site, influence, in_sum."""
        import pandas as pd

        table = pd.DataFrame(self.native.columns)
        table["influence"] = self.influence().numpy()
        table["in_sum"] = self.in_sums().numpy()
        return table

    def __repr__(self) -> str:
        return f"AttributionGraph({self.prompt!r}, {self.n_nodes:,} nodes, {self.n_edges:,} edges)"


def attribute(
    model: Any,
    prompt: Any,
    transcoders: Any = None,
    *,
    saes: Sequence[Any] = (),
    input: str | None = None,
    targets: Sequence[GraphTarget] | None = None,
    injections: Sequence[Injection] = (),
    logit_mass: float = 0.95,
    max_logits: int = 10,
    max_features: int = 7500,
    edges_per_row: int = 4096,
    fold: bool = True,
    mask_first: bool = True,
    rows_per_batch: int = 128,
    batches_per_update: int = 8,
    memory_budget: int = 2 << 30,
    time_budget: float | None = None,
    resume: str | os.PathLike | None = None,
    plan: bool = False,
    name: str = "",
    progress: Callable[[str, int, int], None] | bool | None = None,
) -> AttributionGraph:
    """The attribution graph of one prompt.

    One forward pass, then rows of the linear model from the targets down, each within its causal cone.

    An SAE stands in for the vector that it reads: what comes later gets its features, its constant and its error in
    place of what made that vector, and its features get that. Through an SAE of the stream everything passes. The MLP
    of a layer without a transcoder is error as a whole.

    Args:
        prompt: a text or token ids, at least two tokens.
        transcoders: {layer: Transcoder} from what the MLPs read to what they write, or a CrossLayerTranscoder; None for
            SAEs alone.
        saes: of hook_attn_out, hook_resid_post or hook_resid_pre, as their hook names say; one of a vector.
        input: where they read: "residual" (before the norm), "normalized" (after it, before its weight) or "mlp" (what
            the MLP reads); by default what their files say.
        targets: instead of the likeliest next tokens.
        injections: vectors that are added on the way, a node for each layer with some.
        logit_mass, max_logits: the smallest set of next tokens with this probability, and at most so many.
        max_features: features that get a row, those of most influence so far.
        edges_per_row: features of the largest |weight| that a row keeps; 0: all.
        fold: what features without a node contribute counts as their position's error, so that sums stay exact.
        mask_first: no features at the first position.
        memory_budget: bytes beside model, transcoders and result.
        time_budget: seconds that features' rows may take by an estimate before them; None: any time.
        resume: a folder in which rows are kept as they are made: with the same arguments a call that was ended goes on
            where it stood, to the same graph. It may be deleted afterwards.
        plan: give an AttributionPlan, what it would take, after a forward pass and a few rows.

    Raises:
        IoError: rows of another graph in ``resume``.
        ConfigError: transcoders of another model or that are not linear where they are active.
        ShapeError: their widths, or the number of tokens.
        ValueError: options out of range, or a budget that does not hold one row, or all in its time, with the estimate.
    """
    native = native_model(model, "attribute")
    for what, given, kind in (("targets", targets or (), GraphTarget), ("injections", injections, Injection)):
        for one in given:
            if not isinstance(one, kind):
                raise TypeError(f"attribute: {what} must be {kind.__name__}s, got {one!r}")
    arguments: dict[str, Any] = {
        **transcoder_arguments({} if transcoders is None else transcoders, input, "attribute", saes),
        "name": name,
        "logit_mass": logit_mass,
        "max_logits": max_logits,
        "targets": list(targets or []),
        "injections": list(injections),
        "max_features": max_features,
        "edges_per_row": edges_per_row,
        "fold": fold,
        "mask_first": mask_first,
        "rows_per_batch": rows_per_batch,
        "batches_per_update": batches_per_update,
        "memory_budget": memory_budget,
        "time_budget": time_budget or 0.0,
        "progress": progress,
    }
    tokens = torch.tensor(one_prompt(model, prompt, "attribute"))
    if plan:
        found = _C.plan_attribution(native, tokens, **arguments)
        fields = AttributionPlan.__dataclass_fields__
        return AttributionPlan(*(getattr(found, one) for one in fields))  # type: ignore[return-value]
    folder = "" if resume is None else os.fspath(resume)
    return AttributionGraph(_C.attribute(native, tokens, rows_folder=folder, **arguments))
