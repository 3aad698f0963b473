"""A circuit as a value: edges of a model with their scores, and which of them belong to it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..arguments import native_model

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Circuit:
    """Edges between the nodes of a model, each with a score and whether it is in the circuit.

    Senders are ``input``, heads ``a3.h2`` and MLPs ``m3``; receivers are queries, keys and values ``a3.h2<q>``, MLPs
    and ``logits``. Keys and values of grouped heads are one receiver, ``a3.g0<k>``; ``ungrouped`` has one for each
    query head, as the EAP-IG package does. What selects or prunes returns another circuit.
    """

    native: _C.Circuit

    @classmethod
    def whole(cls, model: Any, *, ungrouped: bool = False) -> Circuit:
        """Every edge of a model, without scores."""
        return cls(_C.Circuit.whole(native_model(model, "Circuit").cfg, ungrouped=ungrouped))

    @classmethod
    def of_edges(cls, model: Any, names: Sequence[str], *, ungrouped: bool = False) -> Circuit:
        """These edges: ``["input->a0.h1<v>", "a0.h1->logits"]``.

        Raises:
            ValueError: a name of no edge of this model, with what is wrong with it.
        """
        return cls(_C.Circuit.of_edges(native_model(model, "Circuit").cfg, list(names), ungrouped=ungrouped))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Circuit:
        """Read a JSON file in the format of the EAP-IG package.

        Raises:
            ConfigError: it is no circuit, or names nodes that its own cfg does not have.
            IoError: it cannot be read.
        """
        return cls(_C.Circuit.load(os.fspath(path)))

    @classmethod
    def from_json(cls, text: str) -> Circuit:
        """The same of the file's text."""
        return cls(_C.Circuit.from_json(text))

    def save(self, path: str | os.PathLike) -> None:
        """Write it in the format of the EAP-IG package, which needs one of grouped keys to be ``ungrouped`` first.

        Raises:
            IoError: the file cannot be written.
        """
        self.native.save(os.fspath(path))

    def to_json(self) -> str:
        """The text of the file."""
        return self.native.to_json()

    @property
    def scores(self) -> torch.Tensor:
        """Of every edge, float64 [senders, receivers]; 0 where there is none."""
        return self.native.scores.clone()

    @property
    def in_graph(self) -> torch.Tensor:
        """Which edges are in the circuit, bool [senders, receivers]."""
        return self.native.in_graph.clone()

    @property
    def senders(self) -> list[str]:
        """The names along the first axis of ``scores``."""
        return self.native.sender_names

    @property
    def receivers(self) -> list[str]:
        """The names along its second axis."""
        return self.native.receiver_names

    @property
    def n_edges(self) -> int:
        """How many edges are in the circuit."""
        return self.native.n_edges

    @property
    def edges(self) -> dict[str, float]:
        """The edges in the circuit by name with their scores, those of the largest |score| first."""
        return {f"{sender}->{receiver}": score for sender, receiver, score in self.native.edges()}

    @property
    def nodes(self) -> list[str]:
        """The senders in the circuit, ``input`` among them."""
        names = self.senders
        return [names[sender] for sender in self.native.senders()]

    def score(self, edge: str) -> float:
        """The score of an edge by name, in the circuit or not.

        Raises:
            ValueError: it is no edge of the model.
        """
        return float(self.native.scores[self.native.parse_edge(edge)])

    def top(self, n: int, *, absolute: bool = True, prune: bool = True) -> Circuit:
        """The n edges of the largest |score|, without those that are then on no way from input to logits.

        Args:
            absolute: False takes those of the largest score.
            prune: False keeps what dangles.

        Raises:
            ValueError: more edges than there are.
        """
        return Circuit(self.native.top(n, absolute=absolute, prune=prune))

    def greedy(self, n: int, *, absolute: bool = True, prune: bool = True) -> Circuit:
        """n edges taken one by one from the logits up: the best into a node that is in already. Errors as ``top``."""
        return Circuit(self.native.greedy(n, absolute=absolute, prune=prune))

    def pruned(self) -> Circuit:
        """Without the edges that are on no way from input to logits."""
        return Circuit(self.native.pruned())

    def ungrouped(self) -> Circuit:
        """With a key and a value receiver for each query head; a group's score is split evenly among its heads."""
        return Circuit(self.native.ungrouped())

    def with_scores(self, scores: torch.Tensor) -> Circuit:
        """The same edges with other scores [senders, receivers]: random ones as a baseline, or another method's.

        Raises:
            ShapeError: another shape.
        """
        return Circuit(self.native.with_scores(scores))

    def node_scores(self) -> dict[str, float]:
        """The sum of each sender's edges' scores: of EAP this is attribution patching."""
        return dict(zip(self.senders, self.native.sender_scores().tolist(), strict=True))

    def compare(self, other: Circuit) -> _C.CircuitComparison:
        """Edges and nodes in both, and how far the scores rank alike.

        Raises:
            ConfigError: circuits of different models.
        """
        return self.native.compare(other.native)

    def outside(self, activations: Mapping[str, torch.Tensor] | None = None) -> list[_C.Intervention]:
        """Interventions that leave a run only the nodes of the circuit, for graphs and hooks.

        Heads and MLPs outside write zero, or what ``activations`` holds at their attn.hook_z and hook_mlp_out. All
        edges between nodes that are in are kept: ``run_circuit`` is for single edges.

        Raises:
            ValueError: an activation that is needed and not there.
        """
        return self.native.outside(dict(activations or {}))

    def to_pandas(self, *, all_edges: bool = False) -> pd.DataFrame:
        """One row an edge in the circuit, or of the model: edge, sender, receiver, score, in_graph."""
        import pandas as pd

        whole = self.native
        if all_edges:
            whole = whole.top(whole.n_possible_edges, prune=False)
        inside = set(self.edges) if all_edges else None
        rows = [(f"{s}->{r}", s, r, score, inside is None or f"{s}->{r}" in inside) for s, r, score in whole.edges()]
        return pd.DataFrame(rows, columns=["edge", "sender", "receiver", "score", "in_graph"])

    def svg(self) -> str:
        """A picture, layers upwards: width is |score|, blue raises the metric when replaced, orange lowers it.

        Raises:
            ValueError: more than 2,000 edges; take fewer with ``top``.
        """
        return self.native.svg()

    def _repr_svg_(self) -> str | None:
        return self.svg() if self.n_edges <= 300 else None

    def __repr__(self) -> str:
        return f"Circuit({self.n_edges:,} of {self.native.n_possible_edges:,} edges, {len(self.nodes)} nodes)"
