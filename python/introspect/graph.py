"""KV-cache experiment graphs: segments that continue one another's caches, planned instead of looped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from . import _C
from ._C import PlanSummary
from .arguments import listed, native_model
from .model import Model

__all__ = ["Graph", "PlanSummary"]

DEFAULT_BUDGET = 1 << 30


class Graph:
    """A KV-cache experiment as data.

    A segment continues its parent's cache, under interventions of its own; readings are asked for, and ``run`` makes
    them all. Equal segments after equal parents are one node, equal beginnings run once, segments that differ in their
    interventions share the layers below the first of them, and nothing runs that is not read.

        graph = introspect.Graph()
        before = graph.segment(model, system_ids)
        plain = graph.segment(model, turn_ids, before)
        steered = graph.segment(model, turn_ids, before, [introspect.Intervention({8: direction}, strength=4.0)])
        asked = [graph.segment(model, question_ids, node) for node in (plain, steered)]
        reads = [graph.read(node) for node in asked]
        resids = graph.run()                                      # a tensor a reading
        logits = [model.native.readout(resids[r][0, -1]) for r in reads]
    """

    def __init__(self) -> None:
        self.native = _C.Graph()
        self._adapted: dict[tuple[_C.Model, _C.Adapter], _C.Model] = {}  # a model and an adapter are one other model

    def segment(
        self,
        model: Model,
        tokens: torch.Tensor | Sequence[int],
        parent: int | None = None,
        interventions: Sequence[_C.Intervention] = (),
        *,
        adapter: _C.Adapter | None = None,
    ) -> int:
        """Tokens after the parent's (None: at the start of a sequence), run by ``model``.

        Args:
            model: of the parent's shape, dtype and device; another one sees the parent's keys and values as its own.
            tokens: ids, a list or an int64 tensor of one row.
            parent: a node.
            interventions: their positions count from the segment's first token, and they end with it.
            adapter: in effect in this segment; those after it see its keys and values, and have adapters of their own.

        Returns:
            The node; an equal one if it is there already.

        Raises:
            ShapeError: models of other shapes, or more than n_ctx positions.
            IndexError: tokens, nodes, layers or positions that are not there.
            ConfigError: interventions after the last block, an adapter of another model, or a model that is hooked or
                steered (interventions are what a graph runs).
            ValueError: no tokens.
        """
        who = "Graph.segment"
        ids, changes = listed(tokens, "tokens", who), listed(interventions, "interventions", who)
        native = native_model(model, who)
        if adapter is not None:
            key = (native, adapter)
            if key not in self._adapted:
                self._adapted[key] = native.with_adapter(adapter)
            native = self._adapted[key]
        return self.native.segment(native, ids, parent, changes)

    def splice(self, target: int, first: int, last: int, source: int) -> int:
        """``target`` with the keys and values of positions [first, last) of the sequence taken from ``source``.

        Raises:
            IndexError: positions that one of them does not have.
            ValueError: the two hold other tokens there.
        """
        return self.native.splice(target, first, last, source)

    def read(
        self,
        node: int,
        *,
        positions: Sequence[int] = (-1,),
        layers: Sequence[int] | None = None,
        point: str = "hook_resid_post",
    ) -> int:
        """Ask for activations at a hook point of blocks (or "hook_embed"): [positions, layers, ...].

        Args:
            node: a segment.
            positions: of the segment's tokens; negative ones count from its end.
            layers: None: all.

        Returns:
            The number of the reading in ``run``'s list.

        Raises:
            IndexError: nodes, positions or layers that are not there.
            HookError: a point that this model does not have.
            ValueError: scores and patterns (``read_attention``), or activations of a splice.
        """
        at, blocks = listed(positions, "positions", "Graph.read"), listed(layers or (), "layers", "Graph.read")
        return self.native.read_activation(node, positions=at, layers=blocks, point=point)

    def read_attention(
        self,
        node: int,
        *,
        positions: Sequence[int] = (-1,),
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        keys: tuple[int, int] | None = None,
    ) -> int:
        """Ask for rows of attention patterns: [positions, layers, heads, keys].

        Args:
            positions: the queries, of the segment's tokens.
            layers, heads: None: all.
            keys: positions (first, last) of the whole sequence, ``last`` excluded; None: all.
        """
        who = "Graph.read_attention"
        if keys is not None and not (isinstance(keys, Sequence) and len(keys) == 2):
            raise TypeError(f"{who}: keys must be (first, last), got {keys!r}")
        first, last = keys or (0, None)
        return self.native.read_attention(
            node,
            positions=listed(positions, "positions", who),
            layers=listed(layers or (), "layers", who),
            heads=listed(heads or (), "heads", who),
            first_key=first,
            last_key=last,
        )

    def read_cache(self, node: int) -> int:
        """Ask for the KVCache of the sequence down to the node's end."""
        return self.native.read_cache(node)

    def __len__(self) -> int:
        return len(self.native)

    def length(self, node: int) -> int:
        """Number of tokens of the sequence down to a node's end."""
        return self.native.length(node)

    def tokens(self, node: int) -> list[int]:
        """The tokens of the sequence down to a node's end."""
        return self.native.tokens(node)

    def hash(self, node: int) -> str:
        """Identity of a node: SHA-256 of its model, tokens and interventions, and of those before it."""
        return self.native.hash(node)

    def svg(self) -> str:
        """The graph as an SVG document, segments from left to right; notebooks show it by themselves.

        Raises:
            ValueError: more than 400 nodes.
        """
        return self.native.svg()

    def _repr_svg_(self) -> str | None:
        return self.svg() if len(self) <= 400 else None

    def plan(self, *, memory_budget: int = DEFAULT_BUDGET) -> PlanSummary:
        """What would run.

        Args:
            memory_budget: bytes of one pass, weights aside.

        Raises:
            ValueError: nothing to read, or a budget too small for one reading.
        """
        return self.native.plan(memory_budget=memory_budget)

    def run(
        self,
        *,
        memory_budget: int = DEFAULT_BUDGET,
        on_read: Callable[[int, torch.Tensor | _C.KVCache], None] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[torch.Tensor | _C.KVCache]:
        """Make every reading: float32 (float64 of a float64 model) tensors, or caches.

        Args:
            on_read: called with (number, reading) as each pass ends; the list returned is then empty.
            progress: called with (what, done, total), in tokens times layers.

        Raises:
            ValueError: nothing to read, or a budget too small for one reading.
        """
        if on_read is None:
            return self.native.run(memory_budget=memory_budget, progress=progress)
        self.native.run_each(on_read, memory_budget=memory_budget, progress=progress)
        return []
